"""Boot a virtual machine, run one command in it, end with its exit status.

The machine has no disk. Its file system is the host's own, shared read-only by virtiofs and with memory laid
over it, so a checkout and its virtual environment are in it under their own paths. What goes in and what
comes out lies in one directory of the host, which the machine sees as /run/vm.

Emulation is slow (a tenth of the machine's speed and less) but exact: the kernel is Debian's own binary. The
NICs are QEMU's virtio_net and igb, whose drivers bind AF_XDP sockets in real zero-copy:

    v0 v1   virtio_net, several queues      gv0 gv1   at the other ends, in namespace `gen`
    i0 i1   igb                             gi0 gi1
    p0      virtio_net that refuses it      gp0

Each pair of ends is joined by two taps and a bridge, because a tap whose reader is slow drops frames as a
wire does. Cabled, v0 is joined to v1 and i0 to i1 directly, with one queue each, and there is no `gen`.

It must never touch the host's network, file system or processes: taps and bridges are made in a network
namespace that is QEMU's own and goes with it, and the kernel kills what runs here when its maker dies.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.vm.fetch import EMULATOR, fetched
from lab.vm.initrd import initrd

LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
LOADERS = ("usr/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2")
CONSOLE_LINES = 15  # shown when there is no result
SHARE_SECONDS = 10.0  # for virtiofsd to listen
END_SECONDS = 10.0  # for QEMU and virtiofsd to end when told so
KINDS = "vip"  # of NICs, by the first letter of their names
GUEST = Path(__file__).with_name("guest.sh")
KERNEL_COMMAND_LINE = "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off nokaslr"


class VmError(Exception):
    """The machine gave no result: it did not boot, crashed or took too long. The text has its last words."""


@dataclass(frozen=True)
class Nics:
    """Which emulated NICs the machine has; see above.

    `queues` is how many those of virtio_net have (igb: as many as the machine has CPUs, at most 8).
    """

    queues: int = 4
    cabled: bool = False

    def ends(self) -> Iterator[tuple[str, str, str]]:
        """Name every interface: its name, its MAC address, its namespace ("-": the machine's own).

        This is the order of their PCI slots; an igb next to another would want that one's virtual functions.
        """
        for name in ("v0", "i0", "v1", "i1") if self.cabled else ("v0", "i0", "v1", "i1", "p0"):
            kind = f"{KINDS.index(name[0])}{name[1]}"
            yield name, f"02:7a:63:01:{kind}:00", "-"
            if not self.cabled:
                yield f"g{name}", f"02:7a:63:02:{kind}:00", "gen"

    def links(self) -> str:
        """Return what `ip -batch` makes of the host's side: a tap for each end, a bridge for each pair."""
        if self.cabled:
            return ""
        lines = ["link set lo up"]
        for name, _, namespace in self.ends():
            bridge = f"b-{name.removeprefix('g')}"
            if namespace == "-":
                lines.append(f"link add {bridge} address 02:7a:63:03:00:00 type bridge mcast_snooping 0")
                lines.append(f"link set {bridge} addrgenmode none mtu 9600 up")
            many = " multi_queue" if self._queues(name) > 1 else ""
            lines.append(f"tuntap add dev t-{name} mode tap{many}")
            lines.append(f"link set t-{name} addrgenmode none mtu 9600 master {bridge} up")
            lines.append(f"link set t-{name} type bridge_slave learning off")
        return "".join(f"{line}\n" for line in lines)

    def arguments(self, directory: Path) -> list[str]:
        """Return QEMU's arguments for these NICs; sockets of cables lie in `directory`."""
        found = []
        for name, mac, _ in self.ends():
            found += ["-netdev", self._backend(name, directory)]
            igb = name.startswith("i")
            device = "igb" if igb else "virtio-net-pci,disable-legacy=on,host_mtu=9500"
            if name.startswith("v"):
                device += ",iommu_platform=on"  # without it virtio_net refuses zero-copy
            if self._queues(name) > 1:
                device += f",mq=on,vectors={2 * self._queues(name) + 2}"
            found += ["-device", f"{device},netdev={name},mac={mac},romfile="]
        return found

    def _queues(self, name: str) -> int:
        """How many queues an end has as its backend sees it."""
        return self.queues if name.startswith(("v", "p")) and not self.cabled else 1

    def _backend(self, name: str, directory: Path) -> str:
        if self.cabled:
            here, there = (directory / f"cable-{name[0]}{n}" for n in (int(name[1]), 1 - int(name[1])))
            return f"dgram,id={name},local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
        tap = f"tap,id={name},ifname=t-{name},script=no,downscript=no,vhost=off"
        return tap + (f",queues={self._queues(name)}" if self._queues(name) > 1 else "")


@dataclass
class Vm:
    """A machine to boot: `memory` in MiB, `seconds` until it is given up and killed.

    With `own_time` its clock goes by the instructions it executes, 4 ns each, and stands still while the host
    does other things: no deadline inside passes because the host is slow or busy. Its CPUs take turns then.
    Waiting still takes as long as it takes.

    `run` boots it anew each time. `directory` (made if None) keeps what a run leaves: `output`, `console`,
    `warnings` of the kernel, and what the command writes to /run/vm.
    """

    kernel: str = "backports"
    nics: Nics | None = None
    cpus: int = 2
    memory: int = 2000
    seconds: float = 300.0
    directory: Path | None = None
    own_time: bool = False

    def run(self, command: Sequence[str], *, show: bool = False) -> int:
        """Boot, run the command in the present directory, return its exit status.

        `show` passes on what it says, while it says it. FetchError without the packages, VmError without a
        result.
        """
        tree, emulator = fetched(self.kernel), _Emulator(fetched(EMULATOR))
        if self.directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="xskd-vm-"))
        self._prepare(self.directory, command, initrd(tree, emulator.tree / "usr/bin/busybox"))
        with ExitStack() as stack:
            shares = {"host": (Path("/"), True), "run": (self.directory, False)}
            for tag, (shared, read_only) in shares.items():
                stack.enter_context(emulator.share(self.directory / f"{tag}.socket", shared, read_only))
            machine = stack.enter_context(self._boot(emulator, tree, list(shares), self.directory))
            self._follow(machine, self.directory / "output", show)
        return self._status(self.directory)

    def _prepare(self, directory: Path, command: Sequence[str], initrd: bytes) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for left in ("output", "status", "warnings", "up", "console"):
            (directory / left).unlink(missing_ok=True)
        here = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}\n"
        nics = "".join(f"{' '.join(end)}\n" for end in self.nics.ends()) if self.nics else ""
        (directory / "command").write_text(here, encoding="utf-8")
        (directory / "nics").write_text(nics, encoding="ascii")
        (directory / "links").write_text(self.nics.links() if self.nics else "", encoding="ascii")
        (directory / "initrd").write_bytes(initrd)
        (directory / "output").touch()
        shutil.copy(GUEST, directory)

    @contextmanager
    def _boot(
        self, emulator: _Emulator, tree: Path, shares: Sequence[str], directory: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start QEMU in a network namespace of its own, with the taps in it; it ends with the context."""
        shared: list[str] = []
        for tag in shares:
            shared += ["-chardev", f"socket,id={tag},path={directory}/{tag}.socket"]
            shared += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        command = (
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--net", "--pid", "--fork", "--kill-child"),
            *("sh", "-ec", 'ip -batch "$0" && exec "$@"', str(directory / "links")),
            *emulator.command("usr/bin/qemu-system-x86_64"),
            *("-L", str(emulator.tree / "usr/share/qemu"), "-L", str(emulator.tree / "usr/share/seabios")),
            *self._clock(),
            *("-M", "q35", "-cpu", "max"),
            *("-smp", str(self.cpus), "-m", f"{self.memory}M"),
            # virtiofsd writes into the machine's memory, so that is shared
            *("-object", f"memory-backend-memfd,id=memory,size={self.memory}M,share=on"),
            *("-numa", "node,memdev=memory"),
            *("-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{directory}/console"),
            *("-kernel", str(_image(tree)), "-initrd", str(directory / "initrd")),
            *("-append", KERNEL_COMMAND_LINE),
            *shared,
            *(self.nics.arguments(directory) if self.nics else ()),
        )
        with _started(command, directory / "qemu.log", emulator.environment()) as machine:
            yield machine

    def _clock(self) -> tuple[str, ...]:
        if self.own_time:
            return ("-accel", "tcg,thread=single", "-icount", "shift=2")
        return ("-accel", "tcg,thread=multi")

    def _follow(self, machine: subprocess.Popen[bytes], output: Path, show: bool) -> None:
        """Wait for the machine's end, and pass on what the command says meanwhile."""
        deadline = time.monotonic() + self.seconds
        with output.open("rb") as said:
            while time.monotonic() < deadline:
                running = machine.poll() is None
                if show and (new := said.read()):
                    sys.stdout.buffer.write(new)
                    sys.stdout.flush()
                if not running:
                    return
                time.sleep(0.1)

    def _status(self, directory: Path) -> int:
        """Return the status that the guest has left; VmError if it has left none."""
        with suppress(FileNotFoundError, ValueError):
            return int((directory / "status").read_text(encoding="ascii"))
        said = [f"the VM gave no result within {self.seconds:g} s; see {directory}"]
        for log in ("console", "qemu.log", "host.log", "run.log", "output"):
            with suppress(FileNotFoundError):
                lines = (directory / log).read_text(encoding="utf-8", errors="replace").splitlines()
                said += [f"{log}: {line}" for line in lines[-CONSOLE_LINES:]]
        raise VmError("\n".join(said))


class _Emulator:
    """Debian's QEMU and virtiofsd, run from their unpacked packages."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._loader = next(tree / loader for loader in LOADERS if (tree / loader).exists())
        self._libraries = ":".join(str(tree / directory) for directory in LIBRARIES)

    def command(self, program: str) -> tuple[str, ...]:
        """Return the command that runs a program of the tree with the tree's own loader and libraries."""
        return (str(self._loader), "--library-path", self._libraries, str(self.tree / program))

    def environment(self) -> dict[str, str]:
        return {**os.environ, "QEMU_MODULE_DIR": str(self.tree / LIBRARIES[0] / "qemu")}

    @contextmanager
    def share(self, socket: Path, directory: Path, read_only: bool) -> Iterator[None]:
        """Serve a directory of the host at this socket, for one machine.

        What is mounted below it is served as if it were part of it: overlayfs takes no other mounts below.
        """
        socket.unlink(missing_ok=True)
        command = (
            *("setpriv", "--pdeathsig", "KILL"),
            *self.command("usr/libexec/virtiofsd"),
            *("--socket-path", str(socket), "--shared-dir", str(directory)),
            *("--sandbox", "none", "--rlimit-nofile", "0", "--no-announce-submounts", "--log-level", "error"),
            *(("--readonly", "--cache", "always") if read_only else ("--cache", "never")),
        )
        log = socket.with_suffix(".log")
        with _started(command, log, self.environment()) as server:
            deadline = time.monotonic() + SHARE_SECONDS
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise VmError(f"virtiofsd does not listen: {log.read_text(encoding='utf-8').strip()}")
                time.sleep(0.01)
            yield


@contextmanager
def _started(
    command: Sequence[str], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that says what it says in a file; it is gone after the context."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _image(tree: Path) -> Path:
    """Find the kernel itself in an unpacked kernel."""
    for pattern in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"):
        for image in tree.glob(pattern):
            return image
    raise VmError(f"no kernel in {tree}")
