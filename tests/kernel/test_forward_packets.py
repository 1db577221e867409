"""What goes into a Forwarder comes out of it: at once, byte for byte, in order, and on the right queue.

That the indices of the rings wrap at 2^32 cannot be shown here: the kernel starts a new ring at 0, and no
test sends that many packets. tests/native does it with rings over plain memory.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, get_args

import pytest

from xskd.forward import Poll
from xskd.xdp import Attach

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

LENGTHS = (60, 61, 64, 65, 127, 128, 511, 1024, 1280, 1500, 1513, 1514)
FRAME_SIZES = pytest.mark.parametrize("frame_size", [2048, 4096])
ATTACH = pytest.mark.parametrize("attach", ["native", "generic"])
POLLS = pytest.mark.parametrize("poll", ["adaptive", "busy", "wakeup"])


@POLLS
@ATTACH
def test_one_packet_in_is_one_packet_out_at_once(wire: MakeWire, attach: Attach, poll: Poll) -> None:
    net = wire()
    forwarder = net.forward(poll=poll, attach=attach)
    for number in range(20):
        here, there = net.taps[:: 1 if number % 2 else -1]
        here.send([net.frame(number)])
        forwarder.run(0)  # one turn of the loop: no second packet, no timer, no second chance
        assert there.waiting() == [net.frame(number)]


@POLLS
@ATTACH
def test_one_packet_reflected_comes_back_at_once_with_its_addresses_swapped(
    wire: MakeWire, attach: Attach, poll: Poll
) -> None:
    net = wire(links=1)
    forwarder = net.forward("reflect", poll=poll, attach=attach)
    for number in range(20):
        net.taps[0].send([net.frame(number)])
        forwarder.run(0)
        assert net.taps[0].waiting() == [net.swapped(net.frame(number))]


@ATTACH
def test_the_first_packets_after_the_attachment_all_arrive(wire: MakeWire, attach: Attach) -> None:
    net = wire()
    forwarder = net.forward(attach=attach)  # FILL, bind, XSKMAP, attach: in this order
    sent = net.frames(100)
    net.taps[0].send(sent)
    forwarder.run(0.02)
    assert net.taps[1].receive(len(sent)) == sent


@FRAME_SIZES
@ATTACH
def test_every_length_passes_unchanged_both_ways(wire: MakeWire, attach: Attach, frame_size: int) -> None:
    net = wire()
    forwarder = net.forward(frame_size=frame_size, attach=attach)
    sent = [net.frame(number, length) for number, length in enumerate(LENGTHS * 5)]
    with net.running(forwarder):
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert net.taps[1].through(sent, net.taps[0]) == sent


@FRAME_SIZES
def test_every_length_is_reflected_with_nothing_changed_but_the_addresses(
    wire: MakeWire, frame_size: int
) -> None:
    net = wire(links=1)
    forwarder = net.forward("reflect", frame_size=frame_size)
    sent = [net.frame(number, length) for number, length in enumerate(LENGTHS * 5)]
    with net.running(forwarder):
        assert net.taps[0].through(sent, net.taps[0]) == [net.swapped(packet) for packet in sent]


@pytest.mark.parametrize("length", [64, 1514])
def test_a_hundred_thousand_packets_pass_byte_for_byte_and_in_order(wire: MakeWire, length: int) -> None:
    net = wire()
    forwarder = net.forward()
    with net.running(forwarder):
        for first in range(0, 100_000, 10_000):
            sent = net.frames(10_000, length, first)
            assert net.taps[0].through(sent, net.taps[1]) == sent
    assert forwarder.drain(1)
    ingress, egress = (member.port.counters for member in forwarder.sockets)
    assert ingress.rx_packets == egress.tx_packets == egress.tx_completed == 100_000
    assert ingress.rx_bytes == egress.tx_bytes == 100_000 * length
    assert net.programs["eth1"].verdicts().redirected == 100_000
    assert sum(ingress.drops) == sum(egress.drops) == 0


def test_traffic_both_ways_at_once_loses_nothing(wire: MakeWire) -> None:
    net = wire()
    forwarder = net.forward()
    there, back = net.frames(5_000), net.frames(5_000, 1514, first=5_000)
    got: tuple[list[bytes], list[bytes]] = ([], [])
    with net.running(forwarder):
        for start in range(0, 5_000, 100):
            for a, b in zip(there[start : start + 100], back[start : start + 100], strict=True):
                net.taps[0].send([a])
                net.taps[1].send([b])
            got[0].extend(net.taps[1].receive(100))
            got[1].extend(net.taps[0].receive(100))
    assert got == (there, back)


def steered(net: Wire, queue: int, packets: list[bytes]) -> None:
    """Send on one queue: what a host's XSK on queue n sends reaches queue n at the other end of the veth."""
    generator = net.open("eth0", queue, ns=net.hosts[0])
    assert generator.transmit(net.written(generator.umem, packets)) == len(packets)


@ATTACH
def test_four_queues_each_have_their_own_forwarder(wire: MakeWire, attach: Attach) -> None:
    net = wire(queues=5)
    forwarders = [net.forward(queue=queue, frames=2 * 4096, attach=attach) for queue in range(4)]
    # A veth records the queue of arrival only for a native program. A generic one finds what the sender wrote
    # where "queue plus 1" is expected, so that it takes a packet of queue 1 for one of queue 0.
    shift = 1 if attach == "generic" else 0
    sent = [net.frames(100 + queue, first=1000 * queue) for queue in range(4)]
    with net.running(*forwarders):
        for queue, packets in enumerate(sent):
            steered(net, queue + shift, packets)
            assert net.taps[1].receive(len(packets)) == packets
    assert [f.sockets[0].port.counters.rx_packets for f in forwarders] == [100, 101, 102, 103]
    assert [f.sockets[1].port.counters.tx_packets for f in forwarders] == [100, 101, 102, 103]


def test_four_queues_reflect_on_the_queue_of_arrival(wire: MakeWire) -> None:
    net = wire(links=1, queues=4)
    forwarders = [net.forward("reflect", queue=queue) for queue in range(4)]
    with net.running(*forwarders):
        for queue in range(4):
            packets = net.frames(50, first=100 * queue)
            steered(net, queue, packets)
            assert net.taps[0].receive(50) == [net.swapped(packet) for packet in packets]
    assert [f.sockets[0].port.counters.tx_packets for f in forwarders] == [50] * 4


def test_a_queue_beyond_256_gets_its_packets(wire: MakeWire) -> None:
    net = wire(links=1, queues=300)
    forwarder = net.forward("reflect", queue=299)
    packets = net.frames(10)
    with net.running(forwarder):
        steered(net, 299, packets)
        assert net.taps[0].receive(10) == [net.swapped(packet) for packet in packets]
    assert net.programs["eth1"].verdicts().redirected == 10


def test_input_on_the_control_descriptor_ends_a_run_early(wire: MakeWire) -> None:
    net = wire(links=1)
    forwarder = net.forward("reflect")
    reading, writing = os.pipe()
    forwarder._forward.control_fd = reading
    assert forwarder.run(0.02) is False
    os.write(writing, b"x")
    before = time.monotonic()
    assert forwarder.run(60) is True
    assert time.monotonic() - before < 30
    os.close(reading)
    os.close(writing)


def test_an_idle_loop_sleeps_unless_it_is_told_to_spin(wire: MakeWire) -> None:
    net = wire(links=1)
    for poll in get_args(Poll):
        forwarder = net.forward("reflect", poll=poll)
        forwarder.run(0.1)
        assert (forwarder.counters.sleeps == 0) is (poll == "busy")
        assert forwarder.counters.turns_idle > 0
        for member in forwarder.sockets:
            member.close()
