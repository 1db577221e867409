"""The doctor against traps that were really set: it sees each, --fix mends it, its undo brings it back."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import Wire
from daemon import SMALL, connect, paths, running, xskd

from lab import Routers

if TYPE_CHECKING:
    from conftest import MakeWire

OBJECT = Path(__file__).parents[2] / "xskd" / "xdp_prog.o"
GENERIC = f"rings: {SMALL}, attach: generic"
Findings = dict[tuple[str, str], dict[str, Any]]


class Doctor:
    """Asks the doctor about one configuration, in the dut."""

    def __init__(self, net: Wire, directory: Path, text: str = "") -> None:
        self.net, self.file = net, directory / "doctor.yaml"
        self.file.write_text(f"{text or connect()}\ncontrol: {{socket: {directory}/control.sock}}\n")

    def ask(self, *options: str, prefix: Sequence[str] = ()) -> tuple[Findings, list[Any], int]:
        """Tell the findings by subject and check, what was mended, and the exit status."""
        command = (*prefix, sys.executable, "-m", "xskd", "doctor", "--json", str(self.file), *options)
        done = self.net.run(self.net.dut, *command, check=False)
        assert done.stderr == "", done.stderr
        said = json.loads(done.stdout)
        found = {(each["subject"], each["check"]): each for each in said["findings"]}
        assert len(found) == len(said["findings"])
        return found, said["fixes"], done.returncode

    def verdict(self, subject: str, check: str, **options: Any) -> str:
        return str(self.ask(**options)[0][subject, check]["verdict"])


def offloads(net: Wire) -> dict[str, str]:
    """All that ethtool tells of the interfaces and their other ends."""
    ends = [(net.dut, dev) for dev in net.dut_devs] + [(host, "eth0") for host in net.hosts]
    return {f"{ns} {dev}": net.run(ns, "ethtool", "-k", dev).stdout for ns, dev in ends}


def test_offloads_are_seen_mended_and_brought_back(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    net.run(net.hosts[0], "ethtool", "-K", "eth0", "tx", "on", "tso", "on")
    before = offloads(net)
    doctor = Doctor(net, tmp_path, connect(interface=GENERIC))
    traps = {("eth1", check) for check in ("checksums", "segmentation", "VLAN stripping", "GRO")}
    found, fixes, status = doctor.ask()
    assert {trap: found[trap]["verdict"] for trap in traps} == dict.fromkeys(traps, "WARN")
    assert found["eth2", "checksums"]["verdict"] == "OK"  # the topology has put it off
    assert (fixes, status) == ([], 0)
    assert offloads(net) == before

    mended, fixes, status = doctor.ask("--fix")
    assert all(fix["success"] for fix in fixes), fixes
    assert traps <= {(fix["subject"], fix["check"]) for fix in fixes}
    assert {trap: mended[trap]["verdict"] for trap in traps} == dict.fromkeys(traps, "OK")
    assert doctor.ask("--fix")[1] == []
    assert offloads(net) != before

    for fix in fixes:
        net.run(net.dut, *shlex.split(fix["undo"]))
    assert offloads(net) == before


def checksum_is_right(net: Wire) -> bool:
    """Send UDP from one host's kernel to the other's; is the checksum right that arrives on the wire?"""
    sent = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'doctor', ('10.99.0.2', 9))"
    net.run(net.hosts[0], sys.executable, "-c", f"import socket; {sent}")
    packets = (packet for packet in iter(lambda: net.taps[1].receive(1), []))
    (ip,) = next(packet for packet in packets if packet[0].endswith(b"doctor"))
    ip = ip[14:]
    words = ip[12:20] + bytes([0, 17]) + ip[24:26] + ip[20:]  # addresses, protocol, length, then UDP
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    return total % 0xFFFF == 0


def test_checksums_are_wrong_before_and_right_after(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    net.run(net.hosts[0], "ethtool", "-K", "eth0", "tx", "on")
    for host in range(2):
        net.run(net.hosts[host], "ip", "addr", "add", f"{net.ip_of(host)}/24", "dev", "eth0")
    lladdr = ("lladdr", net.mac_of(1), "dev", "eth0", "nud", "permanent")
    net.run(net.hosts[0], "ip", "neigh", "add", net.ip_of(1), *lladdr)
    with running(net, tmp_path):
        assert not checksum_is_right(net)
        Doctor(net, tmp_path).ask("--fix")
        assert checksum_is_right(net)


def test_the_other_end_of_a_veth_in_the_same_namespace(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    net.run(net.dut, *["ip", "link", "add", "near", "type", "veth", "peer", "name", "far"])
    doctor = Doctor(net, tmp_path, "interfaces: {near: {}}\npaths: {echo: {reflect: near}}")
    found = doctor.ask()[0]["near", "checksums"]
    assert (found["verdict"], found["mend"].split()[:3]) == ("WARN", ["ethtool", "-K", "far"])
    assert found["undo"] == found["mend"].replace(" off", " on")


def test_the_other_end_of_a_veth_in_a_namespace_without_a_name(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    inside = net.popen(net.dut, "unshare", "--net", "sleep", "60").pid
    namespace = Path(f"/proc/{inside}/ns/net")
    outside = [Path("/run/netns", net.dut).stat().st_ino, Path("/proc/self/ns/net").stat().st_ino]
    assert net.eventually(lambda: namespace.stat().st_ino not in outside)
    net.run(net.dut, *f"ip link add near type veth peer name far netns {inside}".split())
    doctor = Doctor(net, tmp_path, "interfaces: {near: {}}\npaths: {echo: {reflect: near}}")
    found = doctor.ask()[0]["near", "checksums"]
    assert (found["verdict"], found["undo"]) == ("WARN", "")
    assert "out of sight" in found["seen"]


LEFT = f"ip link set dev eth1 xdp obj {OBJECT} sec xdp.frags"
# Whom it is set for, the check that must see it, with which verdict, and the command that sets it in the dut.
TRAPS = [
    ("eth1", "MTU", "FAIL", "ip link set dev eth1 mtu 65535"),
    ("eth1", "link", "WARN", "ip link set dev eth1 down"),
    ("eth1", "default route", "FAIL", "ip route add default dev eth1"),
    ("path wire", "width", "FAIL", "ethtool -L eth2 rx 1 tx 1"),
    ("eth1", "queues", "FAIL", "ethtool -L eth1 tx 1"),
    ("eth1", "native XDP", "WARN", "ethtool -L eth1 rx 1"),
    ("eth1", "XDP program", "WARN", LEFT),
]


@pytest.mark.parametrize(
    ("subject", "check", "verdict", "trap"), TRAPS, ids=[f"{each[1]}-{each[2]}" for each in TRAPS]
)
def test_a_trap_is_seen_and_what_is_said_mends_it(
    wire: MakeWire, tmp_path: Path, *, subject: str, check: str, verdict: str, trap: str
) -> None:
    net = wire(queues=2)
    doctor = Doctor(net, tmp_path)
    assert doctor.verdict(subject, check) == "OK"
    net.run(net.dut, *trap.split())
    found, _, status = doctor.ask()
    assert found[subject, check]["verdict"] == verdict
    assert status == (4 if "FAIL" in {each["verdict"] for each in found.values()} else 0)
    verb, *words = found[subject, check]["mend"].split()
    if verb == "xskd":
        assert xskd(net, *words).returncode == 0
    elif verb in ("ip", "ethtool"):
        net.run(net.dut, verb, *words)
    else:  # a key to change
        return
    assert doctor.verdict(subject, check) == "OK"


ROUTE = paths("lan: {route: [eth1, eth2]}", "eth1", "eth2")
CHAIN = (
    "add table inet edge; add chain inet edge forward {{ type filter hook forward priority 0; policy {}; }}"
)
DROPS, ACCEPTS = CHAIN.format("drop"), CHAIN.format("accept")
# As TRAPS; those of a router.
ROUTER_TRAPS = [
    ("eth1", "forwarding", "FAIL", "sysctl -w net.ipv4.conf.eth1.forwarding=0"),
    ("eth2", "forwarding", "FAIL", "sysctl -w net.ipv6.conf.all.forwarding=0"),
    ("eth1", "rp_filter", "WARN", "sysctl -w net.ipv4.conf.eth1.rp_filter=1"),
    ("eth2", "rp_filter", "WARN", "sysctl -w net.ipv4.conf.all.rp_filter=1"),
    ("machine", "netfilter", "WARN", f"nft {DROPS}"),
    ("machine", "netfilter", "WARN", f"nft {ACCEPTS}; add rule inet edge forward tcp dport 25 drop"),
]


@pytest.mark.parametrize(("subject", "check", "verdict", "trap"), ROUTER_TRAPS)
def test_a_trap_of_a_router_is_seen_and_what_is_said_mends_it(
    wire: MakeWire, tmp_path: Path, *, subject: str, check: str, verdict: str, trap: str
) -> None:
    net = wire()
    Routers(net)
    doctor = Doctor(net, tmp_path, ROUTE)
    assert doctor.verdict(subject, check) == "OK"
    tool, rest = trap.split(" ", 1)
    net.run(net.dut, *((tool, rest) if tool == "nft" else trap.split()))
    found, _, status = doctor.ask()
    assert found[subject, check]["verdict"] == verdict, found[subject, check]
    assert status == (4 if verdict == "FAIL" else 0)
    if tool == "nft":
        assert "inet edge forward" in found[subject, check]["seen"]
        net.run(net.dut, "nft", "flush", "ruleset")
    elif check == "forwarding":
        net.run(net.dut, *shlex.split(found[subject, check]["mend"]))
    else:
        net.run(net.dut, *trap.replace("=1", "=0").split())
    assert doctor.verdict(subject, check) == "OK"


def test_chains_that_let_all_pass_are_no_finding(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    net.run(
        net.dut,
        "nft",
        f"{ACCEPTS}; add chain inet edge input {{ type filter hook input priority 0; policy drop; }}",
    )
    assert Doctor(net, tmp_path, ROUTE).verdict("machine", "netfilter") == "OK"


def test_a_family_without_addresses_need_not_be_forwarded(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    roads = Routers(net)
    roads.forwarding(on=False)
    roads.sysctl(net.dut, "net.ipv4.ip_forward=1")
    doctor = Doctor(net, tmp_path, ROUTE)
    assert doctor.verdict("eth1", "forwarding") == "FAIL"
    for dev in net.dut_devs:
        roads.ip(net.dut, 6, "addr", "flush", "dev", dev, "scope", "global")
    found = doctor.ask()[0]["eth1", "forwarding"]
    assert (found["verdict"], found["seen"]) == ("OK", "on for IPv4")


@pytest.mark.parametrize(
    ("express", "rules"),
    [("auto", ""), ("rules", "default: express"), ("rules", "rules: [{verdict: express}]")],
)
def test_an_egress_that_takes_no_redirected_packets(
    wire: MakeWire, tmp_path: Path, express: str, rules: str
) -> None:
    net = wire()
    interfaces = f"interfaces: {{eth1: {{{rules}}}, eth2: {{}}}}"
    doctor = Doctor(
        net, tmp_path, f"{interfaces}\npaths: {{wire: {{connect: [eth1, eth2], express: {express}}}}}"
    )
    assert doctor.verdict("eth2", "express") == "OK"
    net.run(net.hosts[1], "ethtool", "-K", "eth0", "gro", "off")
    assert doctor.verdict("eth2", "express") == "WARN"
    found, fixes, _ = doctor.ask("--fix")
    assert found["eth2", "express"]["verdict"] == "OK"
    assert [fix["check"] for fix in fixes if fix["check"] == "express"] == ["express"]


def test_without_express_nothing_has_to_take_redirected_packets(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    assert ("eth1", "express") not in Doctor(net, tmp_path, connect()).ask()[0]
    off = connect(", express: off", interface="default: express")
    assert ("eth1", "express") not in Doctor(net, tmp_path, off).ask()[0]


def test_an_interface_that_is_missing_and_one_without_carrier(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    net.link(net.hosts[1], "eth0", "down")
    net.link(net.dut, "eth1", "down")
    net.link(net.dut, "eth1", "name", "gone")
    found, _, status = Doctor(net, tmp_path).ask()
    assert [check for subject, check in found if subject == "eth1"] == ["link"]
    assert (found["eth1", "link"]["verdict"], status) == ("FAIL", 4)
    assert (found["eth2", "link"]["verdict"], found["eth2", "link"]["seen"]) == ("WARN", "up, no carrier")


def test_a_foreign_program_is_seen_and_not_touched(
    wire: MakeWire, tmp_path: Path, foreign_program: Path
) -> None:
    net = wire()
    net.link(net.dut, "eth1", "xdpgeneric", "obj", str(foreign_program), "sec", "xdp")
    doctor = Doctor(net, tmp_path)
    found, _, status = doctor.ask("--fix")
    assert (found["eth1", "XDP program"]["verdict"], status) == ("FAIL", 4)
    assert "(stranger), generic" in found["eth1", "XDP program"]["seen"]
    assert "xdpgeneric" in net.run(net.dut, "ip", "link", "show", "eth1").stdout
    net.run(net.dut, *shlex.split(found["eth1", "XDP program"]["mend"]))
    assert doctor.verdict("eth1", "XDP program") == "OK"


def test_a_running_xskd_is_no_finding_and_not_disturbed(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    doctor = Doctor(net, tmp_path)
    with running(net, tmp_path) as daemon:
        workers = daemon.workers()
        found, _, status = doctor.ask("--fix")
        assert (found["eth1", "XDP program"]["seen"], status) == ("xskd's own, which runs", 0)
        sent = net.frames(100)
        assert net.taps[0].through(sent, net.taps[1]) == sent
        assert daemon.workers() == workers


def test_rights_that_are_missing(wire: MakeWire, tmp_path: Path) -> None:
    doctor = Doctor(wire(), tmp_path)
    without = ("setpriv", "--bounding-set=-bpf,-sys_admin,-ipc_lock", "--inh-caps=-all")
    found, _, status = doctor.ask(prefix=("prlimit", "--memlock=65536:65536", *without))
    assert status == 4
    assert found["machine", "capabilities"]["seen"] == "this process lacks CAP_BPF"
    assert re.match(r"0 MiB may be pinned, packet memory takes \d+ MiB", found["machine", "memlock"]["seen"])
    assert {found["machine", check]["verdict"] for check in ("capabilities", "memlock")} == {"FAIL"}
    assert found["machine", "AF_XDP"]["verdict"] == "OK"
    assert doctor.verdict("machine", "memlock") == "OK"


def test_a_stranger_without_rights_gets_answers_and_no_traceback(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    asked = """
import os, sys
from pathlib import Path
from xskd import config, doctor, examine
wanted = config.load(Path(sys.argv[1]))
os.setgid(65534)
os.setuid(65534)
found = doctor.diagnose(examine.examine(wanted))
print(*(each.check for each in found if each.verdict == "FAIL"), sep=",")
"""
    doctor = Doctor(net, tmp_path)
    done = net.run(net.dut, sys.executable, "-c", asked, str(doctor.file))
    assert done.stdout.strip() == "AF_XDP,capabilities,memlock"


def test_without_a_configuration_interfaces_are_looked_at_with_the_defaults(wire: MakeWire) -> None:
    net = wire()
    net.run(net.dut, *["ip", "route", "add", "default", "dev", "eth1"])
    asked = "from xskd import examine; wanted, left = examine.defaults(); print(*wanted.interfaces, *left)"
    assert net.run(net.dut, sys.executable, "-c", asked).stdout.split() == ["eth2", "eth1"]
