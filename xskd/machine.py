"""From a file on this machine to a plan for this machine: the one place where both are looked at."""

from __future__ import annotations

import os
from pathlib import Path

from xskd import config, netdev
from xskd import plan as planning

NODES = Path("/sys/devices/system/node")


def plan(file: Path) -> planning.Plan:
    """Read the file, ask the kernel about its interfaces, and plan. Raises ConfigError with every problem."""
    wanted = config.load(file)
    devices = netdev.read_devices(wanted.interfaces)
    return planning.make_plan(wanted, devices, sorted(os.sched_getaffinity(0)), cpu_nodes())


def cpu_nodes() -> dict[int, int]:
    """The NUMA node of each CPU; empty where the kernel does not say."""
    return {
        int(cpu.name.removeprefix("cpu")): int(node.name.removeprefix("node"))
        for node in NODES.glob("node[0-9]*")
        for cpu in node.glob("cpu[0-9]*")
    }
