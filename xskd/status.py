"""What the daemon says of itself: one picture of one moment, for the metrics, the CLI and systemd alike.

Plain data without behaviour; `as_json` is the answer of `xskd status --json`, whose fields are stable: they
may grow, never change their meaning. Nothing here asks anybody anything; daemon.py fills it in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from xskd.counters import PortCounters, WorkerCounters
from xskd.xdp import Verdicts
from xskd.xsk import Statistics

WorkerState = Literal["starting", "forwarding", "backoff", "stopping", "stopped"]


@dataclass(frozen=True)
class PortStatus:
    """One XSK. `mode` is what is in use, None while it is not bound; `rings` are sizes in entries."""

    interface: str
    queue: int
    mode_wanted: str
    mode: str | None
    rings: dict[str, int]
    counters: PortCounters
    kernel: Statistics


@dataclass(frozen=True)
class WorkerStatus:
    """One worker. `restarts` counts by cause; `heartbeat_age` in seconds, None before the first turn."""

    name: str
    path: str
    index: int
    kind: str
    state: WorkerState
    pid: int | None
    cpu: int | None
    poll: str
    restarts: dict[str, int]
    last_error: str | None
    heartbeat_age: float | None
    counters: WorkerCounters
    ports: tuple[PortStatus, ...]


@dataclass(frozen=True)
class InterfaceStatus:
    """One interface with its program. `attach` is what it became; `queues` the interface's own number."""

    name: str
    path: str
    queues: int
    fallback: str
    attach_wanted: str
    attach: str | None
    verdicts: Verdicts


@dataclass(frozen=True)
class DaemonStatus:
    """All of it. `started` is seconds since the epoch."""

    version: str
    pid: int
    started: float
    ready: bool
    text: str
    interfaces: tuple[InterfaceStatus, ...]
    workers: tuple[WorkerStatus, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole picture as plain values."""
        return asdict(self)


def describe(workers: list[tuple[str, WorkerState, set[str]]]) -> str:
    """One sentence for systemd: what forwards and in which mode, and what does not.

    Each worker is its name, its state and the modes of its sockets.
    """
    working = [(name, modes) for name, state, modes in workers if state == "forwarding"]
    paths = {name.rsplit("/", 1)[0] for name, _ in working}
    modes = sorted(set().union(*(modes for _, modes in working)))
    text = f"{_count(len(paths), 'path')}, {_count(len(working), 'queue')} forwarding"
    if modes:
        text += f", {' and '.join(modes)} mode"
    broken = [f"{name} ({state})" for name, state, _ in workers if state != "forwarding"]
    return f"{text}; not forwarding: {', '.join(broken)}" if broken else text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
