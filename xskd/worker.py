"""One worker: one process, one UMEM, one XSK per interface of its path, one loop.

Started afresh by the supervisor (xskd/spawn.py), which hands it a plan and descriptors. It has its memory
pinned, gives up every right, maps and fills the rings, binds, says so, and forwards until it is told to stop
or the supervisor is gone. It must never import the control plane (pydantic, pyroute2, YAML), never open
anything by name, and never outlive its supervisor.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys

from xskd import channel, privileges
from xskd.counters import CounterPage
from xskd.errors import XskdError, XskError
from xskd.forward import Forwarder
from xskd.plan import WorkerPlan
from xskd.umem import Umem
from xskd.xsk import Socket

SLICE = 0.1  # seconds of forwarding between two looks at the accounts; also how old a gauge can get
EXIT_FAILED = 1


class Worker:
    """The plan made real: sockets, UMEM and loop. `descriptors` are UMEM, counter page and the XSKs."""

    def __init__(self, plan: WorkerPlan, descriptors: list[int], link: socket.socket) -> None:
        memfd, page_fd, *xsks = descriptors
        self.plan, self._link = plan, link
        self._page = CounterPage(plan.frames, fd=page_fd)
        self._umem = Umem(
            plan.frames, plan.frame_size, huge_pages=plan.huge_pages, memfd=memfd, owner=self._page.owner
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
            )
            for index, (port, fd) in enumerate(zip(plan.ports, xsks, strict=True))
        ]
        self._forwarder = Forwarder(
            self._sockets,
            plan.kind,
            poll=plan.poll,
            counters=self._page.struct,
            control_fd=link.fileno(),
        )

    def register(self) -> None:
        """Have the kernel pin the memory, the last step that needs a right: CAP_IPC_LOCK. Raises XskError."""
        self._sockets[0].register()

    def bind(self) -> None:
        """Rings, FILL to the brim, then bind; the first socket owns the UMEM. Raises XskError."""
        first = self._sockets[0]
        for member in self._sockets:
            member.set_up_rings()
        for member in self._sockets:
            member.fill()
        first.bind(self.plan.ports[0].mode)
        for member in self._sockets[1:]:
            member.bind(share=first.fileno())

    def report(self) -> channel.Message:
        """What the sockets became."""
        return {
            "event": "bound",
            "ports": [
                {"mode": s.mode, "refused": s.zero_copy_refused, "retries": s.bind_retries}
                for s in self._sockets
            ],
        }

    def mixed_modes(self, error: XskError) -> bool:
        """Did a later interface refuse the zero-copy that the first one has? Then copy would do for all."""
        wanted = {port.mode for port in self.plan.ports}
        refused = error.errno in (errno.EOPNOTSUPP, errno.EINVAL)
        return wanted == {"auto"} and self._sockets[0].zero_copy and refused

    def forward(self) -> None:
        """Until there is a message (the only one is: stop) or the supervisor is gone. Raises XskError."""
        while True:
            self._forwarder.publish()
            if self._forwarder.run(SLICE):
                return

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
    link = socket.socket(fileno=int(sys.argv[1]))
    hello, descriptors = channel.receive(link)
    if hello is None:
        return EXIT_FAILED
    plan = WorkerPlan.from_json(hello["plan"])
    if plan.cpu is not None:
        os.sched_setaffinity(0, {plan.cpu})
    gc.disable()  # nothing here makes cycles while forwarding, and a pause would be a packet's
    try:
        worker = Worker(plan, descriptors, link)
        worker.register()
        privileges.drop_all()
    except XskdError as error:
        channel.send(link, {"event": "failed", "error": str(error), "copy": False})
        return EXIT_FAILED
    return _run(worker, link)


def _run(worker: Worker, link: socket.socket) -> int:
    try:
        worker.bind()
        channel.send(link, worker.report())
        worker.forward()
        message = worker.stop()
    except XskError as error:
        message = {"event": "failed", "error": str(error), "copy": worker.mixed_modes(error)}
    except BrokenPipeError:  # the supervisor went away while we were binding
        return EXIT_FAILED
    try:
        channel.send(link, message)
    except OSError:  # the supervisor is gone: nobody to tell, and our end is the right answer
        return EXIT_FAILED
    return 0 if message["event"] == "stopped" else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
