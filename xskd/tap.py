"""The ring that copies of packets go through, from its three sides; csrc/capture.h says what is in it.

The supervisor makes the memory and hands it on, a worker writes (`Tap`), `xskd capture` reads (`Reader`). The
reader may be a stranger who belongs to a group and no more, so the memory is sealed: a reader that could
shrink it would end the worker (SIGBUS). It has its pages before anybody gets it, for the same reason. Workers
import this module: it must never load the control plane.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xskd._forward import ffi, lib
from xskd.errors import XskdError

LARGEST = 16 << 20  # bytes of a ring: 10 ms of 1,500-byte packets at a million a second
SMALLEST = 1 << 20
ALTOGETHER = 64 << 20  # of all rings of a capture, as far as the smallest allow
MAX_RINGS = 250  # of a capture: descriptors that a client is sent at once; the kernel's limit is 253
MAX_FILTER: int = lib.XSKD_CAPTURE_MAX_FILTER  # instructions
MAX_SNAPLEN: int = lib.XSKD_CAPTURE_MAX_LENGTH
DIRECTIONS = {
    "in": 1 << lib.XSKD_IN,
    "out": 1 << lib.XSKD_OUT,
    "both": 1 << lib.XSKD_IN | 1 << lib.XSKD_OUT,
}
BLOCKS = 4 << 20  # bytes of what a reader takes at a time

Filter = Sequence[Sequence[int]]  # [code, jt, jf, k] of each instruction


def ring_size(rings: int) -> int:
    """Bytes for each of so many rings, a power of two."""
    return max(SMALLEST, min(LARGEST, 1 << (ALTOGETHER // rings).bit_length() - 1))


def make_ring(size: int) -> int:
    """A memfd with an empty ring of `size` bytes. OSError if there is no memory."""
    fd = os.memfd_create("xskd-capture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, lib.XSKD_CAPTURE_HEADER + size)
        os.pwrite(fd, int(lib.XSKD_CAPTURE_LAYOUT).to_bytes(8, "little"), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def usable(program: Filter) -> bool:
    """May a worker run this filter? An empty one is none, and lets everything pass."""
    try:
        compiled = ffi.new("struct bpf_insn[]", [tuple(instruction) for instruction in program])
    except (TypeError, ValueError, IndexError, OverflowError):
        return False
    return not program or bool(lib.xskd_capture_filter_ok(compiled, len(program)))


class _Ring:
    """The memory, mapped; the descriptor is closed, also when it is not what it should be."""

    def __init__(self, fd: int) -> None:
        try:
            self.size = os.fstat(fd).st_size
            self._map = mmap.mmap(fd, self.size)
        finally:
            os.close(fd)
        self._buffer = ffi.from_buffer("uint8_t[]", self._map, require_writable=True)
        self.struct = ffi.cast("struct xskd_capture_ring *", self._buffer)

    def insist(self, error: int) -> None:
        """Raise XskdError if opening it failed."""
        if error:
            self.close()
            raise XskdError(
                "capture ring of another layout or size; are daemon and `xskd capture` of one version?"
            )

    def close(self) -> None:
        ffi.release(self._buffer)
        self._map.close()


class Tap:
    """A worker's end. `struct` is what the loop writes to while it points there. Owns the descriptor."""

    def __init__(self, fd: int, direction: str, snaplen: int, program: Filter) -> None:
        self._ring = _Ring(fd)
        self.struct = ffi.new("struct xskd_capture *")
        self._ring.insist(lib.xskd_capture_open(self.struct, self._ring.struct, self._ring.size))
        self.struct.directions = DIRECTIONS[direction]
        self.struct.snaplen = snaplen
        if not usable(program):
            self._ring.close()
            raise XskdError("a filter that may not be run")
        self.struct.filter = [tuple(instruction) for instruction in program]
        self.struct.filter_length = len(program)

    def close(self) -> None:
        """Unmap it; nobody may use `struct` any more."""
        self._ring.close()


@dataclass(frozen=True)
class Counted:
    """Packets of one port that went a wanted way, and what became of their copies."""

    seen: int
    copied: int
    lost: int
    refused: int


class Reader:
    """The other end, of one ring for each worker. Owns the descriptors.

    `ports` are the numbers of ports; ports are numbered through over all rings, in order.
    """

    def __init__(self, fds: Sequence[int], ports: Sequence[int]) -> None:
        self._ports = tuple(ports)
        self._rings = [_Ring(fd) for fd in fds]
        self._readers = ffi.new("struct xskd_capture_reader[]", len(self._rings))
        self._blocks = ffi.new("uint8_t[]", BLOCKS)
        self._packets = ffi.new("uint64_t *")
        for index, ring in enumerate(self._rings):
            reader = self._readers[index]
            ring.insist(lib.xskd_capture_reader_open(ffi.addressof(reader), ring.struct, ring.size))
            reader.ports, reader.interface = ports[index], sum(ports[:index])

    @property
    def size(self) -> int:
        """Bytes of all rings."""
        return sum(ring.size for ring in self._rings)

    def read(self, most: int) -> tuple[Any, int]:
        """Take at most so many packets: pcapng blocks, valid until the next call, and the number of packets.

        Never waits. Raises XskdError if what the worker has written makes no sense.
        """
        self._packets[0] = most
        size = lib.xskd_capture_read(self._readers, len(self._rings), self._blocks, BLOCKS, self._packets)
        if size < 0:
            raise XskdError("the ring of a worker contradicts itself")
        return ffi.buffer(self._blocks, size), int(self._packets[0])

    def counted(self) -> list[Counted]:
        """What the workers have counted so far, for each port."""
        return [
            Counted(port.seen, port.copied, port.lost, port.refused)
            for ring, ports in zip(self._rings, self._ports, strict=True)
            for port in ring.struct.ports[0:ports]
        ]
