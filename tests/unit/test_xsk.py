"""The socket layer without a kernel: sizes refused, answers parsed, and what a batch of frames is."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xskd._forward import ffi, lib

from xskd.errors import XskError
from xskd.uapi import parse_mmap_offsets
from xskd.umem import Batch, Umem
from xskd.xsk import Rings, Socket, Statistics, _bind_advice

PACKET = bytes(range(64))


@pytest.fixture
def umem() -> Iterator[Umem]:
    made = Umem(16, 2048)
    yield made
    made.close()


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", ["fill", "rx", "tx", "completion"])
@pytest.mark.parametrize("size", [0, -1, 3, 1000, 4097])
def test_a_ring_that_is_no_power_of_two_is_refused_with_its_key(ring: str, size: int) -> None:
    with pytest.raises(XskError, match=f"{size} entries; must be a power of two; see key rings.{ring}"):
        Rings(**{ring: size})


def test_every_power_of_two_is_a_ring() -> None:
    assert Rings(1, 2, 4096, 1 << 20).completion == 1 << 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"frames": 0}, "0 frames; must be at least 1"),
        ({"frames": -1}, "-1 frames"),
        ({"frames": 8, "frame_size": 1024}, "frame size 1024; must be 2048 or 4096"),
        ({"frames": 8, "frame_size": 8192}, "frame size 8192"),
        ({"frames": 8, "frame_size": 3000}, "frame size 3000"),
        ({"frames": 8, "frame_size": 2048, "headroom": 1792}, "headroom 1792; must be 0 to 1791 bytes"),
        ({"frames": 8, "headroom": -1}, "headroom -1"),
    ],
)
def test_a_umem_the_kernel_would_refuse_is_refused_before(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(XskError, match=said) as raised:
        Umem(**arguments)
    assert (raised.value.errno, raised.value.key) == (None, "umem")


def test_any_number_of_frames_will_do() -> None:
    for frames in (1, 3, 1000):
        made = Umem(frames, 2048)
        assert (made.free, made.size, len(made.view)) == (frames, frames * 2048, frames * 2048)
        made.close()


def test_a_second_mapping_of_the_memory_shows_the_same_bytes(umem: Umem) -> None:
    other = Umem(16, 2048, memfd=os.dup(umem.memfd))
    with umem.take(1) as batch:
        batch.write(0, PACKET)
    assert bytes(other.view[:64]) == PACKET
    other.close()


def test_owner_bytes_can_live_in_a_buffer_of_the_caller() -> None:
    owner = bytearray(b"\xff" * 16)
    made = Umem(16, 2048, owner=owner)
    batch = made.take(2)
    assert sum(byte != 0 for byte in owner) == 2
    batch.release()
    assert owner == bytes(16)
    made.close()


def test_a_umem_serves_16_sockets(umem: Umem) -> None:
    for number in range(16):
        assert umem.next_port() == number
        umem.ports += 1
    with pytest.raises(XskError, match="at most 16 sockets"):
        umem.next_port()


def test_closing_waits_for_views_and_may_be_repeated() -> None:
    made = Umem(4, 2048)
    batch = made.take(1)
    batch.write(0, PACKET)
    view = batch[0]
    with pytest.raises(XskError, match=r"Umem.close: views of its packets are still in use"):
        made.close()
    view.release()
    made.close()
    made.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made.memfd)


# ---- answers of the kernel ------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_statistics_of_48_bytes_have_six_numbers(numbers: list[int]) -> None:
    assert astuple(Statistics.parse(struct.pack("=6Q", *numbers))) == tuple(numbers)


def test_statistics_of_an_old_kernel_have_three_numbers_and_three_zeros() -> None:
    assert Statistics.parse(struct.pack("=3Q", 1, 2, 3)) == Statistics(1, 2, 3, 0, 0, 0)


def test_the_names_of_the_statistics_are_in_the_kernels_order() -> None:
    names = [name for name, _ in ffi.typeof("struct xdp_statistics").fields]
    assert names == list(Statistics.__dataclass_fields__)


@pytest.mark.parametrize("size", [0, 8, 23, 32, 56])
def test_statistics_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(XskError, match=f"answered {size} bytes; 24 or 48"):
        Statistics.parse(bytes(size))


def test_offsets_with_flags_are_taken_as_they_are() -> None:
    found = parse_mmap_offsets(struct.pack("=16Q", *range(16)))
    assert (found.rx.producer, found.rx.consumer, found.rx.desc, found.rx.flags) == (0, 1, 2, 3)
    assert (found.cr.producer, found.cr.flags) == (12, 15)


def test_offsets_of_an_old_kernel_have_no_flags() -> None:
    found = parse_mmap_offsets(struct.pack("=12Q", *range(100, 112)))
    rings = (found.rx, found.tx, found.fr, found.cr)
    assert [ring.producer for ring in rings] == [100, 103, 106, 109]
    assert [ring.desc for ring in rings] == [102, 105, 108, 111]
    assert [ring.flags for ring in rings] == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [0, 32, 95, 104, 127, 136])
def test_offsets_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(XskError, match=f"answered {size} bytes; 96 or 128"):
        parse_mmap_offsets(bytes(size))


def test_every_errno_of_bind_that_a_user_can_mend_has_advice() -> None:
    for number in (errno.EBUSY, errno.EINVAL, errno.EOPNOTSUPP, errno.ENETDOWN, errno.ENODEV, errno.EPERM):
        assert _bind_advice(number, 3)[0]
    assert _bind_advice(errno.EIO, 3) == ("", None)
    assert "XDP_USE_SG" not in _bind_advice(errno.EINVAL, 3)[0]
    assert "XDP_USE_SG" in _bind_advice(errno.EINVAL, 3, lib.XDP_USE_SG)[0]


def test_an_interface_that_is_not_there_needs_no_privilege_to_find_out(umem: Umem) -> None:
    with pytest.raises(XskError, match=r"if_nametoindex\(no-such-if\): no such interface"):
        Socket(umem, "no-such-if", 0)


# ---- batches ------------------------------------------------------------------------------------


def packets(umem: Umem, count: int) -> Batch:
    batch = umem.take(count)
    for index in range(count):
        batch.write(index, bytes([index]) * (60 + index))
    return batch


def test_taking_gives_what_there_is(umem: Umem) -> None:
    assert len(umem.take(0)) == 0
    first = umem.take(10)
    second = umem.take(10)
    assert (len(first), len(second), umem.free) == (10, 6, 0)
    assert not umem.take(1)
    first.release()
    assert umem.free == 10


def test_no_frame_is_in_two_batches(umem: Umem) -> None:
    batches = [umem.take(4) for _ in range(4)]
    addresses = {batch._desc(index).addr for batch in batches for index in range(4)}
    assert addresses == {frame * 2048 for frame in range(16)}


def test_views_are_writable_and_the_umems_own_memory(umem: Umem) -> None:
    batch = packets(umem, 2)
    view = batch[1]
    assert (view.readonly, view.format, len(view)) == (False, "B", 61)
    view[:4] = b"abcd"
    address = batch._desc(1).addr
    assert bytes(umem.view[address : address + 4]) == b"abcd"
    assert bytes(batch[1][:4]) == b"abcd"


def test_numpy_reads_and_writes_a_packet_in_place(umem: Umem) -> None:
    batch = packets(umem, 1)
    array = np.frombuffer(batch[0], dtype=np.uint8)
    assert array.shape == (60,)
    array[:] = 7
    assert bytes(batch[0]) == b"\x07" * 60
    del array


def test_a_batch_is_a_sequence(umem: Umem) -> None:
    batch = packets(umem, 5)
    assert [len(packet) for packet in batch] == [60, 61, 62, 63, 64]
    assert len(batch[-1]) == 64
    assert [len(packet) for packet in batch[1:4]] == [61, 62, 63]
    assert [len(packet) for packet in batch[::-2]] == [64, 62, 60]
    assert [len(packet) for packet in reversed(batch)] == [64, 63, 62, 61, 60]


@pytest.mark.parametrize("index", [5, -6, 100])
def test_an_index_beyond_the_batch_is_an_index_error(umem: Umem, index: int) -> None:
    batch = packets(umem, 5)
    with pytest.raises(IndexError):
        batch[index]
    with pytest.raises(IndexError):
        batch.write(index, PACKET)


@pytest.mark.parametrize("length", [0, 13, 2049])
def test_a_packet_that_fits_no_frame_is_refused_and_changes_nothing(umem: Umem, length: int) -> None:
    batch = packets(umem, 1)
    with pytest.raises(XskError, match=f"packet of {length} bytes; must be 14 to 2048"):
        batch.write(0, bytes(length))
    assert bytes(batch[0]) == bytes(60)


def test_any_buffer_can_be_written(umem: Umem) -> None:
    batch = umem.take(3)
    buffers: list[Any] = [bytearray(PACKET), memoryview(PACKET), np.arange(16, dtype=np.uint32)]
    for index, buffer in enumerate(buffers):
        batch.write(index, buffer)
        assert len(batch[index]) == 64
    batch.write(0, bytes(2048))
    assert len(batch[0]) == 2048


def test_writing_starts_at_the_frame_wherever_the_packet_was(umem: Umem) -> None:
    batch = umem.take(1)
    batch._desc(0).addr += 256  # where the kernel puts a received packet
    batch.write(0, bytes(2048))
    assert batch._desc(0).addr % 2048 == 0


def test_released_frames_come_back_once(umem: Umem) -> None:
    batch = packets(umem, 3)
    batch.release()
    batch.release()
    assert (len(batch), umem.free) == (0, 16)
    with pytest.raises(IndexError):
        batch[0]


def test_leaving_the_with_block_releases(umem: Umem) -> None:
    with pytest.raises(ZeroDivisionError), packets(umem, 3):
        raise ZeroDivisionError
    assert umem.free == 16


def test_releasing_an_old_batch_does_not_touch_frames_given_to_somebody_else(umem: Umem) -> None:
    old = packets(umem, 16)
    start, end = old._start, old._end
    old.release()
    new = umem.take(16)
    lib.xskd_umem_give(umem.struct, old._descs, 0)
    assert umem.free == 0
    new.release()
    old._start, old._end = start, end  # a caller that kept the descriptors
    old.release()
    assert umem.free == 16
