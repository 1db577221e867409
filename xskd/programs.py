"""The interfaces' XDP programs: which is attached where, and which XSKs are in their maps.

One Program per interface that the plan names. Every descriptor that makes a program outlive this process is
put into the store as soon as it exists and dropped before it is closed. This module must never touch a
program that is not ours (xdp.py refuses), and never decide what the plan is.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple
from typing import Any

from xskd.errors import XdpError, errno_name
from xskd.logs import about
from xskd.plan import InterfacePlan
from xskd.slot import Slot
from xskd.store import Store
from xskd.xdp import Program, Verdicts, detach_link, program_of

log = logging.getLogger("xskd")


class Programs:
    """The programs by interface name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.by_name: dict[str, Program] = {}
        self.plans: dict[str, InterfacePlan] = {}
        # Ids of all programs of ours: who asked the kernel a moment ago may name one that is gone by now.
        self.ours: set[int] = set()
        self._ended: dict[str, Verdicts] = {}  # of programs that are detached

    def attach(self, plan: InterfacePlan) -> None:
        """Attach with an empty XSKMAP: packets take the fallback for now. Raises XdpError."""
        program = Program(plan.queues, fallback=plan.fallback)
        try:
            program.attach(plan.name, plan.attach, ifindex=plan.ifindex)
        except XdpError:
            program.close()
            raise
        self.by_name[plan.name], self.plans[plan.name] = program, plan
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
        """Go on with the program a predecessor left in the store. Raises XdpError if none fits."""
        descriptors = self._store.take(stored_name(plan.name))
        if descriptors is None:
            raise XdpError("store", interface=plan.name, detail="it is not there")
        spare = os.dup(descriptors["link"])
        try:
            with contextlib.suppress(XdpError):  # then `adopt` says what it is instead
                self.ours.add(program_of(spare)[0])  # before another version's takes its place
            program = Program.adopt(plan.name, plan.queues, descriptors, ifindex=plan.ifindex)
            program.set_fallback(plan.fallback)
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
        self.plans[plan.name] = plan

    def detach(self, name: str) -> None:
        """Take the program off its interface, if there is one; the device may be gone already."""
        self._store.drop(stored_name(name))
        if program := self.by_name.pop(name, None):
            del self.plans[name]
            try:
                program.detach()
            except XdpError as error:  # it goes with the last copy of its link, which is ours
                log.warning("%s: %s", name, error, extra=about(interface=name))
            with contextlib.suppress(XdpError):  # after the last packet, before the maps go
                self._ended[name] = _sum(self.verdicts(name), program.verdicts())
            program.close()
            log.info("%s: XDP program detached", name, extra=about(interface=name))

    def verdicts(self, name: str) -> Verdicts:
        """What all programs did that an interface has had. Raises XdpError."""
        ended = self._ended.get(name, Verdicts(0, 0, 0))
        program = self.by_name.get(name)
        return _sum(ended, program.verdicts()) if program else ended

    def insert(self, slot: Slot, *, replace: bool) -> None:
        """Let packets come to a worker's sockets; `replace`: they may be there already. Raises XdpError."""
        for port, made in zip(slot.plan.ports, slot.sockets, strict=True):
            if port.interface not in self.by_name:
                raise XdpError("XSKMAP", interface=port.interface, detail="it has no XDP program of ours now")
            self.by_name[port.interface].insert(port.queue, made, replace=replace)

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
        return [asdict(plan) for plan in self.plans.values()]

    @staticmethod
    def recorded(records: Iterable[Mapping[str, Any]]) -> dict[str, InterfacePlan]:
        """What `record` wrote, by name."""
        return {str(record["name"]): InterfacePlan(**record) for record in records}

    def close(self) -> None:
        """Detach all: nothing of ours stays behind."""
        for name in list(self.by_name):
            self.detach(name)


def _sum(one: Verdicts, other: Verdicts) -> Verdicts:
    return Verdicts(*(a + b for a, b in zip(astuple(one), astuple(other), strict=True)))


def stored_name(interface: str) -> str:
    """What an interface's link and maps are called in the store."""
    return f"interface {interface}"
