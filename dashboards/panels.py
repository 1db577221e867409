"""What the dashboard asks, one line of thought per panel: which question, and when its answer is bad.

There must never be a panel without that, nor one that names a metric or label that xskd/metrics.py has not.
build.py beside this file makes Grafana's JSON of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

DAEMON = 'instance=~"$instance"'
WORKER = f'{DAEMON}, path=~"$path", queue=~"$queue"'
INTERFACE = f'{DAEMON}, path=~"$path", interface=~"$interface"'
PORT = f'{INTERFACE}, queue=~"$queue"'
TX = f'{PORT}, direction="tx"'

SOCKET = "instance, path, interface, queue"  # what makes an XSK one of a kind
NAME = "{{path}} {{interface}}:{{queue}}"


@dataclass(frozen=True)
class Panel:
    """A question, its queries by legend, and how the answer is drawn. `bad` is where it turns red."""

    title: str
    description: str
    queries: Mapping[str, str]
    unit: str = "short"
    width: int = 8
    kind: Literal["timeseries", "stat", "state-timeline", "bargauge"] = "timeseries"
    bad: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[Mapping[str, Any]] = ()
    mappings: Sequence[Mapping[str, Any]] = ()


def rate(metric: str, selector: str) -> str:
    """Per second, over what Grafana thinks fits the scrape interval."""
    return f"rate({metric}{{{selector}}}[$__rate_interval])"


def stat(title: str, description: str, *, width: int = 4, **rest: Any) -> Panel:
    """One figure, large."""
    return Panel(title, description, kind="stat", width=width, **rest)


def ring(name: str, title: str, description: str) -> Panel:
    """How full one of the four rings is, with its size as a dashed line."""
    chosen = f'{PORT}, ring="{name}"'
    dashed = [
        {"id": "custom.lineStyle", "value": {"fill": "dash"}},
        {"id": "custom.fillOpacity", "value": 0},
    ]
    return Panel(
        title,
        description,
        {
            NAME: f"xskd_ring_entries{{{chosen}}}",
            "size of {{interface}}": "max by (instance, path, interface) "
            f"(xskd_ring_size_entries{{{chosen}}})",
        },
        width=12,
        overrides=[{"matcher": {"id": "byRegexp", "options": "/^size/"}, "properties": dashed}],
    )


LOST_BY_KERNEL = rate("xskd_xdp_statistics_total", f'{PORT}, stat=~"rx_dropped|rx_ring_full"')
DROPPED = rate("xskd_dropped_packets_total", PORT)
COUNTS_ONE = "Should be 0 at all times; one is too many."
UP_OR_DOWN = {
    "type": "value",
    "options": {
        "0": {"text": "down", "color": "red", "index": 0},
        "1": {"text": "forwarding", "color": "green", "index": 1},
    },
}

OVERVIEW = (
    stat(
        "Workers down",
        "Workers that do not forward now. Their queues take the path's fallback. Worry above 0 for longer "
        "than a restart takes; `journalctl -u xskd` has the cause.",
        queries={"down": f"sum(1 - xskd_worker_up{{{WORKER}}})"},
        bad=1,
    ),
    stat(
        "Received",
        "Packets taken from all RX rings. Worry when it is 0 and the hosts do send: look at the verdicts of "
        "the XDP program.",
        queries={"rx": f"sum({rate('xskd_rx_packets_total', PORT)})"},
        unit="pps",
    ),
    stat(
        "Sent",
        "Packets put on all TX rings. Worry when it stays below what is received: the difference is in the "
        "drops.",
        queries={"tx": f"sum({rate('xskd_tx_packets_total', PORT)})"},
        unit="pps",
    ),
    stat(
        "Dropped by xskd",
        "Packets that xskd received and did not forward. Worry when it is more than now and then; the row "
        "Losses has the reasons.",
        queries={"drops": f"sum({DROPPED})"},
        unit="pps",
        bad=1,
    ),
    stat(
        "Lost before xskd",
        "Packets the kernel had no room for (rx_dropped and rx_ring_full). Worry when it is not 0: a worker "
        "falls behind, or its rings are too small.",
        queries={"lost": f"sum({LOST_BY_KERNEL})"},
        unit="pps",
        bad=1,
    ),
    stat(
        "Frames unaccounted",
        f"Frames of the packet memory that are nowhere. A bug in xskd. {COUNTS_ONE}",
        queries={"frames": f"sum(xskd_frames_unaccounted{{{WORKER}}})"},
        bad=1,
    ),
    stat(
        "Socket modes",
        "Sockets by the mode that the kernel says is in use. Worry about copy where the driver can do "
        "zerocopy: it costs most of the speed.",
        queries={"{{mode}}": f"sum by (mode) (xskd_socket_mode{{{PORT}}})"},
        options={"textMode": "value_and_name"},
        width=6,
    ),
    stat(
        "XDP program",
        "Interfaces by the mode in which their program is attached. Worry about generic where the driver "
        "can do native.",
        queries={"{{mode}}": f"sum by (mode) (xskd_xdp_attached{{{INTERFACE}}})"},
        options={"textMode": "value_and_name"},
        width=6,
    ),
    stat(
        "Queues without a socket",
        "RX queues of the interfaces that no worker has. What arrives on them takes the fallback. Worry "
        "when you did not choose so with `queues`.",
        queries={
            "queues": f"sum(xskd_interface_queues{{{INTERFACE}}}) - "
            f"count(xskd_rx_packets_total{{{INTERFACE}}})"
        },
        bad=1,
    ),
    stat(
        "Running for",
        "Time since the daemon started. Worry when it goes back and nobody restarted it.",
        queries={"{{instance}}": f"time() - xskd_start_time_seconds{{{DAEMON}}}"},
        unit="s",
    ),
    stat(
        "Version",
        "Daemons by the version that runs. Worry when there are two for longer than an upgrade takes.",
        queries={"{{version}}": f"sum by (version) (xskd_info{{{DAEMON}}})"},
        options={"textMode": "value_and_name"},
    ),
)

TRAFFIC = (
    Panel(
        "Packets received",
        "Per queue, from the RX ring. Worry when one queue has it all: the NIC's hash does not spread the "
        "flows.",
        {NAME: rate("xskd_rx_packets_total", PORT)},
        unit="pps",
        width=12,
    ),
    Panel(
        "Packets sent",
        "Per queue, on the TX ring. Worry when it stays below what the path's other side receives.",
        {NAME: rate("xskd_tx_packets_total", PORT)},
        unit="pps",
        width=12,
    ),
    Panel(
        "Bits received",
        "From the Ethernet header on, without FCS. Worry when it comes near the link's speed.",
        {NAME: f"8 * {rate('xskd_rx_bytes_total', PORT)}"},
        unit="bps",
    ),
    Panel(
        "Bits sent",
        "From the Ethernet header on, without FCS. Worry when it comes near the link's speed.",
        {NAME: f"8 * {rate('xskd_tx_bytes_total', PORT)}"},
        unit="bps",
    ),
    Panel(
        "Sent and not completed",
        "Packets whose frames the kernel still has. Worry when it stays up while nothing is sent: the "
        "egress driver holds frames back.",
        {NAME: f"xskd_tx_packets_total{{{PORT}}} - xskd_tx_completed_packets_total{{{PORT}}}"},
    ),
)

LOSSES = (
    Panel(
        "Drops by reason",
        "Packets xskd received and did not forward. tx_full: the egress is slower than the ingress; "
        "oversize: its MTU is smaller; invalid: worry at the first one.",
        {
            "{{path}} {{interface}} {{reason}}": f"sum by (instance, path, interface, reason) ({DROPPED})",
        },
        unit="pps",
        width=12,
    ),
    Panel(
        "Queues that lose most",
        "Drops of xskd and losses before it, worst queue first. Worry about the first bar when it is not 0.",
        {NAME: f"topk(8, sum by ({SOCKET}) ({DROPPED}) + sum by ({SOCKET}) ({LOST_BY_KERNEL}))"},
        unit="pps",
        width=12,
        kind="bargauge",
        bad=1,
    ),
    Panel(
        "Turns without a free frame",
        "Turns of the loop in which FILL was empty and no frame free. Worry when it is not 0: `umem.frames` "
        "is too small, or frames are stuck (row Frames).",
        {NAME: rate("xskd_fill_starved_turns_total", PORT)},
        unit="ops",
    ),
    Panel(
        "Turns blocked by a full TX ring",
        "Turns of the loop that had packets of this interface and no room at the egress. Worry when drops "
        "with reason tx_full come with it.",
        {NAME: rate("xskd_tx_blocked_turns_total", PORT)},
        unit="ops",
    ),
    Panel(
        "Completions that name no frame of ours",
        f"Entries of the completion ring that cannot be right: a driver's bug. {COUNTS_ONE}",
        {NAME: f"xskd_completion_invalid_descriptors_total{{{PORT}}}"},
        bad=1,
    ),
)

KERNEL = (
    Panel(
        "Lost before xskd",
        "XDP_STATISTICS that mean lost packets. rx_ring_full: the worker is too slow; rx_dropped: no frame "
        "in FILL, or the packet does not fit. Worry when it is not 0.",
        {f"{NAME} {{{{stat}}}}": LOST_BY_KERNEL},
        unit="pps",
    ),
    Panel(
        "Other XDP_STATISTICS",
        "rx_fill_ring_empty_descs: FILL was empty, worry when it grows (in copy mode rx_dropped counts the "
        "same packet); *_invalid_descs: worry at the first one; tx_ring_empty_descs: benign.",
        {
            f"{NAME} {{{{stat}}}}": rate(
                "xskd_xdp_statistics_total", f'{PORT}, stat!~"rx_dropped|rx_ring_full"'
            )
        },
        unit="ops",
    ),
    Panel(
        "Verdicts of the XDP program",
        "Packets per interface: redirected to a socket, or passed or dropped for want of one. Worry when "
        "no_socket_* grow: a worker is down, or a queue has none.",
        {"{{path}} {{interface}} {{verdict}}": rate("xskd_xdp_verdicts_total", INTERFACE)},
        unit="pps",
    ),
)

RINGS = (
    ring(
        "fill",
        "FILL ring",
        "Frames lent to the kernel to receive into. Worry when it comes near 0: the next packets are lost.",
    ),
    ring(
        "rx", "RX ring", "Packets the worker has not seen. Worry when it is near its size: it falls behind."
    ),
    ring(
        "tx", "TX ring", "Packets the kernel has not taken. Worry when it stays at its size: egress too slow."
    ),
    ring(
        "completion",
        "Completion ring",
        "Sent frames the worker has not taken back. Worry when it stays at its size: nothing can be sent.",
    ),
)

FRAMES = (
    Panel(
        "Frames by place",
        "Where the packet memory is; the sum is constant. Worry when free falls without coming back, or "
        "quarantined is not 0.",
        {"{{state}}": f"sum by (state) (xskd_frames{{{WORKER}}})"},
        width=16,
        custom={"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40},
    ),
    Panel(
        "Frames unaccounted",
        f"Frames that are in no place, per worker: a bug in xskd. {COUNTS_ONE}",
        {"{{path}}/{{queue}}": f"xskd_frames_unaccounted{{{WORKER}}}"},
        bad=1,
    ),
)

WAKEUPS = (
    Panel(
        "System calls made",
        "Calls that asked the kernel to look at a ring: tx sendto(), rx recvfrom(). Worry when there is "
        "about one a packet under load: each costs more than the packet.",
        {f"{NAME} {{{{direction}}}}": rate("xskd_wakeups_total", PORT)},
        unit="ops",
        width=6,
    ),
    Panel(
        "System calls saved",
        "Times that a ring had something new and the kernel did not want a call. In copy mode tx is never "
        "saved; worry when it stays 0 in zero-copy mode under load.",
        {f"{NAME} {{{{direction}}}}": rate("xskd_wakeups_skipped_total", PORT)},
        unit="ops",
        width=6,
    ),
    Panel(
        "Packets per wakeup",
        "Packets sent per sendto(). Few under load means small bursts: latency is fine, throughput is not. "
        "Worry when it stays near 1 while a worker is at its limit.",
        {
            NAME: f"sum by ({SOCKET}) ({rate('xskd_tx_packets_total', PORT)}) / "
            f"sum by ({SOCKET}) ({rate('xskd_wakeups_total', TX)})"
        },
        width=6,
    ),
    Panel(
        "Answers other than success",
        "EAGAIN is normal in copy mode. Worry about ENETDOWN (the interface is down), ENXIO and OTHER (the "
        "worker ends).",
        {f"{NAME} {{{{errno}}}}": rate("xskd_wakeup_errors_total", PORT)},
        unit="ops",
        width=6,
    ),
)

WORKERS = (
    Panel(
        "Workers",
        "Each worker over time. Worry about red: its queues take the fallback.",
        {"{{path}}/{{queue}}": f"xskd_worker_up{{{WORKER}}}"},
        kind="state-timeline",
        mappings=[UP_OR_DOWN],
        custom={"fillOpacity": 70},
    ),
    Panel(
        "Restarts by cause",
        "Workers that ended and were started again, since the daemon started. Worry at every step.",
        {
            "{{path}}/{{queue}} {{cause}}": f"xskd_worker_restarts_total{{{WORKER}}}",
            "all": f"sum(xskd_worker_restarts_total{{{WORKER}}}) or vector(0)",
        },
    ),
    Panel(
        "Adoptions",
        "Workers that were to go on with sockets in use. Worry about failed: new sockets had to be made, and "
        "what was in the rings is lost.",
        {"{{path}}/{{queue}} {{result}}": f"xskd_worker_adoptions_total{{{WORKER}}}"},
    ),
    Panel(
        "Time without a worker",
        "Between one worker's last turn and the next one's first, summed. A restart adds some milliseconds; "
        "worry when it grows while nobody restarts anything.",
        {"{{path}}/{{queue}}": f"xskd_worker_gap_seconds_total{{{WORKER}}}"},
        unit="s",
    ),
    Panel(
        "Links",
        "Carrier of each interface. Worry about red: nothing comes and nothing is sent.",
        {"{{path}} {{interface}}": f"xskd_interface_carrier{{{INTERFACE}}}"},
        kind="state-timeline",
        mappings=[UP_OR_DOWN],
        custom={"fillOpacity": 70},
    ),
    Panel(
        "Paths waiting, configuration refused",
        f"Paths that cannot run on the machine as it is, and whether the file is not what runs. {COUNTS_ONE}",
        {
            "path {{path}}": f'xskd_path_waiting{{{DAEMON}, path=~"$path"}}',
            "configuration": f"1 - xskd_config_valid{{{DAEMON}}}",
        },
        bad=1,
    ),
    Panel(
        "Heartbeat age",
        "Time since a worker's loop last turned. Worry above 0.5 s; at 1.5 s the supervisor ends the worker.",
        {"{{path}}/{{queue}}": f"xskd_worker_heartbeat_age_seconds{{{WORKER}}}"},
        unit="s",
        bad=0.5,
    ),
    Panel(
        "Turns of the loop",
        "How often each worker looks at its rings. Worry when it is 0.",
        {"{{path}}/{{queue}}": rate("xskd_loop_turns_total", WORKER)},
        unit="ops",
    ),
    Panel(
        "Idle share of the turns",
        "Turns that found nothing to do. Worry when it stays near 0: the worker is at its limit.",
        {
            "{{path}}/{{queue}}": f"{rate('xskd_loop_idle_turns_total', WORKER)} / "
            f"{rate('xskd_loop_turns_total', WORKER)}"
        },
        unit="percentunit",
    ),
    Panel(
        "Sleeps",
        "Times that a worker went to sleep in poll(). An idle one sleeps about ten times a second; worry "
        "when many sleeps come with latency you cannot have, and set `poll: busy`.",
        {"{{path}}/{{queue}}": rate("xskd_loop_sleeps_total", WORKER)},
        unit="ops",
    ),
)

ROWS = {
    "Overview": OVERVIEW,
    "Traffic": TRAFFIC,
    "Losses": LOSSES,
    "Kernel": KERNEL,
    "Rings": RINGS,
    "Frames": FRAMES,
    "Wakeups": WAKEUPS,
    "Workers": WORKERS,
}

# name, label on the screen, the series whose label values it offers
VARIABLES = (
    ("instance", "Instance", "xskd_info"),
    ("path", "Path", f"xskd_worker_up{{{DAEMON}}}"),
    ("interface", "Interface", f'xskd_xdp_attached{{{DAEMON}, path=~"$path"}}'),
    ("queue", "Queue", f"xskd_rx_packets_total{{{INTERFACE}}}"),
)
