"""The interfaces' XDP programs: which is attached where, and which XSKs are in their maps.

One Program per interface that the plan names. Every descriptor that makes a program outlive this process is
put into the store as soon as it exists and dropped before it is closed. Rules are in force before their
program sees a packet, and what they count goes on under their names: over other rules, programs and
supervisors. This module must never touch a program that is not ours (xdp.py refuses), and never decide what
the plan is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from xskd import compiled
from xskd.errors import XdpError, errno_name
from xskd.logs import about
from xskd.plan import InterfacePlan
from xskd.slot import Slot
from xskd.store import Store
from xskd.xdp import Program, RuleTally, Settings, Verdicts, detach_link, program_of

log = logging.getLogger("xskd")

HOOK = ("name", "ifindex", "queues", "attach", "fallback", "path")  # what a successor compares
Lanes = tuple[frozenset[int], frozenset[int]]  # that are open, and that take packets of several buffers
NO_LANES: Lanes = (frozenset(), frozenset())


@dataclass(frozen=True)
class Counts:
    """What became of the packets that a program saw: by verdict, and for `route` why it was not forwarded.

    `unparsed` are packets that no rule could be asked about; they are in one of the verdicts too.
    """

    verdicts: Verdicts
    verdict_bytes: Verdicts
    unroutable: dict[str, int]
    unparsed: int

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(
            _sum(self.verdicts, other.verdicts),
            _sum(self.verdict_bytes, other.verdict_bytes),
            {
                reason: self.unroutable.get(reason, 0) + other.unroutable.get(reason, 0)
                for reason in self.unroutable | other.unroutable
            },
            self.unparsed + other.unparsed,
        )


NO_VERDICTS = Verdicts(*(0 for _ in fields(Verdicts)))
NOTHING = Counts(NO_VERDICTS, NO_VERDICTS, {}, 0)


class Programs:
    """The programs by interface name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.by_name: dict[str, Program] = {}
        self.plans: dict[str, InterfacePlan] = {}
        # Ids of all programs of ours: who asked the kernel a moment ago may name one that is gone by now.
        self.ours: set[int] = set()
        self._ended: dict[str, Counts] = {}  # of programs that are detached
        self._lanes: dict[str, Lanes] = {}  # as they are known to be
        self._labels: dict[str, tuple[str, ...]] = {}  # of the rules in force; none where there are no rules
        self._counted: dict[str, dict[str, RuleTally]] = {}  # by rules that are not in force any more

    def attach(self, plan: InterfacePlan) -> None:
        """Attach, with rules and an empty XSKMAP: what is redirected takes the fallback. Raises XdpError."""
        program = Program(plan.queues, fallback=plan.fallback)
        try:
            program.configure(settings(plan))
            self._install(program, plan)
            program.attach(plan.name, plan.attach, ifindex=plan.ifindex)
        except XdpError:
            self._labels.pop(plan.name, None)
            program.close()
            raise
        self.by_name[plan.name], self.plans[plan.name] = program, plan
        self._lanes[plan.name] = NO_LANES
        self.ours |= {program.id, program.took_over or program.id}
        self._store.put(stored_name(plan.name), program.descriptors())
        refused = f" ({errno_name(program.native_refused)})" if program.native_refused else ""
        taken = (
            f"; took over program {program.took_over}, left behind by an xskd" if program.took_over else ""
        )
        log.info(
            "%s: XDP program attached, %s mode%s%s", plan.name, program.attach_mode, refused, taken,
            extra=about(interface=plan.name),
        )  # fmt: skip

    def adopt(self, plan: InterfacePlan) -> None:
        """Go on with the program a predecessor left in the store. Raises XdpError if none fits.

        Its lanes stay as they are, unless they would lead to other interfaces now.
        """
        descriptors = self._store.take(stored_name(plan.name))
        if descriptors is None:
            raise XdpError("store", interface=plan.name, detail="it is not there")
        spare = os.dup(descriptors["link"])
        try:
            with contextlib.suppress(XdpError):  # then `adopt` says what it is instead
                self.ours.add(program_of(spare)[0])  # before another version's takes its place
            program = Program.adopt(plan.name, plan.queues, descriptors, ifindex=plan.ifindex)
            program.set_fallback(plan.fallback)
            self._change(
                program, plan
            )  # the same rules again cost no packet, and are surely those of the plan
        except XdpError:
            with contextlib.suppress(XdpError):  # at once, so that another can be attached in its place
                detach_link(spare)
            self._store.drop(stored_name(plan.name))
            raise
        finally:
            os.close(spare)
        self.by_name[plan.name], self.plans[plan.name] = program, plan
        self.ours.add(program.id)
        how = "replaced by this version's, in place" if program.replaced else "kept"
        log.info(
            "%s: XDP program %s, %s mode",
            plan.name,
            how,
            program.attach_mode,
            extra=about(interface=plan.name),
        )

    def renew(self, name: str) -> None:
        """An interface has more queues than before: let the program run on those too. Raises XdpError."""
        self.by_name[name].renew(name)
        self.ours.add(self.by_name[name].id)

    def let_go(self, stored: str) -> None:
        """Drop a set that nobody takes over; a program in it is detached at once, to make room."""
        for part, fd in (self._store.take(stored) or {}).items():
            if part == "link":
                with contextlib.suppress(XdpError):  # it goes with the last copy of its link, soon
                    detach_link(fd)
            os.close(fd)
        self._store.drop(stored)

    def set_fallback(self, plan: InterfacePlan) -> None:
        """Another answer for packets of a queue without a worker. Raises XdpError."""
        self.by_name[plan.name].set_fallback(plan.fallback)
        self.plans[plan.name] = replace(self.plans[plan.name], fallback=plan.fallback)

    def set_rules(self, plan: InterfacePlan) -> None:
        """Other rules, or the same in other surroundings, from one packet to the next. Raises XdpError."""
        before = self.plans[plan.name]
        self._lanes.pop(plan.name, None)  # those that would lead to other interfaces are closed by this
        if (before.rules, before.shares) == (plan.rules, plan.shares):
            self.by_name[plan.name].configure(settings(plan))
        else:
            self._change(self.by_name[plan.name], plan)
        self.plans[plan.name] = replace(plan, fallback=before.fallback)

    def open_lanes(self, name: str, lanes: frozenset[int], several: frozenset[int]) -> None:
        """Let express packets leave by these interfaces of the path only. Raises XdpError."""
        if self._lanes.get(name) != (lanes, several):
            self._lanes.pop(name, None)
            self.by_name[name].open_lanes(lanes, several)
            self._lanes[name] = lanes, several

    def _change(self, program: Program, plan: InterfacePlan) -> None:
        """Rules and settings of a program that sees packets: each is answered by the old ones or the new.

        The answer in the settings is that of no rules, so it is changed while there are some.
        """
        if plan.rules.plain:
            program.configure(settings(plan))
            self._install(program, plan)
        else:
            self._install(program, plan)
            program.configure(settings(plan))

    def _install(self, program: Program, plan: InterfacePlan) -> None:
        counted = program.install(compiled.image(plan.rules, plan.shares))
        self._keep(plan.name, counted)
        self._labels[plan.name] = () if plan.rules.plain else plan.rules.labels

    def _keep(self, name: str, counted: Iterable[RuleTally]) -> None:
        """Remember what rules have counted that are not in force any more."""
        before = self._counted.setdefault(name, {})
        for label, tally in self._by_label(name, tuple(counted)).items():
            before[label] = _more(before.get(label), tally)

    def _by_label(self, name: str, counted: tuple[RuleTally, ...]) -> dict[str, RuleTally]:
        """Tallies under their rules' names; none if they are of others, as after a crash."""
        labels = self._labels.get(name, ())
        return dict(zip(labels, counted, strict=True)) if len(labels) == len(counted) else {}

    def detach(self, name: str) -> None:
        """Take the program off its interface, if there is one; the device may be gone already."""
        self._store.drop(stored_name(name))
        if program := self.by_name.pop(name, None):
            del self.plans[name]
            self._lanes.pop(name, None)
            try:
                program.detach()
            except XdpError as error:  # it goes with the last copy of its link, which is ours
                log.warning("%s: %s", name, error, extra=about(interface=name))
            with contextlib.suppress(XdpError):  # after the last packet, before the maps go
                self._ended[name] = self._ended.get(name, NOTHING) + _counts(program)
                self._keep(name, program.rule_tallies())
            self._labels.pop(name, None)
            program.close()
            log.info("%s: XDP program detached", name, extra=about(interface=name))

    def counts(self, name: str) -> Counts:
        """What all programs did that an interface has had. Raises XdpError."""
        ended = self._ended.get(name, NOTHING)
        program = self.by_name.get(name)
        return ended + _counts(program) if program else ended

    def rule_tallies(self, name: str) -> dict[str, RuleTally]:
        """What each rule in force has counted under its name, "default" last. Raises XdpError."""
        program = self.by_name.get(name)
        now = self._by_label(name, program.rule_tallies()) if program else {}
        before = self._counted.get(name, {})
        return {label: _more(before.get(label), tally) for label, tally in now.items()}

    def insert(self, slot: Slot, *, replace: bool) -> None:
        """Let packets come to a worker's sockets; `replace`: they may be there already. Raises XdpError."""
        for port, made in zip(slot.plan.ports, slot.sockets, strict=True):
            if port.interface not in self.by_name:
                raise XdpError("XSKMAP", interface=port.interface, detail="it has no XDP program of ours now")
            self.by_name[port.interface].insert(port.queue, made, replace=replace)

    def any_generic(self, slot: Slot) -> bool:
        """Does an interface of this path have its program in generic mode? Then zero-copy is out of reach."""
        programs = (self.by_name.get(port.interface) for port in slot.plan.ports)
        return any(program.attach_mode == "generic" for program in programs if program)

    def restore(self, slot: Slot) -> list[str]:
        """Put a worker's sockets back where they are not any more; interfaces where another's was instead.

        That somebody else has written to our map is the only reason. The kernel tells nobody whose a socket
        is, but takes ours again, and with BPF_NOEXIST no other in its place. Raises XdpError.
        """
        taken: list[str] = []
        for port, made in zip(slot.plan.ports, slot.sockets, strict=True):
            if program := self.by_name.get(port.interface):
                try:
                    program.insert(port.queue, made)
                except XdpError as error:
                    if error.errno != errno.EEXIST:
                        raise
                    program.insert(port.queue, made, replace=True)
                    taken.append(port.interface)
        return taken

    def withdraw(self, slot: Slot) -> None:
        """Let no more packets come: from here on the path's fallback decides.

        What the kernel refuses is told and nothing more: closing the socket has the same effect.
        """
        for port in slot.plan.ports:
            if program := self.by_name.get(port.interface):
                try:
                    program.remove(port.queue)
                except XdpError as error:
                    log.warning("%s: %s", slot.name, error, extra=about(worker=slot.name))

    def record(self) -> list[dict[str, Any]]:
        """What a successor must know."""
        return [
            {field: getattr(plan, field) for field in HOOK} | {"labels": self._labels[plan.name]}
            for plan in self.plans.values()
        ]

    @staticmethod
    def recorded(records: Iterable[Mapping[str, Any]]) -> dict[str, InterfacePlan]:
        """What `record` wrote, by name, as far as the hook is concerned: rules are installed anew."""
        return {
            str(record["name"]): InterfacePlan(**{field: record[field] for field in HOOK})
            for record in records
        }

    def record_tallies(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """What a successor must know of what rules have counted that are not in force any more."""
        return {
            name: {label: astuple(tally) for label, tally in counted.items()}
            for name, counted in self._counted.items()
            if counted
        }

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on counting where a predecessor was; `state` is that of before there were rules, too."""
        self._labels = {
            str(record["name"]): tuple(record.get("labels", ())) for record in state["interfaces"]
        }
        self._counted = {
            name: {label: RuleTally(*tally) for label, tally in counted.items()}
            for name, counted in state.get("rule_tallies", {}).items()
        }

    def close(self) -> None:
        """Detach all: nothing of ours stays behind."""
        for name in list(self.by_name):
            self.detach(name)


def _counts(program: Program) -> Counts:
    return Counts(program.verdicts(), program.verdict_bytes(), program.unroutable(), program.unparsed())


def _sum(one: Verdicts, other: Verdicts) -> Verdicts:
    return Verdicts(*(a + b for a, b in zip(astuple(one), astuple(other), strict=True)))


def _more(before: RuleTally | None, tally: RuleTally) -> RuleTally:
    if before is None:
        return tally
    return RuleTally(*(a + b for a, b in zip(astuple(before), astuple(tally), strict=True)))


def settings(plan: InterfacePlan) -> Settings:
    """What the program of an interface is told of its surroundings."""
    return Settings(
        kind=plan.kind,
        answer=plan.rules.default,
        ports=plan.members,
        own=plan.own,
        mac=bytes.fromhex(plan.mac.replace(":", ""))[:6].ljust(6, b"\0"),  # some have none, or a longer one
    )


def stored_name(interface: str) -> str:
    """What an interface's link and maps are called in the store."""
    return f"interface {interface}"
