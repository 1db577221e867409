"""What the kernel says of real interfaces, in the namespace that asks."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from lab import entered
from xskd.features import read_features

if TYPE_CHECKING:
    from conftest import MakeWire


def test_veth_says_what_it_can_do_and_a_stranger_nothing(wire: MakeWire) -> None:
    net = wire()
    with entered(net.dut):
        index = socket.if_nametoindex("eth1")
        found = read_features([index, 999_999])
    veth = found[index]
    assert veth is not None
    assert {"basic", "redirect", "rx-sg"} <= veth.xdp
    assert "xsk-zerocopy" not in veth.xdp
    assert veth.zerocopy_segments == 0
    assert found[999_999] is None


def test_a_veth_takes_redirected_frames_only_with_napi_at_its_peer(wire: MakeWire) -> None:
    net = wire()
    with entered(net.dut):
        index = socket.if_nametoindex("eth1")
        for gro, able in (("off", False), ("on", True)):
            net.run(net.hosts[0], "ethtool", "-K", "eth0", "gro", gro)
            veth = read_features([index])[index]
            assert veth is not None
            assert ("ndo-xmit" in veth.xdp) is able
