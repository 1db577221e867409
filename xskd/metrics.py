"""Prometheus: one table of all metrics, each with where its value is in a picture of the daemon.

The table is the only place where a metric is named: docs/metrics.md is generated from it (`python -m
xskd.metrics`), and tests hold the dashboards, the rules and the C counters against it. Nothing here asks
anybody anything. The page that is made of it is page.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from xskd.counters import BATCH_BOUNDS, TIME_BOUNDS
from xskd.status import InterfaceStatus, LaneState, PortStatus, WorkerState


@dataclass(frozen=True)
class Histogram:
    """How many fell into each bucket, one more than there are bounds, and the sum of all."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float


# A tuple stands for several of the last labels.
Value = float | Histogram | Mapping[Any, float] | Mapping[Any, Histogram]


@dataclass(frozen=True)
class Row:
    """One metric. `read` gives its value for one subject, or a mapping from the last label's values to it.

    A key of that mapping is a tuple where it has the values of several labels; it may be empty.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
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


# Each reason for a wakeup, with the direction and the call that belong to it.
WAKEUP_LABELS = {
    "new": ("tx", "sendto", "new"),
    "again": ("tx", "sendto", "again"),
    "left": ("tx", "sendto", "left"),
    "refilled": ("rx", "recvfrom", "refilled"),
    "dry": ("rx", "recvfrom", "dry"),
    "sleep": ("rx", "poll", "sleep"),
}


def _wakeups(port: PortStatus) -> Mapping[tuple[str, ...], float]:
    return {WAKEUP_LABELS[reason]: calls for reason, calls in port.counters.wakeups.items()}


def _wakeup_times(port: PortStatus) -> Mapping[str, Histogram]:
    counts = {"tx": port.counters.wakeup_tx_times, "rx": port.counters.wakeup_rx_times}
    sums = port.counters.wakeup_ns
    return {way: Histogram(TIME_BOUNDS, counts[way], sums[way] / 1e9) for way in counts}


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
        "xskd_tx_frames",
        "counter",
        PORT,
        "Frames of those packets: one each, more where the MTU does not fit one frame.",
        lambda p: p.counters.tx_frames,
    ),
    Row(
        "xskd_tx_completed_packets",
        "counter",
        PORT,
        "Frames that came back through the completion ring; a packet that takes several counts as "
        "so many. Falls behind xskd_tx_frames_total by what is on its way; worry when it stands "
        "still while that grows.",
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
        "at the first one; fragments: of several descriptors, too many or cut off; no_metadata: in a "
        "path that routes, where it goes did not arrive whole with it, worry if they are many: the driver "
        "has no room for metadata; abandoned: in the hands of a worker that died, or in the rings of a "
        "socket that was given up.",
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
        "xskd_ring_high_water_entries",
        "gauge",
        (*PORT, "ring"),
        "Most entries that the worker found in the ring since the last scrape (with two Prometheus servers: "
        "since either's). A rx or tx that comes near its size is about to lose packets, also where its "
        "level looks harmless.",
        lambda p: p.counters.ring_high_water,
    ),
    Row(
        "xskd_ring_full",
        "counter",
        (*PORT, "ring"),
        "Times that the worker found the ring full, and the time before not. Worry about rx (the kernel "
        "drops what comes then), tx and completion (nothing can be sent); fill is meant to be full.",
        lambda p: p.counters.ring_full,
    ),
    Row(
        "xskd_ring_empty",
        "counter",
        (*PORT, "ring"),
        "Times that the worker found the ring empty, and the time before not. Worry about fill: the kernel "
        "drops what comes then. For rx, tx and completion it only says that all work is done.",
        lambda p: p.counters.ring_empty,
    ),
    Row(
        "xskd_ring_corrupt",
        "counter",
        (*PORT, "ring"),
        "Times that a worker ended because it could not believe the ring any more: an index that cannot be, "
        "or the 64th entry that names no frame of ours. It is started again with new sockets; what was in "
        "the rings is lost. Worry at the first one.",
        lambda p: p.counters.ring_corrupt,
    ),
    Row(
        "xskd_rx_batch_packets",
        "histogram",
        PORT,
        "Packets that one burst took from the RX ring. Small ones are good for latency; worry when they stay "
        "near 64 (a burst's most): the worker is at its limit.",
        lambda p: Histogram(BATCH_BOUNDS, p.counters.rx_batches, p.counters.rx_packets),
    ),
    Row(
        "xskd_tx_batch_packets",
        "histogram",
        PORT,
        "Packets that one burst put on the TX ring. Each burst costs at least one system call in copy mode.",
        lambda p: Histogram(BATCH_BOUNDS, p.counters.tx_batches, p.counters.tx_packets),
    ),
    Row(
        "xskd_latency_seconds",
        "histogram",
        PORT,
        "Time that packets which came in here spent in the forwarder, of a sample (one burst in 17): from "
        "the look at RX before the one that found them until the kernel has been told to send them, so at "
        "most a turn too much. Not in it: how long the kernel takes to wake a sleeping worker. Worry when it "
        "grows with the load: packets wait in RX.",
        lambda p: Histogram(TIME_BOUNDS, p.counters.latency, p.counters.latency_ns / 1e9),
    ),
    Row(
        "xskd_wakeups",
        "counter",
        (*PORT, "direction", "call", "reason"),
        "System calls that asked the kernel to look at a ring. sendto for TX: new packets there; again, "
        "the call before sent only a part (its budget); left, an earlier turn could not get them sent. "
        "recvfrom for FILL: refilled, new frames there; dry, nothing comes and the driver still asks. poll, "
        "which wakes the driver as well: sleep. Worry about left: the egress does not take what it gets.",
        _wakeups,
    ),
    Row(
        "xskd_wakeup_seconds",
        "histogram",
        (*PORT, "direction"),
        "Time inside those calls, of a sample (one call in 17). In copy mode the kernel does its whole work "
        "for the packets in there. Compare it with the packets per wakeup: busy polling pays off where calls "
        "are many and short.",
        _wakeup_times,
    ),
    Row(
        "xskd_wakeups_skipped",
        "counter",
        (*PORT, "direction"),
        "Times that a ring had something new and the kernel did not ask for a call (need_wakeup "
        "clear). In copy mode tx is never skipped.",
        lambda p: p.counters.wakeups_skipped,
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
    Row(
        "xskd_socket_mode_wanted",
        "gauge",
        (*PORT, "mode"),
        "1 for the mode that the configuration asks for. auto takes copy where zero-copy is refused: worry "
        "where xskd_interface_zerocopy_able is 1 and xskd_socket_mode says copy.",
        lambda p: {mode: float(p.mode_wanted == mode) for mode in ("auto", "zerocopy", "copy")},
    ),
    Row(
        "xskd_socket_multi_buffer",
        "gauge",
        PORT,
        "1 where a packet may take several frames (XDP_USE_SG), because the MTU of an interface of the path "
        "does not fit one; else 0.",
        lambda p: float(p.multi_buffer),
    ),
    Row(
        "xskd_nic_rx_dropped_packets",
        "counter",
        (*PORT, "stat"),
        "What the NIC lost of this queue before or instead of giving it to xskd: the RX counters of "
        "`ethtool -S` that mean a loss, as the driver names them, without the queue's number. Read every 2 "
        "s, and continued when the driver or a new interface begins at 0. No series where the driver has "
        "none. Worry when it grows: packets come faster than they are taken. On veth rx_drops has what the "
        "socket's rings had no room for (also in xskd_xdp_statistics_total), and the names with xdp_drop "
        "what `fallback: drop` threw away (also in xskd_xdp_verdicts_total).",
        lambda p: p.nic_rx_dropped,
    ),
    Row(
        "xskd_nic_tx_dropped_packets",
        "counter",
        (*PORT, "stat"),
        "What the NIC lost of this queue after it was given to it: the TX counters of `ethtool -S` that mean "
        "a loss, named, read and continued likewise. Express packets are lost here and nowhere else: "
        "tx_xdp_xmit_errors on veth, tx_xdp_tx_drops on virtio_net. Worry when it grows: the egress is "
        "slower than what is sent to it.",
        lambda p: p.nic_tx_dropped,
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
        "xskd_xskmap_conflicts",
        "counter",
        WORKER,
        "Times that another's socket was found in the worker's place in an XSKMAP. It is put out within a "
        "second; packets that came meanwhile are lost, and only the NIC's counters have them. Worry at the "
        "first one: somebody else writes to xskd's maps.",
        lambda w: w.conflicts,
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
        "xskd_loop_seconds",
        "counter",
        (*WORKER, "regime"),
        "What the worker's loop spends its time on: working, turns that moved frames; spinning, turns that "
        "found nothing; sleeping, in poll(); waking, in calls that wake the kernel (estimated from those "
        "that were timed). Worry when working and waking together come near 1: the worker is at its limit.",
        lambda w: {regime: ns / 1e9 for regime, ns in w.counters.regimes_ns.items()},
    ),
    Row(
        "xskd_worker_cpu_seconds",
        "counter",
        (*WORKER, "mode"),
        "CPU time of the worker's processes, user and system. In copy mode nearly all is system. Worry when "
        "much less is used than the loop's seconds without sleeping: others take its CPU.",
        lambda w: {mode: ns / 1e9 for mode, ns in w.counters.cpu_ns.items()},
    ),
    Row(
        "xskd_worker_context_switches",
        "counter",
        (*WORKER, "kind"),
        "Times that the worker gave up its CPU to sleep (voluntary) or lost it to others (involuntary). "
        "Worry about many involuntary ones: give the worker a CPU of its own, with `cpus`.",
        lambda w: w.counters.context_switches,
    ),
    Row(
        "xskd_worker_page_faults",
        "counter",
        (*WORKER, "kind"),
        "Page faults of the worker's processes: minor ones come with each start; major ones read from a "
        "disk. Worry when either grows while no worker starts.",
        lambda w: w.counters.page_faults,
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
    Row(
        "xskd_worker_state",
        "gauge",
        (*WORKER, "state"),
        "1 for the state the worker is in. backoff: it failed and is tried again; waiting: its path cannot "
        "run on the machine as it is. Worry about every state but forwarding that lasts more than some "
        "seconds.",
        lambda w: {state: float(w.state == state) for state in get_args(WorkerState)},
    ),
)

# Per interface: its XDP program.
INTERFACE_ROWS = (
    Row(
        "xskd_xdp_verdicts",
        "counter",
        (*INTERFACE, "verdict"),
        "Packets that the XDP program saw, each under one verdict: redirected to a socket; expressed, sent "
        "straight out of another interface; passed to the kernel or dropped, as a rule says; rule_limited "
        "and path_limited, dropped over a limit; unroutable, left to the kernel for a reason that "
        "xskd_unroutable_packets_total tells; no_socket_passed and no_socket_dropped came in on a queue "
        "without a worker and took the path's fallback. Worry when those two grow.",
        lambda i: asdict(i.verdicts),
    ),
    Row(
        "xskd_xdp_verdict_bytes",
        "counter",
        (*INTERFACE, "verdict"),
        "Bytes of those packets, from the Ethernet header on, without FCS.",
        lambda i: asdict(i.verdict_bytes),
    ),
    Row(
        "xskd_rule_packets",
        "counter",
        (*INTERFACE, "rule"),
        "Packets that matched the rule, by its name (its place where it has none); default: that matched "
        "none. Goes on over reloads, under the same name. No series on an interface without rules.",
        lambda i: {rule.name: rule.packets for rule in i.rules},
    ),
    Row(
        "xskd_rule_bytes",
        "counter",
        (*INTERFACE, "rule"),
        "Bytes of those packets, from the Ethernet header on, without FCS.",
        lambda i: {rule.name: rule.bytes for rule in i.rules},
    ),
    Row(
        "xskd_rule_limited_packets",
        "counter",
        (*INTERFACE, "rule"),
        "Packets of the rule that were over its own limit, and dropped for it. What a limit is for; worry "
        "only if it should not be reached.",
        lambda i: {rule.name: rule.limited for rule in i.rules},
    ),
    Row(
        "xskd_rules",
        "gauge",
        INTERFACE,
        "Rules in force on the interface, the default aside.",
        lambda i: max(len(i.rules) - 1, 0),
    ),
    Row(
        "xskd_unroutable_packets",
        "counter",
        (*INTERFACE, "reason"),
        "Packets of a route path that were left to the kernel, which forwards, answers or drops them. local: "
        "for this host, or no route; no_neighbour: the kernel asks for it, then the path forwards; "
        "ttl_expired, fragmentation_needed, unreachable, prohibited: it answers with ICMP; outside: the "
        "egress is not of the path. Worry about much of forwarding_off (`xskd doctor` says what to set), "
        "outside, no_metadata (the driver has no room for it) and lookup_failed.",
        lambda i: i.unroutable,
    ),
    Row(
        "xskd_unparsed_packets",
        "counter",
        INTERFACE,
        "Packets that no rule could be asked about, truncated or with lengths that cannot be; they took the "
        "default and are in one of the verdicts too. Worry when it grows: somebody sends rubbish, or tries "
        "what the rules let through.",
        lambda i: i.unparsed,
    ),
    Row(
        "xskd_express_lane",
        "gauge",
        (*INTERFACE, "state"),
        "1 for the state of the express lane that leaves by the interface. off: nothing in the path says "
        "express; the others but open say why its packets go through the socket. Worry about unsupported "
        "(the driver, or a veth's peer, takes no redirected frames) and zerocopy: what was asked for cannot "
        "be had here.",
        lambda i: {state: float(i.lane == state) for state in get_args(LaneState)},
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
    Row(
        "xskd_interface_up",
        "gauge",
        INTERFACE,
        "1 while the interface is set up, 0 while it is down or not there. Down is somebody's decision, up "
        "without xskd_interface_carrier is a cable or the other end. Worry at 0.",
        lambda i: float(i.up),
    ),
    Row(
        "xskd_interface_queues_without_socket",
        "gauge",
        INTERFACE,
        "RX queues of the interface that no worker has: what the NIC puts there takes the path's fallback. 0 "
        "while the interface is not there. Worry above 0, unless `queues` leaves some out on purpose and the "
        "NIC was told not to use them, and when xskd_xdp_verdicts_total has no_socket packets.",
        lambda i: i.queues_without_socket,
    ),
    Row(
        "xskd_interface_foreign_program",
        "gauge",
        INTERFACE,
        "1 while an XDP program that is not this daemon's is attached to the interface, which xskd never "
        "replaces: its path waits. One that came or went by a bpf_link is seen within 5 s. Worry at 1.",
        lambda i: float(i.foreign_program),
    ),
    Row(
        "xskd_interface_info",
        "gauge",
        (*INTERFACE, "driver"),
        "1; the driver, or the kind of a virtual link. No series while the interface is not there.",
        lambda i: {i.driver: 1.0} if i.driver else {},
    ),
    Row(
        "xskd_interface_zerocopy_able",
        "gauge",
        INTERFACE,
        "1 if the driver says that it has zero-copy for AF_XDP, 0 if not, no series where the kernel does "
        "not say (before Linux 6.3). Worry at 1 with xskd_socket_mode copy: something else is in the way, "
        "`xskd status` and the log say what; at 0 only another NIC helps.",
        lambda i: {} if i.zerocopy_able is None else float(i.zerocopy_able),
    ),
    Row(
        "xskd_interface_rx_dropped_packets",
        "counter",
        (*INTERFACE, "stat"),
        "Packets lost on the way in, as the kernel counts them for the whole interface; read every 2 s, "
        "continued when an interface is made anew. rx_missed_errors, rx_fifo_errors, rx_over_errors: the NIC "
        "had no room, worry when they grow. rx_dropped: the driver, or the kernel for packets that took the "
        "fallback and that nobody wanted, so worry when it grows and the verdicts say redirected; "
        "rx_nohandler: came in on an inactive member of a bond.",
        lambda i: i.rx_dropped,
    ),
)

# The daemon itself.
DAEMON_ROWS = (
    Row(
        "xskd_info",
        "gauge",
        ("version", "kernel"),
        "1; the version that runs, and the release of the kernel it runs on.",
        lambda d: {(d.version, d.kernel): 1.0},
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
    Row(
        "xskd_config_generation",
        "gauge",
        (),
        "Which configuration runs: 1 at the start of the daemon, 1 more for each that was loaded since. A "
        "change nobody meant is the only thing to worry about.",
        lambda d: d.reloads.generation,
    ),
    Row(
        "xskd_config_reloads",
        "counter",
        ("result",),
        "Reloads since the daemon started, dry ones aside. success: the file was loaded, also if something "
        "in it cannot work now, which xskd_path_waiting and xskd_worker_state tell; failure: nothing was "
        "changed. Worry about failure.",
        lambda d: {"success": d.reloads.success, "failure": d.reloads.failure},
    ),
    Row(
        "xskd_config_last_reload_successful",
        "gauge",
        (),
        "1 if the last reload loaded the file, also before the first; 0 if it changed nothing. Worry at 0: "
        "what runs is not what was asked for; `xskd check` says why.",
        lambda d: float(d.reloads.last_successful),
    ),
    Row(
        "xskd_config_last_reload_timestamp_seconds",
        "gauge",
        (),
        "When the last reload was, whatever became of it, in seconds since the epoch; the daemon's start "
        "before the first. Nothing to worry about: to be held against other events.",
        lambda d: d.reloads.last,
    ),
    Row(
        "xskd_clients_refused",
        "counter",
        ("listener", "reason"),
        "Connections that the daemon closed without an answer. listener: control, the socket of `xskd "
        "status`, or metrics, this page; reason: busy, there were more at once than it serves; slow, the "
        "client did not ask, or take its answer, in time. Worry when it grows: somebody keeps others from "
        "asking.",
        lambda d: {
            (listener, reason): number
            for listener, by_reason in d.clients_refused.items()
            for reason, number in by_reason.items()
        },
    ),
)

TABLE = (*PORT_ROWS, *WORKER_ROWS, *INTERFACE_ROWS, *DAEMON_ROWS)


def as_markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated from xskd/metrics.py by `python -m xskd.metrics`; a test holds the two together. -->",
        "",
        "Every metric of `/metrics`. Counters never go back while the daemon runs, also when a worker dies",
        "or an interface is made anew; a worker that is down, an interface that is gone keep their series.",
        "What NICs lost begins with what the kernel has counted so far. The labels are bounded by the",
        "configuration: `path`, `interface` and `queue` are its names and numbers; `stat` of what a NIC lost",
        "is bounded by its driver, `rule` are the rules' names and places.",
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
