"""What the benches of single questions share: trials in turns over rounds, a record, a page in Markdown.

As in a campaign, everybody's trials follow each other within a round, so that a machine that changes its
speed changes it for all; what was measured while others used the CPU is thrown away and repeated, by the same
rules. Who fails is named in the record and ends nothing. A quick run measures everything once, whatever else
the machine does, shows that, and keeps nothing: its figures are none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Generic

from bench import machine
from bench.campaign import attempt, rotated
from bench.measurement import TRIES, M, throw_away_other_phases, usual_speed
from lab import Topology

RESULTS = Path(__file__).parent / "results"
Trial = Callable[[float, int], M]  # seconds of the window, number of the round -> measurement


@dataclass
class Series(Generic[M]):
    """Everything known about one run of a bench."""

    name: str
    when: str
    machine: dict[str, str | int]
    settings: dict[str, float]
    versions: dict[str, str]
    failures: list[str] = field(default_factory=list)
    runs: list[M] = field(default_factory=list)

    def good(self, chosen: Callable[[M], bool]) -> list[M]:
        """Return those of the chosen that may count."""
        return [run for run in self.runs if not run.thrown_away and chosen(run)]

    def heading(self, what: str) -> list[str]:
        """Return the first lines of the page: what was measured, where, how often."""
        host = self.machine
        return [
            f"Measured {self.when} on {host['cpu']} ({host['cores']} cores, {host['virtual']}), kernel "
            f"{host['kernel']}, {host['system']}. {what} {self.settings['rounds']:g} rounds of "
            f"{self.settings['seconds']:g} s in turn; median (smallest to largest).",
            "",
        ]

    def ending(self) -> list[str]:
        """Return the last lines: versions, failures, and what was thrown away."""
        thrown = sum(1 for run in self.runs if run.thrown_away)
        versions = "; ".join(f"{name}: {version}" for name, version in self.versions.items())
        return [
            *([f"Versions: {versions}.", ""] if versions else []),
            *(f"Failed: {failure.splitlines()[0]}." for failure in self.failures),
            f"{len(self.runs)} measurements were made and {thrown} of them thrown away.",
        ]


def options(name: str, doing: str, *, rounds: int, seconds: float) -> argparse.Namespace:
    """Read the command line that these benches share; ends the program where it may not run."""
    parser = argparse.ArgumentParser(prog=f"scripts/bench --{name}", description=doing)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help="window of one measurement")
    parser.add_argument("--quick", action="store_true", help="one short round, keeps nothing")
    parser.add_argument("--only", action="append", default=[], help="trials whose name contains this")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, min(seconds, 1.0)
    if os.geteuid() != 0:
        sys.exit("bench: needs root, to make network namespaces")
    Topology.cleanup_stale("xskd-bench")
    return arguments


def carry_out(
    name: str, trials: dict[str, Trial[M]], arguments: argparse.Namespace, versions: dict[str, str]
) -> Series[M]:
    """Carry out every trial once a round, beginning with another one each time."""
    series: Series[M] = Series(
        name=name,
        when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine.facts(),
        settings={"rounds": arguments.rounds, "seconds": arguments.seconds},
        versions=versions,
    )
    chosen = [trial for called, trial in trials.items() if all(word in called for word in arguments.only)]
    began = time.monotonic()
    for number in range(arguments.rounds):
        for trial in rotated(chosen, number * 7):
            measure = partial(trial, arguments.seconds, number)
            series.runs += attempt(series.failures, measure, tries=1 if arguments.quick else TRIES)
    if arguments.quick:
        series.runs = [replace(run, thrown_away="") for run in series.runs]
    else:
        series.runs = throw_away_other_phases(series.runs, usual_speed(series.runs))
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return series


def keep(series: Series[M], text: str, arguments: argparse.Namespace) -> None:
    """Print the page; and keep it, and all that was measured, unless it was a quick run or not all of it."""
    print(text)
    if arguments.quick:
        print("\nA quick run, to see that everything works: these are not results.")
    if not arguments.quick and not arguments.only:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{series.name}.md").write_text(text + "\n")
        (RESULTS / f"{series.name}.json").write_text(json.dumps(asdict(series), indent=1) + "\n")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, smallest and largest; a dash for nothing."""
    if not values:
        return "-"
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, the first column to the left and figures to the right."""
    return [
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
