"""One worker's place in the daemon: what stays while processes come and go.

The packet memory, the counter page, the sums of the kernel's counters, the restarts and the backoff belong to
the place, so nothing an operator watches goes back to zero with a process. The supervisor's loop is the only
one to call anything here.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, replace

from xskd.counters import CounterPage
from xskd.errors import XskError
from xskd.plan import WorkerPlan
from xskd.spawn import WorkerProcess, sum_statistics
from xskd.status import PortStatus, WorkerState, WorkerStatus
from xskd.uapi import Statistics
from xskd.umem import make_memory

FIRST_BACKOFF = 0.05  # seconds before the first respawn: long enough for the kernel to free a queue
LAST_BACKOFF = 30.0  # seconds: a queue that never works costs two tries a minute
HEALTHY = 10.0  # seconds of forwarding after which the next death is a first one again


class Slot:
    """A place for one worker process; `process` is None while there is none."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self.page = CounterPage(plan.frames)
        # Kept from process to process: fresh pages are the dearest part of a start, and only the first pays.
        self._memory = make_memory(plan.frames, plan.frame_size, huge_pages=plan.huge_pages)
        self.process: WorkerProcess | None = None
        self.state: WorkerState = "starting"
        self.restarts: Counter[str] = Counter()
        self.last_error: str | None = None
        self.modes: list[str | None] = [None] * len(plan.ports)
        self.backoff = FIRST_BACKOFF
        self.since = time.monotonic()
        self._ended = [Statistics()] * len(plan.ports)  # of sockets that are closed

    @property
    def name(self) -> str:
        """The worker's name, like `wire/0`."""
        return self.plan.name

    def spawn(self) -> WorkerProcess:
        """Start a process. Raises XskError if its sockets or memory cannot be had."""
        self._enter("starting")
        self.process = WorkerProcess(self.plan, (self._memory, self.page.fd))
        return self.process

    def bound(self, modes: list[str]) -> None:
        """The process says that its sockets are bound, in these modes."""
        self.modes = list(modes)
        self._enter("forwarding")
        self.last_error = None

    def settle_for_copy(self) -> None:
        """One interface of the path has no zero-copy: use copy mode for all of them from now on."""
        ports = tuple(replace(port, mode="copy") for port in self.plan.ports)
        self.plan = replace(self.plan, ports=ports)

    def buried(self, cause: str) -> float:
        """The process has ended and is cleared away. Returns the seconds to wait before the next one."""
        if self.state == "forwarding" and time.monotonic() - self.since > HEALTHY:
            self.backoff = FIRST_BACKOFF
        self.clear()
        self.restarts[cause] += 1
        self._enter("backoff")
        pause, self.backoff = self.backoff, min(self.backoff * 2, LAST_BACKOFF)
        return pause

    def clear(self) -> None:
        """End the process if it still runs, and close all that was its."""
        if self.process is not None:
            self._ended = self._kernel()
            self.process.close()
            self.process = None
        self.modes = [None] * len(self.plan.ports)

    def stop(self, state: WorkerState) -> None:
        """The daemon stops: `stopping` while the process drains, `stopped` after."""
        self._enter(state)

    def heartbeat_age(self) -> float | None:
        """Seconds since the last turn of the loop; None before the first of this process."""
        beat = self.page.struct.heartbeat_ns / 1e9
        return time.monotonic() - beat if beat > self.since else None

    def silent_for(self) -> float:
        """Seconds since the last turn of the loop, or since the last change of state before its first."""
        age = self.heartbeat_age()
        return time.monotonic() - self.since if age is None else age

    def status(self) -> WorkerStatus:
        """The picture of this moment."""
        counters = self.page.read(len(self.plan.ports))
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
            last_error=self.last_error,
            heartbeat_age=self.heartbeat_age(),
            counters=replace(counters, ports=()),
            ports=ports,
        )

    def _kernel(self) -> list[Statistics]:
        """The kernel's counters over all sockets this place ever had."""
        if self.process is None:
            return self._ended
        try:
            now = self.process.statistics()
        except (
            XskError,
            OSError,
        ):  # the device went away under the socket: what it counted last is lost with it
            return self._ended
        return [sum_statistics(base, new) for base, new in zip(self._ended, now, strict=True)]

    def _enter(self, state: WorkerState) -> None:
        self.state = state
        self.since = time.monotonic()
