"""`xskd top`: the daemon as it works, redrawn every second, with keys to sort, to pause and to scroll.

Top is what is on the screen: it takes pictures and keys and gives lines, and knows no terminal; `live` and
`batch` feed it. A daemon that goes away is told and waited for, for ever; only the reader ends this. It must
cost the daemon no more than one question a refresh.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from xskd import board, rates, show
from xskd.errors import XskdError
from xskd.rates import SocketRow
from xskd.terminal import Terminal

FIRST_SECONDS = 0.3  # between the first two pictures: rates soon, if not exact
MAX_TROUBLES = 3  # lines; `xskd status` has all

SORTS = {"worst loss": rates.by_loss, "most received": rates.by_rate, "name": rates.by_name}
HELP = """\
  q            quit
  p, space     pause, go on
  s            sort by the next of: worst loss, most received, name
  r            the other way round
  v            put first the next of what may not fit: rings, totals, loop
  j k, arrows, Page Up, Page Down, Home, End
               scroll
  ?            this page, and back

  RX/s TX/s    packets per second taken from RX and put on TX; bps: bits
  LOST/s       packets lost, by xskd or by the kernel before it; below it why.
               LOST: since the start. BY NIC: in the NIC, maybe the same packets
  FILL RX TX COMPL
               how full the rings are. FILL should be full, the others empty;
               the mark is the most there was lately
  WAKE/s       system calls that ask the kernel to look at a ring
  PK/WAKE      packets moved for each of them
  WORK SPIN SLEEP WAKE
               what the worker spends its time on; WAKE: in those calls
  DIED         how often its process died"""

Ask = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A picture, its rows, and when it was made, in seconds since the epoch."""

    picture: dict[str, Any]
    rows: list[SocketRow]
    when: float


class Top:
    """The screen's state, from a first picture on. `ended`: the reader wants to leave.

    `at` is when a picture was made, in seconds of a clock that only goes forward.
    """

    def __init__(self, picture: dict[str, Any], at: float) -> None:
        self.ended = False
        self._sort, self._view = next(iter(SORTS)), board.VIEWS[0]
        self._reverse = self._paused = self._help = False
        self._missing = ""  # why there is no newer picture
        self._first, self._page = 0, 1  # the first row on the screen, and how many fit
        self._picture, self._at = picture, at
        self._latest = self._shown = Shown(picture, rates.socket_rows(picture), time.time())

    # ---- what comes in --------------------------------------------------------------------------

    def take(self, picture: dict[str, Any], at: float) -> None:
        """A newer picture."""
        before = None if self._missing else self._picture
        rows = rates.socket_rows(picture, before, at - self._at)
        self._picture, self._at, self._missing = picture, at, ""
        self._show(Shown(picture, rows, time.time()))

    def lose(self, why: str) -> None:
        """There is none: what was last known stays, without rates."""
        if not self._missing:
            self._show(replace(self._latest, rows=rates.socket_rows(self._picture)))
        self._missing = why.splitlines()[0]

    def press(self, key: str) -> None:
        """One key; those that mean nothing do nothing."""
        match key:
            case "q" | "Q":
                self.ended = True
            case "?" | "h":
                self._help = not self._help
            case "p" | " ":
                self._paused = not self._paused
                self._show(self._latest)
            case "s":
                self._sort = _next(tuple(SORTS), self._sort)
            case "v":
                self._view = _next(board.VIEWS, self._view)
            case "r":
                self._reverse = not self._reverse
            case _:
                self._scroll(key)

    def _scroll(self, key: str) -> None:
        far = len(self._shown.rows)
        steps = {"j": 1, "down": 1, "page down": self._page, "end": far}
        steps |= {"k": -1, "up": -1, "page up": -self._page, "home": -far}
        self._first += steps.get(key, 0)

    def _show(self, latest: Shown) -> None:
        self._latest = latest
        if not self._paused:
            self._shown = latest

    # ---- what goes out --------------------------------------------------------------------------

    def lines(self, look: board.Look, height: int) -> list[Text]:
        """The whole screen."""
        if self._help:
            return _filled(HELP.splitlines(), height, "? back  q quit", look)
        head = [*self._head(look), Text()]
        titles, rows = self._table(look)
        body = self._visible(rows, max(height - len(head) - 2, 1))
        return _filled([*head, titles, *body], height, self._keys(), look)

    def page(self, look: board.Look) -> list[Text]:
        """All of it, for paper: every row, and no keys."""
        titles, rows = self._table(look)
        return [*self._head(look), Text(), titles, *(line for row in rows for line in row)]

    def _head(self, look: board.Look) -> list[Text]:
        picture, when = self._shown.picture, self._shown.when
        title = Text(f"xskd {picture['version']}, up {board.duration(when - picture['started'])}: ")
        title.append(picture["text"], "green" if board.is_well(picture) else "bold red")
        lines = [title, _sums(time.strftime("%H:%M:%S", time.localtime(when)), self._shown.rows)]
        if self._missing:
            lines.append(Text(f"{self._missing}; asking again", "bold red"))
        if self._paused:
            lines.append(Text("paused; p goes on", "reverse"))
        troubles = board.troubles(picture)
        lines += [Text(f"{where}: {what}", "red") for where, what in troubles[:MAX_TROUBLES]]
        if len(troubles) > MAX_TROUBLES:
            lines.append(Text(f"and {len(troubles) - MAX_TROUBLES} more, see xskd status", "red"))
        return [board.cut(line, look) for line in lines]

    def _table(self, look: board.Look) -> tuple[Text, list[list[Text]]]:
        """The titles, and for each row its line and what it loses."""
        rows = sorted(self._shown.rows, key=SORTS[self._sort], reverse=self._reverse)
        titles, *lines = board.table(board.top_columns(look, self._view), rows, look)
        losing = (board.losing(row, look) for row in rows)
        return titles, [[line, *([why] if why else [])] for line, why in zip(lines, losing, strict=True)]

    def _visible(self, rows: list[list[Text]], height: int) -> list[Text]:
        """The rows that fit, from `_first` on, which is never so far that lines stay empty."""
        last = len(rows) - _fitting(rows[::-1], height)
        self._first = max(0, min(self._first, last))
        self._page = max(_fitting(rows[self._first :], height), 1)
        return [line for row in rows[self._first : self._first + self._page] for line in row]

    def _keys(self) -> str:
        count = len(self._shown.rows)
        where = f"{self._first + 1}-{min(self._first + self._page, count)} of {count}" if count else "none"
        return f"q quit  p pause  s {self._sort}  r reverse  v {self._view}  ? help  rows {where}"


def _sums(clock: str, rows: list[SocketRow]) -> Text:
    """What all sockets do together."""
    text = Text(clock)
    for word, packets, bits in (
        ("RX", rates.total(row.rx for row in rows), rates.total(row.rx_bits for row in rows)),
        ("TX", rates.total(row.tx for row in rows), rates.total(row.tx_bits for row in rows)),
    ):
        text.append(f"  {word} {board.short(packets)}/s {board.short(bits)}bps")
    losing, lost = rates.total(row.losing_packets for row in rows), sum(row.lost_packets for row in rows)
    text.append("  lost ").append_text(board.loss(losing)).append("/s, ")
    return text.append_text(board.loss(lost, board.exact(lost))).append(" in all")


def _fitting(rows: list[list[Text]], height: int) -> int:
    """How many rows fit, from the first."""
    for count, row in enumerate(rows):
        height -= len(row)
        if height < 0:
            return count
    return len(rows)


def _filled(lines: Sequence[str | Text], height: int, foot: str, look: board.Look) -> list[Text]:
    """A screen of exactly this height, with a last line of its own."""
    texts = [board.cut(line if isinstance(line, Text) else Text(line), look) for line in lines][: height - 1]
    blank = [Text()] * (height - 1 - len(texts))
    return [*texts, *blank, board.cut(Text(foot.ljust(look.width), "reverse"), look)]


def _next(words: tuple[str, ...], word: str) -> str:
    return words[(words.index(word) + 1) % len(words)]


# ---- who feeds it -----------------------------------------------------------------------------------


def live(ask: Ask, seconds: float) -> None:
    """On a terminal, until the reader leaves. XskdError if no daemon answers the first time."""
    console = Console(highlight=False)
    top = Top(ask(), time.monotonic())
    due = time.monotonic() + min(seconds, FIRST_SECONDS)
    drawing = Live(console=console, screen=True, auto_refresh=False)
    with suppress(KeyboardInterrupt), Terminal(drawing) as terminal:
        while not top.ended:
            lines = top.lines(show.look_of(console), console.height)
            drawing.update(Group(*lines), refresh=True)
            for key in terminal.keys(due - time.monotonic()):
                top.press(key)
            if time.monotonic() >= due:
                _ask_again(top, ask)
                due = time.monotonic() + seconds


def batch(ask: Ask, seconds: float, times: int) -> None:
    """As text, so many times. XskdError if no daemon answers the first time."""
    console = show.open_console()
    top = Top(ask(), time.monotonic())
    for number in range(times):
        time.sleep(seconds if number else min(seconds, FIRST_SECONDS))
        _ask_again(top, ask)
        if number:
            console.print()
        for line in top.page(show.look_of(console)):
            console.print(line, no_wrap=True, crop=True)


def _ask_again(top: Top, ask: Ask) -> None:
    try:
        top.take(ask(), time.monotonic())
    except XskdError as error:
        top.lose(str(error))
