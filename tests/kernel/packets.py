"""Reads pcapng files back for the tests, by the format's description and not by what xskd does."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Interface:
    name: str
    description: str
    digits: int  # of a second's fraction


@dataclass
class Packet:
    interface: str
    time_ns: int
    direction: str
    original: int
    data: bytes


@dataclass
class Capture:
    interfaces: list[Interface] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)


def read(file: Path) -> Capture:
    """Read a whole file; whatever is not as it should be fails the test."""
    seen = Capture()
    for kind, body in _blocks(file.read_bytes()):
        if kind == 1:
            assert struct.unpack_from("<H", body) == (1,)
            options = _options(body[8:])
            seen.interfaces.append(Interface(options[2].decode(), options[3].decode(), options[9][0]))
        elif kind == 6:
            number, high, low, kept, original = struct.unpack_from("<IIIII", body)
            data, rest = body[20 : 20 + kept], body[20 + kept + -kept % 4 :]
            direction = {1: "in", 2: "out"}[struct.unpack("<I", _options(rest)[2])[0]]
            name = seen.interfaces[number].name
            seen.packets.append(Packet(name, high << 32 | low, direction, original, data))
        elif kind == 5:
            name, options = seen.interfaces[struct.unpack_from("<I", body)[0]].name, _options(body[12:])
            (seen.received[name],), (seen.lost[name],) = (struct.unpack("<Q", options[n]) for n in (4, 5))
        else:
            assert kind == 0x0A0D0D0A and body[:4] == bytes.fromhex("4d3c2b1a"), hex(kind)
    assert len(seen.received) == len({interface.name for interface in seen.interfaces}), "no end"
    return seen


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0 and struct.unpack_from("<I", data, at + length - 4) == (length,)
        yield kind, data[at + 8 : at + length - 4]
        at += length


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while True:
        code, length = struct.unpack_from("<HH", data, at)
        if code == 0:
            assert at + 4 == len(data)
            return found
        found[code] = data[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4
