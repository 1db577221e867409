"""How many clients were turned away, of the control socket and of `/metrics`.

Both serve a bounded number at once, each for a bounded time; who is left out is told nothing but a closed
connection, and that it happened is counted here, by whom it concerns and why. The supervisor's loop and the
threads of the metrics endpoint both count.
"""

from __future__ import annotations

import threading
from typing import Literal

Listener = Literal["control", "metrics"]
Reason = Literal["busy", "slow"]  # more at once than are served; did not ask, or take its answer, in time

LISTENERS: tuple[Listener, ...] = ("control", "metrics")
REASONS: tuple[Reason, ...] = ("busy", "slow")


class Refusals:
    """The counts; they begin at 0 with the daemon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, int]] = {
            listener: {reason: 0 for reason in REASONS} for listener in LISTENERS
        }

    def count(self, listener: Listener, reason: Reason) -> None:
        """One more."""
        with self._lock:
            self._counts[listener][reason] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """By listener and reason, as they are now."""
        with self._lock:
            return {listener: dict(by_reason) for listener, by_reason in self._counts.items()}
