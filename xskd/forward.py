"""The loop between sockets, from Python's side: csrc/forward.c with its ports, run for a while at a time.

A Forwarder joins sockets of one UMEM: what arrives on one leaves by another. It must never touch a packet;
all it does is call the loop with a time bound and read where the frames are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from xskd._forward import ffi, lib
from xskd.counters import PLACES
from xskd.errors import XskError
from xskd.tap import Tap
from xskd.xsk import Socket

Kind = Literal["connect", "reflect", "route"]
Poll = Literal["adaptive", "busy", "wakeup"]

ACTIONS = {"connect": lib.XSKD_UNCHANGED, "reflect": lib.XSKD_SWAP_MACS, "route": lib.XSKD_ROUTE}
POLLS = {"adaptive": lib.XSKD_POLL_ADAPTIVE, "busy": lib.XSKD_POLL_BUSY, "wakeup": lib.XSKD_POLL_WAKEUP}
DRAIN_SLICE = 0.005  # seconds
FOUND = ("waiting", "unsent", "skipped", "undone", "freed", "quarantined")  # struct xskd_adoption


class Forwarder:
    """A loop over bound sockets of one UMEM, whose port indices are 0, 1, ... in this order.

    `connect` joins sockets 0 and 1 both ways, `reflect` sends what arrives back out of the same socket with
    the Ethernet addresses swapped. `route` sends each packet out of the socket that the metadata in front of
    it names, one hop further; an XDP program has to put it there (struct xskd_route_meta). `counters` is a
    struct xskd_counters (a CounterPage's, or private memory), `control_fd` a descriptor whose input ends a
    run early. Raises XskError if the UMEM is one of unaligned frames: the loop finds a frame by a shift.
    """

    def __init__(
        self,
        sockets: Sequence[Socket],
        kind: Kind,
        *,
        poll: Poll = "adaptive",
        counters: Any = None,
        control_fd: int = -1,
    ) -> None:
        self.sockets = tuple(sockets)
        if any(member.umem.unaligned for member in self.sockets):
            raise XskError("Forwarder", key="umem", hint="unaligned frames are for receive and transmit only")
        self.counters = ffi.new("struct xskd_counters *") if counters is None else counters
        self._forward = ffi.new("struct xskd_forward *")
        self._forward.port_count = len(self.sockets)
        self._forward.action = ACTIONS[kind]
        self._forward.poll = POLLS[poll]
        self._forward.control_fd = control_fd
        self._forward.counters = self.counters
        self._tap: Tap | None = None
        for index, member in enumerate(self.sockets):
            self._forward.ports[index] = member.port
            self._forward.egress[index] = 1 - index if kind == "connect" else index

    def adopt(self) -> dict[str, int]:
        """Go on where another process stopped, also one that was killed between two instructions.

        The sockets have been adopted, the UMEM's record kept. Returns what was found, as counts: packets
        `waiting` in RX, frames `unsent` on TX, entries `skipped` because they had been worked off, frames of
        a batch `undone` (packets lost, counted as abandoned) and those `freed` that were held or on their way
        to FILL, frames `quarantined`. Raises XskError if the rings cannot be trusted.
        """
        found = ffi.new("struct xskd_adoption *")
        if error := lib.xskd_forward_adopt(self._forward, found):
            raise XskError(
                "adopt", errno=error, hint="the rings and the record of frames contradict each other"
            )
        return {name: getattr(found, name) for name in FOUND}

    def give_way(self) -> None:
        """No turn will be made any more: whoever waits in `has_way` may begin."""
        lib.xskd_yield(self.counters)

    def has_way(self) -> bool:
        """Has the worker that used these sockets before us given way?"""
        return bool(lib.xskd_yielded(self.counters))

    def tune(self, poll: Poll) -> None:
        """Wait another way from the next run on."""
        self._forward.poll = POLLS[poll]

    def copy_to(self, tap: Tap | None) -> None:
        """Copy packets from the next run on; None: no more. The tap must stay open meanwhile."""
        self._tap = tap  # the loop points into it
        self._forward.capture = ffi.NULL if tap is None else tap.struct

    def run(self, seconds: float) -> bool:
        """Forward for at most `seconds`. True if it ended early because there is input on `control_fd`.

        The GIL is released meanwhile. Raises XskError when a socket died, naming it; the others still work.
        """
        error = lib.xskd_forward_run(self._forward, int(seconds * 1e9))
        if error:
            dead = next((s for s in self.sockets if s.port.error), None)
            if dead is None:
                raise XskError("poll", errno=error)
            raise dead.died()
        for member in self.sockets:  # an idle socket makes no call that would fail
            member.probe()
        return bool(self._forward.control_ready)

    def drain(self, seconds: float) -> bool:
        """Forward until nothing is on its way any more, at most `seconds`. True if nothing is left.

        For stopping: the sockets must be out of the XSKMAP, else there is always more. Raises XskError.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.run(DRAIN_SLICE)
            self.publish()
            places = self.places()
            if not any(places[place] for place in ("rx", "held", "tx", "completion")) and not any(
                member.unsent for member in self.sockets
            ):
                return True
        return False

    def publish(self) -> int:
        """Count where every frame is and write it to the counters. Returns the frames unaccounted for: 0."""
        return int(lib.xskd_forward_publish(self._forward))

    def places(self) -> dict[str, int]:
        """Frames by place, as last published."""
        return dict(zip(PLACES, self.counters.frames_in, strict=True))

    def audit(self) -> int:
        """Compare every frame's owner with every ring. Returns the contradictions: 0. Slow, O(frames)."""
        return int(lib.xskd_forward_audit(self._forward))
