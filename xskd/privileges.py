"""Giving up every right a process has, and every system call that it will not need.

A worker reads packets that strangers made. What it needs (a mapped UMEM, sockets, a CPU) it has or was
handed before this is called; afterwards it must never be able to get anything back, nor do anything to the
process that it came from: under systemd supervisor and worker are the same user, so without the filter a
worker could send signals to its supervisor, read its memory, or talk to its control socket.
docs/decisions/0005-rights.md has the reasons.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sys
from typing import NamedTuple

from xskd._forward import ffi, lib
from xskd._seccomp import ffi as seccomp_ffi
from xskd._seccomp import lib as seccomp
from xskd.errors import XskdError, errno_name

# Whoever a worker of root becomes. Not the user nobody (65534), as whom other programs run, who could signal
# ours then: of the numbers that neither Debian nor systemd ever gives away.
NOBODY = 65533
CAPABILITIES = range(64)  # more than any kernel has; the first unknown one ends the walk
ALL_BITS = 0xFFFFFFFF  # of an int: what the upper half of its register holds is anybody's guess


class Only(NamedTuple):
    """A call that is allowed with some values of one argument: where `mask` of it is `value`."""

    name: str
    argument: int  # 0 is the first
    value: int
    mask: int = ALL_BITS


# Every call that a worker makes once it has given up its rights, and no other. The first group has no rules
# on arguments: the kernel then answers for these calls from a bitmap and runs no filter for each packet.
# A new call goes here with its reason; tests/kernel/test_confined.py knows what must stay out.
ALLOWED: tuple[str | Only, ...] = (
    # Packets: wake up a socket, ask whether it is alive, sleep until one has work.
    *("sendto", "recvfrom", "ppoll", "poll"),
    # The sockets that it was handed: ring sizes, modes, statistics, queues.
    *("setsockopt", "getsockopt", "bind"),
    # Its channel: messages, with descriptors; not to wait for them is what Python's timeouts are made of.
    *("sendmsg", "recvmsg", "getsockname", Only("ioctl", 1, seccomp.FIONBIO)),
    # Descriptors: Python asks for the size of one that it maps, and duplicates it. glibc makes the first a
    # stat with this flag, which needs no name (with one it would say of a file how big it is, no more).
    *("close", "fstat", Only("newfstatat", 3, seccomp.AT_EMPTY_PATH)),
    Only("fcntl", 1, fcntl.F_DUPFD_CLOEXEC),
    # Memory, of rings and of the heap; none that can be executed.
    *(Only("mmap", 2, 0, mask=mmap.PROT_EXEC), "munmap", "brk", "futex"),
    # Time. Most machines answer without a call; some clock sources cannot. Pauses go on after a SIGSTOP.
    *("clock_gettime", "clock_nanosleep", "nanosleep", "restart_syscall"),
    # What it has used, for the counters: 0 is itself.
    Only("getrusage", 0, 0),
    # Its own CPU, which the supervisor may tell it to change: 0 is itself.
    *(Only(call, 0, 0) for call in ("sched_setaffinity", "sched_getaffinity")),
    # Its end: signal handlers, last words on standard error, exit.
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "write", "getpid", "gettid", "exit_group"),
    # Python's and glibc's own: hash seeds, allocator seeds.
    "getrandom",
)


def give_up() -> None:
    """Lose all rights and all system calls but a worker's, for good. Raises XskdError where that fails.

    Every module must have been imported before: nothing can be opened any more.
    """
    drop_all()
    confine()


def drop_all() -> None:
    """Become nobody if root, and lose all capabilities, for good. Raises XskdError if that is not possible.

    Every module must have been imported before: nobody may not be able to read where xskd is installed.
    """
    try:
        with contextlib.suppress(PermissionError):  # no CAP_SETPCAP: then the set cannot be used either
            _empty_bounding_set()
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        _prctl(lib.PR_CAP_AMBIENT, lib.PR_CAP_AMBIENT_CLEAR_ALL)
        if lib.xskd_drop_capabilities() < 0:
            raise OSError(ffi.errno, os.strerror(ffi.errno), "capset")
        _prctl(lib.PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise XskdError(f"giving up rights: {error}; a worker must not run with any") from error


def confine() -> None:
    """Answer EPERM to every system call that is not ALLOWED, in this thread and for good.

    Raises XskdError if the kernel refuses. A kernel without such filters (no distribution's) is no reason
    not to forward, since the capabilities are gone all the same; but it is said, on standard error.
    """
    if not _kernel_has_filters():
        print(
            "<4>this kernel cannot filter system calls (CONFIG_SECCOMP_FILTER); worker runs without",
            file=sys.stderr,
        )
        return
    made = seccomp.seccomp_init(seccomp.XSKD_REFUSE)
    if made == seccomp_ffi.NULL:
        raise XskdError("seccomp_init: no memory; a worker must not run without its filter")
    try:
        _must(seccomp.seccomp_attr_set(made, seccomp.SCMP_FLTATR_API_SYSRAWRC, 1), "seccomp_attr_set")
        for each in ALLOWED:
            _allow(made, each if isinstance(each, Only) else Only(each, 0, 0, mask=0))
        # abort() and assert() of C send themselves a signal; nobody else gets one.
        _allow(made, Only("tgkill", 0, os.getpid()))
        _must(seccomp.seccomp_load(made), "seccomp_load")
    finally:
        seccomp.seccomp_release(made)


def _allow(made: object, rule: Only) -> None:
    call = seccomp.seccomp_syscall_resolve_name(rule.name.encode())
    if call == seccomp.__NR_SCMP_ERROR:
        raise XskdError(f"seccomp: libseccomp does not know the call {rule.name}; is it older than 2.5?")
    comparison = seccomp_ffi.new(
        "struct scmp_arg_cmp *",
        {
            "arg": rule.argument,
            "op": seccomp.SCMP_CMP_MASKED_EQ,
            "datum_a": rule.mask,
            "datum_b": rule.value,
        },
    )
    answer = seccomp.seccomp_rule_add_array(made, seccomp.XSKD_ALLOW, call, int(rule.mask != 0), comparison)
    _must(answer, f"seccomp_rule_add({rule.name})")


def _must(answer: int, call: str) -> None:
    """libseccomp answers with negative errnos."""
    if answer < 0:
        raise XskdError(f"{call}: {errno_name(-answer)}; a worker must not run without its filter")


def _kernel_has_filters() -> bool:
    """Offer it no filter at all: one that was built without says EINVAL, any other EFAULT."""
    lib.prctl(seccomp.PR_SET_SECCOMP, seccomp.SECCOMP_MODE_FILTER, 0, 0, 0)
    return bool(ffi.errno != errno.EINVAL)


def _empty_bounding_set() -> None:
    for capability in CAPABILITIES:
        if not _prctl(lib.PR_CAPBSET_DROP, capability):
            return


def _prctl(option: int, argument: int) -> bool:
    """False for EINVAL (the kernel does not know the argument); other errors raise."""
    if lib.prctl(option, argument, 0, 0, 0) == 0:
        return True
    if ffi.errno == errno.EINVAL:
        return False
    raise OSError(ffi.errno, os.strerror(ffi.errno), f"prctl({option}, {argument})")
