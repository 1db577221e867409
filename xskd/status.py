"""What the daemon says of itself: one picture of one moment, for the metrics, the CLI and systemd alike.

Plain data without behaviour; `as_json` is the answer of `xskd status --json`, whose fields are stable: they
may grow, never change their meaning. Nothing here asks anybody anything; daemon.py fills it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from xskd.counters import PortCounters, WorkerCounters
from xskd.xdp import Verdicts
from xskd.xsk import Statistics

LaneState = Literal["open", "off", "unsupported", "zerocopy", "waiting", "capture"]
WorkerState = Literal["starting", "forwarding", "backoff", "waiting", "stopping", "stopped"]


@dataclass(frozen=True)
class PortStatus:
    """One XSK. `mode` is what is in use, None while it is not bound; `rings` are sizes in entries.

    `nic_rx_dropped` and `nic_tx_dropped` are what the NIC itself lost of this queue, as its driver names it.
    With `multi_buffer` a packet may take several frames.
    """

    interface: str
    queue: int
    mode_wanted: str
    mode: str | None
    rings: dict[str, int]
    counters: PortCounters
    kernel: Statistics
    nic_rx_dropped: dict[str, int] = field(default_factory=dict)
    nic_tx_dropped: dict[str, int] = field(default_factory=dict)
    multi_buffer: bool = False


@dataclass(frozen=True)
class WorkerStatus:
    """One worker. `restarts` counts by cause; `heartbeat_age` in seconds, None before the first turn.

    `adoptions` counts by result the processes that were to go on with sockets in use, `conflicts` the sockets
    of others that were found in the place of its own in an XSKMAP; `gap_seconds` is the time between one
    process's last turn and the next one's first, all told.
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
    conflicts: int
    gap_seconds: float
    last_error: str | None
    heartbeat_age: float | None
    counters: WorkerCounters
    ports: tuple[PortStatus, ...]


@dataclass(frozen=True)
class RuleStatus:
    """One rule in force, or "default", what matches none; `limited` of its packets were over its limit."""

    name: str
    match: str
    verdict: str
    packets: int
    bytes: int
    limited: int


@dataclass(frozen=True)
class InterfaceStatus:
    """One interface of a path, there or not, with its program.

    `attach` is what it became, None if ours is not attached; `queues` the interface's own number now, 0 if it
    is not there. `foreign_program`: a program that is not ours is attached. `queues_without_socket` are those
    that no worker has. `zerocopy_able` is what the driver says of itself, None where it does not.
    `rx_dropped` is what was lost on the way in, as the kernel counts it for the interface as a whole.
    `rules` are those in force, the default last, with what they matched; empty where there are none and the
    `default` is the answer to every packet. `lane` is about express packets that leave by this interface.
    """

    name: str
    path: str
    queues: int
    carrier: bool
    fallback: str
    attach_wanted: str
    attach: str | None
    verdicts: Verdicts
    up: bool
    driver: str
    foreign_program: bool
    queues_without_socket: int
    zerocopy_able: bool | None
    rx_dropped: dict[str, int]
    verdict_bytes: Verdicts
    unroutable: dict[str, int]
    unparsed: int
    default: str
    rules: tuple[RuleStatus, ...]
    express: str
    lane: LaneState


@dataclass(frozen=True)
class Reloads:
    """What became of the reloads since the daemon started, dry ones aside. `last` is seconds since the epoch.

    `generation` counts the configurations that were loaded, from 1 on. `last_successful` and `last` are of
    the last reload of either result; before the first they are True and the time of the start.
    """

    last: float
    generation: int = 1
    success: int = 0
    failure: int = 0
    last_successful: bool = True


@dataclass(frozen=True)
class DaemonStatus:
    """All of it. `started` is seconds since the epoch.

    `config_error`: why the file is not what runs, None if it is. `paths` are all that are
    configured; `waiting`: those that cannot run on the machine as it is, and why. `kernel` is its release.
    `clients_refused`: connections turned away, by listener and reason.
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
    kernel: str
    reloads: Reloads
    clients_refused: dict[str, dict[str, int]]

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
