"""What the bench offers, and what it tells those it compares: frames, loads, rules, tables; and its pages."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from bench import bpf, express, generator, limits, routes, rules
from bench.bpf import Program
from bench.contenders import CONNECT, DROP
from bench.filters import Case, NftRules, NftSet, XskdFilter
from bench.generator import Load
from bench.series import Series, spread, table
from bench.throughput import Run

LOADS = (
    Load(),
    Load(frame_bytes=1500, port=53),
    routes.LOAD,
    Load(port=1024, ports=1024),
    Load(flows=True),
    limits.MIX,
)


def checksum_is_right(frame: bytes) -> bool:
    total = sum(int.from_bytes(frame[at : at + 2]) for at in range(14, 34, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def run(program: Program, frame: bytes, bits: int) -> bytes:  # noqa: PLR0912 - one for each instruction
    """Do what the instructions say with a frame, `bits` being what the kernel draws; the frame afterwards."""
    registers: dict[int, int] = {1: -1}
    packet, place = bytearray(frame), 0
    while True:
        op, to, by, at, value = program[place]
        place += 1
        match op:
            case bpf._MOVE:
                registers[to] = registers[by]
            case bpf._MOVE_K:
                registers[to] = value & 0xFFFF_FFFF
            case bpf._ADD:
                registers[to] += registers[by]
            case bpf._ADD_K:
                registers[to] += value
            case bpf._AND_K:
                registers[to] &= value & 0xFFFF_FFFF
            case bpf._OR_K:
                registers[to] |= value & 0xFFFF_FFFF
            case bpf._XOR_K:
                registers[to] ^= value
            case bpf._SHIFT_RIGHT_K:
                registers[to] >>= value
            case bpf._TO_BIG_ENDIAN:
                size = value // 8
                registers[to] = int.from_bytes(
                    (registers[to] & (1 << value) - 1).to_bytes(size, "big"), "little"
                )
            case bpf._LOAD_U32:
                assert registers[by] == -1, "the context"
                registers[to] = {0: 0, 4: len(packet)}[at]
            case bpf._STORE_U16 | bpf._STORE_U32:
                size = 2 if op == bpf._STORE_U16 else 4
                packet[at : at + size] = (registers[by] & (1 << 8 * size) - 1).to_bytes(size, "little")
            case bpf._STORE_K_U32:
                packet[at : at + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")
            case bpf._JUMP_GREATER:
                place += at if registers[to] > registers[by] else 0
            case bpf._CALL:
                assert value == bpf._GET_PRANDOM_U32
                registers[0] = bits
            case bpf._EXIT:
                return bytes(packet)
            case _:
                raise AssertionError(f"instruction {op:#x} is not known here")


def drawn() -> Iterator[int]:
    yield from (0, 1, 0xFFFF, 0xFFFF_FFFF, 0x8000_0000, 0x0FFF_FFFF, 0xDEAD_BEEF, 0x1234_5678)
    yield from (number * 2_654_435_761 & 0xFFFF_FFFF for number in range(500))


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_a_load_is_told_to_the_generator_and_read_back(load: Load) -> None:
    assert generator.read(load.arguments()) == load


@pytest.mark.parametrize("load", [load for load in LOADS if load.addresses == 1], ids=str)
def test_a_frame_is_as_long_as_it_should_be_and_its_header_is_right(load: Load) -> None:
    frame = load.frame()
    assert len(frame) == load.frame_bytes
    assert checksum_is_right(frame)
    assert int.from_bytes(frame[36:38]) == load.port


def test_a_mixed_load_is_one_of_short_packets_some_with_a_trailer() -> None:
    frame = limits.MIX.frame()
    assert (len(frame), int.from_bytes(frame[16:18])) == (128, 64 - 14)


def test_random_addresses_are_all_in_the_prefix_and_the_checksum_stays_right() -> None:
    seen = set()
    for bits in drawn():
        frame = run(routes.LOAD.program(), routes.LOAD.frame(), bits)
        assert checksum_is_right(frame)
        seen.add(ipaddress.ip_address(frame[30:34]))
    assert all(address in routes.COVERED for address in seen)
    assert len({int(address) >> 8 for address in seen}) > 400


def test_random_ports_reach_from_the_first_to_the_last_rule() -> None:
    load = Case(CONNECT, "port", 1024, spread=True).load
    program, frame = load.program(), load.frame()
    ports = {int.from_bytes(run(program, frame, bits << 4)[36:38]) for bits in range(1024)}
    assert ports == set(range(1024, 2048))


def test_what_a_router_changed_is_as_before_when_the_frame_is_sent_again() -> None:
    load = Load(routed=True)
    frame = load.frame()
    routed = b"\xaa" * 12 + frame[12:22] + b"\x3f" + frame[23:24] + b"\x12\x34" + frame[26:]
    assert run(load.program(), routed, 0) == frame


def test_counts_that_are_no_powers_of_two_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Load(ports=1000, port=1024).program()


def test_the_rules_of_a_case_are_the_same_for_all() -> None:
    case = Case(DROP, "prefix", 1024)
    interface = XskdFilter(case).configuration()["interfaces"]["eth1"]
    assert interface["default"] == "redirect"
    assert [rule["destination"] for rule in interface["rules"]] == case.prefixes
    lines = NftRules(case).ruleset().splitlines()
    assert [line.split()[2] for line in lines if line.startswith("ip daddr")] == case.prefixes
    assert lines[-4:] == ["ip daddr 10.131.255.0/24 drop", 'fwd to "eth2"', "}", "}"]
    assert NftSet(case).ruleset().count("10.131.255.0/24") == 1
    assert case.load.address == "10.131.255.0"
    assert case.refused == case.load


def test_without_rules_nothing_is_asked_and_nothing_refused() -> None:
    case = Case(CONNECT)
    assert XskdFilter(case).configuration()["interfaces"]["eth1"] == {}
    assert 'fwd to "eth2"' in NftRules(case).ruleset()
    assert "drop" not in NftRules(case).ruleset()
    assert case.refused is None


def test_both_tables_cover_every_address_of_the_load() -> None:
    for routing in (routes.SMALL, routes.LARGE):
        prefixes = [line.split()[2] for line in routing.batch() if ":" not in line]
        covered = sum(ipaddress.ip_network(prefix).num_addresses for prefix in (prefixes[0], prefixes[-1]))
        assert covered * len(prefixes) // 2 == routes.LOAD.addresses
    assert sum(1 for _ in routes.LARGE.batch()) == 1_048_576 + 100_000


def test_the_ipv6_routes_of_the_large_table_differ() -> None:
    only = [line.split()[2] for line in routes.Table("", 4, 100_000).batch()][1:]
    assert len({ipaddress.ip_network(prefix) for prefix in only}) == 100_000


def test_a_spread_says_median_smallest_and_largest() -> None:
    assert spread([3, 1, 2000]) == "3 (1 to 2,000)"
    assert spread([0.98765], 2) == "0.99"
    assert spread([]) == "-"
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |", ""]


def _run(contender: str, kpps: float, thrown_away: str = "") -> Run:
    return Run(
        round=0,
        contender=contender,
        strangers=0.0,
        speed_before=1.0,
        speed_after=1.0,
        thrown_away=thrown_away,
        mode="connect",
        frame_bytes=64,
        seconds=1.0,
        packets=int(kpps * 1000),
        offered=0,
        user_seconds=0.0,
        system_seconds=0.5,
    )


def test_the_page_of_the_lane_divides_by_the_kernels_redirect_and_leaves_out_what_may_not_count() -> None:
    lane = express.Express.name
    runs = [_run(express.LIMIT.name, 4000), _run(lane, 3800), _run(lane, 10, "others used 50% of a CPU")]
    page = express.page(_series("express", runs))
    assert f"| {lane} | 3,800 | 0.95 |" in page
    assert "3 measurements were made and 1 of them thrown away." in page


def test_a_page_of_nothing_is_one() -> None:
    nothing: Series[Any] = _series("nothing", [])
    for page in (express.page, limits.page, routes.page, rules.page):
        assert "0 measurements" in page(nothing)


def _series(name: str, runs: list[Run]) -> Series[Run]:
    host: dict[str, str | int] = {
        "cpu": "a CPU",
        "cores": 2,
        "virtual": "kvm",
        "kernel": "6",
        "system": "Debian",
    }
    return Series(name, "now", host, {"rounds": 1, "seconds": 1}, {}, runs=runs)


def test_the_addresses_of_a_frame_are_the_labs() -> None:
    frame = Load().frame()
    assert socket.inet_ntoa(frame[26:30]) == "10.99.0.1"
    assert socket.inet_ntoa(frame[30:34]) == "10.99.0.2"
