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


# What a person can do about a limit that a daemon has come to.
LIMITS = {
    errno_names.EMFILE: "it has no descriptors left: raise LimitNOFILE= of its unit",
    errno_names.ENFILE: "the machine has no descriptors left: raise the sysctl fs.file-max",
    errno_names.ENOMEM: "no memory left: raise MemoryMax= of its unit, or free some",
    errno_names.ENOBUFS: "no memory left for sockets: free some",
    errno_names.EAGAIN: "no thread or process more: raise TasksMax= of its unit",
}


def refusal(error: BaseException) -> XskdError | None:
    """What a person is told if a call of the kernel's has failed that nobody foresaw; None for a bug.

    Names the function of ours that wanted something and what the kernel said, with what helps.
    """
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    said = next((each for each in chain if isinstance(each, OSError) and each.errno), None)
    if said is not None and said.errno is not None:
        what, advice = errno_name(said.errno), LIMITS.get(said.errno, "")
        what += f": {said.filename}" if said.filename else ""
    elif isinstance(error, MemoryError) or "can't start new thread" in str(error):
        what = str(error) or "MemoryError"
        advice = LIMITS[errno_names.ENOMEM if isinstance(error, MemoryError) else errno_names.EAGAIN]
    else:
        return None
    return XskdError(": ".join(filter(None, [_asked_by(said or error), what, advice])))


def _asked_by(error: BaseException) -> str:
    """The innermost function of xskd's that was at work, `service._serve`."""
    name, at = "", error.__traceback__
    while at is not None:
        module = str(at.tb_frame.f_globals.get("__name__", ""))
        if module.startswith("xskd."):
            name = f"{module.removeprefix('xskd.')}.{at.tb_frame.f_code.co_name}"
        at = at.tb_next
    return f"{name} was refused by the kernel" if name else "refused by the kernel"


def kernel_said(error: Exception) -> str:
    """What the kernel answered, of an OSError or of a library's own error with an errno as its `code`."""
    number = getattr(error, "errno", None) or getattr(error, "code", None)
    return errno_name(number) if isinstance(number, int) else str(error) or type(error).__name__


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
