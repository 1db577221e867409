"""What the kernel says of a network interface, as frozen facts.

The plan is checked against these facts and never asks the kernel itself, so that it can be tested without
one. Everything comes from netlink and ethtool of the calling thread's network namespace. Only what belongs
to the machine and not to a namespace (driver and NUMA node of a device on a bus) is read, below /sys/bus: a
process that entered a namespace with setns still sees the /sys/class/net of the one it came from. Nothing
here ever changes an interface.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ethtool import Ethtool
from pyroute2.ethtool.ioctl import NoSuchDevice, NotSupportedError
from pyroute2.netlink.exceptions import NetlinkError

from xskd.features import Features, read_features

IFF_UP = 1  # linux/if.h
RTM_F_FIB_MATCH = 0x2000  # linux/rtnetlink.h: answer with the route, not with the way of a packet
# Addresses that nobody announces (class E, documentation), and how long the prefix of a route may be that
# leads there and still means "everything else": one half of IPv4, all global unicast of IPv6.
ANYWHERE = {socket.AF_INET: ("240.0.0.1", 1), socket.AF_INET6: ("3fff::1", 3)}
# What a lookup answers where no route leads, or one that says no (blackhole, prohibit, unreachable).
NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT})


@dataclass(frozen=True)
class NetDevice:
    """One interface as it was when asked.

    `mtu` is in bytes without the Ethernet header. `queues` is the real number of RX queues, `tx_queues`
    that of TX queues: a worker needs both of its number. `driver` is that of a device on a bus, else the
    kind of virtual link (veth, bridge, ...), else "". `numa_node` is None where the machine does not say.
    `xdp_prog_id` is the program attached now, ours or another's. `max_queues` is how many RX queues were
    allocated with the interface: `ethtool -L` can never set more, and `queues` is never more. `takes_all`: it
    takes frames for any MAC address, because it is promiscuous or has no filter. `features`: what its driver
    says it can do for XDP, None where the kernel does not tell.
    """

    name: str
    ifindex: int
    mtu: int
    up: bool
    carrier: bool
    driver: str
    mac: str
    queues: int
    tx_queues: int
    numa_node: int | None
    xdp_prog_id: int | None
    default_route: bool
    max_queues: int
    takes_all: bool = True
    features: Features | None = None


def read_devices(names: Iterable[str]) -> dict[str, NetDevice | None]:
    """Facts of each interface by name, None for one that does not exist in this network namespace.

    Raises NetlinkError or OSError only where the kernel refuses to answer at all.
    """
    with IPRoute() as route, Ethtool() as ethtool:
        default = set(_default_route_ifindexes(route))
        found = {name: _read_device(name, route, ethtool, default) for name in names}
    indexes = [device.ifindex for device in found.values() if device]
    features: dict[int, Features | None] = {}
    with contextlib.suppress(NetlinkError, OSError):  # as of a kernel that does not tell
        features = read_features(indexes) if indexes else {}
    return {
        name: replace(device, features=features.get(device.ifindex)) if device else None
        for name, device in found.items()
    }


def _read_device(name: str, route: Any, ethtool: Any, default: set[int]) -> NetDevice | None:
    try:
        link = route.link("get", ifname=name)[0]
        rx, tx = _channels(name, link, ethtool)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    except NoSuchDevice:  # it went away between the two questions
        return None
    bus = bus_device(link)
    return NetDevice(
        name=name,
        ifindex=link["index"],
        mtu=link.get("mtu"),
        up=bool(link["flags"] & IFF_UP),
        carrier=bool(link.get("carrier")),
        driver=_driver(bus) or link.get(("linkinfo", "kind")) or "",
        mac=link.get("address") or "",
        queues=rx,
        tx_queues=tx,
        numa_node=_numa_node(bus),
        xdp_prog_id=_xdp_prog_id(link),
        default_route=link["index"] in default,
        max_queues=max(link.get("num_rx_queues"), rx),
        takes_all=bool(link.get("promiscuity")) or not bus,
    )


def _channels(name: str, link: Any, ethtool: Any) -> tuple[int, int]:
    """Real numbers of RX and TX queues; a driver that does not tell ethtool uses all that were allocated."""
    allocated = link.get("num_rx_queues"), link.get("num_tx_queues")
    try:
        channels = ethtool.get_channels(name)
    except NotSupportedError:
        return allocated
    both = channels.combined_count
    return both + channels.rx_count or allocated[0], both + channels.tx_count or allocated[1]


def _default_route_ifindexes(route: Any) -> Iterator[int]:
    """Where packets to anywhere go. A lookup, never a dump: a router may have a million routes."""
    for family, (address, longest) in ANYWHERE.items():
        try:
            answers = route.route("get", family=family, dst=address, flags=RTM_F_FIB_MATCH)
        except NetlinkError as error:
            if error.code not in NO_ROUTE:
                raise
            continue
        for default in answers:
            if default["dst_len"] <= longest:
                for hop in default.get("multipath") or [default]:
                    yield hop.get("oif")


def _xdp_prog_id(link: Any) -> int | None:
    """The program that sees packets first, where several are attached (native, then generic)."""
    ids = (link.get(("xdp", name)) for name in ("xdp_prog_id", "xdp_drv_prog_id", "xdp_skb_prog_id"))
    return next(filter(None, ids), None)


def bus_device(link: Any) -> Path | None:
    """The device behind a link, below /sys/bus, or None for a virtual link."""
    bus, device = link.get("parent_dev_bus_name"), link.get("parent_dev_name")
    return Path("/sys/bus", bus, "devices", device).resolve() if bus and device else None


def _driver(bus_device: Path | None) -> str:
    link = bus_device / "driver" if bus_device else None
    return link.resolve().name if link and link.exists() else ""


def _numa_node(bus_device: Path | None) -> int | None:
    """The node of the device, or of the nearest device above it (virtio sits on PCI, which has the node)."""
    for directory in [bus_device, *bus_device.parents] if bus_device else []:
        try:
            node = int((directory / "numa_node").read_text())
        except (OSError, ValueError):
            continue
        return node if node >= 0 else None
    return None
