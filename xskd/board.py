"""How rows look: columns of a fixed width, rings as bars, numbers in three digits, losses in red.

`xskd status`, `xskd top` and the demo draw the same columns. A line is never longer than the terminal: names
are shortened, and columns that do not fit are left out, the last first. This module must never ask anybody
anything and never prints: it makes lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.text import Text

from xskd.rates import RINGS, InterfaceRow, Level, PathRow, Picture, RuleRow, SocketRow

T = TypeVar("T")

EIGHTHS = " ▏▎▍▌▋▊▉█"
SHORTEST_NAME = 8  # columns that a name keeps where many others want to be seen
LOW, VERY_LOW, HIGH, VERY_HIGH = 0.25, 0.1, 0.7, 0.9  # levels of a ring that are to be looked at

REASONS = {
    "rx_dropped": "no frame on FILL, or too long for one",
    "rx_ring_full": "RX full: the worker is slower than the traffic",
    "tx_invalid_descs": "the kernel refused the TX descriptor: a bug",
    "undersize": "shorter than an Ethernet header",
    "oversize": "longer than the egress interface may send",
    "tx_full": "the egress TX ring stayed full",
    "tx_refused": "the egress driver refused it",
    "invalid": "an RX descriptor of no frame of ours: a bug",
    "fragments": "of several descriptors, too many or cut off",
    "no_metadata": "where it goes did not arrive with it",
    "abandoned": "its worker died, or its socket was given up",
}


@dataclass(frozen=True)
class Look:
    """What there is to draw on: `width` in columns; without `unicode` in ASCII only."""

    width: int
    unicode: bool = True

    @property
    def bar(self) -> int:
        """Columns of a bar."""
        return 5 if self.width < 110 else 10

    @property
    def dots(self) -> str:
        """Where something was left out."""
        return "…" if self.unicode else "~"


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column: at least as wide as its title and `width`. A name may be shortened, and keeps its end."""

    title: str
    cell: Callable[[T], str | Text]
    width: int = 0
    right: bool = True
    name: bool = False


# ---- numbers --------------------------------------------------------------------------------------


def short(number: float | None) -> str:
    """Three digits and a power of a thousand, at most five columns; - if it is unknown."""
    if number is None:
        return "-"
    if 0 < number < 0.95:
        return "<1"
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            digits = 0 if not unit or number >= 99.95 else 1 if number >= 9.995 else 2
            return f"{number:.{digits}f}{unit}"
        number /= 1000
    return ">999P"


def exact(count: int) -> str:
    """All digits."""
    return f"{count:,}"


def percent(share: float | None) -> str:
    """A share of 1."""
    return "-" if share is None else f"{share:.0%}"


def duration(seconds: float) -> str:
    """The two largest units of a time."""
    left = max(int(seconds), 0)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, size)
        parts += [f"{amount} {unit}"] if amount or parts or unit == "s" else []
    return " ".join(parts[:2])


def loss(number: float | None, text: str | None = None) -> Text:
    """An amount that should be 0."""
    return Text(short(number) if text is None else text, "bold red" if number else "")


def shortened(name: str, width: int, look: Look) -> str:
    """The end of a name, which tells queues and ports apart."""
    return name if len(name) <= width else look.dots + name[len(name) - width + 1 :] if width > 1 else ""


# ---- rings ----------------------------------------------------------------------------------------


def bar(ring: str, level: Level, look: Look) -> Text:
    """A level as a bar, with a mark at the most there was lately, if that is further on."""
    width = look.bar
    eighths = round(level.share * width * 8)
    if level.share and not eighths:
        eighths = 1  # not nothing
    whole, part = divmod(eighths, 8)
    if look.unicode:
        filled = EIGHTHS[8] * whole + (EIGHTHS[part] if part else "")
        empty, mark = "·", "┃"
    else:
        filled = "#" * (whole + (part > 0))
        empty, mark = ".", "|"
    text = Text().append(filled, _level_style(ring, level.share)).append(empty * (width - len(filled)), "dim")
    # FILL is full when all is well: the most it had says nothing.
    at = min(int(level.high_share * width), width - 1)
    if ring != "fill" and level.high and at >= len(filled):
        marked = Text(mark, _level_style(ring, level.high_share))
        text = text[:at] + marked + text[at + 1 :]
    return text


def _level_style(ring: str, share: float) -> str:
    """FILL must not run empty, the others not full."""
    if ring == "fill":
        return "red" if share <= VERY_LOW else "yellow" if share <= LOW else "green"
    return "red" if share >= VERY_HIGH else "yellow" if share >= HIGH else "green"


# ---- tables ---------------------------------------------------------------------------------------


def table(columns: Sequence[Column[T]], rows: Sequence[T], look: Look) -> list[Text]:
    """A line of titles and one per row; as many columns from the first as fit."""
    cells = [[_text(column.cell(row)) for row in rows] for column in columns]
    widths = [
        max(len(column.title), column.width, *(len(cell) for cell in column_cells), 0)
        for column, column_cells in zip(columns, cells, strict=True)
    ]
    count = _fitting(columns, widths, look.width)
    widths = _narrowed(columns[:count], widths[:count], look.width)
    titles = [Text(column.title, "bold") for column in columns]
    return [
        _line(columns[:count], widths, line, look)
        for line in (titles, *([column_cells[index] for column_cells in cells] for index in range(len(rows))))
    ]


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _fitting(columns: Sequence[Column[T]], widths: list[int], width: int) -> int:
    """How many columns fit, if names are shortened as far as they may be."""
    used = -1
    for count, (column, wanted) in enumerate(zip(columns, widths, strict=True)):
        used += 1 + (min(wanted, SHORTEST_NAME) if column.name else wanted)
        if used > width:
            return max(count, 1)
    return len(columns)


def _narrowed(columns: Sequence[Column[T]], widths: list[int], width: int) -> list[int]:
    """The widths, with the longest names shortened until the line fits."""
    names = [index for index, column in enumerate(columns) if column.name]
    widths = list(widths)
    while names and sum(widths) + len(widths) - 1 > width:
        longest = max(names, key=lambda index: widths[index])
        if widths[longest] <= 1:
            break
        widths[longest] -= 1
    return widths


def _line(columns: Sequence[Column[T]], widths: list[int], cells: Sequence[Text], look: Look) -> Text:
    line = Text()
    for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
        cell = cells[index]
        if column.name:
            cell = Text(shortened(cell.plain, width, look), cell.style)
        blank = " " * (width - len(cell))
        line.append(" " if index else "")
        line.append_text(Text(blank) + cell if column.right else cell + Text(blank))
    line.rstrip()
    return cut(line, look)


def cut(line: Text, look: Look) -> Text:
    """A line that fits, with dots at its end if it did not."""
    if len(line) <= look.width:
        return line
    return line[: look.width - 1] + Text(look.dots)


# ---- columns --------------------------------------------------------------------------------------


def _state(row: SocketRow) -> Text:
    return Text(row.state, "" if row.state == "forwarding" else "bold red")


def _mode(row: SocketRow) -> Text:
    """The mode in use; while there is none, or nobody works with it, the state in its place."""
    return Text(row.mode or "-") if row.state == "forwarding" else _state(row)


def _regime(name: str) -> Callable[[SocketRow], str]:
    return lambda row: percent(row.regimes.get(name) if row.regimes else None)


def _ring(ring: str, look: Look) -> Column[SocketRow]:
    title = "COMPL" if ring == "completion" else ring.upper()
    return Column(title, lambda row: bar(ring, row.rings[ring], look), look.bar, right=False)


WORKER: Column[SocketRow] = Column("WORKER", lambda row: row.worker, right=False, name=True)
PORT: Column[SocketRow] = Column("PORT", lambda row: row.port, right=False, name=True)
STATE: Column[SocketRow] = Column("STATE", _state, 10, right=False)
MODE: Column[SocketRow] = Column("MODE", lambda row: row.mode or "-", 4, right=False)
STATE_OR_MODE: Column[SocketRow] = Column("MODE", _mode, right=False)
PACKET_RATES: tuple[Column[SocketRow], ...] = (
    Column("RX/s", lambda row: short(row.rx), 5),
    Column("TX/s", lambda row: short(row.tx), 5),
    Column("LOST/s", lambda row: loss(row.losing_packets)),
)
BIT_RATES: tuple[Column[SocketRow], ...] = (
    Column("RX bps", lambda row: short(row.rx_bits)),
    Column("TX bps", lambda row: short(row.tx_bits)),
)
TOTALS: tuple[Column[SocketRow], ...] = (
    Column("LOST", lambda row: loss(row.lost_packets, exact(row.lost_packets))),
    Column("RX PACKETS", lambda row: exact(row.rx_packets)),
    Column("TX PACKETS", lambda row: exact(row.tx_packets)),
    Column("BY NIC", lambda row: loss(row.nic, exact(row.nic))),
)
LOOP: tuple[Column[SocketRow], ...] = (
    Column("WAKE/s", lambda row: short(row.wakeups)),
    Column("PK/WAKE", lambda row: short(row.packets_per_wakeup)),
    Column("WORK", _regime("working")),
    Column("SPIN", _regime("spinning")),
    Column("SLEEP", _regime("sleeping")),
    Column("WAKE", _regime("waking")),
    Column("DIED", lambda row: loss(row.restarts, exact(row.restarts))),
)
VIEWS = ("rings", "totals", "loop")


def status_columns(look: Look) -> list[Column[SocketRow]]:
    """Of a picture that is looked at once."""
    return [WORKER, PORT, STATE, MODE, *PACKET_RATES, *BIT_RATES, *TOTALS, *_rings(look), *LOOP]


def top_columns(look: Look, view: str = "rings") -> list[Column[SocketRow]]:
    """Of a picture that moves; `view` comes first of what may not fit."""
    groups = {"rings": (*_rings(look), *BIT_RATES), "totals": TOTALS, "loop": LOOP}
    chosen = groups.pop(view)
    others = [column for group in groups.values() for column in group]
    return [WORKER, PORT, STATE_OR_MODE, *PACKET_RATES, *chosen, *others]


def _rings(look: Look) -> tuple[Column[SocketRow], ...]:
    return tuple(_ring(ring, look) for ring in RINGS)


PATHS: tuple[Column[PathRow], ...] = (
    Column("PATH", lambda row: row.name, right=False, name=True),
    Column("KIND", lambda row: row.kind or "-", right=False),
    Column("QUEUES", lambda row: _of(row.forwarding, row.queues)),
    Column("MODE", lambda row: "+".join(row.modes) or "-", right=False),
    Column("RX/s", lambda row: short(row.rx), 5),
    Column("TX/s", lambda row: short(row.tx), 5),
    Column("LOST/s", lambda row: loss(row.losing)),
    Column("LOST", lambda row: loss(row.lost, exact(row.lost))),
)


def _of(some: int, whole: int) -> Text:
    return Text(f"{some}/{whole}", "" if some == whole and whole else "bold red")


def _link(row: InterfaceRow) -> Text:
    picture = row.picture
    if not picture.get("up", True):
        return Text("down" if picture["queues"] else "missing", "bold red")
    return Text("up") if picture["carrier"] else Text("no carrier", "bold red")


INTERFACES: tuple[Column[InterfaceRow], ...] = (
    Column("INTERFACE", lambda row: row.picture["name"], right=False, name=True),
    Column("PATH", lambda row: row.picture["path"], right=False, name=True),
    Column("XDP", lambda row: row.picture["attach"] or Text("none", "bold red"), right=False),
    Column("LINK", _link, right=False),
    Column("QUEUES", lambda row: str(row.picture["queues"])),
    Column("PASSED/s", lambda row: short(row.passing)),
    Column("DROPPED/s", lambda row: loss(row.dropping)),
    Column("PASSED", lambda row: exact(row.passed)),
    Column("DROPPED", lambda row: loss(row.dropped, exact(row.dropped))),
    Column("RX DROPPED", lambda row: exact(sum(row.picture.get("rx_dropped", {}).values()))),
    Column("EXPRESS", lambda row: row.picture.get("lane", "-"), right=False),
    Column("DRIVER", lambda row: row.picture.get("driver") or "-", right=False),
)

MATCH_LEAST = 12  # columns; below that, others are left out


def rule_columns(look: Look) -> list[Column[RuleRow]]:
    """Of the rules; the match has what the counts leave."""

    def match(row: RuleRow) -> str:
        room = max(look.width - RULE_COUNTS, MATCH_LEAST)
        return row.match if len(row.match) <= room else row.match[: room - 1] + look.dots

    return [
        Column("INTERFACE", lambda row: row.interface, right=False, name=True),
        Column("RULE", lambda row: str(row.position or "-")),
        Column("NAME", lambda row: row.name, right=False, name=True),
        Column("MATCH", match, right=False),
        Column("VERDICT", lambda row: row.verdict, right=False),
        Column("PACKETS/s", lambda row: short(row.matching)),
        Column("PACKETS", lambda row: _count(row.packets)),
        Column("LIMITED", lambda row: _count(row.limited)),
        Column("LIMITED/s", lambda row: short(row.limiting)),
        Column("BYTES", lambda row: _count(row.bytes)),
        Column("bps", lambda row: short(row.bits)),
    ]


RULE_COUNTS = 100  # columns that they take where counts are long


def _count(count: int | None) -> str:
    return "-" if count is None else exact(count)


# ---- what is wrong --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossRow:
    """Packets of one socket lost for one reason, since the start and per second."""

    port: str
    reason: str
    count: int
    rate: float | None


LOSSES: tuple[Column[LossRow], ...] = (
    Column("PORT", lambda row: row.port, right=False, name=True),
    Column("LOST", lambda row: loss(row.count, exact(row.count))),
    Column("LOST/s", lambda row: loss(row.rate)),
    Column("REASON", lambda row: row.reason, right=False),
    Column("WHICH MEANS", lambda row: REASONS.get(row.reason, ""), right=False),
)


def losses(rows: Sequence[SocketRow]) -> list[LossRow]:
    """Every loss there was, what goes on first."""
    made = [
        LossRow(row.port, reason, count, None if row.losing is None else row.losing.get(reason, 0.0))
        for row in rows
        for reason, count in row.lost.items()
    ]
    return sorted(made, key=lambda row: (-(row.rate or 0.0), -row.count))


def losing(row: SocketRow, look: Look) -> Text | None:
    """A line on what a socket loses now and why; None if nothing."""
    if not row.losing:
        return None
    worst = sorted(row.losing.items(), key=lambda item: -item[1])
    said = ", ".join(f"{short(rate)}/s {reason} ({REASONS.get(reason, '')})" for reason, rate in worst)
    return cut(Text(f"  {said}", "red"), look)


def is_well(picture: Picture) -> bool:
    """Does all forward as configured? What is not well stands after a semicolon, see status.describe()."""
    return bool(picture["ready"]) and ";" not in picture["text"]


def troubles(picture: Picture) -> list[tuple[str, str]]:
    """What is wrong beside lost packets: of what, and what it is."""
    made = [("configuration not loaded", line) for line in (picture["config_error"] or "").splitlines()]
    made += [(f"{path} waits", text) for path, texts in picture["waiting"].items() for text in texts]
    for worker in picture["workers"]:
        name, counters = worker["name"], worker["counters"]
        if worker["last_error"] and worker["path"] not in picture["waiting"]:
            made.append((name, " ".join(worker["last_error"].split())))
        if counters["frames_unaccounted"]:
            made.append((name, f"{counters['frames_unaccounted']:,} frames unaccounted for: a bug"))
        if counters["frames_in"]["quarantined"]:
            made.append((name, f"{counters['frames_in']['quarantined']:,} frames quarantined"))
        for port in worker["ports"]:
            made += _lies(port)
    for interface in picture["interfaces"]:
        if interface.get("queues_without_socket"):
            made.append((interface["name"], f"{interface['queues_without_socket']} queues without a socket"))
        if interface.get("lane") in ("unsupported", "zerocopy"):
            made.append(
                (interface["name"], f"express lane closed: {interface['lane']}; its packets go by socket")
            )
        if interface.get("foreign_program"):
            made.append((interface["name"], "has an XDP program that is not of xskd"))
    return made


def _lies(port: dict[str, Any]) -> list[tuple[str, str]]:
    """What kernel and worker told each other in a socket's rings that cannot be."""
    where, counters = f"{port['interface']}:{port['queue']}", port["counters"]
    corrupt = counters.get("ring_corrupt", {})
    made = [f"{ring} ring corrupt, {times:,} times: a bug" for ring, times in corrupt.items() if times]
    if port["kernel"]["rx_invalid_descs"]:
        made.append(f"{port['kernel']['rx_invalid_descs']:,} FILL entries refused: a bug")
    if counters["completion_invalid"]:
        made.append(f"{counters['completion_invalid']:,} false completions: a bug")
    return [(where, text) for text in made]
