"""The express lane of the real daemon: who takes it, who must not, and that closing it loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import SMALL, Daemon, Stream, connect, running, total
from frames import udp
from packets import read
from test_daemon_capture import Client

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

pytestmark = pytest.mark.needs("tells_features")  # without, a lane stays closed: see test_old_kernels.py
AUTO = ", express: auto"


def lane(daemon: Daemon, name: str) -> str:
    (interface,) = (each for each in daemon.status()["interfaces"] if each["name"] == name)
    return str(interface["lane"])


def lanes(daemon: Daemon) -> tuple[str, str]:
    return lane(daemon, "eth1"), lane(daemon, "eth2")


def expressed(daemon: Daemon, name: str = "eth1") -> int:
    (interface,) = (each for each in daemon.status()["interfaces"] if each["name"] == name)
    return int(interface["verdicts"]["expressed"])


def received(daemon: Daemon) -> int:
    """Packets that came to user space, both ways."""
    return sum(
        port["counters"]["rx_packets"] for worker in daemon.status()["workers"] for port in worker["ports"]
    )


@pytest.mark.moves("xskd_xdp_verdicts", verdict="expressed")
@pytest.mark.moves("xskd_xdp_verdict_bytes", verdict="expressed")
@pytest.mark.moves("xskd_express_lane", state=("open", "off"))
def test_auto_sends_everything_by_the_lane_until_it_is_off(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    there, back = net.frames(300), net.frames(200, 900)
    with running(net, tmp_path, connect(AUTO)) as daemon:
        daemon.metrics()
        assert lanes(daemon) == ("open", "open")
        assert "eth2: express lane open" in daemon.log
        assert net.taps[0].through(there, net.taps[1]) == there
        assert net.taps[1].through(back, net.taps[0]) == back
        assert (expressed(daemon), expressed(daemon, "eth2"), received(daemon)) == (300, 200, 0)
        metrics = daemon.metrics()
        assert total(metrics, "xskd_xdp_verdict_bytes", interface="eth2", verdict="expressed") == 200 * 900
        assert total(metrics, "xskd_express_lane", interface="eth1", state="open") == 1
        before = daemon.workers()
        assert daemon.reload(connect(", express: off")) == [
            f"eth{n}: 0 rules, default redirect" for n in (1, 2)
        ]
        assert lanes(daemon) == ("off", "off")
        assert net.taps[0].through(there, net.taps[1]) == there
        assert (expressed(daemon), received(daemon)) == (300, 300)
        assert daemon.workers() == before
        assert total(daemon.metrics(), "xskd_express_lane", interface="eth1", state="off") == 1


def test_a_rule_says_who_takes_the_lane(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    fast, slow = ([udp(port, number) for number in range(50)] for port in (1000, 2000))
    rules = "[{name: fast, protocol: udp, destination_port: 1000, verdict: express}]"
    text = (
        f"interfaces: {{eth1: {{rules: {rules}, rings: {SMALL}}}, eth2: {{rings: {SMALL}}}}}\n"
        "paths: {wire: {connect: [eth1, eth2]}}\n"
    )
    with running(net, tmp_path, text) as daemon:
        assert net.taps[0].through(fast, net.taps[1]) == fast
        assert net.taps[0].through(slow, net.taps[1]) == slow
        assert (expressed(daemon), received(daemon)) == (50, 50)


@pytest.mark.moves("xskd_express_lane", state="capture")
def test_a_capture_closes_the_lane_and_sees_every_packet(wire: MakeWire, tmp_path: Path) -> None:
    net, file = wire(queues=2), tmp_path / "all.pcapng"
    sent = net.frames(400)
    with running(net, tmp_path, connect(AUTO)) as daemon:
        assert net.taps[0].through(sent[:100], net.taps[1]) == sent[:100]
        daemon.metrics()
        client = Client(daemon, "wire", output=file)
        assert lanes(daemon) == ("capture", "capture")
        daemon.metrics()
        assert net.taps[0].through(sent[100:300], net.taps[1]) == sent[100:300]
        client.end()
        assert [packet.data for packet in read(file).packets] == sent[100:300]
        assert net.eventually(lambda: lanes(daemon) == ("open", "open"))
        assert net.taps[0].through(sent[300:], net.taps[1]) == sent[300:]
        assert (expressed(daemon), received(daemon)) == (200, 200)


def test_a_capture_of_one_worker_closes_the_lane_of_the_whole_path(wire: MakeWire, tmp_path: Path) -> None:
    net, file = wire(queues=2), tmp_path / "one.pcapng"
    with running(net, tmp_path, connect(AUTO)) as daemon:
        client = Client(daemon, "wire/1", output=file)
        assert lanes(daemon) == ("capture", "capture")
        client.end()
        assert net.eventually(lambda: lanes(daemon) == ("open", "open"))


def test_captures_that_come_and_go_under_load_cost_no_packet(wire: MakeWire, tmp_path: Path) -> None:
    """Those in the rings may be overtaken when a lane opens; none is lost, and none comes twice."""
    net, file = wire(), tmp_path / "again.pcapng"
    with running(net, tmp_path, connect(AUTO)) as daemon, Stream(net, rate=2_000) as stream:
        for _ in range(3):
            client = Client(daemon, "wire", output=file)
            assert stream.goes_on()
            client.end()
            assert net.eventually(lambda: lanes(daemon) == ("open", "open"))
            assert stream.goes_on()
    assert (stream.lost, stream.doubled, stream.damaged) == (0, 0, 0), stream


@pytest.mark.moves("xskd_express_lane", state="unsupported")
def test_the_lane_is_closed_where_the_driver_would_lose_what_it_gets(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    sent = net.frames(300)
    net.run(net.hosts[1], "ethtool", "-K", "eth0", "gro", "off")  # and it has no program
    with running(net, tmp_path, connect(AUTO)) as daemon:
        assert lanes(daemon) == ("open", "unsupported")
        assert "eth2: express lane closed: the driver takes no redirected frames" in daemon.log
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert (expressed(daemon), received(daemon)) == (0, 300)
        daemon.metrics()
        net.run(net.hosts[1], "ethtool", "-K", "eth0", "gro", "on")
        assert net.eventually(lambda: lanes(daemon) == ("open", "open"), 2), "only the poll has seen it"
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert (expressed(daemon), received(daemon)) == (300, 300)
        daemon.metrics()
        net.run(net.hosts[1], "ethtool", "-K", "eth0", "gro", "off")
        assert net.eventually(lambda: lanes(daemon) == ("open", "unsupported"), 2)
        assert net.taps[0].through(sent, net.taps[1]) == sent


@pytest.mark.moves("xskd_express_lane", state="waiting")
def test_the_lane_waits_for_every_worker_of_its_path(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path, connect(AUTO)) as daemon:
        daemon.metrics()
        net.link(net.dut, "eth2", "mtu", "60000")
        assert net.eventually(lambda: lanes(daemon) == ("waiting", "waiting")), daemon.log
        daemon.metrics()
        net.link(net.dut, "eth2", "mtu", "1500")
        assert net.eventually(lambda: lanes(daemon) == ("open", "open"), 15), daemon.log
        sent = net.frames(100)
        assert net.taps[0].through(sent, net.taps[1]) == sent


def test_a_killed_worker_does_not_close_the_lane(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path, connect(AUTO)) as daemon, Stream(net, rate=2_000) as stream:
        pid = daemon.workers()["wire/0"]
        net.run(net.dut, "kill", "-KILL", str(pid))
        daemon.comes("wire/0", other_than=pid)
        assert lanes(daemon) == ("open", "open")
    assert stream.whole, stream
    assert "lane closed" not in daemon.log


@pytest.fixture
def narrow(wire: MakeWire) -> Iterator[Wire]:
    """Make a network whose second host takes less than the dut thinks: the driver refuses longer frames."""
    net = wire()
    net.link(net.hosts[1], "eth0", "mtu", "1000")
    yield net


@pytest.mark.moves("xskd_nic_tx_dropped_packets", stat="tx_xdp_xmit_errors")
def test_what_the_egress_loses_of_the_lanes_packets_is_counted(narrow: Wire, tmp_path: Path) -> None:
    net = narrow

    def lost() -> float:
        found = daemon.metrics()["xskd_nic_tx_dropped_packets"]
        return sum(value for labels, value in found if labels["stat"] == "tx_xdp_xmit_errors")

    with running(net, tmp_path, connect(AUTO)) as daemon:
        assert net.eventually(lambda: "xskd_nic_tx_dropped_packets" in daemon.metrics())
        sent = net.frames(50, 1400)
        net.taps[0].send(sent)
        assert net.eventually(lambda: lost() == 50)
        assert net.taps[1].waiting() == []
        assert expressed(daemon) == 50
