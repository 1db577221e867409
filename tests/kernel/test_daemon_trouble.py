"""A worker that dies or hangs is replaced, its counters go on, and its neighbours never notice."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import SMALL, Daemon, Lane, Metrics, connect, kernel_side, paths, running, total

from xskd.metrics import TABLE

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

    from xskd.xdp import Fallback

PROBES = 1_000_000  # packets with this number and above are probes


def kill(daemon: Daemon, name: str, sign: signal.Signals = signal.SIGKILL) -> int:
    pid = daemon.workers()[name]
    os.kill(pid, sign)
    return pid


def number_of(packet: bytes) -> int:
    return int.from_bytes(packet[14:18], "big")


def test_a_killed_worker_is_replaced_and_its_neighbour_loses_nothing(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    text = "interfaces: {eth1: {}, eth2: {}}\npaths: {wire: {connect: [eth1, eth2]}}\n"
    with running(net, tmp_path, text) as daemon:
        neighbour = daemon.workers()["wire/1"]
        stream = Stream(net)
        stream.run(0.2)
        before = daemon.metrics()
        killed = kill(daemon, "wire/0")
        stream.run(15, until=lambda: daemon.forwards("wire/0", other_than=killed))
        stream.run(0.2)
        after = daemon.metrics()
        assert daemon.workers()["wire/1"] == neighbour
        assert "0 unaccounted, 0 contradictions" in stopped_line(daemon, "wire/0")
    assert stream.lost_of_neighbour() == []
    gap = stream.longest_gap()
    print(f"forwarding of the killed worker's queue stood still for {gap * 1000:.0f} ms")
    assert 0 < gap < 10
    assert total(after, "xskd_worker_restarts", queue="0", cause="SIGKILL") == 1
    assert total(after, "xskd_worker_restarts") == 1
    assert total(after, "xskd_xdp_verdicts", verdict="no_socket_passed") > 0  # what came in the gap
    assert went_back(before, after) == []


def stopped_line(daemon: Daemon, name: str) -> str:
    """Stop the daemon; what it logs of a worker's end."""
    assert daemon.stop() == 0
    return next(line for line in daemon.log.splitlines() if f"{name}: stopped" in line)


def went_back(before: Metrics, after: Metrics) -> list[str]:
    """Name the counters of `before` that are smaller in `after`."""
    return [
        f"{row.name} {labels}: {value}, then {total(after, row.name, **labels)}"
        for row in TABLE
        if row.kind == "counter"
        for labels, value in before[row.name]
        if total(after, row.name, **labels) < value
    ]


class Stream:
    """A steady stream on queue 1, each packet compared, and probes on queue 0 with the time of each."""

    def __init__(self, net: Wire) -> None:
        self._net, self._lanes = net, (Lane(net, 0), Lane(net, 1))
        self._sent: list[bytes] = []
        self._probed: list[float] = []
        self._got: list[bytes] = []

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        ends = time.monotonic() + seconds
        checked = time.monotonic()
        while time.monotonic() < ends:
            self._turn()
            if time.monotonic() - checked > 0.02:
                if until():
                    break
                checked = time.monotonic()
        self._net.eventually(lambda: self._take() or not self.lost_of_neighbour(), 2)

    def _turn(self) -> None:
        packets = self._net.frames(8, first=len(self._sent))
        self._lanes[1].send(packets)
        self._sent += packets
        self._lanes[0].send([self._net.frame(PROBES + len(self._probed))])
        self._probed.append(time.monotonic())
        self._take()
        time.sleep(0.001)

    def _take(self) -> bool:
        self._got += self._net.taps[1].waiting()
        return False

    def lost_of_neighbour(self) -> list[int]:
        """List the numbers that did not arrive on queue 1, once, unchanged and in order."""
        arrived = [packet for packet in self._got if number_of(packet) < PROBES]
        if arrived == self._sent:
            return []
        return sorted({*map(number_of, self._sent)} ^ {*map(number_of, arrived)}) or [-1]

    def longest_gap(self) -> float:
        """Measure the longest time, in seconds, between two probes that were forwarded."""
        numbers = [number_of(packet) - PROBES for packet in self._got]
        times = [self._probed[number] for number in numbers if number >= 0]
        return max(after - before for before, after in itertools.pairwise(times))


def test_a_hanging_worker_is_noticed_killed_and_replaced(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path) as daemon:
        hanging = kill(daemon, "wire/0", signal.SIGSTOP)
        began = time.monotonic()
        assert net.eventually(lambda: daemon.forwards("wire/0", other_than=hanging), 15)
        print(f"replaced {time.monotonic() - began:.1f} s after it was stopped")
        assert not Path(f"/proc/{hanging}").exists()
        sent = net.frames(100)
        assert Lane(net).through(sent, net.taps[1]) == sent
        assert total(daemon.metrics(), "xskd_worker_restarts", queue="0", cause="stalled") == 1
        assert re.search(r"wire/0: worker ended \(stalled\): no heartbeat for \d\.\d s; next try", daemon.log)


def test_each_crash_in_a_row_doubles_the_pause(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        for _ in range(4):
            killed = kill(daemon, "wire/0")
            assert net.eventually(lambda: daemon.forwards("wire/0", other_than=killed), 15)  # noqa: B023
        assert re.findall(r"next try in ([\d.]+) s", daemon.log) == ["0.05", "0.10", "0.20", "0.40"]
        assert daemon.worker("wire/0")["restarts"] == {"SIGKILL": 4}


@pytest.mark.parametrize("fallback", ["pass", "drop"])
def test_packets_of_a_queue_without_worker_take_the_fallback(
    wire: MakeWire, tmp_path: Path, fallback: Fallback
) -> None:
    net = wire(queues=2)
    only_first = f"queues: [0], rings: {SMALL}"
    with running(net, tmp_path, connect(f", fallback: {fallback}", interface=only_first)) as daemon:
        with kernel_side(net, "eth1") as kernel:
            Lane(net, 1).send(net.frames(50))
            taken = [kernel.recv(2048) for _ in range(50)] if fallback == "pass" else []
            kernel.setblocking(False)
            with pytest.raises(BlockingIOError):
                kernel.recv(2048)
        metrics = daemon.metrics()
    assert taken == (net.frames(50) if fallback == "pass" else [])
    expected = {"no_socket_passed": 50, "no_socket_dropped": 0, "redirected": 0}
    if fallback == "drop":
        expected |= {"no_socket_passed": 0, "no_socket_dropped": 50}
    for verdict, packets in expected.items():
        assert total(metrics, "xskd_xdp_verdicts", interface="eth1", verdict=verdict) == packets


def test_a_path_that_drops_keeps_packets_from_the_kernel_while_its_worker_is_dead(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire()
    with running(net, tmp_path, connect(", fallback: drop")) as daemon, kernel_side(net, "eth1") as kernel:
        lane = Lane(net)
        killed = kill(daemon, "wire/0")
        assert net.eventually(lambda: daemon.worker("wire/0")["state"] == "backoff")
        lane.send(net.frames(10))
        assert total(daemon.metrics(), "xskd_xdp_verdicts", verdict="no_socket_dropped") == 10
        assert net.eventually(lambda: daemon.forwards("wire/0", other_than=killed), 15)
        kernel.setblocking(False)
        with pytest.raises(BlockingIOError):
            kernel.recv(2048)


def test_a_link_that_goes_down_and_up_costs_no_worker(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        before = daemon.workers()
        net.link(net.hosts[1], "eth0", "down")
        net.taps[0].send(net.frames(10))
        time.sleep(0.3)
        net.up(net.hosts[1], "eth0")
        sent = net.frames(100, first=100)
        assert net.eventually(lambda: net.taps[0].through(sent, net.taps[1])[-100:] == sent, 15)
        assert daemon.workers() == before
        assert total(daemon.metrics(), "xskd_frames_unaccounted") == 0


def test_an_interface_that_goes_away_ends_its_path_alone(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    text = paths("a: {connect: [eth1, eth2]}, b: {connect: [eth3, eth4]}", *net.dut_devs)
    with running(net, tmp_path, text) as daemon:
        neighbour = daemon.workers()["b/0"]
        net.link(net.dut, "eth2", "down")
        net.run(net.dut, "ip", "link", "del", "eth2")
        gone = "bind(eth2 queue 0): ENODEV (No such device): the interface is gone"
        assert net.eventually(lambda: daemon.worker("a/0")["last_error"] == gone)
        sent = net.frames(200)
        assert net.taps[2].through(sent, net.taps[3]) == sent
        assert daemon.workers()["b/0"] == neighbour
        assert total(daemon.metrics(), "xskd_worker_up", path="a") == 0
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log
