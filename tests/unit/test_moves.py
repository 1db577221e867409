"""Every series of /metrics has a test that makes it move by a real cause, or a reason why none can.

A kernel test says so with `@pytest.mark.moves("xskd_ring_full", ring=("fill", "rx"))`; whether it keeps its
word is seen when it runs (tests/kernel/scrapes.py). What the kernel of a test machine cannot be brought to do
is in EXEMPT, with the test that moves it by other means, nearly always over the fake kernel of tests/native.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fakes import connect, device, installed, resting
from prometheus_client.core import Sample
from prometheus_client.parser import text_string_to_metric_families

from xskd.maps import UNROUTABLE
from xskd.metrics import TABLE, Row
from xskd.nic import INTERFACE_STATS
from xskd.page import page

TESTS = Path(__file__).parents[1]
SUBJECT = {"path", "interface", "queue"}
OPEN = {"cause", "driver", "kernel", "version"}  # labels whose values nobody can list


@dataclass(frozen=True)
class Series:
    """A metric with the values of its fixed labels: not those that say of whom it speaks."""

    name: str
    labels: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        return f"{self.name}{dict(sorted(self.labels)) or ''}"


@dataclass(frozen=True)
class Claim:
    """Some test says that it moves a series."""

    name: str
    labels: dict[str, str]
    test: str

    def is_about(self, series: Series) -> bool:
        """A label that the series has no fixed values of may have any."""
        fixed = dict(series.labels)
        return self.name == series.name and all(fixed.get(k, v) == v for k, v in self.labels.items())

    def __str__(self) -> str:
        return f"{Series(self.name, frozenset(self.labels.items()))} in {self.test}"


ZERO_COPY = "the driver's FILL flag is never set in copy mode, and no virtual interface has zero-copy"
A_BUG = "nothing in the kernel does that; it would be a bug, ours or its own"

# Metric, labels, why not, and the test.
EXEMPT_ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "xskd_wakeups",
        {"reason": "refilled"},
        ZERO_COPY,
        "test_forward.c:a_starved_port_is_counted_and_woken_when_it_has_frames_again",
    ),
    (
        "xskd_wakeups",
        {"reason": "dry"},
        ZERO_COPY,
        "test_observe.c:a_call_to_receive_is_timed_apart",
    ),
    (
        "xskd_wakeups",
        {"reason": "sleep"},
        ZERO_COPY,
        "test_observe.c:a_sleep_is_sleeping",
    ),
    (
        "xskd_wakeup_seconds",
        {"direction": "rx"},
        ZERO_COPY,
        "test_observe.c:a_call_to_receive_is_timed_apart",
    ),
    (
        "xskd_wakeups_skipped",
        {"direction": "tx"},
        "the TX flag is always set in copy mode",
        "test_forward.c:no_call_where_the_kernel_asks_for_none",
    ),
    (
        "xskd_wakeup_errors",
        {"errno": "ENOBUFS"},
        "in copy mode only a socket without TX is answered that",
        "test_forward.c:temporary_errors_pass",
    ),
    (
        "xskd_wakeup_errors",
        {"errno": "OTHER"},
        "every errno that the kernel is known to answer has its name",
        "test_run.c:a_port_that_died_ends_the_run",
    ),
    (
        "xskd_dropped_packets",
        {"reason": "undersize"},
        "a veth and a raw socket refuse what is shorter than an Ethernet header",
        "test_forward.c:each_bad_packet_has_one_reason_in_connect",
    ),
    (
        "xskd_dropped_packets",
        {"reason": "invalid"},
        A_BUG,
        "test_forward.c:each_bad_packet_has_one_reason_in_reflect",
    ),
    (
        "xskd_dropped_packets",
        {"reason": "no_metadata"},
        "the XDP program gives a worker no packet without it, and veth loses none",
        "test_route.c:torn_metadata",
    ),
    (
        "xskd_dropped_packets",
        {"reason": "fragments"},
        "the kernel shows whole packets only, and none of more than 18 descriptors",
        "test_packets.c:too_many_descriptors",
    ),
    (
        "xskd_completion_invalid_descriptors",
        {},
        A_BUG,
        "test_port.c:completions_that_name_nothing_are_counted",
    ),
    (
        "xskd_xdp_statistics",
        {"stat": "rx_invalid_descs"},
        "the kernel looks for them on RX, where only it writes (tests/kernel/test_xsk_receive.py)",
        "test_metrics.py:test_every_statistic_of_the_kernel_and_every_verdict_is_exported",
    ),
    (
        "xskd_socket_mode",
        {"mode": "zerocopy"},
        "no virtual interface has it",
        "test_metrics.py:test_the_mode_in_use_is_told",
    ),
    (
        "xskd_express_lane",
        {"state": "zerocopy"},
        "no virtual interface has it",
        "test_lanes.py:test_a_lane_is_open_only_where_all_is_well",
    ),
    (
        "xskd_worker_adoptions",
        {"result": "kept"},
        "needs a kernel before 6.4",
        "test_crew_changes.py:test_on_a_kernel_too_old_the_predecessor_itself_goes_on_and_is_ours",
    ),
    (
        "xskd_worker_page_faults",
        {"kind": "major"},
        "what a worker reads is in memory: the supervisor has read it before",
        "test_observe.c:what_processes_use_adds_up",
    ),
    (
        "xskd_frames",
        {"state": ("held", "kernel")},
        "the loop holds frames only within a turn and the kernel, in copy mode, only within a call",
        "test_port.c:publish_finds_a_frame_too_few_or_too_many",
    ),
    (
        "xskd_frames",
        {"state": "quarantined"},
        A_BUG,
        "test_adopt.c:entries_of_rx_that_contradict",
    ),
    (
        "xskd_frames_unaccounted",
        {},
        A_BUG,
        "test_port.c:publish_finds_a_frame_too_few_or_too_many",
    ),
    (
        "xskd_info",
        {},
        "what runs stays what it is while it runs",
        "test_metrics.py:test_the_daemon_tells_its_version_and_its_kernels",
    ),
    (
        "xskd_interface_zerocopy_able",
        {},
        "no virtual interface is",
        "test_metrics.py:test_an_interface_tells_what_is_known_of_it_and_no_more",
    ),
    (
        "xskd_interface_rx_dropped_packets",
        {"stat": ("rx_missed_errors", "rx_over_errors", "rx_fifo_errors", "rx_nohandler")},
        "only a NIC that is too slow, or a bond, has them",
        "test_metrics.py:test_what_a_nic_lost_belongs_to_its_queue_or_to_the_interface",
    ),
    (
        "xskd_unroutable_packets",
        {"reason": ("no_source", "no_metadata", "lookup_failed")},
        "the program asks for no source, a veth has room for metadata, and what is asked is well-formed",
        "test_metrics.py:test_every_reason_that_the_program_has_is_exported",
    ),
]


def claims(name: str, labels: dict[str, Any], test: str) -> list[Claim]:
    """One for each combination of the labels' values."""
    choices = [[value] if isinstance(value, str) else value for value in labels.values()]
    return [Claim(name, dict(zip(labels, values, strict=True)), test) for values in product(*choices)]


EXEMPT = [each for name, labels, _, test in EXEMPT_ROWS for each in claims(name, labels, test)]


def marked() -> Iterator[Claim]:
    """Every marker `moves` of a test, read from the text."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test_"):
                continue
            for call in (node for decorator in test.decorator_list for node in ast.walk(decorator)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) in ("moves", "pytest.mark.moves"):
                    (name,) = map(ast.literal_eval, call.args)
                    labels = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
                    yield from claims(name, labels, f"{path.name}:{test.name}")


@pytest.fixture(scope="module")
def series() -> Iterator[set[Series]]:
    """Every series that a daemon has from its first scrape on, and every metric that comes later."""
    with pytest.MonkeyPatch.context() as patch, installed(patch):
        status = resting(connect(), device("eth1"), device("eth2")).status()
        lost = dict.fromkeys(INTERFACE_STATS, 0)  # nobody has asked the kernel yet
        left = dict.fromkeys(UNROUTABLE, 0)  # of paths that route
        interfaces = tuple(
            replace(interface, rx_dropped=lost, unroutable=left) for interface in status.interfaces
        )
        text = page(replace(status, interfaces=interfaces))
        families = {family.name: family for family in text_string_to_metric_families(text)}
        yield {series for row in TABLE for series in of_row(row, families[row.name].samples)}


def of_row(row: Row, samples: list[Sample]) -> set[Series]:
    fixed = set(row.labels) - SUBJECT - OPEN
    labels = [{name: sample.labels[name] for name in fixed} for sample in samples]
    return {Series(row.name, frozenset(each.items())) for each in labels} or {Series(row.name)}


def test_every_series_has_a_test_that_moves_it_or_a_reason_why_none_can(series: set[Series]) -> None:
    known = [*marked(), *EXEMPT]
    assert [str(each) for each in series if not any(claim.is_about(each) for claim in known)] == []


def test_markers_and_exemptions_name_one_series_each(series: set[Series]) -> None:
    labels = {row.name: row.labels for row in TABLE}
    for claim in (*marked(), *EXEMPT):
        assert sum(claim.is_about(each) for each in series) == 1, str(claim)
        assert claim.labels.keys() <= set(labels[claim.name]), str(claim)


def test_nothing_is_exempt_that_has_a_test(series: set[Series]) -> None:
    moved = list(marked())
    for each in series:
        if any(claim.is_about(each) for claim in EXEMPT):
            assert [str(claim) for claim in moved if claim.is_about(each)] == []


@pytest.mark.parametrize("test", sorted({claim.test for claim in EXEMPT}))
def test_what_is_exempt_has_the_test_that_it_names(test: str) -> None:
    file, name = test.split(":")
    (path,) = TESTS.rglob(file)
    text = path.read_text(encoding="utf-8")
    assert re.search(rf"^(TEST\({name}\)|def {name}\()", text, re.MULTILINE)
