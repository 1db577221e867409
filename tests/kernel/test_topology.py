"""The laboratory itself: hosts reach each other, links are quiet, nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyroute2 import netns

from lab import Topology, entered

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


def ours(prefix: str) -> list[str]:
    return [ns for ns in netns.listnetns() if ns.startswith(prefix)]


def bridge(lab: Topology) -> None:
    lab.run(lab.dut, "ip", "link", "add", "br0", "type", "bridge")
    for dev in lab.dut_devs:
        lab.run(lab.dut, "ip", "link", "set", dev, "master", "br0")
    lab.run(lab.dut, "ip", "link", "set", "br0", "up")


def test_hosts_ping_through_a_bridge_and_everything_is_gone_afterwards() -> None:
    with Topology("xskd-test", queues=2, mtu=9000) as lab:
        bridge(lab)
        ping = ("ping", "-c", "3", "-i", "0.05", "-s", "8000", "-M", "do", lab.ip_of(1))
        assert "3 received" in lab.run(lab.hosts[0], *ping).stdout
        assert lab.counters(lab.hosts[1], "eth0").rx_packets >= 3
        queues = lab.run(lab.dut, "ls", "/sys/class/net/eth1/queues").stdout.split()
        assert queues == ["rx-0", "rx-1", "tx-0", "tx-1"]
    assert ours(lab.prefix) == []


def test_links_are_quiet() -> None:
    with Topology("xskd-test", links=3) as lab:
        time.sleep(1)
        for host in lab.hosts:
            counted = lab.counters(host, "eth0")
            assert (counted.rx_packets, counted.tx_packets) == (0, 0)


def test_an_exception_leaves_neither_namespace_nor_process() -> None:
    with pytest.raises(ZeroDivisionError), Topology("xskd-test", links=1) as lab:
        child = lab.popen(lab.dut, "sleep", "1000")
        raise ZeroDivisionError
    assert ours(lab.prefix) == []
    assert child.returncode == -signal.SIGTERM


def test_entered_moves_this_thread_and_brings_it_back() -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    with Topology("xskd-test", links=1) as lab:
        with entered(lab.hosts[0]):
            assert os.readlink("/proc/thread-self/ns/net") != home
            assert "10.99.0.1" in subprocess.check_output(("ip", "-br", "addr"), text=True)
        assert os.readlink("/proc/thread-self/ns/net") == home
    with pytest.raises(FileNotFoundError), entered("xskd-test-no-such"):
        pass
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_leftovers_of_a_killed_run_are_found_and_removed() -> None:
    make = "import os; from lab import Topology; Topology('xskd-stale', links=1).__enter__()"
    root = Path(__file__).parents[2]
    child = subprocess.run((sys.executable, "-c", f"{make}; os.kill(os.getpid(), 9)"), cwd=root, check=False)
    assert child.returncode == -signal.SIGKILL
    with Topology("xskd-stale", links=1) as alive:
        assert len(ours("xskd-stale")) == 4
        assert len(Topology.cleanup_stale("xskd-stale")) == 2
        assert sorted(ours("xskd-stale")) == sorted((alive.dut, *alive.hosts))
    assert ours("xskd-stale") == []


def test_a_name_that_leads_nowhere_is_removed_as_well() -> None:
    """Its maker was killed after it had made the file, and before the namespace was mounted there."""
    maker = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1  # nobody
    with Topology("xskd-stale", links=0):  # makes the directory, if there is none yet
        name = f"xskd-stale-{maker}.0-dut"
        Path("/run/netns", name).touch()
        assert Topology.cleanup_stale("xskd-stale") == [name]
    assert ours("xskd-stale") == []
