"""How exact is a limit, and where is the right place for it? Two measurements.

    python -m bench.limits [--quick] [--rounds N] [--seconds S] [--only WORD]     (as scripts/bench --limits)

Exactness: far more is offered than the limit, and what comes through in five seconds is counted at the far
end. One queue, and four, of which each has its share and its load.

The place: nine of ten packets of a flood are to be dropped, and the tenth is somebody else's. What comes
through of these if the XDP program drops the others, and what if they come to user space first? For that no
worker with a token bucket is needed: in either case the flood's frames are longer than the far link can take,
so a worker that gets one drops it at its first look. That is the least that policing in a worker could cost.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from typing_extensions import override

from bench import bpf, machine, series
from bench.bpf import MIX_OF
from bench.contenders import run_xskd, verdicts
from bench.generator import Load, open_flows
from bench.machine import FORWARDER_CPU, Usage
from bench.measurement import Measurement
from bench.series import Series, spread, table
from bench.stand import NotForwardingError
from bench.throughput import flood
from lab import Topology, entered
from xskd import control
from xskd.errors import XskdError

GOAL = 0.02  # of the configured rate
_READY_WITHIN, _WARM_UP = 20.0, 1.5  # seconds


@dataclass(frozen=True)
class Limit:
    """A limit that is configured, and the size of the frames it is offered."""

    key: str
    rate: int  # of what the key says
    place: str = "rule"
    frame_bytes: int = 64

    @property
    def text(self) -> str:
        """Return what the tables call it."""
        return f"{self.rate:,} {self.key.replace('_', ' ')}, {self.place}"

    @property
    def unit(self) -> int:
        """Return how much of the rate a frame takes."""
        return 1 if self.key == "packets_per_second" else 8 * self.frame_bytes


LIMITS = (
    *(Limit("packets_per_second", rate) for rate in (1_000, 10_000, 100_000, 500_000)),
    Limit("packets_per_second", 100_000, "path"),
    *(Limit("bits_per_second", rate, frame_bytes=1500) for rate in (10_000_000, 100_000_000, 1_000_000_000)),
)
QUEUES = (1, 4)


@dataclass(frozen=True, kw_only=True)
class Accuracy(Measurement):
    """What came through a limit: packets a second, and what reached the program."""

    limit: str
    queues: int
    passed: float
    offered: float
    ratio: float  # passed / configured
    let_through: float  # by the program / configured: what it lacks was lost behind the limit

    @override
    def figures(self) -> str:
        offered = f"{self.offered / 1e3:.0f} kpps offered"
        passed = f"{self.ratio:.4f} of it passed ({self.let_through:.4f} the program)"
        return f"{self.limit}, {self.queues} queues: {passed}, {offered}"


@dataclass(frozen=True, kw_only=True)
class Remains(Measurement):
    """What came through of the packets that nobody limits: thousands a second."""

    way: str
    kpps: float
    offered: float  # of these packets, to the interface
    cpu: float  # of the worker and its supervisor, as a part of one CPU

    @override
    def figures(self) -> str:
        return (
            f"{self.way}: {self.kpps:.0f} of {self.offered:.0f} kpps of the others pass, CPU {self.cpu:.0%}"
        )


@contextmanager
def running(
    queues: int, eth1: dict[str, Any], path: dict[str, Any], mtu: int | None = None
) -> Iterator[tuple[Topology, Path]]:
    """Run xskd between h0 and h1 on the forwarder's CPU, all its workers bound; with eth2's MTU if given."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        Topology("xskd-bench", queues=queues) as lab,
    ):
        workdir = Path(directory)
        with entered(lab.hosts[1]):
            bpf.attach(bpf.DROP, "eth0")
        if mtu is not None:
            lab.run(lab.dut, "ip", "link", "set", "eth2", "mtu", str(mtu))
        socket = workdir / "control.sock"
        run_xskd(
            *(lab, workdir),
            {
                "interfaces": {"eth1": eth1, "eth2": {}},
                "paths": {"bench": {"connect": ["eth1", "eth2"], "cpus": [FORWARDER_CPU], **path}},
                "control": {"socket": str(socket)},
            },
        )
        deadline = time.monotonic() + _READY_WITHIN
        while not _ready(socket):
            if time.monotonic() > deadline:
                raise NotForwardingError(f"xskd did not get ready; it said:\n{(workdir / 'log').read_text()}")
            time.sleep(0.1)
        yield lab, socket


def _ready(socket: Path) -> bool:
    try:
        return bool(control.ask(socket, "status")["status"]["ready"])
    except XskdError:
        return False


@dataclass(frozen=True)
class Look:
    """Three counters, each with the time at which it had been read: together that takes some time."""

    counts: tuple[int, ...]
    times: tuple[float, ...]

    def rates(self, then: Look) -> tuple[float, ...]:
        """Return packets a second from this look to a later one."""
        each = zip(self.counts, then.counts, self.times, then.times, strict=True)
        return tuple((after - before) / (end - start) for before, after, start, end in each)


def _look(lab: Topology, socket: Path) -> Look:
    """Read what has arrived at the far end, what has reached the program, and what it has let through."""
    counts, times = [], []
    reads: tuple[Callable[[], int], ...] = (
        lambda: lab.counters(lab.hosts[1], "eth0").rx_packets,
        lambda: lab.counters(lab.dut, "eth1").rx_packets,
        lambda: verdicts(socket, "redirected"),
    )
    for read in reads:
        counts.append(read())
        times.append(time.monotonic())
    return Look(tuple(counts), tuple(times))


def accuracy(limit: Limit, queues: int, seconds: float, number: int) -> Accuracy:
    """Offer far more than the limit, count what comes through."""
    key = {limit.key: limit.rate}
    # Everything of the load matches the rule; the path's limit is asked when there are no rules too.
    rules = [{"protocol": "udp", "verdict": "redirect", "limit": key}]
    eth1, path = ({"rules": rules}, {}) if limit.place == "rule" else ({}, {"limit": key})
    load = Load(frame_bytes=limit.frame_bytes, flows=queues > 1)
    before = machine.speed()
    with running(queues, eth1, path) as (lab, socket):
        if queues > 1:
            open_flows(lab)
        flood(lab, load)
        time.sleep(_WARM_UP)
        first, start = Usage.now(), _look(lab, socket)
        time.sleep(seconds)
        end, last = _look(lab, socket), Usage.now()
        strangers = _strangers(lab, first, last, seconds)
    through, offered, let = start.rates(end)
    return Accuracy(
        round=number,
        contender="xskd",
        limit=limit.text,
        queues=queues,
        passed=through,
        offered=offered,
        ratio=through * limit.unit / limit.rate,
        let_through=let * limit.unit / limit.rate,
        strangers=strangers,
        speed_before=before,
        speed_after=machine.speed(),
    )


def _counted(lab: Topology) -> tuple[int, int]:
    """What has arrived at the far end, and what has reached the program."""
    return lab.counters(lab.hosts[1], "eth0").rx_packets, lab.counters(lab.dut, "eth1").rx_packets


def _ours(lab: Topology) -> set[int]:
    listed = " ".join(
        lab.run(lab.dut, "ip", "netns", "pids", where).stdout for where in (lab.dut, lab.hosts[0])
    )
    return {int(pid) for pid in listed.split()}


def _strangers(lab: Topology, first: Usage, last: Usage, seconds: float) -> float:
    ours = _ours(lab)
    return (last.strangers(ours) - first.strangers(ours)) / seconds


SHARE, OTHER_PORT, FLOOD_BYTES, FAR_MTU = 3, 10, 128, 80
MIX = Load(frame_bytes=FLOOD_BYTES, share=SHARE, other_port=OTHER_PORT)
ALONE = Load(port=OTHER_PORT)
_FLOOD = {"protocol": "udp", "destination_port": MIX.port}
WAYS: dict[str, tuple[Load, list[dict[str, Any]]]] = {
    "no flood, only the others": (ALONE, []),
    "dropped by the worker": (MIX, []),
    "over the limit of a rule, dropped by the program": (
        MIX,
        [{**_FLOOD, "verdict": "redirect", "limit": {"packets_per_second": 1000}}],
    ),
    "verdict drop, by the program": (MIX, [{**_FLOOD, "verdict": "drop"}]),
}


def remains(way: str, seconds: float, number: int) -> Remains:
    """Flood, and count those packets that the flood is not."""
    load, rules = WAYS[way]
    before = machine.speed()
    with running(1, {"rules": rules} if rules else {}, {}, FAR_MTU) as (lab, _):
        flood(lab, load)
        time.sleep(_WARM_UP)
        first, start = Usage.now(), time.monotonic()
        passed, sent = _counted(lab)[0], lab.counters(lab.hosts[0], "eth0")
        time.sleep(seconds)
        passed_then, sent_then = _counted(lab)[0], lab.counters(lab.hosts[0], "eth0")
        end, last = time.monotonic(), Usage.now()
        forwarding = {int(pid) for pid in lab.run(lab.dut, "ip", "netns", "pids", lab.dut).stdout.split()}
        cpu = last.of(forwarding).total - first.of(forwarding).total
        strangers = _strangers(lab, first, last, end - start)
    took = end - start
    offered = sent_then.tx_packets + sent_then.tx_dropped - sent.tx_packets - sent.tx_dropped
    return Remains(
        round=number,
        contender="xskd",
        way=way,
        kpps=(passed_then - passed) / took / 1e3,
        offered=offered * (SHARE / MIX_OF if load.share else 1) / took / 1e3,
        cpu=cpu / took,
        strangers=strangers,
        speed_before=before,
        speed_after=machine.speed(),
    )


def trials() -> dict[str, series.Trial[Measurement]]:
    """Return everything that is measured, by name."""
    found: dict[str, series.Trial[Measurement]] = {f"place: {way}": partial(remains, way) for way in WAYS}
    for limit in LIMITS:
        for queues in QUEUES:
            if queues == 1 or shutil.which("nft"):
                found[f"exactness: {limit.text}, {queues} queues"] = partial(accuracy, limit, queues)
    return found


def page(measured: Series[Measurement]) -> str:
    """Render the record."""
    good = measured.good(lambda _: True)
    exact = [one for one in good if isinstance(one, Accuracy)]
    places = [one for one in good if isinstance(one, Remains)]
    lines = measured.heading("connect on veth, native XDP, AF_XDP in copy mode.")
    lines += ["**passed, as a part of what is configured**", ""]
    rows = []
    for limit in LIMITS:
        for queues in QUEUES:
            of_it = [one for one in exact if (one.limit, one.queues) == (limit.text, queues)]
            figures = (
                spread([one.ratio for one in of_it], 4),
                spread([one.let_through for one in of_it], 4),
                spread([one.offered / 1e3 for one in of_it]),
            )
            worst = max((abs(one.ratio - 1) for one in of_it), default=None)
            rows.append([f"{limit.text}, {queues} queue{'s'[: queues - 1]}", *figures, _judged(worst)])
    heads = ["limit", "arrived / configured", "let through / configured"]
    lines += table([*heads, "offered, thousand packets/s", "farthest off"], rows)
    lines += [
        f"**what remains for others when {1 - SHARE / MIX_OF:.0%} of the packets offered are to be dropped**",
        "",
    ]
    rows = []
    for way in WAYS:
        of_it2 = [one for one in places if one.way == way]
        part = f"{median(one.kpps / one.offered for one in of_it2):.2f}" if of_it2 else "-"
        speeds = spread([one.kpps for one in of_it2]), spread([one.offered for one in of_it2])
        cpu = f"{median(one.cpu for one in of_it2):.0%}" if of_it2 else "-"
        rows.append([way, *speeds, part, cpu])
    heads = ["way", "others passed, thousand/s", "others offered, thousand/s", "part", "worker's CPU"]
    lines += table(heads, rows)
    return "\n".join([*lines, *measured.ending()])


def _judged(worst: float | None) -> str:
    if worst is None:
        return "-"
    return f"{worst:.2%}{'' if worst <= GOAL else ', more than the goal'}"


def main() -> int:
    """Measure all of it; the page is kept as bench/results/limits.md."""
    arguments = series.options(
        "limits", "How exact is a limit, and where is its place?", rounds=3, seconds=5.0
    )
    measured = series.carry_out("limits", trials(), arguments, {})
    series.keep(measured, page(measured), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
