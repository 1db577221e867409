"""One stream: numbered packets from one host to another (or back to itself), every one of them checked.

A process of its own, so that neither another stream nor the conductor delays it. It takes orders on its
standard input, a line each (`rate N` packets a second, `report`), and answers a report with one line of JSON.
A packet carries its stream, its number and the time it was sent; what follows is noise that depends on the
number, so that a byte that changed, a packet that came twice and one of another stream are all seen.

A flood on the same wire must not cost this process anything, or it would lose its own: its socket takes only
what is a stream's packet.
"""

from __future__ import annotations

import json
import math
import random
import select
import struct
import subprocess
import sys
import threading
import time
from typing import Any

from lab.arrivals import ETHER_TYPE, Arrivals, raw

HEAD = struct.Struct("!6s6sHHQQ")  # destination, source, type, stream, number, time in ns
NOISE = random.Random(9478).randbytes(4096)
SHORTEST, LONGEST = 60, 1514  # bytes
TICK = 0.001  # seconds between two bursts
BURST = 64  # packets: a veth has room for 256, and nothing may be lost before xskd sees it
PER_OCTAVE = 8  # buckets of latency for each doubling


class Stream:
    """Sends and receives until its input ends; what it knows is in `report()`."""

    def __init__(self, out: str, into: str, number: int) -> None:
        self._number, self._rate, self._over = number, 0, False
        self._out, self._in = raw(out), raw(into, only=ETHER_TYPE)
        self._arrivals = Arrivals()
        self._latency: dict[int, int] = {}
        self.sent = self.refused = self.damaged = 0

    def run(self) -> None:
        """Send, receive and answer until there are no more orders."""
        threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._receive)]
        for thread in threads:
            thread.start()
        for line in sys.stdin:
            verb, *arguments = line.split()
            if verb == "rate":
                self._rate = int(arguments[0])
                self._arrivals.begin_anew()  # a pause is no silence
            else:
                print(json.dumps(self.report()), flush=True)
        self._over = True
        for thread in threads:
            thread.join(5)

    def report(self) -> dict[str, Any]:
        """What has been counted; `silence` is the longest in seconds since the rate was last changed."""
        waiting = self._arrivals.waiting(time.monotonic()) if self._rate else 0.0
        return {
            "sent": self.sent,
            "refused": self.refused,
            "received": self._arrivals.received + self.damaged,
            "doubled": self._arrivals.doubled,
            "damaged": self.damaged,
            "silence": max(self._arrivals.silence, waiting),
            "latency": self._latency,
        }

    def _send(self) -> None:
        due = 0.0
        while not self._over:
            due = min(due + self._rate * TICK, 2 * BURST) if self._rate else 0.0
            for _ in range(min(int(due), BURST)):
                due -= 1
                try:
                    self._out.send(packet(self._number, self.sent, time.monotonic_ns()))
                    self.sent += 1
                except OSError:  # its link is down: nothing was sent
                    self.refused += 1
            time.sleep(TICK)

    def _receive(self) -> None:
        self._in.settimeout(0.2)
        while not self._over:
            try:
                data = self._in.recv(2048)
            except OSError:  # nothing came, or its link went down
                continue
            _, _, _, stream, number, sent = HEAD.unpack_from(data)
            if stream != self._number:
                continue
            self._take(data, number, sent)

    def _take(self, data: bytes, number: int, sent: int) -> None:
        now = time.monotonic_ns()
        if data[HEAD.size :] != payload(number):
            self.damaged += 1
            return
        self._arrivals.take(number, now / 1e9)
        bucket = int(math.log2(max(now - sent, 1)) * PER_OCTAVE)
        self._latency[bucket] = self._latency.get(bucket, 0) + 1


class Process:
    """A Stream in a process of its own, from here."""

    def __init__(self, name: str, out: str, into: str, number: int) -> None:
        self.name = name
        command = (sys.executable, "-m", "lab.soak.streams", out, into, str(number))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rate(self, packets: int) -> None:
        """Send so many packets a second from now on; 0 pauses."""
        self._order(f"rate {packets}")

    def report(self, patience: float = 10.0) -> dict[str, Any]:
        """Ask what it has counted. RuntimeError if it does not say in time."""
        self._order("report")
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise RuntimeError(f"stream {self.name} says nothing")
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it, by force if it must be."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def payload(number: int) -> bytes:
    """What follows the head of a packet: as long, and as random, as its number says."""
    length = SHORTEST + number * 7919 % (LONGEST - SHORTEST + 1) - HEAD.size
    start = number % 997
    return NOISE[start : start + length]


def packet(stream: int, number: int, now: int) -> bytes:
    """A whole frame, between two local unicast addresses."""
    there, here = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x01"
    return HEAD.pack(there, here, ETHER_TYPE, stream, number, now) + payload(number)


def percentile(latency: dict[int, int], share: float) -> float:
    """Seconds that so large a share of the packets took at most, to an eighth of an octave; NaN of none."""
    left = share * sum(latency.values())
    for bucket in sorted(latency):
        left -= latency[bucket]
        if left <= 0:
            return float(2 ** ((bucket + 1) / PER_OCTAVE) / 1e9)
    return math.nan


if __name__ == "__main__":
    Stream(sys.argv[1], sys.argv[2], int(sys.argv[3])).run()
