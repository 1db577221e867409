"""The watchdog hears of a supervisor that is alive, and of workers that are."""

from __future__ import annotations

import pytest
from test_supervisor import Scene, scene, told

from xskd.daemon import Tick

__all__ = ["scene"]


def test_the_watchdog_is_told_while_every_worker_turns(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    scene.start().forward()
    before = told(scene).count("WATCHDOG=1")
    scene.act(Tick())
    assert told(scene).count("WATCHDOG=1") == before + 1
    scene.supervisor.crew.slots["wire/1"].since -= 100
    scene.act(Tick())
    assert told(scene).count("WATCHDOG=1") == before + 1
    scene.act(Tick())
    assert scene.states() == {"wire/0": "forwarding", "wire/1": "starting"}


def test_no_watchdog_that_nobody_asked_for_is_told(scene: Scene) -> None:
    scene.start().forward()
    scene.act(Tick())
    assert "WATCHDOG=1" not in told(scene)


def test_ticks_come_as_often_as_the_watchdog_needs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    scene.start()
    assert (0.2, Tick()) in scene.timers
