"""Descriptors that no sane program writes: what the kernel refuses, what it takes, and that it goes on after
each.

The library never submits one of these (test_xsk_transmit.py); here they are put on the rings behind its
back, so that what it protects from is known for this kernel. A refused descriptor is counted in
tx_invalid_descs and never sent. Whether it comes back through the completion ring is the kernel's choice:
older ones swallow it, this one completes it; some but not all would be a bug that loses frames.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from kernels import takes_several_frames
from xskd._forward import ffi, lib

from xskd.umem import HEADROOM, MAX_FRAGMENTS

if TYPE_CHECKING:
    from ends import Ends

    from xskd.xsk import Socket

pytest_plugins = ["ends"]

SYNC = 256  # where there is a packet that nothing is wrong with; no descriptor in here has this address
CONTINUES, METADATA = 1 << 0, 1 << 1  # XDP_PKT_CONTD, XDP_TX_METADATA: the options there are
OPTIONS = (1 << 2, 1 << 15, 1 << 31)  # there is no such option
LENGTH = 60
Descriptor = tuple[int, int, int]


def refused(ends: Ends, *packets: list[Descriptor]) -> None:
    """The kernel refuses every descriptor of these packets, and sends what comes after each."""
    tx, rx = ends.tx, ends.rx
    for number, packet in enumerate(packets):
        invalid = tx.statistics().tx_invalid_descs
        tx.umem.view[SYNC : SYNC + LENGTH] = ends.frame(number, LENGTH)
        assert ends.submit(*packet, (SYNC, LENGTH, 0)) == 0
        assert ends.receive(1, rx) == [ends.frame(number, LENGTH)]
        assert ends.completed_by(SYNC) in ([SYNC], [*(address for address, _, _ in packet), SYNC])
        assert tx.statistics().tx_invalid_descs == invalid + len(packet)
    assert rx.statistics().rx_dropped == 0


def taken(ends: Ends, *packets: tuple[int, bytes]) -> None:
    """The kernel sends these packets from these addresses, whole, and completes them as they were given."""
    tx, rx = ends.tx, ends.rx
    for address, packet in packets:
        at = (address & (1 << 48) - 1) + (address >> 48)
        tx.umem.view[at : at + len(packet)] = packet
        assert ends.submit((address, len(packet), 0)) == 0
        assert ends.receive(1, rx) == [packet]
        assert ends.completed_by(address) == [address]


def chain(ends: Ends, descriptors: list[Descriptor]) -> bytes:
    """Write a packet of its own into each of the descriptors' frames; returns all of it."""
    for number, (address, length, _) in enumerate(descriptors):
        ends.tx.umem.view[address : address + length] = ends.frame(number, length)
    return b"".join(ends.frame(number, length) for number, (_, length, _) in enumerate(descriptors))


def frames(xsk: Socket, count: int, length: int = LENGTH) -> list[Descriptor]:
    """One packet of so many descriptors, each in a frame of its own."""
    size = xsk.umem.frame_size
    parts = [(number * size, length, CONTINUES) for number in range(count)]
    return [*parts[:-1], (parts[-1][0], length, 0)]


# ---- packets of one descriptor -------------------------------------------------------------------


def test_addresses_up_to_the_ends_of_the_umem_are_valid(ends: Ends) -> None:
    taken(ends, (0, ends.frame(0)), (ends.tx.umem.size - LENGTH, ends.frame(1, LENGTH)))


def test_addresses_out_of_range_are_invalid(ends: Ends) -> None:
    size = ends.tx.umem.size
    for address in (size, size + 4096, size - LENGTH + 1, (1 << 64) - 2, 1 << 47):
        refused(ends, [(address, LENGTH, 0)])


def test_an_offset_in_the_upper_16_bits_is_for_unaligned_frames(ends: Ends) -> None:
    size, frame = ends.tx.umem.size, 2 * ends.tx.umem.frame_size
    if ends.mode.unaligned:
        taken(ends, (frame | 100 << 48, ends.frame(0)))
    else:
        refused(ends, [(frame | 100 << 48, LENGTH, 0)])
    refused(ends, [(size - LENGTH | 1 << 48, LENGTH, 0)])  # together they are too much in any case


def test_crossing_a_frame_is_for_unaligned_frames(ends: Ends) -> None:
    crossing = 3 * ends.tx.umem.frame_size - LENGTH // 2
    if ends.mode.unaligned:
        taken(ends, (crossing, ends.frame(0, LENGTH)), (4096 - LENGTH // 2, ends.frame(1, LENGTH)))
    else:
        refused(ends, [(crossing, LENGTH, 0)])


@pytest.mark.needs("takes_several_frames")
def test_a_whole_frame_is_valid_and_a_byte_more_is_not(ends: Ends) -> None:
    size = ends.tx.umem.frame_size
    ends.receiver(frame_size=4096, multi_buffer=True)
    taken(ends, (2 * size, (ends.frame(0, 1500) * 3)[:size]))
    refused(ends, [(2 * size, size + 1, 0)], [(0, (1 << 32) - 1, 0)])


def test_a_length_of_zero_is_invalid(ends: Ends) -> None:
    if takes_several_frames():  # what brought these brought this check
        refused(ends, [(0, 0, 0)], [(ends.tx.umem.frame_size, 0, 0)])
        return
    tx, rx = ends.tx, ends.rx
    tx.umem.view[SYNC : SYNC + LENGTH] = ends.frame(0, LENGTH)
    assert ends.submit((0, 0, 0), (SYNC, LENGTH, 0)) == 0
    assert ends.receive(2, rx, 0.1) == [ends.frame(0, LENGTH)]  # a frame of no bytes is nobody's
    assert ends.completed_by(SYNC) == [0, SYNC]
    assert tx.statistics().tx_invalid_descs == 0


def test_options_that_do_not_exist_are_invalid(ends: Ends) -> None:
    refused(ends, *([(0, LENGTH, option)] for option in OPTIONS))


def test_the_option_of_metadata_without_room_for_it_is_never_got_over(ends: Ends) -> None:
    """It is neither sent nor refused: each call answers EINVAL, and it stays with all that is behind it."""
    error = ends.submit((0, LENGTH, METADATA), (SYNC, LENGTH, 0))
    if error == 0:  # a kernel before 6.8 does not know the option
        assert ends.tx.statistics().tx_invalid_descs == 1
    else:
        assert (error, ends.tx.statistics().tx_invalid_descs) == (errno.EINVAL, 0)
        tx = ends.tx.port.rings[lib.XSKD_TX]
        assert tx.own - tx.consumer[0] == 2


def test_invalid_ones_among_valid_ones_do_not_hold_them_up(ends: Ends) -> None:
    tx, rx = ends.tx, ends.rx
    valid = [(address, LENGTH, 0) for address, _, _ in frames(tx, 16)]
    chain(ends, valid)
    invalid = [(tx.umem.size + number, LENGTH, 0) for number in range(16)]
    assert ends.submit(*(each for pair in zip(invalid, valid, strict=True) for each in pair)) == 0
    assert ends.receive(16, rx) == ends.packets(16, LENGTH)
    completed = ends.completed_by(valid[-1][0])
    assert [address for address in completed if address < tx.umem.size] == [
        address for address, _, _ in valid
    ]
    assert tx.statistics().tx_invalid_descs == 16


# ---- packets of several --------------------------------------------------------------------------


@pytest.mark.needs("refuses_whole_packets")
def test_a_packet_with_one_invalid_descriptor_is_refused_as_a_whole(ends: Ends) -> None:
    tx, _ = ends.sender(multi_buffer=True), ends.receiver(multi_buffer=True)
    size = tx.umem.size
    for wrong in ((size, LENGTH), (0, 0), ((1 << 64) - 2, LENGTH)):
        for place in range(3):
            packet = frames(tx, 3)
            packet[place] = (*wrong, packet[place][2])
            refused(ends, packet)
    packet = frames(tx, 3)
    packet[1] = (packet[1][0], LENGTH, CONTINUES | OPTIONS[0])
    refused(ends, packet)


@pytest.mark.needs("refuses_whole_packets")
def test_as_many_fragments_as_a_packet_may_have_are_valid_and_one_more_is_not(ends: Ends) -> None:
    tx, rx = ends.sender(multi_buffer=True), ends.receiver(multi_buffer=True)
    most = frames(tx, MAX_FRAGMENTS)
    packet = chain(ends, most)
    assert ends.submit(*most) == 0
    assert ends.receive(1, rx) == [packet]
    assert ends.completed_by(most[-1][0]) == [address for address, _, _ in most]
    refused(ends, frames(tx, MAX_FRAGMENTS + 1), frames(tx, MAX_FRAGMENTS + 7))


@pytest.mark.needs("takes_several_frames")
def test_a_packet_waits_for_its_end(ends: Ends) -> None:
    tx, rx = ends.sender(multi_buffer=True), ends.receiver(multi_buffer=True)
    beginning, middle, end = descriptors = frames(tx, 3)
    packet = chain(ends, descriptors)
    assert ends.submit(beginning, middle) == 0
    assert ends.receive(1, rx, 0.01) == []
    assert ends.submit(end) == 0
    assert ends.receive(1, rx) == [packet]
    assert ends.completed_by(end[0]) == [beginning[0], middle[0], end[0]]


@pytest.mark.needs("takes_several_frames")
def test_a_packet_of_several_leaves_also_from_a_socket_not_bound_for_them(ends: Ends) -> None:
    """XDP_USE_SG is about what arrives: copy mode sends a chain without it."""
    tx, rx = ends.tx, ends.receiver(multi_buffer=True)
    packet = chain(ends, frames(tx, 2))
    assert ends.submit(*frames(tx, 2)) == 0
    assert ends.receive(1, rx) == [packet]


# ---- what FILL may have --------------------------------------------------------------------------


def on_fill(xsk: Socket, addresses: list[int]) -> None:
    """Have these stand on FILL instead of what the library put there first."""
    entries = ffi.cast("uint64_t *", xsk.port.rings[lib.XSKD_FILL].entries)
    for slot, address in enumerate(addresses):
        entries[slot] = address


def test_an_address_inside_a_frame_is_masked_or_taken_as_it_is(ends: Ends) -> None:
    rx, size = ends.rx, ends.mode.frame_size
    on_fill(rx, [100])
    ends.send([ends.frame(0)])
    assert rx.wait(5.0)
    with rx.receive() as batch:
        assert batch._desc(0).addr == HEADROOM + (100 if ends.mode.unaligned else 0)
        assert [bytes(packet) for packet in batch] == [ends.frame(0)]
    on_fill(rx, [size])
    assert ends.through(ends.packets(10)) == ends.packets(10)


def test_addresses_out_of_range_on_fill_are_skipped(ends: Ends) -> None:
    """Nothing tells: rx_invalid_descs looks at the RX ring, where only the kernel writes."""
    rx = ends.rx
    ends.tampered = True  # what was in their places is on no ring now
    size = rx.umem.size
    wrong = [size, size + 4096, (1 << 64) - 1, *([size - 100] if ends.mode.unaligned else [])]
    on_fill(rx, wrong)
    assert ends.through(ends.packets(10)) == ends.packets(10)
    assert rx.statistics() == type(rx.statistics())(tx_ring_empty_descs=rx.statistics().tx_ring_empty_descs)
