"""One path: whether its queues share the work, and who counts what it loses: xskd, the kernel, the NIC.

Everything here is one queue beside the others. What goes on inside of one is in one_queue.py.
"""

from __future__ import annotations

from overview import INTERFACES
from panel import (
    COUNTS_ONE,
    INTERFACE,
    INTERFACE_NAME,
    KERNEL_LOSS,
    LANE_BY_NUMBER,
    LANE_NUMBER,
    LINE_TO_SOCKET,
    LINE_TO_WORKER,
    LOST,
    LOST_BEFORE,
    OCCUPIED,
    OF_INTERFACE,
    OF_SOCKET,
    OF_WORKER,
    PORT,
    ROW_TO_QUEUE,
    SOCKET_NAME,
    STATE_BY_NUMBER,
    STATE_NUMBER,
    UP_OR_DOWN,
    WORKER,
    WORKER_NAME,
    Column,
    Dashboard,
    Panel,
    Table,
    label_as,
    quantile,
    rate,
)

RECEIVED = f"sum by ({OF_SOCKET}) ({rate('xskd_rx_packets_total', PORT)})"
ARRIVED = f"({RECEIVED} + {LOST_BEFORE})"
REGIMES = f"sum by ({OF_WORKER}) ({rate('xskd_loop_seconds_total', WORKER)})"


def size(ring: str) -> Column:
    """The size of one ring."""
    return Column(f'max by ({OF_SOCKET}) (xskd_ring_size_entries{{{PORT}, ring="{ring}"}})')


BALANCE = (
    Panel(
        "Received by queue",
        "Each queue beside the others. Worry when one has nearly all: the NIC's hash does not spread the "
        "flows, or there is but one.",
        {SOCKET_NAME: RECEIVED},
        unit="pps",
        kind="bargauge",
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "Lost by queue",
        "What each queue loses a second, whoever loses it. Worry about each bar that is red; whether all "
        "have one or only the busiest says if the path or its balance is the matter.",
        {SOCKET_NAME: LOST},
        unit="pps",
        kind="bargauge",
        bad=0.001,
        runbooks=("XskdLosingPackets",),
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "How occupied each worker is",
        "Share of the time in which it works or wakes the kernel, the rest being spinning and sleeping. "
        "Worry above 90 %: this worker is at its limit, and its RX ring is next.",
        {WORKER_NAME: f"sum by ({OF_WORKER}) ({rate('xskd_loop_seconds_total', OCCUPIED)}) / {REGIMES}"},
        unit="percentunit",
        kind="bargauge",
        bad=0.9,
        runbooks=("XskdRxOverrun",),
        leads_to=LINE_TO_WORKER,
    ),
    Panel(
        "Packets received",
        "Per queue, from the RX ring. Worry when a queue falls to 0 and the others do not.",
        {SOCKET_NAME: rate("xskd_rx_packets_total", PORT)},
        unit="pps",
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "Packets sent",
        "Per queue, on the TX ring. Worry when it stays below what the path's other side receives.",
        {SOCKET_NAME: rate("xskd_tx_packets_total", PORT)},
        unit="pps",
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "Unevenness",
        "What the busiest queue of an interface gets over what each would if all got the same: 1 is even, "
        "the number of queues is all on one. Worry when it is high and that queue loses packets.",
        {
            INTERFACE_NAME: f"max by ({OF_INTERFACE}) ({ARRIVED}) / avg by ({OF_INTERFACE}) ({ARRIVED})",
        },
    ),
    Panel(
        "Bits received",
        "By interface, from the Ethernet header on, without FCS. Worry when it comes near the link's speed.",
        {INTERFACE_NAME: f"8 * sum by ({OF_INTERFACE}) ({rate('xskd_rx_bytes_total', PORT)})"},
        unit="bps",
    ),
    Panel(
        "Bits sent",
        "By interface, from the Ethernet header on, without FCS. Worry when it comes near the link's speed.",
        {INTERFACE_NAME: f"8 * sum by ({OF_INTERFACE}) ({rate('xskd_tx_bytes_total', PORT)})"},
        unit="bps",
    ),
    Panel(
        "Latency, 99th percentile",
        "Time of a sampled packet in the forwarder, by the queue it came in on. Worry when one queue is far "
        "above the others, or all rise together with the load.",
        {SOCKET_NAME: quantile(0.99, "xskd_latency_seconds", PORT, *OF_SOCKET.split(", "))},
        unit="s",
        leads_to=LINE_TO_SOCKET,
    ),
)

WITNESSES = (
    Panel(
        "Dropped by xskd",
        "Received and not forwarded. tx_full: the egress is slower than the ingress; oversize: its MTU is "
        "smaller; invalid: worry at the first one, about the others when they go on.",
        {f"{SOCKET_NAME} {{{{reason}}}}": rate("xskd_dropped_packets_total", PORT)},
        unit="pps",
        runbooks=("XskdLosingPackets",),
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "Lost by the kernel",
        "XDP_STATISTICS that mean lost packets. rx_ring_full: the worker is too slow; rx_dropped: no frame "
        "in FILL, or the packet does not fit. Worry when it is not 0.",
        {f"{SOCKET_NAME} {{{{stat}}}}": rate("xskd_xdp_statistics_total", KERNEL_LOSS)},
        unit="pps",
        runbooks=("XskdRxOverrun",),
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "Counted by the NIC, per queue",
        "The driver's own drop and error counters of the queue, by its names. Worry when they grow and the "
        "kernel's do not: the packets never reached the kernel. Some drivers count the kernel's as well.",
        {f"{SOCKET_NAME} {{{{stat}}}}": rate("xskd_nic_rx_dropped_packets_total", PORT)},
        unit="pps",
        runbooks=("XskdRxOverrun",),
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "Verdicts of the XDP program",
        "Packets per interface by what became of them; the rules say how many are redirected, expressed, "
        "passed or dropped. Worry when no_socket_* grow: a worker is down, or a queue has none.",
        {f"{INTERFACE_NAME} {{{{verdict}}}}": rate("xskd_xdp_verdicts_total", INTERFACE)},
        unit="pps",
        runbooks=("XskdQueueWithoutWorker",),
    ),
    Panel(
        "Other XDP_STATISTICS",
        "rx_fill_ring_empty_descs: FILL was empty, worry when it grows (in copy mode rx_dropped counts the "
        "same packet); *_invalid_descs: worry at the first one; tx_ring_empty_descs: benign.",
        {
            f"{SOCKET_NAME} {{{{stat}}}}": rate(
                "xskd_xdp_statistics_total", f'{PORT}, stat!~"rx_dropped|rx_ring_full"'
            )
        },
        unit="ops",
        runbooks=("XskdFillStarving", "XskdInvalidDescriptors"),
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "Lost by the NIC on the way out, per queue",
        "The driver's own drop and error counters of what was to leave by the queue, by its names. Express "
        "packets are lost here and nowhere else (tx_xdp_*). Worry when they grow: the egress is slower than "
        "what is sent to it.",
        {f"{SOCKET_NAME} {{{{stat}}}}": rate("xskd_nic_tx_dropped_packets_total", PORT)},
        unit="pps",
        leads_to=LINE_TO_SOCKET,
    ),
    Panel(
        "Counted for the whole interface",
        "The interface's own receive counters, all queues, also those that xskd has not. Worry when "
        "rx_missed_errors or rx_fifo_errors grow: the NIC had no room, often for want of CPU or bus.",
        {f"{INTERFACE_NAME} {{{{stat}}}}": rate("xskd_interface_rx_dropped_packets_total", INTERFACE)},
        unit="pps",
    ),
)

RULES = (
    Panel(
        "Packets by rule",
        "What matched each rule, and the default where nothing did. Worry when a rule that should match gets "
        "nothing, or one that should not gets something: `xskd status --rules` has what it asks.",
        {f"{INTERFACE_NAME} {{{{rule}}}}": rate("xskd_rule_packets_total", INTERFACE)},
        unit="pps",
    ),
    Panel(
        "Bits by rule",
        "The same from the Ethernet header on, without FCS. Worry when one comes near its limit and should "
        "not.",
        {f"{INTERFACE_NAME} {{{{rule}}}}": f"8 * {rate('xskd_rule_bytes_total', INTERFACE)}"},
        unit="bps",
    ),
    Panel(
        "Dropped over a limit",
        "Packets over the limit of their rule, and over that of their path. That is what a limit is for; "
        "worry where none should be reached.",
        {
            f"{INTERFACE_NAME} {{{{rule}}}}": rate("xskd_rule_limited_packets_total", INTERFACE),
            f"{INTERFACE_NAME} path": rate("xskd_xdp_verdicts_total", f'{INTERFACE}, verdict="path_limited"'),
        },
        unit="pps",
    ),
    Panel(
        "Bits by verdict",
        "How much goes through user space (redirected), past it (expressed), to the kernel or nowhere. Worry "
        "when what should be expressed is redirected: the lane is closed, see beside.",
        {f"{INTERFACE_NAME} {{{{verdict}}}}": f"8 * {rate('xskd_xdp_verdict_bytes_total', INTERFACE)}"},
        unit="bps",
    ),
    Panel(
        "Express lanes",
        "Whether express packets may leave by the interface, and why not; off where nothing says express. "
        "Worry about red: what was asked for cannot be had on this driver, or in this mode.",
        {INTERFACE_NAME: LANE_NUMBER},
        kind="state-timeline",
        mappings=LANE_BY_NUMBER,
        runbooks=("XskdExpressLaneClosed",),
    ),
    Panel(
        "Left to the kernel by route",
        "Packets that a route path did not forward itself, by reason; the kernel forwards, answers or drops "
        "them. Worry about much of forwarding_off, outside, no_metadata and lookup_failed.",
        {f"{INTERFACE_NAME} {{{{reason}}}}": rate("xskd_unroutable_packets_total", INTERFACE)},
        unit="pps",
    ),
    Panel(
        "Unparsed",
        "Packets that no rule could be asked about: truncated, or with lengths that cannot be. They took the "
        "default. Worry when it grows: somebody sends rubbish, or tries what the rules let through.",
        {INTERFACE_NAME: rate("xskd_unparsed_packets_total", INTERFACE)},
        unit="pps",
    ),
)

SOCKETS = Table(
    "Sockets",
    "Mode in use and mode configured, and the sizes of the rings. `multi-buffer`: bound for jumbo frames. "
    "`on its way`: frames sent and not yet completed. Worry when a mode is not what you configured, or when "
    "much is on its way while nothing is sent: the driver holds frames back.",
    rows=("instance", "path", "interface", "queue"),
    columns={
        "mode": Column(f"sum by ({OF_SOCKET}, mode) (xskd_socket_mode{{{PORT}}} == 1)", text="mode"),
        "configured": Column(
            f"sum by ({OF_SOCKET}, configured) "
            f"({label_as(f'xskd_socket_mode_wanted{{{PORT}}} == 1', 'configured', 'mode')})",
            text="configured",
        ),
        "multi-buffer": Column(f"sum by ({OF_SOCKET}) (xskd_socket_multi_buffer{{{PORT}}})"),
        **{ring: size(ring) for ring in ("fill", "rx", "tx", "completion")},
        "on its way": Column(
            f"sum by ({OF_SOCKET}) "
            f"(xskd_tx_frames_total{{{PORT}}} - xskd_tx_completed_packets_total{{{PORT}}})"
        ),
    },
    runbooks=("XskdSilentCopyMode",),
    leads_to={"interface": ROW_TO_QUEUE, "queue": ROW_TO_QUEUE},
)

STATES = (
    Panel(
        "Links",
        "Carrier of each interface. Worry about red: nothing comes and nothing is sent.",
        {INTERFACE_NAME: f"xskd_interface_carrier{{{INTERFACE}}}"},
        kind="state-timeline",
        mappings=UP_OR_DOWN,
        runbooks=("XskdLinkDown",),
    ),
    Panel(
        "Workers",
        "Each worker over time. Worry about all that is not green for longer than a restart takes.",
        {WORKER_NAME: STATE_NUMBER},
        kind="state-timeline",
        mappings=STATE_BY_NUMBER,
        runbooks=("XskdWorkerDown",),
        leads_to=LINE_TO_WORKER,
    ),
    Panel(
        "Frames unaccounted",
        f"Frames that are in no place, per worker: a bug in xskd. {COUNTS_ONE}",
        {WORKER_NAME: f"xskd_frames_unaccounted{{{WORKER}}}"},
        bad=1,
        runbooks=("XskdFramesUnaccounted",),
    ),
)

ONE_PATH = Dashboard(
    name="path",
    title="xskd / path",
    description="One path: its queues side by side, its interfaces, and who counts what is lost.",
    rows={
        "Balance": BALANCE,
        "Drops: xskd, the kernel, the NIC": WITNESSES,
        "Rules, the express lane, routes": RULES,
        "Interfaces and sockets": (INTERFACES, SOCKETS),
        "States": STATES,
    },
)
