"""The BPF program against the model of the rules: packets of every shape, rules at random.

BPF_PROG_TEST_RUN shows each packet to the real program. Its return code tells the verdict, the tallies which
rule it met, a counter whether it was parsed. The kernel refuses packets shorter than an Ethernet header here;
tests/unit/test_classify.py has those.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest

from lab import rule_model, rule_packets
from xskd.classify import compile_rules
from xskd.rules import Limit, Rule, RuleSet
from xskd.xdp import Program, RuleTally, test_run

PACKETS = 100_000
SHORTEST = 14
# Without sockets and lanes, redirect and express are the fallback's answer: passed.
ACTIONS = {"redirect": "pass", "express": "pass", "pass": "pass", "drop": "drop"}


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with Program(1) as loaded:
        yield loaded


def compare(program: Program, rules: RuleSet, packets: Iterable[tuple[str, bytes]]) -> Counter[int]:
    """Show the packets to program and model; what each rule has counted must be what it should."""
    program.install(compile_rules(rules, queues=1))
    unparsed = program.unparsed()
    met: Counter[int] = Counter()
    octets: Counter[int] = Counter()
    shown: list[tuple[str, bytes, int]] = []
    for name, packet in packets:
        place, parsed = rule_model.first_match(rules, packet)
        answer = rules.rules[place].verdict if place < len(rules.rules) else rules.default
        action = test_run(program, packet).action
        assert action == ACTIONS[answer], (name, packet.hex(), place, [rule.text for rule in rules.rules])
        met[place] += 1
        octets[place] += len(packet)
        unparsed += not parsed and bool(rules.rules)  # without rules nothing is parsed
        shown.append((name, packet, place))
    expected = tuple(RuleTally(met[place], octets[place], 0) for place in range(len(rules.rules) + 1))
    if program.rule_tallies() != expected or program.unparsed() != unparsed:
        pytest.fail(disagreement(program, rules, shown))
    return met


def disagreement(program: Program, rules: RuleSet, shown: list[tuple[str, bytes, int]]) -> str:
    """The first packet that program and model disagree about: which rule each takes."""
    for name, packet, place in shown:
        before, unparsed = program.rule_tallies(), program.unparsed()
        test_run(program, packet)
        after = program.rule_tallies()
        took = [index for index, tally in enumerate(after) if tally != before[index]]
        parsed = program.unparsed() == unparsed
        if took != [place] or parsed != rule_model.first_match(rules, packet)[1]:
            texts = [*(rule.text for rule in rules.rules), "default"]
            of_rule = [texts[index] for index in (place, *took)]
            return f"{name} {packet.hex()}: model {place}, program {took} (parsed: {parsed}); {of_rule}"
    return "the counts differ, and shown one by one no packet does"


def test_every_shape_by_hand(program: Program) -> None:
    packets = [(name, packet) for name, packet in rule_packets.by_hand()]
    by_field = [
        Rule("untagged-arp", "drop", untagged=True, ether_type=((0x0806, 0x0806),)),
        Rule("vlan", "drop", vlan=((5, 5),), protocol=((17, 17),)),
        Rule("later", "drop", fragment=("later",)),
        Rule("first", "pass", fragment=("first",)),
        Rule("flags", "drop", tcp_flags=((0x12, 0x02),), source=("10.0.0.0/24",)),
        Rule("ping", "drop", protocol=((58, 58),), icmp_type=((0, 127),)),
        Rule("dns", "drop", destination_port=((53, 53),), destination=("2001:db8::/32", "10.0.1.0/24")),
        Rule("whole", "pass", fragment=("whole",)),
    ]
    met = compare(program, RuleSet(tuple(by_field), "drop"), packets)
    assert all(met[place] for place in range(len(by_field) + 1))


def test_every_shape_cut_off_at_every_length(program: Program) -> None:
    rules = rule_packets.rules_at_random(random.Random(7), 40)
    packets = [(name, packet) for name, packet in rule_packets.every_length() if len(packet) >= SHORTEST]
    compare(program, rules, packets)


@pytest.mark.timeout(300)
def test_100000_packets_at_random_over_many_rule_sets(program: Program) -> None:
    pick = random.Random(5)
    sizes: Callable[[], int] = lambda: pick.choice((0, 1, 2, 5, 20, 20, 64, 65, 200))  # noqa: E731
    left, sets, met = PACKETS, 0, 0
    while left:
        rules = rule_packets.rules_at_random(pick, 1024 if sets == 0 else sizes())
        packets = [("at random", rule_packets.at_random(pick)) for _ in range(min(left, 1000))]
        met += len(compare(program, rules, packets))
        left -= len(packets)
        sets += 1
    assert sets >= 100
    assert met > 10 * sets  # most of the rules that were met are not the default


def test_the_thousand_and_twenty_fourth_rule_is_met(program: Program) -> None:
    rules = tuple(Rule(str(n), "pass", destination_port=((n, n),)) for n in range(1, 1024))
    last = Rule("last", "drop", protocol=((17, 17),))
    payload = rule_packets.transport(17, destination=1024)
    packet = rule_packets.ethernet(0x0800, rule_packets.ipv4(payload, 17))
    assert compare(program, RuleSet((*rules, last), "pass"), [("udp", packet)]) == {1023: 1}


def test_one_rule_that_takes_everything(program: Program) -> None:
    packet = rule_packets.ethernet(0x0806, bytes(46))
    assert compare(program, RuleSet((Rule("all", "drop"),), "pass"), [("ARP", packet)]) == {0: 1}


def test_what_is_over_a_limit_is_counted_with_its_rule_and_its_path(program: Program) -> None:
    packet = rule_packets.ethernet(0x0800, rule_packets.ipv4(rule_packets.transport(17), 17))
    rules = RuleSet(
        (Rule("dns", "redirect", destination_port=((53, 53),), limit=Limit(1, burst=1)),),
        limit=Limit(1, burst=1),
    )
    for offered, rule_limited, path_limited in (
        (rules, True, False),
        (RuleSet(limit=rules.limit), False, True),
    ):
        program.install(compile_rules(offered, queues=64))  # a burst of two packets for each queue
        before = program.verdicts()
        actions = Counter(test_run(program, packet).action for _ in range(10))
        after = program.verdicts()
        assert after.rule_limited - before.rule_limited == (actions["drop"] if rule_limited else 0)
        assert after.path_limited - before.path_limited == (actions["drop"] if path_limited else 0)
        assert actions["drop"] >= 7
        assert program.rule_tallies()[0].limited == (actions["drop"] if rule_limited else 0)
        assert program.rule_tallies()[0].packets == 10


def test_a_packet_that_costs_more_than_can_be_saved_up_is_paid_off_at_the_rate(program: Program) -> None:
    packet = rule_packets.ethernet(0x0806, bytes(1236))  # 10 ms of the rate, where 1 ms can be saved up
    program.install(compile_rules(RuleSet(limit=Limit(bits_per_second=1_000_000, burst=1)), queues=1))
    for _ in range(10):
        assert test_run(program, packet).action == "pass"
        before = program.verdicts().path_limited
        test_run(program, packet, repeat=100)
        assert program.verdicts().path_limited > before
        time.sleep(0.012)


@pytest.mark.alone
@pytest.mark.parametrize("rate", [1_000, 10_000])
def test_a_limit_is_met_within_2_percent_over_5_seconds(program: Program, rate: int) -> None:
    """Offered as fast as this process can; time in which it was kept from it is taken off."""
    packet = rule_packets.ethernet(0x0806, bytes(46))
    program.install(compile_rules(RuleSet(limit=Limit(rate)), queues=1))
    most_saved = max(0.020, 65 / rate)
    limited, offered, missed = program.verdicts().path_limited, 0, 0.0
    begun = last = time.monotonic()
    while last < begun + 5:
        test_run(program, packet)
        offered += 1
        now = time.monotonic()
        missed += max(0.0, now - last - most_saved)
        last = now
    passed = offered - (program.verdicts().path_limited - limited)
    assert passed == pytest.approx((last - begun - missed) * rate, rel=0.02)
