"""Clients of the control socket and of /metrics that mean no good, while a stream is forwarded.

Whatever they do, the stream loses nothing, the supervisor keeps its memory and its descriptors, and root's
`xskd status` and Prometheus' scrape are answered within a bound. The crowd of the control socket is of its
group: others do not get that far.
"""

from __future__ import annotations

import grp
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from daemon import METRICS, Daemon, Stream, connect, memory_kb, running
from test_nobody import NOBODY, in_the_open

from lab.figures import figure

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

HOST, PORT = METRICS.split(":")
RATE = 300  # packets a second
ROOM = "rings: {fill: 4096, rx: 2048, tx: 2048, completion: 2048}"  # six seconds without a CPU are no loss
ANSWER = 15.0  # seconds, as promised for a normal question among a crowd on a slow machine
MEMORY = 100_000.0  # kB that the supervisor may grow by meanwhile
DESCRIPTORS = 200.0  # likewise: what a listener has accepted and not looked at yet, besides those it serves
ASK = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

# Opens so many connections, does `how` with them, says when it has begun, opens new ones for those that were
# closed, and goes on until its standard input ends.
CROWD = """
import os, random, resource, select, socket, sys, time

how, count, where, seconds, user = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
os.nice(19)  # what it keeps from others is to be places and answers, not the CPU
os.setgroups([])
os.setgid(user)
os.setuid(user)
pick, alive = random.Random(1), {}
family = socket.AF_INET if ":" in where else socket.AF_UNIX
address = (where.split(":")[0], int(where.split(":")[1])) if ":" in where else where
asking = b"GET /metrics HTTP/1.1\\r\\nX: " if ":" in where else b'{"verb": "sta'
whole = b"GET /metrics HTTP/1.1\\r\\n\\r\\n" if ":" in where else b'{"verb": "status"}\\n'
words = (b"\\0", b"\\n", b"\\r\\n\\r\\n", b"GET ", b"{", b"[" * 999, b'"verb":', b"\\xff" * 9, b"e" * 9999)

def garbage():
    return b"".join(pick.choice(words) for _ in range(9)) + pick.randbytes(99)

def opened():
    made = socket.socket(family)
    made.setblocking(False)
    try:
        made.connect(address)
    except BlockingIOError:
        if family == socket.AF_UNIX:  # its queue is full
            made.close()
            return
    except OSError:
        made.close()
        return
    alive[made.fileno()] = made

def work(made):
    said = {"slow": b"y", "huge": b"y" * 65536, "deaf": whole, "gone": asking}.get(how, b"")
    said = garbage() if how == "garbage" else said
    try:
        if said:
            made.send(said)
        if how == "gone":
            raise OSError
        if how not in ("deaf", "silent") and made.recv(65536) == b"":
            raise OSError
    except BlockingIOError:
        pass
    except OSError:
        del alive[made.fileno()]
        made.close()

ready = False
ends = time.monotonic() + seconds
while time.monotonic() < ends:
    for _ in range(min(count - len(alive), 200)):
        opened()
    for made in list(alive.values()):
        work(made)
    if not ready:
        print("ready", flush=True)
        ready = True
    if select.select([0], [], [], 0.3 if how in ("slow", "silent", "deaf") else 0.02)[0]:
        break
"""


@contextmanager
def crowded(net: Wire, how: str, count: int, where: str) -> Iterator[None]:
    """Have that many connections of nobody misbehave from entering to leaving."""
    command = (sys.executable, "-c", CROWD, how, str(count), where, "60", str(NOBODY))
    crowd = net.popen(net.dut, *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert crowd.stdout is not None and crowd.stdin is not None
    assert crowd.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        crowd.stdin.close()
        assert crowd.wait(20) == 0


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def took(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


WAYS = ("slow", "silent", "garbage", "huge", "deaf", "gone")


@pytest.mark.moves("xskd_clients_refused", listener=("control", "metrics"), reason=("busy", "slow"))
def test_a_thousand_connections_disturb_nothing(wire: MakeWire, times: Callable[[int, int], int]) -> None:
    net, count = wire(), 1000
    group = grp.getgrgid(NOBODY).gr_name
    peak = {"kB": 0, "descriptors": 0}
    status = scrape = 0.0
    with ExitStack() as stack:
        directory = stack.enter_context(in_the_open())
        where = directory / "control.sock"
        text = connect(interface=ROOM, rest=f"control: {{socket: {where}, group: {group}}}")
        daemon = stack.enter_context(running(net, directory, text))
        daemon.metrics()
        memory, opened = memory_kb(daemon.pid, "VmRSS"), descriptors(daemon.pid)
        stream = Stream(net, rate=RATE)
        with stream:
            for how in WAYS * times(1, 10):
                with (
                    crowded(net, how, count, str(where)),
                    crowded(net, how, count, METRICS),
                ):
                    for _ in range(3):
                        status = max(status, took(daemon.status))
                        scrape = max(scrape, took(lambda: scraped(net, daemon)))
                        peak["kB"] = max(peak["kB"], memory_kb(daemon.pid, "VmRSS") - memory)
                        peak["descriptors"] = max(peak["descriptors"], descriptors(daemon.pid) - opened)
                    if how == "slow":
                        assert net.eventually(lambda: all(refused(daemon, "slow")), 20)
            assert any(stream.goes_on() for _ in range(4)), daemon.log
        assert stream.whole, stream
        assert net.eventually(lambda: descriptors(daemon.pid) <= opened + 1, 15), "descriptors are left"
        assert all(refused(daemon, "busy"))
        scraped(net, daemon)
        assert "Traceback" not in daemon.log and len(daemon.log.splitlines()) < 40, daemon.log
    figure("stream beside two crowds of 1,000 connections: packets lost", stream.lost, "packets", 0)
    figure("the same: longest silence of the stream", stream.silence, "s", 5)
    figure("the same: root's `xskd status`", status, "s", ANSWER)
    figure("the same: a scrape", scrape, "s", ANSWER)
    figure("the same: memory of the supervisor grows by", peak["kB"], "kB", MEMORY)
    figure("the same: its descriptors grow by", peak["descriptors"], "", DESCRIPTORS)


def refused(daemon: Daemon, reason: str) -> list[int]:
    """How many of each listener's clients were turned away for a reason."""
    return [by_reason[reason] for by_reason in daemon.status()["clients_refused"].values()]


def scraped(net: Wire, daemon: Daemon) -> None:
    """Scrape like Prometheus: who is turned away comes again."""

    def served() -> bool:
        try:
            return bool(daemon.metrics())
        except OSError:
            return False

    assert net.eventually(served, ANSWER), "no scrape"
