"""Log lines: what they carry to the journal, and that a flood of them is told without being one."""

from __future__ import annotations

import atexit
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from xskd import logs
from xskd.logs import Journal, Limit, about


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kept(logging.Handler):
    """Keeps the texts that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


class Desk:
    """The logger `xskd` with a limit of its own, whose time a test makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.kept = Clock(), Kept()
        self.log = logging.getLogger("xskd")
        limit = Limit(self.clock)
        self.kept.addFilter(limit)
        monkeypatch.setattr(logs, "_limit", limit)
        monkeypatch.setattr(self.log, "handlers", [self.kept])
        monkeypatch.setattr(self.log, "propagate", False)
        monkeypatch.setattr(self.log, "level", logging.INFO)
        self.log.manager._clear_cache()  # type: ignore[attr-defined]

    def said(self) -> list[str]:
        """What was said since it was asked last."""
        texts, self.kept.texts = self.kept.texts, []
        return texts


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    yield Desk(monkeypatch)
    logging.getLogger("xskd").manager._clear_cache()  # type: ignore[attr-defined]


def test_about_has_only_what_is_given() -> None:
    assert about() == {}
    assert about(interface="eth1", errno=16) == {"XSKD_INTERFACE": "eth1", "ERRNO": "16"}
    assert about(path="wire", queue=0) == {"XSKD_PATH": "wire", "XSKD_QUEUE": "0"}


@pytest.mark.parametrize(
    ("worker", "more"),
    [
        ("wire/3", {"XSKD_PATH": "wire", "XSKD_QUEUE": "3"}),
        ("a/b/12", {"XSKD_PATH": "a/b", "XSKD_QUEUE": "12"}),
        ("wire", {}),
        ("wire/", {}),
        ("/3", {}),
    ],
)
def test_a_workers_name_says_its_path_and_queue(worker: str, more: dict[str, str]) -> None:
    assert about(worker=worker) == {"XSKD_WORKER": worker} | more


def test_what_is_given_counts_more_than_what_a_name_says() -> None:
    assert about(worker="wire/3", queue=7)["XSKD_QUEUE"] == "7"


def test_the_journal_gets_our_fields_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(logs, "send", lambda text, **fields: sent.append({"MESSAGE": text, **fields}))
    log = logging.Logger("xskd")
    log.addHandler(Journal())
    log.warning("%s is %s", "eth1", "down", extra=about(interface="eth1", errno=100) | logs.EVERY)
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("a bug")
    first, second = sent
    assert (first.pop("CODE_FILE"), first.pop("CODE_LINE") > 0) == (__file__, True)
    assert first == {
        "MESSAGE": "eth1 is down",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "xskd",
        "CODE_FUNC": "test_the_journal_gets_our_fields_and_no_other",
        "XSKD_INTERFACE": "eth1",
        "ERRNO": "100",
    }
    assert (second["PRIORITY"], second["MESSAGE"].splitlines()[-1]) == ("3", "ValueError: why")


def test_a_repeated_warning_is_said_once_a_second_with_how_many_were_left_out(desk: Desk) -> None:
    for _ in range(42):
        desk.log.warning("%s flaps", "eth1", extra=about(interface="eth1"))
    assert desk.said() == ["eth1 flaps"]
    desk.clock.now += logs.PAUSE
    for _ in range(3):
        desk.log.warning("%s flaps", "eth1", extra=about(interface="eth1"))
    assert desk.said() == ["eth1 flaps; 41 more like this left out"]
    desk.clock.now += logs.PAUSE
    desk.log.warning("%s flaps", "eth1", extra=about(interface="eth1"))
    assert desk.said() == ["eth1 flaps; 2 more like this left out"]
    desk.clock.now += logs.PAUSE
    desk.log.warning("%s flaps", "eth1", extra=about(interface="eth1"))
    assert desk.said() == ["eth1 flaps"]


def test_other_things_and_other_texts_are_other_kinds(desk: Desk) -> None:
    for extra in (about(interface="eth1"), about(interface="eth2"), about(worker="wire/0"), about()):
        desk.log.warning("flaps", extra=extra)
        desk.log.error("is gone", extra=extra)
    assert len(desk.said()) == 8


def test_the_same_template_with_other_values_is_the_same_kind(desk: Desk) -> None:
    for pause in range(3):
        desk.log.warning("next try in %d s", pause, extra=about(worker="wire/0", errno=pause))
    assert desk.said() == ["next try in 0 s"]


def test_a_template_that_is_nothing_but_arguments_is_no_kind(desk: Desk) -> None:
    """Five problems of a file are five lines, although one call in a loop says them."""
    for prefix in ("", "reload: "):
        for line in ("xskd.yaml:1: a", "xskd.yaml:2: b", "xskd.yaml:2: b"):
            desk.log.error("%s%s", prefix, line)
    assert desk.said() == [
        "xskd.yaml:1: a",
        "xskd.yaml:2: b",
        "reload: xskd.yaml:1: a",
        "reload: xskd.yaml:2: b",
    ]


def test_what_paces_itself_is_said_every_time(desk: Desk) -> None:
    for pause in range(3):
        desk.log.warning("next try in %d s", pause, extra=about(worker="wire/0") | logs.EVERY)
    assert desk.said() == ["next try in 0 s", "next try in 1 s", "next try in 2 s"]


def test_changes_of_state_are_never_limited(desk: Desk) -> None:
    for _ in range(5):
        desk.log.info("forwarding")
    assert desk.said() == ["forwarding"] * 5


def test_what_the_end_of_a_flood_left_out_is_told_in_time_and_once(desk: Desk) -> None:
    for number in range(5):
        desk.log.warning("error %d", number)
    logs.flush()
    assert desk.said() == ["error 0"], "not before its time"
    desk.clock.now += logs.PAUSE
    logs.flush()
    assert desk.said() == ["error 4; 3 more like this left out"]
    for _ in range(3):
        desk.clock.now += logs.PAUSE
        logs.flush()
    assert desk.said() == []


def test_a_single_one_that_was_left_out_is_told_as_it_is(desk: Desk) -> None:
    desk.log.warning("100%% %s", "a")
    desk.log.warning("100%% %s", "b")
    desk.clock.now += logs.PAUSE
    logs.flush()
    assert desk.said() == ["100% a", "100% b"]


def test_a_flush_does_not_let_a_flood_through(desk: Desk) -> None:
    """Ticks come twice a second, warnings a hundred times: a line a second it is."""
    for _ in range(1000):
        desk.clock.now += 0.01
        desk.log.warning("flaps")
        logs.flush()
    counts = [int(text.split()[1]) + 1 if ";" in text else 1 for text in desk.said()]
    assert 9 <= len(counts) <= 11
    logs.flush(everything=True)
    counts += [int(text.split()[1]) + 1 if ";" in text else 1 for text in desk.said()]
    assert sum(counts) == 1000, "every one is said or counted"


def test_nothing_is_remembered_of_what_is_over(desk: Desk) -> None:
    for number in range(1000):
        desk.log.warning(f"no template {number}")
    desk.clock.now += logs.PAUSE
    logs.flush()
    assert logs._limit._floods == {}


def test_setting_up_again_loses_no_count(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        desk.log.warning("flaps")
    monkeypatch.setattr(atexit, "register", lambda *_, **__: None)
    logs.set_up("debug")
    assert desk.said() == ["flaps", "flaps; 1 more like this left out"]
    assert desk.log.level == logging.DEBUG


def test_what_was_left_out_is_told_before_the_end() -> None:
    script = (
        "import logging; from xskd import logs; logs.set_up('info'); log = logging.getLogger('xskd.part')\n"
        "for number in range(4): log.warning('error %d', number)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    lines = [line.partition(" ")[2] for line in done.stderr.splitlines()]  # without the time
    assert lines == ["WARNING error 0", "WARNING error 3; 2 more like this left out"]
    assert done.stdout == ""


def test_no_journal_is_assumed_without_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not logs.under_journal()


COMPLAINS = """
from xskd import logs

class Complains:
    def __del__(self):
        raise OSError(24, "Too many open files")

logs.set_up("info")
for _ in range(5):
    Complains()
"""


def test_what_goes_wrong_in_a_destructor_is_a_line() -> None:
    """pyroute2's loops do so without descriptors, and Python's own way to tell is a traceback each time."""
    said = subprocess.run(
        (sys.executable, "-c", COMPLAINS), capture_output=True, text=True, check=True
    ).stderr
    complaint = "an object that went away complains: OSError(24, 'Too many open files')"
    first, rest = said.splitlines()
    assert first.endswith(f"WARNING {complaint}")
    assert rest.endswith(f"WARNING {complaint}; 3 more like this left out")
