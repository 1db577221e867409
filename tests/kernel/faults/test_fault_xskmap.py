"""Somebody else with the right to do it writes to xskd's XSKMAPs: a place that was taken is taken back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from accounts import config, recovers, undisturbed
from daemon import SMALL, Daemon, running, total
from test_daemon_ownership import programs
from test_daemon_reload import forwards

if TYPE_CHECKING:
    from conftest import MakeWire

Times = Callable[[int, int], int]
QUEUE_0 = ("key", "0", "0", "0", "0")
PACKETS = 40


def bpftool(*args: str, pass_fds: tuple[int, ...] = ()) -> str:
    return subprocess.run(
        ("bpftool", "-j", *args), check=True, capture_output=True, text=True, pass_fds=pass_fds
    ).stdout


def xskmap(daemon: Daemon, dev: str) -> str:
    """Tell the id of the XSKMAP of an interface's program."""
    program = json.loads(bpftool("prog", "show", "id", str(programs(daemon.net)[dev])))
    for number in map(str, program["map_ids"]):
        if json.loads(bpftool("map", "show", "id", number))["type"] == "xskmap":
            return number
    raise AssertionError(f"{dev} has no XSKMAP")


@pytest.mark.moves("xskd_xskmap_conflicts")
def test_an_xskmap_entry_that_is_stolen_is_taken_back(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    net = wire(links=4)
    with running(net, tmp_path, config(f"rings: {SMALL}")) as daemon, undisturbed(daemon):
        assert total(daemon.metrics(), "xskd_xskmap_conflicts") == 0
        thief, stolen = net.open("eth0", ns=net.hosts[3]).fileno(), xskmap(daemon, "eth3")
        value = ("value", *map(str, thief.to_bytes(4, "little")))
        for turn in range(1, times(2, 100) + 1):
            assert forwards(net)
            redirected = net.counters(net.hosts[3], "eth0").rx_packets
            os.kill(daemon.pid, signal.SIGSTOP)  # the thief has its time
            bpftool("map", "update", "id", stolen, *QUEUE_0, *value, pass_fds=(thief,))
            net.taps[2].send(net.frames(PACKETS))
            os.kill(daemon.pid, signal.SIGCONT)
            recovers(daemon, "an XSKMAP entry was stolen")
            assert net.eventually(lambda: conflicts(daemon) == turn)  # noqa: B023
            assert net.counters(net.hosts[3], "eth0").rx_packets - redirected < PACKETS
        assert "b/0: another socket was in its place in the XSKMAP of eth3" in daemon.log
        # The kernel tells of packets for a socket of another queue by its driver's counters alone.
        lost = {"interface": "eth3", "stat": "rx_drops"}
        assert net.eventually(
            lambda: total(daemon.metrics(), "xskd_nic_rx_dropped_packets", **lost) >= turn * PACKETS
        )


def conflicts(daemon: Daemon) -> float:
    return total(daemon.metrics(), "xskd_xskmap_conflicts", path="b")


def test_an_xskmap_entry_that_is_deleted_is_put_back(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    """Its packets take the fallback meanwhile, and are counted as that."""
    net = wire(links=4)
    with running(net, tmp_path, config(f"rings: {SMALL}")) as daemon, undisturbed(daemon):
        emptied = xskmap(daemon, "eth3")
        for turn in range(1, times(2, 100) + 1):
            os.kill(daemon.pid, signal.SIGSTOP)
            bpftool("map", "delete", "id", emptied, *QUEUE_0)
            net.taps[2].send(net.frames(PACKETS))
            os.kill(daemon.pid, signal.SIGCONT)
            recovers(daemon, "an XSKMAP entry was deleted")
            passed = total(
                daemon.metrics(), "xskd_xdp_verdicts", interface="eth3", verdict="no_socket_passed"
            )
            assert passed >= turn * PACKETS
        assert conflicts(daemon) == 0
