"""A daemon without a store on zero-copy queues: killed, it leaves nothing behind, and the queues are free."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from daemon import Leftovers, paths, started, total
from nics import MakeNics, NicWire

from lab.figures import figure

pytest_plugins = "nics"
pytestmark = [pytest.mark.usefixtures("single"), pytest.mark.timeout(600)]

SIZES = "queues: [0], rings: {fill: 2048, rx: 512, tx: 512, completion: 512}"
GONE_MS = 30000  # emulated, on a loaded machine


def test_a_killed_supervisor_without_a_store_leaves_nothing_behind(nics: MakeNics, tmp_path: Path) -> None:
    """Its workers see their channel closed and end; with the last descriptor the programs go, too."""
    net = nics("v0", "i0")
    text = paths("wire: {connect: [v0, i0]}", "v0", "i0", interface=SIZES)
    for directory in (tmp_path / "first", tmp_path / "second"):
        directory.mkdir()
        with started(net, directory, text) as daemon:
            daemon.until_ready()
            assert total(daemon.metrics(), "xskd_socket_mode", mode="zerocopy") == 2
            assert all(map(net.has_carrier, net.dut_devs))
            assert_passes(net)
            left = Leftovers(daemon)
            began = time.monotonic()
            daemon.process.kill()
            daemon.ended()
            assert net.eventually(lambda left=left: left.remaining() == []), left.remaining()
        figure(
            "supervisor killed without a store, until nothing of it is left (emulated)",
            round((time.monotonic() - began) * 1000),
            "ms",
            GONE_MS,
        )
        assert all(map(net.has_carrier, net.dut_devs))


def assert_passes(net: NicWire) -> None:
    sent = net.frames(32)
    for by, to in ((0, 1), (1, 0)):
        assert sorted(net.through(sent, by, to)) == sorted(sent)
