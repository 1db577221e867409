"""A worker's place: what stays while processes and sockets come and go."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fakes import FakeProcess, connect, installed, refused, wire

from xskd import slot, spawn
from xskd.errors import XskdError, XskError
from xskd.plan import WorkerPlan
from xskd.slot import Slot
from xskd.spawn import Peer, WorkerProcess
from xskd.uapi import Statistics

PLAN = wire(text=connect("{rings: {rx: 64}}")).workers[0]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slot]:
    with installed(monkeypatch):
        made = Slot(PLAN)
        yield made
        made.close()


def dropped(place: Slot) -> list[int]:
    return [port.kernel.rx_dropped for port in place.status().ports]


# ---- pauses ---------------------------------------------------------------------------------------


def test_the_first_is_at_once_then_the_pause_doubles_up_to_half_a_minute(place: Slot) -> None:
    pauses = [place.buried("SIGKILL") for _ in range(13)]
    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]
    assert place.restarts == {"SIGKILL": 13}


def test_a_worker_that_has_forwarded_for_a_while_dies_for_the_first_time_again(place: Slot) -> None:
    pauses = [place.buried("SIGKILL") for _ in range(5)]
    assert pauses[-1] > 0
    place.bound(["copy", "copy"])
    place.since -= slot.HEALTHY - 1
    assert place.buried("SIGKILL") > 0  # not yet
    place.bound(["copy", "copy"])
    place.since -= slot.HEALTHY + 1
    assert [place.buried("SIGKILL"), place.buried("SIGKILL")] == [0, 0.1]


def test_a_long_start_is_no_health(place: Slot) -> None:
    place.buried("SIGKILL")
    place.enter("starting")
    place.since -= 100
    assert place.buried("start_timeout") == 0.1


# ---- sockets --------------------------------------------------------------------------------------


def test_a_new_process_has_new_sockets_and_the_same_memory(place: Slot) -> None:
    first = place.spawn(adopt=False)
    assert isinstance(first, FakeProcess)
    place.clear()
    second = place.spawn(adopt=False)
    assert isinstance(second, FakeProcess)
    assert first.inodes[:2] == second.inodes[:2]  # packet memory and counter page
    assert not set(first.inodes[2:]) & set(second.inodes[2:])
    assert len(second.inodes) == 4
    assert (place.adopting, second.adopt) == (False, False)


def test_an_adopting_process_has_the_same_sockets(place: Slot) -> None:
    first = place.spawn(adopt=False)
    assert isinstance(first, FakeProcess)
    assert place.clear()
    second = place.spawn(adopt=True)
    assert isinstance(second, FakeProcess)
    assert second.inodes == first.inodes
    assert (place.adopting, second.adopt, place.state) == (True, True, "starting")


def test_descriptors_are_named_by_what_they_are(place: Slot) -> None:
    place.spawn(adopt=False)
    assert list(place.descriptors()) == ["umem", "counters", "xsk eth1", "xsk eth2"]


def test_a_second_socket_that_cannot_be_had_leaves_none_behind(
    place: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []

    def one_only(*_: object) -> socket.socket:
        if made:
            raise refused()
        made.append(socket.socket(socket.AF_UNIX))
        return made[0]

    monkeypatch.setattr(slot, "make_socket", one_only)
    with pytest.raises(XskError):
        place.spawn(adopt=False)
    assert dropped(place) == [0, 0]
    place.discard_sockets()
    assert made[0].fileno() == -1
    assert dropped(place) == [0, 0]


def test_closing_a_place_closes_everything_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(monkeypatch):
        before = set(os.listdir("/proc/self/fd"))
        place = Slot(PLAN)
        place.spawn(adopt=False)
        place.close()
        (process,) = FakeProcess.made
        assert process.closed
        process.bury()
        assert set(os.listdir("/proc/self/fd")) == before
        process.bury = lambda: None  # type: ignore[method-assign]


# ---- counters -------------------------------------------------------------------------------------


def test_the_kernels_counters_go_on_over_sockets(place: Slot) -> None:
    assert dropped(place) == [0, 0]
    place.spawn(adopt=False)
    assert dropped(place) == [1, 1]
    place.discard_sockets()
    assert dropped(place) == [1, 1]
    place.clear()
    place.spawn(adopt=False)
    assert dropped(place) == [2, 2]


def test_the_kernels_counters_of_adopted_sockets_are_counted_once(place: Slot) -> None:
    place.spawn(adopt=False)
    place.clear()
    place.spawn(adopt=True)
    assert dropped(place) == [1, 1]


def test_sockets_that_answer_no_more_leave_what_was_read_last(
    place: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.spawn(adopt=False)
    place.discard_sockets()
    place.clear()
    place.spawn(adopt=False)
    monkeypatch.setattr(slot, "read_statistics", lambda _: Statistics(rx_dropped=4))
    assert dropped(place) == [5, 5]

    def gone(_: object) -> Statistics:
        raise OSError(19, "No such device")

    monkeypatch.setattr(slot, "read_statistics", gone)
    assert dropped(place) == [5, 5]  # a counter never goes back
    place.discard_sockets()
    assert dropped(place) == [5, 5]
    place.clear()
    place.spawn(adopt=False)
    assert dropped(place) == [5, 5]


@pytest.mark.parametrize("what", ["make_memory", "CounterPage"])
def test_without_memory_or_descriptors_there_is_a_place_whose_process_must_wait(
    place: Slot, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as short:
        short.setattr(slot, what, none_left)
        with pytest.raises(OSError, match="Too many"):
            place.spawn(adopt=False)
    assert len(os.listdir("/proc/self/fd")) == before
    told = place.status()
    assert (told.counters.turns, told.pid) == (0, None)
    place.spawn(adopt=False)
    assert place.page.frames == PLAN.frames


@pytest.mark.parametrize("change", [{"frames": 9000}, {"frame_size": 2048}])
def test_memory_of_another_size_is_made_anew_and_the_counters_go_on(
    place: Slot, change: dict[str, int]
) -> None:
    place.page.struct.turns = 7
    place.page.port(1).rx_packets = 5
    place.spawn(adopt=False)
    place.discard_sockets()
    before = os.fstat(place._memory).st_ino
    new = replace(PLAN, **change)  # type: ignore[arg-type]
    place.replan(new)
    place.spawn(adopt=False)
    assert os.fstat(place._memory).st_ino != before
    assert os.fstat(place._memory).st_size == new.frames * new.frame_size
    assert (place.page.frames, len(place.page.owner)) == (new.frames, new.frames)
    assert not any(place.page.owner)  # whose frames are not those of before
    told = place.status()
    assert (told.counters.turns, told.ports[1].counters.rx_packets) == (7, 5)
    assert dropped(place) == [2, 2]  # of the old sockets and the new


def test_another_poll_or_cpu_keeps_memory_page_and_sockets(place: Slot) -> None:
    place.spawn(adopt=False)
    before = [os.fstat(fd).st_ino for fd in place.descriptors().values()]
    place.replan(replace(PLAN, poll="busy", cpu=None))
    assert [os.fstat(fd).st_ino for fd in place.descriptors().values()] == before
    assert (place.status().poll, place.status().cpu) == ("busy", None)


def test_another_number_of_ports_has_counters_of_its_own(place: Slot) -> None:
    place.spawn(adopt=False)
    place.discard_sockets()
    place.replan(replace(PLAN, kind="reflect", ports=PLAN.ports[:1]))
    assert dropped(place) == [0]
    assert place.modes == [None]


# ---- copy mode for all ----------------------------------------------------------------------------


def test_a_place_that_has_learnt_to_copy_copies_with_every_port(place: Slot) -> None:
    assert place.effective_plan() is PLAN
    place.copy = True
    assert [port.mode for port in place.effective_plan().ports] == ["copy", "copy"]
    assert [port.mode_wanted for port in place.status().ports] == ["auto", "auto"]
    place.replan(replace(PLAN, poll="busy"))
    assert place.copy
    place.replan(replace(PLAN, ports=(PLAN.ports[0], replace(PLAN.ports[1], interface="eth3"))))
    assert not place.copy


# ---- heartbeats -----------------------------------------------------------------------------------


def test_a_heartbeat_of_the_process_before_is_none(place: Slot) -> None:
    place.page.struct.heartbeat_ns = time.monotonic_ns()
    place.bound(["copy", "copy"])
    place.since -= 5
    assert place.heartbeat_age() is not None
    place.bound(["copy", "copy"])
    place.since += 1
    assert place.heartbeat_age() is None


# ---- from one supervisor to the next --------------------------------------------------------------


def heir(place: Slot, plan: WorkerPlan = PLAN) -> Slot:
    """What a successor makes of it, with copies of everything."""
    copies = {name: os.dup(fd) for name, fd in place.descriptors().items()}
    return Slot.inherit(plan, place.record(), copies)


def test_an_heir_goes_on_with_everything_that_is_counted(place: Slot) -> None:
    place.spawn(adopt=False)
    place.discard_sockets()
    place.clear()
    place.spawn(adopt=False)
    place.buried("SIGKILL")
    place.adoptions["adopted"], place.gap_seconds, place.copy = 3, 1.5, True
    place.page.struct.turns = 7
    inherited = heir(place)
    assert (inherited.restarts, inherited.adoptions) == ({"SIGKILL": 1}, {"adopted": 3})
    assert (inherited.gap_seconds, inherited.copy, inherited.backoff) == (1.5, True, 0)
    assert (inherited.state, inherited.last_error) == ("starting", None)
    assert dropped(inherited) == [2, 2]
    assert inherited.status().counters.turns == 7
    process = inherited.spawn(adopt=True)
    assert isinstance(process, FakeProcess)
    assert process.inodes == [os.fstat(fd).st_ino for fd in place.descriptors().values()]
    inherited.close()


def test_modes_are_recorded_as_long_as_the_sockets_are_bound(place: Slot) -> None:
    assert place.record()["modes"] == [None, None]
    place.spawn(adopt=False)
    assert place.record()["modes"] == [None, None]
    place.bound(["copy", "copy"])
    assert place.record()["modes"] == ["copy", "copy"]
    place.clear()
    place.spawn(adopt=True)
    assert place.record()["modes"] == ["copy", "copy"]  # whoever comes, the sockets are
    place.discard_sockets()
    assert place.record()["modes"] == [None, None]


def test_a_page_of_another_layout_is_refused_and_nothing_stays_open(place: Slot) -> None:
    place.spawn(adopt=False)
    before = set(os.listdir("/proc/self/fd"))
    place.page.struct.layout_version += 1
    with pytest.raises(XskdError, match="counter page of layout"):
        heir(place)
    assert set(os.listdir("/proc/self/fd")) <= before  # what others left open may close meanwhile
    place.page.struct.layout_version -= 1


# ---- the end of a process -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "cause"),
    [("exit 7", "exit 7"), (f"kill -{int(signal.SIGTERM)} $$", "SIGTERM"), ("kill -35 $$", "signal 35")],
)
def test_the_cause_of_an_end_is_one_word_fit_for_a_label(ending: str, cause: str) -> None:
    process = WorkerProcess.__new__(WorkerProcess)
    process._process = subprocess.Popen(["sh", "-c", ending])
    process._process.wait(5)
    assert process.exit_cause() == cause


def test_a_process_that_works_is_told_from_one_that_does_not() -> None:
    """And of one that is gone nothing can be told."""
    process = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    peer = Peer(socket.socketpair()[0], os.pidfd_open(process.pid), PLAN)
    worked, deadline = False, time.monotonic() + 20
    while not (worked := peer.has_worked(0.01) or worked) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert worked
    assert not peer.has_worked(3600)
    process.send_signal(signal.SIGSTOP)
    while not peer.stopped:
        time.sleep(0.001)
    peer.has_worked(0)
    assert not peer.has_worked(0.001)
    process.kill()
    process.wait()
    assert not peer.has_worked(0.001)
    peer.let_go()


def test_a_process_that_dies_before_it_is_told_anything_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dies(_: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["true"])

    monkeypatch.setattr(spawn, "_start", dies)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BrokenPipeError):
        WorkerProcess(PLAN, [], adopt=True)
    assert len(os.listdir("/proc/self/fd")) == before
