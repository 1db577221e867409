"""The supervisor: makes what runs into what should run, and keeps it so.

It holds the rights and every descriptor that matters, and never sees a packet. A start, a reload, a link
that changes and a predecessor's inheritance are one thing to it: there is a plan that runs and a plan that
should, and the difference is carried out. Everything that happens (a message, a death, a signal, a link)
becomes an event in one queue, and one loop acts on them, so no handler ever runs in the middle of another.
It must never block: no wait without a deadline, no socket without O_NONBLOCK, netlink in a thread of its own.

docs/decisions: 2 (programs are attached before workers bind), 7 (what outlives the supervisor), 8 (a broken
file never ends what forwards).
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from xskd import __version__, config, inheritance, logs, machine, notify
from xskd.aside import aside
from xskd.crew import Crew, Due, Exited, Late, Said, WorkerEvent
from xskd.difference import Difference, difference
from xskd.errors import ConfigError, Problem, XdpError, XskdError
from xskd.features import Features
from xskd.lanes import Lanes
from xskd.logs import about
from xskd.machine import Outlook
from xskd.neighbours import Neighbours
from xskd.nic import Nics
from xskd.picture import Pictures
from xskd.plan import InterfacePlan, Plan, WaitingPath
from xskd.programs import Programs
from xskd.refusals import Refusals
from xskd.slot import Slot
from xskd.status import DaemonStatus, Reloads, WorkerStatus, describe
from xskd.store import Store
from xskd.watch import LinkWatch

STOP_SECONDS = 4.0  # for all workers to end, a little more than each one has
TICK_SECONDS = 0.5
CARRIER_SECONDS = 10.0  # for links that lost their carrier when a program was attached
EXTEND_SECONDS = 60.0  # a start that takes longer is no slow NIC: the unit's timeout may end it
RELOAD_SECONDS = 60.0  # for everything a reload has started to work or fail

log = logging.getLogger("xskd")


class StartError(XskdError):
    """Nothing could be started; the lines say why."""


@dataclass(frozen=True)
class Tick:
    """Time to look at heartbeats and to tell systemd."""


@dataclass(frozen=True)
class LinksChanged:
    """Something about the machine's interfaces may be different."""


@dataclass(frozen=True)
class Reload:
    """Somebody wants the configuration read again; `dry`: only to know what that would do."""

    dry: bool = False
    answer: asyncio.Future[list[str]] | None = None


@dataclass(frozen=True)
class Looked:
    """A look at the machine is over; `reload` is what asked for it, None for a change of links."""

    outlook: Outlook | XskdError
    reload: Reload | None


@dataclass(frozen=True)
class Stop:
    """Somebody wants the daemon to end."""

    why: str


Event = WorkerEvent | Tick | LinksChanged | Reload | Looked | Stop


class Supervisor:
    """Runs what a configuration says until told to stop. One instance, one `run`.

    `settle` is called with the plan when metrics or log settings may have changed; it returns what went
    wrong.
    """

    def __init__(
        self, outlook: Outlook, file: Path, store: Store, settle: Callable[[Plan], list[str]] = lambda _: []
    ) -> None:
        self.file, self.store, self._settle = file, store, settle
        self.config, self.devices = outlook.config, outlook.devices
        self.plan = replace(outlook.plan, interfaces=(), workers=(), waiting=())  # what runs: nothing yet
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.programs = Programs(store)
        self.crew = Crew(self.programs, store, self.events.put_nowait)
        self.ready = False
        self.config_error: str | None = None  # why the file is not what runs
        self._first = outlook
        self._stopping = False
        self._started = time.time()  # to be told; nothing waits by a clock that somebody may set
        self._began = time.monotonic()
        self._watchdog = notify.watchdog_interval()
        self._told = self._saved = ""
        self._looking = self._look_again = False
        self._asked: deque[Reload] = deque()  # while there was a look already
        self._carriers: set[str] = set()  # interfaces whose carrier must be back before we are ready
        self._unsettled: list[tuple[Reload, list[str], list[str]]] = []  # with actions and problems
        self._reloads = Reloads(self._started)
        self.refusals = Refusals()
        self._nics = Nics(lambda: self.config.interfaces)
        self.lanes = Lanes(self.programs, self.crew, self._features)
        self.crew.captures.changed = self.lanes.review
        self._pictures = Pictures(self.programs, self.lanes, self._nics)
        self._neighbours = Neighbours(
            lambda: [
                n for path in self.config.paths.values() if path.kind == "route" for n in path.interfaces
            ]
        )

    async def run(self) -> None:
        """Start, forward, and stop in order when a Stop event comes. StartError if nothing can be started."""
        with _heeding(self.events.put_nowait):
            await self._run()

    async def _run(self) -> None:
        watch = LinkWatch(lambda: self.events.put_nowait(LinksChanged()))
        try:
            await watch.start()
            self._nics.start()
            self._neighbours.start()
            if not self._first.plan.workers and not self.store.inherited:
                self._first.plan.insist()
            self.plan = inheritance.take(self.store, self._first.plan, self.programs, self.crew)
            self._apply(self._first, for_good=True)
            self.events.put_nowait(Tick())
            while not self._stopping:
                self.act(await self.events.get())
            await self._end()
        except (StartError, ConfigError):
            self._close()  # what cannot work is not left to a successor
            raise
        except BaseException:
            if not self.store.active:  # a bug of ours is no reason to stop forwarding
                self._close()
            raise
        finally:
            self._nics.close()
            self._neighbours.close()
            await watch.close()

    def act(self, event: Event) -> None:
        """Do what one event asks for. Raises StartError when the first start has failed for good."""
        match event:
            case Said() | Exited() | Late() | Due() if not self._stopping:
                self.crew.act(event)
            case Tick():
                self._tick()
            case LinksChanged():
                self._look(None)
            case Reload():
                self._look(event)
            case Looked(outlook, reload):
                self._looking = False
                self._looked(outlook, reload)
                if self._asked:
                    self._look(self._asked.popleft())
                elif self._look_again:
                    self._look(None)
            case Stop(why):
                log.info("stopping: %s", why)
                self._stopping = True
            case _:
                pass
        self.lanes.review()
        self._save()  # before anybody is told: a successor must find what was promised
        self._consider_settled()
        self._consider_ready()
        self._tell()

    def status(self, *, new_marks: bool = False) -> DaemonStatus:
        """The picture of this moment; `new_marks`: the rings' high-water marks begin anew after it."""
        return DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            ready=self.ready,
            text=self._text(),
            config_error=self.config_error,
            paths=tuple(self.config.paths),
            waiting={path.name: [str(problem) for problem in path.problems] for path in self.plan.waiting},
            interfaces=tuple(
                self._pictures.interface(name, path, self.config, self.plan, self.devices.get(name))
                for path, wanted in self.config.paths.items()
                for name in wanted.interfaces
            ),
            workers=tuple(self._worker(slot, new_marks=new_marks) for slot in self._slots()),
            kernel=platform.release(),
            reloads=self._reloads,
            clients_refused=self.refusals.counts(),
        )

    async def reload(self, *, dry: bool = False) -> list[str]:
        """Read the file again and apply the difference; the actions, when they are done (`dry`: never).

        Raises ConfigError, and has changed nothing, if the file is bad; XskdError if something of the new
        configuration does not work, which is then tried again like everything else.
        """
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self.events.put_nowait(Reload(dry, answer))
        try:
            return await asyncio.wait_for(answer, RELOAD_SECONDS)
        except TimeoutError:
            raise XskdError(f"applied, but not all of it works after {RELOAD_SECONDS:g} s") from None

    # ---- looking at the machine -----------------------------------------------------------------

    def _look(self, reload: Reload | None) -> None:
        """Ask the kernel, in a thread; one look at a time, and whatever asks for another meanwhile waits.

        Two at once could end in the wrong order, and then an older file would be what runs.
        """
        if self._looking:
            if reload is None:
                self._look_again = True
            else:
                self._asked.append(reload)
            return
        self._looking = True
        if reload is None:
            self._look_again = False
        wanted = self.config

        def looking() -> Outlook:
            return machine.look(wanted if reload is None else config.load(self.file))

        def looked(done: asyncio.Future[Outlook]) -> None:
            error = done.exception()
            if error is not None and not isinstance(error, XskdError):
                error = XskdError(f"asking the kernel about interfaces: {error}")
            self.events.put_nowait(Looked(error or done.result(), reload))

        aside(looking).add_done_callback(looked)

    def _looked(self, found: Outlook | XskdError, reload: Reload | None) -> None:
        if isinstance(found, XskdError):
            self._refuse(found, reload)
            return
        if reload is None:
            if found.config is self.config:  # else the file was loaded anew meanwhile: this look is stale
                changed = [name for name in found.devices if found.devices[name] != self.devices.get(name)]
                self._apply(found, for_good=False)
                self.crew.hurry(changed)
            return
        actions = list(difference(self.plan, found.plan))
        if reload.dry:
            _answer(reload, actions)
            return
        notify.reloading()
        self._count_reload(success=True)
        for line in actions or ["nothing has changed"]:
            log.info("reload: %s", line)
        self.config_error = None
        problems = self._apply(found, for_good=True)
        self._unsettled.append((reload, actions, [*problems, *map(str, self.plan.problems)]))

    def _refuse(self, error: XskdError, reload: Reload | None) -> None:
        """Nothing is changed by a file that is wrong, or a kernel that does not answer."""
        for line in str(error).splitlines():
            log.error("%s%s", "reload: " if reload else "", line)
        if isinstance(error, ConfigError) and reload is not None and not reload.dry:
            self.config_error = str(error)
        if reload is not None and not reload.dry:
            self._count_reload(success=False)
        if reload is not None and reload.answer is not None and not reload.answer.done():
            reload.answer.set_exception(error)

    def _count_reload(self, *, success: bool) -> None:
        """A file was loaded, whether or not all in it can work now, or was not."""
        was = self._reloads
        self._reloads = Reloads(
            last=time.time(),
            generation=was.generation + success,
            success=was.success + success,
            failure=was.failure + (not success),
            last_successful=success,
        )

    # ---- from the plan that runs to the plan that should ----------------------------------------

    def _apply(self, outlook: Outlook, *, for_good: bool) -> list[str]:
        """Carry out the difference. Returns what went wrong.

        `for_good`: a worker that is no longer planned is forgotten; else its place waits for better times.
        """
        steps, errors = difference(self.plan, outlook.plan), []
        self._let_go(steps, outlook.plan, for_good=for_good)
        had_carrier = {d.name for d in outlook.devices.values() if d and d.carrier}
        refused: dict[str, Problem] = {}
        for plan in steps.attach:
            try:
                self.programs.attach(plan)
                self.crew.let_in(plan.name)
                self._carriers |= {plan.name} & had_carrier
                _warn_of_filter(outlook, plan)
                self.events.put_nowait(LinksChanged())  # attaching may change queues and carrier
            except XdpError as error:
                refused[plan.name] = outlook.config.problem(("interfaces", plan.name), str(error))
        self._renew(outlook)
        running = outlook.plan.without(refused)
        for plan, change in (
            *((plan, self.programs.set_fallback) for plan in steps.fallback),
            *((plan, self.programs.set_rules) for _, plan in steps.rules),
        ):
            try:
                change(plan)
            except XdpError as error:  # the next look tries again
                errors.append(str(error))
                running = running.with_kept(self.programs.plans[plan.name])
        self._set_to_work(difference(self.plan, running), outlook.plan, running)
        self._log_waiting(running.waiting)
        if steps.settings and (wrong := self._settle(outlook.plan)):
            errors += wrong
            running = replace(running, metrics_listen=self.plan.metrics_listen)  # the next look tries again
        for line in errors if for_good else ():
            log.error("%s", line)
        self.plan, self.devices, self.config = running, outlook.devices, outlook.config
        return errors

    def _let_go(self, steps: Difference, plan: Plan, *, for_good: bool) -> None:
        reasons = {path.name: str(path.problems[0].message) for path in plan.waiting}
        for worker in steps.stop:
            if worker.path in reasons:
                self.crew.park(worker.name, reasons[worker.path])
            elif for_good:
                self.crew.retire(worker.name)
            else:
                self.crew.park(worker.name, "its queue is not there any more")
        for worker in steps.rebuild:
            self.crew.rebuild(worker)
        for interface in steps.detach:
            self.programs.detach(interface.name)

    def _set_to_work(self, steps: Difference, planned: Plan, running: Plan) -> None:
        for _, worker in steps.tune:
            self.crew.tune(worker)
        for worker in steps.start:
            self.crew.start(worker)
        wanted = {worker.name for worker in planned.workers}
        reasons = {path.name: str(path.problems[0].message) for path in running.waiting}
        for worker in steps.stop:
            if worker.name in wanted:  # an interface of its path refused its program just now
                self.crew.park(worker.name, reasons[worker.path])

    def _renew(self, outlook: Outlook) -> None:
        """Programs of interfaces that have got queues since they were attached."""
        for name in self.programs.by_name:
            before, now = self.devices.get(name), outlook.devices.get(name)
            if before and now and now.ifindex == before.ifindex and now.queues > before.queues:
                try:
                    self.programs.renew(name)
                except XdpError as error:
                    log.warning("%s: new queues: %s", name, error, extra=about(interface=name))

    def _features(self, interface: str) -> Features | None:
        device = self.devices.get(interface)
        return device.features if device else None

    def _log_waiting(self, waiting: Sequence[WaitingPath]) -> None:
        """Each path that cannot run is told of once for each reason."""
        known = set(self.plan.waiting)
        for path in waiting:
            if path not in known:
                self.crew.explain(path.name, path.problems[0].message)
                for problem in path.problems:
                    log.warning("path %s waits: %s", path.name, problem, extra=about(path=path.name))

    # ---- running --------------------------------------------------------------------------------

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(min(TICK_SECONDS, self._watchdog or TICK_SECONDS), self.events.put_nowait, Tick())
        well = self.crew.tick()
        logs.flush()
        if self._watchdog is not None and well:
            notify.watchdog()
        if not self.ready and time.monotonic() - self._began < EXTEND_SECONDS:
            notify.extend(CARRIER_SECONDS)

    def _consider_ready(self) -> None:
        """Ready once every worker has been bound or has failed; StartError if all have failed."""
        slots = self._slots()
        if self.ready or self._stopping or not all(s.last_error or s.state == "forwarding" for s in slots):
            return
        if not self.store.inherited and not any(slot.state == "forwarding" for slot in slots):
            lines = [f"{slot.name}: {slot.last_error}" for slot in slots]
            raise StartError("\n".join([*lines, *map(str, self.plan.problems)]))
        if self._waits_for_carrier():
            return
        self.ready = True
        self._told = self._text()
        log.info("ready: %s", self._told)
        notify.ready(self._told)

    def _waits_for_carrier(self) -> bool:
        """A NIC may reset its link when a program is attached; packets flow when the carrier is back."""
        if time.monotonic() - self._began > CARRIER_SECONDS:
            return False
        devices = [self.devices.get(name) for name in self._carriers]
        return self._looking or any(device and not device.carrier for device in devices)

    def _consider_settled(self) -> None:
        """A reload is over when everything it started works, or has failed."""
        if not self._unsettled or not self.crew.settled:
            return
        for reload, actions, problems in self._unsettled:
            failed = [
                f"{slot.name}: {slot.last_error}"
                for slot in self.crew.slots.values()
                if slot.state == "backoff"
            ]
            _answer(reload, actions, [*problems, *failed])
        self._unsettled.clear()
        if self.ready:
            self._told = self._text()
            notify.ready(self._told)

    def _tell(self) -> None:
        """Say what has changed, in the log and to systemd, as soon as it has."""
        text = self._text()
        if self.ready and text != self._told:
            self._told = text
            log.info("%s", text)
            notify.status(text)

    def _save(self) -> None:
        if not self.store.active:
            return
        try:
            self._saved = inheritance.save(self.store, self.config, self.programs, self.crew, self._saved)
        except OSError as error:
            log.error("the state of this daemon cannot be saved, so a restart will not be hitless: %s", error)

    # ---- stopping -------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Under systemd leave what forwards to a successor, or to its end; else drain it in order.

        systemd does not tell a stop from a restart. What it keeps for us is closed at once by a stop, which
        detaches the programs and makes the workers drain and end. One that hangs does neither, so it is
        killed: a successor adopts its rings.
        """
        if self.store.active:
            self.crew.end_hanging()
            count = sum(slot.process is not None for slot in self.crew.slots.values())
            notify.stopping(f"supervisor ends; {count} workers go on until systemd lets go of their sockets")
            self._save()
            return
        notify.stopping("draining and stopping")
        self.crew.stop_all()
        deadline = asyncio.get_running_loop().time() + STOP_SECONDS
        while not self.crew.stopped:
            left = deadline - asyncio.get_running_loop().time()
            try:
                event = await asyncio.wait_for(self.events.get(), max(left, 0))
            except TimeoutError:
                break
            if isinstance(event, Said | Exited | Late):
                self.crew.act(event)
        self._close()

    def _close(self) -> None:
        """Nothing of ours stays behind: processes, sockets, then the programs."""
        self.crew.close()
        self.programs.close()

    # ---- telling --------------------------------------------------------------------------------

    def _text(self) -> str:
        return describe(
            [(s.name, s.state, {m for m in s.modes if m}) for s in self._slots()],
            waiting=[path.name for path in self.plan.waiting],
            troubled=[
                f"{name} {'has no carrier' if device.up else 'is down'}"
                for name in sorted(plan.name for plan in self.plan.interfaces)
                if (device := self.devices.get(name)) and not device.carrier
            ],
            stale_config=self.config_error is not None,
        )

    def _slots(self) -> list[Slot]:
        """All places, in the order of the configuration."""
        paths = {name: number for number, name in enumerate(self.config.paths)}
        return sorted(
            self.crew.slots.values(),
            key=lambda slot: (paths.get(slot.plan.path, len(paths)), slot.plan.index),
        )

    def _worker(self, slot: Slot, *, new_marks: bool) -> WorkerStatus:
        told = slot.status(new_marks=new_marks)
        ports = (
            replace(
                port,
                nic_rx_dropped=self._nics.received(port.interface, port.queue),
                nic_tx_dropped=self._nics.sent(port.interface, port.queue),
            )
            for port in told.ports
        )
        return replace(told, ports=tuple(ports))


@contextmanager
def _heeding(post: Callable[[Event], None]) -> Iterator[None]:
    """Have signals be events.

    asyncio's own handlers would lose one if the byte could not be written that a signal wakes the loop with.
    These run by themselves; without that byte the event is heard at the next tick.
    """
    loop = asyncio.get_running_loop()

    def heed(number: int, _: object) -> None:
        event = Reload() if number == signal.SIGHUP else Stop(signal.Signals(number).name)
        loop.call_soon_threadsafe(post, event)

    before = {
        number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(reload: Reload, actions: list[str], problems: Sequence[str] = ()) -> None:
    if reload.answer is None or reload.answer.done():
        return
    if problems:
        reload.answer.set_exception(XskdError("\n".join(problems)))
    else:
        reload.answer.set_result(actions)


def _warn_of_filter(outlook: Outlook, plan: InterfacePlan) -> None:
    """A bump in the wire gets packets for other machines, which a NIC keeps to itself unless it is told."""
    device, kind = outlook.devices[plan.name], outlook.config.paths[plan.path].kind
    if kind == "connect" and device and not device.takes_all:
        mend = f"`ip link set dev {plan.name} promisc on` lets them in"
        log.warning(
            "%s: packets for other MAC addresses than its own do not come in: %s", plan.name, mend,
            extra=about(interface=plan.name),
        )  # fmt: skip
