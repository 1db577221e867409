"""What is sent arrives: whole, once and in order, in every mode, however one waits and whoever comes and
goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from xskd.xsk import Rings

if TYPE_CHECKING:
    from ends import Ends

pytest_plugins = ["ends"]

WINDOW = 32  # packets: fewer than a ring has entries
PATIENCE = 5.0  # seconds


def test_send_and_receive(ends: Ends, times: Callable[[int, int], int]) -> None:
    sent = [ends.frame(number, 60 + number % 1455) for number in range(times(1000, 50_000))]
    assert ends.through(sent) == sent


def test_frames_of_2_kb(ends: Ends) -> None:
    ends.sender(frame_size=2048)
    ends.receiver(frame_size=2048)
    sent = ends.packets(300, 1514)
    assert ends.through(sent) == sent


def test_a_single_packet_arrives_at_once(ends: Ends) -> None:
    rx = ends.rx
    for number in range(3):
        ends.send([ends.frame(number)])
        assert rx.wait(PATIENCE)
        with rx.receive() as batch:
            assert [bytes(packet) for packet in batch] == [ends.frame(number)]


@pytest.mark.needs("takes_several_frames")
def test_packets_of_several_frames(ends: Ends) -> None:
    tx, rx = ends.sender(multi_buffer=True), ends.receiver(multi_buffer=True)
    for number, length in enumerate([60, 1514, 4000, 9014, 64] * 4):
        packet = (ends.frame(number, 1000) * 10)[:length]
        parts = [packet[at : at + 2900] for at in range(0, length, 2900)]
        batch = tx.umem.take(len(parts))
        for index, part in enumerate(parts):
            batch.write(index, part, continues=index < len(parts) - 1)
        assert tx.transmit(batch) == len(parts)
        assert ends.receive(1, rx) == [packet]
    assert ends.seen(lambda: bool(tx.complete()) or not tx.unsent)


def test_both_directions_at_once(ends: Ends) -> None:
    one, other = ends.tx, ends.rx
    ends.insert(one)
    for first in range(0, 10 * WINDOW, WINDOW):
        there, back = ends.packets(WINDOW, first=first), ends.packets(WINDOW, first=1000 + first)
        ends.send(there, one)
        ends.send(back, other)
        assert ends.receive(WINDOW, other) == there
        assert ends.receive(WINDOW, one) == back


def test_waiting_for_a_packet_ends_with_it(ends: Ends) -> None:
    assert ends.rx.wait(0) is False
    ends.send([ends.frame(0)])
    assert ends.rx.wait(PATIENCE) is True
    assert ends.receive(1) == [ends.frame(0)]


def test_waiting_for_a_packet_ends_at_its_time(ends: Ends) -> None:
    before = time.monotonic()
    assert ends.rx.wait(0.02) is False
    assert time.monotonic() - before >= 0.02


def test_waiting_for_room_ends_as_soon_as_there_is_some(ends: Ends) -> None:
    tx, _ = ends.tx, ends.rx
    assert tx.wait_for_room(0) is True
    for first in range(0, 5 * WINDOW, WINDOW):
        assert tx.wait_for_room(PATIENCE) is True
        assert ends.through(ends.packets(WINDOW, first=first)) == ends.packets(WINDOW, first=first)


def test_waiting_for_room_ends_at_its_time(ends: Ends) -> None:
    tx = ends.sender(rings=Rings(fill=64, rx=64, tx=64, completion=64))
    ends.ground.wire.link(*ends.ground.places[0], "down")
    try:
        tx.transmit(ends.ground.wire.written(tx.umem, ends.packets(64)))
        before = time.monotonic()
        assert tx.wait_for_room(0.02) is False
        assert time.monotonic() - before >= 0.02
    finally:
        ends.ground.wire.up(*ends.ground.places[0])
    assert ends.eventually(lambda: tx.wait_for_room(0.1) and not tx.unsent)


def test_teardown_and_a_new_beginning(ends: Ends, times: Callable[[int, int], int]) -> None:
    for first in range(0, 50 * times(2, 50), 50):
        tx, rx = ends.sender(), ends.receiver()
        assert ends.through(ends.packets(50, first=first)) == ends.packets(50, first=first)
        tx.close()
        rx.close()


def test_teardown_with_packets_on_their_way(ends: Ends) -> None:
    rx = ends.rx
    ends.send(ends.packets(WINDOW))
    rx.close()  # they are in its ring, or not even there yet
    ends.send(ends.packets(WINDOW))  # for nobody
    ends.receiver()
    assert ends.through(ends.packets(50, first=100)) == ends.packets(50, first=100)


def test_one_socket_takes_anothers_place(ends: Ends) -> None:
    first = ends.rx
    assert ends.through(ends.packets(50)) == ends.packets(50)
    first.close()
    second = ends.receiver()
    assert ends.through(ends.packets(50, first=50)) == ends.packets(50, first=50)
    assert second.statistics().rx_dropped == 0


def test_a_umem_is_shared_by_two_interfaces(ends: Ends) -> None:
    umem = ends.umem(512)
    rx, tx = ends.receiver(umem=umem), ends.sender(umem=umem)
    assert (rx.port.index, tx.port.index) == (0, 1)
    assert ends.through(ends.packets(100)) == ends.packets(100)
