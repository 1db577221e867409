"""The workers' lives when somebody wants something else: tuned, rebuilt, parked, taken over, stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from fakes import (
    ADOPTED,
    BOUND,
    MIXED,
    PREPARED,
    STOPPED,
    TOO_OLD,
    YIELDED,
    FakePeer,
    FakeProcess,
    FakeProgram,
    in_maps,
)
from test_crew import Scene, forwarding, two

from xskd.crew import Crew, Due, Exited, Late, Said, WorkerEvent
from xskd.plan import WorkerPlan
from xskd.slot import Slot

__all__ = ["forwarding", "two"]


def tuned(plan: WorkerPlan, **changes: Any) -> WorkerPlan:
    return replace(plan, **{"poll": "busy", **changes})


def moved(plan: WorkerPlan, ifindex: int = 99) -> WorkerPlan:
    """The worker on interfaces that were made anew."""
    return replace(plan, ports=tuple(replace(port, ifindex=ifindex) for port in plan.ports))


def ends(scene: Scene, index: int = 0) -> None:
    """A stopping worker does as it was told."""
    scene.says(STOPPED, index)
    scene.dies(index, "exit 0")


# ---- tuned ----------------------------------------------------------------------------------------


def test_a_tuned_worker_keeps_its_process_and_sockets(forwarding: Scene) -> None:
    process, before = forwarding.process(), forwarding.inodes()
    plan = tuned(forwarding.plan.workers[0])
    forwarding.do(lambda: forwarding.crew.tune(plan))
    assert process.plans == [plan]
    assert (forwarding.process(), forwarding.inodes(), forwarding.slot().plan) == (process, before, plan)
    assert not forwarding.crew.settled
    forwarding.says({"event": "tuned"})
    assert forwarding.crew.settled


def test_a_worker_that_is_not_bound_yet_is_tuned_as_soon_as_it_is(two: Scene) -> None:
    plan = tuned(two.plan.workers[0])
    two.do(lambda: two.crew.tune(plan))
    assert two.process().plans == []
    two.says(BOUND)
    assert two.process().plans == [plan]
    two.says(BOUND, 1)
    assert two.process(1).plans == []  # its plan is the one it has


def test_a_worker_that_dies_before_it_was_tuned_keeps_nobody_waiting(forwarding: Scene) -> None:
    plan = tuned(forwarding.plan.workers[0])
    forwarding.do(lambda: forwarding.crew.tune(plan))
    forwarding.dies()
    assert forwarding.process().plan == plan
    forwarding.says(ADOPTED)
    assert forwarding.process().plans == []  # it began with it
    assert forwarding.crew.settled


def test_a_worker_that_had_to_copy_is_tuned_to_copy(two: Scene) -> None:
    two.says(MIXED)
    two.says(BOUND)
    two.do(lambda: two.crew.tune(tuned(two.plan.workers[0])))
    (plan,) = two.process().plans
    assert {port.mode for port in plan.ports} == {"copy"}


# ---- rebuilt --------------------------------------------------------------------------------------


def test_a_rebuilt_worker_drains_and_then_starts_with_new_sockets(forwarding: Scene) -> None:
    first, before, plan = forwarding.process(), forwarding.inodes(), moved(forwarding.plan.workers[0])
    forwarding.do(lambda: forwarding.crew.rebuild(plan))
    assert (first.told, forwarding.slot().state, in_maps()) == (["go", "stop"], "stopping", [{1}, {1}])
    assert len(FakeProcess.made) == 2
    assert not forwarding.crew.settled
    ends(forwarding)
    assert first.closed
    assert (forwarding.process().plan, forwarding.process().adopt) == (plan, False)
    assert not set(forwarding.inodes()[2:]) & set(before[2:])
    assert not forwarding.slot().restarts  # that was no death
    forwarding.says(BOUND)
    assert (forwarding.crew.settled, in_maps()) == (True, [{0, 1}, {0, 1}])


def test_a_worker_that_does_not_drain_is_ended(forwarding: Scene) -> None:
    first = forwarding.process()
    forwarding.do(lambda: forwarding.crew.rebuild(moved(forwarding.plan.workers[0])))
    assert forwarding.timers[-1] == (3.0, Late(forwarding.slot(), first, "stop"))
    forwarding.act(Late(forwarding.slot(), first, "stop"))
    assert first.closed
    assert forwarding.slot().state == "starting"


def test_a_worker_without_a_process_is_rebuilt_at_once(forwarding: Scene) -> None:
    for _ in range(2):
        forwarding.dies()
    assert forwarding.process() is None
    forwarding.do(lambda: forwarding.crew.rebuild(moved(forwarding.plan.workers[0])))
    assert forwarding.process().adopt is False


def test_what_is_wanted_last_is_what_a_draining_worker_becomes(forwarding: Scene) -> None:
    first, plan = forwarding.process(), forwarding.plan.workers[0]
    forwarding.do(lambda: forwarding.crew.rebuild(moved(plan)))
    forwarding.do(lambda: forwarding.crew.rebuild(moved(plan, 100)))
    forwarding.do(lambda: forwarding.crew.tune(tuned(moved(plan, 100))))
    assert first.told == ["go", "stop"]
    ends(forwarding)
    assert forwarding.process().plan == tuned(moved(plan, 100))


# ---- parked and retired ---------------------------------------------------------------------------


def test_a_parked_worker_waits_with_its_counters_and_starts_in_its_place(forwarding: Scene) -> None:
    place, plan = forwarding.slot(), forwarding.plan.workers[0]
    place.page.struct.turns = 7
    forwarding.do(lambda: forwarding.crew.park("wire/0", "eth1 is gone"))
    ends(forwarding)
    assert (place.state, place.last_error, place.process, place.sockets) == (
        "waiting",
        "eth1 is gone",
        None,
        [],
    )
    assert (in_maps(), forwarding.crew.settled) == ([{1}, {1}], True)
    forwarding.do(lambda: forwarding.crew.start(moved(plan)))
    assert forwarding.slot() is place
    forwarding.says(BOUND)
    assert (place.state, place.last_error) == ("forwarding", None)
    told = place.status()
    assert (told.counters.turns, told.ports[0].kernel.rx_dropped) == (7, 2)


def test_a_retired_worker_is_forgotten_when_it_has_drained(forwarding: Scene) -> None:
    first = forwarding.process()
    forwarding.do(lambda: forwarding.crew.retire("wire/0"))
    assert list(forwarding.crew.slots) == ["wire/0", "wire/1"]
    ends(forwarding)
    assert list(forwarding.crew.slots) == ["wire/1"]
    assert first.closed


@pytest.mark.parametrize("end", [partial(Crew.park, why="x"), Crew.retire], ids=["parked", "retired"])
def test_a_worker_that_is_wanted_again_while_it_drains_ends_first(
    forwarding: Scene, end: Callable[[Crew, str], None]
) -> None:
    first, place, plan = forwarding.process(), forwarding.slot(), forwarding.plan.workers[0]
    forwarding.do(lambda: end(forwarding.crew, "wire/0"))
    forwarding.do(lambda: forwarding.crew.start(plan))
    assert len(FakeProcess.made) == 2  # two at once would work on one queue
    ends(forwarding)
    assert first.closed
    assert forwarding.slot() is place
    assert (place.state, forwarding.process().adopt) == ("starting", False)


# ---- another program, a better time ---------------------------------------------------------------


def test_working_workers_are_let_into_a_new_map_and_stay_in_the_others(forwarding: Scene) -> None:
    kept = FakeProgram.on["eth2"]
    forwarding.do(lambda: forwarding.programs.detach("eth1"))
    forwarding.do(lambda: forwarding.programs.attach(forwarding.plan.interfaces[0]))
    assert in_maps() == [set(), {0, 1}]
    forwarding.do(lambda: forwarding.crew.let_in("eth1"))
    assert in_maps() == [{0, 1}, {0, 1}]
    assert FakeProgram.on["eth2"] is kept
    assert [slot.state for slot in forwarding.crew.slots.values()] == ["forwarding", "forwarding"]
    assert len(FakeProcess.made) == 2


def test_nobody_is_let_in_who_does_not_forward(two: Scene) -> None:
    two.do(lambda: two.crew.let_in("eth1"))
    assert in_maps() == [set(), set()]


def test_a_change_of_its_interfaces_ends_a_pause(forwarding: Scene) -> None:
    for _ in range(2):
        forwarding.dies()
    forwarding.do(lambda: forwarding.crew.hurry(["eth7"]))
    assert not [event for event in forwarding.posted if isinstance(event, Due)]
    forwarding.do(lambda: forwarding.crew.hurry(["eth2", "eth7"]))
    assert [event for event in forwarding.posted if isinstance(event, Due)] == [Due(forwarding.slot())]
    forwarding.act(Due(forwarding.slot()))
    forwarding.dies()  # its pauses begin anew as well
    assert forwarding.slot().state == "starting"


# ---- reasons to try otherwise at once -------------------------------------------------------------


@pytest.mark.parametrize("end_first", [False, True])
def test_mixed_modes_start_again_in_copy_mode_which_is_no_restart(two: Scene, end_first: bool) -> None:
    first = two.process()
    first.messages.append(MIXED)
    first.cause = "exit 1"
    events: list[WorkerEvent] = [Said(two.slot(), first), Exited(two.slot(), first)]
    for event in reversed(events) if end_first else events:
        two.act(event)
    assert first.closed
    assert two.process() is not first
    assert not two.process().closed
    assert {port.mode for port in two.process().plan.ports} == {"copy"}
    assert {port.mode for port in two.process(1).plan.ports} == {"auto"}
    assert not two.slot().restarts


def test_a_kernel_too_old_to_adopt_is_told_once_and_asked_no_more(
    forwarding: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    forwarding.dies(0)
    forwarding.dies(1)
    before = forwarding.inodes(0)
    forwarding.says(TOO_OLD, 0)
    assert not forwarding.process(0).adopt
    assert forwarding.slot(0).adoptions == {"failed": 1}  # new sockets had to be made
    assert not set(forwarding.inodes(0)[2:]) & set(before[2:])
    assert in_maps() == [{1}, {1}]
    assert forwarding.slot(0).restarts == {"SIGKILL": 1}
    forwarding.says(TOO_OLD, 1)  # which had begun before that was known
    forwarding.dies(1, "exit 1")
    forwarding.act(Due(forwarding.slot(1)))
    assert not forwarding.process(1).adopt
    assert caplog.text.count("Linux 6.4") == 1
    for _ in range(2):
        forwarding.says(BOUND, 0)
        forwarding.dies(0)
        forwarding.act(Due(forwarding.slot(0)))
        assert not forwarding.process(0).adopt


# ---- taken over -----------------------------------------------------------------------------------


@pytest.fixture
def heir(forwarding: Scene) -> Iterator[tuple[Scene, FakePeer]]:
    """Another supervisor's worker forwards in place 0, and ours is about to take over."""
    place = forwarding.slot()
    copies = {name: os.dup(fd) for name, fd in place.descriptors().items()}
    forwarding.do(lambda: place.bound(["copy", "copy"]))
    inherited = Slot.inherit(place.plan, place.record(), copies)
    peer = FakePeer(place.plan)
    forwarding.do(lambda: forwarding.crew.take_over(inherited, peer))  # type: ignore[arg-type]
    yield forwarding, peer
    place.close()
    forwarding.close()
    peer.bury()


def test_a_predecessor_works_until_its_heir_is_prepared_then_yields(heir: tuple[Scene, FakePeer]) -> None:
    scene, peer = heir
    assert scene.process().adopt
    assert peer.told == []
    scene.says(PREPARED)
    assert (peer.told, scene.process().told) == (["yield"], ["follow"])
    assert scene.timers[-1] == (1.0, Late(scene.slot(), peer, "yield"))  # type: ignore[arg-type]
    peer.messages.append(YIELDED)
    scene.act(Said(scene.slot(), peer))  # type: ignore[arg-type]
    assert (peer.closed, peer.killed, scene.process().told) == (True, False, ["follow", "go"])
    assert scene.slot().predecessor is None
    scene.says(ADOPTED)
    assert (scene.slot().state, in_maps()) == ("forwarding", [{0, 1}, {0, 1}])
    assert not scene.slot().restarts


def test_a_predecessor_that_does_not_yield_is_killed_and_nobody_works_before_it_is_dead(
    heir: tuple[Scene, FakePeer],
) -> None:
    scene, peer = heir
    scene.says(PREPARED)
    scene.act(Late(scene.slot(), peer, "yield"))  # type: ignore[arg-type]
    assert (peer.killed, peer.closed, scene.process().told) == (True, False, ["follow"])
    scene.act(Exited(scene.slot(), peer))  # type: ignore[arg-type]
    assert (peer.closed, scene.process().told) == (True, ["follow", "go"])


def test_an_heir_that_has_seen_the_way_free_before_we_hear_of_it_forwards(
    heir: tuple[Scene, FakePeer],
) -> None:
    scene, peer = heir
    scene.says(PREPARED)
    scene.says(ADOPTED)
    assert scene.slot().state == "forwarding"
    peer.messages.append(YIELDED)
    scene.act(Said(scene.slot(), peer))  # type: ignore[arg-type]
    assert (peer.closed, scene.process().told) == (True, ["follow"])


def test_a_predecessor_that_dies_by_itself_makes_room(heir: tuple[Scene, FakePeer]) -> None:
    scene, peer = heir
    scene.act(Exited(scene.slot(), peer))  # type: ignore[arg-type]
    assert peer.closed
    assert "go" in scene.process().told
    scene.says(PREPARED)
    assert peer.told == []


def test_an_heir_that_dies_leaves_its_predecessor_at_work(heir: tuple[Scene, FakePeer]) -> None:
    scene, peer = heir
    before = scene.inodes()
    for cause in ("SIGSEGV", "SIGKILL"):
        scene.dies(0, cause)
        assert in_maps() == [{0, 1}, {0, 1}]  # also while we pause: somebody forwards
    assert (peer.closed, peer.told) == (False, [])
    assert not scene.slot().adoptions
    scene.act(Due(scene.slot()))
    assert scene.inodes() == before
    scene.says(PREPARED)
    assert peer.told == ["yield"]


def test_a_predecessor_that_dies_during_a_pause_leaves_the_packets_to_the_fallback(
    heir: tuple[Scene, FakePeer],
) -> None:
    scene, peer = heir
    for _ in range(2):
        scene.dies()
    scene.act(Exited(scene.slot(), peer))  # type: ignore[arg-type]
    assert in_maps() == [{1}, {1}]
    scene.act(Due(scene.slot()))
    assert scene.process().adopt


def test_on_a_kernel_too_old_the_predecessor_itself_goes_on_and_is_ours(
    heir: tuple[Scene, FakePeer],
) -> None:
    scene, peer = heir
    attempt, place = scene.process(), scene.slot()
    sockets = list(place.sockets)
    scene.says(TOO_OLD)
    assert (scene.process(), place.predecessor, peer.closed, attempt.closed) == (peer, None, False, True)
    assert (place.state, place.modes, place.adoptions) == ("forwarding", ["copy", "copy"], {"kept": 1})
    assert (place.sockets, peer.told, place.restarts) == (sockets, ["uncapture"], {})
    assert place.status().pid == 4711
    plan = tuned(place.plan)
    scene.do(lambda: scene.crew.tune(plan))
    assert peer.plans == [plan]
    scene.act(Exited(place, peer))  # type: ignore[arg-type]
    assert (peer.closed, place.restarts) == (True, {"unknown": 1})
    assert not scene.process().adopt


def test_a_predecessor_that_works_by_another_plan_is_told_when_it_is_kept(
    heir: tuple[Scene, FakePeer],
) -> None:
    scene, peer = heir
    peer.plan = tuned(peer.plan)  # as it ran before the configuration changed
    scene.says(TOO_OLD)
    assert peer.plans == [scene.slot().plan]


def test_a_place_that_is_parked_lets_go_of_its_predecessor(heir: tuple[Scene, FakePeer]) -> None:
    scene, peer = heir
    scene.do(lambda: scene.crew.park("wire/0", "x"))
    ends(scene)
    assert (peer.closed, scene.slot().predecessor, scene.slot().state) == (True, None, "waiting")


# ---- all of them ----------------------------------------------------------------------------------


def test_all_are_stopped_when_each_has_ended(forwarding: Scene) -> None:
    forwarding.do(forwarding.crew.stop_all)
    assert in_maps() == [set(), set()]
    assert [process.told for process in FakeProcess.made] == [["go", "stop"]] * 2
    ends(forwarding, 0)
    assert not forwarding.crew.stopped
    ends(forwarding, 1)
    assert forwarding.crew.stopped
    assert [slot.state for slot in forwarding.crew.slots.values()] == ["stopped", "stopped"]


def test_closing_leaves_no_process_and_no_socket(forwarding: Scene) -> None:
    forwarding.dies()
    sockets = [made for slot in forwarding.crew.slots.values() for made in slot.sockets]
    forwarding.do(forwarding.crew.close)
    assert all(process.closed for process in FakeProcess.made)
    assert [made.fileno() for made in sockets] == [-1] * 4
    assert in_maps() != []  # the programs are not the crew's
