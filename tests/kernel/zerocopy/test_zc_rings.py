"""Rings that run dry or full over zero-copy drivers, whose wakeups decide whether anything goes on.

In copy mode the kernel itself moves each packet and asks for little. Here a driver's interrupt handler
does, and stops for good when it finds nothing: what starts it again is a call, and not any call. These are
the loop's and the library's own wakeups, over the real drivers.
"""

from __future__ import annotations

import errno
import time

import pytest
from nics import DRIVERS, IGB_RING, RINGS, MakeNics, NicWire
from xskd._forward import lib

from lab.figures import figure
from xskd.errors import XskError
from xskd.xsk import Batch, Rings, Socket

pytest_plugins = "nics"
pytestmark = pytest.mark.usefixtures("single")

BOTH = pytest.mark.parametrize("dev", ["v0", "i0"])
RECOVERY_MS = 5000
FEW = 128  # frames, fewer than any NIC's own ring has entries
AT_ONCE = 48  # packets: fewer than igb's driver looks at in one go, more than it fetches frames for
TRIES = 10


def taken(member: Socket, count: int, patience: float = 20.0) -> list[Batch]:
    """Receive so many packets and keep their frames."""
    batches: list[Batch] = []
    deadline = time.monotonic() + patience
    while sum(len(batch) for batch in batches) < count and time.monotonic() < deadline:
        if batch := member.receive(64):
            batches.append(batch)
    return batches


def packets(batches: list[Batch]) -> list[bytes]:
    return [bytes(packet) for batch in batches for packet in batch]


def wakeups(member: Socket, *which: int) -> int:
    return sum(member.port.counters.wakeups[each] for each in which)


@BOTH
def test_starved_of_frames_a_queue_recovers_by_our_wakeup(ready: MakeNics, dev: str) -> None:
    """FILL and the NIC's own ring run dry because all frames are held; then they are given back."""
    net = ready(dev)
    member = net.receiver(dev, 0, umem=net.umem(FEW), rings=RINGS)
    held: list[Batch] = []
    for first in range(0, 4 * FEW, 16):
        net.taps[0].send(net.frames(16, first=first))
        held += taken(member, 16, 0.2)
        if member.umem.struct.held == FEW:
            break
    assert member.umem.struct.held == FEW, "the frames were never all in our hands"
    net.taps[0].send(net.frames(16, first=1 << 16))  # lost: there is nowhere to put them
    assert not taken(member, 1, 0.2)
    for batch in held:
        batch.release()
    before = wakeups(member, lib.XSKD_WAKEUP_REFILLED, lib.XSKD_WAKEUP_DRY)
    probe = net.frames(1, first=1 << 20)
    began = time.monotonic()
    while probe[0] not in arrived(member, 1, 0.1) and time.monotonic() - began < 20:
        net.taps[0].send(probe)
    took = time.monotonic() - began
    assert wakeups(member, lib.XSKD_WAKEUP_REFILLED, lib.XSKD_WAKEUP_DRY) > before
    assert member.port.counters.drops[lib.XSKD_DROP_INVALID] == 0
    figure(
        f"{DRIVERS[dev[0]]}: FILL and NIC ring dry, to the first packet (emulated)",
        round(took * 1000),
        "ms",
        RECOVERY_MS,
    )
    for first in range(0, 2 * FEW, 16):  # once around, and more
        sent = net.frames(16, first=first + (2 << 20))
        net.taps[0].send(sent)
        assert sent == [packet for packet in arrived(member, 16, 5) if packet != probe[0]]


def test_igb_shows_frames_again_when_fill_ends_near_the_end_of_its_ring(ready: MakeNics) -> None:
    """A fault of its driver. What it names again is not the kernel's any more, so xskd takes no frame twice.

    But the NIC goes on writing packets into frames that have been handed over, which nobody can keep it from.
    The driver fetches as many frames as it has packets; it happens when FILL has fewer, and they do not reach
    the end of its ring. That depends on how many packets came together, so it is tried until it does.
    """
    net = ready("i0")
    rings = Rings(fill=512, rx=2048, tx=512, completion=512)
    sent, invalid, written = net.frames(16 * AT_ONCE), list[int](), list[int]()
    while not any(invalid) and len(invalid) < TRIES:
        umem = net.umem(2 * IGB_RING)
        kept = umem.take(2)  # so FILL ends two entries before the end of the second round
        member = net.receiver("i0", 0, umem=umem, rings=rings)
        for first in range(0, len(sent), AT_ONCE):
            net.taps[0].send(sent[first : first + AT_ONCE])
            time.sleep(0.02)
        batches = taken(member, umem.frames - len(kept))
        seen = packets(batches)
        assert len(seen) == umem.frames - len(kept)  # each frame once
        assert set(seen) <= set(sent)
        assert not taken(member, 1, 1.0)
        written.append(sum(one != other for one, other in zip(seen, sent, strict=False)))
        invalid.append(member.port.counters.drops[lib.XSKD_DROP_INVALID])
        for batch in (kept, *batches):
            batch.release()
        member.close()
    print(f"igb: {invalid} descriptors of frames that were not the kernel's; {written} frames written again")
    assert any(invalid), "the driver does so no more: docs/compatibility.md can say so"


def arrived(member: Socket, count: int, patience: float) -> list[bytes]:
    """Receive so many packets and give their frames back."""
    batches = taken(member, count, patience)
    copies = packets(batches)
    for batch in batches:
        batch.release()
    return copies


@BOTH
@pytest.mark.parametrize("poll", ["adaptive", "busy", "wakeup"])
def test_a_worker_that_paused_goes_on(ready: MakeNics, dev: str, poll: str) -> None:
    """RX runs full under it, as it must before FILL and the NIC's own ring run dry."""
    net = ready(dev)
    rings = Rings(fill=2048, rx=256, tx=512, completion=512)
    forwarder = net.forward("reflect", rings=rings, poll=poll)  # type: ignore[arg-type]
    member = forwarder.sockets[0]
    with net.running(forwarder):
        assert through(net, net.frames(8)) == 8
    for first in range(0, 512, 16):
        net.taps[0].send(net.frames(16, first=1000 + first))
        time.sleep(0.01)
    assert net.eventually(lambda: member.statistics().rx_ring_full > 0)
    sent = net.frames(64, first=1 << 20)
    with net.running(forwarder):
        began = time.monotonic()
        assert net.eventually(lambda: through(net, sent[:1], 0.2) >= 1)
        took = time.monotonic() - began
        net.drop_waiting()
        assert through(net, sent[1:]) == 63
    figure(
        f"{DRIVERS[dev[0]]}: worker paused, RX full, to the first packet, poll {poll} (emulated)",
        round(took * 1000),
        "ms",
        RECOVERY_MS,
    )
    assert forwarder.publish() == 0
    assert member.port.counters.drops[lib.XSKD_DROP_INVALID] == 0
    assert member.port.counters.wakeup_errors[lib.XSKD_ERROR_OTHER] == 0


def through(net: NicWire, sent: list[bytes], patience: float = 20.0) -> int:
    """Send packets to a reflector; how many come back."""
    wanted = {net.swapped(packet) for packet in sent}
    got = 0
    for start in range(0, len(sent), 16):
        window = sent[start : start + 16]
        net.taps[0].send(window)
        got += len(net.take(len(window), wanted, 0, patience))
    return got


@BOTH
def test_a_full_completion_ring_stops_sending_and_draining_goes_on(ready: MakeNics, dev: str) -> None:
    net = ready(dev)
    rings = Rings(fill=64, rx=64, tx=512, completion=64)
    member = net.open(dev, 0, umem=net.umem(1024), rings=rings)
    sent = net.frames(256)
    batch = net.written(member.umem, sent)
    assert lib.xskd_transmit(member.port, batch._descs, len(sent)) == len(sent)
    batch._start += len(sent)
    kick(member, 10)
    arrived = net.take(len(sent), set(sent), 0, 2.0)
    waiting = entries(member, lib.XSKD_COMPLETION)
    print(f"{dev}: {len(arrived)} of {len(sent)} sent, {waiting} completions, then it stops")
    assert waiting == 64
    assert len(arrived) < len(sent)
    began = time.monotonic()
    assert net.eventually(lambda: member.complete() + member.unsent == 0)
    figure(
        f"{DRIVERS[dev[0]]}: completion ring full, until all is sent (emulated)",
        round((time.monotonic() - began) * 1000),
        "ms",
        RECOVERY_MS,
    )
    arrived += net.take(len(sent) - len(arrived), set(sent), 0)
    assert arrived == sent


def kick(member: Socket, times: int) -> None:
    for _ in range(times):
        assert lib.xskd_wakeup_tx(member.port) == 0
        time.sleep(0.02)


def entries(member: Socket, name: int) -> int:
    ring = member.port.rings[name]
    return int(ring.producer[0] - ring.consumer[0]) & 0xFFFFFFFF


@BOTH
def test_sending_needs_its_wakeup_each_time(ready: MakeNics, dev: str) -> None:
    """TX asks for it always; frames that nobody kicks stay, and the first kick sends them all."""
    net = ready(dev)
    member = net.open(dev, 0, umem=net.umem(4096))
    for first in (0, 100):
        sent = net.frames(20, first=first)
        batch = net.written(member.umem, sent)
        assert lib.xskd_transmit(member.port, batch._descs, len(sent)) == len(sent)
        batch._start += len(sent)
        assert member.port.rings[lib.XSKD_TX].flags[0] & 1  # XDP_RING_NEED_WAKEUP
        assert net.take(1, set(sent), 0, 0.3) == []
        assert lib.xskd_wakeup_tx(member.port) == 0
        assert net.take(len(sent), set(sent), 0) == sent
        assert net.eventually(lambda: member.complete() + member.unsent == 0)


@BOTH
def test_invalid_descriptors_are_never_posted(ready: MakeNics, dev: str) -> None:
    """Kernels differ in whether they complete one, so none gets there."""
    net = ready(dev)
    member = net.open(dev, 0, umem=net.umem(4096))
    for field, wrong in (
        ("addr", 4096 * 4096),  # behind the end of the UMEM
        ("addr", 4090),  # over the end of its frame
        ("len", 0),
        ("len", 2000),  # more than the MTU
        ("options", 0x80),
    ):
        batch = net.written(member.umem, net.frames(1))
        desc = batch._descs[0]
        good = getattr(desc, field)
        setattr(desc, field, good + wrong if field == "addr" else wrong)
        taken_by_ring = member.transmit(batch)
        setattr(desc, field, good)
        assert taken_by_ring == 0, f"{field} {wrong}"
        batch.release()
    assert net.eventually(lambda: member.complete() + member.unsent == 0)
    assert member.statistics().tx_invalid_descs == 0
    sent = net.frames(32, first=500)
    assert member.transmit(net.written(member.umem, sent)) == len(sent)
    assert net.take(len(sent), set(sent), 0) == sent


def test_a_wakeup_before_a_program_is_there_is_refused_by_igb(nics: MakeNics) -> None:
    """So the daemon attaches first; virtio_net does not mind."""
    net = nics("i0")
    member = net.open("i0", 0, umem=net.umem(4096))
    with pytest.raises(XskError) as caught:
        member.transmit(net.written(member.umem, net.frames(1)))
    assert caught.value.errno == errno.EINVAL
