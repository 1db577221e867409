"""The memory that packets lie in: a UMEM's frames, who owns each of them, and batches of held frames.

A frame is in exactly one place; the record of it is kept by the C code (csrc/forward.h tells the rule). This
module must never hand out a frame that the kernel may still write to, and never copy a packet: a Batch is
descriptors and views.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from xskd._forward import ffi, lib
from xskd.errors import XskError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

HEADROOM = 256  # bytes the kernel keeps in front of every packet: XDP_PACKET_HEADROOM in linux/bpf.h
FRAME_SIZES = (2048, 4096)  # aligned mode: a power of two from 2048 up to the page size
LEAST_FRAME_SIZE = 2048  # bytes: XDP_UMEM_MIN_CHUNK_SIZE in the kernel's net/xdp/xdp_umem.c
HUGE_PAGE = 2 << 20  # bytes
MAX_FRAGMENTS: int = lib.XSKD_MAX_FRAGMENTS  # frames of one packet, at most


class Umem:
    """Shared memory of `frames` frames of `frame_size` bytes, and the record of who owns each frame.

    The memory is a memfd, so that another process can map the same frames. `huge_pages` takes it from the
    system's reserved 2 MiB pages. `memfd` maps an existing UMEM instead of making one; `owner` is a writable
    buffer of at least one byte per frame that keeps the record (by default private memory). With `keep` the
    record is left as it is, for a Forwarder to adopt; otherwise all frames are free. `intent` points to a
    uint64_t that belongs to the record: what is being done to frames (by default private as well).

    With `unaligned` (XDP_UMEM_UNALIGNED_CHUNK_FLAG) a frame may have any size from 2048 bytes to a page: 3 KB
    frames hold a third more packets than 4 KB ones. Frames may cross pages then, which zero-copy drivers
    take only where the pages are neighbours (`huge_pages`), and a Forwarder takes none of them.
    Raises XskError for a size the kernel would refuse, or if there is no memory.
    """

    def __init__(
        self,
        frames: int,
        frame_size: int = 4096,
        *,
        headroom: int = 0,
        huge_pages: bool = False,
        unaligned: bool = False,
        memfd: int | None = None,
        owner: ReadableBuffer | None = None,
        keep: bool = False,
        intent: Any = None,
    ) -> None:
        _check_umem(frames, frame_size, headroom, unaligned)
        self.unaligned = unaligned
        self.frames, self.frame_size, self.headroom = frames, frame_size, headroom
        self.size = frames * frame_size
        self.huge_pages = huge_pages
        self.memfd = make_memory(frames, frame_size, huge_pages=huge_pages) if memfd is None else memfd
        try:
            self._map = _map_umem(self.memfd, self.size, huge_pages)
        except XskError:
            if memfd is None:
                os.close(self.memfd)
            raise
        self._area = ffi.from_buffer("uint8_t[]", self._map, require_writable=True)
        self._owner = ffi.new("uint8_t[]", frames) if owner is None else ffi.from_buffer("uint8_t[]", owner)
        self._free = ffi.new("uint32_t[]", frames)
        self._intent = ffi.new("uint64_t *") if intent is None else intent
        self.view = memoryview(self._map)
        self.struct = ffi.new(
            "struct xskd_umem *",
            {
                "area": self._area,
                "owner": self._owner,
                "free": self._free,
                "intent": self._intent,
                "frames": frames,
                "frame_size": frame_size,
                "frame_shift": 0 if unaligned else frame_size.bit_length() - 1,
            },
        )
        self.shared_fd: int | None = None  # of the socket that the others share, see Socket.open
        self.ports = 0  # sockets opened on it
        if not keep:
            lib.xskd_umem_reset(self.struct)

    @property
    def free(self) -> int:
        """Frames that nobody uses."""
        return int(self.struct.free_count)

    def next_port(self) -> int:
        """A number for one more socket on this UMEM: the owner bytes tell its sockets apart by it."""
        if self.ports >= lib.XSKD_MAX_PORTS:
            raise XskError("Socket.open", hint=f"a UMEM serves at most {lib.XSKD_MAX_PORTS} sockets")
        return self.ports

    def withdraw(self, port: Any) -> None:
        """Undo the filling of a socket that could not be bound: the kernel saw none of it."""
        fill = ffi.cast("uint64_t *", port.rings[lib.XSKD_FILL].entries)
        for slot in range(port.rx_side):
            frame = fill[slot] // self.frame_size
            self.struct.owner[frame] = 0  # OWNER_FREE in csrc/frames.h
            self.struct.free[self.struct.free_count] = frame
            self.struct.free_count += 1
        port.rx_side = 0

    def take(self, count: int) -> Batch:
        """Up to `count` free frames to write packets into; fewer, or none, if there are no more."""
        batch = Batch(self, count)
        batch._end = lib.xskd_umem_take(self.struct, batch._descs, count)
        return batch

    def close(self) -> None:
        """Unmap and close the memory, after its sockets. XskError while a view of a packet is still alive."""
        if self._map.closed:
            return
        self.view.release()
        ffi.release(self._area)
        try:
            self._map.close()
        except BufferError as error:
            hint = "views of its packets are still in use; drop them first"
            raise XskError("Umem.close", hint=hint) from error
        os.close(self.memfd)


def _check_umem(frames: int, frame_size: int, headroom: int, unaligned: bool) -> None:
    """What XDP_UMEM_REG would answer with EINVAL, said in words."""
    problem = ""
    if unaligned and not LEAST_FRAME_SIZE <= frame_size <= mmap.PAGESIZE:
        problem = (
            f"frame size {frame_size}; must be {LEAST_FRAME_SIZE} bytes to a page ({mmap.PAGESIZE} bytes)"
        )
    elif not unaligned and (frame_size not in FRAME_SIZES or frame_size > mmap.PAGESIZE):
        problem = f"frame size {frame_size}; must be 2048 or 4096 and at most a page ({mmap.PAGESIZE} bytes)"
    elif frames < 1:
        problem = f"{frames} frames; must be at least 1"
    elif not 0 <= headroom < frame_size - HEADROOM:
        problem = f"headroom {headroom}; must be 0 to {frame_size - HEADROOM - 1} bytes"
    if problem:
        raise XskError("XDP_UMEM_REG", key="umem", hint=problem)


def make_memory(frames: int, frame_size: int, *, huge_pages: bool = False) -> int:
    """A memfd for a UMEM of that size, in whole pages; empty until somebody maps it. Raises OSError."""
    page = HUGE_PAGE if huge_pages else mmap.PAGESIZE
    flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB | os.MFD_HUGE_2MB if huge_pages else 0)
    fd = os.memfd_create("xskd-umem", flags)
    try:
        os.ftruncate(fd, -(-frames * frame_size // page) * page)
    except OSError:
        os.close(fd)
        raise
    return fd


def _map_umem(memfd: int, size: int, huge_pages: bool) -> mmap.mmap:
    try:
        length = -(-size // HUGE_PAGE) * HUGE_PAGE if huge_pages else size
        return mmap.mmap(memfd, length, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except OSError as error:
        hint = f"{size} bytes of UMEM"
        if huge_pages:
            hint += f" need {-(-size // HUGE_PAGE)} huge pages (sysctl vm.nr_hugepages), or huge_pages: false"
        raise XskError("mmap(UMEM)", errno=error.errno, key="umem", hint=hint) from error


class Batch(Sequence[memoryview]):
    """Frames that the caller holds; item i is a writable view of the packet in frame i, never a copy.

    Of a multi-buffer socket a packet may take several frames in a row: `continues(i)` says that the packet of
    frame i goes on in the next one.

    A batch comes from `Socket.receive` (packets) or `Umem.take` (empty frames). It ends by being transmitted
    or released; leaving a `with` block releases what was not transmitted. After that its views must not be
    used: the frames carry other packets.
    """

    def __init__(self, umem: Umem, capacity: int) -> None:
        self.umem = umem
        self._descs = ffi.new("struct xdp_desc[]", capacity)
        self._start = self._end = 0

    def __len__(self) -> int:
        return self._end - self._start

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...
    def __getitem__(self, index: int | slice) -> memoryview | list[memoryview]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        desc = self._desc(index)
        return self.umem.view[desc.addr : desc.addr + desc.len]

    def __iter__(self) -> Iterator[memoryview]:
        return (self[i] for i in range(len(self)))

    def continues(self, index: int) -> bool:
        """Does the packet of frame `index` go on in the next frame?"""
        return bool(self._desc(index).options & lib.XDP_PKT_CONTD)

    def metadata(self, index: int, length: int) -> memoryview:
        """The `length` bytes in front of packet `index`: what the program put there by bpf_xdp_adjust_meta().

        Whether it did is between you and your program: without metadata, these bytes are anything. Raises
        XskError for more than there is in front of it in its frame.
        """
        address = self._desc(index).addr
        if not 0 <= length <= address % self.umem.frame_size:
            room = address % self.umem.frame_size
            raise XskError("Batch.metadata", hint=f"{length} bytes; there are {room} in front of this packet")
        return self.umem.view[address - length : address]

    def write(self, index: int, packet: ReadableBuffer, *, continues: bool = False) -> None:
        """Make `packet` (14 bytes to the frame size) the content of frame `index`.

        With `continues` it is a part of a packet that goes on in the next frame. The parts after the first
        one may have fewer than 14 bytes, but not none. Raises XskError.
        """
        data = memoryview(packet).cast("B")
        least = 1 if index and self.continues(index - 1) else 14
        if not least <= len(data) <= self.umem.frame_size:
            hint = f"packet of {len(data)} bytes; must be {least} to {self.umem.frame_size}"
            raise XskError("Batch.write", hint=hint)
        desc = self._desc(index)
        desc.addr -= desc.addr % self.umem.frame_size
        desc.len = len(data)
        desc.options = lib.XDP_PKT_CONTD if continues else 0
        self[index][:] = data

    def release(self) -> None:
        """Give the frames back; a second call does nothing."""
        lib.xskd_umem_give(self.umem.struct, self._descs + self._start, len(self))
        self._start = self._end

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _desc(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._descs[self._start + index % len(self)]
