"""What an XSK's options take and answer, in words: ring sizes, counters, where things lie in a mapping.

Kernels differ in how long their answers are; that is settled here, once. This module must never make a system
call: xsk.py asks, this reads the answer.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from typing import Any

from xskd._forward import ffi
from xskd.errors import XskError

OFFSETS_WITH_FLAGS, OFFSETS_WITHOUT_FLAGS = 128, 96  # bytes of XDP_MMAP_OFFSETS since and before Linux 5.4
STATISTICS_NEW, STATISTICS_OLD = 48, 24  # bytes of XDP_STATISTICS since and before Linux 5.9
OLD_OFFSETS = struct.Struct("=12Q")


@dataclass(frozen=True)
class Rings:
    """Entries of the four rings of a socket; each a power of two."""

    fill: int = 2048
    rx: int = 1024
    tx: int = 1024
    completion: int = 2048

    def __post_init__(self) -> None:
        for name in ("fill", "rx", "tx", "completion"):
            size = getattr(self, name)
            if size < 1 or size & (size - 1):
                raise XskError("Rings", key=f"rings.{name}", hint=f"{size} entries; must be a power of two")


@dataclass(frozen=True)
class Statistics:
    """XDP_STATISTICS of one socket under the kernel's names: packets, or descriptors for *_descs.

    `tx_ring_empty_descs` counts the kernel finding nothing to send and is benign. `rx_fill_ring_empty_descs`
    belongs to the queue, not the socket. Kernels before 5.9 know only the first three; the others are 0.
    """

    rx_dropped: int = 0
    rx_invalid_descs: int = 0
    tx_invalid_descs: int = 0
    rx_ring_full: int = 0
    rx_fill_ring_empty_descs: int = 0
    tx_ring_empty_descs: int = 0

    @classmethod
    def parse(cls, answer: bytes) -> Statistics:
        """From the kernel's answer, 24 or 48 bytes; any other length raises XskError."""
        if len(answer) not in (STATISTICS_OLD, STATISTICS_NEW):
            hint = f"the kernel answered {len(answer)} bytes; 24 or 48 are known"
            raise XskError("getsockopt(XDP_STATISTICS)", hint=hint)
        return cls(*struct.unpack(f"={len(answer) // 8}Q", answer))


def sum_statistics(base: Statistics, now: Statistics) -> Statistics:
    """Field by field: counters of a socket go on where its predecessor's ended."""
    before, after = asdict(base), asdict(now)
    return Statistics(**{name: before[name] + after[name] for name in before})


def parse_mmap_offsets(answer: bytes) -> Any:
    """A struct xdp_mmap_offsets from the kernel's answer; `flags` 0 where the kernel has no need_wakeup."""
    offsets = ffi.new("struct xdp_mmap_offsets *")
    if len(answer) == OFFSETS_WITH_FLAGS:
        ffi.buffer(offsets)[:] = answer
    elif len(answer) == OFFSETS_WITHOUT_FLAGS:
        words = OLD_OFFSETS.unpack(answer)
        for i, ring in enumerate((offsets.rx, offsets.tx, offsets.fr, offsets.cr)):
            ring.producer, ring.consumer, ring.desc = words[3 * i : 3 * i + 3]
    else:
        hint = f"the kernel answered {len(answer)} bytes; 96 or 128 are known"
        raise XskError("getsockopt(XDP_MMAP_OFFSETS)", hint=hint)
    return offsets
