"""Routing between zero-copy queues of two drivers: what the program writes in front of a packet arrives."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon import paths, running, total
from nics import QUEUES, MakeNics, NicWire
from routed import Datagrams, answered

from lab import Routers
from lab.routers import FAMILIES

pytest_plugins = "nics"

SIZES = "queues: [0], rings: {fill: 2048, rx: 512, tx: 512, completion: 512}"


@contextmanager
def routers(net: NicWire) -> Iterator[Routers]:
    """Make a router of the machine, and no more of it afterwards."""
    for dev in net.dut_devs:
        net.ethtool("-L", dev, "combined", "1")
    made = Routers(net)
    made.meet()
    try:
        yield made
    finally:
        made.forwarding(on=False)
        for ns, dev in [(net.dut, dev) for dev in net.dut_devs] + [(host, "eth0") for host in net.hosts]:
            subprocess.run(("ip", "-n", ns, "addr", "flush", "dev", dev), check=True)
        for dev in net.dut_devs:
            net.ethtool("-L", dev, "combined", str(QUEUES))


def test_packets_are_routed_between_two_drivers(nics: MakeNics, tmp_path: Path) -> None:
    net = nics("v0", "i0")
    text = paths("lan: {route: [v0, i0], express: off}", "v0", "i0", interface=SIZES)
    with routers(net) as made, running(net, tmp_path, text) as daemon:
        assert net.eventually(lambda: all(map(net.carrier, net.dut_devs)))
        assert total(daemon.metrics(), "xskd_socket_mode", mode="zerocopy") == 2
        for family in FAMILIES:
            target = made.address(1, family)
            assert net.eventually(lambda target=target: answered(net, target))
            with Datagrams(net, 0, family) as one, Datagrams(net, 1, family, port=7000) as other:
                sent = [number.to_bytes(4, "big") * (1 + number * 10) for number in range(30)]
                for payload in sent:
                    one.send(payload, made.address(1, family), 7000)
                assert other.receive(len(sent), 20) == sent
        metrics = daemon.metrics()
        for dev in net.dut_devs:
            assert total(metrics, "xskd_rx_packets", interface=dev) >= 2
            assert total(metrics, "xskd_dropped_packets", interface=dev, reason="no_metadata") == 0
        assert total(metrics, "xskd_rx_packets", interface="v0") >= 60
        assert total(metrics, "xskd_frames_unaccounted") == 0
