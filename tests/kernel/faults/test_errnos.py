"""Every system call of a daemon's set-up and of its workers fails, with every errno it may return.

The short form draws a sample of as many calls as it has faults, the same in every run: what fails must have
to do with the change that is tested. --long is all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import MakeWire
from errnos import ERRNOS, HARMLESS, Fault, faults, sample
from failing import Nursery, Outcome, Workers, wrong, wrong_of_worker

from lab.figures import figure
from xskd.privileges import ALLOWED

SEED = 0
ALL = 1_000_000

Times = Callable[[int, int], int]


class Report:
    """What was tried, what became of it, and what was wrong."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._kinds: Counter[str] = Counter()
        self._outcomes: list[Outcome] = []
        self._wrong: list[str] = []

    def add(self, fault: Fault, outcome: Outcome, kind: str, problem: str) -> None:
        self._kinds[kind] += 1
        self._outcomes.append(outcome)
        print(f"{kind:12} {outcome.seconds:5.2f} s  {fault}")
        if problem:
            self._wrong.append(f"{fault}: {kind}, status {outcome.status}: {problem}\n{outcome.log[-1500:]}")

    def hold(self, seconds: float, cpu: float) -> None:
        """Print the figures, and fail if something was wrong."""
        print(f"{self.what}, sample {SEED}: {dict(self._kinds)}")
        assert not self._wrong, f"{len(self._wrong)} are wrong\n" + "\n".join(self._wrong[:8])
        assert self._kinds["not reached"] < len(self._outcomes), "no fault was tried"
        figure(f"{self.what}: seconds to an outcome", max(o.seconds for o in self._outcomes), "s", seconds)
        figure(f"{self.what}: CPU seconds", max(o.cpu for o in self._outcomes), "s", cpu)


def try_daemons(nursery: Nursery, chosen: Sequence[Fault], report: Report) -> None:
    for fault in chosen:
        outcome = nursery.lived(fault.options(nursery.trace))
        left = nursery.left_behind()
        if fault.place.call == "unlink" and left == [str(nursery.socket)]:  # and that was said
            left = []
        nursery.socket.unlink(missing_ok=True)
        problem = wrong(outcome) or (f"left behind: {left}" if left else "")
        report.add(fault, outcome, outcome.kind, problem)


def test_every_call_of_a_daemon_with_every_errno(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    """A start ends in one clear message, with nothing left behind, or it forwards; and so does the stop."""
    report = Report("a call of the supervisor fails")
    with Nursery(wire(), tmp_path) as nursery:
        whole = faults(nursery.baseline())
        try_daemons(nursery, sample(whole, times(10, ALL), SEED), report)
    report.hold(seconds=25.0, cpu=5.0)


def test_every_call_of_its_threads_with_every_errno(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    """Where netlink is asked; the same call of supervisor and worker fails along with it."""
    report = Report("a call of each thread fails")
    with Nursery(wire(), tmp_path) as nursery:
        whole = faults(nursery.baseline_of_threads(), threads=True)
        try_daemons(nursery, sample(whole, times(4, ALL), SEED), report)
    report.hold(seconds=25.0, cpu=5.0)


@pytest.mark.parametrize("adopt", [False, True], ids=["binding", "adopting"])
def test_every_call_of_a_worker_with_every_errno(
    wire: MakeWire, tmp_path: Path, times: Times, adopt: bool
) -> None:
    """Another one takes its place, the log says why, and packets go on; or nothing has happened at all."""
    report = Report(f"a call of a worker fails while {'adopting' if adopt else 'binding'}")
    with Nursery(wire(), tmp_path) as nursery:
        workers = Workers(nursery)
        for fault in sample(faults(workers.baseline(adopt=adopt)), times(6, ALL), SEED):
            outcome = workers.try_one(fault.options(nursery.trace)[:-2], adopt=adopt)
            ended = "worker ended" in outcome.log
            kind = "not reached" if not outcome.hit else "restarted" if ended else "went on"
            report.add(fault, outcome, kind, wrong_of_worker(outcome))
        workers.close()
        assert nursery.left_behind() == []
    report.hold(seconds=25.0, cpu=5.0)


def test_the_table_knows_every_call_of_a_worker() -> None:
    """What a worker may call after it has given up its rights is what it is tried with."""
    names = {each if isinstance(each, str) else each.name for each in ALLOWED} - {"nanosleep", "fstat"}
    assert names - HARMLESS <= set(ERRNOS)
