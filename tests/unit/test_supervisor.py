"""The supervisor: from the plan that runs to the plan that should, and what systemd hears of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    ADOPTED,
    BOUND,
    PREPARED,
    STOPPED,
    FakeProcess,
    FakeProgram,
    FakeSystemd,
    Stage,
    connect,
    device,
    failed,
    in_maps,
    installed,
    refused,
    with_store,
)

from xskd import config, daemon, machine
from xskd.config import Config
from xskd.daemon import Event, LinksChanged, StartError, Stop, Supervisor, Tick
from xskd.errors import ConfigError
from xskd.machine import Outlook
from xskd.netdev import NetDevice
from xskd.plan import Plan, make_plan
from xskd.store import Store

TWO_PATHS = """\
interfaces: {eth1: {}, eth2: {}, eth3: {}}
paths: {wire: {connect: [eth1, eth2]}, echo: {reflect: eth3}}
"""
ONE = BOUND | {"ports": BOUND["ports"][:1]}  # type: ignore[index]


class FakeWatch:
    """No news but those that a test tells."""

    def __init__(self, changed: Any) -> None:
        pass

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Scene(Stage):
    """A supervisor's whole `run` on a machine with these devices."""

    def __init__(self, directory: Path, systemd: FakeSystemd) -> None:
        super().__init__()
        self.systemd, self.file = systemd, directory / "x.yaml"
        self.devices: dict[str, NetDevice] = {}
        self.settled: list[Plan] = []
        self.settling: list[str] = []  # what goes wrong with settings

    def look(self, wanted: Config) -> Outlook:
        """What machine.look would see."""
        found = {name: self.devices.get(name) for name in wanted.interfaces}
        return Outlook(wanted, found, make_plan(wanted, found, (0, 1)))

    def have(self, *devices: NetDevice) -> None:
        """The machine has these interfaces from now on."""
        self.devices = {each.name: each for each in devices}

    def write(self, text: str) -> None:
        self.file.write_text(text)

    def start(self, text: str = connect(), *devices: NetDevice) -> Scene:
        self.have(*(devices or (device("eth1", queues=2), device("eth2", queues=2))))
        self.write(text)

        def settle(plan: Plan) -> list[str]:
            self.settled.append(plan)
            return self.settling

        self.supervisor = Supervisor(self.look(config.load(self.file)), self.file, Store(), settle)
        self.crew = self.supervisor.crew
        self.task = self.do(lambda: asyncio.get_running_loop().create_task(self.supervisor.run()))
        return self

    def act(self, *events: Event) -> None:
        for event in events:
            self.do(partial(self.supervisor.events.put_nowait, event))

    def change(self, *devices: NetDevice) -> None:
        self.have(*devices)
        self.act(LinksChanged())

    def reload(self, text: str | None = None, *, dry: bool = False) -> asyncio.Task[list[str]]:
        if text is not None:
            self.write(text)
        asking = self.supervisor.reload(dry=dry)
        task: asyncio.Task[list[str]] = self.do(lambda: asyncio.get_running_loop().create_task(asking))
        return task

    def process(self, name: str = "wire/0") -> Any:
        return self.supervisor.crew.slots[name].process

    def says(self, message: Mapping[str, Any], name: str = "wire/0") -> None:
        process = self.process(name)
        process.messages.append(message)
        self.do(lambda: process.far_end.send(b"x"))

    def ends(self, name: str = "wire/0", cause: str = "SIGKILL") -> None:
        process = self.process(name)
        process.end(cause)
        self.do(lambda: None)

    def forward(self, *names: str) -> Scene:
        for name in names or tuple(self.supervisor.crew.slots):
            self.says(PREPARED, name)
            self.says(BOUND if name.startswith("wire") else ONE, name)
        return self

    def states(self) -> dict[str, str]:
        return {name: slot.state for name, slot in self.supervisor.crew.slots.items()}

    def close(self) -> None:
        if hasattr(self, "task"):
            self.do(self.task.cancel)
            super().close()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scene]:
    with installed(monkeypatch) as systemd:
        made = Scene(tmp_path, systemd)
        monkeypatch.setattr(machine, "look", made.look)
        monkeypatch.setattr(daemon, "LinkWatch", FakeWatch)
        yield made


# ---- ready ----------------------------------------------------------------------------------------


def told(scene: Scene) -> list[str]:
    """What systemd was told, in order, but for the time that a start may take."""
    return [
        line
        for text in scene.systemd.told
        for line in text.splitlines()
        if not line.startswith(("EXTEND_TIMEOUT_USEC", "MONOTONIC_USEC"))
    ]


def test_ready_once_when_the_last_worker_is_bound(scene: Scene) -> None:
    scene.start().forward("wire/1")
    assert (scene.supervisor.ready, told(scene), in_maps()) == (False, [], [{1}, {1}])
    scene.forward("wire/0")
    scene.act(Tick())
    assert told(scene) == ["READY=1", "STATUS=1 path, 2 queues forwarding, copy mode"]
    assert in_maps() == [{0, 1}, {0, 1}]


def test_ready_with_what_works_when_the_rest_has_failed(scene: Scene) -> None:
    scene.start().forward("wire/0")
    scene.says(failed("bind(eth1 queue 1): EBUSY", copy=False), "wire/1")
    assert told(scene) == []  # the process may have more to say; its end decides
    scene.ends("wire/1", "exit 1")
    assert told(scene)[0] == "READY=1"
    assert scene.supervisor.crew.slots["wire/1"].last_error == "bind(eth1 queue 1): EBUSY"


def test_ready_with_what_works_when_a_path_must_wait(scene: Scene) -> None:
    scene.start(TWO_PATHS, device("eth1"), device("eth3")).forward()
    assert told(scene) == ["READY=1", "STATUS=1 path, 1 queue forwarding, copy mode; waiting: wire"]


def test_a_worker_that_has_to_wait_does_not_keep_the_others_from_being_ready(scene: Scene) -> None:
    scene.start(TWO_PATHS, *(device(f"eth{i}") for i in (1, 2, 3))).forward("echo/0")
    scene.change(device("eth1"), device("eth2", mtu=9000), device("eth3"))
    assert told(scene) == []
    scene.ends("wire/0", "exit 0")
    assert told(scene)[0] == "READY=1"


def test_nothing_to_be_had_is_a_start_error_with_every_reason(scene: Scene) -> None:
    scene.start(TWO_PATHS, *(device(f"eth{i}", queues=2) for i in (1, 2)))
    for name, error in (("wire/0", "no"), ("wire/1", "neither")):
        scene.says(failed(error), name)
        scene.ends(name, "exit 1")
    with pytest.raises(StartError) as caught:
        scene.task.result()
    assert str(caught.value).splitlines() == [
        "wire/0: no",
        "wire/1: neither",
        f"{scene.file}:1: interfaces.eth3: no such interface in this network namespace; "
        "`ip -br link` lists them",
    ]
    assert all(process.closed for process in FakeProcess.made)
    assert FakeProgram.on == {}


def test_a_first_start_where_every_path_waits_is_refused(scene: Scene) -> None:
    scene.start(connect(), device("eth1"))
    with pytest.raises(ConfigError, match="no such interface"):
        scene.task.result()
    assert FakeProgram.on == {}


def test_memory_or_sockets_not_to_be_had_count_as_a_failed_start(scene: Scene) -> None:
    FakeProcess.refuse = refused()
    scene.start(connect(), device("eth1"), device("eth2"))
    with pytest.raises(StartError, match=r"wire/0: socket\(AF_XDP\)\(eth1 queue 0\): EPERM"):
        scene.task.result()


def test_once_ready_the_death_of_all_is_no_start_error(scene: Scene) -> None:
    scene.start().forward()
    for name in ("wire/0", "wire/1"):
        scene.ends(name)
        assert told(scene)[-1].endswith(f"{name} (starting)")  # each is told at once, not with the next tick
    assert not scene.task.done()


# ---- carrier --------------------------------------------------------------------------------------


def test_ready_waits_for_a_carrier_that_the_program_cost(scene: Scene) -> None:
    here = device("eth1"), device("eth2")
    scene.start(connect(), *here)
    scene.change(device("eth1", carrier=False), device("eth2"))
    scene.forward()
    assert not scene.supervisor.ready
    scene.change(*here)
    assert scene.supervisor.ready


def test_ready_does_not_wait_for_a_carrier_that_was_never_there(scene: Scene) -> None:
    scene.start(connect(), device("eth1", carrier=False), device("eth2")).forward()
    assert told(scene)[1].endswith("copy mode; link: eth1 has no carrier")


def test_ready_waits_for_no_carrier_for_ever(scene: Scene) -> None:
    scene.start(connect(), device("eth1"), device("eth2"))
    scene.change(device("eth1", carrier=False), device("eth2"))
    scene.forward()
    scene.supervisor._began = time.monotonic() - daemon.CARRIER_SECONDS - 1
    scene.act(Tick())
    assert scene.supervisor.ready


def test_a_clock_that_is_set_is_no_time_that_has_passed(scene: Scene) -> None:
    scene.start(connect(), device("eth1"), device("eth2"))
    scene.change(device("eth1", carrier=False), device("eth2"))
    scene.forward()
    scene.supervisor._started -= 1_000_000
    scene.act(Tick())
    assert not scene.supervisor.ready


# ---- status ---------------------------------------------------------------------------------------


def test_status_tells_of_every_worker_and_interface_and_path(scene: Scene) -> None:
    scene.start(TWO_PATHS, device("eth1", queues=2), device("eth2", queues=2)).forward("wire/0")
    status = scene.supervisor.status()
    assert [(w.name, w.state, w.pid) for w in status.workers] == [
        ("wire/0", "forwarding", 1),
        ("wire/1", "starting", 2),
    ]
    assert [port.mode for w in status.workers for port in w.ports] == ["copy", "copy", None, None]
    assert [(i.name, i.path, i.queues, i.carrier, i.attach) for i in status.interfaces] == [
        ("eth1", "wire", 2, True, "native"),
        ("eth2", "wire", 2, True, "native"),
        ("eth3", "echo", 0, False, None),
    ]
    assert status.paths == ("wire", "echo")
    assert list(status.waiting) == ["echo"]
    assert "interfaces.eth3: no such interface" in status.waiting["echo"][0]


def test_only_a_program_that_was_never_ours_is_foreign(scene: Scene) -> None:
    scene.start(connect(), device("eth1"), device("eth2")).forward()
    scene.change(device("eth1", xdp_prog_id=FakeProgram.id), device("eth2", xdp_prog_id=FakeProgram.id + 1))
    assert [i.foreign_program for i in scene.supervisor.status().interfaces] == [False, True]
    scene.change(device("eth2"))  # ours is detached, and a look of before that still names it
    scene.supervisor.devices = {"eth1": device("eth1", xdp_prog_id=FakeProgram.id), "eth2": None}
    assert [i.foreign_program for i in scene.supervisor.status().interfaces] == [False, False]


def test_systemd_hears_of_a_link_as_soon_as_it_is_down(scene: Scene) -> None:
    scene.start(connect(), device("eth1"), device("eth2")).forward()
    scene.change(device("eth1", up=False, carrier=False), device("eth2", carrier=False))
    assert told(scene)[-1] == (
        "STATUS=1 path, 1 queue forwarding, copy mode; link: eth1 is down, eth2 has no carrier"
    )
    said = len(told(scene))
    scene.act(LinksChanged(), Tick())
    assert len(told(scene)) == said


# ---- stopping -------------------------------------------------------------------------------------


def test_a_stop_waits_for_what_the_workers_have_to_say(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.start().forward()
    with caplog.at_level(logging.INFO, "xskd"):
        scene.act(Stop("a test"))
        assert told(scene)[-2:] == ["STOPPING=1", "STATUS=draining and stopping"]
        assert [process.told[-1] for process in FakeProcess.made] == ["stop", "stop"]
        for name in ("wire/0", "wire/1"):
            assert not scene.task.done()
            scene.says(STOPPED, name)
            scene.ends(name, "exit 0")
    assert scene.task.result() is None
    assert set(scene.states().values()) == {"stopped"}
    assert FakeProgram.on == {}
    assert caplog.text.count("stopped, drained; frames: ; 0 unaccounted, 0 contradictions") == 2


def test_a_stop_does_not_wait_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "STOP_SECONDS", 0.05)
    scene.start().forward()
    scene.act(Stop("a test"))
    scene.runner.run(asyncio.wait_for(scene.task, 5))
    assert all(process.closed for process in FakeProcess.made)
    assert FakeProgram.on == {}


def test_with_a_store_a_stop_leaves_everything_to_a_successor(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_store(monkeypatch, tmp_path)
    scene.start().forward()
    scene.act(Stop("SIGTERM"))
    assert scene.task.result() is None
    assert not any(process.closed or "stop" in process.told for process in FakeProcess.made)
    assert in_maps() == [{0, 1}, {0, 1}]
    assert told(scene)[-1].startswith("STATUS=supervisor ends; 2 workers go on")
    heir = Scene(tmp_path, scene.systemd).start()
    assert [process.adopt for process in FakeProcess.made] == [False, False, True, True]
    assert heir.supervisor.crew.slots["wire/0"].predecessor is not None


def test_with_a_store_a_stop_ends_what_hangs(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_store(monkeypatch, tmp_path)
    scene.start().forward()
    FakeProcess.made[1].stopped = True
    scene.act(Stop("SIGTERM"))
    assert [process.killed for process in FakeProcess.made] == [False, True]


def test_a_successor_is_ready_when_it_has_taken_over_also_after_deaths_before(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_store(monkeypatch, tmp_path)
    scene.start(connect(), device("eth1"), device("eth2")).forward()
    scene.ends()
    scene.says(ADOPTED)
    scene.act(Stop("SIGTERM"))
    heir = Scene(tmp_path, scene.systemd).start(connect(), device("eth1"), device("eth2"))
    assert heir.supervisor.crew.slots["wire/0"].restarts == {"SIGKILL": 1}
    assert not heir.supervisor.ready
    heir.says(ADOPTED)
    assert heir.supervisor.ready


def test_a_start_that_fails_leaves_nothing_in_the_store(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_store(monkeypatch, tmp_path)
    scene.start(connect(), device("eth1"), device("eth2"))
    assert list(scene.systemd.kept) == ["interface eth1", "interface eth2"]
    scene.says(failed("no"))
    scene.ends()
    with pytest.raises(StartError):
        scene.task.result()
    assert scene.systemd.kept == {}


def test_what_happens_while_the_daemon_stops_gives_nobody_packets(scene: Scene) -> None:
    scene.start()
    scene.act(Stop("a test"))
    scene.says(BOUND, "wire/0")
    scene.says(failed("bind: EOPNOTSUPP", copy=True), "wire/1")
    assert in_maps() == [set(), set()]
    assert len(FakeProcess.made) == 2


def test_no_pause_that_ends_while_stopping_starts_a_worker(scene: Scene) -> None:
    scene.start().forward()
    scene.ends()
    scene.says(ADOPTED)
    scene.ends()
    made = len(FakeProcess.made)
    scene.act(Stop("a test"), scene.timers[-1][1])
    assert len(FakeProcess.made) == made


def test_a_signal_is_heard_without_the_byte_that_wakes_the_loop() -> None:
    """As where it cannot be written: the event comes with what wakes the loop next, a tick at the latest."""
    heard: list[Event] = []

    async def scene() -> None:
        with daemon._heeding(heard.append):
            signal.set_wakeup_fd(-1)
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(500):
                await asyncio.sleep(0.01)
                if heard:
                    return

    before = signal.getsignal(signal.SIGTERM)
    asyncio.run(scene())
    assert heard == [Stop("SIGTERM")]
    assert signal.getsignal(signal.SIGTERM) is before
