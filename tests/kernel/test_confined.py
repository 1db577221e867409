"""What a process can still do once it has given up its rights: nothing but a worker's work.

Each test is a process of its own that confines itself, as root and as an ordinary user. The same attempts are
made without the filter too, so that a call that is refused for another reason proves nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from xskd import privileges

ROOT = Path(__file__).parents[2]
ORDINARY = 4711  # any user id that is not root's

SETUP = """
import array, ctypes, errno, fcntl, json, mmap, os, select, signal, socket, sys, time
from xskd import privileges
from xskd._seccomp import lib
from xskd.errors import XskdError

how, user = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
udp, (here, there) = socket.socket(type=socket.SOCK_DGRAM), socket.socketpair(type=socket.SOCK_SEQPACKET)
memory = os.memfd_create("shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
os.ftruncate(memory, 1 << 20)

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def raw(name, arguments):
    number = lib.seccomp_syscall_resolve_name(name.encode())
    if libc.syscall(number, *map(ctypes.c_long, (*arguments, *[0] * (6 - len(arguments))))) < 0:
        raise OSError(ctypes.get_errno(), name)

if os.geteuid() == 0 and user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    libc.prctl(4, 1)  # PR_SET_DUMPABLE, as a service that systemd started is
ours, its = os.pipe()
victim = os.fork()  # of the same user, as a supervisor is under systemd
if not victim:
    os.close(its)
    os.read(ours, 1)  # until the other one has ended
    os._exit(0)
if how == "confined":
    privileges.give_up()
"""

# Name and arguments; without any, all are 0: none of these does anything then, whoever may make it.
CALLS: dict[str, dict[str, tuple[int, ...]]] = {
    "files": {
        **dict.fromkeys(("openat", "openat2", "unlinkat", "mkdirat", "renameat2", "fchmodat"), ()),
        **dict.fromkeys(("chdir", "getdents64", "truncate", "ftruncate", "faccessat", "readlinkat"), ()),
        **dict.fromkeys(("read", "memfd_create", "inotify_init1", "statx", "newfstatat"), ()),
    },
    "sockets": dict.fromkeys(("socket", "socketpair", "connect", "listen", "accept4"), ()),
    "descriptors": dict.fromkeys(("dup", "dup3", "pipe2", "epoll_create1", "eventfd2", "splice"), ()),
    "other processes": {
        **dict.fromkeys(("kill", "tkill", "rt_sigqueueinfo", "pidfd_open", "pidfd_send_signal"), ()),
        **dict.fromkeys(("pidfd_getfd", "process_vm_readv", "process_vm_writev", "prlimit64"), ()),
        **dict.fromkeys(("sched_setscheduler", "setpriority"), ()),
        "wait4": (0, 0, os.WNOHANG),
        "ptrace": (16, 0),  # PTRACE_ATTACH
    },
    "programs": dict.fromkeys(("execve", "execveat"), ()),
    "the kernel": {
        **dict.fromkeys(("prctl", "unshare", "setns", "personality", "io_uring_setup"), ()),
        **dict.fromkeys(("keyctl", "shmget", "umask", "ioctl"), ()),
        "seccomp": (99,),  # no operation
    },
}
# What takes more than a number: arguments that decide, and calls that Python makes in its own way.
ATTEMPTS = {
    "open a file": "os.open('/etc/passwd', os.O_RDONLY)",
    "find a file": "os.stat('/')",
    "make a socket": "socket.socket()",
    "connect one": "udp.connect(('127.0.0.1', 9))",
    "signal another process": "os.kill(victim, 0)",
    "signal its thread": "raw('tgkill', (victim, victim, 0))",
    "trace it": "raw('ptrace', (0x4206, victim))",  # PTRACE_SEIZE
    "execute": "os.execv('/nowhere', ['nowhere'])",
    "fork": "os.fork() or os._exit(0)",
    "map code": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "turn data into code": "raw('mprotect', (0, 4096, mmap.PROT_EXEC))",
    "move it to a CPU": "os.sched_setaffinity(victim, os.sched_getaffinity(0))",
    "change a descriptor's flags": "fcntl.fcntl(here, fcntl.F_SETFL, 0)",
    "seal memory": "fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 0)",
    "push into a terminal": "fcntl.ioctl(here, 0x5412, b'x')",
}
TRY_ALL = """
done = {call: outcome(lambda: raw(call, arguments)) for call, arguments in json.loads(sys.argv[3]).items()}
done |= {name: outcome(lambda: eval(text)) for name, text in json.loads(sys.argv[4]).items()}
os.write(1, json.dumps(done).encode())
"""


@pytest.fixture(params=["root", "ordinary"])
def user(request: pytest.FixtureRequest) -> int:
    """Be root, which gives up its user too, and somebody who never was."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("needs root: gives up root's rights")
    return 0 if request.param == "root" else ORDINARY


def child(script: str, how: str, user: int, *args: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-P", "-c", SETUP + script, how, str(user), *args)
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def result(script: str, how: str, user: int, *args: str) -> Any:
    """What a child says, which must end well."""
    process = child(script, how, user, *args)
    said, complaints = ended(process)
    assert process.returncode == 0, complaints
    return json.loads(said)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Let it come to its end, or bring it there; what it said."""
    try:
        return process.communicate(timeout=30)
    finally:
        process.kill()


def try_all(how: str, user: int) -> dict[str, str]:
    calls = {name: arguments for group in CALLS.values() for name, arguments in group.items()}
    return dict(result(TRY_ALL, how, user, json.dumps(calls), json.dumps(ATTEMPTS)))


def test_everything_that_is_not_a_workers_is_refused(user: int) -> None:
    done = try_all("confined", user)
    assert {name: answer for name, answer in done.items() if answer != "EPERM"} == {}
    assert len(done) > 60


def test_nothing_of_it_is_refused_without_the_filter(user: int) -> None:
    """Else the test above could not fail."""
    assert [name for name, answer in try_all("free", user).items() if answer == "EPERM"] == []


WORK = """
def say(text):
    os.write(2, text.encode())
area = mmap.mmap(memory, 1 << 20, mmap.MAP_SHARED | mmap.MAP_POPULATE)
area[:4] = b"here"
private = bytearray(64 << 20)  # big enough for a mapping of its own
private.extend(bytes(64 << 20))
del private
[bytes(1000) for _ in range(10000)]  # brk
raw("munmap", (0, 4096))  # nobody complains if this one fails, but memory would never come back
socket.send_fds(here, [b"hello"], [memory])
text, (copy,), _, _ = socket.recv_fds(there, 100, 4)
assert text == b"hello" and os.fstat(copy).st_size == 1 << 20
os.close(copy)
here.send(b"again")
assert there.recv(10) == b"again"
there.settimeout(0.05)
try:
    there.recv(10)
except TimeoutError:
    pass
there.setblocking(True)
udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
assert udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 4096
udp.bind(("127.0.0.1", 0))
assert udp.getsockname()[1]
poller = select.poll()
poller.register(udp, select.POLLIN)
assert poller.poll(10) == []
os.sched_setaffinity(0, os.sched_getaffinity(0))
pause = ctypes.create_string_buffer(b"\\0" * 8 + b"\\1", 16)  # a struct timespec
for call, arguments in {
    "ppoll": (0, 0, ctypes.addressof(pause), 0, 8),
    "nanosleep": (ctypes.addressof(pause), 0),
    "clock_gettime": (1, ctypes.addressof(pause)),
    "fstat": (memory, ctypes.addressof(ctypes.create_string_buffer(256))),
    "futex": (ctypes.addressof(pause), 1, 1),  # FUTEX_WAKE
    "rt_sigprocmask": (0, 0, 0, 8),
    "getrandom": (ctypes.addressof(pause), 8, 0),
}.items():
    raw(call, arguments)  # what Python and glibc call on some machines, or in some moments, only
time.sleep(0.01)
assert time.monotonic() > 0 and os.getpid() > 1
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append("USR1"))
signal.raise_signal(signal.SIGUSR1)
try:
    import wave  # nothing can be imported any more, and that is an error like any other
except ImportError:
    heard.append("no import")
say("warning")
area.close()
os.write(1, json.dumps(heard).encode())
"""


def test_a_workers_work_goes_on(user: int) -> None:
    assert result(WORK, "confined", user) == ["USR1", "no import"]


def test_pauses_survive_being_stopped(user: int) -> None:
    """SIGSTOP and SIGCONT make the kernel go on by a call of its own, restart_syscall."""
    script = "os.write(1, b'ready\\n'); select.poll().poll(400); time.sleep(0.4); os.write(1, b'done')"
    process = child(script, "confined", user)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        time.sleep(0.2)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.01)
        process.send_signal(signal.SIGCONT)
    said, complaints = ended(process)
    assert (process.returncode, said) == (0, "done"), complaints


def test_a_bug_still_gets_its_traceback(user: int) -> None:
    process = child("def forward():\n    1 / 0\nforward()", "confined", user)
    _, complaints = ended(process)
    assert process.returncode == 1
    assert "in forward" in complaints
    assert complaints.endswith("ZeroDivisionError: division by zero\n")


def test_an_abort_is_one(user: int) -> None:
    """assert() in C must end as SIGABRT, which its cause is named after, not by whatever comes next."""
    process = child("os.abort()", "confined", user)
    ended(process)
    assert process.returncode == -signal.SIGABRT


def test_rights_are_gone_and_one_filter_is_there(user: int) -> None:
    process = child("os.write(1, b'ready\\n'); here.recv(1)", "confined", user)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        mine, its = (status(pid) for pid in (os.getpid(), process.pid))
    finally:
        process.kill()
        process.communicate()
    names = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    assert [int(its[name], 16) for name in names] == [0] * 4
    wanted = user or privileges.NOBODY
    if os.geteuid() == 0:
        assert set(its["Uid"].split()) == set(its["Gid"].split()) == {str(wanted)}
        assert its["Groups"] == ""
    assert (its["NoNewPrivs"], its["Seccomp"]) == ("1", "2")
    assert int(its["Seccomp_filters"]) == int(mine["Seccomp_filters"]) + 1
    if user == 0 and int(mine["CapEff"], 16) >> 8 & 1:  # CAP_SETPCAP
        assert int(its["CapBnd"], 16) == 0


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
