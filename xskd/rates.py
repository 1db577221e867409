"""Two pictures of the daemon and the seconds between them, as rows for a person: rates, losses, levels.

A picture is the answer of `xskd status --json`. What cannot be known is None, never a guess: with another
daemon, or with a counter that has gone back, no rate is known until the next picture. This module must never
ask anybody anything, and draws nothing.

A loss is a packet that came in and will not go out, counted once. So the kernel's `rx_fill_ring_empty_descs`
is none (in copy mode the same packet is in `rx_dropped`, in zero-copy mode it counts looks at the ring), nor
is `rx_invalid_descs` (a frame, not a packet); `tx_ring_empty_descs` counts the kernel finding nothing to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RINGS = ("fill", "rx", "tx", "completion")
KERNEL_LOSSES = ("rx_dropped", "rx_ring_full", "tx_invalid_descs")

Picture = Mapping[str, Any]


@dataclass(frozen=True)
class Level:
    """How many entries a ring has, how many fit, and the most it had lately, if that is known."""

    entries: int
    size: int
    high: int | None

    @property
    def share(self) -> float:
        """From 0, empty, to 1, full."""
        return min(self.entries / self.size, 1.0) if self.size else 0.0

    @property
    def high_share(self) -> float:
        """The same of the most it had lately."""
        return min(max(self.high or 0, self.entries) / self.size, 1.0) if self.size else 0.0


@dataclass(frozen=True)
class SocketRow:
    """One socket, with what is to say of its worker. Rates are per second, bits without what the wire adds.

    `lost` counts packets by reason since the start, `losing` per second, both without the reasons that have
    none. `nic` counts what the NIC lost of this queue, which may be the same packets: some drivers count what
    XDP does not take. `packets_per_wakeup` are received and sent per system call, `regimes` shares of time.
    """

    worker: str
    path: str
    state: str
    restarts: int
    interface: str
    queue: int
    mode: str | None
    rx_packets: int
    tx_packets: int
    rx: float | None
    tx: float | None
    rx_bits: float | None
    tx_bits: float | None
    lost: dict[str, int]
    losing: dict[str, float] | None
    rings: dict[str, Level]
    nic: int
    wakeups: float | None
    packets_per_wakeup: float | None
    regimes: dict[str, float] | None

    @property
    def port(self) -> str:
        """Interface and queue, as they are written everywhere."""
        return f"{self.interface}:{self.queue}"

    @property
    def lost_packets(self) -> int:
        """Since the start, for any reason."""
        return sum(self.lost.values())

    @property
    def losing_packets(self) -> float | None:
        """Per second, for any reason."""
        return None if self.losing is None else sum(self.losing.values())


@dataclass(frozen=True)
class PathRow:
    """One path, all its queues together; `modes` are those of its sockets that are bound."""

    name: str
    kind: str
    forwarding: int
    queues: int
    modes: tuple[str, ...]
    rx: float | None
    tx: float | None
    lost: int
    losing: float | None


@dataclass(frozen=True)
class InterfaceRow:
    """One interface: `passed` and `dropped` are packets of queues without a socket, and both per second."""

    picture: Picture
    passed: int
    dropped: int
    passing: float | None
    dropping: float | None


@dataclass(frozen=True)
class RuleRow:
    """One rule of an interface, or its default, which is the last; rates are per second.

    `position` is from 1 on, 0 for the default. The counts are None where there are no rules: nothing counts.
    """

    interface: str
    position: int
    name: str
    match: str
    verdict: str
    packets: int | None
    bytes: int | None
    limited: int | None
    matching: float | None
    bits: float | None
    limiting: float | None


def per_second(now: int | None, before: int | None, seconds: float) -> float | None:
    """The rate of a counter; None if it is unknown, as when it has gone back."""
    if now is None or before is None or seconds <= 0 or now < before:
        return None
    return (now - before) / seconds


def total(rates: Iterable[float | None]) -> float | None:
    """The sum of those that are known; None if none is."""
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None


def same_daemon(one: Picture, other: Picture) -> bool:
    """Are both of one process? Counters of two have nothing to do with each other."""
    return all(one[name] == other[name] for name in ("pid", "started"))


def socket_rows(now: Picture, before: Picture | None = None, seconds: float = 0.0) -> list[SocketRow]:
    """A row per socket, in the daemon's order."""
    earlier = {}
    if before is not None and same_daemon(now, before):
        earlier = {_key(worker, port): (worker, port) for worker, port in _ports(before)}
    return [
        _socket_row(worker, port, *earlier.get(_key(worker, port), ({}, {})), seconds)
        for worker, port in _ports(now)
    ]


def path_rows(now: Picture, rows: list[SocketRow]) -> list[PathRow]:
    """A row per configured path, from the rows of its sockets."""
    made = []
    for name in now["paths"]:
        workers = [worker for worker in now["workers"] if worker["path"] == name]
        mine = [row for row in rows if row.path == name]
        made.append(
            PathRow(
                name=name,
                kind=workers[0]["kind"] if workers else "",
                forwarding=sum(worker["state"] == "forwarding" for worker in workers),
                queues=len(workers),
                modes=tuple(sorted({row.mode for row in mine if row.mode})),
                rx=total(row.rx for row in mine),
                tx=total(row.tx for row in mine),
                lost=sum(row.lost_packets for row in mine),
                losing=total(row.losing_packets for row in mine),
            )
        )
    return made


def interface_rows(now: Picture, before: Picture | None = None, seconds: float = 0.0) -> list[InterfaceRow]:
    """A row per interface, in the daemon's order."""
    earlier: dict[str, Picture] = {}
    if before is not None and same_daemon(now, before):
        earlier = {interface["name"]: interface["verdicts"] for interface in before["interfaces"]}
    made = []
    for interface in now["interfaces"]:
        verdicts, old = interface["verdicts"], earlier.get(interface["name"], {})
        passed, dropped = (
            (verdicts[name], old.get(name)) for name in ("no_socket_passed", "no_socket_dropped")
        )
        made.append(
            InterfaceRow(
                picture=interface,
                passed=passed[0],
                dropped=dropped[0],
                passing=per_second(*passed, seconds),
                dropping=per_second(*dropped, seconds),
            )
        )
    return made


def rule_rows(now: Picture, before: Picture | None = None, seconds: float = 0.0) -> list[RuleRow]:
    """A row per rule and default of each interface, in the order in which a packet meets them."""
    earlier: dict[tuple[str, str], Picture] = {}
    if before is not None and same_daemon(now, before):
        earlier = {
            (interface["name"], rule["name"]): rule
            for interface in before["interfaces"]
            for rule in interface.get("rules", ())
        }
    made = []
    for interface in now["interfaces"]:
        alone = {"name": "default", "match": "", "verdict": interface.get("default", "redirect")}
        *rules, default = interface.get("rules") or [alone]
        for position, rule in (*enumerate(rules, 1), (0, default)):
            made.append(_rule_row(interface["name"], position, rule, earlier, seconds))
    return made


def _rule_row(
    interface: str, position: int, rule: Picture, earlier: Mapping[tuple[str, str], Picture], seconds: float
) -> RuleRow:
    old = earlier.get((interface, rule["name"]), {})
    packets, size, limited = ("packets", "bytes", "limited")
    rates = {name: per_second(rule.get(name), old.get(name), seconds) for name in (packets, size, limited)}
    octets = rates[size]
    return RuleRow(
        interface=interface,
        position=position,
        name=rule["name"],
        match=rule["match"],
        verdict=rule["verdict"],
        packets=rule.get(packets),
        bytes=rule.get(size),
        limited=rule.get(limited),
        matching=rates[packets],
        bits=None if octets is None else 8 * octets,
        limiting=rates[limited],
    )


def _ports(picture: Picture) -> list[tuple[Picture, Picture]]:
    return [(worker, port) for worker in picture["workers"] for port in worker["ports"]]


def _key(worker: Picture, port: Picture) -> tuple[str, str, int]:
    return worker["name"], port["interface"], port["queue"]


def _socket_row(
    worker: Picture, port: Picture, old_worker: Picture, old_port: Picture, seconds: float
) -> SocketRow:
    counters, old = port["counters"], old_port.get("counters", {})

    def rate(name: str) -> float | None:
        return per_second(counters[name], old.get(name), seconds)

    losses = _losses(port)
    losing = _rates(losses, _losses(old_port) if old_port else {}, seconds)
    wakeups = total((_rates(counters.get("wakeups", {}), old.get("wakeups", {}), seconds) or {}).values())
    rx, tx, rx_bytes, tx_bytes = (rate(name) for name in ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes"))
    moved = total((rx, tx))
    return SocketRow(
        worker=worker["name"],
        path=worker["path"],
        state=worker["state"],
        restarts=sum(worker["restarts"].values()),
        interface=port["interface"],
        queue=port["queue"],
        mode=port["mode"],
        rx_packets=counters["rx_packets"],
        tx_packets=counters["tx_packets"],
        rx=rx,
        tx=tx,
        rx_bits=None if rx_bytes is None else 8 * rx_bytes,
        tx_bits=None if tx_bytes is None else 8 * tx_bytes,
        lost={reason: count for reason, count in losses.items() if count},
        losing=None if losing is None else {reason: rate for reason, rate in losing.items() if rate},
        rings=_levels(port),
        nic=sum(port.get("nic_rx_dropped", {}).values()),
        wakeups=wakeups,
        packets_per_wakeup=None if moved is None or not wakeups else moved / wakeups,
        regimes=_shares(worker["counters"], old_worker.get("counters", {}), seconds),
    )


def _losses(port: Picture) -> dict[str, int]:
    """Packets lost by reason: the kernel's first, which come first on a packet's way."""
    kernel = {name: port["kernel"][name] for name in KERNEL_LOSSES}
    return kernel | dict(port["counters"]["drops"])


def _rates(now: Mapping[str, int], before: Mapping[str, int], seconds: float) -> dict[str, float] | None:
    """The rate of each; None if one is unknown."""
    rates = {name: per_second(count, before.get(name), seconds) for name, count in now.items()}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    return known if len(known) == len(rates) else None


def _levels(port: Picture) -> dict[str, Level]:
    counters = port["counters"]
    high = counters.get("ring_high_water", {})
    return {
        ring: Level(counters["ring_entries"][ring], port["rings"][ring], high.get(ring)) for ring in RINGS
    }


def _shares(now: Picture, before: Picture, seconds: float) -> dict[str, float] | None:
    """What part of its time a worker spent on what."""
    spent = _rates(now.get("regimes_ns", {}), before.get("regimes_ns", {}), seconds)
    whole = sum(spent.values()) if spent else 0.0
    return {regime: part / whole for regime, part in spent.items()} if spent and whole else None


def by_name(row: SocketRow) -> tuple[object, ...]:
    """A key that sorts eth10 after eth9, and queue 10 after queue 9."""
    words = re.split(r"(\d+)", row.interface)  # every other one is a number
    return row.path, row.queue, [int(word) if index % 2 else word for index, word in enumerate(words)]


def by_rate(row: SocketRow) -> tuple[object, ...]:
    """A key that sorts the busiest first."""
    return -(row.rx or 0.0), *by_name(row)


def by_loss(row: SocketRow) -> tuple[object, ...]:
    """A key that sorts the worst first: what loses now, what does not forward, what has lost most."""
    return -(row.losing_packets or 0.0), row.state == "forwarding", -row.lost_packets, *by_name(row)
