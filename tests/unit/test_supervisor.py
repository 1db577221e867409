"""The supervisor's decisions: events go in, and what becomes of the workers is looked at."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from test_plan import connect, device, plan

from xskd import daemon, notify, slot
from xskd.counters import CounterPage
from xskd.daemon import Due, Event, Exited, Late, Said, StartError, Stop, Supervisor, Tick
from xskd.errors import XdpError, XskError
from xskd.plan import WorkerPlan
from xskd.spawn import WorkerProcess
from xskd.xdp import Verdicts
from xskd.xsk import Statistics

BOUND = {"event": "bound", "ports": [{"mode": "copy", "refused": 95, "retries": 0}] * 2}
STOPPED = {"event": "stopped", "drained": True, "frames": {}, "unaccounted": 0, "contradictions": 0}


class FakeProcess:
    """A worker's process that does nothing but what a test says."""

    made: list[FakeProcess]
    refuse: XskError | None

    def __init__(self, plan: WorkerPlan, page: CounterPage) -> None:
        if FakeProcess.refuse is not None:
            raise FakeProcess.refuse
        self.plan, self.page = plan, page
        self.link, self.far_end = socket.socketpair()
        self.pidfd, self.end = os.pipe()
        self.sockets = ["XSK of eth1", "XSK of eth2"]
        self.error: str | None = None
        self.messages: list[dict[str, Any]] = []
        self.cause: str | None = None
        self.told = self.closed = False
        self.counted = Statistics(rx_dropped=1)
        FakeProcess.made.append(self)
        self.pid = len(FakeProcess.made)

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        messages, self.messages = self.messages, []
        return messages, True

    def statistics(self) -> list[Statistics]:
        return [self.counted, self.counted]

    def exit_cause(self) -> str | None:
        return self.cause

    def tell_to_stop(self) -> None:
        self.told = True

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.link.close()
        self.far_end.close()
        os.close(self.pidfd)
        os.close(self.end)

    def ends(self, cause: str) -> None:
        self.cause = cause
        os.write(self.end, b"x")


class FakeProgram:
    """An XSKMAP."""

    def __init__(self, *_: object, **__: object) -> None:
        self.sockets: dict[int, object] = {}
        self.attach_mode = "native"
        self.native_refused = None
        self.full = self.closed = False

    def attach(self, *_: object, **__: object) -> None:
        pass

    def insert(self, queue: int, made: object) -> None:
        if self.full:
            raise XdpError("BPF_MAP_UPDATE_ELEM(xsks)")
        self.sockets[queue] = made

    def remove(self, queue: int) -> bool:
        return self.sockets.pop(queue, None) is not None

    def verdicts(self) -> Verdicts:
        return Verdicts(0, 0, 0)

    def close(self) -> None:
        self.closed = True


class Scene:
    """A supervisor of one path over some queues, with an event loop that runs only while it acts."""

    def __init__(self, queues: int) -> None:
        made = plan(connect(), device("eth1", queues=queues), device("eth2", queues=queues))
        self.supervisor = Supervisor(made)
        self.programs = [FakeProgram(), FakeProgram()]
        self.supervisor.programs = dict(zip(("eth1", "eth2"), self.programs, strict=True))  # type: ignore[arg-type]
        self.slots = list(self.supervisor.slots.values())
        self.runner = asyncio.Runner()

    def act(self, *events: Event) -> None:
        async def acting() -> None:
            for event in events:
                self.supervisor.act(event)

        self.runner.run(acting())

    def start(self) -> None:
        async def starting() -> None:
            for each in self.slots:
                self.supervisor._spawn(each)

        self.runner.run(starting())

    def process(self, index: int = 0) -> Any:
        return self.slots[index].process

    def says(self, message: dict[str, Any], index: int = 0) -> None:
        process = self.process(index)
        process.messages.append(message)
        self.act(Said(self.slots[index], process))

    def dies(self, index: int = 0, cause: str = "SIGKILL") -> None:
        process = self.process(index)
        process.cause = cause
        self.act(Exited(self.slots[index], process))

    def in_map(self) -> list[set[int]]:
        return [set(program.sockets) for program in self.programs]


Notes = list[str]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """What systemd is told."""
    told: Notes = []
    for name in ("ready", "status"):
        monkeypatch.setattr(notify, name, lambda text, name=name: told.append(f"{name}: {text}"))
    return told


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch, notes: Notes) -> Iterator[type[Scene]]:
    monkeypatch.setattr(slot, "WorkerProcess", FakeProcess)
    monkeypatch.setattr(daemon, "Program", FakeProgram)
    FakeProcess.made, FakeProcess.refuse = [], None
    yield Scene
    for process in FakeProcess.made:
        if not process.closed:
            process.close()


@pytest.fixture
def two(scenes: type[Scene]) -> Scene:
    """Two workers that have been started."""
    scene = scenes(2)
    scene.start()
    return scene


@pytest.fixture
def forwarding(two: Scene) -> Scene:
    """Two workers that forward."""
    two.says(BOUND, 0)
    two.says(BOUND, 1)
    return two


# ---- ready ----------------------------------------------------------------------------------------


def test_ready_once_when_the_last_worker_is_bound(two: Scene, notes: Notes) -> None:
    two.says(BOUND, 1)
    assert (two.supervisor.ready, notes, two.in_map()) == (False, [], [{1}, {1}])
    two.says(BOUND, 0)
    two.act(Tick())
    assert notes == ["ready: 1 path, 2 queues forwarding, copy mode"]
    assert two.in_map() == [{0, 1}, {0, 1}]


def test_ready_with_what_works_when_the_rest_has_failed(two: Scene, notes: Notes) -> None:
    two.says(BOUND, 0)
    two.says({"event": "failed", "error": "bind(eth1 queue 1): EBUSY", "copy": False}, 1)
    assert notes == []  # the process may have more to say; its end decides
    two.dies(1, "exit 1")
    assert notes == ["ready: 1 path, 1 queue forwarding, copy mode; not forwarding: wire/1 (backoff)"]
    assert two.slots[1].last_error == "bind(eth1 queue 1): EBUSY"


def test_nothing_to_be_had_is_a_start_error_with_every_reason(two: Scene) -> None:
    two.says({"event": "failed", "error": "no", "copy": False}, 0)
    two.dies(0, "exit 1")
    with pytest.raises(StartError) as caught:
        two.dies(1, "SIGSEGV")
    assert str(caught.value) == "wire/0: no\nwire/1: the worker process ended: SIGSEGV"


def test_once_ready_the_death_of_all_is_no_start_error(forwarding: Scene, notes: Notes) -> None:
    forwarding.dies(0)
    forwarding.dies(1)
    assert notes[1:] == [  # each death is told at once, not with the next tick
        "status: 1 path, 1 queue forwarding, copy mode; not forwarding: wire/0 (backoff)",
        "status: 0 paths, 0 queues forwarding; not forwarding: wire/0 (backoff), wire/1 (backoff)",
    ]


def test_memory_or_sockets_not_to_be_had_count_as_a_failed_start(scenes: type[Scene]) -> None:
    FakeProcess.refuse = XskError("socket(AF_XDP)", interface="eth1", queue=0, errno=1)
    scene = scenes(1)
    scene.start()
    assert scene.slots[0].restarts == {"spawn": 1}
    with pytest.raises(StartError, match=r"wire/0: socket\(AF_XDP\)\(eth1 queue 0\): EPERM"):
        scene.act(Tick())


# ---- deaths ---------------------------------------------------------------------------------------


def test_a_death_takes_the_worker_out_of_the_map_and_leaves_the_neighbour_alone(forwarding: Scene) -> None:
    dead, neighbour = forwarding.process(0), forwarding.process(1)
    forwarding.dies(0)
    assert forwarding.in_map() == [{1}, {1}]
    assert dead.closed
    assert (forwarding.slots[0].state, forwarding.slots[0].restarts) == ("backoff", {"SIGKILL": 1})
    assert forwarding.process(1) is neighbour
    forwarding.act(Due(forwarding.slots[0]))
    assert forwarding.slots[0].state == "starting"
    forwarding.says(BOUND, 0)
    assert forwarding.in_map() == [{0, 1}, {0, 1}]


@pytest.mark.parametrize("kind", [Said, Exited, Late])
def test_events_about_a_process_that_is_gone_change_nothing(forwarding: Scene, kind: Any) -> None:
    gone = forwarding.process(0)
    forwarding.dies(0)
    forwarding.act(Due(forwarding.slots[0]))
    now = forwarding.process(0)
    gone.messages.append(BOUND)
    forwarding.act(kind(forwarding.slots[0], gone))
    assert forwarding.process(0) is now
    assert (forwarding.slots[0].state, forwarding.in_map()) == ("starting", [{1}, {1}])
    assert sum(forwarding.slots[0].restarts.values()) == 1


def test_a_second_due_event_starts_no_second_process(forwarding: Scene) -> None:
    forwarding.dies(0)
    forwarding.act(Due(forwarding.slots[0]), Due(forwarding.slots[0]))
    assert len(FakeProcess.made) == 3


def test_late_ends_a_worker_only_while_it_starts(two: Scene) -> None:
    two.says(BOUND, 0)
    for index in (0, 1):
        two.act(Late(two.slots[index], two.process(index)))
    assert [each.state for each in two.slots] == ["forwarding", "backoff"]
    assert two.slots[1].restarts == {"start_timeout": 1}
    assert two.slots[1].last_error == "not bound within 20 s"


def test_the_reason_told_is_that_of_the_last_death(forwarding: Scene) -> None:
    forwarding.says({"event": "failed", "error": "the device is gone", "copy": False}, 0)
    forwarding.dies(0, "exit 1")
    forwarding.act(Due(forwarding.slots[0]))
    assert forwarding.slots[0].last_error == "the device is gone"
    forwarding.dies(0, "SIGKILL")
    assert forwarding.slots[0].last_error == "the worker process ended: SIGKILL"
    forwarding.act(Due(forwarding.slots[0]))
    forwarding.says(BOUND, 0)
    assert forwarding.slots[0].last_error is None


def test_a_socket_that_does_not_go_into_the_map_is_a_death_counted_once(two: Scene) -> None:
    two.programs[1].full = True
    two.process(0).messages.append(BOUND)
    two.dies(0, "exit 1")  # its message and its end arrive together
    assert two.slots[0].restarts == {"xskmap": 1}
    assert two.in_map() == [set(), set()]


@pytest.mark.parametrize("beaten", [True, False], ids=["after turning", "before its first turn"])
def test_a_worker_that_hangs_is_ended(forwarding: Scene, beaten: bool) -> None:
    hanging, well = forwarding.slots
    now = time.monotonic()
    hanging.since -= 100
    if beaten:
        hanging.page.struct.heartbeat_ns = int((now - 4) * 1e9)
    well.since -= 100
    well.page.struct.heartbeat_ns = int(now * 1e9)
    forwarding.act(Tick())
    assert (hanging.state, hanging.restarts) == ("backoff", {"stalled": 1})
    assert well.state == "forwarding"


# ---- copy mode for all ----------------------------------------------------------------------------

MIXED = {"event": "failed", "error": "bind(eth2 queue 0): EOPNOTSUPP", "copy": True}


@pytest.mark.parametrize("end_first", [False, True])
def test_mixed_modes_start_again_in_copy_mode_which_is_no_restart(two: Scene, end_first: bool) -> None:
    first = two.process(0)
    first.messages.append(MIXED)
    first.cause = "exit 1"
    events: list[Event] = [Said(two.slots[0], first), Exited(two.slots[0], first)]
    two.act(*(reversed(events) if end_first else events))
    assert first.closed
    assert two.process(0) is not first
    assert not two.process(0).closed
    assert {port.mode for port in two.process(0).plan.ports} == {"copy"}
    assert not two.slots[0].restarts


# ---- a slot ---------------------------------------------------------------------------------------


def test_the_pause_doubles_up_to_half_a_minute_and_is_short_again_after_health(two: Scene) -> None:
    place = two.slots[0]
    pauses = []
    for _ in range(12):
        pauses.append(place.buried("SIGKILL"))
        place.spawn()
    assert pauses[:4] == [0.05, 0.1, 0.2, 0.4]
    assert pauses[-2:] == [30.0, 30.0]
    place.bound(["copy", "copy"])
    place.since -= slot.HEALTHY + 1
    assert place.buried("SIGKILL") == 0.05


def test_counters_of_the_kernel_go_on_over_restarts(forwarding: Scene) -> None:
    def dropped() -> int:
        return forwarding.slots[0].status().ports[0].kernel.rx_dropped

    assert dropped() == 1
    forwarding.dies(0)
    assert dropped() == 1
    forwarding.act(Due(forwarding.slots[0]))
    assert dropped() == 2
    forwarding.dies(0)
    assert dropped() == 2


def test_status_tells_of_every_worker_and_interface(forwarding: Scene) -> None:
    forwarding.dies(1)
    status = forwarding.supervisor.status()
    assert [(w.name, w.state, w.pid) for w in status.workers] == [
        ("wire/0", "forwarding", 1),
        ("wire/1", "backoff", None),
    ]
    assert [port.mode for w in status.workers for port in w.ports] == ["copy", "copy", None, None]
    assert [(i.name, i.path, i.queues, i.attach) for i in status.interfaces] == [
        ("eth1", "wire", 2, "native"),
        ("eth2", "wire", 2, "native"),
    ]


@pytest.mark.parametrize(
    ("ending", "cause"),
    [("exit 7", "exit 7"), (f"kill -{int(signal.SIGTERM)} $$", "SIGTERM"), ("kill -35 $$", "signal 35")],
)
def test_the_cause_of_an_end_is_one_word_fit_for_a_label(ending: str, cause: str) -> None:
    process = WorkerProcess.__new__(WorkerProcess)
    process._process = subprocess.Popen(["sh", "-c", ending])
    process._process.wait(5)
    assert process.exit_cause() == cause


# ---- stopping -------------------------------------------------------------------------------------


def run(scene: Scene, answers: Sequence[bool]) -> list[FakeProcess]:
    """Run the whole loop: start, stop when ready; workers answer the stop or do not."""

    async def scenario() -> None:
        running = asyncio.create_task(scene.supervisor.run())
        while len(FakeProcess.made) < len(answers):
            await asyncio.sleep(0.001)
        for process in FakeProcess.made:
            process.messages.append(BOUND)
            process.far_end.send(b"x")
        while not scene.supervisor.ready:
            await asyncio.sleep(0.001)
        scene.supervisor.events.put_nowait(Stop("a test"))
        while not all(process.told for process in FakeProcess.made):
            await asyncio.sleep(0.001)
        for process, answer in zip(FakeProcess.made, answers, strict=True):
            if answer:
                process.messages.append(STOPPED)
                process.ends("exit 0")
        await running

    scene.runner.run(asyncio.wait_for(scenario(), 5))
    return FakeProcess.made


def test_a_stop_waits_for_what_the_workers_have_to_say(
    scenes: type[Scene], caplog: pytest.LogCaptureFixture
) -> None:
    scene = scenes(2)
    with caplog.at_level(logging.INFO, "xskd"):
        processes = run(scene, [True, True])
    assert all(process.closed for process in processes)
    assert not scene.supervisor.programs
    assert [each.state for each in scene.slots] == ["stopped", "stopped"]
    assert caplog.text.count("stopped, drained; frames: ; 0 unaccounted, 0 contradictions") == 2
    assert "killed" not in caplog.text


def test_a_stop_does_not_wait_for_ever(
    scenes: type[Scene], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "STOP_SECONDS", 0.1)
    processes = run(scenes(2), [True, False])
    assert all(process.closed for process in processes)
    assert "not drained in 0.1 s, killed: wire/1" in caplog.text


def test_a_worker_that_binds_while_the_daemon_stops_gets_no_packets(two: Scene) -> None:
    two.act(Stop("a test"))
    two.says(BOUND, 0)
    two.says(MIXED, 1)
    assert two.in_map() == [set(), set()]
    assert len(FakeProcess.made) == 2


def test_no_pause_that_ends_while_stopping_starts_a_worker(forwarding: Scene) -> None:
    forwarding.dies(0)
    forwarding.act(Stop("a test"), Due(forwarding.slots[0]))
    assert len(FakeProcess.made) == 2
