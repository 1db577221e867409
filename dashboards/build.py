"""Writes dashboards/grafana/xskd.json, the file one imports into Grafana, from the questions in panels.py.

    python dashboards/build.py            writes the file
    python dashboards/build.py --check    exit status 1 if the file is not what this would write

The JSON is committed, and a test holds the two together. This module must never decide what is asked; it lays
panels out and knows how Grafana wants them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panels import ROWS, VARIABLES, Panel

FILE = Path(__file__).with_name("grafana") / "xskd.json"
SCHEMA_VERSION = 42  # of Grafana 12 and 13; older ones ignore what they do not know
COLUMNS, HEIGHT, STAT_HEIGHT, LINE = 24, 8, 4, 110
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The whole dashboard, as Grafana wants it."""
    return {
        "uid": "xskd",
        "title": "xskd",
        "description": "AF_XDP forwarding: every queue, ring, frame, wakeup and drop.",
        "tags": ["xskd", "af_xdp", "network"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source_variable(), *(_variable(*each) for each in VARIABLES)]},
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    """Lay rows out from top to bottom, panels from left to right, and on where they do not fit."""
    made: list[dict[str, Any]] = []
    top = 0
    for title, panels in ROWS.items():
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place}
            | {"panels": []}
        )
        top, left = top + 1, 0
        for panel in panels:
            height = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            if left + panel.width > COLUMNS:
                top, left = top + height, 0
            place = {"x": left, "y": top, "w": panel.width, "h": height}
            made.append(_panel(len(made) + 1, panel, place))
            left += panel.width
        top += height
    return made


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "mappings": list(panel.mappings)}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.bad is not None:
        steps.append({"color": "red", "value": panel.bad})
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind in {"timeseries", "state-timeline"}:
        defaults["custom"] = {"fillOpacity": 10, "showPoints": "never"} | dict(panel.custom)
        if panel.kind == "state-timeline":
            del defaults["custom"]["showPoints"]
        elif panel.bad is not None:
            defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
        if panel.kind == "timeseries":
            defaults["min"] = 0
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": SOURCE,
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
            for index, (legend, expr) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": defaults, "overrides": list(panel.overrides)},
        "options": _options(panel),
    }


def _options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "stat":
            area = "area" if panel.unit == "pps" else "none"
            colour = "background" if panel.bad is not None else "value"
            return {"reduceOptions": last, "colorMode": colour, "graphMode": area} | dict(panel.options)
        case "bargauge":
            return {"reduceOptions": last, "orientation": "horizontal", "displayMode": "gradient"}
        case "state-timeline":
            return {"showValue": "never", "legend": {"showLegend": False}}
        case _:
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def _source_variable() -> dict[str, Any]:
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
    """Write or check the file; the exit status."""
    text = readable(dashboard()) + "\n"
    if list(arguments) == ["--check"]:
        return int(FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
