"""`/metrics`: the HTTP side of it.

A scrape is served by a thread and asks the supervisor's loop for one DaemonStatus; the page is made of that
in the thread, on a CPU that no worker is pinned to. It must never touch a worker, a socket or a counter page
itself, and never make them wait.

Whoever reaches the port may ask, and need not mean well: connections are bounded in number, each in time and
in what it may say, and one page is made at a time. So the supervisor keeps its memory, descriptors and CPU,
and a scrape finds a place however many connections say nothing.

prometheus-client serves it, and adds what it knows of any process: the supervisor's own memory, CPU time and
descriptors (process_*).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from typing import IO, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import ThreadingWSGIServer

from xskd.errors import XskdError
from xskd.page import page
from xskd.refusals import Reason, Refusals
from xskd.status import DaemonStatus

SCRAPE_TIMEOUT = 5.0  # seconds for the supervisor's loop to answer; Prometheus itself waits 10
CLIENT_SECONDS = 10.0  # from the beginning of a connection to its end, as long as Prometheus itself waits
ASKING_SECONDS = 0.25  # a client that has not asked by then makes room for another, where there is none
MAX_CLIENTS = 32  # connections at once
MAX_REQUEST = 16384  # bytes of a request; Prometheus' have some hundred
PAUSE_SECONDS = 0.5  # without a descriptor for a connection, before the next try


class Scraper:
    """The page of one moment, for whoever is not the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, status: Callable[[], DaemonStatus]) -> None:
        self._loop, self._status = loop, status
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        self._turn = threading.Lock()  # a loop that shares the GIL with many of these is late for its work

    def page(self) -> bytes:
        """All metrics. Raises TimeoutError if the loop does not answer, or too many want a page."""
        if not self._turn.acquire(timeout=SCRAPE_TIMEOUT):
            raise TimeoutError("too many scrapes at once")
        try:
            picture = self._picture()
            step_aside({worker.cpu for worker in picture.workers if worker.cpu is not None})
            return page(picture).encode() + generate_latest(self._process)
        finally:
            self._turn.release()

    def _picture(self) -> DaemonStatus:
        answer: concurrent.futures.Future[DaemonStatus] = concurrent.futures.Future()

        def take() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(self._status())
                except Exception as error:  # whatever it is, somebody waits for it
                    answer.set_exception(error)

        self._loop.call_soon_threadsafe(take)
        return answer.result(SCRAPE_TIMEOUT)


def step_aside(taken: Set[int]) -> None:
    """Let this thread work on other CPUs than those, where it has any: a page takes a while."""
    if others := os.sched_getaffinity(0) - taken:
        os.sched_setaffinity(0, others)


class Endpoint:
    """`/metrics` on host and port, served by threads of its own. OSError if it cannot listen there."""

    def __init__(
        self,
        listen: tuple[str, int],
        loop: asyncio.AbstractEventLoop,
        status: Callable[[], DaemonStatus],
        refusals: Refusals | None = None,
    ) -> None:
        host, port = listen
        self._scraper = Scraper(loop, status)
        server = _Server6 if _is_ipv6(host, port) else _Server
        self._server = make_server(host, port, self._answer, server, _Handler)
        self._server.refusals = refusals or Refusals()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def _answer(self, request: dict[str, Any], begin: Callable[..., Any]) -> Iterable[bytes]:
        """One request, as WSGI has it."""
        if request["PATH_INFO"] not in ("/", "/metrics"):
            begin("404 Not Found", [("Content-Type", "text/plain")])
            return [b"the metrics are at /metrics\n"]
        try:
            body = self._scraper.page()
        except (OSError, XskdError) as error:  # TimeoutError is one of them
            begin("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [f"xskd does not answer: {error or 'its loop is stuck'}\n".encode()]
        begin("200 OK", [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4), ("Content-Length", str(len(body)))])
        return [body]

    def close(self) -> None:
        """Stop serving. Does not wait for the thread, which may take half a second to notice."""
        threading.Thread(target=self._shut, daemon=True).start()

    def _shut(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        while self._server.clients:
            self._server.service_actions()
            time.sleep(ASKING_SECONDS)


class _Server(ThreadingWSGIServer):
    """A thread for each of a bounded number of connections, and an end for each of them in time.

    A connection is in `_since` from its acceptance until its thread closes it. Only then is its descriptor
    used by others, so whoever ends it from outside does that under the lock, while it is there.
    """

    request_queue_size = 128  # who finds the kernel's queue full comes again after a second
    refusals: Refusals

    def __init__(self, *args: Any, **more: Any) -> None:
        self._lock = threading.Lock()
        self._since: dict[socket.socket, float] = {}
        self._asking: set[socket.socket] = set()
        super().__init__(*args, **more)

    def get_request(self) -> Any:
        """Take a connection. Without a descriptor the select before this is over at once: wait here."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one more, if there is a place, or one can be had."""
        with self._lock:
            if len(self._since) >= MAX_CLIENTS:
                self._end([each for each in self._oldest(ASKING_SECONDS) if each in self._asking][:1], "slow")
            place = len(self._since) < MAX_CLIENTS
            if place:
                self._since[request] = time.monotonic()
                self._asking.add(request)
        if place:
            super().process_request(request, client_address)
        else:
            self.refusals.count("metrics", "busy")
            self.shutdown_request(request)

    def asked(self, request: socket.socket) -> None:
        """It has said what it wants, and keeps its place until it has the answer."""
        with self._lock:
            self._asking.discard(request)

    def service_actions(self) -> None:
        """End those whose time is over. Called twice a second, and after each new one."""
        with self._lock:
            self._end(self._oldest(CLIENT_SECONDS), "slow")

    @property
    def clients(self) -> int:
        """How many there are now."""
        return len(self._since)

    def shutdown_request(self, request: Any) -> None:
        """The end of each connection, whatever became of it."""
        with self._lock:
            self._forget(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that broke: or its clients could fill the journal."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _oldest(self, seconds: float) -> list[socket.socket]:
        """Those that are older than that, in order."""
        began = time.monotonic() - seconds
        return [request for request, since in self._since.items() if since < began]

    def _end(self, requests: Iterable[socket.socket], reason: Reason) -> None:
        """Cut connections off; their threads see that, and close them."""
        for request in requests:
            self.refusals.count("metrics", reason)
            self._forget(request)
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def _forget(self, request: socket.socket) -> None:
        self._since.pop(request, None)
        self._asking.discard(request)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile = _Bounded(self.rfile)  # type: ignore[assignment, arg-type]

    def parse_request(self) -> bool:
        whole = super().parse_request()
        self.server.asked(self.request)
        return whole

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a scrape is no news."""


class _Bounded:
    """What a client says, up to MAX_REQUEST bytes; the http module alone would take some megabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, MAX_REQUEST

    def readline(self, size: int) -> bytes:
        if not self._left:
            raise http.client.LineTooLong("request")
        line = self._file.readline(min(size, self._left))
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._file.close()


def _is_ipv6(host: str, port: int) -> bool:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return found[0][0] == socket.AF_INET6
