"""From one plan to another: exactly what has changed is done, and said in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fakes import connect, device, plan, wire
from hypothesis import given
from hypothesis import strategies as st

from xskd.difference import Difference, difference, same_answers, same_hook, same_sockets
from xskd.features import Features
from xskd.plan import InterfacePlan, Plan, PortPlan, WaitingPath, WorkerPlan
from xskd.rules import Limit, Rule, RuleSet
from xskd.uapi import Rings

OLD = wire(2)
W0, W1 = OLD.workers
E1, E2 = OLD.interfaces
NOTHING = Difference((), (), (), (), (), (), (), (), ())


def port(worker: WorkerPlan, **changes: Any) -> WorkerPlan:
    """The worker with another first port."""
    return replace(worker, ports=(replace(worker.ports[0], **changes), *worker.ports[1:]))


def workers(*of: WorkerPlan) -> Plan:
    return replace(OLD, workers=of)


def interfaces(*of: InterfacePlan) -> Plan:
    return replace(OLD, interfaces=of)


# ---- nothing --------------------------------------------------------------------------------------


def test_a_plan_and_itself_made_again_differ_in_nothing() -> None:
    assert difference(OLD, wire(2)) == NOTHING
    assert list(difference(OLD, wire(2))) == []


def test_who_waits_and_why_is_no_action() -> None:
    waiting = replace(OLD, waiting=(WaitingPath("echo", ()),))
    assert difference(OLD, waiting) == NOTHING == difference(waiting, OLD)


def test_the_order_of_workers_and_interfaces_is_no_change() -> None:
    assert difference(OLD, replace(OLD, workers=(W1, W0), interfaces=(E2, E1))) == NOTHING


# ---- workers --------------------------------------------------------------------------------------


def test_a_worker_more_is_started_and_one_less_is_stopped() -> None:
    assert difference(workers(W0), OLD) == replace(NOTHING, start=(W1,))
    assert list(difference(workers(W0), OLD)) == ["wire/1: start"]
    assert difference(OLD, workers(W1)) == replace(NOTHING, stop=(W0,))
    assert list(difference(OLD, workers(W1))) == ["wire/0: stop"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (replace(W0, cpu=7), "CPU 7"),
        (replace(W0, cpu=None), "CPU any"),
        (replace(W0, poll="busy"), "poll busy"),
        (port(W0, mtu=9000), "MTU of eth1 9000"),
        (port(replace(W0, cpu=7, poll="wakeup"), mtu=9), "CPU 7, poll wakeup, MTU of eth1 9"),
    ],
)
def test_what_a_worker_can_change_by_itself_is_tuned(changed: WorkerPlan, words: str) -> None:
    found = difference(OLD, workers(changed, W1))
    assert found == replace(NOTHING, tune=((W0, changed),))
    assert list(found) == [f"wire/0: {words}"]


@pytest.mark.parametrize(
    "changed",
    [
        port(W0, queue=5),
        port(W0, ifindex=99),
        port(W0, interface="eth7"),
        port(W0, mode="copy"),
        port(W0, rings=Rings(rx=64)),
        replace(W0, frames=4096),
        replace(W0, frame_size=2048),
        replace(W0, huge_pages=True),
        replace(W0, kind="reflect", ports=W0.ports[:1]),
        port(replace(W0, cpu=7), queue=5),
    ],
)
def test_what_is_in_the_kernel_asks_for_new_sockets(changed: WorkerPlan) -> None:
    found = difference(OLD, workers(changed, W1))
    assert found == replace(NOTHING, rebuild=(changed,))
    assert list(found) == ["wire/0: new sockets"]


def test_each_field_of_a_plan_is_either_tuned_or_asks_for_new_sockets() -> None:
    """So that nobody adds one and forgets to say here what its change means."""
    tuned = {"cpu", "poll"}
    named = {"path", "index"}  # they are the worker's name
    for field in {field.name for field in fields(WorkerPlan)} - named - {"ports"}:
        other: dict[str, Any] = {field: "other"}
        assert same_sockets(W0, replace(W0, **other)) == (field in tuned), field
    for field in {field.name for field in fields(PortPlan)}:
        assert same_sockets(W0, port(W0, **{field: "other"})) == (field == "mtu"), field


# ---- interfaces -----------------------------------------------------------------------------------


def test_an_interface_more_is_attached_and_one_less_is_detached() -> None:
    assert difference(interfaces(E1), OLD) == replace(NOTHING, attach=(E2,))
    assert list(difference(interfaces(E1), OLD)) == ["eth2: attach the XDP program"]
    assert difference(OLD, interfaces(E2)) == replace(NOTHING, detach=(E1,))
    assert list(difference(OLD, interfaces(E2))) == ["eth1: detach the XDP program"]


@pytest.mark.parametrize("change", [{"ifindex": 99}, {"attach": "generic"}, {"queues": 3}])
def test_a_program_that_cannot_serve_is_detached_and_a_new_one_attached(change: dict[str, Any]) -> None:
    new = replace(E1, fallback="drop", **change)
    found = difference(OLD, interfaces(new, E2))
    assert found == replace(NOTHING, detach=(E1,), attach=(new,))  # which has the new fallback, too
    assert list(found) == ["eth1: detach the XDP program", "eth1: attach the XDP program"]


def test_a_program_with_too_many_entries_can_serve() -> None:
    assert same_hook(E1, replace(E1, queues=1))
    assert difference(OLD, interfaces(replace(E1, queues=1), E2)) == NOTHING


def test_another_fallback_leaves_the_program_where_it_is() -> None:
    new = replace(E1, fallback="drop")
    found = difference(OLD, interfaces(new, E2))
    assert found == replace(NOTHING, fallback=(new,))
    assert list(found) == ["eth1: fallback drop"]


RULES = RuleSet((Rule("dns", "drop", protocol=((17, 17),)),))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rules": RULES}, "1 rule, default redirect"),
        ({"rules": RuleSet(default="drop")}, "0 rules, default drop"),
        (
            {"rules": RuleSet(limit=Limit(1000)), "shares": 2},
            "0 rules, default redirect, path 1000 packets/s, burst 50 ms",
        ),
        ({"shares": 3}, "limits shared by 3 queues"),
        ({"mac": "02:00:00:00:00:09"}, "MAC address 02:00:00:00:00:09"),
        ({"members": (11, 13)}, "other interfaces in its path"),
        ({"own": 1}, "other interfaces in its path"),
        ({"path": "lan"}, "path lan (connect)"),
        ({"kind": "reflect", "members": (11,)}, "path wire (reflect)"),
        ({"express": "off"}, "express off"),
        ({"express": "auto", "rules": RuleSet(default="express")}, "0 rules, default express"),
        (
            {"rules": RULES, "mac": "02:00:00:00:00:09"},
            "1 rule, default redirect, MAC address 02:00:00:00:00:09",
        ),
    ],
)
def test_other_rules_or_surroundings_touch_the_program_only(change: dict[str, Any], words: str) -> None:
    new = replace(E1, **change)
    found = difference(OLD, interfaces(new, E2))
    assert found == replace(NOTHING, rules=((E1, new),))
    assert list(found) == [f"eth1: {words}"]


def test_rules_and_fallback_are_two_things() -> None:
    new = replace(E1, fallback="drop", rules=RULES)
    found = difference(OLD, interfaces(new, E2))
    assert found == replace(NOTHING, fallback=(new,), rules=((E1, new),))
    assert list(found) == ["eth1: fallback drop", "eth1: 1 rule, default redirect"]


def test_a_program_that_is_attached_anew_gets_its_rules_with_it() -> None:
    new = replace(E1, ifindex=99, rules=RULES)
    assert difference(OLD, interfaces(new, E2)) == replace(NOTHING, detach=(E1,), attach=(new,))


def test_each_field_of_an_interface_asks_for_something() -> None:
    hook, elsewhere = {"ifindex", "attach"}, {"name", "queues", "fallback"}
    for field in {field.name for field in fields(InterfacePlan)} - elsewhere:
        other: dict[str, Any] = {field: "other"}
        assert same_hook(E1, replace(E1, **other)) == (field not in hook), field
        assert not same_answers(E1, replace(E1, **other)), field


# ---- what is around them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics_listen": None}, ["metrics.listen: off"]),
        ({"metrics_listen": ("::1", 80)}, ["metrics.listen: ::1:80"]),
        ({"log_level": "debug"}, ["log.level: debug"]),
        ({"control_socket": Path("/x")}, ["control.socket: /x, with the next restart"]),
        (
            {"metrics_listen": None, "log_level": "error", "control_socket": Path("/x")},
            ["metrics.listen: off", "log.level: error", "control.socket: /x, with the next restart"],
        ),
    ],
)
def test_settings_are_words_at_once(change: dict[str, Any], words: list[str]) -> None:
    found = difference(OLD, replace(OLD, **change))
    assert found == replace(NOTHING, settings=tuple(words))
    assert list(found) == words


def test_the_words_come_in_the_order_of_the_actions() -> None:
    new = Plan(
        interfaces=(replace(E1, fallback="drop"), replace(E2, name="eth3")),
        workers=(port(W0, queue=5), replace(W1, index=2)),
        waiting=(),
        metrics_listen=None,
        control_socket=OLD.control_socket,
        control_group=None,
        log_level=OLD.log_level,
    )
    assert list(difference(OLD, new)) == [
        "eth2: detach the XDP program",
        "eth3: attach the XDP program",
        "eth1: fallback drop",
        "wire/1: stop",
        "wire/0: new sockets",
        "wire/2: start",
        "metrics.listen: off",
    ]


def test_a_file_that_changes_one_word_changes_one_thing() -> None:
    both = device("eth1", queues=2), device("eth2", queues=2)
    busy = plan(connect(path=", poll: busy, cpus: [0, 1]"), *both)
    assert list(difference(OLD, busy)) == ["wire/0: poll busy", "wire/1: poll busy"]


# ---- every pair of plans --------------------------------------------------------------------------

PORTS = st.builds(
    PortPlan,
    interface=st.sampled_from(["eth1", "eth2"]),
    ifindex=st.integers(1, 2),
    queue=st.integers(0, 1),
    mode=st.sampled_from(["auto", "copy"]),
    rings=st.sampled_from([Rings(), Rings(rx=64)]),
    mtu=st.sampled_from([1500, 9000]),
)
WORKERS = st.builds(
    WorkerPlan,
    path=st.sampled_from(["a", "b"]),
    index=st.integers(0, 2),
    kind=st.just("connect"),
    ports=st.tuples(PORTS, PORTS),
    frames=st.sampled_from([64, 128]),
    frame_size=st.just(2048),
    huge_pages=st.booleans(),
    poll=st.sampled_from(["adaptive", "busy"]),
    cpu=st.sampled_from([None, 0, 1]),
)
INTERFACES = st.builds(
    InterfacePlan,
    name=st.sampled_from(["eth1", "eth2", "eth3"]),
    ifindex=st.integers(1, 2),
    queues=st.just(4),
    attach=st.sampled_from(["auto", "generic"]),
    fallback=st.sampled_from(["pass", "drop"]),
    path=st.just("a"),
    mac=st.sampled_from(["", "02:00:00:00:00:01"]),
    rules=st.sampled_from([RuleSet(), RULES]),
)
PLANS = st.builds(
    Plan,
    interfaces=st.lists(INTERFACES, unique_by=lambda i: i.name).map(tuple),
    workers=st.lists(WORKERS, unique_by=lambda w: w.name).map(tuple),
    waiting=st.just(()),
    metrics_listen=st.sampled_from([None, ("::1", 80)]),
    control_socket=st.just(Path("/x")),
    control_group=st.none(),
    log_level=st.sampled_from(["info", "debug"]),
)

T = TypeVar("T", InterfacePlan, WorkerPlan)


def applied(old: tuple[T, ...], gone: tuple[T, ...], come: tuple[T, ...], key: Callable[[T], str]) -> set[T]:
    left: dict[str, T] = {key(one): one for one in old}
    for one in gone:
        assert left.pop(key(one)) == one  # exactly what is there ends
    left.update({key(one): one for one in come})
    return set(left.values())


@given(old=PLANS, new=PLANS)
def test_the_difference_applied_to_the_old_plan_gives_the_new_one(old: Plan, new: Plan) -> None:
    steps = difference(old, new)
    tuned = tuple(after for _, after in steps.tune)
    assert applied(old.workers, steps.stop, (*steps.rebuild, *tuned, *steps.start), lambda w: w.name) == {
        *new.workers
    }
    changed = tuple(after for _, after in steps.rules)
    assert applied(
        old.interfaces, steps.detach, (*steps.attach, *steps.fallback, *changed), lambda i: i.name
    ) == {*new.interfaces}
    assert bool(steps.settings) == (
        (old.metrics_listen, old.log_level) != (new.metrics_listen, new.log_level)
    )


@given(old=PLANS, new=PLANS)
def test_nobody_is_in_two_lists_and_nobody_unchanged_is_in_any(old: Plan, new: Plan) -> None:
    steps = difference(old, new)
    touched = [*steps.stop, *steps.rebuild, *(after for _, after in steps.tune), *steps.start]
    assert len({worker.name for worker in touched}) == len(touched)
    assert not set(touched) & (set(old.workers) & set(new.workers))
    for other in (steps.fallback, tuple(after for _, after in steps.rules)):
        hooks = [*steps.attach, *other]
        assert len({one.name for one in hooks}) == len(hooks)
        assert not {*hooks} & (set(old.interfaces) & set(new.interfaces))
    hooks = [*steps.attach, *steps.fallback]
    assert not {*hooks, *steps.detach} & (set(old.interfaces) & set(new.interfaces))
    assert all(before.name == after.name and before != after for before, after in steps.tune)


def test_an_mtu_that_takes_several_frames_needs_new_sockets_and_another_such_does_not() -> None:
    able = Features(frozenset({"rx-sg"}), 0)

    def at(mtu: int) -> Plan:
        return plan(connect(), device("eth1", mtu=mtu, features=able), device("eth2", features=able))

    assert list(difference(at(1500), at(3818))) == ["wire/0: MTU of eth1 3818"]
    assert list(difference(at(1500), at(9000))) == ["wire/0: new sockets"]
    assert list(difference(at(9000), at(8000))) == ["wire/0: MTU of eth1 8000"]
    assert list(difference(at(8000), at(1500))) == ["wire/0: new sockets"]
