"""The table of metrics: well named, complete, documented, and served."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import platform
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import connect, device, installed, resting
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from xskd._forward import ffi

from xskd import __version__, endpoint
from xskd.counters import DROPS, PLACES, RINGS, WAKEUP_ERRORS
from xskd.daemon import Supervisor
from xskd.endpoint import Endpoint, Scraper
from xskd.features import Features
from xskd.maps import UNROUTABLE
from xskd.metrics import (
    DAEMON_ROWS,
    INTERFACE_ROWS,
    PORT_ROWS,
    TABLE,
    WORKER_ROWS,
    Row,
    as_markdown,
)
from xskd.nic import Reading
from xskd.page import page
from xskd.status import DaemonStatus, RuleStatus
from xskd.xdp import Verdicts
from xskd.xsk import Statistics

ROOT = Path(__file__).parents[2]
ROWS = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A daemon of two workers that was never started."""
    with installed(monkeypatch):
        yield resting(connect(), device("eth1", queues=2), device("eth2", queues=2))


def families(status: DaemonStatus) -> list[Metric]:
    """Read the page of a picture as Prometheus does."""
    return list(text_string_to_metric_families(page(status)))


def values(status: DaemonStatus) -> dict[float, str]:
    """Every sample of a picture: name and last label by value; of a histogram, each bucket by itself.

    What C has in nanoseconds and the page in seconds is there both ways.
    """
    found: dict[float, str] = {}
    for family in families(status):
        below = 0.0
        for sample in family.samples:
            value = sample.value
            if sample.name.endswith("_bucket"):
                value, below = value - below, value if sample.labels["le"] != "+Inf" else 0.0
            if math.isfinite(value):
                for each in (value, round(value * 1e9)):
                    found[each] = f"{sample.name} {list(sample.labels.values())[-1:]}"
    return found


# ---- names and words ------------------------------------------------------------------------------


@ROWS
def test_names_follow_the_conventions_of_prometheus(row: Row) -> None:
    assert re.fullmatch(r"xskd_[a-z][a-z0-9]*(_[a-z0-9]+)*", row.name)
    assert not row.name.endswith(("_total", "_count", "_sum", "_bucket", "_created"))
    assert not re.search(r"(milli|micro|nano)seconds|_(ms|us|ns|kb|mb)(_|$)", row.name)  # base units only
    assert row.exposed == row.name + ("_total" if row.kind == "counter" else "")
    assert row.kind != "histogram" or row.name.endswith(("_seconds", "_packets"))
    for label in row.labels:
        assert re.fullmatch(r"[a-z][a-z_]*", label)
        assert label not in ("le", "quantile", "job", "instance")


@ROWS
def test_help_is_a_sentence(row: Row) -> None:
    assert re.fullmatch(r"[A-Z0-9].{15,}\.", row.help)
    assert "  " not in row.help


def test_no_name_is_used_twice() -> None:
    assert [name for name, times in Counter(row.exposed for row in TABLE).items() if times > 1] == []


def test_the_page_is_generated_from_the_table() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == as_markdown(), (
        "run python -m xskd.metrics > docs/metrics.md"
    )


@ROWS
def test_the_page_has_a_line_for_every_metric(row: Row) -> None:
    assert as_markdown().count(f"| `{row.exposed}` | {row.kind} |") == 1


# ---- nothing is forgotten -------------------------------------------------------------------------


def numbered(struct: Any, skip: tuple[str, ...], first: int) -> dict[int, str]:
    """Give every u64 of a C struct a number of its own; which field has which."""
    given: dict[int, str] = {}
    for name, field in ffi.typeof(struct).item.fields:
        if name in skip:
            continue
        if field.type.kind == "array":
            for index in range(field.type.length):
                number = first + len(given)
                getattr(struct, name)[index], given[number] = number, f"{name}[{index}]"
        else:
            number = first + len(given)
            setattr(struct, name, number)
            given[number] = name
    return given


def test_every_counter_of_a_port_in_c_is_exported(supervisor: Supervisor) -> None:
    given = numbered(supervisor.crew.slots["wire/0"].page.port(0), ("rx_rest",), 100_001)
    assert len(given) > 20
    found = values(supervisor.status())
    assert {name for number, name in given.items() if number not in found} == set()


def test_every_counter_of_a_worker_in_c_is_exported(supervisor: Supervisor) -> None:
    not_counters = ("layout_version", "sequence", "ports", "intent", "yielded", "marks_wanted", "marks_begun")
    known_otherwise = ("heartbeat_ns", "frames")  # as an age, and as the sum over places
    page = supervisor.crew.slots["wire/0"].page.struct
    given = numbered(page, not_counters + known_otherwise, 200_001)
    found = values(supervisor.status())
    assert {name for number, name in given.items() if number not in found} == set()


def test_every_statistic_of_the_kernel_and_every_verdict_is_exported(supervisor: Supervisor) -> None:
    status = supervisor.status()
    port = dataclasses.replace(status.workers[0].ports[0], kernel=Statistics(*range(301, 307)))
    worker = dataclasses.replace(status.workers[0], ports=(port,))
    interface = dataclasses.replace(
        status.interfaces[0], verdicts=Verdicts(*range(401, 410)), verdict_bytes=Verdicts(*range(501, 510))
    )
    found = values(dataclasses.replace(status, workers=(worker,), interfaces=(interface,)))
    for number, field in enumerate(dataclasses.fields(Statistics), 301):
        assert found[number] == f"xskd_xdp_statistics_total {[field.name]}"
    for number, field in enumerate(dataclasses.fields(Verdicts), 401):
        assert found[number] == f"xskd_xdp_verdicts_total {[field.name]}"
        assert found[number + 100] == f"xskd_xdp_verdict_bytes_total {[field.name]}"


def test_labels_are_spelt_like_the_enums_of_c(supervisor: Supervisor) -> None:
    page = supervisor.crew.slots["wire/0"].page
    port = page.port(0)
    expected = {}
    for first, array, names, metric in (
        (1001, port.drops, DROPS, "xskd_dropped_packets_total"),
        (2001, port.wakeup_errors, WAKEUP_ERRORS, "xskd_wakeup_errors_total"),
        (3001, port.ring_entries, RINGS, "xskd_ring_entries"),
        (4001, page.struct.frames_in, PLACES, "xskd_frames"),
    ):
        for index, name in enumerate(names):
            array[index] = first + index
            expected[float(first + index)] = f"{metric} {[name]}"
    found = values(supervisor.status())
    assert {number: found.get(number) for number in expected} == expected


def test_every_row_has_its_labels_and_a_series_for_each_subject(supervisor: Supervisor) -> None:
    supervisor.crew.slots["wire/1"].restarts["SIGKILL"] = 3
    found = {family.name: family.samples for family in families(supervisor.status())}
    for rows, subjects in ((PORT_ROWS, 4), (WORKER_ROWS, 2), (INTERFACE_ROWS, 2), (DAEMON_ROWS, 1)):
        for row in rows:
            samples = found[row.name]
            names = {tuple(name for name in sample.labels if name != "le") for sample in samples}
            assert names <= {row.labels}, row.name
            assert len(samples) % subjects == 0 or row.name == "xskd_worker_restarts"
    (restarts,) = found["xskd_worker_restarts"]
    assert restarts.labels == {"path": "wire", "queue": "1", "cause": "SIGKILL"}
    assert restarts.value == 3


def sample(status: DaemonStatus, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric by its labels' values."""
    (family,) = (family for family in families(status) if family.name == name)
    return {tuple(each.labels.values()): each.value for each in family.samples}


def test_adoptions_have_a_series_for_each_result_from_the_first_scrape_on(supervisor: Supervisor) -> None:
    supervisor.crew.slots["wire/1"].adoptions.update(adopted=3, failed=1)
    assert sample(supervisor.status(), "xskd_worker_adoptions") == {
        ("wire", "0", "adopted"): 0,
        ("wire", "0", "failed"): 0,
        ("wire", "0", "kept"): 0,
        ("wire", "1", "adopted"): 3,
        ("wire", "1", "failed"): 1,
        ("wire", "1", "kept"): 0,
    }


def test_the_time_without_a_worker_is_a_sum_of_seconds(supervisor: Supervisor) -> None:
    supervisor.crew.slots["wire/1"].gap_seconds = 0.25
    assert sample(supervisor.status(), "xskd_worker_gap_seconds") == {("wire", "0"): 0, ("wire", "1"): 0.25}


def test_only_a_forwarding_worker_is_up(supervisor: Supervisor) -> None:
    supervisor.crew.slots["wire/1"].enter("forwarding")
    supervisor.crew.slots["wire/0"].enter("waiting")
    assert sample(supervisor.status(), "xskd_worker_up") == {("wire", "0"): 0, ("wire", "1"): 1}


def test_the_mode_in_use_is_told(supervisor: Supervisor) -> None:
    supervisor.crew.slots["wire/0"].modes = ["zerocopy", None]
    found = sample(supervisor.status(), "xskd_socket_mode")
    at = [("wire", "eth1", "0"), ("wire", "eth2", "0")]
    assert [(found[*each, "zerocopy"], found[*each, "copy"]) for each in at] == [(1, 0), (0, 0)]


def test_carrier_and_queues_are_those_of_the_interface_now(supervisor: Supervisor) -> None:
    supervisor.devices = {"eth1": device("eth1", queues=5, max_queues=8, carrier=False), "eth2": None}
    assert sample(supervisor.status(), "xskd_interface_carrier") == {("wire", "eth1"): 0, ("wire", "eth2"): 0}
    assert sample(supervisor.status(), "xskd_interface_queues") == {("wire", "eth1"): 5, ("wire", "eth2"): 0}
    supervisor.devices = {"eth1": device("eth1"), "eth2": None}
    assert sample(supervisor.status(), "xskd_interface_carrier")["wire", "eth1"] == 1


def test_an_interface_tells_what_is_known_of_it_and_no_more(supervisor: Supervisor) -> None:
    able = Features(frozenset({"basic", "xsk-zerocopy"}), 0)
    supervisor.programs.ours = {7}
    supervisor.devices = {
        "eth1": device("eth1", queues=5, up=False, features=able, xdp_prog_id=8),
        "eth2": device("eth2", xdp_prog_id=7, features=Features(frozenset({"basic"}), 0)),
    }
    both = ("wire", "eth1"), ("wire", "eth2")
    for name, told in (
        ("xskd_interface_up", {both[0]: 0, both[1]: 1}),
        ("xskd_interface_queues_without_socket", {both[0]: 3, both[1]: 0}),
        ("xskd_interface_foreign_program", {both[0]: 1, both[1]: 0}),
        ("xskd_interface_zerocopy_able", {both[0]: 1, both[1]: 0}),
        ("xskd_interface_info", {(*both[0], "ice"): 1, (*both[1], "ice"): 1}),
    ):
        assert sample(supervisor.status(), name) == told
    supervisor.devices = {"eth1": device("eth1"), "eth2": None}
    for name, told in (
        ("xskd_interface_up", {both[0]: 1, both[1]: 0}),
        ("xskd_interface_queues_without_socket", {both[0]: 0, both[1]: 0}),
        ("xskd_interface_foreign_program", {both[0]: 0, both[1]: 0}),
        ("xskd_interface_zerocopy_able", {}),
        ("xskd_interface_info", {(*both[0], "ice"): 1}),
    ):
        assert sample(supervisor.status(), name) == told


def test_what_a_nic_lost_belongs_to_its_queue_or_to_the_interface(supervisor: Supervisor) -> None:
    counters = {(1, "rx_drops"): 5, (7, "rx_drops"): 9, (None, "rx_dropped"): 14}
    supervisor._nics._totals["eth2"].add(Reading(12, counters))
    status = supervisor.status()
    assert sample(status, "xskd_nic_rx_dropped_packets") == {("wire", "eth2", "1", "rx_drops"): 5}
    assert sample(status, "xskd_interface_rx_dropped_packets") == {("wire", "eth2", "rx_dropped"): 14}


def test_a_rule_is_told_of_by_its_name(supervisor: Supervisor) -> None:
    status = supervisor.status()
    rules = (
        RuleStatus("dns", "protocol udp", "drop", 11, 1100, 4),
        RuleStatus("default", "", "pass", 7, 500, 0),
    )
    first = dataclasses.replace(status.interfaces[0], rules=rules, unparsed=3, unroutable={"local": 5})
    status = dataclasses.replace(status, interfaces=(first, status.interfaces[1]))
    dns, default = ("wire", "eth1", "dns"), ("wire", "eth1", "default")
    assert sample(status, "xskd_rule_packets") == {dns: 11, default: 7}
    assert sample(status, "xskd_rule_bytes") == {dns: 1100, default: 500}
    assert sample(status, "xskd_rule_limited_packets") == {dns: 4, default: 0}
    assert sample(status, "xskd_rules") == {("wire", "eth1"): 1, ("wire", "eth2"): 0}
    assert sample(status, "xskd_unparsed_packets")["wire", "eth1"] == 3
    assert sample(status, "xskd_unroutable_packets") == {("wire", "eth1", "local"): 5}


def test_every_reason_that_the_program_has_is_exported(supervisor: Supervisor) -> None:
    status = supervisor.status()
    unroutable = {reason: number for number, reason in enumerate(UNROUTABLE, 1)}
    first = dataclasses.replace(status.interfaces[0], unroutable=unroutable)
    status = dataclasses.replace(status, interfaces=(first,))
    expected = {("wire", "eth1", reason): number for reason, number in unroutable.items()}
    assert sample(status, "xskd_unroutable_packets") == expected
    assert len(expected) == 20


def test_an_express_lane_is_in_one_state(supervisor: Supervisor) -> None:
    status = supervisor.status()
    first = dataclasses.replace(status.interfaces[0], lane="capture")
    found = sample(dataclasses.replace(status, interfaces=(first,)), "xskd_express_lane")
    assert {labels[-1] for labels, value in found.items() if value} == {"capture"}
    assert len(found) == 6


def test_what_a_nic_lost_on_the_way_out_is_told_apart(supervisor: Supervisor) -> None:
    supervisor._nics._totals["eth2"].add(Reading(12, {(1, "rx_drops"): 5, (1, "tx_xdp_xmit_errors"): 9}))
    found = sample(supervisor.status(), "xskd_nic_tx_dropped_packets")
    assert found == {("wire", "eth2", "1", "tx_xdp_xmit_errors"): 9}


def test_a_worker_is_in_one_state_and_a_socket_in_one_mode(supervisor: Supervisor) -> None:
    supervisor.crew.slots["wire/1"].enter("backoff")
    states = sample(supervisor.status(), "xskd_worker_state")
    assert [labels for labels, value in states.items() if value] == [
        ("wire", "0", "starting"),
        ("wire", "1", "backoff"),
    ]
    assert len(states) == 2 * 6
    wanted = sample(supervisor.status(), "xskd_socket_mode_wanted")
    assert {labels[-1] for labels, value in wanted.items() if value} == {"auto"}
    assert sum(wanted.values()) == 4


def test_the_daemon_tells_its_version_and_its_kernels(supervisor: Supervisor) -> None:
    assert sample(supervisor.status(), "xskd_info") == {(__version__, platform.release()): 1}


def test_every_path_has_a_series_that_says_whether_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "interfaces: {eth1: {}, eth3: {}}\npaths: {in: {reflect: eth1}, out: {reflect: eth3}}\n"
    with installed(monkeypatch):
        status = resting(text, device("eth1")).status()
    assert sample(status, "xskd_path_waiting") == {("in",): 0, ("out",): 1}


def test_a_file_that_is_wrong_shows_until_it_is_right(supervisor: Supervisor) -> None:
    assert sample(supervisor.status(), "xskd_config_valid") == {(): 1}
    supervisor.config_error = "x.yaml:1: is wrong"
    assert sample(supervisor.status(), "xskd_config_valid") == {(): 0}


# ---- written --------------------------------------------------------------------------------------


def made_by_the_library(status: DaemonStatus) -> CollectorRegistry:
    """Put the same samples into prometheus-client's own families."""

    class Made(Collector):
        def collect(self) -> Iterator[Metric]:
            for family in families(status):
                same = Metric(family.name, family.documentation, family.type)
                same.samples = family.samples
                yield same

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Made())
    return registry


def test_the_page_is_what_prometheus_client_would_write(supervisor: Supervisor) -> None:
    numbered(supervisor.crew.slots["wire/0"].page.port(0), ("rx_rest",), 100_001)
    status = supervisor.status()
    strange = dataclasses.replace(status, waiting={'a "b" \\ c': []}, paths=('a "b" \\ c', "d\ne"))
    theirs = generate_latest(made_by_the_library(strange)).decode()
    assert lines(page(strange)) == lines(theirs)


def lines(text: str) -> list[tuple[str, frozenset[str], float] | str]:
    """Each line; of a sample its labels in any order, and its value as a number."""
    found: list[tuple[str, frozenset[str], float] | str] = []
    for line in text.splitlines():
        sample = re.fullmatch(r"(\w+)(?:\{(.+)\})? (\S+)", line)
        if line.startswith("#") or not sample:
            found.append(line)
            continue
        value = float(sample[3])
        labels = frozenset(re.findall(r'\w+="(?:[^"\\]|\\.)*"', sample[2] or ""))
        found.append((sample[1], labels, -1.5 if math.isnan(value) else value))
    return found


# ---- served ---------------------------------------------------------------------------------------


def test_a_scrape_goes_through_the_loop_and_parses(supervisor: Supervisor) -> None:
    async def scrape() -> str:
        served = Endpoint(("127.0.0.1", 0), asyncio.get_running_loop(), supervisor.status)
        try:
            url = f"http://127.0.0.1:{served.port}/metrics"
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())
        finally:
            await asyncio.to_thread(served.close)
        return str(page, "utf-8")

    found = {family.name for family in text_string_to_metric_families(asyncio.run(scrape()))}
    assert {name for name in found if name.startswith("xskd_")} == {row.name for row in TABLE}
    assert "process_resident_memory_bytes" in found


def test_a_scrape_fails_in_time_when_the_loop_does_not_answer(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "SCRAPE_TIMEOUT", 0.05)
    stuck = asyncio.new_event_loop()
    with pytest.raises(TimeoutError):
        Scraper(stuck, supervisor.status).page()
    stuck.close()


def test_a_page_is_made_off_the_workers_cpus() -> None:
    def free(taken: set[int]) -> set[int]:
        endpoint.step_aside(taken)
        return os.sched_getaffinity(0)

    with ThreadPoolExecutor(1) as thread:
        cpus = os.sched_getaffinity(0)
        first = min(cpus)
        assert thread.submit(free, cpus).result() == cpus  # there is no other
        assert thread.submit(free, {first}).result() == (cpus - {first} or cpus)
    assert os.sched_getaffinity(0) == cpus  # of this thread


def test_sixty_four_workers_are_told_of_quickly() -> None:
    many = resting(connect(), device("eth1", queues=64), device("eth2", queues=64))
    began = time.perf_counter()
    text = page(many.status())
    took = time.perf_counter() - began
    series = sum(not line.startswith("#") for line in text.splitlines())
    print(f"{series} series in {took * 1000:.0f} ms")
    assert series > 64 * 2 * 100
    assert took < 2
