"""The page that Prometheus scrapes: the table of metrics.py filled in from one picture, in its text format.

Written here and not by prometheus-client, which needs five times as long for it
(docs/decisions/0011-metrics-page.md); a test holds the two against each other. Nothing here knows a metric by
name, or asks anybody anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import accumulate

from prometheus_client.utils import floatToGoString

from xskd.metrics import (
    DAEMON_ROWS,
    INTERFACE,
    INTERFACE_ROWS,
    PORT,
    PORT_ROWS,
    WORKER,
    WORKER_ROWS,
    Histogram,
    Row,
    Value,
)
from xskd.status import DaemonStatus, WorkerStatus


def page(status: DaemonStatus) -> str:
    """The whole table filled in from one picture, in Prometheus' text format."""
    ports = [
        ((worker.path, port.interface, str(port.queue)), port)
        for worker in status.workers
        for port in worker.ports
    ]
    workers = [(worker_labels(worker), worker) for worker in status.workers]
    interfaces = [((interface.path, interface.name), interface) for interface in status.interfaces]
    lines: list[str] = []
    for rows, names, subjects in (
        (PORT_ROWS, PORT, ports),
        (WORKER_ROWS, WORKER, workers),
        (INTERFACE_ROWS, INTERFACE, interfaces),
        (DAEMON_ROWS, (), [((), status)]),
    ):
        labelled = [(_labels(names, values), subject) for values, subject in subjects]
        for row in rows:
            lines += (f"# HELP {row.exposed} {_escaped(row.help)}", f"# TYPE {row.exposed} {row.kind}")
            for labels, subject in labelled:
                lines += _samples(row, row.labels[len(names) :], labels, row.read(subject))
    return "\n".join(lines) + "\n"


def _samples(row: Row, names: tuple[str, ...], labels: str, value: Value) -> Iterator[str]:
    """The lines of one subject; `names` are the labels that it does not have itself."""
    for last, one in value.items() if isinstance(value, Mapping) else (((), value),):
        more = _labels(names, (last,) if isinstance(last, str) else last)
        inside = f"{labels},{more}" if labels and more else labels or more
        braced = f"{{{inside}}}" if inside else ""
        if not isinstance(one, Histogram):
            yield f"{row.exposed}{braced} {_number(one)}"
            continue
        for bound, number in _cumulated(one):
            yield f'{row.name}_bucket{{{inside},le="{bound}"}} {number}'
        yield f"{row.name}_sum{braced} {_number(one.total)}"
        yield f"{row.name}_count{braced} {sum(one.counts)}"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """What stands between the braces."""
    pairs = zip(names, values, strict=True)
    return ",".join([f'{name}="{_escaped(value, quote=True)}"' for name, value in pairs])


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text


def _number(value: float) -> str:
    return str(value if isinstance(value, int) else floatToGoString(value))  # type: ignore[no-untyped-call]


def _cumulated(histogram: Histogram) -> Iterable[tuple[str, int]]:
    """Prometheus' buckets: how many were at most so large."""
    return zip(_bounds(histogram.bounds), accumulate(histogram.counts), strict=True)


@cache
def _bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(floatToGoString, bounds), "+Inf")


def worker_labels(worker: WorkerStatus) -> tuple[str, str]:
    """Path and queue that stand for a worker."""
    return worker.path, str(worker.ports[0].queue)
