"""Supervisor and workers are killed, stopped and starved at random moments under load, again and again.

The promises, of docs/operations.md and decision 7, for a queue whose RX ring holds what comes meanwhile:

* A worker that is killed is replaced by one that adopts its rings; the other queues do not notice.
* A worker that is stopped is noticed after 1.5 s, killed and replaced.
* A supervisor that is killed or stopped is missed by nobody: workers forward, and its successor takes them
  over.
* Both killed: the rings hold what they can, and the successor starts workers that adopt them.
* Memory that runs out costs a worker that forwards nothing. A supervisor without any cannot replace a worker
  that dies meanwhile; it, or its successor if it does not survive that, does when there is some again.
* Whatever happens, each packet arrives once or is counted as lost, every frame is in one place, nothing
  leaks, and no counter goes back.

Memory runs out by RLIMIT_AS, set from outside on the running process: its next mapping is refused, at
whatever moment that is. (A memory cgroup that is full ends its process by SIGKILL, which is the first case;
and tests have none of their own everywhere.)
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import Lane, Stream, connect, running, total
from ledger import Ledger
from manager import WATCHDOG_SECONDS, Managed, managed
from test_daemon_adoption import abandoned, kill, kill_newcomer, newcomers

from lab.figures import figure

if TYPE_CHECKING:
    from conftest import MakeWire

QUEUES, RATE = 3, 300  # packets/s on each queue
SEED = 6
DEEP = "rings: {fill: 2048, rx: 2048, tx: 512, completion: 1024}"  # 6 s of that
BACK_SECONDS = 40.0  # until a queue forwards again, whatever has happened
PAUSE = re.compile(r"next try in ([\d.]+) s")
TINY = 1 << 20  # bytes of address space: less than any process has, so the next mapping fails


class Scene:
    """A managed daemon under load; a fault is something done to it."""

    def __init__(self, daemon: Managed, streams: list[Stream], chance: random.Random) -> None:
        self.daemon, self.streams, self.chance = daemon, streams, chance

    def worker(self, queue: int) -> int:
        return self.daemon.workers()[f"wire/{queue}"]

    def wait_for_successor(self, starts: int) -> None:
        """Wait until a supervisor that was started after so many others is in charge."""
        net = self.daemon.net
        assert net.eventually(lambda: self.daemon.starts > starts, 2 * WATCHDOG_SECONDS)
        assert net.eventually(lambda: self.daemon.well, BACK_SECONDS), self.daemon.log

    def back(self) -> None:
        """Wait until each queue forwards what is sent from now on, and a supervisor is in charge."""
        net, sent = self.daemon.net, [stream.sent for stream in self.streams]

        def forwards() -> bool:
            return all(s.latest > n for s, n in zip(self.streams, sent, strict=True))

        assert net.eventually(forwards, BACK_SECONDS), self.daemon.log
        assert net.eventually(lambda: self.daemon.well, BACK_SECONDS), self.daemon.log


def send(sign: signal.Signals, *pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sign)


@contextmanager
def starved(*pids: int) -> Iterator[None]:
    """Let processes have no memory more than they have."""
    for pid in pids:
        limit_memory(pid, TINY)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(FileNotFoundError, subprocess.CalledProcessError):  # it did not survive that
                limit_memory(pid, "unlimited")


def limit_memory(pid: int, limit: int | str) -> None:
    """Set RLIMIT_AS (soft) as the process's own user, for whom that takes no right."""
    owner = Path(f"/proc/{pid}/status").read_text()
    uid, gid = (re.search(rf"^{key}:\s+(\d+)", owner, re.MULTILINE)[1] for key in ("Uid", "Gid"))  # type: ignore[index]
    user = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--")
    command = (*user, "prlimit", f"--pid={pid}", f"--as={limit}:")
    subprocess.run(command, check=True, capture_output=True)


# ---- faults: each returns when the daemon is in charge again --------------------------------------


def worker_killed(scene: Scene, queue: int) -> None:
    kill(scene.daemon, f"wire/{queue}")


def successor_killed(scene: Scene, queue: int) -> None:
    """At whatever it is."""
    known = scene.daemon.children()
    kill(scene.daemon, f"wire/{queue}")
    new = newcomers(scene.daemon, known)
    time.sleep(scene.chance.uniform(0, 0.2))
    send(signal.SIGKILL, *new)


def worker_stopped(scene: Scene, queue: int) -> None:
    pid = scene.worker(queue)
    send(signal.SIGSTOP, pid)
    scene.daemon.comes(f"wire/{queue}", other_than=pid)


def supervisor_killed(scene: Scene, queue: int) -> None:
    starts = scene.daemon.starts
    send(signal.SIGKILL, scene.daemon.pid)
    scene.wait_for_successor(starts)


def supervisor_stopped(scene: Scene, queue: int) -> None:
    """Until its watchdog ends it."""
    starts = scene.daemon.starts
    send(signal.SIGSTOP, scene.daemon.pid)
    scene.wait_for_successor(starts)


def supervisor_paused(scene: Scene, queue: int) -> None:
    pid = scene.daemon.pid
    send(signal.SIGSTOP, pid)
    time.sleep(2)
    send(signal.SIGCONT, pid)


def worker_killed_behind_its_back(scene: Scene, queue: int) -> None:
    """The supervisor is stopped when a worker dies: it finds out when it goes on."""
    worker, supervisor = scene.worker(queue), scene.daemon.pid
    send(signal.SIGSTOP, supervisor)
    send(signal.SIGKILL, worker)
    time.sleep(scene.chance.uniform(0, 1))
    send(signal.SIGCONT, supervisor)


def both_killed(scene: Scene, queue: int) -> None:
    starts, worker = scene.daemon.starts, scene.worker(queue)
    pids = [worker, scene.daemon.pid]
    scene.chance.shuffle(pids)
    send(signal.SIGKILL, *pids)
    scene.wait_for_successor(starts)


def all_killed(scene: Scene, queue: int) -> None:
    starts = scene.daemon.starts
    send(signal.SIGKILL, *scene.daemon.workers().values(), scene.daemon.pid)
    scene.wait_for_successor(starts)


def both_stopped(scene: Scene, queue: int) -> None:
    """Until the supervisor's watchdog ends it; its successor finds a worker that does not yield."""
    starts, worker = scene.daemon.starts, scene.worker(queue)
    send(signal.SIGSTOP, worker, scene.daemon.pid)
    scene.wait_for_successor(starts)


def worker_starved(scene: Scene, queue: int) -> None:
    with starved(scene.worker(queue)):
        assert scene.streams[queue].goes_on()


def supervisor_starved(scene: Scene, queue: int) -> None:
    worker = scene.worker(queue)
    with starved(scene.daemon.pid):
        send(signal.SIGKILL, worker)
        time.sleep(scene.chance.uniform(0, 0.5))


def both_starved(scene: Scene, queue: int) -> None:
    workers = scene.daemon.workers()
    with starved(scene.daemon.pid, *workers.values()):
        assert scene.streams[queue].goes_on()
        send(signal.SIGKILL, workers[f"wire/{queue}"])
        time.sleep(scene.chance.uniform(0, 0.5))


Fault = Callable[[Scene, int], None]

# What is promised of a fault: the seconds in which its queue forwards again, not counting the pause of a
# worker that dies several times in a row; how often it is tried in every run; and its share of the long one.
# Where a supervisor has to be started, that is for a machine on which it gets a tenth of a CPU. Faults that
# take ten seconds each are few: 500 of them would be 83 minutes.
PROMISES: dict[Fault, tuple[float, int, int]] = {
    worker_killed: (5, 3, 180),
    successor_killed: (8, 1, 40),
    worker_stopped: (6, 1, 15),
    supervisor_killed: (5, 2, 100),
    supervisor_paused: (5, 0, 5),
    supervisor_stopped: (5, 0, 3),
    worker_killed_behind_its_back: (6, 1, 30),
    both_killed: (20, 1, 50),
    all_killed: (20, 1, 30),
    both_stopped: (WATCHDOG_SECONDS + 20, 0, 2),
    worker_starved: (5, 1, 15),
    supervisor_starved: (20, 1, 20),
    both_starved: (20, 1, 10),
}


BLIND = {
    supervisor_starved,
    both_starved,
}  # a supervisor without memory cannot map rings to see what it gives up


@dataclass
class Round:
    """One fault: how much had been sent and counted before, and for how long nothing arrived, in seconds."""

    fault: Fault
    queue: int
    sent: list[int]
    counted: int
    waited: float = 0.0
    paused: float = 0.0  # of that, a pause as promised

    def __str__(self) -> str:
        paused = f", {self.paused:g} s of them a pause" if self.paused else ""
        return f"{self.fault.__name__} {self.queue}: nothing arrived for {self.waited:.2f} s{paused}"


def order_of(times: Callable[[int, int], int], chance: random.Random) -> list[Fault]:
    order = [fault for fault, (_, few, many) in PROMISES.items() for _ in range(times(few, many))]
    chance.shuffle(order)
    return order


def try_one(scene: Scene, ledger: Ledger, fault: Fault) -> Round:
    """Do it at a random moment, see everything come back, and audit the ledger."""
    queue, said = scene.chance.randrange(QUEUES), len(scene.daemon.log)
    this = Round(fault, queue, [stream.sent for stream in scene.streams], sum(ledger.counted().values()))
    time.sleep(scene.chance.uniform(0, 0.2))
    for stream in scene.streams:
        stream.waited = 0.0
    fault(scene, queue)
    scene.back()
    this.waited = scene.streams[queue].waited
    this.paused = min(this.waited, sum(map(float, PAUSE.findall(scene.daemon.log[said:]))))
    ledger.audit()
    return this


def test_killed_stopped_and_starved_it_forwards_again_and_leaks_nothing(
    wire: MakeWire, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    net, chance = wire(queues=QUEUES), random.Random(SEED)
    rounds: list[Round] = []
    text = connect(", fallback: drop", interface=DEEP, rest="umem: {frame_size: 2048}")
    with managed(net, tmp_path, text) as daemon, ExitStack() as stack:
        supervisor_killed(Scene(daemon, [], chance), 0)  # what a first restart adds is no leak
        ledger, began = Ledger(daemon), time.monotonic()
        streams = [
            stack.enter_context(Stream(net, queue=queue, rate=RATE, hosts=hosts))
            for queue, hosts in enumerate(((0, 1), (1, 0), (0, 1)))
        ]
        scene = Scene(daemon, streams, chance)
        for fault in order_of(times, chance):
            rounds.append(try_one(scene, ledger, fault))
            print(f"{time.monotonic() - began:.1f} s: {rounds[-1]}", flush=True)
        stack.close()
        ledger.audit()
    sent, lost = sum(stream.sent for stream in streams), sum(stream.lost for stream in streams)
    counted = ledger.counted()
    print(f"{len(rounds)} faults of seed {SEED} in {time.monotonic() - began:.0f} s: {sent} packets,")
    print(f"{lost} lost, counted {counted}; supervisor's memory {ledger.rss[0]} to {ledger.rss[-1]} kB")
    hold_losses(rounds, streams, sum(counted.values()))
    hold_promises(rounds)
    figure("growth of the supervisor's memory over the faults", ledger.growth, "kB", 16_000)


def hold_promises(rounds: list[Round]) -> None:
    seen: dict[Fault, list[float]] = defaultdict(list)
    for each in rounds:
        seen[each.fault].append(each.waited - each.paused)
    for fault, times_waited in seen.items():
        what = fault.__name__.replace("_", " ")
        middle = statistics.median(times_waited)
        print(f"{what}: {len(times_waited)} times, nothing arrived for {middle:.2f} s (median)")
        figure(f"{what}: nothing arrived for", max(times_waited), "s", PROMISES[fault][0])


def hold_losses(rounds: list[Round], streams: list[Stream], counted: int) -> None:
    """Compare what is missing with what was counted, fault by fault."""
    ends = [(each.sent, each.counted) for each in rounds[1:]] + [([s.sent for s in streams], counted)]
    uncounted, blind = 0, 0
    for each, (sent, known) in zip(rounds, ends, strict=True):
        spans = zip(streams, each.sent, sent, strict=True)
        lost = sum(len(stream.missing(first, end)) for stream, first, end in spans)
        wrong = abs(lost - (known - each.counted))
        if wrong:
            print(f"{each}: {lost} lost, {known - each.counted} counted")
        if each.fault in BLIND:
            blind += wrong
        else:
            uncounted += wrong
    figure("packets lost in faults and not counted", uncounted, "packets", 0)
    figure(
        "packets lost by a supervisor without memory and not counted", blind, "packets", RATE * len(rounds)
    )
    figure("packets doubled or damaged by faults", sum(s.doubled + s.damaged for s in streams), "packets", 0)


@pytest.mark.moves("xskd_dropped_packets", reason="abandoned")
def test_packets_in_rings_that_are_given_up_are_counted(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path, connect(", fallback: drop")) as daemon:
        assert abandoned(daemon.metrics()) == 0
        worker = daemon.workers()["wire/0"]
        os.kill(worker, signal.SIGSTOP)
        Lane(net).send(net.frames(100))  # they wait in the RX ring
        os.kill(worker, signal.SIGKILL)
        kill_newcomer(daemon)
        daemon.comes("wire/0", other_than=worker)
        metrics = daemon.metrics()
        assert abandoned(metrics) == total(metrics, "xskd_dropped_packets") == 100
        assert net.taps[1].waiting() == []
