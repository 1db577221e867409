"""A machine of one's own in a second: the host's systemd in fresh namespaces on a throw-away overlay.

The system tests need a real systemd (readiness, watchdog, sandbox, journal), which neither a container nor a
development machine may have as its PID 1. A Box boots the one that is installed, in namespaces for processes,
mounts, names and cgroups. What is written inside goes to memory and is forgotten. Its network is that of a
namespace it is given, so that a unit in the box finds the interfaces of a Topology as a service finds the
machine's.

It must never change the host: the root file system is only the lower layer of an overlay, /proc/sys (but
net, which belongs to the namespace) and /sys are read-only, the devices are its own nodes, and no unit runs
that it does not name (KEEP): the host's other services are not started a second time, and no generator looks
at its disks. It must never outlive its maker: the kernel kills PID 1, and with it all, when that one dies.

This file is both sides of it: imported, it is Box; run as a program, it is what makes the file systems and
then becomes systemd. That side has nothing but the standard library.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "mount", "umount", "pivot_root")
BOOT_SECONDS = 20.0  # it takes half of one
END_SECONDS = 5.0  # for the kernel to end every process of the box
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEEP = frozenset({"systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"})
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}


class BoxError(Exception):
    """The box did not boot; the text carries what its first process said."""


def missing() -> str | None:
    """Say what this machine lacks for a Box, None if nothing: the reason for a test to be skipped."""
    if os.geteuid() != 0:
        return "needs root: boots a systemd in namespaces"
    if not SYSTEMD.exists():
        return f"needs systemd: no {SYSTEMD}"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(absent)} (package util-linux)"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text(encoding="utf-8"):
        return "needs overlayfs: not in /proc/filesystems"
    try:
        writable = os.access(_cgroup(), os.W_OK)
    except LookupError as error:
        return f"needs cgroup2: {error}"
    return None if writable else f"needs a writable cgroup2 file system: {_cgroup()} is read-only"


class Box:
    """Booted on entering the context, gone without a trace after leaving it.

    `netns` names the network namespace it lives in; without one it gets an empty one. `binds` are directories
    of the host that it sees in the same place, read-only.
    """

    def __init__(
        self, name: str = "xskd-box", *, netns: str | None = None, binds: Sequence[Path] = ()
    ) -> None:
        self.kind, self.name = name, f"{name}-{os.getpid()}"
        self.netns, self.binds = netns, tuple(binds)
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup = _cgroup() / f"{self.name}-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> Self:
        self._remove_leftovers()
        self._mountpoint = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, *args: str, check: bool = True, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command in the box to its end; on failure the error carries what it said."""
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        command = ("nsenter", "--target", str(self.pid), *spaces, "--", *args)
        environment = {"PATH": PATH, "TERM": "dumb", "LANG": "C.UTF-8", "SYSTEMD_PAGER": ""}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
        )
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise RuntimeError(f"{' '.join(args)}: exit status {done.returncode}: {said}")
        return done

    def path(self, inside: str) -> Path:
        """Where a file of the box is from here, to read or write it. No absolute link may be on the way."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def close(self) -> None:
        """End every process in the box; its file systems go with the last one."""
        if self._process is not None:
            self._kill(self._process)
            self._process = None
        _wait_until(self._remove_cgroup, END_SECONDS)
        with suppress(FileNotFoundError):
            self._mountpoint.rmdir()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill PID 1; it is gone when all others are, and unshare ends after it."""
        if self.pid and process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        else:
            process.kill()  # and with it, by --kill-child, what it may have started
        process.wait(END_SECONDS)

    def _boot(self) -> None:
        self._cgroup.mkdir()
        enter = ("nsenter", f"--net=/run/netns/{self.netns}") if self.netns else ("unshare", "--net")
        command = (
            *("setpriv", "--pdeathsig", "KILL"),
            *("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self._cgroup)),
            *enter,
            *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup"),
            *(sys.executable, "-I", str(Path(__file__).resolve())),
            *(self.name, str(self._mountpoint), *map(str, self.binds)),
        )
        with tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            process = self._process
            _wait_until(lambda: self._is_up(process), BOOT_SECONDS)
            if process.poll() is not None or not self._is_up(process):
                log.seek(0)
                said = log.read().decode(errors="replace").strip()
                raise BoxError(f"no systemd within {BOOT_SECONDS:g} s; its first process said: {said}")

    def _is_up(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it has booted, or never will because its first process is dead."""
        if process.poll() is not None:
            return True
        try:
            self.pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii"))
            # Before it is systemd its root is the host's, and systemctl would ask the host's own.
            if Path(f"/proc/{self.pid}/comm").read_text("ascii").strip() != "systemd":
                return False
        except (ValueError, OSError):  # no child yet, or one that ended just now
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}

    def _remove_cgroup(self) -> bool:
        """Remove what is left of the box's cgroups; whether nothing is left."""
        _remove_directories(self._cgroup)
        return not self._cgroup.exists()

    def _remove_leftovers(self) -> None:
        """Remove the empty directories of boxes of this name whose maker was killed."""
        for parent in (self._cgroup.parent, Path(tempfile.gettempdir())):
            for found in parent.glob(f"{self.kind}-*"):
                maker = found.name.removeprefix(f"{self.kind}-").partition("-")[0]
                if maker.isdigit() and not Path("/proc", maker).exists():
                    _remove_directories(found)


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask again and again; False if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _remove_directories(top: Path) -> None:
    """Remove what is empty, and leave what is not."""
    for directory, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):  # in use, or gone already
            os.rmdir(directory)


def _cgroup() -> Path:
    """Find our own cgroup in the cgroup2 file system, wherever that is mounted. LookupError without one."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    roots = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    paths = [line.removeprefix("0::") for line in own if line.startswith("0::")]
    if not roots or not paths:
        raise LookupError("not mounted, or this process is in none")
    return Path(roots[0] + paths[0].rstrip("/"))


# ---- the inside: what follows runs as the first process of the namespaces, before it becomes systemd ------


def _become_systemd(name: str, mountpoint: Path, binds: Sequence[str]) -> None:
    """Make the file systems, make them the root, and exec."""
    socket.sethostname(name)
    root = _overlay(mountpoint)
    _kernel_file_systems(root)
    _devices(root / "dev")
    for directory in binds:
        inside = root / directory.lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        _mount("--rbind", directory, inside)
        _mount("-o", "remount,bind,ro", inside)
    _only_what_we_keep(root)
    (root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n", encoding="ascii")
    old = root / "mnt"
    os.chdir(root)
    subprocess.run(("pivot_root", ".", old), check=True)
    os.chdir("/")
    subprocess.run(("umount", "--lazy", "/mnt"), check=True)
    # The variable `container` tells systemd to leave alone what belongs to the machine.
    options = ("--system", "--unit=multi-user.target", "--show-status=no", "--log-target=journal")
    os.execve(SYSTEMD, (str(SYSTEMD), *options), {"PATH": PATH, "container": "xskd-box", "TERM": "dumb"})


def _overlay(mountpoint: Path) -> Path:
    """Lay memory over the host's root file system."""
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", mountpoint)
    upper, work, root = (mountpoint / part for part in ("upper", "work", "root"))
    for directory in (upper, work, root):
        directory.mkdir()
    _mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", "overlay", root)
    return root


def _kernel_file_systems(root: Path) -> None:
    proc, sys_ = root / "proc", root / "sys"
    _mount("-t", "proc", "proc", proc)
    _mount("--bind", proc / "sys", proc / "sys")
    _mount("-o", "remount,bind,ro", proc / "sys")
    _mount("--bind", proc / "sys/net", proc / "sys/net")
    _mount("-o", "remount,bind,rw", proc / "sys/net")
    _mount("-t", "sysfs", "sysfs", sys_)
    _mount("-o", "remount,bind,ro", sys_)
    _mount("-t", "cgroup2", "cgroup2", sys_ / "fs/cgroup")
    for directory, mode in (("run", "755"), ("tmp", "1777")):
        _mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", root / directory)


def _devices(dev: Path) -> None:
    """Make nodes of its own: changing their mode or owner changes nobody else's."""
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", dev)
    os.umask(0)
    for name, (major, minor) in DEVICES.items():
        os.mknod(dev / name, 0o020666, os.makedev(major, minor))
    os.umask(0o022)
    for name, target in LINKS.items():
        (dev / name).symlink_to(target)
    for name, options in (("pts", "newinstance,ptmxmode=0666,mode=620,gid=5"), ("shm", "mode=1777")):
        (dev / name).mkdir()
        _mount("-t", {"pts": "devpts", "shm": "tmpfs"}[name], "-o", options, name, dev / name)


def _only_what_we_keep(root: Path) -> None:
    """Nothing wants anything but the journal; no generator makes units of the host's files."""
    for place in ("usr/lib/systemd/system", "etc/systemd/system"):
        for wanted in (root / place).glob("*.wants/*"):
            if wanted.name not in KEEP:
                wanted.unlink()
    # The journal wants this one by itself; the kernel's audit stream is the whole machine's.
    (root / "etc/systemd/system/systemd-journald-audit.socket").symlink_to("/dev/null")
    for generator in (root / "usr/lib/systemd/system-generators").iterdir():
        generator.unlink()


def _mount(*args: str | Path) -> None:
    subprocess.run(("mount", *args), check=True)


if __name__ == "__main__":
    _become_systemd(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
