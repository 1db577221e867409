"""A program outlives its process: the next one goes on with it and no packet notices, or removes a leftover.

The `newer` program counts every packet twice, so that the counters tell which one a packet has met.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_xdp_program import attached, program_exists
from xskd._libbpf import lib

from lab import entered
from xskd import loading
from xskd.errors import XdpError
from xskd.xdp import OBJECT, Attach, Program, Verdicts, cleanup, program_of

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

ROOT = Path(__file__).parents[2]
# The daemon's rights (no CAP_SYS_ADMIN, so nothing by id) for a root who may still read pytest's directory.
FEW_RIGHTS = "-all,+net_admin,+bpf,+perfmon,+net_raw,+dac_override"
SETPRIV = ("setpriv", f"--bounding-set={FEW_RIGHTS}", f"--inh-caps={FEW_RIGHTS}")
# Attaches, hands its descriptors over, and waits to be killed.
PREDECESSOR = """
import socket, sys, time
from xskd.xdp import Program
program = Program(2, fallback="drop")
program.attach("eth1", sys.argv[2])
with socket.socket(socket.AF_UNIX) as link:
    link.connect(sys.argv[1])
    held = program.descriptors()
    socket.send_fds(link, [" ".join(held).encode()], list(held.values()))
    time.sleep(60)
"""
SUCCESSOR = """
import os, socket, sys
from pathlib import Path
from xskd.xdp import Program
program = Program(1)
program.attach("eth1")
index, before = socket.if_nametoindex("eth1"), program.id
held = {name: os.dup(descriptor) for name, descriptor in program.descriptors().items()}
program.close()
adopted = Program.adopt("eth1", 1, held, ifindex=index, path=Path(sys.argv[1]))
print(adopted.attach_mode, adopted.replaced, adopted.id != before)
"""


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clang = shutil.which("clang-14") or shutil.which("clang")
    if clang is None or shutil.which("gcc") is None:
        pytest.skip("needs clang and gcc: compiles a newer XDP program")
    made = tmp_path_factory.mktemp("newer")
    shutil.copytree(ROOT / "bpf", made, dirs_exist_ok=True)
    source = (made / "maps.h").read_text()
    assert source.count("tally->packets++") == 1
    (made / "maps.h").write_text(source.replace("tally->packets++", "tally->packets += 2"))
    machine = subprocess.run(("gcc", "-print-multiarch"), capture_output=True, text=True, check=True).stdout
    include = (f"-I/usr/include/{machine.strip()}",)
    flags = ("-O2", "-g", "-target", "bpf", "-mcpu=v2", *include)
    done = subprocess.run(
        (clang, *flags, "-c", "xdp_prog.bpf.c", "-o", "xdp_prog.o"),
        cwd=made,
        capture_output=True,
        text=True,
        check=False,
    )
    if "file not found" in done.stderr:
        pytest.skip(f"needs the headers of libbpf and the kernel: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return made / "xdp_prog.o"


def ifindex(net: Wire, dev: str = "eth1") -> int:
    with entered(net.dut):
        return socket.if_nametoindex(dev)


def kept(program: Program) -> dict[str, int]:
    """Duplicates, as a store has them."""
    return {name: os.dup(descriptor) for name, descriptor in program.descriptors().items()}


def adopt(net: Wire, descriptors: dict[str, int], *, queues: int = 1, path: Path = OBJECT) -> Program:
    with entered(net.dut):
        made = Program.adopt("eth1", queues, descriptors, ifindex=ifindex(net), path=path)
    net._stack.callback(made.close)
    return made


def leave_behind(net: Wire, mode: str) -> int:
    """Attach our program as nobody holds it; its id."""
    net.link(net.dut, "eth1", mode, "obj", str(OBJECT), "sec", "xdp.frags")
    number, _ = attached(net)
    assert number
    return number


def closed(descriptors: dict[str, int]) -> bool:
    return not any(os.path.exists(f"/proc/self/fd/{descriptor}") for descriptor in descriptors.values())


# ---- adoption --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_successor_goes_on_where_a_killed_process_was(wire: MakeWire, tmp_path: Path, mode: Attach) -> None:
    net = wire(links=1)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        door.listen()
        child = net.python("-c", PREDECESSOR, str(tmp_path / "door"), mode)
        with door.accept()[0] as link:
            names, descriptors, _, _ = socket.recv_fds(link, 200, 16)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = attached(net)
    assert before[1] == mode
    net.taps[0].send(net.frames(3))
    program = adopt(net, dict(zip(names.decode().split(), descriptors, strict=True)), queues=2)
    assert (program.attach_mode, program.replaced, program.id) == (mode, False, before[0])
    assert attached(net) == before
    assert program.verdicts() == Verdicts(no_socket_dropped=3)  # it counts on, and "drop" is still the answer
    xsk = net.open()
    program.insert(0, xsk)
    net.taps[0].send(net.frames(2))
    assert len(xsk.receive()) == 2
    program.close()
    assert attached(net) == (0, None)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_an_upgrade_under_traffic_loses_nothing(wire: MakeWire, newer: Path, mode: Attach) -> None:
    net = wire(links=1)
    forwarder = net.forward("reflect", attach=mode)
    programs, numbers = [net.programs["eth1"]], []
    ended, errors = threading.Event(), []

    def upgrade() -> None:
        try:
            while not ended.is_set():
                path = OBJECT if len(programs) % 2 == 0 else newer
                programs.append(adopt(net, kept(programs[-1]), path=path))
                programs[-2].close()
                assert programs[-1].replaced
                numbers.append(programs[-1].id)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=upgrade)
    with net.running(forwarder):
        thread.start()
        try:
            sent, deadline = 0, time.monotonic() + 60
            while (sent < 20_000 or len(numbers) < 5) and time.monotonic() < deadline and not errors:
                packets = net.frames(100, first=sent)
                sent += len(packets)
                assert net.taps[0].through(packets, net.taps[0]) == [net.swapped(each) for each in packets]
        finally:
            ended.set()
            thread.join()
    assert errors == []
    assert len(set(numbers)) == len(numbers) >= 5
    assert attached(net) == (numbers[-1], mode)
    verdicts = programs[-1].verdicts()
    assert sent < verdicts.redirected < 2 * sent  # each has met one of the two, and both were met
    assert verdicts.no_socket_passed == verdicts.no_socket_dropped == 0
    assert net.eventually(lambda: not any(map(program_exists, numbers[:-1])))


def test_a_program_of_this_version_is_kept_and_a_newer_one_takes_its_place(
    wire: MakeWire, newer: Path
) -> None:
    net = wire(links=1)
    first = net.attach("eth1", fallback="drop")
    same = adopt(net, kept(first))
    assert (same.replaced, same.id) == (False, first.id)
    other = adopt(net, kept(first), path=newer)
    assert other.replaced
    assert first.id == same.id == other.id == attached(net)[0]  # one link, whoever holds it
    net.taps[0].send(net.frames(2))
    assert first.verdicts() == other.verdicts() == Verdicts(no_socket_dropped=4)
    for program in (first, same):
        program.close()
        assert attached(net)[0] == other.id
    other.close()
    assert attached(net) == (0, None)


def test_the_daemons_rights_are_enough_to_adopt_and_to_replace(wire: MakeWire, newer: Path) -> None:
    net = wire(links=1)
    for path, replaced in ((OBJECT, False), (newer, True)):
        child = net.python("-c", SUCCESSOR, str(path), prefix=SETPRIV)
        said, errors = child.communicate(timeout=20)
        assert said == f"native {replaced} {replaced}\n", errors


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("missing", "descriptors link and xsks are needed, not link, settings"),
        ("other device", r"adopt\(eth1\): the link is that of interface \d+, not of \d+"),
        ("gone device", r"the link is that of an interface that is gone, not of \d+"),
        ("other namespace", r"program \d+ is not attached to it in this network namespace"),
        ("too many queues", r"map xsks has 1 entries, 2 are needed"),
        ("map as link", r"descriptor \d+ is no bpf_link of an XDP program"),
        ("link as map", "descriptor xsks is not that map of the program"),
        ("swapped", "descriptor xsks is not that map of the program"),
        ("file", "descriptor xsks is not that map of the program"),
        ("closed", r"open: ENOENT .*: /proc/self/fdinfo/\d+; is /proc mounted"),
        ("no object", r"open: ENOENT .*missing.o"),
    ],
)
def test_what_does_not_fit_is_refused_and_closed(wire: MakeWire, wrong: str, said: str) -> None:
    net = wire()
    held = kept(net.attach("eth2" if wrong == "other device" else "eth1"))
    index, queues, path = ifindex(net), 2 if wrong == "too many queues" else 1, OBJECT
    where = net.hosts[0] if wrong == "other namespace" else net.dut
    owned = dict(held)
    match wrong:
        case "missing":
            del held["xsks"]
            os.close(owned.pop("xsks"))
        case "gone device":
            net.run(net.dut, "ip", "link", "del", "eth1")
        case "map as link":  # an XDP link and a per-CPU array have the same number among their kinds
            held["link"], held["verdicts"] = held["verdicts"], held["link"]
        case "link as map":
            os.dup2(held["link"], held["xsks"])
        case "swapped":
            held["xsks"], held["settings"] = held["settings"], held["xsks"]
        case "file":
            with open(os.devnull) as null:
                os.dup2(null.fileno(), held["xsks"])
        case "closed":
            os.close(held["settings"])
            held["settings"] = 10_000  # a number that nobody gets meanwhile
        case "no object":
            path = Path("/nowhere/missing.o")
    with entered(where), pytest.raises(XdpError, match=said):
        Program.adopt("eth1", queues, held, ifindex=index, path=path)
    assert closed(owned)


def test_fifty_adoptions_leave_no_program_and_no_descriptor(wire: MakeWire, newer: Path) -> None:
    net = wire(links=1)
    program = adopt(net, kept(first := net.attach()))
    first.close()
    descriptors, seen = len(os.listdir("/proc/self/fd")), {program.id}
    for turn in range(50):
        successor = adopt(net, kept(program), path=(OBJECT, OBJECT, newer)[turn % 3])
        program.close()
        program = successor
        seen.add(program.id)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(seen) > 30
    program.close()
    assert net.eventually(lambda: not any(map(program_exists, seen)))


def test_the_id_is_that_of_the_attached_program_and_a_link_tells_it(wire: MakeWire) -> None:
    net = wire(links=1)
    program = net.load()
    for ask in (lambda: program.id, program.descriptors):
        with pytest.raises(XdpError, match="this program is not attached"):
            ask()
    with entered(net.dut):
        program.attach("eth1")
        with pytest.raises(XdpError, match=r"attach\(eth1\): this program is attached already"):
            program.attach("eth1")
    held = program.descriptors()
    assert program.id == attached(net)[0]
    assert program_of(held["link"]) == (program.id, ifindex(net))
    other = lib.bpf_prog_get_fd_by_id(program.id)
    with open(os.devnull) as null:
        for descriptor in (held["verdicts"], held["xsks"], other, null.fileno()):
            with pytest.raises(XdpError, match=f"descriptor {descriptor} is no bpf_link of an XDP program"):
                program_of(descriptor)
    os.close(other)
    net.run(net.dut, "ip", "link", "del", "eth1")
    assert program_of(held["link"]) == (program.id, 0)


# ---- leftovers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "generic", "auto"])
@pytest.mark.parametrize("left", ["xdpdrv", "xdpgeneric"])
def test_our_own_leftover_makes_room(wire: MakeWire, left: str, mode: Attach) -> None:
    net = wire(links=1)
    number = leave_behind(net, left)
    program = net.attach("eth1", mode)
    became = "generic" if mode == "generic" else "native"
    assert (program.took_over, program.attach_mode, program.native_refused) == (number, became, None)
    assert attached(net) == (program.id, became)
    assert program.id != number
    assert net.eventually(lambda: not program_exists(number))
    program.close()
    assert attached(net) == (0, None)
    assert net.attach().took_over is None


@pytest.mark.parametrize("left", ["xdpdrv", "xdpgeneric"])
def test_cleanup_removes_our_leftover_and_says_which(wire: MakeWire, left: str) -> None:
    net = wire(links=1)
    number = leave_behind(net, left)
    with entered(net.dut):
        assert cleanup("eth1") == number
        assert attached(net) == (0, None)
        assert cleanup("eth1", ifindex=ifindex(net)) is None
        with pytest.raises(XdpError, match=r"if_nametoindex\(eth7\): no such interface"):
            cleanup("eth7")


@pytest.mark.parametrize("foreign", ["xdpdrv", "xdpgeneric"])
def test_cleanup_leaves_a_foreign_program(wire: MakeWire, foreign_program: Path, foreign: str) -> None:
    net = wire(links=1)
    net.link(net.dut, "eth1", foreign, "obj", str(foreign_program), "sec", "xdp")
    before = attached(net)
    with entered(net.dut), pytest.raises(XdpError) as raised:
        cleanup("eth1")
    assert str(raised.value) == (
        "bpf_xdp_detach(eth1): EBUSY (Device or resource busy): XDP program"
        f" {before[0]} (stranger) is attached and is not ours to replace:"
        f" `bpftool prog show id {before[0]}` says more"
    )
    assert attached(net) == before


def test_only_the_program_that_was_looked_at_is_detached(wire: MakeWire, foreign_program: Path) -> None:
    """Between the look and the deed another may have come."""
    net = wire(links=1)
    net.link(net.dut, "eth1", "xdpdrv", "obj", str(foreign_program), "sec", "xdp")
    before = attached(net)
    expected = loading.program_in(net.load()._object)
    for program in (expected, 0):  # libbpf takes a descriptor 0 for "whichever"
        with entered(net.dut):
            assert lib.xskd_detach(ifindex(net), lib.XDP_FLAGS_DRV_MODE, program) == -errno.EEXIST
        assert attached(net) == before


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_cleanup_leaves_a_program_that_somebody_holds(wire: MakeWire, mode: Attach) -> None:
    net = wire(links=1)
    program = net.attach("eth1", mode)
    held = kept(program)
    program.close()  # a descriptor in a store is a holder
    before = attached(net)
    with entered(net.dut), pytest.raises(XdpError) as raised:
        cleanup("eth1")
    assert f"XDP program {before[0]} (xskd) is attached" in str(raised.value)
    assert "another xskd has it, or a pin in /sys/fs/bpf; `sudo bpftool link show`" in str(raised.value)
    assert attached(net) == before
    adopt(net, held).close()
    with entered(net.dut):
        assert cleanup("eth1") is None


@pytest.mark.parametrize("what", ["attach", "cleanup"])
def test_without_the_right_to_see_whose_it_is_nothing_is_removed(wire: MakeWire, what: str) -> None:
    net = wire(links=1)
    number = leave_behind(net, "xdpdrv")
    code = {"attach": "xdp.Program(1).attach('eth1')", "cleanup": "xdp.cleanup('eth1')"}[what]
    child = net.python("-c", f"from xskd import xdp; {code}", prefix=SETPRIV)
    assert f"XDP program {number} is attached and is not ours to replace: only CAP_SYS_ADMIN" in (
        errors := child.communicate(timeout=20)[1]
    )
    assert "if it is xskd's leftover: `sudo xskd cleanup eth1`" in errors
    assert attached(net)[0] == number
