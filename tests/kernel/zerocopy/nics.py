"""The NICs of a virtual machine in the place of veths, whose drivers bind AF_XDP sockets in zero-copy mode.

::

    hosts: gv0 eth0 <-> v0 :dut: v1 <-> eth0 gv1     virtio_net
           gi0 eth0 <-> i0 :dut: i1 <-> eth0 gi1     igb
           gp0 eth0 <-> p0 :dut                      virtio_net without the feature that zero-copy takes

The dut is the machine itself, for these interfaces cannot be made and removed as a test likes; so a test
leaves them as it found them, and the fixtures see to it. Everything else is as in a Wire, and the helpers
of the kernel tests work on it: a Tap at each host, Daemon, Routers.

Attaching a program resets the link of an igb, which takes seconds, so tests of the library share programs
that stay attached (`ready`), and those of the daemon one that runs (`live` in live.py). Emulation
is slow, so patience is longer here; what is measured is the emulator's.

This module must never be loaded anywhere but in such a machine: it takes the interfaces that it names.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import daemon
import pytest
from conftest import Tap, Wire
from frames import udp

from lab import entered
from xskd.errors import XskdError, XskError
from xskd.xdp import Program
from xskd.xsk import Rings, Socket

NICS = ("v0", "v1", "i0", "i1", "p0")
DUT = "dut"  # a name for the machine's own namespace
PATIENCE = 60.0  # seconds: emulation on a loaded machine
QUEUES = 2  # as many as the machine has CPUs
FLOWS = 48  # enough that every queue gets some of them
RINGS = Rings(fill=2048, rx=512, tx=512, completion=512)  # FILL: the NICs' own rings have up to 1,024
IGB_MTU = 3046  # the largest with a native program: 3,072 bytes of a page, less headers with two VLAN tags
IGB_RING = 256  # entries of the NIC's own
DRIVERS = {"v": "virtio_net", "i": "igb"}

daemon.READY_SECONDS = 300.0


class Sender(Tap):
    """A Tap that a Stream sends by."""

    def close(self) -> None:
        self.socket.close()


class NicWire(Wire):
    """Some of the NICs with their other ends; programs are those that stay attached, or the test's own."""

    def __init__(self, *devs: str, programs: Mapping[str, Program] = MappingProxyType({})) -> None:
        super().__init__(links=len(devs), queues=QUEUES)
        self.dut, self.dut_devs = DUT, devs
        self.hosts = tuple(f"g{dev}" for dev in devs)
        self._shared = programs

    def __enter__(self) -> NicWire:
        self.programs = {dev: self._shared[dev] for dev in self.dut_devs if dev in self._shared}
        for dev in self.dut_devs:
            assert self.has_carrier(dev), f"{dev} has no carrier"
        self.taps = [Tap(ns) for ns in self.hosts]
        return self

    def close(self) -> None:
        for tap in self.taps:
            tap.socket.close()
        self._stack.close()
        for child in self._children:
            child.kill()
            with child:
                pass
        self._children.clear()

    @staticmethod
    def eventually(condition: Any, patience: float = PATIENCE) -> bool:
        """Wait until a condition holds; False if it does not in time. A busy daemon is asked again."""
        deadline = time.monotonic() + patience
        while True:
            with suppress(XskdError):
                if condition():
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)

    def open(self, dev: str = "v0", queue: int = 0, **options: Any) -> Socket:
        """Open a socket in zero-copy mode, unless told otherwise; it receives nothing yet."""
        options.setdefault("mode", "zerocopy")
        options.setdefault("rings", RINGS)
        return super().open(dev, queue, **options)

    def unbound(self, dev: str, queue: int = 0, *, multi_buffer: bool = False) -> Socket:
        """Make a socket that has everything but its queue."""
        with entered(self.dut):
            made = Socket(self.umem(64), dev, queue, rings=RINGS, multi_buffer=multi_buffer)
        self._stack.callback(made.close)
        made.register()
        made.set_up_rings()
        return made

    def refusal(self, dev: str, queue: int = 0, *, multi_buffer: bool = False) -> XskError:
        """Tell what bind() in zero-copy mode is refused with at once."""
        made = self.unbound(dev, queue, multi_buffer=multi_buffer)
        with pytest.raises(XskError) as caught:
            made.bind("zerocopy", busy_timeout=0)
        made.close()
        return caught.value

    # ---- the interfaces -------------------------------------------------------------------------

    @staticmethod
    def changes(dev: str) -> int:
        """How often an interface has lost or got its carrier."""
        return int(Path(f"/sys/class/net/{dev}/carrier_changes").read_text())

    @staticmethod
    def carrier(dev: str) -> bool:
        with suppress(OSError):
            return Path(f"/sys/class/net/{dev}/carrier").read_text() == "1\n"
        return False

    @staticmethod
    def has_carrier(dev: str) -> bool:
        """Wait for an interface's carrier; False if it does not come in time."""
        return NicWire.eventually(lambda: NicWire.carrier(dev))

    def ethtool(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(self.dut, "ethtool", *words, check=check)

    @staticmethod
    def channels(dev: str) -> int:
        """How many queues an interface has now."""
        return sum(1 for _ in Path(f"/sys/class/net/{dev}/queues").glob("rx-*"))

    def seen(self, host: int) -> str:
        """What both ends of a host's link have counted, for whom packets have failed to come."""
        dev = self.dut_devs[host]
        return "".join(
            self.run(ns, *words, check=False).stdout
            for ns, *words in (
                (self.hosts[host], "ip", "-s", "-s", "link", "show", "eth0"),
                (self.dut, "ip", "-s", "-s", "link", "show", dev),
                (self.dut, "ethtool", "-S", dev),
            )
        )

    # ---- packets --------------------------------------------------------------------------------

    @staticmethod
    def flows(count: int, size: int = 64, first: int = 0) -> list[bytes]:
        """Make UDP packets of many flows, so that they come to all queues; the number is in each."""
        return [
            udp(4000 + n % FLOWS, n, source=f"192.0.2.{10 + n % FLOWS}", size=size)
            for n in range(first, first + count)
        ]

    @classmethod
    def sized(cls, count: int, size: int) -> list[bytes]:
        """Make packets of any size for the first queue: igb spreads what is IP by a key of its own."""
        return [packet + bytes(size - len(packet)) for packet in cls.frames(count, 60)]

    def through(self, packets: Sequence[bytes], by: int = 0, to: int = 1) -> list[bytes]:
        """Send packets from one host and take them at another, a window at a time; others are left out."""
        wanted, got = set(packets), []
        for start in range(0, len(packets), 32):
            window = packets[start : start + 32]
            self.taps[by].send(window)
            got += self.take(len(window), wanted, to)
        return got

    def drop_waiting(self) -> None:
        """Forget what has arrived anywhere."""
        for tap in self.taps:
            tap.waiting()

    def take(self, count: int, wanted: set[bytes], at: int, patience: float = PATIENCE) -> list[bytes]:
        """Take `count` packets of those that are wanted at a host; fewer if no more come in time."""
        got: list[bytes] = []
        deadline = time.monotonic() + patience
        while len(got) < count and time.monotonic() < deadline:
            got += [each for each in self.taps[at].receive(1, 0.5) if each in wanted]
        return got


def number(packet: bytes) -> int:
    """What `flows` has numbered it."""
    return int.from_bytes(packet[42:46], "big")


def whole(sent: Sequence[bytes], got: Sequence[bytes]) -> bool:
    """Has each packet arrived once and unchanged, and those of a flow in order?"""
    last: dict[int, int] = {}
    for packet in got:
        flow = number(packet) % FLOWS
        if number(packet) < last.get(flow, -1):
            return False
        last[flow] = number(packet)
    return Counter(sent) == Counter(got)


class MakeNics(Protocol):
    """What the fixture `nics` is."""

    def __call__(self, *devs: str) -> NicWire: ...


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Give every NIC's other end a namespace of its own, and have nobody say anything of its own accord."""

    def ip(*words: str) -> None:
        subprocess.run(("ip", *words), check=True)

    if not Path("/run/netns", DUT).exists():
        ip("netns", "attach", DUT, str(os.getpid()))
        for dev in NICS:
            ip("netns", "add", f"g{dev}")
            ip("-n", "gen", "link", "set", f"g{dev}", "down", "netns", f"g{dev}", "name", "eth0")
            ip("-n", f"g{dev}", "link", "set", "eth0", "addrgenmode", "none", "promisc", "on", "up")
            ip("-n", f"g{dev}", "link", "set", "lo", "up")
    for dev in NICS:
        ip("link", "set", dev, "addrgenmode", "none", "promisc", "on", "up")
        ip("-6", "addr", "flush", "dev", dev)


_shared: dict[str, Program] = {}  # that stay attached from one test of the library to the next


def _attach_all() -> None:
    for dev in NICS:
        if dev not in _shared:
            _shared[dev] = Program(8)
            _shared[dev].attach(dev, "native")


def detach_all() -> None:
    while _shared:
        _shared.popitem()[1].close()


def _nics(programs: dict[str, Program]) -> Iterator[MakeNics]:
    # igb's link begins anew with each program, and without one
    assert NicWire.eventually(lambda: all(state[1] == "UP" for state in _links().values())), _links()
    before = _links()
    with ExitStack() as stack:
        made: list[NicWire] = []

        def make(*devs: str) -> NicWire:
            made.append(stack.enter_context(NicWire(*devs, programs=programs)))
            return made[-1]

        yield make
        for forwarder in (f for each in made for f in each.forwarders):
            assert forwarder.publish() == 0, "frames unaccounted for"
            assert forwarder.audit() == 0, "a frame in two places"
    assert NicWire.eventually(lambda: _links() == before), f"{before} before, now {_links()}"


@pytest.fixture
def detached(machine: None) -> None:
    """Have no program of an earlier test attached."""
    detach_all()


@pytest.fixture
def nics(detached: None) -> Iterator[MakeNics]:
    """Take NICs for a test; the frames are counted at its end, and everything has to be as it was."""
    yield from _nics({})


@pytest.fixture(scope="module")
def single(machine: None) -> Iterator[None]:
    """Leave virtio_net one queue, for packets that must come to queue 0: before any program is attached."""
    detach_all()
    for dev in ("v0", "v1"):
        subprocess.run(("ethtool", "-L", dev, "combined", "1"), check=True)
    yield
    detach_all()
    for dev in ("v0", "v1"):
        subprocess.run(("ethtool", "-L", dev, "combined", str(QUEUES)), check=True)


@pytest.fixture
def ready(machine: None) -> Iterator[MakeNics]:
    """The same, with programs that stay attached: for tests of the library."""
    _attach_all()
    yield from _nics(_shared)


def _links() -> dict[str, Any]:
    """How the NICs are that a test has to leave as they were."""
    said = subprocess.run(("ip", "-j", "-d", "link", "show"), capture_output=True, text=True, check=True)
    found = {link["ifname"]: link for link in json.loads(said.stdout)}
    return {
        dev: (
            link["mtu"],
            link["operstate"],
            link["promiscuity"],
            link.get("xdp", {}).get("prog", {}).get("id"),
            NicWire.channels(dev),
        )
        for dev in NICS
        if (link := found.get(dev))
    }
