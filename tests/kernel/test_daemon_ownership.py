"""Whose an interface's XDP hook is: a stranger's is named and left alone, xskd's own leftover makes room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import Daemon, connect, running, started, total, xskd
from test_daemon_reload import both, forwards, untouched

from lab.figures import figure
from xskd.xdp import OBJECT

if TYPE_CHECKING:
    from conftest import MakeWire, Wire


def programs(net: Wire) -> dict[str, int]:
    """Tell the ids of the XDP programs on interfaces of the dut."""
    links = json.loads(net.run(net.dut, "ip", "-j", "link", "show").stdout)
    return {link["ifname"]: link["xdp"]["prog"]["id"] for link in links if "xdp" in link}


def attach(net: Wire, dev: str, obj: Path, section: str = "xdp") -> int:
    """Attach a program that no process holds; its id."""
    net.link(net.dut, dev, "xdpdrv", "obj", str(obj), "sec", section)
    return programs(net)[dev]


def test_a_foreign_program_is_named_and_stays(wire: MakeWire, tmp_path: Path, foreign_program: Path) -> None:
    net = wire()
    foreign = attach(net, "eth1", foreign_program)
    with started(net, tmp_path) as daemon:
        assert daemon.ended() == 3
        assert "BPF_LINK_CREATE(eth1): EBUSY" in daemon.log
        assert f"XDP program {foreign} (stranger) is attached and is not ours to replace" in daemon.log
        assert "Traceback" not in daemon.log
        assert programs(net) == {"eth1": foreign}


def test_a_foreign_program_costs_its_own_path_alone(
    wire: MakeWire, tmp_path: Path, foreign_program: Path
) -> None:
    net = wire(links=4)
    foreign = attach(net, "eth4", foreign_program)
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        status = daemon.status()
        assert status["text"] == "1 path, 1 queue forwarding, copy mode; waiting: b"
        assert f"XDP program {foreign} (stranger)" in status["waiting"]["b"][0]
        assert status["waiting"]["b"][0].startswith(f"{daemon.file}:1: interfaces.eth4: BPF_LINK_CREATE")
        assert programs(net)["eth4"] == foreign
        net.link(net.dut, "eth4", "xdpdrv", "off")
        figure("time until a path forwards when a foreign program has gone", daemon.comes("b/0"), "s", 10)
        assert forwards(net)


@pytest.mark.parametrize("mode", ["xdpdrv", "xdpgeneric"])
def test_a_leftover_of_xskd_is_taken_over(wire: MakeWire, tmp_path: Path, mode: str) -> None:
    net = wire()
    net.link(net.dut, "eth1", mode, "obj", str(OBJECT), "sec", "xdp.frags")
    left = programs(net)["eth1"]
    with running(net, tmp_path) as daemon:
        said = f"eth1: XDP program attached, native mode; took over program {left}, left behind by an xskd"
        assert said in daemon.log
        assert programs(net)["eth1"] != left
        assert forwards(net, (0, 1))
        assert total(daemon.metrics(), "xskd_xdp_attached", interface="eth1", mode="native") == 1
        assert daemon.stop() == 0
    assert programs(net) == {}


def test_cleanup_removes_a_leftover_and_no_other(wire: MakeWire, foreign_program: Path) -> None:
    net = wire(links=3)
    left, foreign = attach(net, "eth1", OBJECT, "xdp.frags"), attach(net, "eth2", foreign_program)
    done = xskd(net, "cleanup", "eth1", "eth3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"eth1: program {left} removed\neth3: nothing to remove\n"
    refused = xskd(net, "cleanup", "eth2")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert f"XDP program {foreign} (stranger) is attached and is not ours to replace" in refused.stderr
    assert programs(net) == {"eth2": foreign}
    assert xskd(net, "cleanup", "eth9").returncode == 3


def test_cleanup_and_a_second_daemon_leave_what_a_daemon_holds(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    (tmp_path / "second").mkdir()
    with running(net, tmp_path) as first:
        held = programs(net)
        with untouched(net, first, "wire/0"):
            assert "another xskd has it" in xskd(net, "cleanup", "eth1").stderr
            second = Daemon(net, tmp_path / "second", connect(rest="metrics: {listen: off}"))
            assert second.ended() == 3
            assert "(xskd) is attached and is not ours to replace: another xskd has it" in second.log
        assert programs(net) == held
