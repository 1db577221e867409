"""What a program is told and when, and whose counts are whose: over rules, programs and supervisors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeProgram, connect, device, installed, plan

from xskd import compiled
from xskd.errors import XdpError
from xskd.plan import InterfacePlan
from xskd.programs import Programs, settings
from xskd.rules import Limit, Rule, RuleSet
from xskd.store import Store
from xskd.xdp import RuleTally

WEB = Rule("web", "drop", destination_port=((80, 80),))
DNS = Rule("dns", "pass", destination_port=((53, 53),))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    monkeypatch.setattr(compiled, "compile_rules", lambda rules, queues: f"{rules} {queues}".encode())
    with installed(monkeypatch):
        yield Programs(Store())


def eth1(rules: RuleSet | None = None, **changes: Any) -> InterfacePlan:
    made = plan(connect(), device("eth1"), device("eth2")).interfaces[0]
    return replace(made, rules=rules or RuleSet(), **changes)


def rules(*given: Rule, **more: Any) -> RuleSet:
    return RuleSet(given, **more)


def program() -> FakeProgram:
    return FakeProgram.on["eth1"]


def tallies(*packets: int) -> tuple[RuleTally, ...]:
    return tuple(RuleTally(each, 100 * each, 0) for each in packets)


def counted(programs: Programs) -> dict[str, int]:
    return {label: tally.packets for label, tally in programs.rule_tallies("eth1").items()}


# ---- told -----------------------------------------------------------------------------------------


def test_settings_and_rules_are_there_before_the_program_sees_a_packet(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProgram, "attach", attached := Attached(FakeProgram.attach))
    programs.attach(eth1(rules(WEB)))
    assert attached.before == ["configure", "install"]
    assert program().settings == settings(eth1())
    assert program().image == compiled.image(rules(WEB), 1)


class Attached:
    """What a program had been told when it was attached."""

    before: list[str]

    def __init__(self, attach: Any) -> None:
        self._attach = attach

    def __get__(self, made: FakeProgram, _: object) -> Any:
        def attach(*args: Any, **more: Any) -> None:
            self.before = list(made.said)
            self._attach(made, *args, **more)

        return attach


def test_a_program_that_cannot_have_its_rules_is_not_attached(programs: Programs) -> None:
    FakeProgram.frozen = {"install"}
    with pytest.raises(XdpError, match="install"):
        programs.attach(eth1(rules(WEB)))
    assert (FakeProgram.on, programs.by_name, programs.rule_tallies("eth1")) == ({}, {}, {})


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (rules(), rules(WEB, default="drop"), ["install", "configure"]),
        (rules(WEB), rules(default="drop"), ["configure", "install"]),
        (rules(), rules(default="drop"), ["configure", "install"]),
        (rules(WEB), rules(DNS), ["install", "configure"]),
    ],
)
def test_the_answer_without_rules_changes_only_while_it_is_nobodys(
    programs: Programs, before: RuleSet, after: RuleSet, said: list[str]
) -> None:
    """Else a packet might meet the new default and not yet the new rules."""
    programs.attach(eth1(before))
    program().said.clear()
    programs.set_rules(eth1(after))
    assert program().said == said
    assert program().image == compiled.image(after, 1)
    made = program().settings
    assert made is not None and made.answer == after.default


def test_another_address_leaves_the_rules_where_they_are(programs: Programs) -> None:
    programs.attach(eth1(rules(WEB)))
    program().said.clear()
    programs.set_rules(eth1(rules(WEB), mac="02:00:00:00:00:09"))
    assert program().said == ["configure"]
    made = program().settings
    assert made is not None and made.mac == bytes.fromhex("020000000009")


def test_more_queues_share_the_limits_anew(programs: Programs) -> None:
    limited = rules(limit=Limit(1000))
    programs.attach(eth1(limited, shares=2))
    programs.set_rules(eth1(limited, shares=3))
    assert program().image == compiled.image(limited, 3) != compiled.image(limited, 2)


def test_lanes_whose_numbers_mean_other_interfaces_are_told_anew(programs: Programs) -> None:
    programs.attach(eth1())
    lanes = frozenset({1}), frozenset[int]()
    programs.open_lanes("eth1", *lanes)
    programs.set_rules(eth1(members=(11, 13)))
    assert program().lanes == (set(), set())
    programs.open_lanes("eth1", *lanes)
    assert program().lanes == ({1}, set())


@pytest.mark.parametrize("refused", ["configure", "install"])
def test_what_the_kernel_refuses_is_not_taken_for_done(programs: Programs, refused: str) -> None:
    programs.attach(eth1(fallback="drop"))
    FakeProgram.frozen = {refused}
    with pytest.raises(XdpError, match=refused):
        programs.set_rules(eth1(rules(WEB)))
    assert programs.plans["eth1"] == eth1(fallback="drop")


def test_fallback_and_rules_are_kept_apart(programs: Programs) -> None:
    programs.attach(eth1())
    programs.set_rules(eth1(rules(WEB), fallback="drop"))
    assert programs.plans["eth1"] == eth1(rules(WEB))
    programs.set_fallback(eth1(rules(DNS), fallback="drop"))
    assert programs.plans["eth1"] == eth1(rules(WEB), fallback="drop")


@pytest.mark.parametrize(("mac", "told"), [("", bytes(6)), ("02:00:00:00:00:09:0a:0b", b"\x02\0\0\0\0\x09")])
def test_a_device_may_have_no_address_or_a_longer_one(mac: str, told: bytes) -> None:
    assert settings(eth1(mac=mac)).mac == told


# ---- counted --------------------------------------------------------------------------------------


def test_a_rule_counts_on_under_its_name_wherever_it_stands(programs: Programs) -> None:
    programs.attach(eth1(rules(WEB, DNS)))
    program().tallies = tallies(5, 7, 9)
    assert list(counted(programs).items()) == [("web", 5), ("dns", 7), ("default", 9)]
    programs.set_rules(eth1(rules(DNS)))
    program().tallies = tallies(1, 2)
    assert list(counted(programs).items()) == [("dns", 8), ("default", 11)]
    programs.set_rules(eth1(rules(DNS, WEB)))
    program().tallies = tallies(0, 1, 0)
    assert list(counted(programs).items()) == [("dns", 8), ("web", 6), ("default", 11)]
    assert programs.rule_tallies("eth1")["web"].bytes == 600


def test_an_interface_without_rules_has_no_counts_and_forgets_none(programs: Programs) -> None:
    programs.attach(eth1(rules(WEB)))
    program().tallies = tallies(5, 9)
    programs.set_rules(eth1())
    assert counted(programs) == {}
    programs.set_rules(eth1(rules(WEB)))
    program().tallies = tallies(0, 0)
    assert counted(programs) == {"web": 5, "default": 9}


def test_a_rule_counts_on_in_another_program(programs: Programs) -> None:
    programs.attach(eth1(rules(WEB)))
    program().tallies = tallies(5, 9)
    programs.detach("eth1")
    assert programs.rule_tallies("eth1") == {}
    programs.attach(eth1(rules(WEB)))
    program().tallies = tallies(1, 1)
    assert counted(programs) == {"web": 6, "default": 10}


def test_counts_of_rules_that_nobody_knows_are_nobodys(programs: Programs) -> None:
    """As when a supervisor has died between rules that were installed and its record of them."""
    programs.attach(eth1(rules(WEB)))
    program().tallies = tallies(5, 6, 7, 8)
    assert counted(programs) == {}
    programs.set_rules(eth1(rules(DNS)))
    program().tallies = tallies(0, 0)
    assert counted(programs) == {"dns": 0, "default": 0}
