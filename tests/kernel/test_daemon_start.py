"""The daemon starts, or says why not in words that lead on, and never leaves half of itself behind."""

from __future__ import annotations

import re
import signal
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import Daemon, Lane, connect, kernel_side, paths, running, started, total, xskd

from lab import entered

if TYPE_CHECKING:
    from conftest import MakeWire


def refused(daemon: Daemon) -> str:
    """Wait for a daemon that cannot start to end; the lines it ends with. Nothing of it remains."""
    assert daemon.ended() == 3, daemon.log
    assert "Traceback" not in daemon.log
    assert not daemon.socket.exists()
    assert '"xdp"' not in daemon.net.run(daemon.net.dut, "ip", "-j", "link", "show").stdout
    return "\n".join(line for line in daemon.log.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line))


def test_the_log_tells_a_terminal_what_is_in_use(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path) as daemon:
        assert daemon.status()["text"] == "1 path, 2 queues forwarding, copy mode"
        assert re.search(r"INFO +eth1: XDP program attached, native mode", daemon.log)
        refusal = r"copy mode \(zero-copy refused: .*Operation not supported.*\)"
        assert re.search(rf"INFO +wire/1: eth1 queue 1 bound, {refusal}", daemon.log)
        assert re.search(r"INFO +ready: 1 path, 2 queues forwarding, copy mode", daemon.log)


def test_at_level_error_a_good_start_says_nothing(wire: MakeWire, tmp_path: Path) -> None:
    with running(wire(), tmp_path, connect(rest="log: {level: error}")) as daemon:
        assert daemon.log == ""


# ---- queues that are taken -------------------------------------------------------------------------


def test_no_queue_to_be_had_ends_it_with_every_reason(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    for queue in (0, 1):
        net.open("eth2", queue, umem=net.umem(64))
    with started(net, tmp_path) as daemon:
        lines = refused(daemon).splitlines()
        assert len(lines) == 2
        for queue, line in enumerate(lines):
            assert f"wire/{queue}: bind(eth2 queue {queue}): EBUSY (Device or resource busy)" in line
            assert line.endswith("; see key interfaces.eth2.queues")


@pytest.mark.moves("xskd_worker_up")
@pytest.mark.moves("xskd_socket_mode", mode="copy")
def test_a_taken_queue_is_told_of_tried_again_and_comes_up_when_it_is_free(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire(queues=2)
    taken = net.open("eth1", 1, umem=net.umem(64))
    with running(net, tmp_path) as daemon, kernel_side(net, "eth1") as kernel:
        assert net.eventually(lambda: not daemon.forwards("wire/1"))
        said = daemon.status()["text"]
        assert re.fullmatch(
            r"1 path, 1 queue forwarding, copy mode; not forwarding: wire/1 \((backoff|starting)\)", said
        )
        assert "bind(eth1 queue 1): EBUSY" in daemon.worker("wire/1")["last_error"]
        sent = net.frames(200)
        assert Lane(net, 0).through(sent, net.taps[1]) == sent
        Lane(net, 1).send(sent[:10])
        assert [kernel.recv(2048) for _ in range(10)] == sent[:10]
        assert xskd(net, "status", "--socket", str(daemon.socket)).stdout.count("EBUSY") == 1
        at, mode = {"path": "wire", "queue": "1"}, "xskd_socket_mode"
        assert total(daemon.metrics(), "xskd_worker_up", **at) == total(daemon.metrics(), mode, **at) == 0
        taken.close()
        assert net.eventually(lambda: daemon.forwards("wire/1"), 15)
        assert total(daemon.metrics(), "xskd_worker_up", **at) == 1
        assert total(daemon.metrics(), mode, mode="copy", **at) == 2
        assert daemon.worker("wire/1")["last_error"] is None
        assert net.eventually(lambda: "INFO    1 path, 2 queues forwarding, copy mode" in daemon.log)


# ---- what is in the way ----------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_control_socket_is_refused(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    (tmp_path / "second").mkdir()
    with running(net, tmp_path) as first:
        text = paths("w: {connect: [eth3, eth4]}", "eth3", "eth4", rest="metrics: {listen: off}")
        second = Daemon(net, tmp_path / "second", text + f"control: {{socket: {first.socket}}}\n")
        assert second.ended() == 3
        assert "another xskd is running" in second.log
        assert "control.socket" in second.log
        assert first.status()["pid"] == first.pid
        sent = net.frames(100)
        assert net.taps[0].through(sent, net.taps[1]) == sent


def test_a_metrics_port_in_use_is_named_with_its_key(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with entered(net.dut):
        taken = socket.create_server(("127.0.0.1", 9478))
    with taken, started(net, tmp_path) as daemon:
        expected = "xskd: metrics on 127.0.0.1:9478: Address already in use; see key metrics.listen"
        assert refused(daemon) == expected


def test_a_control_socket_that_cannot_be_made_is_named_with_its_key(wire: MakeWire, tmp_path: Path) -> None:
    where = tmp_path / "control.sock"
    where.mkdir()
    daemon = Daemon(wire(), tmp_path, connect())
    assert daemon.ended() == 3
    assert daemon.log == f"xskd: control socket {where}: Address already in use; see key control.socket\n"


def test_a_stale_control_socket_is_replaced(wire: MakeWire, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    with running(wire(), tmp_path) as daemon:
        assert daemon.status()["ready"]


# ---- the control socket ----------------------------------------------------------------------------


def test_only_the_owner_may_open_the_control_socket(wire: MakeWire, tmp_path: Path) -> None:
    with running(wire(), tmp_path) as daemon:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


def test_garbage_and_silence_on_the_control_socket_do_no_harm(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
        for client in silent:
            client.connect(str(daemon.socket))
        for garbage in (b"\n", b"\0" * 5000, b"x" * 100_000, b'{"verb": 1}\n', b"[" * 4000 + b"\n"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(daemon.socket))
                client.settimeout(3)
                try:
                    client.sendall(garbage)
                    client.recv(65536)
                except OSError:
                    pass
        sent = net.frames(200)
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert total(daemon.metrics(), "xskd_worker_up") == 1
        time.sleep(2.1)  # by then the silent ones have had their time
        assert daemon.status()["ready"]
        for client in silent:
            client.close()
        assert "Traceback" not in daemon.log
        assert daemon.stop(signal.SIGTERM) == 0
