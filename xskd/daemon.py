"""The supervisor: starts what the plan says, watches it, starts again what dies, stops it in order.

It holds the rights and every descriptor that matters, and never sees a packet. Everything that happens (a
message, a death, a signal, a due respawn) becomes an event in one queue, and one loop acts on them, so no
handler ever runs in the middle of another. It must never block: no wait without a deadline, no socket
without O_NONBLOCK. docs/decisions/0002-attach-first.md says why programs are attached before workers bind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from dataclasses import dataclass

from xskd import __version__, notify
from xskd.errors import XdpError, XskdError, XskError, errno_name
from xskd.plan import InterfacePlan, Plan
from xskd.slot import Slot
from xskd.spawn import WorkerProcess
from xskd.status import DaemonStatus, InterfaceStatus, describe
from xskd.xdp import Program, Verdicts

START_SECONDS = 20.0  # for a worker to bind: EBUSY may take 5 of them, pinning much memory some more
STOP_SECONDS = 3.0  # for all workers to drain; then they are killed
STALLED_SECONDS = 3.0  # without a heartbeat; a healthy loop beats at least every 0.1 s
TICK_SECONDS = 0.5

log = logging.getLogger("xskd")


class StartError(XskdError):
    """Nothing could be started; the lines say why."""


@dataclass(frozen=True)
class Said:
    """A worker's channel is readable."""

    slot: Slot
    process: WorkerProcess


@dataclass(frozen=True)
class Exited:
    """A worker's process has ended."""

    slot: Slot
    process: WorkerProcess


@dataclass(frozen=True)
class Late:
    """A worker had its time to bind."""

    slot: Slot
    process: WorkerProcess


@dataclass(frozen=True)
class Due:
    """A worker's pause after a death is over."""

    slot: Slot


@dataclass(frozen=True)
class Tick:
    """Time to look at heartbeats and to tell systemd."""


@dataclass(frozen=True)
class Stop:
    """Somebody wants the daemon to end."""

    why: str


Event = Said | Exited | Late | Due | Tick | Stop


class Supervisor:
    """Runs a plan until told to stop. One instance, one plan, one `run`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.slots = {worker.name: Slot(worker) for worker in plan.workers}
        self.programs: dict[str, Program] = {}
        self.ready = False
        self._stopping = False
        self._started = time.time()
        self._watchdog = notify.watchdog_interval()
        self._last_text = ""

    async def run(self) -> None:
        """Start, forward, and stop in order when a Stop event comes. StartError if nothing can be started."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.events.put_nowait, Stop(signal.Signals(number).name))
        try:
            self._attach_programs()
            for slot in self.slots.values():
                self._spawn(slot)
            self.events.put_nowait(Tick())
            while not self._stopping:
                self.act(await self.events.get())
            await self._drain()
        finally:
            self._close()

    def act(self, event: Event) -> None:
        """Do what one event asks for. Raises StartError when the first start has failed for good."""
        match event:
            case Said(slot, process) if slot.process is process:
                self._hear(slot, process)
            case Exited(slot, process) if slot.process is process:
                self._hear(slot, process)
                if slot.process is process:  # its last words may have led to another one
                    cause = process.exit_cause() or "unknown"
                    self._bury(slot, cause, process.error or f"the worker process ended: {cause}")
            case Late(slot, process) if slot.process is process and slot.state == "starting":
                self._bury(slot, "start_timeout", f"not bound within {START_SECONDS:g} s")
            case Due(slot) if slot.state == "backoff" and not self._stopping:
                self._spawn(slot)
            case Tick():
                self._tick()
            case Stop(why):
                log.info("stopping: %s", why)
                self._stopping = True
            case _:
                pass  # about a process that is no longer there
        self._consider_ready()
        self._tell()

    def status(self) -> DaemonStatus:
        """The picture of this moment."""
        return DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            ready=self.ready,
            text=self._text(),
            interfaces=tuple(self._interface(plan) for plan in self.plan.interfaces),
            workers=tuple(slot.status() for slot in self.slots.values()),
        )

    # ---- starting -------------------------------------------------------------------------------

    def _attach_programs(self) -> None:
        """Attach with an empty XSKMAP: until a worker is bound, packets take the path's fallback."""
        for plan in self.plan.interfaces:
            try:
                program = Program(plan.queues, fallback=plan.fallback)
                self.programs[plan.name] = program
                program.attach(plan.name, plan.attach, ifindex=plan.ifindex)
            except XdpError as error:
                raise StartError(str(error)) from error
            refused = f" ({errno_name(program.native_refused)})" if program.native_refused else ""
            log.info("%s: XDP program attached, %s mode%s", plan.name, program.attach_mode, refused)

    def _spawn(self, slot: Slot) -> None:
        loop = asyncio.get_running_loop()
        try:
            process = slot.spawn()
        except (XskError, OSError) as error:
            self._bury(slot, "spawn", str(error))
            return
        loop.add_reader(process.link, self.events.put_nowait, Said(slot, process))
        loop.add_reader(process.pidfd, self._exited, slot, process)
        loop.call_later(START_SECONDS, self.events.put_nowait, Late(slot, process))

    def _exited(self, slot: Slot, process: WorkerProcess) -> None:
        """The descriptor stays readable, so it is taken out before the event goes in."""
        self._forget(process)
        self.events.put_nowait(Exited(slot, process))

    def _hear(self, slot: Slot, process: WorkerProcess) -> None:
        messages, still_open = process.receive()
        if not still_open:  # a closed channel is readable for ever
            asyncio.get_running_loop().remove_reader(process.link)
        for message in messages:
            match message["event"]:
                case "bound" if not self._stopping:
                    self._bound(slot, message["ports"])
                case "failed":
                    process.error = message["error"]
                    if message["copy"] and not self._stopping:
                        self._settle_for_copy(slot)
                case "stopped":
                    _log_stopped(slot.name, message)

    def _bound(self, slot: Slot, ports: list[dict[str, object]]) -> None:
        """Every socket of the worker is bound: let packets come."""
        assert slot.process is not None
        slot.bound([str(port["mode"]) for port in ports])
        for port, made, said in zip(slot.plan.ports, slot.process.sockets, ports, strict=True):
            refused = said["refused"]
            why = f" (zero-copy refused: {errno_name(refused)})" if isinstance(refused, int) else ""
            log.info(
                "%s: %s queue %d bound, %s mode%s", slot.name, port.interface, port.queue, said["mode"], why
            )
            try:
                self.programs[port.interface].insert(port.queue, made)
            except XdpError as error:
                self._bury(slot, "xskmap", str(error))
                return

    def _settle_for_copy(self, slot: Slot) -> None:
        """Zero-copy on one interface of a path only, but a UMEM has one mode: start again, copy for all."""
        log.info("%s: not every interface has zero-copy; copy mode for all", slot.name)
        assert slot.process is not None
        self._forget(slot.process)
        slot.clear()
        slot.settle_for_copy()
        self._spawn(slot)

    def _consider_ready(self) -> None:
        """Ready once every worker has been bound or has failed; StartError if all have failed."""
        slots = self.slots.values()
        if self.ready or self._stopping or not all(s.restarts or s.state == "forwarding" for s in slots):
            return
        if not any(slot.state == "forwarding" for slot in slots):
            raise StartError("\n".join(f"{slot.name}: {slot.last_error}" for slot in slots))
        self.ready = True
        self._last_text = self._text()
        log.info("ready: %s", self._last_text)
        notify.ready(self._last_text)

    # ---- running --------------------------------------------------------------------------------

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(min(TICK_SECONDS, self._watchdog or TICK_SECONDS), self.events.put_nowait, Tick())
        for slot in self.slots.values():
            if slot.state == "forwarding" and slot.silent_for() > STALLED_SECONDS:
                self._bury(slot, "stalled", f"no heartbeat for {slot.silent_for():.1f} s")
        if self._watchdog is not None:
            notify.watchdog()

    def _tell(self) -> None:
        """Say what has changed, in the log and to systemd, as soon as it has."""
        text = self._text()
        if self.ready and text != self._last_text:
            self._last_text = text
            log.info("%s", text)
            notify.status(text)

    def _bury(self, slot: Slot, cause: str, why: str) -> None:
        """A worker is finished: no packets to its sockets, nothing left of it, another one after a pause."""
        self._withdraw(slot)
        if slot.process is not None:
            self._forget(slot.process)
        slot.last_error = why
        pause = slot.buried(cause)
        log.warning("%s: worker ended (%s): %s; next try in %.2f s", slot.name, cause, why, pause)
        asyncio.get_running_loop().call_later(pause, self.events.put_nowait, Due(slot))

    def _withdraw(self, slot: Slot) -> None:
        """Out of the XSKMAP: from here on the path's fallback decides."""
        for port in slot.plan.ports:
            self.programs[port.interface].remove(port.queue)

    def _forget(self, process: WorkerProcess) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(process.link)
        loop.remove_reader(process.pidfd)

    # ---- stopping -------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Out of the XSKMAP, let the workers send what they have, and hear where their frames are."""
        notify.stopping()
        waiting = {slot for slot in self.slots.values() if slot.process is not None}
        for slot in waiting:
            self._withdraw(slot)
        for slot in waiting:
            assert slot.process is not None
            slot.stop("stopping")
            slot.process.tell_to_stop()
        deadline = asyncio.get_running_loop().time() + STOP_SECONDS
        while waiting:
            left = deadline - asyncio.get_running_loop().time()
            try:
                event = await asyncio.wait_for(self.events.get(), max(left, 0))
            except TimeoutError:
                names = ", ".join(slot.name for slot in waiting)
                log.warning("not drained in %g s, killed: %s", STOP_SECONDS, names)
                return
            if isinstance(event, Said | Exited) and event.slot.process is event.process:
                self._hear(event.slot, event.process)
            if isinstance(event, Exited):
                waiting.discard(event.slot)

    def _close(self) -> None:
        """Nothing of ours stays behind: processes, sockets, then the programs."""
        for slot in self.slots.values():
            if slot.process is not None:
                self._forget(slot.process)
            slot.clear()
            slot.stop("stopped")
        for program in self.programs.values():
            program.close()
        self.programs.clear()

    # ---- telling --------------------------------------------------------------------------------

    def _text(self) -> str:
        return describe(
            [(slot.name, slot.state, {m for m in slot.modes if m}) for slot in self.slots.values()]
        )

    def _interface(self, plan: InterfacePlan) -> InterfaceStatus:
        program = self.programs.get(plan.name)
        return InterfaceStatus(
            name=plan.name,
            path=plan.path,
            queues=plan.queues,
            fallback=plan.fallback,
            attach_wanted=plan.attach,
            attach=program.attach_mode if program else None,
            verdicts=program.verdicts() if program else Verdicts(0, 0, 0),
        )


def _log_stopped(name: str, message: dict[str, object]) -> None:
    frames = message["frames"]
    assert isinstance(frames, dict)
    places = ", ".join(f"{count} {place}" for place, count in frames.items() if count)
    wrong = f"{message['unaccounted']} unaccounted, {message['contradictions']} contradictions"
    drained = "drained" if message["drained"] else "not drained"
    log.info("%s: stopped, %s; frames: %s; %s", name, drained, places, wrong)
