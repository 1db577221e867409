"""A machine between two hosts, with a systemd of its own and xskd's unit on it.

The unit is the shipped one, byte for byte, and so is its user: the machine has /usr/bin/xskd, a link to the
checkout's venv, and /etc/xskd/xskd.yaml. Nothing is mocked, and nothing of it is on the host.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.box import Box, missing
from lab.topology import Topology

ROOT = Path(__file__).parents[1]
XSKD = Path(sys.executable).with_name("xskd")
UNIT = ROOT / "systemd/xskd.service"
SYSUSERS = ROOT / "systemd/xskd.sysusers"
QUEUES = 2
PATIENCE = 10.0  # seconds: how long anything that must happen may take


class Lacking(Exception):
    """Something that this machine does not have; the text says what."""


def eventually(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Wait until a condition holds; False if it does not in time."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Machine:
    """A booted Box in the middle of a Topology, xskd installed, not started. Lacking if it cannot be."""

    config = """\
interfaces: {eth1: {}, eth2: {}}
paths: {wire: {connect: [eth1, eth2]}}
"""

    def __init__(self, lab: Topology, box: Box) -> None:
        self.lab, self.box = lab, box
        box.path("/usr/bin/xskd").symlink_to(XSKD)
        self.write("/etc/xskd/xskd.yaml", self.config)
        shutil.copy(UNIT, box.path("/etc/systemd/system/xskd.service"))
        self.write("/etc/sysusers.d/xskd.conf", SYSUSERS.read_text(encoding="utf-8"))
        box.run("systemd-sysusers", "xskd.conf")
        self._open_the_way()
        self._show_checkout()
        box.run("systemctl", "daemon-reload")

    def _open_the_way(self) -> None:
        """Let the unit's user pass to the checkout, which may lie below a directory for root only: /root.

        The directories above it are the overlay's: the host's own stay as closed as they are. The checkout
        itself is the host's, and is not changed.
        """
        self.box.run("chmod", "o+x", *map(str, ROOT.parents))
        readable = ("test", "-x", str(XSKD), "-a", "-r", str(ROOT / "xskd/cli.py"))
        if self.as_user(*readable).returncode:
            raise Lacking(f"needs a checkout that others may read: user xskd cannot run {XSKD}")

    def as_user(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the unit's user, but outside of its sandbox."""
        user = ("setpriv", "--reuid=xskd", "--regid=xskd", "--clear-groups", "--")
        return self.box.run(*user, *args, check=False)

    def _show_checkout(self) -> None:
        """Where ProtectHome= or PrivateTmp= hides the checkout from the unit, and nowhere else, show it.

        An installed xskd lies elsewhere, see docs/operations.md; a clone to be tested may lie anywhere.
        """
        hidden = {"/root": "tmpfs", "/home": "tmpfs", "/run/user": "tmpfs", "/tmp": "yes", "/var/tmp": "yes"}
        for place, protect_home in hidden.items():
            if ROOT.is_relative_to(place):
                text = f"[Service]\nProtectHome={protect_home}\nBindReadOnlyPaths={ROOT}\n"
                self.write("/etc/systemd/system/xskd.service.d/checkout.conf", text)

    def write(self, path: str, text: str) -> None:
        """Write a file of the machine, and its directory; everybody may read them."""
        file = self.box.path(path)
        file.parent.mkdir(exist_ok=True)
        file.parent.chmod(0o755)
        file.write_text(text, encoding="utf-8")
        file.chmod(0o644)

    def override(self, text: str) -> None:
        """Add a drop-in to the unit."""
        self.write("/etc/systemd/system/xskd.service.d/test.conf", text)
        self.box.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, *, check: bool = True) -> int:
        """Have systemd do it with the unit; its exit status."""
        return self.box.run("systemctl", verb, "xskd", check=check).returncode

    def show(self, name: str) -> str:
        """Say what systemd says of a property of the unit."""
        return self.box.run("systemctl", "show", "xskd", "--value", "-p", name).stdout.strip()

    def status(self) -> dict[str, Any]:
        """Ask the daemon, as an operator would. RuntimeError if none answers."""
        answer: dict[str, Any] = json.loads(self.box.run("xskd", "status", "--json").stdout)
        return answer

    def worker(self, name: str) -> dict[str, Any]:
        """What the daemon says of one worker."""
        (found,) = (worker for worker in self.status()["workers"] if worker["name"] == name)
        return dict(found)

    def journal(self) -> list[dict[str, Any]]:
        """The unit's entries, oldest first; also what systemd says of it."""
        lines = self.box.run("journalctl", "-u", "xskd", "-o", "json").stdout.splitlines()
        return [json.loads(line) for line in lines]

    def said(self) -> list[str]:
        """The unit's lines."""
        return [str(entry["MESSAGE"]) for entry in self.journal()]

    def signal(self, name: str, pid: int | str) -> None:
        """Send a signal to one process of the machine, whose pid is as it sees it."""
        self.box.run("kill", f"-{name}", str(pid))

    def processes(self) -> list[str]:
        """The pids of everything xskd's on the machine."""
        return self.box.run("pgrep", "-f", "xskd (run|status)|xskd[.]worker", check=False).stdout.split()

    def rights(self, pid: int | str) -> dict[str, str]:
        """What /proc says of a process: Uid, CapEff, NoNewPrivs and so on."""
        lines = self.box.run("cat", f"/proc/{pid}/status").stdout.splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def lost(self, count: int = 20) -> int:
        """Send pings from one host through the machine to the other; how many had no answer."""
        lab = self.lab
        ping = ("ping", "-c", str(count), "-i", "0.01", "-W", "1", lab.ip_of(1))
        said = lab.run(lab.hosts[0], *ping, check=False).stdout
        return count - int(said.partition(" packets transmitted, ")[2].partition(" received")[0])


@contextmanager
def booted(name: str, *, links: int = 2) -> Iterator[Machine]:
    """Boot a machine that is ready to start xskd, between so many hosts. Lacking where that cannot be."""
    if reason := missing():
        raise Lacking(reason)
    if not XSKD.exists():
        raise Lacking(f"needs xskd installed in the venv: no {XSKD}")
    with Topology(name, links=links, queues=QUEUES) as lab, Box(netns=lab.dut, binds=[ROOT]) as box:
        yield Machine(lab, box)
