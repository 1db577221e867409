"""What the verbs show to a person: plans and states as tables, the doctor's findings as a list.

This module must never ask the daemon or the kernel anything; it is given what it draws.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from xskd import board, rates
from xskd.plan import Plan, counted

if TYPE_CHECKING:  # `xskd status` must not wait for what the doctor needs
    from xskd.doctor import Done
    from xskd.findings import Finding, Verdict

MIB = 1 << 20
PIPE_WIDTH = 160  # columns, where there is no terminal to ask
LINE_WIDTH = 80  # of a list, which is read and not compared
COLOURS: dict[Verdict, str] = {"FAIL": "red", "WARN": "yellow", "OK": "green"}  # the worst first


def plan(what: Plan) -> None:
    """The plan of `xskd check`: which process gets which queues, CPU and memory."""
    console = open_console()
    table = _table("worker", "does", "ports", "poll", "CPU", "frames", "UMEM")
    for worker in what.workers:
        table.add_row(
            worker.name,
            worker.kind,
            ", ".join(f"{port.interface}:{port.queue} {port.mode}" for port in worker.ports),
            worker.poll,
            "any" if worker.cpu is None else str(worker.cpu),
            f"{worker.frames} x {worker.frame_size}{', multi-buffer' if worker.multi_buffer else ''}",
            f"{worker.umem_bytes / MIB:.0f} MiB",
        )
    console.print(table, soft_wrap=False)
    for interface in what.interfaces:
        console.print(
            f"{interface.name}: XDP program {interface.attach}, {interface.queues} queues;"
            f" packets of a queue without a worker: {interface.fallback};"
            f" {counted(len(interface.rules.rules), 'rule')}, default {interface.rules.default}",
        )
    listen = what.metrics_listen
    where = f"http://{listen[0]}:{listen[1]}/metrics" if listen else "off"
    console.print(f"metrics: {where}; control socket: {what.control_socket}")
    console.print(f"packet memory in all: {what.memory_bytes / MIB:.0f} MiB")


def status(now: dict[str, Any], before: dict[str, Any] | None = None, seconds: float = 0.0) -> None:
    """The answer of `xskd status`, on one screen; with an earlier one and the seconds since, also rates."""
    console = open_console()
    look = look_of(console)
    rows = rates.socket_rows(now, before, seconds)
    head = Text(
        f"xskd {now['version']}, pid {now['pid']}, up {board.duration(time.time() - now['started'])}: "
    )
    head.append(now["text"], "green" if board.is_well(now) else "bold red")
    _sentence(console, head)
    sections = [
        board.table(board.PATHS, rates.path_rows(now, rows), look),
        board.table(board.status_columns(look), rows, look),
        board.table(board.INTERFACES, rates.interface_rows(now, before, seconds), look),
    ]
    lost = board.losses(rows)
    sections.append(board.table(board.LOSSES, lost, look) if lost else [Text("no packet lost")])
    for lines in sections:
        console.print()
        for line in lines:
            console.print(line, no_wrap=True, crop=True)
    console.print()
    _sentence(console, _configuration(now))
    for where, what in board.troubles(now):
        _sentence(console, Text().append(where, "red").append(f": {what}"))


def rules(now: dict[str, Any], before: dict[str, Any] | None = None, seconds: float = 0.0) -> None:
    """The answer of `xskd status --rules`: what matches first, what became of it, and how much there was."""
    console = open_console()
    look = look_of(console)
    for line in board.table(board.rule_columns(look), rates.rule_rows(now, before, seconds), look):
        console.print(line, no_wrap=True, crop=True)


def _sentence(console: Console, text: Text) -> None:
    """A line that a terminal may fold, between words."""
    console.print(text, soft_wrap=not console.is_terminal)


def _configuration(now: dict[str, Any]) -> Text:
    """What became of the file."""
    if now["config_error"]:
        return Text("configuration: the file is wrong, an older one runs", "bold red")
    text = Text("configuration: as in the file")
    if reloads := now.get("reloads"):
        text.append(f", generation {reloads['generation']}")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(reloads["last"]))
        if not reloads["last_successful"]:
            text.append("; ").append(f"the reload of {when} failed", "bold red")
        elif reloads["success"]:
            text.append(f", reloaded {when}")
    return text


def doctor(findings: list[Finding], done: list[Done], note: str = "") -> None:
    """What `xskd doctor` has found, the worst of each subject first, and what --fix has done."""
    console = open_console()
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


def sockets(now: dict[str, Any], before: dict[str, Any] | None, seconds: float, look: board.Look) -> Group:
    """A row per socket, as in `xskd status`."""
    rows = rates.socket_rows(now, before, seconds)
    return Group(*board.table(board.status_columns(look), rows, look))


def look_of(console: Console) -> board.Look:
    """What a console can show."""
    return board.Look(console.width, unicode=console.encoding.startswith("utf"))


def open_console() -> Console:
    """Tables fit the terminal and other lines are left to it; a pipe or a file gets both unfolded."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say that something is under way which may take a while: on a terminal, until it is over."""
    with Console(stderr=True).status(what):  # draws nothing where it is no terminal
        yield


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        numeric = column.startswith(("rx", "tx")) or column in {"CPU", "UMEM"}
        table.add_column(column, justify="right" if numeric else "left")
    return table
