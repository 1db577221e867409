"""Latency: the round trip of a quiet stream, 1,000 packets a second, from h0 through the forwarder to h1.

The stream is ping's: h1 answers inside the kernel, and ping takes the kernel's own time of arrival, so no
process but the forwarder is on the way. Both directions are forwarded; the rest, the same for everyone, is
one send, four veth links and the answer.

Forwarders inside the kernel work in the sender's context here, as they do by default.
"""

import math
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

from typing_extensions import override

from bench import machine
from bench.contenders import CONNECT, Contender
from bench.measurement import Measurement
from bench.stand import Stand, stand
from lab import Topology

_RATE = 1000  # packets a second
_WARM_UP = 200  # packets: caches, and the kernel switches timestamps on with a delay
_IDLE_WINDOW = 2.0  # seconds
_ANSWER = re.compile(r"icmp_seq=(\d+) .* time=([\d.]+) ms")


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
    first, start, children = machine.Usage.now(), time.monotonic(), _children()
    work()
    second, seconds = machine.Usage.now(), time.monotonic() - start
    ours = made.forwarder()
    # At this rate ping never sleeps. It has ended by now; only its parent, which is us, knows what it used.
    strangers = second.strangers(ours) - first.strangers(ours) - (_children() - children)
    return made.cpu_between(first, second).total / seconds, strangers / seconds


def _children() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _stream(made: Stand, packets: int) -> list[float]:
    """Send the stream and return the microseconds of every round trip that came back."""
    said = made.lab.run(
        made.lab.hosts[0],
        *("taskset", "-c", str(machine.LOAD_CPU), "ping", "-i", str(1 / _RATE), "-W", "1", "-s", "18"),
        *("-c", str(packets + _WARM_UP), Topology.ip_of(1)),
        check=False,
        timeout=packets / _RATE * 2 + 30,
    )
    answers = (_ANSWER.search(line) for line in said.stdout.splitlines())
    return [float(answer[2]) * 1e3 for answer in answers if answer and int(answer[1]) > _WARM_UP]


def _quantile(ordered: list[float], part: float) -> float:
    """Return the smallest delay that this part of the packets did not exceed."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
