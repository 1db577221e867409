"""Making a worker process: its sockets, its interpreter, and the wire to it.

AF_XDP sockets need rights, so they are made here and handed over, with memory that outlives the worker. The
sockets of a dead worker are closed here, every copy, so that its queues are free for the next one. This
module must never decide when to start or stop a worker: that is daemon.py's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from xskd import channel
from xskd.plan import WorkerPlan
from xskd.uapi import Statistics
from xskd.xsk import make_socket, read_statistics

END_SECONDS = 3.0  # for a process that was killed, or whose channel was closed, to be gone
PACKAGE_ROOT = Path(__file__).resolve().parent.parent


class WorkerProcess:
    """One worker process from the supervisor's side. Raises XskError or OSError if its parts cannot be had.

    `memory` is what outlives it: the descriptors of the UMEM's memory and of the counter page.
    """

    def __init__(self, plan: WorkerPlan, memory: tuple[int, int]) -> None:
        self.plan = plan
        self.sockets: list[socket.socket] = []
        self.error: str | None = None  # what it said of its failure
        try:
            for port in plan.ports:
                made = make_socket(port.interface, port.queue, port.rings, plan.frame_size)
                self.sockets.append(made)
            self.link, theirs = channel.pair()
            with theirs:
                self._process = _start(theirs.fileno())
            descriptors = [*memory, *(made.fileno() for made in self.sockets)]
            channel.send(self.link, {"plan": plan.to_json()}, descriptors)
        except BaseException:
            self._close_sockets()
            raise
        self.link.setblocking(False)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def receive(self) -> tuple[list[channel.Message], bool]:
        """The messages that have arrived, and whether more can come. Never waits."""
        messages: list[channel.Message] = []
        while True:
            try:
                message, _ = channel.receive(self.link)
            except BlockingIOError:
                return messages, True
            except ConnectionError:
                return messages, False
            if message is None:
                return messages, False
            messages.append(message)

    def tell_to_stop(self) -> None:
        """Ask it to drain and end; a worker that is dead already is as good."""
        with contextlib.suppress(OSError):
            channel.send(self.link, {"verb": "stop"})

    def statistics(self) -> list[Statistics]:
        """The kernel's counters of each socket, which live as long as it does. OSError, XskError."""
        return [read_statistics(made) for made in self.sockets]

    def exit_cause(self) -> str | None:
        """Why the process ended, in a word fit for a label: `exit 1`, `SIGKILL`; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        if status >= 0:
            return f"exit {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:  # most real-time signals have no name
            return f"signal {-status}"

    def close(self) -> None:
        """End it if it still runs, reap it, and close every descriptor that was its."""
        self.link.close()  # for a worker that we may not kill: it ends when its channel does
        with contextlib.suppress(PermissionError):  # root without CAP_KILL, see systemd/xskd.service
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self._close_sockets()
        os.close(self.pidfd)

    def _close_sockets(self) -> None:
        for made in self.sockets:
            made.close()
        self.sockets = []


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter that knows nothing but its end of the channel."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-s", "-m", "xskd.worker", str(descriptor)]
    return subprocess.Popen(
        command, pass_fds=(descriptor,), stdin=subprocess.DEVNULL, env=environment, cwd="/"
    )


def sum_statistics(base: Statistics, now: Statistics) -> Statistics:
    """Field by field: counters of a socket go on where its predecessor's ended."""
    before, after = asdict(base), asdict(now)
    return Statistics(**{name: before[name] + after[name] for name in before})
