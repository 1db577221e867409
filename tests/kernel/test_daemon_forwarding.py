"""The daemon forwards what its YAML says, and its metrics are the truth about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import SMALL, Daemon, Lane, connect, paths, running, total

from xskd.metrics import DAEMON_ROWS, INTERFACE_ROWS, PORT_ROWS, TABLE, WORKER_ROWS

if TYPE_CHECKING:
    from conftest import MakeWire

QUEUES = pytest.mark.parametrize("queues", [1, 4])
LENGTHS = (60, 64, 65, 128, 511, 1024, 1513, 1514)


def counted(daemon: Daemon, name: str, interface: str, queue: int) -> float:
    return total(daemon.metrics(), name, interface=interface, queue=str(queue))


@pytest.mark.moves("xskd_rx_packets")
@pytest.mark.moves("xskd_rx_bytes")
@pytest.mark.moves("xskd_tx_packets")
@pytest.mark.moves("xskd_tx_bytes")
@pytest.mark.moves("xskd_tx_frames")
@pytest.mark.moves("xskd_tx_completed_packets")
@pytest.mark.moves("xskd_xdp_verdicts", verdict="redirected")
@QUEUES
def test_connect_passes_every_byte_both_ways_and_counts_it_by_queue(
    wire: MakeWire, tmp_path: Path, queues: int
) -> None:
    net = wire(queues=queues)
    each = 10_000 // queues // 2
    expected: dict[tuple[str, str, int], int] = {}
    with running(net, tmp_path) as daemon:
        for queue in range(queues):
            for host, interface in ((0, "eth1"), (1, "eth2")):
                sent = [net.frame(number, LENGTHS[number % 8]) for number in range(each - queue)]
                assert Lane(net, queue, host).through(sent, net.taps[1 - host]) == sent
                expected["packets", interface, queue] = len(sent)
                expected["bytes", interface, queue] = sum(map(len, sent))
        assert net.eventually(lambda: in_flight(daemon) == 0)
        metrics = daemon.metrics()
    for (unit, interface, queue), amount in expected.items():
        other = "eth2" if interface == "eth1" else "eth1"
        at = {"path": "wire", "queue": str(queue)}
        assert total(metrics, f"xskd_rx_{unit}", interface=interface, **at) == amount
        assert total(metrics, f"xskd_tx_{unit}", interface=other, **at) == amount
        if unit == "packets":
            assert total(metrics, "xskd_tx_completed_packets", interface=other, **at) == amount
    for interface in ("eth1", "eth2"):
        everything = sum(expected["packets", interface, queue] for queue in range(queues))
        assert total(metrics, "xskd_xdp_verdicts", interface=interface, verdict="redirected") == everything
    assert total(metrics, "xskd_dropped_packets") == total(metrics, "xskd_frames_unaccounted") == 0


def in_flight(daemon: Daemon) -> int:
    """Frames that are neither free nor lent to FILL or the kernel's receiving side."""
    frames = [worker["counters"]["frames_in"] for worker in daemon.status()["workers"]]
    return sum(each[place] for each in frames for place in ("rx", "held", "tx", "completion"))


@QUEUES
def test_reflect_sends_back_with_addresses_swapped_on_the_same_queue(
    wire: MakeWire, tmp_path: Path, queues: int
) -> None:
    net = wire(links=1, queues=queues)
    with running(net, tmp_path, paths("echo: {reflect: eth1}", "eth1")) as daemon:
        for queue in range(queues):
            sent = [net.frame(number, LENGTHS[number % 8]) for number in range(1_000)]
            assert Lane(net, queue).through(sent, net.taps[0]) == [net.swapped(packet) for packet in sent]
            assert counted(daemon, "xskd_rx_packets", "eth1", queue) == 1_000
            assert counted(daemon, "xskd_tx_packets", "eth1", queue) == 1_000


def test_ping_passes_through_connect(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=4)
    for host in (0, 1):
        net.run(net.hosts[host], "ip", "addr", "add", f"{net.ip_of(host)}/24", "dev", "eth0")
    with running(net, tmp_path):
        said = net.run(net.hosts[0], "ping", "-c", "5", "-i", "0.05", "-W", "3", net.ip_of(1)).stdout
    assert "5 received, 0% packet loss" in said


def test_two_paths_forward_side_by_side_and_do_not_mix(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=5)
    text = paths(
        "a: {connect: [eth1, eth2]}, b: {connect: [eth3, eth4], poll: wakeup}, echo: {reflect: eth5}",
        *net.dut_devs,
    )
    with running(net, tmp_path, text) as daemon:
        for source, target, first in ((0, 1, 0), (1, 0, 500), (2, 3, 1_000), (3, 2, 1_500)):
            sent = net.frames(500, 100, first)
            assert net.taps[source].through(sent, net.taps[target]) == sent
        assert net.taps[4].through(sent, net.taps[4]) == [net.swapped(packet) for packet in sent]
        assert [tap.waiting() for tap in net.taps] == [[]] * 5
        assert sorted(daemon.workers()) == ["a/0", "b/0", "echo/0"]
        metrics = daemon.metrics()
    for path, packets in (("a", 1_000), ("b", 1_000), ("echo", 500)):
        assert total(metrics, "xskd_rx_packets", path=path) == packets


def test_selected_queues_are_joined_in_order(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=3)
    text = "interfaces: {eth1: {queues: [0, 2]}, eth2: {queues: [1, 2]}}\n"
    with running(net, tmp_path, text + "paths: {wire: {connect: [eth1, eth2]}}\n") as daemon:
        sent = net.frames(200)
        assert Lane(net, 0).through(sent, net.taps[1]) == sent
        assert counted(daemon, "xskd_rx_packets", "eth1", 0) == 200
        assert counted(daemon, "xskd_tx_packets", "eth2", 1) == 200


def test_every_metric_of_the_table_is_served_with_its_labels(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    # What has a series for each cause that has occurred, or on some drivers, or for each reason of `route`.
    others = {"xskd_worker_restarts", "xskd_nic_tx_dropped_packets", "xskd_unroutable_packets"}
    text = connect(interface=f"rules: [{{vlan: 7, verdict: drop}}], rings: {SMALL}")
    with running(net, tmp_path, text) as daemon:
        metrics = daemon.metrics()
    served = {re.sub("_(bucket|sum|count)$", "", name) for name in metrics if name.startswith("xskd_")}
    assert {row.name for row in TABLE} == served
    ports = {("wire", interface, queue) for interface in ("eth1", "eth2") for queue in ("0", "1")}
    workers = {("wire", "0"), ("wire", "1")}
    interfaces = {("wire", "eth1"), ("wire", "eth2")}
    for rows, subjects in (
        (PORT_ROWS, ports),
        (WORKER_ROWS, workers),
        (INTERFACE_ROWS, interfaces),
        (DAEMON_ROWS, {("wire",)}),
    ):
        for row in rows:
            if row.name in others:
                continue
            samples = [labels for labels, _ in metrics[row.name]]
            assert all(set(labels) - {"le"} == set(row.labels) for labels in samples), row.name
            keys = [name for name in ("path", "interface", "queue") if name in row.labels]
            found = {tuple(labels[key] for key in keys) for labels in samples}
            assert found == {subject[: len(keys)] for subject in subjects}, row.name


def test_frames_are_all_accounted_for_under_traffic(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        lane = Lane(net)
        for _ in range(20):
            lane.through(net.frames(128), net.taps[1])
            metrics = daemon.metrics()
            assert total(metrics, "xskd_frames", path="wire", queue="0") == planned(daemon)
            assert total(metrics, "xskd_frames_unaccounted") == 0


def planned(daemon: Daemon) -> int:
    """Frames of one worker: one for each entry of all rings."""
    (worker,) = daemon.status()["workers"]
    return sum(entries for port in worker["ports"] for entries in port["rings"].values())


@pytest.mark.moves("xskd_xdp_attached", mode=("generic", "native"))
def test_mode_and_attachment_in_use_are_told(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    text = "interfaces: {eth1: {attach: generic}, eth2: {mode: copy}}\npaths: {w: {connect: [eth1, eth2]}}\n"
    with running(net, tmp_path, text) as daemon:
        for interfaces in (("eth1", "eth2"), ("eth2", "eth1")):
            metrics = daemon.metrics()
            for interface, attach in zip(interfaces, ("generic", "native"), strict=True):
                assert total(metrics, "xskd_socket_mode", interface=interface, mode="copy") == 1
                assert total(metrics, "xskd_socket_mode", interface=interface, mode="zerocopy") == 0
                assert total(metrics, "xskd_xdp_attached", interface=interface, mode=attach) == 1
                assert total(metrics, "xskd_xdp_attached", interface=interface) == 1
            daemon.reload(text.replace("{attach: generic}", "{}").replace("mode: copy", "attach: generic"))


@pytest.mark.moves("xskd_dropped_packets", reason="oversize")
def test_a_packet_too_long_for_the_egress_is_dropped_and_counted(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    net.link(net.dut, "eth2", "mtu", "1000")
    with running(net, tmp_path) as daemon:
        net.taps[0].send([net.frame(1, 1514), net.frame(2, 64)])
        assert net.taps[1].receive(1) == [net.frame(2, 64)]
        metrics = daemon.metrics()
    assert total(metrics, "xskd_dropped_packets", interface="eth1", reason="oversize") == 1
    assert total(metrics, "xskd_dropped_packets") == 1
    assert total(metrics, "xskd_rx_packets", interface="eth1") == 2


def test_metrics_can_be_off(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path, connect(rest="metrics: {listen: off}")) as daemon:
        with pytest.raises(OSError, match="Connection refused"):
            daemon.metrics()
        assert daemon.status()["ready"]
