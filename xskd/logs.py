"""Where log lines go: readable ones to a terminal, ones with fields to the journal, floods to neither.

Every line about a worker, a queue or an interface carries that as fields (`about`), so that `journalctl
XSKD_QUEUE=3` finds them without matching text. A warning that repeats, as for a link that flaps, is said
once a second, with how often it was left out; no count is ever lost, and no change of state (info) is ever
left out. This module must never write to standard output: that belongs to the verbs of cli.py.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass

from systemd.journal import JournalHandler, send

FIELDS = ("XSKD_WORKER", "XSKD_PATH", "XSKD_QUEUE", "XSKD_INTERFACE")  # what a line is about
PAUSE = 1.0  # seconds between two warnings of one kind about one thing
# `extra=about(...) | EVERY`: never left out, for what cannot become a flood since its maker paces it himself.
EVERY = {"xskd_every": "yes"}
ONLY_ARGUMENTS = re.compile(r"(%[sdr]|\W)*")  # a template that does not say of what kind its lines are

Kind = tuple[object, ...]


def set_up(level: str) -> None:
    """Send what xskd logs at `level` (debug, info, warning, error) and above where a reader will look.

    May be called again, to change the level.
    """
    flush(everything=True)
    logging.raiseExceptions = False  # a line that cannot be written is no reason to write thirty more
    sys.unraisablehook = _unraisable
    handler: logging.Handler
    if under_journal():
        handler = Journal()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    handler.addFilter(_limit)
    root = logging.getLogger("xskd")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(level.upper())
    atexit.unregister(_end)
    atexit.register(_end)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Say in a line what went wrong where nobody can be told, as in a destructor; Python has a traceback."""
    logging.getLogger("xskd").warning("an object that went away complains: %r", found.exc_value)


def about(
    *,
    worker: str | None = None,
    path: str | None = None,
    queue: int | None = None,
    interface: str | None = None,
    errno: int | None = None,
) -> dict[str, str]:
    """What a line is about: `log.warning("...", extra=about(worker="wire/3"))`.

    A worker's name says its path and its queue too.
    """
    fields: dict[str, str] = {}
    if worker is not None:
        fields["XSKD_WORKER"] = worker
        of, _, number = worker.rpartition("/")
        if of and number.isdigit():
            fields |= {"XSKD_PATH": of, "XSKD_QUEUE": number}
    given = {"XSKD_PATH": path, "XSKD_QUEUE": queue, "XSKD_INTERFACE": interface, "ERRNO": errno}
    return fields | {name: str(value) for name, value in given.items() if value is not None}


def flush(*, everything: bool = False) -> None:
    """Say what a flood that has ended left out. For the daemon's tick; `everything` does not wait for it."""
    for record in _limit.overdue(everything=everything):
        for handler in logging.getLogger("xskd").handlers:
            handler.acquire()
            try:
                handler.emit(record)
            finally:
                handler.release()


def _end() -> None:
    """Say what is left. A log that takes nothing more is no reason to exit otherwise than in order.

    Python keeps what it could not write, tries again when it ends, and has an exit status (120) for that.
    """
    flush(everything=True)
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def under_journal() -> bool:
    """Is standard error connected to the journal? systemd says so by device and inode."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(stream.st_dev), str(stream.st_ino))


class Journal(logging.Handler):
    """Sends a record to the journal: its text, where it comes from, what it is about, and nothing else.

    JournalHandler's own emit adds every attribute of the record as a field (ARGS, MSG, MSECS ...).
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Send it. What goes wrong is logging's to tell, on standard error."""
        try:
            fields = {name: vars(record)[name] for name in (*FIELDS, "ERRNO") if name in vars(record)}
            send(
                self.format(record),
                SYSLOG_IDENTIFIER="xskd",
                PRIORITY=str(JournalHandler.map_priority(record.levelno)),
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName,
                **fields,
            )
        except Exception:  # as every handler of the library does
            self.handleError(record)


@dataclass
class Flood:
    """What was said of one kind of warning, and what was not."""

    said: float  # when last
    left_out: int = 0  # since then
    latest: logging.LogRecord | None = None  # of those


class Limit(logging.Filter):
    """Lets one warning per PAUSE through for each kind: the same template about the same thing.

    The next one that passes says how many did not. If none follows, `overdue` has the latest of them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._floods: dict[Kind, Flood] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to say it now; the text may get a count."""
        if record.levelno < logging.WARNING or EVERY.keys() <= vars(record).keys():
            return True
        now, kind = self._clock(), _kind(record)
        flood = self._floods.get(kind)
        if flood is not None and now - flood.said < PAUSE:
            flood.left_out, flood.latest = flood.left_out + 1, record
            return False
        if flood is not None and flood.left_out:
            _add_count(record, flood.left_out)
        self._floods[kind] = Flood(now)
        return True

    def overdue(self, *, everything: bool = False) -> Iterator[logging.LogRecord]:
        """The latest of each kind that was left out and had no successor for a PAUSE, with the count."""
        now = self._clock()
        for kind, flood in list(self._floods.items()):
            if now - flood.said < PAUSE and not everything:
                continue
            if flood.latest is None:
                del self._floods[kind]
                continue
            self._floods[kind] = Flood(now)
            record = copy(flood.latest)
            if flood.left_out > 1:
                _add_count(record, flood.left_out - 1)
            yield record


def _kind(record: logging.LogRecord) -> Kind:
    text = str(record.msg)
    if ONLY_ARGUMENTS.fullmatch(text):
        text = record.getMessage()
    return text, *(vars(record).get(name) for name in FIELDS)


def _add_count(record: logging.LogRecord, count: int) -> None:
    record.msg, record.args = f"{record.getMessage()}; {count} more like this left out", None


_limit = Limit()
