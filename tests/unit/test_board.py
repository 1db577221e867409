"""What is drawn: numbers, bars, and tables that fit whatever they are drawn on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pictures import interface, picture, port, rule, worker
from rich.console import Console

from xskd import board, rates, show
from xskd.board import Look
from xskd.rates import Level


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.4, "<1"),
        (0.97, "1"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (12_345, "12.3k"),
        (999_600, "1.00M"),
        (14_880_952, "14.9M"),
        (2**64, ">999P"),
    ],
)
def test_numbers_are_three_digits(number: float | None, text: str) -> None:
    assert board.short(number) == text


@given(some.floats(0, 1e30))
def test_no_number_needs_more_than_five_columns(number: float) -> None:
    assert 1 <= len(board.short(number)) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.9, "59 s"), (3_600, "1 h 0 min"), (200_000, "2 d 7 h")]
)
def test_times_have_two_units(seconds: float, text: str) -> None:
    assert board.duration(seconds) == text


# ---- rings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "drawn", "ascii_drawn"),
    [
        (Level(0, 1000, None), "·····", "....."),
        (Level(1, 1000, None), "▏····", "#...."),
        (Level(500, 1000, 500), "██▌··", "###.."),
        (Level(200, 1000, 700), "█··┃·", "#..|."),
        (Level(200, 1000, 1000), "█···┃", "#...|"),
        (Level(1000, 1000, 1000), "█████", "#####"),
        (Level(2000, 1000, 0), "█████", "#####"),
    ],
)
def test_a_ring_is_a_bar_with_a_mark_at_the_most_it_had(level: Level, drawn: str, ascii_drawn: str) -> None:
    assert board.bar("rx", level, Look(80)).plain == drawn
    assert board.bar("rx", level, Look(80, unicode=False)).plain == ascii_drawn


@pytest.mark.parametrize(
    ("ring", "entries", "colour"),
    [
        *(("fill", 1000, "green"), ("fill", 200, "yellow"), ("fill", 50, "red")),
        *(("rx", 50, "green"), ("rx", 800, "yellow"), ("tx", 950, "red"), ("completion", 950, "red")),
    ],
)
def test_fill_must_not_run_empty_and_the_others_not_full(ring: str, entries: int, colour: str) -> None:
    assert board.bar(ring, Level(entries, 1000, None), Look(80)).spans[0].style == colour


# ---- tables ---------------------------------------------------------------------------------------

NAMES = some.text("abcdefghij0123456789.-", min_size=1, max_size=15)


@given(some.lists(some.tuples(NAMES, NAMES, some.integers(0, 2**64)), max_size=4), some.integers(20, 250))
def test_no_line_is_longer_than_the_terminal(sockets: list[tuple[str, str, int]], width: int) -> None:
    workers = [
        worker(index, port(name, index, counts={"rx_packets": count, "tx_full": count}), path=path)
        for index, (path, name, count) in enumerate(sockets)
    ]
    now, look = picture(*workers), Look(width)
    rows = rates.socket_rows(now, picture(), 1.0)
    for columns in (board.status_columns(look), *(board.top_columns(look, view) for view in board.VIEWS)):
        lines = board.table(columns, rows, look)
        assert len(lines) == 1 + len(rows)
        assert max(len(line) for line in lines) <= width
        assert all("\n" not in line.plain for line in lines)
    assert all(len(line) <= width for line in board.table(board.LOSSES, board.losses(rows), look))
    assert all(len(line) <= width for line in board.table(board.PATHS, rates.path_rows(now, rows), look))


def test_names_that_do_not_fit_keep_their_end() -> None:
    look = Look(80)
    rows = rates.socket_rows(picture(worker(12, port("enp129s0f0npf1", 12), path="backbone-east-2")))
    _, line = board.table(board.top_columns(look), rows, look)
    first, second, *_ = line.plain.split()
    assert first.startswith("…") and first.endswith("/12")
    assert second.startswith("…") and second.endswith("f1:12")


def test_a_wider_terminal_shows_more() -> None:
    rows = rates.socket_rows(picture(worker(0, port())))
    titles = [board.table(board.status_columns(Look(w)), rows, Look(w))[0].plain.split() for w in (80, 250)]
    assert titles[0] == titles[1][: len(titles[0])]
    assert {"LOST/s", "RX/s", "bps"} <= set(titles[0])
    assert {"FILL", "WAKE/s", "DIED"} <= set(titles[1]) - set(titles[0])


# ---- the screen of `xskd status` ------------------------------------------------------------------


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(
        show, "open_console", lambda: Console(file=out, width=80, force_terminal=True, color_system=None)
    )
    return out


def rows_of(out: io.StringIO) -> list[str]:
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_status_names_every_loss_with_its_reason_and_what_is_wrong(screen: io.StringIO) -> None:
    def at(count: int, **more: Any) -> dict[str, Any]:
        return picture(
            worker(0, port(counts={"rx_ring_full": 7 * count, "rx_packets": 90 * count}), port("eth2")),
            worker(1, port(queue=1), state="backoff", last_error="bind(eth1 queue 1): EBUSY"),
            **more,
        )

    reloads = {"generation": 3, "success": 2, "failure": 1, "last": 1e6, "last_successful": False}
    show.status(at(10, waiting={"late": ["eth7 is missing"]}, reloads=reloads), at(5), 0.5)
    rows = rows_of(screen)
    assert any(row.startswith("wire/0 eth1:0 forwarding copy 900 0 70 ") for row in rows)
    assert any(row.startswith("wire/1 eth1:1 backoff ") for row in rows)
    assert "eth1:0 70 70 rx_ring_full RX full: the worker is slower than the traffic" in rows
    assert "wire/1: bind(eth1 queue 1): EBUSY" in rows
    assert "late waits: eth7 is missing" in rows
    assert any(row.startswith("configuration: as in the file, generation 3; the reload of ") for row in rows)
    assert max(len(line) for line in screen.getvalue().splitlines()) <= 80


def test_rules_are_a_line_each_and_the_default_comes_last(screen: io.StringIO) -> None:
    def at(count: int) -> dict[str, Any]:
        first = rule(
            "dns", 90 * count, 900 * count, 7 * count, match="protocol udp destination_port 53-5353,9999"
        )
        rules = [first, rule("default", 9, match="", verdict="pass")]
        return picture(interfaces=[interface(rules=rules), interface("eth2")])

    show.rules(at(10), at(5), 0.5)
    titles, dns, default, other = rows_of(screen)
    assert titles.startswith("INTERFACE RULE NAME MATCH VERDICT PACKETS/s PACKETS LIMITED")
    assert dns.startswith("eth1 1 dns protocol ud… drop 900 900 70")
    assert default.startswith("eth1 - default pass 0 9 0")
    assert other.startswith("eth2 - default redirect - - -")


def test_a_wider_terminal_shows_more_of_a_match() -> None:
    (row, _) = rates.rule_rows(
        picture(interfaces=[interface(rules=[rule("a", match="x" * 500), rule("default")])])
    )
    cells = {
        width: board.table(board.rule_columns(Look(width)), [row], Look(width))[1].plain
        for width in (80, 200)
    }
    assert cells[80].count("x") < cells[200].count("x") < 200
    assert all(len(line) <= width for width, line in cells.items())


def test_a_lane_that_cannot_be_had_is_a_trouble_and_a_capture_is_none() -> None:
    def said(lane: str) -> list[str]:
        return [where for where, _ in board.troubles(picture(interfaces=[interface(lane=lane)]))]

    assert (said("unsupported"), said("zerocopy")) == (["eth1"], ["eth1"])
    assert said("capture") == said("open") == said("off") == said("waiting") == []


def test_status_without_losses_says_so(screen: io.StringIO) -> None:
    show.status(picture(worker(0, port(counts={"tx_ring_empty_descs": 9, "rx_fill_ring_empty_descs": 9}))))
    assert "no packet lost" in rows_of(screen)


def test_what_is_no_loss_but_wrong_is_named() -> None:
    counters = worker()["counters"] | {"frames_unaccounted": 2, "frames_in": {"quarantined": 1}}
    one = port(counts={"rx_invalid_descs": 3, "completion_invalid": 4})
    one["counters"]["ring_corrupt"] = {"fill": 0, "rx": 2}
    bad = {"queues_without_socket": 5, "foreign_program": True, "name": "eth1"}
    now = picture(worker(0, one, counters=counters))
    now["interfaces"] = [now["interfaces"][0] | bad]
    now["config_error"] = "x.yaml:1: one\nx.yaml:2: two"
    said = [f"{where}: {what}" for where, what in board.troubles(now)]
    assert [line.split()[:4] for line in said] == [
        ["configuration", "not", "loaded:", "x.yaml:1:"],
        ["configuration", "not", "loaded:", "x.yaml:2:"],
        ["wire/0:", "2", "frames", "unaccounted"],
        ["wire/0:", "1", "frames", "quarantined"],
        ["eth1:0:", "rx", "ring", "corrupt,"],
        ["eth1:0:", "3", "FILL", "entries"],
        ["eth1:0:", "4", "false", "completions:"],
        ["eth1:", "5", "queues", "without"],
        ["eth1:", "has", "an", "XDP"],
    ]
    assert board.troubles(picture(worker(0, port()))) == []
