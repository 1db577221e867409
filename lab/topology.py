"""One topology: hosts around a device under test, each joined to it by a veth pair.

::

    h0: eth0 10.99.0.1/24 <-> eth1 :dut: eth2 <-> eth0 10.99.0.2/24 :h1       (h2 is on eth3, and so on)

Host and dut are network namespaces. The hosts are in one subnet because the dut is a bump
in the wire: it has no address, only whatever forwards there. The links are quiet: without IPv6 addresses the
kernel sends nothing of its own accord, so a packet counted is a packet somebody sent.

Two habits of veth are dealt with here, once. Transmit checksum offload is off at both ends, else forwarders
that read frames from a ring see unfinished checksums. GRO is on at both ends, because that starts NAPI
on a veth: without NAPI (or an XDP program) at the receiver, XDP frames sent to it vanish without a trace.

This module must never touch an interface outside its own namespaces, and must leave nothing behind: the
name of a namespace carries the pid of its maker, so that leftovers of a killed run are known and removed.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from pyroute2 import netns

_serial = itertools.count()  # two topologies of one process need two names


@dataclass(frozen=True)
class Counters:
    """What an interface has counted since it was made."""

    rx_packets: int
    rx_bytes: int
    rx_dropped: int
    tx_packets: int
    tx_bytes: int
    tx_dropped: int


class Topology:
    """Namespaces and links, made on entering the context and gone after leaving it, whatever happened."""

    def __init__(
        self,
        name: str = "xskd-lab",
        *,
        links: int = 2,
        queues: int = 1,
        mtu: int = 1500,
        addresses: bool = True,
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(f"name {name!r}: use lower-case letters, digits and hyphens")
        self.name = name
        self.prefix = f"{name}-{os.getpid()}.{next(_serial)}"
        self.queues = queues
        self.mtu = mtu
        self.addresses = addresses
        self.dut = f"{self.prefix}-dut"
        self.hosts = tuple(f"{self.prefix}-h{i}" for i in range(links))
        self.dut_devs = tuple(f"eth{i + 1}" for i in range(links))
        self._children: list[subprocess.Popen[Any]] = []

    @staticmethod
    def ip_of(host: int) -> str:
        """Return the IPv4 address of a host's eth0."""
        return f"10.99.0.{host + 1}"

    @staticmethod
    def mac_of(host: int, *, dut_side: bool = False) -> str:
        """Return the MAC address of a host's eth0, or of its peer in the dut."""
        return f"02:00:00:00:{int(dut_side):02x}:{host + 1:02x}"

    def __enter__(self) -> Self:
        try:
            for ns in (self.dut, *self.hosts):
                _ip("netns", "add", ns)
                _ip("-n", ns, "link", "set", "lo", "up")
            for host in range(len(self.hosts)):
                self._join(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _join(self, host: int) -> None:
        """Make the link between one host and the dut, both ends complete before either is up."""
        ns, dev, queues = self.hosts[host], self.dut_devs[host], str(self.queues)
        shape = ("mtu", str(self.mtu), "numrxqueues", queues, "numtxqueues", queues)
        _ip(
            *("-n", ns, "link", "add", "eth0", "address", self.mac_of(host), *shape, "type", "veth"),
            *("peer", "name", dev, "address", self.mac_of(host, dut_side=True), *shape, "netns", self.dut),
        )
        for where, end in ((ns, "eth0"), (self.dut, dev)):
            _ip("-n", where, "link", "set", end, "addrgenmode", "none")
            self.run(where, "ethtool", "-K", end, "tx", "off", "gro", "on")
        if self.addresses:
            _ip("-n", ns, "addr", "add", f"{self.ip_of(host)}/24", "dev", "eth0")
        for where, end in ((ns, "eth0"), (self.dut, dev)):
            _ip("-n", where, "link", "set", end, "up")

    def run(
        self, ns: str, *args: str, check: bool = True, timeout: float | None = 60, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace to its end; its output is captured as text."""
        return _run("ip", "netns", "exec", ns, *args, check=check, timeout=timeout, stdin=stdin)

    def popen(
        self,
        ns: str,
        *args: str,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.DEVNULL,
        stderr: int | IO[Any] | None = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a command in a namespace; the pid is the command's own, and close() ends it at the latest."""
        command = ("ip", "netns", "exec", ns, *args)
        child = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr)
        self._children.append(child)
        return child

    def counters(self, ns: str, dev: str) -> Counters:
        """Read an interface's counters."""
        (link,) = json.loads(_ip("-n", ns, "-s", "-j", "link", "show", "dev", dev).stdout)
        rx, tx = link["stats64"]["rx"], link["stats64"]["tx"]
        return Counters(
            rx_packets=rx["packets"],
            rx_bytes=rx["bytes"],
            rx_dropped=rx["dropped"],
            tx_packets=tx["packets"],
            tx_bytes=tx["bytes"],
            tx_dropped=tx["dropped"],
        )

    def close(self) -> None:
        """Remove everything; harmless when there is nothing (left) to remove."""
        _remove((self.dut, *self.hosts))
        for child in self._children:
            child.kill()  # for one that left its namespace; the others have ended
            with child:  # closes its pipes and waits
                pass
        self._children.clear()

    @staticmethod
    def cleanup_stale(name: str = "xskd-lab") -> list[str]:
        """Remove the namespaces of this name whose maker is dead; return which."""
        stale = []
        for ns in netns.listnetns():
            made_by = re.fullmatch(rf"{re.escape(name)}-(\d+)\.\d+-(dut|h\d+)", ns)
            if made_by and not os.path.exists(f"/proc/{made_by[1]}"):
                stale.append(ns)
        _remove(stale)
        return stale


@contextmanager
def entered(ns: str) -> Iterator[None]:
    """Move the calling thread, and no other, into a namespace for a while: to open sockets there."""
    home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        netns.setns(ns, flags=0)  # pyroute2's default flags would create a namespace that is missing
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def _remove(namespaces: Sequence[str]) -> None:
    """End what runs in the namespaces, then remove their links, then the namespaces.

    In this order, because a process busy with one end of a link (a packet generator) keeps the removal of the
    other end waiting. Deleting only the namespaces would leave the links to a kernel worker, to vanish later.
    """
    existing = [ns for ns in namespaces if ns in netns.listnetns()]
    _end_processes(existing)
    for ns in existing:
        # Whoever was killed while it made a namespace has left a name that leads nowhere: no links then.
        for link in json.loads(_ip("-n", ns, "-j", "link", "show", check=False).stdout or "[]"):
            if link["ifname"] != "lo":
                # A link may have gone with its peer since it was listed.
                _ip("-n", ns, "link", "del", link["ifname"], check=False)
    for ns in existing:
        _ip("netns", "del", ns)


def _end_processes(namespaces: Sequence[str], patience: float = 3.0) -> None:
    """Ask every process in the namespaces to end, and insist after a while."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for pid in _pids(namespaces):
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = time.monotonic() + patience
        while _pids(namespaces) and time.monotonic() < deadline:
            time.sleep(0.02)


def _pids(namespaces: Sequence[str]) -> list[int]:
    """List the living processes in the namespaces other than our own, which may have a thread there."""
    listed = " ".join(_ip("netns", "pids", ns, check=False).stdout for ns in namespaces).split()
    return [int(pid) for pid in listed if int(pid) != os.getpid()]


def _ip(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return _run("ip", *args, check=check)


def _run(
    *args: str, check: bool = True, timeout: float | None = 60, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; on failure the error carries what it said, not only its exit status."""
    done = subprocess.run(args, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(args)}: exit status {done.returncode}: {said}")
    return done
