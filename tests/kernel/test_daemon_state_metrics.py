"""What /metrics says of interfaces, NICs, reloads and states, each moved by what really moves it.

xskd_interface_zerocopy_able cannot be 1 here: no virtual interface has zero-copy.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import SMALL, Daemon, Lane, connect, paths, running, total
from test_daemon_links import ALL, join, set_queues
from test_daemon_ownership import attach
from test_daemon_reload import both

from xskd import nic
from xskd.control import Refused
from xskd.watch import POLL_SECONDS

if TYPE_CHECKING:
    from conftest import MakeWire

SOON = 2 * POLL_SECONDS + nic.READ_SECONDS  # for what is seen by a poll, on a busy machine
TINY = "{fill: 64, rx: 64, tx: 64, completion: 64}"


def shows(daemon: Daemon, name: str, value: float, **labels: str) -> bool:
    """Tell whether a metric comes to have this value."""
    return daemon.net.eventually(lambda: total(daemon.metrics(), name, **labels) == value, SOON)


def lost(daemon: Daemon, dev: str, stat: str, queue: str = "0") -> float:
    found = daemon.metrics()["xskd_nic_rx_dropped_packets"]
    labels = {"interface": dev, "queue": queue, "stat": stat}
    return sum(value for given, value in found if labels.items() <= given.items())


def grows(daemon: Daemon, dev: str, stat: str, beyond: float = 0) -> bool:
    """Tell whether an interface-wide counter comes to be more than that."""
    name, labels = "xskd_interface_rx_dropped_packets", {"interface": dev, "stat": stat}
    return daemon.net.eventually(lambda: total(daemon.metrics(), name, **labels) > beyond, SOON)


# ---- interfaces ------------------------------------------------------------------------------------


@pytest.mark.moves("xskd_interface_up")
@pytest.mark.moves("xskd_interface_info")
@pytest.mark.moves("xskd_worker_state", state=("waiting", "forwarding"))
def test_what_is_known_of_an_interface_follows_it(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon:
        at = {"path": "b", "interface": "eth4"}
        veth = {**at, "driver": "veth"}
        metrics = daemon.metrics()
        assert total(metrics, "xskd_interface_up") == total(metrics, "xskd_interface_info") == 4
        assert total(metrics, "xskd_interface_zerocopy_able", **at) == 0
        assert metrics["xskd_info"][0][0]["kernel"] == platform.release()
        net.link(net.dut, "eth4", "down")
        assert shows(daemon, "xskd_interface_up", 0, **at)
        assert total(daemon.metrics(), "xskd_interface_info", **veth) == 1
        net.up(net.dut, "eth4")
        assert shows(daemon, "xskd_interface_up", 1, **at)
        net.run(net.dut, "ip", "link", "del", "eth4")
        assert shows(daemon, "xskd_interface_queues", 0, **at)
        assert shows(daemon, "xskd_worker_state", 1, path="b", queue="0", state="waiting")
        metrics = daemon.metrics()
        assert total(metrics, "xskd_worker_state") == 2  # one for each worker
        assert total(metrics, "xskd_interface_up", **at) == 0
        assert total(metrics, "xskd_interface_queues_without_socket", **at) == 0
        for name in ("xskd_interface_info", "xskd_interface_zerocopy_able"):
            assert [given for given, _ in metrics[name] if at.items() <= given.items()] == []
        join(net, 3)
        assert shows(daemon, "xskd_worker_state", 1, path="b", queue="0", state="forwarding")
        assert total(daemon.metrics(), "xskd_interface_info", **veth) == 1


@pytest.mark.moves("xskd_interface_queues_without_socket")
def test_queues_without_a_worker_are_counted(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=3)
    set_queues(net, 2)
    with running(net, tmp_path, ALL.replace("queues: all", "queues: [0, 1]")) as daemon:
        name, at = "xskd_interface_queues_without_socket", {"path": "wire", "interface": "eth1"}
        assert total(daemon.metrics(), name, **at) == 0
        set_queues(net, 3)
        assert shows(daemon, name, 1, **at)
        daemon.reload(ALL)
        assert shows(daemon, name, 0, **at)
        daemon.reload(ALL.replace("queues: all", "queues: [1]"))
        assert shows(daemon, name, 2, **at)


@pytest.mark.moves("xskd_interface_foreign_program")
def test_a_foreign_program_shows_while_it_is_there(
    wire: MakeWire, tmp_path: Path, foreign_program: Path
) -> None:
    net = wire(links=4)
    attach(net, "eth4", foreign_program)
    with running(net, tmp_path, both()) as daemon:
        name, at = "xskd_interface_foreign_program", {"path": "b", "interface": "eth4"}
        assert total(daemon.metrics(), name, **at) == total(daemon.metrics(), name) == 1
        net.link(net.dut, "eth4", "xdpdrv", "off")
        daemon.comes("b/0")
        for _ in range(20):  # nor is ours taken for one, before and after the next look
            assert total(daemon.metrics(), name) == 0
            time.sleep(0.01)


@pytest.mark.moves("xskd_socket_mode_wanted", mode=("auto", "copy", "zerocopy"))
def test_the_wanted_mode_is_that_of_the_file(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        assert shows(daemon, "xskd_socket_mode_wanted", 2, mode="auto")
        daemon.reload(connect(interface=f"mode: copy, rings: {SMALL}"))
        assert shows(daemon, "xskd_socket_mode_wanted", 2, mode="copy")
        with pytest.raises(Refused):  # no veth has it, and that is what the file wants all the same
            daemon.reload(connect(interface=f"mode: zerocopy, rings: {SMALL}"))
        assert shows(daemon, "xskd_socket_mode_wanted", 2, mode="zerocopy")
        assert total(daemon.metrics(), "xskd_socket_mode_wanted") == 2


# ---- losses ----------------------------------------------------------------------------------------


@pytest.mark.moves("xskd_nic_rx_dropped_packets", stat="rx_drops")
@pytest.mark.moves("xskd_interface_rx_dropped_packets", stat="rx_dropped")
def test_what_the_rings_had_no_room_for_is_in_the_nics_counter_too(wire: MakeWire, tmp_path: Path) -> None:
    """A full egress keeps frames until FILL is empty: the driver drops what it cannot redirect."""
    net = wire(links=1)
    text = paths("echo: {reflect: eth1}", "eth1", interface=f"rings: {TINY}", rest="umem: {frames: 256}")
    with running(net, tmp_path, text) as daemon:
        lane = Lane(net)
        assert lost(daemon, "eth1", "rx_drops") == 0

        def flooded() -> bool:
            lane.send(net.frames(256))
            kernel = daemon.worker("echo/0")["ports"][0]["kernel"]
            return bool(kernel["rx_dropped"] or kernel["rx_ring_full"])

        assert net.eventually(flooded)
        assert net.eventually(lambda: lost(daemon, "eth1", "rx_drops") > 0, SOON)
        assert grows(daemon, "eth1", "rx_dropped")  # veth adds its queues up


@pytest.mark.moves("xskd_xdp_verdict_bytes", verdict="no_socket_dropped")
def test_drops_of_the_program_and_sums_over_interfaces_made_anew(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both(", fallback: drop")) as daemon:
        net.run(net.dut, "ip", "link", "del", "eth4")
        assert shows(daemon, "xskd_worker_state", 1, path="b", state="waiting")
        net.taps[2].send(net.frames(30))  # nobody takes them
        assert net.eventually(lambda: lost(daemon, "eth3", "rx_xdp_drops") == 30, SOON)
        assert (
            total(daemon.metrics(), "xskd_xdp_verdicts", interface="eth3", verdict="no_socket_dropped") == 30
        )
        net.run(net.dut, "ip", "link", "del", "eth3")
        assert shows(daemon, "xskd_interface_queues", 0, interface="eth3")
        assert lost(daemon, "eth3", "rx_xdp_drops") == 30
        join(net, 2)
        assert shows(daemon, "xskd_xdp_attached", 1, interface="eth3")
        net.taps[2].send(net.frames(20))
        assert net.eventually(lambda: lost(daemon, "eth3", "rx_xdp_drops") == 50, SOON)
        assert (
            total(daemon.metrics(), "xskd_xdp_verdicts", interface="eth3", verdict="no_socket_dropped") == 50
        )


@pytest.mark.moves("xskd_xdp_verdict_bytes", verdict="no_socket_passed")
def test_packets_that_took_the_fallback_and_that_nobody_wants_are_dropped_by_the_kernel(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire(queues=2)
    with running(net, tmp_path, connect(interface=f"queues: [0], rings: {SMALL}")) as daemon:
        assert grows(daemon, "eth1", "rx_dropped", -1)
        before = total(
            daemon.metrics(), "xskd_interface_rx_dropped_packets", interface="eth1", stat="rx_dropped"
        )
        Lane(net, 1).send(net.frames(50))
        assert grows(daemon, "eth1", "rx_dropped", before + 49)


# ---- reloads ---------------------------------------------------------------------------------------


@pytest.mark.moves("xskd_config_generation")
@pytest.mark.moves("xskd_config_reloads", result=("success", "failure"))
@pytest.mark.moves("xskd_config_last_reload_successful")
@pytest.mark.moves("xskd_config_last_reload_timestamp_seconds")
def test_reloads_good_bad_and_dry(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:

        def told() -> tuple[float, ...]:
            metrics = daemon.metrics()
            return (
                total(metrics, "xskd_config_generation"),
                total(metrics, "xskd_config_reloads", result="success"),
                total(metrics, "xskd_config_reloads", result="failure"),
                total(metrics, "xskd_config_last_reload_successful"),
            )

        name = "xskd_config_last_reload_timestamp_seconds"
        started = total(daemon.metrics(), "xskd_start_time_seconds")
        assert told() == (1, 0, 0, 1)
        assert total(daemon.metrics(), name) == started
        daemon.reload()
        assert told() == (2, 1, 0, 1)
        at = total(daemon.metrics(), name)
        assert started < at <= time.time()
        with pytest.raises(Refused):
            daemon.reload(connect(interface="mode: fast"))
        assert told() == (2, 1, 1, 0)
        assert total(daemon.metrics(), name) > at
        daemon.reload(connect())
        assert told() == (3, 2, 1, 1)
