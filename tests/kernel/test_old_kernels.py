"""What older kernels lack: xskd finds it out, says so, and does what docs/compatibility.md says instead.

Each test asks the kernel it runs on first (kernels.py) and expects accordingly. So it passes on every
kernel, and which half of it was tried depends on the kernel: scripts/test-vm brings others.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import kernels
import pytest
from daemon import Lane, connect, running, total, xskd
from xskd._forward import lib

from xskd.counters import WAKEUPS
from xskd.errors import XskError
from xskd.xsk import Statistics

if TYPE_CHECKING:
    from conftest import MakeWire

    from xskd.xdp import Attach

MTU = 9000
TOO_OLD = "this kernel cannot map the rings of a bound socket (Linux 6.4 can): no adoption"


@pytest.mark.parametrize("attach", ["native", "generic"])
def test_the_program_is_verified_and_a_forwarder_forwards(wire: MakeWire, attach: Attach) -> None:
    net = wire()
    forwarder = net.forward("connect", attach=attach)
    sent = net.frames(300, 200)
    with net.running(forwarder):
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert net.taps[1].through(sent, net.taps[0]) == sent


def test_all_six_statistics_are_told(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.open()
    xsk.transmit(net.written(xsk.umem, net.frames(1)))
    assert net.taps[0].receive(1) == net.frames(1)
    answer = xsk._socket.getsockopt(lib.SOL_XDP, lib.XDP_STATISTICS, 48)
    assert len(answer) == 48
    assert xsk.statistics() == Statistics(tx_ring_empty_descs=xsk.statistics().tx_ring_empty_descs)


def test_a_burst_is_sent_whole_with_or_without_a_budget(wire: MakeWire) -> None:
    net = wire()
    at_once = kernels.has_tx_budget()
    xsk = net.open()
    assert xsk.transmit(net.written(xsk.umem, net.frames(64))) == 64
    assert net.taps[0].receive(64) == net.frames(64)
    calls = sum(xsk.port.counters.wakeups[WAKEUPS.index(reason)] for reason in ("new", "again"))
    assert calls == 1 if at_once else calls > 1


def test_packets_of_several_frames_pass_or_are_refused_by_name(wire: MakeWire) -> None:
    net = wire(mtu=MTU)
    sent = net.frames(20, 4000)
    if kernels.takes_several_frames():
        with net.running(net.forward("connect", multi_buffer=True)):
            assert net.taps[0].through(sent, net.taps[1]) == sent
        return
    with pytest.raises(XskError, match=r"bind.*too old for XDP_USE_SG \(Linux 6\.6\)"):
        net.open(multi_buffer=True)


def test_a_large_mtu_is_served_or_refused_with_the_largest_that_can_be(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire(mtu=MTU)
    if kernels.takes_several_frames():
        sent = net.frames(20, 4000)
        with running(net, tmp_path) as daemon:
            assert net.taps[0].through(sent, net.taps[1]) == sent
            assert total(daemon.metrics(), "xskd_socket_multi_buffer", interface="eth1") == 1
        return
    file = tmp_path / "xskd.yaml"
    file.write_text(connect())
    checked = xskd(net, "check", str(file))
    assert checked.returncode != 0
    assert "MTU 9000 does not fit frames of 4096 bytes, which take up to 3818" in checked.stderr
    assert "run `ip link set dev eth1 mtu 3818`" in checked.stderr


def test_what_drivers_can_do_is_told_or_unknown(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        (able, _) = (each["zerocopy_able"] for each in daemon.status()["interfaces"])
        assert able is (False if kernels.tells_features() else None)
        assert bool(daemon.metrics().get("xskd_interface_zerocopy_able")) is kernels.tells_features()


def test_an_express_lane_opens_or_leaves_its_packets_to_the_workers(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    state, sent = "open" if kernels.tells_features() else "unsupported", net.frames(100)
    with running(net, tmp_path, connect(", express: auto")) as daemon:
        assert net.eventually(lambda: {each["lane"] for each in daemon.status()["interfaces"]} == {state})
        assert net.taps[0].through(sent, net.taps[1]) == sent
        worked = total(daemon.metrics(), "xskd_rx_packets", interface="eth1")
        assert worked == (0 if state == "open" else len(sent))


def test_a_killed_workers_place_is_taken_with_its_sockets_or_with_new_ones(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire()
    adopts = kernels.maps_bound_sockets()
    sent = net.frames(100)
    with running(net, tmp_path) as daemon:
        lane = Lane(net)
        for _ in range(2):
            killed = daemon.workers()["wire/0"]
            os.kill(killed, signal.SIGKILL)
            daemon.comes("wire/0", other_than=killed)
            assert lane.through(sent, net.taps[1]) == sent
        worker = daemon.worker("wire/0")
        assert worker["adoptions"] == ({"adopted": 2} if adopts else {"failed": 1})
        assert worker["restarts"] == {"SIGKILL": 2}
        assert daemon.log.count(TOO_OLD) == (0 if adopts else 1)
        assert total(daemon.metrics(), "xskd_frames_unaccounted") == 0


def test_the_doctor_knows_what_a_restart_will_do(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    file = tmp_path / "xskd.yaml"
    file.write_text(connect())
    said = xskd(net, "doctor", str(file)).stdout
    assert "Linux" in said
    assert ("cannot be mapped before 6.4" in said) is not kernels.maps_bound_sockets()
