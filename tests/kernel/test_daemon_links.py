"""Interfaces come, go and change under a running daemon: it follows, and other paths never notice."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Tap
from daemon import SMALL, Daemon, Stream, connect, paths, running, started, total
from test_daemon_reload import both, forwards, untouched

from lab.figures import figure

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

LIMIT = 18 * (2048 - 256) - 22  # with frames of 2048 bytes
GONE = "no such interface in this network namespace; `ip -br link` lists them"
ALL = connect(interface=f"queues: all, rings: {SMALL}", rest="umem: {frame_size: 2048}")


def waits(daemon: Daemon, why: str, path: str = "b") -> bool:
    """Tell whether a path comes to wait for this reason, everywhere where that is said."""
    if not daemon.net.eventually(lambda: daemon.worker(f"{path}/0")["state"] == "waiting"):
        return False
    status, worker = daemon.status(), daemon.worker(f"{path}/0")
    assert worker["pid"] is None
    assert why in worker["last_error"]
    assert why in status["waiting"][path][0]
    assert status["text"].endswith(f"; waiting: {path}")
    assert re.search(rf"WARNING path {path} waits: .*{re.escape(why)}", daemon.log)
    assert total(daemon.metrics(), "xskd_path_waiting", path=path) == 1
    assert total(daemon.metrics(), "xskd_path_waiting") == 1
    return True


def comes_back(daemon: Daemon, what: str, name: str = "b/0") -> None:
    """See a worker forward again, with nothing left of the trouble."""
    took = daemon.comes(name)
    assert forwards(daemon.net)
    figure(f"time until a path forwards after its interface {what}", took, "s", 10)
    status = daemon.status()
    assert (status["waiting"], daemon.worker(name)["last_error"]) == ({}, None)
    assert status["text"] == "2 paths, 2 queues forwarding, copy mode"
    assert total(daemon.metrics(), "xskd_path_waiting") == 0


def join(net: Wire, host: int) -> None:
    """Make a link that was deleted anew, under the same names."""
    net._join(host)
    net.taps[host].socket.close()
    net.taps[host] = Tap(net.hosts[host])


def ifindex(net: Wire, dev: str) -> int:
    return int(net.run(net.dut, "ip", "-o", "link", "show", dev).stdout.partition(":")[0])


# ---- there or not there ----------------------------------------------------------------------------


@pytest.mark.moves("xskd_path_waiting")
def test_an_interface_that_is_deleted_and_made_anew(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        assert forwards(net)
        before = ifindex(net, "eth4")
        net.run(net.dut, "ip", "link", "del", "eth4")
        assert waits(daemon, GONE)
        join(net, 3)
        assert ifindex(net, "eth4") != before
        comes_back(daemon, "was made anew")
        assert total(daemon.metrics(), "xskd_rx_packets", interface="eth3") == 600  # of both lives
        assert "Traceback" not in daemon.log


def test_an_interface_that_is_renamed_and_back(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        net.link(net.dut, "eth4", "name", "other")
        assert waits(daemon, GONE)
        assert '"xdp"' not in net.run(net.dut, "ip", "-j", "link", "show", "other").stdout
        net.link(net.dut, "other", "name", "eth4")
        comes_back(daemon, "had its name again")


def test_an_interface_that_moves_to_another_namespace_and_back(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        net.link(net.dut, "eth4", "netns", net.hosts[0])
        assert waits(daemon, GONE)
        assert '"xdp"' not in net.run(net.hosts[0], "ip", "-j", "link", "show", "eth4").stdout
        net.link(net.hosts[0], "eth4", "netns", net.dut)
        net.link(net.dut, "eth4", "addrgenmode", "none")  # forgotten on the way
        net.up(net.dut, "eth4")
        comes_back(daemon, "was back")


def test_an_interface_that_comes_after_the_start(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    net.run(net.dut, "ip", "link", "del", "eth4")
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        status = daemon.status()
        assert status["text"] == "1 path, 1 queue forwarding, copy mode; waiting: b"
        assert GONE in status["waiting"]["b"][0]
        assert total(daemon.metrics(), "xskd_path_waiting", path="b") == 1
        join(net, 3)
        comes_back(daemon, "came")


def test_a_default_route_is_not_taken_unawares(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    net.run(net.dut, "ip", "addr", "add", "10.98.0.1/24", "dev", "eth1")
    net.run(net.dut, "ip", "route", "add", "default", "via", "10.98.0.2")
    with started(net, tmp_path) as daemon:
        assert daemon.ended() == 2
        (line,) = daemon.log.splitlines()
        assert line.startswith(f"{daemon.file}:1: interfaces.eth1: eth1 carries the default route: ")
        assert "write allow_default_route: true" in line
        assert '"xdp"' not in net.run(net.dut, "ip", "-j", "link", "show").stdout
    with running(net, tmp_path, connect(interface=f"allow_default_route: true, rings: {SMALL}")):
        assert forwards(net, (0, 1))


def test_a_default_route_that_comes_later_takes_the_interface_back(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        net.run(net.dut, "ip", "addr", "add", "10.98.0.1/24", "dev", "eth4")
        net.run(net.dut, "ip", "route", "add", "default", "via", "10.98.0.2")
        net.link(net.dut, "eth4", "mtu", "1499")  # routes are looked at with links, or every 5 s
        assert waits(daemon, "eth4 carries the default route")
        assert '"xdp"' not in net.run(net.dut, "ip", "-j", "link", "show", "eth4").stdout
        net.run(net.dut, "ip", "route", "del", "default")
        net.link(net.dut, "eth4", "mtu", "1500")
        comes_back(daemon, "had lost its route")


# ---- as it was, but different ----------------------------------------------------------------------


@pytest.mark.moves("xskd_interface_carrier")
def test_a_link_that_goes_down_and_up_keeps_its_worker(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        pid, well = daemon.workers()["b/0"], daemon.status()["text"]
        for ns, dev, said in (
            (net.dut, "eth4", "eth4 is down"),
            (net.hosts[3], "eth0", "eth4 has no carrier"),
        ):
            net.link(ns, dev, "down")
            assert net.eventually(lambda: daemon.status()["text"] == f"{well}; link: {said}")  # noqa: B023
            assert total(daemon.metrics(), "xskd_interface_carrier", interface="eth4") == 0
            assert total(daemon.metrics(), "xskd_interface_carrier") == 3
            net.taps[2].send(net.frames(10))  # to nobody
            net.up(ns, dev)
            assert net.eventually(lambda: daemon.status()["text"] == well)
            assert net.eventually(lambda: forwards(net))
        assert daemon.workers()["b/0"] == pid
        assert daemon.worker("b/0")["restarts"] == {}
        assert total(daemon.metrics(), "xskd_interface_carrier") == 4
        assert total(daemon.metrics(), "xskd_frames_unaccounted") == 0


def test_an_mtu_that_does_not_fit_stops_its_path_alone(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both(rest="umem: {frame_size: 2048}")) as daemon, untouched(net, daemon):
        net.link(net.dut, "eth4", "mtu", str(LIMIT + 1))
        said = f"MTU {LIMIT + 1} does not fit 18 frames of 2048 bytes, the most that a packet may take"
        assert waits(daemon, said)
        net.link(net.dut, "eth4", "mtu", str(LIMIT))
        comes_back(daemon, "had an MTU that fits")


def test_an_mtu_that_fits_is_followed_by_the_same_process(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    for ns, dev in ((net.hosts[2], "eth0"), (net.dut, "eth3"), (net.hosts[3], "eth0")):
        net.link(ns, dev, "mtu", "2000")
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        pid = daemon.workers()["b/0"]
        assert passes(net, 1514)
        for mtu in (1300, 1800, 1500):
            net.link(net.dut, "eth4", "mtu", str(mtu))
            # A frame has an Ethernet header, and may have a VLAN tag.
            assert net.eventually(lambda: passes(net, mtu + 18) and not passes(net, mtu + 19))  # noqa: B023
        assert daemon.workers()["b/0"] == pid
        assert total(daemon.metrics(), "xskd_dropped_packets", path="b", reason="oversize") >= 3
        assert "b/0: stops" not in daemon.log


def passes(net: Wire, length: int) -> bool:
    """Tell whether path b forwards a packet of this length; a short one behind it does in any case."""
    packets = [net.frame(1, length), net.frame(2)]
    net.taps[2].send(packets)
    got = net.taps[3].receive(1)
    if got == packets[:1]:
        got += net.taps[3].receive(1)
        return got == packets
    assert got == packets[1:]
    return False


# ---- queues ----------------------------------------------------------------------------------------


def set_queues(net: Wire, number: int) -> None:
    """Give all ends so many. A veth with a program wants no fewer than its peer sends on.

    A socket that was closed keeps its queue for a moment. More of them come to the dut's ends by one command:
    a daemon that looks in between sees ends that do not fit each other.
    """
    if number > 1:
        more = (f"ethtool -L {dev} rx {number} tx {number}" for dev in net.dut_devs)
        net.run(net.dut, "sh", "-c", "; ".join(more))
        for ns in net.hosts:
            net.run(ns, "ethtool", "-L", "eth0", "rx", str(number), "tx", str(number))
        return
    ends = [*((net.dut, dev) for dev in net.dut_devs), *((ns, "eth0") for ns in net.hosts)]
    for ns, dev in reversed(ends):
        command = ("ethtool", "-L", dev, "rx", str(number), "tx", str(number))
        assert net.eventually(lambda: net.run(ns, *command, check=False).returncode == 0)  # noqa: B023


@pytest.mark.moves("xskd_interface_queues")
def test_workers_follow_the_number_of_queues(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path, ALL) as daemon:
        pid = daemon.workers()["wire/0"]
        refused = net.run(net.dut, "ethtool", "-L", "eth1", "rx", "1", "tx", "1", check=False)
        assert "too low for existing zerocopy AF_XDP sockets" in refused.stderr  # the kernel guards them
        assert daemon.reload(ALL.replace("queues: all", "queues: [0]")) == ["wire/1: stop"]
        set_queues(net, 1)
        assert daemon.reload(ALL) == []
        assert daemon.workers() == {"wire/0": pid}
        assert total(daemon.metrics(), "xskd_interface_queues", interface="eth1") == 1
        set_queues(net, 2)
        figure("time until a queue that came is forwarded", daemon.comes("wire/1"), "s", 10)
        assert total(daemon.metrics(), "xskd_interface_queues", interface="eth1") == 2
        with Stream(net) as one, Stream(net, queue=1) as other:
            time.sleep(0.1)
        assert one.whole
        assert other.whole
        assert daemon.workers()["wire/0"] == pid
        assert daemon.worker("wire/0")["restarts"] == daemon.worker("wire/1")["restarts"] == {}


def test_a_queue_that_came_after_the_program_is_forwarded_too(wire: MakeWire, tmp_path: Path) -> None:
    """On a veth the program does not run on queues that it got after attaching, until it is renewed."""
    net = wire(queues=2)
    set_queues(net, 1)
    with running(net, tmp_path, ALL) as daemon:
        pid = daemon.workers()["wire/0"]
        os.kill(daemon.pid, signal.SIGSTOP)  # changing the number takes the carrier away for a moment:
        set_queues(net, 2)  # the kernel's loss, over before the stream begins
        with Stream(net) as one:
            os.kill(daemon.pid, signal.SIGCONT)
            daemon.comes("wire/1")
        with Stream(net, queue=1) as other:
            time.sleep(0.1)
        assert one.whole
        assert other.whole
        assert daemon.workers()["wire/0"] == pid


@contextmanager
def without_successors(daemon: Daemon) -> Iterator[None]:
    """Kill whatever process the daemon starts meanwhile, before it can do anything."""
    known, ended = daemon.children(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            for pid in daemon.children() - known:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def stopped_without_sockets(daemon: Daemon, name: str) -> bool:
    """Stop the daemon while this worker is in backoff and has no sockets; False if it still had some.

    It keeps them while its next process could not even be started, which may be what killing those does.
    """
    if daemon.worker(name)["state"] != "backoff":
        return False
    os.kill(daemon.pid, signal.SIGSTOP)
    if daemon.net.eventually(lambda: _took_one(daemon.net), 1):
        return True
    os.kill(daemon.pid, signal.SIGCONT)
    return False


def _took_one(net: Wire) -> bool:
    """Take the second queue away from the last of the dut's interfaces, if no socket has it."""
    command = ("ethtool", "-L", net.dut_devs[-1], "rx", "1", "tx", "1")
    for ns in net.hosts:
        net.run(ns, "ethtool", "-L", "eth0", "rx", "1", "tx", "1", check=False)
    return net.run(net.dut, *command, check=False).returncode == 0


def test_a_worker_whose_queue_vanishes_waits_for_it_and_goes_on_counting(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire(queues=2)
    with running(net, tmp_path, ALL) as daemon:
        workers = daemon.workers()
        with Stream(net, queue=1) as stream:
            time.sleep(0.1)
        with without_successors(daemon):  # while a socket has it, the kernel keeps a queue
            os.kill(workers["wire/1"], signal.SIGKILL)
            assert net.eventually(lambda: stopped_without_sockets(daemon, "wire/1"), 30)
            set_queues(net, 1)
            os.kill(daemon.pid, signal.SIGCONT)  # it sees both ends with one queue
            assert net.eventually(lambda: daemon.worker("wire/1")["state"] == "waiting")
        assert daemon.worker("wire/1")["last_error"] == "its queue is not there any more"
        assert daemon.status()["text"].endswith("; not forwarding: wire/1 (waiting)")
        assert daemon.workers() == {"wire/0": workers["wire/0"]}
        at = {"interface": "eth1", "queue": "1"}
        assert total(daemon.metrics(), "xskd_rx_packets", **at) == stream.sent
        set_queues(net, 2)
        daemon.comes("wire/1")
        with Stream(net, queue=1) as again:
            time.sleep(0.1)
        assert again.whole
        assert total(daemon.metrics(), "xskd_rx_packets", **at) == stream.sent + again.sent
        assert daemon.workers()["wire/0"] == workers["wire/0"]


def test_both_paths_can_wait_and_the_daemon_goes_on(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=2)
    text = paths("one: {reflect: eth1}, two: {reflect: eth2}", "eth1", "eth2")
    with running(net, tmp_path, text) as daemon:
        for dev in net.dut_devs:
            net.link(net.dut, dev, "name", f"{dev}x")
        assert net.eventually(lambda: sorted(daemon.status()["waiting"]) == ["one", "two"])
        assert daemon.status()["text"] == "0 paths, 0 queues forwarding; waiting: one, two"
        for dev in net.dut_devs:
            net.link(net.dut, f"{dev}x", "name", dev)
        for name in ("one/0", "two/0"):
            daemon.comes(name)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log
