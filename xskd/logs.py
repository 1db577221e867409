"""Where log lines go: readable ones to a terminal, structured ones to the journal.

This module must never write to standard output: that belongs to the verbs of cli.py.
"""

from __future__ import annotations

import logging
import os
import sys

from systemd.journal import JournalHandler


def set_up(level: str) -> None:
    """Send what xskd logs at `level` (debug, info, warning, error) and above where a reader will look."""
    handler: logging.Handler
    if under_journal():
        handler = JournalHandler(SYSLOG_IDENTIFIER="xskd")
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("xskd")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(level.upper())


def under_journal() -> bool:
    """Is standard error connected to the journal? systemd says so by device and inode."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(stream.st_dev), str(stream.st_ino))
