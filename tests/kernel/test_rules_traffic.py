"""Rules on a wire between real clients, and VLAN tags that pass it untouched."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Wire
from daemon import SMALL, Daemon, kernel_side, running, total
from routed import answered, frame, ipv4, ipv6, lanes_open, udp, until

from lab import entered

if TYPE_CHECKING:
    from conftest import MakeWire

WAYS = pytest.mark.parametrize("express", ["off", "auto"])


def ruled(*rules: str, default: str = "redirect", express: str = "off", other: str = "") -> str:
    """A wire with these rules on its first interface."""
    listed = ", ".join(f"{{{rule}}}" for rule in rules)
    return (
        f"interfaces:\n  eth1: {{rings: {SMALL}, default: {default}, rules: [{listed}]}}\n"
        f"  eth2: {{rings: {SMALL}{other}}}\n"
        f"paths: {{wire: {{connect: [eth1, eth2], express: {express}}}}}\n"
    )


@contextmanager
def filtering(net: Wire, directory: Path, text: str) -> Iterator[Daemon]:
    with running(net, directory, text) as daemon:
        if "express: auto" in text:
            assert net.eventually(lambda: lanes_open(daemon) == 2), daemon.log
        yield daemon


def matched(daemon: Daemon, rule: str) -> int:
    return int(total(daemon.metrics(), "xskd_rule_packets", interface="eth1", rule=rule))


def addressed(net: Wire) -> None:
    for host, ns in enumerate(net.hosts):
        net.run(ns, "ip", "addr", "add", f"{net.ip_of(host)}/24", "dev", "eth0")


@contextmanager
def listening(ns: str, port: int, address: str = "0.0.0.0") -> Iterator[socket.socket]:
    """Listen for TCP connections in a namespace."""
    with entered(ns):
        made = socket.create_server((address, port))
    with made:
        made.settimeout(5)
        yield made


def connects(net: Wire, address: str, port: int, seconds: int = 5) -> bool:
    """Does a TCP connection from the first host come about?"""
    script = (
        "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))"
    )
    command = (sys.executable, "-c", script, address, str(port), str(seconds))
    return net.run(net.hosts[0], *command, check=False).returncode == 0


@WAYS
@pytest.mark.moves("xskd_rule_packets")
@pytest.mark.moves("xskd_rule_bytes")
@pytest.mark.moves("xskd_xdp_verdicts", verdict=("passed", "dropped"))
def test_a_port_passes_another_is_dropped_and_a_third_is_the_hosts_own(
    wire: MakeWire, tmp_path: Path, express: str
) -> None:
    """The dut answers at port 2222 itself, under the other host's address: what `pass` gives it arrives."""
    net = wire()
    addressed(net)
    rules = (
        "name: web, protocol: tcp, destination_port: 8080, verdict: redirect",
        "name: own, protocol: tcp, destination_port: 2222, verdict: pass",
        "name: telnet, protocol: tcp, destination_port: [23, 8081-8090], verdict: drop",
    )
    with (
        filtering(net, tmp_path, ruled(*rules, express=express)) as daemon,
        listening(net.hosts[1], 8080),
        listening(net.hosts[1], 8085),
        listening(net.hosts[1], 2222),
        kernel_side(net, "eth1") as kernel,
    ):
        assert answered(net, net.ip_of(1))
        assert connects(net, net.ip_of(1), 8080)
        assert not connects(net, net.ip_of(1), 8085, 1)
        assert not connects(net, net.ip_of(1), 2222, 1)
        assert matched(daemon, "web") >= 3
        assert matched(daemon, "telnet") >= 1
        assert matched(daemon, "own") >= 1
        assert kernel.recv(2048)[36:38] == struct.pack(">H", 2222), "nothing else is the kernel's"
        metrics = daemon.metrics()
        for verdict, rule in (("passed", "own"), ("dropped", "telnet")):
            packets = total(metrics, "xskd_xdp_verdicts", interface="eth1", verdict=verdict)
            assert packets == total(metrics, "xskd_rule_packets", interface="eth1", rule=rule)
        assert total(metrics, "xskd_dropped_packets") == total(metrics, "xskd_frames_unaccounted") == 0


def test_the_host_itself_is_reached_over_an_interface_that_passes_its_ssh(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire()
    addressed(net)
    own = "10.99.0.100"
    net.run(net.dut, "ip", "addr", "add", f"{own}/24", "dev", "eth1")
    rules = (
        f"name: own, destination: {own}, protocol: tcp, destination_port: ssh, verdict: pass",
        "name: arp, ether_type: arp, verdict: pass",
    )
    with filtering(net, tmp_path, ruled(*rules)) as daemon, listening(net.dut, 22):
        assert connects(net, own, 22)
        assert matched(daemon, "own") >= 3
        assert not answered(net, own), "the rest of its packets go through the wire"


# ---- VLAN tags --------------------------------------------------------------------------------------------


def tagged(packet: bytes, *tags: tuple[int, int]) -> bytes:
    """Put tags (type, VID) into a frame, the first one outermost."""
    return packet[:12] + b"".join(struct.pack(">HH", *tag) for tag in tags) + packet[12:]


C_TAG, S_TAG = 0x8100, 0x88A8
TAGS = {
    "untagged": (),
    "one": ((C_TAG, 5),),
    "priority": ((C_TAG, 0xE005),),
    "double": ((S_TAG, 100), (C_TAG, 5)),
    "double-8100": ((C_TAG, 100), (C_TAG, 5)),
}


def datagrams(net: Wire, marker: bytes) -> dict[str, bytes]:
    """Frames of each kind of tag with IPv4 and IPv6 in them."""
    to = net.mac_of(1)
    v4 = frame(net, ipv4(net.ip_of(0), net.ip_of(1), udp(marker, 53)), to=to)
    v6 = frame(net, ipv6("fd00::1", "fd00::2", udp(marker, 53)), to=to)
    return {
        f"{name} {family}": tagged(packet, *tags)
        for name, tags in TAGS.items()
        for family, packet in ((4, v4), (6, v6))
    }


class Raw:
    """Sees frames with their tags: the kernel takes those off what an ordinary raw socket gets."""

    def __init__(self, ns: str) -> None:
        with entered(ns):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.socket.bind(("eth0", 0))
        self.socket.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
        self.socket.settimeout(5)

    def receive(self) -> bytes:
        """Take a frame as it was on the wire."""
        data, extra, _, _ = self.socket.recvmsg(65536, 256)
        for _, _, body in extra:  # struct tpacket_auxdata
            status, _, _, _, _, tci, kind = struct.unpack("IIIHHHH", body)
            if status & 0x10:  # TP_STATUS_VLAN_VALID
                return data[:12] + struct.pack(">HH", kind, tci) + data[12:]
        return data


@WAYS
def test_tags_pass_untouched(wire: MakeWire, tmp_path: Path, express: str) -> None:
    net = wire()
    raw = Raw(net.hosts[1])
    with raw.socket, filtering(net, tmp_path, ruled(express=express)):
        for number, (name, packet) in enumerate(datagrams(net, b"a tagged packet").items()):
            sent = packet + bytes([number])
            net.taps[0].send([sent])
            while b"a tagged packet" not in (got := raw.receive()):
                pass
            assert got == sent, name


@WAYS
def test_rules_see_the_outermost_tag_and_what_is_behind_two(
    wire: MakeWire, tmp_path: Path, express: str
) -> None:
    net = wire()
    rules = (
        "name: five, vlan: 5, verdict: drop",
        "name: dns-in-vlans, vlan: 90-110, protocol: udp, destination_port: domain, verdict: redirect",
        "name: other-vlans, vlan: 0-4095, verdict: drop",
        "name: untagged, vlan: none, ether_type: [ipv4, ipv6], verdict: redirect",
    )
    expected = {"one": "five", "priority": "five", "double": "dns-in-vlans", "double-8100": "dns-in-vlans"}
    with filtering(net, tmp_path, ruled(*rules, default="drop", express=express)) as daemon:
        for name, packet in datagrams(net, b"a tagged packet").items():
            rule = expected.get(name.split()[0], "untagged")
            before = matched(daemon, rule)
            net.taps[0].send([packet])
            assert net.eventually(lambda rule=rule, before=before: matched(daemon, rule) == before + 1), name  # type: ignore[misc]
            if rule != "five":
                assert until(net, 1, b"a tagged packet")
        assert net.taps[1].waiting() == []
        assert [matched(daemon, rule) for rule in ("five", "dns-in-vlans", "other-vlans")] == [4, 4, 0]
