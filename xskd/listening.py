"""Taking connections for as long as there are descriptors for them, and waiting quietly where there are none.

asyncio's own server, out of descriptors, tries a hundred times in a row, logs a traceback for each, and does
that again and again: the loop would have no time left for its work just when it is needed. Nothing here knows
what is said on a connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

BACKLOG = 100
PAUSE_SECONDS = 0.5  # without a descriptor, before the next try; who knocks waits in the backlog

log = logging.getLogger("xskd")


class Listener:
    """Calls `serve` for each connection to a bound socket, which it owns, from now on until `close`.

    `limit` is the size in bytes of what a reader holds. Must be made inside the running loop.
    """

    def __init__(
        self,
        bound: socket.socket,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        limit: int,
    ) -> None:
        self._socket, self._serve, self._limit = bound, serve, limit
        self._pause: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()
        bound.listen(BACKLOG)
        bound.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Take no more; connections that there are go on. Again is no error."""
        asyncio.get_running_loop().remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()
        self._socket.close()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor or no memory left
            log.warning("no connection can be taken now: %s", error.strerror)
            loop.remove_reader(self._socket)
            self._pause = loop.call_later(PAUSE_SECONDS, self._listen)
            return
        client.setblocking(False)
        opening = loop.create_task(self._open(client))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def _open(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self._limit, loop=loop)
        await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader, self._serve, loop=loop), client
        )
