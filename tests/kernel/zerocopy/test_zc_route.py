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

PACKETS = 400  # of a stream
WINDOW = 20  # of them on their way at once
LONGEST = 1452  # bytes that a datagram of IPv6 carries
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
    """A stream of every length each way, of both families."""
    net = nics("v0", "i0")
    text = paths("lan: {route: [v0, i0], express: off}", "v0", "i0", interface=SIZES)
    with routers(net) as made, running(net, tmp_path, text) as daemon:
        assert net.eventually(lambda: all(map(net.carrier, net.dut_devs)))
        assert total(daemon.metrics(), "xskd_socket_mode", mode="zerocopy") == 2
        for family in FAMILIES:
            target = made.address(1, family)
            assert net.eventually(lambda target=target: answered(net, target))
            for by, to in ((0, 1), (1, 0)):
                with Datagrams(net, by, family) as one, Datagrams(net, to, family, port=7000) as other:
                    assert streamed(one, other, made.address(to, family))
        metrics = daemon.metrics()
        for dev in net.dut_devs:
            assert total(metrics, "xskd_rx_packets", interface=dev) >= len(FAMILIES) * PACKETS
            assert total(metrics, "xskd_dropped_packets", interface=dev) == 0
        assert total(metrics, "xskd_frames_unaccounted") == 0


def streamed(one: Datagrams, other: Datagrams, address: str) -> bool:
    """Send payloads of 4 bytes to as many as fit; have all arrived unchanged and in order?"""
    sent = [number.to_bytes(4, "big") * (1 + number * LONGEST // 4 // PACKETS) for number in range(PACKETS)]
    got = []
    for start in range(0, PACKETS, WINDOW):
        window = sent[start : start + WINDOW]
        for payload in window:
            one.send(payload, address, 7000)
        got += other.receive(len(window), 20)
    return got == sent
