"""A booted machine (lab.machine) for a test, which is skipped where there can be none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.machine import QUEUES, ROOT, XSKD, Lacking, Machine, eventually
from lab.machine import booted as boot

__all__ = ["QUEUES", "ROOT", "XSKD", "Machine", "booted", "eventually"]


@contextmanager
def booted() -> Iterator[Machine]:
    """Boot a machine that is ready to start xskd; skips the test where that cannot be."""
    try:
        with boot("xskd-system") as machine:
            yield machine
    except Lacking as reason:
        pytest.skip(str(reason))
