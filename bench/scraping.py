"""What does being watched cost? Speed with and without scrapes, and how long a scrape of 64 workers takes.

    python -m bench.scraping [--rounds N] [--seconds S]        (as scripts/bench --scraping)

Windows without scrapes, with ten scrapes a second and with one after the other follow each other in one run,
so the machine's phases hit all three. There are two CPUs, one for the load, which offers several times what
is forwarded, and one for the worker. Whoever scrapes shares the first; the supervisor makes its pages off the
worker's CPU, and its loop is wherever the scheduler puts it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from bench import bpf, machine
from bench.contenders import launch
from lab import Topology, entered

ADDRESS = "127.0.0.1:9478"
FRAME_BYTES = 64
INTERVALS = {"no scrapes": None, "10 scrapes a second": 0.1, "one after the other": 0.0}
MANY, SCRAPES = 64, 30
_READY_WITHIN = 60.0

_ONE = f"""
interfaces: {{eth1: {{}}, eth2: {{}}}}
paths: {{bench: {{connect: [eth1, eth2], cpus: [{machine.FORWARDER_CPU}]}}}}
metrics: {{listen: "{ADDRESS}"}}
"""
_MANY = f"""
interfaces: {{eth1: {{rings: {{fill: 64, rx: 64, tx: 64, completion: 64}}}}}}
paths: {{bench: {{reflect: eth1, poll: wakeup}}}}
metrics: {{listen: "{ADDRESS}"}}
"""


def scrape() -> str:
    """Fetch the page, in the namespace that the calling thread is in."""
    with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=10) as page:
        return str(page.read().decode())


@contextlib.contextmanager
def daemon(yaml: str, queues: int) -> Iterator[Topology]:
    """xskd in a lab, ready when all its workers are up."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as workdir,
        Topology("xskd-bench", queues=queues) as lab,
    ):
        config = Path(workdir) / "xskd.yaml"
        config.write_text(f"{yaml}control: {{socket: {workdir}/control.sock}}\n")
        launch(lab, Path(workdir), sys.executable, "-m", "xskd", "run", "-c", str(config))
        with entered(lab.dut):
            _until(lambda: scrape().count("xskd_worker_up{") > 0 and "} 0" not in _ups())
        yield lab


def _ups() -> str:
    return "\n".join(line for line in scrape().splitlines() if line.startswith("xskd_worker_up{"))


def _until(well: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while True:
        with contextlib.suppress(OSError):
            if well():
                return
        if time.monotonic() > deadline:
            raise TimeoutError("xskd did not get ready")
        time.sleep(0.2)


@contextlib.contextmanager
def scraped(lab: Topology, interval: float | None) -> Iterator[list[float]]:
    """Scrape from a thread meanwhile; the seconds that each took."""
    took: list[float] = []
    ended = threading.Event()

    def work() -> None:
        os.sched_setaffinity(0, {machine.LOAD_CPU})  # this thread's: Prometheus is on another machine
        with entered(lab.dut):
            while interval is not None and not ended.is_set():
                began = time.monotonic()
                scrape()
                took.append(time.monotonic() - began)
                ended.wait(max(interval - took[-1], 0))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join()


def speeds(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Thousand packets a second of each round, by how often there was a scrape."""
    found: dict[str, list[float]] = {name: [] for name in INTERVALS}
    with daemon(_ONE, queues=1) as lab:
        with entered(lab.hosts[1]):
            bpf.attach(bpf.DROP, "eth0")
        flood = _flood(lab)
        time.sleep(1.0)
        for number in range(rounds):
            names = list(INTERVALS)
            for name in [*names[number % 3 :], *names[: number % 3]]:
                with scraped(lab, INTERVALS[name]):
                    found[name].append(_kpps(lab, seconds))
                print(f"round {number + 1}: {name}: {found[name][-1]:.0f} kpps", file=sys.stderr)
        if flood.poll() is not None:
            raise RuntimeError("the generator ended early")
    return found


def _flood(lab: Topology) -> subprocess.Popen[bytes]:
    pinned = ("taskset", "-c", str(machine.LOAD_CPU))
    return lab.popen(lab.hosts[0], *pinned, sys.executable, "-m", "bench.generator", str(FRAME_BYTES))


def _kpps(lab: Topology, seconds: float) -> float:
    before, start = lab.counters(lab.hosts[1], "eth0"), time.monotonic()
    time.sleep(seconds)
    after, end = lab.counters(lab.hosts[1], "eth0"), time.monotonic()
    return (after.rx_packets - before.rx_packets) / (end - start) / 1e3


def many_workers() -> tuple[int, list[float]]:
    """Lines of the page of 64 workers that have nothing to do, and the seconds of each scrape."""
    with daemon(_MANY, queues=MANY) as lab, entered(lab.dut):
        lines, took = 0, []
        for _ in range(SCRAPES):
            began = time.monotonic()
            lines = scrape().count("\n")
            took.append(time.monotonic() - began)
            time.sleep(0.1)
    return lines, took


def report(found: dict[str, list[float]], lines: int, took: Sequence[float], seconds: float) -> str:
    """Everything in Markdown: medians, smallest to largest, and the machine beside them."""
    host = machine.facts()
    without = median(found["no scrapes"])
    rows = [
        f"| {name} | {median(kpps):.0f} ({min(kpps):.0f} to {max(kpps):.0f}) | {median(kpps) / without:.3f} |"
        for name, kpps in found.items()
    ]
    rounds = len(found["no scrapes"])
    milliseconds = sorted(1000 * one for one in took)
    return "\n".join(
        [
            f"{host['cpu']} ({host['cores']} cores, {host['virtual']}), kernel {host['kernel']}, "
            f"{host['system']}; veth, native XDP, copy mode, one queue, {FRAME_BYTES} bytes; {rounds} rounds "
            f"of {seconds:g} s in turn, median (smallest to largest).",
            "",
            "| scrapes | thousand packets/s | of that without |",
            "| --- | ---: | ---: |",
            *rows,
            "",
            f"A scrape of {MANY} workers, {lines:,} lines, over HTTP, {len(took)} times: median "
            f"{median(milliseconds):.0f} ms, {milliseconds[0]:.0f} to {milliseconds[-1]:.0f} ms.",
            "",
        ]
    )


def main() -> int:
    """Measure all of it and print the report; it is kept as bench/results/scraping.md."""
    parser = argparse.ArgumentParser(prog="scripts/bench --scraping")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root, to make network namespaces", file=sys.stderr)
        return 1
    Topology.cleanup_stale("xskd-bench")
    text = report(speeds(arguments.rounds, arguments.seconds), *many_workers(), arguments.seconds)
    print(text)
    (Path(__file__).parent / "results" / "scraping.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
