"""What the running kernel can do, found out by trying: never by its version, which distributions patch.

Each question is asked once, in a network of its own. A test that cannot do without the answer yes is marked
`needs`; what xskd does without it is what test_old_kernels.py is about. The Linux in brackets is the first
that can.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from xskd._forward import ffi, lib

from lab import Topology, entered
from xskd.features import read_features
from xskd.xsk import Rings, Socket, Umem

RINGS = Rings(512, 512, 512, 512)


@contextmanager
def _unbound() -> Iterator[Socket]:
    """Make a socket with rings, on an interface of its own and in its namespace."""
    with Topology("xskd-test", links=1, addresses=False) as net, entered(net.dut):
        umem = Umem(512, 2048)
        try:
            with Socket(umem, "eth1", 0, rings=RINGS) as xsk:
                xsk.register()
                xsk.set_up_rings()
                yield xsk
        finally:
            umem.close()


@cache
def maps_bound_sockets() -> bool:
    """Map the rings of a socket after its bind (6.4), as the successor of a worker has to."""
    with _unbound() as xsk:
        xsk.bind("copy")
        try:
            mmap.mmap(xsk.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED, offset=lib.XDP_PGOFF_RX_RING).close()
        except OSError as error:
            assert error.errno in (errno.EBUSY, errno.EINVAL)
            return False
        return True


@cache
def takes_several_frames() -> bool:
    """Take packets of several frames, XDP_USE_SG (6.6)."""
    address = ffi.new("struct sockaddr_xdp *")
    address.sxdp_family, address.sxdp_flags = lib.AF_XDP, lib.XDP_COPY | lib.XDP_USE_SG
    with _unbound() as xsk:
        address.sxdp_ifindex = xsk.ifindex
        refused = lib.xskd_bind(xsk.fileno(), address) < 0
        assert not refused or ffi.errno == errno.EINVAL
        return not refused


@cache
def refuses_whole_packets() -> bool:
    """Refuse all of a packet of several descriptors if one is invalid (6.18; 6.12 sends the rest)."""
    if not takes_several_frames():
        return False
    with _unbound() as xsk:
        xsk.bind("copy")
        tx = xsk.port.rings[lib.XSKD_TX]
        entries = ffi.cast("struct xdp_desc *", tx.entries)
        entries[0].addr, entries[0].len, entries[0].options = xsk.umem.size, 60, lib.XDP_PKT_CONTD
        entries[1].addr, entries[1].len, entries[1].options = 0, 60, 0
        tx.own = 2
        tx.producer[0] = tx.own
        lib.xskd_wakeup_tx(xsk.port)
        return xsk.statistics().tx_invalid_descs == 2


@cache
def has_tx_budget() -> bool:
    """Send more than 32 frames a call in copy mode, XDP_MAX_TX_SKB_BUDGET (6.18)."""
    with _unbound() as xsk:
        try:
            xsk._socket.setsockopt(lib.SOL_XDP, lib.XDP_MAX_TX_SKB_BUDGET, 64)
        except OSError as error:
            assert error.errno == errno.ENOPROTOOPT
            return False
        return True


@cache
def tells_features() -> bool:
    """Tell what drivers can do, by the netlink family netdev (6.3)."""
    with _unbound() as xsk:
        return read_features([xsk.ifindex])[xsk.ifindex] is not None


QUESTIONS: dict[str, Callable[[], bool]] = {
    "maps_bound_sockets": maps_bound_sockets,
    "takes_several_frames": takes_several_frames,
    "refuses_whole_packets": refuses_whole_packets,
    "has_tx_budget": has_tx_budget,
    "tells_features": tells_features,
}


def words(ask: Callable[[], bool]) -> str:
    """Return what a question is about, to go behind "can" or "cannot"."""
    said = ask.__doc__ or ""
    return said[:1].lower() + said[1:]


def answered() -> Iterator[str]:
    """Say what has been asked so far, a line each; nothing is asked for it."""
    for ask in (
        maps_bound_sockets,
        takes_several_frames,
        refuses_whole_packets,
        has_tx_budget,
        tells_features,
    ):
        if ask.cache_info().currsize:
            yield f"this kernel {'can' if ask() else 'cannot'} {words(ask)}"
