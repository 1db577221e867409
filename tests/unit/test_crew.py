"""The workers' lives: events go in, and what becomes of processes, sockets and maps is looked at."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from fakes import (
    ADOPTED,
    BOUND,
    PREPARED,
    STOPPED,
    FakeProcess,
    FakeProgram,
    Stage,
    failed,
    in_maps,
    installed,
    refused,
    wire,
)

from xskd.crew import Crew, Due, Exited, Late, Said, WorkerEvent
from xskd.programs import Programs
from xskd.slot import Slot
from xskd.store import Store


class Scene(Stage):
    """Two started workers of one path, and a queue of events that nobody empties but `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[WorkerEvent] = []
        self.programs = Programs(Store())
        self.crew = Crew(self.programs, Store(), self.posted.append)
        self.plan = wire(2)
        for interface in self.plan.interfaces:
            self.programs.attach(interface)
        for worker in self.plan.workers:
            self.do(partial(self.crew.start, worker))

    def slot(self, index: int = 0) -> Slot:
        return self.crew.slots[f"wire/{index}"]

    def process(self, index: int = 0) -> Any:
        return self.slot(index).process

    def act(self, event: WorkerEvent) -> None:
        self.do(lambda: self.crew.act(event))

    def says(self, message: dict[str, Any], index: int = 0) -> None:
        process = self.process(index)
        process.messages.append(message)
        self.act(Said(self.slot(index), process))

    def dies(self, index: int = 0, cause: str = "SIGKILL") -> None:
        process = self.process(index)
        process.cause = cause
        self.act(Exited(self.slot(index), process))

    def inodes(self, index: int = 0) -> list[int]:
        """Memory, page and sockets that the present process was given."""
        found: list[int] = self.process(index).inodes
        return found


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Two workers that have been started."""
    with installed(monkeypatch):
        yield Scene()


@pytest.fixture
def forwarding(two: Scene) -> Scene:
    """Two workers that forward."""
    for index in (0, 1):
        two.says(PREPARED, index)
        two.says(BOUND, index)
    return two


# ---- a start --------------------------------------------------------------------------------------


def test_a_worker_begins_when_it_is_prepared_and_gets_packets_when_it_is_bound(two: Scene) -> None:
    assert (two.process().told, in_maps()) == ([], [set(), set()])
    two.says(PREPARED)
    assert (two.process().told, two.slot().state) == (["go"], "starting")
    two.says(BOUND)
    assert (two.slot().state, two.slot().modes) == ("forwarding", ["copy", "copy"])
    assert in_maps() == [{0}, {0}]
    assert not two.slot().adoptions


def test_the_log_says_what_was_bound_and_what_was_refused(
    two: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "xskd"):
        two.says(BOUND, 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"wire/1: {name} queue 1 bound, copy mode (zero-copy refused: EOPNOTSUPP (Operation not supported))"
        for name in ("eth1", "eth2")
    ]


def test_a_path_with_a_generic_program_does_not_ask_for_zero_copy(two: Scene) -> None:
    """A driver that grants it all the same neither receives nor sends then."""
    assert [port.mode for port in two.process().plan.ports] == ["auto", "auto"]
    FakeProgram.on["eth2"].attach_mode = "generic"
    two.dies()
    assert [port.mode for port in two.slot().effective_plan().ports] == ["copy", "copy"]
    assert [port.mode for port in two.process().plan.ports] == ["copy", "copy"]
    assert [port.mode_wanted for port in two.slot().status().ports] == ["auto", "auto"]


def test_memory_or_sockets_not_to_be_had_are_a_death_of_their_own_cause(two: Scene) -> None:
    FakeProcess.refuse = refused()
    two.dies(0, "exit 1")
    assert two.slot().restarts == {"exit 1": 1, "spawn": 1}
    assert two.slot().last_error == "socket(AF_XDP)(eth1 queue 0): EPERM (Operation not permitted)"
    assert (two.slot().state, two.slot().sockets, two.process()) == ("backoff", [], None)


@pytest.mark.parametrize("index", [0, 1])
def test_late_ends_a_worker_only_while_it_starts(two: Scene, index: int) -> None:
    two.says(BOUND, 0)
    first = two.process(index)
    two.act(Late(two.slot(index), first, "start"))
    if index == 0:
        assert (two.slot(0).state, two.process(0)) == ("forwarding", first)
    else:
        assert first.closed
        assert two.slot(1).restarts == {"start_timeout": 1}
        assert two.slot(1).last_error == "not bound within 0 s"
        assert not two.process(1).adopt


def test_a_worker_that_gets_on_is_left_more_time_to_start_but_not_for_ever(two: Scene) -> None:
    slow = two.process()
    slow.works = True
    for _ in range(5):
        two.slot().since -= 20
        two.act(Late(two.slot(), slow, "start"))
        assert (two.process(), two.slot().state) == (slow, "starting")
        assert two.timers[-1] == (20.0, Late(two.slot(), slow, "start"))
    two.slot().since -= 20
    two.act(Late(two.slot(), slow, "start"))
    assert slow.closed
    assert two.slot().restarts == {"start_timeout": 1}
    assert two.slot().last_error == "not bound within 120 s"


def test_a_worker_that_stops_getting_on_is_ended(two: Scene) -> None:
    slow = two.process()
    slow.works = True
    two.act(Late(two.slot(), slow, "start"))
    slow.works = False
    two.act(Late(two.slot(), slow, "start"))
    assert slow.closed
    assert two.process() is not slow


def test_a_start_has_its_time(two: Scene) -> None:
    assert two.timers == [(20.0, Late(two.slot(i), two.process(i), "start")) for i in (0, 1)]


# ---- a death while forwarding ---------------------------------------------------------------------


def test_a_death_is_followed_at_once_by_a_worker_on_the_same_sockets(forwarding: Scene) -> None:
    dead, neighbour, before = forwarding.process(0), forwarding.process(1), forwarding.inodes()
    forwarding.dies(0)
    heir = forwarding.process(0)
    assert dead.closed
    assert heir is not dead
    assert (heir.adopt, heir.inodes) == (True, before)
    assert in_maps() == [{0, 1}, {0, 1}]  # packets wait in the rings meanwhile
    assert (forwarding.slot().state, forwarding.slot().restarts) == ("starting", {"SIGKILL": 1})
    assert forwarding.process(1) is neighbour


def test_an_adoption_is_counted_with_its_gap_and_told(
    forwarding: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    forwarding.dies()
    caplog.clear()
    with caplog.at_level(logging.INFO, "xskd"):
        forwarding.says(PREPARED)
        forwarding.says(ADOPTED)
    assert (forwarding.slot().state, forwarding.slot().last_error) == ("forwarding", None)
    assert forwarding.slot().adoptions == {"adopted": 1}
    assert forwarding.slot().gap_seconds == 0.25
    assert [record.getMessage() for record in caplog.records] == [
        "wire/0: took over after 250.0 ms without a worker: 5 packets waiting, 4 unsent, 0 frames quarantined"
    ]
    assert in_maps() == [{0, 1}, {0, 1}]


def test_gaps_add_up_also_where_sockets_are_new(forwarding: Scene) -> None:
    for message in (ADOPTED, BOUND | {"gap": 0.5}):
        forwarding.dies()
        forwarding.slot().backoff = 0.0
        forwarding.says(PREPARED)
        forwarding.says(message)
    assert forwarding.slot().gap_seconds == 0.75
    assert forwarding.slot().adoptions == {"adopted": 1}


def test_packets_that_an_adoption_lost_are_told(forwarding: Scene, caplog: pytest.LogCaptureFixture) -> None:
    forwarding.dies()
    found = ADOPTED["found"] | {"undone": 2, "freed": 1}  # type: ignore[operator]
    with caplog.at_level(logging.INFO, "xskd"):
        forwarding.says(ADOPTED | {"found": found})
    assert caplog.messages[-1].endswith("0 frames quarantined, 2 packets lost")


def test_a_second_death_in_a_row_pauses_and_the_fallback_takes_the_packets(forwarding: Scene) -> None:
    forwarding.dies()
    forwarding.says(ADOPTED)
    before = forwarding.inodes()
    forwarding.dies()
    assert (forwarding.slot().state, forwarding.process()) == ("backoff", None)
    assert in_maps() == [{1}, {1}]
    assert forwarding.timers[-1] == (0.1, Due(forwarding.slot()))
    forwarding.act(Due(forwarding.slot()))
    assert (forwarding.process().adopt, forwarding.inodes()) == (True, before)
    forwarding.says(ADOPTED)
    assert in_maps() == [{0, 1}, {0, 1}]
    forwarding.dies()
    assert forwarding.timers[-1] == (0.2, Due(forwarding.slot()))


def test_a_second_due_event_starts_no_second_process(forwarding: Scene) -> None:
    for _ in range(2):
        forwarding.dies()
    made = len(FakeProcess.made)
    forwarding.act(Due(forwarding.slot()))
    forwarding.act(Due(forwarding.slot()))
    assert len(FakeProcess.made) == made + 1


def late(slot: Slot, process: Any, what: str) -> WorkerEvent:
    return Late(slot, process, what)


@pytest.mark.parametrize(
    "kind",
    [Said, Exited, *(partial(late, what=what) for what in ("start", "stop", "yield"))],
    ids=["said", "exited", "late start", "late stop", "late yield"],
)
def test_events_about_a_process_that_is_gone_change_nothing(
    forwarding: Scene, kind: Callable[..., WorkerEvent]
) -> None:
    gone = forwarding.process()
    forwarding.dies()
    now = forwarding.process()
    gone.messages.append(ADOPTED)
    forwarding.act(kind(forwarding.slot(), gone))
    assert forwarding.process() is now
    assert (forwarding.slot().state, now.closed, now.told) == ("starting", False, [])
    assert sum(forwarding.slot().restarts.values()) == 1


# ---- deaths that cost the sockets -----------------------------------------------------------------


def dies_after_it_said_failed(scene: Scene) -> str:
    scene.says(failed("the device is gone"))
    scene.dies(0, "exit 1")
    return "the device is gone"


def dies_while_it_adopts(scene: Scene) -> str:
    scene.dies()
    scene.dies(0, "SIGSEGV")
    scene.act(Due(scene.slot()))
    return "the worker process ended: SIGSEGV"


def does_not_die(scene: Scene) -> str:
    FakeProcess.undying = True  # it holds its rings
    scene.dies()
    return "the worker process ended: SIGKILL"


def test_a_successor_that_cannot_be_started_costs_no_sockets(forwarding: Scene) -> None:
    before = forwarding.inodes()
    FakeProcess.refuse = BlockingIOError(11, "Resource temporarily unavailable")  # as fork() says it
    forwarding.dies()
    slot = forwarding.slot()
    assert (slot.state, slot.restarts) == ("backoff", {"SIGKILL": 1, "spawn": 1})
    assert "Resource temporarily unavailable" in str(slot.last_error)
    assert in_maps() == [{1}, {1}]
    FakeProcess.refuse = None
    forwarding.act(Due(slot))
    assert (forwarding.process().adopt, forwarding.inodes()) == (True, before)
    forwarding.says(ADOPTED)
    assert in_maps() == [{0, 1}, {0, 1}]
    assert slot.adoptions == {"adopted": 1}


@pytest.mark.parametrize("end", [dies_after_it_said_failed, dies_while_it_adopts, does_not_die])
def test_sockets_that_may_be_the_problem_are_given_up(forwarding: Scene, end: Callable[[Scene], str]) -> None:
    before = forwarding.inodes()
    why = end(forwarding)
    assert in_maps() == [{1}, {1}]
    assert not set(forwarding.inodes()[2:]) & set(before[2:])
    assert (forwarding.process().adopt, forwarding.slot().last_error) == (False, why)
    FakeProcess.undying = False


def test_an_adoption_that_failed_is_counted(forwarding: Scene) -> None:
    dies_while_it_adopts(forwarding)
    assert forwarding.slot().adoptions == {"failed": 1}
    assert forwarding.slot().restarts == {"SIGKILL": 1, "SIGSEGV": 1}
    forwarding.dies(0, "exit 1")  # with new sockets, so it adopted nothing
    assert forwarding.slot().adoptions == {"failed": 1}


def test_a_socket_that_does_not_go_into_the_map_is_a_death_counted_once(two: Scene) -> None:
    FakeProgram.on["eth2"].full = True
    first, before = two.process(), two.inodes()
    first.messages.append(BOUND)
    two.dies(0, "exit 1")  # its message and its end arrive together
    assert two.slot().restarts == {"xskmap": 1}
    assert in_maps() == [set(), set()]
    assert not two.process().adopt
    assert not set(two.inodes()[2:]) & set(before[2:])


def test_the_reason_told_is_that_of_the_last_death(forwarding: Scene) -> None:
    dies_after_it_said_failed(forwarding)
    assert forwarding.slot().last_error == "the device is gone"
    forwarding.dies(0, "SIGKILL")
    assert forwarding.slot().last_error == "the worker process ended: SIGKILL"
    forwarding.act(Due(forwarding.slot()))
    forwarding.says(BOUND)
    assert forwarding.slot().last_error is None


def test_the_log_says_how_it_goes_on(forwarding: Scene, caplog: pytest.LogCaptureFixture) -> None:
    forwarding.dies()
    forwarding.says(ADOPTED)
    forwarding.dies(0, "SIGSEGV")
    forwarding.act(Due(forwarding.slot()))
    forwarding.dies(0, "exit 1")
    assert [message.removeprefix("wire/0: worker ended ") for message in caplog.messages] == [
        "(SIGKILL): the worker process ended: SIGKILL; next one at once, which takes over its rings",
        "(SIGSEGV): the worker process ended: SIGSEGV; next try in 0.10 s, which takes over its rings",
        "(exit 1): the worker process ended: exit 1; next try in 0.20 s",
    ]


# ---- a worker that hangs --------------------------------------------------------------------------


@pytest.mark.parametrize("beaten", [True, False], ids=["after turning", "before its first turn"])
def test_a_worker_that_hangs_is_ended_and_its_sockets_adopted(forwarding: Scene, beaten: bool) -> None:
    hanging, well, now = forwarding.slot(0), forwarding.slot(1), time.monotonic()
    first, neighbour = forwarding.process(0), forwarding.process(1)
    hanging.since -= 100
    if beaten:
        hanging.page.struct.heartbeat_ns = int((now - 4) * 1e9)
    well.since -= 100
    well.page.struct.heartbeat_ns = int(now * 1e9)
    assert forwarding.do(forwarding.crew.tick) is False
    assert not first.closed
    assert forwarding.do(forwarding.crew.tick) is False
    assert first.closed
    assert (hanging.state, hanging.restarts) == ("starting", {"stalled": 1})
    assert forwarding.process(0).adopt
    assert (well.state, forwarding.process(1)) == ("forwarding", neighbour)
    assert forwarding.do(forwarding.crew.tick) is True  # whoever starts need not turn


def test_a_machine_that_stood_still_has_no_hanging_workers(forwarding: Scene) -> None:
    """The supervisor may be the first that runs again, and finds everybody silent."""
    processes = [forwarding.process(index) for index in (0, 1)]
    for _ in range(3):
        for index in (0, 1):
            forwarding.slot(index).since -= 100
            forwarding.slot(index).page.struct.heartbeat_ns = int((time.monotonic() - 9) * 1e9)
        forwarding.do(forwarding.crew.tick)
    assert [forwarding.process(index) for index in (0, 1)] == processes


def test_a_worker_that_hangs_while_it_ends_has_said_why(forwarding: Scene) -> None:
    """Nobody turns any more once it has said so, and on a busy machine a process may take its time to end."""
    hanging = forwarding.slot(0)
    hanging.since -= 100
    forwarding.process(0).error = "rx ring: EBADMSG"
    forwarding.do(forwarding.crew.tick)  # one that is silent is suspected
    assert forwarding.do(forwarding.crew.tick) is False
    assert (hanging.last_error, hanging.restarts) == ("rx ring: EBADMSG", {"stalled": 1})
    assert not forwarding.process(0).adopt


def test_workers_that_turn_are_well(forwarding: Scene) -> None:
    assert forwarding.do(forwarding.crew.tick) is True
    assert [slot.state for slot in forwarding.crew.slots.values()] == ["forwarding", "forwarding"]


# ---- what is heard --------------------------------------------------------------------------------


def test_a_channel_that_has_closed_is_heard_no_more(forwarding: Scene) -> None:
    process = forwarding.process()
    process.hung_up = True
    process.far_end.close()
    for _ in range(3):
        forwarding.do(forwarding.posted.clear)
        for event in list(forwarding.posted):
            forwarding.act(event)
    assert forwarding.posted == []


@pytest.mark.parametrize(
    "strange", [{}, {"event": "bound"}, {"event": "failed"}, BOUND | {"ports": 3}, BOUND | {"found": {}}]
)
def test_a_worker_that_says_what_no_worker_says_is_ended(two: Scene, strange: dict[str, Any]) -> None:
    process = two.process()
    two.says(strange)
    assert process.killed
    two.dies()
    assert str(two.slot().last_error).startswith("it said what no worker says: ")
    assert not two.process().adopt


def test_a_word_of_a_newer_worker_is_not_understood_and_no_harm(forwarding: Scene) -> None:
    process = forwarding.process()
    forwarding.says({"event": "sang"})
    assert (process.killed, forwarding.slot().state) == (False, "forwarding")


def test_what_a_stopped_worker_says_is_logged(forwarding: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "xskd"):
        forwarding.says(STOPPED)
    assert caplog.messages == [
        "wire/0: stopped, drained; frames: ; 0 unaccounted, 0 contradictions"
    ]  # fmt: skip
