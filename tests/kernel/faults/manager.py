"""A service manager for a daemon in a test: what systemd does for the unit, as far as a death needs it.

It keeps the descriptors that the daemon stores and hands them to the next process, starts that one when a
process has ended without being asked to, and ends one that does not ping in time. The real systemd does this
in tests/system, where one restart takes two seconds; here hundreds are tried. It must never know what it
stores.
"""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from conftest import Wire
from daemon import READY_SECONDS, Daemon

from xskd.errors import XskdError

RESTART_SECONDS = 0.1  # the unit has a second, so that a crash at every start costs little
WATCHDOG_SECONDS = 10.0  # as the unit
# The descriptors as sd_listen_fds(3) wants them: from 3 on, and the name of the process they are meant for.
HAND_DOWN = """
import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 2000) for fd in sys.argv[1].split(",") if fd]
os.closerange(3, 2000)
for at, fd in enumerate(high, 3):
    os.dup2(fd, at)
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), str(len(high))
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Managed(Daemon):
    """One daemon under its manager; `starts` counts its processes."""

    def __init__(self, net: Wire, directory: Path, text: str) -> None:
        self._runtime = directory / "runtime"
        self._runtime.mkdir()
        self._heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._heard.bind(str(directory / "notify"))
        self._heard.settimeout(0.02)
        self._address = directory / "notify"
        self._kept: dict[str, int] = {}
        self._pinged: float | None = None  # the watchdog watches from READY=1 on
        self._over = threading.Event()
        self.starts = 1
        super().__init__(net, directory, text)
        self._thread = threading.Thread(target=self._manage)
        self._thread.start()

    def launch(self, prefix: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process with everything that is kept."""
        environment = {
            "NOTIFY_SOCKET": str(self._address),
            "RUNTIME_DIRECTORY": str(self._runtime),
            "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6)),
            "LISTEN_FDNAMES": ":".join(self._kept),
        }
        given = ("env", *(f"{name}={value}" for name, value in environment.items()))
        descriptors = list(self._kept.values())
        command = (sys.executable, "-S", "-c", HAND_DOWN, ",".join(map(str, descriptors)))
        self._pinged = None
        with self._log.open("a") as log:
            run = (sys.executable, "-m", "xskd", "run", "-c", str(self.file))
            whole = ("ip", "netns", "exec", self.net.dut, *given, *prefix, *command, *run)
            return subprocess.Popen(
                whole, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=descriptors
            )

    def end(self) -> None:
        """As `systemctl stop`: end it, then let go of everything that is kept."""
        self._over.set()
        self._thread.join()
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(READY_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._listen()
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()
        self._heard.close()

    @property
    def well(self) -> bool:
        """Is a supervisor in charge, and does every worker forward?"""
        with suppress(XskdError):
            status = self.status()
            return status["ready"] and all(w["state"] == "forwarding" for w in status["workers"])
        return False

    @property
    def kept(self) -> list[str]:
        """Names of what is kept."""
        return sorted(self._kept)

    # ---- what the manager does -------------------------------------------------------------------

    def _manage(self) -> None:
        while not self._over.is_set():
            self._listen()
            if self.process.poll() is not None:
                self._listen()  # its last words
                if not self._over.wait(RESTART_SECONDS):
                    self.process = self.launch(())
                    self.starts += 1
            elif self._pinged is not None and time.monotonic() - self._pinged > WATCHDOG_SECONDS:
                self._pinged = None
                for sign in (signal.SIGABRT, signal.SIGCONT):  # as systemd, see kill_and_sigcont()
                    self.process.send_signal(sign)

    def _listen(self) -> None:
        """Heed all that has been said."""
        with suppress(TimeoutError):
            while True:
                # Not socket.recv_fds(): Python 3.11's forgets its flags.
                room = socket.CMSG_LEN(array.array("i").itemsize)
                data, ancillary, _, _ = self._heard.recvmsg(65536, room, socket.MSG_CMSG_CLOEXEC)
                descriptors = array.array("i")
                for _, _, content in ancillary:
                    descriptors.frombytes(content)
                self._heed(data.decode(), list(descriptors))

    def _heed(self, text: str, descriptors: list[int]) -> None:
        fields = dict(line.partition("=")[::2] for line in text.splitlines())
        if {"READY", "WATCHDOG"} & fields.keys():
            self._pinged = time.monotonic()
        if "FDSTOREREMOVE" in fields and (fd := self._kept.pop(fields["FDNAME"], None)) is not None:
            os.close(fd)
        if "FDSTORE" in fields:
            (self._kept[fields["FDNAME"]],) = descriptors


@contextmanager
def managed(net: Wire, directory: Path, text: str) -> Iterator[Managed]:
    """Start a daemon under a manager, wait until it is ready, and end both."""
    daemon = Managed(net, directory, text)
    try:
        daemon.until_ready()
        yield daemon
    finally:
        daemon.end()
