"""The shipped unit under a real systemd: what an operator does with systemctl, and what goes wrong at night.

Every test boots a machine of its own, so that none can hide what another left behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from booted import QUEUES, Machine, booted, eventually

UP = f"1 path, {QUEUES} queues forwarding, copy mode"
INFO, WARNING = "6", "4"
CAPABILITIES = {"kill", "setgid", "setuid", "setpcap", "net_admin", "net_raw", "ipc_lock", "bpf"}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with booted() as made:
        yield made


def test_systemd_finds_nothing_wrong_with_the_unit(machine: Machine) -> None:
    done = machine.box.run("systemd-analyze", "verify", "xskd.service")
    assert done.stdout + done.stderr == ""  # it warns of an unknown key and returns 0


def test_start_returns_when_every_queue_is_bound_and_traffic_flows(machine: Machine) -> None:
    machine.systemctl("start")
    status = machine.status()
    assert status["ready"]
    ports = [port for worker in status["workers"] for port in worker["ports"]]
    assert [port["mode"] for port in ports] == ["copy"] * 2 * QUEUES
    assert machine.show("StatusText") == status["text"] == UP
    assert machine.show("WatchdogUSec") == "10s"
    assert machine.lost() == 0
    counted = [
        sum(worker["ports"][index]["counters"]["rx_packets"] for worker in machine.status()["workers"])
        for index in (0, 1)
    ]
    assert min(counted) >= 20, "the pings went some other way"


def test_the_journal_tells_a_person_what_happened(machine: Machine) -> None:
    machine.systemctl("start")
    machine.signal("KILL", machine.worker("wire/1")["pid"])
    assert eventually(lambda: machine.said().count("wire/1: eth2 queue 1 bound, copy mode") == 2)
    machine.systemctl("stop")
    entries = [entry for entry in machine.journal() if entry["SYSLOG_IDENTIFIER"] == "xskd"]
    said = {entry["MESSAGE"]: entry["PRIORITY"] for entry in entries}
    ended = "wire/1: worker ended (SIGKILL): the worker process ended: SIGKILL; next try in 0.05 s"
    assert {"eth1: XDP program attached, native mode", f"ready: {UP}", "stopping: SIGTERM"} <= said.keys()
    assert (said["stopping: SIGTERM"], said[ended]) == (INFO, WARNING)
    stopped = [line for line in said if "stopped, drained" in line]
    assert len(stopped) == QUEUES
    assert all("0 unaccounted, 0 contradictions" in line for line in stopped)


def test_stop_is_clean_and_leaves_nothing_behind(machine: Machine) -> None:
    machine.systemctl("start")
    assert len(machine.processes()) == 1 + QUEUES
    assert "xdp" in json.loads(machine.box.run("ip", "-j", "link", "show", "eth1").stdout)[0]
    machine.systemctl("stop")
    assert machine.show("Result") == "success"
    assert machine.show("ExecMainStatus") == "0"
    assert machine.processes() == []
    assert not machine.box.path("/run/xskd").exists()
    for link in json.loads(machine.box.run("ip", "-j", "link", "show").stdout):
        assert "xdp" not in link, f"a program is still on {link['ifname']}"


def test_a_restart_is_a_stop_and_a_start(machine: Machine) -> None:
    machine.systemctl("start")
    before = machine.show("MainPID")
    machine.systemctl("restart")
    assert machine.show("MainPID") != before
    assert machine.show("StatusText") == UP
    assert machine.lost() == 0


def test_a_wrong_configuration_is_status_2_and_is_not_tried_again(machine: Machine) -> None:
    machine.write("/etc/xskd/xskd.yaml", machine.config + "metric: {}\n")
    assert machine.systemctl("start", check=False) != 0
    assert failed_for_good(machine) == "2"
    (line,) = (line for line in machine.said() if "xskd.yaml:" in line)
    assert line.startswith("/etc/xskd/xskd.yaml:3: metric: ")


def test_an_interface_that_another_has_is_status_3_and_is_not_tried_again(machine: Machine) -> None:
    other = machine.box.path("/tmp") / "other.yaml"
    other.write_text(
        "interfaces: {eth1: {}}\npaths: {other: {reflect: eth1}}\n"
        "metrics: {listen: off}\ncontrol: {socket: /tmp/other.sock}\n",
        encoding="utf-8",
    )
    run = ("nsenter", "--target", str(machine.box.pid), "--mount", "--pid", "--", "/usr/bin/xskd")
    machine.lab.popen(machine.lab.dut, *run, "run", "-c", "/tmp/other.yaml")
    assert eventually(lambda: "xdp" in machine.box.run("ip", "link", "show", "eth1").stdout)
    assert machine.systemctl("start", check=False) != 0
    assert failed_for_good(machine) == "3"
    assert any("is not ours to replace" in line for line in machine.said())


def failed_for_good(machine: Machine) -> str:
    """Say the daemon's exit status, having seen that systemd leaves it at that."""
    assert machine.show("SubState") == "failed", "systemd is about to try again"
    assert machine.show("NRestarts") == "0"
    return machine.show("ExecMainStatus")


def test_a_dead_worker_is_seen_in_the_status_text_until_it_is_back(machine: Machine) -> None:
    machine.systemctl("start")
    killed = 0

    def kill_it_until_the_text_says_so() -> bool:
        nonlocal killed
        worker = machine.worker("wire/1")
        if worker["state"] == "forwarding":
            machine.signal("KILL", worker["pid"])
            killed += 1
        return "1 queue forwarding, copy mode; not forwarding: wire/1 (" in machine.show("StatusText")

    neighbour = machine.worker("wire/0")["pid"]
    assert eventually(kill_it_until_the_text_says_so)
    assert eventually(lambda: machine.show("StatusText") == UP)
    assert machine.worker("wire/1")["restarts"] == {"SIGKILL": killed}
    assert machine.worker("wire/0")["pid"] == neighbour
    assert machine.show("NRestarts") == "0"
    assert machine.lost() == 0


def test_a_hanging_supervisor_is_replaced_by_the_watchdog(machine: Machine) -> None:
    machine.override("[Service]\nWatchdogSec=2\n")
    machine.systemctl("start")
    before = machine.processes()
    machine.signal("STOP", machine.show("MainPID"))
    assert machine.lost() == 0, "workers must go on without it"
    assert machine.show("NRestarts") == "0"
    assert eventually(lambda: machine.show("NRestarts") == "1"), "the watchdog did not bite"
    assert eventually(lambda: machine.show("SubState") == "running")
    assert any("Watchdog timeout" in line for line in machine.said())
    assert set(before).isdisjoint(machine.processes())
    assert machine.show("StatusText") == UP
    assert machine.lost() == 0


def test_a_daemon_that_is_well_outlives_its_watchdog(machine: Machine) -> None:
    machine.override("[Service]\nWatchdogSec=1\n")
    machine.systemctl("start")
    pid = machine.show("MainPID")
    assert not eventually(lambda: machine.show("MainPID") != pid, patience=2.5)


def test_a_killed_supervisor_takes_its_workers_with_it_and_comes_back(machine: Machine) -> None:
    machine.systemctl("start")
    before = machine.processes()
    machine.signal("KILL", machine.show("MainPID"))
    assert eventually(lambda: machine.show("NRestarts") == "1")
    assert eventually(lambda: machine.show("SubState") == "running")
    assert set(before).isdisjoint(machine.processes())
    assert machine.lost() == 0


def test_the_daemon_has_the_rights_it_needs_and_workers_have_none(machine: Machine) -> None:
    machine.systemctl("start")
    daemon = machine.rights(machine.show("MainPID"))
    decoded = machine.box.run("capsh", f"--decode={daemon['CapBnd']}").stdout.strip().partition("=")[2]
    assert {name.removeprefix("cap_") for name in decoded.split(",")} == CAPABILITIES
    assert daemon["CapEff"] == daemon["CapBnd"]
    assert (daemon["NoNewPrivs"], daemon["Seccomp"]) == ("1", "2")  # 2: filtered
    for each in machine.status()["workers"]:
        worker = machine.rights(each["pid"])
        sets = [int(worker[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
        assert sets == [0] * 5
        assert set(worker["Uid"].split()) == set(worker["Gid"].split()) == {"65534"}
        assert (worker["Groups"], worker["NoNewPrivs"], worker["Seccomp"]) == ("", "1", "2")


def test_the_control_socket_is_for_root_only(machine: Machine) -> None:
    machine.systemctl("start")
    modes = [machine.box.path(f"/run/xskd{name}").stat().st_mode & 0o777 for name in ("", "/control.sock")]
    assert modes == [0o700, 0o600]


def test_systemd_calls_the_exposure_low(machine: Machine) -> None:
    done = machine.box.run("systemd-analyze", "security", "--threshold=28", "xskd.service", check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_a_worker_that_hangs_can_be_ended_by_the_supervisor(machine: Machine) -> None:
    """The one case that needs CAP_KILL: the worker is nobody's process, and does not end by itself."""
    machine.systemctl("start")
    machine.signal("STOP", machine.worker("wire/0")["pid"])
    assert eventually(lambda: machine.worker("wire/0")["restarts"] == {"stalled": 1})
    assert eventually(lambda: machine.show("StatusText") == UP)
    assert machine.show("NRestarts") == "0"
