"""What the dashboards are made of: how a question is written down, and the PromQL that several of them share.

A panel says what its answer means and when to worry, and leads to the runbook of the alert concerned. There
must never be one without the first, nor one that names a metric or label that xskd/metrics.py has not. How
Grafana wants it written is for build.py to know, and not for this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# Every alert of dashboards/prometheus; docs/operations.md has a section, the runbook, for each.
Alert = Literal[
    "XskdDown",
    "XskdLosingPackets",
    "XskdRxOverrun",
    "XskdFillStarving",
    "XskdWorkerStalled",
    "XskdWorkerDown",
    "XskdCrashLoop",
    "XskdFramesUnaccounted",
    "XskdFramesQuarantined",
    "XskdSilentCopyMode",
    "XskdQueueWithoutWorker",
    "XskdReloadFailed",
    "XskdConfigInvalid",
    "XskdLinkDown",
    "XskdForeignProgram",
    "XskdPathWaiting",
    "XskdInvalidDescriptors",
    "XskdExpressLaneClosed",
]

# ---- selectors: what the variables at the top of a dashboard choose ----------------------------------

DAEMON = 'instance=~"$instance"'
PATH = f'{DAEMON}, path=~"$path"'
WORKER = f'{PATH}, queue=~"$queue"'
INTERFACE = f'{PATH}, interface=~"$interface"'
PORT = f'{INTERFACE}, queue=~"$queue"'

# What makes one of a kind, to group by.
OF_PATH = "instance, path"
OF_WORKER = "instance, path, queue"
OF_INTERFACE = "instance, path, interface"
OF_SOCKET = "instance, path, interface, queue"

SOCKET_NAME = "{{path}} {{interface}}:{{queue}}"
WORKER_NAME = "{{path}}/{{queue}}"
INTERFACE_NAME = "{{path}} {{interface}}"


# name, label on the screen, the series whose label values it offers
VARIABLES = (
    ("instance", "Instance", "xskd_info"),
    ("path", "Path", f"xskd_worker_up{{{DAEMON}}}"),
    ("interface", "Interface", f"xskd_xdp_attached{{{PATH}}}"),
    ("queue", "Queue", f"xskd_rx_packets_total{{{INTERFACE}}}"),
)

# ---- shapes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A question, its queries by legend, and how the answer is drawn. `bad` is where it turns red."""

    title: str
    description: str
    queries: Mapping[str, str]
    unit: str = "short"
    width: int = 8
    kind: Literal["timeseries", "stat", "state-timeline", "bargauge", "heatmap"] = "timeseries"
    bad: float | None = None
    runbooks: Sequence[Alert] = ()
    leads_to: Mapping[str, str] | None = None  # where a click on a series goes: `to_queue`, `to_path`
    stacked: Literal["normal", "percent"] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)  # by legend
    mappings: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Column:
    """A query of a table, with one value per row. With `text`, that label is shown and the value is not."""

    expr: str
    unit: str = "short"
    bad: float | None = None
    text: str | None = None
    mappings: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Table:
    """One row for each of a kind: the labels in `rows`, then the columns by title.

    `worst` is the column to sort by; `leads_to` says where a click on a label's cell goes.
    """

    title: str
    description: str
    rows: Sequence[str]
    columns: Mapping[str, Column]
    worst: str | None = None
    runbooks: Sequence[Alert] = ()
    leads_to: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    width: int = 24


@dataclass(frozen=True)
class Dashboard:
    """Rows of panels under a name; grafana/xskd-`name`.json."""

    name: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel | Table]]

    @property
    def uid(self) -> str:
        """What links name it by."""
        return f"xskd-{self.name}"


def stat(title: str, description: str, *, width: int = 3, **rest: Any) -> Panel:
    """One figure, large."""
    return Panel(title, description, kind="stat", width=width, **rest)


def names(title: str, description: str, *, width: int = 3, **rest: Any) -> Panel:
    """Figures, large, each with its name."""
    return stat(title, description, width=width, options={"textMode": "value_and_name"}, **rest)


def heatmap(title: str, description: str, metric: str, selector: str, **rest: Any) -> Panel:
    """How a histogram's observations a second are spread over its buckets."""
    spread = f"sum by (le) ({rate(f'{metric}_bucket', selector)})"
    return Panel(title, description, {"{{le}}": spread}, kind="heatmap", **rest)


def _leads_to(name: str, value: str, *labels: str) -> dict[str, str]:
    chosen = "".join(f"&var-{label}=${{{value}.{label}}}" for label in labels)
    kept = "${datasource:queryparam}&${runbooks:queryparam}"
    return {
        "title": f"Open this {name}",
        "url": f"/d/xskd-{name}/xskd-{name}?{kept}{chosen}&${{__url_time_range}}",
    }


# From a cell of a table, and from a line of a graph.
ROW_TO_PATH = _leads_to("path", "__data.fields", "instance", "path")
ROW_TO_QUEUE = _leads_to("queue", "__data.fields", "instance", "path", "interface", "queue")
LINE_TO_PATH = _leads_to("path", "__field.labels", "instance", "path")
LINE_TO_SOCKET = _leads_to("queue", "__field.labels", "instance", "path", "interface", "queue")
LINE_TO_WORKER = _leads_to("queue", "__field.labels", "instance", "path", "queue")

# ---- PromQL ------------------------------------------------------------------------------------------


def rate(metric: str, selector: str) -> str:
    """Per second, over what Grafana thinks fits the scrape interval."""
    return f"rate({metric}{{{selector}}}[$__rate_interval])"


def quantile(share: float, metric: str, selector: str, *by: str) -> str:
    """That quantile of a histogram, for each value of the labels `by`."""
    spread = f"sum by ({', '.join(('le', *by))}) ({rate(f'{metric}_bucket', selector)})"
    return f"histogram_quantile({share}, {spread})"


def mean(metric: str, selector: str, *by: str) -> str:
    """What a histogram's observations were on the average."""
    grouped = f"sum by ({', '.join(by)})"
    return f"{grouped} ({rate(f'{metric}_sum', selector)}) / {grouped} ({rate(f'{metric}_count', selector)})"


def label_as(expr: str, new: str, old: str, text: str = "$1") -> str:
    """A label under another name, because two columns of a table must not share one."""
    return f'label_replace({expr}, "{new}", "{text}", "{old}", "(.*)")'


KERNEL_LOSS = f'{PORT}, stat=~"rx_dropped|rx_ring_full"'
# What the XDP program drops by its own will is in its verdicts, and no loss of the NIC's.
NIC_LOSS = f'{PORT}, stat!~".*xdp.*"'

DROPPED = f"sum by ({OF_SOCKET}) ({rate('xskd_dropped_packets_total', PORT)})"
LOST_BY_KERNEL = f"sum by ({OF_SOCKET}) ({rate('xskd_xdp_statistics_total', KERNEL_LOSS)})"
# A driver may count the same packet under several names: the largest is the least that was lost.
LOST_BY_NIC = f"max by ({OF_SOCKET}) ({rate('xskd_nic_rx_dropped_packets_total', NIC_LOSS)})"
# Some drivers count what the kernel counts as well (veth does): the larger of the two, not their sum.
LOST_BEFORE = f"({LOST_BY_NIC} > {LOST_BY_KERNEL} or {LOST_BY_KERNEL})"
LOST = f"({DROPPED} + {LOST_BEFORE})"
LOST_WITHOUT_WORKER = rate("xskd_xdp_verdicts_total", f'{INTERFACE}, verdict="no_socket_dropped"')

OCCUPIED = f'{WORKER}, regime=~"working|waking"'  # neither spinning nor sleeping

# ---- what numbers stand for --------------------------------------------------------------------------

STATES = ("stopped", "stopping", "waiting", "backoff", "starting", "forwarding")
STATE_COLOURS = ("dark-red", "orange", "purple", "red", "yellow", "green")
STATE_NUMBER = " + ignoring (state) ".join(
    f'{number} * xskd_worker_state{{{WORKER}, state="{state}"}}'
    for number, state in enumerate(STATES)
    if number
)


def texts(*meanings: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Value mappings: value, the text shown for it, its colour."""
    shown = {
        value: {"text": text, "color": colour, "index": index}
        for index, (value, text, colour) in enumerate(meanings)
    }
    return [{"type": "value", "options": shown}]


STATE_BY_NUMBER = texts(
    *((str(n), state, colour) for n, (state, colour) in enumerate(zip(STATES, STATE_COLOURS, strict=True)))
)
STATE_BY_NAME = texts(*((state, state, colour) for state, colour in zip(STATES, STATE_COLOURS, strict=True)))
LANES = ("off", "unsupported", "zerocopy", "waiting", "capture", "open")
LANE_COLOURS = ("text", "red", "red", "yellow", "purple", "green")
LANE_NUMBER = " + ignoring (state) ".join(
    f'{number} * xskd_express_lane{{{INTERFACE}, state="{state}"}}'
    for number, state in enumerate(LANES)
    if number
)
LANE_BY_NUMBER = texts(
    *((str(n), state, colour) for n, (state, colour) in enumerate(zip(LANES, LANE_COLOURS, strict=True)))
)
UP_OR_DOWN = texts(("0", "down", "red"), ("1", "up", "green"))
GOOD_OR_BAD = texts(("0", "failed", "red"), ("1", "good", "green"))
YES_OR_NO = texts(("0", "no", "text"), ("1", "yes", "text"))
COUNTS_ONE = "Should be 0 at all times; one is too many."
