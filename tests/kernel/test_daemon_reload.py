"""A reload changes what is different and nothing else: a path that stays as it was loses not one packet."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon import SMALL, Daemon, Lane, Stream, connect, kernel_side, paths, running, total, xskd

from lab import entered
from lab.figures import figure
from xskd.control import Refused

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

RELOADS = 30
OTHER_METRICS = "127.0.0.1:9479"


def both(options: str = "", *, interface: str = f"rings: {SMALL}", rest: str = "") -> str:
    """Make a configuration of path a and, with further keys of it and of its interfaces, path b."""
    small = f"{{rings: {SMALL}}}"
    return (
        f"interfaces: {{eth1: {small}, eth2: {small}, eth3: {{{interface}}}, eth4: {{{interface}}}}}\n"
        f"paths: {{a: {{connect: [eth1, eth2], cpus: [0]}}, b: {{connect: [eth3, eth4]{options}}}}}\n{rest}\n"
    )


def alone() -> str:
    """Make the same without path b."""
    return paths("a: {connect: [eth1, eth2], cpus: [0]}", "eth1", "eth2")


@contextmanager
def untouched(net: Wire, daemon: Daemon, name: str = "a/0") -> Iterator[None]:
    """Whatever happens meanwhile: path a forwards all of a steady stream, by the same process."""
    before = daemon.workers()[name]
    with Stream(net) as stream:
        yield
        time.sleep(0.1)
    figure("packets lost by a path while another one changes", stream.lost, "packets", 0)
    assert stream.whole
    assert daemon.workers()[name] == before


def forwards(net: Wire, hosts: tuple[int, int] = (2, 3), count: int = 300) -> bool:
    sent = net.frames(count)
    net.taps[hosts[1]].waiting()  # of earlier tries
    return net.taps[hosts[0]].through(sent, net.taps[hosts[1]]) == sent


def test_what_needs_no_new_sockets_changes_in_the_same_process(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both(", cpus: [0]")) as daemon, untouched(net, daemon):
        pid = daemon.workers()["b/0"]
        assert daemon.reload(both(", cpus: [1], poll: wakeup")) == ["b/0: CPU 1, poll wakeup"]
        assert os.sched_getaffinity(pid) == {1}
        assert (daemon.worker("b/0")["cpu"], daemon.worker("b/0")["poll"]) == (1, "wakeup")
        assert forwards(net)
        assert daemon.reload(both(", cpus: [0], poll: busy")) == ["b/0: CPU 0, poll busy"]
        turns = daemon.worker("b/0")["counters"]["turns"]
        time.sleep(0.3)
        assert daemon.worker("b/0")["counters"]["turns"] > turns + 1_000  # nobody else turns that often
        assert forwards(net)
        assert daemon.reload(both(", cpus: [0]")) == ["b/0: poll adaptive"]
        assert daemon.workers()["b/0"] == pid
        assert daemon.reload(both(", cpus: [0]")) == []


def test_another_fallback_holds_at_once(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4, queues=2)
    first = f"queues: [0], rings: {SMALL}"
    with running(net, tmp_path, both(interface=first)) as daemon:
        before, lane = daemon.workers(), Lane(net, 1, 2)  # nobody takes queue 1
        with kernel_side(net, "eth3") as kernel, untouched(net, daemon):
            lane.send(net.frames(1))
            assert [kernel.recv(2048)] == net.frames(1)
            actions = ["eth3: fallback drop", "eth4: fallback drop"]
            assert daemon.reload(both(", fallback: drop", interface=first)) == actions
            lane.send(net.frames(20))
            assert verdicts(daemon) == {"no_socket_passed": 1, "no_socket_dropped": 20}
            assert len(daemon.reload(both(interface=first))) == 2
            lane.send(net.frames(1, first=7))
            assert [kernel.recv(2048)] == net.frames(1, first=7)
        assert daemon.workers() == before


def verdicts(daemon: Daemon) -> dict[str, int]:
    """What the program of eth3 has decided, and how often."""
    (eth3,) = [each for each in daemon.status()["interfaces"] if each["name"] == "eth3"]
    return {verdict: count for verdict, count in eth3["verdicts"].items() if count}


def test_queues_come_and_go(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=2, queues=2)
    one, other = (connect(interface=f"queues: {which}, rings: {SMALL}") for which in ("[0]", "all"))
    with running(net, tmp_path, one) as daemon, untouched(net, daemon, "wire/0"):
        assert daemon.reload(other) == ["wire/1: start"]
        with Stream(net, queue=1) as stream:
            time.sleep(0.2)
        assert stream.whole
        assert total(daemon.metrics(), "xskd_rx_packets", interface="eth1", queue="1") == stream.sent
        assert daemon.reload(one) == ["wire/1: stop"]
        assert sorted(daemon.workers()) == ["wire/0"]
        assert "wire/1: stopped, drained" in daemon.log


@pytest.mark.moves("xskd_ring_size_entries", ring=("fill", "rx", "tx", "completion"))
def test_new_rings_are_new_sockets_of_that_path_alone(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        assert forwards(net)
        pid = daemon.workers()["b/0"]
        daemon.metrics()
        larger = "{fill: 2048, rx: 256, tx: 128, completion: 512}"
        assert daemon.reload(both(interface=f"rings: {larger}")) == ["b/0: new sockets"]
        assert daemon.workers()["b/0"] != pid
        sizes = {"fill": 2048, "rx": 256, "tx": 128, "completion": 512}
        worker = daemon.worker("b/0")
        assert [port["rings"] for port in worker["ports"]] == [sizes] * 2
        metrics = daemon.metrics()
        for ring, size in sizes.items():
            assert total(metrics, "xskd_ring_size_entries", path="b", ring=ring) == 2 * size
        assert worker["counters"]["frames"] == 2 * sum(sizes.values())
        assert worker["ports"][0]["counters"]["rx_packets"] == 300  # of the sockets before
        assert worker["restarts"] == {}  # nobody died
        assert forwards(net)
        assert "b/0: stopped, drained" in daemon.log


def test_another_packet_memory_is_new_for_everybody(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon:
        assert forwards(net)
        before = daemon.workers()
        other = both(rest="umem: {frame_size: 2048, frames: 7000}")
        assert sorted(daemon.reload(other)) == ["a/0: new sockets", "b/0: new sockets"]
        assert not set(daemon.workers().values()) & set(before.values())
        assert forwards(net)
        assert forwards(net, (1, 0))
        for name, port in (("a/0", 1), ("b/0", 0)):
            worker = daemon.worker(name)
            assert worker["counters"]["frames"] == 7000
            assert worker["ports"][port]["counters"]["rx_packets"] == (300 if name == "a/0" else 600)
        metrics = daemon.metrics()
        assert (
            total(metrics, "xskd_frames_unaccounted")
            == total(metrics, "xskd_frames", state="quarantined")
            == 0
        )
        assert daemon.stop() == 0
        assert daemon.log.count("stopped, drained") == 4


def test_paths_come_and_go(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, alone()) as daemon, untouched(net, daemon):
        attach = [f"{dev}: attach the XDP program" for dev in ("eth3", "eth4")]
        assert daemon.reload(both()) == [*attach, "b/0: start"]
        assert forwards(net)
        assert total(daemon.metrics(), "xskd_rx_packets", path="b", interface="eth3") == 300
        assert '"xdp"' in net.run(net.dut, "ip", "-j", "link", "show", "eth4").stdout
        detach = [f"{dev}: detach the XDP program" for dev in ("eth3", "eth4")]
        assert daemon.reload(alone()) == [*detach, "b/0: stop"]
        assert sorted(daemon.workers()) == ["a/0"]
        assert '"xdp"' not in net.run(net.dut, "ip", "-j", "link", "show", "eth4").stdout
        assert not [labels for labels, _ in daemon.metrics()["xskd_worker_up"] if labels["path"] == "b"]
        net.open("eth3", umem=net.umem(64)).close()  # its queue is free


def test_the_metrics_endpoint_moves_and_the_log_gets_quiet(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon, untouched(net, daemon):
        moved = f'metrics: {{listen: "{OTHER_METRICS}"}}\n'
        assert daemon.reload(both(rest=moved)) == [f"metrics.listen: {OTHER_METRICS}"]
        assert total(daemon.metrics(OTHER_METRICS), "xskd_config_valid") == 1
        assert net.eventually(lambda: not listens(daemon), 3)  # its thread looks twice a second
        quiet = f"{moved}log: {{level: error}}\n"
        assert daemon.reload(both(rest=quiet)) == ["log.level: error"]
        said = daemon.log
        assert daemon.reload(both(", poll: wakeup", rest=quiet)) == ["b/0: poll wakeup"]
        assert daemon.log == said


def test_a_metrics_port_that_is_taken_is_told_and_tried_again(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with entered(net.dut):
        taken = socket.create_server(("127.0.0.1", 9479))
    with running(net, tmp_path, both()) as daemon:
        with taken, pytest.raises(Refused) as refused:
            daemon.reload(both(", poll: wakeup", rest=f'metrics: {{listen: "{OTHER_METRICS}"}}\n'))
        said = f"metrics on {OTHER_METRICS}: Address already in use; see key metrics.listen"
        assert (str(refused.value), refused.value.config) == (said, False)
        assert said in daemon.log
        assert daemon.worker("b/0")["poll"] == "wakeup"
        assert total(daemon.metrics(), "xskd_config_valid") == 1
        daemon.reload()
        assert total(daemon.metrics(OTHER_METRICS), "xskd_config_valid") == 1


def listens(daemon: Daemon) -> bool:
    """Tell whether there is a metrics endpoint where the first configuration has it."""
    with entered(daemon.net.dut), socket.socket() as client:
        return client.connect_ex(("127.0.0.1", 9478)) == 0


BAD = """\
interfaces:
  eth1: {}
  eth2: {mode: fast}
paths:
  a: {connect: [eth1, eth2]}
  b: {conect: [eth3, eth4]}
"""


@pytest.mark.moves("xskd_config_valid")
def test_a_bad_file_is_told_line_by_line_and_changes_nothing(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon:
        before = daemon.workers()
        with untouched(net, daemon):
            daemon.write(BAD)
            refused = xskd(net, "reload", "--socket", str(daemon.socket))
            assert (refused.returncode, refused.stdout) == (2, "")
            lines = refused.stderr.splitlines()
            assert [line.split(": ")[:2] for line in lines] == [
                [f"{daemon.file}:3", "interfaces.eth2.mode"],
                [f"{daemon.file}:6", "paths.b"],
                [f"{daemon.file}:6", "paths.b.conect"],
            ]
            for line in lines:
                assert f"ERROR   reload: {line}" in daemon.log
            assert forwards(net)
            assert daemon.workers() == before
            status = daemon.status()
            assert status["text"].endswith("; the configuration file is wrong, an older one runs")
            assert status["config_error"] == "\n".join(lines)
            assert status["text"] in xskd(net, "status", "--socket", str(daemon.socket)).stdout
            assert total(daemon.metrics(), "xskd_config_valid") == 0
            daemon.file.unlink()
            with pytest.raises(Refused, match=r"xskd\.yaml: cannot be read: No such file"):
                daemon.reload()
            assert total(daemon.metrics(), "xskd_config_valid") == 0
            assert daemon.reload(both()) == []
        assert total(daemon.metrics(), "xskd_config_valid") == 1
        assert daemon.status()["config_error"] is None
        assert "wrong" not in daemon.status()["text"]


def test_what_no_link_could_mend_is_refused_as_well(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon:
        with pytest.raises(Refused, match=r"paths\.b\.cpus: this process may not use CPU 999") as refused:
            daemon.reload(both(", cpus: [999]"))
        assert refused.value.config
        assert daemon.worker("b/0")["state"] == "forwarding"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both()) as daemon:
        before, log = daemon.workers(), daemon.log
        daemon.write(both(", fallback: drop", interface="rings: {rx: 256}", rest="log: {level: error}"))
        said = xskd(net, "reload", "--dry-run", "-c", str(daemon.file))
        expected = ["eth3: fallback drop", "eth4: fallback drop", "b/0: new sockets", "log.level: error"]
        assert (said.returncode, said.stdout.splitlines(), said.stderr) == (0, expected, "")
        assert daemon.workers() == before
        assert daemon.log == log
        assert {each["fallback"] for each in daemon.status()["interfaces"]} == {"pass"}
        daemon.write(BAD)
        assert xskd(net, "reload", "--dry-run", "--socket", str(daemon.socket)).returncode == 2
        assert daemon.status()["config_error"] is None  # nobody has asked to run that
        daemon.write(both())
        said = xskd(net, "reload", "--dry-run", "-c", str(daemon.file))
        assert (said.returncode, said.stdout) == (0, "nothing has changed\n")


def test_sighup_does_the_same(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with running(net, tmp_path, both(", cpus: [0]")) as daemon, untouched(net, daemon):
        pid = daemon.workers()["b/0"]
        daemon.write(both(", cpus: [1]"))
        daemon.process.send_signal(signal.SIGHUP)
        assert net.eventually(lambda: os.sched_getaffinity(pid) == {1})
        assert "reload: b/0: CPU 1" in daemon.log
        daemon.write(BAD)
        daemon.process.send_signal(signal.SIGHUP)
        assert net.eventually(lambda: daemon.status()["config_error"] is not None)
        assert f"reload: {daemon.file}:3: interfaces.eth2.mode" in daemon.log


def test_an_interface_that_is_taken_lets_the_rest_run_and_comes_when_it_is_free(
    wire: MakeWire, tmp_path: Path, foreign_program: Path
) -> None:
    net = wire(links=4)
    net.link(net.dut, "eth4", "xdpdrv", "obj", str(foreign_program), "sec", "xdp")
    with running(net, tmp_path, alone()) as daemon:
        with untouched(net, daemon):
            daemon.write(both())
            refused = xskd(net, "reload", "-c", str(daemon.file))
            assert (refused.returncode, refused.stdout) == (3, "")
            assert "interfaces.eth4: BPF_LINK_CREATE(eth4): EBUSY" in refused.stderr
            assert "(stranger) is attached and is not ours to replace" in refused.stderr
            status = daemon.status()
            assert status["config_error"] is None
            assert list(status["waiting"]) == ["b"]
            assert "; waiting: b" in status["text"]
            assert total(daemon.metrics(), "xskd_path_waiting", path="b") == 1
            assert total(daemon.metrics(), "xskd_path_waiting", path="a") == 0
            net.link(net.dut, "eth4", "xdpdrv", "off")
            print(f"up {daemon.comes('b/0'):.1f} s after the other program had gone")
            assert forwards(net)
        assert total(daemon.metrics(), "xskd_path_waiting") == 0


def test_thirty_reloads_at_random_cost_an_untouched_path_nothing(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    chance = random.Random(300)
    with running(net, tmp_path, both()) as daemon:
        with untouched(net, daemon):
            slowest = 0.0
            for _ in range(RELOADS):
                text = chance.choice([one_of_b(chance), one_of_b(chance), alone()])
                began = time.monotonic()
                daemon.reload(text)
                slowest = max(slowest, time.monotonic() - began)
            print(f"the slowest of {RELOADS} reloads took {slowest:.2f} s")
            daemon.reload(both())
            assert forwards(net)
        assert total(daemon.metrics(), "xskd_frames_unaccounted") == 0
        assert [worker["restarts"] for worker in daemon.status()["workers"]] == [{}, {}]


def one_of_b(chance: random.Random) -> str:
    """Make a configuration with some path b."""
    rings = chance.choice([SMALL, SMALL, "{fill: 512, rx: 256, tx: 256, completion: 256}"])
    options = (
        f", fallback: {chance.choice(['pass', 'drop'])}, poll: {chance.choice(['adaptive', 'wakeup'])}"
        f", cpus: [{chance.choice([0, 1])}]"
    )
    return both(options, interface=f"rings: {rings}")
