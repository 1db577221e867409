"""Daemons and workers whose system calls fail, and what becomes of them.

What is promised of each fault (errnos.py has them): it ends, soon, without a spin; either in a message that a
person can use and with nothing left behind, or it forwards (docs/decisions/0017-failing-calls.md). `wrong`
and `wrong_of_worker` say what was not so. A process of its own starts them: nursery.py.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT, Wire
from daemon import METRICS, connect
from errnos import OF_SOCKETS, Place, places

from lab import entered
from xskd import control, hook
from xskd.errors import XskdError

NURSERY = Path(__file__).with_name("nursery.py")
OUTCOME_SECONDS = 30.0  # for a daemon to be ready or to have ended; a worker has 20 to be bound


@dataclass(frozen=True)
class Outcome:
    """What became of a daemon: `status` is its exit status, None if it had to be killed."""

    ready: bool
    status: int | None
    seconds: float  # until it was ready or had ended
    cpu: float  # seconds of it and its workers
    log: str
    hit: bool  # the call was made, and did fail

    @property
    def kind(self) -> str:
        if not self.hit:
            return "not reached"
        if self.status is None:
            return "hung"
        if not self.ready:
            return "refused"
        return "went on" if self.status == 0 else "ended late"


class Nursery:
    """Daemons in the dut whose calls fail; `directory` has all their files."""

    def __init__(self, net: Wire, directory: Path) -> None:
        self.net, self.directory = net, directory
        self.file, self.socket = directory / "xskd.yaml", directory / "control.sock"
        self.log, self.trace, self.order = directory / "log", directory / "trace", directory / "worker.json"
        self.text = connect() + f'control: {{socket: {self.socket}}}\nmetrics: {{listen: "{METRICS}"}}\n'
        self.file.write_text(self.text)
        self._python = directory / "python"
        self._python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{NURSERY}" "$@"\n')
        self._python.chmod(0o755)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
        self._process = subprocess.Popen(
            ("ip", "netns", "exec", net.dut, sys.executable, str(NURSERY)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        with entered(net.dut):
            self._interfaces = [hook.ifindex_of(dev) for dev in net.dut_devs]
            self._namespace = os.stat("/proc/thread-self/ns/net").st_ino

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, *question: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, options: Sequence[str] = ()) -> int:
        """Start a daemon that strace is told this of: its process id."""
        self.log.write_text("")
        self.trace.write_text("")
        return int(
            self.ask("start", ["run", "-c", str(self.file)], str(self.log), list(options),
                     [str(self._python), str(self.order)])
        )  # fmt: skip

    def baseline(self) -> list[Place]:
        """Where the main thread of a daemon makes its calls, from its first to its last."""
        self._healthy(["-o", str(self.trace)])
        return places(self.trace.read_text(errors="replace"))

    def baseline_of_threads(self) -> list[Place]:
        """Where its other threads do, as far as they are calls of sockets: workers are hit as well."""
        self._healthy(["-ff", "-o", str(self.trace)])
        found: set[Place] = set()
        for trace in self.directory.glob("trace.*"):
            text = trace.read_text(errors="replace")
            if "exit_group(" not in text:
                found |= {place for place in places(text) if place.call in OF_SOCKETS}
            trace.unlink()
        return sorted(found, key=lambda place: (place.call, place.nth))

    def _healthy(self, options: Sequence[str]) -> None:
        outcome = self.lived(options)
        assert outcome.ready and outcome.status == 0, outcome

    def lived(self, options: Sequence[str]) -> Outcome:
        """A whole life: start, some packets, SIGTERM, end."""
        began = time.monotonic()
        pid = self.start(options)
        end = ready = None
        while end is None and not ready and time.monotonic() - began < OUTCOME_SECONDS:
            end = self.ask("reap", pid, 0.01)
            ready = " ready: " in self.log.read_text() or self._says_ready(time.monotonic() - began)
        seconds = time.monotonic() - began
        if end is None:
            if ready:
                self._pass_packets()
                os.kill(pid, signal.SIGTERM)
                end = self.ask("reap", pid, OUTCOME_SECONDS)
            if end is None:
                os.kill(pid, signal.SIGKILL)
                end = {"status": None, "cpu": self.ask("reap", pid, OUTCOME_SECONDS)["cpu"]}
        return Outcome(
            bool(ready), end["status"], seconds, end["cpu"], self.log.read_text(),
            "(INJECTED)" in self.trace.read_text(errors="replace"),
        )  # fmt: skip

    def _says_ready(self, seconds: float) -> bool:
        """It may have been the line in the log that failed; asked late, for each question makes calls."""
        if seconds < 3:
            return False
        with suppress(XskdError):
            return bool(control.ask(self.socket, "status")["status"]["ready"])
        return False

    def _pass_packets(self) -> None:
        """It said that it forwards."""
        packets = self.net.frames(8)
        assert self.net.taps[0].through(packets, self.net.taps[1]) == packets, self.log.read_text()

    def left_behind(self) -> list[str]:
        """What there still is of a daemon that has ended, after waiting a while for it to go."""
        self.net.eventually(lambda: not self._left(), 3)
        left = self._left()
        for dev in self.net.dut_devs:
            self.net.open(dev, umem=self.net.umem(64)).close()  # EBUSY: an XSK is left
        return left

    def _left(self) -> list[str]:
        with entered(self.net.dut):
            left = [f"program {tenant}" for ifindex in self._interfaces for tenant in hook.tenants(ifindex)]
        left += [f"process {pid}" for pid in self._processes()]
        return [*left, str(self.socket)] if self.socket.exists() else left

    def _processes(self) -> Iterator[int]:
        """All in the dut's namespace but the nursery itself."""
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or int(entry.name) == self._process.pid:
                continue
            try:
                if os.stat(f"/proc/{entry.name}/ns/net").st_ino == self._namespace:
                    yield int(entry.name)
            except OSError:  # it is just ending, or a zombie
                pass


# Of the errno itself, or of the one that a library made of it.
KNOWN_WORDS = [*map(os.strerror, errno.errorcode), "can't start new thread", "no answer within"]


def _is_bug(log: str) -> bool:
    """Is there a traceback, other than a library's own of a call that its loop made for itself?"""
    tracebacks = log.split("Traceback (most recent call last)")[1:]
    frames = [re.findall(r'^ +File "([^"]+)"', each, re.MULTILINE) for each in tracebacks]
    return any(not any("/asyncio/" in file for file in each) or "/xskd/" in "".join(each) for each in frames)


def wrong(outcome: Outcome) -> str:
    """What is wrong with what became of a daemon; "" if nothing is."""
    log = outcome.log
    if outcome.kind == "hung":
        return "neither ready nor ended, or did not end when it was told to"
    if _is_bug(log):
        return "a traceback"
    if outcome.kind == "refused" and outcome.status not in (2, 3):
        return f"exit status {outcome.status}"
    if outcome.kind == "ended late" and outcome.status != 3:
        return f"exit status {outcome.status} after it was ready"
    if outcome.kind in ("refused", "ended late") and not any(words in log for words in KNOWN_WORDS):
        return "no word of why"
    return ""


class Workers:
    """One daemon whose workers fail, again and again; its supervisor is the one of every day."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery, self.net = nursery, nursery.net
        self._order, self._trace = nursery.order, nursery.directory / "worker.trace"
        self._sizes = itertools.cycle((256, 512))
        self._seen = 0
        self.pid = nursery.start()
        assert self.net.eventually(lambda: " ready: " in nursery.log.read_text(), OUTCOME_SECONDS)

    def worker(self) -> dict[str, Any]:
        """What its one worker is said to be."""
        return dict(control.ask(self._nursery.socket, "status")["status"]["workers"][0])

    def try_one(self, options: Sequence[str], *, adopt: bool) -> Outcome:
        """Have a worker with these options take over the rings of one that is killed, or bind new sockets."""
        self._trace.write_text("")
        self._order.write_text(json.dumps([*options, "-o", str(self._trace)]))
        before, began, used = self.worker(), time.monotonic(), _cpu(self.pid)
        if adopt:
            os.kill(before["pid"], signal.SIGKILL)
        else:
            self._nursery.file.write_text(self._nursery.text.replace("tx: 512", f"tx: {next(self._sizes)}"))
            with suppress(XskdError):  # which says that the worker has failed, and is in the log
                control.ask(self._nursery.socket, "reload", dry=False)
        ready = self.net.eventually(lambda: self._forwards(before["pid"]), OUTCOME_SECONDS)
        ready = ready and self.net.eventually(self.passes, OUTCOME_SECONDS)  # it may die of its first packet
        seconds = time.monotonic() - began
        whole = self._nursery.log.read_text()
        said, self._seen = whole[self._seen :], len(whole)
        if adopt:
            said = re.sub(r".*worker ended.*\n", "", said, count=1)  # that was us
        hit = "(INJECTED)" in self._trace.read_text(errors="replace")
        return Outcome(ready, 0, seconds, _cpu(self.pid) - used, said, hit)

    def passes(self) -> bool:
        """Do packets come through?"""
        packets = self.net.frames(8)
        to = self.net.taps[1]
        to.waiting()
        self.net.taps[0].send(packets)
        return to.receive(len(packets), 0.5) == packets

    def _forwards(self, other_than: int) -> bool:
        now = self.worker()
        return bool(not self._order.exists() and now["state"] == "forwarding" and now["pid"] != other_than)

    def baseline(self, *, adopt: bool) -> list[Place]:
        """Where a worker makes its calls."""
        assert self.try_one([], adopt=adopt).ready
        self.end_worker()
        return places(self._trace.read_text(errors="replace"))

    def end_worker(self) -> None:
        """Have the traced worker end in order, so that its trace is whole."""
        self.try_one_without_fault()

    def try_one_without_fault(self) -> None:
        self._nursery.file.write_text(self._nursery.text.replace("tx: 512", f"tx: {next(self._sizes)}"))
        control.ask(self._nursery.socket, "reload", dry=False)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        end = self._nursery.ask("reap", self.pid, OUTCOME_SECONDS)
        assert end is not None and end["status"] == 0, (end, self._nursery.log.read_text())


def _cpu(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def wrong_of_worker(outcome: Outcome) -> str:
    """What is wrong with how a daemon went on after a fault of its worker; "" if nothing is."""
    if not outcome.ready:
        return "does not forward again"
    if _is_bug(outcome.log):
        return "a traceback"
    if "worker ended" in outcome.log and not any(words in outcome.log for words in KNOWN_WORDS):
        return "no word of why"
    return ""
