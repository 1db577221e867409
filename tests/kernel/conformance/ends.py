"""Two sockets that face each other over a veth pair, in every mode that AF_XDP has here.

A behaviour is a test with the argument `ends`: it runs once for each of MODES, generic or native, with or
without busy polling, in aligned or unaligned frames. `ends.tx` sends from the host, `ends.rx` receives in
the device under test, both are xskd's own sockets with a UMEM each, made on first use or, to be otherwise,
by `ends.sender` and `ends.receiver`. They are closed after each test, and no frame may be missing then.

The network and the attached program are those of a whole file and mode: to make them takes longer than most
tests. Busy polling wants the interface to leave its queue alone, which is set on the veths of our own
namespaces. A veth does that, but since Linux 6.13 the kernel does not know how to poll it
(Socket.busy_polled): packets come by the timer that ends the leaving alone, and all must be as it is
otherwise.

This is a pytest plugin: a file of tests names it (`pytest_plugins = ["ends"]`) to have the fixtures.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import xsk_ends
from conftest import Wire
from xskd._libbpf import ffi as bpf
from xskd._libbpf import lib as libbpf

from lab import Topology, entered
from xskd.hook import ifindex_of, libbpf_error
from xskd.xdp import HasFileno, Program
from xskd.xsk import Rings, Socket, Umem

MTU = 9000
WINDOW = 32  # packets on their way at once: less than any ring here has entries, and than a veth's queue
PATIENCE = 5.0  # seconds
FRAMES = 256
RINGS = Rings(fill=128, rx=128, tx=128, completion=128)
ROUNDS, TIMEOUT = 2, 200_000  # napi_defer_hard_irqs, and gro_flush_timeout in ns
PROGRAMS = Path(__file__).with_name("programs.bpf.c")


@dataclass(frozen=True)
class Mode:
    """One of the ways in which the kernel moves packets for a socket in copy mode."""

    attach: Literal["generic", "native"]
    busy: bool
    unaligned: bool

    def __str__(self) -> str:
        words = (self.attach, "busy" if self.busy else "", "unaligned" if self.unaligned else "aligned")
        return "-".join(filter(None, words))

    @property
    def frame_size(self) -> int:
        """Bytes; unaligned, of a size that only they can have, so that frames cross pages."""
        return 3000 if self.unaligned else 4096


ATTACH: tuple[Literal["generic", "native"], ...] = ("generic", "native")
MODES = tuple(
    Mode(attach, busy, unaligned)
    for attach in ATTACH
    for busy, unaligned in itertools.product((False, True), repeat=2)
)


class TestProgram:
    """One of programs.bpf.c, attached to an interface of this thread's namespace."""

    __test__ = False  # nothing for pytest to collect

    def __init__(self, path: Path, name: str, interface: str, mode: str) -> None:
        content = path.read_bytes()
        self._object = libbpf.bpf_object__open_mem(content, len(content), bpf.NULL)
        if libbpf.bpf_object__load(self._object) < 0:
            raise libbpf_error("BPF_PROG_LOAD", None)
        program = libbpf.bpf_object__find_program_by_name(self._object, name.encode())
        self._map = libbpf.bpf_map__fd(libbpf.bpf_object__find_map_by_name(self._object, b"xsks"))
        flags = libbpf.XDP_FLAGS_DRV_MODE if mode == "native" else libbpf.XDP_FLAGS_SKB_MODE
        self._link = libbpf.xskd_link_create(libbpf.bpf_program__fd(program), ifindex_of(interface), flags)
        if self._link < 0:
            raise libbpf_error("BPF_LINK_CREATE", -self._link, interface)

    def insert(self, queue: int, xsk: HasFileno, *, replace: bool = False) -> None:
        key, value = bpf.new("uint32_t *", queue), bpf.new("uint32_t *", xsk.fileno())
        flags = libbpf.BPF_ANY if replace else libbpf.BPF_NOEXIST
        if (result := libbpf.bpf_map_update_elem(self._map, key, value, flags)) < 0:
            raise libbpf_error("BPF_MAP_UPDATE_ELEM(xsks)", -result)

    def close(self) -> None:
        os.close(self._link)
        libbpf.bpf_object__close(self._object)


class Ground:
    """A veth pair between a host and the device under test, with a program at the ends that receive."""

    def __init__(self, mode: Mode, compiled: Callable[[], Path]) -> None:
        self.mode, self._compiled = mode, compiled
        self.wire = Wire(links=1, mtu=MTU)
        self._programs: dict[str, tuple[str, Program | TestProgram]] = {}

    def __enter__(self) -> Ground:
        self.wire.__enter__()
        rounds, timeout = (ROUNDS, TIMEOUT) if self.mode.busy else (0, 0)
        for ns, dev in self.places:
            at = f"/sys/class/net/{dev}"
            write = f"echo {rounds} > {at}/napi_defer_hard_irqs; echo {timeout} > {at}/gro_flush_timeout"
            self.wire.run(ns, "sh", "-ec", write)
        return self

    def __exit__(self, *exc: object) -> None:
        for _, program in self._programs.values():
            program.close()
        self.wire.__exit__(None, None, None)

    @property
    def places(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Namespace and interface of the sender and of the receiver."""
        return (self.wire.hosts[0], "eth0"), (self.wire.dut, "eth1")

    def program(self, ns: str, dev: str, name: str) -> Program | TestProgram:
        """The program of this name at an interface; it takes the place of another one."""
        if dev in self._programs:
            there, program = self._programs[dev]
            if there == name:
                return program
            program.close()
            del self._programs[dev]
        with entered(ns):
            made: Program | TestProgram
            if name == "xskd":
                made = Program(1, fallback="drop")
                made.attach(dev, self.mode.attach)
            else:
                made = TestProgram(self._compiled(), name, dev, self.mode.attach)
        self._programs[dev] = name, made
        return made


class Ends:
    """The two ends for one test, and what goes from one to the other."""

    frame = staticmethod(Wire.frame)
    packets = staticmethod(Wire.frames)
    eventually = staticmethod(Wire.eventually)

    def __init__(self, ground: Ground) -> None:
        self.ground, self.mode = ground, ground.mode
        self.tampered = False  # with rings, behind the library's back: it cannot know where all frames are
        self._umems: list[Umem] = []
        self._sockets: list[Socket] = []
        self._tx: Socket | None = None
        self._rx: Socket | None = None

    @property
    def tx(self) -> Socket:
        """The socket at the host's end."""
        return self._tx or self.sender()

    @property
    def rx(self) -> Socket:
        """The socket at the end of the device under test, which the program knows."""
        return self._rx or self.receiver()

    def umem(self, frames: int = FRAMES, frame_size: int | None = None, **options: Any) -> Umem:
        size = frame_size or self.mode.frame_size
        made = Umem(frames, size, unaligned=self.mode.unaligned, **options)
        self._umems.append(made)
        return made

    def sender(self, **options: Any) -> Socket:
        self._tx = self._open(*self.ground.places[0], **options)
        return self._tx

    def receiver(self, program: str = "xskd", **options: Any) -> Socket:
        self._rx = self._open(*self.ground.places[1], **options)
        self.insert(self._rx, program)
        return self._rx

    def insert(self, xsk: Socket, program: str = "xskd", *, replace: bool = False) -> None:
        """Have the program at the socket's interface send the packets of its queue there."""
        place = next(place for place in self.ground.places if place[1] == xsk.interface)
        self.ground.program(*place, program).insert(xsk.queue, xsk, replace=replace)

    def _open(
        self,
        ns: str,
        dev: str,
        umem: Umem | None = None,
        rings: Rings = RINGS,
        multi_buffer: bool = False,
        **memory: Any,
    ) -> Socket:
        area = umem or self.umem(**memory)
        with entered(ns):
            made = Socket.open(area, dev, 0, rings=rings, mode="copy", mtu=MTU, multi_buffer=multi_buffer)
        self._sockets.append(made)
        if self.mode.busy:
            made.busy_poll()
        return made

    def send(self, packets: Sequence[bytes], by: Socket | None = None) -> None:
        """Transmit all of them, and see them completed."""
        xsk_ends.send(by or self.tx, packets)

    def receive(self, count: int, by: Socket | None = None, timeout: float = PATIENCE) -> list[bytes]:
        """Take `count` packets, fewer if there are no more in time."""
        return xsk_ends.receive(by or self.rx, count, timeout)

    def through(
        self, packets: Sequence[bytes], by: Socket | None = None, to: Socket | None = None
    ) -> list[bytes]:
        """Send packets, a window at a time, and take as many at the other end; what is missing stays so."""
        there = to or self.rx  # made first: what is sent before is for nobody
        got: list[bytes] = []
        for start in range(0, len(packets), WINDOW):
            window = packets[start : start + WINDOW]
            self.send(window, by)
            got += self.receive(len(window), there)
        return got

    def seen(self, condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Wait until a condition holds, while the driver is polled: nobody else does it in busy mode."""

        def polled() -> bool:
            for xsk in self._sockets:
                if xsk.fileno() >= 0:
                    xsk.probe()
            return condition()

        return Wire.eventually(polled, patience)

    def submit(self, *descriptors: tuple[int, int, int]) -> int:
        """Have the sender put descriptors on TX as they are; see xsk_ends.submit."""
        self.tampered = True
        return xsk_ends.submit(self.tx, *descriptors)

    def completed_by(self, last: int) -> list[int]:
        """The addresses that come back through the sender's completion ring, up to the one that must come."""
        came: list[int] = []

        def there() -> bool:
            came.extend(xsk_ends.completed(self.tx))
            return last in came

        assert Wire.eventually(there), "a descriptor was not completed"
        return came

    def close(self) -> None:
        for umem in self._umems:
            if not self.tampered:
                ports = [xsk.port for xsk in self._sockets if xsk.umem is umem]
                sides = sum(port.rx_side + port.tx_side for port in ports)
                assert umem.free + umem.struct.held + sides == umem.frames, "a frame is missing"
                assert umem.struct.quarantined == 0
        for xsk in self._sockets:
            xsk.close()
        for umem in self._umems:
            umem.close()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Compile programs.bpf.c, when a test first wants one of it."""
    made = tmp_path_factory.mktemp("bpf") / "programs.o"

    def compile_once() -> Path:
        if not made.exists():
            clang = shutil.which("clang-14") or shutil.which("clang")
            if clang is None:
                pytest.skip("needs clang: compiles XDP programs")
            machine = subprocess.run(("gcc", "-print-multiarch"), capture_output=True, text=True, check=True)
            include = f"-I/usr/include/{machine.stdout.strip()}"
            flags = ("-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v2", include)
            subprocess.run((clang, *flags, "-c", str(PROGRAMS), "-o", str(made)), check=True)
        return made

    return compile_once


@pytest.fixture(scope="module", params=MODES, ids=str)
def ground(request: pytest.FixtureRequest, compiled: Callable[[], Path]) -> Iterator[Ground]:
    """Make a network for all tests of a file that run in this mode."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces, opens AF_XDP sockets")
    Topology.cleanup_stale("xskd-test")  # what a killed run has left
    with Ground(request.param, compiled) as made:
        yield made


@pytest.fixture
def ends(ground: Ground) -> Iterator[Ends]:
    """Make the two ends of one test, and see that no frame is missing afterwards."""
    made = Ends(ground)
    yield made
    made.close()
