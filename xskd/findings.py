"""The doctor's vocabulary: the facts that checks look at, and what they answer.

Frozen, and made by hand as easily as by the kernel, so that every check can be tested without one. This
module must never ask the kernel anything; examine.py does.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from xskd.config import Config
from xskd.config import Interface as Wanted
from xskd.features import Features
from xskd.hook import Tenant
from xskd.netdev import NetDevice
from xskd.plan import Plan

Verdict = Literal["OK", "WARN", "FAIL"]
Command = tuple[str, ...]


@dataclass(frozen=True)
class Offloads:
    """What the driver or the kernel does to packets on the way, by the names of `ethtool -k`.

    `on` are those at work, `fixed` those that cannot be changed.
    """

    on: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()

    def mendable(self, *names: str) -> tuple[str, ...]:
        """Which of these are on and can be put off."""
        return tuple(name for name in names if name in self.on - self.fixed)


@dataclass(frozen=True)
class Peer:
    """The other end of a veth; `namespace` is its name, "" for the one that asks."""

    name: str
    namespace: str
    offloads: Offloads
    tx_queues: int

    def command(self, *words: str) -> Command:
        """A command that has to be run where the peer is."""
        return ("ip", "netns", "exec", self.namespace, *words) if self.namespace else words


@dataclass(frozen=True)
class Interrupt:
    """One interrupt of a NIC, and the CPUs it may be served by."""

    number: int
    name: str
    cpus: frozenset[int]


@dataclass(frozen=True)
class Routing:
    """What the kernel does with packets that come in by an interface and are for others.

    `families` are the versions of IP that it has an address of, link-local ones apart. `forwarding` has no
    entry for a version that is off altogether. `rp_filter` is the number that is in force.
    """

    families: frozenset[int]
    forwarding: Mapping[int, bool]
    rp_filter: int


@dataclass(frozen=True)
class Interface:
    """One interface of the configuration: what is wanted of it, and what it is.

    `device` is None for one that does not exist; the rest then says nothing. `rss` is the queue of each entry
    of the RSS indirection table, empty where there is none. `hardware_rx` is the size of the NIC's own RX
    ring, 0 if it does not tell. `master` is the bridge or bond that it belongs to. `worker_cpus` are the CPUs
    of its workers (None: any), `cpu_nodes` their NUMA nodes. `access_platform` tells whether virtio
    negotiated VIRTIO_F_ACCESS_PLATFORM; None for other drivers. `module`: the driver is one, and no part of
    the kernel's image. `ours`: an xskd that answers has it.
    `routing` is looked up for route paths only. `express`: packets may leave by it past user space.
    """

    name: str
    wanted: Wanted
    kind: Literal["reflect", "connect", "route"]
    poll: Literal["adaptive", "busy", "wakeup"]
    frame_size: int
    device: NetDevice | None
    offloads: Offloads = Offloads()
    peer: Peer | None = None
    tenants: tuple[Tenant, ...] = ()
    rss: tuple[int, ...] = ()
    hardware_rx: int = 0
    interrupts: tuple[Interrupt, ...] = ()
    master: str = ""
    worker_cpus: frozenset[int | None] = frozenset()
    cpu_nodes: Mapping[int, int] = field(default_factory=dict)
    access_platform: bool | None = None
    module: bool = False
    ours: bool = False
    routing: Routing | None = None
    express: bool = False

    @property
    def there(self) -> NetDevice:
        """The device, for checks that are only asked of one that exists."""
        assert self.device is not None
        return self.device

    @property
    def features(self) -> Features | None:
        """What the driver says that it can do; None where the kernel does not tell."""
        return self.there.features

    @property
    def queues(self) -> tuple[int, ...]:
        """The queues that are wanted."""
        return tuple(range(self.there.queues)) if self.wanted.queues == "all" else self.wanted.queues

    @property
    def native(self) -> bool:
        """Will the program run in the driver? As far as can be known beforehand."""
        able = self.features is None or "basic" in self.features.xdp
        return self.wanted.attach == "native" or (self.wanted.attach == "auto" and able)

    @property
    def zerocopy(self) -> bool:
        """Is zero-copy wanted, and does the driver announce it?"""
        return self.wanted.mode != "copy" and bool(self.features and "xsk-zerocopy" in self.features.xdp)


@dataclass(frozen=True)
class Machine:
    """What belongs to no interface.

    `kernel` is (6, 18). `af_xdp` is the errno with which an AF_XDP socket is refused, 0 if it is not.
    `memlock` is the limit of pinned memory in bytes, None without one. `huge_pages` are those of 2 MiB.
    `jit` is None where it is not told. `daemon`: an xskd answers. `forward_chains` are those of nftables that
    do something to forwarded packets, None where that is not told.
    """

    kernel: tuple[int, int]
    af_xdp: int
    capabilities: frozenset[str]
    memlock: int | None
    jit: bool | None
    huge_pages: int
    free_huge_pages: int
    cpus: frozenset[int]
    irqbalance: bool
    daemon: bool
    forward_chains: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Facts:
    """All that was looked at, at one moment. `config` and `plan` are None where no interface was."""

    machine: Machine
    interfaces: tuple[Interface, ...] = ()
    config: Config | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class Fix:
    """A change that can be taken back exactly: the command, and the one that undoes it."""

    command: Command
    undo: Command


@dataclass(frozen=True)
class Answer:
    """What a check found: `seen` always, else why that matters and what mends it.

    `mend` is a command for a shell, or the key to change; a `fix` is its own command.
    """

    verdict: Verdict
    seen: str
    why: str = ""
    mend: str = ""
    fix: Fix | None = None


@dataclass(frozen=True)
class Finding:
    """An answer, and of whom it is: `subject` is "machine", an interface or "path NAME"."""

    subject: str
    check: str
    verdict: Verdict
    seen: str
    why: str
    mend: str
    fix: Fix | None

    def shape(self) -> dict[str, Any]:
        """For a program; `undo` is "" where --fix leaves it to the operator."""
        words = {name: getattr(self, name) for name in ("subject", "check", "verdict", "seen", "why", "mend")}
        return {**words, "undo": shlex.join(self.fix.undo) if self.fix else ""}


def ok(seen: str) -> Answer:
    """Nothing to do."""
    return Answer("OK", seen)


def warn(seen: str, why: str, mend: str = "", fix: Fix | None = None) -> Answer:
    """It works, but not as one would think."""
    return Answer("WARN", seen, why, shlex.join(fix.command) if fix else mend, fix)


def fail(seen: str, why: str, mend: str = "", fix: Fix | None = None) -> Answer:
    """It will not work."""
    return Answer("FAIL", seen, why, shlex.join(fix.command) if fix else mend, fix)
