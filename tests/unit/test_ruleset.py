"""Rules as plain values: their words, their labels, their way through JSON; and from YAML to them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xskd import config, names
from xskd.errors import ConfigError
from xskd.rules import MAX_RULES, Express, Limit, Rule, RuleSet, merged

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def loaded(rules: str, *, interface: str = "", path: str = "connect: [eth1, eth2]") -> RuleSet:
    text = f"interfaces: {{eth1: {{rules: {rules}{interface}}}, eth2: }}\npaths: {{p: {{{path}}}}}\n"
    return config.parse(text, "x.yaml").rules_of("eth1")


def rule(match: str) -> Rule:
    """The one rule that the YAML of a match makes."""
    (made,) = loaded(f"[{{{match + ', ' if match else ''}verdict: drop}}]").rules
    return made


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "x.yaml")
    return str(caught.value)


# ---- from YAML ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("", "any"),
        ("vlan: 5", "vlan 5"),
        ("vlan: none", "vlan none"),
        ("vlan: [none, 30-39, 5, 0]", "vlan none,0,5,30-39"),
        ("ether_type: ARP", "ether_type arp"),
        ("ether_type: 0x88cc", "ether_type lldp"),
        ("ether_type: [0x1234, 0x0800-0x0801]", "ether_type 0x0800-0x0801,0x1234"),
        ("source: 10.1.2.3", "source 10.1.2.3/32"),
        ('source: ["2001:DB8:0::/32", 10.0.0.0/8]', "source 2001:db8::/32,10.0.0.0/8"),
        ('destination: "::/0"', "destination ::/0"),
        ("protocol: [ipv6-icmp, 17, tcp, 200]", "protocol tcp,udp,icmpv6,200"),
        ("protocol: 6-7", "protocol 6-7"),
        ("source_port: [https, 80, 79]", "source_port 79-80,443"),
        ('destination_port: "53, 8000 - 8100"', "destination_port 53,8000-8100"),
        ("tcp_flags: ACK  !syn", "tcp_flags !syn ack"),
        ("tcp_flags: [syn, fin rst, syn]", "tcp_flags syn,fin rst"),
        ("protocol: icmp, icmp_type: echo-request", "protocol icmp icmp_type 8"),
        ("protocol: icmpv6, icmp_type: [echo-request, 133-137]", "protocol icmpv6 icmp_type 128,133-137"),
        ("fragment: yes", "fragment first,later"),
        ("fragment: no", "fragment whole"),
        ("fragment: later", "fragment later"),
        ("fragment: true, destination_port: 53", "destination_port 53 fragment first,later"),
    ],
)
def test_matches_and_their_canonical_words(written: str, text: str) -> None:
    assert rule(written).text == text


def test_a_number_in_base_60_is_text() -> None:
    text = "interfaces: {a: {queues: 22:25}}\npaths: {p: {reflect: a}}\n"
    assert '"22:25" is no queue number' in refused(text)


def test_names_limits_and_labels() -> None:
    rules = loaded(
        "[{name: dns, protocol: udp, verdict: redirect, limit: {packets_per_second: 10}},"
        " {vlan: 3, verdict: pass}]",
        interface=", default: drop",
        path="connect: [eth1, eth2], limit: {bits_per_second: 1000000, burst: 5}",
    )
    assert rules.labels == ("dns", "2", "default")
    assert rules.rules[0].limit == Limit(10, None, 50)
    assert rules.limit == Limit(None, 1_000_000, 5)
    assert rules.limit.text == "1000000 bits/s, burst 5 ms"
    assert rules.default == "drop"


def test_what_is_built_in() -> None:
    reflect = loaded("null", path="reflect: eth1}, q: {reflect: eth2")
    assert [(made.name, made.text, made.verdict) for made in reflect.rules] == [
        ("arp", "ether_type arp", "pass"),
        ("neighbour-discovery", "protocol icmpv6 icmp_type 133-137", "pass"),
        ("ssh", "protocol tcp destination_port 22", "pass"),
    ]
    assert loaded("[]", path="reflect: eth1}, q: {reflect: eth2").rules == ()
    assert loaded("null") == RuleSet() == loaded("[]")


def test_the_documented_built_in_rules_are_those() -> None:
    examples = [text.partition("```")[0] for text in PAGE.read_text().split("```yaml\n")]
    (example,) = (text for text in examples if "built in" in text)
    documented = config.parse(example, "x.yaml").rules_of("eth1")
    assert documented == loaded("null", path="reflect: eth1}, q: {reflect: eth2")


def test_the_page_lists_every_name() -> None:
    page = PAGE.read_text()
    tables = (names.ETHER_TYPES, names.PROTOCOLS, names.PORTS, names.ICMP_TYPES, names.ICMPV6_TYPES)
    for name in (name for table in (*tables, names.TCP_FLAGS) for name in table):
        assert f"`{name}`" in page, name


def test_express_off_is_no_boolean() -> None:
    text = "interfaces: {{a: , b: }}\npaths: {{p: {{connect: [a, b], express: {}}}}}\n"
    for written, express in (("off", "off"), ('"off"', "off"), ("auto", "auto"), ("rules", "rules")):
        assert config.parse(text.format(written), "x.yaml").paths["p"].express == express


def test_the_most_rules_and_limits() -> None:
    def text(count: int, more: str) -> str:
        rules = ", ".join(f"{{source_port: {n}, verdict: redirect{more}}}" for n in range(count))
        return f"interfaces: {{a: {{rules: [{rules}]}}}}\npaths: {{p: {{reflect: a}}}}\n"

    limit = ", limit: {packets_per_second: 5}"
    assert len(config.parse(text(MAX_RULES, ""), "x.yaml").rules_of("a").rules) == MAX_RULES
    assert refused(text(MAX_RULES + 1, "")) == (
        "x.yaml:1: interfaces.a.rules: has 1025 rules; an interface has at most 1024"
    )
    config.parse(text(255, limit), "x.yaml")
    assert refused(text(256, limit)) == (
        "x.yaml:1: interfaces.a.rules[255].limit: is limit number 256; "
        "at most 255 rules of an interface have one"
    )


def test_many_long_rules_load_quickly() -> None:
    ports = ", ".join(f"{port}-{port + 3}" for port in range(0, 150, 5))
    rules = ", ".join(
        f"{{source: 10.{n >> 8}.{n & 255}.0/24, destination_port: [{ports}], verdict: drop}}"
        for n in range(1024)
    )
    started = time.process_time()
    made = loaded(f"[{rules}]")
    assert len(made.rules) == 1024
    assert time.process_time() - started < 60  # some seconds, most of them the reading of YAML


# ---- plain values ---------------------------------------------------------------------------------


def test_through_json_and_back() -> None:
    rules = RuleSet(
        (
            Rule("a", "express", vlan=((1, 2),), untagged=True, source=("::/0",), limit=Limit(1, 2000, 3)),
            Rule("b", "drop", tcp_flags=((18, 2),), fragment=("first", "later")),
        ),
        "pass",
        Limit(5),
    )
    record = json.loads(json.dumps(dataclasses.asdict(rules)))
    assert RuleSet.from_record(record) == rules
    assert hash(RuleSet.from_record(record)) == hash(rules)
    assert RuleSet.from_record(json.loads(json.dumps(dataclasses.asdict(RuleSet())))) == RuleSet()


@pytest.mark.parametrize(
    ("express", "verdicts", "default"),
    [
        ("rules", ["redirect", "express", "pass", "drop"], "redirect"),
        ("auto", ["express", "express", "pass", "drop"], "express"),
        ("off", ["redirect", "redirect", "pass", "drop"], "redirect"),
    ],
)
def test_effective(express: Express, verdicts: list[str], default: str) -> None:
    rules = RuleSet((Rule("1", "redirect"), Rule("2", "express"), Rule("3", "pass"), Rule("4", "drop")))
    effective = rules.effective(express)
    assert [made.verdict for made in effective.rules] == verdicts
    assert effective.default == default
    assert effective.labels == rules.labels


def test_plain_is_what_needs_no_looking_up() -> None:
    assert RuleSet(default="drop").plain
    assert not RuleSet(limit=Limit(1)).plain
    assert not RuleSet((Rule("1", "drop"),)).plain


def test_merged_ranges_neither_overlap_nor_touch() -> None:
    assert merged([(5, 9), (1, 2), (3, 3), (8, 12), (20, 20)]) == [(1, 3), (5, 12), (20, 20)]


def test_names_are_unambiguous_and_in_range() -> None:
    assert max(names.ETHER_TYPES.values()) <= 0xFFFF
    assert max(names.PROTOCOLS.values()) <= 255
    assert max(names.PORTS.values()) <= 0xFFFF
    for table in (names.ETHER_TYPES, names.PROTOCOLS, names.PORTS, names.ICMP_TYPES, names.ICMPV6_TYPES):
        assert all(name == name.lower() and not name[0].isdigit() for name in table)


def test_rules_need_nothing_that_workers_must_not_load() -> None:
    code = "import sys, xskd.rules; print(sorted({'pydantic', 'yaml', 'pyroute2'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
