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
from xskd.rules import RuleSet
from xskd.uapi import Rings
from xskd.umem import HEADROOM, HUGE_PAGE, MAX_FRAGMENTS

if TYPE_CHECKING:
    from xskd.config import Config, Interface, PathConfig
    from xskd.netdev import NetDevice

NO_RULES = RuleSet()
LINK_HEADER = 14 + 2 * 4  # bytes in front of the MTU's: Ethernet and two VLAN tags
MAX_PACKET = 65535  # bytes: what the length of a captured packet, and of an IP packet, can say


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
    kind: Literal["reflect", "connect", "route"]
    ports: tuple[PortPlan, ...]
    frames: int
    frame_size: int
    huge_pages: bool
    poll: Literal["adaptive", "busy", "wakeup"]
    cpu: int | None
    multi_buffer: bool = False  # a packet may take several frames: XDP_USE_SG

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
    """One interface with its XDP program; `queues`: entries of its XSKMAP, for all it can ever have.

    `kind` and `members` are its path's: the ifindexes of the interfaces in the order of the file, 0 for one
    that is not there; `own` is its own place among them. `mac` is its address, empty if it has none. `rules`
    are as the path's `express` has them. `shares` is how many queues share each limit, 1 where there is none.
    """

    name: str
    ifindex: int
    queues: int
    attach: Literal["auto", "native", "generic"]
    fallback: Literal["pass", "drop"]
    path: str
    kind: Literal["reflect", "connect", "route"] = "connect"
    members: tuple[int, ...] = ()
    own: int = 0
    mac: str = ""
    rules: RuleSet = NO_RULES
    express: Literal["rules", "auto", "off"] = "rules"
    shares: int = 1

    @property
    def says_express(self) -> bool:
        """Does any rule, or the default, send packets by an express lane?"""
        return "express" in (self.rules.default, *(rule.verdict for rule in self.rules.rules))


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

    def with_kept(self, kept: InterfacePlan) -> Plan:
        """The plan with an interface as it has stayed, since it could not be changed."""
        members = (kept if member.name == kept.name else member for member in self.interfaces)
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
            _interface(config, present, member, name)
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


def _interface(config: Config, devices: Mapping[str, NetDevice], name: str, path_name: str) -> InterfacePlan:
    device, path = devices[name], config.paths[path_name]
    rules = config.rules_of(name).effective(path.express)
    limited = rules.limit is not None or any(rule.limit for rule in rules.rules)
    return InterfacePlan(
        name=name,
        ifindex=device.ifindex,
        queues=device.max_queues,
        attach=_attach(config, name, path),
        fallback=path.fallback,
        path=path_name,
        kind=path.kind,
        members=tuple(devices[each].ifindex if each in devices else 0 for each in path.interfaces),
        own=path.interfaces.index(name),
        mac=device.mac,
        rules=rules,
        express=path.express,
        shares=len(_selected(config.interfaces[name], device)) if limited else 1,
    )


def _attach(config: Config, name: str, path: PathConfig) -> Literal["auto", "native", "generic"]:
    """Zero-copy takes the program in the driver: a path that insists on it has no second choice."""
    wanted = config.interfaces[name].attach
    return "native" if wanted == "auto" and _strict(config, path) else wanted


def _strict(config: Config, path: PathConfig) -> str | None:
    """The first interface of a path that insists on zero-copy, if any does."""
    return next((each for each in path.interfaces if config.interfaces[each].mode == "zerocopy"), None)


def _worker(
    config: Config, path_name: str, index: int, devices: Mapping[str, NetDevice], cpu: int | None
) -> WorkerPlan:
    path = config.paths[path_name]
    members = [devices[name] for name in path.interfaces]
    ports = tuple(_port(config, device, index) for device in members)
    if any(_too_few_segments(config, device) for device in members):
        ports = tuple(replace(port, mode="copy") if port.mode == "auto" else port for port in ports)
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
        multi_buffer=_needs_multi_buffer(config, members),
    )


def _port(config: Config, device: NetDevice, index: int) -> PortPlan:
    interface = config.interfaces[device.name]
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
    yield from _generic_problems(config, path)
    if all(member in devices for member in path.interfaces):
        yield from _width_problems(config, name, path, devices)
    yield from _mtu_problems(config, [devices[member] for member in path.interfaces if member in devices])


def _generic_problems(config: Config, path: PathConfig) -> Iterator[Problem]:
    """Zero-copy with a generic program: some drivers grant it, and then neither receive nor send."""
    strict = _strict(config, path)
    for name in path.interfaces:
        if strict and config.interfaces[name].attach == "generic":
            yield config.problem(
                ("interfaces", name, "attach"),
                f"{strict} insists on zero-copy, for which the program has to be in the driver; set "
                f"interfaces.{name}.attach: native, or interfaces.{strict}.mode: auto",
            )


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


# ---- packets that take several frames ---------------------------------------------------------------


def largest_mtu(frame_size: int, frames: int = 1) -> int:
    """The largest MTU whose packets fit in so many frames of `frame_size` bytes."""
    return min(frames * (frame_size - HEADROOM), MAX_PACKET) - LINK_HEADER


def can_multi_buffer(device: NetDevice) -> bool:
    """Does the driver say that it receives packets of several buffers into AF_XDP sockets?"""
    return device.features is not None and "rx-sg" in device.features.xdp


def zerocopy_mtu(device: NetDevice, frame_size: int) -> int:
    """The largest MTU that zero-copy takes: a frame for each buffer of a packet that the driver can have."""
    segments = device.features.zerocopy_segments if device.features else 0
    return largest_mtu(frame_size, min(max(segments, 1), MAX_FRAGMENTS))


def _needs_multi_buffer(config: Config, members: Iterable[NetDevice]) -> bool:
    return any(device.mtu > largest_mtu(config.umem.frame_size) for device in members)


def _too_few_segments(config: Config, device: NetDevice) -> bool:
    """Would zero-copy be granted, and then not send the longest packets? `auto` had better not ask for it.

    A driver that takes no more than one buffer refuses by itself, and says why.
    """
    segments = device.features.zerocopy_segments if device.features else 0
    return (
        config.interfaces[device.name].mode == "auto"
        and segments > 1
        and device.mtu > zerocopy_mtu(device, config.umem.frame_size)
    )


def _mtu_problems(config: Config, members: Sequence[NetDevice]) -> Iterator[Problem]:
    """Whether the packets of all interfaces of a path fit: they share their memory, and so its limits."""
    size = config.umem.frame_size
    unable = [device for device in members if not can_multi_buffer(device)]
    for device in members:
        if device.mtu <= largest_mtu(size):
            continue
        if unable:
            yield _one_frame_problem(config, device, unable[0])
        elif device.mtu > largest_mtu(size, MAX_FRAGMENTS):
            largest = largest_mtu(size, MAX_FRAGMENTS)
            yield config.problem(
                ("interfaces", device.name),
                f"MTU {device.mtu} does not fit {MAX_FRAGMENTS} frames of {size} bytes, the most that a "
                f"packet may take; run `ip link set dev {device.name} mtu {largest}`",
            )
    if not unable and _needs_multi_buffer(config, members):
        yield from (problem for device in members if (problem := _zerocopy_problem(config, device)))


def _one_frame_problem(config: Config, device: NetDevice, unable: NetDevice) -> Problem:
    """A packet has to fit one frame because an interface of the path knows nothing else."""
    size = config.umem.frame_size
    largest = largest_mtu(size)
    mend = f"run `ip link set dev {device.name} mtu {largest}`"
    if size == 2048 and device.mtu <= largest_mtu(4096):
        mend = f"set umem.frame_size: 4096 or {mend}"
    if unable.features is None:
        why = f"of {unable.name} the kernel does not tell (before 6.3) whether packets may take several"
    else:
        driver = f" ({unable.driver})" if unable.driver else ""
        why = f"the driver of {unable.name}{driver} receives no packets that take several (rx-sg)"
    return config.problem(
        ("interfaces", device.name),
        f"MTU {device.mtu} does not fit frames of {size} bytes, which take up to {largest}, and "
        f"{why}; {mend}",
    )


def _zerocopy_problem(config: Config, device: NetDevice) -> Problem | None:
    largest = zerocopy_mtu(device, config.umem.frame_size)
    one = largest == largest_mtu(config.umem.frame_size)  # then not even a socket for others' packets
    if config.interfaces[device.name].mode != "zerocopy" or (device.mtu <= largest and not one):
        return None
    segments = device.features.zerocopy_segments if device.features else 0
    return config.problem(
        ("interfaces", device.name, "mode"),
        f"with zero-copy {device.name} takes {counted(max(segments, 1), 'frame')} a packet, and "
        f"the MTU of an interface of the path needs more; set interfaces.{device.name}.mode: auto, or MTUs "
        f"of at most {largest} with `ip link set`",
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
