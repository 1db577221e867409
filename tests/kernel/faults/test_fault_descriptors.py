"""No file descriptor left: at the start, and later for a scrape, a question, a reload, a successor.

What forwards goes on, and nobody spins, fills the log or ends for it. As soon as there are descriptors again
everything is done that could not be.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from accounts import config, spending, undisturbed
from daemon import METRICS, SMALL, Daemon, running, started
from test_daemon_reload import forwards

from lab.figures import figure

if TYPE_CHECKING:
    from conftest import MakeWire

Times = Callable[[int, int], int]
TEXT = config(f"rings: {SMALL}")
SCRAPE = f"import urllib.request; urllib.request.urlopen('http://{METRICS}/metrics', timeout=60).read()"


@contextmanager
def no_descriptors(daemon: Daemon) -> Iterator[None]:
    """Let a daemon open nothing more; what it has open stays so."""
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)


def test_no_descriptors_while_it_runs(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    net, seconds = wire(links=4), times(2, 30)
    few = ("prlimit", "--nofile=64:2000")  # as a shell's limit is: too few for many queues
    with running(net, tmp_path, TEXT, prefix=few) as daemon:
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (2000, 2000)
        workers, lines = daemon.workers(), daemon.log.count("\n")
        with undisturbed(daemon, "there are no descriptors", b_may_end=True):
            with no_descriptors(daemon):
                with spending(daemon.pid, "a supervisor without descriptors", 0.5):
                    scrape = net.popen(net.dut, sys.executable, "-c", SCRAPE)
                    asking = subprocess.Popen(
                        (sys.executable, "-m", "xskd", "status", "-c", str(daemon.file)),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                    daemon.process.send_signal(signal.SIGHUP)
                    os.kill(workers["b/0"], signal.SIGKILL)
                    assert net.eventually(lambda: "b/0: worker ended (spawn)" in daemon.log)
                    time.sleep(seconds)
                asking.wait(10)
            began = time.monotonic()
            assert scrape.wait(10) == 0  # it has waited, and gets its answer
            figure(
                "time until a scrape that waited for a descriptor is answered",
                time.monotonic() - began,
                "s",
                5,
            )
            daemon.comes("b/0", other_than=workers["b/0"], within=35)  # the pause between two tries has grown
            figure("time until a worker runs that had no descriptors", time.monotonic() - began, "s", 35)
            assert forwards(net)
        assert "Traceback" not in daemon.log
        said = (daemon.log.count("\n") - lines) / (seconds + 1)
        figure("lines of log without descriptors", said, "lines/s", 60)
        assert daemon.reload() == []
        assert daemon.status()["config_error"] is None
        assert answers_with_one(daemon)


def answers_with_one(daemon: Daemon) -> bool:
    """Is one descriptor, for the connection itself, enough to be answered?"""
    open_now = max(map(int, os.listdir(f"/proc/{daemon.pid}/fd")))
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (open_now + 2, 2000))
    return bool(daemon.status()["ready"] and daemon.metrics())


def in_our_code(log: str) -> bool:
    """Does a traceback lead through xskd? An asyncio loop that cannot be made complains by itself."""
    return "/xskd/" in "".join(line for line in log.splitlines() if line.startswith('  File "'))


def test_a_start_with_few_descriptors(wire: MakeWire, tmp_path: Path, times: Times) -> None:
    """It says what is missing and leaves nothing, or does what it can."""
    net = wire(links=4)
    for number in range(8, 124, times(58, 2)):
        with started(net, tmp_path, TEXT, prefix=("prlimit", f"--nofile={number}:{number}")) as daemon:
            assert net.eventually(lambda: daemon.process.poll() is not None or "ready" in daemon.log, 15)
            assert not in_our_code(daemon.log), daemon.log
            if daemon.process.poll() is None:
                print(f"{number} descriptors: {daemon.log.count('(spawn)')} workers could not be started")
                assert daemon.stop() == 0
            else:
                print(f"{number} descriptors: exit status {daemon.ended()}")
                assert daemon.ended() == 3
                assert "RLIMIT_NOFILE" in daemon.log or "Too many open files" in daemon.log
        assert '"xdp"' not in net.run(net.dut, "ip", "-j", "link", "show").stdout
