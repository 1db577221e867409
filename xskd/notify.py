"""Telling systemd how we are: the sd_notify protocol, through systemd-python.

Every call is harmless where no systemd listens, or none does any more. This module must never decide what to
say; daemon.py does.
"""

from __future__ import annotations

import contextlib
import os
import time

from systemd import daemon


def notify(message: str) -> None:
    """Send it. What cannot be sent is no reason to end: systemd draws its own conclusions."""
    with contextlib.suppress(OSError):
        daemon.notify(message)


def ready(status: str) -> None:
    """Everything that can be up is up, or a reload is over."""
    notify(f"READY=1\nSTATUS={status}")


def reloading() -> None:
    """We have begun to change to another configuration; `ready` ends it."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def status(text: str) -> None:
    """One line for `systemctl status`."""
    notify(f"STATUS={text}")


def stopping(text: str) -> None:
    """We have begun to stop."""
    notify(f"STOPPING=1\nSTATUS={text}")


def extend(seconds: float) -> None:
    """Starting or stopping takes so much longer than the unit's timeout allows from now on."""
    notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def watchdog() -> None:
    """We are alive, and so are our workers."""
    notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds between two pings that systemd expects at the latest, halved; None if it expects none."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    meant_for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 2e6 if microseconds.isdigit() and meant_for_us else None
