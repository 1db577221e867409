"""Figures of tests that try faults: what was promised, what was measured, in one line each.

A fault test holds a figure to its bound by `figure`, which prints it, fails the test if the bound is broken,
and appends it to the file that XSKD_FIGURES names. `python -m lab.figures FILE` makes of such a file the
table of docs/reliability.md. A bound is a promise to users, with room for a slow machine; speed is judged in
bench/.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def figure(what: str, value: float, unit: str, bound: float) -> None:
    """Print and record one measured value, in this unit; AssertionError if it is above its bound."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
    print(f"figure: {what}: {value:g} {unit} (at most {bound:g})")
    if name := os.environ.get("XSKD_FIGURES"):
        line = {"what": what, "value": value, "unit": unit, "bound": bound, "test": test}
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    assert value <= bound, f"{what}: {value:g} {unit}, promised at most {bound:g}"


def table(lines: list[dict[str, str | float]]) -> str:
    """Make the lines a Markdown table; of a figure measured several times, the worst."""
    worst: dict[str, dict[str, str | float]] = {}
    for line in lines:
        known = worst.setdefault(str(line["what"]), line)
        if float(line["value"]) > float(known["value"]):
            worst[str(line["what"])] = line
    rows = ["| what | measured | promised | test |", "| --- | --- | --- | --- |"]
    for what, line in worst.items():
        test = str(line["test"]).rpartition("::")[2]
        rows.append(f"| {what} | {line['value']:g} {line['unit']} | {line['bound']:g} | `{test}` |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]))
