"""Binding in zero-copy mode: what the drivers take, what they refuse, and what becomes of `auto` then."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from nics import DRIVERS, IGB_MTU, QUEUES, RINGS, MakeNics, NicWire
from test_zc_rings import arrived

from lab.figures import figure
from xskd.errors import XdpError
from xskd.features import read_features

pytest_plugins = "nics"

BOTH = pytest.mark.parametrize("dev", ["v0", "i0"])
REBIND_MS = 5000  # how long bind() is tried again after EBUSY


@contextmanager
def mtu(net: NicWire, dev: str, size: int) -> Iterator[None]:
    """Give an interface and its other end another MTU."""
    try:
        set_mtu(net, dev, size)
        yield
    finally:
        set_mtu(net, dev, 1500)


def set_mtu(net: NicWire, dev: str, size: int) -> None:
    net.link(f"g{dev}", "eth0", "mtu", str(size))
    net.link(net.dut, dev, "mtu", str(size))
    assert net.has_carrier(dev)


@BOTH
def test_the_mode_is_read_back_on_every_queue(ready: MakeNics, dev: str) -> None:
    net = ready(dev)
    before = net.changes(dev)
    made = [net.open(dev, queue, mode="auto") for queue in range(QUEUES)]
    assert [(each.mode, each.zero_copy_refused) for each in made] == [("zerocopy", None)] * QUEUES
    assert net.refusal(dev, net.channels(dev)).errno == errno.EINVAL
    for each in made:
        each.close()
    assert net.changes(dev) == before


@BOTH
def test_a_queue_is_free_a_moment_after_it_was_closed(
    ready: MakeNics, dev: str, times: Callable[[int, int], int]
) -> None:
    """The kernel lets go of it in the background: EBUSY until then."""
    net = ready(dev)
    before, retries, worst = net.changes(dev), 0, 0.0
    for _ in range(times(2, 20)):
        first, again = net.open(dev), net.unbound(dev)
        assert net.refusal(dev).errno == errno.EBUSY
        first.close()
        began = time.monotonic()
        again.bind("zerocopy", busy_timeout=REBIND_MS / 1000)
        worst, retries = max(worst, time.monotonic() - began), retries + again.bind_retries
        again.close()
    print(f"{dev}: {retries} times EBUSY")
    figure(f"{DRIVERS[dev[0]]}: bind after close (emulated)", round(worst * 1000), "ms", REBIND_MS)
    assert retries
    assert net.changes(dev) == before


def announced(dev: str) -> frozenset[str]:
    """What a driver says that it can."""
    index = socket.if_nametoindex(dev)
    found = read_features([index])[index]
    assert found is not None
    return found.xdp


@BOTH
def test_several_frames_a_packet_are_refused_and_auto_copies(ready: MakeNics, dev: str) -> None:
    """igb has none in copy mode either, and says so, for which the daemon does not try."""
    net = ready(dev)
    assert ("rx-sg" in announced(dev)) is (dev == "v0")
    assert net.refusal(dev, multi_buffer=True).errno == errno.EOPNOTSUPP
    made = net.open(dev, multi_buffer=True, mode="auto")
    assert (made.mode, made.zero_copy_refused) == ("copy", errno.EOPNOTSUPP)


def test_an_mtu_that_zero_copy_cannot_take_is_refused_and_auto_copies(ready: MakeNics) -> None:
    net = ready("v0")
    with mtu(net, "v0", 3814):  # and 26 bytes of headers and check sum: 30 times 128
        assert net.open("v0", mode="auto").mode == "zerocopy"
    with mtu(net, "v0", 3815):
        refused = net.refusal("v0", 1)
        assert refused.errno == errno.EINVAL
        assert "cannot take the MTU" in str(refused)
        made = net.open("v0", 1, mode="auto")
        assert (made.mode, made.zero_copy_refused) == ("copy", errno.EINVAL)


def test_virtio_without_its_feature_announces_zero_copy_and_refuses_it(ready: MakeNics) -> None:
    net = ready("p0")
    assert "xsk-zerocopy" in announced("p0")
    assert net.refusal("p0").errno == errno.EINVAL
    made = net.open("p0", mode="auto")
    assert (made.mode, made.zero_copy_refused) == ("copy", errno.EINVAL)


def test_the_largest_mtu_that_igb_takes_a_program_with(nics: MakeNics) -> None:
    """Zero-copy it grants with any MTU, even where no program can be that it would need."""
    net = nics("i0")
    program = net.load()
    with mtu(net, "i0", IGB_MTU + 1):
        with pytest.raises(XdpError) as refused:
            program.attach("i0", "native")
        assert refused.value.errno == errno.EINVAL
        granted = net.open("i0")
        assert granted.zero_copy
        granted.close()
    with mtu(net, "i0", IGB_MTU):
        program.attach("i0", "native")
        assert net.has_carrier("i0")
        net.programs["i0"] = program
        member = net.receiver("i0", rings=RINGS)
        sent = net.sized(16, IGB_MTU + 14)
        net.taps[0].send(sent)
        assert arrived(member, len(sent), 20) == sent
        larger = net.run(net.dut, "ip", "link", "set", "i0", "mtu", str(IGB_MTU + 1), check=False)
        assert "Invalid argument" in larger.stderr


@BOTH
def test_attaching_and_replacing_a_program(nics: MakeNics, dev: str) -> None:
    """Attaching may cost the link, and seconds; replacing costs nothing, and neither does binding."""
    net = nics(dev)
    began, before = time.monotonic(), net.changes(dev)
    first = net.load()
    first.attach(dev, "native")
    attaching = time.monotonic() - began
    assert net.eventually(lambda: net.carrier(dev))
    lost = net.changes(dev) - before
    took = time.monotonic() - began
    figure(f"{DRIVERS[dev[0]]}: carrier changes when a program is attached (emulated)", lost, "", 4)
    print(f"{dev}: attach {attaching * 1000:.0f} ms, carrier back after {took * 1000:.0f} ms")

    before = net.changes(dev)
    member = net.open(dev)
    first.insert(0, member)
    began = time.monotonic()
    first.renew(dev)
    replacing = time.monotonic() - began
    member.close()
    figure(
        f"{DRIVERS[dev[0]]}: carrier changes when it is replaced (emulated)", net.changes(dev) - before, "", 0
    )
    print(f"{dev}: replaced in {replacing * 1000:.0f} ms")


@BOTH
def test_a_bound_queue_cannot_be_taken_away(nics: MakeNics, dev: str) -> None:
    net = nics(dev)
    net.open(dev, QUEUES - 1)
    refused = net.ethtool("-L", dev, "combined", str(QUEUES - 1), check=False)
    assert refused.returncode != 0
    assert net.channels(dev) == QUEUES
