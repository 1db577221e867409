"""Recording rules and alerts: sound, speaking of xskd's metrics and no others, each tried and explained.

What they make of figures is in dashboards/prometheus/tests, in promtool's own format; what they make of a
running daemon is in test_prometheus.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from queries import ALERTS, ROOT, RULES, Query, alerts, recorded, rules

from xskd.metrics import TABLE

OPERATIONS = ROOT / "docs/operations.md"
SCENES = sorted((ALERTS.parent / "tests").glob("*.yaml"))
FROM_PROMETHEUS = {"instance", "job"}
LABELS: dict[str, set[str]] = {"up": FROM_PROMETHEUS}
for row in TABLE:
    LABELS[row.exposed] = set(row.labels) | FROM_PROMETHEUS
    LABELS[f"{row.exposed}_bucket"] = LABELS[row.exposed] | {"le"}  # where it is a histogram
EVERY = pytest.mark.parametrize("alert", list(rules(ALERTS)), ids=lambda rule: str(rule["alert"]))


@dataclass(frozen=True)
class Scene:
    """One test of promtool's. `told` are the labels of each alert it expects, at whatever time."""

    name: str
    series: list[str]
    told: list[dict[str, str]]

    def has(self, metric: str) -> bool:
        return any(series.startswith(f"{metric}{{") for series in self.series)


def pairs(series: str) -> dict[str, str]:
    """Labels and values of a series."""
    return dict(re.findall(r'(\w+)="([^"]*)"', series))


def scenes() -> Iterator[Scene]:
    for file in SCENES:
        for each in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            series = [given["series"] for given in each["input_series"]]
            checks = each["promql_expr_test"]
            told = [pairs(s["labels"]) for c in checks if "ALERTS" in c["expr"] for s in c["exp_samples"]]
            yield Scene(each["name"], series, told)


def metrics_of(query: Query) -> dict[str, set[str]]:
    """What it reads from xskd in the end, also by way of recorded series."""
    found = query.metrics()
    for name, rule in recorded().items():
        if re.search(rf"(?<![\w:]){name}(?![\w:])", query.expr):
            for metric, labels in metrics_of(rule).items():
                found.setdefault(metric, set()).update(labels)
    return found


def promtool(*args: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (package prometheus)")
    done = subprocess.run(("promtool", *args), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- promtool's view ------------------------------------------------------------------------------


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    promtool("check", "rules", "--lint-fatal", RULES, ALERTS)


@pytest.mark.parametrize("file", SCENES, ids=lambda file: str(file.stem))
def test_what_they_make_of_figures(file: Path) -> None:
    promtool("test", "rules", file)


# ---- nothing is forgotten -------------------------------------------------------------------------


@EVERY
def test_every_alert_is_tried_firing_and_silent(alert: dict[str, Any]) -> None:
    """Silent: over the whole scene, in which there is something that the alert looks at."""
    name = alert["alert"]
    firing = [scene for scene in scenes() if scene.name.startswith(f"{name} fires: ")]
    silent = [scene for scene in scenes() if scene.name.startswith(f"{name} silent: ")]
    assert firing
    assert silent
    looks_at = metrics_of(Query(name, alert["expr"], "")) or {"up": set()}
    for scene in firing:
        assert name in {labels["alertname"] for labels in scene.told}, scene.name
    for scene in silent:
        assert name not in {labels["alertname"] for labels in scene.told}, scene.name
        assert any(scene.has(metric) for metric in looks_at), scene.name


def test_every_recorded_series_is_tried() -> None:
    file = ALERTS.parent / "tests/recording.yaml"
    scenes = yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]
    assert {check["expr"] for scene in scenes for check in scene["promql_expr_test"]} == recorded().keys()


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    _, _, runbooks = OPERATIONS.read_text(encoding="utf-8").partition("\n## Runbooks\n")
    runbooks, _, _ = runbooks.partition("\n## ")
    titles = re.findall(r"^### (.+)$", runbooks, re.MULTILINE)
    assert sorted(titles) == sorted(alert.panel for alert in alerts())


@EVERY
def test_an_alert_says_what_is_wrong_where_and_what_to_read(alert: dict[str, Any]) -> None:
    said = alert["annotations"]
    assert said.keys() == {"summary", "description", "runbook"}
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert said["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
    told = [each for scene in scenes() for each in scene.told if each["alertname"] == alert["alert"]]
    there = {label for labels in told for label in labels}
    words = said["summary"] + said["description"]
    assert set(re.findall(r"\$labels\.(\w+)", words)) <= there
    assert "$labels.instance" in said["summary"]


# ---- metrics, labels and names exist --------------------------------------------------------------


def test_rules_name_metrics_labels_and_series_that_exist() -> None:
    for query in [*alerts(), *recorded().values()]:
        named = set(re.findall(r"[\w:]+:[\w:]+", query.expr))
        assert named <= recorded().keys(), query.panel
        metrics = metrics_of(query)
        assert metrics or query.expr.startswith("up{"), query.panel
        known = set(FROM_PROMETHEUS)
        for name, selected in metrics.items():
            assert name in LABELS, f"{query.panel}: no metric {name}"
            assert selected <= LABELS[name], f"{query.panel}: {name} has no {selected - LABELS[name]}"
            known |= LABELS[name]
        for matched in re.findall(r"\b(?:by|without|on|ignoring) \(([^)]*)\)", query.expr):
            assert set(re.split(r", *", matched)) <= known, f"{query.panel}: {matched}"


def test_scenes_are_made_of_series_as_xskd_has_them() -> None:
    for scene in scenes():
        for series in scene.series:
            name = series.partition("{")[0]
            assert name in LABELS, f"{scene.name}: no metric {name}"
            assert pairs(series).keys() == LABELS[name], f"{scene.name}: {series}"


@pytest.mark.parametrize("name", recorded(), ids=str)
def test_recorded_series_say_their_level_metric_and_operation(name: str) -> None:
    level, metric, operation = name.split(":")
    assert level in {
        "instance_path",
        "instance_path_queue",
        "instance_path_interface",
        "instance_path_interface_queue",
    }
    assert metric.startswith("xskd_")
    assert operation.endswith("rate5m")
