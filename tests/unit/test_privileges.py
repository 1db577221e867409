"""Where libseccomp or the kernel refuses; tests/kernel/test_confined.py has what the filter does."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from xskd import _forward, _seccomp, privileges
from xskd.errors import XskdError
from xskd.privileges import ALLOWED, Only


def names() -> set[str]:
    return {each.name if isinstance(each, Only) else each for each in ALLOWED}


class Refusing:
    """libseccomp, but that one call of it answers what a test says; nothing reaches the kernel."""

    def __init__(self, real: Any, call: str, answer: Any) -> None:
        self.real, self.answers, self.released = real, {call: answer}, 0

    def __getattr__(self, name: str) -> Any:
        if name in self.answers:
            return lambda *_: self.answers[name]
        if name == "seccomp_load":
            raise AssertionError("the test would have been confined")
        if name == "seccomp_release":
            self.released += 1
        return getattr(self.real, name)


@pytest.mark.parametrize(
    ("call", "answer", "said"),
    [
        ("seccomp_init", _seccomp.ffi.NULL, "seccomp_init: no memory"),
        ("seccomp_attr_set", -errno.EOPNOTSUPP, "seccomp_attr_set: EOPNOTSUPP"),
        ("seccomp_syscall_resolve_name", _seccomp.lib.__NR_SCMP_ERROR, "does not know the call sendto"),
        ("seccomp_rule_add_array", -errno.ENOMEM, r"seccomp_rule_add\(sendto\): ENOMEM"),
        ("seccomp_load", -errno.EACCES, "seccomp_load: EACCES"),
    ],
)
def test_what_libseccomp_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, call: str, answer: Any, said: str
) -> None:
    refusing = Refusing(_seccomp.lib, call, answer)
    monkeypatch.setattr(privileges, "seccomp", refusing)
    with pytest.raises(XskdError, match=said):
        privileges.confine()
    assert refusing.released == (call != "seccomp_init")


def test_a_kernel_without_filters_is_said_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Kernel:
        def prctl(self, *_: int) -> int:
            _forward.ffi.errno = errno.EINVAL
            return -1

    monkeypatch.setattr(privileges, "lib", Kernel())
    monkeypatch.setattr(privileges, "seccomp", Refusing(_seccomp.lib, "seccomp_init", None))
    privileges.confine()
    out, err = capsys.readouterr()
    assert (out, err.startswith("<4>this kernel cannot filter system calls")) == ("", True)


def test_the_kernel_that_runs_this_is_asked_without_effect() -> None:
    assert privileges._kernel_has_filters() in (True, False)
    assert privileges._kernel_has_filters() == privileges._kernel_has_filters()


def test_calls_made_for_each_packet_have_no_rules_on_arguments() -> None:
    """The kernel answers for those without running the filter."""
    assert {"sendto", "recvfrom", "ppoll"} <= {each for each in ALLOWED if isinstance(each, str)}


def test_no_call_is_listed_twice_with_and_without_a_rule() -> None:
    """The rule would mean nothing."""
    free = {each for each in ALLOWED if isinstance(each, str)}
    assert {each.name for each in ALLOWED if isinstance(each, Only)}.isdisjoint(free)


@pytest.mark.parametrize(
    "name",
    ["open", "openat", "socket", "connect", "execve", "clone", "clone3", "fork", "kill", "ptrace", "bpf"],
)
def test_what_must_stay_out_is_out(name: str) -> None:
    assert name not in names()
