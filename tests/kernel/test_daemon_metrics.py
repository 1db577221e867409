"""What /metrics says of workers and their rings, each number moved by what really moves it.

The causes are a worker that is held up, an egress that takes nothing, packets that never come to rest, a CPU
that is shared, and kills. What needs no daemon of its own is marked in other files; tests/unit/test_moves.py
knows all of it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import Daemon, Lane, Stream, connect, paths, running, total
from scrapes import Metrics
from test_daemon_adoption import kill, kill_newcomer

from lab import entered
from xskd.metrics import TABLE

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

SOON = 20.0  # seconds, for what takes some slices of a worker on a busy machine
HELD_UP = 0.3  # seconds; the supervisor takes 1.5 for a hang
FLOOD = 100  # packets

moves = pytest.mark.moves


def shows(daemon: Daemon, condition: Callable[[Metrics], bool]) -> bool:
    """Tell whether the metrics come to be like this."""
    return daemon.net.eventually(lambda: condition(daemon.metrics()), SOON)


def comes_to(daemon: Daemon, value: float, name: str, **labels: str) -> bool:
    return shows(daemon, lambda metrics: total(metrics, name, **labels) == value)


def grows(daemon: Daemon, name: str, *, by: float = 0.0, **labels: str) -> bool:
    return more_than(daemon.metrics(), daemon, name, by=by, **labels)


def more_than(before: Metrics, daemon: Daemon, name: str, *, by: float = 0.0, **labels: str) -> bool:
    least = total(before, name, **labels) + by
    return shows(daemon, lambda metrics: total(metrics, name, **labels) > least)


def in_bucket(metrics: Metrics, name: str, bound: int, **labels: str) -> float:
    """Count what is in one bucket of bursts, without those below it."""
    below = total(metrics, f"{name}_bucket", le=f"{bound / 2}", **labels) if bound > 1 else 0
    return total(metrics, f"{name}_bucket", le=f"{float(bound)}", **labels) - below


@contextmanager
def held_up(daemon: Daemon, name: str = "wire/0") -> Iterator[None]:
    """Stop a worker for as long as this takes, and let it go on."""
    pid = daemon.workers()[name]
    os.kill(pid, signal.SIGSTOP)
    try:
        stat = Path(f"/proc/{pid}/stat")
        assert daemon.net.eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# ---- rings -----------------------------------------------------------------------------------------


@moves("xskd_xdp_statistics", stat=("rx_ring_full", "rx_dropped", "rx_fill_ring_empty_descs"))
@moves("xskd_ring_full", ring=("fill", "rx"))
@moves("xskd_ring_empty", ring=("fill", "rx"))
@moves("xskd_ring_high_water_entries", ring=("fill", "rx"))
@moves("xskd_worker_heartbeat_age_seconds")
def test_a_worker_that_is_held_up_and_has_rings_too_small(wire: MakeWire, tmp_path: Path) -> None:
    """What comes in at eth1 finds RX full, what comes in at eth2 finds FILL empty."""
    net = wire()
    rings = "rings: {{fill: {}, rx: {}, tx: 256, completion: 256}}"
    text = (
        f"interfaces: {{eth1: {{{rings.format(256, 64)}}}, eth2: {{{rings.format(64, 256)}}}}}\n"
        "paths: {wire: {connect: [eth1, eth2]}}\n"
    )
    eth1, eth2 = {"interface": "eth1"}, {"interface": "eth2"}
    with running(net, tmp_path, text) as daemon:
        assert comes_to(daemon, 256, "xskd_ring_high_water_entries", ring="fill", **eth1)
        series = names(daemon.metrics())
        with held_up(daemon):
            Lane(net).send(net.frames(FLOOD))
            Lane(net, host=1).send(net.frames(FLOOD))
            began = time.monotonic()
            assert names(daemon.metrics()) == series
            assert time.monotonic() - began < 1  # a scrape waits for nobody
            assert shows(daemon, lambda m: total(m, "xskd_worker_heartbeat_age_seconds") > HELD_UP)
        assert comes_to(daemon, 2 * 64, "xskd_rx_packets")
        assert shows(daemon, lambda m: total(m, "xskd_ring_high_water_entries", ring="rx", **eth1) == 64)
        metrics = daemon.metrics()
        assert total(metrics, "xskd_xdp_statistics", stat="rx_ring_full") == FLOOD - 64
        assert total(metrics, "xskd_xdp_statistics", stat="rx_dropped") == FLOOD - 64
        assert total(metrics, "xskd_xdp_statistics", stat="rx_fill_ring_empty_descs", **eth2) >= FLOOD - 64
        assert total(metrics, "xskd_ring_full", ring="rx", **eth1) == 1
        assert total(metrics, "xskd_ring_empty", ring="fill", **eth2) == 1
        assert total(metrics, "xskd_ring_empty", ring="fill", **eth1) == 0
        assert total(metrics, "xskd_worker_heartbeat_age_seconds") < HELD_UP
        assert comes_to(daemon, 0, "xskd_ring_high_water_entries", ring="rx", **eth1)
        assert total(daemon.metrics(), "xskd_ring_full", ring="fill", **eth2) >= 2  # again


def names(metrics: Metrics) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Name all series of ours."""
    return {
        (name, frozenset(labels.items()))
        for name, samples in metrics.items()
        if name.startswith("xskd_")
        for labels, _ in samples
    }


@moves("xskd_dropped_packets", reason=("tx_full", "tx_refused"))
@moves("xskd_wakeup_errors", errno=("EBUSY", "ENETDOWN"))
@moves("xskd_wakeups", reason="left")
@moves("xskd_tx_blocked_turns")
@moves("xskd_ring_full", ring="tx")
@moves("xskd_ring_empty", ring="tx")
@moves("xskd_ring_entries", ring="tx")
@moves("xskd_ring_high_water_entries", ring="tx")
@moves("xskd_frames", state=("tx", "free"))
def test_an_egress_that_takes_nothing(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    rings = "rings: {fill: 512, rx: 512, tx: 256, completion: 256}"
    eth1, eth2 = {"interface": "eth1"}, {"interface": "eth2"}
    with running(net, tmp_path, connect(interface=rings)) as daemon:
        lane = Lane(net)
        net.link(net.hosts[1], "eth0", "down")  # no carrier: each packet is refused by itself
        lane.send(net.frames(FLOOD))
        assert comes_to(daemon, FLOOD, "xskd_dropped_packets", reason="tx_refused", **eth2)
        assert total(daemon.metrics(), "xskd_wakeup_errors", errno="EBUSY", **eth2) == FLOOD
        net.up(net.hosts[1], "eth0")
        net.link(net.dut, "eth2", "down")
        free = total(daemon.metrics(), "xskd_frames", state="free")

        def dropped() -> bool:
            lane.send(net.frames(FLOOD))
            return total(daemon.metrics(), "xskd_dropped_packets", reason="tx_full", **eth1) > 0

        assert net.eventually(dropped, SOON)
        assert comes_to(daemon, 256, "xskd_ring_entries", ring="tx", **eth2)
        assert comes_to(daemon, 256, "xskd_frames", state="tx")
        metrics = daemon.metrics()
        assert total(metrics, "xskd_frames", state="free") < free
        assert total(metrics, "xskd_ring_high_water_entries", ring="tx", **eth2) == 256
        assert total(metrics, "xskd_ring_full", ring="tx", **eth2) == 1
        assert total(metrics, "xskd_wakeup_errors", errno="ENETDOWN", **eth2) > 0
        assert total(metrics, "xskd_wakeups", reason="left", **eth2) > 0
        assert total(metrics, "xskd_tx_blocked_turns", **eth1) > 0
        emptied = total(metrics, "xskd_ring_empty", ring="tx", **eth2)
        net.up(net.dut, "eth2")
        assert comes_to(daemon, 0, "xskd_ring_entries", ring="tx", **eth2)
        assert comes_to(daemon, 0, "xskd_ring_high_water_entries", ring="tx", **eth2)
        assert total(daemon.metrics(), "xskd_ring_empty", ring="tx", **eth2) > emptied
        assert total(daemon.metrics(), "xskd_tx_blocked_turns", **eth2) == 0


# ---- bursts and times ------------------------------------------------------------------------------


@moves("xskd_rx_batch_packets")
@moves("xskd_tx_batch_packets")
@moves("xskd_ring_full", ring="completion")
@moves("xskd_ring_empty", ring="completion")
@moves("xskd_ring_high_water_entries", ring="completion")
@moves("xskd_wakeups", reason="new")
@moves("xskd_wakeups_skipped", direction="rx")
@moves("xskd_xdp_statistics", stat="tx_ring_empty_descs")
def test_single_packets_and_whole_bursts(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    rings = "rings: {fill: 256, rx: 256, tx: 64, completion: 64}"  # a burst is all that completion holds
    came, left = {"interface": "eth1"}, {"interface": "eth2"}
    with running(net, tmp_path, connect(interface=rings)) as daemon:
        lane, tap = Lane(net), net.taps[1]
        for packet in net.frames(20):
            assert lane.through([packet], tap) == [packet]
        assert comes_to(daemon, 20, "xskd_tx_completed_packets")
        metrics = daemon.metrics()
        assert in_bucket(metrics, "xskd_rx_batch_packets", 1, **came) == 20
        assert in_bucket(metrics, "xskd_tx_batch_packets", 1, **left) == 20
        assert total(metrics, "xskd_wakeups", reason="new", call="sendto", direction="tx", **left) == 20
        assert total(metrics, "xskd_wakeups_skipped", direction="rx", **came) >= 20
        assert total(metrics, "xskd_ring_full", ring="completion") == 0
        with held_up(daemon):
            lane.send(net.frames(128))
        assert comes_to(daemon, 20 + 128, "xskd_tx_completed_packets")
        assert comes_to(daemon, 64, "xskd_ring_high_water_entries", ring="completion", **left)
        metrics = daemon.metrics()
        assert in_bucket(metrics, "xskd_rx_batch_packets", 64, **came) == 2
        assert in_bucket(metrics, "xskd_tx_batch_packets", 64, **left) == 2
        assert total(metrics, "xskd_ring_full", ring="completion", **left) >= 1
        assert total(metrics, "xskd_ring_empty", ring="completion", **left) >= 21
        assert total(metrics, "xskd_xdp_statistics", stat="tx_ring_empty_descs", **left) > 0
        assert_histograms(metrics)


def assert_histograms(metrics: Metrics) -> None:
    """Each bucket holds those below it, the last one all, and the sum is what they can make."""
    for row in TABLE:
        for labels, count in metrics[f"{row.name}_count"] if row.kind == "histogram" else ():
            samples = [s for s in metrics[f"{row.name}_bucket"] if labels.items() <= s[0].items()]
            bounds, counts = [float(given["le"]) for given, _ in samples], [value for _, value in samples]
            assert (bounds, counts) == (sorted(bounds), sorted(counts)), (row.name, labels)
            assert (bounds[-1], counts[-1]) == (float("inf"), count)
            added = total(metrics, f"{row.name}_sum", **labels)
            within = [more - less for less, more in pairwise([0.0, *counts])]
            least = sum(n * bound for n, bound in zip(within, [0.0, *bounds[:-1]], strict=True))
            most = sum(n * bound for n, bound in zip(within, bounds, strict=True) if n)
            assert least <= added <= most, (row.name, labels)
            if row.name.endswith("_batch_packets"):
                assert added == total(metrics, row.name.replace("_batch", ""), **labels)


@contextmanager
def echoes(net: Wire, tmp_path: Path) -> Iterator[tuple[Daemon, Callable[[], None]]]:
    """Run two reflecting workers that face each other; what is called sends packets between them."""
    net.run(net.dut, "ip", "link", "add", "eth8", "type", "veth", "peer", "name", "eth9")
    for dev in ("eth8", "eth9"):
        net.link(net.dut, dev, "addrgenmode", "none")
        net.link(net.dut, dev, "up")
    with entered(net.dut):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    text = paths("one: {reflect: eth8, cpus: [0]}, two: {reflect: eth9, cpus: [1]}", "eth8", "eth9")
    with raw, running(net, tmp_path, text) as daemon:
        raw.bind(("eth8", 0))

        def throw() -> None:
            for packet in net.frames(128):
                raw.send(packet)

        yield daemon, throw


@moves("xskd_latency_seconds")
@moves("xskd_wakeup_seconds", direction="tx")
@moves("xskd_loop_seconds", regime=("working", "waking"))
@moves("xskd_worker_cpu_seconds", mode=("user", "system"))
@moves("xskd_ring_entries", ring=("fill", "rx", "completion"))
@moves("xskd_frames", state=("fill", "rx", "completion"))
def test_packets_that_never_come_to_rest(wire: MakeWire, tmp_path: Path) -> None:
    with echoes(wire(links=1), tmp_path) as (daemon, throw):
        before = daemon.metrics()
        assert total(before, "xskd_frames", state="rx") == total(before, "xskd_ring_entries", ring="rx") == 0
        throw()
        for ring in ("rx", "completion"):
            assert shows(daemon, lambda m: total(m, "xskd_ring_entries", ring=ring) > 0)  # noqa: B023
            assert shows(daemon, lambda m: total(m, "xskd_frames", state=ring) > 0)  # noqa: B023
        assert shows(daemon, lambda m: total(m, "xskd_ring_entries", ring="fill") < 2 * 1024)
        assert shows(daemon, lambda m: total(m, "xskd_frames", state="fill") < 2 * 1024)
        for name in ("latency_seconds_count", "latency_seconds_sum"):
            assert more_than(before, daemon, f"xskd_{name}")
        for name in ("wakeup_seconds_count", "wakeup_seconds_sum"):
            assert more_than(before, daemon, f"xskd_{name}", direction="tx")
        for regime in ("working", "waking"):
            assert more_than(before, daemon, "xskd_loop_seconds", regime=regime)
        for mode in ("user", "system"):
            assert more_than(before, daemon, "xskd_worker_cpu_seconds", mode=mode)


@moves("xskd_loop_seconds", regime=("spinning", "sleeping"))
@moves("xskd_loop_turns")
@moves("xskd_loop_idle_turns")
@moves("xskd_loop_sleeps")
@moves("xskd_worker_context_switches", kind=("voluntary", "involuntary"))
def test_idle_workers_that_share_a_cpu(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()

    def polling(how: str) -> str:
        both = ", ".join(f"p{n}: {{reflect: eth{n}, cpus: [0], poll: {how}}}" for n in (1, 2))
        return paths(both, "eth1", "eth2")

    with running(net, tmp_path, polling("busy")) as daemon:
        for path in ("p1", "p2"):
            assert grows(daemon, "xskd_loop_seconds", regime="spinning", path=path, by=0.05)
            assert grows(daemon, "xskd_worker_context_switches", kind="involuntary", path=path, by=2)
            assert grows(daemon, "xskd_loop_idle_turns", path=path, by=1000)
            assert grows(daemon, "xskd_loop_turns", path=path, by=1000)
        assert total(daemon.metrics(), "xskd_loop_sleeps") == 0
        assert total(daemon.metrics(), "xskd_loop_seconds", regime="sleeping") == 0
        assert daemon.reload(polling("wakeup")) == ["p1/0: poll wakeup", "p2/0: poll wakeup"]
        began, before = time.monotonic(), daemon.metrics()
        for path in ("p1", "p2"):
            assert grows(daemon, "xskd_loop_sleeps", path=path, by=2)
            assert grows(daemon, "xskd_worker_context_switches", kind="voluntary", path=path, by=2)
            assert grows(daemon, "xskd_loop_seconds", regime="sleeping", path=path, by=0.3)
        seconds, after = time.monotonic() - began, daemon.metrics()
    for path in ("p1", "p2"):  # every moment is in one regime
        spent = total(after, "xskd_loop_seconds", path=path) - total(before, "xskd_loop_seconds", path=path)
        assert seconds * 0.5 - 0.3 < spent < seconds * 1.2 + 0.3


# ---- kills -----------------------------------------------------------------------------------------


@contextmanager
def scraping(daemon: Daemon) -> Iterator[list[Metrics]]:
    """Scrape again and again meanwhile."""
    ended = threading.Event()
    scrapes: list[Metrics] = [daemon.metrics()]

    def scrape() -> None:
        while not ended.is_set():
            scrapes.append(daemon.metrics())

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield scrapes
    finally:
        ended.set()
        thread.join()
        scrapes.append(daemon.metrics())


def growing(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Tell every series that must never go back."""
    counted = [row.name for row in TABLE if row.kind == "counter"]
    counted += [
        f"{row.name}_{part}"
        for row in TABLE
        if row.kind == "histogram"
        for part in ("bucket", "sum", "count")
    ]
    return {(name, frozenset(labels.items())): value for name in counted for labels, value in metrics[name]}


def dies(daemon: Daemon, then: Callable[[Daemon], None] = lambda _: None) -> None:
    """Kill a worker under load, do something to its successor, and wait until one forwards."""
    killed = kill(daemon, "wire/0")
    then(daemon)
    daemon.comes("wire/0", other_than=killed)
    assert grows(daemon, "xskd_rx_packets", by=100, queue="0")


@moves("xskd_worker_up")
@moves("xskd_worker_state", state=("starting", "backoff"))
@moves("xskd_worker_restarts")
@moves("xskd_worker_adoptions", result=("adopted", "failed"))
@moves("xskd_worker_gap_seconds")
@moves("xskd_worker_page_faults", kind="minor")
def test_no_counter_goes_back_or_away_while_workers_are_killed(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with (
        running(net, tmp_path) as daemon,
        Stream(net, queue=1),
        Stream(net),
        scraping(daemon) as scrapes,
    ):
        dies(daemon)
        for _ in range(5):  # on a busy machine a successor may be killed only when it has adopted
            dies(daemon, kill_newcomer)
            if total(daemon.metrics(), "xskd_worker_adoptions", result="failed"):
                break
        dies(daemon)
    for before, after in pairwise(map(growing, scrapes)):
        assert before.keys() <= after.keys()
        assert {key: (value, after[key]) for key, value in before.items() if after[key] < value} == {}
    at = {"path": "wire", "queue": "0"}
    down = [scrape for scrape in scrapes if total(scrape, "xskd_worker_up", **at) == 0]
    assert down
    assert all(names(scrapes[0]) <= names(scrape) for scrape in down)
    for state in ("starting", "backoff"):
        assert any(total(scrape, "xskd_worker_state", state=state, **at) for scrape in down)
    first, last = scrapes[0], scrapes[-1]
    assert total(last, "xskd_worker_up", **at) == 1
    adopted, failed = (total(last, "xskd_worker_adoptions", result=r, **at) for r in ("adopted", "failed"))
    assert (adopted >= 2, failed) == (True, 1)
    assert total(last, "xskd_worker_restarts", **at) == adopted + 2 * failed
    assert total(last, "xskd_worker_gap_seconds", **at) > 0
    faults = "xskd_worker_page_faults"
    assert total(last, faults, kind="minor", **at) > total(first, faults, kind="minor", **at)
    print(f"{len(scrapes)} scrapes, {len(down)} of them without the worker")
