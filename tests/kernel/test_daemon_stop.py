"""However the daemon ends, nothing of it stays behind; starting and stopping it for ever costs nothing."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import Daemon, Lane, Leftovers, connect, memory_kb, running, started, total

from lab import entered
from xskd.forward import Forwarder
from xskd.xdp import Program
from xskd.xsk import Rings, Socket, Umem

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

DAEMON_CYCLES = 6
LANES = 8  # queues at work at once: a close waits long for the kernel, and does nothing meanwhile
TINY = Rings(fill=64, rx=64, tx=64, completion=64)


def busy(net: Wire, daemon: Daemon) -> Leftovers:
    """Let the daemon forward something first: rings, frames and counters are in use."""
    for queue in (0, 1):
        sent = net.frames(500)
        assert Lane(net, queue).through(sent, net.taps[1]) == sent
    left = Leftovers(daemon)
    assert {kind for kind, _ in left.bpf} == {"prog", "map", "link"}
    assert len(left.remaining_processes()) == 3
    return left


@pytest.mark.parametrize(("sign", "poll"), [(signal.SIGTERM, "adaptive"), (signal.SIGINT, "busy")])
def test_asked_to_stop_it_ends_in_order_with_every_frame_accounted_for(
    wire: MakeWire, tmp_path: Path, sign: signal.Signals, poll: str
) -> None:
    net = wire(queues=2)
    with running(net, tmp_path, connect(f", poll: {poll}")) as daemon:
        left = busy(net, daemon)
        began = time.monotonic()
        assert daemon.stop(sign) == 0
        print(f"stopped in {time.monotonic() - began:.2f} s")
        assert f"stopping: {sign.name}" in daemon.log
        for name in ("wire/0", "wire/1"):
            (line,) = [line for line in daemon.log.splitlines() if f"{name}: stopped" in line]
            assert "stopped, drained; frames: " in line
            assert line.endswith("; 0 unaccounted, 0 contradictions")
        assert not daemon.socket.exists()
        assert left.remaining() == []


def test_packets_under_way_are_sent_before_it_stops(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        (pid,) = daemon.workers().values()
        os.kill(pid, signal.SIGSTOP)
        sent = net.frames(100)
        Lane(net).send(sent)  # they wait in the RX ring
        daemon.process.send_signal(signal.SIGTERM)
        assert net.eventually(lambda: "stopping" in daemon.log)
        os.kill(pid, signal.SIGCONT)
        assert daemon.ended() == 0
        assert net.taps[1].receive(100) == sent
        assert "stopped, drained" in daemon.log


@pytest.mark.moves("xskd_worker_state", state=("stopping", "stopped"))
def test_a_worker_that_does_not_stop_is_killed(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path) as daemon:
        left = busy(net, daemon)
        os.kill(daemon.workers()["wire/1"], signal.SIGSTOP)
        states = [{"queue": "0", "state": "stopped"}, {"queue": "1", "state": "stopping"}]
        assert not any(total(daemon.metrics(), "xskd_worker_state", **each) for each in states)
        daemon.process.terminate()
        for each in states:
            assert net.eventually(lambda: total(daemon.metrics(), "xskd_worker_state", **each) == 1)  # noqa: B023
        assert daemon.ended() == 0
        assert "wire/1: not drained in 3 s, killed" in daemon.log
        assert "wire/0: stopped, drained" in daemon.log
        assert left.remaining() == []


def test_stopped_while_starting_it_ends_in_order(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with started(net, tmp_path) as daemon:
        assert net.eventually(lambda: "XDP program attached" in daemon.log)
        left = Leftovers(daemon)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log
        assert "not drained" not in daemon.log
        assert left.remaining() == []


@pytest.mark.parametrize("poll", ["adaptive", "busy"])
def test_workers_end_by_themselves_when_the_supervisor_is_killed(
    wire: MakeWire, tmp_path: Path, poll: str
) -> None:
    net = wire(queues=2)
    with running(net, tmp_path, connect(f", poll: {poll}")) as daemon:
        left = busy(net, daemon)
        daemon.stop(signal.SIGKILL)
        began = time.monotonic()
        assert net.eventually(lambda: not left.remaining_processes())
        print(f"the workers were gone {time.monotonic() - began:.2f} s after the supervisor")
        assert left.remaining() == []


@pytest.mark.moves("xskd_start_time_seconds")
def test_killed_altogether_it_leaves_nothing_and_can_be_started_again(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    began = time.time()
    with running(net, tmp_path) as daemon:
        left = busy(net, daemon)
        first = daemon.metrics()
        for pid in (daemon.pid, *daemon.workers().values()):
            os.kill(pid, signal.SIGKILL)
        daemon.ended()
        assert daemon.socket.exists()  # nobody was left to remove it, and it is in nobody's way
        assert left.remaining() == []
    with running(net, tmp_path) as daemon:
        sent = net.frames(500)
        assert net.taps[0].through(sent, net.taps[1]) == sent
        second = daemon.metrics()
    starts = [total(metrics, "xskd_start_time_seconds") for metrics in (first, second)]
    assert began < starts[0] < starts[1] < time.time()


def test_a_thousand_cycles_of_a_worker_leak_nothing(wire: MakeWire, times: Callable[[int, int], int]) -> None:
    net, count = wire(queues=LANES), times(200, 1_000)
    began = time.monotonic()

    def cycles(count: int) -> int:
        with ThreadPoolExecutor(LANES) as lanes:
            return sum(lanes.map(lambda queue: worker_cycles(net, queue, count // LANES), range(LANES)))

    cycles(100)  # until allocators and caches have what they want
    before = holdings()
    retries = cycles(count)
    print(f"{count} cycles: {time.monotonic() - began:.0f} s, EBUSY {retries} times")
    assert_nothing_grew(before)


def worker_cycles(net: Wire, queue: int, count: int) -> int:
    """Do what a worker and its supervisor do, from UMEM to close. Returns how often bind was retried."""
    retries = 0
    with entered(net.dut):
        for _ in range(count):
            umem, program = Umem(256, 2048), Program(LANES)
            sockets = [Socket.open(umem, dev, queue, rings=TINY) for dev in net.dut_devs]
            program.insert(queue, sockets[0])
            Forwarder(sockets, "connect").run(0)
            retries += sum(made.bind_retries for made in sockets)
            program.close()
            for made in sockets:
                made.close()
            umem.close()
    return retries


def test_attaching_and_detaching_leaks_nothing(wire: MakeWire, times: Callable[[int, int], int]) -> None:
    net, count = wire(links=1), times(40, 100)

    def cycles(count: int) -> None:
        with entered(net.dut):
            for _ in range(count):
                with Program(1) as program:
                    program.attach("eth1")

    cycles(20)
    before = holdings()
    cycles(count)
    assert_nothing_grew(before)
    assert '"xdp"' not in net.run(net.dut, "ip", "-j", "link", "show").stdout


def holdings() -> tuple[list[str], int]:
    """List what our descriptors are of, and our resident memory in kB."""
    gc.collect()
    names = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that listed the directory
            names.append(os.readlink(fd).partition(":")[0])
    return sorted(names), memory_kb(os.getpid(), "VmRSS")


def assert_nothing_grew(before: tuple[list[str], int]) -> None:
    descriptors, memory = holdings()
    assert descriptors == before[0]
    print(f"RSS grew by {memory - before[1]} kB")
    assert memory - before[1] < 4_000  # a page for each of a thousand cycles


def test_cycles_of_the_whole_daemon_leave_nothing_in_the_kernel(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    for _ in range(DAEMON_CYCLES):
        with running(net, tmp_path) as daemon:
            left = Leftovers(daemon)
            assert daemon.stop() == 0
            assert left.remaining() == []


def test_workers_that_come_and_go_cost_the_supervisor_nothing(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        replace_worker(daemon)
        before = supervisor(daemon)
        for _ in range(3):
            replace_worker(daemon)
        # An answer on the control socket may be on its way out still; a leak is four descriptors at least.
        assert net.eventually(lambda: supervisor(daemon)[0] <= before[0])
        grown = supervisor(daemon)[1] - before[1]
        print(f"the supervisor's RSS grew by {grown} kB")
        assert grown < 4_000


def supervisor(daemon: Daemon) -> tuple[int, int]:
    """Count the supervisor's descriptors and its resident memory in kB."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd")), memory_kb(daemon.pid, "VmRSS")


def replace_worker(daemon: Daemon) -> None:
    (pid,) = daemon.workers().values()
    os.kill(pid, signal.SIGKILL)
    daemon.comes("wire/0", other_than=pid)
