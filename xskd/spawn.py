"""Making a worker process, and speaking to one: its interpreter, its end, and the wire to it.

A worker is handed everything it has: memory, counter page and sockets, which belong to its place (slot.py)
and outlive it. This module must never decide when to start or stop a worker: that is crew.py's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from xskd import channel
from xskd.errors import kernel_said
from xskd.plan import WorkerPlan

END_SECONDS = 3.0  # for a process that was killed to be gone
CPUCLOCK_SCHED = 2  # linux/posix-timers_types.h: what clock_getcpuclockid(3) makes of a process id
PACKAGE_ROOT = Path(__file__).resolve().parent.parent

log = logging.getLogger("xskd")


class Peer:
    """A worker process as seen over its channel and its pidfd, whoever started it. Owns both.

    `plan` is the one that it works by.
    """

    def __init__(self, link: socket.socket, pidfd: int, plan: WorkerPlan) -> None:
        self.link, self.pidfd, self.plan = link, pidfd, plan
        self.link.setblocking(False)
        self.error: str | None = None  # what it said of its failure
        self.order: object = None  # the capture it was told of, see captures.py
        self._pid = _pid_of(pidfd)
        self._cpu_seconds = 0.0  # as last asked

    @property
    def pid(self) -> int | None:
        """Its process id, None once it is gone, or if it was never known. Needs no descriptor."""
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # it is there
            pass
        return self._pid

    def receive(self) -> tuple[list[channel.Message], bool]:
        """The messages that have arrived, and whether more can come. Never waits."""
        messages: list[channel.Message] = []
        while True:
            try:
                message = channel.receive_text(self.link)
            except ConnectionError:
                return messages, False
            except OSError:  # nothing there, or no memory for it now: the channel stays readable
                return messages, True
            if message is None:
                return messages, False
            messages.append(message)

    def tell(self, verb: str, *, descriptors: Sequence[int] = (), **more: object) -> None:
        """Say one word to it; to a worker that is dead already it makes no difference.

        One that cannot be told is killed: it would wait for a word that never comes, or work by an old plan.
        """
        try:
            channel.send(self.link, {"verb": verb, **more}, descriptors)
        except ConnectionError:
            pass
        except OSError as error:
            log.warning("%s: cannot be told to %s, killed: %s", self.plan.name, verb, kernel_said(error))
            self.kill()

    @property
    def stopped(self) -> bool:
        """Has somebody stopped it (SIGSTOP, a debugger)? Then it does nothing it is asked for."""
        with contextlib.suppress(OSError):  # it is gone
            return Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] in "Tt"
        return False

    def has_worked(self, seconds: float) -> bool:
        """Has it had so many seconds of CPU since this was last asked? No if that cannot be told."""
        before = self._cpu_seconds
        with contextlib.suppress(OSError):
            if self._pid is not None:
                self._cpu_seconds = time.clock_gettime(~self._pid << 3 | CPUCLOCK_SCHED)
        return self._cpu_seconds - before >= seconds

    def kill(self) -> None:
        """SIGKILL, if it still runs and may be killed: root needs CAP_KILL for another user's process."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def exit_cause(self) -> str | None:
        """Why it ended, in a word fit for a label. Only whoever started a process is told."""
        return "unknown"

    def let_go(self) -> None:
        """Forget it: with its channel closed it drains and ends by itself."""
        self.link.close()
        os.close(self.pidfd)

    def close(self) -> bool:
        """End it if it still runs. False if it does not die, and holds its rings."""
        self.kill()
        dead = self._wait(END_SECONDS)
        self.let_go()
        return dead

    def _wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came in time."""
        ended = select.poll()
        ended.register(self.pidfd, select.POLLIN)
        return bool(ended.poll(seconds * 1000))


class WorkerProcess(Peer):
    """One worker process that we start. Raises OSError if it cannot be had.

    `descriptors` are the UMEM's memory, the counter page, and an XSK for each port. With `adopt` the sockets
    are bound and their rings in use already, and the worker goes on where another one stopped.
    """

    def __init__(self, plan: WorkerPlan, descriptors: Sequence[int], *, adopt: bool) -> None:
        link, theirs = channel.pair()
        with contextlib.ExitStack() as undo:
            undo.callback(link.close)  # which is the end of what may have been started
            with theirs:
                self._process = _start(theirs.fileno())
            pidfd = os.pidfd_open(self._process.pid)
            undo.callback(os.close, pidfd)
            super().__init__(link, pidfd, plan)
            self._pid = self._process.pid
            channel.send(link, {"plan": plan.to_json(), "adopt": adopt}, descriptors)  # EPIPE: it died
            undo.pop_all()

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

    def _wait(self, seconds: float) -> bool:
        """Wait for its end and reap it; whether it came in time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _pid_of(pidfd: int) -> int | None:
    """The id of a process; None where the kernel does not say, without /proc for one."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii")
        if found := re.search(r"^Pid:\s+(\d+)$", text, re.MULTILINE):
            return int(found[1])
    return None


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter that knows nothing but its end of the channel."""
    ours = ("NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_")  # what systemd tells the supervisor, and nobody else
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"PYTHONPATH": str(PACKAGE_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-s", "-m", "xskd.worker", str(descriptor)]
    return subprocess.Popen(
        command, pass_fds=(descriptor,), stdin=subprocess.DEVNULL, env=environment, cwd="/"
    )
