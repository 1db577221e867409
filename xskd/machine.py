"""From a file on this machine to a plan for this machine: the one place where both are looked at."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyroute2.netlink.exceptions import NetlinkError

from xskd import compiled, netdev
from xskd.config import Config
from xskd.errors import ConfigError, Problem, RulesError, XskdError, kernel_said
from xskd.netdev import NetDevice
from xskd.plan import Plan, make_plan

NODES = Path("/sys/devices/system/node")
ASKING = "asking the kernel about interfaces"
ANSWER_SECONDS = 10.0  # for netlink, which answers in milliseconds unless somebody holds its lock

T = TypeVar("T")


@dataclass(frozen=True)
class Outlook:
    """What is wanted and what is there, at one moment, and the plan that comes of it."""

    config: Config
    devices: Mapping[str, NetDevice | None]
    plan: Plan


def look(wanted: Config) -> Outlook:
    """Ask the kernel about the interfaces of a configuration, and plan. Waits for netlink, some milliseconds,
    and for new rules to be compiled.

    Raises ConfigError with every problem that no change of the interfaces can mend, XskdError if the kernel
    does not tell.
    """
    devices = _in_time(lambda: netdev.read_devices(wanted.interfaces))
    cpus = sorted(os.sched_getaffinity(0))
    plan = make_plan(wanted, devices, cpus, cpu_nodes())
    if wrong := list(_wrong_rules(wanted, plan)):
        raise ConfigError(wrong)
    return Outlook(wanted, devices, plan)


def _in_time(ask: Callable[[], T]) -> T:
    """Ask in a thread of its own, which is left alone if it gets no answer. Raises XskdError.

    The library waits for ever for an answer that is lost, and a look that hangs would be the last one.
    """
    answer: Future[T] = Future()

    def asking() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    try:
        threading.Thread(target=asking, daemon=True).start()
        return answer.result(ANSWER_SECONDS)
    except TimeoutError as error:
        raise XskdError(f"{ASKING}: no answer within {ANSWER_SECONDS:g} s") from error
    except (OSError, NetlinkError, RuntimeError) as error:
        raise XskdError(f"{ASKING}: {kernel_said(error)}") from error


def _wrong_rules(wanted: Config, plan: Plan) -> Iterator[Problem]:
    for interface in plan.interfaces:
        try:
            compiled.check(interface.rules, interface.shares)
        except RulesError as error:
            yield wanted.problem(("interfaces", interface.name, "rules"), str(error))


def cpu_nodes() -> dict[int, int]:
    """The NUMA node of each CPU; empty where the kernel does not say."""
    try:
        return {
            int(cpu.name.removeprefix("cpu")): int(node.name.removeprefix("node"))
            for node in NODES.glob("node[0-9]*")
            for cpu in node.glob("cpu[0-9]*")
        }
    except OSError:
        return {}
