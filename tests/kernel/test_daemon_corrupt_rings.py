"""A ring that the kernel cannot have made: the worker ends, says which, and begins anew with new sockets.

A process that gets at the same sockets plays the broken kernel: it writes into the words of the ring that are
the kernel's. The real one puts them right as soon as it is called for that ring, so the worker must look
before it calls: it never sleeps.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import Daemon, Lane, connect, running, total
from xskd._forward import ffi, lib

from lab import entered
from lab.figures import figure
from xskd.counters import RINGS as NAMES
from xskd.umem import Umem
from xskd.xsk import Rings, Socket, socket_of

if TYPE_CHECKING:
    from conftest import MakeWire

SIZES = Rings(fill=1024, rx=512, tx=512, completion=1024)  # daemon.SMALL
PIDFD_GETFD = 438  # asm-generic/unistd.h; Python has no name for it


def copies_of_xsks(pid: int) -> Iterator[int]:
    """A copy of each AF_XDP socket of a process, in the order of its descriptors: that of its ports."""
    pidfd = os.pidfd_open(pid)
    try:
        for fd in sorted(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()):
            copy = ctypes.CDLL(None).syscall(PIDFD_GETFD, pidfd, fd, 0)
            if copy >= 0 and family_of(copy) == lib.AF_XDP:
                yield copy
            elif copy >= 0:
                os.close(copy)
    finally:
        os.close(pidfd)


def family_of(fd: int) -> int | None:
    """Tell a socket's address family; None of what is no socket."""
    with suppress(OSError), socket_of(os.dup(fd)) as asked:
        return asked.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
    return None


@contextmanager
def rings_of(daemon: Daemon) -> Iterator[Socket]:
    """Map the rings of one of the daemon's sockets, all of which have the same."""
    copy, *others = copies_of_xsks(daemon.pid)
    for other in others:
        os.close(other)
    umem = Umem(64, 2048)
    with entered(daemon.net.dut):
        mapped = Socket(umem, "eth1", 0, rings=SIZES, fd=copy)
    mapped.adopt()
    try:
        yield mapped
    finally:
        mapped.close()  # or its queue stays busy
        umem.close()


def ended_by(daemon: Daemon, mapped: Socket, ring: str, pid: int) -> bool:
    """Make the kernel's index impossible; whether the worker has ended. The kernel may mend it, so: again."""
    at = mapped.port.rings[getattr(lib, f"XSKD_{ring.upper()}")]
    ours, theirs = (at.producer, at.consumer) if ring in ("fill", "tx") else (at.consumer, at.producer)
    theirs[0] = ours[0] + 100_000 & 0xFFFFFFFF
    return daemon.workers().get("wire/0") != pid


def corrupted(daemon: Daemon, ring: str) -> bool:
    """Have a worker find a corrupt ring, and wait for the next one; False if it ended otherwise before."""
    daemon.comes("wire/0")
    pid = daemon.workers()["wire/0"]
    with rings_of(daemon) as mapped:
        assert daemon.net.eventually(partial(ended_by, daemon, mapped, ring, pid), 15), daemon.log
    took = daemon.comes("wire/0", other_than=pid)
    figure(f"a corrupt {ring} ring: until a new worker forwards", took, "s", 10)
    return total(daemon.metrics(), "xskd_ring_corrupt", ring=ring) >= 1


@pytest.mark.moves("xskd_ring_corrupt", ring=("fill", "rx", "tx", "completion"))
def test_a_corrupt_ring_ends_its_worker_and_a_new_one_has_new_rings(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path, connect(", poll: busy")) as daemon:
        before, lane, packets = daemon.metrics(), Lane(net), net.frames(20)
        for ring in NAMES:
            assert net.eventually(partial(corrupted, daemon, ring), 40), daemon.log
            assert re.search(rf"{ring} ring\(eth[12] queue 0\): EBADMSG", daemon.log), daemon.log
            assert net.eventually(lambda: lane.through(packets, net.taps[1]) == packets, 30), daemon.log
        assert total(before, "xskd_ring_corrupt") == 0
        after = daemon.metrics()
        ends = [line for line in daemon.log.splitlines() if "EBADMSG" in line]
        assert not any("takes over its rings" in line for line in ends)  # nobody believes them
        assert (
            total(after, "xskd_frames_unaccounted") == total(after, "xskd_frames", state="quarantined") == 0
        )
        assert all("its index cannot be; a bug of the driver or the kernel" in line for line in ends)


def test_the_error_says_what_cannot_be_believed_and_why(wire: MakeWire) -> None:
    xsk = wire(links=1).open("eth1", rings=Rings(fill=64, rx=64, tx=64, completion=64))
    xsk.port.error, xsk.port.corrupt = errno.EBADMSG, lib.XSKD_COMPLETION
    xsk.port.wrong = lib.XSKD_WRONG_ENTRIES - 1
    assert "completion ring(eth1 queue 0): EBADMSG (Bad message): its index cannot be; " in str(xsk.died())
    xsk.port.wrong = lib.XSKD_WRONG_ENTRIES
    assert "64 entries of rx and completion name no frame that the kernel has; " in str(xsk.died())
    xsk.port.error = errno.ENXIO
    assert "wakeup(eth1 queue 0): ENXIO" in str(xsk.died())


def test_new_rings_do_not_begin_with_the_rest_of_a_packet(wire: MakeWire) -> None:
    """The record outlives a worker that ended in the middle of a packet, its rings do not."""
    net = wire(links=1)
    counters = ffi.new("struct xskd_port_counters *", {"rx_rest": 1})
    with entered(net.dut):
        xsk = Socket(net.umem(64, 2048), "eth1", 0, rings=Rings(64, 64, 64, 64), counters=counters)
    with xsk:
        xsk.register()
        xsk.set_up_rings()
        assert counters.rx_rest == 0
