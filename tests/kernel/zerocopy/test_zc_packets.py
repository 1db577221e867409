"""What becomes of packets between a wire and an XSK in zero-copy mode: cut, dropped, stripped, or not sent.

None of this is xskd's doing, and some of it no program can see; it is here so that what the documentation
says of the drivers is what they do.
"""

from __future__ import annotations

import re

import pytest
from nics import RINGS, MakeNics, NicWire
from test_zc_bind import mtu
from test_zc_rings import arrived

from xskd.plan import largest_mtu

pytest_plugins = "nics"
pytestmark = pytest.mark.usefixtures("single")

BOTH = pytest.mark.parametrize("dev", ["v0", "i0"])
TAG = bytes.fromhex("8100 0007")  # VLAN 7


@BOTH
def test_frames_of_2048_bytes_are_half_used_by_igb(ready: MakeNics, dev: str) -> None:
    """Its buffers are whole kilobytes: longer packets arrive as two, which nothing tells from packets."""
    net = ready(dev)
    member = net.receiver(dev, umem=net.umem(4096, 2048), rings=RINGS)
    for size in (1024, 1025, 1514):
        sent = net.sized(8, size)
        net.taps[0].send(sent)
        cut = dev == "i0" and size > 1024
        expected = [piece for p in sent for piece in ((p[:1024], p[1024:]) if cut else (p,))]
        assert arrived(member, len(expected), 20) == expected


def test_virtio_leaves_vlan_tags_in_their_packets(ready: MakeNics) -> None:
    """Those that igb takes off, the doctor knows of (test_zc_doctor.py)."""
    net = ready("v0")
    member = net.receiver("v0", rings=RINGS)
    tagged = [packet[:12] + TAG + packet[12:] for packet in net.frames(16)]
    net.taps[0].send(tagged)
    assert arrived(member, len(tagged), 20) == tagged


def test_an_mtu_raised_after_bind_makes_no_larger_buffers(ready: MakeNics) -> None:
    """Those of virtio_net hold what xskd forwards in one frame, and a little more; the rest the NIC counts.

    With an MTU for which that is not enough, the daemon binds anew (test_zc_daemon.py).
    """
    net = ready("v0")
    member = net.receiver("v0", rings=RINGS)
    fits = 4096 - 256  # a frame without its headroom
    assert fits >= largest_mtu(4096) + 14
    with mtu(net, "v0", 9000):
        before = dropped(net, "v0")
        sent = [net.sized(1, size)[0] for size in (60, 1514, fits, fits + 1, 9014, 60)]
        net.taps[0].send(sent)
        assert arrived(member, 4, 20) == [packet for packet in sent if len(packet) <= fits]
        assert dropped(net, "v0") == before + 2


def dropped(net: NicWire, dev: str) -> int:
    """How many packets a NIC has dropped because its buffer was too small for them."""
    said = net.ethtool("-S", dev).stdout
    return int(re.findall(r"^\s+rx_drops: (\d+)$", said, re.MULTILINE)[0])


@BOTH
def test_busy_polling_sends(ready: MakeNics, dev: str) -> None:
    """sendto() alone does not, with SO_PREFER_BUSY_POLL."""
    net = ready(dev)
    member = net.receiver(dev, rings=RINGS)
    member.busy_poll()
    assert member.busy_polled
    for first in (0, 100, 200):
        sent = net.frames(20, first=first)
        assert member.transmit(net.written(member.umem, sent)) == len(sent)
        assert net.take(len(sent), set(sent), 0) == sent
        assert net.eventually(lambda: member.complete() + member.unsent == 0)
    sent = net.frames(16, first=300)
    net.taps[0].send(sent)
    assert arrived(member, len(sent), 20) == sent
