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
from dataclasses import dataclass, fields
from typing import Any

from xskd._forward import ffi, lib
from xskd.errors import XskdError

PAGE_SIZE: int = -(-ffi.sizeof("struct xskd_counters") // mmap.PAGESIZE) * mmap.PAGESIZE
PRIVATE = -1  # in the place of a descriptor: memory of this process only
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
WAKEUPS = _names("XSKD_WAKEUP_", "xskd_wakeup")
WAKEUP_ERRORS = tuple(name.upper() for name in _names("XSKD_ERROR_", "xskd_wakeup_error"))
DIRECTIONS = _names("XSKD_DIRECTION_", "xskd_direction")
REGIMES = _names("XSKD_REGIME_", "xskd_regime")
# What the elements of an array are called; an array without names is a histogram.
NAMES = {
    "drops": DROPS,
    "wakeups": WAKEUPS,
    "wakeups_skipped": DIRECTIONS,
    "wakeup_errors": WAKEUP_ERRORS,
    "wakeup_ns": DIRECTIONS,
    "ring_full": RINGS,
    "ring_empty": RINGS,
    "ring_corrupt": RINGS,
    "ring_entries": RINGS,
    "ring_high_water": RINGS,
    "frames_in": PLACES,
    "regimes_ns": REGIMES,
    "cpu_ns": _names("XSKD_CPU_", "xskd_cpu"),
    "context_switches": _names("XSKD_SWITCH_", "xskd_switch"),
    "page_faults": _names("XSKD_FAULT_", "xskd_fault"),
}
# The upper bounds of the histograms' buckets but the last, which has none: packets, and seconds.
BATCH_BOUNDS = tuple(float(1 << n) for n in range(lib.XSKD_BATCHES - 1))
TIME_BOUNDS = tuple((1 << lib.XSKD_TIMES_FIRST + n) / 1e9 for n in range(lib.XSKD_TIMES - 1))


@dataclass(frozen=True)
class PortCounters:
    """One port's counters at one moment; packets, bytes, calls, frames or entries as csrc/forward.h says.

    `rx_batches`, `tx_batches`, `wakeup_tx_times`, `wakeup_rx_times` and `latency` are histograms: how many
    fell into each bucket.
    """

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    tx_frames: int
    tx_completed: int
    drops: dict[str, int]
    rx_batches: list[int]
    tx_batches: list[int]
    wakeups: dict[str, int]
    wakeups_skipped: dict[str, int]
    wakeup_errors: dict[str, int]
    fill_starved: int
    tx_blocked: int
    completion_invalid: int
    ring_full: dict[str, int]
    ring_empty: dict[str, int]
    ring_corrupt: dict[str, int]
    wakeup_tx_times: list[int]
    wakeup_rx_times: list[int]
    wakeup_ns: dict[str, int]
    latency: list[int]
    latency_ns: int
    ring_entries: dict[str, int]
    ring_high_water: dict[str, int]


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
    regimes_ns: dict[str, int]
    cpu_ns: dict[str, int]
    context_switches: dict[str, int]
    page_faults: dict[str, int]
    ports: tuple[PortCounters, ...]


# A field's name, its first word in the struct, and the names of its elements: None for a plain number, () for
# a histogram of so many buckets.
Field = tuple[str, int, int, tuple[str, ...] | None]


def _fields(struct: str, wanted: type) -> tuple[Field, ...]:
    """Where a C struct of u64 has what a dataclass wants."""
    found = []
    known = dict(ffi.typeof(f"struct {struct}").fields)
    for each in fields(wanted):
        if each.name != "ports":
            kind = known[each.name].type
            names = NAMES.get(each.name, ()) if kind.kind == "array" else None
            length = kind.length if kind.kind == "array" else 1
            found.append((each.name, known[each.name].offset // WORD, length, names))
    return tuple(found)


WORD = 8
PORT_WORDS = ffi.sizeof("struct xskd_port_counters") // WORD
FIRST_PORT = ffi.offsetof("struct xskd_counters", "ports") // WORD
PORT_FIELDS = _fields("xskd_port_counters", PortCounters)
WORKER_FIELDS = _fields("xskd_counters", WorkerCounters)


def _values(layout: tuple[Field, ...], words: memoryview, start: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, at, length, names in layout:
        if names is None:
            values[name] = words[start + at]
        else:
            part = words[start + at : start + at + length].tolist()
            values[name] = dict(zip(names, part, strict=True)) if names else part
    return values


class CounterPage:
    """One worker's page and its frames' owner bytes; `fd` is shared with the worker.

    Without `fd` it is made anew, for `frames` frames; with PRIVATE it has no descriptor and cannot be shared.
    Raises OSError if there is no memory or descriptor for it, XskdError if a given page is of another layout
    version or too small. Owns `fd` from now on, also when it raises.
    """

    def __init__(self, frames: int, *, fd: int | None = None) -> None:
        size = PAGE_SIZE + frames
        made = _make(size) if fd is None else fd
        try:
            if made != PRIVATE and os.fstat(made).st_size < size:
                found = os.fstat(made).st_size
                raise XskdError(f"counter page of {found} bytes; {frames} frames need {size}")
            self._map = mmap.mmap(made, size)
        except BaseException:
            if made != PRIVATE:
                os.close(made)
            raise
        self.fd, self.frames = made, frames
        self._buffer = ffi.from_buffer("uint8_t[]", self._map, require_writable=True)
        self.struct = ffi.cast("struct xskd_counters *", self._buffer)
        self.owner = memoryview(self._map)[PAGE_SIZE:]
        if made == PRIVATE:
            self.struct.layout_version = lib.XSKD_LAYOUT_VERSION
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
        size = (FIRST_PORT + ports * PORT_WORDS) * WORD
        for _ in range(READ_TRIES):
            before = self.struct.sequence
            copy = self._map[:size]
            if before % 2 == 0 and self.struct.sequence == before:
                break
            time.sleep(READ_PAUSE)
        words = memoryview(copy).cast("Q")
        starts = range(FIRST_PORT, FIRST_PORT + ports * PORT_WORDS, PORT_WORDS)
        return WorkerCounters(
            **_values(WORKER_FIELDS, words, 0),
            ports=tuple(PortCounters(**_values(PORT_FIELDS, words, start)) for start in starts),
        )

    def new_marks(self) -> None:
        """The high-water marks have been read: let the worker begin new ones."""
        lib.xskd_new_marks(self.struct)

    def close(self) -> None:
        """Unmap the page and close its descriptor."""
        self.owner.release()
        ffi.release(self._buffer)
        self._map.close()
        if self.fd != PRIVATE:
            os.close(self.fd)


def _make(size: int) -> int:
    """A descriptor of a fresh page. Raises OSError."""
    fd = os.memfd_create("xskd-counters", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        os.pwrite(fd, int(lib.XSKD_LAYOUT_VERSION).to_bytes(8, "little"), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
