"""`xskd capture`: from the rings of a daemon's workers into a pcapng file, a pipe, or standard output.

Runs with the rights of whoever calls it, and ends in order whatever happens: by a signal, a full count, a
pipe that nobody reads, or the end of the daemon; the file is whole then, and what became of the copies is
said on standard error. A reader that is too slow loses copies, never packets. It must never trust a ring: a
worker, which reads what strangers send, writes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xskd import __version__, control, expression, pcapng
from xskd.errors import XskdError
from xskd.tap import Reader

BUSY_PAUSE, IDLE_PAUSE = 0.005, 0.02  # seconds between two looks at the rings
TELL_SECONDS = 0.5  # between two live counts
GIVE_UP_SECONDS = 1.0  # for a stuck pipe to take the rest, once we are to end
CHUNK = 4096  # PIPE_BUF: what a pipe that is ready takes without waiting
ALL = 1 << 62  # packets


@dataclass(frozen=True)
class Wanted:
    """What to capture: a path, or one worker of it, and which packets."""

    path: str
    queue: int | None
    direction: str
    snaplen: int
    expression: str | None

    @classmethod
    def of(cls, where: str, direction: str, snaplen: int, text: str | None) -> Wanted:
        """Of a path, or a worker by its name, like `wire/0`. XskdError if it is neither."""
        path, slash, queue = where.partition("/")
        if slash and not (queue.isascii() and queue.isdigit() and len(queue) < 6):
            raise XskdError(f"{where}: after the slash stands a worker's number, as in wire/0")
        return cls(path, int(queue) if slash else None, direction, snaplen, text)


class Output:
    """Where the blocks go: a new file, or standard output (None)."""

    def __init__(self, file: Path | None) -> None:
        self.name = "standard output" if file is None else str(file)
        if file is None:
            self._fd = os.dup(sys.stdout.fileno())
        else:
            try:  # packets are nobody else's business
                self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise XskdError(f"{file}: {error.strerror}") from error
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def write(self, data: Any, given_up: Any) -> bool:
        """Write all of it. False if nobody takes it any more, or `given_up()` says to try no longer."""
        rest = memoryview(data)
        ready = select.poll()
        ready.register(self._fd, select.POLLOUT)
        try:
            while rest:
                if self._regular or ready.poll(100):
                    rest = rest[os.write(self._fd, rest if self._regular else rest[:CHUNK]) :]
                elif given_up():
                    return False
        except BrokenPipeError:
            return False
        except OSError as error:
            raise XskdError(f"{self.name}: {error.strerror}") from error
        return True

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class Session:
    """One capture from the daemon's answer to its last block."""

    def __init__(
        self, link: socket.socket, rings: list[dict[str, Any]], fds: list[int], output: Output
    ) -> None:
        self._link, self._output = link, output
        self.ports = [
            pcapng.Interface(name, f"queue {queue} of {name}, worker {ring['worker']}")
            for ring in rings
            for name, queue in ring["ports"]
        ]
        self._reader = Reader(fds, [len(ring["ports"]) for ring in rings])
        self._began = time.time_ns()
        self.captured = 0
        self._deadline: float | None = None  # monotonic; to have ended by
        self._listens = True  # somebody takes what we write

    def stop(self) -> None:
        """End soon: take what is there, but do not wait for long."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GIVE_UP_SECONDS

    def run(self, wanted: Wanted, count: int, seconds: float | None, *, tell: bool) -> str | None:
        """Write packets until there is a reason to end; what the daemon said if that is the reason."""
        program = f"xskd {__version__}"
        self._put(pcapng.head(self.ports, wanted.snaplen, program, wanted.expression))
        until = ALL if seconds is None else time.monotonic() + seconds
        told, why = time.monotonic(), None
        while self._listens and self._deadline is None and why is None and time.monotonic() < until:
            packets = self._take(count)
            if self.captured >= count:
                break
            if tell and time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                print(f"\r{self.summary()} ", end="", file=sys.stderr, flush=True)
            why = self._heard(BUSY_PAUSE if packets else IDLE_PAUSE)
        self.stop()
        self._link.close()  # the workers copy no more
        left = self._reader.size
        while self._listens and left > 0 and self.captured < count and (packets := self._take(count)):
            left -= packets
        self._put(self._statistics())
        return why

    def summary(self) -> str:
        """What became of the packets so far."""
        counted = self._reader.counted()
        lost, refused = sum(port.lost for port in counted), sum(port.refused for port in counted)
        packets, copies = "packet" + "s" * (self.captured != 1), "copy" if lost == 1 else "copies"
        kept = f"{self.captured:,} {packets} captured, {lost:,} {copies} lost (ring full)"
        return f"{kept}, {refused:,} filtered out"

    def _take(self, count: int) -> int:
        blocks, packets = self._reader.read(count - self.captured)
        if packets:
            self._put(blocks)
            self.captured += packets if self._listens else 0
        return packets

    def _put(self, data: Any) -> None:
        if self._listens:
            self._listens = self._output.write(data, self._is_late)

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _heard(self, seconds: float) -> str | None:
        """Wait a little for the daemon to say why it ends the capture."""
        if not select.select([self._link], [], [], seconds)[0]:
            return None
        line = b""
        with contextlib.suppress(OSError):
            line = self._link.recv(CHUNK)
        if not line:
            return "the daemon has ended or was restarted"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["error"])
        return "the daemon said what no daemon says"

    def _statistics(self) -> bytes:
        now = time.time_ns()
        return b"".join(
            pcapng.statistics(
                number, self._began, now,
                received=port.seen, lost=port.lost, accepted=port.seen - port.refused,
            )
            for number, port in enumerate(self._reader.counted())
        )  # fmt: skip


def run(where: Path, wanted: Wanted, file: Path | None, count: int | None, seconds: float | None) -> None:
    """Capture until there is a reason to end. Raises XskdError; the file is whole then as well."""
    text = wanted.expression
    program = [] if text is None else expression.compiled(text, wanted.snaplen)
    with ExitStack() as stack:
        link, rings, fds = control.ask_for_rings(
            where, path=wanted.path, queue=wanted.queue, direction=wanted.direction,
            snaplen=wanted.snaplen, filter=program,
        )  # fmt: skip
        stack.enter_context(link)
        output = Output(file)
        stack.callback(output.close)
        session = Session(link, rings, fds, output)
        names = ", ".join(dict.fromkeys(port.name for port in session.ports))
        tell = file is not None and sys.stderr.isatty()
        with _ended_by_signals(session):
            print(f"capturing {wanted.direction} on {names} to {output.name}", file=sys.stderr, flush=True)
            try:
                why = session.run(wanted, ALL if count is None else count, seconds, tell=tell)
            finally:
                print(f"\r{session.summary()}" if tell else session.summary(), file=sys.stderr, flush=True)
        if why is not None:
            raise XskdError(f"the capture ended early: {why}")


@contextlib.contextmanager
def _ended_by_signals(session: Session) -> Iterator[None]:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: session.stop()) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
