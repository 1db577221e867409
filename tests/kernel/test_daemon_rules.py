"""Rules of the real daemon: what they let through, what they count, and that nothing notices a reload."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from daemon import SMALL, Daemon, Lane, Stream, connect, kernel_side, paths, running, started, total, xskd
from frames import cut, udp

from lab import entered
from xskd.control import Refused

if TYPE_CHECKING:
    from conftest import MakeWire, Wire

RELOADS = 20
RATE = 5_000  # packets/s
OURS = "ether_type: 0x88b5"  # what a Stream sends


def ruled(rules: str, default: str = "redirect", *, options: str = "") -> str:
    """Make a configuration whose eth1 has rules, and eth2 none."""
    return (
        f"interfaces: {{eth1: {{rules: [{rules}], default: {default}, rings: {SMALL}}}, "
        f"eth2: {{rings: {SMALL}}}}}\npaths: {{wire: {{connect: [eth1, eth2]{options}}}}}\n"
    )


def rules_of(daemon: Daemon, name: str = "eth1") -> dict[str, dict[str, Any]]:
    (interface,) = (each for each in daemon.status()["interfaces"] if each["name"] == name)
    return {rule["name"]: rule for rule in interface["rules"]}


def matched(daemon: Daemon) -> dict[str, int]:
    return {name: rule["packets"] for name, rule in rules_of(daemon).items()}


def counted(daemon: Daemon, metric: str, **labels: str) -> float:
    return total(daemon.metrics(), metric, interface="eth1", **labels)


def seen_by_kernel(listening: socket.socket, sent: Sequence[bytes]) -> bool:
    """Whether the dut's kernel sees these, and nothing else of their kind."""
    return [listening.recv(2048) for _ in sent] == list(sent)


FILTER = (
    "{name: out, protocol: udp, destination_port: 1000, verdict: redirect}, "
    "{name: away, protocol: udp, destination_port: [2000-2010], verdict: drop}, "
    "{protocol: udp, destination_port: 3000, verdict: pass}"
)


@pytest.mark.moves("xskd_xdp_verdicts", verdict=("passed", "dropped"))
@pytest.mark.moves("xskd_xdp_verdict_bytes", verdict=("redirected", "passed", "dropped"))
@pytest.mark.moves("xskd_rule_packets")
@pytest.mark.moves("xskd_rule_bytes")
@pytest.mark.moves("xskd_unparsed_packets")
def test_each_verdict_does_what_it_says_and_is_counted(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    out, away, kept = (
        [udp(port, n) for n in range(count)] for port, count in ((1000, 30), (2005, 20), (3000, 10))
    )
    with running(net, tmp_path, ruled(FILTER, "drop")) as daemon, kernel_side(net, "eth1") as kernel:
        daemon.metrics()
        net.taps[0].send([*out, *away, *kept, udp(4000), cut(udp(1000), 30)])
        assert net.taps[1].receive(30) == out
        assert seen_by_kernel(kernel, kept)
        assert net.eventually(lambda: matched(daemon)["default"] == 2)
        assert net.taps[1].waiting() == []
        assert matched(daemon) == {"out": 30, "away": 20, "3": 10, "default": 2}
        told = rules_of(daemon)["away"]
        assert (told["match"], told["verdict"]) == ("protocol udp destination_port 2000-2010", "drop")
        assert (told["bytes"], told["limited"]) == (20 * 64, 0)
        assert counted(daemon, "xskd_rule_packets", rule="3") == 10
        assert counted(daemon, "xskd_rule_bytes", rule="out") == 30 * 64
        assert counted(daemon, "xskd_xdp_verdicts", verdict="dropped") == 22
        assert counted(daemon, "xskd_xdp_verdict_bytes", verdict="passed") == 10 * 64
        assert counted(daemon, "xskd_unparsed_packets") == 1
        assert counted(daemon, "xskd_rules") == 3
        assert total(daemon.metrics(), "xskd_rules", interface="eth2") == 0
        assert net.taps[1].through(away, net.taps[0]) == away  # eth2 has no rules


def test_a_host_behind_rules_can_be_reached_and_its_neighbour_as_well(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    for ns, dev, number in ((net.hosts[0], "eth0", 1), (net.hosts[1], "eth0", 2), (net.dut, "eth1", 100)):
        net.run(ns, "ip", "addr", "add", f"10.99.0.{number}/24", "dev", dev)
    own = "{name: own, destination: 10.99.0.100, verdict: pass}"
    with running(net, tmp_path, ruled(own)):
        # ARP says whom it asks for in no field that rules know: the dut's neighbour is told by hand.
        net.run(
            net.hosts[0],
            "ip",
            "neigh",
            "add",
            "10.99.0.100",
            "lladdr",
            net.mac_of(0, dut_side=True),
            "dev",
            "eth0",
        )
        net.run(net.dut, "ip", "neigh", "add", "10.99.0.1", "lladdr", net.mac_of(0), "dev", "eth1")
        for address in ("10.99.0.100", "10.99.0.2"):
            net.run(net.hosts[0], "ping", "-c", "3", "-i", "0.05", "-W", "2", address)


@pytest.mark.moves("xskd_rules")
def test_reloads_under_load_lose_nothing_and_the_counts_go_on(wire: MakeWire, tmp_path: Path) -> None:
    """Every set redirects the stream, by another rule at another place, and drops all else."""
    net = wire()
    ours, other = f"{{name: ours, {OURS}, verdict: redirect}}", "{name: other, protocol: udp, verdict: drop}"
    more = "{name: more, protocol: sctp, verdict: drop}"
    sets = [ruled(ours, "drop"), ruled(f"{other}, {ours}", "drop"), ruled(f"{other}, {more}")]
    with running(net, tmp_path, sets[0]) as daemon:
        before = daemon.workers()
        daemon.metrics()
        with Stream(net, rate=RATE) as stream:
            said = [daemon.reload(sets[number % 3]) for number in range(1, RELOADS + 1)]
            assert stream.goes_on()
        assert stream.whole, stream
        assert said[:3] == [
            ["eth1: 2 rules, default drop"],
            ["eth1: 2 rules, default redirect"],
            ["eth1: 1 rule, default drop"],
        ]
        assert daemon.workers() == before
        daemon.reload(sets[1])
        daemon.metrics()
        found = rules_of(daemon)
        default = found["default"]["packets"]  # of the third set
        assert found["ours"]["packets"] + default == stream.sent
        assert found["ours"]["packets"] > 0 < default


def test_from_no_rules_to_rules_and_back_no_packet_meets_neither(wire: MakeWire, tmp_path: Path) -> None:
    """The defaults say drop and redirect in turn: a mix of two sets would drop something."""
    net = wire()
    ours = ruled(f"{{name: ours, {OURS}, verdict: redirect}}", "drop")
    with running(net, tmp_path, connect()) as daemon, Stream(net, rate=RATE) as stream:
        for _ in range(RELOADS // 2):
            assert daemon.reload(ours) == ["eth1: 1 rule, default drop"]
            assert daemon.reload(connect()) == ["eth1: 0 rules, default redirect"]
        assert rules_of(daemon) == {}
    assert stream.whole, stream


MANY = ", ".join(
    f"10.{number >> 7}.{2 * number & 255}.0/24" for number in range(6_000)
)  # no two side by side
TOO_MANY = f"{{source: [{MANY}], verdict: drop}}"


def test_wrong_rules_change_nothing(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path, ruled(FILTER, "drop")) as daemon:
        before = daemon.workers(), rules_of(daemon)
        for wrong in (ruled("{protocol: upd, verdict: drop}"), ruled(TOO_MANY)):
            with pytest.raises(Refused) as refused:
                daemon.reload(wrong)
            assert refused.value.config and "interfaces.eth1.rules" in str(refused.value)
            checked = xskd(net, "check", str(daemon.file))
            assert checked.returncode == 2 and "interfaces.eth1.rules" in checked.stderr
        assert (daemon.workers(), rules_of(daemon)) == before
        sent = [udp(1000, number) for number in range(50)]
        net.taps[0].send([udp(2000)])
        assert net.taps[0].through(sent, net.taps[1]) == sent


def test_a_start_with_rules_that_cannot_be_compiled_is_refused(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with started(net, tmp_path, ruled(TOO_MANY)) as daemon:
        assert daemon.ended() == 2
        assert "interfaces.eth1.rules" in daemon.log


@pytest.mark.moves("xskd_xdp_verdicts", verdict=("rule_limited", "path_limited"))
@pytest.mark.moves("xskd_xdp_verdict_bytes", verdict=("rule_limited", "path_limited"))
@pytest.mark.moves("xskd_rule_limited_packets")
def test_what_is_over_a_limit_is_dropped_and_counted(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    limit = "limit: {packets_per_second: 200, burst: 50}"
    text = ruled(f"{{name: few, protocol: udp, verdict: redirect, {limit}}}", options=f", {limit}")
    with running(net, tmp_path, text) as daemon:
        daemon.metrics()
        net.taps[0].send([udp(1, number) for number in range(100)])
        assert net.eventually(lambda: matched(daemon)["few"] == 100)
        came = net.taps[1].receive(100, 0.5)
        assert 10 <= len(came) < 100  # what may come at once, and what time has added since
        limited = rules_of(daemon)["few"]["limited"]
        assert limited == 100 - len(came) == counted(daemon, "xskd_xdp_verdicts", verdict="rule_limited")
        assert limited == counted(daemon, "xskd_rule_limited_packets", rule="few")
        net.taps[0].send(net.frames(100))
        assert net.eventually(lambda: matched(daemon)["default"] == 100)
        came = net.taps[1].receive(100, 0.5)
        assert len(came) < 100
        assert counted(daemon, "xskd_xdp_verdicts", verdict="path_limited") == 100 - len(came)


def test_limits_are_shared_by_the_queues_there_are(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(queues=2)
    text = ruled(
        "{name: few, protocol: udp, verdict: redirect, limit: {packets_per_second: 100, burst: 1000}}"
    )
    with running(net, tmp_path, text) as daemon:
        lanes = Lane(net, 0), Lane(net, 1)
        for lane in lanes:
            lane.send([udp(1, number) for number in range(80)])
        assert net.eventually(lambda: matched(daemon)["few"] == 160)
        before = rules_of(daemon)["few"]["limited"]
        assert 0 < before <= 2 * (80 - 50)
        one = text.replace(f"rings: {SMALL}", f"queues: [0], rings: {SMALL}")
        assert daemon.reload(one) == ["eth1: limits shared by 1 queue", "wire/1: stop"]
        lanes[0].send([udp(1, number) for number in range(90)])
        assert net.eventually(lambda: matched(daemon)["few"] == 250)
        assert rules_of(daemon)["few"]["limited"] == before  # all of it is for one queue now


# ---- reflect --------------------------------------------------------------------------------------


@contextmanager
def ssh_server(net: Wire) -> Iterator[None]:
    """Answer on port 22 of the dut as its ssh would, IPv4 and IPv6."""
    with entered(net.dut):
        listening = socket.create_server(("::", 22), family=socket.AF_INET6, dualstack_ipv6=True)

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client:
                client.sendall(b"SSH-2.0-test\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def greeting(net: Wire, address: str) -> bytes:
    with entered(net.hosts[0]):
        client = socket.create_connection((address, 22), timeout=5)
    with client:
        return client.recv(100)


def test_reflect_leaves_the_host_its_arp_its_neighbours_and_its_ssh(wire: MakeWire, tmp_path: Path) -> None:
    net = wire(links=1)
    for ns, dev, number in ((net.hosts[0], "eth0", 1), (net.dut, "eth1", 100)):
        net.run(ns, "ip", "addr", "add", f"10.99.0.{number}/24", "dev", dev)
        net.run(ns, "ip", "addr", "add", f"fd00::{number}/64", "dev", dev, "nodad")
    text = paths("echo: {reflect: eth1}", "eth1")
    with running(net, tmp_path, text) as daemon, ssh_server(net):
        assert greeting(net, "10.99.0.100") == greeting(net, "fd00::100") == b"SSH-2.0-test\r\n"
        found = rules_of(daemon)
        assert all(found[name]["packets"] for name in ("arp", "neighbour-discovery", "ssh"))
        packet = net.frame(1)
        net.taps[0].send([packet])
        assert net.eventually(lambda: net.swapped(packet) in net.taps[0].waiting())
        assert daemon.reload(
            paths("echo: {reflect: eth1}", "eth1", interface=f"rules: [], rings: {SMALL}")
        ) == ["eth1: 0 rules, default redirect"]
        with pytest.raises(TimeoutError):
            greeting(net, "10.99.0.100")


# ---- told -----------------------------------------------------------------------------------------


def test_status_shows_rules_and_check_counts_them(wire: MakeWire, tmp_path: Path) -> None:
    net = wire()
    with running(net, tmp_path, ruled(FILTER, "drop")) as daemon:
        net.taps[0].send([udp(2000)] * 7)
        assert net.eventually(lambda: matched(daemon)["away"] == 7)
        shown = xskd(net, "status", "--rules", "--socket", str(daemon.socket)).stdout.splitlines()
        rows = [line.split() for line in shown]
        assert [row[:3] for row in rows[1:5]] == [
            ["eth1", "1", "out"],
            ["eth1", "2", "away"],
            ["eth1", "3", "3"],
            ["eth1", "-", "default"],
        ]
        assert "protocol udp destination_port 2000-2010 drop 0 7 0" in " ".join(rows[2])
        assert rows[5][:4] == ["eth2", "-", "default", "redirect"]
        told = json.loads(xskd(net, "status", "--json", "--socket", str(daemon.socket)).stdout)
        assert [rule["packets"] for rule in told["interfaces"][0]["rules"]] == [0, 7, 0, 0]
        assert "eth1: XDP program auto" in (said := xskd(net, "check", str(daemon.file)).stdout)
        assert "3 rules, default drop" in said
