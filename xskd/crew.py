"""The workers' lives: started, heard, handed over, buried, started again; each in its Slot.

What happens to one worker is decided here, what the plan is and when all of them stop in daemon.py. Worker
events come from the supervisor's one queue, so nothing runs in the middle of anything else, and nothing here
may block. Two rules carry it all:

* Sockets outlive processes. A worker that dies while it forwards is replaced by one that adopts its rings,
  and they stay in the XSKMAP meanwhile. Sockets are given up only when they themselves are the problem, or
  when a successor cannot be had at once: then the path's fallback takes the packets.
* Two processes never work on the same rings. A successor begins when its predecessor has yielded, which it
  sees in the page they share, or is dead, which it is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from xskd.captures import Captures
from xskd.channel import describe_stopped
from xskd.errors import XdpError, XskdError, errno_name
from xskd.logs import EVERY, about
from xskd.plan import WorkerPlan
from xskd.programs import Programs
from xskd.slot import Slot
from xskd.spawn import Peer
from xskd.store import Store

START_SECONDS = 20.0  # for a worker to bind: EBUSY may take 5 of them, pinning much memory some more
START_CPU_SECONDS = 0.2  # of them, with which a worker is slow and does not hang: it is left as many again
LONGEST_START_SECONDS = 120.0
STOP_SECONDS = 3.0  # for a worker to drain; then it is killed
YIELD_SECONDS = 1.0  # for a predecessor to stop at the end of a turn; then it is killed
STALLED_SECONDS = 1.5  # without a heartbeat; a healthy loop beats at least every 0.1 s
SUSPECT_SECONDS = 1.0  # likewise: at one tick, before it may be found stalled at the next

log = logging.getLogger("xskd")


@dataclass(frozen=True)
class Said:
    """A worker's channel is readable."""

    slot: Slot
    process: Peer


@dataclass(frozen=True)
class Exited:
    """A worker's process has ended."""

    slot: Slot
    process: Peer


@dataclass(frozen=True)
class Late:
    """A worker had its time for something: to bind, to drain, to yield."""

    slot: Slot
    process: Peer
    what: str


@dataclass(frozen=True)
class Due:
    """A worker's pause after a death is over."""

    slot: Slot


WorkerEvent = Said | Exited | Late | Due


class Crew:
    """All workers by name. `post` puts an event into the supervisor's queue."""

    def __init__(self, programs: Programs, store: Store, post: Callable[[WorkerEvent], None]) -> None:
        self.slots: dict[str, Slot] = {}
        self._programs, self._store, self._post = programs, store, post
        self._then: dict[Slot, Callable[[], None]] = {}  # what to do when a stopping worker has ended
        self._tuning: set[Slot] = set()
        self._suspects: dict[Slot, tuple[Peer | None, int]] = {}  # silent at the last tick: since which beat
        self._can_adopt = True  # until a kernel refuses
        self.captures = Captures(lambda: self.slots)

    # ---- what the supervisor wants --------------------------------------------------------------

    def start(self, plan: WorkerPlan) -> None:
        """Start a worker, in the place it had if it had one."""
        slot = self.slots.get(plan.name)
        if slot is None:
            self.slots[plan.name] = slot = Slot(plan)
        elif slot in self._then:  # it is still on its way out
            self._then[slot] = lambda: self.start(plan)
            return
        else:
            slot.replan(plan)
        self._spawn(slot, adopt=False)

    def take_over(self, slot: Slot, predecessor: Peer | None) -> None:
        """Go on with what an earlier supervisor left: sockets in use, and perhaps a worker on them."""
        self.slots[slot.name] = slot
        if predecessor is not None:
            slot.predecessor = predecessor
            loop = asyncio.get_running_loop()
            loop.add_reader(predecessor.link, self._post, Said(slot, predecessor))
            loop.add_reader(predecessor.pidfd, self._exited, slot, predecessor)
        self._spawn(slot, adopt=True)

    def rebuild(self, plan: WorkerPlan) -> None:
        """The same worker with new sockets."""
        self._end(self.slots[plan.name], lambda: self.start(plan))

    def tune(self, plan: WorkerPlan) -> None:
        """The same worker and sockets, working otherwise from now on."""
        slot = self.slots[plan.name]
        if slot in self._then:  # it ends, to be started anew
            self._then[slot] = lambda: self.start(plan)
            return
        slot.replan(plan)
        self._tune(slot)

    def _tune(self, slot: Slot) -> None:
        """Tell a working worker of a plan that is not the one it has; others get it when they are bound."""
        if (
            slot.state == "forwarding"
            and slot.process is not None
            and slot.process.plan != slot.effective_plan()
        ):
            slot.process.plan = slot.effective_plan()
            slot.process.tell("tune", plan=slot.process.plan.to_json())
            self._tuning.add(slot)

    def park(self, name: str, why: str) -> None:
        """End a worker that cannot run for now; its place waits, with its counters."""
        slot = self.slots[name]

        def parked() -> None:
            slot.last_error = why
            slot.enter("waiting")

        log.warning("%s: stops: %s", name, why, extra=about(worker=name))
        self._end(slot, parked)

    def explain(self, path: str, why: str) -> None:
        """The reason why a path waits has changed."""
        for slot in self.slots.values():
            if slot.plan.path == path and slot.state == "waiting":
                slot.last_error = why

    def retire(self, name: str) -> None:
        """End a worker for good."""
        slot = self.slots[name]

        def retired() -> None:
            slot.close()
            del self.slots[name]

        self._end(slot, retired)

    def let_in(self, interface: str) -> None:
        """An interface has a new, empty XSKMAP: put the sockets of working workers in."""
        for slot in self.slots.values():
            if slot.state == "forwarding" and interface in {port.interface for port in slot.plan.ports}:
                self._insert(slot, again=True)

    def hurry(self, interfaces: Iterable[str]) -> None:
        """Something about these interfaces has changed: whoever waits for a better time may try now."""
        changed = set(interfaces)
        for slot in self.slots.values():
            if slot.state == "backoff" and changed & {port.interface for port in slot.plan.ports}:
                slot.backoff = 0.0
                self._post(Due(slot))

    def tick(self) -> bool:
        """End whoever hangs. Returns whether every worker that should turn does.

        Nobody hangs who has not been silent at two ticks: a machine that stood still (a virtual one that was
        moved, or has far too much to do) finds everybody silent, and workers beat again before the next.
        """
        before, self._suspects = self._suspects, {}
        silent = {s: s.silent_for() for s in self.slots.values() if s.state == "forwarding"}
        for slot, seconds in silent.items():
            last = slot.process, int(slot.page.struct.heartbeat_ns)
            if seconds > STALLED_SECONDS and before.get(slot) == last:
                said = slot.process.error if slot.process else None  # its exit is what hangs
                self._bury(slot, "stalled", said or f"no heartbeat for {seconds:.1f} s")
            elif seconds > SUSPECT_SECONDS:
                self._suspects[slot] = last
        for slot in self.slots.values():
            if slot.state == "forwarding":
                self._guard(slot)
        return all(seconds <= STALLED_SECONDS for seconds in silent.values())

    def _guard(self, slot: Slot) -> None:
        """Whoever may write to BPF maps may take a worker's place in one; the packets would be lost."""
        try:
            taken = self._programs.restore(slot)
        except XdpError as error:
            log.warning("%s: %s", slot.name, error, extra=about(worker=slot.name))
            return
        slot.conflicts += len(taken)
        for interface in taken:
            log.warning(
                "%s: another socket was in its place in the XSKMAP of %s; it has its place again", slot.name,
                interface, extra=about(worker=slot.name, interface=interface),
            )  # fmt: skip

    @property
    def settled(self) -> bool:
        """Nothing that was asked for is still under way: each forwards, waits, or has failed."""
        return not self._tuning and all(
            slot.state not in {"starting", "stopping"} for slot in self.slots.values()
        )

    def end_hanging(self) -> None:
        """Kill what would not notice that its channel is closed, and would keep its queue for ever."""
        for slot in self.slots.values():
            silent = slot.state == "forwarding" and slot.silent_for() > STALLED_SECONDS
            for process in (slot.process, slot.predecessor):
                if process is not None and (silent or process.stopped):
                    log.warning("%s: hangs, killed", slot.name, extra=about(worker=slot.name))
                    process.kill()

    def stop_all(self) -> None:
        """Out of the XSKMAP, let the workers send what they have, and hear where their frames are."""
        for slot in list(self.slots.values()):
            self._end(slot, lambda slot=slot: slot.enter("stopped"))  # type: ignore[misc]

    @property
    def stopped(self) -> bool:
        """Has every worker ended after `stop_all`?"""
        return not self._then

    def close(self) -> None:
        """Nothing of ours stays behind: processes and sockets; memory goes with this process."""
        for slot in self.slots.values():
            self._forget(slot.process)
            self._end_predecessor(slot)
            slot.clear()
            slot.discard_sockets()
            self._unstore(slot)
            slot.enter("stopped")

    def record(self) -> list[dict[str, Any]]:
        """What a successor must know of each worker."""
        return [slot.record() for slot in self.slots.values()]

    # ---- what happens ---------------------------------------------------------------------------

    def act(self, event: WorkerEvent) -> None:
        """Do what an event asks for; one about a process that is no longer there changes nothing."""
        match event:
            case Said(slot, process) if slot.process is process or slot.predecessor is process:
                self._hear(slot, process)
            case Exited(slot, process) if slot.process is process or slot.predecessor is process:
                self._hear(slot, process)  # its last words may have led to its end already
                if slot.predecessor is process:
                    self._succeed(slot)
                elif slot.process is process:
                    self._ended(slot)
            case Late(slot, process, "yield") if slot.predecessor is process:
                log.warning(
                    "%s: the old worker does not yield, killed", slot.name, extra=about(worker=slot.name)
                )
                process.kill()  # it is dead when its pidfd says so
            case Late(slot, process, "start") if slot.process is process and slot.state == "starting":
                self._consider_start(slot, process)
            case Late(slot, process, "stop") if slot.process is process and slot.state == "stopping":
                log.warning(
                    "%s: not drained in %g s, killed", slot.name, STOP_SECONDS, extra=about(worker=slot.name)
                )
                self._finish(slot)
            case Due(slot) if slot.state == "backoff":
                self._spawn(slot, adopt=bool(slot.sockets))

    def _hear(self, slot: Slot, process: Peer) -> None:
        messages, still_open = process.receive()
        if not still_open:  # a closed channel is readable for ever
            asyncio.get_running_loop().remove_reader(process.link)
        for message in messages:
            try:
                self._heed(slot, process, message)
            except (KeyError, TypeError, ValueError) as error:  # it reads what strangers send: trust nothing
                process.error = f"it said what no worker says: {error!r}"
                process.kill()

    def _heed(self, slot: Slot, process: Peer, message: dict[str, Any]) -> None:
        match message["event"]:
            case "prepared" if slot.process is process and slot.state == "starting":
                self._hand_over(slot)
            case "yielded" if slot.predecessor is process:
                self._succeed(slot)
            case "bound" if slot.process is process and slot.state == "starting":
                self._bound(slot, message)
            case "tuned":
                self._tuning.discard(slot)
            case "capturing" if slot.process is process:
                self.captures.heard(slot, message.get("error"))
            case "failed":
                process.error = str(message["error"])
                if slot.process is process and slot.state == "starting":
                    self._learn(slot, message)
            case "stopped":
                log.info("%s: %s", slot.name, describe_stopped(message), extra=about(worker=slot.name))

    def _spawn(self, slot: Slot, *, adopt: bool) -> None:
        if slot.predecessor is not None and not self._can_adopt:
            self._stay_with(slot.predecessor, slot)
            return
        loop = asyncio.get_running_loop()
        slot.generic = self._programs.any_generic(slot)
        try:
            process = slot.spawn(adopt=adopt and self._can_adopt)
            loop.add_reader(process.link, self._post, Said(slot, process))
            loop.add_reader(process.pidfd, self._exited, slot, process)
        except (XskdError, OSError) as error:
            self._bury(slot, "spawn", str(error))
            return
        loop.call_later(START_SECONDS, self._post, Late(slot, process, "start"))

    def _consider_start(self, slot: Slot, process: Peer) -> None:
        """A worker is not bound in its time: it hangs, or the machine has far too much to do.

        One that gets on is left to it: the next would be no sooner there, having to begin from nothing.
        """
        took = time.monotonic() - slot.since
        if process.has_worked(START_CPU_SECONDS) and took < LONGEST_START_SECONDS:
            log.warning(
                "%s: not bound within %.0f s, but at work", slot.name, took, extra=about(worker=slot.name)
            )
            late = Late(slot, process, "start")
            asyncio.get_running_loop().call_later(START_SECONDS, self._post, late)
        else:
            self._bury(slot, "start_timeout", f"not bound within {took:.0f} s")

    def _exited(self, slot: Slot, process: Peer) -> None:
        """The descriptor stays readable, so it is taken out before the event goes in."""
        asyncio.get_running_loop().remove_reader(process.pidfd)
        self._post(Exited(slot, process))

    # ---- from one process to the next -----------------------------------------------------------

    def _hand_over(self, slot: Slot) -> None:
        """The new process has mapped everything: it may begin as soon as nobody else works there."""
        assert slot.process is not None
        if slot.predecessor is None:
            slot.process.tell("go")
            self.captures.tell(slot)  # so that it copies also what has waited for it
            return
        slot.process.tell("follow")  # it sees by itself when the way is free, sooner than we could tell it
        slot.predecessor.tell("yield")
        late = Late(slot, slot.predecessor, "yield")
        asyncio.get_running_loop().call_later(YIELD_SECONDS, self._post, late)

    def _succeed(self, slot: Slot) -> None:
        """The predecessor touches nothing any more: it has yielded, or is dead."""
        self._end_predecessor(slot)
        if slot.process is not None and slot.state == "starting":
            slot.process.tell("go")
        elif slot.state == "backoff":
            self._programs.withdraw(slot)  # nobody works there until the pause is over

    def _bound(self, slot: Slot, message: dict[str, Any]) -> None:
        """Every socket of the worker is bound, and it forwards: let packets come."""
        found, gap = message["found"], message["gap"] or 0.0
        slot.bound([str(port["mode"]) for port in message["ports"]])
        slot.gap_seconds += gap
        if found is None:
            _log_bound(slot, message["ports"])
        else:
            slot.adoptions["adopted"] += 1
            log.info(
                "%s: took over after %.1f ms without a worker: %s",
                slot.name, gap * 1000, _describe(found), extra=about(worker=slot.name),
            )  # fmt: skip
        self._tune(slot)
        self.captures.tell(slot)
        if self._insert(slot):
            self._keep(slot)

    def _insert(self, slot: Slot, *, again: bool = False) -> bool:
        try:
            self._programs.insert(slot, replace=again or slot.adopting)
        except XdpError as error:
            self._bury(slot, "xskmap", str(error))
            return False
        return True

    def _learn(self, slot: Slot, message: dict[str, Any]) -> None:
        """Why a worker could not begin may be a reason to try otherwise, at once; it is about to end."""
        if message.get("too_old"):
            if self._can_adopt:
                log.warning("this kernel cannot map the rings of a bound socket (Linux 6.4 can): no adoption")
            self._can_adopt = False
            if slot.predecessor is not None:
                self._stay_with(slot.predecessor, slot)
                return
            slot.adoptions["failed"] += 1
        elif message.get("copy"):
            log.info("%s: not every interface has zero-copy; copy mode for all", slot.name)
            slot.copy = True
        else:
            return
        self._forget(slot.process)
        slot.clear()
        self._give_up_sockets(slot)
        self._spawn(slot, adopt=False)

    def _stay_with(self, old: Peer, slot: Slot) -> None:
        """No successor can map its rings, so the old worker itself goes on, and is ours from now on."""
        self._forget(slot.process)
        slot.clear()
        slot.process, slot.predecessor = old, None
        old.tell("uncapture")  # the capture was its earlier supervisor's
        slot.bound([str(mode) for mode in slot.modes])
        slot.adoptions["kept"] += 1
        log.info("%s: its old worker goes on", slot.name, extra=about(worker=slot.name))
        self._tune(slot)
        self._keep(slot)

    # ---- ends -----------------------------------------------------------------------------------

    def _ended(self, slot: Slot) -> None:
        """The process is dead, wanted or not."""
        assert slot.process is not None
        if slot.state == "stopping":
            self._finish(slot)
            return
        cause = slot.process.exit_cause() or "unknown"
        self._bury(slot, cause, slot.process.error or f"the worker process ended: {cause}")

    def _bury(self, slot: Slot, cause: str, why: str) -> None:
        """A worker is finished, and another one follows: at once if it is the first death in a while."""
        process = slot.process
        said = process.error if process else why
        # Sockets that worked, of a worker that did not say they are the problem, can be adopted. A worker
        # that died while it tried just that is no reason to try again.
        sound = slot.state == "forwarding" and said is None and cause != "xskmap"
        if slot.adopting and slot.state == "starting" and slot.predecessor is None:
            if process is None:  # it could not even be started, so nobody has touched the rings
                sound = True
            else:
                slot.adoptions["failed"] += 1
        self._forget(process)
        self._tuning.discard(slot)
        dead = slot.clear()
        slot.last_error = why
        pause = slot.buried(cause)
        keep = slot.predecessor is not None or (sound and dead and self._can_adopt)
        if not keep:
            self._give_up_sockets(slot)
        elif pause and slot.predecessor is None:
            self._programs.withdraw(slot)  # too long for the rings to hold what comes
        log.warning(
            "%s: worker ended (%s): %s; next %s%s",
            slot.name, cause, why, f"try in {pause:.2f} s" if pause else "one at once",
            ", which takes over its rings" if keep else "", extra=about(worker=slot.name) | EVERY,
        )  # fmt: skip
        if pause:
            asyncio.get_running_loop().call_later(pause, self._post, Due(slot))
        else:
            self._spawn(slot, adopt=bool(slot.sockets))

    def _end(self, slot: Slot, then: Callable[[], None]) -> None:
        """Let a worker drain and end, whatever it is at, then do what follows."""
        self._programs.withdraw(slot)
        self._tuning.discard(slot)
        self._then[slot] = then
        if slot.process is None:
            self._finish(slot)
            return
        if slot.state != "stopping":
            slot.enter("stopping")
            slot.process.tell("stop")
            late = Late(slot, slot.process, "stop")
            asyncio.get_running_loop().call_later(STOP_SECONDS, self._post, late)

    def _finish(self, slot: Slot) -> None:
        """A worker that was to end has ended, or is ended now."""
        self._forget(slot.process)
        slot.clear()
        self._give_up_sockets(slot)
        slot.last_error, slot.backoff = None, 0.0
        self._then.pop(slot)()

    def _give_up_sockets(self, slot: Slot) -> None:
        """Every copy is closed, also the stored ones, else the queue stays busy for ever."""
        self._programs.withdraw(slot)
        self._unstore(slot)
        self._end_predecessor(slot)
        slot.discard_sockets()

    def _end_predecessor(self, slot: Slot) -> None:
        """An old worker ends when its channel does."""
        if slot.predecessor is not None:
            self._forget(slot.predecessor)
            slot.predecessor.let_go()
            slot.predecessor = None

    def _keep(self, slot: Slot) -> None:
        """Have systemd keep what a successor needs. Adopted sockets are in the store already."""
        assert slot.process is not None
        if not slot.adopting:
            self._store.put(stored_sockets(slot.name), slot.descriptors())
        ways = {"channel": slot.process.link.fileno(), "pid": slot.process.pidfd}
        self._store.put(stored_process(slot.name), ways)

    def _unstore(self, slot: Slot) -> None:
        self._store.drop(stored_sockets(slot.name))
        self._store.drop(stored_process(slot.name))

    def _forget(self, process: Peer | None) -> None:
        if process is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(process.link)
            loop.remove_reader(process.pidfd)


def stored_sockets(worker: str) -> str:
    """What a worker's memory, counter page and sockets are called in the store."""
    return f"worker {worker}"


def stored_process(worker: str) -> str:
    """The same for what leads to its process."""
    return f"worker {worker} process"


def _log_bound(slot: Slot, ports: list[dict[str, Any]]) -> None:
    for port, said in zip(slot.plan.ports, ports, strict=True):
        refused = said["refused"]
        why = f" (zero-copy refused: {errno_name(refused)})" if isinstance(refused, int) else ""
        log.info(
            "%s: %s queue %d bound, %s mode%s", slot.name, port.interface, port.queue, said["mode"], why,
            extra=about(worker=slot.name, interface=port.interface, queue=port.queue),
        )  # fmt: skip


def _describe(found: dict[str, int]) -> str:
    """What an adoption found, in words: always what waits and what is uncertain, losses if there are any."""
    lost = found["undone"]
    text = f"{found['waiting']} packets waiting, {found['unsent']} unsent"
    text += f", {found['quarantined']} frames quarantined"
    return f"{text}, {lost} packets lost" if lost else text
