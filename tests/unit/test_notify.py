"""What systemd hears, on a socket such as it gives its services."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xskd import notify


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def heard(systemd: socket.socket) -> dict[str, str]:
    lines = systemd.recv(4096).decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_ready_and_status_carry_the_sentence(systemd: socket.socket) -> None:
    notify.ready("1 path, 2 queues forwarding, copy mode")
    assert heard(systemd) == {"READY": "1", "STATUS": "1 path, 2 queues forwarding, copy mode"}
    notify.status("0 paths")
    assert heard(systemd) == {"STATUS": "0 paths"}


def test_a_reload_is_stamped_with_the_monotonic_clock(systemd: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    notify.reloading()
    said = heard(systemd)
    assert said.pop("RELOADING") == "1"
    assert before <= int(said.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert not said


def test_stopping_extending_and_the_watchdog(systemd: socket.socket) -> None:
    notify.stopping("draining")
    assert heard(systemd) == {"STOPPING": "1", "STATUS": "draining"}
    notify.extend(2.5)
    assert heard(systemd) == {"EXTEND_TIMEOUT_USEC": "2500000"}
    notify.watchdog()
    assert heard(systemd) == {"WATCHDOG": "1"}


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.ready("x")


@pytest.mark.parametrize(
    ("pid", "microseconds", "seconds"),
    [(None, "10000000", 5.0), ("self", "1000000", 0.5), ("1", "1000000", None), (None, "", None)],
)
def test_the_watchdog_is_pinged_twice_in_its_time_if_it_is_ours(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, microseconds: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid is None:
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert notify.watchdog_interval() == seconds
