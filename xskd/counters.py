"""The page of counters that a worker writes and everybody else reads: shared memory, no locks, no messages.

The supervisor makes the page (a memfd) and keeps it while workers come and go, so a counter never goes back.
A worker is the only writer; a reader never makes it wait. The page is the C struct xskd_counters of
csrc/forward.h, and after it one byte per frame: the record of who owns each frame, which must outlive the
worker as well. The names of the fields are the names of the metrics.
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from typing import Any

from xskd._forward import ffi, lib
from xskd.errors import XskdError

PAGE_SIZE: int = -(-ffi.sizeof("struct xskd_counters") // mmap.PAGESIZE) * mmap.PAGESIZE
READ_TRIES = 100  # a writer needs well under a microsecond between two even sequence numbers
READ_PAUSE = 0.0001  # seconds


def _names(prefix: str, enum: str) -> tuple[str, ...]:
    """The lower-case names of a C enum, in order, without the prefix and the closing count."""
    elements = ffi.typeof(f"enum {enum}").elements
    names = (name.removeprefix(prefix).lower() for _, name in sorted(elements.items()))
    return tuple(names)[:-1]


DROPS = _names("XSKD_DROP_", "xskd_drop")
PLACES = _names("XSKD_PLACE_", "xskd_place")
RINGS = _names("XSKD_", "xskd_ring_name")
WAKEUP_ERRORS = tuple(name.upper() for name in _names("XSKD_WAKEUP_", "xskd_wakeup_error"))


@dataclass(frozen=True)
class PortCounters:
    """One port's counters at one moment; packets, bytes, calls, frames or entries as csrc/forward.h says."""

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    tx_completed: int
    drops: dict[str, int]
    wakeups_tx: int
    wakeups_rx: int
    wakeups_tx_skipped: int
    wakeups_rx_skipped: int
    wakeup_errors: dict[str, int]
    fill_starved: int
    tx_blocked: int
    completion_invalid: int
    ring_entries: dict[str, int]


@dataclass(frozen=True)
class WorkerCounters:
    """A worker's counters at one moment. `heartbeat_ns` is CLOCK_MONOTONIC; 0: it has not run yet."""

    heartbeat_ns: int
    turns: int
    turns_idle: int
    sleeps: int
    frames: int
    frames_in: dict[str, int]
    frames_unaccounted: int
    ports: tuple[PortCounters, ...]


class CounterPage:
    """One worker's page and its frames' owner bytes; `fd` is shared with the worker.

    Without `fd` it is made anew, for `frames` frames. Raises XskdError if a given page is of another layout
    version or too small.
    """

    def __init__(self, frames: int, *, fd: int | None = None) -> None:
        size = PAGE_SIZE + frames
        if fd is None:
            fd = os.memfd_create("xskd-counters", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            os.pwrite(fd, int(lib.XSKD_LAYOUT_VERSION).to_bytes(8, "little"), 0)
        self.fd, self.frames = fd, frames
        if os.fstat(fd).st_size < size:
            raise XskdError(f"counter page of {os.fstat(fd).st_size} bytes; {frames} frames need {size}")
        self._map = mmap.mmap(fd, size)
        self._buffer = ffi.from_buffer("uint8_t[]", self._map, require_writable=True)
        self.struct = ffi.cast("struct xskd_counters *", self._buffer)
        self.owner = memoryview(self._map)[PAGE_SIZE:]
        if self.struct.layout_version != lib.XSKD_LAYOUT_VERSION:
            found = self.struct.layout_version
            self.close()
            raise XskdError(f"counter page of layout {found}; this xskd has {lib.XSKD_LAYOUT_VERSION}")

    @property
    def intent(self) -> Any:
        """Where the loop writes what it is about to do with frames, see csrc/adopt.c."""
        return ffi.addressof(self.struct, "intent")

    def take_over(self, other: CounterPage) -> None:
        """Go on with the counters of another page, whose frames are not ours."""
        ffi.memmove(self.struct, other.struct, ffi.sizeof("struct xskd_counters"))

    def port(self, index: int) -> Any:
        """The C struct of one port's counters, to be written by its socket."""
        return ffi.addressof(self.struct.ports, index)

    def read(self, ports: int) -> WorkerCounters:
        """All counters of the first `ports` ports; frames and ring levels belong to one moment.

        Never waits for the worker: if it was stopped in the middle of publishing, what is there is returned.
        """
        copy = ffi.new("struct xskd_counters *")
        for _ in range(READ_TRIES):
            before = self.struct.sequence
            ffi.memmove(copy, self.struct, ffi.sizeof("struct xskd_counters"))
            if before % 2 == 0 and self.struct.sequence == before:
                break
            time.sleep(READ_PAUSE)
        return WorkerCounters(
            heartbeat_ns=copy.heartbeat_ns,
            turns=copy.turns,
            turns_idle=copy.turns_idle,
            sleeps=copy.sleeps,
            frames=copy.frames,
            frames_in=dict(zip(PLACES, copy.frames_in, strict=True)),
            frames_unaccounted=copy.frames_unaccounted,
            ports=tuple(_read_port(copy.ports[index]) for index in range(ports)),
        )

    def close(self) -> None:
        """Unmap the page and close its descriptor."""
        self.owner.release()
        ffi.release(self._buffer)
        self._map.close()
        os.close(self.fd)


def _read_port(port: Any) -> PortCounters:
    return PortCounters(
        rx_packets=port.rx_packets,
        rx_bytes=port.rx_bytes,
        tx_packets=port.tx_packets,
        tx_bytes=port.tx_bytes,
        tx_completed=port.tx_completed,
        drops=dict(zip(DROPS, port.drops, strict=True)),
        wakeups_tx=port.wakeups_tx,
        wakeups_rx=port.wakeups_rx,
        wakeups_tx_skipped=port.wakeups_tx_skipped,
        wakeups_rx_skipped=port.wakeups_rx_skipped,
        wakeup_errors=dict(zip(WAKEUP_ERRORS, port.wakeup_errors, strict=True)),
        fill_starved=port.fill_starved,
        tx_blocked=port.tx_blocked,
        completion_invalid=port.completion_invalid,
        ring_entries=dict(zip(RINGS, port.ring_entries, strict=True)),
    )
