"""Which worker is told what of a capture, without a worker; and what an expression becomes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from fakes import FakePeer, connect, device, resting

from xskd import captures as captures_module
from xskd import expression, tap
from xskd.captures import Captures
from xskd.errors import XskdError
from xskd.slot import Slot

QUESTION: dict[str, Any] = {"path": "wire", "queue": None, "direction": "in", "snaplen": 100, "filter": []}


@pytest.fixture(autouse=True)
def rings_close_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that ends before a ring's time is over would leave it open."""
    monkeypatch.setattr(captures_module, "LET_GO_SECONDS", 0)


def slots() -> dict[str, Slot]:
    """Take the places of two workers that have no process."""
    return resting(connect(), device("eth1", queues=2), device("eth2", queues=2)).crew.slots


async def begun(captures: Captures, places: dict[str, Slot], **change: Any) -> Any:
    """Begin a capture and have each working worker answer at once."""
    task = asyncio.ensure_future(captures.begin(QUESTION | change))
    while not task.done() and not any(name in captures._orders for name in places):
        await asyncio.sleep(0)
    for slot in places.values():
        captures.heard(slot, None)
    return await task


@pytest.mark.parametrize(
    "change",
    [
        {"direction": "up"},
        {"snaplen": 0},
        {"snaplen": 65536},
        {"snaplen": "1"},
        {"filter": None},
        {"filter": [[6, 0, 0]]},
        {"filter": [[6, 0, 0, "x"]]},
        {"filter": [[6, 0, 0, -1]]},
        {"filter": [[5, 0, 0, 2**32 - 1], [6, 0, 0, 1]]},
        {"filter": [[6, 0, 0, 1]] * (tap.MAX_FILTER + 1)},
    ],
)
def test_a_question_that_no_client_of_ours_asks_is_refused(change: dict[str, Any]) -> None:
    places = slots()
    with pytest.raises(XskdError, match="a capture says"):
        asyncio.run(Captures(lambda: places).begin(QUESTION | change))


def test_a_worker_is_told_once_and_a_new_one_again_and_the_end_closes_everything() -> None:
    async def scene() -> None:
        places = slots()
        slot = places["wire/0"]
        old, new = FakePeer(slot.plan), FakePeer(slot.plan)
        slot.process = old  # type: ignore[assignment]
        slot.enter("forwarding")
        captures = Captures(lambda: places)
        capture = await begun(captures, places)
        assert [ring["worker"] for ring in capture.describe()] == ["wire/0", "wire/1"]
        captures.tell(slot)
        assert old.told == ["capture"]
        slot.process = new  # type: ignore[assignment]
        captures.tell(slot)
        captures.end(capture)
        captures.end(capture)
        assert new.told == ["capture", "uncapture"]
        await asyncio.sleep(0.01)
        for fd in capture.descriptors():
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        old.bury()
        new.bury()

    asyncio.run(scene())


def test_a_worker_has_one_capture_at_a_time() -> None:
    async def scene() -> None:
        places = slots()
        captures = Captures(lambda: places)
        first = await begun(captures, places, queue=1)
        with pytest.raises(XskdError, match="wire/1: a capture runs there already"):
            await captures.begin(QUESTION)
        captures.end(first)
        captures.end(await begun(captures, places))

    asyncio.run(scene())


def test_nobody_can_shrink_a_ring_and_many_rings_are_smaller() -> None:
    fd = tap.make_ring(tap.SMALLEST)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)
    assert [tap.ring_size(n) >> 20 for n in (1, 4, 5, 16, 64, 250)] == [16, 16, 8, 4, 1, 1]


def test_an_expression_is_compiled_by_libpcap_or_refused_in_its_words() -> None:
    assert expression.compiled("ip", 100) == [[40, 0, 0, 12], [21, 0, 1, 0x800], [6, 0, 0, 100], [6, 0, 0, 0]]
    with pytest.raises(expression.BadExpression, match=r"'tcp prot 80': .*syntax error"):
        expression.compiled("tcp prot 80", 100)
    with pytest.raises(expression.BadExpression, match="protochain"):
        expression.compiled("ip6 protochain 6", 100)
