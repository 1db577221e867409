"""The dashboard file on its own: whole, fitting together, and speaking of xskd's metrics and no others."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

from queries import ROOT, alerts, dashboard, panels, queries, variables

from xskd.metrics import TABLE

FROM_PROMETHEUS = {"instance", "job"}
COLUMNS = 24  # of Grafana's grid
LABELS: dict[str, set[str]] = {row.exposed: set(row.labels) | FROM_PROMETHEUS for row in TABLE}


def test_the_file_is_what_its_builder_writes() -> None:
    build = ROOT / "dashboards/build.py"
    done = subprocess.run((sys.executable, build, "--check"), check=False)
    assert done.returncode == 0, f"run: python {build.relative_to(ROOT)}"


def test_ids_are_unique_and_no_panel_covers_another() -> None:
    all_panels = dashboard()["panels"]
    numbers = [panel["id"] for panel in all_panels]
    assert len(numbers) == len(set(numbers))
    taken: dict[tuple[int, int], str] = {}
    for panel in all_panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        across, down = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        for cell in itertools.product(across, down):
            assert cell not in taken, f"{panel['title']} covers {taken[cell]}"
            taken[cell] = panel["title"]


def test_every_panel_says_what_it_means_and_when_to_worry() -> None:
    for panel in panels():
        said = panel["description"]
        assert re.search(r"[Ww]orry|one is too many", said), panel["title"]
        assert len(said) > 40, panel["title"]


def test_every_query_goes_to_the_chosen_source_and_follows_the_chosen_instance() -> None:
    for panel in panels():
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        names = [target["refId"] for target in panel["targets"]]
        assert len(names) == len(set(names))
    for query in queries():
        for name, labels in query.metrics().items():
            assert "instance" in labels, f"{query.panel}: {name}"
            wanted = LABELS[name] & {"path", "interface", "queue"}
            unfiltered = wanted - labels - ({"queue"} if "count(" in query.expr else set())
            assert not unfiltered, f"{query.panel}: {name} ignores {unfiltered}"


def test_metrics_and_labels_exist() -> None:
    for query in [*queries(), *alerts()]:
        metrics = query.metrics()
        assert metrics or query.expr.startswith("up{"), query.panel
        for name, selected in metrics.items():
            assert name in LABELS, f"{query.panel}: no metric {name}"
            assert selected <= LABELS[name], f"{query.panel}: {name} has no {selected - LABELS[name]}"
        for name in metrics:
            shown = query.labels() - LABELS[name]
            assert not shown, f"{query.panel}: {name} has no {shown}"


def test_every_metric_is_on_the_dashboard() -> None:
    used = {name for query in queries() for name in query.metrics()}
    assert LABELS.keys() - used == set()


def test_variables_are_declared_and_offer_labels_that_exist() -> None:
    declared = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = {name for query in queries() for name in re.findall(r"\$(\w+)", query.expr)}
    assert used - {"__rate_interval"} <= declared
    for name, (series, label) in variables().items():
        (metric,) = re.findall(r"xskd_\w+", series)
        assert label in LABELS[metric], name
