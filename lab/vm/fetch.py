"""QEMU and kernels from Debian's archive, unpacked into a cache; nothing is installed.

apt does it, with sources, lists and a package database of its own, so that a suite which the machine does not
use can be had and the machine's own package state is neither read nor changed. The database is empty: apt
brings every library along, down to libc, and QEMU runs with these through their own loader.

The cache is ~/.cache/xskd-vm, or what XSKD_VM_CACHE names. What lies in it is found there without asking the
network, under a directory named by its version; `python -m lab.vm fetch --renew` asks for newer ones.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

KERNELS = {"6.1": "bookworm", "6.12": "trixie", "backports": "trixie-backports"}
EMULATOR = "emulator"
EMULATOR_SUITE = "trixie"
EMULATOR_PACKAGES = ("qemu-system-x86", "virtiofsd", "busybox-static")
KERNEL_PACKAGE = "linux-image-amd64"  # depends on the one with the newest version of its suite
KERNEL_PARTS = re.compile(r"linux-(image|binary|modules)-\d")  # newer ones come in three packages
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DOWNLOAD_SECONDS = 900.0  # of at most 170 MB


class FetchError(Exception):
    """The packages cannot be had here; the text says which command failed and what it said."""


def cache() -> Path:
    """Return the directory that downloads are kept in."""
    return Path(os.environ.get("XSKD_VM_CACHE") or Path.home() / ".cache/xskd-vm").absolute()


def fetched(what: str, *, renew: bool = False) -> Path:
    """Return the unpacked tree of EMULATOR or of one of KERNELS; download it if it is not there.

    FetchError if it is neither there nor in reach. With `renew` the newest version is asked for.
    """
    current = cache() / what
    with _locked():
        if renew or not current.exists():
            suite = EMULATOR_SUITE if what == EMULATOR else KERNELS[what]
            archive = _Archive(suite)
            archive.update()
            packages = archive.with_libraries(EMULATOR_PACKAGES) if what == EMULATOR else archive.kernel()
            _point(current, archive.unpacked(packages))
        return current.resolve()


@contextmanager
def _locked() -> Iterator[None]:
    """Let one process at a time change the cache: the tests of two checkouts may share it."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _point(link: Path, tree: Path) -> None:
    """Make `link` a link to `tree`, and remove the tree it was a link to."""
    old = link.resolve() if link.exists() else None
    new = link.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.symlink_to(tree.name)
    new.replace(link)
    if old is not None and old != tree:
        shutil.rmtree(old)


class _Archive:
    """One suite of the archive, seen through an apt of its own."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.state = cache() / "apt" / suite
        for directory in ("lists/partial", "archives/partial"):
            (self.state / directory).mkdir(parents=True, exist_ok=True)
        (self.state / "status").touch()
        settings = {
            "APT::Sandbox::User": "root",  # apt's own user may not read a cache in root's home
            "Acquire::Languages": "none",
            "Dir::Etc::SourceList": self.state / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": self.state,
            "Dir::State::Lists": self.state / "lists",
            "Dir::State::status": self.state / "status",
            "Dir::Cache": self.state,
        }
        self._options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Learn which packages there are."""
        source = f"deb [signed-by={KEYRING}] {_mirror()} {self.suite} main\n"
        (self.state / "sources.list").write_text(source, encoding="utf-8")
        # Without this apt would make do with no list at all and end with success.
        self._apt("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")

    def with_libraries(self, packages: Sequence[str]) -> list[str]:
        """Return the names of these packages, the first one first, and of all that they need."""
        uris = self._apt(
            "apt-get", "-q", "-y", "--no-install-recommends", "--print-uris", "install", *packages
        )
        needed = re.findall(r"^'\S+/([^/_]+)_\S+\.deb'", uris, re.MULTILINE)
        return sorted(needed, key=lambda name: name != packages[0])

    def kernel(self) -> list[str]:
        """Return the names of the packages that the newest kernel is in; the first one names its version."""
        depends = self._apt("apt-cache", "depends", "--recurse", "--important", KERNEL_PACKAGE)
        parts = {line for line in depends.splitlines() if KERNEL_PARTS.match(line)}
        return sorted(parts, key=lambda part: not part.startswith("linux-image"))

    def unpacked(self, packages: Sequence[str]) -> Path:
        """Download packages and unpack them into one tree, named by the first one's version."""
        version = self._apt("apt-cache", "show", "--no-all-versions", packages[0])
        found = re.search(r"^Version: (\S+)", version, re.MULTILINE)
        if found is None:
            raise FetchError(f"apt-cache show {packages[0]} ({self.suite}): no version in {version!r}")
        tree = cache() / f"{packages[0]}_{found[1].replace(':', '.')}"  # a colon would end a library path
        if not tree.exists():
            with tempfile.TemporaryDirectory(dir=cache()) as working:
                made = Path(working, "tree")
                self._apt("apt-get", "-q", "download", *packages, cwd=working)
                for package in sorted(Path(working).glob("*.deb")):
                    _run("dpkg-deb", "--extract", str(package), str(made))
                made.rename(tree)
        return tree

    def _apt(self, command: str, *args: str, cwd: str | None = None) -> str:
        return _run(command, *self._options, *args, cwd=cwd)


def _mirror() -> str:
    """Return the archive that the machine itself uses."""
    repositories = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    for uri in repositories.splitlines():
        if "security" not in uri:
            return uri
    raise FetchError("apt-get indextargets: this machine's apt has no archive configured")


def _run(*command: str, cwd: str | None = None) -> str:
    """Run a program to its end and return what it said; FetchError with its complaint."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    program = command[0] if command[1] == "-o" else " ".join(command[:2])
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env=environment,
            timeout=DOWNLOAD_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{program}: {error}") from error
    if done.returncode != 0:
        raise FetchError(f"{program} {command[-1]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
