"""Rings from the smallest to the largest, and what binds to a queue beside the socket that is there.

A queue has one FILL and one completion ring. The library gives it to one socket, since each ring has one
writer on our side; the kernel lets further sockets of the same UMEM on it, which share that pair and bring
only RX and TX.
"""

from __future__ import annotations

import errno
import mmap
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from xskd._forward import ffi, lib

from lab import entered
from xskd.errors import XskError
from xskd.uapi import OFFSETS_WITH_FLAGS, parse_mmap_offsets
from xskd.xsk import Rings, make_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from ends import Ends

    from xskd.xsk import Socket

pytest_plugins = ["ends"]

LARGEST = 65_536  # entries that we ask for; the kernel's own limit is what memory it gets


@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_rings(ends: Ends, size: int) -> None:
    tx, rx = (
        ends.sender(rings=Rings(size, size, size, size)),
        ends.receiver(rings=Rings(size, size, size, size)),
    )
    for first in range(0, 10 * size, size):
        packets = ends.packets(size, first=first)
        ends.send(packets, tx)
        assert ends.receive(size, rx) == packets
        rx.receive()  # puts the frames on FILL again
    assert rx.statistics().rx_dropped == rx.statistics().rx_ring_full == 0


def test_the_largest_rings(ends: Ends) -> None:
    sizes = Rings(LARGEST, LARGEST, LARGEST, LARGEST)
    umem = ends.umem(256)
    tx, rx = ends.sender(rings=replace(sizes, fill=64)), ends.receiver(rings=sizes, umem=umem)
    assert umem.free == 0  # all of them on FILL
    assert ends.through(ends.packets(300), tx, rx) == ends.packets(300)


def test_rings_of_different_sizes(ends: Ends, times: Callable[[int, int], int]) -> None:
    ends.sender(rings=Rings(fill=1, rx=1, tx=32, completion=256))
    ends.receiver(rings=Rings(fill=256, rx=32, tx=1, completion=1))
    count = times(500, 50_000)
    assert ends.through(ends.packets(count)) == ends.packets(count)


# ---- two sockets on one queue --------------------------------------------------------------------


def bind(made: socket.socket, ends: Ends, flags: int, beside: Socket) -> int:
    """Ask for the queue of a bound socket, sharing its UMEM. 0 or an errno."""
    address = ffi.new("struct sockaddr_xdp *")
    address.sxdp_family, address.sxdp_flags = lib.AF_XDP, lib.XDP_SHARED_UMEM | flags
    address.sxdp_ifindex, address.sxdp_queue_id = beside.ifindex, beside.queue
    address.sxdp_shared_umem_fd = beside.fileno()
    return 0 if lib.xskd_bind(made.fileno(), address) == 0 else int(ffi.errno)


def rx_producer(made: socket.socket, size: int) -> int:
    """The kernel's index on a socket's RX ring: how many packets it has put there."""
    answer = made.getsockopt(lib.SOL_XDP, lib.XDP_MMAP_OFFSETS, OFFSETS_WITH_FLAGS)
    at = parse_mmap_offsets(answer).rx
    with mmap.mmap(made.fileno(), at.desc + size * 16, mmap.MAP_SHARED, offset=lib.XDP_PGOFF_RX_RING) as ring:
        return int.from_bytes(ring[at.producer : at.producer + 4], "little")


@pytest.mark.needs("maps_bound_sockets")
def test_a_second_socket_on_a_queue_shares_its_frames(ends: Ends) -> None:
    first = ends.rx
    assert ends.through(ends.packets(10)) == ends.packets(10)
    with pytest.raises(XskError, match=r"bind\(eth1 queue 0\): EINVAL .*another socket of this UMEM has it"):
        ends.receiver(umem=first.umem)  # the library gives every socket four rings, and that is two too many
    with entered(ends.ground.wire.dut), make_socket("eth1", 0, Rings(), 4096) as second:
        second.setsockopt(lib.SOL_XDP, lib.XDP_RX_RING, 64)
        for flag in (lib.XDP_COPY, lib.XDP_USE_NEED_WAKEUP, lib.XDP_USE_SG):
            assert bind(second, ends, flag, first) == errno.EINVAL  # sharing, no other flag may be given
        assert bind(second, ends, 0, first) == 0
        assert bind(second, ends, 0, first) == errno.EBUSY
        program = ends.ground.program(*ends.ground.places[1], "xskd")
        program.insert(0, second, replace=True)
        ends.tampered = True  # the frames of these packets end with the second one
        ends.send(ends.packets(10, first=10))
        assert ends.seen(lambda: rx_producer(second, 64) == 10)
        program.insert(0, first, replace=True)
        assert ends.through(ends.packets(10, first=20)) == ends.packets(10, first=20)
        assert rx_producer(second, 64) == 10


@pytest.mark.needs("maps_bound_sockets")
def test_swapping_sockets_in_the_xskmap_under_traffic_loses_nothing(
    ends: Ends, times: Callable[[int, int], int]
) -> None:
    """Each packet is with the one that was in the map or with the one that came, as all between two sends."""
    first = ends.rx
    with entered(ends.ground.wire.dut), make_socket("eth1", 0, Rings(), 4096) as second:
        second.setsockopt(lib.SOL_XDP, lib.XDP_RX_RING, 64)
        assert bind(second, ends, 0, first) == 0
        program = ends.ground.program(*ends.ground.places[1], "xskd")
        ends.tampered = True
        for number in range(times(6, 12)):
            program.insert(0, second, replace=True)
            ends.send(ends.packets(5, first=10 * number))
            assert ends.seen(lambda: rx_producer(second, 64) == 5 * number + 5)  # noqa: B023  (used at once)
            program.insert(0, first, replace=True)
            ends.send(ends.packets(5, first=10 * number + 5))
            assert ends.receive(5, first) == ends.packets(5, first=10 * number + 5)
