"""A worker's last words when it cannot even begin: its supervisor hears them, whatever went wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from xskd import channel

ROOT = Path(__file__).parents[2]


def ended(*hello: channel.Message) -> tuple[int, list[channel.Message | None], str]:
    """Run a worker that is told this and then left alone; its exit status, its messages, its errors."""
    ours, theirs = channel.pair()
    with ours, theirs:
        command = [sys.executable, "-m", "xskd.worker", str(theirs.fileno())]
        started = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        theirs.close()
        for message in hello:
            channel.send(ours, message)
        if not hello:
            ours.shutdown(1)  # SHUT_WR: nobody says anything any more
        ours.settimeout(10)
        heard = [channel.receive_text(ours)]
        _, errors = started.communicate(timeout=10)
        return started.returncode, heard, errors


def test_a_bug_tells_the_supervisor_the_last_line_of_its_traceback() -> None:
    status, heard, errors = ended({"nonsense": 1})
    assert (status, heard) == (1, [{"event": "failed", "error": "KeyError: 'plan'"}])
    assert errors.endswith("KeyError: 'plan'\n")


def test_a_worker_that_nobody_speaks_to_ends_without_a_word() -> None:
    assert ended() == (1, [None], "")
