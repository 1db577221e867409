"""The dashboard files against Grafana's own types, and the page that draws them without a Grafana server.

There is no Grafana to import them into. What can be had are its front-end packages: scripts/setup makes a
JSON Schema of their types, and a page of their components.
"""

from __future__ import annotations

import copy
import http.client
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from lab import Topology, entered
from lab.grafana import PAGE, viewer

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "dashboards/schema/built.json"
VIEWER = ROOT / "dashboards/viewer"
COMPILER = ROOT / "dashboards/schema/node_modules/.bin/tsc"
FILES = sorted((ROOT / "dashboards/grafana").glob("*.json"))

SMALL: dict[str, Any] = {
    "schemaVersion": 42,
    "title": "small",
    "templating": {"list": [{"name": "path", "type": "query", "multi": True}]},
    "panels": [
        {"type": "row", "id": 1, "collapsed": False, "panels": []},
        {
            "type": "timeseries",
            "gridPos": {"x": 0, "y": 1, "w": 12, "h": 8},
            "targets": [{"refId": "A", "expr": "up", "legendFormat": "up"}],
            "fieldConfig": {
                "defaults": {"unit": "pps", "custom": {"fillOpacity": 10}},
                "overrides": [
                    {"matcher": {"id": "byName"}, "properties": [{"id": "custom.lineWidth", "value": 2}]}
                ],
            },
            "options": {"legend": {"placement": "bottom"}},
        },
    ],
}
PANEL = ("panels", 1)
CUSTOM = (*PANEL, "fieldConfig", "defaults", "custom")
WRONG: list[tuple[tuple[str | int, ...], Any]] = [
    (("titel",), "misspelt"),
    (("schemaVersion",), "42"),
    (("templating", "list", 0, "mulit"), True),
    (("panels", 0, "colapsed"), True),
    ((*PANEL, "type"), "timeserie"),
    ((*PANEL, "gridPos", "w"), "12"),
    ((*PANEL, "targets", 0, "legend"), "misspelt"),
    ((*PANEL, "targets", 0, "format"), "heat"),
    ((*PANEL, "options", "legend", "placement"), "top"),
    ((*PANEL, "options", "legende"), {}),
    ((*PANEL, "fieldConfig", "defaults", "units"), "pps"),
    ((*CUSTOM, "fillOpacity"), "10"),
    ((*CUSTOM, "fillOpacty"), 10),
    ((*PANEL, "fieldConfig", "overrides", 0, "properties", 0, "id"), "custom.lineWidht"),
]


@pytest.fixture(scope="module")
def schema() -> Draft7Validator:
    """What Grafana's types allow."""
    if not SCHEMA.exists():
        pytest.skip(f"needs {SCHEMA.relative_to(ROOT)}: scripts/setup test makes it with npm packages")
    return Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def complaints(schema: Draft7Validator, dashboard: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in schema.iter_errors(dashboard)]


def test_there_are_dashboards() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_says_what_grafana_knows(schema: Draft7Validator, file: Path) -> None:
    assert complaints(schema, json.loads(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    WRONG,
    ids=lambda each: ".".join(map(str, each))[-40:] if isinstance(each, tuple) else "",
)
def test_what_grafana_does_not_know_is_rejected(
    schema: Draft7Validator, path: tuple[str | int, ...], value: Any
) -> None:
    assert complaints(schema, SMALL) == []
    broken = copy.deepcopy(SMALL)
    place: Any = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (complaint,) = complaints(schema, broken)
    where = "$" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path[:-1])
    assert complaint.startswith(where)
    assert str(path[-1]) in complaint


def test_the_page_uses_the_components_as_their_types_say() -> None:
    if not COMPILER.exists() or not (PAGE / "viewer.js").exists():
        pytest.skip("needs the npm packages of dashboards: scripts/setup test installs them")
    node = ROOT / ".venv/bin/node"
    done = subprocess.run((node, COMPILER, "-p", VIEWER), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces)")
def test_the_pages_server_passes_on_questions_and_nothing_else(tmp_path: Path) -> None:
    """In a namespace of its own, like whatever listens in a test; there is no Prometheus to answer."""
    (tmp_path / "index.html").write_text("the page", encoding="utf-8")
    with (
        Topology("xskd-system", links=1, addresses=False) as lab,
        entered(lab.hosts[0]),
        viewer(lab.dut, port=0, page=tmp_path) as address,
    ):
        assert get(address, "/") == get(address, "/d/xskd-path/x?var-path=wire") == (200, "the page")
        offered = json.loads(get(address, "/viewer.json")[1])["dashboards"]
        assert offered == [json.loads(file.read_text(encoding="utf-8")) for file in FILES]
        for path in ("/api/v1/admin/tsdb/snapshot", "/api/v1/query/../admin/tsdb/snapshot", "/../demo.py"):
            assert get(address, path)[0] == 404, path
        status, said = get(address, "/api/v1/query?query=up")
        assert (status, json.loads(said)["status"]) == (502, "error")


def get(address: str, path: str) -> tuple[int, str]:
    """Ask for a path as it is; the libraries above this one would tidy it up."""
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    return answer.status, said
