"""Transmitting: what the kernel takes per call, what stops it, and that no bad descriptor ever reaches it."""

from __future__ import annotations

import select
import struct
from typing import TYPE_CHECKING

import pytest
from xskd._forward import ffi, lib

from lab import entered
from xskd.counters import WAKEUP_ERRORS, WAKEUPS
from xskd.errors import XskError
from xskd.xsk import Rings, Socket

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

SMALL = Rings(fill=64, rx=64, tx=64, completion=64)


def submit(xsk: Socket, packets: list[bytes], net: Wire) -> int:
    """Put packets on the TX ring without telling the kernel."""
    batch = net.written(xsk.umem, packets)
    sent = int(lib.xskd_transmit(xsk.port, batch._descs, len(batch)))
    batch._start += sent
    batch.release()
    return sent


def set_budget(xsk: Socket, frames: int) -> None:
    try:
        xsk._socket.setsockopt(lib.SOL_XDP, lib.XDP_MAX_TX_SKB_BUDGET, frames)
    except OSError as error:
        pytest.skip(f"needs a kernel with XDP_MAX_TX_SKB_BUDGET (6.18): {error}")


def errors(xsk: Socket) -> dict[str, int]:
    counted = zip(WAKEUP_ERRORS, xsk.port.counters.wakeup_errors, strict=True)
    return {name: count for name, count in counted if count}


def wakeups(xsk: Socket) -> dict[str, int]:
    return {name: count for name, count in zip(WAKEUPS, xsk.port.counters.wakeups, strict=True) if count}


def test_a_burst_of_64_is_one_call_where_the_kernel_lets_a_budget_be_set(wire: MakeWire) -> None:
    net = wire()
    set_budget(net.open("eth2"), 256)  # does this kernel know it at all?
    xsk = net.open()
    assert xsk.transmit(net.written(xsk.umem, net.frames(64))) == 64
    assert net.taps[0].receive(64) == net.frames(64)
    assert (wakeups(xsk), errors(xsk)) == ({"new": 1}, {})


@pytest.mark.moves("xskd_wakeups", reason="again")
@pytest.mark.moves("xskd_wakeup_errors", errno="EAGAIN")
def test_a_used_up_budget_is_no_error_and_the_burst_is_sent_all_the_same(wire: MakeWire) -> None:
    net = wire(links=1)
    with entered(net.dut):
        xsk = Socket(net.umem(1024), "eth1", 0, rings=Rings(256, 256, 256, 256))
    xsk.register()
    xsk.set_up_rings()
    set_budget(xsk, 32)
    xsk.fill()
    xsk.bind()
    assert xsk.transmit(net.written(xsk.umem, net.frames(100))) == 100
    assert net.taps[0].receive(100) == net.frames(100)
    assert (wakeups(xsk), errors(xsk)) == ({"new": 1, "again": 3}, {"EAGAIN": 3})
    xsk.close()


def test_copy_mode_always_asks_for_a_wakeup_to_send(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open()
    for number in range(5):
        assert xsk.port.rings[lib.XSKD_TX].flags[0] & 1  # XDP_RING_NEED_WAKEUP, from the first packet on
        xsk.transmit(net.written(xsk.umem, [net.frame(number)]))
        assert net.taps[0].receive(1) == [net.frame(number)]
    assert wakeups(xsk) == {"new": 5}
    assert list(xsk.port.counters.wakeups_skipped) == [0, 0]


def test_nothing_to_send_is_no_call(wire: MakeWire) -> None:
    xsk = wire(links=1).open()
    assert xsk.transmit(xsk.umem.take(0)) == xsk.complete() == 0
    assert wakeups(xsk) == {}


@pytest.mark.parametrize("offset", [0, 256, 300])
def test_a_completion_is_the_address_as_it_was_given(wire: MakeWire, offset: int) -> None:
    net = wire(links=1)
    xsk = net.open()
    batch = xsk.umem.take(1)
    batch.write(0, net.frame(0))
    desc = batch._desc(0)
    desc.addr += offset
    batch[0][:] = net.frame(1)
    address = desc.addr
    assert xsk.transmit(batch) == 1
    assert net.taps[0].receive(1) == [net.frame(1)]
    assert net.eventually(lambda: xsk.port.rings[lib.XSKD_COMPLETION].producer[0] == 1)
    assert ffi.cast("uint64_t *", xsk.port.rings[lib.XSKD_COMPLETION].entries)[0] == address
    free = xsk.umem.free
    assert xsk.complete() == 1
    assert (xsk.umem.free, xsk.unsent, xsk.port.counters.completion_invalid) == (free + 1, 0, 0)


def test_the_kernel_stops_sending_at_a_full_completion_ring_and_goes_on_once_it_is_drained(
    wire: MakeWire,
) -> None:
    net = wire(links=1)
    xsk = net.open(umem=net.umem(512), rings=Rings(fill=64, rx=64, tx=64, completion=32))
    assert submit(xsk, net.frames(64), net) == 64
    for _ in range(3):
        lib.xskd_wakeup_tx(xsk.port)  # as often as you like
    assert net.taps[0].receive(32) == net.frames(32)
    assert errors(xsk)["EAGAIN"] > 0
    assert xsk.complete() == 32
    assert net.taps[0].receive(32) == net.frames(32, first=32)
    assert xsk.complete() == 32
    assert xsk.unsent == 0


def test_a_full_tx_ring_takes_no_more_and_the_rest_stays_in_the_batch(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open(umem=net.umem(512), rings=SMALL)
    net.link(net.dut, "eth1", "down")
    batch = net.written(xsk.umem, net.frames(100))
    assert xsk.transmit(batch) == 64
    assert len(batch) == 36 and bytes(batch[0]) == net.frame(64)
    assert xsk.transmit(batch) == 0
    net.up(net.dut, "eth1")
    xsk.complete()
    assert net.eventually(lambda: xsk.transmit(batch) >= 0 and not batch)
    assert net.taps[0].receive(100) == net.frames(100)


def test_pollout_is_silent_while_tx_is_more_than_half_full(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open(umem=net.umem(512), rings=Rings(fill=64, rx=64, tx=64, completion=32))
    poller = select.poll()
    poller.register(xsk, select.POLLOUT)
    assert poller.poll(0) == [(xsk.fileno(), select.POLLOUT)]  # empty: asking for it always would spin
    submit(xsk, net.frames(64), net)
    lib.xskd_wakeup_tx(xsk.port)  # 32 leave, and fill the completion ring
    submit(xsk, net.frames(32), net)
    assert poller.poll(10) == []
    xsk.complete()
    assert poller.poll(5000) == [(xsk.fileno(), select.POLLOUT)]


@pytest.mark.parametrize("length", [14, 59, 60, 1514, 1518])
def test_every_length_the_interface_can_send_arrives(wire: MakeWire, length: int) -> None:
    net = wire(links=1)
    xsk = net.open()
    assert xsk.transmit(net.written(xsk.umem, [net.frame(3, length)])) == 1
    assert net.taps[0].receive(1) == [net.frame(3, length)]


@pytest.mark.parametrize("length", [1519, 4096])
def test_a_packet_too_long_for_the_interface_never_reaches_the_kernel(wire: MakeWire, length: int) -> None:
    net = wire(links=1)
    xsk = net.open()
    batch = net.written(xsk.umem, [net.frame(0), net.frame(1, length), net.frame(2)])
    assert xsk.transmit(batch) == 1  # the one before it
    assert [len(packet) for packet in batch] == [length, 64]
    assert xsk.transmit(batch) == 0
    batch.release()
    assert net.taps[0].receive(1) == [net.frame(0)]
    assert xsk.statistics().tx_invalid_descs == 0
    assert xsk.complete() == 0 and xsk.unsent == 0


def test_a_frame_nothing_was_written_to_never_reaches_the_kernel(wire: MakeWire) -> None:
    xsk = wire(links=1).open()
    with xsk.umem.take(2) as batch:
        assert xsk.transmit(batch) == 0
    assert xsk.statistics().tx_invalid_descs == 0


def test_a_packet_shorter_than_an_ethernet_header_cannot_be_written(wire: MakeWire) -> None:
    with wire(links=1).open().umem.take(1) as batch, pytest.raises(XskError, match="packet of 13 bytes"):
        batch.write(0, bytes(13))


def test_a_frame_cannot_be_transmitted_twice(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open()
    batch = net.written(xsk.umem, [net.frame(0)])
    assert xsk.transmit(batch) == 1
    batch._start = 0  # a caller that kept the descriptor
    assert xsk.transmit(batch) == 0
    assert net.taps[0].receive(1) == [net.frame(0)] and net.taps[0].waiting() == []


@pytest.mark.moves("xskd_xdp_statistics", stat="tx_invalid_descs")
def test_a_descriptor_written_behind_our_back_is_counted_by_the_kernel_as_invalid(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open(rings=SMALL)
    submit(xsk, [net.frame(0)], net)
    ffi.cast("struct xdp_desc *", xsk.port.rings[lib.XSKD_TX].entries)[0].addr = xsk.umem.size
    lib.xskd_wakeup_tx(xsk.port)
    assert xsk.statistics().tx_invalid_descs == 1
    assert net.taps[0].waiting() == []


def test_finding_nothing_to_send_is_counted_by_the_kernel(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open()
    xsk._socket.send(b"", 0x40)  # MSG_DONTWAIT
    assert xsk.statistics().tx_ring_empty_descs == 1


def test_the_kernel_answers_with_all_six_statistics(wire: MakeWire) -> None:
    xsk = wire(links=1).open()
    answer = xsk._socket.getsockopt(lib.SOL_XDP, lib.XDP_STATISTICS, 256)
    assert len(answer) == struct.calcsize("6Q") == ffi.sizeof("struct xdp_statistics")
    assert len(xsk._socket.getsockopt(lib.SOL_XDP, lib.XDP_STATISTICS, 24)) == 24  # as an old one would


def test_packets_for_a_peer_without_carrier_are_completed_unsent_and_counted(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open()
    net.link(net.hosts[0], "eth0", "down")
    xsk.transmit(net.written(xsk.umem, net.frames(40)))
    assert net.eventually(lambda: bool(xsk.complete()) and xsk.unsent == 0)
    assert xsk.port.counters.drops[lib.XSKD_DROP_TX_REFUSED] == 40
    assert errors(xsk) == {"EBUSY": 40}


def test_bursts_many_times_the_ring_sizes_arrive_in_order(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open(umem=net.umem(256), rings=SMALL)
    for first in range(0, 5000, 50):
        packets = net.frames(50, first=first)
        assert xsk.transmit(net.written(xsk.umem, packets)) == 50
        assert net.taps[0].receive(50) == packets
        assert net.eventually(lambda: bool(xsk.complete()) or xsk.unsent == 0)
    assert xsk.statistics().tx_invalid_descs == 0
    assert xsk.umem.free == 256 - 64
