"""The system calls of a socket: what is refused, with what answer, and that nothing is half done by it.

What the library asks for is right by construction; these are the answers it relies on. Modes of receiving
make no difference to them, so each is asked once.
"""

from __future__ import annotations

import errno
import mmap
import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from xskd._forward import ffi, lib
from xskd._libbpf import ffi as bpf
from xskd._libbpf import lib as libbpf

from lab import entered
from xskd.errors import XskError
from xskd.forward import Forwarder
from xskd.umem import HEADROOM, Umem
from xskd.xsk import SO_BUSY_POLL, SO_INCOMING_NAPI_ID, SO_PREFER_BUSY_POLL, Rings, Socket, make_socket

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

SMALL = Rings(fill=64, rx=64, tx=64, completion=64)
DONTWAIT = socket.MSG_DONTWAIT
TAIL = (
    320 + 128
)  # bytes that kernels since 2026 keep at a frame's end: the skb's shared info, and a packet's least


def unbound(net: Wire, queue: int = 0, umem: Umem | None = None) -> Socket:
    """Everything up to bind."""
    with entered(net.dut):
        made = Socket(umem or net.umem(64), "eth1", queue, rings=SMALL)
    net._stack.callback(made.close)
    made.register()
    made.set_up_rings()
    made.fill()
    return made


def bind(made: Socket, flags: int) -> int:
    address = ffi.new("struct sockaddr_xdp *")
    address.sxdp_family, address.sxdp_flags = lib.AF_XDP, flags
    address.sxdp_ifindex, address.sxdp_queue_id = made.ifindex, made.queue
    return 0 if lib.xskd_bind(made.fileno(), address) == 0 else int(ffi.errno)


def answer(call: Callable[[], Any]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


# ---- bind ----------------------------------------------------------------------------------------


def test_flags_that_contradict_each_other_or_do_not_exist_are_refused(wire: MakeWire) -> None:
    made = unbound(wire(links=1))
    assert bind(made, lib.XDP_COPY | lib.XDP_ZEROCOPY) == errno.EINVAL
    assert bind(made, lib.XDP_COPY | 1 << 9) == errno.EINVAL
    assert bind(made, lib.XDP_COPY) == 0
    assert bind(made, lib.XDP_COPY) == errno.EBUSY  # a socket is bound once


def test_asked_for_no_mode_the_kernel_falls_back_in_silence(wire: MakeWire) -> None:
    """Which is why bind() of the library always asks for one."""
    made = unbound(wire(links=1))
    assert bind(made, 0) == 0
    made._read_mode()
    assert made.mode == "copy"


def test_without_need_wakeup_sending_takes_the_call_all_the_same(wire: MakeWire) -> None:
    made = unbound(wire(links=1))
    assert bind(made, lib.XDP_COPY) == 0
    assert made.port.rings[lib.XSKD_TX].flags[0] == 1  # XDP_RING_NEED_WAKEUP: preset, in copy mode for ever
    assert made.port.rings[lib.XSKD_FILL].flags[0] == 0


# ---- the UMEM ------------------------------------------------------------------------------------


# What is asked for instead of 64 frames of 4096 bytes, and the answer.
UMEMS: tuple[tuple[dict[str, int], int], ...] = (
    ({}, 0),
    ({"addr": 64}, errno.EINVAL),  # behind the beginning of a page
    ({"len": 0}, errno.EINVAL),
    ({"chunk_size": 1024}, errno.EINVAL),
    ({"chunk_size": 2 * mmap.PAGESIZE}, errno.EINVAL),
    ({"chunk_size": 3000}, errno.EINVAL),
    ({"chunk_size": 3000, "flags": 1}, 0),  # XDP_UMEM_UNALIGNED_CHUNK_FLAG
    ({"chunk_size": 2048, "len": 64 * 2048 + 100}, errno.EINVAL),
    ({"chunk_size": 3000, "len": 64 * 3000 + 100, "flags": 1}, 0),
    ({"chunk_size": 2047, "flags": 1}, errno.EINVAL),
    ({"chunk_size": mmap.PAGESIZE + 1, "flags": 1}, errno.EINVAL),
    ({"flags": 1 << 9}, errno.EINVAL),
    ({"headroom": 4096 - HEADROOM - TAIL}, 0),
    ({"headroom": 4096 - HEADROOM}, errno.EINVAL),
)


def test_which_umems_the_kernel_registers(wire: MakeWire) -> None:
    net = wire(links=1)
    umem = net.umem(64)
    for change, expected in UMEMS:
        request = {"len": umem.size, "chunk_size": 4096, "headroom": 0, "flags": 0} | change
        request["addr"] = int(ffi.cast("uintptr_t", umem.struct.area)) + change.get("addr", 0)
        content = bytes(ffi.buffer(ffi.new("struct xdp_umem_reg *", request)))
        with entered(net.dut), make_socket("eth1", 0, SMALL, 4096) as made:
            said = answer(lambda: made.setsockopt(lib.SOL_XDP, lib.XDP_UMEM_REG, content))  # noqa: B023
        assert (change, said) == (change, expected)


def test_ring_sizes_that_are_no_power_of_two_are_refused_by_us_and_by_the_kernel(wire: MakeWire) -> None:
    rings = (lib.XDP_RX_RING, lib.XDP_TX_RING, lib.XDP_UMEM_FILL_RING, lib.XDP_UMEM_COMPLETION_RING)
    with entered(wire(links=1).dut), make_socket("eth1", 0, SMALL, 4096) as made:
        for size in (0, 3, 65_535, 65_537):
            with pytest.raises(XskError, match="must be a power of two"):
                Rings(rx=size)
            for ring in rings:
                said = answer(lambda: made.setsockopt(lib.SOL_XDP, ring, size))  # noqa: B023  (used at once)
                assert (size, said) == (size, errno.EINVAL)


def test_a_size_that_no_frame_can_have_is_refused_before_the_kernel_does() -> None:
    for frame_size in (0, 2047, mmap.PAGESIZE + 1):
        with pytest.raises(XskError, match=f"frame size {frame_size}; must be 2048 bytes to a page"):
            Umem(64, frame_size, unaligned=True)
    with pytest.raises(XskError, match="frame size 3000; must be 2048 or 4096"):
        Umem(64, 3000)


def test_the_loop_takes_no_unaligned_frames(wire: MakeWire) -> None:
    net = wire(links=1)
    with pytest.raises(XskError, match="unaligned frames are for receive and transmit only"):
        Forwarder([net.open(umem=net.umem(256, 3000, unaligned=True), rings=SMALL)], "reflect")


def test_metadata_is_looked_for_within_the_frame_only(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver()
    net.taps[0].send([net.frame(0)])
    with xsk.receive() as batch:
        assert len(batch.metadata(0, HEADROOM)) == HEADROOM
        for length in (-1, HEADROOM + 1):
            with pytest.raises(XskError, match=f"{length} bytes; there are {HEADROOM} in front"):
                batch.metadata(0, length)


# ---- calls on a bound socket ---------------------------------------------------------------------


def test_sending_and_receiving_never_block(wire: MakeWire) -> None:
    made = wire(links=1).open(rings=SMALL)._socket
    assert answer(lambda: made.send(b"")) == errno.EOPNOTSUPP
    assert answer(lambda: made.recv(1)) == errno.EOPNOTSUPP
    assert answer(lambda: made.send(b"", DONTWAIT)) == answer(lambda: made.recv(1, DONTWAIT)) == 0


def test_before_bind_every_call_says_so(wire: MakeWire) -> None:
    made = unbound(wire(links=1))
    for call in (lambda: made._socket.send(b"", DONTWAIT), lambda: made._socket.recv(1, DONTWAIT)):
        assert answer(call) == errno.ENXIO
    with pytest.raises(XskError, match="ENXIO"):
        made.probe()


def test_a_socket_without_the_ring_answers_enobufs(wire: MakeWire) -> None:
    net = wire(links=1)
    first = net.open(rings=SMALL)
    calls: tuple[tuple[int, Callable[[socket.socket], Any]], ...] = (
        (lib.XDP_RX_RING, lambda made: made.send(b"", DONTWAIT)),
        (lib.XDP_TX_RING, lambda made: made.recv(1, DONTWAIT)),
    )
    for option, call in calls:
        with entered(net.dut), make_socket("eth1", 0, SMALL, 4096) as made:
            made.setsockopt(lib.SOL_XDP, option, 64)
            address = ffi.new("struct sockaddr_xdp *")
            address.sxdp_family, address.sxdp_flags = lib.AF_XDP, lib.XDP_SHARED_UMEM
            address.sxdp_ifindex, address.sxdp_shared_umem_fd = first.ifindex, first.fileno()
            assert lib.xskd_bind(made.fileno(), address) == 0
            assert answer(lambda: call(made)) == errno.ENOBUFS  # noqa: B023  (used at once)


def test_a_send_buffer_that_is_too_small_answers_eagain_until_packets_have_gone(wire: MakeWire) -> None:
    """Copy mode charges each packet to it; which is why make_socket has it as large as a full ring needs."""
    net = wire(links=1)
    rx, tx = net.receiver(attach="native"), net.open("eth0", ns=net.hosts[0], rings=SMALL)
    tx._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is becomes of it
    left_alone(net, 50_000_000)
    tx.transmit(net.written(tx.umem, net.frames(1)))  # after that, packets stay where they are for a while
    assert rx.wait(5.0)
    assert tx.transmit(net.written(tx.umem, net.frames(60, first=1))) == 60
    assert tx.port.counters.wakeup_errors[lib.XSKD_ERROR_EAGAIN] > 0
    assert tx.unsent > 0
    got: list[bytes] = []
    assert net.eventually(lambda: tx.complete() >= 0 and take(rx, got) and len(got) == 61)
    assert got == net.frames(61)


def test_poll_says_nothing_of_a_link_that_is_down(wire: MakeWire) -> None:
    """So nothing waits without a deadline."""
    net = wire(links=1)
    xsk = net.receiver()
    net.link(net.dut, "eth1", "down")
    poller = select.poll()
    poller.register(xsk, select.POLLIN)
    assert poller.poll(20) == []
    assert answer(lambda: xsk._socket.recv(1, DONTWAIT)) == errno.ENETDOWN
    xsk.probe()  # and that passes


def test_poll_sends_in_copy_mode_and_does_not_tell_of_a_refusal(wire: MakeWire) -> None:
    """So the loop leaves out a port with something on TX: what sends it is a call that can tell."""
    net = wire(links=1)
    xsk = net.open(rings=SMALL)
    xsk.transmit(net.written(xsk.umem, net.frames(1)))
    assert net.taps[0].receive(1) == net.frames(1)
    completion, tx = xsk.port.rings[lib.XSKD_COMPLETION], xsk.port.rings[lib.XSKD_TX]
    for refused in (False, True):
        if refused:
            net.link(net.hosts[0], "eth0", "down")  # so eth1 is up without a carrier
        entry = ffi.cast("struct xdp_desc *", tx.entries)[tx.own & (tx.size - 1)]
        entry.addr, entry.len, entry.options = 0, 60, 0
        completed = completion.producer[0]
        tx.own += 1
        tx.producer[0] = tx.own
        poller = select.poll()
        poller.register(xsk, select.POLLIN)
        assert poller.poll(0) == []
        assert completion.producer[0] == completed + 1
    assert net.counters(net.dut, "eth1").tx_packets == 2  # the first one, and what poll() sent


class Answering:
    """A socket to whose calls the kernel answers as a driver's wakeup may; a veth has none."""

    def __init__(self, real: socket.socket, error: int) -> None:
        self.real, self.error = real, error

    def recv(self, *_: int) -> bytes:
        raise OSError(self.error, "injected")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_an_answer_that_is_not_known_to_pass_ends_the_socket(
    wire: MakeWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    xsk = wire(links=1).open(rings=SMALL)
    real = xsk._socket
    for error in (errno.EAGAIN, errno.EBUSY, errno.ENETDOWN, errno.ENOBUFS):
        monkeypatch.setattr(xsk, "_socket", Answering(real, error))
        xsk.probe()
        assert xsk.port.error == 0
    for error in (errno.ENXIO, errno.EBADF, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EIO):
        monkeypatch.setattr(xsk, "_socket", Answering(real, error))
        with pytest.raises(XskError, match=r"wakeup\(eth1 queue 0\): ") as raised:
            xsk.probe()
        assert (raised.value.errno, xsk.port.error) == (error, error)


# ---- busy polling --------------------------------------------------------------------------------

NOBODY = """
import os, sys
from xskd.errors import XskError
from xskd.xsk import Rings, Socket, Umem
made = Socket.open(Umem(64), "eth1", 0, rings=Rings(64, 64, 64, 64))
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    made.busy_poll()
except XskError as error:
    print(error)
"""


def test_busy_polling_is_set_on_the_socket(wire: MakeWire) -> None:
    xsk = wire(links=1).open(rings=SMALL)
    assert not xsk.busy_polling
    xsk.busy_poll(microseconds=30, budget=16)
    options = (SO_PREFER_BUSY_POLL, SO_BUSY_POLL)  # the budget can be set, but not be asked for
    assert [xsk._socket.getsockopt(socket.SOL_SOCKET, name) for name in options] == [1, 30]
    assert xsk.busy_polling


def test_busy_polling_needs_a_capability_and_says_which(wire: MakeWire) -> None:
    said, problem = wire(links=1).python("-c", NOBODY).communicate(timeout=30)
    assert "SO_PREFER_BUSY_POLL(eth1 queue 0): EPERM" in said and "CAP_NET_ADMIN" in said, problem


def test_a_budget_that_cannot_be_is_refused(wire: MakeWire) -> None:
    with pytest.raises(XskError, match=r"SO_BUSY_POLL_BUDGET\(eth1 queue 0\): EINVAL"):
        wire(links=1).open(rings=SMALL).busy_poll(budget=1 << 17)


def left_alone(net: Wire, while_ns: int) -> None:
    """Have eth1 begin to work off its queue so much later than the time before."""
    at = "/sys/class/net/eth1"
    write = f"echo 1000000 > {at}/napi_defer_hard_irqs; echo {while_ns} > {at}/gro_flush_timeout"
    net.run(net.dut, "sh", "-ec", write)


def test_polling_brings_packets_only_where_the_kernel_knows_the_driver_of_the_queue(wire: MakeWire) -> None:
    """The interface is told to leave its queue alone for a while; then our calls bring packets, or its end.

    A veth has not told the kernel since 6.13, and this is how it shows: only the timer brings the packet.
    """
    net, while_ns = wire(links=1), 150_000_000
    left_alone(net, while_ns)
    xsk = net.receiver(attach="native")
    xsk.busy_poll()
    took: list[int] = []
    for number in range(6):  # after the first one the queue is left alone
        before = time.monotonic_ns()
        net.taps[0].send([net.frame(number)])
        got: list[bytes] = []
        assert net.eventually(lambda: take(xsk, got))  # noqa: B023  (used at once)
        assert got == [net.frame(number)]
        took.append(time.monotonic_ns() - before)
    known = bool(xsk._socket.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID))
    assert xsk.busy_polled == known
    # A tester that is interrupted for long comes just before the timer's end, but not each time.
    assert (min(took[1:]) < while_ns / 3) if known else (max(took[1:]) > while_ns / 3)


def take(xsk: Socket, got: list[bytes]) -> bool:
    with xsk.receive() as batch:
        got += [bytes(packet) for packet in batch]
    return bool(got)


# ---- queues and the XSKMAP -----------------------------------------------------------------------


def test_a_queue_with_a_socket_is_not_taken_away(wire: MakeWire) -> None:
    """It would send nothing and say nothing; kernels that do not look let it come to that."""
    net = wire(links=1, queues=2)
    net.open(queue=1, rings=SMALL)
    done = net.run(net.dut, "ethtool", "-L", "eth1", "rx", "2", "tx", "1", check=False)
    assert done.returncode != 0 and "AF_XDP" in done.stderr


def test_a_packet_never_reaches_the_socket_of_another_queue(wire: MakeWire) -> None:
    net = wire(links=1, queues=2)
    other, sender = net.open(queue=1, rings=SMALL), net.open("eth0", ns=net.hosts[0], rings=SMALL)
    net.attach(mode="native").insert(0, other)
    assert sender.transmit(net.written(sender.umem, net.frames(5))) == 5
    assert net.eventually(lambda: net.programs["eth1"].verdicts().redirected == 5)
    assert not other.wait(0.02)  # dropped by the kernel, and in no counter of the socket
    assert other.statistics().rx_dropped == 0


def test_the_xskmap_tells_nobody_who_is_in_it(wire: MakeWire) -> None:
    net = wire(links=1)
    net.receiver(rings=SMALL)
    key, value = bpf.new("uint32_t *", 0), bpf.new("uint32_t *", 0)
    result = libbpf.bpf_map_lookup_elem(net.programs["eth1"]._maps["xsks"], key, value)
    assert -result == errno.EOPNOTSUPP
