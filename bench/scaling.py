"""Do two queues slow each other? One worker alone, then two at the same time, each with its load on its CPU.

There are two CPUs here and the load needs one too, so a generator shares the CPU of the worker it feeds:
slow, but alike in both cases. A veth delivers an XDP frame to the queue of the CPU that sends it, so the
generator on CPU q feeds queue q.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from bench import bpf, machine
from bench.contenders import launch
from bench.measurement import Measurement
from lab import Topology, entered

FRAME_BYTES = 64
CPUS = (0, 1)
_WARM_UP = 2.0  # seconds: the workers bind meanwhile

_YAML = f"""
interfaces: {{eth1: {{}}, eth2: {{}}}}
paths: {{bench: {{connect: [eth1, eth2], cpus: [{CPUS[0]}, {CPUS[1]}]}}}}
"""


@dataclass(frozen=True, kw_only=True)
class Scaling(Measurement):
    """Thousand packets a second: each queue alone, one after the other, and both at once."""

    alone: tuple[float, ...]
    together: float

    @property
    def ratio(self) -> float:
        """What both reach at once, as a part of what they reach alone; 1 if neither slows the other."""
        return self.together / sum(self.alone)

    @override
    def figures(self) -> str:
        alone = " and ".join(f"{kpps:.0f}" for kpps in self.alone)
        return f"two queues: alone {alone}, together {self.together:.0f} kpps, ratio {self.ratio:.2f}"


def measure(seconds: float, number: int) -> Scaling:
    """Set up both workers, load one, the other, and both; tear down."""
    speed_before = machine.speed()
    with tempfile.TemporaryDirectory(prefix="bench-") as workdir, Topology("xskd-bench", queues=2) as lab:
        with entered(lab.hosts[1]):
            bpf.attach(bpf.DROP, "eth0")
        config = Path(workdir) / "xskd.yaml"
        config.write_text(_YAML)
        launch(lab, Path(workdir), sys.executable, "-m", "xskd", "run", "-c", str(config))
        time.sleep(_WARM_UP)
        alone = tuple(_kpps(lab, (cpu,), seconds) for cpu in CPUS)
        together = _kpps(lab, CPUS, seconds)
    return Scaling(
        round=number,
        contender="xskd, two queues",
        alone=alone,
        together=together,
        strangers=0.0,
        speed_before=speed_before,
        speed_after=machine.speed(),
    )


def _kpps(lab: Topology, cpus: tuple[int, ...], seconds: float) -> float:
    """Flood from these CPUs at once; thousand packets a second that arrive."""
    floods = [_flood(lab, cpu) for cpu in cpus]
    try:
        time.sleep(0.7)
        before, start = lab.counters(lab.hosts[1], "eth0"), time.monotonic()
        time.sleep(seconds)
        after, end = lab.counters(lab.hosts[1], "eth0"), time.monotonic()
    finally:
        for flood in floods:
            flood.terminate()
            flood.wait(10)
    return (after.rx_packets - before.rx_packets) / (end - start) / 1e3


def _flood(lab: Topology, cpu: int) -> subprocess.Popen[bytes]:
    generator = (sys.executable, "-m", "bench.generator", str(FRAME_BYTES))
    return lab.popen(lab.hosts[0], "taskset", "-c", str(cpu), *generator)
