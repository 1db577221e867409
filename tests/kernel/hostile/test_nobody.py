"""Another user of the machine: what that one may see and do of a running daemon, which is only to scrape.

Each attempt is made as the user nobody, in the daemon's own network namespace; as root it works, so that an
attempt that fails for another reason proves nothing. What is not ours to protect (who may read the file that
an operator wrote) is not tried.
"""

from __future__ import annotations

import grp
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from daemon import METRICS, SMALL, Daemon, running
from test_daemon_capture import Client, own_group

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

NOBODY = 65534
SECRET = "hush-hush"  # a name in the file that no metric has to tell
# Attempts at a daemon: an expression each, of the pids, the paths and what can be had of them.
TRIES = """
import ctypes, json, os, signal, socket, sys, urllib.request
from xskd import control
given, user, groups = json.loads(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
os.setgroups(groups)
os.setresgid(user, user, user)
os.setresuid(user, user, user)

def connect():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(given["socket"])

def ask(verb, **more):
    from pathlib import Path
    control.ask(Path(given["socket"]), verb, **more)

def traced(pid):
    if libc.ptrace(0x4206, pid, 0, 0) < 0:  # PTRACE_SEIZE
        raise OSError(ctypes.get_errno(), "ptrace")
    libc.ptrace(17, pid, 0, 0)

def memory_of(pid):
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(int(maps.readline().partition("-")[0], 16))
        assert memory.read(1)

def replaced(name):
    path = given[name]
    os.rename(path, path + ".away")
    os.rename(path + ".away", path)

tries = {
    "connect to the control socket": connect,
    "ask for status": lambda: ask("status"),
    "ask for a reload": lambda: ask("reload", dry=True),
    "replace the control socket": lambda: replaced("socket"),
    "make a file beside it": lambda: os.close(os.open(given["socket"] + ".x", os.O_CREAT | os.O_RDWR)),
    "read a capture": lambda: open(given["capture"], "rb").read(),
}
for name in ("supervisor", "worker"):
    pid = given[name]
    tries |= {
        f"signal the {name}": lambda pid=pid: os.kill(pid, 0),
        f"stop the {name}": lambda pid=pid: (os.kill(pid, signal.SIGSTOP), os.kill(pid, signal.SIGCONT)),
        f"trace the {name}": lambda pid=pid: traced(pid),
        f"read the {name}'s memory": lambda pid=pid: memory_of(pid),
        f"see the {name}'s descriptors": lambda pid=pid: os.listdir(f"/proc/{pid}/fd"),
        f"open the {name}'s descriptors": lambda pid=pid: os.open(f"/proc/{pid}/fd/2", os.O_RDONLY),
        f"take the {name}'s descriptors": lambda pid=pid: taken(pid),
        f"read the {name}'s environment": lambda pid=pid: open(f"/proc/{pid}/environ").read(),
        f"move the {name} to a CPU": lambda pid=pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
    }

def taken(pid):
    if libc.syscall(438, os.pidfd_open(pid), 0, 0) < 0:  # pidfd_getfd
        raise OSError(ctypes.get_errno(), "pidfd_getfd")

page = urllib.request.urlopen(f"http://{given['metrics']}/metrics", timeout=10).read().decode()
said = {"page": page}
for name, attempt in tries.items():
    try:
        attempt()
        said[name] = "done"
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@contextmanager
def in_the_open() -> Iterator[Path]:
    """Make a directory that everybody may enter, as /run/xskd is."""
    with TemporaryDirectory(prefix="xskd-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def tried(net: Wire, daemon: Daemon, capture: Path, user: int, *groups: int) -> dict[str, str]:
    """Make all the attempts as this user: what came of each, and the page of metrics."""
    given = {
        "socket": str(daemon.socket),
        "capture": str(capture),
        "supervisor": daemon.pid,
        "worker": daemon.worker("wire/0")["pid"],
        "metrics": METRICS,
    }
    command = (sys.executable, "-c", TRIES, json.dumps(given), str(user), json.dumps(groups))
    said: dict[str, str] = json.loads(net.run(net.dut, *command).stdout)
    return said


def text(socket: Path, group: str = "") -> str:
    """Write a configuration with a name that is nobody's business."""
    given = f", group: {group}" if group else ""
    rules = f"rules: [{{name: {SECRET}, source: 192.0.2.77, verdict: drop}}]"
    return (
        f"interfaces: {{eth1: {{rings: {SMALL}, {rules}}}, eth2: {{rings: {SMALL}}}}}\n"
        f"paths: {{wire: {{connect: [eth1, eth2]}}}}\ncontrol: {{socket: {socket}{given}}}\n"
    )


def test_nobody_can_do_nothing_but_scrape(wire: MakeWire) -> None:
    net = wire()
    with in_the_open() as directory:
        where, capture = directory / "control.sock", directory / "seen.pcapng"
        with running(net, directory, text(where)) as daemon:
            client = Client(daemon, "wire", output=capture)
            net.taps[0].through(net.frames(5), net.taps[1])
            client.end()
            by_nobody = tried(net, daemon, capture, NOBODY)
            assert net.taps[0].through(net.frames(5), net.taps[1]) == net.frames(5)
            by_root = tried(net, daemon, capture, 0)
            page = by_nobody.pop("page")
            by_root.pop("page")
            allowed = [name for name, came in by_nobody.items() if came == "done"]
            assert allowed == [], by_nobody
            works = [name for name, came in by_root.items() if came != "done"]
            assert works == [], by_root  # else an attempt is wrong, and its failure proves nothing
            refusals = re.compile("ermission|ermitted|only root")
            assert all(refusals.search(came) for came in by_nobody.values()), by_nobody
        for private in ("192.0.2.77", str(directory), net.mac_of(0), net.mac_of(0, dut_side=True)):
            assert private not in page


def test_a_member_of_the_group_can_ask_and_nothing_more(wire: MakeWire) -> None:
    net = wire()
    with in_the_open() as directory, own_group("xskd-test-nobody") as group:
        where = directory / "control.sock"
        number = grp.getgrnam(group).gr_gid
        capture = directory / "seen.pcapng"
        capture.touch(0o600)
        with running(net, directory, text(where, group)) as daemon:
            by_member = tried(net, daemon, capture, NOBODY, number)
            by_member.pop("page")
            allowed = {name for name, came in by_member.items() if came == "done"}
            assert allowed == {"connect to the control socket", "ask for status"}
            assert "reload: only root and the daemon's own user may" in by_member["ask for a reload"]
