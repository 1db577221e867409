"""Programs that do something to a packet before the socket gets it: cut it, lengthen it, drop it, say
something of it.

In copy mode a packet lies at the same place in its frame whatever a program did to its head: the kernel
copies it there afterwards. In zero-copy mode it stays where the program put it, so nobody may rely on the
place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from xskd.umem import HEADROOM

if TYPE_CHECKING:
    from ends import Ends

pytest_plugins = ["ends"]

MOVE = 64  # bytes; as in programs.bpf.c
LENGTHS = (200, 60 + MOVE, 1514)


def sent(ends: Ends) -> list[bytes]:
    return [ends.frame(number, length) for number, length in enumerate(LENGTHS * 10)]


def test_a_head_that_shrinks(ends: Ends) -> None:
    rx = ends.receiver("shrink_head")
    assert ends.through(sent(ends)) == [packet[MOVE:] for packet in sent(ends)]
    assert rx.statistics().rx_dropped == 0


def test_a_head_that_grows(ends: Ends) -> None:
    ends.receiver("grow_head")
    assert ends.through(sent(ends)) == [b"\xa5" * MOVE + packet for packet in sent(ends)]


def test_a_head_that_has_moved_does_not_move_the_packet_in_its_frame(ends: Ends) -> None:
    for program in ("shrink_head", "grow_head"):
        rx = ends.receiver(program)
        ends.send([ends.frame(0, 200)])
        assert rx.wait(5.0)
        with rx.receive() as batch:
            assert batch._desc(0).addr % rx.umem.frame_size == HEADROOM
        rx.close()


def test_a_tail_that_shrinks(ends: Ends) -> None:
    ends.receiver("shrink_tail")
    assert ends.through(sent(ends)) == [packet[:-MOVE] for packet in sent(ends)]


def test_a_tail_that_grows(ends: Ends) -> None:
    """The kernel has room for it behind some lengths and not behind others: as its buffers happen to be."""
    ends.receiver("grow_tail")
    packets = [ends.frame(number, 60 + 16 * number) for number in range(90)]
    got = ends.through(packets)
    assert [packet[: len(before)] for packet, before in zip(got, packets, strict=True)] == packets
    added = [packet[len(before) :] for packet, before in zip(got, packets, strict=True)]
    assert set(added) <= {b"", bytes(MOVE)}
    assert bytes(MOVE) in added


def test_a_head_that_grows_beyond_the_frame_is_dropped(ends: Ends) -> None:
    rx = ends.receiver("grow_head", frame_size=2048)
    longest = ends.frame(0, 1500) + bytes(2048 - HEADROOM - MOVE - 1500)
    assert ends.through([longest]) == [b"\xa5" * MOVE + longest]
    ends.send([longest + b"."])
    assert ends.seen(lambda: rx.statistics().rx_dropped == 1)


@pytest.mark.needs("takes_several_frames")
def test_the_tail_of_a_packet_of_several_frames_shrinks(ends: Ends) -> None:
    tx, rx = ends.sender(multi_buffer=True), ends.receiver("shrink_tail", multi_buffer=True)
    packet = (ends.frame(0, 1500) * 5)[:7000]
    parts = [packet[at : at + 2500] for at in range(0, 7000, 2500)]
    batch = tx.umem.take(len(parts))
    for index, part in enumerate(parts):
        batch.write(index, part, continues=index < len(parts) - 1)
    assert tx.transmit(batch) == len(parts)
    assert ends.receive(1, rx) == [packet[:-MOVE]]
    assert ends.seen(lambda: bool(tx.complete()) or not tx.unsent)


def test_a_program_that_drops_half(ends: Ends) -> None:
    rx = ends.receiver("drop_half")
    packets = ends.packets(100)
    for start in range(0, 100, 20):
        ends.send(packets[start : start + 20])
        assert ends.receive(10, rx) == packets[start + 1 : start + 20 : 2]
    assert len(rx.receive()) == rx.statistics().rx_dropped == 0


def test_metadata_stands_in_front_of_its_packet(ends: Ends) -> None:
    rx = ends.receiver("metadata")
    for first in range(0, 60, 20):
        ends.send(ends.packets(20, first=first))
        assert ends.seen(lambda: rx.port.rings[1].producer[0] == first + 20)  # noqa: B023  (used at once)
        with rx.receive() as batch:
            assert [bytes(packet) for packet in batch] == ends.packets(20, first=first)
            said = [int.from_bytes(batch.metadata(index, 8), "little") for index in range(20)]
        assert said == list(range(said[0], said[0] + 20))
