"""Each of the kernel's six counters moves by what it is said to count, by exactly so much, and no other one
does.

`rx_invalid_descs` cannot move: it looks at the RX ring, where nobody but the kernel writes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xskd.umem import HEADROOM
from xskd.xsk import Rings, Socket, Statistics

if TYPE_CHECKING:
    from ends import Ends

pytest_plugins = ["ends"]


def counted(xsk: Socket) -> Statistics:
    """What the socket has counted, without how often the kernel found nothing to send: every poll does."""
    return replace(xsk.statistics(), tx_ring_empty_descs=0)


def test_traffic_counts_nothing(ends: Ends) -> None:
    assert ends.through(ends.packets(100)) == ends.packets(100)
    assert counted(ends.rx) == counted(ends.tx) == Statistics()


def test_rx_dropped_counts_packets_longer_than_a_frame(ends: Ends) -> None:
    rx = ends.receiver(frame_size=2048)
    longest = [ends.frame(0, 1500) + bytes(2048 - HEADROOM - 1500)]
    assert ends.through(longest) == longest
    ends.send([packet + b"." for packet in longest] * 10)
    assert ends.seen(lambda: counted(rx) == Statistics(rx_dropped=10))
    assert ends.through(ends.packets(10)) == ends.packets(10)


def test_rx_dropped_counts_packets_that_the_headroom_leaves_no_room_for(ends: Ends) -> None:
    rx = ends.receiver(frame_size=2048, headroom=512)
    longest = [ends.frame(0, 2048 - HEADROOM - 512)]
    assert ends.through(longest) == longest
    ends.send([ends.frame(0, 2048 - HEADROOM - 511)] * 10)
    assert ends.seen(lambda: counted(rx) == Statistics(rx_dropped=10))


def test_headroom_stays_free_in_front_of_each_packet(ends: Ends) -> None:
    rx = ends.receiver(headroom=192)
    ends.send(ends.packets(10))
    assert ends.seen(lambda: rx.port.rings[1].producer[0] == 10)
    with rx.receive() as batch:
        assert [bytes(packet) for packet in batch] == ends.packets(10)
        offsets = {batch._desc(index).addr % rx.umem.frame_size for index in range(10)}
        assert offsets == {HEADROOM + 192}


def test_tx_invalid_descs_counts_descriptors_that_are_refused(ends: Ends) -> None:
    tx = ends.tx
    ends.submit(*[(tx.umem.size, 60, 0)] * 10)
    assert counted(tx) == Statistics(tx_invalid_descs=10)


def test_rx_ring_full_counts_packets_without_a_place_on_rx(ends: Ends) -> None:
    rx = ends.receiver(rings=Rings(fill=64, rx=32, tx=32, completion=32))
    ends.send(ends.packets(30))
    ends.send(ends.packets(30, first=30))
    assert ends.seen(lambda: counted(rx) == Statistics(rx_ring_full=60 - 32))
    assert ends.receive(32) == ends.packets(32)
    assert ends.through(ends.packets(30, first=100)) == ends.packets(30, first=100)


def test_rx_fill_ring_empty_descs_counts_packets_without_a_frame(ends: Ends) -> None:
    rx = ends.receiver(frames=16)
    ends.send(ends.packets(30))
    assert ends.seen(lambda: counted(rx) == Statistics(rx_dropped=14, rx_fill_ring_empty_descs=14))
    assert ends.receive(16) == ends.packets(16)
    rx.receive()  # which puts them on FILL again
    assert ends.through(ends.packets(10, first=100)) == ends.packets(10, first=100)


def test_tx_ring_empty_descs_counts_the_kernel_finding_nothing_to_send(ends: Ends) -> None:
    tx = ends.tx
    for _ in range(3):
        tx._socket.send(b"", 0x40)  # MSG_DONTWAIT
    assert tx.statistics() == Statistics(tx_ring_empty_descs=3)


def test_a_new_socket_starts_at_zero(ends: Ends) -> None:
    rx = ends.receiver(frame_size=2048)
    ends.send([ends.frame(0, 1500) + bytes(1000)])
    assert ends.seen(lambda: rx.statistics().rx_dropped == 1)
    rx.close()
    assert ends.receiver(frame_size=2048).statistics() == Statistics()
