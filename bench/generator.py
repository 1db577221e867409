"""The load: one UDP frame, sent over and over by the kernel itself as fast as one core can.

    python -m bench.generator FRAME_BYTES [--addresses N --address A] [--ports N --port P] [...]

floods out of eth0 of the namespace it was started in, until SIGTERM. All of it is one system call that
lasts for ever, so no set-up falls into the window of a measurement. It must never be started outside a lab
namespace.

A load may have many destinations. Then the few instructions that send the frame also write a random one of
them into it; that costs the generator some nanoseconds, and it still offers several times what is forwarded.
"""

from __future__ import annotations

import argparse
import socket
import struct
from dataclasses import dataclass, fields

from bench import bpf
from lab import Topology

_FOREVER = 2**31 - 1  # frames: minutes, at any rate this can reach
_DISCARD = 9  # the port
_SOURCE = "gen0"  # where frames of many flows come from
_SHORT = 64  # bytes: what is left of a frame that is cut


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is offered; the counts are powers of two, and each address and port a multiple of its count.

    A `share` (of 32) of the frames is cut to 64 bytes and goes to `other_port`; the longer ones are such
    frames with a trailer behind the IP packet. `routed` frames go to the MAC address of the dut, a router.
    `flows` have many source ports, and after `open_flows` reach all queues; other loads reach the CPU's.
    """

    frame_bytes: int = 64
    address: str = Topology.ip_of(1)
    addresses: int = 1
    port: int = _DISCARD
    ports: int = 1
    routed: bool = False
    flows: bool = False
    share: int = 0
    other_port: int = 0

    def arguments(self) -> list[str]:
        """Return what the generator's command line says for it."""
        told = [str(self.frame_bytes)]
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "frame_bytes" and value != one.default:
                option = f"--{one.name.replace('_', '-')}"
                told += [option] if value is True else [option, str(value)]
        return told

    def program(self) -> bpf.Program:
        """Return the program that sends it, each frame as it shall be."""
        if self.share:
            return bpf.mixed(self.share, self.frame_bytes - _SHORT, self.other_port)
        if self.addresses == self.ports == 1 and not self.routed and not self.flows:
            return bpf.SEND_BACK
        return bpf.varied(
            bpf.PASS if self.flows else bpf.SEND_BACK,
            addresses=self.addresses,
            address=int.from_bytes(socket.inet_aton(self.address)),
            ports=self.ports,
            port=self.port,
            flows=self.flows,
            renewed=self.frame() if self.routed else b"",
        )

    def frame(self) -> bytes:
        """Return the frame to begin with: its program may change it."""
        return udp_frame(
            self.frame_bytes,
            # varied() wants the checksum of this one if it shall write others.
            destination=self.address if self.addresses == 1 else "0.0.0.0",
            port=self.port,
            to_dut=self.routed,
            trailer=self.frame_bytes - _SHORT if self.share else 0,
        )

    def send(self, interface: str, times: int) -> None:
        """Send that many frames from an interface of the namespace that the calling thread is in."""
        bpf.send_live(self.frame(), _SOURCE if self.flows else interface, times, self.program())


def open_flows(lab: Topology) -> None:
    """Let h0 send what comes in at an interface of its own out of eth0, each flow by one of its queues.

    An XDP frame sent to a veth goes to the queue of the CPU that sends it. One that is a packet of the
    stack's by then goes to the queue of its flow.
    """
    host = lab.hosts[0]
    lab.run(host, *f"ip link add {_SOURCE} type veth peer name {_SOURCE}p".split())
    for end in (_SOURCE, f"{_SOURCE}p"):
        lab.run(host, *f"ip link set {end} addrgenmode none up".split())
    lines = (
        "table netdev bench {",
        "chain ingress {",
        f'type filter hook ingress device "{_SOURCE}" priority 0; policy accept;',
        'fwd to "eth0"',
        "}",
        "}",
        "",
    )
    lab.run(host, "nft", "-f", "-", stdin="\n".join(lines))


def udp_frame(
    size: int,
    *,
    destination: str = Topology.ip_of(1),
    port: int = _DISCARD,
    to_dut: bool = False,
    trailer: int = 0,
) -> bytes:
    """Build a valid UDP over IPv4 frame from h0 to h1, or to the dut, that many bytes long.

    The length counts the Ethernet header; the last `trailer` bytes are none of the IP packet's.
    """
    there = Topology.mac_of(0, dut_side=True) if to_dut else Topology.mac_of(1)
    macs = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in (there, Topology.mac_of(0)))
    ips = b"".join(socket.inet_aton(ip) for ip in (Topology.ip_of(0), destination))
    length = size - trailer - 14
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, socket.IPPROTO_UDP, 0) + ips
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    udp = struct.pack("!HHHH", _DISCARD, port, length - 20, 0)  # zero: no UDP checksum, as IPv4 allows
    return (macs + b"\x08\x00" + header + udp).ljust(size, b"\0")


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def read(arguments: list[str] | None = None) -> Load:
    """Read a command line back into the load it describes."""
    parser = argparse.ArgumentParser(prog="bench.generator")
    parser.add_argument("frame_bytes", type=int)
    for one in fields(Load)[1:]:
        option = f"--{one.name.replace('_', '-')}"
        if one.default is False:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(one.default), default=one.default)
    return Load(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    read().send("eth0", _FOREVER)
