"""A whole comparison: every contender in every case, in turns, several rounds, and the record of it all.

Contenders take turns within a round and rounds follow each other, so that a machine that changes its speed
changes it for everyone. The order within a round rotates. A contender that fails is named in the record and
left out of that case; it never ends the campaign.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from bench import latency, machine, scaling, throughput
from bench.contenders import ALL, CONNECT, REFLECT, Contender
from bench.generator import Load
from bench.latency import Delay
from bench.measurement import TRIES, M, throw_away_other_phases, try_often, usual_speed
from bench.scaling import Scaling
from bench.stand import NotForwardingError
from bench.throughput import Run

T = TypeVar("T")
CASES = tuple((mode, size) for mode in (CONNECT, REFLECT) for size in (64, 1500))


@dataclass
class Record:
    """Everything known about one campaign."""

    when: str
    machine: dict[str, str | int]
    mode: str
    settings: dict[str, float]
    versions: dict[str, str]
    missing: dict[str, str]
    failures: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    delays: list[Delay] = field(default_factory=list)
    scalings: list[Scaling] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Keep the record under its date."""
        path = folder / f"{self.when.replace(':', '')}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record that was kept."""
        kept = json.loads(path.read_text())
        kept["runs"] = [Run(**run) for run in kept["runs"]]
        kept["delays"] = [Delay(**delay) for delay in kept["delays"]]
        kept["scalings"] = [Scaling(**one) for one in kept.get("scalings", [])]
        return cls(**kept)


def compare(rounds: int, seconds: float, budget: float, only: list[str]) -> Record:
    """Carry out the campaign; no round begins that would, by the pace so far, end after the budget."""
    chosen = [one for one in ALL if not only or any(word in one.name for word in only)]
    present = [one for one in chosen if not one.missing()]
    record = Record(
        when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine.facts(),
        mode="veth, native XDP; AF_XDP in copy mode; one queue",
        settings={"rounds": rounds, "seconds": seconds},
        versions={one.name: one.version() for one in present},
        missing={one.name: one.missing() for one in chosen if one.missing()},
    )
    start = time.monotonic()
    for number in range(rounds):
        if number and (time.monotonic() - start) / number * (number + 1) > budget:
            record.settings["rounds"] = number
            break
        _round(record, number, rotated(present, number), seconds)
    speed = usual_speed([*record.runs, *record.delays])
    record.runs = throw_away_other_phases(record.runs, speed)
    record.delays = throw_away_other_phases(record.delays, speed)
    return record


def _round(record: Record, number: int, contenders: list[Contender], seconds: float) -> None:
    for mode, size in CASES:
        for one in contenders:
            if mode in one.modes:
                record.runs += attempt(
                    record.failures,
                    partial(throughput.measure, one, mode, Load(frame_bytes=size), seconds, number),
                )
    for one in contenders:
        record.delays += attempt(record.failures, partial(latency.measure, one, seconds, number))
    if any(one.name == "xskd" for one in contenders):
        record.scalings += attempt(record.failures, partial(scaling.measure, seconds, number))


def rotated(these: Sequence[T], by: int) -> list[T]:
    """Begin with another one in each round."""
    by %= max(len(these), 1)
    return [*these[by:], *these[:by]]


def attempt(failures: list[str], measure: Callable[[], M], tries: int = TRIES) -> Iterator[M]:
    """Measure, tell how it went, and let a failure be a line in the record."""
    try:
        for one in try_often(measure, tries):
            print(one, file=sys.stderr, flush=True)
            yield one
    except NotForwardingError as error:
        failures.append(str(error))
        print(error, file=sys.stderr, flush=True)
