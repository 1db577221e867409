"""What the service may do on the machine, asked of the kernel while it forwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from booted import QUEUES, Machine, booted

CAPABILITIES = {"cap_net_admin", "cap_net_raw", "cap_bpf", "cap_perfmon", "cap_ipc_lock"}
SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
METRICS = "127.0.0.1:9478"
OUTSIDE = "192.0.2.1"  # an address of the machine that is not the loopback's


@pytest.fixture
def machine() -> Iterator[Machine]:
    with booted() as made:
        yield made


def user_of(machine: Machine) -> tuple[str, str]:
    """The user and group ids of xskd on this machine."""
    _, _, uid, gid, *_ = machine.box.run("getent", "passwd", "xskd").stdout.split(":")
    return uid, gid


def names_of(machine: Machine, mask: str) -> set[str]:
    decoded = machine.box.run("capsh", f"--decode={mask}").stdout.strip()
    return set(decoded.partition("=")[2].split(","))


def test_the_supervisor_is_a_user_of_its_own_with_four_capabilities(machine: Machine) -> None:
    machine.systemctl("start")
    uid, gid = user_of(machine)
    rights = machine.rights(machine.show("MainPID"))
    assert set(rights["Uid"].split()) == {uid} != {"0"}
    assert set(rights["Gid"].split()) == set(rights["Groups"].split()) == {gid}
    for name in (*SETS, "CapBnd"):
        assert names_of(machine, rights[name]) == CAPABILITIES, name
    assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")  # 2: filtered


def test_workers_have_no_rights_and_a_filter_of_their_own(machine: Machine) -> None:
    machine.systemctl("start")
    uid, gid = user_of(machine)
    supervisor = machine.rights(machine.show("MainPID"))
    workers = machine.status()["workers"]
    assert len(workers) == QUEUES
    for each in workers:
        rights = machine.rights(each["pid"])
        assert [int(rights[name], 16) for name in SETS] == [0] * 4
        assert set(rights["Uid"].split()) == {uid}
        assert set(rights["Gid"].split()) == {gid}
        assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")
        assert int(rights["Seccomp_filters"]) == int(supervisor["Seccomp_filters"]) + 1
    assert machine.lost() == 0, "the filter forbids something that forwarding needs"


def test_what_lies_in_run_is_for_its_user_only(machine: Machine) -> None:
    machine.systemctl("start")
    found = machine.box.run("find", "/run/xskd", "-printf", "%p %U %G %m %y\n").stdout.splitlines()
    uid, gid = user_of(machine)
    allowed = {"d": "700", "s": "600", "f": "600"}
    for path, owner, group, mode, kind in (line.split() for line in found):
        assert (owner, group, mode) == (uid, gid, allowed[kind]), path
    assert f"/run/xskd/control.sock {uid} {gid} 600 s" in found


def test_root_and_its_user_may_ask_and_nobody_else(machine: Machine) -> None:
    machine.systemctl("start")
    assert machine.status()["ready"], "root was refused"
    assert machine.as_user("xskd", "status", "--json").returncode == 0
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "xskd", "status")
    refused = machine.box.run(*nobody, check=False)
    assert (refused.returncode, refused.stdout) == (3, "")


def test_metrics_are_for_this_machine_only(machine: Machine) -> None:
    machine.systemctl("start")
    listening = machine.box.run("ss", "-Hltnup").stdout.splitlines()
    assert [line.split()[4] for line in listening] == [METRICS]
    assert fetch(machine, METRICS).startswith("# HELP xskd_")


def test_other_machines_reach_the_metrics_only_where_the_unit_lets_them(machine: Machine) -> None:
    machine.box.run("ip", "address", "add", f"{OUTSIDE}/32", "dev", "lo")
    machine.write("/etc/xskd/xskd.yaml", machine.config + "metrics: {listen: '0.0.0.0:9478'}\n")
    machine.systemctl("start")
    assert fetch(machine, METRICS)
    # A connection from an address to itself comes from that address.
    assert fetch(machine, f"{OUTSIDE}:9478") == "", "IPAddressDeny= lets everybody in"
    machine.override(f"[Service]\nIPAddressAllow={OUTSIDE}\n")
    assert fetch(machine, f"{OUTSIDE}:9478"), "the drop-in that the unit's comment names does not help"


def fetch(machine: Machine, address: str) -> str:
    """The metrics page, empty if there is none."""
    return machine.box.run("curl", "-sS", "-m", "2", f"http://{address}/metrics", check=False).stdout


def test_systemd_calls_the_exposure_low(machine: Machine) -> None:
    done = machine.box.run("systemd-analyze", "security", "--threshold=20", "xskd.service", check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1]
    stricter = machine.box.run("systemd-analyze", "security", "--threshold=10", "xskd.service", check=False)
    assert stricter.returncode != 0, "this systemd-analyze does not look at its threshold"


def test_the_journal_finds_lines_by_what_they_are_about(machine: Machine) -> None:
    """Said as the unit's user; nothing but our fields comes with the line."""
    script = (
        "import logging; from xskd import logs; log = logging.getLogger('xskd'); "
        "log.addHandler(logs.Journal()); "
        "log.warning('%s hangs', 'it', extra=logs.about(worker='wire/3', errno=16))"
    )
    done = machine.as_user(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    machine.box.run("journalctl", "--sync")
    (entry,) = entries(machine, "XSKD_QUEUE=3")
    assert entries(machine, "XSKD_QUEUE=4") == []
    ours = {name: value for name, value in entry.items() if not name.startswith(("_", "CODE_"))}
    assert ours == {
        "MESSAGE": "it hangs",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "xskd",
        "XSKD_WORKER": "wire/3",
        "XSKD_PATH": "wire",
        "XSKD_QUEUE": "3",
        "ERRNO": "16",
    }


def entries(machine: Machine, match: str) -> list[dict[str, Any]]:
    lines = machine.box.run("journalctl", "-o", "json", match).stdout.splitlines()
    return [json.loads(line) for line in lines]
