"""What the tests of hostile packets share: a build of xskd that poisons frames, and ends that see every byte.

Both ends are sockets of AF_XDP in the hosts. The daemon runs on a build of the data plane that overwrites
each frame before the kernel gets it back (XSKD_POISON in csrc/frames.h). Nothing that is sent contains that
byte, so one that arrives is what nobody has sent.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, WINDOW, Wire
from daemon import Daemon, total
from xsk_ends import completed, receive, send, submit
from xskd._forward import lib

from lab import entered
from xskd.xsk import Rings

Poisoned = tuple[str, ...]
POISON = 0xDB
NOISE = random.Random(6).randbytes(1 << 16).replace(bytes([POISON]), b"\0")
HEAD = bytes.fromhex("020000000002 020000000001")


def of_length(length: int) -> bytes:
    """Make a packet of an experimental EtherType, without the poison's byte."""
    return (HEAD + b"\x88\xb5" + NOISE[length % 997 :])[:length]


@functools.cache
def poisoning(where: Path) -> Poisoned:
    """Copy xskd to a directory, with a data plane that poisons; what a command that uses it begins with.

    Once per session, whoever asks.
    """
    where /= "poisoned"
    where.mkdir()
    for part in ("csrc", "bpf"):  # a link would have the objects of this build put beside the sources
        shutil.copytree(ROOT / part, where / part)
    shutil.copytree(ROOT / "xskd", where / "xskd", ignore=shutil.ignore_patterns("_forward*", "__pycache__"))
    compiling = "import runpy; runpy.run_path('csrc/build.py')['forward'].compile(tmpdir='.')"
    environment = {**os.environ, "CFLAGS": f"-DXSKD_POISON={POISON}"}
    command = (sys.executable, "-c", compiling)
    subprocess.run(command, cwd=where, env=environment, check=True, capture_output=True)
    return ("env", "-C", str(where), f"PYTHONPATH={where}")


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    """Say what a command begins with that runs xskd with a data plane that poisons frames."""
    return poisoning(tmp_path_factory.getbasetemp())


def poison_in(daemon: Daemon) -> int:
    """How many bytes of the packet memory of its workers are poison."""
    found = 0
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            if "memfd:xskd-umem" in os.readlink(entry):
                found += entry.read_bytes().count(POISON)
    return found


class Ends:
    """A socket of AF_XDP on each host's eth0; sends and receives whole packets, also of several frames."""

    def __init__(self, net: Wire, *, several: bool = False) -> None:
        self._sockets = []
        for ns in net.hosts:
            rings = Rings(fill=2048, rx=2048, tx=2048, completion=2048)
            end = net.open("eth0", ns=ns, umem=net.umem(6144, 4096), rings=rings, multi_buffer=several)
            program = net.load()
            with entered(ns):
                program.attach("eth0", "native")
            program.insert(0, end)
            end.receive(1).release()
            self._sockets.append(end)

    def send(self, host: int, packets: Sequence[bytes]) -> None:
        send(self._sockets[host], packets)

    def receive(self, host: int, count: int, timeout: float = 20.0) -> list[bytes]:
        """Take `count` packets, fewer if none comes for `timeout` seconds."""
        return receive(self._sockets[host], count, timeout)

    def through(self, packets: Sequence[bytes], expected: Sequence[bytes], *, to: int = 1) -> None:
        """Send packets from the first host a window at a time: these arrive, and no others."""
        for start in range(0, len(packets), WINDOW // 2):
            self.send(0, packets[start : start + WINDOW // 2])
            room = expected[start : start + WINDOW // 2] if len(expected) == len(packets) else None
            if room is not None:
                compare(self.receive(to, len(room)), room)
        if len(expected) != len(packets):
            compare(self.receive(to, len(expected)), expected)
        assert self.receive(to, 1, 0.1) == [], "more arrived than was expected"

    def raw(self, length: int) -> str:
        """Put a descriptor of that length on TX past all checks of the library; what becomes of it."""
        end = self._sockets[0]
        with end.umem.take(1) as batch:
            addr = batch._descs[0].addr
        end.umem.view[addr : addr + 14] = of_length(14)
        busy = end.port.counters.wakeup_errors
        before = end.statistics().tx_invalid_descs, busy[lib.XSKD_ERROR_EBUSY]
        assert submit(end, (addr, length, 0)) == 0
        after = end.statistics().tx_invalid_descs, busy[lib.XSKD_ERROR_EBUSY]
        completed(end)
        return "sent" if before == after else "invalid" if before[0] != after[0] else "refused"


def compare(got: Sequence[bytes], expected: Sequence[bytes]) -> None:
    """Fail at the first packet that is not what it should be, and say where."""
    for place, (one, other) in enumerate(zip(got, expected, strict=False)):
        wrong = "; there is poison in it" if POISON in one and POISON not in other else ""
        assert one == other, f"packet {place} of {len(expected)}{wrong}"
    assert len(got) == len(expected)


def well(daemon: Daemon, packets: int | None = None) -> None:
    """See that all was counted, nothing was lost, and nobody died of it."""
    metrics = daemon.metrics()
    assert total(metrics, "xskd_frames_unaccounted") == 0
    assert total(metrics, "xskd_frames", state="quarantined") == 0
    if packets is not None:
        assert total(metrics, "xskd_tx_packets", interface="eth2") == packets
        assert total(metrics, "xskd_dropped_packets") == 0
    (worker,) = daemon.status()["workers"]
    assert set(worker["restarts"]) <= {"stalled"}, (
        daemon.log
    )  # as one without a CPU for two seconds is taken for
    assert "Traceback" not in daemon.log
