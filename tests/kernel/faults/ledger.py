"""What must be so after every fault: nothing lost from the books, nothing left behind, no counter gone back.

A Ledger is opened when a daemon is well, and audited whenever it is said to be well again. An audit waits a
moment for what is on its way out (an answer on the control socket, a process that is being reaped), never
longer.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from contextlib import suppress
from pathlib import Path

from conftest import Wire
from daemon import Daemon, bpf_objects, memory_kb, total
from manager import Managed
from scrapes import Metrics, went_back

MOMENT = 10.0  # seconds for what is on its way out


class Ledger:
    """The books of one daemon from now on; `rss` has its supervisor's resident memory in kB, as noted."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._net = daemon, daemon.net
        self.first = self._last = daemon.metrics()
        self._fell = dropped(self._net)
        self._held = holdings(daemon)
        self._workers = set(daemon.workers())
        self.rss = [memory_kb(daemon.pid, "VmRSS")]

    def audit(self, *, same: bool = True) -> None:
        """Compare everything with how it was; without `same` programs may be others, and just as many."""
        assert self._net.eventually(lambda: not self._wrong(same), MOMENT), "\n".join(self._wrong(same))
        self.scrape()
        self.note_memory()

    def scrape(self, path: str | None = None) -> None:
        """See that no counter has gone back; with `path` only its own, while others come and go."""
        now = self._daemon.metrics()
        back = went_back(self._last, now)
        assert [line for line in back if path is None or f"'path': '{path}'" in line] == []
        self._last = now

    def note_memory(self) -> None:
        """For `growth`."""
        self.rss.append(memory_kb(self._daemon.pid, "VmRSS"))

    def counted(self) -> dict[str, int]:
        """Packets lost since then, by who counted them: the worker's place, the path's fallback, the veths.

        A veth counts also what an XSK had no room for.
        """
        first, now = self.first, self._last
        return {
            "abandoned": _grown(first, now, "xskd_dropped_packets", reason="abandoned"),
            "fallback": _grown(first, now, "xskd_xdp_verdicts", verdict="no_socket_dropped"),
            "no room": dropped(self._net) - self._fell,
        }

    @property
    def growth(self) -> float:
        """How much more resident memory in kB the supervisor had in the last quarter than in the first."""
        quarter = -(-len(self.rss) // 4)
        return statistics.median(self.rss[-quarter:]) - statistics.median(self.rss[:quarter])

    def _wrong(self, same: bool) -> list[str]:
        """Name all that is not as it should be."""
        now, status = holdings(self._daemon), self._daemon.status()
        wrong = []
        for what, held in self._held.items():
            before, after = (held, now[what]) if same else (_kinds(held), _kinds(now[what]))
            if after - before:
                wrong.append(f"{what}: {after - before} more than {before}")
        for worker in status["workers"]:
            counters = worker["counters"]
            places = counters["frames_in"]
            if sum(places.values()) != counters["frames"] or places["quarantined"]:
                wrong.append(f"{worker['name']}: {counters['frames']} frames in {places}")
            if worker["state"] != "forwarding":
                wrong.append(f"{worker['name']}: {worker['state']}, {worker['last_error']}")
        if {worker["name"] for worker in status["workers"]} != self._workers:
            wrong.append(f"workers {status['workers']}")
        return wrong


def holdings(daemon: Daemon) -> dict[str, Counter[str]]:
    """What a daemon holds: descriptors by kind, BPF objects by id, processes, sets in its manager's store."""
    descriptors: Counter[str] = Counter()
    for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            descriptors[os.readlink(fd).partition("[")[0]] += 1
    processes = daemon.net.run(daemon.net.dut, "ip", "netns", "pids", daemon.net.dut, check=False).stdout
    return {
        "descriptors": descriptors,
        "BPF objects": Counter(f"{kind} {number}" for kind, number in bpf_objects(daemon.pid)),
        "processes": Counter({"of xskd": sum("xskd" in _command(pid) for pid in processes.split())}),
        "stored": Counter(daemon.kept if isinstance(daemon, Managed) else ()),
    }


def _kinds(held: Counter[str]) -> Counter[str]:
    """The same without numbers."""
    kinds: Counter[str] = Counter()
    for name, count in held.items():
        kinds[name.split()[0]] += count
    return kinds


def dropped(net: Wire) -> int:
    """Count what the veths dropped: what found an RX ring full, and what came faster than it was taken in."""
    ends = [*((net.dut, dev) for dev in net.dut_devs), *((ns, "eth0") for ns in net.hosts)]
    return sum(c.rx_dropped + c.tx_dropped for c in (net.counters(ns, dev) for ns, dev in ends))


def _grown(first: Metrics, now: Metrics, name: str, **labels: str) -> int:
    return int(total(now, name, **labels) - total(first, name, **labels))


def _command(pid: str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
