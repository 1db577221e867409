"""A router for a test: the kernel alone, xskd's workers, or xskd's express lane; and what is sent through it.

The same traffic by the kernel alone is the control: it shows that a test expects what a router does, and not
what xskd happens to do. With xskd, leaving `routing` sees that packets really went the way that was asked
for and every frame is accounted for: a route path that leaves everything to the kernel would pass each test.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from conftest import PATIENCE, Wire
from daemon import Daemon, paths, running, total
from frames import checksum

from lab import Routers, entered
from lab.routers import Family

By = Literal["linux", "xskd", "express"]
# Without what drivers tell a lane stays closed (test_old_kernels.py).
EXPRESS = pytest.param("express", marks=pytest.mark.needs("tells_features"))
BY = pytest.mark.parametrize("by", ["linux", "xskd", EXPRESS])
XSKD = pytest.mark.parametrize("by", ["xskd", EXPRESS])
BOTH = pytest.mark.parametrize("family", [4, 6])
VERDICT = {"xskd": "redirected", "express": "expressed"}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
IP_VERSION = {4: 0x0800, 6: 0x86DD}


def route(options: str = "", *names: str, rest: str = "") -> str:
    """Make a configuration that routes between these interfaces (eth1 and eth2)."""
    names = names or ("eth1", "eth2")
    return paths(f"lan: {{route: [{', '.join(names)}]{options}}}", *names, rest=rest)


@contextmanager
def routing(
    net: Wire, directory: Path, by: By, *names: str, forwards: bool = True, rest: str = ""
) -> Iterator[Daemon | None]:
    """Route between interfaces (all of the dut's); the daemon, None where the kernel does it alone.

    With `forwards` the traffic has to have gone the way that was asked for.
    """
    if by == "linux":
        yield None
        return
    names = names or net.dut_devs
    text = route(", express: auto" if by == "express" else ", express: off", *names, rest=rest)
    with running(net, directory, text) as daemon:
        if by == "express":
            assert net.eventually(lambda: lanes_open(daemon) == len(names)), daemon.log
        yield daemon
        metrics = daemon.metrics()
        if forwards:
            assert total(metrics, "xskd_xdp_verdicts", verdict=VERDICT[by]) > 0, daemon.log
        assert total(metrics, "xskd_frames_unaccounted") == 0


def lanes_open(daemon: Daemon) -> float:
    """How many interfaces may be reached by the express lane."""
    return total(daemon.metrics(), "xskd_express_lane", state="open")


def unroutable(daemon: Daemon, reason: str, interface: str = "eth1") -> int:
    """Tell how many packets of an interface were left to the kernel for a reason."""
    return int(
        total(daemon.metrics(), "xskd_unroutable_packets", interface=interface, reason=reason),
    )


def forwarded(daemon: Daemon, interface: str = "eth1") -> int:
    """How many packets of an interface xskd has forwarded, by whichever way."""
    metrics = daemon.metrics()
    ways = ("redirected", "expressed")
    return int(sum(total(metrics, "xskd_xdp_verdicts", interface=interface, verdict=way) for way in ways))


# ---- what is sent -----------------------------------------------------------------------------------------


def ping(net: Wire, target: str, *options: str, host: int = 0) -> str:
    """Ping from a host; what was said, by the one who answered or did not."""
    command = ("ping", "-n", "-c", "1", "-W", "5", *options, target)
    return net.run(net.hosts[host], *command, check=False).stdout


def answered(net: Wire, target: str, *options: str, host: int = 0) -> bool:
    return " 0% packet loss" in ping(net, target, *options, host=host)


class Datagrams:
    """A UDP socket on a host."""

    def __init__(self, net: Wire, host: int, family: Family, address: str = "", port: int = 0) -> None:
        with entered(net.hosts[host]):
            self.socket = socket.socket(AF[family], socket.SOCK_DGRAM)
        # An address that was added a moment ago may not be there yet.
        assert net.eventually(lambda: self._bound((address, port))), f"no {address} on host {host}"
        self.socket.settimeout(PATIENCE)

    def _bound(self, where: tuple[str, int]) -> bool:
        try:
            self.socket.bind(where)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return False
        return True

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, payload: bytes, to: str, port: int) -> None:
        self.socket.sendto(payload, (to, port))

    def receive(self, count: int = 1, timeout: float = PATIENCE) -> list[bytes]:
        """Take `count` payloads, fewer if there are no more in time."""
        self.socket.settimeout(timeout)
        got: list[bytes] = []
        try:
            while len(got) < count:
                got.append(self.socket.recv(65536))
        except TimeoutError:
            pass
        return got

    def waiting(self) -> list[bytes]:
        """Take what has arrived already."""
        return self.receive(1 << 20, 0.05)


def ipv4(
    source: str, destination: str, payload: bytes, *, ttl: int = 64, protocol: int = 17, options: bytes = b""
) -> bytes:
    """Make an IPv4 packet with a right checksum."""
    words = (0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 7, 0, ttl, protocol)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack(">BBHHHBB", *words)
    mended = struct.pack(">H", checksum(head + addresses + options))
    return head + mended + addresses + options + payload


def ipv6(source: str, destination: str, payload: bytes, *, ttl: int = 64, protocol: int = 17) -> bytes:
    """Make an IPv6 packet."""
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, each) for each in (source, destination))
    return struct.pack(">IHBB", 6 << 28, len(payload), protocol, ttl) + addresses + payload


def udp(payload: bytes, port: int = 9) -> bytes:
    """Make a UDP datagram for IPv4, without a checksum."""
    return struct.pack(">HHHH", 4000, port, 8 + len(payload), 0) + payload


def frame(net: Wire, packet: bytes, *, to: str = "", host: int = 0, ether_type: int = 0) -> bytes:
    """Put an Ethernet header before a packet: from a host to the dut, or to another address."""
    addresses = (to or net.mac_of(host, dut_side=True), net.mac_of(host))
    kind = ether_type or IP_VERSION[4 if packet[0] >> 4 == 4 else 6]
    return bytes.fromhex("".join(addresses).replace(":", "")) + struct.pack(">H", kind) + packet


def routers(net: Wire) -> Routers:
    """Make a router of the dut, and wait until its neighbours know it."""
    made = Routers(net)
    made.meet()
    return made


def until(net: Wire, host: int, marker: bytes) -> list[bytes]:
    """Take what a host receives until a frame carries the marker; those that do, [] if none comes in time."""
    while got := net.taps[host].receive(1):
        if marker in got[0]:
            return got
    return []
