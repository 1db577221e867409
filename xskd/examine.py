"""Reading the facts for the doctor: netlink, ethtool, and what of /proc and /sys belongs to the machine.

Nothing here ever changes anything, and nothing that a kernel or a driver does not tell is an error: that is a
fact as well. Answers are about the calling thread's network namespace; the other end of a veth is looked up
in its own, if that has a name, by a thread that goes there and ends there.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute, netns
from pyroute2.ethtool.ethtool import Ethtool
from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkError

from xskd import config as configuration
from xskd import control, examine_routing, machine, netdev
from xskd.config import Config
from xskd.errors import ConfigError, XskdError
from xskd.findings import Facts, Interface, Interrupt, Machine, Offloads, Peer
from xskd.hook import tenants
from xskd.plan import Plan, make_plan

T = TypeVar("T")
CAPABILITIES = {
    12: "CAP_NET_ADMIN",
    13: "CAP_NET_RAW",
    14: "CAP_IPC_LOCK",
    21: "CAP_SYS_ADMIN",
    38: "CAP_PERFMON",
    39: "CAP_BPF",
}
AF_XDP = 44  # linux/socket.h
ACCESS_PLATFORM = 33  # VIRTIO_F_ACCESS_PLATFORM in linux/virtio_config.h
GRXFHINDIR = 0x38  # ETHTOOL_GRXFHINDIR in linux/ethtool.h
RX_INTERRUPT = re.compile(r"(?!.*(?:output|[-_]tx[-_])).*(?:rx|input|comp|[-.]\d+$)", re.IGNORECASE)
JIT = Path("/proc/sys/net/core/bpf_jit_enable")  # for root, and in the machine's own namespace only
HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
MODULES = Path("/sys/module")  # those that were loaded have a state


def examine(wanted: Config | None) -> Facts:
    """Look at the machine and at every interface of a configuration. Waits for the kernel, some milliseconds.

    Raises NetlinkError or OSError only where the kernel refuses to answer at all.
    """
    running = _running(wanted)
    facts = Facts(_machine(running is not None))
    if wanted is None:
        return facts
    devices = netdev.read_devices(wanted.interfaces)
    plan = _plan(wanted, devices)
    with IPRoute() as route, Ethtool() as ethtool:
        interfaces = tuple(
            _looked_at(_wanted(wanted, plan, name, device), route, ethtool)
            for name, device in devices.items()
        )
    ours = running or frozenset()
    interfaces = tuple(replace(each, ours=each.name in ours) for each in interfaces)
    told = facts.machine
    if any(interface.kind == "route" for interface in interfaces):
        told = replace(told, forward_chains=examine_routing.forward_chains())
    return Facts(told, interfaces, wanted, plan)


def defaults() -> tuple[Config | None, list[str]]:
    """What to look at without a configuration: every interface with the defaults, each a path of its own.

    Also the interfaces left out, because this machine is reached over them. None if there are no others.
    """
    with IPRoute() as route:
        names = [link.get("ifname") for link in route.get_links()]
    devices = netdev.read_devices(name for name in names if name != "lo")
    present = [device for device in devices.values() if device]
    left = [device.name for device in present if device.default_route]
    taken = [device.name for device in present if not device.default_route]
    if not taken:
        return None, left
    interfaces = ", ".join(f'"{name}": {{}}' for name in taken)
    paths = ", ".join(f'"{number}": {{reflect: "{name}"}}' for number, name in enumerate(taken))
    with suppress(ConfigError):  # a name that no configuration can have
        return configuration.parse(f"interfaces: {{{interfaces}}}\npaths: {{{paths}}}\n", "defaults"), left
    return None, left


def _plan(wanted: Config, devices: Mapping[str, netdev.NetDevice | None]) -> Plan:
    """The plan as it would be if every CPU that is named were there; a check says which are not."""
    named = {c for path in wanted.paths.values() if path.cpus != "auto" for c in path.cpus}
    cpus = sorted(os.sched_getaffinity(0) | named)
    return make_plan(wanted, devices, cpus, machine.cpu_nodes())


def _wanted(wanted: Config, plan: Plan, name: str, device: netdev.NetDevice | None) -> Interface:
    path = next(path for path in wanted.paths.values() if name in path.interfaces)
    workers = (worker for worker in plan.workers if any(port.interface == name for port in worker.ports))
    return Interface(
        name=name,
        wanted=wanted.interfaces[name],
        kind=path.kind,
        poll=path.poll,
        frame_size=wanted.umem.frame_size,
        device=device,
        worker_cpus=frozenset(worker.cpu for worker in workers),
        cpu_nodes=machine.cpu_nodes(),
        express=any(_says_express(wanted, path, other) for other in path.interfaces),
    )


def _says_express(wanted: Config, path: configuration.PathConfig, name: str) -> bool:
    """May packets that come in by an interface leave past user space?"""
    rules = wanted.rules_of(name).effective(path.express)
    return "express" in {rules.default, *(rule.verdict for rule in rules.rules)}


# ---- the machine ------------------------------------------------------------------------------------------


def _machine(daemon: bool) -> Machine:
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return Machine(
        kernel=(int(major), int(minor)),
        af_xdp=_try_af_xdp(),
        capabilities=_capabilities(),
        memlock=None if limit == resource.RLIM_INFINITY else limit,
        jit={"0": False, "": None}.get(_text(JIT), True),
        huge_pages=_number(HUGE_PAGES / "nr_hugepages"),
        free_huge_pages=_number(HUGE_PAGES / "free_hugepages") - _number(HUGE_PAGES / "resv_hugepages"),
        cpus=frozenset(os.sched_getaffinity(0)),
        irqbalance=any(_text(comm) == "irqbalance" for comm in Path("/proc").glob("[0-9]*/comm")),
        daemon=daemon,
    )


def _try_af_xdp() -> int:
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW).close()
    except OSError as error:
        return error.errno or 0
    return 0


def _capabilities() -> frozenset[str]:
    (effective,) = re.findall(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return frozenset(name for bit, name in CAPABILITIES.items() if int(effective, 16) >> bit & 1)


def _running(wanted: Config | None) -> frozenset[str] | None:
    """The interfaces that a running xskd has its program on; None if none answers."""
    where = (wanted.control if wanted else configuration.Control()).socket
    try:
        picture = control.ask(where, "status")["status"]
    except XskdError:
        return None
    return frozenset(each["name"] for each in picture["interfaces"] if each["attach"])


# ---- one interface ----------------------------------------------------------------------------------------


def _looked_at(interface: Interface, route: Any, ethtool: Any) -> Interface:
    device = interface.device
    if device is None:
        return interface
    found = route.link("get", index=device.ifindex)
    link, bus = found[0], netdev.bus_device(found[0])
    return replace(
        interface,
        offloads=_offloads(ethtool, device.name),
        peer=_peer(link, route) if device.driver == "veth" else None,
        tenants=_told(lambda: tenants(device.ifindex), ()),
        rss=_told(lambda: _rss(device.name), ()),
        hardware_rx=_told(lambda: ethtool.get_rings(device.name).rx or 0, 0),
        interrupts=_interrupts(bus),
        master=_name(route, link.get("master")),
        access_platform=_access_platform(bus) if device.driver == "virtio_net" else None,
        module=(MODULES / device.driver / "initstate").exists(),
        routing=_told(lambda: examine_routing.read_routing(route, device.ifindex, device.name), None)
        if interface.kind == "route"
        else None,
    )


def _told(ask: Callable[[], T], silence: T) -> T:
    """What is answered, or what silence means: most drivers tell less than ethtool can ask."""
    try:
        return ask()
    except (EthtoolError, NetlinkError, XskdError, OSError):
        return silence


def _offloads(ethtool: Any, name: str) -> Offloads:
    features: list[Any] = _told(lambda: list(ethtool.get_features(name).features.values()), [])
    return Offloads(
        frozenset(feature.name for feature in features if feature.enable),
        frozenset(feature.name for feature in features if not feature.available),
    )


def _rss(name: str) -> tuple[int, ...]:
    """The indirection table: a question for its length, which takes no entries, and one for these."""
    ethtool = IoctlEthtool(name)
    try:
        return _indirection(ethtool, _indirection(ethtool, 0)[0])[1]
    finally:
        ethtool.close()


def _indirection(ethtool: Any, size: int) -> tuple[int, tuple[int, ...]]:
    """ETHTOOL_GRXFHINDIR (struct ethtool_rxfh_indir), which pyroute2 lacks: command, size, entries."""
    words = (ctypes.c_uint32 * (2 + size))(GRXFHINDIR, size)
    ethtool.ifreq.gstats = ctypes.cast(words, ctypes.POINTER(None))  # any member of the union that points
    ethtool.ioctl()
    return words[1], tuple(words[2:])


def _peer(link: Any, route: Any) -> Peer | None:
    """The other end of a veth, wherever it is; None if that cannot be seen."""
    index, number = link.get("link"), link.get("link_netnsid")
    if not index:
        return None
    if number is None:
        return _told(lambda: _peer_here(index, ""), None)
    for name in netns.listnetns():
        if _number_of(route, name) == number:
            return _told(partial(_in_namespace, name, partial(_peer_here, index, name)), None)
    return None


def _number_of(route: Any, name: str) -> int:
    """The id that this namespace has for one with a name; -1 if it has none."""
    try:
        with (Path(netns.NETNS_RUN_DIR) / name).open() as file:
            return int(route.get_netnsid(fd=file.fileno())["nsid"])
    except (NetlinkError, OSError):  # it has gone since it was listed, or is not ours to open
        return -1


def _peer_here(index: int, namespace: str) -> Peer:
    with IPRoute() as route, Ethtool() as ethtool:
        name = _name(route, index)
        device = netdev.read_devices([name])[name]
        return Peer(name, namespace, _offloads(ethtool, name), device.tx_queues if device else 0)


def _in_namespace(name: str, ask: Callable[[], T]) -> T:
    """Ask from inside of a namespace, in a thread of its own: this one stays where it is."""
    answers: list[T] = []
    errors: list[OSError] = []

    def enter() -> None:
        try:
            netns.setns(name, flags=0)  # pyroute2's default flags would create one that is missing
            answers.append(ask())
        except (EthtoolError, NetlinkError, OSError) as error:
            errors.append(OSError(str(error)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]


def _name(route: Any, index: int | None) -> str:
    return str(next(iter(route.link("get", index=index))).get("ifname")) if index else ""


def _interrupts(bus: Path | None) -> tuple[Interrupt, ...]:
    """Those that announce received packets; a virtio device's belong to the PCI device above it."""
    above = [bus, *bus.parents] if bus else []
    listed = next((each / "msi_irqs" for each in above if (each / "msi_irqs").is_dir()), None)
    numbers = sorted(int(entry.name) for entry in listed.iterdir()) if listed else []
    found = (_interrupt(Path("/proc/irq") / str(number)) for number in numbers)
    return tuple(each for each in found if each and RX_INTERRUPT.match(each.name))


def _interrupt(directory: Path) -> Interrupt | None:
    """None for one that is not in use; its handler's name is that of a directory."""
    name = next((entry.name for entry in directory.glob("*/")), "")
    cpus = _text(directory / "effective_affinity_list") or _text(directory / "smp_affinity_list")
    return Interrupt(int(directory.name), name, frozenset(cpu_list(cpus))) if name and cpus else None


def cpu_list(text: str) -> Iterable[int]:
    """`0-2,5` as numbers."""
    for span in text.split(","):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _access_platform(bus: Path | None) -> bool | None:
    bits = _text(bus / "features") if bus else ""
    return bits[ACCESS_PLATFORM] == "1" if len(bits) > ACCESS_PLATFORM else None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(file: Path) -> int:
    return int(_text(file) or 0)
