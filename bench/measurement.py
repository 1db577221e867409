"""What every measurement has in common: whose it is, when in the campaign, and whether it may count.

A measurement that may not count stays in the record with the reason; it is never deleted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

from bench import machine

# The phases of a shared host last from tenths of a second to minutes. The short ones average out in a
# measurement but make two calibrations differ by a third; a long one, half as fast, must be caught.
_DRIFT = 0.4  # largest change of the machine's speed from before to after a measurement
_STRANGERS = 0.05  # largest use of CPU by others, as a part of one CPU
_PHASE = 0.4  # largest distance of a measurement's machine speed from that of the whole campaign
TRIES = 3
_QUIET_WITHIN = 60.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The common part; `strangers` is the others' use of CPU as a part of one CPU."""

    round: int
    contender: str
    strangers: float
    speed_before: float
    speed_after: float
    thrown_away: str = ""

    def figures(self) -> str:
        """Say in a few words what was measured."""
        raise NotImplementedError

    def __str__(self) -> str:
        why_not = f" ({self.thrown_away})" if self.thrown_away else ""
        return f"round {self.round + 1}: {self.contender}: {self.figures()}{why_not}"


M = TypeVar("M", bound=Measurement)


def try_often(measure: Callable[[], M], tries: int = TRIES) -> Iterator[M]:
    """Measure until a measurement may count, a few times at most; yield all of them, the good one last.

    Who tries once only wants to see that it works, and does not wait for a quiet machine.
    """
    for _ in range(tries):
        if tries > 1:
            machine.wait_until_quiet(_QUIET_WITHIN, _STRANGERS)
        one = measure()
        flaw = _flaw(one)
        yield replace(one, thrown_away=flaw)
        if not flaw:
            return


def _flaw(one: Measurement) -> str:
    if one.strangers > _STRANGERS:
        return f"others used {one.strangers:.0%} of a CPU"
    slow, fast = sorted((one.speed_before, one.speed_after))
    if fast / slow > 1 + _DRIFT:
        return f"the machine's speed changed by {fast / slow - 1:.0%}"
    return ""


def throw_away_other_phases(measurements: Sequence[M], speed: float) -> list[M]:
    """Throw away what was measured while the machine was in another phase than that of the given speed."""
    return [
        one
        if one.thrown_away or abs(one.speed_before / speed - 1) <= _PHASE
        else replace(one, thrown_away=f"the machine's speed was {one.speed_before / speed:.0%} of the usual")
        for one in measurements
    ]


def usual_speed(measurements: Sequence[Measurement]) -> float:
    """Return the machine's median speed over those that may count."""
    return median([one.speed_before for one in measurements if not one.thrown_away] or [1.0])
