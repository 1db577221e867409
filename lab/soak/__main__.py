"""Conduct a soak; exit status 0 if every promise was kept."""

from __future__ import annotations

import argparse
import random
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lab import Topology
from lab.machine import Lacking, booted
from lab.soak import faults
from lab.soak.account import Balance, balance, broken, sample, settled, well, went_back
from lab.soak.report import RECOVERY_SECONDS, Episode, Findings
from lab.soak.streams import Process
from xskd.errors import XskdError

RATES = (200, 1_000, 1_000, 3_000)  # packets a second of one stream
CALM_SECONDS = (1.0, 4.0)  # between the beginning of an episode and its fault
PATIENCE = 2 * RECOVERY_SECONDS


class Soak:
    """One soak on a booted machine."""

    def __init__(self, stage: faults.Stage, streams: dict[str, Process], findings: Findings) -> None:
        self._stage, self._streams, self._findings = stage, streams, findings
        self._began = time.monotonic()
        self._last = self._status()

    def run(self, only: str) -> None:
        """Episode after episode, each with one fault, until the time is over."""
        end = self._began + self._findings.minutes * 60
        first = before = balance(self._stage.machine, self._status())
        cards: list[Any] = []
        while time.monotonic() < end:
            cards = cards or faults.deck(self._stage.random, only)
            before = self._episode(cards.pop(), before)
        self._findings.seconds = time.monotonic() - self._began
        self._findings.total = before - first
        self._findings.streams = {name: stream.report() for name, stream in self._streams.items()}

    def _episode(self, fault: Any, before: Balance) -> Balance:
        dice = self._stage.random
        for stream in self._streams.values():
            stream.rate(dice.choice(RATES))
        time.sleep(dice.uniform(*CALM_SECONDS))
        at = time.monotonic() - self._began
        try:
            what = fault(self._stage)
        except (AssertionError, RuntimeError, XskdError) as error:
            what = f"{fault.__name__} failed: {str(error).splitlines()[0]}"
            self._findings.problems.append(what)
        recovery = self._recovery(what)
        silence = max(stream.report()["silence"] for stream in self._streams.values())
        for stream in self._streams.values():
            stream.rate(0)
        after = settled(self._stage.machine, self._status, before)
        self._check(what)
        kind = fault.__name__.replace("_", " ")
        episode = Episode(kind, what, at, after - before, recovery, silence)
        self._findings.episodes.append(episode)
        say(f"{at:7.1f} s  {what}: again after {recovery:.2f} s, silence {silence:.2f} s, "
            f"lost {dict(episode.balance.lost)}, not counted {episode.balance.uncounted:,}")  # fmt: skip
        return after

    def _recovery(self, what: str) -> float:
        """Wait until every worker forwards and every stream receives; the seconds that took."""
        began = time.monotonic()
        had = {name: stream.report()["received"] for name, stream in self._streams.items()}
        while time.monotonic() - began < PATIENCE:
            try:
                if well(self._status()) and all(
                    stream.report()["received"] > had[name] for name, stream in self._streams.items()
                ):
                    return time.monotonic() - began
            except XskdError:
                pass  # it is being started
            time.sleep(0.01)
        self._findings.problems.append(f"{what}: not well after {PATIENCE:g} s")
        return PATIENCE

    def _check(self, what: str) -> None:
        """Nothing lost count, no frame is astray; and remember what the processes hold."""
        status = self._status()
        self._findings.problems += [
            f"{what}: {each}" for each in (*broken(status), *went_back(self._last, status))
        ]
        self._last = status
        with suppress(OSError):  # a process that ended while it was looked at; the next sample comes soon
            self._findings.samples.append(sample(self._stage.machine, status, time.monotonic() - self._began))

    def _status(self) -> dict[str, Any]:
        """Ask, and ask again while nobody answers. XskdError after a while."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            try:
                return self._stage.status()
            except (XskdError, OSError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def main() -> int:
    """Run it and print the page."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=sys.modules["lab.soak"].__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="default: from the clock")
    parser.add_argument("--only", metavar="WORD", default="", help="only faults that have it in their name")
    parser.add_argument("--report", type=Path, help="write the page to this file as well")
    arguments = parser.parse_args()
    findings = Findings(arguments.seed, arguments.minutes)
    Topology.cleanup_stale("xskd-soak")  # what a killed one has left
    try:
        with ExitStack() as stack:
            machine = stack.enter_context(booted("xskd-soak", links=3))
            stage = faults.Stage(machine, random.Random(arguments.seed))
            machine.write(faults.SETTINGS, faults.configuration())
            machine.systemctl("start")
            hosts = machine.lab.hosts
            ways = {"wire, there": (0, 1), "wire, back": (1, 0), "mirror": (2, 2)}
            streams = {}
            for number, (name, (out, into)) in enumerate(ways.items()):
                streams[name] = Process(name, hosts[out], hosts[into], number)
                stack.callback(streams[name].close)
            Soak(stage, streams, findings).run(arguments.only)
    except Lacking as reason:
        say(f"scripts/soak: {reason}")
        return 1
    page = findings.page()
    say(page)
    if arguments.report:
        arguments.report.write_text(page, encoding="utf-8")
    return 1 if findings.judge() else 0


if __name__ == "__main__":
    sys.exit(main())
