"""What the dashboard file asks, for tests that hold it against the metric table and a real Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs/operations.md"
FILE = ROOT / "dashboards/grafana/xskd.json"


@dataclass(frozen=True)
class Query:
    """One query of one panel."""

    panel: str
    expr: str
    legend: str

    def filled(self, interval: str) -> str:
        """The query as Prometheus gets it, with every variable at `All`."""
        return filled(self.expr, interval)

    def metrics(self) -> dict[str, set[str]]:
        """Each metric it names, with the labels by which it selects."""
        found: dict[str, set[str]] = {}
        for name, selector in re.findall(r"\b(xskd_\w+)(?:\{([^}]*)\})?", self.expr):
            found.setdefault(name, set()).update(re.findall(r'(\w+) *(?:=~|!~|!=|=) *"', selector))
        return found

    def labels(self) -> set[str]:
        """The labels by which it groups, and those that its legend shows."""
        grouped = ",".join(re.findall(r"by \(([^)]*)\)", self.expr))
        return {each.strip() for each in grouped.split(",") if each} | set(
            re.findall(r"\{\{(\w+)\}\}", self.legend)
        )


def dashboard() -> dict[str, Any]:
    """The file."""
    loaded: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return loaded


def panels() -> list[dict[str, Any]]:
    """Every panel but the rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Every query of every panel."""
    for panel in panels():
        for target in panel["targets"]:
            yield Query(panel["title"], target["expr"], target["legendFormat"])


def variables() -> dict[str, tuple[str, str]]:
    """Each variable that asks Prometheus: the series it looks at, and the label whose values it offers."""
    found = {}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert asked, variable["name"]
            found[variable["name"]] = (asked[1], asked[2])
    return found


def alerts() -> list[Query]:
    """The expressions that the operator's page recommends."""
    (block,) = re.findall(r"```promql\n(.*?)```", OPERATIONS.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    return [Query(OPERATIONS.name, line, "") for line in lines]


def filled(expr: str, interval: str) -> str:
    """An expression with its variables at `All` and `interval` for what Grafana thinks fits."""
    return re.sub(r"\$(?!__)\w+", ".*", expr.replace("$__rate_interval", interval))
