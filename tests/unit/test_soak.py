"""What a soak says of what it saw: sums, slopes, and that every broken promise is named."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from lab.arrivals import Arrivals
from lab.soak import faults
from lab.soak.account import Balance, Sample, broken, slope, well, went_back
from lab.soak.report import RECOVERY_SECONDS, Episode, Findings
from lab.soak.streams import HEAD, PER_OCTAVE, packet, payload, percentile
from xskd.config import parse
from xskd.errors import XskdError

QUIET = Episode("restart", "systemctl restart", 1.0, Balance(10, 10), 0.1, 0.1)
SAMPLE = Sample(0.0, 40 << 20, 60, 30 << 20, 50, 5)
GOOD = {"sent": 9, "received": 9, "doubled": 0, "damaged": 0, "latency": {"140": 9}}


def found(**changes: Any) -> Findings:
    return replace(
        Findings(seed=1, minutes=60, seconds=3600, streams={"wire": dict(GOOD)}, episodes=[QUIET]), **changes
    )


def status(**worker: Any) -> dict[str, Any]:
    counters = {"frames": 8, "frames_in": {"free": 6, "fill": 2}, "frames_unaccounted": 0, "turns": 5}
    port = {
        "interface": "eth1",
        "counters": {"rx_packets": 3, "drops": {"oversize": 1}},
        "kernel": {"rx_dropped": 0},
    }
    known = {"name": "wire/0", "state": "forwarding", "counters": counters, "ports": [port], **worker}
    return {"workers": [known], "waiting": {}, "interfaces": [{"name": "eth1", "verdicts": {"passed": 2}}]}


def test_what_was_sent_arrived_was_counted_or_is_named() -> None:
    since = Balance(100, 90, Counter({"a": 4, "b": 6}))
    now = Balance(300, 270, Counter({"a": 10, "b": 6, "c": 9}))
    moved = now - since
    assert (moved.sent, moved.arrived, moved.lost) == (200, 180, {"a": 6, "c": 9})
    assert moved.uncounted == 5
    assert since.uncounted == 0


def test_every_broken_promise_is_named() -> None:
    assert found().judge() == []
    assert "Every promise was kept." in found().page()
    slow = replace(QUIET, recovery=RECOVERY_SECONDS + 1)
    lossy = replace(QUIET, balance=Balance(10, 9))
    twice = replace(QUIET, balance=Balance(9, 10))
    for broken_one, word in (
        (found(problems=["no answer"]), "no answer"),
        (found(streams={"wire": {**GOOD, "damaged": 2}}), "stream wire: 2 packets damaged"),
        (found(streams={"wire": {**GOOD, "doubled": 1}}), "stream wire: 1 packets doubled"),
        (found(episodes=[slow]), "flowed again after 21.0 s"),
        (found(episodes=[lossy]), "1 packets were lost and not counted"),
        (found(episodes=[twice]), "-1 packets were lost and not counted"),
        (found(samples=growing("supervisor_fds", 1)), "supervisor fds grew"),
        (found(samples=growing("supervisor_memory", 1 << 20)), "supervisor memory grew"),
    ):
        (said,) = broken_one.judge()
        assert word in said
        assert f"* {said}" in broken_one.page()


def test_a_killed_worker_may_have_a_batch_in_its_hands_and_no_more() -> None:
    for lost, kept in ((64, True), (65, False)):
        episode = replace(QUIET, kind="kill worker", balance=Balance(1000, 1000 - lost))
        assert (found(episodes=[episode]).judge() == []) == kept


def growing(name: str, step: int) -> list[Sample]:
    """One more of something each minute of an hour."""
    first = getattr(SAMPLE, name)
    return [replace(SAMPLE, at=60.0 * n, **{name: first + n * step}) for n in range(61)]


def test_a_slope_is_what_is_added_in_an_hour() -> None:
    assert slope(growing("supervisor_fds", 1), "supervisor_fds") == pytest.approx(60)
    assert slope([SAMPLE], "supervisor_fds") == 0


def test_a_percentile_is_right_to_an_eighth_of_an_octave() -> None:
    bucket = int(math.log2(50_000) * PER_OCTAVE)
    assert 50e-6 <= percentile({bucket: 99, bucket + 80: 1}, 0.5) <= 50e-6 * 2 ** (1 / PER_OCTAVE)
    assert percentile({bucket: 99, bucket + 80: 1}, 0.999) > 1000 * 50e-6
    assert math.isnan(percentile({}, 0.5))


def test_packets_of_a_stream_are_of_all_lengths_and_no_two_alike() -> None:
    packets = [packet(1, number, 7) for number in range(3000)]
    assert len(set(packets)) == 3000
    assert {len(one) for one in packets} == set(range(60, 1515))
    assert all(one[HEAD.size :] == payload(number) for number, one in enumerate(packets))


def test_frames_astray_and_counters_that_go_back_are_seen() -> None:
    good = status()
    assert broken(good) == []
    assert went_back(good, good) == []
    astray = status(counters={**good["workers"][0]["counters"], "frames_in": {"free": 6, "fill": 1}})
    assert len(broken(astray)) == 1
    later = status(counters={**good["workers"][0]["counters"], "turns": 4})
    assert went_back(good, later) == ["wire/0 turns: 5 -> 4"]
    assert well(good)
    assert not well(status(state="backoff"))


def test_a_deck_has_every_fault_and_a_seed_deals_it_again() -> None:
    dealt = faults.deck(random.Random(7))
    assert Counter(dealt) == faults.FAULTS
    assert dealt == faults.deck(random.Random(7)) != faults.deck(random.Random(8))
    assert set(faults.deck(random.Random(7), "kill")) == {
        faults.kill_worker,
        faults.kill_supervisor,
        faults.kill_both,
    }


def test_the_wrong_files_of_a_soak_are_wrong_and_the_right_ones_right() -> None:
    parse(faults.configuration(), "soak.yaml")
    for text in faults.INVALID:
        with pytest.raises(XskdError):
            parse(text, "soak.yaml")


def test_what_arrives_is_known_by_its_number_and_a_pause_is_no_silence() -> None:
    arrivals = Arrivals()
    assert arrivals.waiting(50.0) == 0
    for number, now in ((0, 100.0), (1, 100.5), (40_000, 100.6), (1, 100.7)):
        arrivals.take(number, now)
    assert (arrivals.received, arrivals.doubled) == (4, 1)
    assert (arrivals.silence, arrivals.waiting(103.7)) == (0.5, 3.0)
    arrivals.begin_anew()
    assert (arrivals.silence, arrivals.waiting(104.0)) == (0, 0)
    arrivals.take(7, 105.0)
    arrivals.take(8, 105.25)
    assert (arrivals.received, arrivals.doubled, arrivals.silence) == (6, 1, 0.25)
