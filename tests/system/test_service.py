"""The shipped unit under a real systemd: what an operator does with systemctl, and what goes wrong at night.

Every test boots a machine of its own, so that none can hide what another left behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from booted import QUEUES, Machine, booted, eventually

UP = f"1 path, {QUEUES} queues forwarding, copy mode"
INFO, WARNING = "6", "4"


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
    assert eventually(lambda: any("wire/1: took over after" in line for line in machine.said()))
    machine.systemctl("stop")
    assert eventually(lambda: sum("stopped, drained" in line for line in machine.said()) == QUEUES)
    entries = [entry for entry in machine.journal() if entry["SYSLOG_IDENTIFIER"] == "xskd"]
    said = {entry["MESSAGE"]: entry["PRIORITY"] for entry in entries}
    ended = (
        "wire/1: worker ended (SIGKILL): the worker process ended: SIGKILL; "
        "next one at once, which takes over its rings"
    )
    assert {"eth1: XDP program attached, native mode", f"ready: {UP}", "stopping: SIGTERM"} <= said.keys()
    assert (said["stopping: SIGTERM"], said[ended]) == (INFO, WARNING)
    stopped = [line for line in said if "stopped, drained" in line]
    assert len(stopped) == QUEUES
    assert all("0 unaccounted, 0 contradictions" in line for line in stopped)


def test_the_journal_can_be_asked_for_one_queue_or_interface(machine: Machine) -> None:
    machine.systemctl("start")

    def lines(*match: str) -> list[str]:
        return machine.box.run("journalctl", "-u", "xskd", "-o", "cat", *match).stdout.splitlines()

    of_queue, of_interface = lines("XSKD_QUEUE=1"), lines("XSKD_INTERFACE=eth2")
    assert len(of_queue) == 2
    assert all(line.startswith("wire/1: ") for line in of_queue)
    assert {"eth2: XDP program attached, native mode", "wire/1: eth2 queue 1 bound, copy mode"} <= set(
        of_interface
    )
    assert not [line for line in of_interface if "eth1" in line]
    assert lines("XSKD_PATH=wire", "XSKD_QUEUE=0") == lines("XSKD_WORKER=wire/0") != []


def test_stop_is_clean_and_leaves_nothing_behind(machine: Machine) -> None:
    machine.systemctl("start")
    assert len(machine.processes()) == 1 + QUEUES
    assert "xdp" in json.loads(machine.box.run("ip", "-j", "link", "show", "eth1").stdout)[0]
    machine.systemctl("stop")
    assert machine.show("Result") == "success"
    assert machine.show("ExecMainStatus") == "0"
    assert eventually(lambda: machine.processes() == [], 2)
    assert not machine.box.path("/run/xskd").exists()
    for link in json.loads(machine.box.run("ip", "-j", "link", "show").stdout):
        assert "xdp" not in link, f"a program is still on {link['ifname']}"


@pytest.mark.alone  # two workers that spin take both CPUs
def test_a_reload_changes_what_differs_and_keeps_the_processes(machine: Machine) -> None:
    machine.systemctl("start")
    before = machine.processes()
    machine.write("/etc/xskd/xskd.yaml", machine.config.replace("eth2]", "eth2], poll: busy"))
    machine.systemctl("reload")
    assert {"reload: wire/0: poll busy", "reload: wire/1: poll busy"} <= set(machine.said())
    assert {worker["poll"] for worker in machine.status()["workers"]} == {"busy"}
    assert machine.processes() == before
    assert (machine.show("ActiveState"), machine.show("StatusText")) == ("active", UP)
    assert machine.lost() == 0


def test_a_reload_of_a_bad_file_fails_visibly_and_changes_nothing(machine: Machine) -> None:
    machine.systemctl("start")
    before = machine.processes()
    machine.write("/etc/xskd/xskd.yaml", machine.config + "metric: {}\nlog: {level: loud}\n")
    assert machine.systemctl("reload", check=False) != 0
    wrong = [line for line in machine.said() if line.startswith("/etc/xskd/xskd.yaml:")]
    assert [line.split(": ")[:2] for line in wrong] == [
        ["/etc/xskd/xskd.yaml:3", "metric"],
        ["/etc/xskd/xskd.yaml:4", "log.level"],
    ]
    assert machine.show("ActiveState") == "active"
    assert machine.show("StatusText") == f"{UP}; the configuration file is wrong, an older one runs"
    assert machine.processes() == before
    assert machine.lost() == 0
    machine.write("/etc/xskd/xskd.yaml", machine.config)
    machine.systemctl("reload")
    assert machine.show("StatusText") == UP


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


def test_a_worker_that_hangs_can_be_ended_by_the_supervisor(machine: Machine) -> None:
    """It does not end by itself, and the supervisor may: they are the same user."""
    machine.systemctl("start")
    neighbour = machine.worker("wire/1")["pid"]
    began = time.monotonic()
    machine.signal("STOP", machine.worker("wire/0")["pid"])
    assert eventually(lambda: machine.worker("wire/0")["restarts"] == {"stalled": 1})
    noticed, watchdog = time.monotonic() - began, machine.show("WatchdogUSec")
    print(f"noticed after {noticed:.1f} s; systemd would act after {watchdog}")
    assert machine.worker("wire/1")["pid"] == neighbour
    assert eventually(lambda: machine.show("StatusText") == UP)
    assert machine.show("NRestarts") == "0"


def test_a_member_of_the_group_may_look_at_packets_and_change_nothing(machine: Machine) -> None:
    machine.box.run("groupadd", "--system", "netops")
    machine.override("[Service]\nSupplementaryGroups=netops\nRuntimeDirectoryMode=0711\n")
    machine.write("/etc/xskd/xskd.yaml", f"{machine.config}control: {{group: netops}}\n")
    machine.systemctl("start")
    stranger = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", "xskd")
    member = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--groups=netops", "--", "xskd")
    file = "/tmp/seen.pcapng"
    wanted = (*member, "capture", "wire", "--filter", "icmp", "--count", "10", "--seconds", "20", "-w", file)
    with ThreadPoolExecutor(1) as thread:
        captured = thread.submit(machine.box.run, *wanted)
        assert eventually(lambda: machine.lost() == 0 and captured.done(), 20)
    assert "10 packets captured" in captured.result().stderr
    assert machine.box.run("tcpdump", "-nr", file).stdout.count("ICMP echo") == 10
    refused = machine.box.run(*member, "reload", check=False)
    assert (refused.returncode, "may" in refused.stderr) == (3, True)
    for verb in (("capture", "wire", "-w", "/tmp/no"), ("status",)):
        assert machine.box.run(*stranger, *verb, check=False).returncode == 3
