"""Has the kernel ask whether the neighbours of `route` paths are still there, as it does for its own packets.

The kernel doubts a neighbour's MAC address some time after it last heard of it (STALE), and asks again when
it has something to send there. What xskd forwards the kernel does not send: an entry that was right once
would stay, and a next hop that has died, or has another MAC address now, would get packets for ever instead
of ICMP telling of it. So every now and then each STALE entry is marked as used, which is all that sending
does to it: the kernel asks, and the answer, or none, is in the table that the XDP program looks up.

Only that is done here: no entry is made, changed or removed, no state is remembered, and no interface outside
of `route` paths is looked at. In a thread, for the kernel's tables may be long; never asked from one itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from xskd.aside import aside

# With the usual 30 s until STALE and the kernel's own 5 s of patience and 3 s of asking, a next hop that is
# gone is known to be 15 to 60 s later: as long as it takes with the kernel's own packets.
REFRESH_SECONDS = 5.0
FAMILIES = (2, 10)  # AF_INET, AF_INET6
STALE = 0x04  # NUD_STALE in linux/neighbour.h
USE = 0x01  # NTF_USE

log = logging.getLogger("xskd")


def refresh(names: Iterable[str]) -> int:
    """Mark every STALE neighbour on these interfaces as used; how many there were. Waits for netlink.

    Raises NetlinkError or OSError where the kernel refuses to tell its neighbours.
    """
    names = tuple(names)
    if not names:  # nothing routes here
        return 0
    with IPRoute() as route:
        return sum(_refresh(route, ifindex) for name in names for ifindex in route.link_lookup(ifname=name))


def _refresh(route: Any, ifindex: int) -> int:
    marked = 0
    for family in FAMILIES:
        for neighbour in route.get_neighbours(family=family, ifindex=ifindex):
            if neighbour["ifindex"] == ifindex and neighbour["state"] & STALE:
                with suppress(NetlinkError):  # gone since it was listed
                    route.neigh("change", family=family, ifindex=ifindex, dst=neighbour.get("dst"), flags=USE)
                    marked += 1
    return marked


class Neighbours:
    """Refreshes the neighbours on the interfaces that `names` gives, again and again while it is started."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._wrong = ""

    def start(self) -> None:
        """Begin."""
        self._started = True
        self._refresh()

    def close(self) -> None:
        """End; what is under way ends by itself."""
        self._started = False
        if self._timer is not None:
            self._timer.cancel()

    def _refresh(self) -> None:
        aside(refresh, tuple(self._names())).add_done_callback(self._done)

    def _done(self, refreshed: asyncio.Future[int]) -> None:
        if refreshed.cancelled() or not self._started:
            return
        wrong = repr(refreshed.exception() or "")
        if refreshed.exception() and wrong != self._wrong:  # once, and not every time
            log.warning("neighbours that have gone will not be noticed: %s", wrong)
        self._wrong = wrong
        self._timer = asyncio.get_running_loop().call_later(REFRESH_SECONDS, self._refresh)
