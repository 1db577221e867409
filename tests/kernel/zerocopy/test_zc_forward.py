"""A Forwarder between zero-copy queues: every queue, both drivers, byte by byte."""

from __future__ import annotations

import pytest
from nics import QUEUES, RINGS, MakeNics, number, whole

pytest_plugins = "nics"

PAIRS = [("v0", "v1"), ("i0", "i1"), ("v0", "i0")]


@pytest.mark.parametrize("devs", PAIRS, ids="-".join)
def test_connect_is_byte_exact_on_every_queue(ready: MakeNics, devs: tuple[str, str]) -> None:
    net = ready(*devs)
    forwarders = [net.forward("connect", queue, rings=RINGS) for queue in range(QUEUES)]
    assert all(member.zero_copy for forwarder in forwarders for member in forwarder.sockets)
    with net.running(*forwarders):
        for by, to in ((0, 1), (1, 0)):
            sent = [
                p for size in (60, 61, 600, 1514) for p in net.flows(96, size, first=by * 10000 + size * 100)
            ]
            assert whole(sent, net.through(sent, by, to))
    counts = [f.sockets[0].port.counters.rx_packets for f in forwarders]
    assert all(counts), f"packets by queue: {counts}"


@pytest.mark.parametrize("dev", ["v0", "i0"])
def test_reflect_is_byte_exact_on_every_queue(ready: MakeNics, dev: str) -> None:
    net = ready(dev)
    forwarders = [net.forward("reflect", queue, rings=RINGS) for queue in range(QUEUES)]
    assert all(forwarder.sockets[0].zero_copy for forwarder in forwarders)
    sent = net.flows(200) + net.flows(100, 1514, first=1000)
    back = {number(p): net.swapped(p) for p in sent}
    with net.running(*forwarders):
        got = []
        for start in range(0, len(sent), 32):
            window = sent[start : start + 32]
            net.taps[0].send(window)
            got += net.take(len(window), set(back.values()), 0)
    assert whole(list(back.values()), got)
