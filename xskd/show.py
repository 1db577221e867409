"""What the verbs show to a person: plans and states as tables, the doctor's findings as a list.

This module must never ask the daemon or the kernel anything; it is given what it draws.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xskd.plan import Plan

if TYPE_CHECKING:  # `xskd status` must not wait for what the doctor needs
    from xskd.doctor import Done
    from xskd.findings import Finding, Verdict

MIB = 1 << 20
PIPE_WIDTH = 160  # columns, where there is no terminal to ask
LINE_WIDTH = 80  # of a list, which is read and not compared
COLOURS: dict[Verdict, str] = {"FAIL": "red", "WARN": "yellow", "OK": "green"}  # the worst first


def plan(what: Plan) -> None:
    """The plan of `xskd check`: which process gets which queues, CPU and memory."""
    console = _console()
    table = _table("worker", "does", "ports", "poll", "CPU", "frames", "UMEM")
    for worker in what.workers:
        table.add_row(
            worker.name,
            worker.kind,
            ", ".join(f"{port.interface}:{port.queue} {port.mode}" for port in worker.ports),
            worker.poll,
            "any" if worker.cpu is None else str(worker.cpu),
            f"{worker.frames} x {worker.frame_size}",
            f"{worker.umem_bytes / MIB:.0f} MiB",
        )
    console.print(table, soft_wrap=False)
    for interface in what.interfaces:
        console.print(
            f"{interface.name}: XDP program {interface.attach}, {interface.queues} queues;"
            f" packets of a queue without a worker: {interface.fallback}",
        )
    listen = what.metrics_listen
    where = f"http://{listen[0]}:{listen[1]}/metrics" if listen else "off"
    console.print(f"metrics: {where}; control socket: {what.control_socket}")
    console.print(f"packet memory in all: {what.memory_bytes / MIB:.0f} MiB")


def status(picture: dict[str, Any]) -> None:
    """The answer of `xskd status`, on one screen."""
    console = _console()
    # What is not well stands after a semicolon, see describe() in status.py.
    style = "green" if picture["ready"] and ";" not in picture["text"] else "red"
    console.print(f"xskd {picture['version']}, pid {picture['pid']}: [{style}]{picture['text']}[/]")
    console.print(status_table(picture), soft_wrap=False)
    for problem in (picture["config_error"] or "").splitlines():
        console.print(f"[red]not loaded[/]: {escape(problem)}")
    for path, problems in picture["waiting"].items():
        for problem in problems:
            console.print(f"[red]{path}[/] waits: {escape(problem)}")
    for worker in picture["workers"]:
        if worker["last_error"] and worker["path"] not in picture["waiting"]:
            console.print(f"[red]{worker['name']}[/]: {escape(worker['last_error'])}")


def status_table(picture: dict[str, Any], before: dict[str, Any] | None = None, seconds: float = 0) -> Table:
    """A row per socket; with an earlier picture and the seconds since, packets are shown as rates."""
    unit = "/s" if before else ""
    table = _table("worker", "state", "port", "mode", f"rx{unit}", f"tx{unit}", "dropped", "kernel lost")
    for number, worker in enumerate(picture["workers"]):
        for index, port in enumerate(worker["ports"]):
            earlier = before["workers"][number]["ports"][index] if before else None
            table.add_row(
                worker["name"] if index == 0 else "",
                _coloured(worker["state"]) if index == 0 else "",
                f"{port['interface']}:{port['queue']}",
                port["mode"] or "-",
                _amount(port, earlier, "rx_packets", seconds),
                _amount(port, earlier, "tx_packets", seconds),
                _losses(port["counters"]["drops"]),
                _losses({name: port["kernel"][name] for name in ("rx_dropped", "rx_ring_full")}),
            )
    return table


def doctor(findings: list[Finding], done: list[Done], note: str = "") -> None:
    """What `xskd doctor` has found, the worst of each subject first, and what --fix has done."""
    console = _console()
    for one in done:
        what = "[green]done[/]" if one.success else "[red]failed[/]"
        console.print(f"{what}  {one.subject}: {escape(shlex.join(one.fix.command))}")
        told = f"undo: {shlex.join(one.fix.undo)}" if one.success else one.said
        console.print(escape(textwrap.indent(told, " " * 8)))
    for subject, group in groupby(findings, key=lambda finding: finding.subject):
        console.print(f"[bold]{escape(subject)}[/]")
        for finding in sorted(group, key=lambda finding: list(COLOURS).index(finding.verdict)):
            _finding(console, finding)
    counts = Counter(finding.verdict for finding in findings)
    console.print(", ".join(f"[{COLOURS[verdict]}]{counts[verdict]} {verdict}[/]" for verdict in COLOURS))
    if any(finding.fix for finding in findings if finding.verdict != "OK") and not done:
        console.print("`xskd doctor --fix` runs what is marked *, and says how to undo it")
    if note:
        console.print(escape(note))


def _finding(console: Console, finding: Finding) -> None:
    """Words are folded; a command is left whole, to be copied."""
    first, *more = _folded(f"  {finding.verdict:4}  {finding.check}: {finding.seen}", " " * 8)
    console.print(f"  [{COLOURS[finding.verdict]}]{finding.verdict:4}[/]{escape(first[6:])}")
    for line in more + _folded(" " * 8 + finding.why if finding.why else "", " " * 8):
        console.print(escape(line))
    if finding.mend:
        console.print(f"      {'*' if finding.fix else '>'} [bold]{escape(finding.mend)}[/]")


def _folded(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, LINE_WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _console() -> Console:
    """Tables fit the terminal and other lines are left to it; a pipe or a file gets both unfolded."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        numeric = column.startswith(("rx", "tx")) or column in {"CPU", "UMEM"}
        table.add_column(column, justify="right" if numeric else "left")
    return table


def _coloured(state: str) -> str:
    return f"[{'green' if state == 'forwarding' else 'red'}]{state}[/]"


def _amount(port: dict[str, Any], earlier: dict[str, Any] | None, name: str, seconds: float) -> str:
    count = port["counters"][name]
    if earlier is not None and seconds > 0:
        count = round((count - earlier["counters"][name]) / seconds)
    return f"{count:,}"


def _losses(counts: dict[str, int]) -> str:
    some = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f"[red]{some}[/]" if some else "0"
