"""All paths on one page: which queue loses packets, where and why, within ten seconds.

From top to bottom: figures that are green or red, the table of queues with the worst first, then what is
behind each. There must never be a panel here that only somebody who already knows the queue can read; those
are in one_path.py and one_queue.py.
"""

from __future__ import annotations

from panel import (
    COUNTS_ONE,
    DAEMON,
    DROPPED,
    GOOD_OR_BAD,
    INTERFACE,
    INTERFACE_NAME,
    KERNEL_LOSS,
    LINE_TO_PATH,
    LINE_TO_WORKER,
    LOST,
    LOST_BEFORE,
    LOST_BY_KERNEL,
    LOST_BY_NIC,
    LOST_WITHOUT_WORKER,
    NIC_LOSS,
    OF_INTERFACE,
    OF_PATH,
    OF_SOCKET,
    OF_WORKER,
    PATH,
    PORT,
    ROW_TO_PATH,
    ROW_TO_QUEUE,
    STATE_BY_NAME,
    STATE_BY_NUMBER,
    STATE_NUMBER,
    UP_OR_DOWN,
    WORKER,
    WORKER_NAME,
    YES_OR_NO,
    Column,
    Dashboard,
    Panel,
    Table,
    label_as,
    names,
    rate,
    stat,
    texts,
)

ANY = 0.001  # packets a second: one in a thousand seconds is one
SHARE_TO_WORRY = 0.001  # as XskdLosingPackets has it
NO_WORKER = f'{INTERFACE}, verdict=~"no_socket_.*"'
ALL_LOST = f"sum({LOST}) + (sum({LOST_WITHOUT_WORKER}) or vector(0))"
MODES = texts(("zerocopy", "zerocopy", "green"), ("copy", "copy", "yellow"))
ATTACHED = texts(("native", "native", "green"), ("generic", "generic", "orange"))

# Every cause of a loss as a label `why`; the NIC a little behind, because it may count the same packets.
CAUSES = " or ".join(
    f"sum by ({OF_SOCKET}, why) ({each})"
    for each in (
        label_as(rate("xskd_dropped_packets_total", PORT), "why", "reason", "xskd: $1"),
        label_as(rate("xskd_xdp_statistics_total", KERNEL_LOSS), "why", "stat", "kernel: $1"),
        "0.9 * " + label_as(rate("xskd_nic_rx_dropped_packets_total", NIC_LOSS), "why", "stat", "NIC: $1"),
    )
)
NO_CAUSE = f'label_replace(sum by ({OF_SOCKET}) (xskd_ring_size_entries{{{PORT}}}), "why", "-", "", "")'
MOST_TO = f"topk by ({OF_SOCKET}) (1, ({CAUSES}) > 0) or on ({OF_SOCKET}) {NO_CAUSE}"
STATE_OF_SOCKET = (
    f"max by ({OF_SOCKET}, state) (xskd_ring_size_entries{{{PORT}}} "
    f"* on ({OF_WORKER}) group_left (state) (xskd_worker_state{{{WORKER}}} == 1))"
)
# Copy mode where the interface can do without, and nobody asked for it.
SILENT_COPY = (
    f'count((xskd_socket_mode{{{PORT}, mode="copy"}} == 1) '
    f"* on ({OF_INTERFACE}) group_left () (xskd_interface_zerocopy_able{{{INTERFACE}}} == 1) "
    f'unless on ({OF_SOCKET}) (xskd_socket_mode_wanted{{{PORT}, mode="copy"}} == 1)) or vector(0)'
)

FIGURES = (
    stat(
        "Received",
        "Packets taken from all RX rings. Worry when it is 0 and the hosts do send: look at the verdicts of "
        "the XDP program.",
        queries={"rx": f"sum({rate('xskd_rx_packets_total', PORT)})"},
        unit="pps",
    ),
    stat(
        "Sent",
        "Packets put on all TX rings. Worry when it stays below what is received: the difference is lost.",
        queries={"tx": f"sum({rate('xskd_tx_packets_total', PORT)})"},
        unit="pps",
    ),
    stat(
        "Lost",
        "Packets lost by xskd, by the kernel or NIC before it, or for want of a worker. Worry when it is "
        "not 0: the table below has the worst queue first.",
        queries={"lost": ALL_LOST},
        unit="pps",
        bad=ANY,
        runbooks=("XskdLosingPackets",),
    ),
    stat(
        "Share lost",
        "Of what arrived. Worry above one in a thousand; less may be a burst now and then.",
        queries={
            "share": f"({ALL_LOST}) / clamp_min("
            f"sum({rate('xskd_rx_packets_total', PORT)}) + sum({LOST_BEFORE}), 1)"
        },
        unit="percentunit",
        bad=SHARE_TO_WORRY,
        runbooks=("XskdLosingPackets",),
    ),
    stat(
        "Queues down",
        "Workers that do not forward now. Their queues take the path's fallback. Worry above 0 for longer "
        "than a restart takes; `journalctl -u xskd` has the cause.",
        queries={"down": f"sum(1 - xskd_worker_up{{{WORKER}}})"},
        bad=1,
        runbooks=("XskdWorkerDown",),
    ),
    stat(
        "Paths waiting",
        f"Paths that cannot run on the machine as it is; `xskd status` says why. {COUNTS_ONE}",
        queries={"waiting": f"sum(xskd_path_waiting{{{PATH}}})"},
        bad=1,
        runbooks=("XskdPathWaiting",),
    ),
    stat(
        "Links down",
        "Interfaces without carrier, or down. Nothing comes and nothing is sent. Worry when nobody pulled "
        "the cable.",
        queries={"down": f"sum(1 - xskd_interface_carrier{{{INTERFACE}}})"},
        bad=1,
        runbooks=("XskdLinkDown",),
    ),
    stat(
        "Slow sockets",
        "Sockets in copy mode whose interface can do zerocopy, where `mode: copy` was not asked for. Worry "
        "above 0: it costs most of the speed.",
        queries={"copy": SILENT_COPY},
        bad=1,
        runbooks=("XskdSilentCopyMode",),
    ),
)

WORST = Table(
    "Queues, worst first",
    "Each queue by what it loses a second. `most to` is the largest cause: xskd's reason, the kernel's or "
    "the NIC's counter. NIC and kernel may count the same packet; `lost` takes the larger. Worry about the "
    "first row when it is red; click on it.",
    rows=("instance", "path", "interface", "queue"),
    columns={
        "state": Column(STATE_OF_SOCKET, text="state", mappings=STATE_BY_NAME),
        "mode": Column(
            f"sum by ({OF_SOCKET}, mode) (xskd_socket_mode{{{PORT}}} == 1)", text="mode", mappings=MODES
        ),
        "received": Column(f"sum by ({OF_SOCKET}) ({rate('xskd_rx_packets_total', PORT)})", "pps"),
        "lost": Column(LOST, "pps", bad=ANY),
        "most to": Column(MOST_TO, text="why"),
        "by xskd": Column(DROPPED, "pps", bad=ANY),
        "by the kernel": Column(LOST_BY_KERNEL, "pps", bad=ANY),
        "by the NIC": Column(LOST_BY_NIC, "pps", bad=ANY),
    },
    worst="lost",
    runbooks=("XskdLosingPackets", "XskdRxOverrun"),
    leads_to={"path": ROW_TO_PATH, "interface": ROW_TO_QUEUE, "queue": ROW_TO_QUEUE},
)

LOSS = (
    Panel(
        "Lost by whom",
        "xskd: received and not forwarded. Kernel: no room in RX, or no frame in FILL. NIC: before the "
        "kernel saw them (some drivers count the kernel's as well). No worker: dropped by the XDP program "
        "on a queue that has none. Worry when any is not 0.",
        {
            "xskd": f"sum({DROPPED})",
            "kernel": f"sum({LOST_BY_KERNEL})",
            "NIC": f"sum({LOST_BY_NIC})",
            "no worker": f"sum({LOST_WITHOUT_WORKER})",
        },
        unit="pps",
        width=12,
        runbooks=("XskdLosingPackets", "XskdQueueWithoutWorker"),
    ),
    Panel(
        "Lost to what",
        "Each cause by its own name. rx_ring_full: a worker is too slow; rx_dropped: no frame in FILL; "
        "tx_full: the egress is slower than the ingress; oversize: its MTU is smaller. Worry at the first "
        "`invalid`.",
        {
            "xskd: {{reason}}": f"sum by (reason) ({rate('xskd_dropped_packets_total', PORT)})",
            "kernel: {{stat}}": f"sum by (stat) ({rate('xskd_xdp_statistics_total', KERNEL_LOSS)})",
            "NIC: {{stat}}": f"sum by (stat) ({rate('xskd_nic_rx_dropped_packets_total', NIC_LOSS)})",
        },
        unit="pps",
        width=12,
        runbooks=("XskdRxOverrun", "XskdFillStarving"),
    ),
)

RATE = (
    Panel(
        "Packets received",
        "By path. Worry when one falls and its hosts did not stop.",
        {"{{path}}": f"sum by ({OF_PATH}) ({rate('xskd_rx_packets_total', PORT)})"},
        unit="pps",
        leads_to=LINE_TO_PATH,
    ),
    Panel(
        "Packets sent",
        "By path. Worry when it stays below what the path receives: the difference is lost.",
        {"{{path}}": f"sum by ({OF_PATH}) ({rate('xskd_tx_packets_total', PORT)})"},
        unit="pps",
        leads_to=LINE_TO_PATH,
    ),
    Panel(
        "Bits received and sent",
        "By path, from the Ethernet header on, without FCS. Worry when it comes near the links' speed.",
        {
            "{{path}} rx": f"8 * sum by ({OF_PATH}) ({rate('xskd_rx_bytes_total', PORT)})",
            "{{path}} tx": f"8 * sum by ({OF_PATH}) ({rate('xskd_tx_bytes_total', PORT)})",
        },
        unit="bps",
        leads_to=LINE_TO_PATH,
    ),
)

INTERFACES = Table(
    "Interfaces",
    "`program`: native or generic, and generic is slower and never zerocopy. `zerocopy`: whether the driver "
    "can, empty where the kernel does not say. Worry about a link that is down, queues without a socket "
    "that you did not choose, and a foreign program: it sees the packets instead of xskd.",
    rows=("instance", "path", "interface"),
    columns={
        "driver": Column(
            f"sum by ({OF_INTERFACE}, driver) (xskd_interface_info{{{INTERFACE}}})", text="driver"
        ),
        "up": Column(f"max by ({OF_INTERFACE}) (xskd_interface_up{{{INTERFACE}}})", mappings=UP_OR_DOWN),
        "carrier": Column(
            f"max by ({OF_INTERFACE}) (xskd_interface_carrier{{{INTERFACE}}})", mappings=UP_OR_DOWN
        ),
        "program": Column(
            f"sum by ({OF_INTERFACE}, program) "
            f"({label_as(f'xskd_xdp_attached{{{INTERFACE}}} == 1', 'program', 'mode')})",
            text="program",
            mappings=ATTACHED,
        ),
        "zerocopy": Column(
            f"max by ({OF_INTERFACE}) (xskd_interface_zerocopy_able{{{INTERFACE}}})", mappings=YES_OR_NO
        ),
        "queues": Column(f"max by ({OF_INTERFACE}) (xskd_interface_queues{{{INTERFACE}}})"),
        "rules": Column(f"max by ({OF_INTERFACE}) (xskd_rules{{{INTERFACE}}})"),
        "without socket": Column(
            f"max by ({OF_INTERFACE}) (xskd_interface_queues_without_socket{{{INTERFACE}}})", bad=1
        ),
        "foreign program": Column(
            f"max by ({OF_INTERFACE}) (xskd_interface_foreign_program{{{INTERFACE}}})",
            bad=1,
            mappings=YES_OR_NO,
        ),
        "no worker": Column(
            f"sum by ({OF_INTERFACE}) ({rate('xskd_xdp_verdicts_total', NO_WORKER)})",
            "pps",
            bad=ANY,
        ),
    },
    worst="no worker",
    runbooks=("XskdLinkDown", "XskdQueueWithoutWorker", "XskdForeignProgram"),
    leads_to={"path": ROW_TO_PATH},
)

MODE_FIGURES = (
    names(
        "Socket modes",
        "Sockets by the mode that the kernel says is in use. Worry about copy where the driver can do "
        "zerocopy: it costs most of the speed.",
        queries={"{{mode}}": f"sum by (mode) (xskd_socket_mode{{{PORT}}})"},
        runbooks=("XskdSilentCopyMode",),
        width=8,
    ),
    names(
        "Socket modes wanted",
        "Sockets by the mode that the configuration asks for. Worry when zerocopy is asked for and fewer "
        "sockets have it.",
        queries={"{{mode}}": f"sum by (mode) (xskd_socket_mode_wanted{{{PORT}}})"},
        runbooks=("XskdSilentCopyMode",),
        width=8,
    ),
    names(
        "XDP programs",
        "Interfaces by the mode in which their program is attached. Worry about generic where the driver "
        "can do native.",
        queries={"{{mode}}": f"sum by (mode) (xskd_xdp_attached{{{INTERFACE}}})"},
        width=8,
    ),
)

HEALTH = (
    Panel(
        "Workers",
        "Each worker over time. Worry about all that is not green for longer than a restart takes: its "
        "queues take the fallback.",
        {WORKER_NAME: STATE_NUMBER},
        kind="state-timeline",
        width=12,
        mappings=STATE_BY_NUMBER,
        runbooks=("XskdWorkerDown", "XskdCrashLoop"),
        leads_to=LINE_TO_WORKER,
    ),
    Panel(
        "Links",
        "Carrier of each interface. Worry about red: nothing comes and nothing is sent.",
        {INTERFACE_NAME: f"xskd_interface_carrier{{{INTERFACE}}}"},
        kind="state-timeline",
        width=12,
        mappings=UP_OR_DOWN,
        runbooks=("XskdLinkDown",),
    ),
    stat(
        "Unaccounted",
        f"Frames of the packet memory that are nowhere. A bug in xskd. {COUNTS_ONE}",
        queries={"frames": f"sum(abs(xskd_frames_unaccounted{{{WORKER}}}))"},
        bad=1,
        runbooks=("XskdFramesUnaccounted",),
    ),
    stat(
        "Quarantined",
        "Frames whose owner was in doubt after a worker died; they are never used again. Worry above 0: the "
        "packet memory shrinks.",
        queries={"frames": f'sum(xskd_frames{{{WORKER}, state="quarantined"}})'},
        bad=1,
        runbooks=("XskdFramesQuarantined",),
    ),
    stat(
        "Invalid",
        f"Completion and ring entries that cannot be right: a driver's bug, or xskd's. {COUNTS_ONE}",
        queries={
            "entries": f"sum(xskd_completion_invalid_descriptors_total{{{PORT}}}) + "
            f"sum(xskd_ring_corrupt_total{{{PORT}}}) + "
            f'sum(xskd_xdp_statistics_total{{{PORT}, stat=~"(rx|tx)_invalid_descs"}})'
        },
        bad=1,
        runbooks=("XskdInvalidDescriptors",),
    ),
    stat(
        "Foreign XDP",
        f"Interfaces with an XDP program that is not xskd's: it gets the packets. {COUNTS_ONE}",
        queries={"interfaces": f"sum(xskd_interface_foreign_program{{{INTERFACE}}})"},
        bad=1,
        runbooks=("XskdForeignProgram",),
    ),
    stat(
        "No socket",
        "RX queues of the interfaces that no worker has. What arrives on them takes the fallback. Worry "
        "when you did not choose so with `queues`.",
        queries={"queues": f"sum(xskd_interface_queues_without_socket{{{INTERFACE}}})"},
        bad=1,
        runbooks=("XskdQueueWithoutWorker",),
    ),
    stat(
        "Restarts",
        "Since the daemons started. Worry at every step: see the workers above, and the journal.",
        queries={"restarts": f"sum(xskd_worker_restarts_total{{{WORKER}}}) or vector(0)"},
        runbooks=("XskdCrashLoop",),
    ),
    names(
        "Version and kernel",
        "Daemons by what runs. Worry when there are two versions for longer than an upgrade takes.",
        queries={"{{version}} on {{kernel}}": f"sum by (version, kernel) (xskd_info{{{DAEMON}}})"},
        runbooks=("XskdDown",),
        width=6,
    ),
)

CONFIGURATION = (
    stat(
        "Wrong files",
        "Daemons whose file is wrong while an older one runs: the next start after a stop will fail. Worry "
        "at the first one; `xskd check` has every mistake.",
        queries={"wrong": f"sum(1 - xskd_config_valid{{{DAEMON}}})"},
        bad=1,
        runbooks=("XskdConfigInvalid",),
    ),
    names(
        "Last reload",
        "Whether it worked, by daemon. Worry when it failed: what runs is not what the file says.",
        queries={"{{instance}}": f"xskd_config_last_reload_successful{{{DAEMON}}}"},
        mappings=GOOD_OR_BAD,
        runbooks=("XskdReloadFailed",),
        width=4,
    ),
    names(
        "Since the last reload",
        "Since the start where there was none. Worry when it is short and nobody reloaded.",
        queries={"{{instance}}": f"time() - xskd_config_last_reload_timestamp_seconds{{{DAEMON}}}"},
        unit="s",
        width=4,
    ),
    names(
        "Generation",
        "How many configurations have been put into effect, by daemon. Worry when a reload does not raise "
        "it.",
        queries={"{{instance}}": f"xskd_config_generation{{{DAEMON}}}"},
        width=3,
    ),
    names(
        "Reloads",
        "Reloads since the start by what came of them. Worry when failures grow; the journal has the reason.",
        queries={"{{result}}": f"sum by (result) (xskd_config_reloads_total{{{DAEMON}}})"},
        runbooks=("XskdReloadFailed",),
        width=3,
    ),
    names(
        "Clients refused",
        "Connections to the control socket and to /metrics that were closed without an answer, by why. Worry "
        "when they grow: somebody keeps others from asking.",
        queries={
            "{{listener}} {{reason}}": f"sum by (listener, reason) (xskd_clients_refused_total{{{DAEMON}}})"
        },
        width=3,
    ),
    names(
        "Running for",
        "Time since each daemon started. Worry when it goes back and nobody restarted it.",
        queries={"{{instance}}": f"time() - xskd_start_time_seconds{{{DAEMON}}}"},
        unit="s",
        runbooks=("XskdDown",),
        width=4,
    ),
)

OVERVIEW = Dashboard(
    name="overview",
    title="xskd / overview",
    description="All paths: which queue loses packets, where and why. Rate, modes, health.",
    rows={
        "Now": (*FIGURES, WORST),
        "Loss": LOSS,
        "Rate": RATE,
        "Modes": (*MODE_FIGURES, INTERFACES),
        "Health": HEALTH,
        "Configuration": CONFIGURATION,
    },
)
