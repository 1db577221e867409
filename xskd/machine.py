"""From a file on this machine to a plan for this machine: the one place where both are looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xskd import netdev
from xskd.config import Config
from xskd.netdev import NetDevice
from xskd.plan import Plan, make_plan

NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Outlook:
    """What is wanted and what is there, at one moment, and the plan that comes of it."""

    config: Config
    devices: Mapping[str, NetDevice | None]
    plan: Plan


def look(wanted: Config) -> Outlook:
    """Ask the kernel about the interfaces of a configuration, and plan. Waits for netlink, some milliseconds.

    Raises ConfigError with every problem that no change of the interfaces can mend.
    """
    devices = netdev.read_devices(wanted.interfaces)
    cpus = sorted(os.sched_getaffinity(0))
    return Outlook(wanted, devices, make_plan(wanted, devices, cpus, cpu_nodes()))


def cpu_nodes() -> dict[int, int]:
    """The NUMA node of each CPU; empty where the kernel does not say."""
    return {
        int(cpu.name.removeprefix("cpu")): int(node.name.removeprefix("node"))
        for node in NODES.glob("node[0-9]*")
        for cpu in node.glob("cpu[0-9]*")
    }
