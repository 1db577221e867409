"""Debian's Prometheus scrapes a running xskd under traffic: what it knows is true, and fills every panel.

It raises alarm when there is cause, and only then. How long a cause has to last is tested in
dashboards/prometheus/tests.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from booted import QUEUES, XSKD, eventually
from queries import ALERTS, RULES, alerts, filled, queries, recorded, variables

from lab import Topology, entered
from xskd import control
from xskd.errors import XskdError

METRICS, PROMETHEUS = "127.0.0.1:9478", "127.0.0.1:9090"
SCRAPES = 5  # one a second: enough for a rate over RATE_INTERVAL
RATE_INTERVAL = "4s"
FIRST_SCRAPE = 20.0  # seconds: its discovery waits 5 before it hands out the first target
CONFIG = f"""\
interfaces: {{eth1: {{}}, eth2: {{}}}}
paths: {{wire: {{connect: [eth1, eth2]}}}}
metrics: {{listen: "{METRICS}"}}
"""
# Rules and a path that routes have panels of their own.
ALL = CONFIG.replace(
    "interfaces: {eth1: {}",
    "interfaces: {eth3: {}, eth4: {}, eth1: {rules: [{name: pings, protocol: icmp, verdict: redirect}]}",
).replace("paths: {", "paths: {lan: {route: [eth3, eth4]}, ")
SCRAPE = f"""\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ["{RULES}", "{ALERTS}"]
scrape_configs:
  - job_name: xskd
    static_configs: [{{targets: ["{METRICS}"]}}]
"""
SHALLOW = CONFIG.replace("{}", "{rings: {fill: 128, rx: 64, tx: 64, completion: 64}}")
PAIRS = {
    "xskd_rx_packets_total": "rx_packets",
    "xskd_rx_bytes_total": "rx_bytes",
    "xskd_tx_packets_total": "tx_packets",
    "xskd_tx_bytes_total": "tx_bytes",
    "xskd_tx_frames_total": "tx_frames",
    "xskd_tx_completed_packets_total": "tx_completed",
}


class Watched:
    """xskd between two hosts that ping each other, and a Prometheus that looks at it."""

    def __init__(self, lab: Topology, directory: Path, config: str = CONFIG) -> None:
        self.lab, self.socket = lab, directory / "control.sock"
        self.config, scrape = directory / "xskd.yaml", directory / "prometheus.yaml"
        self.config.write_text(f"{config}control: {{socket: {self.socket}}}\n", encoding="utf-8")
        scrape.write_text(SCRAPE, encoding="utf-8")
        with (directory / "xskd.log").open("wb") as log:
            self.daemon = lab.popen(lab.dut, str(XSKD), "run", "-c", str(self.config), stderr=log)
        with (directory / "prometheus.log").open("wb") as log:
            options = {
                "config.file": scrape,
                "storage.tsdb.path": directory / "tsdb",
                "web.listen-address": PROMETHEUS,
            }
            command = ("prometheus", *(f"--{name}={value}" for name, value in options.items()))
            lab.popen(lab.dut, *command, stderr=log)
        assert eventually(self.is_ready), (directory / "xskd.log").read_text(encoding="utf-8")
        self.ping = lab.popen(lab.hosts[0], "ping", "-q", "-i", "0.002", lab.ip_of(1))
        assert eventually(lambda: self.received(self.busy()) > 100), "nothing is forwarded"
        self.queue = self.busy()["index"]  # the pings are one flow, and have a queue to themselves

    def is_ready(self) -> bool:
        try:
            return bool(self.status()["ready"])
        except XskdError:
            return False

    def status(self) -> dict[str, Any]:
        """Ask the daemon itself."""
        return dict(control.ask(self.socket, "status")["status"])

    @staticmethod
    def received(worker: dict[str, Any]) -> int:
        """How many packets a worker has taken from its RX rings."""
        return sum(port["counters"]["rx_packets"] for port in worker["ports"])

    def busy(self) -> dict[str, Any]:
        """The worker with the traffic."""
        workers: list[dict[str, Any]] = self.status()["workers"]
        return max(workers, key=self.received)

    def get(self, address: str) -> str:
        """Fetch a page in the dut."""
        with entered(self.lab.dut), urllib.request.urlopen(f"http://{address}", timeout=10) as page:
            return str(page.read().decode())

    def api(self, call: str, **parameters: str) -> Any:
        """Ask Prometheus; the data of its answer."""
        asked = f"{PROMETHEUS}/api/v1/{call}?{urllib.parse.urlencode(parameters)}"
        return json.loads(self.get(asked))["data"]

    def query(self, expr: str) -> dict[tuple[str, ...], float]:
        """The values of an expression now, by path, interface and queue."""
        return {
            tuple(series["metric"].get(label, "") for label in ("path", "interface", "queue")): float(
                series["value"][1]
            )
            for series in self.api("query", query=expr)["result"]
        }

    def alarm(self) -> dict[str, dict[str, str]]:
        """What each alert says, whose expression is true now; `for:` need not be over."""
        return {each["labels"]["alertname"]: each["annotations"] for each in self.api("alerts")["alerts"]}

    def signal(self, number: int, sign: signal.Signals) -> bool:
        """Send a signal to a worker; False while it has no process."""
        pid: int | None = self.status()["workers"][number]["pid"]
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, sign)
        return bool(pid)

    def scrapes(self) -> float:
        """How many times Prometheus has reached xskd."""
        try:
            return sum(self.query('sum_over_time(up{job="xskd"}[5m])').values())
        except OSError:  # it does not listen yet
            return 0

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No traffic for a while."""
        os.kill(self.ping.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.ping.pid, signal.SIGCONT)


@contextmanager
def watching(directory: Path, config: str = CONFIG) -> Iterator[Watched]:
    """Make a pair; skips the test where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces, runs xskd")
    if absent := [tool for tool in ("prometheus", "promtool") if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(absent)} (package prometheus)")
    with Topology("xskd-system", queues=QUEUES, links=4 if config == ALL else 2) as lab:
        yield Watched(lab, directory, config)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A pair that has been looking at each other long enough for rates, and has seen a worker die."""
    with watching(tmp_path_factory.mktemp("watched"), ALL) as made:
        os.kill(made.busy()["pid"], signal.SIGKILL)
        assert eventually(lambda: made.scrapes() >= SCRAPES, FIRST_SCRAPE), "Prometheus has seen too little"
        yield made


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[Watched]:
    """A pair whose daemon has shallow rings."""
    with watching(tmp_path, SHALLOW) as made:
        assert eventually(lambda: made.scrapes() >= SCRAPES, FIRST_SCRAPE), "Prometheus has seen too little"
        yield made


def test_the_target_is_up(watched: Watched) -> None:
    (target,) = watched.api("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_promtool_finds_nothing_wrong_with_the_page(watched: Watched) -> None:
    page = watched.get(f"{METRICS}/metrics")
    done = subprocess.run(
        ("promtool", "check", "metrics"), input=page, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("how_many", ["all", "one"])
def test_every_query_of_every_panel_returns_data(watched: Watched, how_many: str) -> None:
    one = {"instance": METRICS, "path": "wire", "queue": str(watched.queue)}
    empty = []
    for query in queries():
        path = {"path": "lan"} if "unroutable" in query.expr else {}
        asked = query.filled(RATE_INTERVAL, one | path if how_many == "one" else {})
        answer = watched.api("query", query=asked)["result"]
        if not any(math.isfinite(float(series["value"][1])) for series in answer):
            empty.append(f"{query.panel}: {query.expr}")
    assert empty == []


def test_no_alert_is_true_of_a_daemon_that_is_well(watched: Watched) -> None:
    true = {alert.panel for alert in alerts() if watched.query(alert.expr)} | watched.alarm().keys()
    # A machine that is busy with other things may have kept a worker from its CPU for too long.
    stalled = any("stalled" in worker["restarts"] for worker in watched.status()["workers"])
    assert true == ({"XskdWorkerStalled"} if stalled else set())
    assert len(alerts()) > 8


def test_every_rule_is_evaluated_and_every_recorded_series_has_data(watched: Watched) -> None:
    evaluated = [rule for group in watched.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in evaluated} == {alert.panel for alert in alerts()} | recorded().keys()
    assert [(rule["name"], rule["lastError"]) for rule in evaluated if rule["health"] != "ok"] == []
    assert [name for name in recorded() if not any(map(math.isfinite, watched.query(name).values()))] == []


def test_every_series_that_a_rule_selects_is_there(watched: Watched) -> None:
    """A misspelt value of a label would make an alert silent for good."""
    selected = {
        f'{name}{{{label}="{value}"}}'
        for query in [*alerts(), *recorded().values()]
        for name, label, values in re.findall(r'(xskd_\w+)\{(\w+)=~?"([^"]*)"\}', query.expr)
        for value in values.split("|")
    }
    selected.remove('xskd_worker_restarts_total{cause="stalled"}')  # nobody has; `troubled` does
    assert len(selected) > 10
    assert [series for series in sorted(selected) if not watched.query(series)] == []


def test_every_variable_offers_something(watched: Watched) -> None:
    offered = {
        name: {series[label] for series in watched.api("series", **{"match[]": filled(expr, RATE_INTERVAL)})}
        for name, (expr, label) in variables().items()
    }
    assert offered == {
        "instance": {METRICS},
        "path": {"lan", "wire"},
        "interface": {"eth1", "eth2", "eth3", "eth4"},
        "queue": {str(number) for number in range(QUEUES)},
    }


def test_prometheus_counts_what_the_daemon_counts(watched: Watched) -> None:
    with watched.quiet():
        last = watched.scrapes() + 2  # the next one may have begun before it was quiet
        assert eventually(lambda: watched.scrapes() > last)
        status = watched.status()
        for metric, field in PAIRS.items():
            told = {
                (worker["path"], port["interface"], str(port["queue"])): port["counters"][field]
                for worker in status["workers"]
                for port in worker["ports"]
            }
            assert sum(told.values()) > 0, metric
            assert watched.query(metric) == told, metric
        restarts = watched.query("xskd_worker_restarts_total")
        assert (
            restarts
            == {("wire", "", str(watched.queue)): 1}
            == {
                (worker["path"], "", str(worker["index"])): 1
                for worker in status["workers"]
                if worker["restarts"]
            }
        )
        redirected = watched.query('xskd_xdp_verdicts_total{verdict="redirected"}')
        assert redirected == {
            (each["path"], each["name"], ""): each["verdicts"]["redirected"] for each in status["interfaces"]
        }


def test_the_rate_is_that_of_the_traffic(watched: Watched) -> None:
    """500 pings a second and their answers, or what a busy machine makes of them."""
    total = f"sum(rate(xskd_rx_packets_total[{RATE_INTERVAL}]))"
    assert eventually(lambda: 200 < watched.query(total)["", "", ""] < 1200)


# ---- trouble --------------------------------------------------------------------------------------


def flood(lab: Topology) -> None:
    """Send more packets than shallow rings hold, to so many ports that every queue gets some."""
    with entered(lab.hosts[0]):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for number in range(1_000):
            sender.sendto(b"flood", (lab.ip_of(1), 10_000 + number % 100))


def test_alerts_are_true_of_what_they_are_for(troubled: Watched) -> None:
    lab, seen = troubled.lab, dict[str, dict[str, str]]()

    def told(*names: str) -> bool:
        seen.update(troubled.alarm())
        return seen.keys() >= set(names)

    def dies() -> bool:
        if not troubled.signal(1, signal.SIGKILL):
            flood(lab)
        return told("XskdCrashLoop", "XskdWorkerDown", "XskdQueueWithoutWorker")

    for number in range(QUEUES):
        assert troubled.signal(number, signal.SIGSTOP)
    flood(lab)
    assert eventually(lambda: told("XskdWorkerStalled", "XskdRxOverrun", "XskdLosingPackets")), seen.keys()
    assert eventually(dies, 20), seen.keys()

    troubled.config.write_text("paths: {wire: {connect: eth1}}\n", encoding="utf-8")
    with pytest.raises(control.Refused):
        control.ask(troubled.socket, "reload", dry=False)
    assert eventually(lambda: told("XskdConfigInvalid", "XskdReloadFailed")), seen.keys()

    lab.run(lab.dut, "ip", "link", "set", "eth2", "down")
    assert eventually(lambda: told("XskdLinkDown")), seen.keys()
    lab.run(lab.dut, "ip", "link", "del", "eth2")
    assert eventually(lambda: told("XskdPathWaiting")), seen.keys()
    other_names = {"XskdLinkDown", "XskdWorkerDown"}  # of the same trouble
    assert eventually(lambda: troubled.alarm().keys() & other_names == set())

    troubled.daemon.kill()
    assert eventually(lambda: told("XskdDown")), seen.keys()
    for name, said in seen.items():
        assert METRICS in said["summary"], name
        assert "  " not in said["summary"] + said["description"], name
