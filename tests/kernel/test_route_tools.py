"""Real tools through a router, which is the kernel (the control), xskd's workers or its express lane."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PATIENCE, Wire
from routed import BOTH, BY, By, answered, ping, routers, routing

from lab import Routers, entered
from lab.routers import Family

if TYPE_CHECKING:
    from conftest import MakeWire

SIZE = 4 << 20  # bytes of the file that is fetched
PORT = 8080


@BY
@BOTH
def test_ping_goes_through_both_ways(wire: MakeWire, tmp_path: Path, by: By, family: Family) -> None:
    net = wire()
    roads = routers(net)
    with routing(net, tmp_path, by):
        for sender, target in ((0, 1), (1, 0)):
            said = ping(
                net, roads.address(target, family), "-c", "10", "-i", "0.02", "-s", "1452", host=sender
            )
            assert "10 received, 0% packet loss" in said
            (hops,) = {63 - int(ttl) for ttl in re.findall(r"ttl=(\d+)", said)}
            assert hops == 0, "one hop takes one from TTL or hop limit"


@BY
@BOTH
def test_ping_of_several_fragments(wire: MakeWire, tmp_path: Path, by: By, family: Family) -> None:
    net = wire()
    roads = routers(net)
    with routing(net, tmp_path, by):
        said = ping(net, roads.address(1, family), "-c", "5", "-i", "0.02", "-s", "4000", "-M", "dont")
        assert "5 received, 0% packet loss" in said


@BY
@BOTH
@pytest.mark.parametrize("method", ["-I", "-U", "-T"])
def test_traceroute_shows_the_hop(
    wire: MakeWire, tmp_path: Path, by: By, family: Family, method: str
) -> None:
    """TTL 1 is the kernel's to answer, from the address of the link it came in by."""
    net = wire()
    roads = routers(net)
    command = ("traceroute", f"-{family}", method, "-n", "-q", "1", "-w", "5", roads.address(1, family))
    with routing(net, tmp_path, by):
        said = net.run(net.hosts[0], *command).stdout
    hops = [line.split()[1] for line in said.splitlines()[1:]]
    assert hops == [roads.gateway(0, family), roads.address(1, family)], said


# ---- path MTU ---------------------------------------------------------------------------------------------

NARROW = 1400  # of the link to the server, and of the dut's end of it


def narrowed(net: Wire) -> Routers:
    """Make a router whose second link takes less."""
    net.link(net.dut, "eth2", "mtu", str(NARROW))
    net.link(net.hosts[1], "eth0", "mtu", str(NARROW))
    return routers(net)


@BY
@BOTH
def test_a_packet_too_long_for_the_next_link_is_answered_with_its_mtu(
    wire: MakeWire, tmp_path: Path, by: By, family: Family
) -> None:
    net = wire()
    roads = narrowed(net)
    headers = 28 if family == 4 else 48
    with routing(net, tmp_path, by):
        target = roads.address(1, family)
        said = ping(net, target, "-M", "do", "-s", str(NARROW - headers + 1))
        expected = "Frag needed and DF set" if family == 4 else "Packet too big"
        assert re.search(rf"From {roads.gateway(0, family)}.*{expected}.*mtu *= *{NARROW}", said), said
        assert answered(net, target, "-M", "do", "-s", str(NARROW - headers))


@BY
def test_a_router_cuts_what_may_be_cut(wire: MakeWire, tmp_path: Path, by: By) -> None:
    """IPv4 without DF: a packet too long for the egress goes on in pieces, which are the kernel's work."""
    net = wire()
    roads = narrowed(net)
    with routing(net, tmp_path, by, forwards=False):
        said = ping(net, roads.address(1, 4), "-c", "3", "-i", "0.02", "-M", "dont", "-s", "1472")
        assert "3 received, 0% packet loss" in said


@BY
@BOTH
def test_tracepath_finds_the_mtu_of_the_path(wire: MakeWire, tmp_path: Path, by: By, family: Family) -> None:
    net = wire()
    roads = narrowed(net)
    with routing(net, tmp_path, by):
        said = net.run(net.hosts[0], "tracepath", f"-{family}", "-n", roads.address(1, family)).stdout
    assert f"pmtu {NARROW} hops 2" in said, said


@BY
@BOTH
def test_a_tcp_transfer_finds_its_way_through_a_narrow_link(
    wire: MakeWire, tmp_path: Path, by: By, family: Family
) -> None:
    """From the client's side: only what the client sends is too long, and it learns that from ICMP."""
    net = wire()
    roads = narrowed(net)
    net.link(net.hosts[1], "eth0", "mtu", "1500")  # so that it offers an MSS that the dut's link cannot take
    target = roads.address(1, family)
    with routing(net, tmp_path, by):
        sent = os.urandom(1 << 20)
        assert uploaded(net, target, sent) == sent
        cached = roads.ip(net.hosts[0], family, "route", "get", target)
    assert f"mtu {NARROW}" in cached


def uploaded(net: Wire, address: str, data: bytes) -> bytes:
    """Send data over TCP from the first host to the second; what arrives."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with entered(net.hosts[1]), socket.create_server((address, PORT), family=family) as server:
        server.settimeout(PATIENCE)
        with entered(net.hosts[0]):
            sender = socket.create_connection((address, PORT), PATIENCE)
        receiver, _ = server.accept()
    got = bytearray()
    with sender, receiver:
        receiver.settimeout(PATIENCE)
        sending = threading.Thread(target=sender.sendall, args=(data,))
        sending.start()
        while len(got) < len(data) and (piece := receiver.recv(1 << 16)):
            got += piece
        sending.join()
    return bytes(got)


# ---- transfers --------------------------------------------------------------------------------------------


@contextmanager
def web_server(net: Wire, ns: str, family: Family, directory: Path) -> Iterator[bytes]:
    """Python's http.server in a namespace, with a file of noise; the SHA-256 of that."""
    directory.mkdir(exist_ok=True)
    noise = os.urandom(SIZE)
    (directory / "noise").write_bytes(noise)
    bind = "0.0.0.0" if family == 4 else "::"
    command = (sys.executable, "-m", "http.server", "-b", bind, "-d", str(directory), str(PORT))
    server = net.popen(ns, *command)
    try:
        assert net.eventually(lambda: f":{PORT}" in net.run(ns, "ss", "-Hltn").stdout, 15)
        yield hashlib.sha256(noise).digest()
    finally:
        server.terminate()
        server.wait()


def fetched(net: Wire, address: str, into: Path) -> bytes:
    """Fetch the file with curl from the first host; its SHA-256."""
    where = f"[{address}]" if ":" in address else address
    net.run(net.hosts[0], "curl", "-sSgf", "-m", "60", "-o", str(into), f"http://{where}:{PORT}/noise")
    return hashlib.sha256(into.read_bytes()).digest()


@BY
@BOTH
def test_curl_fetches_every_byte_from_a_web_server(
    wire: MakeWire, tmp_path: Path, by: By, family: Family
) -> None:
    net = wire()
    roads = routers(net)
    with (
        web_server(net, net.hosts[1], family, tmp_path / "www") as expected,
        routing(net, tmp_path, by),
    ):
        assert fetched(net, roads.address(1, family), tmp_path / "got") == expected


@BY
@BOTH
def test_the_router_itself_is_reached_at_each_of_its_addresses(
    wire: MakeWire, tmp_path: Path, by: By, family: Family
) -> None:
    net = wire()
    roads = routers(net)
    with (
        web_server(net, net.dut, family, tmp_path / "www") as expected,
        routing(net, tmp_path, by, forwards=False),
    ):
        for link in (0, 1):
            assert answered(net, roads.gateway(link, family))
            assert fetched(net, roads.gateway(link, family), tmp_path / "got") == expected


def iperf(net: Wire, target: str, *options: str) -> dict[str, Any]:
    """Run iperf3 from the first host to the second; its summary."""
    server = net.popen(net.hosts[1], "iperf3", "--server", "--one-off", stdout=subprocess.PIPE)
    listening = lambda: ":5201" in net.run(net.hosts[1], "ss", "-Hltn").stdout  # noqa: E731
    assert net.eventually(listening, 15)
    said = json.loads(net.run(net.hosts[0], "iperf3", "--json", *options, "-c", target).stdout)
    server.wait(15)
    return dict(said["end"])


@BY
@BOTH
@pytest.mark.parametrize("way", [(), ("-R",)], ids=["up", "down"])
def test_iperf3_tcp_streams_run(
    wire: MakeWire, tmp_path: Path, by: By, family: Family, way: tuple[str, ...]
) -> None:
    net = wire(queues=2)
    roads = routers(net)
    with routing(net, tmp_path, by):
        said = iperf(net, roads.address(1, family), "-P", "2", "-t", "2", *way)
    assert said["sum_received"]["bytes"] >= 1 << 20
    assert said["sum_received"]["bytes"] <= said["sum_sent"]["bytes"]


@BY
@BOTH
def test_iperf3_udp_arrives_whole(wire: MakeWire, tmp_path: Path, by: By, family: Family) -> None:
    """What its server misses in the numbers; the last ones may come after it has stopped counting."""
    net = wire()
    roads = routers(net)
    with routing(net, tmp_path, by):
        said = iperf(net, roads.address(1, family), "-u", "-b", "5M", "-l", "1000", "-n", "1M")
    assert said["sum"]["packets"] >= 1_000
    assert said["sum"]["lost_packets"] == 0


@BY
@BOTH
def test_jumbo_frames_are_routed(wire: MakeWire, tmp_path: Path, by: By, family: Family) -> None:
    net = wire(mtu=9000)
    roads = routers(net)
    with (
        web_server(net, net.hosts[1], family, tmp_path / "www") as expected,
        routing(net, tmp_path, by),
    ):
        headers = 28 if family == 4 else 48
        assert answered(net, roads.address(1, family), "-M", "do", "-s", str(9000 - headers))
        assert fetched(net, roads.address(1, family), tmp_path / "got") == expected
