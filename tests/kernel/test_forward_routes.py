"""A Forwarder that routes, over veth: each packet leaves by the interface in front of it, one hop further.

What the XDP program would put in front of a packet is written here, into the frame while the packet waits in
RX: so that a test can leave it out, and say where packets go without any table. That the program fills it in
is for the tests of the program.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from frames import checksum
from xskd._forward import ffi, lib

from xskd.counters import DROPS

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

    from xskd.forward import Forwarder
    from xskd.xsk import Socket

META = 0x78736B64  # XSKD_META in bpf/xdp_prog.h
TURN = 48  # packets that go through at once

Where = Callable[[bytes], int | None]  # by which interface a packet leaves; None: nothing in front of it


def ipv4(number: int, length: int = 64, hops: int = 0) -> bytes:
    """Make an IPv4 packet with a number, as it is after so many hops."""
    head = [0x45, 0, length - 14, number & 0xFFFF, 0, 2 + number % 200 - hops, 253, 0, b"\xc6\x12\0\1"]
    address = b"\xc6\x13" + struct.pack("!H", number % 65536)
    fields = "!BBHHHBBH4s4s"
    head[7] = checksum(struct.pack(fields, *head, address))
    return b"\x08\0" + struct.pack(fields, *head, address)


def ipv6(number: int, length: int = 64, hops: int = 0) -> bytes:
    """Make an IPv6 packet with a number, as it is after so many hops."""
    addresses = bytes.fromhex("20010db8 00000000 00000000 00000001 20010db8 00000001 00000000")
    head = struct.pack("!IHBB", 6 << 28, length - 54, 253, 2 + number % 200 - hops)
    return b"\x86\xdd" + head + addresses + struct.pack("!I", number)


def packet(number: int, length: int = 64, egress: int | None = None) -> bytes:
    """Make a packet as it arrives, or as it leaves by the interface of an index."""
    made = (ipv6 if number % 3 == 0 else ipv4)(number, length, hops=0 if egress is None else 1)
    addresses = bytes.fromhex("020000000002 020000000001") if egress is None else addresses_of(egress)
    return (addresses + made + number.to_bytes(4, "big") * 400)[:length]


def addresses_of(egress: int) -> bytes:
    return bytes([2, 0, 0, 0, 9, egress, 2, 0, 0, 0, 8, egress])


def number_of(arrived: bytes) -> int:
    at = 50 if arrived[12] == 0x86 else 30
    return int.from_bytes(arrived[at : at + 4], "big") & 0xFFFF


def metadata(arrived: bytes, egress: int) -> bytes:
    """Make what the XDP program puts in front of a packet: struct xskd_route_meta."""
    four = arrived[12] == 0x08
    body = struct.pack("=HH", egress, 4 if four else 6) + addresses_of(egress)
    at = 30 if four else 50
    check = META ^ len(arrived) ^ int.from_bytes(arrived[at : at + 4], "little")
    for word in struct.unpack("<4I", body):
        check ^= word
    return struct.pack("<I", check) + body


def mark(member: Socket, where: Where) -> None:
    """Write metadata in front of all packets that wait in RX."""
    ring, view = member.port.rings[lib.XSKD_RX], member.umem.view
    entries: Any = ffi.cast("struct xdp_desc *", ring.entries)
    for index in range(ring.consumer[0], ring.producer[0]):
        entry = entries[index % ring.size]
        arrived = bytes(view[entry.addr : entry.addr + entry.len])
        egress = where(arrived)
        if egress is not None:
            made = metadata(arrived, egress)
            view[entry.addr - len(made) : entry.addr] = made


def waiting(member: Socket) -> int:
    ring = member.port.rings[lib.XSKD_RX]
    return int(ring.producer[0] - ring.consumer[0])


def through(net: Wire, forwarder: Forwarder, came_by: int, packets: Sequence[bytes], where: Where) -> None:
    """Send packets to one interface, say where they go, and let the loop do its work."""
    member = forwarder.sockets[came_by]

    def all_here() -> bool:
        return waiting(member) == len(some)

    def all_gone() -> bool:
        forwarder.run(0)
        return waiting(member) == 0

    for start in range(0, len(packets), TURN):
        some = packets[start : start + TURN]
        net.taps[came_by].send(some)
        assert net.eventually(all_here)
        mark(member, where)
        assert net.eventually(all_gone)


def dropped(forwarder: Forwarder, reason: str) -> int:
    return sum(int(member.port.counters.drops[DROPS.index(reason)]) for member in forwarder.sockets)


@pytest.mark.parametrize("attach", ["native", "generic"])
@pytest.mark.parametrize("frame_size", [2048, 4096])
def test_each_packet_leaves_by_its_own_interface(wire: MakeWire, attach: str, frame_size: int) -> None:
    net = wire(links=3)
    forwarder = net.forward("route", attach=attach, frame_size=frame_size)
    numbers = range(1, 600)
    lengths = {number: (64, 65, 128, 1500, 1514)[number % 5] for number in numbers}
    through(
        net,
        forwarder,
        0,
        [packet(number, lengths[number]) for number in numbers],
        lambda arrived: number_of(arrived) // 4 % 3,
    )
    for egress in range(3):
        wanted = [packet(number, lengths[number], egress) for number in numbers if number // 4 % 3 == egress]
        assert net.taps[egress].receive(len(wanted)) == wanted
    assert sum(dropped(forwarder, reason) for reason in DROPS) == 0


def test_all_directions_at_once_and_no_frame_is_missing(wire: MakeWire) -> None:
    net = wire(links=3)
    forwarder = net.forward("route")
    for round_ in range(20):
        numbers = range(1 + round_ * 40, 41 + round_ * 40)
        for came_by in range(3):
            through(
                net,
                forwarder,
                came_by,
                [packet(number) for number in numbers],
                lambda _, to=(came_by + 1 + round_ % 2) % 3: to,  # type: ignore[misc]
            )
        for egress in range(3):
            assert net.taps[egress].receive(40) == [packet(number, 64, egress) for number in numbers]
    assert forwarder.drain(1)
    assert forwarder.places()["quarantined"] == 0
    assert [int(member.port.counters.tx_completed) for member in forwarder.sockets] == [800] * 3


def test_a_packet_without_metadata_is_dropped_and_an_old_one_is_not_taken_for_its(wire: MakeWire) -> None:
    net = wire(links=3)
    forwarder = net.forward("route", frames=4096 + 2 * 1024)
    same = [packet(1)] * TURN
    for _ in range(100):  # so that all frames have had metadata for just such a packet
        through(net, forwarder, 0, same, lambda _: 1)
        assert len(net.taps[1].receive(TURN)) == TURN
    for _ in range(100):
        through(net, forwarder, 0, same, lambda _: None)
    assert dropped(forwarder, "no_metadata") == 100 * TURN
    assert net.taps[1].receive(1, timeout=0.05) == []


def test_an_egress_that_is_down_does_not_stop_the_others(wire: MakeWire) -> None:
    net = wire(links=3)
    forwarder = net.forward("route")
    net.link(net.dut, "eth2", "down")
    sent = [packet(number) for number in range(1, 4 * 1024)]
    through(net, forwarder, 0, sent, lambda arrived: 1 + number_of(arrived) % 2)
    wanted = [packet(number, 64, 2) for number in range(1, 4 * 1024) if number % 2]
    assert net.taps[2].receive(len(wanted)) == wanted
    assert dropped(forwarder, "tx_full") > 0
    net.up(net.dut, "eth2")


def test_the_mtu_of_the_egress_counts(wire: MakeWire) -> None:
    net = wire(links=3)
    forwarder = net.forward("route")
    forwarder.sockets[1].port.max_length = 1000
    for number, length in enumerate((1001, 1000, 1001, 999), start=1):
        through(net, forwarder, 0, [packet(number, length)], lambda _: 1)
        through(net, forwarder, 0, [packet(number, length)], lambda _: 2)
    assert dropped(forwarder, "oversize") == 2
    assert net.taps[1].receive(2) == [packet(2, 1000, 1), packet(4, 999, 1)]
    assert len(net.taps[2].receive(4)) == 4
