"""Daemons and workers whose system calls fail as a test wants: strace is attached when ours begin.

An interpreter makes some ten thousand calls before the first of ours, and half a second goes by. So a nursery
imports what a daemon needs once, and forks: the child waits until it is traced, and then is `xskd run`. What
a call is the n-th of is counted from there. A worker is always a fresh interpreter: the daemon's
`sys.executable` is a script that runs this file instead, which imports what a worker needs, has itself
traced, and goes on as one.

Each line on standard input asks for something, each line on standard output answers; see Nursery in
failing.py. This must never trace anything but its own children and itself.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TRACE_SECONDS = 60.0  # for strace to attach
INJECT = "XSKD_TEST_INJECT"  # a file with the options of strace for the next worker


def traced() -> bool:
    """Is somebody tracing this process?"""
    return "\nTracerPid:\t0\n" not in Path("/proc/self/status").read_text(encoding="ascii")


def await_tracer() -> None:
    deadline = time.monotonic() + TRACE_SECONDS
    while not traced():
        if time.monotonic() > deadline:
            os._exit(99)
        time.sleep(0.001)


def trace(pid: int, options: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(("strace", "-qq", *options, "-p", str(pid)), stdin=subprocess.DEVNULL)


class Brood:
    """The daemons that this process has forked."""

    def __init__(self) -> None:
        self._tracers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, argv: list[str], log: str, options: list[str], worker: list[str] | None) -> int:
        """Fork a daemon: its process id."""
        pid = os.fork()
        if pid == 0:
            _be_daemon(argv, log, worker, wait=bool(options))
        if options:
            self._tracers[pid] = trace(pid, options)
        return pid

    def reap(self, pid: int, seconds: float) -> dict[str, Any] | None:
        """Status and CPU seconds of a daemon with its children, None if it has not ended in time."""
        pidfd = os.pidfd_open(pid)
        try:
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            if not ended.poll(seconds * 1000):
                return None
        finally:
            os.close(pidfd)
        _, status, used = os.wait4(pid, 0)
        if pid in self._tracers:
            self._tracers.pop(pid).wait(TRACE_SECONDS)
        return {"status": os.waitstatus_to_exitcode(status), "cpu": used.ru_utime + used.ru_stime}


def _be_daemon(argv: list[str], log: str, worker: list[str] | None, *, wait: bool) -> None:
    """Run in the child, and never return."""
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        os.closerange(3, 64)
        if worker is not None:
            sys.executable, os.environ[INJECT] = worker
            slot.HEALTHY = 0.0  # each fault is a first one
        if wait:
            await_tracer()
        status = cli.main(argv)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _be_worker() -> None:
    """What `python -P -s -m xskd.worker FD` would be, traced as the file says, once."""
    order = Path(os.environ[INJECT])
    descriptor = sys.argv[-1]
    import xskd.worker  # noqa: PLC0415 - what a daemon has loaded, a worker need not

    try:
        options = json.loads(order.read_text(encoding="ascii"))
        order.unlink()
    except FileNotFoundError:
        options = []
    if options:
        if (child := os.fork()) == 0:  # not our child: a worker has none
            subprocess.Popen(("strace", "-qq", *options, "-p", str(os.getppid())), stdin=subprocess.DEVNULL)
            os._exit(0)
        os.waitpid(child, 0)
        await_tracer()
    sys.argv = ["xskd.worker", descriptor]
    sys.exit(xskd.worker.main())


def main() -> None:
    """Do what the lines on standard input ask for."""
    brood = Brood()
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        print(json.dumps(getattr(brood, verb)(*arguments)), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _be_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import encodings.idna  # noqa: F401 - what getaddrinfo() would load

    from xskd import cli, service, show, slot  # noqa: F401

    main()
