"""One worker's place in the daemon: what stays while processes come and go.

Packet memory, counter page, sockets, the sums of the kernel's counters, restarts and backoff belong to the
place, so nothing an operator watches goes back to zero with a process, and a successor finds the rings as
they were left. The supervisor's loop is the only one to call anything here; this module must never decide
what happens next: that is crew.py's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from xskd._forward import lib
from xskd.abandoned import packets_left
from xskd.counters import PRIVATE, CounterPage
from xskd.errors import XskError
from xskd.plan import WorkerPlan
from xskd.spawn import Peer, WorkerProcess
from xskd.status import PortStatus, WorkerState, WorkerStatus
from xskd.uapi import Statistics, sum_statistics
from xskd.umem import make_memory
from xskd.xsk import make_socket, read_statistics, socket_of

FIRST_BACKOFF = 0.1  # seconds before the second respawn in a row; the first is at once
LAST_BACKOFF = 30.0  # seconds: a queue that never works costs two tries a minute
HEALTHY = 10.0  # seconds of forwarding after which the next death is a first one again

Room = tuple[int, int, bool]  # how much packet memory there is: frames, their size in bytes, huge pages


def _wanted(plan: WorkerPlan) -> list[tuple[str, str]]:
    """Of which interfaces which mode is wanted: what was learnt of others says nothing of these."""
    return [(port.interface, port.mode) for port in plan.ports]


def _room(plan: WorkerPlan) -> Room:
    return plan.frames, plan.frame_size, plan.huge_pages


class Slot:
    """A place for one worker process; `process` is None while there is none.

    `sockets` are its XSKs, one per port, empty while it has none. `predecessor` is the worker of an earlier
    supervisor that still forwards on them, until `process` can take over.
    """

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        # A place must be had even where descriptors and memory have run out: what a process needs is made
        # when there is to be one, and that may fail and be tried again.
        self.page = CounterPage(0, fd=PRIVATE)
        self._memory = -1
        self._memory_of: Room | None = None
        self.sockets: list[socket.socket] = []
        self.process: Peer | None = None
        self.predecessor: Peer | None = None
        self.state: WorkerState = "starting"
        self.adopting = False  # the process is to go on with sockets that are in use
        self.copy = False  # one interface of the path has no zero-copy: copy mode for all of them
        self.generic = False  # one has its program in generic mode: drivers grant zero-copy, and do nothing
        self.modes: list[str | None] = [None] * len(plan.ports)
        self.restarts: Counter[str] = Counter()
        self.adoptions: Counter[str] = Counter()
        self.conflicts = 0  # another's sockets that were in the place of ours in an XSKMAP
        self.gap_seconds = 0.0  # without a worker, all told, between the first and the present one
        self.last_error: str | None = None
        self.backoff = 0.0
        self.since = time.monotonic()
        self._ended = [Statistics()] * len(plan.ports)  # of sockets that are closed
        self._last = [Statistics()] * len(plan.ports)  # of those there are, as last read

    @property
    def name(self) -> str:
        """The worker's name, like `wire/0`."""
        return self.plan.name

    # ---- processes and sockets ------------------------------------------------------------------

    def spawn(self, *, adopt: bool) -> WorkerProcess:
        """Start a process, with new sockets or (`adopt`) to go on with those there are.

        Raises XskError or OSError if memory, process or sockets cannot be had.
        """
        self.enter("starting")
        self.adopting = adopt
        if not adopt:
            self.discard_sockets()
            self._make_room()
            for port in self.plan.ports:
                made = make_socket(port.interface, port.queue, port.rings, self.plan.frame_size)
                self.sockets.append(made)
        started = WorkerProcess(self.effective_plan(), list(self.descriptors().values()), adopt=adopt)
        self.process = started
        return started

    def bound(self, modes: list[str]) -> None:
        """The process says that its sockets are bound, in these modes, and forwards."""
        self.modes = list(modes)
        self.enter("forwarding")
        self.last_error = None

    def buried(self, cause: str) -> float:
        """The process has ended and is cleared away. Returns the seconds to wait before the next one."""
        if self.state == "forwarding" and time.monotonic() - self.since > HEALTHY:
            self.backoff = 0.0
        self.restarts[cause] += 1
        self.enter("backoff")
        pause, self.backoff = self.backoff, min(max(self.backoff * 2, FIRST_BACKOFF), LAST_BACKOFF)
        return pause

    def clear(self) -> bool:
        """End the process if it still runs; its sockets stay. False if it would not die."""
        process, self.process = self.process, None
        return process.close() if process else True

    def discard_sockets(self) -> None:
        """Close our copies of the sockets; what they counted is remembered, and what they lose is counted.

        Nobody may work on them any more, and no packet come.
        """
        self._ended = self._kernel()
        self._last = [Statistics()] * len(self.plan.ports)
        for index, (made, port) in enumerate(zip(self.sockets, self.plan.ports, strict=False)):
            self.page.port(index).drops[lib.XSKD_DROP_ABANDONED] += packets_left(made, port.rings)
        for made in self.sockets:
            made.close()
        self.sockets = []
        self.modes = [None] * len(self.plan.ports)

    def close(self) -> None:
        """The place itself goes, with everything in it; a predecessor ends when its channel does."""
        self.clear()
        if self.predecessor is not None:
            self.predecessor.let_go()
            self.predecessor = None
        self.discard_sockets()
        self._give_up_room()

    def _make_room(self) -> None:
        """Packet memory and counter page of the plan's size; the counters go on. Raises XskError or OSError.

        Kept from process to process: fresh pages are the dearest part of a start, and only the first pays.
        """
        if self._memory_of == (wanted := _room(self.plan)):
            return
        memory = make_memory(self.plan.frames, self.plan.frame_size, huge_pages=self.plan.huge_pages)
        try:
            page = CounterPage(self.plan.frames)
        except BaseException:
            os.close(memory)
            raise
        page.take_over(self.page)
        self._give_up_room()
        self.page, self._memory, self._memory_of = page, memory, wanted

    def _give_up_room(self) -> None:
        self.page.close()
        if self._memory_of is not None:
            os.close(self._memory)

    def replan(self, plan: WorkerPlan) -> None:
        """Another plan for the same name. If it wants memory of another size, its next process gets that."""
        if len(plan.ports) != len(self.plan.ports):
            self._ended = [Statistics()] * len(plan.ports)
            self._last = [Statistics()] * len(plan.ports)
            self.modes = [None] * len(plan.ports)
        if _wanted(plan) != _wanted(self.plan):
            self.copy = False
        self.plan = plan

    def enter(self, state: WorkerState) -> None:
        """Change the state, and remember when."""
        self.state = state
        self.since = time.monotonic()

    def effective_plan(self) -> WorkerPlan:
        """The plan as a process gets it."""
        ports = tuple(replace(port, mode="copy") for port in self.plan.ports)
        return replace(self.plan, ports=ports) if self.copy or self.generic else self.plan

    # ---- from one supervisor to the next --------------------------------------------------------

    def descriptors(self) -> dict[str, int]:
        """What a successor needs to go on, by what it is."""
        ports = zip(self.plan.ports, self.sockets, strict=True)
        sockets = {f"xsk {port.interface}": made.fileno() for port, made in ports}
        return {"umem": self._memory, "counters": self.page.fd, **sockets}

    def record(self) -> dict[str, Any]:
        """What a successor must know and no descriptor tells."""
        return {
            "plan": self.plan.to_json(),
            "copy": self.copy,
            "modes": self.modes,
            "restarts": self.restarts,
            "adoptions": self.adoptions,
            "conflicts": self.conflicts,
            "gap_seconds": self.gap_seconds,
            "ended": [asdict(base) for base in self._ended],
        }

    @classmethod
    def inherit(cls, plan: WorkerPlan, record: Mapping[str, Any], descriptors: Mapping[str, int]) -> Slot:
        """A place as a predecessor left it. XskdError if its counter page is of another layout.

        KeyError, TypeError or ValueError if the record makes no sense. Owns the descriptors from now on, also
        when it raises.
        """
        made = cls.__new__(cls)
        umem, counters, *xsks = descriptors.values()
        with contextlib.ExitStack() as undo:
            for fd in (umem, *xsks):
                undo.callback(os.close, fd)
            page = CounterPage(plan.frames, fd=counters)
            undo.callback(page.close)
            made.adopting, made.copy, made.generic = True, bool(record["copy"]), False
            made.modes = list(record["modes"])
            made.restarts, made.adoptions = Counter(record["restarts"]), Counter(record["adoptions"])
            made.conflicts = int(record.get("conflicts", 0))  # none from an earlier version
            made.gap_seconds, made.backoff = float(record["gap_seconds"]), 0.0
            made._ended = [Statistics(**base) for base in record["ended"]]
            undo.pop_all()
        made.plan, made.page, made._memory, made._memory_of = plan, page, umem, _room(plan)
        made.sockets = [socket_of(fd) for fd in xsks]
        made.process = made.predecessor = made.last_error = None
        made._last = [Statistics()] * len(plan.ports)
        made.enter("starting")
        return made

    # ---- how it is ------------------------------------------------------------------------------

    def heartbeat_age(self) -> float | None:
        """Seconds since the last turn of the loop; None before the first of this process."""
        beat = self.page.struct.heartbeat_ns / 1e9
        return time.monotonic() - beat if beat > self.since else None

    def silent_for(self) -> float:
        """Seconds since the last turn of the loop, or since the last change of state before its first."""
        age = self.heartbeat_age()
        return time.monotonic() - self.since if age is None else age

    def status(self, *, new_marks: bool = False) -> WorkerStatus:
        """The picture of this moment; `new_marks`: the rings' high-water marks begin anew after it."""
        counters = self.page.read(len(self.plan.ports))
        if new_marks:
            self.page.new_marks()
        kernel = self._kernel()
        ports = tuple(
            PortStatus(
                interface=port.interface,
                queue=port.queue,
                mode_wanted=port.mode,
                mode=self.modes[index],
                rings=asdict(port.rings),
                counters=counters.ports[index],
                kernel=kernel[index],
                multi_buffer=self.plan.multi_buffer,
            )
            for index, port in enumerate(self.plan.ports)
        )
        return WorkerStatus(
            name=self.name,
            path=self.plan.path,
            index=self.plan.index,
            kind=self.plan.kind,
            state=self.state,
            pid=self.process.pid if self.process else None,
            cpu=self.plan.cpu,
            poll=self.plan.poll,
            restarts=dict(self.restarts),
            adoptions=dict(self.adoptions),
            conflicts=self.conflicts,
            gap_seconds=self.gap_seconds,
            last_error=self.last_error,
            heartbeat_age=self.heartbeat_age(),
            counters=replace(counters, ports=()),
            ports=ports,
        )

    def _kernel(self) -> list[Statistics]:
        """The kernel's counters over all sockets this place ever had."""
        if len(self.sockets) < len(self.plan.ports):  # none, or not all of them could be had
            return self._ended
        for index, made in enumerate(self.sockets):
            # One that the kernel does not answer for, its device gone under it, stands as it was last read.
            with contextlib.suppress(XskError, OSError):
                self._last[index] = read_statistics(made)
        return [sum_statistics(base, new) for base, new in zip(self._ended, self._last, strict=True)]
