"""Calls that the kernel refuses: what a person is told, and that nothing waits, spins or stays behind.

Each is one that tests/kernel/faults found by making the real call fail.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from xskd import channel, config, control, machine, netdev, service, watch, worker
from xskd.aside import aside
from xskd.control import ControlServer
from xskd.errors import XskdError, kernel_said, refusal
from xskd.plan import WorkerPlan
from xskd.spawn import Peer
from xskd.watch import LinkWatch

PLAN = WorkerPlan(path="a", kind="reflect", index=0, cpu=None, poll="adaptive", frames=64, frame_size=2048,
                  huge_pages=False, ports=())  # fmt: skip


def refuse(number: int) -> Callable[..., NoReturn]:
    def refusing(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refusing


def no_thread(*_: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


def said_of(error: BaseException) -> str:
    try:
        raise error
    except BaseException as raised:
        return str(refusal(raised))


# ---- what a person is told ------------------------------------------------------------------------


def test_a_refusal_names_errno_and_what_helps() -> None:
    said = said_of(OSError(errno.EMFILE, "Too many open files"))
    assert "EMFILE (Too many open files)" in said and "LimitNOFILE=" in said


def test_a_refusal_names_the_function_that_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "load", refuse(errno.ENFILE))
    with pytest.raises(
        XskdError, match=r"^service\._outlook was refused by the kernel: ENFILE .*fs\.file-max"
    ):
        service.run(tmp_path / "xskd.yaml")


def test_a_refusal_behind_another_error_is_found() -> None:
    try:
        try:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        except OSError as error:
            raise RuntimeError("half made") from error
    except RuntimeError as error:
        assert "ENOMEM" in str(refusal(error))


def test_threads_and_memory_that_cannot_be_had_are_refusals() -> None:
    assert "TasksMax=" in said_of(RuntimeError("can't start new thread"))
    assert "MemoryMax=" in said_of(MemoryError())


def test_a_bug_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert refusal(RuntimeError("dictionary changed size during iteration")) is None
    assert refusal(ValueError("no")) is None

    def broken(_: Path) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(config, "load", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        service.run(tmp_path / "xskd.yaml")


def test_a_library_s_error_is_told_by_its_errno() -> None:
    class NetlinkError(Exception):
        code = errno.ENOBUFS

    assert kernel_said(NetlinkError()) == "ENOBUFS (No buffer space available)"
    assert kernel_said(ValueError("odd")) == "odd"


# ---- looking at the machine -----------------------------------------------------------------------


def test_a_kernel_that_does_not_answer_ends_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    late = threading.Event()
    monkeypatch.setattr(machine, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(netdev, "read_devices", lambda _: late.wait(10))
    with pytest.raises(XskdError, match="no answer within"):
        machine.look(config.parse("interfaces: {eth1: {}}\npaths: {a: {reflect: eth1}}", "x.yaml"))
    late.set()


def test_a_look_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netdev, "read_devices", refuse(errno.EMFILE))
    with pytest.raises(XskdError, match="asking the kernel about interfaces: EMFILE"):
        machine.look(config.parse("interfaces: {eth1: {}}\npaths: {a: {reflect: eth1}}", "x.yaml"))


def test_a_watch_that_gets_no_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> NoReturn:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(watch, "_group_of", never)
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 0.05)
    with pytest.raises(XskdError, match="watching the network interfaces: no answer within"):
        asyncio.run(LinkWatch(print).start())


def test_what_the_loop_cannot_do_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    error = OSError(errno.ENOBUFS, "No buffer space available")
    service._one_line(loop, {"message": "socket.accept() out of system resource", "exception": error})
    loop.close()
    assert caplog.messages == ["socket.accept() out of system resource: ENOBUFS (No buffer space available)"]


def test_nodes_that_cannot_be_read_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", refuse(errno.EIO))
    assert machine.cpu_nodes() == {}


def test_work_that_gets_no_thread_fails_and_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", no_thread)
        with pytest.raises(XskdError, match="can't start new thread"):
            await aside(print)

    asyncio.run(work())


# ---- the control socket ---------------------------------------------------------------------------


def served(path: Path) -> ControlServer:
    nobody: Any = None
    return ControlServer(path, nobody, nobody, nobody)


def test_a_control_socket_that_cannot_listen_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control, "Listener", refuse(errno.ENOMEM))
    with pytest.raises(XskdError, match=r"Cannot allocate memory; see key control\.socket"):
        asyncio.run(served(tmp_path / "s").start())
    assert not (tmp_path / "s").exists()


def test_a_control_socket_that_cannot_be_removed_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def life() -> None:
        server = served(tmp_path / "s")
        await server.start()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", refuse(errno.EROFS))
            await server.close()

    asyncio.run(life())
    assert "stays behind: Read-only file system" in caplog.text


# ---- supervisor and worker ------------------------------------------------------------------------


class Deaf:
    """A channel on which one call fails."""

    def __init__(self, number: int) -> None:
        self.send = self.sendmsg = self.recv = refuse(number)

    def setblocking(self, flag: bool) -> None:
        pass


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Peer]:
    found: list[Peer] = []
    monkeypatch.setattr(Peer, "kill", lambda peer: found.append(peer))  # noqa: PLW0108 - it is to be a method
    return found


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM])
def test_a_worker_that_cannot_be_told_is_killed(killed: list[Peer], number: int) -> None:
    link: Any = Deaf(number)
    peer = Peer(link, -1, PLAN)
    peer.tell("go")
    assert killed == [peer] and peer.error is None  # and its rings are adopted


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET])
def test_a_worker_that_is_gone_need_not_be_told(killed: list[Peer], number: int) -> None:
    link: Any = Deaf(number)
    Peer(link, -1, PLAN).tell("go")
    assert not killed


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.EINTR])
def test_a_message_that_cannot_be_read_now_is_read_later(number: int) -> None:
    link: Any = Deaf(number)
    assert Peer(link, -1, PLAN).receive() == ([], True)


def test_a_worker_whose_call_is_refused_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = channel.pair()
    with ours:
        monkeypatch.setattr(worker, "_run", refuse(errno.EPERM))
        monkeypatch.setattr("sys.argv", ["xskd.worker", str(theirs.detach())])
        assert worker.main() == worker.EXIT_FAILED
        ours.settimeout(5)
        message = channel.receive_text(ours)
    assert message is not None and message["event"] == "failed"
    assert "EPERM (Operation not permitted)" in message["error"]


def test_a_worker_without_a_channel_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "socket", refuse(errno.ENOMEM))
    monkeypatch.setattr("sys.argv", ["xskd.worker", "5"])
    assert worker.main() == worker.EXIT_FAILED
    assert "its channel: ENOMEM" in capsys.readouterr().err
