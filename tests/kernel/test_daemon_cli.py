"""The command line against real interfaces: bad files, the plan of `check`, the picture of `status`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import Daemon, Lane, connect, running, xskd
from jsonschema import Draft202012Validator

from xskd.rates import RINGS

if TYPE_CHECKING:
    from conftest import MakeWire

BAD = """\
interfaces:
  eth1: {queues: [0, 7]}
  eth2: {}
  eth9: {}
paths:
  wire: {connect: [eth1, eth2]}
  echo: {reflect: eth9}
umem: {frame_size: 2048}
"""


def test_a_bad_configuration_says_everything_at_once_and_starts_nothing(
    wire: MakeWire, tmp_path: Path
) -> None:
    net = wire(queues=2, mtu=40_000)
    daemon = Daemon(net, tmp_path, BAD)
    assert daemon.ended() == 2
    lines = daemon.log.splitlines()
    places = [line.removeprefix(f"{daemon.file}:").split(": ")[:2] for line in lines]
    assert places == [
        ["2", "interfaces.eth1"],
        ["2", "interfaces.eth1.queues"],
        ["3", "interfaces.eth2"],
        ["4", "interfaces.eth9"],
    ]
    assert "MTU 40000 does not fit" in lines[0]
    assert "run `ethtool -L eth1 rx 8 tx 8`" in lines[1]
    assert "no such interface in this network namespace" in lines[3]
    assert not daemon.socket.exists()


def test_check_says_the_same_as_run(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2, mtu=40_000)
    daemon = Daemon(net, tmp_path, BAD)
    assert daemon.ended() == 2
    checked = xskd(net, "check", str(daemon.file))
    assert (checked.returncode, checked.stdout, checked.stderr) == (2, "", daemon.log)


def test_check_prints_which_process_gets_what(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    file = tmp_path / "xskd.yaml"
    file.write_text(connect(", cpus: [1, 0], fallback: drop", rest="control: {socket: /tmp/c.sock}"))
    checked = xskd(net, "check", str(file))
    assert (checked.returncode, checked.stderr) == (0, "")
    rows = [" ".join(line.split()) for line in checked.stdout.splitlines()]
    frames = 2 * (1024 + 512 + 512 + 1024)
    for queue, cpu in ((0, 1), (1, 0)):
        ports = f"eth1:{queue} auto, eth2:{queue} auto"
        assert f"wire/{queue} connect {ports} adaptive {cpu} {frames} x 4096 24 MiB" in rows
    unserved = "XDP program auto, 2 queues; packets of a queue without a worker: drop"
    unserved += "; 0 rules, default redirect"
    assert f"eth1: {unserved}" in rows
    assert f"eth2: {unserved}" in rows
    assert "metrics: http://127.0.0.1:9478/metrics; control socket: /tmp/c.sock" in rows
    assert rows[-1] == "packet memory in all: 48 MiB"


def test_status_is_one_screen(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path) as daemon:
        sent = net.frames(1_234)
        assert Lane(net, 1).through(sent, net.taps[1]) == sent
        said = xskd(net, "status", "-c", str(daemon.file))
    assert said.returncode == 0
    rows = [" ".join(line.split()) for line in said.stdout.splitlines()]
    assert re.fullmatch(
        rf"xskd 0\.1\.0, pid {daemon.pid}, up \d+ s: 1 path, 2 queues forwarding, copy mode", rows[0]
    )
    assert "wire connect 2/2 copy 0 0 0 0" in rows
    # name, state, mode; packets, lost packets and bits a second; lost, received, sent since the start
    assert any(row.startswith("wire/1 eth1:1 forwarding copy 0 0 0 0 0 0 1,234 0 ") for row in rows)
    assert any(row.startswith("wire/1 eth2:1 forwarding copy 0 0 0 0 0 0 0 1,234 ") for row in rows)
    assert any(row.startswith("eth1 wire native up 2 0 0 0 0 ") for row in rows)
    assert "no packet lost" in rows
    assert any(row.startswith("configuration: as in the file") for row in rows)


def test_the_answer_is_what_its_schema_says(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path) as daemon:
        said = json.loads(xskd(net, "status", "--json", "-c", str(daemon.file)).stdout)
    schema = json.loads(xskd(net, "schema", "status").stdout)
    assert list(Draft202012Validator(schema).iter_errors(said)) == []
    assert said["pid"] == daemon.pid
    port = said["workers"][1]["ports"][1]
    assert port["rings"] == {"fill": 1024, "rx": 512, "tx": 512, "completion": 1024}
    assert port["counters"]["ring_entries"].keys() == set(RINGS)


def test_status_of_a_daemon_that_has_gone_is_unavailable(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        assert daemon.stop() == 0
        said = xskd(net, "status", "-c", str(daemon.file))
    assert (said.returncode, said.stdout) == (3, "")
    assert f"no xskd answers on {daemon.socket}" in said.stderr
    assert "see key control.socket" in said.stderr
