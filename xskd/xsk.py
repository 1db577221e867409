"""AF_XDP sockets (XSKs) for Python: UMEM, the four rings, and batches of packets that are never copied.

A UMEM is shared memory cut into frames. A socket belongs to one queue of one interface and moves frames
through four rings: FILL (free frames for the kernel to receive into), RX (received packets), TX (packets to
send) and completion (sent frames that come back). Everything works on batches; the inner loops are C
(csrc/port.c), Python sees descriptors and memoryviews.

This module knows nothing of the daemon and is a library of its own: docs/library.md shows how to use it. It
must never raise a bare OSError (every failed call becomes an XskError that says what to change), never
wait without a deadline, and never hand out a frame that the kernel may still write to.

The kernel's side is described in Documentation/networking/af_xdp.rst of the Linux source.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import select
import socket
import struct
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal

from xskd._forward import ffi, lib
from xskd.counters import RINGS
from xskd.errors import XskError
from xskd.uapi import OFFSETS_WITH_FLAGS, STATISTICS_NEW, Rings, Statistics, parse_mmap_offsets
from xskd.umem import MAX_FRAGMENTS, Batch, Umem

__all__ = ["BURST", "Batch", "Mode", "Rings", "Socket", "Statistics", "Umem"]

Mode = Literal["auto", "zerocopy", "copy"]

BURST: int = lib.XSKD_BURST
MIN_TX_BUDGET = 32  # the kernel refuses less (and more than the TX ring has entries) with EACCES
MAX_TX_BUDGET = 256  # frames a call; above that the call holds the socket's lock too long for a scrape
BUSY_TIMEOUT = 5.0  # seconds: a closed socket frees its queue in the background, within 20 to 100 ms
SO_SNDBUFFORCE = 33  # asm-generic/socket.h, as the next ones; the socket module lacks them
SO_BUSY_POLL, SO_INCOMING_NAPI_ID, SO_PREFER_BUSY_POLL, SO_BUSY_POLL_BUDGET = 46, 56, 69, 70
# What a wakeup may answer and the next one not, as wakeup_failed() in csrc/port.c has it.
PASSING = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENETDOWN, errno.ENOBUFS})
MAX_SEND_BUFFER = 1 << 30  # bytes; the kernel doubles it, as an int
SKB_OVERHEAD = 1024  # bytes that copy mode charges to the send buffer for a frame beyond its data, at most


class Socket:
    """One XSK: a queue of an interface, bound to a UMEM.

    `Socket.open` does everything at once. A daemon that splits the work between a privileged process and a
    worker takes the steps one by one, in this order: construct (CAP_NET_RAW), `register` (first socket of
    a UMEM), `set_up_rings`, `fill`, `bind`. The later steps need no capability, and `fd` continues a socket
    that another process made. Without an XDP program that redirects to it, a socket receives nothing: see
    xskd.xdp.
    """

    def __init__(
        self,
        umem: Umem,
        interface: str,
        queue: int,
        *,
        rings: Rings | None = None,
        mtu: int = 1500,
        fd: int | None = None,
        ifindex: int | None = None,
        index: int = 0,
        multi_buffer: bool = False,
        counters: Any = None,
    ) -> None:
        self.umem, self.interface, self.queue = umem, interface, queue
        self.rings = rings or Rings()
        self.ifindex = _ifindex(interface) if ifindex is None else ifindex
        self._socket = (
            make_socket(interface, queue, self.rings, umem.frame_size) if fd is None else socket_of(fd)
        )
        self._maps: list[mmap.mmap] = []
        self._buffers: list[Any] = []
        self._counters = ffi.new("struct xskd_port_counters *") if counters is None else counters
        self.port = ffi.new("struct xskd_port *")
        self.port.umem = umem.struct
        self.port.counters = self._counters
        self.port.fd = self._socket.fileno()
        self.port.index = index
        self.port.multi_buffer = multi_buffer
        self.set_mtu(mtu)
        self._no_rings = ffi.new("uint32_t *")
        self._forget_rings()
        self.zero_copy = self.busy_polling = False
        self.zero_copy_refused: int | None = None
        self.bind_retries = 0

    @classmethod
    def open(
        cls,
        umem: Umem,
        interface: str,
        queue: int,
        *,
        rings: Rings | None = None,
        mode: Mode = "auto",
        mtu: int = 1500,
        multi_buffer: bool = False,
    ) -> Socket:
        """A socket ready for traffic. Further sockets of the same UMEM share it (XDP_SHARED_UMEM).

        `mtu` is the interface's, in bytes; longer packets are not transmitted. With `multi_buffer` a packet
        may take several frames, which all sockets of a UMEM must agree on (see `Batch.continues`). Raises
        XskError.
        """
        opened = cls(
            umem, interface, queue, rings=rings, mtu=mtu, index=umem.next_port(), multi_buffer=multi_buffer
        )
        try:
            if umem.shared_fd is None:
                opened.register()
            opened.set_up_rings()
            opened.fill()
            opened.bind(mode, share=umem.shared_fd)
        except XskError:
            umem.withdraw(opened.port)
            opened.close()
            raise
        umem.shared_fd = opened.fileno() if umem.shared_fd is None else umem.shared_fd
        umem.ports += 1
        return opened

    # ---- set-up ---------------------------------------------------------------------------------

    def register(self) -> None:
        """XDP_UMEM_REG: pin the UMEM's memory for this socket. Raises XskError."""
        area = int(ffi.cast("uintptr_t", self.umem.struct.area))
        request = ffi.new(
            "struct xdp_umem_reg *",
            {
                "addr": area,
                "len": self.umem.size,
                "chunk_size": self.umem.frame_size,
                "headroom": self.umem.headroom,
                "flags": lib.XDP_UMEM_UNALIGNED_CHUNK_FLAG if self.umem.unaligned else 0,
            },
        )
        with self._call("XDP_UMEM_REG", key="umem"):
            self._socket.setsockopt(lib.SOL_XDP, lib.XDP_UMEM_REG, bytes(ffi.buffer(request)))

    def set_up_rings(self) -> None:
        """Give the four rings their sizes and map them. Indices are taken from the rings. Raises XskError."""
        for option, name in (
            (lib.XDP_UMEM_FILL_RING, "fill"),
            (lib.XDP_UMEM_COMPLETION_RING, "completion"),
            (lib.XDP_RX_RING, "rx"),
            (lib.XDP_TX_RING, "tx"),
        ):
            with self._call(f"XDP_{name.upper()}_RING", key=f"rings.{name}"):
                self._socket.setsockopt(lib.SOL_XDP, option, getattr(self.rings, name))
        self._raise_tx_budget()
        self._map_rings()
        self._counters.rx_rest = 0  # new rings: the rest of a packet in old ones does not come here

    def set_mtu(self, mtu: int) -> None:
        """The interface's MTU in bytes: longer packets are not transmitted."""
        longest = mtu + 14 + 4  # as in is_skb_forwardable()
        self.port.max_length = longest if self.multi_buffer else min(longest, self.umem.frame_size)

    @property
    def multi_buffer(self) -> bool:
        """May a packet take several frames here?"""
        return bool(self.port.multi_buffer)

    def fill(self) -> int:
        """Put free frames on FILL, to the brim as far as there are any. Returns how many."""
        return int(lib.xskd_refill(self.port))

    def bind(
        self,
        mode: Mode = "auto",
        *,
        share: int | None = None,
        busy_timeout: float = BUSY_TIMEOUT,
        multi_buffer: bool | None = None,
    ) -> None:
        """Bind to the queue in the given mode and read back which one it became (`zero_copy`).

        `auto` asks for zero-copy first and then for copy, always explicitly: asked for neither, the kernel
        falls back in silence. With `share`, the descriptor of a bound socket of the same UMEM, the mode is
        that socket's, and so is what it knows of packets of several frames: `multi_buffer` (default: as the
        socket was made) asks for them. EBUSY is retried for `busy_timeout` seconds. Raises XskError.
        """
        if multi_buffer is not None:
            self.port.multi_buffer = multi_buffer
        flags = lib.XDP_USE_NEED_WAKEUP | (lib.XDP_USE_SG if self.multi_buffer else 0)
        if share is not None:
            self._bind_retrying(lib.XDP_SHARED_UMEM, busy_timeout, share)
        elif mode == "copy" or (mode == "auto" and not self._bind_zero_copy(flags, busy_timeout)):
            self._bind_retrying(lib.XDP_COPY | flags, busy_timeout)
        elif mode == "zerocopy":
            self._bind_retrying(lib.XDP_ZEROCOPY | flags, busy_timeout)
        self._read_mode()

    def adopt(self) -> None:
        """Map the rings of a socket that another process has bound, and may still be using.

        They are a Forwarder's to go on with, see `Forwarder.adopt`. `zero_copy` is asked of the kernel.
        Kernels before 6.4 refuse the mapping. Raises XskError.
        """
        self._raise_tx_budget()
        self._map_rings()
        self._read_mode()

    def busy_poll(self, microseconds: int = 20, budget: int = 64) -> None:
        """Have the driver work inside our own calls instead of in interrupts (SO_PREFER_BUSY_POLL).

        From then on `receive` and `transmit` let it work off up to `budget` packets of this queue.
        Interrupts stay off as long as somebody calls, if the interface is told so: `napi_defer_hard_irqs`
        (rounds, 2 will do) and `gro_flush_timeout` (nanoseconds until interrupts come back) in
        /sys/class/net/eth1/, which nobody sets back but you. `microseconds` is what the kernel calls the time
        of a busy wait; our calls never wait, and it only has to be more than 0. Needs CAP_NET_ADMIN and Linux
        5.11. Raises XskError.

        The kernel may accept all this and do nothing, see `busy_polled`. `wait` sleeps as before: a packet
        that nobody polls for comes when gro_flush_timeout is over.
        """
        for name, option, value in (
            ("SO_PREFER_BUSY_POLL", SO_PREFER_BUSY_POLL, 1),
            ("SO_BUSY_POLL", SO_BUSY_POLL, microseconds),
            ("SO_BUSY_POLL_BUDGET", SO_BUSY_POLL_BUDGET, budget),
        ):
            with self._call(name, hint=f"setting it to {value} needs CAP_NET_ADMIN, and Linux 5.11 or newer"):
                self._socket.setsockopt(socket.SOL_SOCKET, option, value)
        self.busy_polling = True

    @property
    def busy_polled(self) -> bool:
        """Does busy polling have an effect: has it been asked for, and does the kernel know whom to poll?

        The driver has to tell it (netif_queue_set_napi) before `bind`; before Linux 6.13 the first packet
        did. A veth does not, and in generic mode there is nobody. Raises XskError.
        """
        with self._call("getsockopt(SO_INCOMING_NAPI_ID)"):
            return self.busy_polling and self._socket.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID) != 0

    @property
    def mode(self) -> Literal["zerocopy", "copy"]:
        """What is really in use since `bind`."""
        return "zerocopy" if self.zero_copy else "copy"

    # ---- packets --------------------------------------------------------------------------------

    def receive(self, count: int = BURST) -> Batch:
        """Up to `count` frames with packets that have arrived; an empty batch if there are none. Never waits.

        With multi-buffer a batch has room for at least one packet of the most frames, and packets are whole.

        FILL is refilled on the way, so calling this in a loop is all that receiving takes. Raises XskError
        when a system call says that the socket is dead; whether an idle one is, `wait` and `probe` find out.
        """
        self._refill()
        if self.busy_polling and not self._has_packets():
            self.probe()  # the call in which the driver works
        count = max(count, MAX_FRAGMENTS) if self.multi_buffer else count
        batch = Batch(self.umem, count)
        batch._end = lib.xskd_receive(self.port, batch._descs, count)
        return batch

    def transmit(self, batch: Batch) -> int:
        """Send a batch, in order, and tell the kernel. Returns how many frames the TX ring took.

        Those are gone from the batch; what is left may be transmitted again or released. A packet that no
        interface of this MTU can send stops the batch there, and so does one without its last frame. Raises
        XskError when the socket is dead, or for a batch of another UMEM.
        """
        if batch.umem is not self.umem:
            raise self._error("transmit", None, "the batch lies in another UMEM; copy its packets")
        self._require_open()
        lib.xskd_complete(self.port)
        sent = int(lib.xskd_transmit(self.port, batch._descs + batch._start, len(batch)))
        batch._start += sent
        self._wake_tx()
        return sent

    def complete(self) -> int:
        """Take sent frames back and go on sending what waits. Returns how many frames came back."""
        self._require_open()
        done = int(lib.xskd_complete(self.port))
        self._wake_tx()
        return done

    def wait(self, timeout: float) -> bool:
        """Sleep until a packet has arrived, at most `timeout` seconds. True if one has.

        In copy mode poll() also sends what is on TX, and does not tell if the driver refuses a packet: where
        each loss must be counted, `complete()` until nothing is `unsent` before.
        Raises XskError when the socket is dead: poll() says nothing of it, and sleeps till the end.
        """
        self._refill()
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if poller.poll(timeout * 1000):
            return True
        self.probe()
        return False

    def died(self) -> XskError:
        """The error that ended the loop here, from `port.error`."""
        if self.port.error != errno.EBADMSG:
            gone = self.port.error == errno.ENXIO
            hint = "the socket is no longer bound: its device is gone" if gone else ""
            return self._error("wakeup", self.port.error, hint)
        ring, wrong = RINGS[self.port.corrupt], self.port.wrong
        hint = "its index cannot be"
        if wrong >= lib.XSKD_WRONG_ENTRIES:
            hint = f"{wrong} entries of rx and completion name no frame that the kernel has"
        hint += "; a bug of the driver or the kernel, and only new sockets help"
        return self._error(f"{ring} ring", self.port.error, hint)

    def wait_for_room(self, timeout: float) -> bool:
        """Sleep until the TX ring is at most half full, at most `timeout` seconds. True if it is.

        Frames that have been sent are taken back on the way, and the kernel is asked to go on. Raises
        XskError when the socket is dead.
        """
        self.complete()
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        if poller.poll(timeout * 1000):
            return True
        self.probe()
        return False

    def probe(self) -> None:
        """Ask the kernel whether the socket still has its device: nothing else tells an idle one.

        Raises XskError if not, or for any answer that is not known to pass: it is dead for good. A link that
        is down passes.
        """
        try:
            self._socket.recv(1, socket.MSG_DONTWAIT)  # copies nothing: the call only looks at the socket
        except OSError as error:
            if error.errno is not None and error.errno not in PASSING:
                self.port.error = error.errno
                self._check(error.errno)

    @property
    def unsent(self) -> int:
        """Frames submitted on TX that have not come back through the completion ring."""
        return int(self.port.tx_side)

    def statistics(self) -> Statistics:
        """The kernel's six counters of this socket, from when it was made. Raises XskError."""
        with self._call("getsockopt(XDP_STATISTICS)"):
            return read_statistics(self._socket)

    def fileno(self) -> int:
        """The descriptor, for select, poll, an XSKMAP or another process."""
        return self._socket.fileno()

    def close(self) -> None:
        """Unmap the rings and close the socket; the queue is free a little later (till then: EBUSY).

        Frames that were with the kernel stay out of use: for a new socket make a new UMEM.
        """
        if self.umem.shared_fd == self.fileno():
            self.umem.shared_fd = None
        self._forget_rings()
        for buffer in self._buffers:
            ffi.release(buffer)
        for mapped in self._maps:
            mapped.close()
        self._buffers, self._maps = [], []
        self._socket.close()
        self.port.fd = -1

    def __enter__(self) -> Socket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside ---------------------------------------------------------------------------------

    def _read_mode(self) -> None:
        with self._call("getsockopt(XDP_OPTIONS)"):
            answer = self._socket.getsockopt(lib.SOL_XDP, lib.XDP_OPTIONS, 4)
        self.zero_copy = bool(struct.unpack("=I", answer)[0] & lib.XDP_OPTIONS_ZEROCOPY)
        self.port.poll_sends = not self.zero_copy

    def _raise_tx_budget(self) -> None:
        """Let one call send more than 32 frames in copy mode, where the kernel knows how (since 6.18).

        An older one sends 32 a call and does not show them at once: then the loop calls for all of them.
        """
        budget = min(self.rings.tx, MAX_TX_BUDGET)
        if budget >= MIN_TX_BUDGET:
            try:
                self._socket.setsockopt(lib.SOL_XDP, lib.XDP_MAX_TX_SKB_BUDGET, budget)
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:
                    raise self._error("XDP_MAX_TX_SKB_BUDGET", error.errno, key="rings.tx") from error
                self.port.tx_shows_late = True

    def _map_rings(self) -> None:
        offsets = self._mmap_offsets()
        for ring, offset, page, size, entry, produces in (
            (lib.XSKD_FILL, offsets.fr, lib.XDP_UMEM_PGOFF_FILL_RING, self.rings.fill, 8, True),
            (lib.XSKD_RX, offsets.rx, lib.XDP_PGOFF_RX_RING, self.rings.rx, 16, False),
            (lib.XSKD_TX, offsets.tx, lib.XDP_PGOFF_TX_RING, self.rings.tx, 16, True),
            (lib.XSKD_COMPLETION, offsets.cr, lib.XDP_UMEM_PGOFF_COMPLETION_RING, self.rings.completion, 8,
             False),
        ):  # fmt: skip
            with self._call("mmap(ring)"):
                flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
                mapped = mmap.mmap(self.fileno(), offset.desc + size * entry, flags, offset=page)
            base = ffi.from_buffer("uint8_t[]", mapped, require_writable=True)
            self._maps.append(mapped)
            self._buffers.append(base)
            at = self.port.rings[ring]
            at.producer = ffi.cast("uint32_t *", base + offset.producer)
            at.consumer = ffi.cast("uint32_t *", base + offset.consumer)
            at.flags = ffi.cast("uint32_t *", base + offset.flags) if offset.flags else ffi.NULL
            at.entries = base + offset.desc
            at.size = size
            at.own = (at.producer if produces else at.consumer)[0]

    def _forget_rings(self) -> None:
        """Before and after its life a socket has rings without entries: C may look, and finds nothing."""
        for ring in self.port.rings:
            ring.producer = ring.consumer = self._no_rings
            ring.flags, ring.entries = ffi.NULL, ffi.NULL
            ring.size = ring.own = 0

    def _mmap_offsets(self) -> Any:
        with self._call("getsockopt(XDP_MMAP_OFFSETS)"):
            answer = self._socket.getsockopt(lib.SOL_XDP, lib.XDP_MMAP_OFFSETS, OFFSETS_WITH_FLAGS)
        return parse_mmap_offsets(answer)

    def _bind_zero_copy(self, flags: int, busy_timeout: float) -> bool:
        """Try zero-copy; False if the driver will not, with the reason in `zero_copy_refused`."""
        try:
            self._bind_retrying(lib.XDP_ZEROCOPY | flags, busy_timeout)
        except XskError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, 524):  # 524: ENOTSUPP, kernel only
                raise
            self.zero_copy_refused = error.errno
            return False
        return True

    def _bind_retrying(self, flags: int, busy_timeout: float, shared_fd: int | None = None) -> None:
        """bind(), again while the queue is busy: the last socket's close is finished in the background."""
        address = ffi.new("struct sockaddr_xdp *")
        address.sxdp_family = lib.AF_XDP
        address.sxdp_flags = flags
        address.sxdp_ifindex = self.ifindex
        address.sxdp_queue_id = self.queue
        address.sxdp_shared_umem_fd = shared_fd or 0
        deadline, pause = time.monotonic() + busy_timeout, 0.005
        while lib.xskd_bind(self.fileno(), address) < 0:
            if ffi.errno != errno.EBUSY or time.monotonic() + pause > deadline:
                advice = _bind_advice(ffi.errno, self.queue, flags, shared=shared_fd is not None)
                raise self._error("bind", ffi.errno, *advice)
            self.bind_retries += 1
            time.sleep(pause)
            pause = min(pause * 2, 0.2)

    def _wake_tx(self) -> None:
        self._check(lib.xskd_wakeup_tx(self.port))
        if self.busy_polling and self.zero_copy:
            # Preferring to poll, sendto() wakes no driver: it polls RX's interrupt, which may not be TX's.
            poller = select.poll()
            poller.register(self._socket, select.POLLOUT)
            poller.poll(0)

    def _refill(self) -> None:
        self._require_open()
        lib.xskd_complete(self.port)
        lib.xskd_refill(self.port)
        self._check(lib.xskd_wakeup_rx(self.port))

    def _has_packets(self) -> bool:
        rx = self.port.rings[lib.XSKD_RX]
        return bool(rx.producer[0] != rx.own)

    def _require_open(self) -> None:
        self._check(errno.EBADF if self.port.fd < 0 else 0)

    def _check(self, error: int) -> None:
        if error:
            gone, closed = "the socket is no longer bound: its device is gone", "the socket has been closed"
            raise self._error("wakeup", error, {errno.ENXIO: gone, errno.EBADF: closed}.get(error, ""))

    def _error(self, call: str, error: int | None, hint: str = "", key: str | None = None) -> XskError:
        if key is not None and not key.startswith("umem"):
            key = f"interfaces.{self.interface}.{key}"
        return XskError(call, interface=self.interface, queue=self.queue, errno=error, key=key, hint=hint)

    @contextlib.contextmanager
    def _call(self, call: str, *, key: str | None = None, hint: str = "") -> Iterator[None]:
        """An OSError inside becomes an XskError that names the call."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOBUFS and call == "XDP_UMEM_REG":
                hint = f"{self.umem.size} bytes exceed RLIMIT_MEMLOCK; raise it or grant CAP_IPC_LOCK"
            elif error.errno == errno.EINVAL and call == "XDP_UMEM_REG":
                hint = f"headroom {self.umem.headroom} leaves this kernel too little of a frame"
            raise self._error(call, error.errno, hint, key) from error


def make_socket(interface: str, queue: int, rings: Rings, frame_size: int) -> socket.socket:
    """An AF_XDP socket, not yet bound to anything; the names are for the error. Raises XskError.

    Needs CAP_NET_RAW. Its send buffer has room for a full TX ring: copy mode charges every frame to it, and
    too small a one shows as an endless EAGAIN. Without CAP_NET_ADMIN the system's limit applies, which is no
    error.
    """
    try:
        made = socket.socket(lib.AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        short = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        hint = "" if short else "this needs CAP_NET_RAW, and a kernel with CONFIG_XDP_SOCKETS"
        raise XskError(
            "socket(AF_XDP)", interface=interface, queue=queue, errno=error.errno, hint=hint
        ) from error
    charged = max(frame_size + SKB_OVERHEAD, mmap.PAGESIZE)  # a page for each further frame of a packet
    wanted = min(rings.tx * charged, MAX_SEND_BUFFER)
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, wanted)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wanted)
    return made


def read_statistics(made: socket.socket) -> Statistics:
    """XDP_STATISTICS of any AF_XDP socket. OSError if it is closed, XskError for an unknown answer."""
    return Statistics.parse(made.getsockopt(lib.SOL_XDP, lib.XDP_STATISTICS, STATISTICS_NEW))


def socket_of(fd: int) -> socket.socket:
    """The socket object of an XSK's descriptor, which it owns; told its family, as an XSK has no name."""
    return socket.socket(lib.AF_XDP, socket.SOCK_RAW, 0, fileno=fd)


def _ifindex(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        hint = "no such interface in this network namespace; `ip -br link` lists them"
        raise XskError("if_nametoindex", interface=interface, errno=error.errno, hint=hint) from error


def _bind_advice(error: int, queue: int, flags: int = 0, *, shared: bool = False) -> tuple[str, str | None]:
    """What an errno of bind means for the person who configured it, and the key to change."""
    too_long = "zero-copy cannot take the MTU with this frame size"
    unable = "virtio_net lacks VIRTIO_F_ACCESS_PLATFORM"
    invalid = f"queue {queue} does not exist, or "
    invalid += "another socket of this UMEM has it" if shared else f"{too_long}, or {unable}"
    if flags & lib.XDP_USE_SG:
        invalid += ", or the kernel is too old for XDP_USE_SG (Linux 6.6)"
    return {
        errno.EBUSY: (
            "the queue is held by another AF_XDP socket; `ss -f xdp -ap` says whose, if the kernel can",
            "queues",
        ),
        errno.EINVAL: (invalid, "queues"),
        errno.EOPNOTSUPP: ("the driver has no zero-copy on this queue", "mode"),
        errno.ENETDOWN: ("the interface is down; `ip link set IF up`", None),
        errno.ENODEV: ("the interface is gone", None),
        errno.EPERM: ("not permitted; the socket must be made with CAP_NET_RAW", None),
    }.get(error, ("", None))
