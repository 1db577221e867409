"""What a successor takes over of its predecessor, and what it lets go of, with one line that says why."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    ADOPTED,
    BOUND,
    PREPARED,
    FakeProcess,
    FakeProgram,
    FakeSystemd,
    Stage,
    connect,
    installed,
    wire,
    with_store,
)

from xskd import channel, compiled, config, inheritance
from xskd.crew import Crew, Said, WorkerEvent
from xskd.plan import Plan
from xskd.programs import Programs
from xskd.rules import Rule, RuleSet
from xskd.slot import Slot
from xskd.store import Store
from xskd.xdp import RuleTally

real_end_strays = inheritance._end_strays
CONFIG = config.parse(connect(), "/etc/x.yaml")


class Reign(Stage):
    """One supervisor's crew and programs, from its start until it is gone."""

    def __init__(self, systemd: FakeSystemd) -> None:
        super().__init__()
        self.systemd = systemd
        self.store = Store()
        self.posted: list[WorkerEvent] = []
        self.programs = Programs(self.store)
        self.crew = Crew(self.programs, self.store, self.posted.append)

    def begin(self, plan: Plan, *, bound: bool = True) -> None:
        """A first start."""
        for interface in plan.interfaces:
            self.programs.attach(interface)
        for worker in plan.workers:
            self.do(partial(self.crew.start, worker))
            if bound:
                self.says(worker.name, BOUND)
        self.save()

    def save(self) -> None:
        inheritance.save(self.store, CONFIG, self.programs, self.crew, "")

    def take(self, plan: Plan) -> Plan:
        taken = self.do(lambda: inheritance.take(self.store, plan, self.programs, self.crew))
        assert isinstance(taken, Plan)
        return taken

    def says(self, name: str, message: dict[str, Any]) -> None:
        slot = self.crew.slots[name]
        process: Any = slot.process
        process.messages.append(message)
        self.do(lambda: self.crew.act(Said(slot, process)))


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSystemd]:
    with installed(monkeypatch) as made:
        with_store(monkeypatch, tmp_path)
        yield made


@pytest.fixture
def old(systemd: FakeSystemd) -> Reign:
    """A supervisor of two workers that forward, about to be followed."""
    reign = Reign(systemd)
    reign.begin(wire(2))
    return reign


@pytest.fixture
def new(old: Reign) -> Reign:
    """Its successor, before it takes anything."""
    return Reign(old.systemd)


def changed(tmp_path: Path, **changes: Any) -> None:
    """Another state than was saved."""
    file = tmp_path / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- taken over -----------------------------------------------------------------------------------


def test_what_fits_is_taken_over_and_nothing_is_said(
    old: Reign, new: Reign, caplog: pytest.LogCaptureFixture
) -> None:
    plan = wire(2)
    taken = new.take(plan)
    assert (taken.interfaces, taken.workers, taken.waiting) == (plan.interfaces, plan.workers, ())
    assert caplog.messages == []
    for name in ("wire/0", "wire/1"):
        before, after = old.crew.slots[name], new.crew.slots[name]
        assert [os.fstat(fd).st_ino for fd in after.descriptors().values()] == [
            os.fstat(fd).st_ino for fd in before.descriptors().values()
        ]
        assert (after.process.adopt, after.predecessor is not None) == (True, True)  # type: ignore[union-attr]
    assert dict[str, Any](new.programs.by_name) == FakeProgram.on
    assert new.store.untaken == []


def test_a_successor_that_dies_early_takes_no_worker_along(old: Reign, new: Reign) -> None:
    """The old worker's channel stays in the store until the new worker's takes its place."""
    new.take(wire(2))
    third = Reign(old.systemd)
    third.take(wire(2))
    assert third.crew.slots["wire/0"].predecessor is not None
    assert FakeProcess.made[0].far_end.send(b"x") == 1  # somebody has the other end


def test_the_old_worker_hears_yield_over_the_channel_it_had(old: Reign, new: Reign) -> None:
    new.take(wire(2))
    new.says("wire/0", PREPARED)
    first, second, *_ = FakeProcess.made
    assert channel.receive(first.far_end)[0] == {"verb": "yield"}
    with pytest.raises(BlockingIOError):
        channel.receive(second.far_end)
    channel.send(first.far_end, {"event": "yielded"})
    new.do(lambda: None)
    for event in new.posted:
        new.do(partial(new.crew.act, event))
    assert new.crew.slots["wire/0"].predecessor is None
    assert new.crew.slots["wire/1"].predecessor is not None


def test_what_was_taken_over_can_be_taken_over_again(old: Reign, new: Reign) -> None:
    new.take(wire(2))
    for name in ("wire/0", "wire/1"):
        new.says(name, ADOPTED)
    new.save()
    third = Reign(old.systemd)
    assert third.take(wire(2)).workers == wire(2).workers
    assert [slot.adoptions for slot in third.crew.slots.values()] == [{"adopted": 1}, {"adopted": 1}]


def test_one_that_dies_before_its_workers_are_bound_leaves_everything_to_the_next(
    old: Reign, new: Reign
) -> None:
    new.take(wire(2))
    third = Reign(old.systemd)
    assert third.take(wire(2)).workers == wire(2).workers


def test_a_worker_that_can_change_without_new_sockets_begins_with_the_new_plan(new: Reign) -> None:
    busy = wire(2, connect(path=", poll: busy"))
    assert new.take(busy).workers == busy.workers
    assert {slot.process.plan.poll for slot in new.crew.slots.values() if slot.process} == {"busy"}


def test_the_fallback_is_that_of_the_new_plan(new: Reign) -> None:
    new.take(wire(2, connect(path=", fallback: drop")))
    assert {program.fallback for program in FakeProgram.on.values()} == {"drop"}


# ---- let go of ------------------------------------------------------------------------------------


def test_what_rules_have_counted_goes_on_under_their_names(
    old: Reign, systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compile_rules", lambda rules, queues: f"{rules} {queues}".encode())
    (eth1, eth2) = wire(2).interfaces
    web, dns = (
        Rule(name, "drop", destination_port=((port, port),)) for name, port in (("web", 80), ("dns", 53))
    )
    old.programs.set_rules(replace(eth1, rules=RuleSet((web, dns))))
    program = FakeProgram.on["eth1"]
    program.tallies = (RuleTally(1, 10, 0), RuleTally(2, 20, 1), RuleTally(4, 40, 0))
    old.programs.set_rules(replace(eth1, rules=RuleSet((dns,))))
    program.tallies = (RuleTally(8, 80, 2), RuleTally(16, 160, 0))
    old.save()
    new = Reign(systemd)
    new.take(replace(wire(2), interfaces=(replace(eth1, rules=RuleSet((web, dns))), eth2)))
    assert not program.tallies  # installed anew
    program.tallies = (RuleTally(32, 320, 0), RuleTally(64, 640, 0), RuleTally(128, 1280, 0))
    assert new.programs.rule_tallies("eth1") == {
        "web": RuleTally(33, 330, 0),
        "dns": RuleTally(74, 740, 3),
        "default": RuleTally(148, 1480, 0),
    }


def test_lanes_stay_open_for_a_successor_unless_they_would_lead_elsewhere(
    old: Reign, systemd: FakeSystemd, new: Reign
) -> None:
    program = FakeProgram.on["eth1"]
    program.lanes = {1}, set()
    new.take(wire(2))
    assert program.lanes == ({1}, set())
    new.save()
    eth1, eth2 = wire(2).interfaces
    Reign(systemd).take(replace(wire(2), interfaces=(replace(eth1, members=(11, 99)), eth2)))
    assert program.lanes == (set(), set())


def test_the_state_of_before_there_were_rules_is_good_enough(
    old: Reign, new: Reign, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = json.loads((tmp_path / "state.json").read_text())
    known = ("name", "ifindex", "queues", "attach", "fallback", "path")
    del state["rule_tallies"]
    state["interfaces"] = [{key: record[key] for key in known} for record in state["interfaces"]]
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert new.take(wire(2)).interfaces == wire(2).interfaces
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def without_queue(plan: Plan) -> Plan:
    return replace(plan, workers=plan.workers[:1])


def with_other_rings(plan: Plan) -> Plan:
    return replace(plan, workers=(plan.workers[0], replace(plan.workers[1], frames=64)))


def dropped_from_the_store(reign: Reign) -> None:
    reign.systemd.notify("FDSTOREREMOVE=1\nFDNAME=worker wire/1")


def not_bound(reign: Reign) -> None:
    reign.crew.slots["wire/1"].modes = [None, None]
    reign.save()


def of_another_layout(reign: Reign) -> None:
    reign.crew.slots["wire/1"].page.struct.layout_version = 99


def with_a_bad_record(reign: Reign) -> None:
    state = reign.store.load()
    state["workers"][1]["restarts"] = 17
    reign.store.save(json.dumps(state))


def holders(slot: Slot) -> int:
    """Count the descriptors of this process that are of a place's memory, page or sockets."""
    inodes = {os.fstat(fd).st_ino for fd in slot.descriptors().values()}
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the list itself
            count += each.stat().st_ino in inodes
    return count


@pytest.mark.parametrize(
    ("before", "wanted", "why"),
    [
        (None, without_queue, "nothing like it is configured or can run now"),
        (None, with_other_rings, "its interfaces, queues, rings, frames or mode are others now"),
        (not_bound, None, "they were not bound"),
        (dropped_from_the_store, None, "they are not there"),
        (of_another_layout, None, "counter page of layout 99; this xskd has "),
        (with_a_bad_record, None, "their record makes no sense: TypeError("),
    ],
)
def test_a_worker_that_does_not_fit_is_let_go_of_with_its_process_and_its_neighbour_goes_on(
    old: Reign,
    caplog: pytest.LogCaptureFixture,
    before: Callable[[Reign], None] | None,
    wanted: Callable[[Plan], Plan] | None,
    why: str,
) -> None:
    if before is not None:
        before(old)
    held = holders(old.crew.slots["wire/1"])
    new = Reign(old.systemd)
    plan = wire(2)
    taken = new.take(wanted(plan) if wanted else plan)
    assert [worker.name for worker in taken.workers] == ["wire/0"]
    (line,) = caplog.messages
    assert line.startswith(f"wire/1: the stored sockets are let go of: {why}")
    assert list(new.crew.slots) == ["wire/0"]
    assert not [name for name in old.systemd.kept if name.startswith("worker wire/1")]
    old.crew.slots["wire/1"].process.link.close()  # type: ignore[union-attr]
    assert FakeProcess.made[1].far_end.recv(1) == b""  # nobody else has its channel: it ends
    assert holders(old.crew.slots["wire/1"]) == held  # nobody else has its sockets: the queue is free


def with_another_ifindex(plan: Plan) -> Plan:
    return replace(plan, interfaces=(replace(plan.interfaces[0], ifindex=99), plan.interfaces[1]))


def refused_by_the_kernel(plan: Plan) -> Plan:
    FakeProgram.refuse["eth1"] = "another program is there"
    return plan


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (with_another_ifindex, "the interface is another one now, or is to be attached otherwise"),
        (refused_by_the_kernel, "adopt(eth1): another program is there"),
    ],
)
def test_a_program_that_does_not_fit_is_let_go_of_and_the_others_stay(
    old: Reign, caplog: pytest.LogCaptureFixture, wanted: Callable[[Plan], Plan], why: str
) -> None:
    new = Reign(old.systemd)
    taken = new.take(wanted(wire(2)))
    assert [interface.name for interface in taken.interfaces] == ["eth2"]
    assert caplog.messages == [f"eth1: the stored XDP program is let go of: {why}"]
    assert "interface eth1" not in old.systemd.kept
    assert "interface eth2" in old.systemd.kept


def test_a_program_that_is_not_in_the_store_is_attached_anew(
    old: Reign, caplog: pytest.LogCaptureFixture
) -> None:
    old.store.drop("interface eth1")
    new = Reign(old.systemd)
    assert [interface.name for interface in new.take(wire(2)).interfaces] == ["eth2"]
    assert caplog.messages == ["eth1: the stored XDP program is let go of: store(eth1): it is not there"]


def test_what_nobody_knows_is_dropped(old: Reign) -> None:
    old.store.put("left over", {"x": 0})
    new = Reign(old.systemd)
    new.take(wire(2))
    assert "left over" not in old.systemd.kept
    assert "worker wire/0" in old.systemd.kept


# ---- a state that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"format": 99}, {"format": None}, {"interfaces": [{}]}, {"interfaces": None, "workers": []}],
)
def test_a_state_that_cannot_be_read_starts_everything_anew(
    old: Reign, tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    changed(tmp_path, **changes)
    new = Reign(old.systemd)
    taken = new.take(wire(2))
    assert (taken.interfaces, taken.workers) == ((), ())
    (line,) = caplog.messages
    assert line.startswith("the last supervisor's state cannot be read, all is started anew: ")
    assert old.systemd.kept == {}


def test_another_format_is_named(old: Reign, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed(tmp_path, format=99)
    Reign(old.systemd).take(wire(2))
    assert "state file of format 99; this xskd reads 1" in caplog.text


def test_what_was_taken_before_the_state_made_no_sense_stays_taken(old: Reign, tmp_path: Path) -> None:
    saved = json.loads((tmp_path / "state.json").read_text())
    del saved["workers"][1]["restarts"]
    changed(tmp_path, workers=saved["workers"])
    new = Reign(old.systemd)
    taken = new.take(wire(2))
    assert [worker.name for worker in taken.workers] == ["wire/0"]  # else a second process would start there
    assert [interface.name for interface in taken.interfaces] == ["eth1", "eth2"]
    assert list(new.crew.slots) == ["wire/0"]


# ---- the configuration that ran -------------------------------------------------------------------


def test_the_last_configuration_is_that_of_the_predecessor(old: Reign) -> None:
    assert inheritance.last_config(Store()) == ("/etc/x.yaml", CONFIG.text)
    assert config.parse(CONFIG.text, "/etc/x.yaml").model_dump() == CONFIG.model_dump()


def test_who_inherits_nothing_has_no_last_configuration(old: Reign) -> None:
    for name in list(old.systemd.kept):
        old.store.drop(name)
    assert inheritance.last_config(Store()) is None


@pytest.mark.parametrize("saved", [None, 17, {}, {"file": "x"}, []])
def test_a_last_configuration_that_makes_no_sense_is_none(old: Reign, tmp_path: Path, saved: Any) -> None:
    changed(tmp_path, config=saved)
    assert inheritance.last_config(Store()) is None


def test_the_state_is_written_only_when_it_has_changed(old: Reign, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    text = inheritance.save(old.store, CONFIG, old.programs, old.crew, "")
    file.unlink()
    assert inheritance.save(old.store, CONFIG, old.programs, old.crew, text) == text
    assert not file.exists()
    old.crew.slots["wire/0"].restarts["SIGKILL"] += 1
    assert inheritance.save(old.store, CONFIG, old.programs, old.crew, text) != text
    assert json.loads(file.read_text())["workers"][0]["restarts"] == {"SIGKILL": 1}


# ---- strays ---------------------------------------------------------------------------------------


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, int]]:
    """What would have been killed of a unit with this process, two workers and a stranger."""
    root = tmp_path / "root"
    for pid, command in ((os.getpid(), "xskd.worker"), (501, "-m xskd.worker 5"), (502, "sh"), (503, "xskd.worker")):  # fmt: skip  # noqa: E501
        (root / f"proc/{pid}").mkdir(parents=True)
        (root / f"proc/{pid}/cmdline").write_text(command.replace(" ", "\0"))
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text("0::/system.slice/xskd.service\n")
    group = root / "sys/fs/cgroup/system.slice/xskd.service"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n501\n502\n503\n")
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: done.append((pid, number)))
    monkeypatch.setattr(inheritance, "Path", lambda name: root / str(name).lstrip("/"))
    return done


def test_workers_of_an_earlier_run_are_killed_where_nothing_was_handed_down(
    systemd: FakeSystemd, killed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inheritance, "_end_strays", real_end_strays)
    Reign(systemd).take(wire(2))
    assert killed == [(501, signal.SIGKILL), (503, signal.SIGKILL)]


def test_nobody_is_killed_where_something_was_inherited(
    old: Reign, killed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inheritance, "_end_strays", real_end_strays)
    Reign(old.systemd).take(wire(2))
    assert killed == []


def test_nobody_is_killed_without_systemd(
    systemd: FakeSystemd, killed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inheritance, "_end_strays", real_end_strays)
    monkeypatch.delenv("NOTIFY_SOCKET")
    Reign(systemd).take(wire(2))
    assert killed == []
