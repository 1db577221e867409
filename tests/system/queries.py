"""What dashboards and rules ask, for tests that hold them against the metric table and a real Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs/operations.md"
FILES = sorted((ROOT / "dashboards/grafana").glob("*.json"))
RULES, ALERTS = (ROOT / f"dashboards/prometheus/xskd.{what}.yaml" for what in ("rules", "alerts"))


@dataclass(frozen=True)
class Query:
    """One query of one panel; or one rule, whose name then is the panel's."""

    panel: str
    expr: str
    legend: str

    def filled(self, interval: str, chosen: Mapping[str, str] | None = None) -> str:
        """The query as Prometheus gets it, with the variables that are not `chosen` at `All`."""
        return filled(self.expr, interval, chosen)

    def metrics(self) -> dict[str, set[str]]:
        """Each metric (of a histogram's series: the histogram) with the labels by which it selects."""
        found: dict[str, set[str]] = {}
        for series, selector in re.findall(r"(?<![\w:])(xskd_\w+)\b(?!:)(?:\{([^}]*)\})?", self.expr):
            name = re.sub(r"_(bucket|sum|count)$", "", series)
            found.setdefault(name, set()).update(re.findall(r'(\w+) *(?:=~|!~|!=|=) *"', selector))
        return found

    def shown(self) -> set[str]:
        """The labels that its legend shows."""
        return set(re.findall(r"\{\{(\w+)\}\}", self.legend))

    def made(self) -> set[str]:
        """Labels that its answer has and no metric need have."""
        made = set(re.findall(r', "(\w+)", "[^"]*", "\w*", "[^"]*"\)', self.expr))  # label_replace()
        return made | ({"le"} if "_bucket{" in self.expr else set())

    def aggregations(self) -> Iterator[tuple[set[str], Query]]:
        """The labels of each `by (...)`, and what is grouped by them."""
        for found in re.finditer(r"by \(([^)]*)\) \(", self.expr):
            depth, end = 1, found.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(self.expr[end], 0)
                end += 1
            yield set(found[1].split(", ")), Query(self.panel, self.expr[found.end() : end - 1], "")


def dashboards() -> list[dict[str, Any]]:
    """The files."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in FILES]


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Every panel but the rows, with what to call it."""
    return [
        (f"{dashboard['uid']}: {panel['title']}", panel)
        for dashboard in dashboards()
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    ]


def queries() -> Iterator[Query]:
    """Every query of every panel."""
    for name, panel in panels():
        for target in panel["targets"]:
            yield Query(name, target["expr"], target.get("legendFormat", ""))


def variables() -> dict[str, tuple[str, str]]:
    """Each variable that asks Prometheus: the series it looks at, and the label whose values it offers."""
    found = {}
    for variable in (each for dashboard in dashboards() for each in dashboard["templating"]["list"]):
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert asked, variable["name"]
            found[variable["name"]] = (asked[1], asked[2])
    return found


def links() -> Iterator[tuple[str, str]]:
    """Every address that a dashboard, a panel, a line or a cell leads to, with who does."""
    for dashboard in dashboards():
        for link in dashboard["links"]:
            yield dashboard["uid"], link["url"]
    for name, panel in panels():
        config = panel["fieldConfig"]
        properties = [each for override in config["overrides"] for each in override["properties"]]
        of_cells = [link for each in properties if each["id"] == "links" for link in each["value"]]
        for link in (*panel["links"], *config["defaults"].get("links", ()), *of_cells):
            yield name, link["url"]


def runbooks() -> set[str]:
    """The sections of the operator's page that an alert leads to, as the part of an address after the #."""
    headings = re.findall(r"^### (Xskd\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    return {heading.lower() for heading in headings}


def rules(file: Path) -> Iterator[dict[str, Any]]:
    """Every rule of a file, as it stands there."""
    for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def alerts() -> list[Query]:
    """Every alert."""
    return [Query(rule["alert"], rule["expr"], "") for rule in rules(ALERTS)]


def recorded() -> dict[str, Query]:
    """Every recorded series by its name."""
    return {rule["record"]: Query(rule["record"], rule["expr"], "") for rule in rules(RULES)}


def filled(expr: str, interval: str, chosen: Mapping[str, str] | None = None) -> str:
    """An expression with its variables as `chosen`, else at `All`; `interval` is what Grafana thinks fits."""

    def value(variable: re.Match[str]) -> str:
        if variable[1] not in (chosen or {}):
            return ".*"
        return re.escape((chosen or {})[variable[1]]).replace("\\", "\\\\")

    return re.sub(r"\$([a-z]\w*)", value, expr.replace("$__rate_interval", interval))
