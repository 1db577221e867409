"""What outlives the supervisor: descriptors in systemd's store, and a file that says what they are.

systemd keeps what it is given (`FileDescriptorStoreMax=`) while the unit restarts, and hands it to the next
process; `systemctl stop` lets go of it, and with the last descriptor the kernel frees sockets, memory, maps
and programs. What belongs together is stored together: the descriptors travel as one message into a unix
socket that nobody reads, and the socket is what systemd keeps. So a set is there as a whole or not at all;
and descriptors that share an inode, as all BPF maps and links do, are not taken for one another, which
systemd does where the kernel lacks kcmp(2).

The file lies in the unit's RuntimeDirectory= and is replaced as a whole, so a successor reads an old picture
or a new one, never half of one. This module must never decide what is still good: it stores, hands out and
forgets. Without systemd it does nothing.
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from systemd.daemon import listen_fds_with_names, notify

STATE = "state.json"
MAX_MESSAGE = 65536  # bytes
FD_BYTES = array.array("i").itemsize
MAX_DESCRIPTORS = 250  # of one set; the kernel takes 253 in a message


log = logging.getLogger("xskd")


class Store:
    """The store of this process.

    `active`: there is one. `inherited`: a predecessor left something in it, so this is not a first start.
    """

    def __init__(self) -> None:
        directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self.active = bool(directory and os.environ.get("NOTIFY_SOCKET"))
        self._state = Path(directory) / STATE
        self._handed_down: dict[str, socket.socket] = {}
        if self.active:
            for fd, name in _handed_down().items():
                try:
                    self._handed_down[name] = socket.socket(fileno=fd)
                    self._handed_down[name].set_inheritable(False)
                except OSError:  # no socket, so nothing that we have put there
                    os.close(fd)
        self.inherited = bool(self._handed_down)

    def put(self, name: str, descriptors: Mapping[str, int]) -> None:
        """Have systemd keep copies of these, as one set; a set of this name takes the place of an older one.

        A kernel that has no room for them costs the next restart, not this daemon.
        """
        self.drop(name)
        if not self.active:
            return
        try:
            inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with inside, outside:
                message = json.dumps(list(descriptors)).encode()
                socket.send_fds(outside, [message], list(descriptors.values()))
                # Nobody writes to it any more; systemd would take that for a reason to throw it away.
                notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fds=[inside.fileno()])
        except OSError as error:
            log.error("%s cannot be stored, so a restart will start it anew: %s", name, error)

    def take(self, name: str) -> dict[str, int] | None:
        """Copies of a set that was handed down, the caller's from now on; None if there is none.

        The set itself stays in the store: should this process die early, its successor finds it again.
        """
        if (inside := self._handed_down.pop(name, None)) is None:
            return None
        descriptors = array.array("i")
        with inside, contextlib.suppress(OSError, TypeError, ValueError):
            flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            # Not socket.recv_fds(): Python 3.11's forgets the flags, and the set would be gone.
            room = socket.CMSG_LEN(MAX_DESCRIPTORS * FD_BYTES)
            data, ancillary, _, _ = inside.recvmsg(MAX_MESSAGE, room, flags)
            for _, _, content in ancillary:
                descriptors.frombytes(content[: len(content) // FD_BYTES * FD_BYTES])
            return dict(zip(json.loads(data), descriptors, strict=True))
        for fd in descriptors:  # nobody knows what they are
            os.close(fd)
        return None

    @property
    def untaken(self) -> list[str]:
        """Names of what was handed down and nobody has taken."""
        return sorted(self._handed_down)

    def drop(self, name: str) -> None:
        """Have systemd close its copies of a set, and close ours if nobody has taken it."""
        if (inside := self._handed_down.pop(name, None)) is not None:
            inside.close()
        if self.active:
            with contextlib.suppress(OSError):  # nobody listens who could have them
                notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def save(self, state: str) -> None:
        """Replace the state file. Raises OSError: without the file a successor starts anew."""
        if self.active:
            draft = self._state.with_suffix(".new")
            draft.write_text(state, encoding="utf-8")
            draft.replace(self._state)

    def load(self) -> dict[str, Any]:
        """What the predecessor saved; empty if there was none, or nothing that can be read."""
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(self._state.read_text(encoding="utf-8")) if self.active else {}
            return state if isinstance(state, dict) else {}
        return {}


def _handed_down() -> dict[int, str]:
    """What systemd has handed us; nothing if its variables make no sense."""
    try:
        return dict(listen_fds_with_names())
    except OSError:
        return {}
