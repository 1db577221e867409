"""Speed: packets delivered in a window of some seconds under a flood, and what each cost."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from typing_extensions import override

from bench import machine
from bench.contenders import DROP, Contender
from bench.generator import Load
from bench.measurement import Measurement
from bench.stand import Stand, stand
from lab import Topology

_WARM_UP = 0.7  # seconds from the start of the generator's process; it floods after some 0.2


@dataclass(frozen=True, kw_only=True)
class Run(Measurement):
    """One measurement of speed."""

    mode: str
    frame_bytes: int
    seconds: float
    packets: int
    offered: int
    user_seconds: float
    system_seconds: float
    beside: dict[str, float] = field(default_factory=dict)

    @override
    def figures(self) -> str:
        return f"{self.mode} {self.frame_bytes}: {self.kpps:.0f} kpps, {self.cpu_ns:.0f} ns a packet"

    @property
    def kpps(self) -> float:
        """Thousand packets a second, delivered."""
        return self.packets / self.seconds / 1e3

    @property
    def cpu_ns(self) -> float:
        """CPU nanoseconds per delivered packet."""
        return (self.user_seconds + self.system_seconds) / max(self.packets, 1) * 1e9

    @property
    def user_share(self) -> float:
        """User space's part of the forwarder's CPU time."""
        return self.user_seconds / max(self.user_seconds + self.system_seconds, 1e-9)


def measure(
    contender: Contender,
    mode: str,
    load: Load,
    seconds: float,
    number: int,
    *,
    case: str = "",
    refused: Load | None = None,
    beside: Callable[[Stand], dict[str, float]] | None = None,
) -> Run:
    """Set up, flood, count, tear down; `case` is what the record calls it if the mode is not enough.

    `refused` is what must not come through. In mode DROP that is the load, and a plain load must.
    `beside` finds out more at the end of the window.
    """
    speed_before = machine.speed()
    through, refused = (Load(), load) if mode == DROP else (load, refused)
    with stand(contender, mode, flooded=True, load=through, refused=refused) as made:
        generator = flood(made.lab, load)
        time.sleep(_WARM_UP)
        first, offered_before = machine.Usage.now(), made.offered()
        before, start = made.done(), time.monotonic()
        time.sleep(seconds)
        after, end = made.done(), time.monotonic()
        second, offered_after = machine.Usage.now(), made.offered()
        cpu = made.cpu_between(first, second)
        ours = made.forwarder() | {generator.pid}
        more = beside(made) if beside else {}
        strangers = (second.strangers(ours) - first.strangers(ours)) / (end - start)
        if generator.poll() is not None:
            raise RuntimeError(f"the generator ended early, exit status {generator.returncode}")
    return Run(
        round=number,
        contender=contender.name,
        mode=case or mode,
        frame_bytes=load.frame_bytes,
        seconds=end - start,
        packets=after - before,
        offered=offered_after - offered_before,
        user_seconds=cpu.user,
        system_seconds=cpu.system,
        beside=more,
        strangers=strangers,
        speed_before=speed_before,
        speed_after=machine.speed(),
    )


def flood(lab: Topology, load: Load) -> subprocess.Popen[bytes]:
    """Start the generator in h0, on its own CPU."""
    pinned = ("taskset", "-c", str(machine.LOAD_CPU))
    generator = (sys.executable, "-m", "bench.generator", *load.arguments())
    return lab.popen(lab.hosts[0], *pinned, *generator)
