"""What the daemon says of itself: one picture of one moment, for the metrics, the CLI and systemd alike.

Plain data without behaviour; `as_json` is the answer of `xskd status --json`, whose fields are stable: they
may grow, never change their meaning. Nothing here asks anybody anything; daemon.py fills it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from xskd.counters import PortCounters, WorkerCounters
from xskd.xdp import Verdicts
from xskd.xsk import Statistics

WorkerState = Literal["starting", "forwarding", "backoff", "waiting", "stopping", "stopped"]


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
    """One worker. `restarts` counts by cause; `heartbeat_age` in seconds, None before the first turn.

    `adoptions` counts by result the processes that were to go on with sockets in use; `gap_seconds` is the
    time between one process's last turn and the next one's first, all told.
    """

    name: str
    path: str
    index: int
    kind: str
    state: WorkerState
    pid: int | None
    cpu: int | None
    poll: str
    restarts: dict[str, int]
    adoptions: dict[str, int]
    gap_seconds: float
    last_error: str | None
    heartbeat_age: float | None
    counters: WorkerCounters
    ports: tuple[PortStatus, ...]


@dataclass(frozen=True)
class InterfaceStatus:
    """One interface with its program. `attach` is what it became; `queues` the interface's own number now."""

    name: str
    path: str
    queues: int
    carrier: bool
    fallback: str
    attach_wanted: str
    attach: str | None
    verdicts: Verdicts


@dataclass(frozen=True)
class DaemonStatus:
    """All of it. `started` is seconds since the epoch.

    `config_error`: why the file is not what runs, None if it is. `paths` are all that are
    configured; `waiting`: those that cannot run on the machine as it is, and why.
    """

    version: str
    pid: int
    started: float
    ready: bool
    text: str
    config_error: str | None
    paths: tuple[str, ...]
    waiting: dict[str, list[str]]
    interfaces: tuple[InterfaceStatus, ...]
    workers: tuple[WorkerStatus, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole picture as plain values."""
        return asdict(self)


def describe(
    workers: list[tuple[str, WorkerState, set[str]]],
    *,
    waiting: Sequence[str] = (),
    troubled: Sequence[str] = (),
    stale_config: bool = False,
) -> str:
    """One sentence for systemd: what forwards and in which mode, and what does not.

    Each worker is its name, its state and the modes of its sockets. `waiting` are paths, `troubled` says of
    interfaces what is the matter with them, `stale_config` that the file is wrong and an older one runs.
    """
    working = [(name, modes) for name, state, modes in workers if state == "forwarding"]
    paths = {name.rsplit("/", 1)[0] for name, _ in working}
    modes = sorted(set().union(*(modes for _, modes in working)))
    text = f"{_count(len(paths), 'path')}, {_count(len(working), 'queue')} forwarding"
    if modes:
        text += f", {' and '.join(modes)} mode"
    broken = [
        f"{name} ({state})"
        for name, state, _ in workers
        if state != "forwarding" and name.rsplit("/", 1)[0] not in waiting
    ]
    for title, what in (("not forwarding", broken), ("waiting", waiting), ("link", troubled)):
        text += f"; {title}: {', '.join(what)}" if what else ""
    return text + ("; the configuration file is wrong, an older one runs" if stale_config else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
