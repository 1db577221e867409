"""Giving up every right a process has.

A worker reads packets that strangers made. What it needs (a mapped UMEM, sockets, a CPU) it has or was
handed before this is called; afterwards it must never be able to get anything back.
"""

from __future__ import annotations

import contextlib
import errno
import os

from xskd._forward import ffi, lib
from xskd.errors import XskdError

NOBODY = 65534
CAPABILITIES = range(64)  # more than any kernel has; the first unknown one ends the walk


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
