"""When an express lane is open, what is told of it, and which programs hear of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeProgram, connect, device, installed, outlook, resting
from test_captures import QUESTION, rings_close_at_once

from xskd.captures import Capture
from xskd.daemon import Supervisor
from xskd.errors import XskdError
from xskd.features import Features
from xskd.lanes import Lane, decide
from xskd.plan import InterfacePlan
from xskd.rules import Rule, RuleSet

__all__ = ["rings_close_at_once"]
ABLE = Features(frozenset({"basic", "redirect", "ndo-xmit", "ndo-xmit-sg"}), 0)
LESS = Features(frozenset({"basic", "redirect", "ndo-xmit"}), 0)
UNABLE = Features(frozenset({"basic", "redirect"}), 0)
WELL: dict[str, Any] = {"wanted": True, "features": [ABLE, ABLE], "modes": ["copy"] * 4, "captured": False}
EXPRESS = RuleSet(default="express")


# ---- decided --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "states"),
    [
        ({}, ["open", "open"]),
        ({"wanted": False}, ["off", "off"]),
        ({"features": [ABLE, UNABLE]}, ["open", "unsupported"]),
        ({"features": [None, ABLE]}, ["unsupported", "open"]),
        ({"modes": ["copy", "zerocopy"]}, ["zerocopy", "zerocopy"]),
        ({"modes": ["copy", None]}, ["waiting", "waiting"]),
        ({"modes": []}, ["waiting", "waiting"]),
        ({"captured": True}, ["capture", "capture"]),
        ({"captured": True, "modes": [None, "zerocopy"]}, ["zerocopy", "zerocopy"]),
        ({"captured": True, "modes": [None]}, ["waiting", "waiting"]),
        ({"features": [UNABLE, ABLE], "modes": ["zerocopy"]}, ["unsupported", "zerocopy"]),
        ({"wanted": False, "features": [UNABLE, UNABLE]}, ["off", "off"]),
    ],
)
def test_a_lane_is_open_only_where_all_is_well(change: dict[str, Any], states: list[str]) -> None:
    assert [lane.state for lane in decide(**WELL | change)] == states


def test_several_buffers_are_another_thing_that_a_driver_can_or_cannot() -> None:
    assert decide(**WELL | {"features": [ABLE, LESS]}) == (Lane("open", True), Lane("open", False))


# ---- done -----------------------------------------------------------------------------------------


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """Make a path whose default is express, its programs attached, its two workers bound."""
    with installed(monkeypatch):
        devices = [device(name, queues=2, features=ABLE) for name in ("eth1", "eth2")]
        made = resting(connect(), *devices)
        for plan in made.plan.interfaces:
            made.programs.attach(replace(plan, rules=EXPRESS))
        for slot in made.crew.slots.values():
            slot.bound(["copy", "copy"])
        yield made


def lanes(supervisor: Supervisor) -> list[str]:
    supervisor.lanes.review()
    return [supervisor.lanes.of(name) for name in ("eth1", "eth2")]


def opened() -> list[tuple[set[int], set[int]]]:
    return [program.lanes for _, program in sorted(FakeProgram.on.items())]


def has(supervisor: Supervisor, name: str, features: Features) -> None:
    supervisor.devices = {**supervisor.devices, name: device(name, queues=2, features=features)}


def test_each_program_hears_of_all_lanes_of_its_path_and_once(supervisor: Supervisor) -> None:
    has(supervisor, "eth2", LESS)
    assert lanes(supervisor) == ["open", "open"]
    assert opened() == [({0, 1}, {0})] * 2
    said = [list(program.said) for program in FakeProgram.on.values()]
    assert lanes(supervisor) == ["open", "open"]
    assert [program.said for program in FakeProgram.on.values()] == said


def test_a_lane_closes_when_its_driver_cannot_any_more(supervisor: Supervisor) -> None:
    lanes(supervisor)
    has(supervisor, "eth1", UNABLE)
    assert lanes(supervisor) == ["unsupported", "open"]
    assert opened() == [({1}, {1})] * 2


def test_a_worker_without_bound_sockets_closes_the_lanes_and_a_parked_one_does_not(
    supervisor: Supervisor,
) -> None:
    slot = supervisor.crew.slots["wire/1"]
    slot.discard_sockets()
    assert lanes(supervisor) == ["waiting", "waiting"]
    slot.enter("waiting")  # its queue is not there any more: nothing comes in on it either
    assert lanes(supervisor) == ["open", "open"]


def test_a_death_whose_sockets_are_adopted_leaves_the_lanes_open(supervisor: Supervisor) -> None:
    supervisor.crew.slots["wire/1"].enter("starting")
    assert lanes(supervisor) == ["open", "open"]


def test_one_rule_that_says_express_is_enough_and_none_is_not(supervisor: Supervisor) -> None:
    plans = supervisor.programs.plans
    for name, rules in (
        ("eth1", RuleSet((Rule("a", "drop", vlan=((1, 1),)),))),
        ("eth2", RuleSet((Rule("a", "express", vlan=((1, 1),)),))),
    ):
        plans[name] = replace(plans[name], rules=rules)
    assert lanes(supervisor) == ["open", "open"]
    plans["eth2"] = replace(plans["eth2"], rules=RuleSet())
    assert lanes(supervisor) == ["off", "off"]
    assert opened() == [(set(), set())] * 2


def test_an_interface_without_a_program_has_no_lane(supervisor: Supervisor) -> None:
    lanes(supervisor)
    supervisor.programs.detach("eth2")
    assert lanes(supervisor) == ["open", "waiting"]


def test_what_the_kernel_refuses_is_told_once_and_tried_again(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    FakeProgram.frozen = {"open_lanes"}
    with caplog.at_level(logging.ERROR, "xskd"):
        lanes(supervisor)
        lanes(supervisor)
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == ["eth1", "eth2"]
    assert opened() == [(set(), set())] * 2
    FakeProgram.frozen = set()
    lanes(supervisor)
    assert opened() == [({0, 1}, {0, 1})] * 2


def test_every_change_is_logged_with_its_reason(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "xskd"):
        for features in (ABLE, ABLE, UNABLE):
            has(supervisor, "eth2", features)
            lanes(supervisor)
    told = [(record.levelname, record.getMessage().split(" (")[0]) for record in caplog.records]
    assert told == [
        ("INFO", "eth1: express lane open: express packets leave by it"),
        ("INFO", "eth2: express lane open: express packets leave by it"),
        ("WARNING", "eth2: express lane closed: the driver takes no redirected frames"),
    ]


def test_a_path_that_asks_for_none_hears_of_none(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    plans = supervisor.programs.plans
    supervisor.programs.plans = {name: replace(plan, rules=RuleSet()) for name, plan in plans.items()}
    with caplog.at_level(logging.DEBUG, "xskd"):
        assert lanes(supervisor) == ["off", "off"]
    assert caplog.records == []


# ---- captures -------------------------------------------------------------------------------------


def test_a_capture_closes_the_lanes_before_anybody_is_told_and_its_end_opens_them(
    supervisor: Supervisor,
) -> None:
    seen: list[list[str]] = []

    async def scene() -> None:
        captures = supervisor.crew.captures
        for slot in supervisor.crew.slots.values():
            slot.process = Telling(lambda: seen.append(lanes_now(supervisor)))  # type: ignore[assignment]
        task = asyncio.ensure_future(captures.begin(QUESTION | {"queue": 1}))
        while not captures.paths:
            await asyncio.sleep(0)
        captures.heard(supervisor.crew.slots["wire/1"], None)
        capture: Capture = await task
        assert captures.paths == {"wire"}
        captures.end(capture)
        assert captures.paths == set()
        supervisor.crew.slots["wire/1"].process = None

    assert lanes(supervisor) == ["open", "open"]
    asyncio.run(scene())
    assert seen[0] == ["capture", "capture"]  # one worker of the path is enough
    assert lanes_now(supervisor) == ["open", "open"]
    assert opened() == [({0, 1}, {0, 1})] * 2


def test_a_capture_that_cannot_begin_leaves_the_lanes_open(supervisor: Supervisor) -> None:
    async def scene() -> None:
        slot = supervisor.crew.slots["wire/1"]
        slot.process = Telling(lambda: supervisor.crew.captures.heard(slot, "no memory"))  # type: ignore[assignment]
        with pytest.raises(XskdError, match="no memory"):
            await supervisor.crew.captures.begin(QUESTION | {"queue": 1})
        slot.process = None

    asyncio.run(scene())
    assert lanes_now(supervisor) == ["open", "open"]


class Telling:
    """A worker's process that only hears."""

    order: object = None
    pid = 1

    def __init__(self, told: Any) -> None:
        self._told = told

    def tell(self, verb: str, **_: Any) -> None:
        self._told()


def lanes_now(supervisor: Supervisor) -> list[str]:
    """Without a look of ours."""
    return [supervisor.lanes.of(name) for name in ("eth1", "eth2")]


def test_an_interface_plan_says_express_by_rule_or_default() -> None:
    (plan, _) = outlook(connect(), device("eth1"), device("eth2")).plan.interfaces
    assert isinstance(plan, InterfacePlan)
    assert not plan.says_express
    assert replace(plan, rules=EXPRESS).says_express
    assert replace(plan, rules=RuleSet((Rule("a", "express"),))).says_express
