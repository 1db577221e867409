"""Places that a daemon reads or writes, missing, closed or full: what forwards does not need them.

Each is made in a mount namespace of the daemon's own; nothing outside of it is touched.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from accounts import RATE, config, undisturbed
from daemon import SMALL, Daemon, Stream, running, started
from test_daemon_reload import forwards

from lab.figures import figure

if TYPE_CHECKING:
    from conftest import MakeWire

TEXT = config(f"rings: {SMALL}")
FULL = "xskd-full"
FILL_IT = f"cat /dev/zero > {FULL}/filler 2>/dev/null || true"


def where(setup: str) -> Sequence[str]:
    """Make a command that runs the rest of it in a mount namespace set up like this."""
    return ("unshare", "-m", "sh", "-ec", f'{setup}; exec "$@"', "sh")


def lives(daemon: Daemon) -> None:
    """See a daemon do all it does: replace a dead worker, reload, tell; path a does not notice."""
    killed = daemon.workers()["b/0"]
    with undisturbed(daemon, "a place is missing or full", b_may_end=True):
        os.kill(killed, signal.SIGKILL)
        took = daemon.comes("b/0", other_than=killed)
        assert daemon.reload() == []
        assert daemon.metrics()
        assert forwards(daemon.net)
    figure("time until a worker is replaced while a place is missing or full", took, "s", 10)


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(
            "umount -l /sys/fs/bpf 2>/dev/null || true; mount -o remount,bind,ro /proc",
            id="without bpffs, /proc read-only",
        ),
        pytest.param("mount -t proc -o hidepid=invisible,subset=pid proc /proc", id="little of /proc"),
        pytest.param("unset PYTHONUNBUFFERED; exec >/dev/full 2>&1", id="a log that is full"),
    ],
)
def test_a_daemon_lives(wire: MakeWire, tmp_path: Path, setup: str) -> None:
    with running(wire(links=4), tmp_path, TEXT, prefix=where(setup)) as daemon:
        assert " - bpf " not in Path(f"/proc/{daemon.pid}/mountinfo").read_text()
        lives(daemon)
        assert "Traceback" not in daemon.log
        assert daemon.stop() == 0


def test_without_proc_it_says_so_and_leaves_nothing(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=4)
    with started(net, tmp_path, TEXT, prefix=where("mount -t tmpfs none /proc")) as daemon:
        assert daemon.ended() == 3
        assert "is /proc mounted?" in daemon.log
        assert "Traceback" not in daemon.log
        assert '"xdp"' not in net.run(net.dut, "ip", "-j", "link", "show").stdout


def test_a_state_that_cannot_be_saved(wire: MakeWire, tmp_path: Path) -> None:
    """The next restart will not be hitless, which is said; nothing else is different, and it is mended."""
    net, full = wire(links=4), tmp_path / FULL
    full.mkdir()
    setup = f"mount -t tmpfs -o size=64k none {full}; cd {tmp_path}; {FILL_IT}; cd /"
    setup += f"; export NOTIFY_SOCKET=@{net.prefix} RUNTIME_DIRECTORY={full}"
    with running(net, tmp_path, TEXT, prefix=where(setup)) as daemon:
        lives(daemon)
        assert "the state of this daemon cannot be saved, so a restart will not be hitless" in daemon.log
        assert "No space left on device" in daemon.log
        inside = Path(f"/proc/{daemon.pid}/root{full}")
        (inside / "filler").unlink()
        assert net.eventually((inside / "state.json").exists)  # it tries again with the next event
        assert "Traceback" not in daemon.log


def test_a_capture_onto_a_full_disk(wire: MakeWire, tmp_path: Path) -> None:
    """It ends with a reason; its worker is free for another one, and has lost no packet."""
    net, full = wire(links=4), tmp_path / FULL
    full.mkdir()
    with running(net, tmp_path, TEXT) as daemon, undisturbed(daemon):
        setup = f"mount -t tmpfs -o size=4k none {full}"
        for place, complaint in (
            (where(setup), f"{full}/x.pcapng: No space left on device"),
            ((), "captured"),
        ):
            with Stream(net, rate=RATE, hosts=(2, 3)) as stream:
                done = net.run(net.dut, *place, *capture(daemon, full), check=False)
            assert complaint in done.stderr, done.stderr
            assert (done.returncode == 0) == (not place)
            figure("packets lost by a path whose capture fails", stream.lost, "packets", 0)


def capture(daemon: Daemon, directory: Path) -> Sequence[str]:
    control = ("--socket", str(daemon.socket))
    return (
        sys.executable,
        "-m",
        "xskd",
        "capture",
        "b",
        *control,
        "-w",
        f"{directory}/x.pcapng",
        "--count",
        "100",
    )
