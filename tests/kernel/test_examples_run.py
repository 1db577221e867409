"""The worked examples of config/examples, as they are shipped, between real hosts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, Wire
from daemon import Daemon, running, total
from routed import answered, frame, ipv4, lanes_open, udp, until

from lab import Routers
from lab.routers import FAMILIES, Family

if TYPE_CHECKING:
    from conftest import MakeWire

EXAMPLES = ROOT / "config" / "examples"


@contextmanager
def web(net: Wire, host: int, directory: Path, *ports: int) -> Iterator[bytes]:
    """Serve a file of noise at these ports of a host; its bytes."""
    directory.mkdir()
    noise = os.urandom(1 << 20)
    (directory / "noise").write_bytes(noise)
    command = (sys.executable, "-m", "http.server", "-b", "::", "-d", str(directory))
    servers = [net.popen(net.hosts[host], *command, str(port)) for port in ports]

    def listen() -> bool:
        listening = net.run(net.hosts[host], "ss", "-Hltn").stdout
        return all(f":{port} " in listening for port in ports)

    try:
        assert net.eventually(listen, 15)
        yield noise
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def fetch(net: Wire, host: int, where: str, into: Path, seconds: int = 30) -> bytes:
    """Fetch the file with curl; b"" if nothing comes."""
    into.unlink(missing_ok=True)
    command = ("curl", "-sgf", "-m", str(seconds), "-o", str(into), f"http://{where}/noise")
    net.run(net.hosts[host], *command, check=False)
    return into.read_bytes() if into.exists() else b""


def matched(daemon: Daemon, interface: str, rule: str, what: str = "packets") -> float:
    return total(daemon.metrics(), f"xskd_rule_{what}", interface=interface, rule=rule)


OUTSIDE, INSIDE = ("198.51.100.1", "2001:db8:9::9"), ("198.51.100.130", "2001:db8:1::130")


def joined(net: Wire) -> None:
    """Give two hosts on one wire addresses of the example: the gateway's, and one of inside."""
    for ns, v4, v6 in ((net.hosts[0], *OUTSIDE), (net.hosts[1], *INSIDE)):
        net.run(ns, *f"ip addr add {v4}/24 dev eth0".split())
        net.run(ns, *f"ip addr add {v6}/32 dev eth0 nodad".split())
        net.run(ns, *f"ip addr add fe80::{1 + net.hosts.index(ns)}/64 dev eth0 nodad".split())


def test_the_transparent_filter_lets_in_what_it_says_and_no_more(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    joined(net)
    text = (EXAMPLES / "filter.yaml").read_text()
    got = tmp_path / "got"
    with web(net, 1, tmp_path / "www", 80, 8080) as noise, running(net, tmp_path, text) as daemon:
        assert net.eventually(lambda: lanes_open(daemon) == 2), daemon.log
        assert answered(net, INSIDE[0])
        assert answered(net, INSIDE[1])
        assert fetch(net, 0, INSIDE[0], got) == noise
        assert fetch(net, 0, f"[{INSIDE[1]}]", got) == noise
        assert matched(daemon, "eth1", "web-new") >= 2
        before = matched(daemon, "eth1", "default")
        assert fetch(net, 0, f"{INSIDE[0]}:8080", got, 2) == b""
        assert matched(daemon, "eth1", "default") > before
        spoofed = ipv4("198.51.100.200", INSIDE[0], udp(b"a liar"))
        net.taps[0].send([frame(net, spoofed, to=net.mac_of(1))])
        assert net.eventually(lambda: matched(daemon, "eth1", "spoofed") == 1)
        assert matched(daemon, "eth2", "default") == 0
        for interface in ("eth1", "eth2"):
            assert matched(daemon, interface, "arp") > 0
            assert matched(daemon, interface, "neighbour-discovery" if interface == "eth1" else "own") > 0


def test_the_transparent_filter_lets_hosts_ask_outside(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    joined(net)
    text = (EXAMPLES / "filter.yaml").read_text()
    with web(net, 0, tmp_path / "www", 8080) as noise, running(net, tmp_path, text) as daemon:
        assert fetch(net, 1, f"{OUTSIDE[0]}:8080", tmp_path / "got") == noise
        assert matched(daemon, "eth1", "answers") > 0
        net.taps[1].send(
            [frame(net, ipv4("203.0.113.9", OUTSIDE[0], udp(b"a liar")), to=net.mac_of(0), host=1)]
        )
        assert net.eventually(lambda: matched(daemon, "eth2", "default") >= 1)


def test_a_flood_of_pings_is_held_to_the_limit(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    joined(net)
    with running(net, tmp_path, (EXAMPLES / "filter.yaml").read_text()) as daemon:
        assert answered(net, INSIDE[0])
        said = net.run(net.hosts[0], *f"ping -n -q -f -c 300 -W 1 {INSIDE[0]}".split(), check=False).stdout
        assert " 0% packet loss" not in said
        limited = matched(daemon, "eth1", "ping", "limited_packets")
        assert 0 < limited < matched(daemon, "eth1", "ping")
        assert (
            total(daemon.metrics(), "xskd_xdp_verdicts", verdict="rule_limited", interface="eth1") == limited
        )


LAN: dict[Family, str] = {4: "192.168.1.2", 6: "2001:db8:2::2"}
GATEWAY: dict[Family, str] = {4: "192.168.1.1", 6: "2001:db8:2::1"}


def homes(net: Wire) -> Routers:
    """A LAN of the example's addresses behind the router, and hosts beyond the provider."""
    roads = Routers(net)
    net.run(net.dut, "ip", "addr", "add", f"{GATEWAY[4]}/24", "dev", "eth1")
    net.run(net.dut, "ip", "addr", "add", f"{GATEWAY[6]}/64", "dev", "eth1", "nodad")
    net.run(net.hosts[0], *f"ip addr add {LAN[4]}/24 dev eth0".split())
    net.run(net.hosts[0], *f"ip addr add {LAN[6]}/64 dev eth0 nodad".split())
    for family, gateway in GATEWAY.items():
        default = ("route", "replace", "default", "via", gateway, "src", LAN[family])
        roads.ip(net.hosts[0], family, *default)
        roads.route(family, "add", "default", "via", roads.address(1, family))
    return roads


@pytest.mark.needs("tells_features")  # an open lane
def test_the_router_joins_lan_and_provider_and_keeps_its_rules(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    roads = homes(net)
    got = tmp_path / "got"
    with (
        web(net, 1, tmp_path / "www", 8080) as noise,
        running(net, tmp_path, (EXAMPLES / "router.yaml").read_text()) as daemon,
    ):
        assert net.eventually(lambda: lanes_open(daemon) == 2), daemon.log
        for family in FAMILIES:
            where = roads.address(1, family)
            where = f"[{where}]" if family == 6 else where
            assert answered(net, roads.address(1, family))
            assert answered(net, LAN[family], host=1)
            assert fetch(net, 0, f"{where}:8080", got) == noise
            assert answered(net, roads.gateway(1, family)), "the router itself"
        assert total(daemon.metrics(), "xskd_xdp_verdicts", verdict="expressed", interface="eth2") > 1_000
        for rule, packet in (
            ("bogons", ipv4("192.168.7.7", LAN[4], udp(b"a liar"))),
            ("no-smb", ipv4(roads.address(1, 4), LAN[4], smb(), protocol=6)),
        ):
            net.taps[1].send([frame(net, packet, host=1)])
            assert net.eventually(lambda rule=rule: matched(daemon, "eth2", rule) == 1)  # type: ignore[misc]
        stranger = ipv4("203.0.113.9", roads.address(1, 4), udp(b"a stranger"))
        net.taps[0].send([frame(net, stranger)])
        assert net.eventually(lambda: matched(daemon, "eth1", "spoofed") == 1)
        datagram = frame(net, ipv4(roads.address(1, 4), LAN[4], udp(b"welcome"), ttl=9), host=1)
        net.taps[1].send([datagram])
        (came,) = until(net, 0, b"welcome")
        assert came[22] == 8, "one hop less"


def smb() -> bytes:
    """The beginning of a TCP connection to port 445."""
    return bytes.fromhex("c000 01bd 00000001 00000000 5002 ffff 0000 0000")
