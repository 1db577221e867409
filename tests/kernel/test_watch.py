"""Every kind of change to a link is noticed within a second; nothing else is, but for the poll."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from pyroute2.netlink import NETLINK_ROUTE

from lab import entered
from xskd import watch
from xskd.errors import XskdError
from xskd.watch import LinkWatch
from xskd.xdp import OBJECT

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

SETTLED = 1.1  # seconds: the kernel may be that late to say that a new link is up
# Its own process, so that it can be nobody, and so that everything Python warns of can be seen. It is nobody
# only after its imports: the checkout may be one that only root may read.
CHILD = """
import asyncio, os, threading
from xskd.watch import LinkWatch
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # -X dev: a busy machine is no news
    told = asyncio.Event()
    for turn in range(51):
        watch = LinkWatch(told.set)
        await watch.start()
        await watch.close()
        if turn == 0:
            before = os.listdir("/proc/self/fd")
    assert os.listdir("/proc/self/fd") == before
    assert len(asyncio.all_tasks()) == threading.active_count() == 1
    watch = LinkWatch(told.set)
    await watch.start()
    print("started", flush=True)
    await asyncio.wait_for(told.wait(), 3)
    print("told", flush=True)
    await watch.close()
asyncio.run(main())
"""


class Told:
    """A watch, and how often it has told."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.watch = LinkWatch(lambda: self.at.append(time.monotonic()))

    async def of(self, change: Callable[[], object]) -> bool:
        """Whether a change is told within a second; it is made when all before it has been told."""
        await self.quiet(2.5 * watch.QUIET_SECONDS)
        await asyncio.to_thread(change)
        deadline = time.monotonic() + 1
        while not self.at and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        return bool(self.at)

    async def quiet(self, seconds: float) -> None:
        """Wait until it has been so for a while."""
        self.at.append(0)
        while self.at:
            self.at.clear()
            await asyncio.sleep(seconds)


def watching(net: Wire, test: Callable[[Told], Coroutine[Any, Any, None]]) -> None:
    """Run a test in a loop that has come into the dut by setns."""

    async def run() -> None:
        told = Told()
        await told.watch.start()
        try:
            await test(told)
        finally:
            await told.watch.close()

    with entered(net.dut):
        asyncio.run(run())


def ip(net: Wire, *args: str) -> None:
    net.run(net.dut, "ip", *args)


def changes(net: Wire) -> dict[str, Callable[[], object]]:
    """What is told, in an order in which each is possible."""
    return {
        "appeared": lambda: ip(net, "link", "add", "v0", "type", "veth", "peer", "name", "v1"),
        "renamed": lambda: ip(net, "link", "set", "v0", "name", "v2"),
        "vanished": lambda: ip(net, "link", "del", "v2"),
        "mtu": lambda: ip(net, "link", "set", "eth1", "mtu", "1400"),
        "program": lambda: ip(net, "link", "set", "eth1", "xdpdrv", "obj", str(OBJECT), "sec", "xdp.frags"),
        "program gone": lambda: ip(net, "link", "set", "eth1", "xdpdrv", "off"),
        "carrier lost": lambda: net.link(net.hosts[1], "eth0", "down"),
        "carrier": lambda: net.link(net.hosts[1], "eth0", "up"),
        "down": lambda: ip(net, "link", "set", "eth1", "down"),
        "up": lambda: ip(net, "link", "set", "eth1", "up"),
        "queues": lambda: net.run(net.dut, "ethtool", "-L", "eth2", "rx", "1", "tx", "1"),
        # Of eth1: one with fewer RX queues than its peer sends on has none to lose.
        "features": lambda: net.run(net.hosts[0], "ethtool", "-K", "eth0", "gro", "off"),
    }


def test_every_kind_of_change_is_told_within_a_second(wire: MakeWire) -> None:
    net = wire(queues=2)
    missed = []

    async def test(told: Told) -> None:
        await told.quiet(SETTLED)
        for name, change in changes(net).items():
            if not await told.of(change):
                missed.append(name)

    watching(net, test)
    assert missed == []


def test_a_number_of_queues_is_told_without_rtnetlink_as_well(
    wire: MakeWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A veth says it twice; most drivers only by ethtool."""
    net = wire(links=1, queues=2)
    subscribed = watch._subscribed
    other = 8  # RTNLGRP_IPV4_RULE: nobody talks there
    monkeypatch.setattr(
        watch,
        "_subscribed",
        lambda family, group: subscribed(family, other if family == NETLINK_ROUTE else group),
    )

    async def test(told: Told) -> None:
        assert not await told.of(lambda: ip(net, "link", "set", "eth1", "mtu", "1400"))  # deaf on that side
        assert await told.of(lambda: net.run(net.dut, "ethtool", "-L", "eth1", "rx", "1", "tx", "1"))

    watching(net, test)


def test_addresses_neighbours_routes_and_packets_are_not_told(wire: MakeWire) -> None:
    net = wire(links=1)

    def busy() -> None:
        for command in (
            "addr add 10.97.0.1/24 dev eth1",
            "addr add fd00::1/64 dev eth1 nodad",
            "neigh add 10.97.0.9 lladdr 02:00:00:00:00:09 dev eth1",
            "route add 10.96.0.0/16 via 10.97.0.9",
            "neigh del 10.97.0.9 dev eth1",
            "addr del 10.97.0.1/24 dev eth1",
        ):
            ip(net, *command.split())
        net.taps[0].send(net.frames(100))

    async def test(told: Told) -> None:
        await told.quiet(SETTLED)
        assert not await told.of(busy)
        assert await told.of(lambda: ip(net, "link", "set", "eth1", "mtu", "1400"))

    watching(net, test)


def test_a_burst_is_told_a_few_times(wire: MakeWire) -> None:
    net = wire(links=1)
    batch = "\n".join(f"link set eth1 mtu {1300 + number}" for number in range(200))

    def burst() -> None:
        command = ("ip", "-n", net.dut, "-batch", "-")
        subprocess.run(command, input=batch, text=True, check=True)

    async def test(told: Told) -> None:
        started = time.monotonic()
        assert await told.of(burst)
        await asyncio.sleep(0.3)
        assert len(told.at) <= 2 + (told.at[-1] - started) / watch.QUIET_SECONDS
        assert len(told.at) <= 20
        between = [later - earlier for earlier, later in zip(told.at, told.at[1:], strict=False)]
        assert all(gap > watch.QUIET_SECONDS * 0.9 for gap in between)

    watching(net, test)


def test_what_comes_one_after_the_other_is_one_change(wire: MakeWire) -> None:
    """As of two commands: it is told when the last one is over, once."""
    net = wire(links=1)

    async def test(told: Told) -> None:
        while True:
            await told.quiet(SETTLED)
            began = time.monotonic()
            told.watch._note()
            await asyncio.sleep(watch.QUIET_SECONDS / 2)
            told.watch._note()
            last = time.monotonic()
            if last - began < watch.QUIET_SECONDS * 0.9:  # else this machine was too busy to try it
                break
        await asyncio.sleep(4 * watch.QUIET_SECONDS)
        assert len(told.at) == 1
        assert told.at[0] - last >= watch.QUIET_SECONDS * 0.9

    watching(net, test)


def test_changes_without_a_pause_are_told_meanwhile(wire: MakeWire) -> None:
    net = wire(links=1)

    async def test(told: Told) -> None:
        await told.quiet(SETTLED)
        began = time.monotonic()
        while time.monotonic() - began < 4 * watch.PATIENCE_SECONDS:
            told.watch._note()
            await asyncio.sleep(0.005)
        assert 2 <= len(told.at) <= 10  # 4 on a machine that is never late

    watching(net, test)


def test_the_poll_tells_even_if_nothing_has_changed(wire: MakeWire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.3)

    async def test(told: Told) -> None:
        await asyncio.sleep(SETTLED)
        told.at.clear()
        await asyncio.sleep(1)
        assert 2 <= len(told.at) <= 4

    watching(wire(links=1), test)


def dropped(sock: socket.socket) -> int:
    """How many messages a netlink socket of the calling thread's namespace has lost."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    with open("/proc/thread-self/net/netlink") as table:
        rows = [line.split() for line in table]
    (row,) = (dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row[-1] == inode)
    return int(row["Drops"])


def test_an_overflow_is_a_change_like_any_other(wire: MakeWire) -> None:
    net = wire(links=1)
    batch = "\n".join(f"link set eth1 mtu {1300 + number}" for number in range(200))

    async def test(told: Told) -> None:
        links = told.watch._sockets[0]
        links.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        command = ("ip", "-n", net.dut, "-batch", "-")
        subprocess.run(command, input=batch, text=True, check=True)  # the loop stands still
        assert dropped(links) > 0  # the next read says ENOBUFS
        await asyncio.sleep(0.2)
        assert told.at
        assert told.watch._sockets[0] is links
        assert await told.of(lambda: ip(net, "link", "set", "eth1", "mtu", "1400"))

    watching(net, test)


def test_a_dead_socket_is_replaced(wire: MakeWire, monkeypatch: pytest.MonkeyPatch) -> None:
    net = wire(links=1)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.4)
    monkeypatch.setattr(watch, "REOPEN_SECONDS", 0.2)
    refusing = True

    def subscribed(family: int, group: int) -> socket.socket:
        if refusing:
            raise OSError(23, "Too many open files in system")
        return original(family, group)

    async def test(told: Told) -> None:
        nonlocal refusing
        monkeypatch.setattr(watch, "_subscribed", subscribed)
        with open(os.devnull) as null:
            os.dup2(null.fileno(), told.watch._sockets[0].fileno())
        await asyncio.sleep(1)
        assert told.watch._sockets == []
        assert told.at  # it goes on looking
        refusing = False
        await asyncio.sleep(0.4)
        monkeypatch.setattr(watch, "POLL_SECONDS", 60.0)
        await asyncio.sleep(0.5)  # the last short poll
        assert len(told.watch._sockets) == 3
        assert await told.of(lambda: ip(net, "link", "set", "eth1", "mtu", "1400"))

    original = watch._subscribed
    watching(net, test)


def test_no_netlink_socket_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def subscribed(family: int, group: int) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(watch, "_subscribed", subscribed)

    async def main() -> None:
        made = LinkWatch(lambda: None)
        with pytest.raises(XskdError, match=r"watching the network interfaces: .*Too many open files"):
            await made.start()
        await made.close()

    asyncio.run(main())


def test_a_kernel_without_the_generic_families_is_watched_all_the_same(
    wire: MakeWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = wire(links=1)
    monkeypatch.setattr(watch, "FAMILIES", {"nosuchfamily": "monitor", "ethtool": "nosuchgroup"})

    async def test(told: Told) -> None:
        assert len(told.watch._sockets) == 1
        assert await told.of(lambda: ip(net, "link", "set", "eth1", "mtu", "1400"))

    watching(net, test)


def test_after_close_nothing_is_told(wire: MakeWire) -> None:
    net = wire(links=1)

    async def test(told: Told) -> None:
        await told.quiet(2.5 * watch.QUIET_SECONDS)
        told.watch._note()  # it has been heard, and is not yet told
        await told.watch.close()
        ip(net, "link", "set", "eth1", "mtu", "1300")
        await asyncio.sleep(0.2)
        assert told.at == []
        await told.watch.close()

    watching(net, test)


def test_fifty_cycles_leave_nothing_and_no_warning_also_as_nobody(wire: MakeWire) -> None:
    net = wire(links=1)
    child = net.python("-X", "dev", "-W", "error", "-c", CHILD)
    assert child.stdout is not None
    said = child.stdout.readline()
    ip(net, "link", "set", "eth1", "mtu", "1400")
    output, errors = child.communicate(timeout=20)
    assert (said + output, errors) == ("started\ntold\n", "")
