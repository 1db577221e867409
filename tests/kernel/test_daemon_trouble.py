"""A worker that hangs is replaced; what comes for a queue without a worker takes the path's fallback."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import SMALL, Daemon, Lane, Stream, connect, kernel_side, running, total

if TYPE_CHECKING:
    from conftest import MakeWire

    from xskd.xdp import Fallback


def kill(daemon: Daemon, sign: signal.Signals = signal.SIGKILL) -> int:
    pid = daemon.workers()["wire/0"]
    os.kill(pid, sign)
    return pid


@pytest.mark.moves("xskd_worker_restarts", cause="stalled")
def test_a_hanging_worker_is_noticed_killed_and_replaced(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path, connect(interface="rings: {fill: 2048, rx: 2048}")) as daemon:
        neighbour = daemon.workers()["wire/1"]
        with Stream(net, rate=100) as stream:
            hanging = kill(daemon, signal.SIGSTOP)
            took = daemon.comes("wire/0", other_than=hanging)
            assert stream.goes_on()
        print(f"replaced {took:.1f} s after it was stopped; {stream.lost} of {stream.sent} packets lost")
        assert stream.whole
        assert not Path(f"/proc/{hanging}").exists()
        assert daemon.workers()["wire/1"] == neighbour
        assert daemon.worker("wire/0")["restarts"] == {"stalled": 1}
        assert total(daemon.metrics(), "xskd_worker_restarts", queue="0", cause="stalled") == 1
        assert re.search(
            r"wire/0: worker ended \(stalled\): no heartbeat for \d+\.\d s; next one at once", daemon.log
        )


@pytest.mark.parametrize(
    "fallback",
    [
        pytest.param("pass", marks=pytest.mark.moves("xskd_xdp_verdicts", verdict="no_socket_passed")),
        pytest.param("drop", marks=pytest.mark.moves("xskd_xdp_verdicts", verdict="no_socket_dropped")),
    ],
)
def test_packets_of_a_queue_without_worker_take_the_fallback(
    wire: MakeWire, tmp_path: Path, fallback: Fallback
) -> None:
    net = wire(queues=2)
    only_first = f"queues: [0], rings: {SMALL}"
    with running(net, tmp_path, connect(f", fallback: {fallback}", interface=only_first)) as daemon:
        with kernel_side(net, "eth1") as kernel:
            Lane(net, 1).send(net.frames(50))
            taken = [kernel.recv(2048) for _ in range(50)] if fallback == "pass" else []
            kernel.setblocking(False)
            with pytest.raises(BlockingIOError):
                kernel.recv(2048)
        metrics = daemon.metrics()
    assert taken == (net.frames(50) if fallback == "pass" else [])
    expected = {"no_socket_passed": 50, "no_socket_dropped": 0, "redirected": 0}
    if fallback == "drop":
        expected |= {"no_socket_passed": 0, "no_socket_dropped": 50}
    for verdict, packets in expected.items():
        assert total(metrics, "xskd_xdp_verdicts", interface="eth1", verdict=verdict) == packets


def test_a_path_that_drops_keeps_packets_from_the_kernel_while_its_worker_is_dead(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire()
    with running(net, tmp_path, connect(", fallback: drop")) as daemon, kernel_side(net, "eth1") as kernel:
        lane = Lane(net)
        for _ in range(4):
            daemon.comes("wire/0", other_than=kill(daemon))
        killed = kill(daemon)  # 0.8 s without a worker now
        assert net.eventually(lambda: daemon.worker("wire/0")["state"] == "backoff")
        lane.send(net.frames(10))
        assert total(daemon.metrics(), "xskd_xdp_verdicts", verdict="no_socket_dropped") == 10
        daemon.comes("wire/0", other_than=killed)
        sent = net.frames(10, first=10)
        assert lane.through(sent, net.taps[1]) == sent
        kernel.setblocking(False)
        with pytest.raises(BlockingIOError):
            kernel.recv(2048)
