"""What a restart, a crash and an upgrade of the supervisor cost under load, and that nothing is left of them.

A steady stream runs through `connect` while things happen to the daemon, at the rate of the promise: 20,000
packets a second. A packet that is missing must be one that the kernel counted because an RX ring was full.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from booted import QUEUES, Machine, booted, eventually
from stream import Stream

RATE = 20_000  # packets a second
UP = f"1 path, {QUEUES} queues forwarding, copy mode"
GAP = re.compile(
    r"took over after ([\d.]+) ms without a worker: .* (\d+) frames quarantined(, \d+ packets lost)?"
)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with booted() as made:
        made.systemctl("start")
        yield made


def bpf_objects(machine: Machine) -> set[str]:
    """Name every program, map and link that the supervisor holds.

    The first one holds some more, which it needed for loading: what it holds later must be among those.
    """
    (pid,) = [machine.show("MainPID")]
    text = machine.box.run("sh", "-c", f"cat /proc/{pid}/fdinfo/*").stdout
    return set(re.findall(r"^(?:prog|map|link)_id:\s+\d+$", text, re.MULTILINE))


def everybodys_programs(machine: Machine) -> int:
    """Count the programs called xskd in the whole kernel, whoever holds them."""
    shown = machine.box.run("bpftool", "-j", "prog", "show").stdout
    return sum(program.get("name") == "xskd" for program in json.loads(shown))


def descriptors(machine: Machine) -> int:
    pid = machine.show("MainPID")
    return len(machine.box.run("ls", f"/proc/{pid}/fd").stdout.split())


def overruns(machine: Machine) -> int:
    """Count the packets that the kernel had no room for in an RX ring, on the way that the stream takes."""
    ports = [worker["ports"][0]["kernel"] for worker in machine.status()["workers"]]
    return sum(port["rx_ring_full"] + port["rx_dropped"] for port in ports)


def gaps(machine: Machine) -> tuple[list[float], int]:
    """Read from the journal how long no worker ran, in ms, and how many frames were quarantined in all."""
    found = [match for line in machine.said() if (match := GAP.search(line))]
    assert not [match[3] for match in found if match[3]], "packets were in a dead worker's hands"
    return [float(match[1]) for match in found], sum(int(match[2]) for match in found)


def unaccounted(machine: Machine) -> int:
    return sum(int(worker["counters"]["frames_unaccounted"]) for worker in machine.status()["workers"])


def account(machine: Machine, stream: Stream, what: str) -> None:
    """Hold the stream against the kernel's counters, and print the figures."""
    silent, quarantined = gaps(machine)
    middle, longest = statistics.median(silent), max(silent)
    print(
        f"{what}: {stream.sent} packets at {RATE}/s, {stream.lost} lost, {overruns(machine)} counted as RX "
        f"overrun, {stream.doubled} doubled; no worker for {middle:.1f} ms (median) to {longest:.1f} ms, "
        f"{quarantined} frames quarantined; longest silence at the receiver {stream.silence * 1000:.1f} ms"
    )
    assert stream.lost == overruns(machine)
    assert stream.doubled == quarantined == unaccounted(machine) == 0


def test_a_restart_under_load_loses_nothing_the_kernel_did_not_count(machine: Machine) -> None:
    objects, pid = bpf_objects(machine), machine.show("MainPID")
    workers = {worker["pid"] for worker in machine.status()["workers"]}
    counted = machine.worker("wire/0")["counters"]["turns"]
    with Stream(machine.lab, RATE) as stream:
        machine.systemctl("restart")
        assert machine.show("StatusText") == UP
        time.sleep(0.2)
    assert machine.show("MainPID") != pid
    assert workers.isdisjoint(worker["pid"] for worker in machine.status()["workers"])
    assert bpf_objects(machine) <= objects, "the programs were made anew"
    assert machine.worker("wire/0")["counters"]["turns"] > counted, "the counters began again"
    account(machine, stream, "one restart")


@pytest.mark.alone  # counts the programs of the whole kernel
@pytest.mark.timeout(400)
def test_a_hundred_restarts_under_load_leak_nothing(
    machine: Machine, times: Callable[[int, int], int]
) -> None:
    restarts = times(20, 100)
    machine.systemctl("restart")  # what a first restart adds is no leak
    before = bpf_objects(machine), everybodys_programs(machine), descriptors(machine)
    stored = machine.show("NFileDescriptorStore")
    began = time.monotonic()
    with Stream(machine.lab, RATE) as stream:
        for _ in range(restarts):
            machine.systemctl("restart")
    print(f"{restarts} restarts in {time.monotonic() - began:.0f} s")
    account(machine, stream, f"{restarts} restarts")
    assert (bpf_objects(machine), everybodys_programs(machine), descriptors(machine)) == before
    assert machine.show("NFileDescriptorStore") == stored
    assert len(machine.processes()) == 1 + QUEUES


def test_a_killed_supervisor_is_replaced_and_its_workers_forward_meanwhile(machine: Machine) -> None:
    objects = bpf_objects(machine)
    with Stream(machine.lab, RATE) as stream:
        began = time.monotonic()
        machine.signal("KILL", machine.show("MainPID"))
        assert eventually(lambda: machine.show("NRestarts") == "1")
        assert eventually(lambda: machine.show("StatusText") == UP and machine.show("SubState") == "running")
        print(f"a successor was in charge after {time.monotonic() - began:.2f} s")
    assert bpf_objects(machine) <= objects
    assert len(machine.processes()) == 1 + QUEUES
    account(machine, stream, "supervisor killed")


def test_supervisor_and_workers_killed_at_once_leave_rings_that_are_taken_over(machine: Machine) -> None:
    objects = bpf_objects(machine)
    with Stream(machine.lab, RATE) as stream:
        machine.box.run("systemctl", "kill", "--signal=KILL", "xskd")
        assert eventually(lambda: machine.show("NRestarts") == "1")
        assert eventually(lambda: machine.show("StatusText") == UP and machine.show("SubState") == "running")
        time.sleep(0.2)
    assert bpf_objects(machine) <= objects
    found = [line for line in machine.said() if "took over after" in line]
    assert len(found) == QUEUES
    in_hands = sum(int(n) for line in found for n in re.findall(r"(\d+) packets lost", line))
    print(
        f"all killed: {stream.lost} of {stream.sent} lost, {overruns(machine)} counted as RX overrun: {found}"
    )
    assert stream.lost == overruns(machine) + in_hands
    assert stream.doubled == unaccounted(machine) == 0


def test_stop_ends_programs_and_workers_though_they_outlive_the_supervisor(machine: Machine) -> None:
    with Stream(machine.lab, 1000):
        machine.systemctl("stop")
        assert eventually(lambda: machine.processes() == [], 2)
    assert machine.show("NFileDescriptorStore") == "0"
    for link in json.loads(machine.box.run("ip", "-j", "link", "show").stdout):
        assert "xdp" not in link, f"a program is still on {link['ifname']}"
    assert eventually(lambda: sum("stopped, drained" in line for line in machine.said()) == QUEUES)
    assert not machine.box.path("/run/xskd").exists()


def test_sockets_that_fit_no_more_are_let_go_of_and_the_rest_is_kept(machine: Machine) -> None:
    objects = bpf_objects(machine)
    machine.write("/etc/xskd/xskd.yaml", machine.config.replace("eth1: {}", "eth1: {rings: {rx: 512}}"))
    machine.systemctl("restart")
    for name in ("wire/0", "wire/1"):
        why = "its interfaces, queues, rings, frames or mode are others now"
        assert machine.said().count(f"{name}: the stored sockets are let go of: {why}") == 1
    assert bpf_objects(machine) <= objects, "the programs could have been kept"
    assert {worker["ports"][0]["rings"]["rx"] for worker in machine.status()["workers"]} == {512}
    assert machine.lost() == 0
    assert eventually(lambda: len(machine.processes()) == 1 + QUEUES), "the old workers did not end"


def test_a_counter_page_of_another_layout_is_let_go_of(machine: Machine) -> None:
    """As after an upgrade that changes the layout: here the page itself is changed."""
    pid = machine.worker("wire/0")["pid"]
    for entry in Path(f"/proc/{machine.box.pid}/root/proc/{pid}/fd").iterdir():
        if "xskd-counters" in str(entry.readlink()):
            with entry.open("r+b") as page:
                page.write((99).to_bytes(8, "little"))
    machine.systemctl("restart")
    (line,) = [line for line in machine.said() if "let go of" in line]
    assert re.search(
        r"^wire/0: the stored sockets are let go of: counter page of layout 99; this xskd has", line
    )
    assert machine.lost() == 0
    assert [worker["adoptions"] for worker in machine.status()["workers"]] == [{}, {"adopted": 1}]


def test_without_the_state_file_everything_is_let_go_of_and_made_anew(machine: Machine) -> None:
    machine.box.path("/run/xskd/state.json").unlink()
    machine.signal("KILL", machine.show("MainPID"))  # which writes it no more
    assert eventually(lambda: machine.show("NRestarts") == "1" and machine.show("SubState") == "running")
    assert any("the last supervisor's state cannot be read" in line for line in machine.said())
    assert machine.show("StatusText") == UP
    assert machine.lost() == 0
    assert eventually(lambda: len(machine.processes()) == 1 + QUEUES)


def test_a_broken_file_never_takes_a_running_forwarder_down(machine: Machine) -> None:
    machine.write("/etc/xskd/xskd.yaml", machine.config + "metric: {}\n")
    with Stream(machine.lab, RATE) as stream:
        machine.systemctl("restart")
        time.sleep(0.2)
    assert any(line.startswith("/etc/xskd/xskd.yaml:3: metric: unknown key") for line in machine.said())
    text = machine.show("StatusText")
    assert text == f"{UP}; the configuration file is wrong, an older one runs"
    account(machine, stream, "restart with a broken file")
    machine.write("/etc/xskd/xskd.yaml", machine.config)
    machine.systemctl("reload")
    assert machine.show("StatusText") == UP


def test_a_worker_that_hangs_is_ended_with_the_daemon(machine: Machine) -> None:
    machine.signal("STOP", machine.worker("wire/0")["pid"])
    machine.systemctl("stop")
    assert eventually(lambda: machine.processes() == [])
    assert machine.said().count("wire/0: hangs, killed") == 1


def test_a_worker_that_hangs_when_nobody_is_left_to_end_it_is_ended_by_the_next_start(
    machine: Machine,
) -> None:
    hanging = machine.worker("wire/0")["pid"]
    machine.signal("STOP", hanging)
    machine.signal("KILL", machine.show("MainPID"))
    machine.systemctl("stop")
    assert eventually(lambda: machine.processes() == [str(hanging)])
    machine.systemctl("start")
    assert f"worker process {hanging} of an earlier run is still there, killed" in machine.said()
    assert machine.show("StatusText") == UP
    assert str(hanging) not in machine.processes()
    assert machine.lost() == 0
