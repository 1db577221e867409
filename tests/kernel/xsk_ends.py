"""What an end of a wire does that is a socket of AF_XDP: sends and takes packets, of one frame or several.

It sees every byte: a raw socket would lose VLAN tags to its kernel. And it can say to the kernel what the
library never would, by descriptors as they are; then the library does not know where all frames are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from conftest import PATIENCE, Wire
from xskd._forward import ffi, lib

from xskd.xsk import Batch, Socket


def send(xsk: Socket, packets: Sequence[bytes]) -> None:
    """Transmit all of them, and see them completed; what is longer than a frame goes into several."""
    size = xsk.umem.frame_size
    parts = [
        (packet[at : at + size], at + size < len(packet))
        for packet in packets
        for at in range(0, len(packet), size)
    ]
    batch = xsk.umem.take(len(parts))
    assert len(batch) == len(parts), "too few free frames"
    for index, (part, continues) in enumerate(parts):
        batch.write(index, part, continues=continues)

    def sent() -> bool:
        xsk.transmit(batch)
        xsk.complete()
        return not batch and not xsk.unsent

    assert Wire.eventually(sent), "not all packets were sent"


def receive(xsk: Socket, count: int, timeout: float = PATIENCE) -> list[bytes]:
    """Take `count` packets, fewer if none comes for `timeout` seconds."""
    got: list[bytes] = []
    deadline = time.monotonic() + timeout
    while len(got) < count and time.monotonic() < deadline:
        xsk.wait(min(timeout, 0.2))
        with xsk.receive(count - len(got)) as batch:
            if batch:
                got += joined(batch)
                deadline = time.monotonic() + timeout
    return got


def joined(batch: Batch) -> list[bytes]:
    """The packets of a batch, those of several frames in one piece."""
    packets, packet = [], b""
    for index, part in enumerate(batch):
        packet += bytes(part)
        if not batch.continues(index):
            packets.append(packet)
            packet = b""
    return packets


def submit(xsk: Socket, *descriptors: tuple[int, int, int]) -> int:
    """Put descriptors (address, length, options) on TX as they are, without the library's own checks.

    Returns when the kernel has looked at all of them: 0, or the errno with which it stopped.
    """
    error = 0
    ring = xsk.port.rings[lib.XSKD_TX]
    entries = ffi.cast("struct xdp_desc *", ring.entries)
    for address, length, options in descriptors:
        entry = entries[ring.own & (ring.size - 1)]
        entry.addr, entry.len, entry.options = address, length, options
        ring.own += 1
    ring.producer[0] = ring.own

    def looked() -> bool:
        nonlocal error
        error = lib.xskd_wakeup_tx(xsk.port)
        return bool(error or ring.consumer[0] == ring.own)

    assert Wire.eventually(looked), "the kernel leaves descriptors on TX"
    return error


def completed(xsk: Socket) -> list[int]:
    """Take what has come back through the completion ring: the addresses of what `submit` has sent."""
    ring = xsk.port.rings[lib.XSKD_COMPLETION]
    addresses = ffi.cast("uint64_t *", ring.entries)
    came: list[int] = []
    while ring.own != ring.producer[0]:
        came.append(addresses[ring.own & (ring.size - 1)])
        ring.own += 1
    ring.consumer[0] = ring.own
    return came
