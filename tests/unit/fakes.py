"""What tests of the control plane share: plans, and stand-ins for all that is outside of the supervisor.

Nothing here sleeps: a StillLoop never lets a timer fire, and shows which were set.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xskd import config, inheritance, nic, notify, programs, slot, store
from xskd.crew import Crew
from xskd.daemon import Supervisor
from xskd.errors import XdpError, XskError
from xskd.features import Features
from xskd.machine import Outlook
from xskd.netdev import NetDevice
from xskd.plan import Plan, WorkerPlan, make_plan
from xskd.programs import NO_VERDICTS
from xskd.uapi import Statistics
from xskd.xdp import RuleTally, Settings, Verdicts

PREPARED = {"event": "prepared"}
BOUND = {
    "event": "bound",
    "ports": [{"mode": "copy", "refused": 95, "retries": 0}] * 2,
    "found": None,
    "gap": None,
}
FOUND = {"waiting": 5, "unsent": 4, "quarantined": 0, "undone": 0, "freed": 0}
ADOPTED = BOUND | {"found": FOUND, "gap": 0.25}
YIELDED = {"event": "yielded"}
STOPPED = {"event": "stopped", "drained": True, "frames": {}, "unaccounted": 0, "contradictions": 0}


def failed(error: str, **more: bool) -> dict[str, Any]:
    return {"event": "failed", "error": error, **more}


MIXED = failed("bind(eth2 queue 0): EOPNOTSUPP", copy=True)
TOO_OLD = failed("mmap(ring): EBUSY", too_old=True, copy=False)


# ---- plans ----------------------------------------------------------------------------------------


def device(
    name: str,
    *,
    queues: int = 1,
    tx_queues: int | None = None,
    max_queues: int | None = None,
    mtu: int = 1500,
    driver: str = "ice",
    node: int | None = None,
    ifindex: int | None = None,
    up: bool = True,
    carrier: bool = True,
    default_route: bool = False,
    xdp_prog_id: int | None = None,
    features: Features | None = None,
) -> NetDevice:
    return NetDevice(
        name=name,
        ifindex=int(name[-1]) + 10 if ifindex is None else ifindex,
        mtu=mtu,
        up=up,
        carrier=carrier,
        driver=driver,
        mac="02:00:00:00:00:01",
        queues=queues,
        tx_queues=queues if tx_queues is None else tx_queues,
        numa_node=node,
        xdp_prog_id=xdp_prog_id,
        default_route=default_route,
        max_queues=queues if max_queues is None else max_queues,
        features=features,
    )


def outlook(
    text: str, *devices: NetDevice, cpus: tuple[int, ...] = (0, 1), nodes: Mapping[int, int] | None = None
) -> Outlook:
    loaded = config.parse(text, "x.yaml")
    found: dict[str, NetDevice | None] = dict.fromkeys(loaded.interfaces)
    found |= {d.name: d for d in devices}
    return Outlook(loaded, found, make_plan(loaded, found, cpus, nodes))


def plan(
    text: str, *devices: NetDevice, cpus: tuple[int, ...] = (0, 1), nodes: Mapping[int, int] | None = None
) -> Plan:
    return outlook(text, *devices, cpus=cpus, nodes=nodes).plan


def connect(eth1: str = "{}", eth2: str = "{}", path: str = "", rest: str = "") -> str:
    """A configuration of five lines, then `rest`: interfaces on 2 and 3, path `wire` on 5."""
    lines = ["interfaces:", f"  eth1: {eth1}", f"  eth2: {eth2}", "paths:"]
    return "\n".join([*lines, f"  wire: {{connect: [eth1, eth2]{path}}}", rest])


def wire(queues: int = 1, text: str | None = None) -> Plan:
    """The plan of `connect` on two interfaces with so many queues."""
    return plan(text or connect(), device("eth1", queues=queues), device("eth2", queues=queues))


# ---- time -----------------------------------------------------------------------------------------


class StillLoop(asyncio.SelectorEventLoop):
    """A loop whose timers are only written down, and that asks its executor on the spot."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[tuple[float, Any]] = []

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        if args and isinstance(args[0], asyncio.Future):  # asyncio's own, of wait_for
            return super().call_later(delay, callback, *args, context=context)
        self.timers.append((delay, args[0] if args else None))
        return super().call_later(86400, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


# ---- processes ------------------------------------------------------------------------------------


class FakePeer:
    """A worker's process that does nothing but what a test says."""

    pid: int | None = 4711
    stopped = False

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self.link, self.far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.setblocking(False)
        self.far_end.setblocking(False)
        self.pidfd, self._end = os.pipe()
        self.error: str | None = None
        self.order: object = None
        self.messages: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.plans: list[WorkerPlan] = []  # that it was told to tune to
        self.killed = self.closed = False
        self.hung_up = False

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        with suppress(BlockingIOError):
            while self.link.recv(1):  # a byte only says that there are messages
                pass
        messages, self.messages = self.messages, []
        return messages, not self.hung_up

    def tell(self, verb: str, **more: Any) -> None:
        self.told.append(verb)
        if verb == "tune":
            self.plans.append(WorkerPlan.from_json(more["plan"]))

    def kill(self) -> None:
        self.killed = True

    def exit_cause(self) -> str | None:
        return "unknown"

    def let_go(self) -> None:
        assert not self.closed
        self.closed = True
        self.link.close()
        os.close(self.pidfd)

    def close(self) -> bool:
        self.let_go()
        return True

    def bury(self) -> None:
        """What the test itself holds."""
        if not self.closed:
            self.close()
        self.far_end.close()
        os.close(self._end)


class FakeProcess(FakePeer):
    """One that this supervisor has started."""

    made: ClassVar[list[FakeProcess]] = []
    refuse: ClassVar[Exception | None] = None
    undying: ClassVar[bool] = False

    def __init__(self, plan: WorkerPlan, descriptors: Sequence[int], *, adopt: bool) -> None:
        if FakeProcess.refuse is not None:
            raise FakeProcess.refuse
        super().__init__(plan)
        self.adopt = adopt
        self.works = False
        self.inodes = [os.fstat(fd).st_ino for fd in descriptors]
        self.cause: str | None = None
        FakeProcess.made.append(self)
        self.pid = len(FakeProcess.made)

    def end(self, cause: str) -> None:
        """Its pidfd says that it is dead."""
        self.cause = cause
        os.write(self._end, b"x")

    def exit_cause(self) -> str | None:
        return self.cause

    def has_worked(self, seconds: float) -> bool:
        return self.works

    def close(self) -> bool:
        return super().close() and not FakeProcess.undying


# ---- the kernel -----------------------------------------------------------------------------------


class FakeProgram:
    """A program with its XSKMAP; `on` has those that are attached."""

    made: ClassVar[list[FakeProgram]] = []
    on: ClassVar[dict[str, FakeProgram]] = {}
    refuse: ClassVar[dict[str, str]] = {}  # why an interface takes none
    frozen: ClassVar[set[str]] = set()  # calls that the kernel refuses
    native_refused = took_over = None
    replaced = False
    attach_mode: str | None = None
    renewed = 0  # times
    id = 7

    def __init__(self, queues: int, *, fallback: str = "pass") -> None:
        self.queues, self.fallback = queues, fallback
        self.sockets: dict[int, int] = {}  # inodes
        self.full = self.closed = False
        self.said: list[str] = []  # calls that change its answers, in order
        self.settings: Settings | None = None
        self.image: bytes | None = None
        self.lanes: tuple[set[int], set[int]] = set(), set()
        self.tallies: tuple[RuleTally, ...] = ()  # of the rules in force
        self.fds = {name: os.memfd_create(name) for name in ("link", "xsks", "fallback", "verdicts")}
        FakeProgram.made.append(self)

    @classmethod
    def adopt(
        cls, interface: str, queues: int, descriptors: Mapping[str, int], *, ifindex: int
    ) -> FakeProgram:
        for fd in descriptors.values():
            os.close(fd)
        if interface in cls.refuse:
            raise XdpError("adopt", interface=interface, detail=cls.refuse[interface])
        return cls.on[interface]

    def attach(self, interface: str, mode: str, *, ifindex: int) -> None:
        if interface in self.refuse:
            raise XdpError("BPF_LINK_CREATE", interface=interface, detail=self.refuse[interface])
        self.interface, self.ifindex = interface, ifindex
        self.attach_mode = "native" if mode == "auto" else mode
        self.on[interface] = self

    def descriptors(self) -> dict[str, int]:
        return self.fds

    def renew(self, interface: str) -> None:
        self.renewed += 1

    def insert(self, queue: int, xsk: socket.socket, *, replace: bool = False) -> None:
        inode = os.fstat(xsk.fileno()).st_ino
        if self.full or (queue in self.sockets and not replace):
            raise XdpError("BPF_MAP_UPDATE_ELEM(xsks)", detail=f"queue {queue}")
        self.sockets[queue] = inode

    def remove(self, queue: int) -> None:
        self.sockets.pop(queue, None)

    def set_fallback(self, fallback: str) -> None:
        self.fallback = fallback

    def configure(self, settings: Settings) -> None:
        self._says("configure")
        before, self.settings = self.settings, settings
        if before and (before.kind, before.ports, before.own) != (
            settings.kind,
            settings.ports,
            settings.own,
        ):
            self.lanes = set(), set()

    def install(self, image: bytes | None) -> tuple[RuleTally, ...]:
        self._says("install")
        counted, self.tallies = self.tallies, ()
        self.image = image
        return counted

    def open_lanes(self, lanes: Collection[int], multi_buffer: Collection[int] = ()) -> None:
        self._says("open_lanes")
        self.lanes = set(lanes), set(multi_buffer)

    def _says(self, call: str) -> None:
        if call in self.frozen:
            raise XdpError(call, detail="the kernel refuses")
        self.said.append(call)

    def rule_tallies(self) -> tuple[RuleTally, ...]:
        return self.tallies

    def verdicts(self) -> Verdicts:
        return NO_VERDICTS

    def verdict_bytes(self) -> Verdicts:
        return NO_VERDICTS

    def unroutable(self) -> dict[str, int]:
        return {"not_ip": 0}

    def unparsed(self) -> int:
        return 0

    def detach(self) -> None:
        del self.on[self.interface]

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        for fd in self.fds.values():
            os.close(fd)


class FakeSystemd:
    """sd_notify with a descriptor store; `told` is all else that was said."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.told: list[str] = []
        self.polled: set[str] = set()  # stored without FDPOLL=0: systemd would throw them away

    def notify(self, text: str, fds: Sequence[int] = ()) -> bool:
        fields = dict(line.partition("=")[::2] for line in text.splitlines())
        if "FDSTORE" in fields:
            (fd,) = fds
            assert fields["FDNAME"] not in self.kept, "systemd keeps both, and hands down both"
            self.kept[fields["FDNAME"]] = os.dup(fd)
            if fields.get("FDPOLL") != "0":
                self.polled.add(fields["FDNAME"])
        elif "FDSTOREREMOVE" in fields:
            if (fd := self.kept.pop(fields["FDNAME"], -1)) >= 0:
                os.close(fd)
        else:
            self.told.append(text)
        return True

    def hand_down(self) -> dict[int, str]:
        return {os.dup(fd): name for name, fd in self.kept.items()}

    def close(self) -> None:
        for fd in self.kept.values():
            os.close(fd)


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSystemd]:
    """No process, socket, program or systemd is real from here on; no store either, until `with_store`.

    Whatever of them, and of stages, a test leaves open is closed after it.
    """
    systemd = FakeSystemd()
    Stage.made = []
    FakeProcess.made, FakeProcess.refuse, FakeProcess.undying = [], None, False
    FakeProgram.made, FakeProgram.on, FakeProgram.refuse, FakeProgram.frozen = [], {}, {}, set()
    monkeypatch.setattr(slot, "WorkerProcess", FakeProcess)
    monkeypatch.setattr(slot, "make_socket", lambda *_: socket.socket(socket.AF_UNIX))
    monkeypatch.setattr(slot, "read_statistics", lambda _: Statistics(rx_dropped=1))
    monkeypatch.setattr(programs, "Program", FakeProgram)
    monkeypatch.setattr(nic, "read", lambda _: {})
    monkeypatch.setattr(store, "notify", systemd.notify)
    monkeypatch.setattr(store, "listen_fds_with_names", systemd.hand_down)
    monkeypatch.setattr(notify, "notify", systemd.notify)
    # Else an active store that inherits nothing ends every process of the cgroup that the tests run in.
    monkeypatch.setattr(inheritance, "_end_strays", lambda _: None)
    for name in ("NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield systemd
    finally:
        for stage in Stage.made:
            stage.close()
        for process in FakeProcess.made:
            process.bury()
        for program in FakeProgram.made:
            if not program.closed:
                program.close()
        systemd.close()


def with_store(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """From here on there is a store."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory))
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody")


def in_maps() -> list[set[int]]:
    """The queues that have a socket, for each program in order of interfaces."""
    return [set(program.sockets) for _, program in sorted(FakeProgram.on.items())]


def refused(call: str = "socket(AF_XDP)") -> XskError:
    return XskError(call, interface="eth1", queue=0, errno=1)


class Stage:
    """A crew, and a loop that runs only while a test says so."""

    made: ClassVar[list[Stage]] = []
    crew: Crew

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=StillLoop)
        Stage.made.append(self)

    def do(self, action: Callable[[], Any]) -> Any:
        """Call it inside of the loop, and let everything happen that follows from it at once."""

        async def doing() -> Any:
            done = action()
            for _ in range(60):
                await asyncio.sleep(0)
            return done

        return self.runner.run(doing())

    @property
    def timers(self) -> list[tuple[float, Any]]:
        loop = self.runner.get_loop()
        assert isinstance(loop, StillLoop)
        return loop.timers

    def close(self) -> None:
        """Close the loop and the workers' places; again is no error."""
        self.runner.close()
        while self.crew.slots:
            self.crew.slots.popitem()[1].close()


def resting(text: str, *devices: NetDevice) -> Supervisor:
    """A supervisor whose plan runs, had anybody started it: every worker has its place and no process."""
    seen = outlook(text, *devices)
    made = Supervisor(seen, Path("x.yaml"), store.Store())
    made.plan = seen.plan
    made.crew.slots = {worker.name: slot.Slot(worker) for worker in seen.plan.workers}
    return made
