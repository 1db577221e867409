"""What a NIC counts of packets that it lost, on the way in or out: `ethtool -S` and rtnetlink.

On the way in they are lost before anybody could count them here; on the way out after the kernel has taken
them, as it does with packets that an XDP program redirects to an interface whose ring is full.

Read in a thread, every READ_SECONDS, whoever asks and how often: a driver may ask its firmware, and holds the
kernel's RTNL lock meanwhile, which must never stop the supervisor's loop, and would let every scraper decide
how often that happens. Not together with the look at the links either: a driver that takes its time must not
delay what the supervisor does about a link. One reading at a time, so what is told is as old as READ_SECONDS
and one answer of the kernel. A driver may begin at 0 again, and an interface may be made anew under its name;
what is told from here never goes back, until the daemon ends: a new one begins with what the kernel has.

Nothing here may change an interface, fail a start, or be asked from a thread other than the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import (
    ETH_GSTRING_LEN,
    ETH_SS_STATS,
    ETHTOOL_GSTATS,
    ETHTOOL_GSTRINGS,
    SIOCETHTOOL,
    IoctlEthtool,
    generate_EthtoolGStats,
    generate_EthtoolGstrings,
)
from pyroute2.netlink.exceptions import NetlinkError

from xskd.aside import aside

READ_SECONDS = 2.0
INTERFACE_STATS = ("rx_dropped", "rx_missed_errors", "rx_over_errors", "rx_fifo_errors", "rx_nohandler")
GONE = frozenset({errno.ENODEV, errno.ENXIO})

# A kernel of before 2026 writes as many counters as the driver has at that moment, however small the buffer:
# it might have got queues since it said how many. So the buffers are larger than any driver needs.
ROOM = 1 << 16
Names, Values = generate_EthtoolGstrings(ROOM), generate_EthtoolGStats(ROOM)

# `rx_queue_0_drops`, `rx0_drops`, `queue_0_rx_drops`, `[0]: rx_drops`; and `rx_drops[0]`. The same with tx.
NUMBER_FIRST = re.compile(r"(?:([rt]x)_?)?(?:queue_?|ring_?|q_?)?(\d+)_(.+)")
NUMBER_LAST = re.compile(r"([rt]x_.+)_(\d+)")
LOST = re.compile(r"(?:^|_)(?:drop|discard)")
FAILED = re.compile(r"(?:^|_)(?:err|miss|fail|no_?buf|overrun|overflow|full)")
# A wrong checksum does not cost the packet; the others are about caches and filters.
HARMLESS = re.compile(r"(?:^|_)(?:csum|checksum|recycle|arfs|lpc)(?:_|$)")

Key = tuple[int | None, str]  # the queue, None for the whole interface, and what is counted

log = logging.getLogger("xskd")


@dataclass(frozen=True)
class Reading:
    """The counters of one interface as the kernel has them now."""

    ifindex: int
    counters: Mapping[Key, int]


@lru_cache(1 << 14)
def loss(name: str) -> tuple[int, str] | None:
    """Queue and name of a counter that means a loss, of one of a driver's names; None for all others.

    The name is in lower case with `_` between its words, begins with rx or tx, and has lost the number of the
    queue: `rx_queue_3_xdp_drops`, `rx3_xdp_drops`, `[3]: rx_xdp_drops` and `rx_xdp_drops[3]` all are
    (3, "rx_xdp_drops"). It means a loss if it says drop or discard, or has a word that begins with err, miss,
    fail, no_buf, overrun, overflow or full and is not about checksums, caches or filters.
    """
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if name.endswith("]"):
        last = NUMBER_LAST.fullmatch(words)
        queue, stat = (last[2], last[1]) if last else ("", "")
    else:
        first = NUMBER_FIRST.fullmatch(words)
        queue, stat = (first[2], first[3]) if first else ("", "")
        if first and first[1] and not stat.startswith(f"{first[1]}_"):
            stat = f"{first[1]}_{stat}"
    means_loss = LOST.search(stat) or (FAILED.search(stat) and not HARMLESS.search(stat))
    return (int(queue), stat) if stat.startswith(("rx_", "tx_")) and means_loss else None


def read(names: Iterable[str]) -> dict[str, Reading | Exception]:
    """Ask the kernel about these interfaces; one that is not there is left out. Waits for drivers.

    Where one is refused, the error is what is found. Raises NetlinkError or OSError where all are.
    """
    found: dict[str, Reading | Exception] = {}
    with IPRoute() as route:
        for name in names:
            try:
                link = route.link("get", ifname=name)[0]
                queues = _queue_counters(name)
            except (NetlinkError, OSError) as error:
                if (error.code if isinstance(error, NetlinkError) else error.errno) not in GONE:
                    found[name] = error
                continue
            whole = {(None, stat): value for stat, value in _interface_counters(link).items()}
            found[name] = Reading(link["index"], whole | queues)
    return found


def _interface_counters(link: Any) -> dict[str, int]:
    stats = link.get("stats64")
    # pyroute2 knows all fields but the last one of struct rtnl_link_stats64 that is asked for here.
    (nohandler,) = struct.unpack_from("=Q", stats.data, stats.offset + 4 + 8 * len(stats.fields))
    return {stat: stats.get(stat, nohandler) for stat in INTERFACE_STATS}


def _queue_counters(interface: str) -> dict[Key, int]:
    counters: Counter[Key] = Counter()
    for name, value in _driver_counters(interface):
        if key := loss(name):
            counters[key] += value
    return dict(counters)


def _driver_counters(interface: str) -> list[tuple[str, int]]:
    """What `ethtool -S` shows; nothing of a driver without counters, or that has changed them just now."""
    with contextlib.closing(IoctlEthtool(interface)) as ethtool:
        try:
            count = ethtool.get_stringset_length(ETH_SS_STATS)
            names = Names(cmd=ETHTOOL_GSTRINGS, string_set=ETH_SS_STATS, len=count)
            values = Values(cmd=ETHTOOL_GSTATS, size=count)
            for request in (names, values) if count <= ROOM else ():
                ethtool.ifreq.gstats = ctypes.cast(ctypes.byref(request), ctypes.POINTER(None))
                fcntl.ioctl(ethtool.sock, SIOCETHTOOL, ethtool.ifreq)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return []
            raise
    if not count == names.len == values.size <= ROOM:
        return []
    text = ctypes.string_at(ctypes.addressof(names.strings), count * ETH_GSTRING_LEN)
    each = (text[start : start + ETH_GSTRING_LEN] for start in range(0, len(text), ETH_GSTRING_LEN))
    decoded = (name.partition(b"\0")[0].decode(errors="replace") for name in each)
    return list(zip(decoded, values.data[:count], strict=True))


class Totals:
    """One interface's counters over all its lives: what has been added never goes back."""

    def __init__(self) -> None:
        self.by_queue: defaultdict[int | None, Counter[str]] = defaultdict(Counter)
        self._ifindex = 0
        self._last: dict[Key, int] = {}

    def add(self, reading: Reading) -> None:
        """Go on with a newer reading: another interface, or a counter that is less than before, began at 0.

        A counter that is not in it keeps its value: a queue that is away may come back.
        """
        if reading.ifindex != self._ifindex:
            self._ifindex, self._last = reading.ifindex, {}
        for (queue, stat), value in reading.counters.items():
            before = self._last.get((queue, stat), 0)
            self.by_queue[queue][stat] += value - before if value >= before else value
            self._last[queue, stat] = value


class Nics:
    """The counters of the interfaces that `names` gives, read again and again while it is started."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names
        self._totals: defaultdict[str, Totals] = defaultdict(Totals)
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._wrong: dict[str, str] = {}  # what could not be read the last time, and why

    def start(self) -> None:
        """Begin to read."""
        self._started = True
        self._read()

    def close(self) -> None:
        """End; a reading that is under way is thrown away."""
        self._started = False
        if self._timer is not None:
            self._timer.cancel()

    def received(self, interface: str, queue: int | None = None) -> dict[str, int]:
        """What a queue has lost of what came in, or (None) the interface; empty before the first reading."""
        return self._counters(interface, queue, "rx_")

    def sent(self, interface: str, queue: int) -> dict[str, int]:
        """What a queue has lost of what was to go out."""
        return self._counters(interface, queue, "tx_")

    def _counters(self, interface: str, queue: int | None, way: str) -> dict[str, int]:
        counters = self._totals[interface].by_queue[queue]
        return {stat: value for stat, value in counters.items() if stat.startswith(way)}

    def _read(self) -> None:
        aside(read, tuple(self._names())).add_done_callback(self._done)

    def _done(self, reading: asyncio.Future[dict[str, Reading | Exception]]) -> None:
        if reading.cancelled() or not self._started:
            return
        error = reading.exception()
        found = reading.result() if error is None else {"network interfaces": error}
        wrong = {name: repr(answer) for name, answer in found.items() if not isinstance(answer, Reading)}
        for name, why in wrong.items():
            if self._wrong.get(name) != why:  # once, and not every time
                log.warning("%s: the counters of the NIC cannot be read: %s", name, why)
        self._wrong = wrong
        for name, answer in found.items():
            if isinstance(answer, Reading):
                self._totals[name].add(answer)
        self._timer = asyncio.get_running_loop().call_later(READ_SECONDS, self._read)
