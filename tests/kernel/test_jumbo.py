"""Packets that take several frames: whole and unchanged or not at all, by the library and by the daemon."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import SLOWNESS
from daemon import Daemon, connect, paths, running, total
from packets import read
from test_daemon_capture import Client

from xskd.errors import XskError
from xskd.umem import HEADROOM
from xskd.xsk import Rings

if TYPE_CHECKING:
    from conftest import MakeWire, Tap, Wire

    from xskd.xdp import Attach

MTU = 9000
NOISE = random.Random(5).randbytes(3 * MTU)
pytestmark = pytest.mark.needs("takes_several_frames")
FRAME_SIZES = pytest.mark.parametrize("frame_size", [2048, 4096])


def frame(number: int, length: int, *, tags: int = 0) -> bytes:
    """A frame of its own, like Wire.frame, as long as one likes; in so many VLANs, 802.1ad outside."""
    head = bytes.fromhex("020000000002 020000000001")
    head += b"".join(bytes.fromhex("88a8 0064 8100 00c8")[4 * (2 - tags) :] for _ in range(bool(tags)))
    return (head + b"\x88\xb5" + number.to_bytes(4, "big") + NOISE[number % 997 :])[:length]


def lengths(frame_size: int) -> list[int]:
    """One byte around each multiple of what a frame takes, and the ends."""
    usable = frame_size - HEADROOM
    around = (usable * n + d for n in range(1, MTU // usable + 2) for d in (-1, 0, 1))
    return [60, 64, 1514, *(length for length in around if length <= MTU + 14), MTU + 13, MTU + 14]


def mixed(count: int) -> list[bytes]:
    choice = random.Random(7)
    return [frame(number, choice.choice((60, 64, 200, 1514, 4000, 8000, 9014))) for number in range(count)]


# ---- the library ------------------------------------------------------------------------------------


@FRAME_SIZES
@pytest.mark.parametrize("attach", ["native", "generic"])
def test_every_length_passes_unchanged_both_ways(wire: MakeWire, attach: Attach, frame_size: int) -> None:
    net = wire(mtu=MTU)
    forwarder = net.forward(frame_size=frame_size, attach=attach, multi_buffer=True)
    sent = [frame(number, length) for number, length in enumerate(lengths(frame_size) * 3)]
    with net.running(forwarder):
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert net.taps[1].through(sent, net.taps[0]) == sent
    assert forwarder.drain(1)
    for member in forwarder.sockets:
        counters = member.port.counters
        assert counters.rx_packets == counters.tx_packets == len(sent)
        assert counters.rx_bytes == counters.tx_bytes == sum(map(len, sent))
        assert counters.tx_completed == sum(-(-len(p) // (frame_size - HEADROOM)) for p in sent)


@FRAME_SIZES
def test_every_length_is_reflected(wire: MakeWire, frame_size: int) -> None:
    net = wire(links=1, mtu=MTU)
    forwarder = net.forward("reflect", frame_size=frame_size, multi_buffer=True)
    sent = [frame(number, length) for number, length in enumerate(lengths(frame_size) * 3)]
    with net.running(forwarder):
        assert net.taps[0].through(sent, net.taps[0]) == [net.swapped(packet) for packet in sent]


@FRAME_SIZES
def test_small_and_large_ones_in_any_order(wire: MakeWire, frame_size: int) -> None:
    net = wire(mtu=MTU)
    forwarder = net.forward(frame_size=frame_size, multi_buffer=True)
    sent = mixed(5000)
    with net.running(forwarder):
        assert net.taps[0].through(sent, net.taps[1]) == sent


def test_vlan_tags_pass_untouched(wire: MakeWire) -> None:
    net = wire(mtu=MTU)
    forwarder = net.forward(frame_size=2048, multi_buffer=True)
    sent = [frame(n, length, tags=n % 3) for n, length in enumerate([64, 1500, 1514, 5000, 9000, 9014] * 3)]
    with net.running(forwarder):
        sockets = net.taps[0], net.taps[1]
        for packet in sent:  # a raw socket is given the outermost tag apart from the packet
            sockets[0].send([packet])
            assert with_tag(sockets[1]) == packet


def with_tag(tap: Tap) -> bytes:
    """The next packet at a tap, with the tag that the kernel takes off for a raw socket."""
    tap.socket.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
    tap.socket.settimeout(5)
    data, ancillary, _, _ = tap.socket.recvmsg(65536, 64)
    status, *_, tci, tpid = struct.unpack("=IIIHHHH", ancillary[0][2])
    assert isinstance(data, bytes)
    return data[:12] + struct.pack("!HH", tpid, tci) + data[12:] if status & (1 << 4) else data


def test_a_tx_ring_that_is_full_drops_whole_packets(wire: MakeWire) -> None:
    """The egress link is down: nothing leaves for a while, and what leaves then is whole."""
    net = wire(mtu=MTU)
    rings = Rings(fill=1024, rx=512, tx=64, completion=64)
    forwarder = net.forward(frame_size=2048, multi_buffer=True, rings=rings)
    sent = mixed(3000)
    with net.running(forwarder):
        net.link(net.dut, "eth2", "down")
        for start in range(0, 1500, 50):
            net.taps[0].send(sent[start : start + 50])
            time.sleep(0.002)
        net.up(net.dut, "eth2")
        for start in range(1500, 3000, 50):
            net.taps[0].send(sent[start : start + 50])
            time.sleep(0.002)
        got = net.taps[1].receive(len(sent), 1.0)
    drops = forwarder.sockets[0].port.counters.drops
    assert drops[2] > 0  # XSKD_DROP_TX_FULL
    assert set(got) <= set(sent) and len(got) > 500
    assert forwarder.drain(2)


@FRAME_SIZES
def test_receive_and_transmit_of_the_library(wire: MakeWire, frame_size: int) -> None:
    net = wire(mtu=MTU)
    umem = net.umem(8192, frame_size)
    there = net.receiver("eth1", umem=umem, multi_buffer=True)
    out = net.open("eth2", umem=umem, multi_buffer=True)
    sent = [frame(number, length) for number, length in enumerate([9014, 60, 4000, 9014])]
    net.taps[0].send(sent)
    got: list[bytes] = []
    while there.wait(2.0) and len(got) < len(sent):
        with there.receive(4) as batch:
            packet = b""
            for index, part in enumerate(batch):
                packet += bytes(part)
                if not batch.continues(index):
                    got.append(packet)
                    packet = b""
            assert packet == b""  # never a part of one
            frames = len(batch)
            assert out.transmit(batch) == frames
    assert got == sent
    batch = umem.take(3)
    batch.write(0, sent[0][:1000], continues=True)
    batch.write(1, sent[0][1000:1001], continues=True)
    batch.write(2, sent[0][1001:2500])
    assert out.transmit(batch) == 3
    assert net.taps[1].receive(1 + len(sent)) == [*sent, sent[0][:2500]]
    assert net.eventually(lambda: out.complete() + out.unsent == 0)


def test_zero_copy_is_refused_by_name(wire: MakeWire) -> None:
    net = wire(mtu=MTU)
    with pytest.raises(XskError, match="mode"):
        net.open(mode="zerocopy", multi_buffer=True)


# ---- the daemon -------------------------------------------------------------------------------------


def set_mtu(net: Wire, mtu: int) -> None:
    for ns, dev in (*((host, "eth0") for host in net.hosts), *((net.dut, dev) for dev in net.dut_devs)):
        net.link(ns, dev, "mtu", str(mtu))


@FRAME_SIZES
def test_the_daemon_forwards_them(wire: MakeWire, tmp_path: Path, frame_size: int) -> None:
    net = wire(mtu=MTU, queues=1)
    with running(net, tmp_path, connect(rest=f"umem: {{frame_size: {frame_size}}}")) as daemon:
        sent = mixed(1000)
        assert net.taps[0].through(sent, net.taps[1]) == sent
        metrics = daemon.metrics()
        assert total(metrics, "xskd_rx_packets", interface="eth1") == len(sent)
        assert total(metrics, "xskd_tx_bytes", interface="eth2") == sum(map(len, sent))
        assert total(metrics, "xskd_frames_unaccounted") == 0
        assert daemon.stop() == 0
    assert "0 unaccounted, 0 contradictions" in daemon.log


def test_the_daemon_reflects_them(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=1, mtu=MTU)
    with running(net, tmp_path, paths("echo: {reflect: eth1}", "eth1")):
        sent = mixed(300)
        assert net.taps[0].through(sent, net.taps[0]) == [net.swapped(packet) for packet in sent]


@pytest.mark.moves("xskd_socket_multi_buffer")
def test_the_mtu_changes_while_the_daemon_runs(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(mtu=1500)
    with running(net, tmp_path) as daemon:
        for mtu, bound in ((1500, 1), (9000, 2), (8000, 2), (1500, 3)):  # from 9000 to 8000 sockets stay
            set_mtu(net, mtu)
            assert net.eventually(partial(has_bound, daemon, bound), 20), daemon.log
            assert net.eventually(partial(passes, net, daemon, [frame(1, mtu + 14)]), 20), daemon.log
            several = total(daemon.metrics(), "xskd_socket_multi_buffer")
            assert several == (0 if mtu == 1500 else 2)
        assert has_bound(daemon, 3)


def has_bound(daemon: Daemon, times: int) -> bool:
    return daemon.log.count("eth2 queue 0 bound") == times


def passes(net: Wire, daemon: Daemon, sent: list[bytes]) -> bool:
    for tap in net.taps:
        tap.waiting()
    net.taps[0].send(sent)
    return net.taps[1].receive(1, 0.3) == sent and daemon.forwards("wire/0")


def test_they_are_captured_as_one_packet(wire: MakeWire, tmp_path: Path) -> None:
    net, file, short = wire(mtu=MTU), tmp_path / "jumbo.pcapng", tmp_path / "short.pcapng"
    sent = mixed(300)
    with running(net, tmp_path, connect(rest="umem: {frame_size: 2048}")) as daemon:
        client = Client(daemon, "wire", "--direction", "both", output=file)
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert client.end().startswith("600 packets captured")
        client = Client(daemon, "wire", "--snaplen", "3000", output=short)
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert client.end().startswith("300 packets captured")
    for direction in ("in", "out"):
        assert [p.data for p in read(file).packets if p.direction == direction] == sent
    kept = read(short).packets
    assert [p.data for p in kept] == [packet[:3000] for packet in sent]
    assert [p.original for p in kept] == [len(packet) for packet in sent]


def test_a_worker_is_killed_among_them(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(mtu=MTU)
    sent, got, ended = mixed(12_000), [], threading.Event()

    def send() -> None:
        for start in range(0, len(sent), 8):
            net.taps[0].send(sent[start : start + 8])
            time.sleep(0.003 * SLOWNESS)
        ended.set()

    with running(net, tmp_path, connect(rest="umem: {frame_size: 2048}")) as daemon:
        thread = threading.Thread(target=send)
        thread.start()
        for _ in range(3):
            pid = daemon.worker("wire/0")["pid"]
            time.sleep(0.2)
            os.kill(pid, signal.SIGKILL)
            got += net.taps[1].waiting()
            daemon.comes("wire/0", other_than=pid)
        while not ended.is_set():
            got += net.taps[1].waiting()
            time.sleep(0.005)
        thread.join()
        got += net.taps[1].receive(len(sent) - len(got), 1.0)
        metrics = daemon.metrics()
        assert total(metrics, "xskd_frames_unaccounted") == 0
        assert total(metrics, "xskd_frames", state="quarantined") == 0
        assert daemon.stop() == 0
    assert set(got) <= set(sent) and len(set(got)) == len(got)  # each whole, once
    assert got[-100:] == sent[-100:]  # long after the last kill
    assert daemon.log.count("0 frames quarantined") == 3


def test_iperf3_through_connect(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(mtu=MTU)
    for host in (0, 1):
        net.run(net.hosts[host], "ip", "addr", "add", f"{net.ip_of(host)}/24", "dev", "eth0")
        net.run(
            net.hosts[host], "ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off", "tx", "off"
        )
    with running(net, tmp_path, connect(rest="umem: {frame_size: 2048}")) as daemon:
        net.popen(net.hosts[1], "iperf3", "--server", "--one-off")
        said = ""
        assert net.eventually(
            lambda: "5201" in net.run(net.hosts[1], "ss", "-Hltn", "sport = :5201").stdout, 10
        )
        said = net.run(net.hosts[0], "iperf3", "--json", "-t", "2", "-P", "2", "-c", net.ip_of(1)).stdout
        metrics = daemon.metrics()
    answer = json.loads(said)
    assert answer["end"]["sum_received"]["bytes"] > 10_000_000
    assert answer["start"]["tcp_mss_default"] > 8000
    received = total(metrics, "xskd_rx_bytes", interface="eth1")
    assert received / total(metrics, "xskd_rx_packets", interface="eth1") > 4000
