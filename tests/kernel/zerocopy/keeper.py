"""Keeps a daemon's descriptors from one process to the next, as systemd's store does, without systemd.

As a module: a Keeper listens at NOTIFY_SOCKET, keeps what is stored and drops what is removed. As a
program, `keeper.py DIRECTORY COMMAND...`: takes everything from a Keeper, puts it where systemd would
(LISTEN_FDS), and becomes the command. To boot systemd itself in an emulated machine would take longer than
all tests of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import sys
import threading
from pathlib import Path

FIRST = 3  # the first descriptor that systemd hands down
ABOVE = 300  # and where there is room before that
MAX = 250


class Keeper:
    """The store of one daemon; `prefix` is what to start its command by."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(directory / "notify"))
        self._asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asked.bind(str(directory / "handed-down"))
        self._asked.listen()
        self.prefix = (sys.executable, "-S", __file__, str(directory))
        self._kept: dict[str, int] = {}
        self._end = os.pipe()
        self._thread = threading.Thread(
            target=self._keep, daemon=True
        )  # a test that fails to close it still ends
        self._thread.start()

    def close(self) -> None:
        """Let go of everything, as systemd does when a service has been stopped."""
        os.close(self._end[1])
        self._thread.join()
        for fd in (*self._kept.values(), self._end[0]):
            os.close(fd)
        self._kept.clear()
        self._told.close()
        self._asked.close()

    def _keep(self) -> None:
        while True:
            readable, _, _ = select.select([self._end[0], self._told.fileno(), self._asked.fileno()], [], [])
            if self._end[0] in readable:
                return
            if self._told.fileno() in readable:  # before somebody asks: all that was said until then
                self._heed(*socket.recv_fds(self._told, 65536, MAX)[:2])
            elif self._asked.fileno() in readable:
                successor, _ = self._asked.accept()
                with successor:
                    socket.send_fds(
                        successor, [json.dumps(list(self._kept)).encode()], list(self._kept.values())
                    )

    def _heed(self, message: bytes, descriptors: list[int]) -> None:
        said = dict(line.split("=", 1) for line in message.decode().splitlines() if "=" in line)
        name = said.get("FDNAME", "")
        if "FDSTOREREMOVE" in said and name in self._kept:
            os.close(self._kept.pop(name))
        for fd in descriptors:
            if "FDSTORE" in said and name not in self._kept:
                self._kept[name] = fd
            else:
                os.close(fd)


def become(directory: Path, command: list[str]) -> None:
    """Be the command, with everything that was kept."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.connect(str(directory / "handed-down"))
        names, received, _, _ = socket.recv_fds(keeper, 65536, MAX)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, ABOVE) for fd in received]
    for place, fd in enumerate(high, FIRST):
        os.dup2(fd, place)
    os.environ.update(
        LISTEN_PID=str(os.getpid()),
        LISTEN_FDS=str(len(high)),
        LISTEN_FDNAMES=":".join(json.loads(names)),
        NOTIFY_SOCKET=str(directory / "notify"),
        RUNTIME_DIRECTORY=str(directory),
    )
    os.execvp(command[0], command)


if __name__ == "__main__":
    become(Path(sys.argv[1]), sys.argv[2:])
