"""The real daemon for a test: its YAML, its process in the network's dut, and everything it says of itself.

`running` starts it, waits until it is ready, and ends it whatever happens. Lane sends on a queue of choice,
which a raw socket cannot; Leftovers knows what a daemon has in the kernel, so that a test can see it go.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from conftest import PATIENCE, WINDOW, Tap, Wire
from prometheus_client.parser import text_string_to_metric_families

from lab import entered
from xskd import control
from xskd.errors import XskdError
from xskd.xsk import Rings

SMALL = "{fill: 1024, rx: 512, tx: 512, completion: 1024}"  # rings; set-up takes a quarter of the defaults'
METRICS = "127.0.0.1:9478"
READY_SECONDS = 15.0

Metrics = dict[str, list[tuple[dict[str, str], float]]]


def connect(options: str = "", *, interface: str = f"rings: {SMALL}", rest: str = "") -> str:
    """Make a configuration that joins eth1 and eth2; `options` are further keys of the path."""
    return paths(f"wire: {{connect: [eth1, eth2]{options}}}", "eth1", "eth2", interface=interface, rest=rest)


def paths(joined: str, *names: str, interface: str = f"rings: {SMALL}", rest: str = "") -> str:
    interfaces = ", ".join(f"{name}: {{{interface}}}" for name in names)
    return f"interfaces: {{{interfaces}}}\npaths: {{{joined}}}\n{rest}\n"


class Daemon:
    """One `xskd run` in the dut; it need not be ready, or alive."""

    def __init__(self, net: Wire, directory: Path, text: str, prefix: Sequence[str] = ()) -> None:
        self.net = net
        self.file, self.socket = directory / "xskd.yaml", directory / "control.sock"
        for key, line in (
            ("control:", f"control: {{socket: {self.socket}}}\n"),
            ("metrics:", f'metrics: {{listen: "{METRICS}"}}\n'),
        ):
            text += "" if key in text else line
        self.file.write_text(text)
        self._log = directory / "log"
        with self._log.open("w") as log:
            command = (sys.executable, "-m", "xskd", "run", "-c", str(self.file))
            self.process = net.popen(net.dut, *prefix, *command, stdout=log, stderr=log)
        self.pid = self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def status(self) -> dict[str, Any]:
        return dict(control.ask(self.socket, "status")["status"])

    def worker(self, name: str) -> dict[str, Any]:
        return next(worker for worker in self.status()["workers"] if worker["name"] == name)

    def workers(self) -> dict[str, int]:
        """Tell the process id of every worker that has one."""
        return {worker["name"]: worker["pid"] for worker in self.status()["workers"] if worker["pid"]}

    def forwards(self, name: str, *, other_than: int = 0) -> bool:
        """Tell whether a worker forwards, in a process other than this one."""
        worker = self.worker(name)
        return bool(worker["state"] == "forwarding" and worker["pid"] != other_than)

    def metrics(self) -> Metrics:
        """Scrape /metrics from inside the dut."""
        with entered(self.net.dut), urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10) as page:
            text = page.read().decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        return {
            name: [(sample.labels, sample.value) for sample in family.samples]
            for name, family in families.items()
        }

    def until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"ended with status {self.process.poll()}:\n{self.log}"
            try:
                if self.status()["ready"]:
                    return
            except XskdError:
                pass
            time.sleep(0.01)
        raise AssertionError(f"not ready within {READY_SECONDS:g} s:\n{self.log}")

    def ended(self) -> int:
        """Wait for the daemon to end; its exit status."""
        return self.process.wait(READY_SECONDS)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(sign)
        return self.ended()


@contextmanager
def running(
    net: Wire, directory: Path, text: str | None = None, prefix: Sequence[str] = ()
) -> Iterator[Daemon]:
    """Start a daemon, wait until it is ready, and end it."""
    with started(net, directory, text, prefix) as daemon:
        daemon.until_ready()
        yield daemon


@contextmanager
def started(
    net: Wire, directory: Path, text: str | None = None, prefix: Sequence[str] = ()
) -> Iterator[Daemon]:
    """Start a daemon, by the command `prefix` if there is one, and end it."""
    daemon = Daemon(net, directory, connect() if text is None else text, prefix)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()  # its workers see that and end
            daemon.ended()


def xskd(net: Wire, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a verb of the command line in the dut."""
    return net.run(net.dut, sys.executable, "-m", "xskd", *args, check=False)


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Sum the samples that have these labels; there must be one."""
    found = [value for given, value in metrics[name] if labels.items() <= given.items()]
    assert found, f"no {name} with {labels}"
    return sum(found)


class Lane:
    """Sends on one queue: what a host's XSK sends on queue n reaches queue n at the other end of the veth."""

    def __init__(self, net: Wire, queue: int = 0, host: int = 0) -> None:
        self._net = net
        rings = Rings(fill=64, rx=64, tx=256, completion=256)
        self._socket = net.open("eth0", queue, ns=net.hosts[host], umem=net.umem(512, 2048), rings=rings)

    def send(self, packets: Sequence[bytes]) -> None:
        self._socket.complete()
        batch = self._net.written(self._socket.umem, packets)
        assert self._socket.transmit(batch) == len(packets)
        assert self._net.eventually(lambda: self._socket.complete() + self._socket.unsent == 0)

    def through(self, packets: Sequence[bytes], to: Tap) -> list[bytes]:
        """Send packets a window at a time, and take as many at a tap."""
        got: list[bytes] = []
        for start in range(0, len(packets), WINDOW):
            window = packets[start : start + WINDOW]
            self.send(window)
            got += to.receive(len(window))
        return got


class Leftovers:
    """What a daemon has now in the kernel and among the processes, to be looked for when it has ended."""

    def __init__(self, daemon: Daemon) -> None:
        self._net = daemon.net
        self._sockets = [
            (port["interface"], port["queue"]) for w in daemon.status()["workers"] for port in w["ports"]
        ]
        self._pids = [daemon.pid, *daemon.workers().values()]
        self.bpf = sorted(_bpf_objects(daemon.pid))

    def remaining(self) -> list[str]:
        """Name what there still is, after waiting a while for it to go."""
        self._net.eventually(lambda: not self._seen(), 3)
        for interface, queue in self._sockets:
            self._net.open(interface, queue, umem=self._net.umem(64)).close()  # EBUSY: an XSK is left
        return self._seen()

    def remaining_processes(self) -> list[str]:
        return [f"process {pid}" for pid in self._pids if _runs(pid)]

    def _seen(self) -> list[str]:
        seen = self.remaining_processes()
        for kind, number in self.bpf:
            shown = subprocess.run(("bpftool", kind, "show", "id", number), capture_output=True, check=False)
            seen += [f"{kind} {number}"] if shown.returncode == 0 else []
        links = self._net.run(self._net.dut, "ip", "-j", "link", "show").stdout
        return [*seen, *re.findall(r'"xdp":\{[^}]*\}', links)]


def _runs(pid: int) -> bool:
    """Tell whether a process is there and not merely waiting to be reaped by an init that takes its time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _bpf_objects(pid: int) -> Iterator[tuple[str, str]]:
    """Kind and id of each BPF object that a process holds."""
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            yield from re.findall(r"^(prog|map|link)_id:\s+(\d+)$", entry.read_text(), re.MULTILINE)


@contextmanager
def kernel_side(net: Wire, dev: str) -> Iterator[socket.socket]:
    """Listen to what the dut's own kernel gets to see from an interface, after the XDP program."""
    with entered(net.dut):
        listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    with listening:
        listening.bind((dev, 0))
        listening.settimeout(PATIENCE)
        yield listening


def memory_kb(pid: int, *fields: str) -> int:
    """Sum fields of /proc/PID/status that are in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return sum(int(values[field].removesuffix("kB")) for field in fields)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
