"""The demo does what README.md says of it, for a reader of its output as for one at a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyroute2 import netns

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces)")


def account(text: str, what: str) -> int:
    found = re.search(rf"^ *([\d,]+)  {what}", text, re.MULTILINE)
    assert found, f"no line {what!r} in:\n{text}"
    return int(found[1].replace(",", ""))


def test_the_demo_forwards_accounts_for_everything_and_cleans_up() -> None:
    before = set(netns.listnetns())
    command = (sys.executable, "-m", "lab.demo")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert "0% packet loss" in said
    assert re.search(r"iperf3: [\d.]+ Gbit/s received", said)
    redirected, lost = account(said, "redirected to xskd"), account(said, "lost in the kernel")
    taken, dropped = account(said, "taken by xskd"), account(said, "dropped by xskd")
    forwarded = account(said, "forwarded")
    assert taken > 100_000
    assert redirected == taken + lost
    assert taken == forwarded + dropped
    assert account(said, "frames unaccounted") == 0
    assert "Everything is cleaned up." in said
    assert set(netns.listnetns()) <= before
