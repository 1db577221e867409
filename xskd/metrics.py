"""Prometheus: one table of all metrics, and the collector that fills it from one picture of the daemon.

The table is the only place where a metric is named: docs/metrics.md is generated from it (`python -m
xskd.metrics`), and tests hold the dashboard and the C counters against it. A scrape is served by a thread of
prometheus-client and asks the supervisor's loop for one DaemonStatus; it must never touch a worker, a socket
or a counter page itself, and never make them wait.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from xskd.errors import XskdError
from xskd.status import DaemonStatus, InterfaceStatus, PortStatus, WorkerStatus

SCRAPE_TIMEOUT = 5.0  # seconds for the supervisor's loop to answer; Prometheus itself waits 10

Value = float | Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One metric. `read` gives its value for one subject, or a mapping from the last label's values to it."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str
    read: Callable[[Any], Value]

    @property
    def exposed(self) -> str:
        """The name that a query uses."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


PORT = ("path", "interface", "queue")
WORKER = ("path", "queue")
INTERFACE = ("path", "interface")


def _by_mode(port: PortStatus) -> Mapping[str, float]:
    return {mode: float(port.mode == mode) for mode in ("zerocopy", "copy")}


def _by_attach(interface: InterfaceStatus) -> Mapping[str, float]:
    return {mode: float(interface.attach == mode) for mode in ("native", "generic")}


# Per XSK: an interface's queue.
PORT_ROWS = (
    Row(
        "xskd_rx_packets",
        "counter",
        PORT,
        "Packets taken from the RX ring. Each is either transmitted or in "
        "xskd_dropped_packets_total of this interface.",
        lambda p: p.counters.rx_packets,
    ),
    Row(
        "xskd_rx_bytes",
        "counter",
        PORT,
        "Bytes of those packets, from the Ethernet header on, without FCS.",
        lambda p: p.counters.rx_bytes,
    ),
    Row(
        "xskd_tx_packets",
        "counter",
        PORT,
        "Packets submitted on the TX ring.",
        lambda p: p.counters.tx_packets,
    ),
    Row(
        "xskd_tx_bytes",
        "counter",
        PORT,
        "Bytes of those packets.",
        lambda p: p.counters.tx_bytes,
    ),
    Row(
        "xskd_tx_completed_packets",
        "counter",
        PORT,
        "Packets whose frames came back through the completion ring. Falls behind "
        "xskd_tx_packets_total by what is on its way; worry when it stands still while that "
        "grows.",
        lambda p: p.counters.tx_completed,
    ),
    Row(
        "xskd_dropped_packets",
        "counter",
        (*PORT, "reason"),
        "Packets that xskd did not forward, each under one reason. undersize: shorter than an "
        "Ethernet header; oversize: longer than the egress interface's MTU allows; tx_full: the "
        "egress TX ring stayed full; tx_refused: the egress driver took the frame and refused it "
        "(counted at the egress); invalid: a descriptor the kernel should not have given, worry "
        "at the first one.",
        lambda p: p.counters.drops,
    ),
    Row(
        "xskd_xdp_statistics",
        "counter",
        (*PORT, "stat"),
        "The kernel's XDP_STATISTICS under their own names, continued over restarted workers. "
        "rx_ring_full, rx_dropped: packets lost because the worker or FILL fell behind; "
        "rx_fill_ring_empty_descs: FILL was empty (belongs to the queue, not to the socket); "
        "*_invalid_descs: worry at the first one; tx_ring_empty_descs: benign, the kernel found "
        "nothing to send.",
        lambda p: asdict(p.kernel),
    ),
    Row(
        "xskd_ring_size_entries",
        "gauge",
        (*PORT, "ring"),
        "Size of the ring.",
        lambda p: p.rings,
    ),
    Row(
        "xskd_ring_entries",
        "gauge",
        (*PORT, "ring"),
        "Entries in the ring when the worker last looked, at most 0.1 s ago. A full rx means that "
        "the worker falls behind, a full tx that the egress does; an empty fill that packets are "
        "about to be lost.",
        lambda p: p.counters.ring_entries,
    ),
    Row(
        "xskd_wakeups",
        "counter",
        (*PORT, "direction"),
        "System calls that asked the kernel to look at a ring: tx sendto(), rx recvfrom().",
        lambda p: {"tx": p.counters.wakeups_tx, "rx": p.counters.wakeups_rx},
    ),
    Row(
        "xskd_wakeups_skipped",
        "counter",
        (*PORT, "direction"),
        "Times that a ring had something new and the kernel did not ask for a call (need_wakeup "
        "clear). In copy mode tx is never skipped.",
        lambda p: {"tx": p.counters.wakeups_tx_skipped, "rx": p.counters.wakeups_rx_skipped},
    ),
    Row(
        "xskd_wakeup_errors",
        "counter",
        (*PORT, "errno"),
        "Answers of those calls other than success. EAGAIN is normal in copy mode (the budget of "
        "one call is used up); ENETDOWN: the interface is down; ENXIO and OTHER end the worker.",
        lambda p: p.counters.wakeup_errors,
    ),
    Row(
        "xskd_fill_starved_turns",
        "counter",
        PORT,
        "Turns of the loop that found FILL empty and no free frame for it. Worry when it grows: "
        "frames are too few, or stuck.",
        lambda p: p.counters.fill_starved,
    ),
    Row(
        "xskd_tx_blocked_turns",
        "counter",
        PORT,
        "Turns that found packets in RX of this interface and no room on the egress TX ring.",
        lambda p: p.counters.tx_blocked,
    ),
    Row(
        "xskd_completion_invalid_descriptors",
        "counter",
        PORT,
        "Completion entries that name no frame of this socket's TX side. Worry at the first one.",
        lambda p: p.counters.completion_invalid,
    ),
    Row(
        "xskd_socket_mode",
        "gauge",
        (*PORT, "mode"),
        "1 for the mode that the kernel says is in use, 0 for the other, 0 for both while the "
        "socket is not bound. copy where zerocopy was expected costs most of the speed.",
        _by_mode,
    ),
)

# Per worker; its queue is that of its first interface.
WORKER_ROWS = (
    Row(
        "xskd_worker_up",
        "gauge",
        WORKER,
        "1 while the worker forwards, 0 otherwise.",
        lambda w: float(w.state == "forwarding"),
    ),
    Row(
        "xskd_worker_restarts",
        "counter",
        (*WORKER, "cause"),
        "Workers of this place that ended and were started again, by signal or exit status, or "
        "why the supervisor ended them. Worry when it grows.",
        lambda w: w.restarts,
    ),
    Row(
        "xskd_worker_adoptions",
        "counter",
        (*WORKER, "result"),
        "Workers that were to go on with sockets in use, after a death or a restart of the daemon. adopted: "
        "they did; failed: new sockets had to be made, and packets in the rings were lost; kept: before "
        "Linux 6.4 the old process itself goes on after a restart of the daemon.",
        lambda w: {result: w.adoptions.get(result, 0) for result in ("adopted", "failed", "kept")},
    ),
    Row(
        "xskd_worker_gap_seconds",
        "counter",
        WORKER,
        "Time between the last turn of one worker of this place and the first of the next, summed, also "
        "while its path waited. What "
        "came meanwhile waited in RX as far as that has room; more is in rx_ring_full or rx_dropped.",
        lambda w: w.gap_seconds,
    ),
    Row(
        "xskd_worker_heartbeat_age_seconds",
        "gauge",
        WORKER,
        "Time since the worker's loop last turned; NaN before its first turn. At most 0.1 s while "
        "it is well; at 1.5 s the supervisor restarts it.",
        lambda w: float("nan") if w.heartbeat_age is None else w.heartbeat_age,
    ),
    Row(
        "xskd_loop_turns",
        "counter",
        WORKER,
        "Turns of the worker's loop.",
        lambda w: w.counters.turns,
    ),
    Row(
        "xskd_loop_idle_turns",
        "counter",
        WORKER,
        "Those of them that found nothing to do.",
        lambda w: w.counters.turns_idle,
    ),
    Row(
        "xskd_loop_sleeps",
        "counter",
        WORKER,
        "Times that the loop went to sleep in poll().",
        lambda w: w.counters.sleeps,
    ),
    Row(
        "xskd_frames",
        "gauge",
        (*WORKER, "state"),
        "Frames of the UMEM by where they are: free, in a ring (fill, rx, tx, completion), held "
        "by the loop, in the kernel or NIC, quarantined (owner uncertain, never used again; worry "
        "above 0).",
        lambda w: w.counters.frames_in,
    ),
    Row(
        "xskd_frames_unaccounted",
        "gauge",
        WORKER,
        "Frames of the UMEM that are in none of these places. Anything but 0 is a bug in xskd.",
        lambda w: w.counters.frames_unaccounted,
    ),
)

# Per interface: its XDP program.
INTERFACE_ROWS = (
    Row(
        "xskd_xdp_verdicts",
        "counter",
        (*INTERFACE, "verdict"),
        "Packets that the XDP program saw: redirected to a socket; no_socket_passed and "
        "no_socket_dropped came in on a queue without a worker and took the path's fallback. "
        "Worry when those grow.",
        lambda i: asdict(i.verdicts),
    ),
    Row(
        "xskd_xdp_attached",
        "gauge",
        (*INTERFACE, "mode"),
        "1 for the mode in which the XDP program is attached. generic is slower than native and "
        "never zero-copy.",
        _by_attach,
    ),
    Row(
        "xskd_interface_queues",
        "gauge",
        INTERFACE,
        "RX queues of the interface; 0 while it is not there.",
        lambda i: i.queues,
    ),
    Row(
        "xskd_interface_carrier",
        "gauge",
        INTERFACE,
        "1 while the interface is up and has carrier, 0 otherwise: then nothing comes and nothing is sent.",
        lambda i: float(i.carrier),
    ),
)

# The daemon itself.
DAEMON_ROWS = (
    Row(
        "xskd_info",
        "gauge",
        ("version",),
        "1; the version that runs.",
        lambda d: {d.version: 1.0},
    ),
    Row(
        "xskd_path_waiting",
        "gauge",
        ("path",),
        "1 while the path cannot run on the machine as it is: an interface is missing, an MTU does not fit. "
        "`xskd status` says why; the path starts by itself when that has changed.",
        lambda d: {path: float(path in d.waiting) for path in d.paths},
    ),
    Row(
        "xskd_config_valid",
        "gauge",
        (),
        "0 while the configuration file is wrong and an older one runs, 1 otherwise. Worry at 0: the next "
        "start after a stop will fail.",
        lambda d: float(d.config_error is None),
    ),
    Row(
        "xskd_start_time_seconds",
        "gauge",
        (),
        "When the daemon started, in seconds since the epoch.",
        lambda d: d.started,
    ),
)

TABLE = (*PORT_ROWS, *WORKER_ROWS, *INTERFACE_ROWS, *DAEMON_ROWS)


def families(status: DaemonStatus) -> Iterable[Metric]:
    """The whole table filled in from one picture."""
    ports = [
        ((worker.path, port.interface, str(port.queue)), port)
        for worker in status.workers
        for port in worker.ports
    ]
    workers = [(worker_labels(worker), worker) for worker in status.workers]
    interfaces = [((interface.path, interface.name), interface) for interface in status.interfaces]
    for rows, subjects in (
        (PORT_ROWS, ports),
        (WORKER_ROWS, workers),
        (INTERFACE_ROWS, interfaces),
        (DAEMON_ROWS, [((), status)]),
    ):
        for row in rows:
            yield _family(row, subjects)


def worker_labels(worker: WorkerStatus) -> tuple[str, str]:
    """Path and queue that stand for a worker."""
    return worker.path, str(worker.ports[0].queue)


def _family(row: Row, subjects: Iterable[tuple[tuple[str, ...], Any]]) -> Metric:
    made = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    family = made(row.name, row.help, labels=row.labels)
    for labels, subject in subjects:
        value = row.read(subject)
        if isinstance(value, Mapping):
            for last, number in value.items():
                family.add_metric([*labels, last], number)
        else:
            family.add_metric(labels, value)
    return family


class StatusCollector(Collector):
    """Asks the supervisor's loop for one picture per scrape."""

    def __init__(self, loop: asyncio.AbstractEventLoop, status: Callable[[], DaemonStatus]) -> None:
        self._loop, self._status = loop, status

    def collect(self) -> Iterable[Metric]:
        """The table's metrics; raises TimeoutError (and the scrape fails) if the loop does not answer."""
        return families(self._picture())

    def _picture(self) -> DaemonStatus:
        answer: concurrent.futures.Future[DaemonStatus] = concurrent.futures.Future()

        def take() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(self._status())
                except XskdError as error:
                    answer.set_exception(error)

        self._loop.call_soon_threadsafe(take)
        return answer.result(SCRAPE_TIMEOUT)


class Endpoint:
    """`/metrics` on host and port, served by threads of its own. OSError if it cannot listen there."""

    def __init__(
        self,
        listen: tuple[str, int],
        loop: asyncio.AbstractEventLoop,
        status: Callable[[], DaemonStatus],
    ) -> None:
        registry = CollectorRegistry(auto_describe=False)
        host, port = listen
        self._server, self._thread = start_http_server(port, host, registry)
        registry.register(StatusCollector(loop, status))

    def close(self) -> None:
        """Stop serving. Does not wait for the thread, which may take half a second to notice."""
        threading.Thread(target=self._shut, daemon=True).start()

    def _shut(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def as_markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated from xskd/metrics.py by `python -m xskd.metrics`; a test holds the two together. -->",
        "",
        "Every metric of `/metrics`. Counters never go back while the daemon runs, also when a worker dies;",
        "a worker that is down keeps its series. The labels are bounded by the configuration: `path`,",
        "`interface` and `queue` are its names and numbers.",
    ]
    for title, rows in (
        ("Per interface and queue", PORT_ROWS),
        ("Per worker", WORKER_ROWS),
        ("Per interface", INTERFACE_ROWS),
        ("The daemon", DAEMON_ROWS),
    ):
        lines += ["", f"## {title}", "", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
        for row in rows:
            labels = ", ".join(f"`{label}`" for label in row.labels) or "none"
            lines.append(f"| `{row.exposed}` | {row.kind} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
