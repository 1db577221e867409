"""The express lanes: over which interfaces of a path packets may leave without user space, and why not.

A packet whose verdict is `express` is sent by the program itself, straight out of another interface of its
path. That is right only where nothing is lost and nobody is passed over: the driver must take redirected
frames (one that does not loses every one of them, in silence), no queue there may be in zero-copy mode, and
whoever captures packets of the path must see them all. Where a lane is closed the packet goes through the
XSK, like any other.

`decide` is pure; Lanes looks at what there is, has the programs do as decided, and says so, each time that
something has changed. A lane is closed before it can do harm and opened when all is as it must be; what the
kernel refuses is told, and tried again the next time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from xskd.crew import Crew
from xskd.errors import XdpError
from xskd.features import Features
from xskd.logs import about
from xskd.plan import InterfacePlan
from xskd.programs import Programs
from xskd.status import LaneState

REASONS: dict[LaneState, str] = {
    "open": "express packets leave by it",
    "off": "nothing in the path says express",
    "unsupported": "the driver takes no redirected frames (netdev feature ndo-xmit), which would be lost; a "
    "veth takes them while its peer has an XDP program or GRO",
    "zerocopy": "a queue of the path is in zero-copy mode, where redirected frames may be lost",
    "waiting": "not every worker of the path has its sockets bound, so their mode is not known",
    "capture": "a capture on the path must see every packet",
}

log = logging.getLogger("xskd")


@dataclass(frozen=True)
class Lane:
    """The way out by one interface; `multi_buffer`: also for packets of several buffers."""

    state: LaneState
    multi_buffer: bool = False

    @property
    def is_open(self) -> bool:
        """May express packets leave here?"""
        return self.state == "open"


def decide(
    *,
    wanted: bool,
    features: Sequence[Features | None],
    modes: Collection[str | None],
    captured: bool,
) -> tuple[Lane, ...]:
    """The lanes of one path, in the order of its interfaces, whose `features` are given.

    `wanted`: some rule or default of the path says express. `modes` are those of all sockets of all its
    workers, None for one that is not bound. What no passing event changes comes first: it is the better
    reason to tell.
    """

    def state(able: Collection[str]) -> LaneState:
        if not wanted:
            return "off"
        if "ndo-xmit" not in able:
            return "unsupported"
        if "zerocopy" in modes:
            return "zerocopy"
        if not modes or None in modes:
            return "waiting"
        return "capture" if captured else "open"

    told = [frozenset(each.xdp) if each else frozenset[str]() for each in features]
    return tuple(Lane(state(able), "ndo-xmit-sg" in able) for able in told)


class Lanes:
    """Those of all paths. `review` after everything that may change one."""

    def __init__(
        self,
        programs: Programs,
        crew: Crew,
        features: Callable[[str], Features | None],
    ) -> None:
        self._programs, self._crew, self._features = programs, crew, features
        self._lanes: dict[str, Lane] = {}  # by interface
        self._refused: dict[str, str] = {}  # programs that did not do as decided, and why

    def of(self, interface: str) -> LaneState:
        """How it is about the lane that leaves by an interface."""
        lane = self._lanes.get(interface)
        return lane.state if lane else "waiting"

    def review(self) -> None:
        """Look at every path again, and have done what follows."""
        paths: dict[str, list[InterfacePlan]] = {}
        for plan in self._programs.plans.values():
            paths.setdefault(plan.path, []).append(plan)
        decided: dict[str, Lane] = {}
        for path, plans in paths.items():
            decided |= self._review_path(path, sorted(plans, key=lambda plan: plan.own))
        self._say(decided)
        self._lanes = decided

    def _review_path(self, path: str, plans: Sequence[InterfacePlan]) -> dict[str, Lane]:
        slots = [slot for slot in self._crew.slots.values() if slot.plan.path == path]
        modes = [mode for slot in slots if slot.state != "waiting" for mode in slot.modes]
        lanes = decide(
            wanted=any(plan.says_express for plan in plans),
            features=[self._features(plan.name) for plan in plans],
            modes=modes,
            captured=path in self._crew.captures.paths,
        )
        opened = [(plan.own, lane) for plan, lane in zip(plans, lanes, strict=True) if lane.is_open]
        numbers = frozenset(own for own, _ in opened)
        several = frozenset(own for own, lane in opened if lane.multi_buffer)
        for plan in plans:
            self._have(plan.name, numbers, several)
        return {plan.name: lane for plan, lane in zip(plans, lanes, strict=True)}

    def _have(self, interface: str, lanes: frozenset[int], several: frozenset[int]) -> None:
        """Tell one program of the lanes of its path, unless it knows."""
        try:
            self._programs.open_lanes(interface, lanes, several)
            self._refused.pop(interface, None)
        except XdpError as error:
            if self._refused.get(interface) != str(error):  # once, and not every time
                log.error("%s: express lanes: %s", interface, error, extra=about(interface=interface))
            self._refused[interface] = str(error)

    def _say(self, decided: Mapping[str, Lane]) -> None:
        """Each change, with the reason; nothing of one that nobody asks for, or that waits for its start."""
        for name, lane in decided.items():
            before = self._lanes.get(name)
            if lane.state == before.state if before else lane.state in ("off", "waiting"):
                continue
            log.log(
                logging.WARNING if lane.state in ("unsupported", "zerocopy") else logging.INFO,
                "%s: express lane %s: %s",
                name,
                "open" if lane.is_open else "closed",
                REASONS[lane.state],
                extra=about(interface=name),
            )
