"""Packets of every shape, and rules that hit them: by hand, and at random from the same few values."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence

from xskd.rules import Answer, Fragment, Ranges, Rule, RuleSet

MACS = bytes.fromhex("020000000002020000000001")
VLANS = (0, 1, 5, 10, 4095)
IPV4 = tuple(bytes(map(int, text.split("."))) for text in (
    "0.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.0", "10.255.255.255", "11.0.0.0", "192.168.7.9",
    "224.0.0.1", "255.255.255.255",
))  # fmt: skip
IPV6 = tuple(bytes.fromhex(text) for text in (
    "00" * 16, "00" * 15 + "01", "20010db8" + "00" * 12, "20010db8" + "00" * 11 + "01",
    "20010db8" + "ff" * 12, "20010db9" + "00" * 12, "fe80" + "00" * 13 + "07",
    "20010db8000000010000000000000005", "ff" * 16,
))  # fmt: skip
PREFIXES = (
    "0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "10.0.0.0/31", "192.168.0.0/16", "128.0.0.0/1",
    "255.255.255.255/32", "::/0", "2001:db8::/32", "2001:db8::/64", "2001:db8::1/128", "2001:db8:0:1::/64",
    "fe80::/10", "8000::/1", "::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
)  # fmt: skip
PORTS = (0, 22, 53, 80, 443, 8000, 8050, 8100, 65535)
PROTOCOLS = (6, 17, 1, 58, 132, 33, 136, 47, 50, 59)
FLAGS = (0x02, 0x12, 0x10, 0x04, 0x01, 0x29, 0xFF, 0x00)
ICMP_TYPES = (0, 3, 8, 128, 133, 135, 137, 255)
ETHER_TYPES = (0x0806, 0x88CC, 0x0026, 0x8863, 0xFFFF)
EXTENSIONS = (0, 43, 60, 51, 135, 139, 140)


def transport(
    protocol: int, source: int = 1234, destination: int = 53, flags: int = 2, kind: int = 8
) -> bytes:
    """The header of a protocol, with some bytes behind it."""
    ports = struct.pack("!HH", source, destination)
    if protocol == 6:
        return ports + struct.pack("!IIBBHHH", 1, 2, 0x50, flags, 3, 4, 5) + b"tcp"
    if protocol in (17, 136):
        return ports + struct.pack("!HH", 12, 0) + b"udp!"
    if protocol in (132, 33):
        return ports + b"\0" * 8 + b"more"
    if protocol in (1, 58):
        return bytes([kind, 0]) + b"\0" * 6 + b"ping"
    return b"something else"


def ethernet(ether_type: int, payload: bytes, tags: Sequence[tuple[int, int]] = ()) -> bytes:
    """A frame with VLAN tags, each (TPID, VID with priority)."""
    tagged = b"".join(struct.pack("!HH", tpid, control) for tpid, control in tags)
    return MACS + tagged + struct.pack("!H", ether_type) + payload


def ipv4(
    payload: bytes,
    protocol: int,
    source: bytes = IPV4[1],
    destination: bytes = IPV4[3],
    *,
    options: int = 0,
    place: int = 0,
    total: int | None = None,
    version: int = 4,
    header: int | None = None,
) -> bytes:
    """An IPv4 packet; what lies, lies by an argument."""
    words = 5 + options if header is None else header
    total = 20 + 4 * options + len(payload) if total is None else total
    fixed = struct.pack("!BBHHHBBH", version << 4 | words, 0, total & 0xFFFF, 7, place, 64, protocol, 0)
    return fixed + source + destination + b"\1" * 4 * options + payload


def ipv6(payload: bytes, protocol: int, source: bytes = IPV6[3], destination: bytes = IPV6[7], *,
         length: int | None = None, version: int = 6) -> bytes:  # fmt: skip
    """An IPv6 packet."""
    length = len(payload) if length is None else length
    return struct.pack("!IHBB", version << 28, length & 0xFFFF, protocol, 64) + source + destination + payload


def extension(kind: int, following: int, *, units: int = 0, place: int = 0) -> bytes:
    """An extension header of 8 bytes and `units` more of them; `place` is a fragment's."""
    if kind == 44:
        return struct.pack("!BBHI", following, units, place, 99)
    if kind == 51:  # in words of 4 bytes, less 2
        return (
            bytes([following, units]) + b"\0" * (4 * (units + 2) - 2)
            if units
            else bytes([following, 0]) + b"\0" * 6
        )
    return bytes([following, units]) + b"\0" * (8 * (units + 1) - 2)


def chain(kinds: Sequence[int], protocol: int, payload: bytes, **given: int) -> tuple[int, bytes]:
    """Extension headers in front of a protocol: what the IPv6 header names, and its payload."""
    following, made = protocol, payload
    for kind in reversed(kinds):
        place = given.get("place", 0) if kind == 44 else 0
        made = extension(kind, following, units=given.get("units", 0), place=place) + made
        following = kind
    return following, made


def by_hand() -> Iterator[tuple[str, bytes]]:
    """Every shape once, with a name."""
    udp, tcp = transport(17), transport(6)
    tagged = ((0x8100, 5),), ((0x88A8, 0xE005), (0x8100, 10)), ((0x88A8, 1), (0x8100, 5), (0x8100, 10))
    for protocol in PROTOCOLS:
        yield f"IPv4 {protocol}", ethernet(0x0800, ipv4(transport(protocol), protocol))
        yield f"IPv6 {protocol}", ethernet(0x86DD, ipv6(transport(protocol), protocol))
    for tags in tagged:
        yield f"{len(tags)} tags, IPv4", ethernet(0x0800, ipv4(udp, 17), tags)
        yield f"{len(tags)} tags, IPv6", ethernet(0x86DD, ipv6(tcp, 6), tags)
        yield f"{len(tags)} tags, ARP", ethernet(0x0806, b"\0" * 28, tags)
    for ether_type in ETHER_TYPES:
        yield f"EtherType {ether_type:#x}", ethernet(ether_type, b"\0" * 46)
    for options in (1, 5, 10):
        yield f"{options} words of options", ethernet(0x0800, ipv4(tcp, 6, options=options))
    for place, what in ((0x2000, "first"), (0x2001, "middle"), (0x0005, "last"), (0x4000, "do not")):
        yield f"IPv4 {what} fragment", ethernet(0x0800, ipv4(udp, 17, place=place))
    yield "IPv4 later fragment of 4 bytes", ethernet(0x0800, ipv4(b"abcd", 6, place=3))
    yield "IPv4 first fragment of 4 bytes", ethernet(0x0800, ipv4(b"abcd", 6, place=0x2000))
    for place, what in ((1, "first"), (9, "middle"), (8, "last"), (0, "atomic")):
        kind, payload = chain((44,), 17, udp, place=place)
        yield f"IPv6 {what} fragment", ethernet(0x86DD, ipv6(payload, kind))
    kind, payload = chain((44, 60), 17, udp, place=8)
    yield "IPv6 later fragment that begins with an extension header", ethernet(0x86DD, ipv6(payload, kind))
    for kinds in ((0,), (43, 60), (51,), (0, 60, 43, 44, 51, 135, 139, 140), (0,) * 8, (0,) * 9, (60,) * 12):
        for units in (0, 2):
            kind, payload = chain(kinds, 6, tcp, units=units)
            yield f"IPv6 behind {kinds}, {units} more", ethernet(0x86DD, ipv6(payload, kind))
    yield "IPv6 no next header", ethernet(0x86DD, ipv6(b"", 59))
    yield "IPv6 hop-by-hop longer than the packet", ethernet(0x86DD, ipv6(b"\x06\xff" + b"\0" * 40, 0))
    for total in (0, 19, 20, 27, 28, 200):
        yield f"IPv4 total length {total}", ethernet(0x0800, ipv4(udp, 17, total=total) + b"\0" * 18)
    for length in (0, 4, 8, 11, 12, 200):
        yield f"IPv6 payload length {length}", ethernet(0x86DD, ipv6(udp, 17, length=length) + b"\0" * 18)
    for header in (0, 4, 15):
        yield f"IPv4 header of {header} words", ethernet(0x0800, ipv4(udp, 17, header=header))
    yield "IPv4 of version 6", ethernet(0x0800, ipv4(udp, 17, version=6))
    yield "IPv6 of version 4", ethernet(0x86DD, ipv6(udp, 17, version=4))


def every_length() -> Iterator[tuple[str, bytes]]:
    """Those, cut off at every length."""
    for name, packet in by_hand():
        for length in range(len(packet) + 1):
            yield f"{name}, {length} bytes", packet[:length]


def at_random(pick: random.Random) -> bytes:
    """One packet, right in most ways."""
    protocol = pick.choice(PROTOCOLS)
    payload = transport(
        protocol, pick.choice(PORTS), pick.choice(PORTS), pick.choice(FLAGS), pick.choice(ICMP_TYPES)
    )
    if pick.random() < 0.05:
        payload = payload[: pick.randrange(len(payload))]
    tags = [
        (pick.choice((0x8100, 0x88A8)), pick.choice(VLANS) | pick.choice((0, 0xE000)))
        for _ in range(pick.choice((0, 0, 0, 0, 1, 1, 2, 3)))
    ]
    kind = pick.random()
    if kind < 0.45:
        packet = ethernet(0x0800, _random_ipv4(pick, payload, protocol), tags)
    elif kind < 0.9:
        packet = ethernet(0x86DD, _random_ipv6(pick, payload, protocol), tags)
    else:
        packet = ethernet(pick.choice(ETHER_TYPES), pick.randbytes(pick.randrange(60)), tags)
    if pick.random() < 0.1:
        packet = packet[: pick.randrange(14, len(packet) + 1)]
    return packet + b"\0" * max(0, 60 - len(packet)) if pick.random() < 0.5 else packet


def _random_ipv4(pick: random.Random, payload: bytes, protocol: int) -> bytes:
    place = pick.choice((0, 0, 0, 0x4000, 0x2000, 0x2007, 0x0007))
    given: dict[str, int] = {"options": pick.choice((0, 0, 0, 1, 10)), "place": place}
    if pick.random() < 0.05:
        given[pick.choice(("total", "version", "header"))] = pick.randrange(16)
    if pick.random() < 0.05:
        given["total"] = pick.randrange(20, 80)
    return ipv4(payload, protocol, pick.choice(IPV4), pick.choice(IPV4), **given)


def _random_ipv6(pick: random.Random, payload: bytes, protocol: int) -> bytes:
    kinds = [pick.choice((*EXTENSIONS, 44)) for _ in range(pick.choice((0, 0, 0, 0, 1, 1, 2, 4, 8, 9)))]
    kind, payload = chain(
        kinds, protocol, payload, units=pick.choice((0, 0, 0, 1, 3)), place=pick.choice((0, 1, 8, 9))
    )
    given: dict[str, int] = {}
    if pick.random() < 0.05:
        given = {"version": pick.randrange(16)}
    elif pick.random() < 0.08:
        given = {"length": pick.randrange(len(payload) + 8)}
    return ipv6(payload, kind, pick.choice(IPV6), pick.choice(IPV6), **given)


def rules_at_random(pick: random.Random, count: int) -> RuleSet:
    """Rules that ask for few things each, so that packets meet them all along the list."""
    rules = tuple(_rule(pick, str(place + 1), _fields(pick, count)) for place in range(count))
    return RuleSet(rules, _answer(pick))


def _answer(pick: random.Random) -> Answer:
    answers: tuple[Answer, ...] = ("redirect", "express", "pass", "drop")
    return pick.choice(answers)


def _ranges(pick: random.Random, values: Sequence[int]) -> Ranges:
    made = []
    for _ in range(pick.choice((1, 1, 2, 4))):
        low, high = sorted((pick.choice(values), pick.choice(values)))
        made.append((low, high if pick.random() < 0.2 else low))
    return tuple(made)


def _fields(pick: random.Random, count: int) -> int:
    """About how many things a rule asks: the more rules there are, the more, or the first would take all."""
    if pick.random() < 0.2 / count:
        return 0
    return pick.choice((1, 1, 2, 2, 3) if count < 10 else (2, 3, 3, 4, 4, 5))


def _rule(pick: random.Random, name: str, fields: int) -> Rule:
    asked = set(pick.sample(range(10), fields))
    fragments: tuple[tuple[Fragment, ...], ...] = (("whole",), ("first",), ("later",), ("first", "later"))
    values: dict[str, tuple[int, Callable[[], object]]] = {
        "ether_type": (1, lambda: _ranges(pick, (*ETHER_TYPES, 0x0800, 0x86DD, 0x8100))),
        "source": (2, lambda: tuple(pick.sample(PREFIXES, pick.choice((1, 2, 4))))),
        "destination": (3, lambda: tuple(pick.sample(PREFIXES, pick.choice((1, 2, 4))))),
        "protocol": (4, lambda: _ranges(pick, PROTOCOLS)),
        "source_port": (5, lambda: _ranges(pick, PORTS)),
        "destination_port": (6, lambda: _ranges(pick, PORTS)),
        "tcp_flags": (7, lambda: _flags(pick)),
        "icmp_type": (8, lambda: _ranges(pick, ICMP_TYPES)),
        "fragment": (9, lambda: pick.choice(fragments)),
    }
    given = {key: make() for key, (number, make) in values.items() if number in asked}
    vlan = _ranges(pick, VLANS) if 0 in asked and pick.random() < 0.7 else ()
    untagged = 0 in asked and (not vlan or pick.random() < 0.3)
    return Rule(name, _answer(pick), vlan=vlan, untagged=untagged, **given)  # type: ignore[arg-type]


def _flags(pick: random.Random) -> tuple[tuple[int, int], ...]:
    masks = [pick.choice((0x02, 0x12, 0x17, 0xFF)) for _ in range(pick.choice((1, 1, 2)))]
    return tuple((mask, pick.choice(FLAGS) & mask) for mask in masks)
