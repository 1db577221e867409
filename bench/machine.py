"""What this machine is, how fast it is at this moment, and who used its processors.

The figures of a run are worth something only if the machine was the same before and after it and nobody
else was at work; both are measured here. Nothing here changes anything.
"""

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self

LOAD_CPU = 0  # the generator, and for AF_XDP the receiving half of the kernel, which runs in its context
FORWARDER_CPU = 1
KERNEL_THREADS = 2  # kthreadd, the parent of them all

_TICK = os.sysconf("SC_CLK_TCK")
_TURNS, _SAMPLES = 2_000, 101  # a sample is some 1.5 ms, all of them longer than a short disturbance


def facts() -> dict[str, str | int]:
    """Describe the machine for the record."""
    model = next(
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.lower().startswith(("model name", "cpu model", "processor"))
        and not line.split(":", 1)[1].strip().isdigit()
    )
    hypervisor = subprocess.run(("systemd-detect-virt", "--vm"), capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": os.cpu_count() or 1,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "virtual": hypervisor.stdout.strip(),
    }


def speed() -> float:
    """Return the machine's speed now: thousand writes and reads of a pipe in a second, on the slower CPU.

    Forwarding is system calls and copies; a loop in Python, which sees the host's other guests twice as much,
    says little about it.
    """
    before = os.sched_getaffinity(0)
    try:
        return min(_speed_of(cpu) for cpu in (LOAD_CPU, FORWARDER_CPU))
    finally:
        os.sched_setaffinity(0, before)


def _speed_of(cpu: int) -> float:
    os.sched_setaffinity(0, {cpu})
    reading, writing = os.pipe()
    samples = []
    for _ in range(_SAMPLES):
        start = time.perf_counter()
        for _ in range(_TURNS):
            os.write(writing, b"x" * 64)
            os.read(reading, 64)
        samples.append(time.perf_counter() - start)
    os.close(reading)
    os.close(writing)
    return _TURNS / median(samples) / 1e3


def wait_until_quiet(seconds: float, strangers: float) -> None:
    """Wait, but not for ever, until others use no more than this part of a CPU."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before, start = Usage.now(), time.monotonic()
        time.sleep(0.3)
        used = Usage.now().strangers(set()) - before.strangers(set())
        if used <= strangers * (time.monotonic() - start):
            return


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of some processes, all their threads included."""

    user: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        """User and system together."""
        return self.user + self.system

    def __add__(self, other: Self) -> "Cpu":
        return Cpu(self.user + other.user, self.system + other.system)

    def __sub__(self, other: Self) -> "Cpu":
        return Cpu(self.user - other.user, self.system - other.system)


@dataclass(frozen=True)
class Usage:
    """Everybody's CPU seconds at one moment: of each process (with its parent), and of the machine.

    Without softirqs, which this kernel counts to no process: they are its work for us, as its threads' is.
    """

    processes: dict[int, tuple[int, Cpu]]
    busy: float

    @classmethod
    def now(cls) -> Self:
        """Read /proc."""
        processes = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
                cpu = Cpu(int(fields[11]) / _TICK, int(fields[12]) / _TICK)
                processes[int(entry)] = int(fields[1]), cpu
        user, nice, system, _idle, _iowait, irq, _softirq, steal = map(
            int, Path("/proc/stat").read_text().split()[1:9]
        )
        return cls(processes, (user + nice + system + irq + steal) / _TICK)

    def of(self, pids: set[int]) -> Cpu:
        """Sum up some processes."""
        return sum((cpu for pid, (_, cpu) in self.processes.items() if pid in pids), Cpu())

    def strangers(self, ours: set[int]) -> float:
        """Return the CPU seconds of everybody but us and the kernel's threads, which work for us."""
        known = {pid for pid, (parent, _) in self.processes.items() if parent == KERNEL_THREADS}
        return self.busy - self.of(ours | known | {os.getpid()}).total
