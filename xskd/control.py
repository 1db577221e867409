"""The unix socket behind `xskd status`, `reload`, `capture`: one question a connection, in lines of JSON.

    -> {"verb": "status"}
    <- {"ok": true, "status": {...}}      or      {"ok": false, "error": "..."}
    -> {"verb": "reload", "dry": false}
    <- {"ok": true, "actions": ["..."]}   or      {"ok": false, "error": "...", "config": true}
    -> {"verb": "capture", "path": "wire", "queue": null, "direction": "in", "snaplen": 65535,
        "filter": [[code, jt, jf, k], ...]}
    <- {"ok": true, "rings": [{"worker": "wire/0", "ports": [["eth1", 0], ["eth2", 0]]}, ...]}

With the last answer come the rings' descriptors (SCM_RIGHTS), one of each worker in this order; what is in
them says csrc/capture.h. The capture lasts as long as the connection. If the daemon has to end it, it says
why in one more line, like a refusal.

Who may open the socket may ask, and its file mode says who: its owner and root, and with control.group the
members of that group, who may ask for status and captures but change nothing. A client that is slow, silent
or talks nonsense must never keep the supervisor from its work: sizes, times and numbers are bounded, and the
group's members have places of their own, so that they cannot keep root from asking. Who is turned away
because all places are taken comes again by itself for a while (`ask`).
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xskd.errors import ConfigError, XskdError
from xskd.listening import Listener
from xskd.refusals import Refusals
from xskd.status import DaemonStatus
from xskd.tap import MAX_RINGS

if TYPE_CHECKING:  # a client needs none of it
    from xskd.captures import Capture, Captures

MAX_REQUEST = 65536  # bytes: a filter of the largest size takes less than half of it
OPEN_TO_GROUP = ("status", "capture")
REQUEST_SECONDS = 2.0  # for a client to say what it wants, and to take the answer
ANSWER_SECONDS = 5.0  # for a daemon to answer us
RELOAD_SECONDS = 70.0  # the same, when it has work to do first; it gives up earlier than we do
BUSY_SECONDS = 5.0  # for a daemon whose places are all taken to have one; the slowest has its for two
RETRY_SECONDS = 0.1
MAX_CLIENTS = 16  # at once, of those who may do everything; and as many of the group

log = logging.getLogger("xskd")


class Refused(XskdError):
    """The daemon was asked and says no; `config`: because of the configuration, with a line per problem."""

    def __init__(self, text: str, *, config: bool) -> None:
        super().__init__(text)
        self.config = config


class NoAnswer(XskdError):
    """There is no daemon, or it cannot be asked."""


class Busy(NoAnswer):
    """There is one, and all its places are taken."""


class ControlServer:
    """Listens on `path` from `start` to `close`. XskdError if another daemon listens there.

    Members of `group` may ask what changes nothing.
    """

    def __init__(
        self,
        path: Path,
        status: Callable[[], DaemonStatus],
        reload: Callable[..., Awaitable[list[str]]],
        captures: Captures,
        *,
        group: str | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self.path, self._status, self._reload = path, status, reload
        self._captures, self._group = captures, group
        self._refusals = refusals or Refusals()
        self._clients = {True: 0, False: 0}  # may do everything, or is of the group
        self._server: Listener | None = None

    async def start(self) -> None:
        """Begin to listen, over a socket file that a dead daemon may have left."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_socket():
                _refuse_if_alive(self.path)
                self.path.unlink()
            listening = _listen(self.path, self._group)
            try:
                self._server = Listener(listening, self._serve, MAX_REQUEST)
            except OSError:
                listening.close()
                self.path.unlink()
                raise
        except OSError as error:
            raise XskdError(
                f"control socket {self.path}: {error.strerror}; see key control.socket"
            ) from error

    async def close(self) -> None:
        """Stop listening and remove the file."""
        if self._server is not None:
            self._server.close()
            try:
                self.path.unlink()
            except FileNotFoundError:
                pass
            except OSError as error:  # no reason to end otherwise than in order
                log.warning("control socket %s stays behind: %s", self.path, error.strerror)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trusted = _trusted(_asker(writer))
        self._clients[trusted] += 1
        try:
            if self._clients[trusted] > MAX_CLIENTS:
                self._refusals.count("control", "busy")
                return
            async with asyncio.timeout(REQUEST_SECONDS):
                line = await reader.readline()
            answer = await self._answer(line, trusted=trusted)
            if not isinstance(answer, dict):
                await self._attend(answer, reader, writer, trusted=trusted)
                return
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except TimeoutError:
            self._refusals.count("control", "slow")
            writer.transport.abort()  # closing would wait until it has taken what it does not take
        except (ValueError, OSError):
            pass  # a client that cannot ask or does not listen has no one but itself to tell
        finally:
            self._clients[trusted] -= 1
            writer.close()

    async def _attend(
        self,
        capture: Capture,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        trusted: bool,
    ) -> None:
        """Hand over the rings, and end the capture when either side has had enough."""
        self._clients[trusted] -= 1  # it may take hours, and keeps nobody else from asking
        try:
            answer = json.dumps({"ok": True, "rings": capture.describe()}).encode() + b"\n"
            with writer.get_extra_info("socket").dup() as connection:
                sent = socket.send_fds(connection, [answer], capture.descriptors())
            writer.write(answer[sent:])
            gone = asyncio.ensure_future(reader.read(1))
            either: set[asyncio.Future[Any]] = {gone, capture.over}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if capture.over.done():
                writer.write(json.dumps({"ok": False, "error": capture.over.result()}).encode() + b"\n")
        finally:
            self._clients[trusted] += 1
            self._captures.end(capture)

    async def _answer(self, line: bytes, *, trusted: bool) -> dict[str, Any] | Capture:
        try:
            question: Any = json.loads(line)
            match question:
                case {"verb": verb} if verb not in OPEN_TO_GROUP and not trusted:
                    allowed = " and ".join(OPEN_TO_GROUP)
                    raise XskdError(
                        f"{verb}: only root and the daemon's own user may; the group may ask for {allowed}"
                    )
                case {"verb": "capture"}:
                    return await self._captures.begin(question)
                case {"verb": "status"}:
                    return {"ok": True, "status": self._status().as_json()}
                case {"verb": "reload", "dry": bool(dry)}:
                    return {"ok": True, "actions": await self._reload(dry=dry)}
                case {"verb": "reload"}:
                    raise XskdError('a reload says "dry": true or false')
                case {"verb": verb}:
                    raise XskdError(f"unknown verb {verb!r}; known: status, reload, capture")
                case _:
                    raise ValueError
        except (ValueError, RecursionError):
            return {"ok": False, "error": 'expected one line of JSON like {"verb": "status"}'}
        except ConfigError as error:
            return {"ok": False, "error": str(error), "config": True}
        except XskdError as error:
            return {"ok": False, "error": str(error)}


def ask(path: Path, verb: str, **more: object) -> dict[str, Any]:
    """Put one question to the daemon that listens on `path`; again for a while if it is busy.

    XskdError if there is none or it refuses, Refused where its answer is a reason that stands for itself.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return _ask_once(path, verb, **more)
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def _ask_once(path: Path, verb: str, **more: object) -> dict[str, Any]:
    with _asking(path), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(RELOAD_SECONDS if verb == "reload" else ANSWER_SECONDS)
        client.connect(os.fspath(path))
        client.sendall(json.dumps({"verb": verb, **more}).encode() + b"\n")
        answer = json.loads(client.makefile("rb").readline() or b"null")
    return _accepted(path, answer)


def ask_for_rings(where: Path, **wanted: object) -> tuple[socket.socket, list[dict[str, Any]], list[int]]:
    """Begin a capture, which lasts until the connection is closed: connection, rings, their descriptors.

    Raises as `ask` does.
    """
    client = socket.socket(socket.AF_UNIX)
    fds: list[int] = []
    try:
        with _asking(where):
            client.settimeout(ANSWER_SECONDS)
            client.connect(os.fspath(where))
            client.sendall(json.dumps({"verb": "capture", **wanted}).encode() + b"\n")
            line, fds, _, _ = socket.recv_fds(client, MAX_REQUEST, MAX_RINGS)
            while line and not line.endswith(b"\n") and (more := client.recv(MAX_REQUEST)):
                line += more
            answer = json.loads(line or b"null")
        rings = _accepted(where, answer)["rings"]
        if len(rings) != len(fds):
            raise XskdError(f"{where}: {len(rings)} rings, but {len(fds)} came")
    except BaseException:
        client.close()
        for fd in fds:
            os.close(fd)
        raise
    return client, rings, fds


@contextlib.contextmanager
def _asking(path: Path) -> Iterator[None]:
    """XskdError for all that may happen between us and a daemon."""
    try:
        yield
    except (ConnectionResetError, BrokenPipeError, BlockingIOError) as error:  # the last: too many knock
        raise Busy(f"{path}: the daemon is too busy to answer") from error
    except PermissionError as error:
        who = "root, the daemon's own user and the members of control.group, if it is set"
        raise NoAnswer(f"{path}: only {who}, may ask") from error
    except (OSError, ValueError) as error:
        raise NoAnswer(
            f"no xskd answers on {path} ({error}); is it running? see key control.socket"
        ) from error


def _accepted(path: Path, answer: dict[str, Any] | None) -> dict[str, Any]:
    if not answer:
        raise Busy(f"{path}: the daemon is too busy to answer")
    if not answer.get("ok"):
        raise Refused(answer["error"], config=bool(answer.get("config")))
    return dict(answer)


def _asker(writer: asyncio.StreamWriter) -> int:
    """The user who asks, as the kernel knows it."""
    credentials = struct.Struct("3i")  # struct ucred: pid, uid, gid
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return int(credentials.unpack(raw)[1])


def _trusted(uid: int) -> bool:
    """May this user do everything? Others that get here are of the group."""
    return uid in (0, os.geteuid())


def _listen(path: Path, group: str | None) -> socket.socket:
    """A socket file that only its owner may use, from its first moment on; then the group, if any."""
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(os.fspath(path))
        if group is not None:
            _let_in(path, group)
    except (OSError, XskdError):
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


def _let_in(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(0o660)
    except KeyError:
        raise XskdError(f"this machine has no group {group}; see key control.group") from None
    except PermissionError as error:
        raise XskdError(
            f"{path} cannot be given to group {group}, of which the daemon is no member: add "
            f"SupplementaryGroups={group} to its unit; see key control.group"
        ) from error


def _refuse_if_alive(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return
    raise XskdError(f"another xskd is running and listens on {path}; stop it, or change key control.socket")
