"""The terminal of `xskd top`: its own screen, keys without Enter, and everything as it was afterwards.

However this ends (a key, a signal, a bug), the terminal must be as it was found: its modes, its screen, its
cursor. The same while it is stopped by Ctrl-Z. Signals only leave a mark that wakes whoever waits for keys,
except those that end the process: they are exceptions, so that all is undone on the way out.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import tty
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Self

from rich.live import Live

NAMES = {
    **{"[A": "up", "OA": "up", "[B": "down", "OB": "down"},
    **{"[5~": "page up", "[6~": "page down"},
    **{"[H": "home", "OH": "home", "[1~": "home", "[F": "end", "OF": "end", "[4~": "end"},
}
KEY = re.compile(r"\x1b(\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)
PART = re.compile(r"\x1b(\[[0-9;]*|O)?$")  # of a key whose rest is still on its way


def is_usable() -> bool:
    """Are there keys to read and a screen to draw on?"""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def keys_in(typed: str) -> tuple[list[str], str]:
    """The keys in what was typed, and what may become one with what is typed next."""
    rest = part[0] if (part := PART.search(typed)) else ""
    whole = typed[: len(typed) - len(rest)]
    return [NAMES.get(key[1], "") if key[1] else key[0] for key in KEY.finditer(whole)], rest


class Terminal:
    """The terminal is ours from entering to leaving; `live` draws on it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._rest = ""
        self._stopping = self._interrupted = False

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._marks, mark = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, self._marks)
            undo.callback(os.close, mark)
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(mark, warn_on_full_buffer=False))
            for number, handler in (
                (signal.SIGTERM, self._end),
                (signal.SIGHUP, self._end),
                (signal.SIGINT, self._interrupt),
                (signal.SIGWINCH, self._nothing),
                (signal.SIGTSTP, self._stop),
            ):
                undo.callback(signal.signal, number, signal.signal(number, handler))
            self._before = termios.tcgetattr(sys.stdin)
            undo.callback(self._give_back)
            self._take()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def keys(self, seconds: float) -> list[str]:
        """What is pressed, after so many seconds at most; also returns, with nothing, when it was resized."""
        ready, _, _ = select.select([sys.stdin, self._marks], [], [], max(seconds, 0.0))
        if self._marks in ready:
            os.read(self._marks, 4096)
        if self._interrupted:
            return ["q"]
        if self._stopping:
            self._pause_process()
        if sys.stdin not in ready:
            return []
        typed = os.read(sys.stdin.fileno(), 4096)
        if not typed:  # the terminal is gone
            return ["q"]
        keys, self._rest = keys_in(self._rest + typed.decode(errors="replace"))
        return keys

    def _take(self) -> None:
        tty.setcbreak(sys.stdin, termios.TCSADRAIN)
        self._live.start()

    def _give_back(self) -> None:
        try:
            self._live.stop()
        finally:
            with suppress(termios.error):  # it is gone
                termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, self._before)

    def _pause_process(self) -> None:
        """Ctrl-Z: stop as every other program does; go on when the shell says so."""
        self._stopping = False
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._stop)
        self._take()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C is a key like q. As an exception it would be lost where Python can only print it."""
        self._interrupted = True

    def _nothing(self, number: int, frame: FrameType | None) -> None:
        """Being woken is enough."""

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)
