"""`/metrics`: the HTTP side of it.

A scrape is served by a thread and asks the supervisor's loop for one DaemonStatus; the page is made of that
in the thread, on a CPU that no worker is pinned to. It must never touch a worker, a socket or a counter page
itself, and never make them wait.
prometheus-client serves it, and adds what it knows of any process: the supervisor's own memory, CPU time and
descriptors (process_*).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Set
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import ThreadingWSGIServer

from xskd.errors import XskdError
from xskd.page import page
from xskd.status import DaemonStatus

SCRAPE_TIMEOUT = 5.0  # seconds for the supervisor's loop to answer; Prometheus itself waits 10
CLIENT_TIMEOUT = 10.0  # seconds for a client to say what it wants, and to take each part of the answer

PAUSE_SECONDS = 0.5  # without a descriptor for a connection, before the next try


class Scraper:
    """The page of one moment, for whoever is not the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, status: Callable[[], DaemonStatus]) -> None:
        self._loop, self._status = loop, status
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    def page(self) -> bytes:
        """All metrics. Raises TimeoutError if the loop does not answer."""
        picture = self._picture()
        step_aside({worker.cpu for worker in picture.workers if worker.cpu is not None})
        return page(picture).encode() + generate_latest(self._process)

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
    ) -> None:
        host, port = listen
        self._scraper = Scraper(loop, status)
        server = _Server6 if _is_ipv6(host, port) else _Server
        self._server = make_server(host, port, self._answer, server, _Handler)
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


class _Server(ThreadingWSGIServer):
    def get_request(self) -> Any:
        """Take a connection. Without a descriptor the select before this is over at once: wait here."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(PAUSE_SECONDS)
            raise


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a scrape is no news."""


def _is_ipv6(host: str, port: int) -> bool:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return found[0][0] == socket.AF_INET6
