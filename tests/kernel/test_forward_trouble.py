"""When something on the way of the packets fails: every packet comes out or is counted, and it heals."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from xskd.counters import DROPS
from xskd.errors import XskError
from xskd.forward import Forwarder, Poll
from xskd.xsk import Rings

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

SMALL = Rings(fill=1024, rx=512, tx=256, completion=512)
BURST = 100  # at most what a veth's own ring holds


def dropped(forwarder: Forwarder, reason: str) -> int:
    return sum(int(member.port.counters.drops[DROPS.index(reason)]) for member in forwarder.sockets)


def all_drops(forwarder: Forwarder) -> int:
    return sum(sum(member.port.counters.drops) for member in forwarder.sockets)


def push(net: Wire, forwarder: Forwarder, count: int) -> None:
    """Send `count` packets from host 0, never more than the RX ring holds: what is lost, the loop dropped."""
    ingress = forwarder.sockets[0].port.counters
    start = int(ingress.rx_packets)

    def taken(packets: int) -> bool:
        return net.eventually(lambda: ingress.rx_packets - start == packets)

    for first in range(0, count, BURST):
        net.taps[0].send(net.frames(BURST, first=first))
        assert taken(first + BURST)


def flows(net: Wire, packets: int = 50, first: int = 10**6) -> None:
    """Packets pass both ways, and nothing else is on the wire."""
    there = net.frames(packets, first=first)
    assert net.taps[0].through(there, net.taps[1]) == there
    assert net.taps[1].through(there, net.taps[0]) == there


def test_a_dead_egress_costs_counted_drops_while_the_ingress_goes_on(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward(rings=SMALL)
    egress = forwarder.sockets[1].port.counters
    with net.running(forwarder):
        flows(net)
        net.link(net.dut, "eth2", "down")
        push(net, forwarder, 1000)  # the ingress takes every packet although none can leave
        assert net.eventually(lambda: dropped(forwarder, "tx_full") == 1000 - SMALL.tx)
        net.up(net.dut, "eth2")
        kept = net.taps[1].receive(SMALL.tx)  # what waited on TX leaves as soon as it can
        assert kept == net.frames(SMALL.tx)
        flows(net)
    assert net.taps[1].waiting() == []
    assert all_drops(forwarder) == dropped(forwarder, "tx_full") == 1000 - len(kept)
    assert egress.wakeup_errors[3] > 0  # ENETDOWN
    assert forwarder.sockets[0].statistics().rx_dropped == 0


def test_packets_for_a_peer_without_carrier_are_counted_as_refused(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward(rings=SMALL)
    with net.running(forwarder):
        net.link(net.hosts[1], "eth0", "down")
        push(net, forwarder, 500)
        assert net.eventually(lambda: all_drops(forwarder) == 500)
        net.up(net.hosts[1], "eth0")
        flows(net)
    assert dropped(forwarder, "tx_refused") + dropped(forwarder, "tx_full") == 500
    assert dropped(forwarder, "tx_refused") == forwarder.sockets[1].port.counters.wakeup_errors[1] > 0


def test_the_ingress_link_goes_down_and_up_under_traffic(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward()
    with net.running(forwarder):
        for _ in range(3):
            flows(net)
            net.link(net.dut, "eth1", "down")
            net.taps[1].send(net.frames(20))  # these wait on TX for the link
            net.up(net.dut, "eth1")
            assert net.taps[0].receive(20) == net.frames(20)
        flows(net)
    assert all_drops(forwarder) == 0


def test_the_other_direction_goes_on_while_one_egress_is_down(wire: MakeWire) -> None:
    net = wire(links=2)
    forwarder = net.forward(rings=SMALL)
    with net.running(forwarder):
        net.link(net.hosts[1], "eth0", "down")  # eth2 of the dut has no carrier
        push(net, forwarder, 300)
        net.up(net.hosts[1], "eth0")
        back = net.frames(100)
        assert net.taps[1].through(back, net.taps[0]) == back


@pytest.mark.moves("xskd_fill_starved_turns")
@pytest.mark.parametrize("frames", [32, 64, 200])
def test_starved_of_frames_it_recovers_and_conserves_them(wire: MakeWire, frames: int) -> None:
    net = wire(links=1)
    forwarder = net.forward("reflect", frames=frames)
    ingress = forwarder.sockets[0]
    sent = net.frames(frames + 30)
    net.taps[0].send(sent)  # more than there are frames, before the loop runs
    assert ingress.statistics().rx_fill_ring_empty_descs == 30
    forwarder.run(0)
    assert ingress.port.counters.fill_starved > 0
    with net.running(forwarder):
        assert net.taps[0].receive(frames) == [net.swapped(packet) for packet in sent[:frames]]
        assert net.eventually(lambda: ingress.port.rx_side == frames)  # all back on FILL
        again = net.frames(20, first=5000)
        assert net.taps[0].through(again, net.taps[0]) == [net.swapped(packet) for packet in again]
    assert forwarder.drain(1)
    assert forwarder.places()["fill"] + forwarder.places()["free"] == frames


def test_an_ingress_that_is_refused_all_frames_leaves_the_other_direction_whole(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward(frames=100)  # the first port's FILL takes them all
    first, second = forwarder.sockets
    with net.running(forwarder):
        net.taps[1].send(net.frames(50))
        for start in range(0, 2000, 50):
            sent = net.frames(50, first=start)
            assert net.taps[0].through(sent, net.taps[1]) == sent
            assert net.eventually(lambda: first.port.rx_side == 100)
    assert second.port.counters.fill_starved > 0
    assert second.statistics().rx_fill_ring_empty_descs == second.statistics().rx_dropped == 50


@pytest.mark.parametrize("poll", ["adaptive", "busy", "wakeup"])
def test_a_removed_device_ends_the_run_with_its_name_even_when_idle(wire: MakeWire, poll: Poll) -> None:
    net = wire()
    forwarder = net.forward(poll=poll)
    net.link(net.dut, "eth2", "down")
    net.run(net.dut, "ip", "link", "del", "eth2")
    with pytest.raises(XskError, match=r"eth2 queue 0\): ENXIO .*its device is gone") as raised:
        forwarder.run(0.05)
    assert (raised.value.interface, raised.value.queue, raised.value.errno) == ("eth2", 0, errno.ENXIO)


def test_a_device_removed_under_traffic_loses_no_frame(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward(rings=SMALL)
    with pytest.raises(XskError, match="eth2 queue 0"), net.running(forwarder):
        flows(net)
        net.run(net.dut, "ip", "link", "del", "eth2")
        net.taps[0].send(net.frames(50))
        assert net.eventually(lambda: forwarder.sockets[1].port.error == errno.ENXIO)


@pytest.mark.moves("xskd_wakeup_errors", errno="ENXIO")
def test_a_device_removed_before_a_packet_could_leave_by_it(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward()
    net.taps[0].send(net.frames(1))
    net.run(net.dut, "ip", "link", "del", "eth2")
    with pytest.raises(XskError, match="eth2 queue 0"):
        forwarder.run(0.05)
    assert list(forwarder.sockets[1].port.counters.wakeup_errors) == [0, 0, 0, 0, 1, 0]


def test_a_renamed_interface_keeps_its_sockets(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward()
    with net.running(forwarder):
        net.link(net.dut, "eth2", "down")
        net.link(net.dut, "eth2", "name", "uplink0")
        net.up(net.dut, "uplink0")
        flows(net)


def test_packets_too_long_for_the_egress_are_dropped_as_oversize(wire: MakeWire) -> None:
    net = wire(mtu=3000)
    forwarder = net.forward()
    forwarder.sockets[1].port.max_length = 1518  # an egress with MTU 1500
    with net.running(forwarder):
        net.taps[0].send([net.frame(0, 1518), net.frame(1, 1519), net.frame(2, 3000), net.frame(3, 60)])
        assert net.taps[1].receive(2) == [net.frame(0, 1518), net.frame(3, 60)]
        assert net.eventually(lambda: dropped(forwarder, "oversize") == 2)
    assert all_drops(forwarder) == 2
    assert forwarder.sockets[1].statistics().tx_invalid_descs == 0


def test_stopping_sends_what_is_on_its_way(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward()
    net.taps[0].send(net.frames(100))
    net.programs["eth1"].remove(0)
    net.programs["eth2"].remove(0)
    assert forwarder.drain(5)
    assert net.taps[1].waiting() == net.frames(100)
    places = forwarder.places()
    assert places["fill"] + places["free"] == 8192
