"""What a daemon on zero-copy queues survives: changes of links and devices, deaths, starvation, restarts."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from daemon import total
from live import (
    EACH,
    RECOVERY_MS,
    Live,
    Service,
    config,
)
from nics import DRIVERS, Sender
from test_daemon_adoption import lost_in_rings

from lab.figures import figure
from xskd.xsk import BURST

pytest_plugins = "live"
pytestmark = pytest.mark.timeout(600)  # the first of them starts the daemon

STARVED = "rings: {fill: 256, rx: 2048, tx: 256, completion: 256}"  # against the doctor's advice
FRAMES = 1024  # of a worker with these, the fewest: all of them are in FILL and the NICs' own rings
STARVED_SECONDS = 5.0
AT_ONCE = 48  # packets that igb takes from FILL together, so that FILL ends amid them
TRIES = 8
STARVED_MS = 60000  # until a ring that ran dry is whole again, or there is another


@EACH
def test_a_link_goes_down_and_comes_back(live: Live, dev: str, worker: str) -> None:
    pids = live.workers()
    live.net.link(live.net.dut, dev, "down")
    assert live.net.eventually(lambda: f"{dev} is down" in live.status()["text"])
    live.net.taps[1 if dev[0] == "v" else 3].send(live.net.frames(8))  # to be sent where nothing can be
    time.sleep(0.5)
    live.net.link(live.net.dut, dev, "up")
    live.resumes("link down and up", dev)
    assert live.workers() == pids
    assert live.net.eventually(lambda: "link" not in live.status()["text"])


@EACH
def test_the_mtu_changes(live: Live, dev: str, worker: str) -> None:
    pids = live.workers()
    longest = live.net.frames(1, 1514)
    to = 1 if dev[0] == "v" else 3
    live.net.link(live.net.dut, dev, "mtu", "1400")
    live.resumes("MTU changed", dev)
    too_long = live.dropped(dev)

    def refused() -> bool:
        live.net.taps[to].send(longest)  # back to where it is too long now
        return live.dropped(dev) > too_long

    assert live.net.eventually(refused)
    live.net.link(live.net.dut, dev, "mtu", "1500")
    live.resumes("MTU changed", dev)
    live.resumes("MTU changed", dev, size=1514)
    assert live.workers() == pids


@EACH
def test_ring_sizes_and_offloads_of_the_nic_change(live: Live, dev: str, worker: str) -> None:
    pids = live.workers()
    before = {"v": ("rx", "1024"), "i": ("rx", "256")}[dev[0]]
    live.net.ethtool("-G", dev, "rx", "512")
    live.resumes("ethtool -G", dev)
    live.net.ethtool("-G", dev, *before)
    live.resumes("ethtool -G", dev)
    for way in ("off", "on"):
        live.net.ethtool("-K", dev, "gro", way)
        live.resumes("ethtool -K", dev)
    assert live.workers() == pids


def test_queues_are_taken_away_and_given_back(live: Live) -> None:
    """Only queue 0 is bound, so the others may go; the one in use may not (test_zc_bind.py)."""
    pids = live.workers()
    for number in ("1", "2"):
        live.net.ethtool("-L", "i0", "combined", number)
        live.resumes("ethtool -L", "i0")
    refused = live.net.ethtool("-L", "v0", "combined", "2", check=False)  # never under a program
    assert refused.returncode != 0
    live.resumes("ethtool -L refused", "v0")
    assert live.workers() == pids


@EACH
def test_a_killed_workers_successor_goes_on_with_its_rings(live: Live, dev: str, worker: str) -> None:
    """The NIC holds its frames meanwhile, and goes on writing packets into them."""
    before, adopted = live.changes(), live.worker(worker)["adoptions"].get("adopted", 0)
    full = lost_in_rings(live.metrics())
    with live.stream(dev) as stream:
        time.sleep(0.5)
        killed = live.workers()[worker]
        began = time.monotonic()
        os.kill(killed, signal.SIGKILL)
        live.net.eventually(lambda: live.forwards(worker, other_than=killed), 60)
        took = time.monotonic() - began
        assert stream.goes_on()
    print(f"{stream!r}; silence {stream.silence * 1000:.0f} ms; {live.log.splitlines()[-3:]}")
    figure(f"{DRIVERS[dev[0]]}: worker killed, to its successor (emulated)", round(took * 1000), "ms", 60000)
    assert live.worker(worker)["adoptions"]["adopted"] == adopted + 1
    assert live.changes() == before
    assert stream.doubled == stream.damaged == 0
    overrun = lost_in_rings(live.metrics()) - full  # what came after RX was full
    assert stream.lost <= overrun + BURST  # and a batch at most that was in its hands
    assert live.passes(dev[0])


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_restart_costs_no_packet_and_no_carrier(live: Live, service: Service, sign: signal.Signals) -> None:
    before = live.changes()
    with live.stream("v0") as wire, live.stream("i0") as lan:
        time.sleep(0.5)
        live.process.send_signal(sign)
        live.ended()
        began = time.monotonic()
        successor = service.start()
        took = time.monotonic() - began
        assert wire.goes_on() and lan.goes_on()
    print(f"{wire!r}\n{lan!r}\nsilence {wire.silence:.3f} s, {lan.silence:.3f} s; up in {took:.1f} s")
    print(successor.log)
    changed = sum(successor.changes().values()) - sum(before.values())
    figure("carrier changes of a restart (emulated)", changed, "", 0)
    figure("packets lost by a restart (emulated)", wire.lost + lan.lost, "", 0)
    assert wire.doubled == wire.damaged == lan.doubled == lan.damaged == 0
    assert "let go of" not in successor.log
    assert {worker["adoptions"].get("adopted") for worker in successor.status()["workers"]} != {None}
    assert successor.passes()


@EACH
def test_a_path_whose_nic_was_starved_for_seconds_recovers(live: Live, dev: str, worker: str) -> None:
    """With rings that let it, FILL and the NIC's own ring run dry before RX is full, and stay so.

    The whole daemon stands still meanwhile: a worker that does so alone is found to hang.
    """
    starvable(live, worker)
    starve(live, dev, worker, STARVED_SECONDS)
    began = time.monotonic()
    live.recovers(dev, 3 << 20)
    took = time.monotonic() - began
    assert total(live.metrics(), "xskd_frames_unaccounted") == 0
    figure(
        f"{DRIVERS[dev[0]]}: starved for {STARVED_SECONDS:g} s, until all packets pass (emulated)",
        round(took * 1000),
        "ms",
        STARVED_MS,
    )
    live.reload(config())


def test_what_a_starved_igb_shows_again_is_contained(live: Live) -> None:
    """Its driver's fault (test_zc_rings.py) under a daemon: dropped, until the worker ends; the next is well.

    FILL has to end near the end of the NIC's ring. With new sockets it does: a few packets, and FILL is full
    behind a full ring; that makes one entry less than twice around.
    """
    for attempt in range(TRIES):
        starvable(live, "lan/0")
        few = live.net.frames(28 + attempt, first=1 << 23)
        assert live.net.through(few, 2, 3) == few
        before = counts(live, "i0", "lan/0")
        with closing(Sender(live.net.hosts[3])) as seen:
            sent = starve(live, "i0", "lan/0", 0.5)
            live.recovers("i0", (2 * attempt + 3) << 20)
            arrived = seen.waiting()
        after = counts(live, "i0", "lan/0")
        got = Counter(packet for packet in arrived if packet in sent)
        print(f"before {before}, after {after}; {len(sent)} sent, {len(got)} arrived, {got.total()} in all")
        assert total(live.metrics(), "xskd_frames_unaccounted") == 0
        if after["invalid"] > before["invalid"]:
            break
    assert after["invalid"] > before["invalid"], f"not seen in {TRIES} starvations"
    assert after["restarts"] > before["restarts"]
    assert "entries of rx and completion name no frame that the kernel has" in live.log
    live.reload(config())


def starvable(live: Live, worker: str) -> None:
    """Give every path new sockets, with rings that let it starve."""
    live.reload(config())
    live.reload(config(rings=STARVED, rest=f"umem: {{frames: {FRAMES}}}"))
    assert live.net.eventually(lambda: live.forwards(worker)), live.log


def counts(live: Live, dev: str, worker: str) -> dict[str, float]:
    """What tells whether a ring ran dry, and whether its entries could be believed."""
    metrics = live.metrics()
    return {
        "invalid": total(metrics, "xskd_dropped_packets", interface=dev, reason="invalid"),
        "fill empty": total(metrics, "xskd_xdp_statistics", interface=dev, stat="rx_fill_ring_empty_descs"),
        "RX full": total(metrics, "xskd_xdp_statistics", interface=dev, stat="rx_ring_full"),
        "restarts": sum(live.worker(worker)["restarts"].values()),
    }


def starve(live: Live, dev: str, worker: str, seconds: float) -> set[bytes]:
    """Stop supervisor and worker for so long at least, and send more than there are frames; what was sent."""
    stopped = (live.pid, live.workers()[worker])
    tap = live.net.taps[0 if dev[0] == "v" else 2]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        began, sent = time.monotonic(), list[bytes]()
        while time.monotonic() - began < seconds or len(sent) < FRAMES:
            packets = live.net.frames(AT_ONCE, first=(2 << 20) + len(sent))
            tap.send(packets)
            sent += packets
            time.sleep(0.02)
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)
    return set(sent)


@pytest.mark.parametrize(("dev", "other"), [("v1", "i"), ("i1", "v")])
def test_a_device_leaves_its_driver_and_comes_back(live: Live, dev: str, other: str) -> None:
    path = {"v": "wire", "i": "lan"}[dev[0]]
    device = Path(f"/sys/class/net/{dev}/device").resolve()
    driver, mac = (device / "driver").resolve(), Path(f"/sys/class/net/{dev}/address").read_text()
    began = time.monotonic()
    (driver / "unbind").write_text(device.name)
    assert live.net.eventually(lambda: path in live.status()["waiting"], 180), live.log
    figure(
        f"{DRIVERS[dev[0]]}: driver unbound, until its path waits (emulated)",
        round((time.monotonic() - began) * 1000),
        "ms",
        RECOVERY_MS,
    )
    assert live.passes(other)
    (driver / "bind").write_text(device.name)
    assert live.net.eventually(lambda: by_mac(mac) is not None)
    live.net.run(live.net.dut, "ip", "link", "set", str(by_mac(mac)), "name", dev)
    live.net.run(
        live.net.dut, "ip", "link", "set", dev, "addrgenmode", "none", "promisc", "on", "mtu", "1500", "up"
    )
    if dev[0] == "v":
        live.net.ethtool("-L", dev, "combined", "1", check=False)
    assert live.net.eventually(lambda: live.forwards(f"{path}/0"), 180), live.log
    live.resumes("driver bound again", dev)


def by_mac(mac: str) -> str | None:
    found = [each.parent.name for each in Path("/sys/class/net").glob("*/address") if each.read_text() == mac]
    return found[0] if found else None
