"""The Box itself: a systemd that leaves the host as it was, also when its maker is killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from booted import ROOT, eventually

from lab.box import Box, BoxError, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

FOREVER = """
import sys, time
from lab.box import Box
with Box("xskd-doomed") as box:
    print(box.pid, flush=True)
    time.sleep(60)
"""


def test_what_happens_in_the_box_stays_there() -> None:
    name = socket.gethostname()
    with Box(binds=[ROOT]) as box:
        pid = box.pid
        assert box.run("cat", "/proc/1/comm").stdout == "systemd\n"
        box.run("hostname", "changed")
        box.run("touch", "/etc/xskd-box-was-here")
        assert box.path("/etc/xskd-box-was-here").exists()
        for forbidden in (f"{ROOT}/x", "/proc/sys/kernel/printk", "/sys/kernel/profiling"):
            assert "Read-only" in box.run("touch", forbidden, check=False).stderr
        links = box.run("ip", "-o", "link").stdout
        assert ("lo:" in links, "eth0" in links) == (True, False)
    assert not Path("/etc/xskd-box-was-here").exists()
    assert socket.gethostname() == name
    assert not os.path.exists(f"/proc/{pid}")
    assert "xskd-box" not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


def test_a_box_that_cannot_boot_says_why() -> None:
    with pytest.raises(BoxError, match="/run/netns/xskd-none"), Box(netns="xskd-none"):
        pass


def test_a_box_never_outlives_its_maker() -> None:
    maker = subprocess.Popen((sys.executable, "-c", FOREVER), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with maker:
        assert maker.stdout is not None
        pid = int(maker.stdout.readline())
        maker.kill()
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    with Box("xskd-doomed") as box:  # and the next one clears away what was left
        left = box._cgroup.parent.glob("xskd-doomed-*")
        assert [found.name for found in left] == [box._cgroup.name]
