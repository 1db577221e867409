"""What a packet means to rules: written from docs/configuration.md, not from the program; slow, and obvious.

Tests compare it with the compiled tables (tests/unit) and with the BPF program itself (tests/kernel). It must
never import what it is compared with: rules.py says what a rule asks, nothing says how it is answered.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from dataclasses import dataclass

from xskd.rules import Ranges, Rule, RuleSet

TAGS = (0x8100, 0x88A8)
EXTENSIONS = {0: "hop-by-hop", 43: "routing", 60: "destination", 135: "mobility", 139: "HIP", 140: "shim6"}
FRAGMENT, AUTHENTICATION = 44, 51
SHORTEST = {6: 20, 17: 8, 136: 8, 132: 12, 33: 12, 1: 8, 58: 8}  # header of each protocol that is looked into

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Unparsed(Exception):
    """Truncated, or it lies about its lengths."""


@dataclass
class Fields:
    """What rules can ask about; None where the packet has no such field."""

    ether_type: int
    vlan: int | None = None
    source: Address | None = None
    destination: Address | None = None
    protocol: int | None = None
    source_port: int | None = None
    destination_port: int | None = None
    tcp_flags: int | None = None
    icmp_type: int | None = None
    fragment: str | None = None


def parse(packet: bytes) -> Fields:
    """Unparsed if that is what the packet is."""
    (ether_type,) = _unpack("!12xH", packet)
    rest, vlan = packet[14:], None
    for tag in range(2):
        if ether_type in TAGS:
            control, ether_type = _unpack("!HH", rest)
            rest = rest[4:]
            vlan = control % 4096 if tag == 0 else vlan
    fields = Fields(ether_type, vlan)
    if ether_type == 0x0800:
        _ipv4(fields, rest)
    elif ether_type == 0x86DD:
        _ipv6(fields, rest)
    return fields


def first_match(rules: RuleSet, packet: bytes) -> tuple[int, bool]:
    """Place, from 0, of the rule that takes the packet, the default's behind the last; and if it parsed."""
    try:
        fields = parse(packet)
    except Unparsed:
        return len(rules.rules), False
    for place, rule in enumerate(rules.rules):
        if matches(rule, fields):
            return place, True
    return len(rules.rules), True


def matches(rule: Rule, fields: Fields) -> bool:
    """Whether all that the rule asks is so."""
    if fields.vlan is None:
        if rule.vlan and not rule.untagged:
            return False
    elif (rule.vlan or rule.untagged) and not _within(fields.vlan, rule.vlan):
        return False
    if rule.tcp_flags:
        flags = fields.tcp_flags
        if flags is None or not any(flags & mask == value for mask, value in rule.tcp_flags):
            return False
    if rule.fragment and fields.fragment not in rule.fragment:
        return False
    numbers = ("ether_type", "protocol", "source_port", "destination_port", "icmp_type")
    if not all(_within(getattr(fields, key), getattr(rule, key)) for key in numbers if getattr(rule, key)):
        return False
    return _inside(fields.source, rule.source) and _inside(fields.destination, rule.destination)


def _within(number: int | None, ranges: Ranges) -> bool:
    return number is not None and any(low <= number <= high for low, high in ranges)


def _inside(address: Address | None, prefixes: tuple[str, ...]) -> bool:
    return not prefixes or (address is not None and any(address in _network(prefix) for prefix in prefixes))


_network = functools.lru_cache(maxsize=None)(ipaddress.ip_network)


def _ipv4(fields: Fields, rest: bytes) -> None:
    first, total, place, protocol = _unpack("!BxHxxHxB", rest)
    version, header = first >> 4, first % 16 * 4
    if len(rest) < 20 or version != 4 or header < 20 or total < header or total > len(rest):
        raise Unparsed
    fields.source, fields.destination = map(ipaddress.IPv4Address, (rest[12:16], rest[16:20]))
    fields.protocol = protocol
    fields.fragment = "later" if place & 0x1FFF else "first" if place & 0x2000 else "whole"
    _transport(fields, rest[header:total])


def _ipv6(fields: Fields, rest: bytes) -> None:
    first, length, protocol = _unpack("!BxxxHB", rest)
    if len(rest) < 40 + length or first >> 4 != 6:
        raise Unparsed
    fields.source, fields.destination = map(ipaddress.IPv6Address, (rest[8:24], rest[24:40]))
    fields.fragment = "whole"
    rest = rest[40 : 40 + length]
    headers = 0
    while fields.fragment != "later" and protocol in (*EXTENSIONS, FRAGMENT, AUTHENTICATION):
        headers += 1
        following, size = _unpack("!BB", rest)
        if headers > 8 or len(rest) < 8:
            raise Unparsed
        if protocol == FRAGMENT:
            (place,) = _unpack("!xxH", rest)
            if place & 0xFFF8:
                fields.fragment = "later"
            elif place & 1:
                fields.fragment = "first"
            size = 8
        else:
            size = (size + 2) * 4 if protocol == AUTHENTICATION else (size + 1) * 8
        if size > len(rest):
            raise Unparsed
        protocol, rest = following, rest[size:]
    fields.protocol = protocol
    _transport(fields, rest)


def _transport(fields: Fields, rest: bytes) -> None:
    assert fields.protocol is not None
    if fields.fragment == "later" or fields.protocol not in SHORTEST:
        return
    if len(rest) < SHORTEST[fields.protocol]:
        raise Unparsed
    if fields.protocol in (1, 58):
        fields.icmp_type = rest[0]
        return
    fields.source_port, fields.destination_port = _unpack("!HH", rest)
    if fields.protocol == 6:
        fields.tcp_flags = rest[13]


def _unpack(form: str, data: bytes) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data)
    except struct.error:
        raise Unparsed from None
