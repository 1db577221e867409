"""The dashboard files on their own: whole, fitting together, and speaking of xskd's metrics and no others."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from typing import Any

import pytest
from queries import FILES, ROOT, Query, dashboards, links, panels, queries, runbooks, variables

from xskd.metrics import TABLE

FROM_PROMETHEUS = {"instance", "job"}
COLUMNS = 24  # of Grafana's grid
LABELS: dict[str, set[str]] = {row.exposed: set(row.labels) | FROM_PROMETHEUS for row in TABLE}
DASHBOARDS = pytest.mark.parametrize("dashboard", dashboards(), ids=lambda dashboard: str(dashboard["uid"]))


def test_the_files_are_what_their_builder_writes() -> None:
    build = ROOT / "dashboards/build.py"
    done = subprocess.run((sys.executable, build, "--check"), check=False)
    assert done.returncode == 0, f"run: python {build.relative_to(ROOT)}"


def test_a_dashboard_has_the_name_of_its_file() -> None:
    assert [dashboard["uid"] for dashboard in dashboards()] == [file.stem for file in FILES]


@DASHBOARDS
def test_ids_are_unique_and_no_panel_covers_another(dashboard: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        across, down = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        for cell in itertools.product(across, down):
            assert cell not in taken, f"{panel['title']} covers {taken[cell]}"
            taken[cell] = panel["title"]


def test_every_panel_says_what_it_means_and_when_to_worry() -> None:
    for name, panel in panels():
        said = panel["description"]
        assert re.search(r"[Ww]orry|one is too many", said), name
        assert len(said) > 40, name


def test_every_query_goes_to_the_chosen_source_and_follows_the_chosen_instance() -> None:
    for panel_name, panel in panels():
        assert panel["targets"], panel_name
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        names = [target["refId"] for target in panel["targets"]]
        assert len(names) == len(set(names))
    for query in queries():
        for name, labels in query.metrics().items():
            assert "instance" in labels, f"{query.panel}: {name}"
            unfiltered = LABELS[name] & {"path", "interface", "queue"} - labels
            assert not unfiltered, f"{query.panel}: {name} ignores {unfiltered}"


def test_metrics_and_labels_exist() -> None:
    for query in queries():
        metrics = query.metrics()
        assert metrics, query.panel
        for name, selected in metrics.items():
            assert name in LABELS, f"{query.panel}: no metric {name}"
            assert selected <= LABELS[name], f"{query.panel}: {name} has no {selected - LABELS[name]}"
        have = query.made().union(*(LABELS[name] for name in metrics))
        assert query.shown() <= have, f"{query.panel}: no label {query.shown() - have}"


def test_every_grouping_is_by_labels_that_what_is_grouped_has() -> None:
    for query in queries():
        for by, grouped in query.aggregations():
            metrics = grouped.metrics()
            joined = (
                set().union(*(LABELS[name] for name in metrics)) if "group_left" in grouped.expr else set()
            )
            for name in metrics:
                lacking = by - LABELS[name] - grouped.made() - joined
                assert not lacking, f"{query.panel}: {name} has no {lacking}"


def test_the_columns_of_a_table_can_be_joined() -> None:
    """Grafana's `merge` puts into one row what is alike in the labels that all the answers have."""
    tables = [(name, panel) for name, panel in panels() if panel["type"] == "table"]
    assert len(tables) >= 3
    for name, panel in tables:
        merge, organize, *rest = panel["transformations"]
        assert (merge["id"], organize["id"]) == ("merge", "organize")
        titles = organize["options"]["renameByName"]
        labels = organize["options"]["indexByName"].keys() - titles.keys()  # what a row is of
        for target in panel["targets"]:
            assert target["format"] == "table" and target["instant"], name
            grouped = [by for by, _ in Query(name, target["expr"], "").aggregations()]
            assert any(labels <= by for by in grouped), f"{name}: {target['expr']}"
        for sort in (each for transformation in rest for each in transformation["options"]["sort"]):
            assert sort["field"] in titles.values(), name


def test_every_metric_is_on_a_dashboard() -> None:
    used = {name for query in queries() for name in query.metrics()}
    assert LABELS.keys() - used == set()


@DASHBOARDS
def test_variables_are_declared(dashboard: dict[str, Any]) -> None:
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {name for query in queries() for name in re.findall(r"\$([a-z]\w*)", query.expr)}
    assert used == {"instance", "path", "interface", "queue"}
    assert declared == used | {"datasource", "runbooks"}


def test_variables_offer_labels_that_exist() -> None:
    for name, (series, label) in variables().items():
        (metric,) = re.findall(r"xskd_\w+", series)
        assert label in LABELS[metric], name


def test_links_lead_to_a_dashboard_or_a_runbook() -> None:
    """And set no variable that is not there."""
    uids = {dashboard["uid"] for dashboard in dashboards()}
    declared = {
        variable["name"] for dashboard in dashboards() for variable in dashboard["templating"]["list"]
    }
    reached = set()
    for name, address in links():
        base, _, anchor = address.partition("#")
        if base == "${runbooks}":
            assert anchor in runbooks(), f"{name}: {anchor}"
            reached.add(anchor)
            continue
        path, _, parameters = address.partition("?")
        assert path.split("/")[1] == "d" and path.split("/")[2] in uids, f"{name}: {address}"
        assert set(re.findall(r"var-(\w+)=", parameters)) <= declared, f"{name}: {address}"
    assert reached == runbooks(), "a runbook that no panel leads to"


def test_the_worst_queue_of_the_overview_leads_to_its_own_dashboard() -> None:
    (worst,) = [panel for name, panel in panels() if name == "xskd-overview: Queues, worst first"]
    lost = {"id": "sortBy", "options": {"sort": [{"field": "lost", "desc": True}]}}
    assert worst["transformations"][-1] == lost
    to_queue = {
        override["matcher"]["options"]
        for override in worst["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "links" and each["value"][0]["url"].startswith("/d/xskd-queue/")
    }
    assert {"interface", "queue"} <= to_queue
