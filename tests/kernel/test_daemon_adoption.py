"""A killed worker's successor goes on with its rings: what came meanwhile waits, and nothing else is lost."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import Daemon, Lane, Leftovers, Stream, connect, running, total
from scrapes import Metrics, went_back

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

pytestmark = pytest.mark.needs("maps_bound_sockets")
DEEP = "rings: {fill: 4096, rx: 4096, tx: 1024, completion: 1024}"  # 0.8 s of 5,000 packets/s
RATE = 5_000  # packets/s
KILLS, WORKERS = 50, 10  # after the first death of a place there is a pause: so many places, little pause
LOST = re.compile(r"(\S+): took over after ([\d.]+) ms without a worker: .*?(?:, (\d+) packets lost)?$", re.M)


def kill(daemon: Daemon, name: str) -> int:
    pid = daemon.workers()[name]
    os.kill(pid, signal.SIGKILL)
    return pid


def newcomers(daemon: Daemon, known: set[int]) -> set[int]:
    """Wait for worker processes other than these; they need some 75 ms to do anything.

    One that is not a worker's program yet shares its memory with the daemon, which waits for it: stopping
    that one would stop both.
    """
    deadline = time.monotonic() + 15
    while not (new := {pid for pid in daemon.children() - known if _is_worker(pid)}):
        assert time.monotonic() < deadline, "nobody comes"
        time.sleep(0.001)
    return new


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"xskd.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def kill_newcomer(daemon: Daemon) -> None:
    """Kill the next worker process when it has been told what to do, and before it can have said anything."""
    new = newcomers(daemon, daemon.children())
    for pid in new:
        os.kill(pid, signal.SIGSTOP)
    assert daemon.net.eventually(lambda: new <= set(daemon.workers().values()))
    for pid in new:
        os.kill(pid, signal.SIGKILL)


def said_lost(daemon: Daemon) -> int:
    """Sum the packets that successors said were lost with their predecessors."""
    return sum(int(lost or 0) for _, _, lost in LOST.findall(daemon.log))


def abandoned(metrics: Metrics) -> float:
    """Count what was lost with a worker."""
    return total(metrics, "xskd_dropped_packets", reason="abandoned")


def lost_in_rings(metrics: Metrics) -> float:
    """Count what came while a ring had no room."""
    stats = ("rx_ring_full", "rx_dropped")
    return sum(total(metrics, "xskd_xdp_statistics", stat=stat) for stat in stats)


def dropped(net: Wire) -> int:
    """Count what the veths dropped: the same, and what came faster than a busy machine could take it in."""
    ends = [*((net.dut, dev) for dev in net.dut_devs), *((ns, "eth0") for ns in net.hosts)]
    return sum(c.rx_dropped + c.tx_dropped for c in (net.counters(ns, dev) for ns, dev in ends))


def stopped_lines(daemon: Daemon) -> list[str]:
    """Stop the daemon; what it logs of its workers' ends."""
    assert daemon.stop() == 0
    return [line for line in daemon.log.splitlines() if ": stopped, " in line]


def test_a_killed_workers_packets_wait_for_its_successor(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    text = connect(interface=DEEP, rest="umem: {frame_size: 2048}")
    with running(net, tmp_path, text) as daemon:
        neighbour = daemon.workers()["wire/1"]
        with Stream(net, queue=0, rate=RATE) as stream, Stream(net, queue=1) as other:
            time.sleep(0.3)
            before, fell = daemon.metrics(), dropped(net)
            killed = kill(daemon, "wire/0")
            took = daemon.comes("wire/0", other_than=killed)
            assert stream.goes_on()
            time.sleep(0.3)
        after, fell = daemon.metrics(), dropped(net) - fell
        assert daemon.workers()["wire/1"] == neighbour
        log = daemon.log
        lost = said_lost(daemon)
        (stopped, _) = stopped_lines(daemon)
    print(
        f"killed at {RATE} packets/s: successor after {took * 1000:.0f} ms, nothing arrived for "
        f"{stream.silence * 1000:.0f} ms; {stream.lost} of {stream.sent} packets lost; {LOST.findall(log)}"
    )
    assert "wire/0: worker ended (SIGKILL)" in log
    assert "next one at once, which takes over its rings" in log
    assert took < 3
    assert other.whole
    assert stream.damaged == 0
    assert (stream.lost, stream.doubled) == (lost + fell, 0)
    assert abandoned(after) == lost
    assert lost_in_rings(after) == 0 or stream.silence * RATE > 2048  # a late sender catches up in a burst
    assert total(after, "xskd_xdp_verdicts", verdict="no_socket_passed") == 0  # never out of the map
    assert total(after, "xskd_worker_restarts") == total(after, "xskd_worker_restarts", queue="0") == 1
    assert total(after, "xskd_worker_adoptions", queue="0", result="adopted") == 1
    assert total(after, "xskd_worker_adoptions") == 1
    assert 0 < total(after, "xskd_worker_gap_seconds", queue="0") < took + 1
    assert total(after, "xskd_worker_gap_seconds", queue="1") == 0
    assert total(after, "xskd_frames_unaccounted") == total(after, "xskd_frames", state="quarantined") == 0
    assert went_back(before, after) == []
    assert stopped.endswith("; 0 unaccounted, 0 contradictions")


def test_fifty_kills_under_load_leave_no_trace(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=WORKERS)
    chance = random.Random(2408)
    order = [f"wire/{number % WORKERS}" for number in range(KILLS)]
    chance.shuffle(order)
    with running(net, tmp_path, connect(", fallback: drop")) as daemon:
        bpf, held = Leftovers(daemon).bpf, descriptors(daemon)
        before, fell, began = daemon.metrics(), dropped(net), time.monotonic()
        killed: set[int] = set()
        with ExitStack() as stack:
            streams = [
                stack.enter_context(Stream(net, queue=queue, rate=1_000, hosts=hosts))
                for queue, hosts in ((0, (0, 1)), (1, (1, 0)), (2, (0, 1)))
            ]
            while order:
                alive = {name: pid for name, pid in forwarding(daemon).items() if pid not in killed}
                if name := next((each for each in order if each in alive), None):
                    order.remove(name)
                    os.kill(alive[name], signal.SIGKILL)
                    killed.add(alive[name])
                time.sleep(chance.uniform(0, 0.06))
            assert net.eventually(lambda: len(set(forwarding(daemon).values()) - killed) == WORKERS, 15)
            assert all(stream.goes_on() for stream in streams)
        after, fell, seconds = daemon.metrics(), dropped(net) - fell, time.monotonic() - began
        # An answer on the control socket may have been on its way out; a leak is one for each kill.
        assert net.eventually(lambda: not descriptors(daemon) - held), f"{descriptors(daemon)}, before {held}"
        assert Leftovers(daemon).bpf == bpf
        stopped = stopped_lines(daemon)
        sent, lost = sum(stream.sent for stream in streams), sum(stream.lost for stream in streams)
        fallback = total(after, "xskd_xdp_verdicts", verdict="no_socket_dropped")
        print(
            f"{KILLS} kills in {seconds:.1f} s: {sent} packets, {fallback:.0f} took the fallback, "
            f"{said_lost(daemon)} were in a dead worker's hands, {fell} fell off rings, {lost} did not arrive"
        )
    assert total(after, "xskd_worker_adoptions", result="adopted") == KILLS
    assert total(after, "xskd_worker_adoptions", result="failed") == 0
    assert sum(stream.doubled + stream.damaged for stream in streams) == 0
    assert lost == fallback + said_lost(daemon) + fell
    assert abandoned(after) == said_lost(daemon)
    assert total(after, "xskd_frames_unaccounted") == total(after, "xskd_frames", state="quarantined") == 0
    assert went_back(before, after) == []
    assert len(stopped) == WORKERS
    assert all("stopped, drained" in line and "; 0 unaccounted, 0 contradictions" in line for line in stopped)


def forwarding(daemon: Daemon) -> dict[str, int]:
    return {w["name"]: w["pid"] for w in daemon.status()["workers"] if w["state"] == "forwarding"}


def descriptors(daemon: Daemon) -> Counter[str]:
    """Count the supervisor's descriptors by what they are of."""
    found: Counter[str] = Counter()
    for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            found[os.readlink(fd).partition("[")[0]] += 1
    return found


def xsks(daemon: Daemon) -> set[str]:
    """Name the worker's XSKs: the sockets that the supervisor has as well."""
    (worker,) = daemon.workers().values()
    return sockets(worker) & sockets(daemon.pid)


def sockets(pid: int) -> set[str]:
    found = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    return {name for name in found if name.startswith("socket:")}


def test_sockets_outlive_the_worker_but_not_a_successor_that_fails(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        first = xsks(daemon)
        killed = kill(daemon, "wire/0")
        daemon.comes("wire/0", other_than=killed)
        assert xsks(daemon) == first
        killed = kill(daemon, "wire/0")
        kill_newcomer(daemon)
        daemon.comes("wire/0", other_than=killed)
        second = xsks(daemon)
        assert len(second) == len(first) == 2
        assert not second & first
        worker = daemon.worker("wire/0")
        assert worker["adoptions"] == {"adopted": 1, "failed": 1}
        assert sum(worker["restarts"].values()) == 3
        sent = net.frames(300)
        assert Lane(net).through(sent, net.taps[1]) == sent
        metrics = daemon.metrics()
        assert total(metrics, "xskd_frames_unaccounted") == 0
        assert total(metrics, "xskd_frames", state="quarantined") == 0
        assert stopped_lines(daemon)[0].endswith("; 0 unaccounted, 0 contradictions")


def test_each_crash_in_a_row_doubles_the_pause(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        for _ in range(5):
            daemon.comes("wire/0", other_than=kill(daemon, "wire/0"))
        assert re.findall(r"next (one at once|try in [\d.]+ s), which takes over its rings", daemon.log) == [
            "one at once",
            *(f"try in {pause} s" for pause in ("0.10", "0.20", "0.40", "0.80")),
        ]
        assert daemon.worker("wire/0")["restarts"] == {"SIGKILL": 5}
