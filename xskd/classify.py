"""Compiles the rules of an interface into the tables that the BPF program looks them up in.

1,024 rules are not asked one after the other. Each dimension of a packet (VLAN, source, destination port and
so on) has a table in which its value stands for a class: the set of rules that this one value allows, a bit
for each rule. The program takes the class of each dimension, joins them by AND, and the lowest bit left is
the first rule that matches. So a lookup costs the same for one port in a rule and for hundreds of ranges, and
a few more steps of a binary search for thousands of prefixes than for one.

How the sets are found: along one dimension they change only where some rule's range begins or ends. A sweep
over these boundaries toggles a rule's bit at each, and every stretch between two is of one class. Equal sets
are one class, whichever dimensions they come from.

This must never depend on a packet, the kernel or the map that the image goes into (xdp.py sets where its
counters begin); it lays out bytes, at the offsets that bpf/xdp_prog.h gives them.
"""

from __future__ import annotations

import ipaddress
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from xskd._libbpf import ffi, lib
from xskd.errors import RulesError
from xskd.rules import MAX_RULES, Limit, Ranges, Rule, RuleSet, merged

BURST = 64  # packets that a driver, or a sender, hands over at once

_SECOND = 1_000_000_000 << 16  # in the units of struct xskd_limit
_MAX_COST = 1 << 47  # of a byte: times the longest packet there can be, it stays below 2^63
_ANSWERS = {
    "redirect": lib.XSKD_REDIRECT,
    "express": lib.XSKD_EXPRESS,
    "pass": lib.XSKD_PASS,
    "drop": lib.XSKD_DROP,
}
_FRAGMENTS = {"whole": 0, "first": 1, "later": 2}
_BITS = {4: 32, 6: 128}  # of an address

Spans = list[tuple[int, int]]  # (where it starts, its class), ascending, the first at 0


def compile_rules(rules: RuleSet, *, queues: int) -> bytes:
    """An image of struct xskd_rules (bpf/xdp_prog.h), to be put into the map of the BPF program.

    `queues` is how many queues share each limit. RulesError where the rules need more classes, prefixes or
    limits than there is room for.
    """
    if len(rules.rules) > MAX_RULES:
        raise RulesError(f"{len(rules.rules)} rules are too many; an interface has at most {MAX_RULES}")
    image = _Image(rules.rules)
    image.answers(rules)
    image.limits(rules, queues)
    asked = rules.rules
    image.ranges(lib.XSKD_DIMENSION_VLAN, "vlan", [rule.vlan for rule in asked])
    image.ranges(lib.XSKD_DIMENSION_ETHER_TYPE, "ether_type", [rule.ether_type for rule in asked])
    image.prefixes(lib.XSKD_DIMENSION_SOURCE, 0, [rule.source for rule in asked])
    image.prefixes(lib.XSKD_DIMENSION_DESTINATION, 1, [rule.destination for rule in asked])
    image.ranges(lib.XSKD_DIMENSION_PROTOCOL, "protocol", [rule.protocol for rule in asked])
    image.ranges(lib.XSKD_DIMENSION_SOURCE_PORT, "port", [rule.source_port for rule in asked], 0)
    image.ranges(lib.XSKD_DIMENSION_DESTINATION_PORT, "port", [rule.destination_port for rule in asked], 1)
    image.ranges(lib.XSKD_DIMENSION_TCP_FLAGS, "tcp_flags", [_flag_values(rule) for rule in asked])
    image.ranges(lib.XSKD_DIMENSION_ICMP_TYPE, "icmp_type", [rule.icmp_type for rule in asked])
    image.ranges(lib.XSKD_DIMENSION_FRAGMENT, "fragment", [_fragment_values(rule) for rule in asked])
    return image.done()


class _Image:
    """A struct xskd_rules that is being filled in."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._image: Any = ffi.new("struct xskd_rules *")
        self._image.count = len(rules)
        self._rules = rules
        self._all = (1 << len(rules)) - 1
        # Class 0, what an empty table says, allows all rules: a dimension that none asks about forbids none.
        self._classes: dict[int, int] = {self._all: 0}

    def answers(self, rules: RuleSet) -> None:
        """What each rule says, and the default behind them."""
        for index, rule in enumerate(rules.rules):
            self._image.rules[index].answer = _ANSWERS[rule.verdict]
        self._image.rules[lib.XSKD_DEFAULT].answer = _ANSWERS[rules.default]

    def limits(self, rules: RuleSet, queues: int) -> None:
        """The path's limit as number 0, those of rules behind it."""
        if rules.limit:
            self._image.limited = 1
            _fill(self._image.limits[0], rules.limit, queues)
        limited = [(index, rule.limit) for index, rule in enumerate(rules.rules) if rule.limit]
        if len(limited) >= lib.XSKD_MAX_LIMITS:
            most = lib.XSKD_MAX_LIMITS - 1
            raise RulesError(f"{len(limited)} rules have a limit; at most {most} of an interface can")
        for number, (index, limit) in enumerate(limited, 1):
            self._image.rules[index].limit = number
            _fill(self._image.limits[number], limit, queues)

    def ranges(self, dimension: int, table: str, asked: Sequence[Ranges], row: int | None = None) -> None:
        """The table of a dimension whose values are few enough for an entry each."""
        if not any(asked) and not (table == "vlan" and any(rule.untagged for rule in self._rules)):
            return
        target = getattr(self._image, table) if row is None else getattr(self._image, table)[row]
        asks = [bool(ranges) for ranges in asked]
        if table == "vlan":
            asks = [ask or rule.untagged for ask, rule in zip(asks, self._rules, strict=True)]
        indifferent = self._indifferent(dimension, asks)
        entries = array("H")
        spans = self._sweep(indifferent, asked)
        for (start, number), (end, _) in zip(spans, [*spans[1:], (len(target), 0)], strict=True):
            entries.extend([number] * (end - start))
        ffi.memmove(target, entries.tobytes(), ffi.sizeof(target))

    def prefixes(self, dimension: int, direction: int, asked: Sequence[tuple[str, ...]]) -> None:
        """The spans of source (direction 0) or destination (1), of both families."""
        if not any(asked):
            return
        indifferent = self._indifferent(dimension, [bool(prefixes) for prefixes in asked])
        networks = [[ipaddress.ip_network(prefix) for prefix in prefixes] for prefixes in asked]
        for version in (4, 6):
            ranges = [
                tuple(
                    (int(net.network_address), int(net.broadcast_address))
                    for net in of_rule
                    if net.version == version
                )
                for of_rule in networks
            ]
            spans = self._sweep(indifferent, ranges)
            self._spans(version, direction, [span for span in spans if span[0] < 1 << _BITS[version]])

    def done(self) -> bytes:
        """The finished image."""
        if self._rules and not self._image.dimensions:
            # A rule that takes everything is looked up all the same, by a dimension that forbids nothing.
            self._image.dimensions = 1 << lib.XSKD_DIMENSION_VLAN
        if len(self._classes) > lib.XSKD_MAX_CLASSES:
            room = lib.XSKD_MAX_CLASSES
            raise RulesError(
                f"the rules overlap in {len(self._classes)} ways, and there is room for {room}; "
                "join rules that say the same, or write fewer overlapping prefixes and ranges"
            )
        size = ffi.sizeof("struct xskd_class")
        packed = b"".join(_packed(bitmap) for bitmap in self._classes)  # in the order of their numbers
        assert len(packed) == size * len(self._classes)
        ffi.memmove(self._image.classes, packed, len(packed))
        return bytes(ffi.buffer(self._image))

    def _indifferent(self, dimension: int, asks: Iterable[bool]) -> int:
        """The rules that do not ask about a dimension: what a packet without such a field may match."""
        self._image.dimensions |= 1 << dimension
        asking = sum(1 << index for index, ask in enumerate(asks) if ask)
        indifferent = self._all & ~asking
        without = indifferent
        if dimension == lib.XSKD_DIMENSION_VLAN:
            without |= sum(1 << index for index, rule in enumerate(self._rules) if rule.untagged)
        self._image.none[dimension] = self._class(without)
        return indifferent

    def _class(self, bitmap: int) -> int:
        return self._classes.setdefault(bitmap, len(self._classes))

    def _sweep(self, indifferent: int, asked: Sequence[Ranges]) -> Spans:
        """The stretches in which the same rules match, each rule's values given as ranges."""
        toggled: dict[int, int] = {0: 0}
        for index, ranges in enumerate(asked):
            bit = 1 << index
            for low, high in merged(ranges):
                toggled[low] = toggled.get(low, 0) ^ bit
                toggled[high + 1] = toggled.get(high + 1, 0) ^ bit
        spans: Spans = []
        matching = indifferent
        for start in sorted(toggled):
            matching ^= toggled[start]
            number = self._class(matching)
            if not spans or spans[-1][1] != number:
                spans.append((start, number))
        return spans

    def _spans(self, version: int, direction: int, spans: Spans) -> None:
        room = lib.XSKD_MAX_SPANS
        if len(spans) > room:
            word = ("source", "destination")[direction]
            raise RulesError(
                f"the {word} prefixes divide IPv{version} into {len(spans)} stretches, and there is room for "
                f"{room}; write fewer or wider prefixes"
            )
        which = direction + (2 if version == 6 else 0)
        self._image.first_step[which] = (1 << (len(spans) - 1).bit_length()) >> 1
        spans = spans + [((1 << _BITS[version]) - 1, spans[-1][1])] * (room - len(spans))
        classes = array("H", [number for _, number in spans])
        ffi.memmove(getattr(self._image, f"span{version}_class")[direction], classes.tobytes(), 2 * room)
        target = getattr(self._image, f"span{version}")[direction]
        if version == 4:
            starts = array("I", [start for start, _ in spans])
        else:
            halves = ((start >> 64, start & (1 << 64) - 1) for start, _ in spans)
            starts = array("Q", [half for both in halves for half in both])
        ffi.memmove(target, starts.tobytes(), ffi.sizeof(target))


def _flag_values(rule: Rule) -> Ranges:
    """Each value of the flags byte that a rule allows."""
    texts = rule.tcp_flags
    allowed = (flags for flags in range(256) if any(flags & mask == value for mask, value in texts))
    return tuple((flags, flags) for flags in allowed)


def _fragment_values(rule: Rule) -> Ranges:
    return tuple((_FRAGMENTS[word], _FRAGMENTS[word]) for word in rule.fragment)


def _packed(bitmap: int) -> bytes:
    """A struct xskd_class: which words are not 0, and the words."""
    words = array("Q", bitmap.to_bytes(8 * lib.XSKD_RULE_WORDS, "little"))
    summary = sum(1 << index for index, word in enumerate(words) if word)
    return summary.to_bytes(8, "little") + words.tobytes()


def _fill(target: Any, limit: Limit, queues: int) -> None:
    """One queue's share of a limit, as a struct xskd_limit.

    Rates are kept as what a packet and a byte cost, in time: 2^-16 ns are fine enough for 0.1 % at 1 Tbit/s.
    Saved up can be `burst`, but of packets never less than a driver or a sender hands over at once, divided
    among the queues, and one: if it were less, what comes in such bursts would find the bucket full and its
    overflow wasted while the rate is not reached. A packet that costs more than can be saved up needs a full
    bucket and leaves it in debt (bpf/xdp_prog.bpf.c), so that the largest passes at the lowest rate.
    """
    depth = limit.burst * _SECOND // 1000
    if limit.packets_per_second:
        target.packet_cost = max(1, round(_SECOND * queues / limit.packets_per_second))
        depth = max(depth, target.packet_cost * (-(-BURST // queues) + 1))
    if limit.bits_per_second:
        cost = max(1, round(8 * _SECOND * queues / limit.bits_per_second))
        target.byte_cost = min(cost, _MAX_COST)
    target.depth = depth
