"""What real programs say to each other, captured on the way and sent once more: it passes byte for byte.

The captures are made on the spot, by programs of the machine in the hosts' namespaces while xskd forwards,
and read back from tcpdump's file: ARP, ping and neighbour discovery, HTTP over TCP of both families, UDP with
fragments, iperf3, and a DHCP discovery.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from conftest import ROOT
from daemon import connect, running
from poison import Ends, Poisoned, poisoned, well

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

__all__ = ["poisoned"]
PROTOCOLS: dict[str, Callable[[bytes], bool]] = {
    "ARP": lambda p: p[12:14] == b"\x08\x06",
    "ICMP": lambda p: p[12:14] == b"\x08\x00" and p[23] == 1,
    "ND": lambda p: p[12:14] == b"\x86\xdd" and p[20] == 58 and p[54] in (135, 136),
    "ICMPv6": lambda p: p[12:14] == b"\x86\xdd" and p[20] == 58 and p[54] in (128, 129),
    "HTTP": lambda p: b"GET / HTTP/1.1" in p,
    "TCP over IPv6": lambda p: p[12:14] == b"\x86\xdd" and p[20] == 6,
    "UDP": lambda p: p[12:14] == b"\x08\x00" and p[23] == 17,
    "fragments": lambda p: p[12:14] == b"\x08\x00" and p[20] & 0x3F != 0,
    "DHCP": lambda p: p[12:14] == b"\x08\x00" and p[34:38] == b"\0\x44\0\x43",
    "iperf3": lambda p: p[12:14] == b"\x08\x00" and p[23] == 6 and b"\x14\x51" in p[34:38],
}
# Sends datagrams to an echo and takes them back, small, large and in fragments; and a DHCP discovery.
TALK = """
import os, socket, struct, sys
with socket.socket(type=socket.SOCK_DGRAM) as udp:
    udp.settimeout(10)
    for size in (1, 500, 1472, 4000):
        udp.sendto(os.urandom(size), (sys.argv[1], 5353))
        assert len(udp.recv(65536)) == size
with socket.socket(type=socket.SOCK_DGRAM) as dhcp:
    dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    dhcp.bind(("", 68))
    fields = (1, 1, 6, 0, 99, 0, 0x8000, 0, 0, 0, 0, b"\\2" * 6, b"", b"", 0x63825363)
    head = struct.pack("!4BIHHIIII16s64s128sI", *fields)
    dhcp.sendto(head + bytes([53, 1, 1, 255]), ("255.255.255.255", 67))
"""
ECHO = """
import socket, sys
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("", 5353))
print("ready", flush=True)
while True:
    data, client = udp.recvfrom(65536)
    udp.sendto(data, client)
"""


@contextmanager
def captured(net: Wire, host: int, file: Path) -> Iterator[None]:
    """Let tcpdump write what a host's eth0 sees meanwhile."""
    command = ("tcpdump", "-i", "eth0", "-U", "-w", str(file), "--immediate-mode", "-s", "0", "-Z", "root")
    dump = net.popen(net.hosts[host], *command, stderr=subprocess.PIPE)
    assert dump.stderr is not None
    while b"listening on" not in (line := dump.stderr.readline()):
        assert line, "tcpdump has ended"
    yield
    dump.terminate()
    dump.communicate(timeout=10)


def packets_of(file: Path) -> list[bytes]:
    """Read a classic pcap file."""
    data = file.read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1"
    found, at = [], 24
    while at < len(data):
        _, _, kept, length = struct.unpack_from("<4I", data, at)
        assert kept == length
        found.append(data[at + 16 : at + 16 + kept])
        at += 16 + kept
    return found


def address(net: Wire) -> None:
    """Give the hosts addresses of both families, and leave segmentation to TCP itself."""
    for host, ns in enumerate(net.hosts):
        for given in (f"{net.ip_of(host)}/24", f"fd00::{host + 1}/64"):
            net.run(ns, "ip", "addr", "add", given, "dev", "eth0", *(("nodad",) if ":" in given else ()))
        net.run(ns, "ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off", "tx", "off")


def talk(net: Wire) -> None:
    """Have real programs say something in each protocol."""
    here, there = net.hosts
    echo = net.popen(there, sys.executable, "-c", ECHO, stdout=subprocess.PIPE)
    dual = "import http.server as h, socket; h.ThreadingHTTPServer.address_family = socket.AF_INET6; "
    dual += "h.ThreadingHTTPServer(('::', 8000), h.SimpleHTTPRequestHandler).serve_forever()"
    net.popen(there, "env", "-C", str(ROOT / "config"), sys.executable, "-c", dual)
    net.popen(there, "iperf3", "--server", "--one-off")
    assert echo.stdout is not None and echo.stdout.readline() == b"ready\n"
    assert net.eventually(
        lambda: {"*:8000", "*:5201"} <= set(net.run(there, "ss", "-Hltn").stdout.split()), 20
    )
    for target in (net.ip_of(1), "fd00::2"):
        net.run(here, "ping", "-c", "3", "-i", "0.05", "-s", "1400", "-W", "5", target)
        web = f"[{target}]" if ":" in target else target
        page = net.run(here, "curl", "-sS", "--max-time", "20", f"http://{web}:8000/").stdout
        assert "xskd.yaml" in page
    net.run(here, sys.executable, "-c", TALK, net.ip_of(1))
    net.run(here, "iperf3", "-n", "300K", "-c", net.ip_of(1))


def test_captures_of_real_programs_pass_byte_for_byte_when_they_are_sent_again(
    wire: MakeWire,
    tmp_path: Path,
    poisoned: Poisoned,
) -> None:
    net, file = wire(), tmp_path / "here.pcap"
    with running(net, tmp_path, connect(), poisoned):
        address(net)
        with captured(net, 0, file):
            talk(net)
        here = packets_of(file)
        for name, is_one in PROTOCOLS.items():
            assert any(is_one(packet.ljust(60, b"\0")) for packet in here), f"no {name} among {len(here)}"
    for ns in net.hosts:  # their kernels have nothing to say from now on
        net.run(ns, "ip", "addr", "flush", "dev", "eth0")
        net.run(ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    with running(net, tmp_path, connect(), poisoned) as daemon:
        ends = Ends(net)
        print(f"{len(here)} packets replayed")
        ends.through(here, here)
        well(daemon)
