"""What will run: configuration and kernel facts become one plan for the supervisor and one per worker.

Pure: the same configuration, devices and CPUs give the same plan, and nothing here asks the kernel or keeps
state, so every refusal can be tested without an interface. Every problem is reported at once, with the line
of the key to change and the command that mends the machine instead.

The machine changes while a daemon runs: an interface goes away, gets an MTU that does not fit, loses queues.
So what is wrong with the machine stops the paths it concerns and nothing else: they wait, and the next plan
may have them again. What is wrong with the configuration itself is a ConfigError.

Workers import this module to read their plan, so it must never load pydantic, pyroute2 or yaml (a worker
stays small); a test checks that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xskd.errors import ConfigError, Problem
from xskd.uapi import Rings
from xskd.umem import HEADROOM, HUGE_PAGE

if TYPE_CHECKING:
    from xskd.config import Config, Interface, PathConfig
    from xskd.netdev import NetDevice

LINK_HEADER = 14 + 2 * 4  # bytes in front of the MTU's: Ethernet and two VLAN tags


@dataclass(frozen=True)
class PortPlan:
    """One AF_XDP socket: a queue of an interface, how to bind it, its rings; `mtu` in bytes."""

    interface: str
    ifindex: int
    queue: int
    mode: Literal["auto", "zerocopy", "copy"]
    rings: Rings
    mtu: int


@dataclass(frozen=True)
class WorkerPlan:
    """One worker process: a UMEM of `frames` times `frame_size` bytes and a socket per port, on CPU `cpu`.

    `cpu` None leaves the choice to the scheduler.
    """

    path: str
    index: int
    kind: Literal["reflect", "connect"]
    ports: tuple[PortPlan, ...]
    frames: int
    frame_size: int
    huge_pages: bool
    poll: Literal["adaptive", "busy", "wakeup"]
    cpu: int | None

    @property
    def name(self) -> str:
        """What logs, metrics and messages call the worker, like `wire/0`."""
        return f"{self.path}/{self.index}"

    @property
    def umem_bytes(self) -> int:
        """Bytes of memory the UMEM takes: the frames, in whole huge pages where asked for."""
        size = self.frames * self.frame_size
        return -(-size // HUGE_PAGE) * HUGE_PAGE if self.huge_pages else size

    def to_json(self) -> str:
        """The plan as one line of JSON, for the way into a worker."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> WorkerPlan:
        """The plan that `to_json` wrote; the text is our own, so a bad one is a bug and raises as it may."""
        plan = json.loads(text)
        ports = (PortPlan(**{**port, "rings": Rings(**port["rings"])}) for port in plan["ports"])
        return WorkerPlan(**{**plan, "ports": tuple(ports)})


@dataclass(frozen=True)
class InterfacePlan:
    """One interface with its XDP program; `queues`: entries of its XSKMAP, for all it can ever have."""

    name: str
    ifindex: int
    queues: int
    attach: Literal["auto", "native", "generic"]
    fallback: Literal["pass", "drop"]
    path: str


@dataclass(frozen=True)
class WaitingPath:
    """A path that cannot run on the machine as it is, and why."""

    name: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Plan:
    """All that the supervisor is to run; `metrics_listen` is host and port, None for no endpoint.

    `interfaces` are all that may have a program, also those of a waiting path: its fallback holds meanwhile.
    """

    interfaces: tuple[InterfacePlan, ...]
    workers: tuple[WorkerPlan, ...]
    waiting: tuple[WaitingPath, ...]
    metrics_listen: tuple[str, int] | None
    control_socket: Path
    control_group: str | None
    log_level: str

    @property
    def memory_bytes(self) -> int:
        """Bytes of packet memory of all workers together."""
        return sum(worker.umem_bytes for worker in self.workers)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why paths have to wait."""
        return tuple(problem for path in self.waiting for problem in path.problems)

    def insist(self) -> Plan:
        """This plan, if no path has to wait; else ConfigError with every reason."""
        if self.waiting:
            raise ConfigError(self.problems)
        return self

    def with_fallback(self, kept: InterfacePlan) -> Plan:
        """The plan with the fallback that an interface has kept."""
        members = (
            replace(member, fallback=kept.fallback) if member.name == kept.name else member
            for member in self.interfaces
        )
        return replace(self, interfaces=tuple(members))

    def without(self, refused: Mapping[str, Problem]) -> Plan:
        """The plan without these interfaces, whose program was refused: their paths wait as well."""
        missing = [member for member in self.interfaces if member.name in refused]
        paths = {member.path for member in missing}
        new = paths - {path.name for path in self.waiting}
        waiting = (
            WaitingPath(path, tuple(refused[member.name] for member in missing if member.path == path))
            for path in sorted(new)
        )
        return replace(
            self,
            interfaces=tuple(member for member in self.interfaces if member.name not in refused),
            workers=tuple(worker for worker in self.workers if worker.path not in paths),
            waiting=(*self.waiting, *waiting),
        )


def make_plan(
    config: Config,
    devices: Mapping[str, NetDevice | None],
    cpus: Sequence[int],
    cpu_nodes: Mapping[int, int] | None = None,
) -> Plan:
    """The plan for this configuration on this machine.

    `devices` has an entry for every interface of the configuration, `cpus` are those this process may run
    on (its affinity), `cpu_nodes` gives the NUMA node of each where known. Raises ConfigError where no
    change of the interfaces would help, with the reasons of the waiting paths as well.
    """
    present = {name: device for name in config.interfaces if (device := devices.get(name))}
    waiting = tuple(
        WaitingPath(name, problems)
        for name, path in config.paths.items()
        if (problems := tuple(_path_problems(config, name, path, present)))
    )
    wrong = [p for name, path in config.paths.items() for p in _cpu_problems(config, name, path, cpus)]
    if wrong:
        raise ConfigError([*wrong, *(problem for path in waiting for problem in path.problems)])
    runnable = {name: path for name, path in config.paths.items() if name not in {w.name for w in waiting}}
    chosen = _choose_cpus(config, runnable, present, cpus, cpu_nodes or {})
    return Plan(
        interfaces=tuple(
            _interface(config, present[member], path, name)
            for name, path in config.paths.items()
            for member in path.interfaces
            if member in present and not _hook_problem(config, present[member])
        ),
        workers=tuple(
            _worker(config, name, index, present, chosen[name, index])
            for name, path in runnable.items()
            for index in range(_width(config, path, present))
        ),
        waiting=waiting,
        metrics_listen=config.metrics.listen,
        control_socket=config.control.socket,
        control_group=config.control.group,
        log_level=config.log.level,
    )


def _interface(config: Config, device: NetDevice, path: PathConfig, path_name: str) -> InterfacePlan:
    return InterfacePlan(
        name=device.name,
        ifindex=device.ifindex,
        queues=device.max_queues,
        attach=config.interfaces[device.name].attach,
        fallback=path.fallback,
        path=path_name,
    )


def _worker(
    config: Config, path_name: str, index: int, devices: Mapping[str, NetDevice], cpu: int | None
) -> WorkerPlan:
    path = config.paths[path_name]
    ports = tuple(_port(config.interfaces[name], devices[name], index) for name in path.interfaces)
    frames = config.umem.frames
    if frames == "auto":  # a frame for every entry: no ring can ever wait for another's
        frames = sum(sum(asdict(port.rings).values()) for port in ports)
    return WorkerPlan(
        path=path_name,
        index=index,
        kind=path.kind,
        ports=ports,
        frames=frames,
        frame_size=config.umem.frame_size,
        huge_pages=config.umem.huge_pages,
        poll=path.poll,
        cpu=cpu,
    )


def _port(interface: Interface, device: NetDevice, index: int) -> PortPlan:
    return PortPlan(
        interface=device.name,
        ifindex=device.ifindex,
        queue=_selected(interface, device)[index],
        mode=interface.mode,
        rings=Rings(**interface.rings.model_dump()),
        mtu=device.mtu,
    )


def _selected(interface: Interface, device: NetDevice) -> Sequence[int]:
    """The queues xskd takes of an interface, in order."""
    return range(device.queues) if interface.queues == "all" else interface.queues


def _width(config: Config, path: PathConfig, devices: Mapping[str, NetDevice]) -> int:
    """How many workers a path has."""
    return min(len(_selected(config.interfaces[name], devices[name])) for name in path.interfaces)


# ---- which CPU --------------------------------------------------------------------------------------


def _choose_cpus(
    config: Config,
    paths: Mapping[str, PathConfig],
    devices: Mapping[str, NetDevice],
    cpus: Sequence[int],
    cpu_nodes: Mapping[int, int],
) -> dict[tuple[str, int], int | None]:
    """A CPU for each (path, index): the listed ones as listed, then for `auto` the least used.

    Two busy workers on one CPU halve each other, a foreign NUMA node costs a few percent: so an unused CPU
    comes before a near one, and a near one before a far one.
    """
    chosen: dict[tuple[str, int], int | None] = {}
    workers = [
        (name, path, index) for name, path in paths.items() for index in range(_width(config, path, devices))
    ]
    for name, path, index in workers:
        if path.cpus != "auto":
            chosen[name, index] = path.cpus[index % len(path.cpus)]
    used = Counter(chosen.values())
    for name, path, index in workers:
        if path.cpus == "auto":
            node = next((n for i in path.interfaces if (n := devices[i].numa_node) is not None), None)
            cpu = min(cpus, key=lambda c: (used[c], cpu_nodes.get(c) != node), default=None)
            used[cpu] += 1
            chosen[name, index] = cpu
    return chosen


# ---- what is wrong ----------------------------------------------------------------------------------


def _path_problems(
    config: Config, name: str, path: PathConfig, devices: Mapping[str, NetDevice]
) -> Iterator[Problem]:
    """Why this path cannot run on the machine as it is."""
    for member in path.interfaces:
        if member in devices:
            yield from _interface_problems(config, member, devices[member])
        else:
            gone = "no such interface in this network namespace; `ip -br link` lists them"
            yield config.problem(("interfaces", member), gone)
    if all(member in devices for member in path.interfaces):
        yield from _width_problems(config, name, path, devices)


def _hook_problem(config: Config, device: NetDevice) -> Problem | None:
    """Why no program may be attached to an interface: somebody's way to this machine leads over it."""
    if not device.default_route or config.interfaces[device.name].allow_default_route:
        return None
    return config.problem(
        ("interfaces", device.name),
        f"{device.name} carries the default route: xskd would take the packets that this machine itself, and "
        "you, are reached by; choose another interface, or if that is what you want write "
        "allow_default_route: true",
    )


def _interface_problems(config: Config, name: str, device: NetDevice) -> Iterator[Problem]:
    key = ("interfaces", name)
    if problem := _hook_problem(config, device):
        yield problem
    selected = _selected(config.interfaces[name], device)
    mend = f"run `{set_queues(device, max(selected) + 1)}`"
    beyond = [queue for queue in selected if queue >= device.queues]
    have = f"{name} has {counted(device.queues, 'queue')} ({listed(range(device.queues))})"
    have_tx = f"{name} has {counted(device.tx_queues, 'TX queue')}"
    if beyond:
        why = f"{have}, so no queue {listed(beyond)}; choose among those or {mend}"
        yield config.problem((*key, "queues"), why)
    elif max(selected) >= device.tx_queues:
        why = (
            f"{have_tx} and a worker sends on the queue it receives from, here up to {max(selected)}; {mend}"
        )
        yield config.problem((*key, "queues"), why)
    yield from _mtu_problems(config, device)


def _mtu_problems(config: Config, device: NetDevice) -> Iterator[Problem]:
    size = config.umem.frame_size
    largest = size - HEADROOM - LINK_HEADER
    if device.mtu > largest:
        mend = f"run `ip link set dev {device.name} mtu {largest}`"
        if size == 2048 and device.mtu <= 4096 - HEADROOM - LINK_HEADER:
            mend = f"set umem.frame_size: 4096 or {mend}"
        yield config.problem(
            ("interfaces", device.name),
            f"MTU {device.mtu} does not fit frames of {size} bytes, which take up to {largest}; {mend}",
        )


def _cpu_problems(config: Config, name: str, path: PathConfig, cpus: Sequence[int]) -> Iterator[Problem]:
    missing = [] if path.cpus == "auto" else sorted(set(path.cpus) - set(cpus))
    if missing:
        yield config.problem(
            ("paths", name, "cpus"),
            f"this process may not use CPU {listed(missing)}; it may use {listed(sorted(cpus))}",
        )


def _width_problems(
    config: Config, name: str, path: PathConfig, devices: Mapping[str, NetDevice]
) -> Iterator[Problem]:
    counts = {
        member: len(_selected(config.interfaces[member], devices[member])) for member in path.interfaces
    }
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] == counts[most]:
        return
    if devices[fewest].queues < counts[most]:
        mend = f"run `{set_queues(devices[fewest], counts[most])}`"
    else:
        mend = f"select {counts[most]} in interfaces.{fewest}.queues"
    yield config.problem(
        ("paths", name, path.kind),
        f"{counts[most]} queues of {most} but {counts[fewest]} of {fewest} are selected, and a worker needs "
        f"one of each: {mend} or select {counts[fewest]} in interfaces.{most}.queues",
    )


def set_queues(device: NetDevice, number: int) -> str:
    """The command that gives a device so many queues; veth counts RX and TX apart."""
    channels = f"rx {number} tx {number}" if device.driver == "veth" else f"combined {number}"
    return f"ethtool -L {device.name} {channels}"


def counted(number: int, noun: str) -> str:
    """`1 queue`, `2 queues`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(numbers: Iterable[int]) -> str:
    """`0-3, 6` for 0 1 2 3 6."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
