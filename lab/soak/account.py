"""Where packets went, and what the daemon's processes hold: the soak's two measurements.

A Balance is read when nothing is on its way; the difference of two says of what happened in between which
packets were sent, which arrived, and under which name each missing one was counted. What nobody counted is
the remainder, never assumed to be nothing. A Sample is what the daemon's processes hold at one moment.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.machine import Machine

SETTLE_SECONDS = 5.0
PAGE = 4096  # bytes


@dataclass(frozen=True)
class Balance:
    """Packets since the beginning: sent by the hosts, arrived at them, and counted as lost, by reason."""

    sent: int = 0
    arrived: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    def __sub__(self, other: Balance) -> Balance:
        lost = Counter({why: self.lost[why] - other.lost[why] for why in self.lost | other.lost})
        return Balance(self.sent - other.sent, self.arrived - other.arrived, +lost)

    @property
    def uncounted(self) -> int:
        """Packets that neither arrived nor were counted; below 0: counted twice, or arrived twice."""
        return self.sent - self.arrived - self.lost.total()


def balance(machine: Machine, status: Mapping[str, Any]) -> Balance:
    """Add it all up, at one moment."""
    lab = machine.lab
    hosts = [lab.counters(ns, "eth0") for ns in lab.hosts]
    ours = [lab.counters(lab.dut, dev) for dev in lab.dut_devs]
    lost: Counter[str] = Counter()
    for worker in status["workers"]:
        for port in worker["ports"]:
            lost.update({f"xskd: {why}": count for why, count in port["counters"]["drops"].items()})
            for name in ("rx_dropped", "rx_ring_full", "tx_invalid_descs"):
                lost[f"kernel: {name}"] += port["kernel"][name]
    for interface in status["interfaces"]:
        verdicts = interface["verdicts"]
        for name in (
            "passed",
            "dropped",
            "rule_limited",
            "path_limited",
            "no_socket_passed",
            "no_socket_dropped",
        ):
            lost[f"program: {name}"] += verdicts[name]
    # What the kernel refuses to send for a socket, on a link without carrier, it tells the socket as well.
    refused = lost["xskd: tx_refused"]
    lost["interface: tx_dropped, told nobody"] = sum(each.tx_dropped for each in ours) - refused
    return Balance(sum(h.tx_packets for h in hosts), sum(h.rx_packets for h in hosts), lost)


def settled(machine: Machine, ask: Callable[[], Mapping[str, Any]], since: Balance) -> Balance:
    """Add it all up when nothing moves any more.

    What is neither here nor counted may still be on its way on a machine that is busy with other things, so
    that is waited for as well, but not for ever. XskdError if the daemon does not answer.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    before = balance(machine, ask())
    while True:
        time.sleep(0.2)
        now = balance(machine, ask())
        if now == before and (not (now - since).uncounted or time.monotonic() > deadline):
            return now
        before = now


@dataclass(frozen=True)
class Sample:
    """What the daemon's processes hold: bytes of memory, descriptors; and how old the soak is, in seconds."""

    at: float
    supervisor_memory: int
    supervisor_fds: int
    workers_memory: int
    workers_fds: int
    processes: int


def sample(machine: Machine, status: Mapping[str, Any], at: float) -> Sample:
    """Look into /proc. OSError if a process ends meanwhile."""
    workers = [worker["pid"] for worker in status["workers"] if worker["pid"]]
    return Sample(
        at,
        *_holds(machine, status["pid"]),
        sum(_holds(machine, pid)[0] for pid in workers),
        sum(_holds(machine, pid)[1] for pid in workers),
        1 + len(workers),
    )


def _holds(machine: Machine, pid: int) -> tuple[int, int]:
    """Bytes that nobody else has (packet memory is shared), and descriptors."""
    process = machine.box.path(f"/proc/{pid}")
    _, resident, shared = map(int, (process / "statm").read_text("ascii").split()[:3])
    return (resident - shared) * PAGE, len(list((process / "fd").iterdir()))


def slope(samples: Sequence[Sample], name: str) -> float:
    """Growth an hour by least squares; 0 of fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    middle = sum(each.at for each in samples) / len(samples)
    mean = sum(getattr(each, name) for each in samples) / len(samples)
    spread = sum((each.at - middle) ** 2 for each in samples)
    together = sum((each.at - middle) * (getattr(each, name) - mean) for each in samples)
    return together / spread * 3600 if spread else 0.0


def broken(status: Mapping[str, Any]) -> list[str]:
    """Name every worker whose frames are not all where they should be."""
    found = []
    for worker in status["workers"]:
        counters = worker["counters"]
        if counters["frames_unaccounted"] or sum(counters["frames_in"].values()) != counters["frames"]:
            found.append(f"{worker['name']}: frames {counters['frames_in']} of {counters['frames']}")
    return found


def went_back(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Name every counter that is smaller than it was."""
    known = dict(_counters(before))
    return [f"{name}: {known[name]} -> {now}" for name, now in _counters(after) if now < known.get(name, 0)]


def _counters(status: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every count of packets, by a name of its own."""
    for worker in status["workers"]:
        yield f"{worker['name']} turns", worker["counters"]["turns"]
        for port in worker["ports"]:
            for place in ("counters", "kernel"):
                for name, value in port[place].items():
                    if isinstance(value, int):
                        yield f"{worker['name']} {port['interface']} {name}", value
            for why, value in port["counters"]["drops"].items():
                yield f"{worker['name']} {port['interface']} drop {why}", value
    for interface in status["interfaces"]:
        for name, value in interface["verdicts"].items():
            yield f"{interface['name']} {name}", value


def well(status: Mapping[str, Any]) -> bool:
    """Tell whether every worker forwards and every path runs."""
    return not status["waiting"] and all(worker["state"] == "forwarding" for worker in status["workers"])
