"""A steady stream of numbered packets from one host to the other, each of them accounted for at the end.

Raw sockets, as a host's own programs use them: what is lost or doubled is named by its number, and the
longest silence at the receiver is measured. The sender is paced; it sends late rather than less.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from lab import Topology
from lab.arrivals import ETHER_TYPE, Arrivals, raw

HEAD = bytes.fromhex("020000000002 020000000001") + ETHER_TYPE.to_bytes(2, "big")  # the hosts' addresses
TICK = 0.001  # seconds between two bursts
SETTLE = 1.0  # seconds for the last packets to arrive


class Stream:
    """Sends `rate` packets a second from entering to leaving; then what became of them is known."""

    def __init__(self, lab: Topology, rate: int) -> None:
        self._rate = rate
        self._out, self._in = raw(lab.hosts[0]), raw(lab.hosts[1], only=ETHER_TYPE)
        self._arrivals = Arrivals()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._receive)]
        self.sent = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        while not self._arrivals.received and self._threads[0].is_alive():
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()

    @property
    def lost(self) -> int:
        return self.sent - (self._arrivals.received - self.doubled)

    @property
    def doubled(self) -> int:
        return self._arrivals.doubled

    @property
    def silence(self) -> float:
        """The longest time in seconds between two that arrived."""
        return self._arrivals.silence

    def _send(self) -> None:
        began = time.monotonic()
        while not self._stop.is_set():
            due = int((time.monotonic() - began) * self._rate)
            while self.sent < due:
                self._out.send(HEAD + self.sent.to_bytes(4, "big") + bytes(46))
                self.sent += 1
            time.sleep(TICK)

    def _receive(self) -> None:
        self._in.settimeout(SETTLE)
        while True:
            try:
                packet = self._in.recv(256)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            self._arrivals.take(int.from_bytes(packet[14:18], "big"), time.monotonic())
