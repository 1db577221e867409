"""One worker: one process, one UMEM, one XSK per interface of its path, one loop.

Started afresh by the supervisor (xskd/spawn.py), which hands it a plan and descriptors. It maps memory and
rings, gives up every right, says that it is prepared, and at the word either binds its sockets or goes on
where another worker of the same sockets stopped. Then it forwards until it is told to stop or to yield,
or nobody holds the other end of its channel any more. It must never import the control plane (pydantic,
pyroute2, YAML), never open anything by name, and never wait for a supervisor that is gone.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from xskd import channel, privileges
from xskd.counters import CounterPage
from xskd.errors import XskdError, XskError, errno_name, refusal
from xskd.forward import Forwarder
from xskd.plan import WorkerPlan
from xskd.tap import Filter, Tap
from xskd.umem import Umem
from xskd.xsk import Socket

SLICE = 0.1  # seconds of forwarding between two looks at the accounts; also how old a gauge can get
FOLLOW_PAUSE = 0.0001  # seconds between two looks whether a predecessor has given way
EXIT_FAILED = 1


class Worker:
    """The plan made real: sockets, UMEM and loop. `descriptors` are UMEM, counter page and the XSKs.

    With `adopt` the sockets are bound and the record of frames is that of another worker, which may still be
    at work: nothing is changed before `begin`.
    """

    def __init__(self, plan: WorkerPlan, descriptors: list[int], link: socket.socket, *, adopt: bool) -> None:
        memfd, page_fd, *xsks = descriptors
        self.plan, self._link, self._adopt = plan, link, adopt
        self._page = CounterPage(plan.frames, fd=page_fd)
        self._umem = Umem(
            plan.frames,
            plan.frame_size,
            huge_pages=plan.huge_pages,
            memfd=memfd,
            owner=self._page.owner,
            intent=self._page.intent,
            keep=adopt,
        )
        self._sockets = [
            Socket(
                self._umem,
                port.interface,
                port.queue,
                rings=port.rings,
                mtu=port.mtu,
                fd=fd,
                ifindex=port.ifindex,
                index=index,
                counters=self._page.port(index),
                multi_buffer=plan.multi_buffer,
            )
            for index, (port, fd) in enumerate(zip(plan.ports, xsks, strict=True))
        ]
        self._tap: Tap | None = None  # of a capture that runs
        self._forwarder = Forwarder(
            self._sockets,
            plan.kind,
            poll=plan.poll,
            counters=self._page.struct,
            control_fd=link.fileno(),
        )

    def prepare(self) -> None:
        """All that can be done before the word `go`. Raises XskError.

        Pinning memory is the only step that needs a right: CAP_IPC_LOCK.
        """
        if not self._adopt:
            self._page.struct.yielded = 0
            self._sockets[0].register()
            return
        for member in self._sockets:
            member.adopt()

    def may_begin(self) -> bool:
        """Wait for the word `go`, or after `follow` for a predecessor that gives way, whichever is first.

        False if we are told otherwise, or nobody is there any more to tell.
        """
        message, _ = _heard(self._link)
        if message == {"verb": "follow"}:
            poll = select.poll()
            poll.register(self._link, select.POLLIN)
            while not self._forwarder.has_way():
                if poll.poll(0):  # the predecessor may be dead: the supervisor says so, or is gone itself
                    return _heard(self._link)[0] == {"verb": "go"}
                time.sleep(FOLLOW_PAUSE)
            return True
        return message == {"verb": "go"}

    def give_way(self) -> channel.Message:
        """The successor goes on with exactly what is there now."""
        self._forwarder.give_way()
        return {"event": "yielded"}

    def begin(self) -> dict[str, int] | None:
        """Bind, or go on: returns what was found in rings that were in use. Raises XskError."""
        if not self._adopt:
            self._bind()
            return None
        return self._forwarder.adopt()

    def _bind(self) -> None:
        """Rings, FILL to the brim, then bind; the first socket owns the UMEM."""
        first = self._sockets[0]
        for member in self._sockets:
            member.set_up_rings()
        for member in self._sockets:
            member.fill()
        first.bind(self.plan.ports[0].mode)
        for member in self._sockets[1:]:
            member.bind(share=first.fileno())

    def first_beat(self) -> float | None:
        """Begin to live: the seconds since a worker of this place last turned, None if none ever has."""
        now, last = time.monotonic_ns(), self._page.struct.heartbeat_ns
        self._page.struct.heartbeat_ns = now
        return (now - last) / 1e9 if last else None

    def ports(self) -> list[dict[str, Any]]:
        """What the sockets became."""
        return [
            {"mode": s.mode, "refused": s.zero_copy_refused, "retries": s.bind_retries} for s in self._sockets
        ]

    def mixed_modes(self, error: XskError) -> bool:
        """Did a later interface refuse the zero-copy that the first one has? Then copy would do for all."""
        wanted = {port.mode for port in self.plan.ports}
        refused = error.errno in (errno.EOPNOTSUPP, errno.EINVAL)
        return wanted == {"auto"} and self._sockets[0].zero_copy and refused

    def forward(self) -> channel.Message | None:
        """Until there is a message that ends it, or nobody at the other end (None). Raises XskError."""
        called = select.poll()  # a loop that never sleeps, busy or under full load, does not look by itself
        called.register(self._link, select.POLLIN)
        while True:
            self._forwarder.publish()
            if not self._forwarder.run(SLICE) and not called.poll(0):
                continue
            message, descriptors = _heard(self._link)
            match message:
                case {"verb": "tune", "plan": str(text)}:
                    self._tune(WorkerPlan.from_json(text))
                    channel.send(self._link, {"event": "tuned"})
                case {"verb": "capture", "direction": direction, "snaplen": snaplen, "filter": program}:
                    self._copy_no_more()
                    channel.send(self._link, self._copy(descriptors[0], direction, snaplen, program))
                case {"verb": "uncapture"}:
                    self._copy_no_more()
                case None | {"verb": "stop" | "yield"}:
                    return message

    def _tune(self, plan: WorkerPlan) -> None:
        """What can change without new sockets."""
        _settle_on(plan)
        self._forwarder.tune(plan.poll)
        for member, port in zip(self._sockets, plan.ports, strict=True):
            member.set_mtu(port.mtu)
        self.plan = plan

    def _copy(self, fd: int, direction: str, snaplen: int, program: Filter) -> channel.Message:
        """Copy packets for a capture; what to say of it. It is no reason to end where that fails."""
        try:
            self._tap = Tap(fd, direction, snaplen, program)
        except (XskdError, OSError) as error:
            return {"event": "capturing", "error": str(error)}
        self._forwarder.copy_to(self._tap)
        return {"event": "capturing"}

    def _copy_no_more(self) -> None:
        self._forwarder.copy_to(None)
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    def stop(self) -> channel.Message:
        """Send what is on its way, count the frames, say where they are."""
        drained = self._forwarder.drain(channel.STOP_SECONDS)
        unaccounted = self._forwarder.publish()
        return {
            "event": "stopped",
            "drained": drained,
            "frames": self._forwarder.places(),
            "unaccounted": unaccounted,
            "contradictions": self._forwarder.audit(),
        }


def main() -> int:
    """Run the worker whose channel is the descriptor in argv[1]; the exit status for the supervisor's log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the supervisor decides
    try:
        link = socket.socket(fileno=int(sys.argv[1]))
    except OSError as error:
        print(f"<3>worker: its channel: {errno_name(error.errno or 0)}", file=sys.stderr)
        return EXIT_FAILED
    try:
        return _run(link)
    except (OSError, MemoryError) as error:
        with contextlib.suppress(OSError):  # the channel itself: nobody is there to be told
            channel.send(link, {"event": "failed", "error": str(refusal(error) or error)})
        return EXIT_FAILED
    except Exception as error:  # a bug; the last line of its traceback goes to the supervisor as well
        channel.send(link, {"event": "failed", "error": f"{type(error).__name__}: {error}"})
        raise


def _run(link: socket.socket) -> int:
    hello, descriptors = channel.receive(link)
    if hello is None:
        return EXIT_FAILED
    plan, adopt = WorkerPlan.from_json(hello["plan"]), bool(hello["adopt"])
    if not adopt:  # else the predecessor is at work there, and we only prepare
        _settle_on(plan)
    gc.disable()  # nothing here makes cycles while forwarding, and a pause would be a packet's
    worker = None
    try:
        worker = Worker(plan, descriptors, link, adopt=adopt)
        worker.prepare()
        privileges.give_up()
        channel.send(link, {"event": "prepared"})
        if not worker.may_begin():
            return 0
        return _work(worker, link)
    except XskdError as error:
        message: channel.Message = {"event": "failed", "error": str(error)}
        if isinstance(error, XskError) and worker is not None:
            message |= {"copy": worker.mixed_modes(error), "too_old": adopt and _is_too_old(error)}
        channel.send(link, message)
        return EXIT_FAILED


def _work(worker: Worker, link: socket.socket) -> int:
    """From the first packet to the last. Raises XskError."""
    found, gap = worker.begin(), worker.first_beat()
    _settle_on(worker.plan)
    channel.send(link, {"event": "bound", "ports": worker.ports(), "found": found, "gap": gap})
    ended_by = worker.forward()
    if ended_by == {"verb": "yield"}:
        channel.send(link, worker.give_way())
        return 0
    message = worker.stop()
    if ended_by is None:
        _last_words(worker.plan.name, message)
    else:
        channel.send(link, message)
    return 0


def _is_too_old(error: XskError) -> bool:
    """Was it a kernel before 6.4, which refuses to map the rings of a bound socket?"""
    return error.call == "mmap(ring)" and error.errno in (errno.EBUSY, errno.EINVAL)


def _settle_on(plan: WorkerPlan) -> None:
    """On the CPU that the plan says; None leaves it to the scheduler."""
    if plan.cpu is not None:
        os.sched_setaffinity(0, {plan.cpu})


def _heard(link: socket.socket) -> tuple[channel.Message | None, list[int]]:
    """The next message with its descriptors, None if there will be none any more."""
    try:
        return channel.receive(link)
    except ConnectionError:
        return None, []


def _last_words(name: str, message: channel.Message) -> None:
    """The supervisor is gone for good, so what it would log goes where our errors go: the journal."""
    print(f"<6>{name}: {channel.describe_stopped(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
