"""What a daemon costs and what its workers may do. Figures are printed; the bounds are generous."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from daemon import SMALL, connect, cpu_seconds, memory_kb, paths, running, started

if TYPE_CHECKING:
    from conftest import MakeWire


def proc_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_workers_can_do_nothing_but_forward(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path, connect(", cpus: [1, 0]")) as daemon:
        workers = daemon.workers()
        assert len(workers) == 2
        for name, pid in workers.items():
            status = proc_status(pid)
            for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[capabilities], 16) == 0, capabilities
            assert status["NoNewPrivs"] == "1"
            for ids in ("Uid", "Gid"):
                assert "0" not in status[ids].split()
            assert status["Groups"] == ""
            assert os.sched_getaffinity(pid) == {daemon.worker(name)["cpu"]}
        assert [daemon.worker(name)["cpu"] for name in sorted(workers)] == [1, 0]


def test_a_supervisor_that_is_not_root_gives_its_workers_nothing_either(wire: MakeWire) -> None:
    # The last one is for a checkout that only root may read; workers lose it with the rest.
    some = "+net_raw,+net_admin,+bpf,+perfmon,+ipc_lock,+dac_read_search"
    user = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
    net = wire()
    with TemporaryDirectory() as directory:  # pytest's own is for root only
        os.chown(directory, 12345, 12345)
        prefix = (*user, "--inh-caps", some, "--ambient-caps", some)
        with running(net, Path(directory), prefix=prefix) as daemon:
            assert int(proc_status(daemon.pid)["CapEff"], 16) != 0
            (pid,) = daemon.workers().values()
            status = proc_status(pid)
            for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(status[capabilities], 16) == 0, capabilities
            assert status["NoNewPrivs"] == "1"
            sent = net.frames(100)
            assert net.taps[0].through(sent, net.taps[1]) == sent


def test_workers_hold_nothing_of_their_neighbours_and_no_way_back(wire: MakeWire, tmp_path: Path) -> None:
    """UMEM, counter page, two XSKs, the channel: all that a worker has beside its standard streams."""
    net = wire(queues=2)
    with running(net, tmp_path) as daemon:
        held = [held_by(pid) for pid in daemon.workers().values()]
    for each in held:
        kinds = sorted(name.partition(":[")[0] for name in each)
        assert kinds == ["/memfd:xskd-counters (deleted)", "/memfd:xskd-umem (deleted)", *["socket"] * 3]
    assert not {name for name in held[0] & held[1] if name.startswith("socket")}


def held_by(pid: int) -> set[str]:
    """Name what a process's descriptors are of, without its standard streams."""
    return {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if int(fd.name) > 2}


def test_eight_queues_are_ready_soon(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=8)
    text = "interfaces: {eth1: {}, eth2: {}}\npaths: {wire: {connect: [eth1, eth2]}}\n"  # all defaults
    began = time.monotonic()
    with started(net, tmp_path, text) as daemon:
        daemon.until_ready()
        took = time.monotonic() - began
        print(f"8 queues of 2 interfaces ready after {took:.2f} s")
        assert len(daemon.workers()) == 8


def test_memory_of_a_worker_and_of_the_supervisor(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path) as daemon:
        daemon.metrics()
        worker = max(memory_kb(pid, "RssAnon", "RssFile") for pid in daemon.workers().values()) / 1024
        supervisor = memory_kb(daemon.pid, "VmRSS") / 1024
    print(f"worker without UMEM {worker:.1f} MiB, supervisor {supervisor:.1f} MiB")
    assert worker < 30
    assert supervisor < 80


@pytest.mark.parametrize("poll", ["adaptive", "wakeup"])
def test_an_idle_worker_sleeps(wire: MakeWire, tmp_path: Path, poll: str) -> None:
    net = wire(links=1)
    text = paths(f"echo: {{reflect: eth1, poll: {poll}}}", "eth1", interface=f"rings: {SMALL}")
    with running(net, tmp_path, text) as daemon:
        (pid,) = daemon.workers().values()
        began, before = time.monotonic(), cpu_seconds(pid)
        supervisor = cpu_seconds(daemon.pid)
        time.sleep(2)
        seconds = time.monotonic() - began
        share, other = (cpu_seconds(pid) - before) / seconds, (cpu_seconds(daemon.pid) - supervisor) / seconds
    print(f"idle CPU: worker {share:.2%}, supervisor {other:.2%}")
    assert share < 0.03
    assert other < 0.03
