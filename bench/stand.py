"""The test stand: the lab with one contender forwarding in it, for one measurement.

No contender is asked whether it is ready: probes are sent until all of a burst arrives. The way in and the
way back are the same for everyone. A stand must be gone before the next one is set up.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import bpf
from bench.contenders import DROP, REFLECT, Contender
from bench.generator import Load
from bench.machine import Cpu, Usage
from lab import Counters, Topology, entered

_READY_WITHIN = 20.0  # seconds
_PROBES = 64


class NotForwardingError(Exception):
    """A contender let no packet through in time; the text ends with what it printed."""


@dataclass(frozen=True)
class Stand:
    """A lab in which packets are being forwarded."""

    lab: Topology
    mode: str
    kernel_threads: set[int] = field(default_factory=set)

    @property
    def sink(self) -> str:
        """Return the host at which forwarded packets arrive."""
        return self.lab.hosts[0 if self.mode == REFLECT else 1]

    def offered(self) -> int:
        """Count what the generator has tried to send."""
        counters = self.lab.counters(self.lab.hosts[0], "eth0")
        return counters.tx_packets + counters.tx_dropped

    def arrived(self) -> Counters:
        """Count what has come through."""
        return self.lab.counters(self.sink, "eth0")

    def done(self) -> int:
        """Count what the contender has dealt with: what came through; where all is dropped, what it took."""
        counted = self.lab.counters(self.lab.dut, "eth1") if self.mode == DROP else self.arrived()
        return counted.rx_packets

    def forwarder(self) -> set[int]:
        """Return every process and kernel thread that forwards."""
        listed = self.lab.run(self.lab.dut, "ip", "netns", "pids", self.lab.dut).stdout.split()
        return {int(pid) for pid in listed} | self.kernel_threads

    def cpu_between(self, first: Usage, second: Usage) -> Cpu:
        """Return what forwarding cost between two moments."""
        pids = self.forwarder()
        return second.of(pids) - first.of(pids)


@contextmanager
def stand(
    contender: Contender, mode: str, *, flooded: bool, load: Load | None = None, refused: Load | None = None
) -> Iterator[Stand]:
    """Set up the lab, start the contender, wait until it forwards; everything is gone afterwards.

    It is ready when all of a burst of the load comes through, and nothing of the refused one. For a flood,
    the far end drops what arrives, and a forwarder inside the kernel gets a CPU of its own.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as workdir, Topology("xskd-bench") as lab:
        made = Stand(lab, mode)
        if flooded:
            # The cheapest end of the road; and XDP_TX of a veth wakes up its peer only if that has a program.
            with entered(made.sink):
                bpf.attach(bpf.DROP, "eth0")
        contender.start(lab, mode, Path(workdir))
        if flooded:
            made.kernel_threads.update(contender.own_core(lab))
        _wait_until_forwarding(made, contender, load or Load(), refused, Path(workdir))
        yield made


def _wait_until_forwarding(
    made: Stand, contender: Contender, load: Load, refused: Load | None, workdir: Path
) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline:
        # Refused before: a filter that came between two probes may not have all its rules. And after: what
        # did not forward at all refused everything.
        well = not _passes(made, refused) and _probe(made, load) >= _PROBES and not _passes(made, refused)
        if well and contender.settled(workdir):
            return
    log = workdir / "log"
    said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    raise NotForwardingError(f"{contender.name} does not do what it should in {made.mode}{os.linesep}{said}")


def _passes(made: Stand, refused: Load | None) -> bool:
    return refused is not None and _probe(made, refused) > 0


def _probe(made: Stand, load: Load) -> int:
    """Send a burst of the load; how many arrive (or of somebody else, who has nothing to say here)."""
    before = made.arrived().rx_packets
    with entered(made.lab.hosts[0]):
        load.send("eth0", _PROBES)
    time.sleep(0.1)
    return made.arrived().rx_packets - before
