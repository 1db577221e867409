"""`xskd doctor`: everything that makes AF_XDP fail in practice, looked at before it bites.

Pure but for `mend`, which runs the very commands that were shown, and only those that can be undone. The
checks are in checks.py and checks_machine.py, and docs/doctor.md has their tables: `python -m xskd.doctor
docs/doctor.md` writes them there.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xskd import checks, checks_machine
from xskd.findings import Answer, Facts, Finding, Fix, Interface, Verdict, fail

COMMAND_SECONDS = 20.0  # some NICs reset their link for a feature
MARK = "## The checks\n"
WORST: tuple[Verdict, ...] = ("FAIL", "WARN", "OK")


def diagnose(facts: Facts) -> list[Finding]:
    """Every check that applies, in the order of the tables: the machine, the interfaces, the paths."""
    found = [_finding("machine", check, ask(facts)) for check, ask in checks_machine.MACHINE.items()]
    for interface in facts.interfaces:
        found += [_finding(interface.name, check, answer) for check, answer in _examined(interface)]
    for path in facts.config.paths if facts.config else ():
        found += [_finding(f"path {path}", check, ask(facts, path)) for check, ask in checks.PATH.items()]
    return [finding for finding in found if finding]


def _examined(interface: Interface) -> Iterator[tuple[str, Answer | None]]:
    if interface.device is None:
        gone = "no such interface in this network namespace"
        yield "link", fail(gone, "its path will wait for it", "ip -br link")
        return
    yield from ((check, ask(interface)) for check, ask in checks.INTERFACE.items())


def _finding(subject: str, check: str, answer: Answer | None) -> Finding | None:
    if answer is None:
        return None
    return Finding(subject, check, answer.verdict, answer.seen, answer.why, answer.mend, answer.fix)


def worst(findings: Iterable[Finding]) -> Verdict:
    """FAIL if there is one, else WARN if there is one."""
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in WORST if verdict in verdicts), "OK")


# ---- mending ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """One command that was run: whether it succeeded, what it said if not, and how to undo it."""

    subject: str
    check: str
    fix: Fix
    success: bool
    said: str

    def shape(self) -> dict[str, Any]:
        """For a program."""
        return {
            **{name: getattr(self, name) for name in ("subject", "check", "success", "said")},
            "command": shlex.join(self.fix.command),
            "undo": shlex.join(self.fix.undo),
        }


def mend(findings: Iterable[Finding]) -> list[Done]:
    """Carry out every fix; changes the machine, and nothing that its undo does not bring back."""
    return [_run(f.subject, f.check, f.fix) for f in findings if f.fix and f.verdict != "OK"]


def _run(subject: str, check: str, fix: Fix) -> Done:
    try:
        done = subprocess.run(
            fix.command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except OSError as error:
        return Done(subject, check, fix, False, f"{fix.command[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Done(subject, check, fix, False, f"has not ended within {COMMAND_SECONDS:.0f} seconds")
    return Done(subject, check, fix, done.returncode == 0, (done.stderr or done.stdout).strip())


# ---- for programs and for the documentation ---------------------------------------------------------------


def shape(config: str | None, findings: list[Finding], done: list[Done]) -> dict[str, Any]:
    """What `xskd doctor --json` prints; docs/doctor.md tells it."""
    return {
        "config": config,
        "verdict": worst(findings),
        "findings": [finding.shape() for finding in findings],
        "fixes": [one.shape() for one in done],
    }


def page(before: str) -> str:
    """docs/doctor.md: what stands in it by hand up to the tables, and the tables."""
    tables: tuple[tuple[str, dict[str, Callable[..., Answer | None]]], ...] = (
        ("The machine", {**checks_machine.MACHINE}),
        ("Each interface", {**checks.INTERFACE}),
        ("Each path", {**checks.PATH}),
    )
    return before.split(MARK, maxsplit=1)[0] + MARK + "".join(_table(title, table) for title, table in tables)


def _table(title: str, table: dict[str, Callable[..., Answer | None]]) -> str:
    rows = [f"| {name} | {ask.__doc__} | {checks.FIXED.get(name, '')} |" for name, ask in table.items()]
    return "\n".join(
        ["", f"### {title}", "", "| check | not OK | `--fix` |", "| --- | --- | --- |", *rows, ""]
    )


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(page(file.read_text()))
