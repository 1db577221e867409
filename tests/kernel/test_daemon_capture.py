"""`xskd capture` of the real daemon: what passed is what is in the file, and nothing that passes notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from daemon import Daemon, Lane, Stream, connect, paths, running, xskd
from packets import read

if TYPE_CHECKING:
    from conftest import MakeWire

NOBODY = 65534


class Client:
    """A running `xskd capture`; it captures when this is made."""

    def __init__(self, daemon: Daemon, *args: str, output: Path | None = None) -> None:
        where = () if output is None else ("-w", str(output))
        command = ("-m", "xskd", "capture", *args, *where, "--socket", str(daemon.socket))
        self.process = daemon.net.python(*command)
        self.status: int | None = None
        assert self.process.stderr is not None
        self.began = self.process.stderr.readline()

    def end(self, sign: signal.Signals | None = signal.SIGINT) -> str:
        """End it, or wait until it ends by itself; its last line."""
        if sign is not None:
            self.process.send_signal(sign)
        _, errors = self.process.communicate(timeout=20)
        self.status = self.process.returncode
        return errors.strip()


def tcpdump(*args: str, stdin: IO[str] | None = None) -> str:
    """What it prints of a file, or of a pipe."""
    done = subprocess.run(("tcpdump", *args), stdin=stdin, capture_output=True, text=True, check=True)
    return done.stdout


def taps(daemon: Daemon) -> int:
    """How many rings the daemon and its workers have open or mapped."""
    seen = 0
    for pid in (daemon.pid, *daemon.workers().values()):
        seen += Path(f"/proc/{pid}/maps").read_text().count("memfd:xskd-capture")
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                seen += "memfd:xskd-capture" in os.readlink(fd)
    return seen


def test_what_was_sent_is_what_was_captured_both_ways(wire: MakeWire, tmp_path: Path) -> None:
    net, file = wire(), tmp_path / "both.pcapng"
    there, back = net.frames(300, 900), net.frames(200, 61, first=5_000)
    with running(net, tmp_path) as daemon:
        before = time.time_ns()
        client = Client(daemon, "wire", output=file)
        assert net.taps[0].through(there, net.taps[1]) == there
        assert net.taps[1].through(back, net.taps[0]) == back
        assert client.end() == "500 packets captured, 0 copies lost (ring full), 0 filtered out"
    seen = read(file)
    assert [(i.name, i.digits) for i in seen.interfaces] == [("eth1", 9), ("eth2", 9)]
    assert [p.data for p in seen.packets if p.interface == "eth1"] == there
    assert [p.data for p in seen.packets if p.interface == "eth2"] == back
    assert {p.direction for p in seen.packets} == {"in"}
    times = [packet.time_ns for packet in seen.packets]
    assert times == sorted(times) and before < times[0] and times[-1] < time.time_ns()
    assert any(at % 1000 for at in times), "no nanoseconds"
    assert seen.received == {"eth1": 300, "eth2": 200} and seen.lost == {"eth1": 0, "eth2": 0}
    assert "ethertype Unknown (0x88b5), length 900" in tcpdump("-r", str(file), "--nano", "-c", "1")


def test_reflect_is_seen_as_it_comes_and_as_it_goes(wire: MakeWire, tmp_path: Path) -> None:
    net, file = wire(links=1), tmp_path / "echo.pcapng"
    sent = net.frames(10)
    with running(net, tmp_path, paths("echo: {reflect: eth1}", "eth1")) as daemon:
        client = Client(daemon, "echo/0", "--direction", "both", "--snaplen", "40", output=file)
        net.taps[0].send(sent)
        assert len(net.taps[0].receive(10)) == 10
        assert client.end().startswith("20 packets captured")
    seen = read(file).packets
    assert [p.data for p in seen if p.direction == "in"] == [packet[:40] for packet in sent]
    assert [p.data for p in seen if p.direction == "out"] == [net.swapped(packet)[:40] for packet in sent]
    assert {p.original for p in seen} == {64}


def test_a_filter_and_a_count_end_in_a_pipe_that_tcpdump_reads(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path) as daemon:
        client = Client(daemon, "wire", "--filter", "ether[17] = 7 or ether[17] = 9", "--count", "2")
        packets = net.frames(20)
        assert net.taps[0].through(packets, net.taps[1]) == packets
        assert client.process.stdout is not None
        shown = tcpdump("-r", "-", "-xx", stdin=client.process.stdout)
        assert shown.count("ethertype Unknown (0x88b5)") == 2
        assert "0x0010:  0007" in shown and "0x0010:  0009" in shown
        assert client.process.wait(10) == 0
        assert client.process.stderr is not None
        assert client.process.stderr.read().startswith("2 packets captured, 0 copies lost (ring full), ")


def test_starting_and_ending_captures_costs_no_packet_and_leaves_nothing(
    wire: MakeWire, tmp_path: Path
) -> None:
    net, file = wire(), tmp_path / "again.pcapng"
    with running(net, tmp_path) as daemon, Stream(net) as stream:
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            client = Client(daemon, "wire", "--direction", "both", output=file)
            assert stream.goes_on() and taps(daemon) > 0
            client.end(sign)
            assert net.eventually(lambda: taps(daemon) == 0), "the ring is still there"
            if sign != signal.SIGKILL:
                seen = read(file)
                assert len(seen.packets) > 0 and not sum(seen.lost.values())
        assert stream.goes_on()
    assert stream.whole, stream


def test_who_does_not_read_loses_copies_and_no_packet(wire: MakeWire, tmp_path: Path) -> None:
    net, fifo = wire(), tmp_path / "fifo"
    os.mkfifo(fifo)
    unread = os.open(fifo, os.O_RDWR)
    with running(net, tmp_path) as daemon:
        client = Client(daemon, "wire", output=fifo)
        link, sent = Lane(net), 0
        while sent < 20_000:  # 1,400 bytes each: more than a ring of 16 MiB
            packets = net.frames(512, 1400, first=sent)
            assert link.through(packets, net.taps[1]) == packets
            sent += len(packets)
        last = client.end()
        os.close(unread)
        assert client.status == 0
        counters = daemon.worker("wire/0")["ports"][0]["counters"]
    lost = int(last.split(" captured, ")[1].split(" ")[0].replace(",", ""))
    assert lost > 1_000 and counters["rx_packets"] == sent and not any(counters["drops"].values())


def test_a_worker_that_dies_is_followed_by_one_that_goes_on_capturing(wire: MakeWire, tmp_path: Path) -> None:
    net, file = wire(), tmp_path / "death.pcapng"
    with running(net, tmp_path) as daemon:
        client = Client(daemon, "wire", output=file)
        before, after = net.frames(50), net.frames(50, first=50)
        assert net.taps[0].through(before, net.taps[1]) == before
        old = daemon.workers()["wire/0"]
        os.kill(old, signal.SIGKILL)
        daemon.comes("wire/0", other_than=old)
        assert net.taps[0].through(after, net.taps[1]) == after
        client.end()
    assert [packet.data for packet in read(file).packets] == before + after


def test_the_end_of_the_daemon_ends_the_capture_and_the_file_is_whole(wire: MakeWire, tmp_path: Path) -> None:
    net, file = wire(), tmp_path / "end.pcapng"
    with running(net, tmp_path) as daemon:
        client = Client(daemon, "wire", output=file)
        packets = net.frames(5)
        assert net.taps[0].through(packets, net.taps[1]) == packets
        assert daemon.stop() == 0
        lines = client.end(None).splitlines()
    assert lines == [
        "5 packets captured, 0 copies lost (ring full), 0 filtered out",
        "xskd: the capture ended early: the daemon has ended or was restarted",
    ]
    assert client.status == 3
    assert [packet.data for packet in read(file).packets] == packets
    assert "Traceback" not in daemon.log


def test_a_reload_that_gives_a_worker_another_interface_ends_its_capture(
    wire: MakeWire, tmp_path: Path
) -> None:
    net, file = wire(links=3), tmp_path / "other.pcapng"
    with running(net, tmp_path) as daemon:
        client = Client(daemon, "wire", output=file)
        daemon.reload(paths("wire: {connect: [eth1, eth3]}", "eth1", "eth3"))
        assert "wire/0 has other interfaces or queues now" in client.end(None)
        assert net.eventually(lambda: taps(daemon) == 0), "the ring is still there"
        assert read(file).packets == []


def test_what_cannot_be_captured_is_refused_with_the_reason(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    with running(net, tmp_path) as daemon:

        def refused(*args: str) -> tuple[int, str]:
            done = xskd(net, "capture", *args, "--socket", str(daemon.socket))
            assert done.stdout == ""
            return done.returncode, done.stderr.strip()

        assert refused("wired") == (3, "xskd: no wired; did you mean wire?; there are wire, wire/0, wire/1")
        assert refused("wire/2")[1].startswith("xskd: no wire/2; did you mean wire/")
        status, text = refused("wire", "--filter", "tcp prot 80")
        assert status == 2 and "syntax error" in text
        status, text = refused("wire", "--filter", "ip6 protochain 6")
        assert status == 2 and "protochain" in text
        Client(daemon, "wire/1", output=tmp_path / "one.pcapng")
        taken = (3, "xskd: wire/1: a capture runs there already; end it first")
        assert refused("wire") == taken and refused("wire/1") == taken
        assert taps(daemon) > 0 and daemon.status()["ready"]


@contextmanager
def own_group(name: str = "xskd-test-capture") -> Iterator[str]:
    """Make a group of this machine and remove it."""
    subprocess.run(("groupadd", "--force", name), check=True)
    try:
        yield name
    finally:
        subprocess.run(("groupdel", name), check=True)


def test_members_of_the_group_may_capture_and_not_reload_and_others_nothing(wire: MakeWire) -> None:
    net = wire()
    # Not below pytest's own directory, which another run of it closes to everybody else.
    with TemporaryDirectory() as directory, own_group() as group:
        Path(directory).chmod(0o711)
        where = Path(directory) / "control.sock"
        text = connect(rest=f"control: {{socket: {where}, group: {group}}}")
        with running(net, Path(directory), text):

            def verb(groups: list[int], *args: str) -> subprocess.CompletedProcess[str]:
                # All is imported before: nobody may not be able to read this checkout.
                code = (
                    "import os, sys; from xskd import capture, cli, logs, show;"
                    "show.progress('').__enter__();"  # rich imports the rest when it is used
                    f"os.setgroups({groups}); os.setgid({NOBODY}); os.setuid({NOBODY});"
                    "sys.exit(cli.main(sys.argv[1:]))"
                )
                command = (sys.executable, "-c", code, *args, "--socket", str(where))
                return net.run(net.dut, *command, check=False)

            members = [where.stat().st_gid]
            assert verb([], "status").returncode == 3
            assert "control.group" in verb([], "capture", "wire", "--seconds", "1").stderr
            assert verb(members, "status", "--json").returncode == 0
            assert "only root and the daemon's own user" in verb(members, "reload").stderr
            brief = ("capture", "wire", "--seconds", "0.1", "-w", "/dev/null")
            assert "0 packets captured" in verb(members, *brief).stderr
            assert xskd(net, "reload", "--socket", str(where)).returncode == 0
