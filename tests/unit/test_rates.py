"""Rates of two pictures: right where they can be known, unknown where they cannot, never negative."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pictures import BENIGN, DROPS, KERNEL, REGIMES, WAKEUPS, interface, picture, port, rule, worker

from xskd import rates

COUNTERS = (*DROPS, *KERNEL, *BENIGN, *WAKEUPS, "rx_packets", "rx_bytes", "tx_packets", "tx_bytes")


def one(counts: dict[str, int], **more: Any) -> dict[str, Any]:
    return picture(worker(0, port(counts=counts)), **more)


def row(counts: dict[str, int], before: dict[str, int] | None = None, **more: Any) -> rates.SocketRow:
    earlier = None if before is None else one(before)
    (made,) = rates.socket_rows(one(counts, **more), earlier, 2.0)
    return made


def test_rates_are_what_was_counted_in_between_per_second() -> None:
    before = {"rx_packets": 100, "rx_bytes": 6_400, "tx_packets": 7, "new": 4, "sleep": 1}
    made = row({"rx_packets": 300, "rx_bytes": 19_200, "tx_packets": 7, "new": 12, "sleep": 3}, before)
    assert (made.rx, made.rx_bits, made.tx, made.tx_bits) == (100.0, 51_200.0, 0.0, 0.0)
    assert (made.wakeups, made.packets_per_wakeup) == (5.0, 20.0)
    assert (made.losing, made.lost) == ({}, {})


def test_a_loss_is_a_lost_packet_whoever_lost_it_and_is_counted_once() -> None:
    names = (*DROPS, *KERNEL, *BENIGN)
    made = row({name: 10 for name in names}, dict.fromkeys(names, 4))
    lost = {*DROPS, "rx_dropped", "rx_ring_full", "tx_invalid_descs"}
    assert made.losing == dict.fromkeys(lost, 3.0)
    assert (made.lost_packets, made.losing_packets) == (10 * len(lost), 3.0 * len(lost))


@pytest.mark.parametrize("other", [{"pid": 1}, {"started": 2.0}])
def test_of_two_daemons_nothing_is_known(other: dict[str, Any]) -> None:
    made = row({"rx_packets": 300}, {"rx_packets": 100}, **other)
    assert (made.rx, made.tx, made.losing, made.wakeups, made.regimes) == (None,) * 5
    assert made.rx_packets == 300


def test_a_counter_that_went_back_has_no_rate() -> None:
    made = row(
        {"rx_packets": 1, "tx_packets": 9, "tx_full": 1}, {"rx_packets": 2, "tx_packets": 1, "tx_full": 2}
    )
    assert (made.rx, made.tx, made.losing, made.packets_per_wakeup) == (None, 4.0, None, None)


def test_regimes_are_shares_of_the_time() -> None:
    def at(*spent: int) -> dict[str, Any]:
        counters = worker()["counters"] | {"regimes_ns": dict(zip(REGIMES, spent, strict=True))}
        return picture(worker(0, port(), counters=counters))

    (made,) = rates.socket_rows(at(600, 100, 1_200, 200), at(0, 0, 1_000, 100), 1.0)
    assert made.regimes == {"working": 0.6, "spinning": 0.1, "sleeping": 0.2, "waking": 0.1}


def test_a_path_is_all_its_queues_together() -> None:
    def at(count: int) -> dict[str, Any]:
        counts = {"rx_packets": count, "tx_full": count}
        return picture(
            worker(0, port(queue=0, counts=counts), port("eth2", 0)),
            worker(1, port(queue=1, counts=counts), state="backoff"),
            worker(0, port("eth3", counts=counts), path="other", kind="reflect"),
        )

    (other, wire) = rates.path_rows(at(30), rates.socket_rows(at(30), at(10), 1.0))
    assert (wire.name, wire.kind, wire.forwarding, wire.queues) == ("wire", "connect", 1, 2)
    assert (wire.rx, wire.losing, wire.lost, wire.modes) == (40.0, 40.0, 60, ("copy",))
    assert (other.name, other.kind, other.rx) == ("other", "reflect", 20.0)


def test_packets_of_queues_without_a_socket_have_rates_as_well() -> None:
    def at(passed: int, dropped: int) -> dict[str, Any]:
        verdicts = {"redirected": 9, "no_socket_passed": passed, "no_socket_dropped": dropped}
        return picture(interfaces=[interface(verdicts=verdicts)])

    (made,) = rates.interface_rows(at(12, 5), at(2, 5), 2.0)
    assert (made.passed, made.passing, made.dropped, made.dropping) == (12, 5.0, 5, 0.0)


def test_rules_have_rates_and_an_interface_without_any_has_its_default() -> None:
    def at(matched: int, size: int, limited: int) -> dict[str, Any]:
        rules = [rule("dns", matched, size, limited), rule("default", 9, match="", verdict="pass")]
        return picture(interfaces=[interface(rules=rules), interface("eth2", default="drop")])

    dns, default, other = rates.rule_rows(at(12, 1200, 4), at(2, 200, 0), 2.0)
    assert (dns.interface, dns.position, dns.name, dns.packets, dns.matching) == ("eth1", 1, "dns", 12, 5.0)
    assert (dns.bytes, dns.bits, dns.limited, dns.limiting) == (1200, 4000.0, 4, 2.0)
    assert (default.position, default.verdict, default.packets, default.matching) == (0, "pass", 9, 0.0)
    assert (other.interface, other.name, other.verdict, other.packets) == ("eth2", "default", "drop", None)
    assert other.matching is other.bits is other.limiting is None


def test_a_rule_that_has_come_since_has_no_rate() -> None:
    now, before = (picture(interfaces=[interface(rules=[rule(name, 5)])]) for name in ("new", "old"))
    assert [row.matching for row in rates.rule_rows(now, before, 1.0)] == [None]


def rates_of(made: rates.SocketRow) -> Iterable[float | None]:
    yield from (made.rx, made.tx, made.rx_bits, made.tx_bits, made.wakeups, made.packets_per_wakeup)
    yield from (made.losing or {}).values()
    yield from (made.regimes or {}).values()


COUNTS = some.dictionaries(some.sampled_from(COUNTERS), some.integers(0, 2**64 - 1))
PORTS = some.builds(
    lambda name, queue, counts: port(name, queue, counts=counts),
    some.sampled_from(["eth1", "eth2"]), some.integers(0, 1), COUNTS,
)  # fmt: skip
WORKERS = some.builds(
    lambda index, ports, spent: worker(
        index, *ports, counters=worker()["counters"] | {"regimes_ns": dict(zip(REGIMES, spent, strict=True))}
    ),
    some.integers(0, 1), some.lists(PORTS, max_size=2), some.tuples(*[some.integers(0, 2**64 - 1)] * 4),
)  # fmt: skip
PICTURES = some.builds(
    lambda workers, pid: picture(*workers, pid=pid), some.lists(WORKERS, max_size=3), some.integers(1, 2)
)


@given(PICTURES, PICTURES, some.sampled_from([-1.0, 0.0, 0.001, 1.0, 3600.0]))
def test_no_two_pictures_give_a_negative_rate_or_lose_a_row(
    before: dict[str, Any], now: dict[str, Any], seconds: float
) -> None:
    rows = rates.socket_rows(now, before, seconds)
    assert [(made.worker, made.interface, made.queue) for made in rows] == [
        (each["name"], one["interface"], one["queue"]) for each in now["workers"] for one in each["ports"]
    ]
    assert all(rate is None or rate >= 0 for made in rows for rate in rates_of(made))
    known = {
        (each["name"], one["interface"], one["queue"]) for each in before["workers"] for one in each["ports"]
    }
    for made in rows:
        if (made.worker, made.interface, made.queue) not in known or now["pid"] != before["pid"]:
            assert set(rates_of(made)) == {None}


def test_names_are_sorted_as_people_count() -> None:
    ports = [port("eth10", 0), port("eth9", 0), port("eth9", 10), port("eth9", 2), port("lo", 2)]
    rows = rates.socket_rows(picture(worker(0, *ports)))
    assert [made.port for made in sorted(rows, key=rates.by_name)] == [
        *("eth9:0", "eth10:0", "eth9:2", "lo:2", "eth9:10"),
    ]


def test_the_worst_is_what_loses_now_then_what_stands_still_then_what_has_lost() -> None:
    def at(count: int) -> dict[str, Any]:
        return picture(
            worker(0, port(counts={"tx_full": 5}), port("eth2", counts={"rx_packets": count})),
            worker(1, port(queue=1), state="backoff"),
            worker(2, port(queue=2, counts={"rx_ring_full": count})),
        )

    rows = rates.socket_rows(at(3), at(1), 1.0)
    assert [made.port for made in sorted(rows, key=rates.by_loss)] == ["eth1:2", "eth1:1", "eth1:0", "eth2:0"]
    assert min(rows, key=rates.by_rate).port == "eth2:0"
