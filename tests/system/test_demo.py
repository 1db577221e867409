"""The demo does what README.md says of it, for a reader of its output as for one at a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyroute2 import netns

from lab.grafana import PAGE

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces)")


def account(text: str, what: str) -> int:
    found = re.search(rf"^ *([\d,]+)  {what}", text, re.MULTILINE)
    assert found, f"no line {what!r} in:\n{text}"
    return int(found[1].replace(",", ""))


@dataclass
class Shown:
    """What the demo said, and what its page of dashboards answered before it ended."""

    said: str
    page: str = ""
    dashboards: int = 0
    samples: float = 0.0


def namespaces() -> set[str]:
    """Those of demos; other labs may come and go meanwhile."""
    return {name for name in netns.listnetns() if name.startswith("xskd-demo")}


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    """One run, with the page of dashboards where that is built, whose port is not the machine's."""
    before = namespaces()
    grafana = ("--grafana",) if PAGE.exists() and shutil.which("prometheus") else ()
    script = 'ip link set lo up && exec "$@"'
    command = ("unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-m", "lab.demo", *grafana)
    # Its output goes to a file, because nobody reads it while the page is asked.
    with tempfile.TemporaryFile("w+") as output:
        demo = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output)
        result = Shown("")
        try:
            if grafana:
                ask_the_page(demo, result)
            demo.communicate(b"\n", timeout=90)
        finally:
            demo.terminate()
            demo.wait(10)
        output.seek(0)
        result.said = output.read()
    assert demo.returncode == 0, result.said
    assert namespaces() <= before
    yield result


def ask_the_page(demo: subprocess.Popen[bytes], result: Shown) -> None:
    """Fetch the page, its dashboards and one query, once packets have been counted."""
    deadline = time.monotonic() + 60
    while result.samples == 0 and demo.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
        result.page = fetch(demo, "/d/xskd")
        with suppress(ValueError, LookupError):  # neither the page nor a first sample is there at once
            result.dashboards = len(json.loads(fetch(demo, "/viewer.json"))["dashboards"])
            answer = json.loads(fetch(demo, "/api/v1/query?query=sum(xskd_rx_packets_total)"))
            result.samples = float(answer["data"]["result"][0]["value"][1])


def fetch(demo: subprocess.Popen[bytes], path: str) -> str:
    inside = ("nsenter", f"--net=/proc/{demo.pid}/ns/net", "curl", "--silent", f"http://127.0.0.1:3000{path}")
    return subprocess.run(inside, capture_output=True, text=True, timeout=20, check=False).stdout


def test_the_demo_forwards_accounts_for_everything_and_cleans_up(shown: Shown) -> None:
    said = shown.said
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


def test_the_demo_serves_its_dashboards(shown: Shown) -> None:
    if not shown.page and "Dashboards, drawn" not in shown.said:
        pytest.skip(f"needs {PAGE.relative_to(ROOT)}: scripts/setup test makes it with npm packages")
    assert "http://127.0.0.1:3000/" in shown.said
    assert "viewer.js" in shown.page
    assert shown.dashboards > 0
    assert shown.samples > 0
