"""When neighbours are looked at, and that trouble with it is told once and ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from xskd import neighbours
from xskd.neighbours import Neighbours


class Kernel:
    """What `neighbours.refresh` answers, and what it was asked."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, ...]]()

    def refresh(self, names: Iterable[str]) -> int:
        self.asked.append(tuple(names))
        answer = self.answers.pop(0) if self.answers else 0
        if isinstance(answer, Exception):
            raise answer
        return answer


def rounds(kernel: Kernel, made: Neighbours, count: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(neighbours, "refresh", kernel.refresh)
    patch.setattr(neighbours, "REFRESH_SECONDS", 0.001)

    async def run() -> None:
        made.start()
        async with asyncio.timeout(10):
            while len(kernel.asked) < count:
                await asyncio.sleep(0.001)
        made.close()
        asked = len(kernel.asked)
        await asyncio.sleep(0.02)
        assert len(kernel.asked) <= asked + 1, "one may have been under way"

    asyncio.run(run())


def test_they_are_asked_for_again_and_again_for_the_interfaces_of_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = iter([["eth1"], [], ["eth2", "eth3"]])
    kernel = Kernel()
    rounds(kernel, Neighbours(lambda: next(names, ())), 4, monkeypatch)
    assert kernel.asked[:4] == [("eth1",), (), ("eth2", "eth3"), ()]


def test_what_goes_wrong_is_told_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no, other = PermissionError(1, "no"), OSError(5, "broken")
    rounds(Kernel(no, no, other, 3, no), Neighbours(lambda: ["eth1"]), 7, monkeypatch)
    told = [record.message for record in caplog.records]
    assert len(told) == 3
    assert [each.rpartition("(")[2] for each in told] == ["1, 'no')", "5, 'broken')", "1, 'no')"]
