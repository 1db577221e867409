"""The daemon on zero-copy queues of both drivers: what it says, what it survives, what a restart costs.

Starting a daemon takes long in emulation, so one lives through all tests (`live`), and each leaves it as it
was: a queue of virtio_net in the path `wire`, one of igb in `lan`. A Keeper keeps its descriptors, so that
it can be stopped or killed and have a successor.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from daemon import Daemon, Stream, paths, total
from keeper import Keeper
from nics import DRIVERS, IGB_MTU, QUEUES, NicWire, Sender
from test_daemon_adoption import lost_in_rings

from lab.figures import figure
from xskd.control import Refused
from xskd.xsk import BURST

pytest_plugins = "nics"
pytestmark = pytest.mark.timeout(600)  # the first of them starts the daemon

DEVS = ("v0", "v1", "i0", "i1")
ONE_QUEUE = ("v0", "v1", "p0")  # to which all packets come; igb sends those that are not IP to its first
RING_SIZES = "rings: {fill: 2048, rx: 512, tx: 512, completion: 512}"
INTERFACE = f"queues: [0], {RING_SIZES}"
WIRE, LAN = "wire: {connect: [v0, v1]}", "lan: {connect: [i0, i1]}"
STARVED = "rings: {fill: 256, rx: 2048, tx: 256, completion: 256}"  # against the doctor's advice
FRAMES = 1024  # of a worker with these, the fewest: all of them are in FILL and the NICs' own rings
STARVED_SECONDS = 5.0
AT_ONCE = 48  # packets that igb takes from FILL together, so that FILL ends amid them
TRIES = 8
STARVED_MS = 60000  # until a ring that ran dry is whole again, or there is another
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
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
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


def test_the_mode_in_use_is_told(live: Live) -> None:
    metrics = live.metrics()
    assert total(metrics, "xskd_socket_mode", mode="zerocopy") == 4
    assert total(metrics, "xskd_socket_mode", mode="copy") == 0
    assert {port["mode"] for worker in live.status()["workers"] for port in worker["ports"]} == {"zerocopy"}
    for dev in DEVS:
        assert f"{dev}: XDP program attached, native mode" in live.log
        assert f"{dev} queue 0 bound, zerocopy mode\n" in live.log
    assert live.log.index("XDP program attached") < live.log.index("queue 0 bound")
    assert live.passes(size=60)
    assert live.passes(size=1514)


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


def test_no_express_lane_leads_into_a_zero_copy_queue(live: Live) -> None:
    """Redirected frames that a virtio_net in zero-copy mode gets are lost, all of them, in silence."""
    live.reload(config(wire=", express: auto", lan=", express: auto"))
    metrics = live.metrics()
    for dev in DEVS:
        assert f"{dev}: express lane closed: a queue of the path is in zero-copy mode" in live.log
        assert total(metrics, "xskd_express_lane", interface=dev, state="zerocopy") == 1
    assert live.passes()
    assert total(live.metrics(), "xskd_xdp_verdicts", verdict="expressed") == 0
    live.reload(config())


@contextmanager
def mtu(live: Live, size: int, *devs: str) -> Iterator[None]:
    """Give interfaces, and their other ends, another MTU."""
    ends = [(live.net.dut, dev) for dev in devs] + [(f"g{dev}", "eth0") for dev in devs]
    for ns, dev in ends:
        live.net.link(ns, dev, "mtu", str(size))
    try:
        yield
    finally:
        for ns, dev in ends:
            live.net.link(ns, dev, "mtu", "1500")


def modes(live: Live, worker: str) -> set[str]:
    return {port["mode"] for port in live.worker(worker)["ports"]}


def test_a_driver_that_announces_zero_copy_and_refuses_it_is_copied_with(live: Live) -> None:
    """virtio_net without VIRTIO_F_ACCESS_PLATFORM, beside paths that have zero-copy."""
    pids = live.workers()
    live.reload(paths(f"{WIRE}, {LAN}, plain: {{reflect: p0}}", *DEVS, "p0", interface=INTERFACE))
    assert live.net.eventually(lambda: live.forwards("plain/0"), 180), live.log
    assert "plain/0: p0 queue 0 bound, copy mode (zero-copy refused: EINVAL (Invalid argument))" in live.log
    metrics = live.metrics()
    assert total(metrics, "xskd_socket_mode", interface="p0", mode="copy") == 1
    assert total(metrics, "xskd_socket_mode_wanted", interface="p0", mode="auto") == 1
    assert total(metrics, "xskd_interface_zerocopy_able", interface="p0") == 1  # says the driver
    assert total(metrics, "xskd_socket_mode", mode="zerocopy") == 4
    sent = live.net.frames(64, 1514)
    live.net.taps[4].send(sent)
    back = [live.net.swapped(packet) for packet in sent]
    assert sorted(live.net.take(64, set(back), 4)) == sorted(back)
    live.reload(config())
    assert live.workers() == pids


def test_a_path_of_which_one_interface_has_no_zero_copy_copies(live: Live) -> None:
    live.reload(paths(f"wire: {{connect: [v0, p0]}}, {LAN}", "v0", "p0", "i0", "i1", interface=INTERFACE))
    assert live.net.eventually(lambda: live.forwards("wire/0"), 180), live.log
    assert "wire/0: not every interface has zero-copy; copy mode for all" in live.log
    assert modes(live, "wire/0") == {"copy"}
    sent = live.net.frames(32, 1514)
    for by, to in ((0, 4), (4, 0)):
        assert sorted(live.net.through(sent, by, to)) == sorted(sent)
    live.reload(config())


def test_where_igb_refuses_a_native_program_its_path_copies(live: Live) -> None:
    """It would grant zero-copy all the same, and then neither receive nor send."""
    live.reload(paths(WIRE, "v0", "v1", interface=INTERFACE))
    with mtu(live, IGB_MTU + 1, "i0", "i1"):
        live.reload(config())
        assert live.net.eventually(lambda: live.forwards("lan/0"), 180), live.log
        assert "i0: XDP program attached, generic mode (EINVAL (Invalid argument))" in live.log
        assert modes(live, "lan/0") == {"copy"}
        assert live.net.eventually(lambda: all(map(live.net.carrier, DEVS)))
        assert live.passes("i", size=IGB_MTU + 15, count=16)

        with pytest.raises(Refused) as refused:
            live.reload(paths(f"{WIRE}, {LAN}", *DEVS, interface=f"{INTERFACE}, mode: zerocopy"))
        print(refused.value)
        live.reload(paths(WIRE, "v0", "v1", interface=INTERFACE))
    with mtu(live, IGB_MTU, "i0", "i1"):
        live.reload(config())
        assert live.net.eventually(lambda: live.forwards("lan/0"), 180), live.log
        assert modes(live, "lan/0") == {"zerocopy"}
        assert live.net.eventually(lambda: all(map(live.net.carrier, DEVS)))
        assert live.passes("i", size=IGB_MTU + 14, count=16)


def test_packets_of_several_frames_are_copied(live: Live) -> None:
    """Neither driver has them in zero-copy mode."""
    with mtu(live, 4000, "v0", "v1"):
        assert live.net.eventually(lambda: modes(live, "wire/0") == {"copy"}, 180), live.log
        assert "(zero-copy refused: EOPNOTSUPP (Operation not supported))" in live.log
        metrics = live.metrics()
        assert total(metrics, "xskd_socket_mode", interface="v0", mode="copy") == 1
        assert total(metrics, "xskd_socket_mode_wanted", interface="v0", mode="auto") == 1
        assert total(metrics, "xskd_interface_zerocopy_able", interface="v0") == 1
        assert total(metrics, "xskd_socket_mode", interface="i0", mode="zerocopy") == 1
        assert live.passes("v", size=3900, count=16)
    assert live.net.eventually(lambda: modes(live, "wire/0") == {"zerocopy"}, 180), live.log
    assert live.passes("v")


def test_a_path_that_insists_on_zero_copy_waits_for_a_smaller_mtu(live: Live) -> None:
    live.reload(config(interface=", mode: zerocopy"))
    with mtu(live, 4000, "v0", "v1"):
        assert live.net.eventually(lambda: "wire" in live.status()["waiting"], 180), live.log
        assert "with zero-copy v0 takes 1 frame a packet" in live.status()["waiting"]["wire"][0]
        assert live.passes("i")
    assert live.net.eventually(lambda: live.forwards("wire/0"), 180)
    live.reload(config())


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
