"""The errors xskd raises on purpose, so that one `except XskdError` separates them from bugs.

An error is read by an operator at night: it names what was asked of whom, what the kernel said, and what to
change. It must never decide an exit status (cli.py does), and this module must never import anything but the
standard library: workers, which load neither pydantic nor pyroute2, use it.
"""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Iterable
from dataclasses import dataclass

# Where Python has the C library's name, or none: ENOTSUPP is internal to Linux, and drivers answer with it.
KERNEL_NAMES = {errno_names.EOPNOTSUPP: "EOPNOTSUPP", 524: "ENOTSUPP"}


class XskdError(Exception):
    """Base of every error xskd raises on purpose; `str()` is one or more lines fit for a terminal."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong in a configuration file: where it is, which key, what would be right.

    `line` counts from 1; 0 means the file as a whole. `key` is dotted (`interfaces.eth1.mode`), "" where
    there is none to name. Problems sort by file, then line.
    """

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(XskdError):
    """A configuration that cannot be used: every problem found, sorted by line, one line of text each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(problems))
        super().__init__("\n".join(map(str, self.problems)))


class XskError(XskdError):
    """An AF_XDP call failed, or its arguments would make it fail.

    `errno` is None where the kernel was not asked; `key` is the configuration key to change; `hint` says why
    this happens and what helps.
    """

    def __init__(
        self,
        call: str,
        *,
        interface: str | None = None,
        queue: int | None = None,
        errno: int | None = None,
        key: str | None = None,
        hint: str = "",
    ) -> None:
        self.call, self.interface, self.queue = call, interface, queue
        self.errno, self.key, self.hint = errno, key, hint
        where = [interface] if interface is not None else []
        if queue is not None:
            where.append(f"queue {queue}")
        text = _failed_call(call, " ".join(where), errno, hint)
        super().__init__(f"{text}; see key {key}" if key else text)


class XdpError(XskdError):
    """Loading, attaching or feeding the BPF program failed; `detail` is what the verifier or we say of it."""

    def __init__(
        self, call: str, *, interface: str | None = None, errno: int | None = None, detail: str = ""
    ) -> None:
        self.call, self.interface, self.errno, self.detail = call, interface, errno, detail
        super().__init__(_failed_call(call, interface or "", errno, detail))


class RulesError(XskdError):
    """Rules that do not fit the tables of the BPF program; says which of them, and what to write instead."""


def errno_name(errno: int) -> str:
    """`EBUSY (Device or resource busy)`: the kernel's name of it, and what it means."""
    name = KERNEL_NAMES.get(errno) or errno_names.errorcode.get(errno, str(errno))
    return f"{name} ({os.strerror(errno)})"


def _failed_call(call: str, where: str, errno: int | None, explanation: str) -> str:
    """`bind(eth1 queue 0): EBUSY (Device or resource busy): explanation`, of what there is."""
    parts = [f"{call}({where})" if where else call]
    if errno is not None:
        parts.append(errno_name(errno))
    return ": ".join([*parts, explanation] if explanation else parts)
