"""What a test saw on /metrics, and whether it keeps the word of its marker.

`@pytest.mark.moves("xskd_ring_full", ring="rx")` says that the test makes this series change and asserts it.
The fixture `wire` holds that against every scrape of the test, so a marker cannot be a mere claim. Tests of
the socket layer have no /metrics: theirs is taken on trust. tests/unit/test_moves.py sees that every series
has such a test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import pytest

from xskd.metrics import TABLE

Samples = list[tuple[dict[str, str], float]]
Metrics = dict[str, Samples]
GROWING = {row.name for row in TABLE if row.kind != "gauge"}  # and they begin at 0


def moved(scrapes: Sequence[Metrics], name: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a series with these labels had different values, or was not always there."""
    seen = []
    for scrape in scrapes:
        samples = scrape.get(f"{name}_count", scrape.get(name, []))  # of a histogram: how many there are
        wanted = [(given, value) for given, value in samples if labels.items() <= given.items()]
        seen.append({frozenset(given.items()): value for given, value in wanted})
    before = 0.0 if name in GROWING else None
    for series in set().union(*seen):
        values = {scrape.get(series, before) for scrape in seen} | ({0.0} if name in GROWING else set())
        if len({value for value in values if value is None or not math.isnan(value)}) > 1:
            return True
    return False


def went_back(before: Metrics, after: Metrics) -> list[str]:
    """Name what only grows and is smaller, or not there any more, in a later scrape: counters, histograms."""
    return [
        f"{name} {labels}: {value:g}, then {now}"
        for row in TABLE
        if row.kind != "gauge"
        for name in ((row.name,) if row.kind == "counter" else (f"{row.name}_bucket", f"{row.name}_count"))
        for labels, value, now in _compared(before.get(name, []), after.get(name, []))
        if now is None or now < value
    ]


def _compared(before: Samples, after: Samples) -> Iterator[tuple[dict[str, str], float, float | None]]:
    found = {frozenset(labels.items()): value for labels, value in after}
    for labels, value in before:
        yield labels, value, found.get(frozenset(labels.items()))


def unmoved(marks: Iterable[pytest.Mark], scrapes: Sequence[Metrics]) -> list[str]:
    """Name the series that a test's markers promise and that never changed."""
    return [
        f"{mark.args[0]} {labels}"
        for mark in marks
        for labels in each_of(mark.kwargs)
        if not moved(scrapes, mark.args[0], labels)
    ]


def each_of(labels: Mapping[str, str | Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of labels' values, of which a marker may have several."""
    choices = [[value] if isinstance(value, str) else value for value in labels.values()]
    return [dict(zip(labels, values, strict=True)) for values in product(*choices)]
