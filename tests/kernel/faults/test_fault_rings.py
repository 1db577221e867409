"""Rings that do not move: what waits is bounded, what is lost has a reason, and the rest goes on.

Completions that never come are made of what brings a NIC's TX to a
halt: behind the receiver's interface stands a queue (tc tbf behind a bridge) that takes packets and does not
let go of them, so the kernel does not give their frames back.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accounts import RATE, account, config, exact, recovers, repeated, spending, undisturbed
from daemon import Daemon, Stream, running, total

from lab import entered
from lab.figures import figure

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

Times = Callable[[int, int], int]
FLOOD = 300  # packets at a time, many more than RX holds


def lasts(seconds: float, send: Callable[[], Any]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        send()
        time.sleep(0.01)


# ---- an egress that holds what it is given -----------------------------------------------------------


@contextmanager
def held_egress(net: Wire) -> Iterator[Callable[[], None]]:
    """Let host 3 take packets and keep them, with the sender's frames in them; what is called lets them go.

    No GRO on the way: that copies a packet's ownership away from its sender. Made before the daemon runs.
    """
    ns = net.hosts[3]
    net.run(ns, "ethtool", "-K", "eth0", "gro", "off")
    net.link(ns, "eth0", "address", "02:00:00:00:00:99")  # packets are for someone behind the bridge
    net.run(ns, "ip", "link", "add", "slow0", "type", "veth", "peer", "name", "slow1")
    net.run(ns, "ip", "link", "add", "bridge0", "type", "bridge")
    for dev in ("bridge0", "slow0", "slow1"):
        net.link(ns, dev, "addrgenmode", "none")
        net.link(ns, dev, "up")
    for dev in ("eth0", "slow0"):
        net.link(ns, dev, "master", "bridge0")

    def hold() -> None:
        limits = ("rate", "8kbit", "burst", "2000", "limit", "1000000000")
        net.run(ns, "tc", "qdisc", "replace", "dev", "slow0", "root", "tbf", *limits)

    def let_go() -> None:
        net.run(ns, "tc", "qdisc", "del", "dev", "slow0", "root")

    hold()
    yield let_go


@contextmanager
def other_direction(daemon: Daemon) -> Iterator[None]:
    """Meanwhile path b takes all of a steady stream the other way, and its worker does not spin."""
    worker = daemon.workers()["b/0"]
    with (
        Stream(daemon.net, rate=RATE, hosts=(3, 2)) as stream,
        spending(worker, "a worker that waits for its egress", 0.7),
    ):
        yield
    figure("packets lost in the other direction of the same worker", stream.lost, "packets", 0)
    assert stream.whole, stream


def in_kernel(daemon: Daemon) -> int:
    """Tell how many frames the kernel has that are on no ring of path b."""
    return int(total(daemon.metrics(), "xskd_frames", path="b", state="kernel"))


def is_full(daemon: Daemon) -> bool:
    """Is eth4's TX ring full, while more comes? By itself it empties, a packet in a while."""
    daemon.net.taps[2].send(daemon.net.frames(30))
    return total(daemon.metrics(), "xskd_ring_entries", interface="eth4", ring="tx") == 128


def test_completions_that_never_come_and_a_tx_ring_that_stays_full(
    wire: MakeWire, tmp_path: Path, times: Times
) -> None:
    net, seconds = wire(links=4), times(3, 60)
    rings = "rings: {fill: 512, rx: 512, tx: 128, completion: 128}"
    with held_egress(net) as let_go, running(net, tmp_path, config(rings)) as daemon:
        before = account(daemon)
        with undisturbed(daemon), other_direction(daemon):
            lasts(seconds, lambda: net.taps[2].send(net.frames(30)))
            assert net.eventually(lambda: is_full(daemon))
            assert in_kernel(daemon) > 0
            let_go()
            recovers(daemon, "completions come again")
        found = exact(daemon, before, "tx_full")
        assert found.lost["tx_full"] > found.received
        assert net.eventually(lambda: in_kernel(daemon) == 0)
        assert total(daemon.metrics(), "xskd_frames_unaccounted") == 0


def test_a_fill_ring_that_is_starved(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    """By a worker that does nothing, and a supervisor that does not see it.

    Nothing else can: a configuration must have frames for all of FILL and TX, or is refused.
    """
    net, seconds = wire(links=4), times(2, 10)
    rings = "rings: {fill: 64, rx: 256, tx: 64, completion: 64}"
    with running(net, tmp_path, config(rings)) as daemon:
        before, worker = account(daemon), daemon.workers()["b/0"]
        with undisturbed(daemon):
            for pid in (daemon.pid, worker):
                os.kill(pid, signal.SIGSTOP)
            lasts(seconds, lambda: net.taps[2].send(net.frames(10)))
            os.kill(worker, signal.SIGCONT)
            recovers(daemon, "a starved FILL ring is filled again")
            os.kill(daemon.pid, signal.SIGCONT)
        found = exact(daemon, before, "rx_dropped")
        assert found.lost["rx_dropped"] > found.received
        metrics = daemon.metrics()
        starved = total(metrics, "xskd_xdp_statistics", stat="rx_fill_ring_empty_descs", interface="eth3")
        assert starved == found.lost["rx_dropped"]
        assert total(metrics, "xskd_frames_unaccounted") == 0


# ---- more than a worker can take --------------------------------------------------------------------


@contextmanager
def flood(net: Wire, cpu: int) -> Iterator[None]:
    """Send from host 2 as fast as one CPU can, which is the worker's, so that it comes to run too seldom."""
    packets = net.frames(FLOOD)
    with entered(net.hosts[2]):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind(("eth0", 0))

    def send() -> None:
        os.sched_setaffinity(0, {cpu})
        with suppress(OSError):  # ENOBUFS: the sender's own NIC is full, and has not sent it
            for packet in packets:
                raw.send(packet)

    with raw, repeated(send):
        yield


def test_an_rx_ring_that_is_overrun(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    net, seconds = wire(links=4), times(3, 60)
    rings = "rings: {fill: 256, rx: 64, tx: 64, completion: 64}"
    with running(net, tmp_path, config(rings, options=", cpus: [0]")) as daemon:
        before = account(daemon)
        with undisturbed(daemon):
            with flood(net, cpu=0):
                time.sleep(seconds)
            recovers(daemon, "an overrun of RX")
        # Rings as small as these may cost some on the way out, too.
        found = exact(daemon, before, "rx_ring_full", "tx_full", "tx_refused")
        assert found.lost["rx_ring_full"] > 0
        assert total(daemon.metrics(), "xskd_frames_unaccounted") == 0
