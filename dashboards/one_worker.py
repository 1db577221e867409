"""A worker as a loop and as a process, for the dashboard of its queue: what it does with its time and CPU.

Nothing here is about a socket: that is in one_queue.py.
"""

from __future__ import annotations

from panel import STATE_BY_NUMBER, STATE_NUMBER, WORKER, WORKER_NAME, Panel, rate

REGIME_COLOURS = {"working": "green", "waking": "orange", "spinning": "yellow", "sleeping": "blue"}

LOOP = (
    Panel(
        "What the loop does",
        "Shares of the time. working: moving packets; waking: in system calls that wake the kernel; "
        "spinning: looking at empty rings; sleeping: in poll(). Worry when working and waking leave no "
        "room.",
        {"{{regime}}": f"sum by (regime) ({rate('xskd_loop_seconds_total', WORKER)})"},
        unit="percentunit",
        width=12,
        stacked="percent",
        colours=REGIME_COLOURS,
        runbooks=("XskdRxOverrun",),
    ),
    Panel(
        "Turns of the loop",
        "How often the worker looks at its rings, and how many of these turns found nothing. Worry when "
        "there are none, or none is idle for long: the worker is at its limit.",
        {
            f"{WORKER_NAME} all": rate("xskd_loop_turns_total", WORKER),
            f"{WORKER_NAME} idle": rate("xskd_loop_idle_turns_total", WORKER),
        },
        unit="ops",
        width=6,
    ),
    Panel(
        "Sleeps",
        "Times that the worker went to sleep in poll(). An idle one sleeps about ten times a second; worry "
        "when many sleeps come with latency you cannot have, and set `poll: busy`.",
        {WORKER_NAME: rate("xskd_loop_sleeps_total", WORKER)},
        unit="ops",
        width=6,
    ),
)

PROCESS = (
    Panel(
        "State",
        "The worker over time. Worry about all that is not green for longer than a restart takes.",
        {WORKER_NAME: STATE_NUMBER},
        kind="state-timeline",
        mappings=STATE_BY_NUMBER,
        runbooks=("XskdWorkerDown",),
    ),
    Panel(
        "Heartbeat age",
        "Time since the worker's loop last turned. Worry above 0.5 s; at 1.5 s the supervisor ends the "
        "worker.",
        {WORKER_NAME: f"xskd_worker_heartbeat_age_seconds{{{WORKER}}}"},
        unit="s",
        bad=0.5,
        runbooks=("XskdWorkerStalled",),
    ),
    Panel(
        "CPU time",
        "Share of one CPU, in user space and in the kernel. Worry when the sum stays below the share of "
        "time that the loop does not sleep: somebody else has the CPU.",
        {"{{mode}}": f"sum by (mode) ({rate('xskd_worker_cpu_seconds_total', WORKER)})"},
        unit="percentunit",
        stacked="normal",
    ),
    Panel(
        "Context switches",
        "voluntary: it went to sleep. involuntary: somebody else got its CPU; worry when there are many, "
        "and give it a CPU of its own with `cpus`.",
        {"{{kind}}": f"sum by (kind) ({rate('xskd_worker_context_switches_total', WORKER)})"},
        unit="ops",
        runbooks=("XskdRxOverrun",),
    ),
    Panel(
        "Page faults",
        "The packet memory is pinned: after the start there should be next to none. Worry about major ones: "
        "the worker waits for a disk.",
        {"{{kind}}": f"sum by (kind) ({rate('xskd_worker_page_faults_total', WORKER)})"},
        unit="ops",
    ),
    Panel(
        "Restarts by cause",
        "Workers of this place that ended and were started again, since the daemon started. Worry at every "
        "step.",
        {
            f"{WORKER_NAME} {{{{cause}}}}": f"xskd_worker_restarts_total{{{WORKER}}}",
            "all": f"sum(xskd_worker_restarts_total{{{WORKER}}}) or vector(0)",
        },
        runbooks=("XskdCrashLoop",),
    ),
    Panel(
        "Adoptions",
        "Workers that were to go on with sockets in use. Worry about failed: new sockets had to be made, "
        "and what was in the rings is lost.",
        {f"{WORKER_NAME} {{{{result}}}}": f"xskd_worker_adoptions_total{{{WORKER}}}"},
        runbooks=("XskdCrashLoop",),
    ),
    Panel(
        "XSKMAP conflicts",
        "Times that another's socket was found in the worker's place in an XSKMAP, and put out again. Worry "
        "at the first: somebody else writes to xskd's maps.",
        {WORKER_NAME: f"xskd_xskmap_conflicts_total{{{WORKER}}}"},
    ),
    Panel(
        "Time without a worker",
        "Between one worker's last turn and the next one's first, summed. A restart adds some milliseconds; "
        "worry when it grows while nobody restarts anything.",
        {WORKER_NAME: f"xskd_worker_gap_seconds_total{{{WORKER}}}"},
        unit="s",
        runbooks=("XskdWorkerDown",),
    ),
)
