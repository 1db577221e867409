"""The blocks around the packets of a pcapng file; the packets' own are made in csrc/capture.c.

After draft-ietf-opsawg-pcapng, in the machine's byte order as the format has it. Libraries that write this
format make an object of every packet, which is too slow by far here, and the rest of it is this page.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

SECTION, INTERFACE, STATISTICS = 0x0A0D0D0A, 1, 5  # types of blocks
BYTE_ORDER = 0x1A2B3C4D
ETHERNET = 1  # LINKTYPE_ETHERNET
NANOSECONDS = 9  # digits after the point


@dataclass(frozen=True)
class Interface:
    """Where packets were seen."""

    name: str
    description: str


def head(interfaces: Iterable[Interface], snaplen: int, program: str, expression: str | None) -> bytes:
    """The start of a file that `program` writes: what packets of it are numbered after."""
    section = struct.pack("=IHHq", BYTE_ORDER, 1, 0, -1) + _options({4: program.encode()})
    return _block(SECTION, section) + b"".join(
        _block(INTERFACE, struct.pack("=HHI", ETHERNET, 0, snaplen) + _description(interface, expression))
        for interface in interfaces
    )


def _description(interface: Interface, expression: str | None) -> bytes:
    options = {2: interface.name.encode(), 3: interface.description.encode(), 9: bytes([NANOSECONDS])}
    if expression is not None:
        options[11] = b"\0" + expression.encode()  # 0: in libpcap's language
    return _options(options)


def statistics(interface: int, began: int, ended: int, *, received: int, lost: int, accepted: int) -> bytes:
    """Counters of one interface, for the end of a file; times in nanoseconds.

    `received` are all packets, `accepted` those that the filter let pass, `lost` those of them that are not
    in the file for want of room.
    """
    options = {2: _time(began), 3: _time(ended)}
    options |= {4: struct.pack("=Q", received), 5: struct.pack("=Q", lost), 6: struct.pack("=Q", accepted)}
    return _block(STATISTICS, struct.pack("=I", interface) + _time(ended) + _options(options))


def _time(nanoseconds: int) -> bytes:
    return struct.pack("=II", nanoseconds >> 32, nanoseconds & 0xFFFFFFFF)


def _options(values: dict[int, bytes]) -> bytes:
    """Options by code, and the mark of their end."""
    packed = (struct.pack("=HH", code, len(value)) + _padded(value) for code, value in values.items())
    return b"".join(packed) + struct.pack("=HH", 0, 0)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + length + body + length
