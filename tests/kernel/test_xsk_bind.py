"""Opening a socket: each way in which the kernel says no, and what the person who asked is told."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import entered
from xskd.errors import XskError
from xskd.xsk import Rings, Socket, Umem

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

# A program of its own: opens a socket on eth1 with so many frames of 4096 bytes, and prints how that went. It
# becomes nobody after its imports: a checkout below /root is not for nobody to read.
OPENER = """
import os
import sys
from xskd.errors import XskError
from xskd.xsk import Socket, Umem
if sys.argv[2:] == ["nobody"]:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    Socket.open(Umem(int(sys.argv[1])), "eth1", 0)
    print("opened")
except XskError as error:
    print(error)
"""
WITHOUT_IPC_LOCK = ("setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock")


def stepwise(net: Wire, dev: str = "eth1", queue: int = 0, umem: Umem | None = None) -> Socket:
    """Everything up to bind."""
    with entered(net.dut):
        made = Socket(umem or net.umem(), dev, queue)
    net._stack.callback(made.close)
    made.register()
    made.set_up_rings()
    made.fill()
    return made


def test_auto_says_why_zero_copy_was_refused_and_reads_back_that_copy_is_in_use(wire: MakeWire) -> None:
    xsk = wire(links=1).open(mode="auto")
    assert (xsk.mode, xsk.zero_copy, xsk.zero_copy_refused) == ("copy", False, errno.EOPNOTSUPP)


def test_copy_does_not_ask_for_zero_copy_first(wire: MakeWire) -> None:
    xsk = wire(links=1).open(mode="copy")
    assert (xsk.mode, xsk.zero_copy_refused) == ("copy", None)


def test_zerocopy_where_there_is_none_names_call_interface_queue_errno_and_key(wire: MakeWire) -> None:
    with pytest.raises(XskError, match="no zero-copy on this queue") as raised:
        wire(links=1).open(mode="zerocopy")
    error = raised.value
    assert (error.call, error.interface, error.queue) == ("bind", "eth1", 0)
    assert (error.errno, error.key) == (errno.EOPNOTSUPP, "interfaces.eth1.mode")
    assert str(error).startswith("bind(eth1 queue 0): ")
    assert str(error).endswith("; see key interfaces.eth1.mode")


def test_an_open_that_fails_leaves_the_umem_as_it_was(wire: MakeWire) -> None:
    net = wire(links=1)
    umem = net.umem(64)
    for _ in range(20):  # more than the 16 sockets a UMEM serves
        with pytest.raises(XskError):
            net.open(umem=umem, mode="zerocopy")
        with pytest.raises(XskError):
            net.open("no-such", umem=umem)
    assert umem.free == 64
    net.open(umem=umem)
    assert umem.free == 0  # all on FILL


def test_the_umem_is_shared_over_two_interfaces_and_the_second_has_its_own_rings(wire: MakeWire) -> None:
    net = wire()
    umem = net.umem()
    first, second = net.receiver("eth1", umem=umem), net.receiver("eth2", umem=umem)
    assert (first.port.index, second.port.index, second.mode) == (0, 1, "copy")
    net.taps[0].send([net.frame(0)])
    net.taps[1].send([net.frame(1)])
    with first.receive() as one, second.receive() as other:
        assert [bytes(packet) for packet in (*one, *other)] == [net.frame(0), net.frame(1)]
        assert first.transmit(other) == second.transmit(one) == 1  # crosswise, without a copy
    assert net.taps[0].receive(1) + net.taps[1].receive(1) == [net.frame(1), net.frame(0)]


def test_sockets_of_two_umems_cannot_pass_each_other_batches(wire: MakeWire) -> None:
    net = wire()
    one, other = net.open("eth1"), net.open("eth2")
    batch = net.written(one.umem, net.frames(1))
    with pytest.raises(XskError, match=r"transmit\(eth2 queue 0\): the batch lies in another UMEM"):
        other.transmit(batch)
    assert len(batch) == 1


def test_every_queue_of_300_can_be_bound(wire: MakeWire) -> None:
    net = wire(links=1, queues=300)
    for queue in (0, 255, 256, 299):
        net.receiver(queue=queue, umem=net.umem(64), rings=Rings(64, 64, 64, 64))
    with pytest.raises(XskError, match="queue 300 does not exist"):
        net.open(queue=300)


def test_a_queue_that_does_not_exist_is_named_with_the_key(wire: MakeWire) -> None:
    with pytest.raises(XskError, match=r"bind\(eth1 queue 1\): EINVAL .*queue 1 does not exist") as raised:
        wire(links=1).open(queue=1)
    assert raised.value.key == "interfaces.eth1.queues"


def test_a_queue_that_is_held_fails_after_its_time_with_a_way_to_find_the_holder(wire: MakeWire) -> None:
    net = wire(links=1)
    net.open()
    second = stepwise(net)
    before = time.monotonic()
    with pytest.raises(XskError, match=r"EBUSY .*another AF_XDP socket; `ss -f xdp -ap`") as raised:
        second.bind("copy", busy_timeout=0.2)
    assert time.monotonic() - before >= 0.1  # it did try
    assert raised.value.key == "interfaces.eth1.queues"
    assert second.bind_retries > 1


def test_a_queue_that_becomes_free_is_bound_by_trying_again(wire: MakeWire) -> None:
    net = wire(links=1)
    holder, second = net.open(), stepwise(net)
    closing = threading.Timer(0.05, holder.close)
    closing.start()
    second.bind("copy", busy_timeout=10)
    closing.join()
    assert second.bind_retries > 0


def test_a_queue_can_be_bound_again_right_after_each_close(wire: MakeWire) -> None:
    net = wire(links=1)
    for _ in range(20):
        net.open(umem=net.umem(64), rings=Rings(64, 64, 64, 64)).close()


def test_a_duplicate_of_the_descriptor_keeps_the_queue(wire: MakeWire) -> None:
    net = wire(links=1)
    holder, second = net.open(), stepwise(net)
    duplicate = os.dup(holder.fileno())
    holder.close()
    with pytest.raises(XskError, match="EBUSY"):
        second.bind("copy", busy_timeout=0.3)
    os.close(duplicate)
    second.bind("copy")


@pytest.mark.parametrize("missing", ["umem", "rings"])
def test_binding_needs_a_umem_and_rings(wire: MakeWire, missing: str) -> None:
    net = wire(links=1)
    with entered(net.dut):
        xsk = Socket(net.umem(), "eth1", 0)
    if missing == "rings":
        xsk.register()
    with pytest.raises(XskError, match=r"bind\(eth1 queue 0\): EINVAL"):
        xsk.bind("copy")
    xsk.close()


def test_ring_sizes_are_set_once_and_a_umem_registered_once(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = stepwise(net)
    with pytest.raises(XskError, match=r"XDP_UMEM_REG\(eth1 queue 0\): EBUSY .*see key umem"):
        xsk.register()
    xsk.bind("copy")
    with pytest.raises(XskError, match=r"XDP_FILL_RING\(eth1 queue 0\): EBUSY .*interfaces.eth1.rings.fill"):
        xsk.set_up_rings()


def test_a_headroom_the_kernel_refuses_is_explained(wire: MakeWire) -> None:
    net = wire(links=1)
    with pytest.raises(XskError, match=r"XDP_UMEM_REG\(eth1 queue 0\): EINVAL .*headroom 1791"):
        net.open(umem=net.umem(64, 2048, headroom=1791))


def test_headroom_moves_the_packet_back_in_its_frame(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver(umem=net.umem(64, 2048, headroom=128), rings=Rings(64, 64, 64, 64))
    net.taps[0].send([net.frame(7)])
    with xsk.receive() as batch:
        assert bytes(batch[0]) == net.frame(7)
        assert batch._desc(0).addr % 2048 == 256 + 128


def test_an_interface_that_is_not_there_is_said_to_be_missing(wire: MakeWire) -> None:
    with pytest.raises(XskError, match=r"if_nametoindex\(eth7\): no such interface .*`ip -br link`"):
        wire(links=1).open("eth7")


def test_an_interface_removed_before_bind_is_said_to_be_gone(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = stepwise(net)
    net.run(net.dut, "ip", "link", "del", "eth1")
    with pytest.raises(XskError, match=r"bind\(eth1 queue 0\): ENODEV .*the interface is gone"):
        xsk.bind("copy")


def test_a_socket_on_a_link_that_is_down_sends_once_it_is_up(wire: MakeWire) -> None:
    net = wire(links=1)
    net.link(net.dut, "eth1", "down")
    xsk = net.open()  # a veth allows it; a driver that does not answers ENETDOWN
    xsk.transmit(net.written(xsk.umem, net.frames(3)))
    assert xsk.port.counters.wakeup_errors[3] == 1 and xsk.unsent == 3  # ENETDOWN
    assert xsk.wait(0.01) is False
    net.up(net.dut, "eth1")
    assert net.eventually(lambda: bool(xsk.complete()) or xsk.unsent == 0)
    assert net.taps[0].receive(3) == net.frames(3)


def test_a_removed_device_is_noticed_by_an_idle_wait_and_by_sending(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver()
    net.run(net.dut, "ip", "link", "del", "eth1")
    gone = r"wakeup\(eth1 queue 0\): ENXIO .*no longer bound: its device is gone"
    batch = net.written(xsk.umem, net.frames(1))
    for call in (lambda: xsk.wait(0.01), xsk.probe, lambda: xsk.transmit(batch)):
        with pytest.raises(XskError, match=gone):
            call()


def test_a_closed_socket_says_so_instead_of_touching_its_rings(wire: MakeWire) -> None:
    xsk = wire(links=1).open()
    xsk.close()
    xsk.close()
    for call in (xsk.receive, xsk.complete, xsk.statistics, lambda: xsk.wait(0.01)):
        with pytest.raises(XskError, match="EBADF"):
            call()
    assert xsk.fill() == 0


@pytest.fixture
def opener(tmp_path: Path) -> Path:
    """Make OPENER a file."""
    made = tmp_path / "opener.py"
    made.write_text(OPENER)
    return made


def test_nobody_is_told_which_capability_is_missing(wire: MakeWire, opener: Path) -> None:
    said, _ = wire(links=1).python(str(opener), "64", "nobody").communicate(timeout=30)
    assert re.match(r"socket\(AF_XDP\)\(eth1 queue 0\): EPERM .*needs CAP_NET_RAW", said)


def test_too_much_locked_memory_is_told_in_bytes(wire: MakeWire, opener: Path) -> None:
    net = wire(links=1)
    child = net.python(str(opener), "4096", prefix=("prlimit", "--memlock=8388608", *WITHOUT_IPC_LOCK))
    said, problem = child.communicate(timeout=30)
    if "prlimit" in problem:
        pytest.skip(f"needs to lower RLIMIT_MEMLOCK: {problem.strip()}")
    assert re.match(r"XDP_UMEM_REG\(eth1 queue 0\): ENOBUFS .*16777216 bytes exceed RLIMIT_MEMLOCK", said)
    assert "CAP_IPC_LOCK" in said


def test_the_same_memory_is_no_problem_with_cap_ipc_lock(wire: MakeWire, opener: Path) -> None:
    said, _ = wire(links=1).python(str(opener), "4096").communicate(timeout=30)
    assert said.splitlines() == ["opened"]


def reserved_huge_pages() -> int:
    found = re.search(r"HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text())
    return int(found[1]) if found else 0


def test_without_reserved_huge_pages_the_error_says_how_many_and_where(wire: MakeWire) -> None:
    wanted = reserved_huge_pages() + 1
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(XskError, match=rf"need {wanted} huge pages \(sysctl vm.nr_hugepages\), or huge"):
        Umem(wanted * 512, huge_pages=True)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_umem_of_huge_pages_carries_packets(wire: MakeWire) -> None:
    if not reserved_huge_pages():
        pytest.skip("no huge pages are reserved (sysctl vm.nr_hugepages), and tests do not change that")
    net = wire(links=1)
    xsk = net.receiver(umem=net.umem(512, huge_pages=True), rings=Rings(64, 64, 64, 64))
    net.taps[0].send([net.frame(7)])
    with xsk.receive() as batch:
        assert bytes(batch[0]) == net.frame(7)
