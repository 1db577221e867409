"""The examples do what they say, end cleanly with Ctrl-C, and fail with one line rather than a traceback."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xskd._libbpf import ffi, lib

from lab import entered

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))


def example(net: Wire, name: str, *args: str) -> subprocess.Popen[str]:
    return net.python(str(EXAMPLES / name), *args)


def ready(net: Wire) -> bool:
    """Has the example attached its program?"""
    answer = ffi.new("struct xskd_attached *")
    index = int(net.run(net.dut, "cat", "/sys/class/net/eth1/ifindex").stdout)
    with entered(net.dut):
        return bool(lib.xskd_attached_to(index, answer) == 0 and answer.id)


def test_receive_prints_a_line_for_each_packet(wire: MakeWire) -> None:
    net = wire(links=1)
    child = example(net, "receive.py", "eth1", "--count", "3")
    assert net.eventually(lambda: ready(net), patience=20)
    net.taps[0].send(net.frames(4, length=100))
    said, problem = child.communicate(timeout=20)
    lines = said.splitlines()
    assert (child.returncode, len(lines)) == (0, 3)
    assert re.match(
        r"2 \d+\.\d{6} s 100 bytes 02:00:00:00:00:01 > 02:00:00:00:00:02 type 88b5 00000001 ", lines[1]
    )
    assert "eth1: native program, copy mode" in problem and "rx_ring_full=0" in problem


def test_generate_sends_so_many_packets_of_that_length(wire: MakeWire) -> None:
    net = wire(links=1)
    child = example(net, "generate.py", "eth1", "--count", "5000", "--length", "300")
    said, problem = child.communicate(timeout=30)
    assert (child.returncode, problem) == (0, "")
    assert said.startswith("5000 of 5000 packets of 300 bytes in ")
    got = net.taps[0].waiting()
    assert [int.from_bytes(packet[14:22], "big") for packet in got] == list(range(5000))
    assert {len(packet) for packet in got} == {300}


def test_generate_keeps_to_its_rate(wire: MakeWire) -> None:
    net = wire(links=1)
    started = time.monotonic()
    child = example(net, "generate.py", "eth1", "--count", "100", "--rate", "200")
    said, _ = child.communicate(timeout=30)
    assert (child.returncode, len(net.taps[0].waiting())) == (0, 100), said
    assert time.monotonic() - started > 0.45  # 99 intervals of 5 ms


def test_generate_gives_up_on_a_link_that_stays_down(wire: MakeWire) -> None:
    net = wire(links=1)
    net.link(net.dut, "eth1", "down")
    child = example(net, "generate.py", "eth1", "--count", "10")
    said, _ = child.communicate(timeout=30)
    assert (child.returncode, said[:8]) == (1, "0 of 10 ")


def test_echo_sends_packets_back_until_ctrl_c(wire: MakeWire) -> None:
    net = wire(links=1)
    child = example(net, "echo.py", "eth1")
    assert net.eventually(lambda: ready(net), patience=20)
    sent = net.frames(1000, length=200)
    assert net.taps[0].through(sent, net.taps[0]) == [net.swapped(packet) for packet in sent]
    child.send_signal(signal.SIGINT)
    said, problem = child.communicate(timeout=20)
    assert (child.returncode, problem) == (0, "")
    assert said.splitlines()[-1] == "1000 packets received, 1000 sent back"
    assert not ready(net)


@pytest.mark.parametrize("args", [("receive.py",), ("generate.py", "--count", "1000000", "--rate", "10")])
def test_ctrl_c_ends_it_with_a_summary(wire: MakeWire, args: tuple[str, ...]) -> None:
    net = wire(links=1)
    child = example(net, *args, "eth1")
    if args[0] == "receive.py":
        assert net.eventually(lambda: ready(net), patience=20)
        net.taps[0].send(net.frames(1))
        assert child.stdout is not None and child.stdout.readline()
    else:
        assert net.taps[0].receive(1, timeout=20)
    child.send_signal(signal.SIGINT)
    said, problem = child.communicate(timeout=20)
    assert "Traceback" not in problem
    assert "Statistics(" in problem or " of 1000000 packets " in said


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_one_line_that_says_what_to_do(wire: MakeWire, name: str) -> None:
    said, problem = example(wire(links=1), name, "eth7").communicate(timeout=20)
    assert problem == (
        f"{name.removesuffix('.py')}: if_nametoindex(eth7): "
        "no such interface in this network namespace; `ip -br link` lists them\n"
    )
    assert said == ""


@pytest.mark.parametrize("name", NAMES)
def test_help_tells_what_it_is_for(wire: MakeWire, name: str) -> None:
    said, _ = example(wire(links=1), name, "--help").communicate(timeout=20)
    assert "usage: " in said and "Needs root." in said


def test_generate_refuses_a_length_no_interface_takes(wire: MakeWire) -> None:
    child = example(wire(links=1), "generate.py", "eth1", "--length", "5000")
    assert "--length 5000: must be 14 to 1514" in child.communicate(timeout=20)[1]
    assert child.returncode == 2
