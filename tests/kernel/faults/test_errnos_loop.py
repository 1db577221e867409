"""The loop's own calls fail in a real worker under traffic: sendto, recvfrom and ppoll, again and again.

All errnos at all places are tried over the fake kernel (tests/native/test_errnos.c); here is that the real
process, confined by its filter, does the same, and how often it asks an interface that is down.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from conftest import MakeWire
from daemon import Stream, running, total
from errnos import OF_XSK
from failing import Nursery, Workers, wrong_of_worker

from lab.figures import figure

ASKED_SECONDS = 1.0
FAULTS = [
    *(("sendto", name) for name in OF_XSK.split()),
    *(("recvfrom", name) for name in OF_XSK.split()),
    *(("ppoll", name) for name in ("EINTR", "ENOMEM")),
]


def test_calls_of_the_loop_fail_under_traffic(
    wire: MakeWire, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    """Every third one: the worker forwards on, or another takes its place; packets come through again."""
    chosen = random.Random(time.time() // 86400).sample(FAULTS, times(4, len(FAULTS)))
    with Nursery(wire(), tmp_path) as nursery:
        workers, slowest = Workers(nursery), 0.0
        for call, errno in chosen:
            inject = f"inject={call}:error={errno}:when=4+3"
            outcome = workers.try_one(["-e", f"trace={call}", "-e", inject], adopt=False)
            assert not wrong_of_worker(outcome), f"{call} {errno}: {outcome.log}"
            began = time.monotonic()
            assert nursery.net.eventually(lambda: all(workers.passes() for _ in range(8)), 30), (call, errno)
            slowest = max(slowest, outcome.seconds, time.monotonic() - began)
        workers.try_one_without_fault()
        assert workers.worker()["counters"]["frames_unaccounted"] == 0
        workers.close()
        assert nursery.left_behind() == []
    figure("every third call of the loop fails: until packets go through", slowest, "s", 30)


def test_an_interface_that_is_down_is_asked_a_hundred_times_a_second(wire: MakeWire, tmp_path: Path) -> None:
    """With packets on TX and more coming; and when it is up again they go at once."""
    net = wire()
    with running(net, tmp_path) as daemon, Stream(net) as stream:
        net.link(net.dut, "eth2", "down")
        labels = {"interface": "eth2", "errno": "ENETDOWN"}
        assert net.eventually(lambda: total(daemon.metrics(), "xskd_wakeup_errors", **labels) > 0)
        before, began = total(daemon.metrics(), "xskd_wakeup_errors", **labels), time.monotonic()
        time.sleep(ASKED_SECONDS)
        asked = total(daemon.metrics(), "xskd_wakeup_errors", **labels) - before
        figure("wakeups a second of an interface that is down", asked / (time.monotonic() - began), "/s", 150)
        net.up(net.dut, "eth2")
        began = time.monotonic()
        assert stream.goes_on()
        figure("from link up to forwarding", time.monotonic() - began, "s", 2.0)
