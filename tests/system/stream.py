"""A steady stream of numbered packets from one host to the other, each of them accounted for at the end.

Raw sockets, as a host's own programs use them: what is lost or doubled is named by its number, and the
longest silence at the receiver is measured. The sender is paced; it sends late rather than less.
"""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import Self

from lab import Topology, entered

HEAD = bytes.fromhex("020000000002 020000000001 88b5")  # the hosts' addresses, an experimental type
TICK = 0.001  # seconds between two bursts
SETTLE = 1.0  # seconds for the last packets to arrive
ETH_P_ALL, SO_RCVBUFFORCE, SOL_PACKET, PACKET_IGNORE_OUTGOING = 3, 33, 263, 23


class Stream:
    """Sends `rate` packets a second from entering to leaving; then what became of them is known."""

    def __init__(self, lab: Topology, rate: int) -> None:
        self._rate = rate
        self._out, self._in = (_raw(lab.hosts[host]) for host in (0, 1))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._receive)]
        self.sent = 0
        self._seen: list[int] = []
        self.silence = 0.0  # seconds, the longest between two arrivals

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        while not self._seen and self._threads[0].is_alive():
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
    def received(self) -> int:
        return len(self._seen)

    @property
    def lost(self) -> int:
        return self.sent - len(set(self._seen))

    @property
    def doubled(self) -> int:
        return len(self._seen) - len(set(self._seen))

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
        last = time.monotonic()
        while True:
            try:
                packet = self._in.recv(256)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            now = time.monotonic()
            if packet[12:14] == HEAD[12:]:
                self._seen.append(int.from_bytes(packet[14:18], "big"))
                if len(self._seen) > 1:
                    self.silence = max(self.silence, now - last)
                last = now


def _raw(ns: str) -> socket.socket:
    with entered(ns):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        raw.bind(("eth0", 0))
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 27)
    raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    return raw
