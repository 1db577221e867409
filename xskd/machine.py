"""From a file on this machine to a plan for this machine: the one place where both are looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from xskd import compiled, netdev
from xskd.config import Config
from xskd.errors import ConfigError, Problem, RulesError
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
    """Ask the kernel about the interfaces of a configuration, and plan. Waits for netlink, some milliseconds,
    and for new rules to be compiled.

    Raises ConfigError with every problem that no change of the interfaces can mend.
    """
    devices = netdev.read_devices(wanted.interfaces)
    cpus = sorted(os.sched_getaffinity(0))
    plan = make_plan(wanted, devices, cpus, cpu_nodes())
    if wrong := list(_wrong_rules(wanted, plan)):
        raise ConfigError(wrong)
    return Outlook(wanted, devices, plan)


def _wrong_rules(wanted: Config, plan: Plan) -> Iterator[Problem]:
    for interface in plan.interfaces:
        try:
            compiled.check(interface.rules, interface.shares)
        except RulesError as error:
            yield wanted.problem(("interfaces", interface.name, "rules"), str(error))


def cpu_nodes() -> dict[int, int]:
    """The NUMA node of each CPU; empty where the kernel does not say."""
    return {
        int(cpu.name.removeprefix("cpu")): int(node.name.removeprefix("node"))
        for node in NODES.glob("node[0-9]*")
        for cpu in node.glob("cpu[0-9]*")
    }
