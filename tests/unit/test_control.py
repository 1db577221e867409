"""The control socket: one question, one answer, and nothing a client does that could harm the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import connect, device, resting

from xskd import control
from xskd.captures import Captures
from xskd.control import ControlServer, Refused, ask
from xskd.errors import ConfigError, Problem, XskdError
from xskd.refusals import Refusals
from xskd.status import DaemonStatus


def picture() -> DaemonStatus:
    """Take the status of a daemon that has not been started."""
    return resting(connect(), device("eth1"), device("eth2")).status()


async def reload(*, dry: bool) -> list[str]:
    """Answer what a reload would, or did."""
    return [f"would do it: {dry}"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "control.sock"


def serving(
    path: Path,
    client: Callable[[], Any],
    status: Callable[[], DaemonStatus] = picture,
    reload: Callable[..., Awaitable[list[str]]] = reload,
    refusals: Refusals | None = None,
) -> Any:
    """Let a client run in a thread while a server listens; what it returns."""

    async def both() -> Any:
        server = ControlServer(path, status, reload, Captures(dict), refusals=refusals)
        await server.start()
        try:
            return await asyncio.wait_for(asyncio.to_thread(client), 10)
        finally:
            await server.close()

    return asyncio.run(both())


def exchange(path: Path, data: bytes) -> bytes:
    """Send bytes and take everything that comes until the server closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(data)
        return client.makefile("rb").read()


# ---- questions and answers ------------------------------------------------------------------------


def test_the_answer_is_the_whole_picture(path: Path) -> None:
    answer = serving(path, lambda: ask(path, "status"))
    assert answer["ok"] is True
    assert answer["status"]["text"] == "0 paths, 0 queues forwarding; not forwarding: wire/0 (starting)"
    assert [worker["name"] for worker in answer["status"]["workers"]] == ["wire/0"]


def test_an_unknown_verb_is_refused_by_name(path: Path) -> None:
    with pytest.raises(XskdError, match="unknown verb 'statsu'; known: status, reload, capture"):
        serving(path, lambda: ask(path, "statsu"))


def test_what_the_daemon_cannot_say_is_said(path: Path) -> None:
    def broken() -> DaemonStatus:
        raise XskdError("BPF_MAP_LOOKUP_ELEM(verdicts): EBADF")

    with pytest.raises(XskdError, match=r"BPF_MAP_LOOKUP_ELEM\(verdicts\): EBADF"):
        serving(path, lambda: ask(path, "status"), broken)


@pytest.mark.parametrize("dry", [True, False])
def test_a_reload_is_answered_with_its_actions(path: Path, dry: bool) -> None:
    answer = serving(path, lambda: ask(path, "reload", dry=dry))
    assert answer == {"ok": True, "actions": [f"would do it: {dry}"]}


WRONG = ConfigError([Problem("x.yaml", 3, "log.level", "is loud"), Problem("x.yaml", 1, "", "is bad")])


@pytest.mark.parametrize(
    ("error", "is_config"), [(WRONG, True), (XskdError("wire/0: bind(eth1): EBUSY"), False)]
)
def test_a_reload_that_is_refused_says_why_and_whether_it_is_the_files_fault(
    path: Path, error: XskdError, is_config: bool
) -> None:
    async def refusing(*, dry: bool) -> list[str]:
        raise error

    with pytest.raises(Refused) as caught:
        serving(path, lambda: ask(path, "reload", dry=False), reload=refusing)
    assert (str(caught.value), caught.value.config) == (str(error), is_config)


def test_a_reload_may_take_longer_than_a_client_has_to_ask(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.05)

    async def slow(*, dry: bool) -> list[str]:
        await asyncio.sleep(0.2)
        return ["slow"]

    assert serving(path, lambda: ask(path, "reload", dry=False), reload=slow)["actions"] == ["slow"]


@pytest.mark.parametrize("dry", [b"1", b'"yes"', b"null"])
def test_a_reload_must_say_plainly_whether_it_is_dry(path: Path, dry: bytes) -> None:
    answer = json.loads(serving(path, lambda: exchange(path, b'{"verb": "reload", "dry": %s}\n' % dry)))
    assert answer["ok"] is False


def test_a_status_that_is_refused_is_not_the_files_fault(path: Path) -> None:
    with pytest.raises(Refused) as caught:
        serving(path, lambda: ask(path, "statsu"))
    assert caught.value.config is False


@pytest.mark.parametrize(
    "garbage",
    [b"status\n", b"[]\n", b'"status"\n', b"{}\n", b"\xff\xfe\n", b"[" * 4000 + b"\n", b'{"verb": '],
)
def test_garbage_is_answered_with_what_was_expected(path: Path, garbage: bytes) -> None:
    def client() -> bytes:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(5)
            asking.connect(str(path))
            asking.sendall(garbage)
            asking.shutdown(socket.SHUT_WR)
            return asking.makefile("rb").read()

    assert json.loads(serving(path, client)) == {
        "ok": False,
        "error": 'expected one line of JSON like {"verb": "status"}',
    }


def test_too_long_a_question_gets_no_answer(path: Path) -> None:
    def client() -> tuple[bytes, Any]:
        try:
            got = exchange(path, b"x" * 10 * control.MAX_REQUEST)
        except OSError:  # closed while we were sending
            got = b""
        return got, ask(path, "status")["ok"]

    assert serving(path, client) == (b"", True)


# ---- clients that are a burden --------------------------------------------------------------------


def test_a_silent_client_is_dropped_after_its_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.1)
    assert serving(path, lambda: exchange(path, b"")) == b""


def test_more_clients_than_it_serves_are_turned_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_CLIENTS", 2)
    monkeypatch.setattr(control, "BUSY_SECONDS", 0.1)
    said: list[str] = []

    def crowd() -> None:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client in silent:
            client.connect(str(path))
        with pytest.raises(XskdError) as caught:
            ask(path, "status")
        said.append(str(caught.value))
        for client in silent:
            client.close()

    serving(path, crowd)
    assert said == [f"{path}: the daemon is too busy to answer"]


def test_who_finds_all_places_taken_comes_again_and_is_served(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_CLIENTS", 1)
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.3)

    def crowd() -> Any:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            return ask(path, "status")["ok"]

    refusals = Refusals()
    assert serving(path, crowd, refusals=refusals) is True
    assert refusals.counts()["control"]["slow"] == 1
    assert refusals.counts()["control"]["busy"] > 0


def test_the_group_cannot_take_the_places_of_root(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is of the group is told by a fake here; tests/kernel has a real one."""
    monkeypatch.setattr(control, "MAX_CLIENTS", 1)
    monkeypatch.setattr(control, "BUSY_SECONDS", 0.0)
    members = iter([4711, 4711, os.geteuid()])
    monkeypatch.setattr(control, "_asker", lambda writer: next(members))

    def crowd() -> Any:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            with pytest.raises(XskdError, match="too busy"):
                ask(path, "status")
            return ask(path, "status")["ok"]

    assert serving(path, crowd) is True


def test_a_client_that_does_not_take_its_answer_is_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing alone would keep the answer and the descriptor for as long as the client likes."""
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.1)

    def large() -> DaemonStatus:
        return replace(picture(), text="x" * (8 << 20))  # more than sockets hold

    refusals = Refusals()

    def client() -> None:
        before = descriptors()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(path))
            deaf.sendall(b'{"verb": "status"}\n')
            assert eventually(lambda: refusals.counts()["control"]["slow"] == 1)
            assert eventually(lambda: descriptors() == before + 1), "the server keeps its end"

    serving(path, client, large, refusals=refusals)


def descriptors() -> int:
    """Count this process's."""
    return len(os.listdir("/proc/self/fd"))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# ---- the file -------------------------------------------------------------------------------------


def test_only_the_owner_may_use_the_socket_and_it_goes_with_the_server(path: Path) -> None:
    assert serving(path, lambda: stat.S_IMODE(path.stat().st_mode)) == 0o600
    assert not path.exists()


def test_a_second_server_is_refused_and_the_first_stays(path: Path) -> None:
    def second() -> Any:
        with pytest.raises(XskdError, match=r"another xskd is running and listens on .*control\.socket"):
            asyncio.run(ControlServer(path, picture, reload, Captures(dict)).start())
        return ask(path, "status")["ok"]

    assert serving(path, second) is True


def test_what_a_dead_server_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert serving(path, lambda: ask(path, "status")["ok"]) is True


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(XskdError, match=r"control socket .*: Address already in use; see key control.socket"):
        serving(path, lambda: None)
    assert path.read_text() == "precious"


# ---- asking nobody --------------------------------------------------------------------------------


def test_asking_where_no_daemon_is_says_so(path: Path) -> None:
    with pytest.raises(XskdError, match=r"no xskd answers on .*control\.sock .*is it running"):
        ask(path, "status")


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    """A server that is no xskd and answers nonsense."""
    where = tmp_path / "stranger.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(where))
        listening.listen()
        listening.settimeout(5)

        def answer() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(4096)  # who closes too early breaks the other's pipe
                client.sendall(b"220 mail.example.org ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield where
        thread.join()


def test_an_answer_that_is_no_json_is_no_xskd(stranger: Path) -> None:
    with pytest.raises(XskdError, match="no xskd answers"):
        ask(stranger, "status")
