"""What the kernel tests share: a network with raw sockets at its hosts and xskd's sockets in the middle.

`wire` makes a Wire, a lab.Topology that hands out the library's objects inside its namespaces and closes
them. Every Forwarder it made is asked at the end of its test whether all frames are where they should be, so
no test can forget it. Packets carry a number, so that one that is missing, twice or out of order is seen.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from kernels import QUESTIONS, answered, words
from scrapes import Metrics, unmoved

from lab import Topology, entered
from lab.arrivals import raw
from xskd.forward import Forwarder, Kind, Poll
from xskd.xdp import Attach, Fallback, Program
from xskd.xsk import Batch, Mode, Rings, Socket, Umem

ROOT = Path(__file__).parents[2]
# These need NICs in zero-copy mode and take over whatever has their names: only in the virtual machine that
# tests/system/test_zero_copy.py boots.
collect_ignore = [] if os.environ.get("XSKD_ZERO_COPY") else ["zerocopy"]
SLOWNESS = float(os.environ.get("XSKD_SLOWNESS", "1"))  # of the machine; an emulated one is given more time
PATIENCE = 5.0 * SLOWNESS  # seconds: how long anything that must happen may take
WINDOW = 128  # packets on their way at once: a veth's own ring has 256 places, and nothing here may be lost
NOISE = random.Random(9478).randbytes(4096)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `needs` on a kernel that cannot do it."""
    for marker in item.iter_markers("needs"):
        if os.geteuid() == 0 and not (can := QUESTIONS[marker.args[0]])():
            pytest.skip(f"an older kernel, which cannot {words(can)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which half of tests that go by the kernel's answers was tried."""
    for line in answered():
        terminalreporter.write_line(line)


class Tap:
    """A raw socket on a host's eth0: sends whole frames, sees all that arrive, and none it sent."""

    def __init__(self, ns: str) -> None:
        self.socket = raw(ns)

    def send(self, packets: Sequence[bytes]) -> None:
        for packet in packets:
            self.socket.send(packet)

    def receive(self, count: int, timeout: float = PATIENCE) -> list[bytes]:
        """Take `count` packets, fewer if there are no more in time."""
        self.socket.settimeout(timeout)
        got: list[bytes] = []
        try:
            while len(got) < count:
                got.append(self.socket.recv(65536))
        except TimeoutError:
            pass
        return got

    def waiting(self) -> list[bytes]:
        """Take what has arrived already."""
        self.socket.setblocking(False)
        got: list[bytes] = []
        try:
            while True:
                got.append(self.socket.recv(65536))
        except BlockingIOError:
            return got

    def through(self, packets: Sequence[bytes], to: Tap) -> list[bytes]:
        """Send packets a window at a time, and take as many at the other tap; what is missing stays so."""
        got: list[bytes] = []
        for start in range(0, len(packets), WINDOW):
            window = packets[start : start + WINDOW]
            self.send(window)
            got += to.receive(len(window))
        return got


class Wire(Topology):
    """Hosts around a device under test, with the library's objects in it; all are closed on leaving."""

    @staticmethod
    def frame(number: int, length: int = 64) -> bytes:
        """Make an Ethernet frame that no other number has: addresses, an experimental type, number, noise."""
        head = bytes.fromhex("020000000002 020000000001 88b5")
        return (head + number.to_bytes(4, "big") + NOISE[number % 997 :])[:length]

    @classmethod
    def frames(cls, count: int, length: int = 64, first: int = 0) -> list[bytes]:
        return [cls.frame(first + number, length) for number in range(count)]

    @staticmethod
    def swapped(packet: bytes) -> bytes:
        return packet[6:12] + packet[:6] + packet[12:]

    @staticmethod
    def written(umem: Umem, packets: Sequence[bytes]) -> Batch:
        """Put packets into free frames."""
        batch = umem.take(len(packets))
        assert len(batch) == len(packets), "too few free frames"
        for index, packet in enumerate(packets):
            batch.write(index, packet)
        return batch

    @staticmethod
    def eventually(condition: Callable[[], bool], patience: float = 5.0) -> bool:
        """Wait until a condition holds; False if it does not in this many seconds (of a machine not slow)."""
        deadline = time.monotonic() + patience * SLOWNESS
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def __init__(self, *, links: int = 2, queues: int = 1, mtu: int = 1500) -> None:
        super().__init__("xskd-test", links=links, queues=queues, mtu=mtu, addresses=False)
        self._stack = ExitStack()
        self.forwarders: list[Forwarder] = []
        self.programs: dict[str, Program] = {}
        self.taps: list[Tap] = []
        self.scrapes: list[Metrics] = []

    def __enter__(self) -> Wire:
        super().__enter__()
        self.taps = [Tap(ns) for ns in self.hosts]
        return self

    def close(self) -> None:
        for tap in self.taps:
            tap.socket.close()
        self._stack.close()
        super().close()

    def umem(self, frames: int = 8192, frame_size: int = 4096, **options: Any) -> Umem:
        made = Umem(frames, frame_size, **options)
        self._stack.callback(made.close)
        return made

    def open(
        self,
        dev: str = "eth1",
        queue: int = 0,
        *,
        umem: Umem | None = None,
        ns: str | None = None,
        rings: Rings | None = None,
        mode: Mode = "auto",
        multi_buffer: bool = False,
    ) -> Socket:
        """Open a socket in the dut, or in `ns`; it receives nothing yet."""
        with entered(ns or self.dut):
            made = Socket.open(
                umem or self.umem(),
                dev,
                queue,
                rings=rings,
                mode=mode,
                mtu=self.mtu,
                multi_buffer=multi_buffer,
            )
        self._stack.callback(made.close)
        return made

    def load(self, *, queues: int | None = None, fallback: Fallback = "pass", **options: Any) -> Program:
        """Load a program that is attached nowhere."""
        made = Program(queues or self.queues, fallback=fallback, **options)
        self._stack.callback(made.close)
        return made

    def attach(self, dev: str = "eth1", mode: Attach = "auto", fallback: Fallback = "pass") -> Program:
        """Attach a program to an interface of the dut."""
        made = self.load(fallback=fallback)
        with entered(self.dut):
            made.attach(dev, mode)
        self.programs[dev] = made
        return made

    def receiver(self, dev: str = "eth1", queue: int = 0, attach: Attach = "auto", **options: Any) -> Socket:
        """Open a socket that gets the packets of its queue."""
        made = self.open(dev, queue, **options)
        program = self.programs.get(dev) or self.attach(dev, attach)
        program.insert(queue, made)
        return made

    def forward(
        self,
        kind: Kind = "connect",
        queue: int = 0,
        *,
        frames: int = 8192,
        frame_size: int = 4096,
        poll: Poll = "adaptive",
        **options: Any,
    ) -> Forwarder:
        """Put a Forwarder on a queue of the dut's first interface (reflect), first two (connect) or all."""
        umem = self.umem(frames, frame_size)
        devs = self.dut_devs[: {"reflect": 1, "connect": 2}.get(kind)]
        sockets = [self.receiver(dev, queue, umem=umem, **options) for dev in devs]
        made = Forwarder(sockets, kind, poll=poll)
        self.forwarders.append(made)
        return made

    @contextmanager
    def running(self, *forwarders: Forwarder) -> Iterator[None]:
        """Let forwarders run, each in its own thread; what one raises is raised on leaving."""
        errors: list[Exception] = []
        ended = threading.Event()

        def loop(forwarder: Forwarder) -> None:
            try:
                while not ended.is_set():
                    forwarder.run(0.02)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=loop, args=(forwarder,)) for forwarder in forwarders]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def link(self, ns: str, dev: str, *change: str) -> None:
        self.run(ns, "ip", "link", "set", dev, *change)

    def up(self, ns: str, dev: str) -> None:
        """Set a link up and wait until both its ends carry packets."""
        self.link(ns, dev, "up")
        assert self.eventually(lambda: "LOWER_UP" in self.run(ns, "ip", "-br", "link", "show", dev).stdout)
        for tap in self.taps:  # a raw socket on the interface keeps its ENETDOWN until somebody asks
            tap.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def python(self, *args: str, ns: str | None = None, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start a Python program in the dut, or in `ns`; it is killed at the end of the test."""
        # A shell that runs the tests in the background has SIGINT ignored, and that is inherited.
        at_ease = ("env", "--default-signal=INT")
        command = ("ip", "netns", "exec", ns or self.dut, *at_ease, *prefix, sys.executable, *args)
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)
        self._stack.callback(child.communicate)
        self._stack.callback(child.kill)
        return child


class MakeWire(Protocol):
    """What the fixture `wire` is."""

    def __call__(self, *, links: int = 2, queues: int = 1, mtu: int = 1500) -> Wire: ...


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> Iterator[MakeWire]:
    """Make networks with xskd's objects in them.

    See at the end that no frame is lost or owned twice, and that what the test is marked with has moved.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces, opens AF_XDP sockets")
    failed = request.session.testsfailed
    Topology.cleanup_stale("xskd-test")  # what a killed run has left
    with ExitStack() as stack:
        made: list[Wire] = []

        def make(**options: int) -> Wire:
            made.append(stack.enter_context(Wire(**options)))
            return made[-1]

        yield make
        for forwarder in (f for each in made for f in each.forwarders):
            assert forwarder.publish() == 0, "frames unaccounted for"
            assert forwarder.audit() == 0, "a frame in two places"
        scrapes = [scrape for each in made for scrape in each.scrapes]
        if scrapes and request.session.testsfailed == failed:
            assert unmoved(request.node.iter_markers("moves"), scrapes) == []


@pytest.fixture(scope="session")
def foreign_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile an XDP program that is not ours: passes everything, called `stranger`."""
    clang = shutil.which("clang-14") or shutil.which("clang")
    if clang is None:
        pytest.skip("needs clang: compiles a foreign XDP program")
    made = tmp_path_factory.mktemp("bpf") / "stranger.o"
    text = '__attribute__((section("xdp"), used)) int stranger(void *ctx) { return 2; }\n'
    text += 'char terms[] __attribute__((section("license"), used)) = "GPL";\n'
    command = (clang, "-O2", "-target", "bpf", "-x", "c", "-", "-c", "-o", str(made))
    subprocess.run(command, input=text, text=True, check=True)
    return made
