"""What the tests of faults hold together: path b, which is in trouble, path a, which is not, and the sums.

The sums are exact: what a sender's NIC has sent is what the receiver's NIC got, and what xskd and the kernel
say they dropped, to the packet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from conftest import Tap
from daemon import Daemon, Stream, cpu_seconds, total

from lab.figures import figure

RATE = 200  # packets/s of a stream that must not lose one however late a busy machine runs its worker
LATE = ("rx_ring_full", "rx_dropped")  # what comes for a worker that is late
RECOVERY = 5.0  # seconds; the kernel may take one to say that a link is up


def config(rings: str, rest: str = "", options: str = "") -> str:
    """Paths a (eth1, eth2) with rings that hold all, and b (eth3, eth4) with these."""
    roomy = "rings: {fill: 1024, rx: 512, tx: 512, completion: 1024}"
    return (
        f"interfaces: {{eth1: {{{roomy}}}, eth2: {{{roomy}}}, eth3: {{{rings}}}, eth4: {{{rings}}}}}\n"
        f"paths: {{a: {{connect: [eth1, eth2], cpus: [1]}}, b: {{connect: [eth3, eth4]{options}}}}}\n{rest}\n"
    )


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
    lost = {reason: int(total(metrics, "xskd_dropped_packets", reason=reason, **came)) for reason in reasons}
    lost["tx_refused"] = int(total(metrics, "xskd_dropped_packets", reason="tx_refused", **left))
    for stat in ("rx_dropped", "rx_ring_full"):
        lost[stat] = int(total(metrics, "xskd_xdp_statistics", stat=stat, **came))
    sent = net.counters(net.hosts[2], "eth0").tx_packets
    return Account(sent, net.counters(net.hosts[3], "eth0").rx_packets, lost)


def exact(daemon: Daemon, before: Account, *reasons: str) -> Account:
    """See that every packet since then has come or is counted, for no other reason than these.

    On a busy machine a worker may be late, and find RX full or FILL empty; that is no other reason.
    """
    daemon.net.eventually(lambda: (account(daemon) - before).uncounted == 0)
    found = account(daemon) - before
    lost = {reason: count for reason, count in found.lost.items() if count}
    print(f"sent {found.sent}, received {found.received}, lost {lost}")
    figure("packets that were lost and are not counted", abs(found.uncounted), "packets", 0)
    assert lost.keys() <= {*reasons, *LATE}
    return found


@contextmanager
def undisturbed(
    daemon: Daemon, meanwhile: str = "one is in trouble", *, b_may_end: bool = False
) -> Iterator[None]:
    """Whatever happens meanwhile: path a loses nothing, and no worker ends but that of path b, if it may."""
    before = daemon.workers()
    with Stream(daemon.net, rate=RATE) as other:
        yield
    figure(f"packets lost by another path while {meanwhile}", other.lost, "packets", 0)
    assert other.whole, other
    if b_may_end:
        assert daemon.workers()["a/0"] == before["a/0"]
    else:
        assert daemon.workers() == before
        assert all(worker["restarts"] == {} for worker in daemon.status()["workers"])


@contextmanager
def repeated(do: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """Do it meanwhile, again and again, in a thread of its own, with so many seconds between."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(pause):
            do()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def spending(pid: int, what: str, bound: float) -> Iterator[None]:
    """Meanwhile a process spends no more than this share of a CPU."""
    began, spent = time.monotonic(), cpu_seconds(pid)
    yield
    share = (cpu_seconds(pid) - spent) / (time.monotonic() - began)
    figure(f"CPU of {what}", share, "CPUs", bound)


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
