"""What a person sees while something takes its time: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

WORKS = "import time; from xskd import show\nwith show.progress('reloading'): time.sleep(0.3)"


def said(**environment: str) -> bytes:
    """Run it with a terminal for standard error; what that shows."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        env = {**os.environ, "TERM": "xterm", **environment}
        subprocess.run((sys.executable, "-c", WORKS), stderr=theirs, env=env, timeout=30, check=True)
        os.close(theirs)
        found = b""
        try:
            while part := terminal.read(4096):
                found += part
        except OSError:  # EIO: nobody has the other end
            pass
    return found


def test_progress_is_shown_on_a_terminal_and_taken_back() -> None:
    found = said()
    assert b"reloading" in found
    assert found.rstrip().endswith(b"\x1b[2K")  # erase the line


@pytest.mark.parametrize("colour", [b"\x1b[32m", b"\x1b[1;32m"])
def test_progress_has_no_colour_where_none_is_wanted(colour: bytes) -> None:
    assert colour not in said(NO_COLOR="1")


def test_progress_is_nothing_in_a_pipe() -> None:
    done = subprocess.run((sys.executable, "-c", WORKS), capture_output=True, timeout=30, check=True)
    assert done.stdout + done.stderr == b""
