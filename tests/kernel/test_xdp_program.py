"""The XDP program: attached in the mode asked for, never over somebody else's, gone with its last holder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xskd._libbpf import ffi, lib

from lab import entered
from xskd.errors import XdpError
from xskd.xdp import OBJECT, Attach, Program, Verdicts
from xskd.xsk import Rings

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

SMALL = Rings(64, 64, 64, 64)
MODES = {lib.XDP_ATTACHED_NONE: None, lib.XDP_ATTACHED_DRV: "native", lib.XDP_ATTACHED_SKB: "generic"}
# A program of its own that holds an attached one until it is killed.
HOLDER = """
import time
from xskd.xdp import Program
with Program(1) as program:
    program.attach("eth1")
    print("attached", flush=True)
    time.sleep(60)
"""


def attached(net: Wire, dev: str = "eth1") -> tuple[int, str | None]:
    """The id of the program on an interface (0: none) and its mode, as the kernel says."""
    answer = ffi.new("struct xskd_attached *")
    with entered(net.dut):
        net_index = int(net.run(net.dut, "cat", f"/sys/class/net/{dev}/ifindex").stdout)
        assert lib.xskd_attached_to(net_index, answer) == 0
    return answer.id, MODES[answer.mode]


def program_exists(number: int) -> bool:
    return bool(lib.xskd_program_info(number, ffi.new("struct xskd_program_info *")) == 0)


def bpftool(*args: str) -> Any:
    if shutil.which("bpftool") is None:
        return None
    return json.loads(subprocess.run(("bpftool", "-j", *args), capture_output=True, check=True).stdout)


def maps_of(program: int) -> list[int]:
    return [int(number) for number in (bpftool("prog", "show", "id", str(program)) or {}).get("map_ids", ())]


def map_ids() -> set[int]:
    return {int(shown["id"]) for shown in bpftool("map", "show") or ()}


@pytest.mark.parametrize("mode", ["native", "generic", "auto"])
def test_it_is_attached_in_the_mode_asked_for_and_says_so(wire: MakeWire, mode: Attach) -> None:
    net = wire(links=1)
    became = "native" if mode == "auto" else mode
    program = net.attach("eth1", mode)
    assert program.attach_mode == became
    number, found = attached(net)
    assert (found, program.native_refused) == (became, None)
    info = ffi.new("struct xskd_program_info *")
    assert lib.xskd_program_info(number, info) == 0
    assert ffi.string(info.name) == b"xskd"
    program.close()
    assert attached(net) == (0, None)
    assert net.eventually(lambda: not program_exists(number))


def refusing_native(net: Wire) -> None:
    """Make a veth refuse a native program: with fewer TX queues here than RX queues there, it will not."""
    net.run(net.hosts[0], "ethtool", "-L", "eth0", "tx", "2", "rx", "1")
    net.run(net.dut, "ethtool", "-L", "eth1", "rx", "1", "tx", "1")


def test_auto_falls_back_to_generic_and_keeps_the_reason(wire: MakeWire) -> None:
    net = wire(links=1, queues=2)
    refusing_native(net)
    program = net.attach("eth1", "auto")
    assert program.attach_mode == "generic"
    assert program.native_refused is not None
    assert attached(net)[1] == "generic"


def test_native_that_is_refused_says_what_the_driver_answered(wire: MakeWire) -> None:
    net = wire(links=1, queues=2)
    refusing_native(net)
    with pytest.raises(XdpError, match=r"BPF_LINK_CREATE\(eth1\): .*attaching in native mode"):
        net.attach("eth1", "native")
    assert attached(net) == (0, None)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_without_a_socket_the_fallback_decides_and_is_counted(wire: MakeWire, mode: Attach) -> None:
    net = wire(links=1)
    program = net.attach("eth1", mode)
    rx_before = net.counters(net.dut, "eth1").rx_packets
    assert rx_before == 0
    net.taps[0].send(net.frames(5))
    assert program.verdicts() == Verdicts(redirected=0, no_socket_passed=5, no_socket_dropped=0)
    program.set_fallback("drop")  # from the next packet on
    net.taps[0].send(net.frames(7))
    assert program.verdicts() == Verdicts(redirected=0, no_socket_passed=5, no_socket_dropped=7)
    program.set_fallback("pass")
    net.taps[0].send(net.frames(1))
    assert program.verdicts().no_socket_passed == 6


def test_pass_gives_the_packet_to_the_kernel_and_drop_does_not(wire: MakeWire) -> None:
    net = wire(links=1)
    for ns, dev, address in ((net.hosts[0], "eth0", "10.98.0.1/24"), (net.dut, "eth1", "10.98.0.2/24")):
        net.run(ns, "ip", "addr", "add", address, "dev", dev)
    program = net.attach("eth1", fallback="pass")
    ping = ("ping", "-c", "1", "-W", "1", "10.98.0.2")
    assert net.run(net.hosts[0], *ping).returncode == 0
    program.set_fallback("drop")
    assert net.run(net.hosts[0], *ping, check=False).returncode == 1
    assert program.verdicts().no_socket_dropped > 0


def test_a_packet_goes_to_the_socket_of_its_queue_until_that_is_removed_or_closed(wire: MakeWire) -> None:
    net = wire(links=1)
    xsk = net.receiver()
    program = net.programs["eth1"]
    net.taps[0].send(net.frames(3))
    program.remove(0)
    program.remove(0)  # harmless
    net.taps[0].send(net.frames(2))
    program.insert(0, xsk)
    net.taps[0].send(net.frames(1))
    assert program.verdicts() == Verdicts(redirected=4, no_socket_passed=2, no_socket_dropped=0)
    assert len(xsk.receive()) == 4
    xsk.close()
    net.taps[0].send(net.frames(1))
    assert program.verdicts().no_socket_passed == 3


def test_a_second_socket_is_never_put_in_the_place_of_a_first(wire: MakeWire) -> None:
    net = wire()
    first, second = net.receiver("eth1"), net.open("eth2")
    with pytest.raises(XdpError, match=r"BPF_MAP_UPDATE_ELEM\(xsks\): EEXIST .*queue 0"):
        net.programs["eth1"].insert(0, second)
    net.taps[0].send(net.frames(1))
    assert len(first.receive()) == 1


def test_a_second_socket_takes_the_place_of_a_first_if_it_is_to(wire: MakeWire) -> None:
    net = wire()
    first, elsewhere = net.receiver("eth1"), net.open("eth2")
    program = net.programs["eth1"]
    program.insert(0, elsewhere, replace=True)
    net.taps[0].send(net.frames(1))  # a socket of another interface: redirected, and dropped there
    program.insert(0, first, replace=True)
    net.taps[0].send(net.frames(1, first=7))
    assert program.verdicts().redirected == 2
    assert [bytes(packet) for packet in first.receive()] == net.frames(1, first=7)


@pytest.mark.parametrize("queues", [1, 256, 300])
def test_the_map_has_as_many_places_as_asked_for(wire: MakeWire, queues: int) -> None:
    net = wire(links=1)
    program, xsk = net.load(queues=queues), net.open()
    program.insert(queues - 1, xsk)
    with pytest.raises(XdpError, match=rf"UPDATE_ELEM\(xsks\): .*queue {queues}"):
        program.insert(queues, xsk)
    program.remove(queues)  # nothing is there, whatever the reason
    program.remove(2**32 - 1)


def test_two_interfaces_have_two_programs(wire: MakeWire) -> None:
    net = wire()
    one, other = net.attach("eth1"), net.attach("eth2", fallback="drop")
    net.taps[0].send(net.frames(2))
    net.taps[1].send(net.frames(3))
    assert one.verdicts() == Verdicts(no_socket_passed=2)
    assert other.verdicts() == Verdicts(no_socket_dropped=3)


@pytest.mark.parametrize("mode", ["native", "generic", "auto"])
@pytest.mark.parametrize("foreign", ["xdpdrv", "xdpgeneric"])
def test_a_foreign_program_is_named_and_left_alone(
    wire: MakeWire, foreign_program: Path, foreign: str, mode: Attach
) -> None:
    net = wire(links=1)
    net.link(net.dut, "eth1", foreign, "obj", str(foreign_program), "sec", "xdp")
    before = attached(net)
    with pytest.raises(XdpError) as raised:
        net.attach("eth1", mode)
    assert f"XDP program {before[0]} (stranger) is attached and is not ours to replace" in str(raised.value)
    assert raised.value.interface == "eth1"
    assert attached(net) == before
    net.taps[0].send(net.frames(1))  # and it still works


def test_a_program_of_another_holder_is_as_foreign_as_any(wire: MakeWire) -> None:
    net = wire(links=1)
    net.attach("eth1")
    before = attached(net)
    with pytest.raises(
        XdpError, match=rf"XDP program {before[0]} \(xskd\) is attached and is not ours .*pin"
    ):
        net.attach("eth1")
    assert attached(net) == before


def test_an_interface_that_is_not_there_is_said_to_be_missing(wire: MakeWire) -> None:
    with pytest.raises(XdpError, match=r"if_nametoindex\(eth7\): no such interface"):
        wire(links=1).attach("eth7")


def test_a_killed_holder_leaves_no_program(wire: MakeWire) -> None:
    net = wire(links=1)
    child = net.python("-c", HOLDER)
    assert child.stdout is not None and child.stdout.readline() == "attached\n"
    number, mode = attached(net)
    assert number and mode == "native"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert net.eventually(lambda: attached(net) == (0, None) and not program_exists(number))


def test_fifty_cycles_leave_no_program_map_link_or_descriptor(wire: MakeWire) -> None:
    net = wire(links=1)
    maps: set[int] = set()
    programs: set[int] = set()
    net.open(umem=net.umem(64), rings=SMALL).close()  # whatever is loaded once has been loaded
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        umem = net.umem(64)
        xsk = net.open(umem=umem, rings=SMALL)
        with net.load() as program, entered(net.dut):
            program.insert(0, xsk)
            program.attach("eth1")
            programs.add(attached(net)[0])
            maps.update(maps_of(attached(net)[0]))
        xsk.close()
        umem.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(programs) == 50
    assert net.eventually(lambda: not any(map(program_exists, programs)))
    if maps:  # without bpftool they go unseen
        assert len(maps) >= 50 * 7
        assert net.eventually(lambda: not maps & map_ids())


def test_an_object_of_another_abi_version_is_refused(wire: MakeWire, tmp_path: Path) -> None:
    wire(links=1)
    sections = subprocess.run(("readelf", "-SW", str(OBJECT)), capture_output=True, text=True, check=False)
    found = re.search(r"\.rodata\.abi\s+PROGBITS\s+\S+ (\S+)", sections.stdout)
    if found is None:
        pytest.skip("needs readelf (binutils): finds the version in the object")
    offset = int(found[1], 16)
    content = bytearray(OBJECT.read_bytes())
    assert content[offset : offset + 4] == (2).to_bytes(4, "little")
    content[offset : offset + 4] = (99).to_bytes(4, "little")
    path = tmp_path / "other.o"
    path.write_bytes(content)
    with pytest.raises(XdpError, match=r"other.o has ABI version 99, this xskd needs 2; install both"):
        Program(1, path=path)


def test_a_foreign_object_is_refused(wire: MakeWire, foreign_program: Path) -> None:
    wire(links=1)
    with pytest.raises(XdpError, match="has ABI version None, this xskd needs 2"):
        Program(1, path=foreign_program)


def test_what_is_no_bpf_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.o"
    path.write_text("this is no ELF file")
    with pytest.raises(XdpError, match=r"text.o is no BPF object"):
        Program(1, path=path)
    with pytest.raises(XdpError, match=r"open: ENOENT .*missing.o"):
        Program(1, path=tmp_path / "missing.o")
