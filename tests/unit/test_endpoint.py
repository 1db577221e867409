"""The HTTP side of /metrics against clients that are a burden: many, slow, deaf, endless or mad."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fakes import connect, device, resting

from xskd import endpoint
from xskd.endpoint import Endpoint
from xskd.refusals import Refusals
from xskd.status import DaemonStatus

ASK = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def serving(
    client: Callable[[Endpoint, Refusals], Any], status: Callable[[], DaemonStatus] | None = None
) -> Any:
    """Let a client run in a thread while an endpoint serves; what it returns."""
    supervisor, refusals = resting(connect(), device("eth1"), device("eth2")), Refusals()

    async def both() -> Any:
        loop = asyncio.get_running_loop()
        served = Endpoint(("127.0.0.1", 0), loop, status or supervisor.status, refusals)
        try:
            return await asyncio.wait_for(asyncio.to_thread(client, served, refusals), 30)
        finally:
            served.close()

    return asyncio.run(both())


def connected(served: Endpoint) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=10)


def said(served: Endpoint, data: bytes) -> bytes:
    """Send bytes and take everything that comes until the server closes."""
    with connected(served) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").read()


def scraped(served: Endpoint) -> bool:
    asking = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    asking.request("GET", "/metrics")
    answer = asking.getresponse()
    page = answer.read()
    asking.close()
    return answer.status == 200 and b"xskd_info" in page


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def threads() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\xff\x16\x03\x01" * 20 + b"\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
        (b"BREW /nowhere HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(101)) + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 60_000 + b"\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", b"200"),
    ],
)
def test_what_is_no_scrape_is_answered_briefly(
    data: bytes, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    def client(served: Endpoint, refusals: Refusals) -> bytes:
        answer = b""
        try:
            answer = said(served, data)
        except OSError:  # closed while there was more of it to say
            answer = b"HTTP/1.0 " + status
        assert scraped(served)
        return answer

    answer = serving(client)
    assert status in answer.partition(b"\r\n")[0], answer[:200]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("said", [b"", b"G", b"GET /metrics HTTP/1.1\r\nX: "])
def test_a_connection_that_ends_before_it_asked_is_no_news(
    said: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    def client(served: Endpoint, refusals: Refusals) -> None:
        for _ in range(20):
            with connected(served) as asking:
                asking.sendall(said)
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        assert eventually(lambda: threads() == 0)
        assert scraped(served)

    serving(client)
    assert capfd.readouterr().err == ""


def test_a_byte_a_moment_does_not_keep_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "CLIENT_SECONDS", 0.5)

    def client(served: Endpoint, refusals: Refusals) -> None:
        with connected(served) as slow:
            slow.settimeout(0.05)
            began = time.monotonic()
            for byte in (ASK[:-2] + b"X: " + b"y" * 10_000)[: 30 * 20]:
                try:
                    slow.sendall(bytes([byte]))
                    if slow.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            else:
                raise AssertionError("still there after 30 s")
            assert time.monotonic() - began < 20
        assert refusals.counts()["metrics"] == {"busy": 0, "slow": 1}

    serving(client)


def test_who_does_not_take_the_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(endpoint, "CLIENT_SECONDS", 0.5)
    monkeypatch.setattr(endpoint, "page", lambda picture: "x" * (16 << 20))  # more than sockets hold

    def client(served: Endpoint, refusals: Refusals) -> None:
        with connected(served) as deaf:
            deaf.sendall(ASK)
            assert eventually(lambda: refusals.counts()["metrics"]["slow"] == 1)
            assert eventually(lambda: threads() == 0)

    serving(client)
    assert capfd.readouterr().err == ""


def test_a_crowd_that_says_nothing_keeps_nobody_from_scraping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_CLIENTS", 4)

    def client(served: Endpoint, refusals: Refusals) -> None:
        crowd = [connected(served) for _ in range(20)]
        assert eventually(lambda: sum(refusals.counts()["metrics"].values()) >= 16)
        time.sleep(endpoint.ASKING_SECONDS)  # the ones that were let in have had their time then
        for _ in range(3):
            assert scraped(served)
        assert threads() <= 4
        assert refusals.counts()["metrics"]["slow"] >= 1  # who was silent has made room
        for each in crowd:
            each.close()

    serving(client)


def test_who_has_asked_keeps_the_place_until_the_answer_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_CLIENTS", 1)
    began, go_on, pages = threading.Event(), threading.Event(), []

    def slowly(picture: DaemonStatus) -> str:
        began.set()
        go_on.wait(10)
        return "the page"

    monkeypatch.setattr(endpoint, "page", slowly)

    def client(served: Endpoint, refusals: Refusals) -> None:
        with connected(served) as first:
            first.sendall(ASK)
            assert began.wait(10)
            time.sleep(2 * endpoint.ASKING_SECONDS)
            with connected(served) as second:
                assert second.recv(1) == b""
            go_on.set()
            pages.append(first.makefile("rb").read())
        assert refusals.counts()["metrics"] == {"busy": 1, "slow": 0}

    serving(client)
    assert b"the page" in pages[0]


def test_what_is_open_when_the_endpoint_moves_has_its_time_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "CLIENT_SECONDS", 0.5)

    def client(served: Endpoint, refusals: Refusals) -> None:
        with connected(served) as silent:
            assert eventually(lambda: threads() == 1)
            served.close()
            assert silent.recv(1) == b""
        assert eventually(lambda: threads() == 0)

    serving(client)
