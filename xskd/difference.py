"""From one plan to another: what has to be done, and nothing else.

A reload, a link that comes or goes and a daemon that takes over from its predecessor are the same question:
this runs, that should; what is different? The answer is a Difference, which daemon.py carries out. A worker
that is in none of its lists is left alone: same process, same sockets, not one packet lost. Pure, like
plan.py: nothing here asks the kernel or keeps state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from xskd.plan import InterfacePlan, Plan, WorkerPlan, counted

T = TypeVar("T", InterfacePlan, WorkerPlan)


@dataclass(frozen=True)
class Difference:
    """What to do, in this order; plans are the new ones, except where something ends.

    `detach` and `attach`: programs (an interface in both gets a new one). `fallback`: another answer of a
    program that stays. `rules`: other rules or surroundings of one that stays, which touches no socket and no
    worker; an interface may be in both. `stop`: workers that end. `rebuild`: workers that need new sockets.
    `tune`: workers that keep theirs and change how they work. `start`: new workers. `settings`: what changes
    around them.
    """

    detach: tuple[InterfacePlan, ...]
    attach: tuple[InterfacePlan, ...]
    fallback: tuple[InterfacePlan, ...]
    rules: tuple[tuple[InterfacePlan, InterfacePlan], ...]  # from, to
    stop: tuple[WorkerPlan, ...]
    rebuild: tuple[WorkerPlan, ...]
    tune: tuple[tuple[WorkerPlan, WorkerPlan], ...]  # from, to
    start: tuple[WorkerPlan, ...]
    settings: tuple[str, ...]

    def __iter__(self) -> Iterator[str]:
        """The actions in words, one line each."""
        yield from (f"{i.name}: detach the XDP program" for i in self.detach)
        yield from (f"{i.name}: attach the XDP program" for i in self.attach)
        yield from (f"{i.name}: fallback {i.fallback}" for i in self.fallback)
        yield from (f"{new.name}: {_answers(old, new)}" for old, new in self.rules)
        yield from (f"{w.name}: stop" for w in self.stop)
        yield from (f"{w.name}: new sockets" for w in self.rebuild)
        yield from (f"{new.name}: {_tuning(old, new)}" for old, new in self.tune)
        yield from (f"{w.name}: start" for w in self.start)
        yield from self.settings


def difference(old: Plan, new: Plan) -> Difference:
    """What leads from `old`, which runs, to `new`."""
    stop, start, workers = _sorted_out(old.workers, new.workers, lambda worker: worker.name)
    detach, attach, interfaces = _sorted_out(old.interfaces, new.interfaces, lambda member: member.name)
    hooked = [(before, after) for before, after in interfaces if not same_hook(before, after)]
    return Difference(
        detach=(*detach, *(before for before, _ in hooked)),
        attach=(*attach, *(after for _, after in hooked)),
        fallback=tuple(
            after
            for before, after in interfaces
            if same_hook(before, after) and before.fallback != after.fallback
        ),
        rules=tuple(
            (before, after)
            for before, after in interfaces
            if same_hook(before, after) and not same_answers(before, after)
        ),
        stop=stop,
        rebuild=tuple(after for before, after in workers if not same_sockets(before, after)),
        tune=tuple(
            (before, after) for before, after in workers if before != after and same_sockets(before, after)
        ),
        start=start,
        settings=tuple(_settings(old, new)),
    )


def same_sockets(old: WorkerPlan, new: WorkerPlan) -> bool:
    """Can sockets and packet memory that were made for one plan serve the other?"""
    return _sockets(old) == _sockets(new)


def _sockets(plan: WorkerPlan) -> WorkerPlan:
    """The plan with everything made equal that a worker can change without its kernel noticing."""
    ports = tuple(replace(port, mtu=0) for port in plan.ports)
    return replace(plan, ports=ports, poll="adaptive", cpu=None)


def same_hook(old: InterfacePlan, new: InterfacePlan) -> bool:
    """Can a program that was attached for one plan serve the other?"""
    return (old.ifindex, old.attach) == (new.ifindex, new.attach) and old.queues >= new.queues


def same_answers(old: InterfacePlan, new: InterfacePlan) -> bool:
    """Does a program do the same with every packet under both, whatever becomes of one without a socket?"""
    return old == replace(new, queues=old.queues, fallback=old.fallback)


def _sorted_out(
    old: Iterable[T], new: Iterable[T], key: Callable[[T], str]
) -> tuple[tuple[T, ...], tuple[T, ...], list[tuple[T, T]]]:
    """Those that are only in `old`, only in `new`, and the pairs that are in both."""
    before, after = {key(one): one for one in old}, {key(one): one for one in new}
    return (
        tuple(one for name, one in before.items() if name not in after),
        tuple(one for name, one in after.items() if name not in before),
        [(one, after[name]) for name, one in before.items() if name in after],
    )


def _tuning(old: WorkerPlan, new: WorkerPlan) -> str:
    changes = [
        f"{what} {'any' if after is None else after}"
        for what, before, after in (("CPU", old.cpu, new.cpu), ("poll", old.poll, new.poll))
        if before != after
    ]
    changes += [
        f"MTU of {after.interface} {after.mtu}"
        for before, after in zip(old.ports, new.ports, strict=True)
        if before.mtu != after.mtu
    ]
    return ", ".join(changes)


def _answers(old: InterfacePlan, new: InterfacePlan) -> str:
    """What another answer is due to."""
    changes = []
    if old.rules != new.rules:
        limits = (
            [f"path {new.rules.limit.text}"] if old.rules.limit != new.rules.limit and new.rules.limit else []
        )
        changes = [counted(len(new.rules.rules), "rule"), f"default {new.rules.default}", *limits]
    if (old.path, old.kind) != (new.path, new.kind):
        changes.append(f"path {new.path} ({new.kind})")
    elif (old.members, old.own) != (new.members, new.own):
        changes.append("other interfaces in its path")
    if old.mac != new.mac:
        changes.append(f"MAC address {new.mac}")
    if old.shares != new.shares and old.rules == new.rules:
        changes.append(f"limits shared by {counted(new.shares, 'queue')}")
    return ", ".join(changes) or f"express {new.express}"


def _settings(old: Plan, new: Plan) -> Iterator[str]:
    if old.metrics_listen != new.metrics_listen:
        where = f"{new.metrics_listen[0]}:{new.metrics_listen[1]}" if new.metrics_listen else "off"
        yield f"metrics.listen: {where}"
    if old.log_level != new.log_level:
        yield f"log.level: {new.log_level}"
    if old.control_socket != new.control_socket:
        yield f"control.socket: {new.control_socket}, with the next restart"
    if old.control_group != new.control_group:
        yield f"control.group: {new.control_group or 'none'}, with the next restart"
