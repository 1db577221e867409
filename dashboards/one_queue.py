"""One queue from within: where its frames are, what its loop does, what wakeups cost, how long packets take.

It is drawn for one worker with its sockets; with more chosen, what can be summed is summed, and of rings the
fullest is shown.
"""

from __future__ import annotations

from one_worker import LOOP, PROCESS
from panel import (
    COUNTS_ONE,
    DROPPED,
    KERNEL_LOSS,
    LOST,
    OCCUPIED,
    OF_INTERFACE,
    OF_SOCKET,
    OF_WORKER,
    PORT,
    SOCKET_NAME,
    WORKER,
    WORKER_NAME,
    Dashboard,
    Panel,
    heatmap,
    mean,
    quantile,
    rate,
    stat,
)

TX = f'{PORT}, direction="tx"'
SOCKET = OF_SOCKET.split(", ")
REGIMES = f"sum by ({OF_WORKER}) ({rate('xskd_loop_seconds_total', WORKER)})"
WAKING = rate("xskd_loop_seconds_total", f'{WORKER}, regime="waking"')
SENT = f"sum by ({OF_SOCKET}) ({rate('xskd_tx_packets_total', PORT)})"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
FRAME_COLOURS = {
    "free": "green",
    "fill": "blue",
    "rx": "yellow",
    "held": "purple",
    "tx": "orange",
    "completion": "super-light-orange",
    "kernel": "semi-dark-blue",
    "quarantined": "red",
}

FIGURES = (
    stat(
        "State",
        "What the worker does now. Worry about anything but forwarding for longer than a restart takes.",
        options={"textMode": "name"},
        queries={"{{state}}": f"sum by (state) (xskd_worker_state{{{WORKER}}}) > 0"},
        runbooks=("XskdWorkerDown",),
    ),
    stat(
        "Mode",
        "Of its sockets, as the kernel says. Worry about copy where the driver can do zerocopy.",
        options={"textMode": "name"},
        queries={"{{mode}}": f"sum by (mode) (xskd_socket_mode{{{PORT}}}) > 0"},
        runbooks=("XskdSilentCopyMode",),
    ),
    stat(
        "Received",
        "Packets taken from its RX rings. Worry when it is 0 and the other queues have traffic.",
        queries={"rx": f"sum({rate('xskd_rx_packets_total', PORT)})"},
        unit="pps",
    ),
    stat(
        "Lost",
        "By xskd, and by the kernel or the NIC before it. Worry when it is not 0; Losses below says to what.",
        queries={"lost": f"sum({LOST})"},
        unit="pps",
        bad=0.001,
        runbooks=("XskdLosingPackets",),
    ),
    stat(
        "Latency p99",
        "Time of a sampled packet in the forwarder. Worry when it rises and the load does not.",
        queries={"p99": quantile(0.99, "xskd_latency_seconds", PORT)},
        unit="s",
    ),
    stat(
        "Occupied",
        "Share of the worker's time that is not spinning or sleeping. Worry above 90 %: it is at its limit.",
        queries={
            "occupied": f"sum({rate('xskd_loop_seconds_total', OCCUPIED)}) / "
            f"sum({rate('xskd_loop_seconds_total', WORKER)})"
        },
        unit="percentunit",
        bad=0.9,
        runbooks=("XskdRxOverrun",),
    ),
    stat(
        "Per wakeup",
        "Packets sent per sendto(). Worry when it stays near 1 while the worker is at its limit.",
        queries={
            "packets": f"sum({rate('xskd_tx_packets_total', PORT)}) / sum({rate('xskd_wakeups_total', TX)})"
        },
    ),
    stat(
        "Unaccounted",
        f"Frames of its packet memory that are nowhere. A bug in xskd. {COUNTS_ONE}",
        queries={"frames": f"sum(abs(xskd_frames_unaccounted{{{WORKER}}}))"},
        bad=1,
        runbooks=("XskdFramesUnaccounted",),
    ),
)


def ring(name: str, title: str, description: str) -> Panel:
    """One of the four rings as bars: how many entries now and at most, beside its size."""
    chosen = f'{PORT}, ring="{name}"'
    return Panel(
        title,
        description,
        {
            "{{interface}} now": f"max by ({OF_INTERFACE}) (xskd_ring_entries{{{chosen}}})",
            "{{interface}} high water": f"max by ({OF_INTERFACE}) (xskd_ring_high_water_entries{{{chosen}}})",
            "{{interface}} size": f"max by ({OF_INTERFACE}) (xskd_ring_size_entries{{{chosen}}})",
        },
        width=6,
        kind="bargauge",
        colours={"/now$/": "green", "/high water$/": "orange", "/size$/": "text"},
    )


FRAMES = (
    Panel(
        "Frames by place",
        "Where the packet memory is; the sum is constant. Worry when free falls without coming back, or "
        "when quarantined is not 0.",
        {"{{state}}": f"sum by (state) (xskd_frames{{{WORKER}}})"},
        width=24,
        stacked="normal",
        colours=FRAME_COLOURS,
        runbooks=("XskdFramesQuarantined", "XskdFillStarving"),
    ),
    ring(
        "fill",
        "FILL ring",
        "Frames lent to the kernel to receive into. Worry when it comes near 0: the next packets are lost.",
    ),
    ring(
        "rx",
        "RX ring",
        "Packets the worker has not seen. Worry when high water is its size: it falls behind.",
    ),
    ring(
        "tx", "TX ring", "Packets the kernel has not taken. Worry when it stays at its size: egress too slow."
    ),
    ring(
        "completion",
        "Completion ring",
        "Sent frames the worker has not taken back. Worry when it stays at its size: nothing can be sent.",
    ),
    Panel(
        "Entries in the rings",
        "As the worker last saw them, at most 0.1 s ago. Worry when rx or tx stay at their size, or fill at "
        "0.",
        {"{{interface}} {{ring}}": f"max by ({OF_INTERFACE}, ring) (xskd_ring_entries{{{PORT}}})"},
        runbooks=("XskdRxOverrun", "XskdFillStarving"),
    ),
    Panel(
        "Rings found full",
        "Times the worker found a ring newly full. Worry about rx (packets are lost) and tx (the egress is "
        "too slow); a full fill is as it should be.",
        {"{{interface}} {{ring}}": f"sum by ({OF_INTERFACE}, ring) ({rate('xskd_ring_full_total', PORT)})"},
        unit="ops",
        runbooks=("XskdRxOverrun",),
    ),
    Panel(
        "Rings found empty",
        "Times the worker found a ring newly empty. Worry about fill: packets are lost while it is; the "
        "others are empty whenever there is nothing to do.",
        {"{{interface}} {{ring}}": f"sum by ({OF_INTERFACE}, ring) ({rate('xskd_ring_empty_total', PORT)})"},
        unit="ops",
        runbooks=("XskdFillStarving",),
    ),
)

LOSSES = (
    Panel(
        "Lost to what",
        "xskd's reasons and the kernel's counters on one scale. rx_ring_full: the worker is too slow; "
        "rx_dropped: no frame in FILL; tx_full: the egress is. Worry at the first `invalid`.",
        {
            "{{interface}} xskd: {{reason}}": rate("xskd_dropped_packets_total", PORT),
            "{{interface}} kernel: {{stat}}": rate("xskd_xdp_statistics_total", KERNEL_LOSS),
        },
        unit="pps",
        runbooks=("XskdLosingPackets", "XskdRxOverrun"),
    ),
    Panel(
        "Counted by the NIC",
        "The driver's own counters of this queue. Worry when they grow and the kernel's do not: the packets "
        "never reached the kernel. Some drivers count the kernel's as well.",
        {"{{interface}} {{stat}}": rate("xskd_nic_rx_dropped_packets_total", PORT)},
        unit="pps",
        runbooks=("XskdRxOverrun",),
    ),
    Panel(
        "Share lost by xskd",
        "Of what it received. Worry above one in a thousand.",
        {
            SOCKET_NAME: f"{DROPPED} / "
            f"clamp_min(sum by ({OF_SOCKET}) ({rate('xskd_rx_packets_total', PORT)}), 1)"
        },
        unit="percentunit",
        bad=0.001,
        runbooks=("XskdLosingPackets",),
    ),
    Panel(
        "Turns without a free frame",
        "Turns of the loop in which FILL was empty and no frame free. Worry when it is not 0: `umem.frames` "
        "is too small, or frames are stuck (see Frames).",
        {SOCKET_NAME: rate("xskd_fill_starved_turns_total", PORT)},
        unit="ops",
        runbooks=("XskdFillStarving",),
    ),
    Panel(
        "Turns blocked by a full TX ring",
        "Turns of the loop that had packets of this interface and no room at the egress. Worry when drops "
        "with reason tx_full come with it.",
        {SOCKET_NAME: rate("xskd_tx_blocked_turns_total", PORT)},
        unit="ops",
        runbooks=("XskdLosingPackets",),
    ),
    Panel(
        "Invalid entries and other XDP_STATISTICS",
        "Completions that name no frame of ours, corrupt rings and *_invalid_descs: worry at the first one. "
        "rx_fill_ring_empty_descs: worry when it grows; tx_ring_empty_descs: benign.",
        {
            "{{interface}} completion": rate("xskd_completion_invalid_descriptors_total", PORT),
            "{{interface}} {{ring}} corrupt": rate("xskd_ring_corrupt_total", PORT),
            "{{interface}} {{stat}}": rate(
                "xskd_xdp_statistics_total", f'{PORT}, stat!~"rx_dropped|rx_ring_full"'
            ),
        },
        unit="ops",
        runbooks=("XskdInvalidDescriptors", "XskdFillStarving"),
    ),
)

WAKEUPS = (
    Panel(
        "System calls by reason",
        "new: new packets on TX. again: the call before sent only a part. left: packets of an earlier turn. "
        "refilled: new frames on FILL. dry: idle, and the driver asks. sleep: poll(). Worry when again or "
        "left are most of them: the egress driver takes few packets a call.",
        {
            "{{direction}} {{call}} {{reason}}": "sum by (direction, call, reason) "
            f"({rate('xskd_wakeups_total', PORT)})"
        },
        unit="ops",
        stacked="normal",
    ),
    Panel(
        "System calls saved",
        "Times that a ring had something new and the kernel did not want a call. In copy mode tx is never "
        "saved; worry when it stays 0 in zerocopy mode under load.",
        {"{{direction}}": f"sum by (direction) ({rate('xskd_wakeups_skipped_total', PORT)})"},
        unit="ops",
    ),
    Panel(
        "Answers other than success",
        "EAGAIN is normal in copy mode. Worry about ENETDOWN (the interface is down), ENXIO and OTHER (the "
        "worker ends).",
        {"{{interface}} {{errno}}": rate("xskd_wakeup_errors_total", PORT)},
        unit="ops",
        runbooks=("XskdCrashLoop",),
    ),
    Panel(
        "Packets per wakeup",
        "Packets sent per sendto(). Few under load means small bursts: latency is fine, throughput is not. "
        "Worry when it stays near 1 while the worker is at its limit.",
        {SOCKET_NAME: f"{SENT} / sum by ({OF_SOCKET}) ({rate('xskd_wakeups_total', TX)})"},
        width=6,
    ),
    Panel(
        "Time in a call",
        "Quantiles of the time inside one system call; one in 17 is timed. In copy mode the kernel sends "
        "the packets in it. Worry when p99 is far above the others: something preempts the worker in the "
        "kernel.",
        {
            f"{{{{direction}}}} {name}": quantile(share, "xskd_wakeup_seconds", PORT, "direction")
            for name, share in QUANTILES.items()
        },
        unit="s",
        width=6,
    ),
    Panel(
        "Time in a call, mean",
        "What a call costs on the average. Worry when it grows while packets per wakeup do not.",
        {"{{direction}}": mean("xskd_wakeup_seconds", PORT, "direction")},
        unit="s",
        width=6,
    ),
    Panel(
        "Share of the time in wakeups",
        "Of the worker's time, in system calls that wake the kernel. In copy mode most of a busy worker's "
        "time is here; worry when it is so in zerocopy mode.",
        {WORKER_NAME: f"sum by ({OF_WORKER}) ({WAKING}) / {REGIMES}"},
        unit="percentunit",
        width=6,
    ),
)

BATCHES = (
    heatmap(
        "Batches from RX",
        "How many packets each burst took from RX, 64 at most. Worry when nearly all are 64: the worker "
        "never finds the end of the ring.",
        "xskd_rx_batch_packets",
        PORT,
        runbooks=("XskdRxOverrun",),
    ),
    heatmap(
        "Batches to TX",
        "How many packets each burst put on TX. Worry when they are smaller than those from RX: TX is full.",
        "xskd_tx_batch_packets",
        PORT,
    ),
    Panel(
        "Mean batch",
        "Packets in a burst on the average. Larger means cheaper per packet, and later. Worry when it stays "
        "at 64 from RX.",
        {
            "{{interface}} rx": mean("xskd_rx_batch_packets", PORT, *SOCKET),
            "{{interface}} tx": mean("xskd_tx_batch_packets", PORT, *SOCKET),
        },
    ),
)

LATENCY = (
    heatmap(
        "Latency",
        "Time of sampled packets in the forwarder: from the look at RX before the one that found it until "
        "the kernel has been told to send it. Worry about a second band above the first: now and then the "
        "worker does not run.",
        "xskd_latency_seconds",
        PORT,
        unit="s",
        width=16,
    ),
    Panel(
        "Latency, quantiles",
        "Of the same samples. What a packet waits in NIC and kernel is not in it. Worry when p99 rises and "
        "the load does not.",
        {
            **{name: quantile(share, "xskd_latency_seconds", PORT) for name, share in QUANTILES.items()},
            "mean": f"sum({rate('xskd_latency_seconds_sum', PORT)}) / "
            f"sum({rate('xskd_latency_seconds_count', PORT)})",
        },
        unit="s",
    ),
)

ONE_QUEUE = Dashboard(
    name="queue",
    title="xskd / queue",
    description="One queue: where its frames are, what its loop does, what wakeups and packets cost in time.",
    rows={
        "Now": FIGURES,
        "Frames and rings": FRAMES,
        "Losses": LOSSES,
        "Loop": LOOP,
        "Wakeups": WAKEUPS,
        "Batches": BATCHES,
        "Latency": LATENCY,
        "Process": PROCESS,
    },
)
