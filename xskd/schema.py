"""What each field of `xskd status --json` means: docs/status.md for a person, a JSON Schema for a program.

The fields come from five modules, some of which a worker loads; their words for a program stand here, in one
table that must name every field and no other. What a field means never changes: a new meaning is a new field.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from xskd.counters import DROPS, PLACES, RINGS, WAKEUP_ERRORS, PortCounters, WorkerCounters
from xskd.status import DaemonStatus, InterfaceStatus, PortStatus, Reloads, RuleStatus, WorkerStatus
from xskd.xdp import Verdicts
from xskd.xsk import Statistics


def _each(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


SINCE = "The counts go on over restarts of the worker, and of the daemon where its workers go on."

WORDS: dict[type, tuple[str, dict[str, str]]] = {
    DaemonStatus: (
        "The whole answer.",
        {
            "version": "Of xskd.",
            "kernel": "Release of the running kernel.",
            "pid": "Of the supervisor.",
            "started": "When the supervisor started, in seconds since the epoch.",
            "ready": "Every queue that can has been started; what does not work is in `text`.",
            "text": "The health in one sentence, as `systemctl status` shows it. What is not well stands "
            "after a semicolon. For people: its wording may change.",
            "config_error": "Why the configuration file is not what runs, a line per problem; null if it is.",
            "paths": "Names of all configured paths.",
            "waiting": "By path, why it cannot run on the machine as it is. Only those that wait.",
            "interfaces": "One entry per interface of a path.",
            "workers": "One entry per worker: per path and queue.",
            "reloads": "What became of the configuration since the supervisor started.",
            "clients_refused": "Connections closed without an answer since the supervisor started, by "
            "listener (`control`, `metrics`) and reason: `busy`, more at once than are served; `slow`, the "
            "client did not ask, or take its answer, in time.",
        },
    ),
    Reloads: (
        "What became of the configuration since the supervisor started; a dry run does not count.",
        {
            "generation": "Configurations that were loaded, from 1 on.",
            "success": "Reloads that did all that they should.",
            "failure": "Reloads that did not.",
            "last": "When the last one was, in seconds since the epoch; before the first, the start.",
            "last_successful": "What became of the last one; true before the first.",
        },
    ),
    InterfaceStatus: (
        "One interface of a path, with its XDP program.",
        {
            "name": "Of the interface.",
            "path": "The path that it belongs to.",
            "queues": "RX queues that the interface has now; 0 if it is not there.",
            "up": "It is set up (`ip link set up`).",
            "carrier": "It is up and has a carrier.",
            "driver": "Name of its driver; empty if the kernel does not say.",
            "fallback": "What its program does with packets of a queue without a socket: `pass` or `drop`.",
            "attach_wanted": "How the program was to be attached: `auto`, `native` or `generic`.",
            "attach": "How it is: `native` or `generic`; null if xskd's program is not attached.",
            "verdicts": "What the program did with the packets it saw.",
            "foreign_program": "An XDP program is attached that is not of xskd.",
            "queues_without_socket": "Queues that no worker has.",
            "zerocopy_able": "What the driver says of itself; null where the kernel does not tell.",
            "rx_dropped": "Packets that the kernel counts as lost on the way into the interface, by its "
            "own names. Some drivers count here what XDP does not take, so the same packet may be counted "
            "elsewhere.",
            "verdict_bytes": "Bytes of those packets, from the Ethernet header on, without FCS.",
            "unroutable": "Of a `route` path: packets among the verdicts' `unroutable`, by the reason why "
            "they were left to the kernel.",
            "unparsed": "Packets that no rule could be asked about: truncated, or with lengths that cannot "
            "be. They took the `default` and are in one of the verdicts too.",
            "default": "The answer to packets that match no rule: `redirect`, `express`, `pass` or `drop`.",
            "rules": "The rules in force, in order, the default last; empty if there are none.",
            "express": "Which packets take an express lane, as configured: `rules`, `auto` or `off`.",
            "lane": "The express lane that leaves by this interface: `open`; `off`, nothing in the path says "
            "express; or why it is closed: `unsupported` by the driver, a queue in `zerocopy` mode, "
            "`waiting` for a worker, a `capture`. Its packets go through the socket then.",
        },
    ),
    RuleStatus: (
        "One rule in force. Its counts go on under its name: over reloads, and over restarts of the daemon "
        "where its workers go on. A rule without a name is counted by its place.",
        {
            "name": "Of the rule: as configured, else its place from `1` on; `default` for packets that "
            "match none.",
            "match": "What it matches, in one line; empty for the default.",
            "verdict": "What becomes of a packet: `redirect`, `express`, `pass` or `drop`.",
            "packets": "That matched.",
            "bytes": "Of those packets.",
            "limited": "Of those packets, the ones over the rule's own limit, which were dropped.",
        },
    ),
    Verdicts: (
        f"Packets or bytes, by what the XDP program did with them; each is in one. {SINCE}",
        {
            "redirected": "Given to a socket.",
            "expressed": "Sent straight out of another interface of the path, by an express lane.",
            "passed": "Given to the kernel's network stack, as a rule or the default says.",
            "dropped": "Dropped, as a rule or the default says.",
            "rule_limited": "Dropped: over the limit of their rule.",
            "path_limited": "Dropped: over the limit of their path.",
            "unroutable": "Given to the kernel's network stack, since it knows better what to do with them.",
            "no_socket_passed": "Their queue has no socket: given to the kernel's network stack.",
            "no_socket_dropped": "Their queue has no socket: dropped, as `fallback` says.",
        },
    ),
    WorkerStatus: (
        "One worker: the place of a process that forwards one queue of a path.",
        {
            "name": "`path/index`.",
            "path": "The path it works for.",
            "index": "Its number in the path, which is its queue's.",
            "kind": "What the path does: `connect`, `reflect` or `route`.",
            "state": "`forwarding` if all is well; else `starting`, `backoff`, `waiting`, `stopping`, "
            "`stopped`.",
            "pid": "Of its process; null if there is none.",
            "cpu": "The CPU it is pinned to; null: any.",
            "poll": "How it waits for packets: `adaptive`, `busy` or `wakeup`.",
            "restarts": "Deaths of its processes, by cause. Only causes that have happened.",
            "adoptions": "Processes that were to go on with sockets in use, by result. Only those that "
            "happened.",
            "conflicts": "Times that another's socket was found in the place of one of its own in an XSKMAP.",
            "gap_seconds": "Time between one process's last turn and the next one's first, all told.",
            "last_error": "Why the last process ended; null if none did since it last forwarded.",
            "heartbeat_age": "Seconds since the last turn of its loop; null before the first of this "
            "process.",
            "counters": "What it counts as a whole.",
            "ports": "Its sockets, one per interface of the path.",
        },
    ),
    WorkerCounters: (
        f"What a worker counts as a whole. {SINCE} Frames are of this moment.",
        {
            "heartbeat_ns": "CLOCK_MONOTONIC at the end of the last turn, nanoseconds; 0: there was none.",
            "turns": "Turns of the loop.",
            "turns_idle": "Of them, those that found nothing to do.",
            "sleeps": "poll() calls that were allowed to sleep.",
            "frames": "Frames of the packet memory.",
            "frames_in": f"Where they are: {_each(PLACES)}. Their sum is `frames`.",
            "frames_unaccounted": "`frames` without that sum; anything but 0 is a bug.",
            "regimes_ns": "Nanoseconds spent `working`, `spinning`, `sleeping`, and `waking` the kernel.",
            "cpu_ns": "CPU nanoseconds of its processes: `user`, `system`.",
            "context_switches": "Of its processes: `voluntary`, `involuntary`.",
            "page_faults": "Of its processes: `major`, `minor`.",
            "ports": "Always empty: see the worker's `ports`.",
        },
    ),
    PortStatus: (
        "One AF_XDP socket.",
        {
            "interface": "It is bound to.",
            "queue": "Of the interface.",
            "mode_wanted": "As configured: `auto`, `zerocopy` or `copy`.",
            "mode": "In use: `zerocopy` or `copy`; null while it is not bound.",
            "rings": f"Sizes in entries: {_each(RINGS)}.",
            "counters": "What the worker counts.",
            "kernel": "What the kernel counts (XDP_STATISTICS).",
            "nic_rx_dropped": "Packets that the NIC lost of this queue, by the driver's names (`ethtool "
            "-S`) without the queue's number. Some drivers count here what the kernel counts as well.",
            "nic_tx_dropped": "The same of packets that were to leave by this queue, also those that an XDP "
            "program redirected to it.",
            "multi_buffer": "Whether a packet may take several frames, because the MTU does not fit one.",
        },
    ),
    PortCounters: (
        f"What a worker counts for one socket. {SINCE} Ring entries are of this moment.",
        {
            "rx_packets": "Packets taken from RX.",
            "rx_bytes": "Their bytes, without what the wire adds.",
            "tx_packets": "Packets put on TX.",
            "tx_bytes": "Their bytes, likewise.",
            "tx_frames": "Frames of those packets: one each, more where the MTU does not fit one frame.",
            "tx_completed": "Frames that came back through the completion ring: sent, or refused by the "
            "driver.",
            "drops": f"Packets that came in here and were not forwarded, by reason: {_each(DROPS)}. There "
            "may be more reasons one day.",
            "rx_batches": "Bursts taken from RX by size: up to 1, 2, 4, 8, 16, 32, 64 packets, and "
            "more; not cumulative.",
            "tx_batches": "Bursts put on TX, likewise.",
            "wakeups": "System calls that asked the kernel to look at a ring, by cause: sendto() because "
            "of `new` packets on TX, `again` because only a part was sent, for what was `left`; "
            "recvfrom() for `refilled` frames, or because FILL ran `dry`; poll() going to `sleep`.",
            "wakeups_skipped": "Something was new in a ring, but the kernel had not asked to be called: "
            "`tx`, `rx`.",
            "wakeup_errors": f"Wakeups that failed, by errno: {_each(WAKEUP_ERRORS)}.",
            "wakeup_tx_times": "Of one sendto() in 17, how many took up to 2^10, 2^11, ... 2^25 nanoseconds, "
            "and longer; not cumulative.",
            "wakeup_rx_times": "The same of recvfrom().",
            "wakeup_ns": "Those calls together, nanoseconds: `tx`, `rx`.",
            "latency": "Sampled packets that came in here, by their time in the forwarder; counts as above.",
            "latency_ns": "All of those together, nanoseconds.",
            "fill_starved": "Turns that found FILL empty and no free frame to put there.",
            "tx_blocked": "Turns that found packets in RX and no room on the egress TX ring.",
            "completion_invalid": "Completion entries that name no frame of this socket's TX side; a bug "
            "if not 0.",
            "ring_entries": f"Entries now: {_each(RINGS)}.",
            "ring_high_water": "The most entries since the last scrape of `/metrics`, by ring.",
            "ring_full": "Times that the worker found the ring newly full, by ring.",
            "ring_empty": "Times that the worker found the ring newly empty, by ring.",
            "ring_corrupt": "Times that the worker ended because it could not believe the ring any more, by "
            "ring; a bug, of the driver or the kernel most likely, if not 0.",
        },
    ),
    Statistics: (
        "The kernel's counters of one socket, under its names.",
        {
            "rx_dropped": "Packets lost before RX, other than those below; in copy mode also those that "
            "found FILL empty.",
            "rx_invalid_descs": "FILL entries that the kernel refused; a bug if not 0.",
            "tx_invalid_descs": "TX entries that the kernel refused; a bug if not 0.",
            "rx_ring_full": "Packets lost because RX was full: the worker is slower than the traffic.",
            "rx_fill_ring_empty_descs": "Times that the kernel found FILL empty. It belongs to the queue; "
            "in copy mode the same packets are in `rx_dropped`.",
            "tx_ring_empty_descs": "Times that the kernel found nothing to send. Benign.",
        },
    ),
}

INTRODUCTION = """\
# The answer of `xskd status --json`

Made by `python -m xskd.schema > docs/status.md`; do not edit.

`xskd status --json` prints one JSON object, [described below](#daemonstatus) and, for a program, by the
JSON Schema that `xskd schema status` prints.

**What you can rely on.** Fields are added, never taken away, and never change their name, type or meaning.
So do not insist on knowing every field, nor every key of an object whose keys are names (reasons, rings,
states, causes): there may be more. Counters only grow as long as the path and the queue are configured, and
begin at 0 if the daemon was stopped; two answers with other `pid` and `started` may, but need not, belong
to counters that went on. Texts (`text`, `config_error`, `last_error`, the lines in `waiting`) are for
people and may be worded otherwise.

Losses of packets are `drops`, and of `kernel` the fields `rx_dropped`, `rx_ring_full` and
`tx_invalid_descs`; a packet is in one of them. The [metrics](metrics.md) are made of the same figures.
"""


def status() -> dict[str, Any]:
    """The JSON Schema of the answer."""
    schema = TypeAdapter(DaemonStatus).json_schema(mode="serialization")
    parts = {DaemonStatus.__name__: schema} | schema["$defs"]
    for kind, (about, words) in WORDS.items():
        part = parts[kind.__name__]
        part["description"] = about
        part["required"] = list(part["properties"])  # also those that have a default in Python
        for name, field in part["properties"].items():
            field.pop("title", None)
            field.pop("default", None)
            field["description"] = words[name]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "xskd status --json",
    }


def as_markdown() -> str:
    """The page docs/status.md."""
    schema = status()
    parts = {DaemonStatus.__name__: schema} | schema["$defs"]
    lines = [INTRODUCTION]
    for kind, (about, words) in WORDS.items():
        fields = parts[kind.__name__]["properties"]
        lines += [f"## {kind.__name__}", "", about, "", "| field | type | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | {_type(fields[name])} | {words[name]} |" for name in fields]
        lines.append("")
    return "\n".join(lines)


def _type(field: dict[str, Any]) -> str:
    """The type of a field in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"])
    if field["type"] == "array":
        items = field.get("items")
        return f"array of {_type(items)}" if items else "array"
    if field["type"] == "object":
        return f"object of {_type(field['additionalProperties'])}"
    return str(field["type"])


if __name__ == "__main__":
    print(as_markdown(), end="")
