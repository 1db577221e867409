"""Frames of protocols for the tests of rules: right in all lengths, and numbered where there is room."""

from __future__ import annotations

import socket
import struct

HEAD = bytes.fromhex("020000000002 020000000001")


def udp(port: int, number: int = 0, *, source: str = "192.0.2.1", size: int = 64) -> bytes:
    """Make an IPv4 packet from port 9 to this port, `size` bytes with its Ethernet header."""
    payload = number.to_bytes(4, "big").ljust(size - 42, b"\0")
    body = struct.pack("!HHHH", 9, port, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton("192.0.2.2")
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0) + addresses
    return HEAD + b"\x08\x00" + ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + body


def cut(packet: bytes, length: int) -> bytes:
    """Make it end early: whatever it says of its length is a lie then."""
    return packet[:length]


def checksum(data: bytes) -> int:
    """RFC 1071's, of bytes in which its own place is 0."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
