"""What the keys of a rule may say: numbers, ranges, names, prefixes, and when they contradict each other.

values.py's part for rules: a check says in one line what is wrong and what would be right. What comes out is
what rules.py keeps: ranges in order, prefixes in their one spelling. It must never look at another interface
or at the path; config.py does.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationInfo, WithJsonSchema

from xskd import names
from xskd.rules import DEFAULT, MATCH_FIELDS, Fragment, Ranges, Rule, merged
from xskd.values import instead, nearest, shown, wrong

MAX_LIMITS = 255  # rules of an interface that have one
MAX_PACKETS = 10**9  # a second
MIN_BITS, MAX_BITS = 1000, 10**12  # a second
MAX_BURST = 10_000  # milliseconds

_NUMBER = r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,9}"
_RANGE = re.compile(rf"({_NUMBER})(?:\s*-\s*({_NUMBER}))?")


def _pieces(value: object) -> Iterator[object]:
    """The values of a key: alone, in a list, or in text with commas."""
    for part in value if isinstance(value, list) else [value]:
        yield from (piece.strip() for piece in part.split(",")) if isinstance(part, str) else [part]


def _range(piece: object, what: str, right: str, table: dict[str, int], most: int) -> tuple[int, int]:
    """One number, range or name."""
    word = piece if isinstance(piece, str) else ""
    if word.lower() in table:
        return table[word.lower()], table[word.lower()]
    match = _RANGE.fullmatch(str(piece)) if type(piece) in (int, str) else None
    if not match:
        slip = "; write a range with -" if re.fullmatch(r"\d+[:.]+\d+", word) else nearest(word, table)
        raise wrong(f"{shown(piece)} is no {what}{slip or f'; write {right}'}")
    first, last = (
        int(number, 0) if "x" in number.lower() else int(number)
        for number in (match[1], match[2] or match[1])
    )
    if last < first:
        raise wrong(f"{shown(piece)} runs backwards; write {match[2]}-{match[1]}")
    if last > most:
        raise wrong(f"{shown(piece)} is beyond {most}, the highest {what}")
    return first, last


def _ranges(value: object, what: str, right: str, table: dict[str, int], most: int) -> Ranges:
    if value in ([], None, ""):
        raise wrong(f"names no {what}; write {right}, or remove the key")
    return tuple(merged(_range(piece, what, right, table, most) for piece in _pieces(value)))


def _vlans(value: object) -> tuple[Ranges, bool]:
    """Ranges of VIDs, and whether packets without a tag are meant too."""
    right = "5, 10-19, [5, 10-19] or none"
    if value in ([], None, ""):
        raise wrong(f"names no VLAN; write {right}, or remove the key")
    tags = [piece for piece in _pieces(value) if piece != "none"]
    untagged = any(piece == "none" for piece in _pieces(value))
    return (_ranges(tags, "VLAN", right, {}, 4095) if tags else ()), untagged


def _ether_types(value: object) -> Ranges:
    return _ranges(value, "EtherType", "arp, 0x88cc or [arp, lldp]", names.ETHER_TYPES, 0xFFFF)


def _protocols(value: object) -> Ranges:
    return _ranges(value, "protocol", "udp, 47 or [tcp, udp]", names.PROTOCOLS, 255)


def _ports(value: object) -> Ranges:
    return _ranges(value, "port", "53, https, 8000-8100 or [80, 443]", names.PORTS, 0xFFFF)


def _icmp_types(value: object, info: ValidationInfo) -> Ranges:
    """Types of the one protocol that the rule names: their names mean different numbers in the two."""
    protocol = info.data.get("protocol")
    if protocol is not None and protocol not in (_ICMP, _ICMPV6):
        raise wrong("needs protocol: icmp or protocol: icmpv6, one of them: their types differ")
    both = {**names.ICMPV6_TYPES, **names.ICMP_TYPES}  # where the protocol is wrong, for the names alone
    table = {None: both, _ICMP: names.ICMP_TYPES, _ICMPV6: names.ICMPV6_TYPES}[protocol]
    return _ranges(value, "ICMP type", "echo-request, 3 or [0, 8]", table, 255)


_ICMP, _ICMPV6 = ((names.ICMP, names.ICMP),), ((names.ICMPV6, names.ICMPV6),)


def _prefixes(value: object) -> tuple[str, ...]:
    right = "10.0.0.0/8 or [10.0.0.0/8, 2001:db8::/32]"
    if value in ([], None, ""):
        raise wrong(f"names no prefix; write {right}, or remove the key")
    return tuple(dict.fromkeys(_prefix(piece, right) for piece in _pieces(value)))


def _prefix(piece: object, right: str) -> str:
    """An address with or without its length, in its one spelling."""
    text = piece if isinstance(piece, str) else ""
    if not re.fullmatch(r"[0-9a-fA-F.:]{2,45}(/[0-9]{1,3})?", text):
        raise wrong(f"{shown(piece)} is no prefix; write {right}")
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise wrong(f"{shown(piece)} is no prefix; write {right}") from None
    address = ipaddress.ip_address(text.partition("/")[0])
    if address != network.network_address:
        whole = f"{address}/{network.max_prefixlen}"
        raise wrong(f"{shown(piece)} has bits set behind its length; write {network}, or {whole} for the one")
    return str(network)


def _tcp_flags(value: object) -> tuple[tuple[int, int], ...]:
    texts = value if isinstance(value, list) else [value]
    if value in ([], None, ""):
        raise wrong("names no flag; write syn, syn !ack or [syn, fin], or remove the key")
    return tuple(dict.fromkeys(_flags(text) for text in texts))


def _flags(text: object) -> tuple[int, int]:
    """Mask and value of flags that must be set, and with ! clear."""
    if not isinstance(text, str) or not text.split():
        raise wrong(f"must be flags like syn !ack{instead(text)}")
    mask = value = 0
    for word in text.lower().split():
        name = word.removeprefix("!")
        if name not in names.TCP_FLAGS:
            right = nearest(name, names.TCP_FLAGS) or f"; known are {', '.join(names.TCP_FLAGS)}"
            raise wrong(f"{shown(name)} is no TCP flag{right}")
        bit = names.TCP_FLAGS[name]
        if mask & bit:
            raise wrong(f"{shown(text)} names {name} twice")
        mask |= bit
        value |= 0 if word.startswith("!") else bit
    return mask, value


def _fragments(value: object) -> tuple[Fragment, ...]:
    words: dict[object, tuple[Fragment, ...]] = {"first": ("first",), "later": ("later",)}
    if isinstance(value, bool):
        return ("first", "later") if value else ("whole",)
    if not isinstance(value, str) or value not in words:
        near = nearest(value, ("first", "later", "true", "false")) if isinstance(value, str) else ""
        raise wrong(f"must be true, false, first or later, not {shown(value)}{near}")
    return words[value]


def _rule_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,63}", value):
        quoted = "; quote it" if isinstance(value, bool) else ""
        raise wrong(
            f"{shown(value)} is no name of a rule; use 1 to 63 letters, digits, '-', '_' and '.'{quoted}"
        )
    if value == DEFAULT or value.isdecimal():
        means = "what matches no rule" if value == DEFAULT else "the rule at that place, if it has no name"
        raise wrong(f"{shown(value)} means {means}; choose another name")
    return value


def _whole(what: str, least: int, most: int) -> PlainValidator:
    def check(value: object) -> int:
        if type(value) is not int:
            raise wrong(f"must be a whole number{instead(value)}")
        if not least <= value <= most:
            nothing = "; to let nothing through, write verdict: drop" if value == 0 and what != "ms" else ""
            raise wrong(f"must be from {least} to {most} {what}, not {value}{nothing}")
        return value

    return PlainValidator(check)


def contradictions(rule: Rule) -> Iterator[tuple[str, str]]:
    """Keys whose values no packet has together, and why."""
    ports = next((key for key in ("source_port", "destination_port") if getattr(rule, key)), None)
    protocols = {number for low, high in rule.protocol for number in range(low, high + 1)}
    without = sorted(protocols - names.WITH_PORTS)
    if ports and without:
        name = names.name_of(names.PROTOCOLS, without[0]) or f"protocol {without[0]}"
        yield ports, f"{name} has no ports; tcp, udp, sctp, dccp and udp-lite have"
    if rule.tcp_flags and protocols and protocols != {names.TCP}:
        yield "tcp_flags", "only tcp has them; write protocol: tcp, or leave protocol out"
    transport = next((key for key in ("tcp_flags", "icmp_type") if getattr(rule, key)), ports)
    if rule.fragment == ("later",) and transport:
        yield transport, "later fragments have none; remove it, or write fragment: first"
    in_ip = next((key for key in MATCH_FIELDS[2:] if getattr(rule, key)), None)
    ip = {4: names.ETHER_TYPES["ipv4"], 6: names.ETHER_TYPES["ipv6"]}
    asked = {family for family, number in ip.items() if _among(number, rule.ether_type)}
    if in_ip and rule.ether_type and not asked:
        yield "ether_type", f"a packet of this type has no {in_ip}; write ipv4 or ipv6, or leave it out"
        return
    families = [
        {6 if ":" in prefix else 4 for prefix in prefixes} for prefixes in (rule.source, rule.destination)
    ]
    asked = asked if rule.ether_type else {4, 6}
    for key, family in zip(("source", "destination"), families, strict=True):
        if family and not family & asked:
            yield key, "no packet has such addresses together; write both IPv4 or both IPv6"
            return
        asked &= family or asked


def _among(number: int, ranges: Ranges) -> bool:
    return any(low <= number <= high for low, high in ranges)


def rule_errors(rules: list[Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong with the rules of an interface together; they are as YAML has them, right or not."""
    limited = [index for index, rule in enumerate(rules) if isinstance(rule, dict) and rule.get("limit")]
    if len(limited) > MAX_LIMITS:
        why = f"is limit number {MAX_LIMITS + 1}; at most {MAX_LIMITS} rules of an interface have one"
        yield (limited[MAX_LIMITS], "limit"), why
    named: dict[str, int] = {}
    matches: dict[str, int] = {}
    for index, rule in enumerate(rules):
        if not isinstance(rule, dict):
            continue
        name = rule.get("name")
        if isinstance(name, str) and named.setdefault(name, index) != index:
            yield (index, "name"), f"rule {named[name] + 1} is called {shown(name)} already"
        if not rule.keys() <= _KEYS:
            continue  # who knows what was meant
        match = repr(sorted((key, repr(rule[key])) for key in MATCH_FIELDS if key in rule))
        earlier = matches.setdefault(match, index)
        if _EVERYTHING in matches and matches[_EVERYTHING] < index:
            yield (index,), f"is never reached: rule {matches[_EVERYTHING] + 1} matches every packet"
            return  # so are those behind it
        if earlier != index:
            yield (index,), f"is never reached: rule {earlier + 1} matches the same packets"


_EVERYTHING = repr([])
_KEYS = {"name", "verdict", "limit", *MATCH_FIELDS}

_VALUE = {"type": ["integer", "string"]}
_VALUES = WithJsonSchema({"anyOf": [_VALUE, {"type": "array", "items": _VALUE, "minItems": 1}]})
_TEXT = {"type": "string", "minLength": 1}
_TEXTS = WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]})


def _whole_schema(least: int, most: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "integer", "minimum": least, "maximum": most})


Vlans = Annotated[tuple[Ranges, bool], PlainValidator(_vlans), _VALUES]
EtherTypes = Annotated[Ranges, PlainValidator(_ether_types), _VALUES]
Prefixes = Annotated[tuple[str, ...], PlainValidator(_prefixes), _TEXTS]
Protocols = Annotated[Ranges, PlainValidator(_protocols), _VALUES]
Ports = Annotated[Ranges, PlainValidator(_ports), _VALUES]
Flags = Annotated[tuple[tuple[int, int], ...], PlainValidator(_tcp_flags), _TEXTS]
IcmpTypes = Annotated[Ranges, PlainValidator(_icmp_types), _VALUES]
Fragments = Annotated[
    tuple[Fragment, ...],
    PlainValidator(_fragments),
    WithJsonSchema({"enum": [True, False, "first", "later"]}),
]
RuleName = Annotated[
    str,
    PlainValidator(_rule_name),
    WithJsonSchema({"type": "string", "pattern": "^(?!default$|[0-9]+$)[A-Za-z0-9._-]{1,63}$"}),
]
PacketRate = Annotated[int, _whole("packets a second", 1, MAX_PACKETS), _whole_schema(1, MAX_PACKETS)]
BitRate = Annotated[int, _whole("bits a second", MIN_BITS, MAX_BITS), _whole_schema(MIN_BITS, MAX_BITS)]
Burst = Annotated[int, _whole("ms", 1, MAX_BURST), _whole_schema(1, MAX_BURST)]
