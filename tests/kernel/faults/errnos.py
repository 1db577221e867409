"""System calls that fail: which errno each may return, and where it is made.

The table says what each call may answer to arguments that are right, by its manual page and the kernel's
source. Where a call is made is not written down but looked at: a run without a fault is traced, and each call
that is unlike those before it is a place (`places`). So a new call of the daemon is tried from the day it is
made; one that the table does not know fails a test.

A fault is one place and one errno.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY = "ENOMEM"
FILES = "EMFILE ENFILE ENOMEM"
# What a call may answer, whatever it is asked for. One that cannot fail is in HARMLESS.
ERRNOS: Mapping[str, str] = {
    # Descriptors, memory, processes.
    "memfd_create": f"{FILES} EPERM",
    "ftruncate": "EINTR EPERM EFBIG ENOSPC",
    "mmap": "ENOMEM EAGAIN EPERM ENFILE ENODEV",
    "mremap": MEMORY,
    "mprotect": MEMORY,
    "madvise": "ENOMEM EAGAIN",
    "pipe2": FILES,
    "fcntl": "EMFILE",
    "clone3": "EAGAIN ENOMEM",
    "vfork": "EAGAIN ENOMEM",
    "pidfd_open": f"{FILES} ENODEV ESRCH",
    "pidfd_send_signal": "EPERM ESRCH",
    "wait4": "ECHILD EINTR",
    # Files.
    "openat": f"{FILES} EACCES ENOENT EIO EINTR",
    "newfstatat": "ENOMEM EACCES ENOENT EIO",
    "faccessat2": "EACCES ENOENT ENOMEM",
    "getdents64": "EIO ENOENT",
    "read": "EIO EINTR",
    "write": "ENOSPC EIO EPIPE EINTR",
    "pwrite64": "ENOSPC EIO",
    "mkdir": "EACCES EROFS ENOSPC",
    "unlink": "EACCES EROFS EPERM ENOENT",
    # Sockets of all families.
    "socket": f"{FILES} ENOBUFS EACCES EPERM EAFNOSUPPORT EPROTONOSUPPORT",
    "socketpair": FILES,
    "bind": "EADDRINUSE EADDRNOTAVAIL EACCES ENOMEM EPERM EBUSY EINVAL ENODEV ENETDOWN EOPNOTSUPP ENOBUFS",
    "listen": "EADDRINUSE",
    "connect": "EACCES ECONNREFUSED EAGAIN",
    "accept4": f"{FILES} ENOBUFS ECONNABORTED EPERM EINTR",
    "setsockopt": "ENOMEM ENOBUFS ENOPROTOOPT EPERM EACCES EINVAL EBUSY EOPNOTSUPP",
    "getsockopt": "ENOBUFS EINVAL ENOPROTOOPT EOPNOTSUPP",
    "getsockname": "ENOBUFS",
    "getpeername": "ENOBUFS ENOTCONN",
    "sendto": "EAGAIN ENOBUFS ENOMEM EPERM EINTR",
    "recvfrom": "EAGAIN ENOBUFS ENOMEM EINTR",
    "sendmsg": "EAGAIN ENOBUFS ENOMEM ETOOMANYREFS EINTR EPERM",
    "recvmsg": "EAGAIN ENOBUFS ENOMEM EINTR",
    "epoll_create1": FILES,
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_wait": "EINTR",
    "poll": "EINTR ENOMEM",
    "ppoll": "EINTR ENOMEM",
    "ioctl": "ENODEV EOPNOTSUPP EPERM ENOMEM EINTR",
    # Rights, limits and CPUs.
    "prlimit64": "EPERM EINVAL",
    "sched_setaffinity": "EINVAL EPERM",
    "sched_getaffinity": "EINVAL EPERM",
    "prctl": "EINVAL EPERM",
    "capset": "EPERM",
    "setgroups": "ENOMEM EPERM",
    "setresgid": "EPERM",
    "setresuid": "EAGAIN EPERM",
    "seccomp": "EACCES EINVAL ENOMEM ENOSYS",
    # Programs and maps.
    "bpf": "EPERM EACCES EINVAL ENOMEM E2BIG EBUSY EEXIST ENOENT ENOSPC EAGAIN EOPNOTSUPP",
}
# Of an XSK: both only wake it up.
OF_XSK = "EAGAIN EBUSY ENOBUFS ENOMEM ENETDOWN ENXIO EOPNOTSUPP EINVAL"
# Never fail, or nobody could do anything about it: identities, the clock, signal masks, glibc's own locks and
# heap (which end a process that cannot have them), and the way out. close() closes, whatever it answers; an
# injected error would not.
HARMLESS = frozenset(
    [
        "getpid",
        "gettid",
        "geteuid",
        "umask",
        "uname",
        "getrusage",
        "getrandom",
        "clock_nanosleep",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "futex",
        "brk",
        "close",
        "munmap",
        "lseek",
        "exit_group",
        "exit",
        "restart_syscall",
        "clock_gettime",
        "sysinfo",
        "getcwd",
        "readlink",
    ]
)
OF_SOCKETS = frozenset(
    [
        "socket",
        "socketpair",
        "bind",
        "connect",
        "accept4",
        "setsockopt",
        "getsockopt",
        "getsockname",
        "getpeername",
        "sendto",
        "recvfrom",
        "epoll_create1",
        "epoll_ctl",
        "epoll_wait",
        "sched_setaffinity",
    ]
)
# Files of Python and of the C library: one that cannot be read is an installation without it.
NOT_OURS = re.compile(r'"(/usr|/lib|/etc|/var/run/nscd)[/"]|\.pyc?"|\.mo"|TCGETS|TIOCGWINSZ|F_GETF')
AWAIT_TRACER = '"/proc/self/status"'
CALL = re.compile(r"^(\w+)\((.*)")
VOLATILE = re.compile(r"0x[0-9a-f]+|\d{3,}|\\\d+|\[.*")


@dataclass(frozen=True)
class Place:
    """Where a call is made: it is the `nth` of its name; `what` is what it was asked for."""

    call: str
    nth: int
    what: str

    @property
    def errnos(self) -> list[str]:
        """What it may answer. KeyError for a call that the table does not know."""
        of_xsk = self.call in ("sendto", "recvfrom") and "MSG_DONTWAIT" in self.what
        return (OF_XSK if of_xsk else ERRNOS[self.call]).split()


@dataclass(frozen=True)
class Fault:
    """A call that fails. `times` as strace counts: `3` the third one, `3+` that and all after it."""

    place: Place
    errno: str
    threads: bool = False  # of every thread and process the one that is its n-th

    def __str__(self) -> str:
        return f"{self.place.call}#{self.place.nth}{' -f' * self.threads} {self.errno}  {self.place.what}"

    def options(self, trace: Path) -> list[str]:
        """What strace is told."""
        inject = f"inject={self.place.call}:error={self.errno}:when={self.place.nth}"
        follow = ["-f"] if self.threads else []
        return [*follow, "-e", f"trace={self.place.call}", "-e", inject, "-o", str(trace)]


def places(trace: str) -> list[Place]:
    """Each call that is unlike those before it, and the last of each kind that is made several times."""
    counts: Counter[str] = Counter()
    first: dict[tuple[str, str], Place] = {}
    last: dict[tuple[str, str], Place] = {}
    waiting = AWAIT_TRACER in trace
    for line in trace.splitlines():
        if (found := CALL.match(line)) is None:
            continue
        call, rest = found.groups()
        counts[call] += 1
        if waiting:  # the nursery's own last look whether it is traced
            waiting = call != "close"
            continue
        if call in HARMLESS or NOT_OURS.search(rest):
            continue
        what = VOLATILE.sub("..", rest)[:60]
        place = Place(call, counts[call], what)
        first.setdefault((call, what), place)
        last[call, what] = place
    return sorted({*first.values(), *last.values()}, key=lambda place: (place.call, place.nth))


def faults(found: Sequence[Place], *, threads: bool = False) -> list[Fault]:
    """Every errno at every place. KeyError for a call that the table does not know."""
    return [Fault(place, name, threads) for place in found for name in place.errnos]


def sample(whole: Sequence[Fault], count: int, seed: int) -> list[Fault]:
    """So many of them: of each call one before any has two, so that over the days all have their turn."""
    chosen = random.Random(seed)
    mixed = chosen.sample(list(whole), len(whole))
    one_each = list({fault.place.call: fault for fault in mixed}.values())
    return [*one_each, *(fault for fault in mixed if fault not in one_each)][:count]
