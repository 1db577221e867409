"""The load: one UDP frame, sent over and over by the kernel itself as fast as one core can.

    python -m bench.generator FRAME_BYTES

floods out of eth0 of the namespace it was started in, until SIGTERM. All of it is one system call that
lasts for ever, so no set-up falls into the window of a measurement. It must never be started outside a lab
namespace.
"""

import socket
import struct
import sys

from bench.bpf import send_live
from lab import Topology

_FOREVER = 2**31 - 1  # frames: minutes, at any rate this can reach
_DISCARD = 9  # the port


def udp_frame(size: int) -> bytes:
    """Build a valid UDP over IPv4 frame from h0 to h1, that many bytes long with its Ethernet header."""
    macs = b"".join(bytes.fromhex(Topology.mac_of(host).replace(":", "")) for host in (1, 0))
    ips = b"".join(socket.inet_aton(Topology.ip_of(host)) for host in (0, 1))
    header = struct.pack("!BBHHHBBH", 0x45, 0, size - 14, 0, 0, 64, socket.IPPROTO_UDP, 0) + ips
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    udp = struct.pack("!HHHH", _DISCARD, _DISCARD, size - 34, 0)  # zero: no UDP checksum, as IPv4 allows
    return (macs + b"\x08\x00" + header + udp).ljust(size, b"\0")


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


if __name__ == "__main__":
    send_live(udp_frame(int(sys.argv[1])), "eth0", _FOREVER)
