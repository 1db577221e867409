"""`xskd top` on a terminal: a pty with xskd at one end and what a person sees (pyte) at the other."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyte
import pytest
from daemon import Daemon, Stream, running, xskd

from lab import entered

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

ROOT = Path(__file__).parents[2]
PATIENCE = 10.0
SCREEN_ON, SCREEN_OFF, CURSOR_ON = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


class Person:
    """A terminal with a command on it, and somebody who looks and types."""

    def __init__(self, net: Wire, command: tuple[str, ...], env: dict[str, str]) -> None:
        self._net = net
        self._end, self._tty = pty.openpty()
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.resize(80, 24)
        os.set_blocking(self._end, False)
        self.modes = termios.tcgetattr(self._tty)
        with entered(net.dut):
            self.process = subprocess.Popen(
                (sys.executable, "-c", CONTROLLED, *command),
                stdin=self._tty, stdout=self._tty, stderr=self._tty,
                cwd=ROOT, env=clean_environment() | env, start_new_session=True,
            )  # fmt: skip

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._tty, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def look(self) -> list[str]:
        """See what is on the screen now."""
        try:
            while True:
                said = os.read(self._end, 1 << 16)
                self.raw += said
                self._stream.feed(said)
        except BlockingIOError:
            return [line.rstrip() for line in self.screen.display]

    def sees(self, pattern: str) -> bool:
        """Wait until a line looks like this."""
        return self._net.eventually(lambda: any(re.search(pattern, line) for line in self.look()), PATIENCE)

    def sees_no(self, pattern: str) -> bool:
        """Wait until no line looks like this."""
        return self._net.eventually(
            lambda: not any(re.search(pattern, line) for line in self.look()), PATIENCE
        )

    def ended(self) -> int:
        status = self.process.wait(PATIENCE)
        self.look()
        return status

    def assert_all_is_as_before(self) -> None:
        assert termios.tcgetattr(self._tty) == self.modes
        assert self.raw.count(SCREEN_ON) == self.raw.count(SCREEN_OFF) > 0
        assert self.raw.rindex(SCREEN_OFF) > self.raw.rindex(SCREEN_ON)
        assert self.raw.rindex(CURSOR_ON) > self.raw.rindex(b"\x1b[?25l")

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._end)
        os.close(self._tty)


CONTROLLED = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def clean_environment() -> dict[str, str]:
    """Take away what would change colours or letters."""
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES", "LC_ALL", "LC_CTYPE")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def person(daemon: Daemon, *command: str, **env: str) -> Iterator[Person]:
    """Somebody looks at `xskd top`, or at another command."""
    top = (sys.executable, "-m", "xskd", "top", "-d", "0.2", "--socket", str(daemon.socket))
    made = Person(daemon.net, command or top, env)
    try:
        yield made
    finally:
        made.close()


def colours(raw: bytes) -> list[bytes]:
    """Every colour that was set; attributes like bold are none."""
    codes = [code for codes in re.findall(rb"\x1b\[([0-9;]*)m", raw) for code in codes.split(b";")]
    return [code for code in codes if re.fullmatch(rb"[349][0-8]|10[0-7]", code)]


@pytest.fixture
def daemon(wire: MakeWire, tmp_path: Path) -> Iterator[Daemon]:
    with running(wire(queues=2), tmp_path) as made:
        yield made


RATE = r"(1\.[6-9]\d|2\.[0-4]\d)k"  # of 2,000 packets/s on a busy machine


def test_top_shows_the_rate_of_each_queue_until_paused(daemon: Daemon) -> None:
    with person(daemon) as someone, Stream(daemon.net, queue=1, rate=2_000):
        assert someone.sees(rf"^wire/1 eth1:1 copy +{RATE} +0 +0 █"), someone.look()
        assert someone.sees(rf"^wire/1 eth2:1 copy +0 +{RATE} +0 █")
        assert someone.sees(r"^wire/0 eth1:0 copy +0 +0 +0 █")
        someone.type("p")
        assert someone.sees("^paused; p goes on")
        time.sleep(0.1)  # for the rest of that screen
        frozen = someone.look()
        assert not daemon.net.eventually(lambda: someone.look() != frozen, 1.0)
        someone.type("p")
        assert someone.sees_no("^paused")
        assert daemon.net.eventually(lambda: someone.look()[1] != frozen[1])
    assert all(len(line) <= 80 for line in frozen)


BUG = "from xskd import cli, top; top.Top.press = None; cli.main()"


@pytest.mark.parametrize(
    ("end", "status"),
    [("q", 0), ("\x03", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129), ("bug", 1)],
    ids=["q", "Ctrl-C", "TERM", "HUP", "bug"],
)
def test_however_top_ends_the_terminal_is_as_before(
    daemon: Daemon, end: str | signal.Signals, status: int
) -> None:
    command: tuple[str, ...] = ()
    if end == "bug":
        command = (sys.executable, "-c", BUG, "top", "--socket", str(daemon.socket))
    with person(daemon, *command) as someone:
        assert someone.sees("^wire/1 eth2:1")
        if isinstance(end, str):
            someone.type(end[0])
        else:
            someone.process.send_signal(end)
        assert someone.ended() == status
        someone.assert_all_is_as_before()


def test_top_stops_and_goes_on_under_a_shell(daemon: Daemon) -> None:
    with person(daemon, "bash", "--norc", "--noediting", "-i", PS1="ready> ") as someone:
        assert someone.sees("^ready>$")
        modes = termios.tcgetattr(someone._tty)
        someone.type(f"{sys.executable} -m xskd top -d 0.2 --socket {daemon.socket}\n")
        assert someone.sees("^wire/1 eth2:1")
        someone.type("\x1a")
        assert someone.sees(r"Stopped .* top")
        assert termios.tcgetattr(someone._tty) == modes
        someone.screen.reset()
        someone.type("fg\n")
        assert someone.sees("^wire/1 eth2:1")
        someone.type("q")
        assert daemon.net.eventually(lambda: someone.look() != [] and someone.raw.count(SCREEN_OFF) == 2)
        someone.type("exit\n")
        assert someone.ended() == 0
        someone.modes = modes
        someone.assert_all_is_as_before()


def test_top_fits_a_terminal_that_changes(daemon: Daemon) -> None:
    with person(daemon) as someone:
        assert someone.sees("^q quit")
        someone.resize(200, 40)
        assert daemon.net.eventually(lambda: someone.look()[39].startswith("q quit"), PATIENCE)
        assert someone.sees("^WORKER .*SLEEP")
        someone.resize(60, 12)
        assert daemon.net.eventually(lambda: someone.look()[11].startswith("q quit"), PATIENCE)


def test_top_waits_for_a_daemon_that_is_away(daemon: Daemon, tmp_path: Path) -> None:
    with person(daemon) as someone:
        assert someone.sees("^wire/1 eth2:1 copy +0")
        assert daemon.stop() == 0
        assert someone.sees(f"^no xskd answers on {daemon.socket}"[:60])
        assert someone.sees(r"^wire/1 eth2:1 \w+ +-")  # the last that was seen of it may be that it stops
        with running(daemon.net, tmp_path, daemon.file.read_text()):
            assert someone.sees_no("^no xskd answers")
            assert someone.sees("^wire/1 eth2:1 copy +0")
        someone.type("q")
        assert someone.ended() == 0


def test_colours_are_for_terminals_of_those_who_want_them(daemon: Daemon) -> None:
    for verb in (("top",), ("status",)):
        command = (sys.executable, "-m", "xskd", *verb, "--socket", str(daemon.socket))
        for env in (dict[str, str](), {"NO_COLOR": "1"}):
            with person(daemon, *command, **env) as someone:
                assert someone.sees("1 path, 2 queues forwarding")
                assert someone.sees("wire/1 +eth2:1")
                assert bool(colours(someone.raw)) == (not env), someone.raw
    for words in (("top", "-n", "2", "-d", "0.1"), ("status",)):
        said = xskd(daemon.net, *words, "--socket", str(daemon.socket))
        assert (said.returncode, said.stderr) == (0, "")
        assert "eth2:1" in said.stdout
        assert "\x1b" not in said.stdout


def test_letters_of_a_plain_terminal_are_plain(daemon: Daemon) -> None:
    with person(daemon, PYTHONIOENCODING="ascii") as someone:
        assert someone.sees(r"^wire/1 eth2:1 copy +0 +0 +0 ##### \.{5} ")
        assert someone.raw.isascii()


def test_top_without_a_terminal_says_what_to_do(daemon: Daemon) -> None:
    said = xskd(daemon.net, "top", "--socket", str(daemon.socket))
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == "xskd: top needs a terminal; try `xskd top -n 1`, or `xskd status`\n"
