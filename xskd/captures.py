"""The captures that run: which workers copy packets into which ring, for whom, until when.

One belongs to a client's connection (control.py) and ends with it. A worker has one at a time. A worker that
dies meanwhile is followed by one that gets the same ring, so the capture goes on; where a reload gives the
worker other interfaces, it ends, since the client has named them in its file already. Nothing here reads a
ring, or trusts what a client says of its filter.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xskd import tap
from xskd.errors import XskdError
from xskd.slot import Slot
from xskd.values import nearest

BEGIN_SECONDS = 2.0  # for workers to say that they copy
LET_GO_SECONDS = 0.5  # for workers to let go of a ring before we do


@dataclass(eq=False)
class Order:
    """What a worker is told: copy these packets into this ring. `fd` is the ring's memory."""

    fd: int
    ports: list[list[Any]]  # interface and queue of each
    what: dict[str, Any]  # direction, snaplen, filter
    over: asyncio.Future[str]  # of the whole capture: why it must end
    # The worker does; else why not.
    begun: asyncio.Future[str | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(eq=False)
class Capture:
    """One client's, over one worker or more by name."""

    orders: dict[str, Order]
    over: asyncio.Future[str]

    def describe(self) -> list[dict[str, Any]]:
        """Whose rings these are, in order, and which ports their packets are of."""
        return [{"worker": name, "ports": order.ports} for name, order in self.orders.items()]

    def descriptors(self) -> list[int]:
        """The rings' memory, in the same order."""
        return [order.fd for order in self.orders.values()]


class Captures:
    """All of them. `slots` tells the workers there are, by name.

    `changed` is called when one has been noted, before anybody is told that it runs, and when one is over.
    """

    def __init__(self, slots: Callable[[], Mapping[str, Slot]]) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._slots = slots
        self._orders: dict[str, Order] = {}  # by worker
        self._reserved: set[str] = set()  # workers whose rings are being made

    async def begin(self, question: Mapping[str, Any]) -> Capture:
        """Have workers copy what a client asks for; they do when this returns. Raises XskdError."""
        what = _checked(question)
        slots = self._wanted(question)
        taken = sorted(slot.name for slot in slots if slot.name in self._orders.keys() | self._reserved)
        if taken:
            raise XskdError(f"{', '.join(taken)}: a capture runs there already; end it first")
        names = {slot.name for slot in slots}
        self._reserved |= names
        try:
            fds = await asyncio.to_thread(_make_rings, len(slots))
            over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            orders = {
                slot.name: Order(fd, _ports(slot), what, over) for slot, fd in zip(slots, fds, strict=True)
            }
        finally:
            self._reserved -= names
        capture = Capture(orders, over)
        self._orders |= orders
        try:
            self.changed()
            await self._begun(capture)
        except BaseException:
            self.end(capture)
            raise
        return capture

    async def _begun(self, capture: Capture) -> None:
        """Tell those that forward, and wait until they do as they are told; others are told when they do."""
        working = [slot for slot in self._slots().values() if slot.state == "forwarding"]
        waiting = {slot.name: capture.orders[slot.name] for slot in working if slot.name in capture.orders}
        for slot in working:
            self.tell(slot)
        if waiting:
            await asyncio.wait({order.begun for order in waiting.values()}, timeout=BEGIN_SECONDS)
        for name, order in waiting.items():
            if not order.begun.done():
                raise XskdError(f"{name}: its worker does not answer; is it of an older version of xskd?")
            if (error := order.begun.result()) is not None:
                raise XskdError(f"{name}: {error}")

    def end(self, capture: Capture) -> None:
        """Have the workers stop copying, and let go of the memory. Again is no error."""
        for name, order in capture.orders.items():
            if self._orders.get(name) is not order:
                continue
            del self._orders[name]
            slot = self._slots().get(name)
            if slot is not None and slot.state == "forwarding":  # else it is told when it does
                self.tell(slot)
            # Whoever lets go last frees the memory, some milliseconds, which must not be the worker.
            asyncio.get_running_loop().call_later(LET_GO_SECONDS, os.close, order.fd)
        self.changed()

    @property
    def paths(self) -> set[str]:
        """The paths on which one runs, or begins."""
        return {name.rpartition("/")[0] for name in self._orders}

    def end_all(self) -> None:
        """The daemon ends: workers that outlive it copy no more."""
        for capture in [Capture({name: order}, order.over) for name, order in self._orders.items()]:
            self.end(capture)

    def tell(self, slot: Slot) -> None:
        """Tell a worker that listens what it should copy, unless it does so already."""
        process, order = slot.process, self._orders.get(slot.name)
        if order is not None and order.ports != _ports(slot):
            if not order.over.done():
                order.over.set_result(f"{slot.name} has other interfaces or queues now")
            order = None
        if process is None or process.order is order:
            return
        process.order = order
        if order is None:
            process.tell("uncapture")
        else:
            process.tell("capture", descriptors=[order.fd], **order.what)

    def heard(self, slot: Slot, error: object) -> None:
        """A worker copies, or says why it does not."""
        order = self._orders.get(slot.name)
        why = None if error is None else str(error)
        if order is None:
            return
        if not order.begun.done():
            order.begun.set_result(why)
        elif why is not None and not order.over.done():
            order.over.set_result(f"{slot.name}: {why}")

    def _wanted(self, question: Mapping[str, Any]) -> list[Slot]:
        """The workers of a path, or the one that is asked for."""
        path, queue = question.get("path"), question.get("queue")
        slots = self._slots()
        found = [
            slot for slot in slots.values() if slot.plan.path == path and queue in (None, slot.plan.index)
        ]
        if len(found) > tap.MAX_RINGS:
            raise XskdError(f"{path} has more than {tap.MAX_RINGS} workers: name one, like {path}/0")
        if found:
            return sorted(found, key=lambda slot: slot.plan.index)
        known = sorted({slot.plan.path for slot in slots.values()} | set(slots))
        asked = str(path) if queue is None else f"{path}/{queue}"
        raise XskdError(f"no {asked}{nearest(asked, known)}; there are {', '.join(known) or 'none'}")


def _checked(question: Mapping[str, Any]) -> dict[str, Any]:
    """What to copy; XskdError if it is not what it should be."""
    match question:
        case {"direction": str(direction), "snaplen": int(snaplen), "filter": list(program)} if (
            direction in tap.DIRECTIONS
            and 1 <= snaplen <= tap.MAX_SNAPLEN
            and all(isinstance(instruction, list) and len(instruction) == 4 for instruction in program)
            and tap.usable(program)
        ):
            return {"direction": direction, "snaplen": snaplen, "filter": program}
    raise XskdError(
        'a capture says "path", "queue" (null: all), "direction" (in, out, both), "snaplen" (1 to '
        f'{tap.MAX_SNAPLEN}) and "filter", a valid program of at most {tap.MAX_FILTER} instructions'
    )


def _ports(slot: Slot) -> list[list[Any]]:
    return [[port.interface, port.queue] for port in slot.plan.ports]


def _make_rings(number: int) -> list[int]:
    made: list[int] = []
    try:
        for _ in range(number):
            made.append(tap.make_ring(tap.ring_size(number)))
    except OSError as error:
        for fd in made:
            os.close(fd)
        raise XskdError(f"memory for a capture: {error.strerror}") from error
    return made
