"""Packets that nobody should send, byte for byte through every kind of path.

They come from sockets that see every byte and send anything, on a build that poisons frames: see poison.py.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import WINDOW, Wire
from daemon import SMALL, connect, paths, running, total
from frames import checksum
from poison import HEAD, NOISE, POISON, Ends, Poisoned, compare, of_length, poison_in, poisoned, well
from routed import routers

from lab import rule_model, rule_packets
from xskd import config
from xskd.rules import RuleSet
from xskd.xdp import Attach

if TYPE_CHECKING:
    from conftest import MakeWire

MTU = 9000
Times = Callable[[int, int], int]
__all__ = ["poisoned"]


# ---- what is sent -----------------------------------------------------------------------------------------


def clean(packet: bytes) -> bytes:
    """Take the poison's byte out of it."""
    return packet.replace(bytes([POISON]), b"\0")


def lengths(longest: int, step: int) -> list[int]:
    """All lengths that Ethernet can have, or one of `step` and those next to a boundary of something."""
    edges = {
        boundary + by
        for boundary in (14, 60, 64, 1514, 2048, 3520, 3840, 4096, 7680, 8192)
        for by in (-1, 0, 1)
    }
    return [n for n in range(14, longest + 1) if n % step == 0 or n in edges or n > longest - 3]


def ether_types(step: int) -> list[bytes]:
    """Every EtherType, and what 802.3 takes for a length."""
    return [
        clean(HEAD + kind.to_bytes(2, "big") + NOISE[kind % 99 :][:46]) for kind in range(0, 1 << 16, step)
    ]


def vlan_stacks() -> list[bytes]:
    tags = [struct.pack("!HH", tpid, 0xE000 | tag) for tag, tpid in enumerate((0x8100, 0x88A8, 0x9100) * 20)]
    whole = [HEAD + b"".join(tags[:depth]) + b"\x08\x00" + NOISE[:60] for depth in range(60)]
    return [
        clean(packet[:end])
        for packet in whole
        for end in (len(packet), len(packet) - 59, len(packet) - 62)
        if end > 13
    ]


def liars(pick: random.Random, count: int) -> list[bytes]:
    """IPv4 and IPv6 packets each of whose fields may be anything: lengths, offsets, chains, fragments."""
    made = []
    for _ in range(count):
        packet = bytearray(rule_packets.at_random(pick))
        for _ in range(pick.randint(0, 4)):
            packet[pick.randrange(12, len(packet))] = pick.choice(
                (0, 1, 4, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0xFF)
            )
        made.append(clean(bytes(packet)))
    return [packet for packet in made if len(packet) >= 14]


def noise(pick: random.Random, count: int, longest: int) -> list[bytes]:
    return [clean(pick.randbytes(pick.randint(14, longest))) for _ in range(count)]


def shapes(step: int) -> list[bytes]:
    """Every shape of rule_packets, cut off at every length, or at one of so many."""
    packets = [clean(packet) for _, packet in rule_packets.every_length() if len(packet) >= 14]
    return packets[::step]


def hostile(times: Times, longest: int = 1514) -> list[bytes]:
    pick = random.Random(42)
    many = times(400, 100_000)
    return [*vlan_stacks(), *shapes(times(13, 1)), *liars(pick, many), *noise(pick, many // 2, longest)]


# ---- connect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attach", ["native", "generic"])
def test_all_of_it_passes_connect_unchanged(
    wire: MakeWire, tmp_path: Path, poisoned: Poisoned, times: Times, attach: Attach
) -> None:
    net = wire()
    text = connect(interface=f"attach: {attach}, rings: {SMALL}")
    with running(net, tmp_path, text, poisoned) as daemon:
        assert poison_in(daemon) > 1_000_000, "this build does not poison"
        ends = Ends(net)
        sent = [of_length(length) for length in lengths(1514, times(7, 1))]
        sent += hostile(times) if attach == "native" else ether_types(times(64, 1))
        ends.through(sent, sent)
        well(daemon, len(sent))


@pytest.mark.parametrize("frame_size", [2048, 4096])
def test_every_length_of_jumbo_frames_passes_unchanged(
    wire: MakeWire, tmp_path: Path, poisoned: Poisoned, times: Times, frame_size: int
) -> None:
    net = wire(mtu=MTU)
    with running(net, tmp_path, connect(rest=f"umem: {{frame_size: {frame_size}}}"), poisoned) as daemon:
        ends = Ends(net, several=True)
        sent = [of_length(length) for length in lengths(MTU + 14, times(61, 1))]
        random.Random(1).shuffle(sent)  # so that short ones come in frames of long ones
        sent += noise(random.Random(2), times(50, 5_000), MTU + 14)
        ends.through(sent, sent)
        well(daemon, len(sent))


def test_what_is_shorter_than_an_ethernet_header_does_not_pass(
    wire: MakeWire, tmp_path: Path, poisoned: Poisoned
) -> None:
    """Linux 6.18 lets none through: a raw socket is answered EINVAL; of a socket of AF_XDP, 0 bytes are an
    invalid descriptor, and 1 to 13 are refused as if by the driver. Where a kernel does, they are undersize.
    """
    net = wire()
    with running(net, tmp_path, connect(), poisoned) as daemon:
        by_raw_socket = []
        for length in range(15):
            with suppress(OSError):
                net.taps[0].socket.send(of_length(14)[:length])
                by_raw_socket.append(length)
        ends = Ends(net)
        by_af_xdp = {length: ends.raw(length) for length in range(15)}
        print(f"raw socket: {by_raw_socket}, AF_XDP: {by_af_xdp}")
        last = of_length(60)
        ends.send(0, [last])
        arrived = ends.receive(1, 2)
        assert arrived == [of_length(14), last]
        let_through = [length for length in by_raw_socket if length < 14]
        let_through += [length for length, told in by_af_xdp.items() if told == "sent" and length < 14]
        undersize = total(daemon.metrics(), "xskd_dropped_packets", reason="undersize", interface="eth1")
        assert undersize <= len(let_through)
        assert total(daemon.metrics(), "xskd_frames_unaccounted") == 0


# ---- rules, reflect, route ------------------------------------------------------------------------------


RULES = f"""
interfaces:
  eth1:
    rings: {SMALL}
    rules:
      - {{name: fragments, fragment: true, verdict: drop}}
      - {{name: tagged, vlan: 1-4094, verdict: drop}}
      - {{name: syn, protocol: tcp, tcp_flags: syn !ack, verdict: drop}}
      - {{name: ports, protocol: udp, destination_port: [53, 8000-8100], verdict: redirect}}
      - {{name: net, source: [10.0.0.0/24, "2001:db8::/32"], verdict: drop}}
      - {{name: ping, protocol: icmp, icmp_type: echo-request, verdict: pass}}
    default: redirect
  eth2: {{rings: {SMALL}}}
paths: {{wire: {{connect: [eth1, eth2]}}}}
"""


def test_rules_let_through_what_they_should_and_it_is_unchanged(
    wire: MakeWire, tmp_path: Path, poisoned: Poisoned, times: Times
) -> None:
    """What they should is what lab/rule_model.py says, which was written from the documentation."""
    net = wire()
    rules = config.parse(RULES, "x.yaml").rules_of("eth1")
    sent = hostile(times) + ether_types(times(512, 1))
    answers = [answer(rules, packet) for packet in sent]
    assert {"redirect", "drop", "pass"} == set(answers)
    with running(net, tmp_path, RULES, poisoned) as daemon:
        expected = [packet for packet, told in zip(sent, answers, strict=True) if told == "redirect"]
        ends = Ends(net)
        passes(ends, sent, answers)
        well(daemon, len(expected))
        metrics = daemon.metrics()
        for verdict, told in (("dropped", "drop"), ("passed", "pass"), ("redirected", "redirect")):
            counted = total(metrics, "xskd_xdp_verdicts", interface="eth1", verdict=verdict)
            assert counted == answers.count(told), verdict


def answer(rules: RuleSet, packet: bytes) -> str:
    place, _ = rule_model.first_match(rules, packet)
    return rules.rules[place].verdict if place < len(rules.rules) else rules.default


def passes(ends: Ends, sent: Sequence[bytes], answers: Sequence[str]) -> None:
    """Send all of it, a window at a time; those that are to be redirected arrive."""
    for start in range(0, len(sent), WINDOW // 2):
        window = slice(start, start + WINDOW // 2)
        told = zip(sent[window], answers[window], strict=True)
        expected = [packet for packet, verdict in told if verdict == "redirect"]
        ends.send(0, sent[window])
        compare(ends.receive(1, len(expected)), expected)
    assert ends.receive(1, 1, 0.1) == []


def test_reflect_swaps_the_addresses_and_nothing_else(
    wire: MakeWire, tmp_path: Path, poisoned: Poisoned, times: Times
) -> None:
    net = wire(links=1)
    text = paths("echo: {reflect: eth1}", "eth1", interface=f"default: redirect, rules: [], rings: {SMALL}")
    with running(net, tmp_path, text, poisoned) as daemon:
        ends = Ends(net)
        sent = hostile(times) + ether_types(times(256, 1))
        ends.through(sent, [net.swapped(packet) for packet in sent], to=0)
        well(daemon)


@contextmanager
def routed_ends(net: Wire) -> Iterator[Ends]:
    """Make a router of the dut first, whose neighbours are known for good: the ends' kernels see nothing."""
    made = routers(net)
    for host in range(2):
        for family in (4, 6):
            address, mac = made.address(host, family), net.mac_of(host)
            dev = net.dut_devs[host]
            net.run(net.dut, "ip", "neigh", "replace", address, "lladdr", mac, "dev", dev, "nud", "permanent")
    yield Ends(net)


def test_route_forwards_what_is_routable_and_changes_what_a_router_does(
    wire: MakeWire, tmp_path: Path, poisoned: Poisoned, times: Times
) -> None:
    """What arrives is a packet that was sent, but for addresses, TTL and checksum; or the kernel's own."""
    net = wire()
    pick = random.Random(7)
    sent = [to_router(net, pick, packet) for packet in hostile(times) + shapes(times(29, 3))]
    text = paths("lan: {route: [eth1, eth2]}", "eth1", "eth2")
    with routed_ends(net) as ends, running(net, tmp_path, text, poisoned) as daemon:
        known = {essence(packet) for packet in sent}
        arrived = []
        for start in range(0, len(sent), WINDOW // 2):
            ends.send(0, sent[start : start + WINDOW // 2])
            arrived += ends.receive(1, 10_000, 0.02)
        arrived += ends.receive(1, 10_000, 0.5)
        for packet in filterfalse(own, arrived):
            assert POISON not in but_checksum(packet), packet.hex()
            assert essence(packet) in known, packet.hex()
        assert len(arrived) > len(sent) // 20
        redirected = total(daemon.metrics(), "xskd_xdp_verdicts", interface="eth1", verdict="redirected")
        assert 0 < redirected <= len(arrived)
        well(daemon)


def to_router(net: Wire, pick: random.Random, packet: bytes) -> bytes:
    """Address it to the router, and most of what is IP to the other host, with a right checksum."""
    macs = bytes.fromhex((net.mac_of(0, dut_side=True) + net.mac_of(0)).replace(":", ""))
    made = bytearray(macs + packet[12:])
    if made[12:14] == b"\x08\x00" and len(made) >= 34 and pick.random() < 0.9:
        made[26:34] = socket.inet_aton("10.99.1.2") + socket.inet_aton("10.99.2.2")
        made[24:26] = b"\0\0"
        header = bytes(made[14 : 14 + max(20, 4 * (made[14] & 15))])
        made[24:26] = checksum(header).to_bytes(2, "big")
    elif made[12:14] == b"\x86\xdd" and len(made) >= 54 and pick.random() < 0.9:
        made[22:54] = socket.inet_pton(10, "fd99:1::2") + socket.inet_pton(10, "fd99:2::2")
    return clean(bytes(made))


def essence(packet: bytes) -> bytes:
    """All of a packet that a router does not change; the padding behind it, which the kernel may cut, too."""
    made = bytearray(packet[12:])
    if made[:2] == b"\x08\x00" and len(made) >= 14:
        made[10:11], made[12:14] = b"\0", b"\0\0"  # TTL, checksum
        options = max(4 * (made[2] & 15) - 20, 0)  # the kernel clears what stands behind their end
        made[22 : 22 + options] = bytes(len(made[22 : 22 + options]))
        made = made[: 2 + int.from_bytes(made[4:6], "big")]
    elif made[:2] == b"\x86\xdd" and len(made) >= 10:
        made[9:10] = b"\0"  # hop limit
        made = made[: 42 + int.from_bytes(made[6:8], "big")]
    return bytes(made)


def but_checksum(packet: bytes) -> bytes:
    """All but its addresses and the checksum that a router makes anew, which may have any byte."""
    return packet[14:24] + packet[26:] if packet[12:14] == b"\x08\x00" else packet[14:]


def own(packet: bytes) -> bool:
    """Is it of the router itself: neighbour discovery, or an error about a packet?"""
    source = packet[26:30] if packet[12:14] == b"\x08\x00" else packet[22:38]
    gateways = (
        socket.inet_aton("10.99.2.1"),
        socket.inet_pton(10, "fd99:2::1"),
        socket.inet_pton(10, "fe80::1"),
    )
    return packet[12:14] == b"\x08\x06" or source in gateways or source[:2] == b"\xfe\x80"
