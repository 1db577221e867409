"""What is lost when a socket is given up: the packets in its RX and TX rings, so that they can be counted.

A worker that ends in order leaves none. One whose sockets themselves are the problem, or whose successor
could not adopt them, does; and nobody but the supervisor is there then to look. This module must never write
to a ring, nor look at one on which somebody still works.
"""

from __future__ import annotations

import mmap
import socket
import struct
from typing import Any

from xskd._forward import lib
from xskd.errors import XskError
from xskd.uapi import OFFSETS_WITH_FLAGS, Rings, parse_mmap_offsets

INDEX = struct.Struct("=I")
DESC = struct.Struct("=QII")  # struct xdp_desc: address, length, options


def packets_left(made: socket.socket, rings: Rings) -> int:
    """Packets in the RX and TX rings of any AF_XDP socket with rings of these sizes.

    0 where it has no rings yet, and where the kernel does not map those of a bound socket (before 6.4).
    """
    try:
        answer = made.getsockopt(lib.SOL_XDP, lib.XDP_MMAP_OFFSETS, OFFSETS_WITH_FLAGS)
        offsets = parse_mmap_offsets(answer)
        return _packets_on(made, offsets.rx, lib.XDP_PGOFF_RX_RING, rings.rx) + _packets_on(
            made, offsets.tx, lib.XDP_PGOFF_TX_RING, rings.tx
        )
    except (OSError, XskError):
        return 0


def _packets_on(made: socket.socket, offset: Any, page: int, size: int) -> int:
    """Packets on one ring of descriptors: each ends with one that none follows."""
    length = offset.desc + size * DESC.size
    with mmap.mmap(made.fileno(), length, mmap.MAP_SHARED, mmap.PROT_READ, offset=page) as ring:
        (begin,), (end,) = (INDEX.unpack_from(ring, at) for at in (offset.consumer, offset.producer))
        used = (end - begin) % (1 << 32)
        if used > size:  # nothing that anybody could have put there
            return 0
        slots = ((begin + n) % size for n in range(used))
        descs = (DESC.unpack_from(ring, offset.desc + slot * DESC.size) for slot in slots)
        return sum(not options & lib.XDP_PKT_CONTD for _, _, options in descs)
