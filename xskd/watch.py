"""Tells the supervisor's loop that something about the links of this network namespace may have changed.

A nudge to look, not news: what a message says is not even read, because whoever looks asks the kernel anyway
and must cope with messages that were lost. So nothing here can misunderstand one, an overflow is a nudge
like any other, and every POLL_SECONDS there is one for nothing.

It waits until it has been quiet for a moment: a change is often made by several commands (`ethtool -L` at
both interfaces of a path), and whoever looks in between sees two that do not fit each other. It does not wait
for long: a link that flaps is never quiet, and must not hide what else happens.

Plain netlink sockets and add_reader rather than pyroute2's AsyncIPRoute: that parses each message, queues
without a limit, and its socket is of no more use after an ENOBUFS. This module must never block the loop,
never end by itself, and never ask for a right.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from pyroute2.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_GENERIC, NETLINK_ROUTE, SOL_NETLINK, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket

from xskd.errors import XskdError, kernel_said

# Families of generic netlink, and the multicast group in which each tells: ethtool of new settings
# (linux/ethtool_netlink.h), netdev of what a device can do for XDP (linux/netdev.h).
FAMILIES = {"ethtool": "monitor", "netdev": "mgmt"}
RTNLGRP_LINK = 1  # linux/rtnetlink.h: links come, go and change; no addresses, neighbours or statistics
QUIET_SECONDS = 0.1  # what comes in bursts (a switch of 48 ports, two commands) is one change
PATIENCE_SECONDS = 0.5  # for a burst that does not end
POLL_SECONDS = 5.0  # for what no message tells, and for messages that were lost
REOPEN_SECONDS = 1.0
ANSWER_SECONDS = 10.0  # for generic netlink to tell its groups


class LinkWatch:
    """Calls `changed` from the loop at most once per QUIET_SECONDS, while it is started.

    Soon after any link of the network namespace in which it was started has appeared, vanished, was renamed,
    went up or down, got or lost carrier, or changed its MTU, its XDP program, its XDP features or its number
    of queues: when that is QUIET_SECONDS ago, or PATIENCE_SECONDS after the first of changes without a pause.
    Every POLL_SECONDS even if not, and sometimes for less. Of a program that comes or goes by a bpf_link the
    kernel tells nobody: that, and what a driver keeps to itself, is seen by the poll.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._groups: list[int] = []  # of generic netlink
        self._sockets: list[socket.socket] = []
        self._soon: asyncio.TimerHandle | None = None
        self._at_the_latest = 0.0  # while there is a timer for `_soon`, in the loop's time
        self._later: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin. Raises XskdError if the kernel gives no netlink sockets."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):  # the library waits for ever for what is lost
                self._groups = [
                    number
                    for family, group in FAMILIES.items()
                    if (number := await _group_of(family, group)) is not None
                ]
            self._open()
        except TimeoutError as error:
            await self.close()
            raise XskdError(
                f"watching the network interfaces: no answer within {ANSWER_SECONDS:g} s"
            ) from error
        except (OSError, NetlinkError) as error:
            await self.close()
            raise XskdError(f"watching the network interfaces: {kernel_said(error)}") from error
        self._poll_in(POLL_SECONDS)

    async def close(self) -> None:
        """End, also if it was never started: `changed` is not called again, and nothing stays behind."""
        for timer in (self._soon, self._later):
            if timer is not None:
                timer.cancel()
        self._soon = self._later = None
        self._shut()

    def _open(self) -> None:
        self._sockets.append(_subscribed(NETLINK_ROUTE, RTNLGRP_LINK))
        self._sockets += [_subscribed(NETLINK_GENERIC, group) for group in self._groups]
        for sock in self._sockets:
            asyncio.get_running_loop().add_reader(sock, self._read, sock)

    def _shut(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets = []

    def _read(self, sock: socket.socket) -> None:
        """Empty a socket; what is dead makes room for new ones at the next poll, which is soon then."""
        heard = False
        try:
            while sock.recv(1):  # the rest of a message is thrown away
                heard = True
        except BlockingIOError:
            pass
        except OSError as error:
            heard = True
            if error.errno != errno.ENOBUFS:  # that one has cost messages and nothing else
                self._shut()
                self._poll_in(REOPEN_SECONDS)
        if heard:
            self._note()

    def _note(self) -> None:
        loop = asyncio.get_running_loop()
        if self._soon is None:
            self._at_the_latest = loop.time() + PATIENCE_SECONDS
        else:
            self._soon.cancel()
        self._soon = loop.call_at(min(loop.time() + QUIET_SECONDS, self._at_the_latest), self._tell)

    def _tell(self) -> None:
        self._soon = None
        self._changed()

    def _poll_in(self, seconds: float) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = asyncio.get_running_loop().call_later(seconds, self._poll)

    def _poll(self) -> None:
        """Nudge for nothing, and see to the sockets: a dead one says nothing by itself."""
        self._note()
        self._poll_in(POLL_SECONDS)
        for sock in list(self._sockets):
            if sock in self._sockets:  # unless the one before has taken it along
                self._read(sock)
        if not self._sockets:
            try:
                self._open()
            except OSError:  # no descriptor or no memory left now
                self._shut()
                self._poll_in(REOPEN_SECONDS)


async def _group_of(name: str, group: str) -> int | None:
    """The number of a family's multicast group; None if the kernel has none.

    What it would tell of is then seen by the next poll, where the driver says nothing by rtnetlink.
    """
    family = AsyncGenericNetlinkSocket()
    family.module_err_level = "debug"  # a kernel without it is nothing to tell anybody
    try:
        await family.bind(name, genlmsg)
    except NetlinkError as error:
        if error.code == errno.ENOENT:
            return None
        raise
    finally:
        family.close()
    number: int | None = family.mcast_groups.get(group)
    return number


def _subscribed(family: int, group: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_NETLINK, kind, family)
    try:
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        sock.close()
        raise
    return sock
