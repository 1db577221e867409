"""The daemon as others meet it: which configuration it begins with, and what is around its supervisor."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeSystemd, connect, device, installed, outlook, resting, wire, with_store

from xskd import config, inheritance, logs, machine, service
from xskd.config import Config
from xskd.errors import ConfigError, XskdError
from xskd.service import Surroundings
from xskd.store import Store

GOOD, BAD = connect(path=", fallback: drop"), connect("{mode: fast}")


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSystemd]:
    """A machine that has what every configuration wants, and a store."""

    def look(wanted: Config) -> machine.Outlook:
        return replace(outlook(wanted.text, device("eth1"), device("eth2")), config=wanted)

    with installed(monkeypatch) as made:
        with_store(monkeypatch, tmp_path)
        monkeypatch.setattr(machine, "look", look)
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def inherited(systemd: FakeSystemd, file: Path, text: str) -> Store:
    """The store of a successor, whose predecessor ran with this text."""
    first = Store()
    seen = config.parse(text, str(file))
    supervisor = resting(connect(), device("eth1"), device("eth2"))
    inheritance.save(first, seen, supervisor.programs, supervisor.crew, "")
    first.put("worker wire/0", {"x": 0})
    return Store()


# ---- the configuration to begin with --------------------------------------------------------------


def test_a_good_file_is_what_runs(systemd: FakeSystemd, file: Path) -> None:
    file.write_text(GOOD)
    seen, wrong = service._outlook(file, inherited(systemd, file, connect()))
    assert (wrong, seen.plan.interfaces[0].fallback) == ("", "drop")


def test_a_bad_file_ends_a_first_start(systemd: FakeSystemd, file: Path) -> None:
    file.write_text(BAD)
    with pytest.raises(ConfigError, match=r"interfaces\.eth1\.mode: must be"):
        service._outlook(file, Store())


def test_a_bad_file_does_not_end_a_successor_which_goes_on_with_what_ran(
    systemd: FakeSystemd, file: Path
) -> None:
    file.write_text(BAD)
    seen, wrong = service._outlook(file, inherited(systemd, file, GOOD))
    assert seen.plan.interfaces[0].fallback == "drop"
    assert (seen.config.text, seen.config.file) == (GOOD, str(file))
    assert wrong.startswith(f"{file}:2: interfaces.eth1.mode: must be")


def test_a_file_that_is_gone_does_not_end_a_successor_either(systemd: FakeSystemd, file: Path) -> None:
    seen, wrong = service._outlook(file, inherited(systemd, file, GOOD))
    assert seen.config.text == GOOD
    assert "cannot be read" in wrong


def test_a_bad_file_and_a_stored_one_that_is_bad_too_are_an_end(systemd: FakeSystemd, file: Path) -> None:
    file.write_text(BAD)
    store = inherited(systemd, file, GOOD)
    store.save('{"config": {"file": "old.yaml", "text": "interfaces: 3"}}')
    with pytest.raises(ConfigError):
        service._outlook(file, store)


# ---- what is around it ----------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()
    except OSError:
        return False
    return b"xskd_info" in page


def test_metrics_move_to_another_port_and_off(systemd: FakeSystemd) -> None:
    supervisor, first, second = resting(connect(), device("eth1"), device("eth2")), free_port(), free_port()
    plan = replace(wire(), metrics_listen=("127.0.0.1", first))

    async def moving() -> list[list[bool]]:
        seen: list[list[bool]] = []
        around = Surroundings()
        around.open(plan, supervisor)
        for listen in (("127.0.0.1", first), ("127.0.0.1", second), None):
            assert around.settle(replace(plan, metrics_listen=listen)) == []
            wanted = [listen is not None and port == listen[1] for port in (first, second)]
            for _ in range(300):  # a server that is to end notices that twice a second
                found = [await asyncio.to_thread(answers, port) for port in (first, second)]
                if found == wanted:
                    break
                await asyncio.sleep(0.01)
            seen.append(found)
        around.close()
        return seen

    assert asyncio.run(moving()) == [[True, False], [False, True], [False, False]]


def test_a_port_that_is_taken_is_told_and_the_old_one_stays(systemd: FakeSystemd) -> None:
    supervisor, port = resting(connect(), device("eth1"), device("eth2")), free_port()
    plan = replace(wire(), metrics_listen=("127.0.0.1", port))

    async def moving(taken: int) -> tuple[list[str], bool]:
        around = Surroundings()
        around.open(plan, supervisor)
        said = around.settle(replace(plan, metrics_listen=("127.0.0.1", taken)))
        still = await asyncio.to_thread(answers, port)
        around.close()
        return said, still

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        said, still = asyncio.run(moving(taken))
    assert said == [f"metrics on 127.0.0.1:{taken}: Address already in use; see key metrics.listen"]
    assert still


def test_a_port_that_is_taken_ends_a_first_start(systemd: FakeSystemd) -> None:
    supervisor = resting(connect(), device("eth1"), device("eth2"))

    async def opening(taken: int) -> None:
        Surroundings().open(replace(wire(), metrics_listen=("127.0.0.1", taken)), supervisor)

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(XskdError, match=r"Address already in use; see key metrics\.listen"):
            asyncio.run(opening(other.getsockname()[1]))


def test_the_log_level_follows_the_plan(systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    monkeypatch.setattr(logs, "set_up", levels.append)
    around = Surroundings()
    around.settle(replace(wire(), metrics_listen=None, log_level="debug"))
    assert levels == ["debug"]
