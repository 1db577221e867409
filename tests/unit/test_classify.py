"""The compiler of rules: its tables, read as the BPF program reads them, say what the model says."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import pytest
from xskd._libbpf import ffi, lib

from lab import rule_model, rule_packets
from xskd.classify import compile_rules
from xskd.errors import RulesError
from xskd.rules import Limit, Rule, RuleSet

ANSWERS = {"redirect": 0, "express": 1, "pass": 2, "drop": 3}


def read(image: bytes) -> Any:
    """The image as the struct that it is."""
    assert len(image) == ffi.sizeof("struct xskd_rules")
    return ffi.from_buffer("struct xskd_rules *", image)


def span(image: Any, direction: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    """Class of an address, by the search of bpf/classify.h."""
    found, wanted = 0, int(address)
    step = image.first_step[direction + (2 if address.version == 6 else 0)]
    while step:
        if address.version == 4:
            start = image.span4[direction][found + step]
        else:
            high, low = image.span6[direction][found + step]
            start = high << 64 | low
        if start <= wanted:
            found += step
        step >>= 1
    classes = image.span4_class if address.version == 4 else image.span6_class
    return int(classes[direction][found])


def classes_of(image: Any, fields: rule_model.Fields) -> list[int]:
    """The class that each dimension that is asked about gives."""
    tables = {
        lib.XSKD_DIMENSION_VLAN: (image.vlan, fields.vlan),
        lib.XSKD_DIMENSION_ETHER_TYPE: (image.ether_type, fields.ether_type),
        lib.XSKD_DIMENSION_PROTOCOL: (image.protocol, fields.protocol),
        lib.XSKD_DIMENSION_SOURCE_PORT: (image.port[0], fields.source_port),
        lib.XSKD_DIMENSION_DESTINATION_PORT: (image.port[1], fields.destination_port),
        lib.XSKD_DIMENSION_TCP_FLAGS: (image.tcp_flags, fields.tcp_flags),
        lib.XSKD_DIMENSION_ICMP_TYPE: (image.icmp_type, fields.icmp_type),
        lib.XSKD_DIMENSION_FRAGMENT: (
            image.fragment,
            None if fields.fragment is None else ("whole", "first", "later").index(fields.fragment),
        ),
    }
    found = []
    for dimension in range(lib.XSKD_DIMENSIONS):
        if not image.dimensions >> dimension & 1:
            continue
        if dimension in tables:
            table, value = tables[dimension]
            found.append(image.none[dimension] if value is None else table[value])
        else:
            direction = dimension - lib.XSKD_DIMENSION_SOURCE
            address = (fields.source, fields.destination)[direction]
            found.append(image.none[dimension] if address is None else span(image, direction, address))
    return found


def look_up(image: Any, packet: bytes) -> tuple[int, bool]:
    """What the program answers: the place of the rule, the default's behind the last, and if it parsed."""
    if not image.dimensions:
        return image.count, True
    try:
        classes = [image.classes[number] for number in classes_of(image, rule_model.parse(packet))]
    except rule_model.Unparsed:
        return image.count, False
    for word in range(lib.XSKD_RULE_WORDS):
        bits = (1 << 64) - 1
        for found in classes:
            assert bool(found.summary >> word & 1) == bool(found.words[word])
            bits &= found.words[word]
        if bits:
            return word * 64 + (bits & -bits).bit_length() - 1, True
    return image.count, True


@pytest.mark.parametrize("count", [1, 2, 5, 20, 63, 64, 65, 300])
def test_random_rules_and_packets_agree_with_the_model(count: int) -> None:
    pick = random.Random(count)
    met = set()
    for _ in range(max(2, 60 // count)):
        rules = rule_packets.rules_at_random(pick, count)
        image = read(compile_rules(rules, queues=1))
        for _ in range(200):
            packet = rule_packets.at_random(pick)
            expected = rule_model.first_match(rules, packet)
            assert look_up(image, packet) == expected, (packet.hex(), [rule.text for rule in rules.rules])
            met.add(expected)
    assert len(met) > min(count, 8)  # rules, the default, and what cannot be parsed


def test_packets_by_hand_at_every_length_agree_with_the_model() -> None:
    rules = rule_packets.rules_at_random(random.Random(7), 40)
    image = read(compile_rules(rules, queues=1))
    for name, packet in rule_packets.every_length():
        assert look_up(image, packet) == rule_model.first_match(rules, packet), name


def test_each_rule_and_the_default_have_their_answer() -> None:
    rules = RuleSet(
        tuple(Rule(word, word, vlan=((number, number),)) for word, number in ANSWERS.items()),  # type: ignore[arg-type]
        "drop",
    )
    image = read(compile_rules(rules, queues=1))
    assert image.count == 4
    assert [image.rules[place].answer for place in range(4)] == list(ANSWERS.values())
    assert image.rules[lib.XSKD_DEFAULT].answer == ANSWERS["drop"]


def test_only_what_is_asked_about_is_looked_up() -> None:
    image = read(compile_rules(RuleSet((Rule("1", "drop", destination_port=((53, 53),)),)), queues=1))
    assert image.dimensions == 1 << lib.XSKD_DIMENSION_DESTINATION_PORT
    assert read(compile_rules(RuleSet(limit=Limit(1000)), queues=1)).dimensions == 0


def test_a_rule_that_asks_nothing_is_looked_up_too() -> None:
    image = read(compile_rules(RuleSet((Rule("1", "drop"),), "pass"), queues=1))
    assert look_up(image, bytes(60)) == (0, True)


def test_equal_sets_of_rules_are_one_class() -> None:
    rules = tuple(Rule(str(port), "drop", destination_port=((port, port),)) for port in range(1, 1025))
    image = read(compile_rules(RuleSet(rules), queues=1))
    used = set(image.port[1])
    assert len(used) == 1025  # one each, and none of them
    assert image.none[lib.XSKD_DIMENSION_DESTINATION_PORT] == image.port[1][0]


def test_unused_spans_repeat_the_last() -> None:
    image = read(compile_rules(RuleSet((Rule("1", "drop", source=("10.0.0.0/8", "fe80::/10")),)), queues=1))
    assert list(image.first_step) == [2, 0, 2, 0]
    assert list(image.span4[0][0:4]) == [0, 10 << 24, 11 << 24, 0xFFFFFFFF]
    assert image.span4[0][lib.XSKD_MAX_SPANS - 1] == 0xFFFFFFFF
    assert image.span4_class[0][lib.XSKD_MAX_SPANS - 1] == image.span4_class[0][2]
    assert list(image.span6[0][1]) == [0xFE80 << 48, 0]
    assert list(image.span6[0][lib.XSKD_MAX_SPANS - 1]) == [(1 << 64) - 1] * 2


def test_the_tables_can_be_full_and_not_fuller() -> None:
    def hosts(count: int) -> RuleSet:
        return RuleSet(
            (Rule("1", "drop", source=tuple(f"10.0.{2 * n >> 8}.{2 * n & 255}/32" for n in range(count))),)
        )

    full = lib.XSKD_MAX_SPANS // 2 - 1  # two stretches each, one in front
    packet = rule_packets.ethernet(
        0x0800, rule_packets.ipv4(b"", 59, bytes([10, 0, 2 * full - 2 >> 8, 2 * full - 2 & 255]))
    )
    assert look_up(read(compile_rules(hosts(full), queues=1)), packet) == (0, True)
    with pytest.raises(
        RulesError, match=r"source prefixes divide IPv4 into 8193 stretches, .* room for 8192"
    ):
        compile_rules(hosts(full + 1), queues=1)
    ports = tuple(Rule(str(n), "drop", source_port=((n, 32768 + 31 * n),)) for n in range(1, 1025))
    pick = random.Random(3)
    wild = tuple(
        Rule(rule.name, "drop", source_port=tuple((low, low + 5) for low in pick.sample(range(65000), 20)))
        for rule in ports
    )
    with pytest.raises(RulesError, match=r"overlap in \d+ ways, and there is room for 16384"):
        compile_rules(RuleSet(wild), queues=1)
    with pytest.raises(RulesError, match="1025 rules are too many"):
        compile_rules(RuleSet(tuple(Rule(str(n), "drop") for n in range(1025))), queues=1)


# ---- limits ---------------------------------------------------------------------------------------


def test_limits_are_costs_of_one_queues_share() -> None:
    limited = Rule("1", "redirect", limit=Limit(1000, 8_000_000, 100))
    image = read(
        compile_rules(RuleSet((Rule("0", "drop", vlan=((1, 1),)), limited), limit=Limit(500_000)), queues=4)
    )
    assert (image.rules[0].limit, image.rules[1].limit, image.limited) == (0, 1, 1)
    own, path = image.limits[1], image.limits[0]
    assert own.packet_cost == 4 * 1_000_000 << 16  # 4 ms of a queue's time
    assert own.byte_cost == 4 * 1_000 << 16
    assert own.depth == 100_000_000 << 16
    assert (path.packet_cost, path.byte_cost, path.depth) == (8_000 << 16, 0, 50_000_000 << 16)


def test_limits_of_rules_have_numbers_of_their_own_and_an_end() -> None:
    def limited(count: int) -> RuleSet:
        return RuleSet(
            tuple(Rule(str(n), "redirect", vlan=((n, n),), limit=Limit(n)) for n in range(1, count + 1))
        )

    image = read(compile_rules(limited(255), queues=1))
    assert [image.rules[place].limit for place in range(255)] == list(range(1, 256))
    assert image.limited == 0
    with pytest.raises(RulesError, match="256 rules have a limit; at most 255"):
        compile_rules(limited(256), queues=1)


def passed(rate: int, *, offered: int, seconds: float, queues: int = 1, burst: int = 64) -> int:
    """Packets that the buckets of bpf/police.h let pass, all queues together, offered to each in bursts."""
    image = read(compile_rules(RuleSet(limit=Limit(rate)), queues=queues))  # its parts do not keep it alive
    cost, depth = image.limits[0].packet_cost, image.limits[0].depth
    assert cost <= depth
    count, saved, since = 0, depth, 0  # a new bucket is full
    for number in range(int(offered / queues * seconds / burst)):
        now = int(number * burst * queues / offered * 1e9)
        saved = min(saved + (now - since << 16), depth)
        since = now
        pass_now = min(burst, saved // cost)
        saved -= pass_now * cost
        count += pass_now
    return count * queues  # each queue has the same


@pytest.mark.parametrize("queues", [1, 2, 4, 16])
@pytest.mark.parametrize("rate", [1_000, 3_333, 20_000, 500_000])
@pytest.mark.parametrize("overload", [1.2, 2, 10])
def test_packets_in_bursts_of_64_meet_the_rate_within_2_percent(
    queues: int, rate: int, overload: float
) -> None:
    offered = int(rate * overload)
    burst = max(1, 64 // queues)  # a burst of the sender, which is spread over the queues
    got = passed(rate, offered=offered, seconds=5, queues=queues, burst=burst)
    assert got == pytest.approx(5 * rate, rel=0.02)


def test_a_rate_that_is_not_reached_lets_all_pass() -> None:
    assert passed(1000, offered=900, seconds=5) == 900 * 5 // 64 * 64


def test_the_lowest_rates_over_many_queues_are_no_zero() -> None:
    image = read(compile_rules(RuleSet(limit=Limit(1, 1000, 1)), queues=1024))
    limit = image.limits[0]
    assert limit.packet_cost == 1024 * 10**9 << 16
    assert 0 < limit.byte_cost * 65535 < 1 << 63
    assert limit.packet_cost * 2 == limit.depth
