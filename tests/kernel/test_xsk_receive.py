"""Receiving: nothing is lost at the start, views show the very bytes, each loss has its kernel counter."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

import pytest
from xskd._forward import ffi, lib

from lab import entered
from xskd.counters import WAKEUPS
from xskd.xdp import Attach
from xskd.xsk import Rings, Socket, Statistics

if TYPE_CHECKING:
    from conftest import MakeWire

SMALL = Rings(fill=64, rx=64, tx=64, completion=64)
ATTACH = pytest.mark.parametrize("attach", ["native", "generic"])


def fill_indices(xsk: Socket) -> tuple[int, int]:
    ring = xsk.port.rings[lib.XSKD_FILL]
    return ring.producer[0], ring.consumer[0]


def test_fill_is_full_before_bind(wire: MakeWire) -> None:
    net = wire(links=1)
    umem = net.umem(200)
    with entered(net.dut):
        xsk = Socket(umem, "eth1", 0, rings=SMALL)
    xsk.register()
    xsk.set_up_rings()
    assert xsk.fill() == 64
    assert fill_indices(xsk) == (64, 0)
    assert umem.free == 200 - 64
    xsk.bind()
    assert xsk.fill() == 0  # to the brim is to the brim
    xsk.close()


def test_open_fills_before_it_binds(wire: MakeWire, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    bind = Socket.bind

    def spy(xsk: Socket, *args: Any, **options: Any) -> None:
        seen.append(fill_indices(xsk))
        bind(xsk, *args, **options)

    monkeypatch.setattr(Socket, "bind", spy)
    net = wire()
    umem = net.umem()
    net.open("eth1", umem=umem, rings=SMALL)
    net.open("eth2", umem=umem, rings=SMALL)  # one that shares the UMEM, too
    assert seen == [(64, 0), (64, 0)]


@ATTACH
def test_the_first_packets_after_the_attachment_are_all_there(wire: MakeWire, attach: Attach) -> None:
    net = wire(links=1)
    xsk = net.receiver(attach=attach)
    net.taps[0].send(net.frames(100))
    with xsk.receive(200) as batch:
        assert [bytes(packet) for packet in batch] == net.frames(100)
    assert xsk.statistics() == Statistics()


def test_packets_sent_while_nobody_looks_wait_in_the_ring(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver(rings=Rings(fill=1024, rx=1024, tx=64, completion=64))
    for first in range(0, 1000, 100):
        net.taps[0].send(net.frames(100, first=first))
    got = []
    while batch := xsk.receive(64):
        got += [bytes(packet) for packet in batch]
        batch.release()
    assert got == net.frames(1000)


def test_a_view_is_the_packet_itself(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver()
    net.taps[0].send([net.frame(1)])
    batch = xsk.receive()
    batch[0][:6], batch[0][6:12] = bytes(batch[0][6:12]), bytes(batch[0][:6])
    assert xsk.transmit(batch) == 1
    assert net.taps[0].receive(1) == [net.swapped(net.frame(1))]


def test_a_full_rx_ring_is_counted_by_the_kernel_as_such(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver(rings=Rings(fill=256, rx=64, tx=64, completion=64))
    net.taps[0].send(net.frames(100))
    assert xsk.statistics() == Statistics(rx_ring_full=100 - 64)
    with xsk.receive(200) as batch:
        assert len(batch) == 64


def test_an_empty_fill_ring_is_counted_by_the_kernel_as_such(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver(rings=SMALL)
    net.taps[0].send(net.frames(100))
    assert xsk.statistics() == Statistics(rx_fill_ring_empty_descs=36, rx_dropped=36)


@ATTACH
@pytest.mark.parametrize("frame_size", [2048, 4096])
def test_a_packet_longer_than_a_frame_is_counted_as_dropped(
    wire: MakeWire, attach: Attach, frame_size: int
) -> None:
    usable = frame_size - 256  # XDP_PACKET_HEADROOM
    net = wire(links=1, mtu=frame_size if attach == "generic" else min(frame_size, 3400))
    xsk = net.receiver(umem=net.umem(frame_size=frame_size), attach=attach)
    sent = [net.frame(0, min(usable, net.mtu)), net.frame(1, 60)]
    net.taps[0].send(sent)
    with xsk.receive() as batch:
        assert [bytes(packet) for packet in batch] == sent
    if usable < net.mtu:
        net.taps[0].send([net.frame(2, usable + 1)])
        assert len(xsk.receive()) == 0
        assert xsk.statistics() == Statistics(rx_dropped=1)


def test_an_address_outside_the_umem_on_fill_is_skipped_by_the_kernel(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver(rings=SMALL, umem=net.umem(64))
    addresses = ffi.cast("uint64_t *", xsk.port.rings[lib.XSKD_FILL].entries)
    addresses[0] += xsk.umem.size  # behind the library's back: it never writes one
    net.taps[0].send(net.frames(1))
    with xsk.receive() as batch:
        assert [bytes(packet) for packet in batch] == net.frames(1)
        assert batch._desc(0).addr // xsk.umem.frame_size == addresses[1] // xsk.umem.frame_size
    # Nothing tells: rx_invalid_descs looks at the RX ring, where only the kernel writes, and so stays 0.
    assert xsk.statistics().rx_invalid_descs == 0


def test_a_starved_fill_ring_is_refilled_by_the_next_receive(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver(umem=net.umem(64), rings=SMALL)
    net.taps[0].send(net.frames(100))
    held = xsk.receive(100)
    assert len(held) == 64
    xsk.receive()
    assert xsk.port.counters.fill_starved >= 1
    held.release()
    xsk.receive()
    net.taps[0].send(net.frames(10, first=200))
    with xsk.receive() as batch:
        assert [bytes(packet) for packet in batch] == net.frames(10, first=200)


def test_frames_are_conserved_over_many_times_the_ring_sizes(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver(umem=net.umem(100), rings=SMALL)
    for first in range(0, 64 * 50, 50):
        net.taps[0].send(net.frames(50, first=first))
        with xsk.receive(64) as batch:
            assert [bytes(packet) for packet in batch] == net.frames(50, first=first)
    xsk.receive()
    assert xsk.port.rx_side + xsk.umem.free == 100
    assert xsk.umem.struct.held == 0


def test_waiting_ends_at_its_time_or_with_a_packet(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver()
    assert xsk.wait(0.01) is False
    net.taps[0].send([net.frame(0)])
    assert xsk.wait(30) is True
    assert xsk.wait(30) is True  # until somebody takes it
    xsk.receive().release()
    assert xsk.wait(0) is False


def test_the_descriptor_works_with_select(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver()
    assert select.select([xsk], [], [], 0.01)[0] == []
    net.taps[0].send([net.frame(0)])
    assert select.select([xsk], [], [], 30)[0] == [xsk]


def test_copy_mode_never_asks_for_a_wakeup_to_receive(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver()
    for number in range(10):
        net.taps[0].send([net.frame(number)])
        xsk.receive().release()
    assert xsk.port.rings[lib.XSKD_FILL].flags[0] & 1 == 0  # XDP_RING_NEED_WAKEUP
    assert list(xsk.port.counters.wakeups) == [0] * len(WAKEUPS)
    assert xsk.port.counters.wakeups_skipped[lib.XSKD_DIRECTION_RX] > 0
