"""Links that do not keep still: they flap, change their MTU again and again, lose the machine behind them.

tests/kernel/test_daemon_links.py has each change once. Here they come without a pause, under traffic: no
worker ends for it, the daemon does not spin or fill the log, and every packet is accounted for.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from accounts import RATE, account, config, exact, recovers, repeated, spending, undisturbed
from conftest import Tap
from daemon import SMALL, Daemon, Stream, running
from pyroute2 import netns
from pyroute2.ethtool.ethtool import Ethtool
from test_daemon_links import GONE, join, waits
from test_daemon_reload import forwards

from lab import entered
from lab.figures import figure
from xskd.watch import QUIET_SECONDS

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

Times = Callable[[int, int], int]
HALF_PERIOD = 0.05  # seconds: down for as long and up for as long is 10 Hz
RINGS = f"rings: {SMALL}"


@contextmanager
def calm(daemon: Daemon) -> Iterator[None]:
    """Meanwhile the supervisor neither spins nor fills the log."""
    began, lines = time.monotonic(), daemon.log.count("\n")
    with spending(daemon.pid, "the supervisor while a link flaps", 0.5):
        yield
    seconds = time.monotonic() - began
    figure("lines of log while a link flaps", (daemon.log.count("\n") - lines) / seconds, "lines/s", 6)


def flap(net: Wire, ns: str, dev: str, seconds: float) -> None:
    """Down and up at 10 Hz, as far as this machine keeps up; up at the end."""
    deadline = time.monotonic() + seconds
    due = time.monotonic()
    while time.monotonic() < deadline:
        for state in ("down", "up"):
            net.link(ns, dev, state)
            due += HALF_PERIOD
            time.sleep(max(0.0, due - time.monotonic()))


@pytest.mark.parametrize("whose", ["the other end", "its own"])
def test_a_link_that_flaps_at_10_hz(wire: MakeWire, tmp_path: Path, times: Times, whose: str) -> None:
    net, seconds = wire(links=4), times(3, 60)
    ns, dev = (net.hosts[3], "eth0") if whose == "the other end" else (net.dut, "eth4")
    net.run(
        net.hosts[3], "ethtool", "-K", "eth0", "gro", "off"
    )  # else it has a queue, and forgets it uncounted
    with running(net, tmp_path, config(RINGS)) as daemon:
        well, before, packets = daemon.status()["text"], account(daemon), net.frames(10)
        with undisturbed(daemon), repeated(lambda: net.taps[2].send(packets), 0.01):
            with calm(daemon):
                flap(net, ns, dev, seconds)
            recovers(daemon, f"{whose} carrier flapped")
        found = exact(daemon, before, "tx_refused", "tx_full")
        assert found.received > 0
        assert net.eventually(lambda: daemon.status()["text"] == well)
        assert "Traceback" not in daemon.log


def test_an_mtu_that_changes_again_and_again_costs_no_packet(
    wire: MakeWire, tmp_path: Path, times: Times
) -> None:
    net, sizes = wire(links=4), random.Random(6)
    with running(net, tmp_path, config(RINGS)) as daemon, undisturbed(daemon):
        with Stream(net, rate=RATE, hosts=(2, 3)) as stream:
            for _ in range(times(20, 500)):
                net.link(net.dut, "eth4", "mtu", str(sizes.randint(600, 1800)))
                time.sleep(sizes.choice((0, 0.05, 0.15)))
        figure("packets lost over changes of the MTU", stream.lost, "packets", 0)
        assert stream.whole, stream


def test_the_machine_at_the_other_end_vanishes(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    """Its namespace goes, and with it both ends of the link; then another one takes its place."""
    net = wire(links=4)
    with running(net, tmp_path, config(RINGS)) as daemon:
        for _ in range(times(1, 30)):
            with undisturbed(daemon, b_may_end=True):
                net.taps[3].socket.close()  # it would keep the namespace
                netns.remove(net.hosts[3])
                began = time.monotonic()
                assert waits(daemon, GONE)
                figure("time until a path waits for a link that is gone", time.monotonic() - began, "s", 10)
                netns.create(net.hosts[3])
                net.run(net.hosts[3], "ip", "link", "set", "lo", "up")
                net._join(3)
                net.taps[3] = Tap(net.hosts[3])
                figure("time until a path forwards over a link made anew", daemon.comes("b/0"), "s", 10)
                assert forwards(net)
        assert "Traceback" not in daemon.log


def test_a_foreign_program_that_comes_meanwhile(
    wire: MakeWire, tmp_path: Path, foreign_program: Path
) -> None:
    """It gets no interface that xskd has; one that is made anew it may get first, and keeps."""
    net = wire(links=4)
    attach_it = ("ip", "link", "set", "eth4", "xdpdrv", "obj", str(foreign_program), "sec", "xdp")
    with running(net, tmp_path, config(RINGS)) as daemon, undisturbed(daemon, b_may_end=True):
        assert net.run(net.dut, *attach_it, check=False).returncode != 0
        assert forwards(net)
        os.kill(daemon.pid, signal.SIGSTOP)
        net.run(net.dut, "ip", "link", "del", "eth4")
        join(net, 3)
        net.run(net.dut, *attach_it)
        os.kill(daemon.pid, signal.SIGCONT)
        assert waits(daemon, "(stranger) is attached and is not ours to replace")
        net.link(net.dut, "eth4", "xdpdrv", "off")
        figure("time until a path forwards when a foreign program has gone", daemon.comes("b/0"), "s", 10)
        assert forwards(net)


def test_two_changes_in_a_row_are_one(wire: MakeWire, tmp_path: Path) -> None:
    """Both ends of a path get more queues, one after the other: what is between stops no path."""
    net = wire(links=2, queues=2)
    text = (
        f"interfaces: {{eth1: {{{RINGS}}}, eth2: {{{RINGS}}}}}\npaths: {{wire: {{connect: [eth1, eth2]}}}}\n"
    )
    for _ in range(3):
        assert net.eventually(lambda: both_ends(net, 1) > 0), "the last daemon's sockets still have a queue"
        with running(net, tmp_path, text) as daemon:
            pid = daemon.workers()["wire/0"]
            between = both_ends(net, 2)
            took = daemon.comes("wire/1")
            if between < QUIET_SECONDS / 2:  # else this machine was too busy to make them in a row
                assert daemon.workers()["wire/0"] == pid
                assert "waits" not in daemon.log
                assert "stops" not in daemon.log
                break
    figure("time until a queue that came is forwarded", took, "s", 10)


def both_ends(net: Wire, queues: int) -> float:
    """Give eth1, then eth2, so many queues; the seconds between, 0 if some are in use."""
    with entered(net.dut), Ethtool() as ethtool:
        wanted = {
            dev: ethtool.get_channels(dev)._replace(rx_count=queues, tx_count=queues) for dev in net.dut_devs
        }
        began = time.monotonic()
        try:
            for dev, channels in wanted.items():
                ethtool.set_channels(dev, channels._asdict())
        except OSError:
            return 0.0
        return time.monotonic() - began
