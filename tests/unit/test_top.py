"""The screen of `xskd top` without a terminal: what pictures and keys make of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pictures import picture, port, worker

from xskd import top
from xskd.board import Look
from xskd.terminal import keys_in
from xskd.top import Top

SMALL, LARGE = (Look(80), 24), (Look(200), 60)


def at(second: int, queues: int = 2, **more: Any) -> dict[str, Any]:
    """Queue q receives 1000 (q + 1) packets a second; queue 1 also loses."""
    return picture(
        *(
            worker(
                index,
                port("eth1", index, counts={"rx_packets": 1_000 * (index + 1) * second}),
                port("eth2", index, counts={"tx_full": 50 * second if index == 1 else 0}),
            )
            for index in range(queues)
        ),
        **more,
    )


def begun(queues: int = 2) -> Top:
    """A screen that has had two pictures, a second apart."""
    made = Top(at(1, queues), 1.0)
    made.take(at(2, queues), 2.0)
    return made


def text(made: Top, screen: tuple[Look, int] = SMALL) -> list[str]:
    """The lines, with one blank between words."""
    return [" ".join(line.plain.split()) for line in made.lines(*screen)]


def ports(made: Top, screen: tuple[Look, int] = SMALL) -> list[str]:
    return [
        words[1]
        for line in text(made, screen)
        if len(words := line.split()) > 2 and words[0].startswith("wire/")
    ]


@pytest.mark.parametrize("screen", [SMALL, LARGE, (Look(80, unicode=False), 24), (Look(40), 10)])
@pytest.mark.parametrize("keys", ["", "?", "v", "vv", "p", "j"])
def test_the_screen_is_filled_exactly(screen: tuple[Look, int], keys: str) -> None:
    made = begun(queues=40)
    made.lose("no xskd answers")
    for key in keys:
        made.press(key)
    lines = made.lines(*screen)
    look, height = screen
    assert len(lines) == height
    assert max(len(line) for line in lines) <= look.width
    assert look.unicode or all(line.plain.isascii() for line in lines)


def test_rates_sums_and_reasons_are_there() -> None:
    lines = text(begun())
    assert lines[0].endswith("1 path, 1 queue forwarding, copy mode")
    assert "RX 3.00k/s" in lines[1]
    assert "lost 50/s, 100 in all" in lines[1]
    row = next(index for index, line in enumerate(lines) if line.startswith("wire/1 eth2:1 copy 0 0 50 "))
    assert lines[row + 1].startswith("50/s tx_full (the egress TX ring stayed full)")
    assert any(line.startswith("wire/1 eth1:1 copy 2.00k 0 0 ") for line in lines)
    assert lines[-1].endswith("rows 1-4 of 4")


def test_a_large_terminal_shows_the_loop_as_well() -> None:
    (titles,) = (line for line in text(begun(), LARGE) if line.startswith("WORKER"))
    assert {"FILL", "COMPL", "LOST", "WAKE/s", "SLEEP"} <= set(titles.split())
    small = begun()
    assert "SLEEP" not in " ".join(text(small))
    small.press("v")
    small.press("v")
    assert "SLEEP" in " ".join(text(small))


def test_losses_are_red() -> None:
    for line in begun().lines(*SMALL):
        if line.plain.lstrip().startswith("50/s tx_full"):
            assert "red" in str(line.style) or any("red" in str(span.style) for span in line.spans)
            return
    raise AssertionError("no loss")


def test_s_sorts_and_r_turns_round() -> None:
    made = begun()
    assert ports(made) == ["eth2:1", "eth1:0", "eth2:0", "eth1:1"]
    made.press("s")
    assert ports(made) == ["eth1:1", "eth1:0", "eth2:0", "eth2:1"]
    made.press("s")
    assert ports(made) == ["eth1:0", "eth2:0", "eth1:1", "eth2:1"]
    made.press("r")
    assert ports(made) == ["eth2:1", "eth1:1", "eth2:0", "eth1:0"]


def test_pause_freezes_and_going_on_shows_the_latest() -> None:
    made = begun()
    made.press("p")
    frozen = ports(made), text(made)[1]
    made.take(at(12), 3.0)
    assert (ports(made), text(made)[1]) == frozen
    assert "paused; p goes on" in text(made)
    made.press("s")  # sorts what is frozen
    assert ports(made) != frozen[0]
    made.press(" ")
    assert "RX 30.0k/s" in text(made)[1]
    assert "paused; p goes on" not in text(made)


def test_scrolling_ends_at_both_ends() -> None:
    made = begun(queues=40)

    def rows() -> str:
        return text(made)[-1].rpartition("rows ")[2]

    assert rows() == "1-18 of 80"  # one of them has a second line
    made.press("up")
    assert rows() == "1-18 of 80"
    made.press("j")
    assert rows() == "2-20 of 80"
    made.press("page down")
    assert rows() == "21-39 of 80"
    for key in ("end", "down"):
        made.press(key)
        assert rows().endswith("-80 of 80")
    made.press("k")
    assert rows().endswith("-79 of 80")
    made.press("home")
    assert rows().startswith("1-")


def test_a_daemon_that_goes_away_is_told_and_one_that_comes_back_shown() -> None:
    made = begun()
    made.lose("no xskd answers on /x.sock (gone)\nand more")
    assert "no xskd answers on /x.sock (gone); asking again" in text(made)
    assert "RX -/s" in text(made)[1]
    assert sorted(ports(made)) == ["eth1:0", "eth1:1", "eth2:0", "eth2:1"]
    made.take(at(50, pid=2), 9.0)
    assert not any("no xskd answers" in line for line in text(made))
    assert "RX -/s" in text(made)[1]  # there is nothing to compare it with
    made.take(at(51, pid=2), 10.0)
    assert "RX 3.00k/s" in text(made)[1]


def test_help_comes_and_goes_and_q_ends_it() -> None:
    made = begun()
    before = text(made)
    made.press("?")
    assert any(line.startswith("p, space pause") for line in text(made))
    assert max(len(line) for line in top.HELP.splitlines()) <= 80
    assert len(top.HELP.splitlines()) < 24
    made.press("?")
    assert text(made) == before
    assert not made.ended
    made.press("q")
    assert made.ended


def test_more_troubles_than_fit_are_counted() -> None:
    made = Top(at(1, waiting={"late": [f"problem {n}" for n in range(5)]}), 1.0)
    assert "late waits: problem 2" in text(made)
    assert "late waits: problem 3" not in text(made)
    assert "and 2 more, see xskd status" in text(made)


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("pq", ["p", "q"]),
        ("\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[H\x1bOF", ["up", "down", "page up", "page down", "home", "end"]),
        ("\x1b[15~j", ["", "j"]),
        ("\x1bq", ["\x1b", "q"]),
    ],
)
def test_keys_are_told_apart(typed: str, keys: list[str]) -> None:
    assert keys_in(typed) == (keys, "")


@given(some.lists(some.sampled_from(["\x1b[A", "\x1bOB", "\x1b[5~", "p", "é"]), max_size=6), some.data())
def test_keys_may_come_in_pieces(sent: list[str], data: some.DataObject) -> None:
    typed = "".join(sent)
    at = data.draw(some.integers(0, len(typed)))
    keys, rest = keys_in(typed[:at])
    more, left = keys_in(rest + typed[at:])
    assert (keys + more, left) == keys_in(typed)
