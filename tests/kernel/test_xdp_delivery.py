"""What becomes of a packet once its rule is known: limits, lanes, routes, and rules that are swapped.

Images are made by hand here, so that nothing but the program is judged; tests/kernel/test_rules_program.py
holds it against the compiler and the model.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from frames import checksum
from test_xdp_adoption import kept
from xskd._libbpf import ffi, lib

from lab import entered
from xskd import loading
from xskd.errors import XdpError
from xskd.xdp import UNROUTABLE, Program, RuleTally, Settings, TestRun, Verdicts, test_run

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

run = test_run
ANSWERS = {
    "redirect": lib.XSKD_REDIRECT,
    "express": lib.XSKD_EXPRESS,
    "pass": lib.XSKD_PASS,
    "drop": lib.XSKD_DROP,
}


def rules(
    default: str, *, limit: Any = None, path_limit: Any = None, vlan: dict[int, str] | None = None
) -> bytes:
    """Make an image: one rule for each VID in `vlan`, then the default, with limits of xskd_limit."""
    image = ffi.new("struct xskd_rules *")
    image.rules[lib.XSKD_DEFAULT].answer = ANSWERS[default]
    if path_limit:
        image.limited, image.limits[0] = 1, path_limit
    if limit:
        image.rules[lib.XSKD_DEFAULT].limit, image.limits[1] = 1, limit
    for number, (vid, answer) in enumerate((vlan or {}).items()):
        image.count, image.dimensions = number + 1, 1 << lib.XSKD_DIMENSION_VLAN
        image.rules[number].answer, image.vlan[vid] = ANSWERS[answer], number + 1
        image.classes[number + 1].summary = 1 << number // 64
        image.classes[number + 1].words[number // 64] = 1 << number % 64
    return bytes(ffi.buffer(image))


def rate(packets: int = 0, bits: int = 0, depth_ms: int = 20) -> tuple[int, int, int]:
    """What a limit costs, in 2^-16 ns."""
    second = 1_000_000_000 << 16
    return (
        second // packets if packets else 0,
        second * 8 // bits if bits else 0,
        depth_ms * 1_000_000 << 16,
    )


def ipv4(
    source: str, destination: str, *, ttl: int = 64, payload: bytes = bytes(26), options: bytes = b"",
    mac: str = "020000000101", mend: bool = True, tag: bytes = b""
) -> bytes:  # fmt: skip
    """Make a UDP packet for the MAC address of eth1."""
    udp = struct.pack("!HHHH", 5, 6, 8 + len(payload), 0) + payload
    length = 20 + len(options) + len(udp)
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, length, 7, 0, ttl, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination) + options
    sum_ = checksum(head) if mend else 0x1234
    head = head[:10] + sum_.to_bytes(2, "big") + head[12:]
    return bytes.fromhex(mac) + bytes.fromhex("020000000001") + tag + b"\x08\x00" + head + udp


def ipv6(source: str, destination: str, *, hops: int = 64, next_header: int = 17) -> bytes:
    udp = struct.pack("!HHHH", 5, 6, 16, 0) + bytes(8)
    if next_header == 0:
        udp = bytes([17, 0, 1, 4, 0, 0, 0, 0]) + udp
    head = struct.pack("!IHBB", 6 << 28, len(udp), next_header, hops)
    head += socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return bytes.fromhex("020000000101 020000000001 86dd") + head + udp


def index(net: Wire, dev: str) -> int:
    with entered(net.dut):
        return socket.if_nametoindex(dev)


def settings(net: Wire, kind: Any, dev: str = "eth1", answer: Any = "redirect") -> Settings:
    ports = tuple(index(net, each) for each in net.dut_devs)
    number = net.dut_devs.index(dev)
    mac = bytes.fromhex(net.mac_of(number, dut_side=True).replace(":", ""))
    return Settings(kind, answer, ports, number, mac)


def configure(net: Wire, program: Program, kind: Any, dev: str = "eth1", answer: Any = "redirect") -> None:
    with entered(net.dut):
        program.configure(settings(net, kind, dev, answer))


# ---- answers and tallies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "action", "field"),
    [("pass", "pass", "passed"), ("drop", "drop", "dropped"), ("redirect", "pass", "no_socket_passed")],
)
def test_without_rules_the_settings_answer(wire: MakeWire, answer: Any, action: str, field: str) -> None:
    program = wire(links=1).load()
    program.configure(Settings(answer=answer))
    packet = bytes(60)
    assert run(program, packet).action == action
    assert program.verdicts() == Verdicts(**{field: 1})
    assert program.verdict_bytes() == Verdicts(**{field: 60})
    assert program.rule_tallies() == () == program.install(None)


def test_the_first_rule_that_matches_answers_and_counts_whole_packets(wire: MakeWire) -> None:
    program = wire(links=1).load()
    program.install(rules("pass", vlan={7: "drop", 9: "redirect"}))
    for vid, action in ((7, "drop"), (9, "pass"), (8, "pass")):
        tag = b"\x81\x00" + vid.to_bytes(2, "big")
        assert run(program, ipv4("10.0.0.1", "10.0.0.2", tag=tag)).action == action
    long = ipv4("10.0.0.1", "10.0.0.2", tag=b"\x81\x00\x00\x07", payload=bytes(8000))  # several buffers
    assert run(program, long).action == "drop"
    small = len(ipv4("10.0.0.1", "10.0.0.2", tag=bytes(4)))
    assert program.rule_tallies() == (
        RuleTally(2, small + len(long)), RuleTally(1, small), RuleTally(1, small)
    )  # fmt: skip
    assert run(program, bytes(13)[:14].ljust(14, b"\0")).action == "pass"
    assert program.unparsed() == 0


@pytest.mark.parametrize(
    "cut",
    [16, 33, 41],  # in a tag, in the IP header, in the UDP header
)
def test_what_is_cut_off_takes_the_default_and_is_counted(wire: MakeWire, cut: int) -> None:
    program = wire(links=1).load()
    program.install(rules("drop", vlan={7: "pass"}))
    tag = b"\x81\x00\x00\x07" if cut == 16 else b""
    assert run(program, ipv4("10.0.0.1", "10.0.0.2", tag=tag)[:cut]).action == "drop"
    assert (program.unparsed(), program.verdicts()) == (1, Verdicts(dropped=1))
    assert program.rule_tallies() == (RuleTally(), RuleTally(1, cut))


def test_a_swap_returns_what_the_old_rules_counted_and_the_new_begin_at_zero(wire: MakeWire) -> None:
    program = wire(links=1).load()
    packet = ipv4("10.0.0.1", "10.0.0.2")
    for turn in range(5):
        assert program.install(rules("drop")) == ((RuleTally(turn, turn * len(packet)),) if turn else ())
        assert program.rule_tallies() == (RuleTally(),)
        for _ in range(turn + 1):
            run(program, packet)
    assert program.install(None) == (RuleTally(5, 5 * len(packet)),)
    assert program.rule_tallies() == ()


def test_an_image_of_another_size_is_refused_and_the_old_rules_stay(wire: MakeWire) -> None:
    program = wire(links=1).load()
    program.install(rules("drop"))
    with pytest.raises(XdpError, match="an image has 3034704 bytes, not 4"):
        program.install(b"none")
    assert run(program, bytes(60)).action == "drop"


def test_a_swap_under_traffic_mixes_nothing_and_counts_every_packet_once(wire: MakeWire) -> None:
    """Two sets, each all of one answer: each packet is in the tally of one, and in that one's verdict."""
    net = wire(links=1)
    program = net.attach("eth1")
    ended, errors = threading.Event(), []

    def send() -> None:
        try:
            while not ended.is_set():
                net.taps[0].send(net.frames(50))
        except Exception as error:
            errors.append(error)

    before = net.counters(net.dut, "eth1").rx_packets
    counted = {"drop": 0, "pass": 0}
    program.install(rules("drop"))
    thread = threading.Thread(target=send)
    thread.start()
    now, swaps = "drop", 0
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        then, now, swaps = now, "pass" if now == "drop" else "drop", swaps + 1
        counted[then] += program.install(rules(now))[0].packets
    ended.set()
    thread.join()
    time.sleep(0.2)
    counted[now] += program.install(None)[0].packets
    verdicts = program.verdicts()
    assert errors == [] and swaps > 5 and before == 0
    assert (verdicts.dropped, verdicts.passed) == (counted["drop"], counted["pass"])
    assert min(counted.values()) > 0
    assert sum(counted.values()) == net.counters(net.hosts[0], "eth0").tx_packets


# ---- adoption ----------------------------------------------------------------------------------------


def test_a_successor_finds_rules_tallies_and_settings(wire: MakeWire) -> None:
    net = wire(links=1)
    first = net.attach("eth1", fallback="drop")
    first.install(rules("pass"))
    first.install(rules("drop"))  # in the other half
    net.taps[0].send(net.frames(3))
    with entered(net.dut):
        second = Program.adopt("eth1", 1, kept(first), ifindex=index(net, "eth1"))
    first.close()
    assert second.rule_tallies() == (RuleTally(3, 192),)
    assert second.install(rules("pass")) == (RuleTally(3, 192),)
    net.taps[0].send(net.frames(2))
    assert second.install(None) == (RuleTally(2, 128),)
    net.taps[0].send(net.frames(1))
    assert second.verdicts() == Verdicts(dropped=3, passed=2, no_socket_dropped=1)
    second.close()


VERSION_1 = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#define MAP(name, kind, bytes, entries) struct { __uint(type, kind); __uint(max_entries, entries); \\
    __uint(key_size, 4); __uint(value_size, bytes); } name SEC(".maps")
MAP(xsks, BPF_MAP_TYPE_XSKMAP, 4, 1);
MAP(fallback, BPF_MAP_TYPE_ARRAY, 4, 1);
MAP(verdicts, BPF_MAP_TYPE_PERCPU_ARRAY, 8, 3);
SEC("xdp.frags") int xskd(struct xdp_md *ctx)
{
	__u32 zero = 0, *answer = bpf_map_lookup_elem(&fallback, &zero);
	bpf_map_lookup_elem(&verdicts, &zero);
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, answer && *answer == XDP_DROP ? XDP_DROP : XDP_PASS);
}
char LICENSE[] SEC("license") = "Dual BSD/GPL";
"""


def test_the_maps_of_version_1_are_made_anew_around_its_sockets(wire: MakeWire, tmp_path: Path) -> None:
    """It had a map `fallback`, counters of another shape and no rules."""
    clang = shutil.which("clang-14") or shutil.which("clang")
    if clang is None:
        pytest.skip("needs clang: compiles an XDP program of version 1")
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    command = (clang, "-O2", "-g", "-target", "bpf", include, "-x", "c", "-", "-c", "-o", tmp_path / "one.o")
    subprocess.run(command, input=VERSION_1, text=True, check=True)
    net = wire(links=1)
    content = (tmp_path / "one.o").read_bytes()
    one = lib.bpf_object__open_mem(content, len(content), ffi.NULL)
    assert lib.bpf_object__load(one) == 0
    held = {
        name: os.dup(lib.bpf_map__fd(loading.map_of(one, name))) for name in ("xsks", "fallback", "verdicts")
    }
    drop, zero = ffi.new("uint32_t *", lib.XDP_DROP), ffi.new("uint32_t *", 0)
    assert lib.bpf_map_update_elem(held["fallback"], zero, drop, lib.BPF_ANY) == 0
    with entered(net.dut):
        held["link"] = lib.xskd_link_create(
            loading.program_in(one), index(net, "eth1"), lib.XDP_FLAGS_DRV_MODE
        )
    lib.bpf_object__close(one)
    descriptors = len(os.listdir("/proc/self/fd")) - len(held)
    with entered(net.dut):
        program = Program.adopt("eth1", 1, held, ifindex=index(net, "eth1"))
    assert program.replaced
    assert len(os.listdir("/proc/self/fd")) == descriptors + len(program.descriptors())
    net.taps[0].send(net.frames(2))
    assert program.verdicts() == Verdicts(no_socket_dropped=2)  # the fallback that was there
    xsk = net.open()
    program.insert(0, xsk)
    net.taps[0].send(net.frames(3))
    assert len(xsk.receive()) == 3
    program.close()


# ---- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["rule", "path"])
def test_what_is_saved_up_may_come_at_once_and_no_more(wire: MakeWire, whose: str) -> None:
    program = wire(links=1).load()
    cost = rate(packets=1, depth_ms=5000)  # five packets, and one more a second
    rule = whose == "rule"
    program.install(rules("redirect", limit=cost if rule else None, path_limit=None if rule else cost))
    answers = [run(program, bytes(60)).action for _ in range(9)]
    assert answers[:5] == ["pass"] * 5 and answers[-3:] == ["drop"] * 3
    verdicts, limited = program.verdicts(), answers.count("drop")
    assert (verdicts.rule_limited if whose == "rule" else verdicts.path_limited) == limited
    assert program.rule_tallies() == (RuleTally(9, 540, limited if whose == "rule" else 0),)


def test_bytes_are_limited_too_and_a_long_packet_is_paid_for_later(wire: MakeWire) -> None:
    program = wire(links=1).load()
    program.install(rules("redirect", limit=rate(bits=8000, depth_ms=100)))  # 100 bytes; 1,000 a second
    assert (
        run(program, bytes(1000)).action == "pass"
    )  # more than there can ever be: it goes when all is there
    assert run(program, bytes(60)).action == "drop"
    time.sleep(0.5)
    assert run(program, bytes(60)).action == "drop"  # still owed: nine tenths of a second
    time.sleep(0.6)
    assert run(program, bytes(60)).action == "pass"


# ---- lanes -------------------------------------------------------------------------------------------


def test_an_open_lane_takes_express_packets_and_a_closed_one_leaves_them_to_the_socket(
    wire: MakeWire,
) -> None:
    net = wire()
    xsk = net.receiver("eth1")
    program = net.programs["eth1"]
    configure(net, program, "connect", answer="express")
    packets = net.frames(3)
    net.taps[0].send(packets)
    assert len(xsk.receive()) == 3
    program.open_lanes({1})
    assert net.taps[0].through(packets, net.taps[1]) == packets
    assert program.verdicts() == Verdicts(redirected=3, expressed=3)
    configure(net, program, "connect", answer="redirect")
    net.taps[0].send(packets)
    assert len(xsk.receive()) == 3
    configure(net, program, "reflect", answer="express")
    program.open_lanes({0, 1})
    net.taps[0].send(packets)
    assert len(xsk.receive()) == 3


def test_an_express_packet_without_its_interface_goes_to_the_socket(wire: MakeWire) -> None:
    net = wire()
    xsk = net.receiver("eth1")
    program = net.programs["eth1"]
    before = settings(net, "connect", answer="express")
    net.run(net.dut, "ip", "link", "del", "eth2")
    with entered(net.dut):
        program.configure(before)  # the interface that is gone is left out
    program.open_lanes({1})
    net.taps[0].send(net.frames(2))
    assert len(xsk.receive()) == 2
    assert program.verdicts() == Verdicts(redirected=2)


def test_a_packet_that_may_lie_in_several_buffers_needs_a_lane_for_those(wire: MakeWire) -> None:
    program = wire(links=1).load()
    lo = socket.if_nametoindex("lo")
    program.configure(Settings("connect", "express", (lo, lo), 0))
    program.open_lanes({1})
    for length, expected in ((1522, "redirect"), (1523, "pass")):
        assert run(program, bytes(length)).action == expected
    program.open_lanes({1}, {1})
    assert run(program, bytes(9000)).action == "redirect"


# ---- routes ------------------------------------------------------------------------------------------


@pytest.fixture
def router(wire: MakeWire) -> Iterator[tuple[Wire, Program]]:
    """Make two subnets and what lies behind them; everything has a neighbour but 10.2.0.9."""
    net = wire()
    program = net.attach("eth1")
    net.attach("eth2")
    configure(net, program, "route")
    ip = ("ip",)
    for command in (
        "addr add 10.1.0.1/24 dev eth1", "addr add 10.2.0.1/24 dev eth2",
        "addr add fd01::1/64 dev eth1 nodad", "addr add fd02::1/64 dev eth2 nodad",
        "neigh add 10.2.0.2 lladdr 02:00:00:00:00:02 dev eth2",
        "neigh add fd02::2 lladdr 02:00:00:00:00:02 dev eth2",
        "neigh add 10.1.0.2 lladdr 02:00:00:00:00:01 dev eth1",
        "route add 10.3.0.0/24 via 10.2.0.2", "route add fd03::/64 via fd02::2",
        "route add blackhole 10.4.0.0/24", "route add unreachable 10.5.0.0/24",
        "route add prohibit 10.6.0.0/24",
        "route add 10.7.0.0/24 dev lo", "route add 10.8.0.0/24 via 10.2.0.2 mtu lock 600",
    ):  # fmt: skip
        net.run(net.dut, *ip, *command.split())
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        net.run(net.dut, "sysctl", "-w", f"{key}=1")
    yield net, program


def ask(net: Wire, program: Program, packet: bytes) -> TestRun:
    with entered(net.dut):
        return run(program, packet, ifindex=index(net, "eth1"))


def test_a_routed_packet_says_its_way_in_front_and_is_unchanged(router: tuple[Wire, Program]) -> None:
    net, program = router
    xsk = net.open("eth1")
    program.insert(0, xsk)
    for packet, family in ((ipv4("10.1.0.2", "10.3.0.7"), 4), (ipv6("fd01::2", "fd03::7"), 6)):
        done = ask(net, program, packet)
        assert (done.action, done.packet) == ("redirect", packet)
        words = struct.unpack("=5I", done.metadata)
        address = packet[30:34] if family == 4 else packet[50:54]
        check = lib.XSKD_META ^ words[1] ^ words[2] ^ words[3] ^ words[4] ^ len(packet)
        assert words[0] == check ^ int.from_bytes(address, "little")
        assert struct.unpack("=HH", done.metadata[4:8]) == (1, family)
        assert done.metadata[8:].hex() == "020000000002" + "020000000102"
    assert program.verdicts() == Verdicts(redirected=2)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_the_way_arrives_in_front_of_the_packet_in_a_socket(wire: MakeWire, mode: Any) -> None:
    net = wire()
    xsk = net.receiver("eth1", attach=mode)
    configure(net, net.programs["eth1"], "route")
    for command in ("addr add 10.1.0.1/24 dev eth1", "addr add 10.2.0.1/24 dev eth2",
                    "neigh add 10.2.0.2 lladdr 02:00:00:00:00:02 dev eth2"):  # fmt: skip
        net.run(net.dut, "ip", *command.split())
    net.run(net.dut, "sysctl", "-w", "net.ipv4.ip_forward=1")
    packet = ipv4("10.1.0.2", "10.2.0.2")
    net.taps[0].send([packet])
    (got,) = xsk.receive()
    assert bytes(got) == packet
    assert net.programs["eth1"].verdicts() == Verdicts(redirected=1)


def test_an_express_packet_is_routed_by_the_program(router: tuple[Wire, Program]) -> None:
    net, program = router
    configure(net, program, "route", answer="express")
    program.open_lanes({1})

    def arrived(packet: bytes) -> bytes:
        """Beside what the kernel says about itself."""
        net.taps[0].send([packet])
        while (got := net.taps[1].receive(1)[0]).startswith(b"\x33\x33"):
            pass
        return got

    for ttl in (64, 2, 255):
        got = arrived(ipv4("10.1.0.2", "10.3.0.7", ttl=ttl))
        assert got[:14].hex() == "020000000002" + "020000000102" + "0800"
        assert got[14:] == ipv4("10.1.0.2", "10.3.0.7", ttl=ttl - 1)[14:]  # the checksum too
    got = arrived(ipv6("fd01::2", "fd03::7"))
    assert got[14:] == ipv6("fd01::2", "fd03::7", hops=63)[14:]
    assert program.verdicts().expressed == 4


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        ("not_ip", bytes.fromhex("020000000101 020000000001 0806") + bytes(46)),
        ("not_ip", ipv4("10.1.0.2", "10.3.0.7", tag=b"\x81\x00\x00\x07")),
        ("other_host", ipv4("10.1.0.2", "10.3.0.7", mac="020000000999")),
        ("multicast", ipv4("10.1.0.2", "10.3.0.7", mac="01005e000001")),
        ("broadcast", ipv4("10.1.0.2", "10.3.0.7", mac="ffffffffffff")),
        ("malformed", ipv4("10.1.0.2", "10.3.0.7", mend=False)),
        ("malformed", ipv4("10.1.0.2", "10.3.0.7")[:50]),
        ("options", ipv4("10.1.0.2", "10.3.0.7", options=bytes([1, 1, 1, 0]))),
        ("options", ipv6("fd01::2", "fd03::7", next_header=0)),
        ("ttl_expired", ipv4("10.1.0.2", "10.3.0.7", ttl=1)),
        ("ttl_expired", ipv6("fd01::2", "fd03::7", hops=1)),
        ("never_forwarded", ipv4("127.0.0.1", "10.3.0.7")),
        ("never_forwarded", ipv4("10.1.0.2", "0.1.2.3")),
        ("never_forwarded", ipv4("10.1.0.2", "224.0.0.5")),
        ("never_forwarded", ipv4("10.1.0.2", "255.255.255.255")),
        ("never_forwarded", ipv4("169.254.1.1", "10.3.0.7")),
        ("never_forwarded", ipv6("fe80::1", "fd03::7")),
        ("never_forwarded", ipv6("fd01::2", "ff02::1")),
        ("never_forwarded", ipv6("::", "fd03::7")),
        ("never_forwarded", ipv6("fd01::2", "::1")),
        ("blackhole", ipv4("10.1.0.2", "10.4.0.1")),
        ("unreachable", ipv4("10.1.0.2", "10.5.0.1")),
        ("prohibited", ipv4("10.1.0.2", "10.6.0.1")),
        ("local", ipv4("10.1.0.2", "10.1.0.1")),
        ("no_neighbour", ipv4("10.1.0.2", "10.2.0.9")),
        ("fragmentation_needed", ipv4("10.1.0.2", "10.8.0.1", payload=bytes(700))),
        ("outside", ipv4("10.1.0.2", "10.9.0.1")),
    ],
)
def test_what_only_the_kernel_can_do_is_left_to_it_whole(
    router: tuple[Wire, Program], reason: str, packet: bytes
) -> None:
    net, program = router
    if reason == "outside":  # a path of eth1 alone
        with entered(net.dut):
            program.configure(
                Settings("route", "redirect", (index(net, "eth1"),), 0, bytes.fromhex("020000000101"))
            )
        packet = ipv4("10.1.0.2", "10.3.0.7")
    done = ask(net, program, packet)
    assert (done.action, done.packet, done.metadata) == ("pass", packet, b"")
    assert program.unroutable() == {each: int(each == reason) for each in UNROUTABLE}
    assert program.verdicts() == Verdicts(unroutable=1)


def test_forwarding_that_is_off_is_honoured(router: tuple[Wire, Program]) -> None:
    net, program = router
    net.run(net.dut, "sysctl", "-w", "net.ipv4.ip_forward=0")
    assert ask(net, program, ipv4("10.1.0.2", "10.3.0.7")).action == "pass"
    assert program.unroutable()["forwarding_off"] == 1
