"""The real daemon for a test: its YAML, its process in the network's dut, and everything it says of itself.

`running` starts it, waits until it is ready, and ends it whatever happens. Lane sends on a queue of choice,
which a raw socket cannot, and Stream keeps sending while something happens; Leftovers knows what a daemon has
in the kernel, so that a test can see it go.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Protocol, Self

from conftest import PATIENCE, SLOWNESS, WINDOW, Tap, Wire
from prometheus_client.parser import text_string_to_metric_families
from scrapes import Metrics

from lab import entered
from xskd import control
from xskd.errors import XskdError
from xskd.xsk import Rings

SMALL = "{fill: 1024, rx: 512, tx: 512, completion: 1024}"  # rings; set-up takes a quarter of the defaults'
METRICS = "127.0.0.1:9478"
READY_SECONDS = 15.0 * SLOWNESS
TICK = 0.001  # seconds between two bursts of a Stream
SETTLE = 0.5  # seconds for its last packets to arrive


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
        self.write(text)
        self._log = directory / "log"
        self._log.write_text("")
        self.process = self.launch(prefix)

    def launch(self, prefix: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start its process, by the command `prefix` if there is one."""
        with self._log.open("a") as log:
            command = (sys.executable, "-m", "xskd", "run", "-c", str(self.file))
            return self.net.popen(self.net.dut, *prefix, *command, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self.process.pid

    def write(self, text: str) -> None:
        """Make this the configuration file, with the addresses of ours if it has none."""
        for key, line in (
            ("control:", f"control: {{socket: {self.socket}}}\n"),
            ("metrics:", f'metrics: {{listen: "{METRICS}"}}\n'),
        ):
            text += "" if key in text else line
        self.file.write_text(text)

    def reload(self, text: str | None = None) -> list[str]:
        """Have it read this configuration (None: the file as it is); the actions. Raises control.Refused."""
        if text is not None:
            self.write(text)
        return list(control.ask(self.socket, "reload", dry=False)["actions"])

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

    def children(self) -> set[int]:
        """Tell the ids of all its processes, also of one that has not said anything yet."""
        return {int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}

    def forwards(self, name: str, *, other_than: int = 0) -> bool:
        """Tell whether a worker forwards, in a process other than this one."""
        worker = self.worker(name)
        return bool(worker["state"] == "forwarding" and worker["pid"] != other_than)

    def comes(self, name: str, *, other_than: int = 0, within: float = 15) -> float:
        """Wait until a worker forwards, in a process other than this one; the seconds that took."""
        began = time.monotonic()
        assert self.net.eventually(lambda: self._has(name, other_than), within), f"{name}:\n{self.log}"
        return time.monotonic() - began

    def _has(self, name: str, other_than: int) -> bool:
        return any(worker["name"] == name for worker in self.status()["workers"]) and self.forwards(
            name, other_than=other_than
        )

    def metrics(self, where: str = METRICS) -> Metrics:
        """Scrape /metrics from inside the dut; a histogram's samples are under their own names too."""
        with entered(self.net.dut), urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as page:
            text = page.read().decode()
        found: Metrics = {}
        for family in text_string_to_metric_families(text):
            found[family.name] = [(sample.labels, sample.value) for sample in family.samples]
            if family.type == "histogram":
                for sample in family.samples:
                    found.setdefault(sample.name, []).append((sample.labels, sample.value))
        self.net.scrapes.append(found)
        return found

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
    command = (sys.executable, "-m", "xskd", *args)
    return net.run(net.dut, *command, check=False, timeout=60 * SLOWNESS)


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

    def close(self) -> None:
        self._socket.close()

    def through(self, packets: Sequence[bytes], to: Tap) -> list[bytes]:
        """Send packets a window at a time, and take as many at a tap."""
        got: list[bytes] = []
        for start in range(0, len(packets), WINDOW):
            window = packets[start : start + WINDOW]
            self.send(window)
            got += to.receive(len(window))
        return got


class Sender(Protocol):
    """What a Stream sends by."""

    def send(self, packets: Sequence[bytes]) -> None: ...

    def close(self) -> None: ...


class Stream:
    """A steady stream on one queue from entering to leaving; then each packet is accounted for.

    Sends late rather than less. `lost`, `doubled` and `damaged` count packets; `silence` is the longest time
    in seconds between two that arrived, `waited` likewise while one had been sent: what a machine that stands
    still, and sends nothing either, does not add to.
    """

    _numbers = count(1)

    def __init__(
        self,
        net: Wire,
        *,
        queue: int = 0,
        rate: int = 1_000,
        hosts: tuple[int, int] = (0, 1),
        lane: Sender | None = None,
    ) -> None:
        self._net, self._rate = net, rate
        self._lane = lane or Lane(net, queue, hosts[0])
        self._tap = Tap(net.hosts[hosts[1]])
        self._first = next(self._numbers) * 1_000_000  # so that several may end at one host
        self._ended, self._all_sent = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._safely, args=(do,)) for do in (self._send, self._take)]
        self._errors: list[BaseException] = []
        self._seen: list[int] = []
        self.sent = self.damaged = 0
        self.silence = self.waited = 0.0
        self._sent_at: list[float] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        if not self._net.eventually(lambda: bool(self._seen)):
            self._end()
            raise AssertionError("nothing comes through")
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()
        if self._errors:
            raise self._errors[0]

    def _end(self) -> None:
        self._ended.set()
        sender, taker = self._threads
        sender.join()  # its last burst is not in `sent` before that
        self._all_sent.set()
        taker.join()
        self._tap.socket.close()
        self._lane.close()

    @property
    def lost(self) -> int:
        return self.sent - len(set(self._seen))

    def missing(self, first: int, end: int) -> set[int]:
        """Which of the packets from `first` to before `end` have not arrived."""
        return set(range(first, end)) - set(self._seen)

    @property
    def doubled(self) -> int:
        return len(self._seen) - len(set(self._seen))

    @property
    def whole(self) -> bool:
        """Has every packet arrived once, unchanged and in order?"""
        return not self.damaged and self._seen == list(range(self.sent))

    def __repr__(self) -> str:
        """Say what a failed `assert stream.whole` has to say."""
        late = [b for a, b in pairwise(self._seen) if b < a]
        return (
            f"<Stream: {self.sent} sent, {self.lost} lost, {self.doubled} doubled, {self.damaged} damaged, "
            f"{len(late)} late {late[:8]}, missing {sorted(set(range(self.sent)) - set(self._seen))[:8]}>"
        )

    @property
    def latest(self) -> int:
        """The number of the packet that was the last to arrive; they begin at 0."""
        return self._seen[-1]

    def goes_on(self) -> bool:
        """Wait until a packet sent from now on has arrived."""
        sent = self.sent
        return self._net.eventually(lambda: bool(self._seen) and self._seen[-1] > sent)

    def _safely(self, do: Callable[[], None]) -> None:
        try:
            do()
        except BaseException as error:
            self._errors.append(error)

    def _send(self) -> None:
        began = time.monotonic()
        while not self._ended.is_set():
            due = int((time.monotonic() - began) * self._rate) - self.sent
            if due > 0:
                packets = self._net.frames(min(due, WINDOW // 2), first=self._first + self.sent)
                self._sent_at += [time.monotonic()] * len(packets)
                self._lane.send(packets)
                self.sent += len(packets)
            time.sleep(TICK)

    def _take(self) -> None:
        """Until the stream has ended and nothing has come for a while, or all has."""
        last = time.monotonic()
        while not (
            self._all_sent.is_set() and (len(self._seen) == self.sent or time.monotonic() - last > SETTLE)
        ):
            for packet in self._tap.receive(1, TICK * 20):
                number = int.from_bytes(packet[14:18], "big") - self._first
                if 0 <= number < 1_000_000:
                    self._seen.append(number)
                    self.damaged += packet != self._net.frame(self._first + number)
                    now = time.monotonic()
                    if len(self._seen) > 1:
                        self.silence = max(self.silence, now - last)
                        due = min(self._seen[-2] + 1, number)  # it may have been lost
                        self.waited = max(self.waited, now - max(last, self._sent_at[due]))
                    last = now


class Leftovers:
    """What a daemon has now in the kernel and among the processes, to be looked for when it has ended."""

    def __init__(self, daemon: Daemon) -> None:
        self._net = daemon.net
        self._sockets = [
            (port["interface"], port["queue"]) for w in daemon.status()["workers"] for port in w["ports"]
        ]
        self._pids = [daemon.pid, *daemon.workers().values()]
        self.bpf = sorted(bpf_objects(daemon.pid))

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


def bpf_objects(pid: int) -> Iterator[tuple[str, str]]:
    """Kind and id of each BPF object that a process holds, as often as it holds it."""
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
