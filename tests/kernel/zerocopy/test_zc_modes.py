"""Which mode a daemon gets of each driver, and what it says and does where that is not zero-copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from daemon import paths, total
from live import (
    DEVS,
    INTERFACE,
    LAN,
    WIRE,
    Live,
    config,
)
from nics import IGB_MTU

from xskd.control import Refused

pytest_plugins = "live"
pytestmark = pytest.mark.timeout(600)  # the first of them starts the daemon


def test_the_mode_in_use_is_told(live: Live) -> None:
    metrics = live.metrics()
    assert total(metrics, "xskd_socket_mode", mode="zerocopy") == 4
    assert total(metrics, "xskd_socket_mode", mode="copy") == 0
    assert {port["mode"] for worker in live.status()["workers"] for port in worker["ports"]} == {"zerocopy"}
    for dev in DEVS:
        assert f"{dev}: XDP program attached, native mode" in live.log
        assert f"{dev} queue 0 bound, zerocopy mode\n" in live.log
    assert live.log.index("XDP program attached") < live.log.index("queue 0 bound")
    assert live.passes(size=60)
    assert live.passes(size=1514)


def test_no_express_lane_leads_into_a_zero_copy_queue(live: Live) -> None:
    """Redirected frames that a virtio_net in zero-copy mode gets are lost, all of them, in silence."""
    live.reload(config(wire=", express: auto", lan=", express: auto"))
    metrics = live.metrics()
    for dev in DEVS:
        assert f"{dev}: express lane closed: a queue of the path is in zero-copy mode" in live.log
        assert total(metrics, "xskd_express_lane", interface=dev, state="zerocopy") == 1
    assert live.passes()
    assert total(live.metrics(), "xskd_xdp_verdicts", verdict="expressed") == 0
    live.reload(config())


@contextmanager
def mtu(live: Live, size: int, *devs: str) -> Iterator[None]:
    """Give interfaces, and their other ends, another MTU."""
    ends = [(live.net.dut, dev) for dev in devs] + [(f"g{dev}", "eth0") for dev in devs]
    for ns, dev in ends:
        live.net.link(ns, dev, "mtu", str(size))
    try:
        yield
    finally:
        for ns, dev in ends:
            live.net.link(ns, dev, "mtu", "1500")


def modes(live: Live, worker: str) -> set[str]:
    return {port["mode"] for port in live.worker(worker)["ports"]}


def test_a_driver_that_announces_zero_copy_and_refuses_it_is_copied_with(live: Live) -> None:
    """virtio_net without VIRTIO_F_ACCESS_PLATFORM, beside paths that have zero-copy."""
    pids = live.workers()
    live.reload(paths(f"{WIRE}, {LAN}, plain: {{reflect: p0}}", *DEVS, "p0", interface=INTERFACE))
    assert live.net.eventually(lambda: live.forwards("plain/0"), 180), live.log
    assert "plain/0: p0 queue 0 bound, copy mode (zero-copy refused: EINVAL (Invalid argument))" in live.log
    metrics = live.metrics()
    assert total(metrics, "xskd_socket_mode", interface="p0", mode="copy") == 1
    assert total(metrics, "xskd_socket_mode_wanted", interface="p0", mode="auto") == 1
    assert total(metrics, "xskd_interface_zerocopy_able", interface="p0") == 1  # says the driver
    assert total(metrics, "xskd_socket_mode", mode="zerocopy") == 4
    sent = live.net.frames(64, 1514)
    live.net.taps[4].send(sent)
    back = [live.net.swapped(packet) for packet in sent]
    assert sorted(live.net.take(64, set(back), 4)) == sorted(back)
    live.reload(config())
    assert live.workers() == pids


def test_a_path_of_which_one_interface_has_no_zero_copy_copies(live: Live) -> None:
    live.reload(paths(f"wire: {{connect: [v0, p0]}}, {LAN}", "v0", "p0", "i0", "i1", interface=INTERFACE))
    assert live.net.eventually(lambda: live.forwards("wire/0"), 180), live.log
    assert "wire/0: not every interface has zero-copy; copy mode for all" in live.log
    assert modes(live, "wire/0") == {"copy"}
    sent = live.net.frames(32, 1514)
    for by, to in ((0, 4), (4, 0)):
        assert sorted(live.net.through(sent, by, to)) == sorted(sent)
    live.reload(config())


def test_where_igb_refuses_a_native_program_its_path_copies(live: Live) -> None:
    """It would grant zero-copy all the same, and then neither receive nor send."""
    live.reload(paths(WIRE, "v0", "v1", interface=INTERFACE))
    with mtu(live, IGB_MTU + 1, "i0", "i1"):
        live.reload(config())
        assert live.net.eventually(lambda: live.forwards("lan/0"), 180), live.log
        assert "i0: XDP program attached, generic mode (EINVAL (Invalid argument))" in live.log
        assert modes(live, "lan/0") == {"copy"}
        assert live.net.eventually(lambda: all(map(live.net.carrier, DEVS)))
        assert live.passes("i", size=IGB_MTU + 15, count=16)

        with pytest.raises(Refused) as refused:
            live.reload(paths(f"{WIRE}, {LAN}", *DEVS, interface=f"{INTERFACE}, mode: zerocopy"))
        print(refused.value)
        live.reload(paths(WIRE, "v0", "v1", interface=INTERFACE))
    with mtu(live, IGB_MTU, "i0", "i1"):
        live.reload(config())
        assert live.net.eventually(lambda: live.forwards("lan/0"), 180), live.log
        assert modes(live, "lan/0") == {"zerocopy"}
        assert live.net.eventually(lambda: all(map(live.net.carrier, DEVS)))
        assert live.passes("i", size=IGB_MTU + 14, count=16)


def test_packets_of_several_frames_are_copied(live: Live) -> None:
    """Neither driver has them in zero-copy mode."""
    with mtu(live, 4000, "v0", "v1"):
        assert live.net.eventually(lambda: modes(live, "wire/0") == {"copy"}, 180), live.log
        assert "(zero-copy refused: EOPNOTSUPP (Operation not supported))" in live.log
        metrics = live.metrics()
        assert total(metrics, "xskd_socket_mode", interface="v0", mode="copy") == 1
        assert total(metrics, "xskd_socket_mode_wanted", interface="v0", mode="auto") == 1
        assert total(metrics, "xskd_interface_zerocopy_able", interface="v0") == 1
        assert total(metrics, "xskd_socket_mode", interface="i0", mode="zerocopy") == 1
        assert live.passes("v", size=3900, count=16)
    assert live.net.eventually(lambda: modes(live, "wire/0") == {"zerocopy"}, 180), live.log
    assert live.passes("v")


def test_a_path_that_insists_on_zero_copy_waits_for_a_smaller_mtu(live: Live) -> None:
    live.reload(config(interface=", mode: zerocopy"))
    with mtu(live, 4000, "v0", "v1"):
        assert live.net.eventually(lambda: "wire" in live.status()["waiting"], 180), live.log
        assert "with zero-copy v0 takes 1 frame a packet" in live.status()["waiting"]["wire"][0]
        assert live.passes("i")
    assert live.net.eventually(lambda: live.forwards("wire/0"), 180)
    live.reload(config())
