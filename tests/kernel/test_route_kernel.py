"""What a route path leaves to the kernel: each packet under its reason, and there it is as if without xskd.

Hand-made frames for what no tool sends, real tools for the rest. The reasons that need a change of routes or
neighbours are in test_route_changes.py.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import NOISE, Wire
from daemon import Daemon, kernel_side
from routed import (
    BOTH,
    BY,
    XSKD,
    By,
    Datagrams,
    answered,
    forwarded,
    frame,
    ipv4,
    ipv6,
    ping,
    routers,
    routing,
    udp,
    unroutable,
    until,
)

from lab import Routers
from lab.routers import ANYCAST, ANYCAST_PREFIX, Family
from xskd.metrics import TABLE

if TYPE_CHECKING:
    from conftest import MakeWire

MARKER = b"a packet for the kernel"


@contextmanager
def left(net: Wire, daemon: Daemon, reason: str, packets: int = 1) -> Iterator[None]:
    """Whatever is sent within is left to the kernel for this reason, and for no other; none is forwarded.

    But hosts tell of the groups they are in (MLD) when it suits them, so there may be more multicast.
    """
    before, went = reasons(daemon), forwarded(daemon)
    yield

    def as_expected() -> bool:
        grown = {each: count - before[each] for each, count in reasons(daemon).items()}
        groups = grown.pop("multicast")
        wanted = dict.fromkeys(grown, 0)
        if reason == "multicast":
            return groups >= packets and grown == wanted
        return grown == {**wanted, reason: packets}

    assert net.eventually(as_expected), (reason, before, reasons(daemon))
    assert forwarded(daemon) == went


def reasons(daemon: Daemon) -> dict[str, int]:
    """What was left to the kernel of the first interface's packets, by reason."""
    samples = daemon.metrics()["xskd_unroutable_packets"]
    return {labels["reason"]: int(value) for labels, value in samples if labels["interface"] == "eth1"}


@contextmanager
def router(net: Wire, directory: Path, by: By) -> Iterator[tuple[Routers, Daemon]]:
    """Route by xskd between hosts that are silent: neighbours stay as they are, and none asks from fe80::."""
    roads = routers(net)
    for host in range(len(net.hosts)):
        roads.ip(net.hosts[host], 6, "addr", "flush", "dev", "eth0", "scope", "link")
        for family in (4, 6):
            for ns, dev, address, mac in (
                (net.dut, f"eth{host + 1}", roads.address(host, family), net.mac_of(host)),
                (net.hosts[host], "eth0", roads.gateway(host, family), net.mac_of(host, dut_side=True)),
            ):
                roads.ip(ns, family, *f"neigh replace {address} lladdr {mac} dev {dev} nud permanent".split())
    with routing(net, directory, by, forwards=False) as daemon:
        assert daemon
        assert answered(net, roads.address(1, 4))
        yield roads, daemon


FROM: dict[Family, str] = {family: Routers.address(0, family) for family in (4, 6)}
TO: dict[Family, str] = {family: Routers.address(1, family) for family in (4, 6)}
DATAGRAM = udp(MARKER)
RIGHT = ipv4(FROM[4], TO[4], DATAGRAM)
RIGHT6 = ipv6(FROM[6], TO[6], DATAGRAM)
HOP_BY_HOP = bytes([17, 0, 1, 4, 0, 0, 0, 0])  # next header UDP, no more than 8 bytes, PadN
ALL = "ff:ff:ff:ff:ff:ff"
ROUTER_ALERT = bytes([0x94, 4, 0, 0])

# Reason, what is wrong, the packet, and where its frame is addressed to ("": the dut).
FRAMES: list[tuple[str, str, bytes, str]] = [
    ("other_host", "IPv4", RIGHT, "02:00:00:00:77:77"),
    ("other_host", "IPv6", RIGHT6, "02:00:00:00:77:77"),
    ("multicast", "IPv4", ipv4(FROM[4], "239.1.2.3", DATAGRAM), "01:00:5e:01:02:03"),
    ("multicast", "IPv6", ipv6(FROM[6], "ff05::1:3", DATAGRAM), "33:33:00:01:00:03"),
    ("broadcast", "IPv4", ipv4(FROM[4], "255.255.255.255", DATAGRAM), ALL),
    ("malformed", "checksum", RIGHT[:10] + bytes([RIGHT[10] ^ 1]) + RIGHT[11:], ""),
    ("malformed", "header-length", b"\x44" + RIGHT[1:], ""),
    ("malformed", "length", RIGHT6[:4] + struct.pack(">H", 1400) + RIGHT6[6:], ""),
    ("malformed", "truncated", RIGHT[:15], ""),
    ("options", "IPv4", ipv4(FROM[4], TO[4], DATAGRAM, options=ROUTER_ALERT), ""),
    ("options", "hop-by-hop", ipv6(FROM[6], TO[6], HOP_BY_HOP + DATAGRAM, protocol=0), ""),
    ("ttl_expired", "TTL-1", ipv4(FROM[4], TO[4], DATAGRAM, ttl=1), ""),
    ("ttl_expired", "TTL-0", ipv4(FROM[4], TO[4], DATAGRAM, ttl=0), ""),
    ("ttl_expired", "hop-limit", ipv6(FROM[6], TO[6], DATAGRAM, ttl=1), ""),
    ("never_forwarded", "from-loopback", ipv4("127.0.0.1", TO[4], DATAGRAM), ""),
    ("never_forwarded", "to-loopback", ipv4(FROM[4], "127.0.0.5", DATAGRAM), ""),
    ("never_forwarded", "class-E", ipv4(FROM[4], "240.0.0.1", DATAGRAM), ""),
    ("never_forwarded", "from-zero", ipv4("0.0.0.0", TO[4], DATAGRAM), ""),
    ("never_forwarded", "from-link-local", ipv6("fe80::2", TO[6], DATAGRAM), ""),
    ("never_forwarded", "to-link-local", ipv6(FROM[6], "fe80::9", DATAGRAM), ""),
    ("never_forwarded", "from-unspecified", ipv6("::", TO[6], DATAGRAM), ""),
    ("local", "IPv4", ipv4(FROM[4], Routers.gateway(1, 4), DATAGRAM), ""),
    ("local", "IPv6", ipv6(FROM[6], Routers.gateway(1, 6), DATAGRAM), ""),
]


@XSKD
@pytest.mark.moves("xskd_xdp_verdicts", verdict="unroutable")
@pytest.mark.moves("xskd_xdp_verdict_bytes", verdict="unroutable")
@pytest.mark.moves(
    "xskd_unroutable_packets",
    reason=(
        "not_ip",
        "other_host",
        "multicast",
        "broadcast",
        "malformed",
        "options",
        "ttl_expired",
        "never_forwarded",
        "local",
    ),
)
def test_each_frame_that_cannot_be_routed_has_its_reason_and_reaches_the_kernel(
    wire: MakeWire, tmp_path: Path, by: By
) -> None:
    net = wire()
    arp = net.frame(1)[12:]
    cases = [(reason, name, frame(net, packet, to=to)) for reason, name, packet, to in FRAMES]
    cases.append(("not_ip", "experimental", frame(net, arp, ether_type=0x88B5)))
    with router(net, tmp_path, by) as (_, daemon), kernel_side(net, "eth1") as kernel:
        for reason, name, packet in cases:
            with left(net, daemon, reason):
                net.taps[0].send([packet])
            while (seen := kernel.recv(2048)) != packet:
                assert seen, name
        with_options = [each for each in FRAMES if each[0] == "options"]
        assert len([each for each in (until(net, 1, MARKER) for _ in with_options) if each]) == 2


@BY
def test_record_route_names_the_router(wire: MakeWire, tmp_path: Path, by: By) -> None:
    """IPv4 options are the kernel's: it writes its address into them."""
    net = wire()
    roads = routers(net)
    with routing(net, tmp_path, by, forwards=False) as daemon:
        said = ping(net, roads.address(1, 4), "-R")
        assert f"\n\t{roads.gateway(1, 4)}\n" in said
        if daemon:
            assert unroutable(daemon, "options") == 1


@BY
def test_hop_by_hop_options_are_for_the_kernel_of_each_hop(wire: MakeWire, tmp_path: Path, by: By) -> None:
    net = wire()
    roads = routers(net)
    with (
        routing(net, tmp_path, by, forwards=False) as daemon,
        Datagrams(net, 0, 6) as sender,
        Datagrams(net, 1, 6, "::", 5000) as receiver,
    ):
        padding = struct.pack("BBBBI", 0, 0, 1, 4, 0)  # of 8 bytes; the kernel fills in what comes next
        sender.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, padding)
        sender.send(MARKER, roads.address(1, 6), 5000)
        assert receiver.receive() == [MARKER]
        if daemon:
            assert unroutable(daemon, "options") == 1


@BY
@BOTH
def test_a_ttl_of_1_is_answered_by_the_router(wire: MakeWire, tmp_path: Path, by: By, family: Family) -> None:
    net = wire()
    roads = routers(net)
    with routing(net, tmp_path, by, forwards=False) as daemon:
        said = ping(net, roads.address(1, family), "-t", "1")
        assert f"From {roads.gateway(0, family)} icmp_seq=1 Time " in said
        assert " exceeded" in said
        assert answered(net, roads.address(1, family), "-t", "2")
        if daemon:
            assert unroutable(daemon, "ttl_expired") == 1


@XSKD
@pytest.mark.moves("xskd_unroutable_packets", reason="fragmentation_needed")
def test_what_is_longer_than_the_egress_takes_is_counted(wire: MakeWire, tmp_path: Path, by: By) -> None:
    """By the MTU of the route, too: a router goes by that where it is locked (IPv4) or always (IPv6)."""
    net = wire()
    with router(net, tmp_path, by) as (roads, daemon):
        for family in (4, 6):
            words = (ANYCAST_PREFIX[family], *roads.via([1], family), "mtu", "lock", "1300")
            roads.route(family, "add", *words)
            make = ipv4 if family == 4 else ipv6
            header = 20 if family == 4 else 40
            fits = make(FROM[family], ANYCAST[family], udp(NOISE[: 1300 - header - 8]))
            too_long = make(FROM[family], ANYCAST[family], udp(NOISE[: 1301 - header - 8]))
            went = forwarded(daemon)
            net.taps[0].send([frame(net, fits)])
            assert until(net, 1, NOISE[:64])
            assert forwarded(daemon) == went + 1
            with left(net, daemon, "fragmentation_needed"):
                net.taps[0].send([frame(net, too_long)])


@XSKD
@BOTH
@pytest.mark.moves("xskd_unroutable_packets", reason="encapsulated")
def test_a_route_that_encapsulates_is_the_kernels(
    wire: MakeWire, tmp_path: Path, by: By, family: Family
) -> None:
    net = wire()
    with router(net, tmp_path, by) as (roads, daemon):
        how = ("ip", "id", "7", "dst", TO[4]) if family == 4 else ("seg6", "mode", "encap", "segs", TO[6])
        roads.route(family, "add", ANYCAST_PREFIX[family], "encap", *how, "dev", "eth2")
        make = ipv4 if family == 4 else ipv6
        with left(net, daemon, "encapsulated"):
            net.taps[0].send([frame(net, make(FROM[family], ANYCAST[family], DATAGRAM))])


@XSKD
def test_every_reason_begins_at_0_and_is_there_from_the_start(wire: MakeWire, tmp_path: Path, by: By) -> None:
    net = wire()
    (row,) = [row for row in TABLE if row.name == "xskd_unroutable_packets"]
    assert set(row.labels) == {"path", "interface", "reason"}
    with routing(net, tmp_path, by, forwards=False) as daemon:
        assert daemon
        samples = daemon.metrics()["xskd_unroutable_packets"]
    interfaces = {labels["interface"] for labels, _ in samples}
    assert interfaces == {"eth1", "eth2"}
    assert len(samples) == 2 * len({labels["reason"] for labels, _ in samples}) >= 2 * 20
