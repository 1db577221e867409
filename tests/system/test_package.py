"""The Debian package on a machine of its own: installed, upgraded while it forwards, removed, purged.

Nothing of the checkout is on that machine. dpkg's database is the host's, in a layer that is thrown away.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from booted import QUEUES, ROOT, Machine, eventually

from lab import Topology
from lab.box import Box, missing
from xskd import cli

OLD, NEW = "7.0.1", "7.0.2"  # not what the source says of itself
LOST_BY_AN_UPGRADE = 0  # packets, of a steady stream
UP = f"1 path, {QUEUES} queues forwarding, copy mode"
CONFIG, LIBRARY = "/etc/xskd/xskd.yaml", "/usr/lib/xskd"
ENABLED = "/etc/systemd/system/multi-user.target.wants/xskd.service"
VERBS = {
    verb
    for action in cli._parser()._actions
    if isinstance(action, argparse._SubParsersAction)
    for verb in action.choices
}


class Packaged(Machine):
    """A machine with nothing of xskd but what packages bring."""

    def __init__(self, lab: Topology, box: Box) -> None:  # not Machine's, which brings the checkout
        self.lab, self.box = lab, box
        box.run("dpkg", "--purge", "xskd", check=False)  # where the host has it
        # Such a machine starts no services on installation; an operator's does.
        box.path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)

    def install(self, package: Path) -> str:
        """Install or upgrade, and say what was printed."""
        shutil.copy(package, self.box.path("/tmp"))
        return self.dpkg("--force-confold", "-i", f"/tmp/{package.name}")

    def dpkg(self, *args: str) -> str:
        """Run it with nobody there to answer questions, and say what it printed.

        Without triggers: the index of all the manual's pages is another package's, and takes its time.
        With manual and documents, even if the host leaves them out, as container images do.
        """
        script = 'exec dpkg --no-triggers --path-include="/usr/*" "$@" 2>&1 </dev/null'
        done = self.box.run("sh", "-c", script, "sh", *args, check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def there(self, path: str) -> bool:
        return os.path.lexists(self.box.path(path))  # an absolute link leads out of the machine

    def says(self, *args: str) -> str:
        """Run a command to its end, whatever its status, and say what it printed."""
        done = self.box.run(*args, check=False)
        return (done.stdout + done.stderr).strip()

    def change_configuration(self) -> str:
        """Change the file as an operator would, and return all of it."""
        text = self.box.path(CONFIG).read_text(encoding="utf-8").replace("level: info", "level: debug")
        assert "level: debug" in text
        self.write(CONFIG, text)
        return text

    def configuration(self) -> str:
        return self.box.path(CONFIG).read_text(encoding="utf-8")


class Stream:
    """A ping every 10 ms from one host to the other, as long as the context lasts."""

    def __init__(self, machine: Packaged, log: Path) -> None:
        self._lab, self._log = machine.lab, log

    def __enter__(self) -> Self:
        ping = ("stdbuf", "-oL", "ping", "-D", "-i", "0.01", self._lab.ip_of(1))
        with self._log.open("wb") as file:
            self._process = self._lab.popen(self._lab.hosts[0], *ping, stdout=file)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(5)

    def answers(self) -> dict[int, float]:
        """When each packet was answered that was, by its number."""
        found = re.findall(
            r"^\[([\d.]+)\] \d+ bytes .* icmp_seq=(\d+) ", self._log.read_text("ascii"), re.MULTILINE
        )
        return {int(number): float(time) for time, number in found}

    def lost(self) -> int:
        """How many were not answered before the last one that was."""
        answers = self.answers()
        return max(answers) - min(answers) + 1 - len(answers)

    def gap(self) -> float:
        """Seconds, the longest time between two answers."""
        times = sorted(self.answers().values())
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@contextmanager
def machine() -> Iterator[Packaged]:
    with Topology("xskd-package", queues=QUEUES) as lab, Box(netns=lab.dut) as box:
        yield Packaged(lab, box)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build a package, and make of it the next version with another default configuration."""
    if reason := missing():
        pytest.skip(reason)
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb: makes a Debian package")
    script, out = ROOT / "scripts/package", tmp_path_factory.mktemp("packages")
    lacking = subprocess.run((script, "--missing"), capture_output=True, text=True, check=True).stdout.strip()
    if lacking:
        pytest.skip(f"needs packages to build one: {lacking}")
    done = subprocess.run((script, "-o", out, OLD), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (old,) = out.glob(f"xskd_{OLD}_*.deb")
    return {OLD: old, NEW: _next_version(old)}


def _next_version(package: Path) -> Path:
    tree, made = package.parent / "tree", Path(str(package).replace(OLD, NEW))
    subprocess.run(("dpkg-deb", "-R", package, tree), check=True)
    module = tree / LIBRARY.lstrip("/") / "xskd/__init__.py"
    times = module.stat().st_atime_ns, module.stat().st_mtime_ns
    for file in (tree / "DEBIAN/control", module):
        file.write_text(file.read_text("utf-8").replace(OLD, NEW), "utf-8")
    os.utime(module, ns=times)  # as in a build with the same SOURCE_DATE_EPOCH; it has the same size, too
    with (tree / CONFIG.lstrip("/")).open("a", encoding="utf-8") as config:
        config.write("# something new\n")
    subprocess.run(("dpkg-deb", "-Znone", "-b", tree, made), check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made


@pytest.fixture(scope="module")
def first(packages: dict[str, Path]) -> Iterator[tuple[Packaged, str]]:
    """A machine with the old version freshly installed, and what that said. Tests leave it so."""
    with machine() as made:
        yield made, made.install(packages[OLD])


@pytest.fixture
def installed(packages: dict[str, Path]) -> Iterator[Packaged]:
    with machine() as made:
        made.install(packages[OLD])
        yield made


def test_a_first_installation_starts_nothing_and_says_what_to_do(first: tuple[Packaged, str]) -> None:
    machine, said = first
    assert machine.says("systemctl", "is-enabled", "xskd") == "disabled"
    assert machine.says("systemctl", "is-active", "xskd") == "inactive"
    assert machine.processes() == []
    assert not machine.there(ENABLED)
    (hint,) = (line for line in said.splitlines() if line.startswith("xskd is not started"))
    assert "xskd check" in hint


def test_the_user_exists_and_cannot_log_in(first: tuple[Packaged, str]) -> None:
    machine, _ = first
    name, _, uid, *_, shell = machine.says("getent", "passwd", "xskd").split(":")
    assert name == "xskd"
    assert 0 < int(uid) < 1000, "not a system user"
    assert shell == "/usr/sbin/nologin"
    assert machine.says("getent", "group", "xskd").startswith("xskd:")


def test_the_program_is_the_packages_own_whatever_the_environment(first: tuple[Packaged, str]) -> None:
    machine, _ = first
    for module in ("yaml", "pydantic", "sitecustomize", "json"):
        machine.write(f"/tmp/other/{module}.py", "raise SystemExit('not the package's own')\n")
    elsewhere = ("env", "-C", "/tmp/other", "PYTHONPATH=/tmp/other", "PYTHONHOME=/nonexistent")
    assert machine.says(*elsewhere, "xskd", "--version") == f"xskd {OLD}"
    assert '"$defs"' in machine.says(*elsewhere, "xskd", "schema")


def test_check_plans_the_default_configuration_where_it_fits(first: tuple[Packaged, str]) -> None:
    """As the daemon's user, too, which must be able to read it."""
    machine, _ = first
    as_user = ("setpriv", "--reuid=xskd", "--regid=xskd", "--clear-groups")
    for who in ((), as_user):
        assert "wire/1" in machine.box.run(*who, "xskd", "check").stdout


def test_check_says_what_does_not_fit_this_machine(first: tuple[Packaged, str]) -> None:
    machine, _ = first
    done = machine.box.run("unshare", "--net", "xskd", "check", check=False)
    assert done.returncode == 2
    assert re.search(rf"^{CONFIG}:\d+: interfaces.eth2: no such interface", done.stderr, re.MULTILINE)


def test_files_are_as_they_should_be(first: tuple[Packaged, str], packages: dict[str, Path]) -> None:
    machine, _ = first
    assert machine.says("dpkg", "--verify", "xskd") == ""
    assert machine.says("find", LIBRARY, CONFIG, "(", "-perm", "/022", "-o", "!", "-uid", "0", ")") == ""
    assert machine.says("grep", "-rl", "--exclude=*.pyc", str(ROOT), LIBRARY) == "", "a path of the builder's"
    shipped = machine.says("dpkg", "-L", "xskd").splitlines()
    assert not [path for path in shipped if "__pycache__" in path or path.endswith(".pyc")]
    for path in (
        "/lib/systemd/system/xskd.service",
        "/usr/lib/sysusers.d/xskd.conf",
        "/usr/share/xskd/grafana/xskd-overview.json",
        "/usr/share/xskd/prometheus/xskd.alerts.yaml",
        "/usr/share/xskd/prometheus/xskd.rules.yaml",
        "/usr/share/doc/xskd/dashboards.md",
        "/usr/share/doc/xskd/copyright",
        "/usr/share/doc/xskd/examples/filter.yaml",
        "/usr/share/doc/xskd/examples/router.yaml",
        "/usr/share/doc/xskd/changelog.gz",
    ):
        assert path in shipped


def test_all_is_compiled_by_the_installation_and_by_nothing_else(first: tuple[Packaged, str]) -> None:
    machine, _ = first
    sources = machine.says("find", f"{LIBRARY}/xskd", "-name", "*.py").split()
    compiled = machine.says("find", f"{LIBRARY}/xskd", "-name", "*.cpython-311.pyc").split()
    assert len(sources) == len(compiled) > 20
    shutil.rmtree(machine.box.path(f"{LIBRARY}/xskd/__pycache__"))
    machine.box.run("xskd", "schema")
    assert not machine.there(f"{LIBRARY}/xskd/__pycache__"), "root's own bytecode would outlive the package"


def test_the_man_page_renders_and_knows_every_verb(first: tuple[Packaged, str]) -> None:
    if shutil.which("man") is None:
        pytest.skip("needs man (package man-db)")
    machine, _ = first
    done = machine.box.run("man", "--warnings", "--ascii", "-l", "/usr/share/man/man8/xskd.8.gz")
    assert done.stderr == ""
    described = done.stdout.partition("\nVERBS\n")[2].partition("\nOPTIONS\n")[0]
    assert set(re.findall(r"^ {7}([a-z]+)(?: +[A-Z]|$)", described, re.MULTILINE)) == VERBS
    assert f"xskd {OLD}" in done.stdout


def test_bash_completes_verbs_options_and_files(first: tuple[Packaged, str]) -> None:
    machine, _ = first

    def complete(*words: str) -> set[str]:
        script = """
            set -e
            source /usr/share/bash-completion/completions/xskd
            COMP_WORDS=(xskd "$@") COMP_CWORD=$#
            $(complete -p xskd | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            echo "${COMPREPLY[@]}"
            """
        return set(machine.box.run("bash", "-c", script, "bash", *words).stdout.split())

    assert complete("") == VERBS
    assert complete("sch") == {"schema"}
    assert complete("status", "--j") == {"--json"}
    assert complete("run", "-c", "/etc/xskd/x") == {CONFIG}


def test_the_service_starts_and_forwards(first: tuple[Packaged, str]) -> None:
    machine, _ = first
    machine.systemctl("start")
    assert machine.show("StatusText") == UP
    assert machine.lost() == 0
    assert len(machine.processes()) == 1 + QUEUES
    for pid in machine.processes():
        assert machine.says("readlink", f"/proc/{pid}/exe") == "/usr/bin/python3.11"
        assert str(ROOT) not in machine.box.run("cat", f"/proc/{pid}/environ", f"/proc/{pid}/maps").stdout
    assert machine.says("systemctl", "show", "-p", "User", "--value", "xskd") == "xskd"
    machine.systemctl("stop")
    assert eventually(lambda: machine.processes() == [])


def test_an_upgrade_replaces_the_daemon_while_it_forwards(
    installed: Packaged, packages: dict[str, Path], tmp_path: Path
) -> None:
    installed.systemctl("start")
    before = installed.show("MainPID")
    with Stream(installed, tmp_path / "ping") as stream:
        assert eventually(lambda: len(stream.answers()) > 50)
        installed.install(packages[NEW])
        upgraded = len(stream.answers())
        assert eventually(lambda: len(stream.answers()) > upgraded + 50), "nothing is forwarded any more"
    lost, sent = stream.lost(), len(stream.answers()) + stream.lost()
    print(f"an upgrade: {lost} of {sent} packets lost, longest gap {stream.gap() * 1000:.0f} ms")
    assert installed.show("MainPID") != before, "it is the old one that still runs"
    assert installed.says("xskd", "--version") == f"xskd {NEW}", "bytecode of the old version is left"
    assert installed.show("StatusText") == UP
    assert installed.says("systemctl", "is-enabled", "xskd") == "disabled", "it is not the package's to say"
    assert lost <= LOST_BY_AN_UPGRADE


def test_an_upgrade_leaves_a_stopped_service_and_a_changed_file_alone(
    installed: Packaged, packages: dict[str, Path]
) -> None:
    changed = installed.change_configuration()
    installed.install(packages[NEW])
    assert installed.says("dpkg-query", "-W", "-f", "${Version}", "xskd") == NEW
    assert installed.configuration() == changed
    assert installed.box.path(f"{CONFIG}.dpkg-dist").read_text("utf-8").endswith("# something new\n")
    assert installed.says("systemctl", "is-active", "xskd") == "inactive"


def test_remove_keeps_the_configuration_and_purge_nothing(
    installed: Packaged, packages: dict[str, Path]
) -> None:
    changed = installed.change_configuration()
    installed.box.run("systemctl", "enable", "--now", "xskd")
    assert len(installed.processes()) == 1 + QUEUES
    shipped = installed.says("dpkg", "-L", "xskd").splitlines()

    installed.dpkg("--remove", "xskd")
    assert eventually(lambda: installed.processes() == [])
    assert "xdp" not in installed.says("ip", "link", "show", "eth1")
    assert installed.show("LoadState") == "not-found"
    assert {path for path in shipped if installed.there(path) and "xskd" in path} == {"/etc/xskd", CONFIG}
    assert installed.configuration() == changed

    installed.install(packages[OLD])
    assert installed.configuration() == changed
    assert installed.says("systemctl", "is-active", "xskd") == "inactive"
    assert installed.says("systemctl", "is-enabled", "xskd") == "enabled", "as it was before"
    installed.systemctl("start")
    assert installed.lost() == 0

    installed.write("/etc/xskd/another.yaml", changed)
    installed.dpkg("--purge", "xskd")
    assert eventually(lambda: installed.processes() == [])
    assert not any(installed.there(path) for path in ("/etc/xskd", LIBRARY, "/usr/bin/xskd"))
    assert "xskd" not in installed.says("ls", str(Path(ENABLED).parent))
    assert installed.says("systemctl", "is-failed", "xskd") == "inactive"
    assert "xskd" in installed.says("getent", "passwd", "xskd"), "its number must not go to another"


def test_everything_works_without_a_running_systemd(packages: dict[str, Path]) -> None:
    """As in a container or while an image is built; what would ask systemd fails there."""
    hide = "mount -t tmpfs tmpfs /run/systemd && mount --bind /bin/false /usr/bin/systemctl && "
    with machine() as made:
        shutil.copy(packages[OLD], made.box.path("/tmp"))
        for verb in (f"-i /tmp/{packages[OLD].name}", "--remove xskd", "--purge xskd"):
            made.box.run("unshare", "--mount", "sh", "-c", f"{hide} exec dpkg --no-triggers {verb}")
            assert made.there(f"{LIBRARY}/xskd/__pycache__") == verb.startswith("-i")
            assert made.there(CONFIG) != verb.startswith("--purge")
            assert made.says("getent", "passwd", "xskd")
