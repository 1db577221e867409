"""The unix socket behind `xskd status` and `xskd reload`: a question a connection, a line of JSON each way.

    -> {"verb": "status"}
    <- {"ok": true, "status": {...}}      or      {"ok": false, "error": "..."}
    -> {"verb": "reload", "dry": false}
    <- {"ok": true, "actions": ["..."]}   or      {"ok": false, "error": "...", "config": true}

Whoever may open the socket may ask; its file mode (owner only) is the whole access control. A client that is
slow, silent or talks nonsense must never keep the supervisor from its work: sizes and times are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from xskd.errors import ConfigError, XskdError
from xskd.status import DaemonStatus

MAX_REQUEST = 4096  # bytes
REQUEST_SECONDS = 2.0  # for a client to say what it wants, and to take the answer
ANSWER_SECONDS = 5.0  # for a daemon to answer us
RELOAD_SECONDS = 70.0  # the same, when it has work to do first; it gives up earlier than we do
MAX_CLIENTS = 16


class Refused(XskdError):
    """The daemon was asked and says no; `config`: because of the configuration, with a line per problem."""

    def __init__(self, text: str, *, config: bool) -> None:
        super().__init__(text)
        self.config = config


class ControlServer:
    """Listens on `path` from `start` to `close`. XskdError if another daemon listens there."""

    def __init__(
        self,
        path: Path,
        status: Callable[[], DaemonStatus],
        reload: Callable[..., Awaitable[list[str]]],
    ) -> None:
        self.path, self._status, self._reload = path, status, reload
        self._clients = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen, over a socket file that a dead daemon may have left."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_socket():
                _refuse_if_alive(self.path)
                self.path.unlink()
            listening = _listen(self.path)
        except OSError as error:
            raise XskdError(
                f"control socket {self.path}: {error.strerror}; see key control.socket"
            ) from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_REQUEST)

    async def close(self) -> None:
        """Stop listening and remove the file."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= MAX_CLIENTS:
                async with asyncio.timeout(REQUEST_SECONDS):
                    line = await reader.readline()
                answer = await self._answer(line)
                async with asyncio.timeout(REQUEST_SECONDS):
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
        except (TimeoutError, ValueError, OSError):
            pass  # a client that cannot ask or does not listen has no one but itself to tell
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            match json.loads(line):
                case {"verb": "status"}:
                    return {"ok": True, "status": self._status().as_json()}
                case {"verb": "reload", "dry": bool(dry)}:
                    return {"ok": True, "actions": await self._reload(dry=dry)}
                case {"verb": "reload"}:
                    raise XskdError('a reload says "dry": true or false')
                case {"verb": verb}:
                    raise XskdError(f"unknown verb {verb!r}; known: status, reload")
                case _:
                    raise ValueError
        except (ValueError, RecursionError):
            return {"ok": False, "error": 'expected one line of JSON like {"verb": "status"}'}
        except ConfigError as error:
            return {"ok": False, "error": str(error), "config": True}
        except XskdError as error:
            return {"ok": False, "error": str(error)}


def ask(path: Path, verb: str, **more: object) -> dict[str, Any]:
    """Put one question to the daemon that listens on `path`.

    XskdError if there is none or it refuses, Refused where its answer is a reason that stands for itself.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(RELOAD_SECONDS if verb == "reload" else ANSWER_SECONDS)
            client.connect(os.fspath(path))
            client.sendall(json.dumps({"verb": verb, **more}).encode() + b"\n")
            answer = json.loads(client.makefile("rb").readline() or b"null")
    except (ConnectionResetError, BrokenPipeError) as error:
        raise XskdError(f"{path}: the daemon is too busy to answer") from error
    except PermissionError as error:
        raise XskdError(f"{path}: only the daemon's own user and root may ask") from error
    except (OSError, ValueError) as error:
        raise XskdError(
            f"no xskd answers on {path} ({error}); is it running? see key control.socket"
        ) from error
    if not answer:
        raise XskdError(f"{path}: the daemon is too busy to answer")
    if not answer.get("ok"):
        raise Refused(answer["error"], config=bool(answer.get("config")))
    return dict(answer)


def _listen(path: Path) -> socket.socket:
    """A socket file that only its owner may use, from its first moment on."""
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(os.fspath(path))
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


def _refuse_if_alive(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return
    raise XskdError(f"another xskd is running and listens on {path}; stop it, or change key control.socket")
