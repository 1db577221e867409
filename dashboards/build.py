"""Writes dashboards/grafana/*.json, for Grafana to import, from the questions in the modules beside it.

    python dashboards/build.py            writes the files
    python dashboards/build.py --check    exit status 1 if they are not what this would write

The JSON is committed, and a test holds the two together. This module must never decide what is asked; it lays
panels out and knows how Grafana wants them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from one_path import ONE_PATH
from one_queue import ONE_QUEUE
from overview import OVERVIEW
from panel import VARIABLES, Column, Dashboard, Panel, Table

DIRECTORY = Path(__file__).with_name("grafana")
DASHBOARDS = (OVERVIEW, ONE_PATH, ONE_QUEUE)
SCHEMA_VERSION = 42  # of Grafana 12 and 13; older ones ignore what they do not know
COLUMNS, LINE = 24, 110
HEIGHTS = {"stat": 4, "table": 9}
HEIGHT = 8  # of all others
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Where the runbooks are, until somebody who has them on a web server says so: the package's own file.
RUNBOOKS = "/usr/share/doc/xskd/operations.md"


def dashboard(asked: Dashboard) -> dict[str, Any]:
    """The whole dashboard, as Grafana wants it."""
    return {
        "uid": asked.uid,
        "title": asked.title,
        "description": asked.description,
        "tags": ["xskd", "af_xdp", "network"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_to(other) for other in DASHBOARDS if other is not asked],
        "templating": {"list": [_source(), *(_variable(*each) for each in VARIABLES), _runbooks()]},
        "panels": _panels(asked.rows),
    }


def _panels(rows: Mapping[str, Sequence[Panel | Table]]) -> list[dict[str, Any]]:
    """Lay rows out from top to bottom, panels from left to right, and on where they do not fit."""
    made: list[dict[str, Any]] = []
    top = 0
    for title, panels in rows.items():
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place}
            | {"panels": []}
        )
        top, left, line = top + 1, 0, 0
        for panel in panels:
            height = HEIGHTS.get(_kind(panel), HEIGHT)
            if left + panel.width > COLUMNS:
                top, left, line = top + line, 0, 0
            place = {"x": left, "y": top, "w": panel.width, "h": height}
            made.append(_panel(len(made) + 1, panel, place))
            left, line = left + panel.width, max(line, height)
        top += line
    return made


def _kind(panel: Panel | Table) -> str:
    return "table" if isinstance(panel, Table) else panel.kind


def _panel(number: int, panel: Panel | Table, place: dict[str, int]) -> dict[str, Any]:
    head = {
        "id": number,
        "type": _kind(panel),
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": SOURCE,
        "links": [
            _link(f"Runbook: {alert}", f"${{runbooks}}#{alert.lower()}", icon="doc", targetBlank=True)
            for alert in panel.runbooks
        ],
    }
    return head | (_table(panel) if isinstance(panel, Table) else _graph(panel))


# ---- everything but tables ---------------------------------------------------------------------------


def _graph(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "mappings": list(panel.mappings),
        "thresholds": _thresholds(panel.bad),
        "custom": _custom(panel),
    }
    if panel.kind in {"timeseries", "bargauge"}:
        defaults["min"] = 0
    if panel.leads_to:
        defaults["links"] = [panel.leads_to]
    shape = {"format": "heatmap" if panel.kind == "heatmap" else "time_series"}
    return {
        "targets": [
            _target(index, expr) | shape | {"legendFormat": legend}
            for index, (legend, expr) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [_coloured(legend, colour) for legend, colour in panel.colours.items()],
        },
        "options": _options(panel),
    }


def _custom(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "timeseries":
            drawn: dict[str, Any] = {"fillOpacity": 40 if panel.stacked else 10, "showPoints": "never"}
            if panel.stacked:
                drawn["stacking"] = {"mode": panel.stacked, "group": "A"}
            if panel.bad is not None:
                drawn["thresholdsStyle"] = {"mode": "line"}
            if panel.unit == "percentunit":
                drawn["axisSoftMax"] = 1  # else nothing at all is drawn against thousands of percent
            return drawn
        case "state-timeline":
            return {"fillOpacity": 70, "lineWidth": 0}
        case _:
            return {}


def _options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    hidden = legend | {"showLegend": False}
    match panel.kind:
        case "stat":
            shown = {
                "reduceOptions": last,
                "orientation": "auto",
                "colorMode": "background" if panel.bad is not None else "value",
                "graphMode": "area" if panel.unit == "pps" else "none",
                "justifyMode": "auto",
                "percentChangeColorMode": "standard",
                "showPercentChange": False,
                "textMode": "value",
                "wideLayout": True,
            }
            return shown | dict(panel.options)
        case "bargauge":
            return {
                "reduceOptions": last,
                "orientation": "horizontal",
                "displayMode": "basic",
                "namePlacement": "auto",
                "valueMode": "color",
                "showUnfilled": True,
                "sizing": "auto",
                "minVizHeight": 16,
                "minVizWidth": 8,
                "maxVizHeight": 300,
                "legend": hidden,
            }
        case "heatmap":
            return _heatmap_options(panel)
        case "state-timeline":
            return {
                "showValue": "auto",
                "rowHeight": 0.8,
                "mergeValues": True,
                "alignValue": "left",
                "legend": hidden,
                "tooltip": {"mode": "single", "sort": "none"},
            }
        case _:
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def _heatmap_options(panel: Panel) -> dict[str, Any]:
    """Prometheus has made the buckets; a cell is as dark as it has observations."""
    return {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "ops"},
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "fill": "dark-orange",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": panel.unit},
    }


def _coloured(legend: str, colour: str) -> dict[str, Any]:
    by = "byRegexp" if legend.startswith("/") else "byName"
    fixed = {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}
    return {"matcher": {"id": by, "options": legend}, "properties": [fixed]}


# ---- tables ------------------------------------------------------------------------------------------


def _table(table: Table) -> dict[str, Any]:
    """One query per column, joined by the labels that all of them have."""
    columns = list(enumerate(table.columns.items()))
    numbers = {_value(index): title for index, (title, column) in columns if column.text is None}
    labels = {column.text: title for title, column in table.columns.items() if column.text}
    titles = numbers | labels
    hidden = ["Time", *(_value(index) for index, (_, column) in columns if column.text)]
    order = [*table.rows, *sorted(titles, key=lambda field: list(table.columns).index(titles[field]))]
    transformations: list[dict[str, Any]] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": dict.fromkeys(hidden, True),
                "indexByName": {field: index for index, field in enumerate(order)},
                "renameByName": titles,
            },
        },
    ]
    if table.worst:
        by_worst = {"sort": [{"field": table.worst, "desc": True}]}
        transformations.append({"id": "sortBy", "options": by_worst})
    return {
        "targets": [
            _target(index, column.expr) | {"format": "table", "instant": True, "range": False}
            for index, (_, column) in columns
        ],
        "transformations": transformations,
        "fieldConfig": {
            "defaults": {
                "custom": {
                    "align": "auto",
                    "cellOptions": {"type": "auto"},
                    "inspect": False,
                    "minWidth": 80,
                },
                "thresholds": _thresholds(None),
                "mappings": [],
            },
            "overrides": [
                *(_override(label, links=[link]) for label, link in table.leads_to.items()),
                *(_override(title, **_cell(column)) for title, column in table.columns.items()),
            ],
        },
        "options": {"showHeader": True, "cellHeight": "sm", "frameIndex": 0},
    }


def _value(index: int) -> str:
    """What Grafana calls the value of a query in a table."""
    return f"Value #{_letter(index)}"


def _cell(column: Column) -> dict[str, Any]:
    properties: dict[str, Any] = {"unit": column.unit}
    if column.bad is not None:
        properties["thresholds"] = _thresholds(column.bad, well="transparent")
        properties["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
    if column.mappings:
        properties["mappings"] = list(column.mappings)
    if column.mappings and column.bad is None:
        properties["custom.cellOptions"] = {"type": "color-text"}
    return properties


def _override(name: str, **properties: Any) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


# ---- what all have -----------------------------------------------------------------------------------


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _target(index: int, expr: str) -> dict[str, Any]:
    return {"refId": _letter(index), "datasource": SOURCE, "expr": expr}


def _thresholds(bad: float | None, well: str = "green") -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": well, "value": None}]
    if bad is not None:
        steps.append({"color": "red", "value": bad})
    return {"mode": "absolute", "steps": steps}


def _to(other: Dashboard) -> dict[str, Any]:
    """A link at the top, to the same variables and the same time there."""
    url = f"/d/{other.uid}/{other.uid}"
    kept = {"includeVars": True, "keepTime": True}
    return _link(other.title, url, icon="dashboard", tooltip=other.description, **kept)


def _link(title: str, url: str, **unlike: Any) -> dict[str, Any]:
    usual = {"asDropdown": False, "includeVars": False, "keepTime": False, "targetBlank": False}
    return {"type": "link", "title": title, "url": url, "tags": [], "tooltip": ""} | usual | unlike


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str, label: str, series: str) -> dict[str, Any]:
    query = f"label_values({series}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 3,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _runbooks() -> dict[str, Any]:
    current = {"text": RUNBOOKS, "value": RUNBOOKS}
    return {"name": "runbooks", "label": "Runbooks", "type": "textbox", "query": RUNBOOKS, "current": current}


# ---- writing -----------------------------------------------------------------------------------------


def readable(value: Any, indent: int = 0, used: int = 0) -> str:
    """JSON in which everything that fits on a line is on one."""
    flat = json.dumps(value)
    if not isinstance(value, dict | list) or not value or indent + used + len(flat) < LINE:
        return flat
    space = " " * (indent + 2)
    if isinstance(value, list):
        inner = [space + readable(each, indent + 2) for each in value]
        return "[\n" + ",\n".join(inner) + "\n" + " " * indent + "]"
    keys = [json.dumps(key) + ": " for key in value]
    parts = [
        space + key + readable(each, indent + 2, len(key))
        for key, each in zip(keys, value.values(), strict=True)
    ]
    return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"


def main(arguments: Sequence[str]) -> int:
    """Write or check the files; the exit status."""
    wanted = {DIRECTORY / f"{asked.uid}.json": readable(dashboard(asked)) + "\n" for asked in DASHBOARDS}
    if list(arguments) == ["--check"]:
        there = {file: file.read_text(encoding="utf-8") for file in DIRECTORY.iterdir()}
        return int(there != wanted)
    for file, text in wanted.items():
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
