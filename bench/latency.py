"""Latency: how long a packet of a quiet stream, 1,000 a second, takes from h0 through the forwarder to h1.

One process holds a UDP socket in either host. The time of departure travels in the packet, taken just
before the system call that sends it; the time of arrival is the kernel's own (SO_TIMESTAMPNS), so how late
this process wakes up is not in the figures. What is, the same for everyone: one UDP send, two veth links,
and the forwarder.

Forwarders inside the kernel work in the sender's context here, as they do by default.
"""

import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from typing_extensions import override

from bench import machine
from bench.contenders import CONNECT, Contender
from bench.measurement import Measurement
from bench.stand import Stand, stand
from lab import Topology, entered

_RATE = 1000  # packets a second
_WARM_UP = 200  # packets: caches, and the kernel switches timestamps on with a delay
_PORT = 7777
_PAYLOAD = struct.Struct("=QQ")  # number of the packet, nanoseconds of departure
_TIMESPEC = struct.Struct("=qq")
_SO_TIMESTAMPNS = 35  # not in Python's socket module
_IDLE_WINDOW = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Delay(Measurement):
    """One measurement of latency, in microseconds; the forwarder's CPU use as parts of one CPU."""

    sent: int
    lost: int
    p50: float
    p99: float
    p999: float
    cpu_idle: float
    cpu_loaded: float

    @override
    def figures(self) -> str:
        return f"latency: p50 {self.p50:.1f}, p99 {self.p99:.1f} microseconds"


def measure(contender: Contender, seconds: float, number: int) -> Delay:
    """Set up, watch the idle forwarder, send the stream, tear down."""
    speed_before = machine.speed()
    with stand(contender, CONNECT, flooded=False) as made:
        for host, other in ((0, 1), (1, 0)):  # no ARP in the stream
            neighbour = (Topology.ip_of(other), "lladdr", Topology.mac_of(other))
            made.lab.run(made.lab.hosts[host], "ip", "neigh", "replace", *neighbour, "dev", "eth0")
        idle, _ = _cpu_while(made, lambda: time.sleep(_IDLE_WINDOW))
        delays: list[float] = []
        sent = int(seconds * _RATE)
        loaded, strangers = _cpu_while(made, lambda: delays.extend(_stream(made, sent)))
    delays.sort()
    return Delay(
        round=number,
        contender=contender.name,
        sent=sent,
        lost=sent - len(delays),
        p50=_quantile(delays, 0.5),
        p99=_quantile(delays, 0.99),
        p999=_quantile(delays, 0.999),
        cpu_idle=idle,
        cpu_loaded=loaded,
        strangers=strangers,
        speed_before=speed_before,
        speed_after=machine.speed(),
    )


def _cpu_while(made: Stand, work: Callable[[], object]) -> tuple[float, float]:
    """Return the forwarder's and the strangers' use of a CPU while something is done."""
    first, start = machine.Usage.now(), time.monotonic()
    work()
    second, seconds = machine.Usage.now(), time.monotonic() - start
    ours = made.forwarder()
    strangers = second.strangers(ours) - first.strangers(ours)
    return made.cpu_between(first, second).total / seconds, strangers / seconds


def _stream(made: Stand, packets: int) -> list[float]:
    """Send the stream and return the microseconds each packet took that arrived."""
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {machine.LOAD_CPU})
    try:
        with _sockets(made) as (sender, receiver):
            delays: list[float] = []
            start = time.monotonic()
            for number in range(packets + _WARM_UP):
                time.sleep(max(0.0, start + number / _RATE - time.monotonic()))
                delays.extend(_received(receiver))  # of the packets before: nothing is in flight now
                sender.send(_PAYLOAD.pack(number, time.clock_gettime_ns(time.CLOCK_REALTIME)))
            time.sleep(0.5)
            delays.extend(_received(receiver))
            return delays
    finally:
        os.sched_setaffinity(0, affinity)


@contextmanager
def _sockets(made: Stand) -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        with entered(made.lab.hosts[0]):
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sender.connect((Topology.ip_of(1), _PORT))
        with entered(made.lab.hosts[1]):
            receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            receiver.bind((Topology.ip_of(1), _PORT))
            receiver.setblocking(False)
        yield sender, receiver


def _received(receiver: socket.socket) -> Iterator[float]:
    """Yield the delay of every packet that waits in the socket, without those of the warm-up."""
    while True:
        try:
            data, control, _, _ = receiver.recvmsg(_PAYLOAD.size, 64)
        except BlockingIOError:
            return
        number, departure = _PAYLOAD.unpack(data)
        seconds, nanoseconds = _TIMESPEC.unpack(control[0][2][: _TIMESPEC.size])
        if number >= _WARM_UP:
            yield (seconds * 1_000_000_000 + nanoseconds - departure) / 1e3


def _quantile(ordered: list[float], part: float) -> float:
    """Return the smallest delay that this part of the packets did not exceed."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
