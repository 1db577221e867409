"""A daemon on zero-copy queues of both drivers, for tests to do something to (a pytest plugin).

Starting one takes long in emulation, so it lives through all tests of a file (`live`), and each leaves it as
it was: a queue of virtio_net in the path `wire`, one of igb in `lan`. A Keeper keeps its descriptors, so that
it can be stopped or killed and have a successor.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import Daemon, Stream, total
from keeper import Keeper
from nics import DRIVERS, QUEUES, NicWire, Sender, detach_all

from lab.figures import figure
from xskd.control import Refused

pytest_plugins = "nics"

DEVS = ("v0", "v1", "i0", "i1")
ONE_QUEUE = ("v0", "v1", "p0")  # to which all packets come; igb sends those that are not IP to its first
RING_SIZES = "rings: {fill: 2048, rx: 512, tx: 512, completion: 512}"
INTERFACE = f"queues: [0], {RING_SIZES}"
WIRE, LAN = "wire: {connect: [v0, v1]}", "lan: {connect: [i0, i1]}"
RECOVERY_MS = 15000  # emulated, on a loaded machine
EACH = pytest.mark.parametrize(("dev", "worker"), [("v0", "wire/0"), ("i0", "lan/0")])


def config(
    wire: str = "", lan: str = "", interface: str = "", rings: str = RING_SIZES, rest: str = ""
) -> str:
    """Make the configuration of all tests.

    `wire`, `lan`: more keys of these paths; `interface`: of v0 and v1.
    """
    devices = ", ".join(
        f"{dev}: {{queues: [0], {rings}{interface if dev[0] == 'v' else ''}}}" for dev in DEVS
    )
    joined = f"wire: {{connect: [v0, v1]{wire}}}, lan: {{connect: [i0, i1]{lan}}}"
    return f"interfaces: {{{devices}}}\npaths: {{{joined}}}\n{rest}\n"


class Live(Daemon):
    """The daemon of these tests, and the NICs that it has."""

    net: NicWire

    def reload(self, text: str | None = None) -> list[str]:
        """Have it read this configuration; in emulation its workers may take longer than it waits."""
        try:
            return super().reload(text)
        except Refused as error:
            if "applied, but not all of it works" not in str(error):
                raise
            return []

    def passes(self, devs: str = "vi", size: int = 64, count: int = 32) -> bool:
        """Do packets come through, both ways, byte by byte?"""
        pairs = {"v": (0, 1), "i": (2, 3)}
        for name in devs:
            by, to = pairs[name]
            sent = self.net.frames(count, size)
            for one, other in ((by, to), (to, by)):
                self.net.drop_waiting()
                if sorted(got := self.net.through(sent, one, other)) != sorted(sent):
                    print(f"{len(got)} of {len(sent)} from {self.net.hosts[one]} to {self.net.hosts[other]}")
                    print(self.net.seen(one), self.net.seen(other))
                    return False
        return True

    def resumes(self, what: str, dev: str, size: int = 64) -> None:
        """See that packets come through again, and how long that takes from now."""
        began = time.monotonic()
        by, to = (0, 1) if dev[0] == "v" else (2, 3)
        probe = self.net.frames(1, size, first=1 << 24)

        def passed() -> bool:
            self.net.taps[by].send(probe)
            return bool(self.net.take(1, set(probe), to, 0.2))

        assert self.net.eventually(passed, 60), self.log
        took = time.monotonic() - began
        figure(
            f"{DRIVERS[dev[0]]}: {what}, to the first packet (emulated)",
            round(took * 1000),
            "ms",
            RECOVERY_MS,
        )
        assert self.passes(dev[0])
        assert self.conserved()

    def recovers(self, dev: str, first: int) -> None:
        """Wait until a whole window of packets comes through unchanged, and none but these."""
        by, to = (0, 1) if dev[0] == "v" else (2, 3)
        numbers = itertools.count(first, 32)

        def passed() -> bool:
            sent = self.net.frames(32, first=next(numbers))
            self.net.taps[by].send(sent)
            return self.net.take(32, set(sent), to, 1.0) == sent

        assert self.net.eventually(passed), self.log

    def conserved(self) -> bool:
        metrics = self.metrics()
        return (
            total(metrics, "xskd_frames_unaccounted")
            == 0
            == total(metrics, "xskd_frames", state="quarantined")
        )

    def dropped(self, to: str) -> float:
        """How many packets were too long for an interface."""
        other = {"v0": "v1", "i0": "i1"}[to]
        return total(self.metrics(), "xskd_dropped_packets", interface=other, reason="oversize")

    def changes(self) -> dict[str, int]:
        return {dev: self.net.changes(dev) for dev in DEVS}

    def stream(self, dev: str) -> Stream:
        hosts = (0, 1) if dev[0] == "v" else (2, 3)
        return Stream(self.net, rate=50, hosts=hosts, lane=Sender(self.net.hosts[hosts[0]]))


class Service:
    """Starts a daemon, and its successors with what the Keeper kept; `live` is the present one."""

    live: Live

    def __init__(self, directory: Path) -> None:
        self.net = NicWire(*DEVS, "p0")
        self.net.__enter__()
        for dev in ONE_QUEUE:
            self.net.ethtool("-L", dev, "combined", "1")
        self.directory = directory
        self.keeper = Keeper(directory / "keeper")

    def start(self) -> Live:
        self.live = Live(self.net, self.directory, config(), self.keeper.prefix)
        # Not by asking again and again, which in emulation takes the time that it needs to start.
        self.net.eventually(lambda: "ready: " in self.live.log or self.live.process.poll() is not None, 300)
        self.live.until_ready()
        assert self.net.eventually(lambda: all(map(self.net.carrier, DEVS)))
        return self.live

    def close(self) -> None:
        if self.live.process.poll() is None:
            self.live.process.kill()
            self.live.ended()
        self.keeper.close()
        for dev in ONE_QUEUE:  # refused until the program has gone
            assert self.net.eventually(lambda dev=dev: self._has_all_queues(dev))
        self.net.close()

    def _has_all_queues(self, dev: str) -> bool:
        self.net.ethtool("-L", dev, "combined", str(QUEUES), check=False)
        return self.net.channels(dev) == QUEUES


@pytest.fixture(scope="module")
def service(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Take all NICs, after whatever file of tests came before, and start a daemon."""
    detach_all()
    made = Service(tmp_path_factory.mktemp("live"))
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def live(service: Service, detached: None) -> Iterator[Live]:
    """The daemon, well; and seen to be as it was when the test has ended."""
    yield service.live
    well = "2 paths, 2 queues forwarding, zerocopy mode"
    assert service.net.eventually(lambda: service.live.status()["text"] == well, 180), service.live.log
    assert service.live.conserved()
