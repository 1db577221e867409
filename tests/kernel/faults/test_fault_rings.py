"""Rings that do not move: what waits is bounded, what is lost has a reason, and the rest goes on.

The sums here are exact: what a sender's NIC has sent is what the receiver's NIC got, and what xskd and the
kernel say they dropped, to the packet. Completions that never come are made of what brings a NIC's TX to a
halt: behind the receiver's interface stands a queue (tc tbf behind a bridge) that takes packets and does not
let go of them, so the kernel does not give their frames back.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conftest import Tap
from daemon import Daemon, Stream, cpu_seconds, running, total

from lab import entered
from lab.figures import figure

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

Times = Callable[[int, int], int]
RATE = 200  # packets/s of a stream that must not lose one however late a busy machine runs its worker
RECOVERY = 2.0  # seconds
FLOOD = 300  # packets at a time, many more than RX holds


def config(rings: str, rest: str = "", options: str = "") -> str:
    """Paths a (eth1, eth2) with rings that hold all, and b (eth3, eth4) with these."""
    roomy = "rings: {fill: 1024, rx: 512, tx: 512, completion: 1024}"
    return (
        f"interfaces: {{eth1: {{{roomy}}}, eth2: {{{roomy}}}, eth3: {{{rings}}}, eth4: {{{rings}}}}}\n"
        f"paths: {{a: {{connect: [eth1, eth2], cpus: [1]}}, b: {{connect: [eth3, eth4]{options}}}}}\n{rest}\n"
    )


# ---- accounts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """What was sent into eth3, what came out at eth4's other end, and what was lost, by reason."""

    sent: int
    received: int
    lost: dict[str, int]

    @property
    def uncounted(self) -> int:
        return self.sent - self.received - sum(self.lost.values())

    def __sub__(self, before: Account) -> Account:
        lost = {reason: count - before.lost[reason] for reason, count in self.lost.items()}
        return Account(self.sent - before.sent, self.received - before.received, lost)


def account(daemon: Daemon) -> Account:
    """Read all counters of the way from host 2 to host 3; only what /metrics tells counts as a loss."""
    net, metrics = daemon.net, daemon.metrics()
    came, left = {"interface": "eth3"}, {"interface": "eth4"}
    reasons = {labels["reason"] for labels, _ in metrics["xskd_dropped_packets"]}
    lost = {
        reason: int(
            total(
                metrics, "xskd_dropped_packets", reason=reason, **(left if reason == "tx_refused" else came)
            )
        )
        for reason in reasons
    }
    for stat in ("rx_dropped", "rx_ring_full"):
        lost[stat] = int(total(metrics, "xskd_xdp_statistics", stat=stat, **came))
    sent = net.counters(net.hosts[2], "eth0").tx_packets
    return Account(sent, net.counters(net.hosts[3], "eth0").rx_packets, lost)


def exact(daemon: Daemon, before: Account, *reasons: str) -> Account:
    """See that every packet since then has come or is counted, for no other reason than these."""
    daemon.net.eventually(lambda: (account(daemon) - before).uncounted == 0)
    found = account(daemon) - before
    lost = {reason: count for reason, count in found.lost.items() if count}
    print(f"sent {found.sent}, received {found.received}, lost {lost}")
    figure("packets that were lost and are not counted", abs(found.uncounted), "packets", 0)
    assert lost.keys() <= set(reasons)
    return found


@contextmanager
def no_matter(daemon: Daemon, seconds: float, *, back: bool = True) -> Iterator[None]:
    """Whatever happens meanwhile: path a, and path b from eth4 to eth3 (`back`), lose nothing."""
    net, before = daemon.net, daemon.workers()
    with Stream(net, rate=RATE) as other:
        reverse = Stream(net, rate=RATE, hosts=(3, 2)) if back else None
        if reverse is not None:
            reverse.__enter__()
        try:
            began, spent = time.monotonic(), {name: cpu_seconds(pid) for name, pid in before.items()}
            yield
            assert time.monotonic() - began >= seconds
            share = (cpu_seconds(before["b/0"]) - spent["b/0"]) / (time.monotonic() - began)
        finally:
            if reverse is not None:
                reverse.__exit__()
    figure("packets lost by another path while rings of one do not move", other.lost, "packets", 0)
    assert other.whole, other
    if reverse is not None:
        figure("packets lost in the other direction of the same worker", reverse.lost, "packets", 0)
        assert reverse.whole, reverse
        figure("CPU of a worker that waits for its egress", share, "CPUs", 0.7)
    assert daemon.workers() == before
    assert all(worker["restarts"] == {} for worker in daemon.status()["workers"])


def lasts(seconds: float, send: Callable[[], Any]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        send()
        time.sleep(0.01)


def recovers(daemon: Daemon, what: str) -> None:
    """See a packet pass again from host 2 to host 3, and say how long that took."""
    net, tap = daemon.net, Tap(daemon.net.hosts[3])
    began, packet = time.monotonic(), net.frame(999_999_999)

    def passes() -> bool:
        net.taps[2].send([packet])
        return packet in tap.receive(1000, 0.02)

    assert net.eventually(passes)
    tap.socket.close()
    figure(f"time until packets pass again after {what}", time.monotonic() - began, "s", RECOVERY)


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


def in_kernel(daemon: Daemon) -> int:
    """Tell how many frames the kernel has that are on no ring of path b."""
    return int(total(daemon.metrics(), "xskd_frames", path="b", state="kernel"))


def test_completions_that_never_come_and_a_tx_ring_that_stays_full(
    wire: MakeWire, tmp_path: Path, times: Times
) -> None:
    net, seconds = wire(links=4), times(3, 60)
    rings = "rings: {fill: 512, rx: 512, tx: 128, completion: 128}"
    with held_egress(net) as let_go, running(net, tmp_path, config(rings)) as daemon:
        before = account(daemon)
        with no_matter(daemon, seconds):
            lasts(seconds, lambda: net.taps[2].send(net.frames(30)))
            full = {"interface": "eth4", "ring": "tx"}
            assert net.eventually(lambda: total(daemon.metrics(), "xskd_ring_entries", **full) == 128)
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
        with no_matter(daemon, seconds, back=False):
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
    ended = threading.Event()
    packets = net.frames(FLOOD)
    with entered(net.hosts[2]):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind(("eth0", 0))

    def send() -> None:
        os.sched_setaffinity(0, {cpu})
        while not ended.is_set():
            with suppress(OSError):  # ENOBUFS: the sender's own NIC is full, and has not sent it
                for packet in packets:
                    raw.send(packet)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        yield
    finally:
        ended.set()
        sending.join()
        raw.close()


def test_an_rx_ring_that_is_overrun(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    net, seconds = wire(links=4), times(3, 60)
    rings = "rings: {fill: 256, rx: 64, tx: 64, completion: 64}"
    with running(net, tmp_path, config(rings, options=", cpus: [0]")) as daemon:
        before = account(daemon)
        with no_matter(daemon, seconds, back=False):
            with flood(net, cpu=0):
                time.sleep(seconds)
            recovers(daemon, "an overrun of RX")
        # Rings as small as these may cost some on the way out, too.
        found = exact(daemon, before, "rx_ring_full", "tx_full", "tx_refused")
        assert found.lost["rx_ring_full"] > 0
        assert total(daemon.metrics(), "xskd_frames_unaccounted") == 0
