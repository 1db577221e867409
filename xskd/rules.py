"""What is to become of the packets of one interface: rules in order, the default behind them, and limits.

Plain values that travel: from the configuration into the plan, from there to the compiler (classify.py), into
the state file that a successor reads, and onto the screen. Workers load this with the plan, so it must never
import pydantic, yaml or pyroute2, and it must never know how a rule is looked up: classify.py does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from xskd import names

Answer = Literal["redirect", "express", "pass", "drop"]
Express = Literal["rules", "auto", "off"]
Fragment = Literal["whole", "first", "later"]
Ranges = tuple[tuple[int, int], ...]  # each from first to last, both among them

MAX_RULES = 1024  # of an interface
DEFAULT = "default"  # the label of what matches no rule
# Milliseconds. Longer than most pauses that a busy machine makes: what the rate would have let through in the
# rest of a pause is lost. Short enough that the burst which is free at the start is 1 % of five seconds.
DEFAULT_BURST = 50


@dataclass(frozen=True)
class Limit:
    """At most so much a second, of packets, of bits, or of both; over it packets are dropped.

    Bits are those of whole frames, from the Ethernet header on, without FCS. `burst` is what may come at
    once, in milliseconds' worth of the rate.
    """

    packets_per_second: int | None = None
    bits_per_second: int | None = None
    burst: int = DEFAULT_BURST

    @property
    def text(self) -> str:
        """`1000 packets/s, 8000 bits/s, burst 50 ms`."""
        rates = ((self.packets_per_second, "packets/s"), (self.bits_per_second, "bits/s"))
        return ", ".join([*(f"{rate} {unit}" for rate, unit in rates if rate), f"burst {self.burst} ms"])

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Limit:
        """The limit that `dataclasses.asdict` made a record of."""
        return cls(**record)


@dataclass(frozen=True)
class Rule:
    """One rule: which packets it matches, and what becomes of them.

    A field that asks nothing is empty. A field that asks matches only packets that have it: no ARP packet
    has a `destination_port`, and only `untagged` asks for packets without a tag. All fields must match, and
    of one field any of its values.
    """

    name: str  # unique among the interface's; the position, from "1", where the file gives none
    verdict: Answer
    vlan: Ranges = ()  # VID of the outermost tag
    untagged: bool = False  # also, or only, packets without a tag
    ether_type: Ranges = ()  # behind up to two VLAN tags
    source: tuple[str, ...] = ()  # prefixes, IPv4 and IPv6
    destination: tuple[str, ...] = ()
    protocol: Ranges = ()  # behind IPv6 extension headers
    source_port: Ranges = ()
    destination_port: Ranges = ()
    tcp_flags: tuple[tuple[int, int], ...] = ()  # (mask, value): flags & mask == value
    icmp_type: Ranges = ()
    fragment: tuple[Fragment, ...] = ()
    limit: Limit | None = None

    @property
    def match(self) -> dict[str, str]:
        """What each key of the match asks, in canonical words; keys that ask nothing are left out."""
        asked = {
            "vlan": _spelled(self.vlan, first="none" if self.untagged else ""),
            "ether_type": _spelled(self.ether_type, names.ETHER_TYPES, hexadecimal=True),
            "source": ",".join(self.source),
            "destination": ",".join(self.destination),
            "protocol": _spelled(self.protocol, names.PROTOCOLS),
            "source_port": _spelled(self.source_port),
            "destination_port": _spelled(self.destination_port),
            "tcp_flags": ",".join(_flags(mask, value) for mask, value in self.tcp_flags),
            "icmp_type": _spelled(self.icmp_type),
            "fragment": ",".join(self.fragment),
        }
        return {key: words for key, words in asked.items() if words}

    @property
    def text(self) -> str:
        """The match on one line, like `protocol udp destination_port 53`; `any` where it asks nothing."""
        return " ".join(f"{key} {words}" for key, words in self.match.items()) or "any"

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Rule:
        """The rule that `dataclasses.asdict` made a record of, also after its way through JSON."""
        given = {key: _tuples(value) for key, value in record.items()}
        limit = record["limit"]
        return cls(**{**given, "limit": limit and Limit.from_record(limit)})


@dataclass(frozen=True)
class RuleSet:
    """The rules of an interface, the default, and the limit of its path, which each interface has alone."""

    rules: tuple[Rule, ...] = ()
    default: Answer = "redirect"
    limit: Limit | None = None

    @property
    def plain(self) -> bool:
        """Whether every packet gets the default's answer at once: nothing to look up and nothing to limit."""
        return not self.rules and self.limit is None

    @property
    def labels(self) -> tuple[str, ...]:
        """What the counters are called: the rules' names in order, "default" last."""
        return (*(rule.name for rule in self.rules), DEFAULT)

    def effective(self, express: Express) -> RuleSet:
        """As the path's `express` has it: auto makes redirects express, off makes them all redirects."""
        if express == "rules":
            return self
        before: Answer = "redirect" if express == "auto" else "express"
        after: Answer = "express" if express == "auto" else "redirect"
        rules = tuple(replace(rule, verdict=after) if rule.verdict == before else rule for rule in self.rules)
        return replace(self, rules=rules, default=after if self.default == before else self.default)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RuleSet:
        """The rules that `dataclasses.asdict` made a record of, also after its way through JSON."""
        limit = record["limit"]
        rules = tuple(Rule.from_record(rule) for rule in record["rules"])
        return cls(rules, record["default"], limit and Limit.from_record(limit))


MATCH_FIELDS = tuple(
    field.name for field in fields(Rule) if field.name not in ("name", "verdict", "untagged", "limit")
)

# What `reflect` leaves to the kernel unless told otherwise: or nobody could reach the host by this interface.
REFLECT_RULES = (
    Rule("arp", "pass", ether_type=((0x0806, 0x0806),)),
    Rule("neighbour-discovery", "pass", protocol=((names.ICMPV6, names.ICMPV6),), icmp_type=((133, 137),)),
    Rule("ssh", "pass", protocol=((names.TCP, names.TCP),), destination_port=((22, 22),)),
)


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same values as ranges in order that neither overlap nor touch."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _spelled(
    ranges: Iterable[tuple[int, int]],
    table: dict[str, int] | None = None,
    *,
    first: str = "",
    hexadecimal: bool = False,
) -> str:
    """`none,5,7-9`: ranges in words, single numbers by name where the table has one."""
    number = "{:#06x}".format if hexadecimal else str
    words = [first] if first else []
    for low, high in ranges:
        name = names.name_of(table or {}, low) if low == high else None
        words.append(name or (number(low) if low == high else f"{number(low)}-{number(high)}"))
    return ",".join(words)


def _flags(mask: int, value: int) -> str:
    """`syn !ack`."""
    return " ".join(
        f"{'' if value & bit else '!'}{name}" for name, bit in names.TCP_FLAGS.items() if mask & bit
    )


def _tuples(value: Any) -> Any:
    """Lists, which JSON makes of tuples, back to tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
