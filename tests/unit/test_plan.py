"""The plan: what is started for which configuration and machine, and the exact text of every refusal."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import connect, device, plan

from xskd.errors import ConfigError, Problem
from xskd.features import Features
from xskd.netdev import NetDevice
from xskd.plan import InterfacePlan, Plan, PortPlan, WaitingPath, WorkerPlan
from xskd.uapi import Rings

WIRE = """\
interfaces:
  eth1: {rings: {fill: 256, rx: 64, tx: 128, completion: 128}}
  eth2: {mode: copy, attach: generic}
paths:
  wire: {connect: [eth1, eth2], fallback: drop, poll: busy}
"""


def refusal(text: str, *devices: NetDevice, cpus: tuple[int, ...] = (0, 1)) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(text, *devices, cpus=cpus).insist()
    return str(caught.value).splitlines()


def cpus_of(made: Plan) -> dict[str, int | None]:
    return {worker.name: worker.cpu for worker in made.workers}


# ---- what is planned ------------------------------------------------------------------------------


def test_a_whole_plan() -> None:
    made = plan(WIRE, device("eth1", queues=2), device("eth2", queues=2, mtu=9))
    one = Rings(fill=256, rx=64, tx=128, completion=128)
    two = Rings(fill=2048, rx=1024, tx=1024, completion=2048)
    both: dict[str, Any] = {"queues": 2, "fallback": "drop", "path": "wire", "kind": "connect"}
    both |= {"members": (11, 12), "mac": "02:00:00:00:00:01"}
    assert made.interfaces == (
        InterfacePlan("eth1", 11, attach="auto", own=0, **both),
        InterfacePlan("eth2", 12, attach="generic", own=1, **both),
    )
    assert made.workers == tuple(
        WorkerPlan(
            path="wire",
            index=index,
            kind="connect",
            ports=(
                PortPlan("eth1", 11, queue=index, mode="auto", rings=one, mtu=1500),
                PortPlan("eth2", 12, queue=index, mode="copy", rings=two, mtu=9),
            ),
            frames=256 + 64 + 128 + 128 + 2048 + 1024 + 1024 + 2048,
            frame_size=4096,
            huge_pages=False,
            poll="busy",
            cpu=index,
        )
        for index in (0, 1)
    )
    assert made.metrics_listen == ("127.0.0.1", 9478)
    assert made.control_socket == Path("/run/xskd/control.sock")
    assert made.log_level == "info"
    assert [worker.name for worker in made.workers] == ["wire/0", "wire/1"]
    assert made.memory_bytes == 2 * 6720 * 4096


def test_a_worker_plan_survives_the_way_through_json() -> None:
    for worker in plan(WIRE, device("eth1"), device("eth2")).workers:
        text = worker.to_json()
        assert "\n" not in text
        assert WorkerPlan.from_json(text) == worker
        assert hash(WorkerPlan.from_json(text)) == hash(worker)  # tuples again, not lists


def test_selected_queues_are_paired_in_order() -> None:
    text = connect("{queues: [1, 3]}", "{queues: [0, 2]}")
    made = plan(text, device("eth1", queues=4), device("eth2", queues=4))
    assert [[port.queue for port in worker.ports] for worker in made.workers] == [[1, 0], [3, 2]]
    assert [interface.queues for interface in made.interfaces] == [4, 4]  # the XSKMAP covers all of them


def test_the_map_covers_every_queue_that_the_interface_can_ever_have() -> None:
    made = plan(connect(), device("eth1", max_queues=64), device("eth2", max_queues=8))
    assert [interface.queues for interface in made.interfaces] == [64, 8]
    assert len(made.workers) == 1


def test_reflect_has_one_port() -> None:
    made = plan("interfaces: {eth3: }\npaths: {echo: {reflect: eth3}}\n", device("eth3"))
    assert [(w.name, w.kind, len(w.ports)) for w in made.workers] == [("echo/0", "reflect", 1)]


def test_route_has_a_port_for_each_interface_in_the_order_written() -> None:
    text = "interfaces: {eth1: , eth2: , eth3: }\npaths: {lan: {route: [eth3, eth1, eth2]}}\n"
    (worker,) = plan(text, device("eth1"), device("eth2"), device("eth3")).workers
    assert (worker.kind, [port.interface for port in worker.ports]) == ("route", ["eth3", "eth1", "eth2"])
    assert worker.frames == 3 * (2048 + 1024 + 1024 + 2048)
    assert WorkerPlan.from_json(worker.to_json()) == worker


def test_umem_as_configured_and_in_whole_huge_pages() -> None:
    text = connect(rest="umem: {frames: 12289, frame_size: 2048, huge_pages: true}")
    (worker,) = plan(text, device("eth1"), device("eth2")).workers
    assert (worker.frames, worker.frame_size, worker.huge_pages) == (12289, 2048, True)
    assert worker.umem_bytes == 13 * (2 << 20)  # 12288 frames are 12 huge pages exactly
    text = text.replace("true", "false")
    assert plan(text, device("eth1"), device("eth2")).memory_bytes == 12289 * 2048


@pytest.mark.parametrize(("size", "mtu"), [(2048, 1770), (4096, 3818)])
def test_largest_mtu_that_fits(size: int, mtu: int) -> None:
    text = connect(rest=f"umem: {{frame_size: {size}}}")
    assert plan(text, device("eth1", mtu=mtu), device("eth2")).workers
    assert len(refusal(text, device("eth1", mtu=mtu + 1), device("eth2"))) == 1


# ---- which CPU ------------------------------------------------------------------------------------

TWO_PATHS = """\
interfaces: {eth1: {}, eth2: {}}
paths:
  a: {reflect: eth1, cpus: CPUS}
  b: {reflect: eth2}
"""


def test_listed_cpus_are_taken_in_order_and_again() -> None:
    text = TWO_PATHS.replace("CPUS", "[3, 1]")
    made = plan(text, device("eth1", queues=3), device("eth2"), cpus=(0, 1, 2, 3))
    assert cpus_of(made) == {"a/0": 3, "a/1": 1, "a/2": 3, "b/0": 0}


def test_auto_gives_every_worker_of_every_path_a_cpu_of_its_own() -> None:
    made = plan(
        TWO_PATHS.replace("CPUS", "auto"), device("eth1", queues=3), device("eth2"), cpus=(4, 5, 6, 7)
    )
    assert cpus_of(made) == {"a/0": 4, "a/1": 5, "a/2": 6, "b/0": 7}


def test_auto_keeps_off_the_listed_cpus_and_shares_evenly() -> None:
    made = plan(TWO_PATHS.replace("CPUS", "0"), device("eth1", queues=1), device("eth2", queues=3))
    assert cpus_of(made) == {"a/0": 0, "b/0": 1, "b/1": 0, "b/2": 1}


def test_auto_prefers_the_node_of_the_nic_then_a_free_cpu_of_another() -> None:
    nodes = {0: 0, 1: 0, 2: 1, 3: 1}
    made = plan(
        TWO_PATHS.replace("CPUS", "auto"),
        device("eth1", queues=3, node=1),
        device("eth2", node=1),
        cpus=(0, 1, 2, 3),
        nodes=nodes,
    )
    assert cpus_of(made) == {"a/0": 2, "a/1": 3, "a/2": 0, "b/0": 1}


def test_no_cpu_known_leaves_the_choice_to_the_scheduler() -> None:
    assert cpus_of(plan(connect(), device("eth1"), device("eth2"), cpus=())) == {"wire/0": None}


# ---- what is refused ------------------------------------------------------------------------------


def test_missing_interface() -> None:
    assert refusal(connect(), device("eth1")) == [
        "x.yaml:3: interfaces.eth2: no such interface in this network namespace; `ip -br link` lists them"
    ]


def test_missing_queue() -> None:
    text = connect("{queues: [1, 4-6, 9]}", "{queues: 0-4}")
    assert refusal(text, device("eth1", queues=4), device("eth2", queues=5)) == [
        "x.yaml:2: interfaces.eth1.queues: eth1 has 4 queues (0-3), so no queue 4-6, 9; choose among those "
        "or run `ethtool -L eth1 combined 10`"
    ]


def test_missing_queue_of_an_interface_with_one() -> None:
    text = connect("{queues: 1}", "{queues: 0}")
    assert refusal(text, device("eth1", driver="veth"), device("eth2")) == [
        "x.yaml:2: interfaces.eth1.queues: eth1 has 1 queue (0), so no queue 1; choose among those or run "
        "`ethtool -L eth1 rx 2 tx 2`"
    ]


def test_too_few_tx_queues() -> None:
    devices = device("eth1", queues=2, tx_queues=1, driver="veth"), device("eth2", queues=2)
    assert refusal(connect(), *devices) == [
        "x.yaml:2: interfaces.eth1.queues: eth1 has 1 TX queue and a worker sends on the queue it receives "
        "from, here up to 1; run `ethtool -L eth1 rx 2 tx 2`"
    ]
    assert plan(connect("{queues: 0}", "{queues: 1}"), *devices).workers  # that one has its TX queue


@pytest.mark.parametrize(("driver", "command"), [("ice", "combined 4"), ("veth", "rx 4 tx 4")])
def test_unequal_queues_that_ethtool_mends(driver: str, command: str) -> None:
    assert refusal(connect(), device("eth1", queues=4), device("eth2", driver=driver)) == [
        "x.yaml:5: paths.wire.connect: 4 queues of eth1 but 1 of eth2 are selected, and a worker needs "
        f"one of each: run `ethtool -L eth2 {command}` or select 1 in interfaces.eth1.queues"
    ]


def test_unequal_queues_of_a_path_that_routes() -> None:
    text = "interfaces: {eth1: , eth2: , eth3: }\npaths: {lan: {route: [eth1, eth2, eth3]}}\n"
    devices = device("eth1", queues=2), device("eth2", queues=4), device("eth3", queues=1)
    assert refusal(text, *devices) == [
        "x.yaml:2: paths.lan.route: 4 queues of eth2 but 1 of eth3 are selected, and a worker needs "
        "one of each: run `ethtool -L eth3 combined 4` or select 1 in interfaces.eth2.queues"
    ]


def test_unequal_queues_that_a_selection_mends() -> None:
    text = connect("{queues: [0, 1]}")
    assert refusal(text, device("eth1", queues=4), device("eth2", queues=3)) == [
        "x.yaml:5: paths.wire.connect: 3 queues of eth2 but 2 of eth1 are selected, and a worker needs "
        "one of each: select 3 in interfaces.eth1.queues or select 2 in interfaces.eth2.queues"
    ]


@pytest.mark.parametrize(
    ("size", "mtu", "text"),
    [
        (2048, 3818, "set umem.frame_size: 4096 or run `ip"),
        (2048, 9000, "run `ip"),
        (4096, 9000, "run `ip"),
    ],
)
def test_mtu_that_does_not_fit(size: int, mtu: int, text: str) -> None:
    config_text = connect(rest=f"umem: {{frame_size: {size}}}")
    largest = 1770 if size == 2048 else 3818
    unable = "the driver of eth1 (ice) receives no packets that take several (rx-sg)"
    untold = "of eth1 the kernel does not tell (before 6.3) whether packets may take several"
    for features, why in ((None, untold), (Features(frozenset({"basic"}), 0), unable)):
        big = device("eth2", mtu=mtu, features=ABLE)
        assert refusal(config_text, device("eth1", features=features), big) == [
            f"x.yaml:3: interfaces.eth2: MTU {mtu} does not fit frames of {size} bytes, which take up to "
            f"{largest}, and {why}; {text} link set dev eth2 mtu {largest}`"
        ]


ABLE = Features(frozenset({"basic", "redirect", "rx-sg"}), 0)


@pytest.mark.parametrize(("size", "one", "most"), [(2048, 1770, 32234), (4096, 3818, 65513)])
def test_packets_take_several_frames_where_they_have_to(size: int, one: int, most: int) -> None:
    text = connect(rest=f"umem: {{frame_size: {size}}}")
    for mtu, several in ((1500, False), (one, False), (one + 1, True), (9000, True), (most, True)):
        devices = device("eth1", features=ABLE), device("eth2", mtu=mtu, features=ABLE)
        assert {worker.multi_buffer for worker in plan(text, *devices).workers} == {several}, mtu
    devices = device("eth1", features=ABLE), device("eth2", mtu=most + 1, features=ABLE)
    assert refusal(text, *devices) == [
        f"x.yaml:3: interfaces.eth2: MTU {most + 1} does not fit 18 frames of {size} bytes, the most that a "
        f"packet may take; run `ip link set dev eth2 mtu {most}`"
    ]


@pytest.mark.parametrize(("segments", "mtu"), [(0, 9000), (1, 9000), (2, 9000), (1, 1500)])
def test_zero_copy_that_cannot_take_as_many_frames(segments: int, mtu: int) -> None:
    able = Features(ABLE.xdp | {"xsk-zerocopy"}, segments)
    devices = device("eth1", mtu=mtu, features=able), device("eth2", mtu=9000, features=ABLE)
    (said,) = refusal(connect("{mode: zerocopy}"), *devices)
    assert said.startswith("x.yaml:2: interfaces.eth1.mode: with zero-copy eth1 takes ")
    assert f"of at most {7658 if segments == 2 else 3818} with" in said and "mode: auto" in said


def test_a_path_that_insists_on_zero_copy_wants_its_programs_in_the_drivers() -> None:
    devices = device("eth1"), device("eth2")
    assert [each.attach for each in plan(connect("{mode: zerocopy}"), *devices).interfaces] == ["native"] * 2
    assert refusal(connect("{mode: zerocopy}", "{attach: generic}"), *devices) == [
        "x.yaml:3: interfaces.eth2.attach: eth1 insists on zero-copy, for which the program has to be in the "
        "driver; set interfaces.eth2.attach: native, or interfaces.eth1.mode: auto"
    ]


@pytest.mark.parametrize(
    ("segments", "mode"), [(0, "auto"), (1, "auto"), (2, "copy"), (3, "auto"), (18, "auto")]
)
def test_auto_does_not_ask_for_a_zero_copy_that_sends_too_little(segments: int, mode: str) -> None:
    able = Features(ABLE.xdp | {"xsk-zerocopy"}, segments)
    made = plan(connect(), device("eth1", mtu=9000, features=able), device("eth2", features=ABLE))
    assert made.workers[0].ports[0].mode == mode
    if segments > 2:
        strict = plan(
            connect("{mode: zerocopy}"),
            device("eth1", mtu=9000, features=able),
            device("eth2", features=ABLE),
        )
        assert strict.workers[0].ports[0].mode == "zerocopy"


def test_a_plan_without_a_word_of_several_frames_is_read() -> None:
    worker = plan(connect(), device("eth1"), device("eth2")).workers[0]
    text = worker.to_json().replace(', "multi_buffer": false', "")
    assert "multi_buffer" not in text and WorkerPlan.from_json(text) == worker


def test_cpus_that_are_not_ours() -> None:
    text = connect(path=", cpus: [0, 2, 8-9, 2]")
    assert refusal(text, device("eth1"), device("eth2"), cpus=(0, 1, 4)) == [
        "x.yaml:5: paths.wire.cpus: this process may not use CPU 2, 8-9; it may use 0-1, 4"
    ]


def test_all_problems_at_once_in_order_of_lines() -> None:
    text = connect("{queues: 7}", "{}", ", cpus: 5", "umem: {frame_size: 2048}")
    lines = refusal(text, device("eth1", mtu=2000), device("eth2", queues=2, mtu=2000))
    assert [line.split(": ")[:2] for line in lines] == [
        ["x.yaml:2", "interfaces.eth1"],
        ["x.yaml:2", "interfaces.eth1.queues"],
        ["x.yaml:3", "interfaces.eth2"],
        ["x.yaml:5", "paths.wire.connect"],
        ["x.yaml:5", "paths.wire.cpus"],
    ]


# ---- what waits -----------------------------------------------------------------------------------

THREE = """\
interfaces: {eth1: {}, eth2: {}, eth3: {}}
paths:
  wire: {connect: [eth1, eth2], fallback: drop, cpus: CPUS}
  echo: {reflect: eth3}
"""


def test_a_path_that_cannot_run_waits_and_its_neighbours_run() -> None:
    made = plan(THREE.replace("CPUS", "auto"), device("eth2"), device("eth3"))
    (waiting,) = made.waiting
    assert waiting.name == "wire"
    assert [str(problem) for problem in waiting.problems] == [
        "x.yaml:1: interfaces.eth1: no such interface in this network namespace; `ip -br link` lists them"
    ]
    assert [worker.name for worker in made.workers] == ["echo/0"]
    assert cpus_of(made) == {"echo/0": 0}  # who waits takes no CPU from anybody


def test_the_fallback_of_a_waiting_path_holds_on_what_is_there_of_it() -> None:
    made = plan(THREE.replace("CPUS", "auto"), device("eth2", mtu=9000), device("eth3"))
    assert [(one.name, one.fallback, one.path) for one in made.interfaces] == [
        ("eth2", "drop", "wire"),
        ("eth3", "pass", "echo"),
    ]
    assert len(made.waiting[0].problems) == 2


def test_nothing_waits_where_nothing_is_wrong() -> None:
    made = plan(connect(), device("eth1"), device("eth2"))
    assert made.waiting == ()
    assert made.insist() is made


def test_insisting_names_every_reason_of_every_waiting_path() -> None:
    made = plan(THREE.replace("CPUS", "auto"), device("eth1"))
    assert [path.name for path in made.waiting] == ["wire", "echo"]
    assert made.workers == ()
    assert [line.split(": ")[1] for line in refusal(THREE.replace("CPUS", "auto"), device("eth1"))] == [
        "interfaces.eth2",
        "interfaces.eth3",
    ]


def test_what_no_interface_can_mend_is_refused_at_once_with_the_reasons_of_who_waits() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(THREE.replace("CPUS", "[0, 5]"), device("eth1"), device("eth2"))
    assert str(caught.value).splitlines() == [
        "x.yaml:1: interfaces.eth3: no such interface in this network namespace; `ip -br link` lists them",
        "x.yaml:3: paths.wire.cpus: this process may not use CPU 5; it may use 0-1",
    ]


def test_waiting_paths_compare_by_their_reasons() -> None:
    one, same = (plan(connect(), device("eth1")).waiting for _ in range(2))
    assert one == same
    assert one != plan(connect(), device("eth2")).waiting
    assert one != (WaitingPath("wire", ()),)


# ---- the way to this machine ----------------------------------------------------------------------

DEFAULT_ROUTE = (
    "eth1 carries the default route: xskd would take the packets that this machine itself, and you, are "
    "reached by; choose another interface, or if that is what you want write allow_default_route: true"
)


def test_the_interface_of_the_default_route_is_refused_and_gets_no_program() -> None:
    devices = device("eth1", default_route=True), device("eth2")
    assert refusal(connect(), *devices) == [f"x.yaml:2: interfaces.eth1: {DEFAULT_ROUTE}"]
    made = plan(connect(), *devices)
    assert [one.name for one in made.interfaces] == ["eth2"]
    assert made.workers == ()


def test_the_default_route_is_taken_where_the_file_says_so() -> None:
    devices = device("eth1", default_route=True), device("eth2", default_route=True)
    made = plan(connect("{allow_default_route: true}"), *devices)
    assert [str(problem.key) for problem in made.waiting[0].problems] == ["interfaces.eth2"]
    assert [one.name for one in made.interfaces] == ["eth1"]
    allowed = plan(connect("{allow_default_route: true}", "{allow_default_route: true}"), *devices)
    assert allowed.waiting == ()
    assert [worker.name for worker in allowed.workers] == ["wire/0"]


# ---- what a worker loads --------------------------------------------------------------------------


def test_importing_the_plan_loads_no_library_of_the_supervisor() -> None:
    code = "import sys, xskd.plan; print(*{'pydantic', 'pyroute2', 'yaml'} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "\n"


def test_without_an_interface_its_path_waits_and_the_others_run() -> None:
    text = "interfaces: {eth1: , eth2: , eth3: }\npaths: {a: {connect: [eth1, eth2]}, b: {reflect: eth3}}\n"
    made = plan(text, device("eth1"), device("eth2"), device("eth3"))
    why = Problem("x.yaml", 1, "interfaces.eth2", "has another program")
    less = made.without({"eth2": why})
    assert [worker.name for worker in less.workers] == ["b/0"]
    assert [member.name for member in less.interfaces] == ["eth1", "eth3"]
    assert less.waiting == (WaitingPath("a", (why,)),)
    assert less.problems == (why,)
    assert made.without({}) == made


def test_what_an_interface_has_kept_is_in_the_plan() -> None:
    made = plan(connect(path=", fallback: drop"), device("eth1"), device("eth2"))
    kept = replace(made.interfaces[0], fallback="pass")
    assert [member.fallback for member in made.with_kept(kept).interfaces] == ["pass", "drop"]


def test_an_interface_that_is_not_there_keeps_its_place_in_the_path() -> None:
    (there,) = plan(connect(), device("eth2")).interfaces
    assert (there.members, there.own) == ((0, 12), 1)
