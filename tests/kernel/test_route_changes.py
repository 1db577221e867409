"""What `ip` says in the router's namespace holds from the next packet on, and nobody tells xskd.

Three links: what goes to the anycast addresses arrives at the second or the third host, which tells the way.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Wire
from daemon import Daemon
from routed import (
    BOTH,
    BY,
    XSKD,
    By,
    Datagrams,
    answered,
    forwarded,
    ping,
    routers,
    routing,
    unroutable,
    until,
)

from lab import Routers
from lab.routers import ANYCAST, ANYCAST_PREFIX, Family

if TYPE_CHECKING:
    from conftest import MakeWire

PORT = 5000


class Ways:
    """The first host sends to the anycast address, the second and third receive."""

    def __init__(self, net: Wire, family: Family, port: int = PORT) -> None:
        self.net, self.family, self.port = net, family, port
        self.sender = Datagrams(net, 0, family, Routers.address(0, family))
        self.receivers = {host: Datagrams(net, host, family, ANYCAST[family], port) for host in (1, 2)}
        self._number = itertools.count()

    def __enter__(self) -> Ways:
        return self

    def __exit__(self, *exc: object) -> None:
        for each in (self.sender, *self.receivers.values()):
            each.__exit__()

    def send(self) -> bytes:
        payload = b"to the anycast address %d" % next(self._number)
        self.sender.send(payload, ANYCAST[self.family], self.port)
        return payload

    def leads_to(self, host: int) -> bool:
        """Does the very next packet arrive at this host, and at no other?"""
        payload = self.send()
        got = self.receivers[host].receive()
        return got == [payload] and not self.receivers[3 - host].waiting()

    def leads_nowhere(self) -> bool:
        self.send()
        return not any(receiver.waiting() for receiver in self.receivers.values())


@pytest.fixture
def net(wire: MakeWire) -> Wire:
    return wire(links=3)


@pytest.fixture
def roads(net: Wire) -> Routers:
    made = routers(net)
    made.anycast(1, 2)
    made.lead(1)
    return made


@contextmanager
def ways(net: Wire, directory: Path, by: By, family: Family) -> Iterator[tuple[Ways, Daemon | None]]:
    with routing(net, directory, by) as daemon, Ways(net, family) as made:
        yield made, daemon


@BY
@BOTH
def test_a_route_that_changes_acts_on_the_next_packet(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    with ways(net, tmp_path, by, family) as (made, _):
        for _ in range(5):
            assert made.leads_to(1)
            roads.route(family, "replace", ANYCAST_PREFIX[family], *roads.via([2], family))
            assert made.leads_to(2)
            roads.route(family, "replace", ANYCAST_PREFIX[family], *roads.via([1], family))


@BY
@BOTH
def test_a_longer_prefix_wins_as_soon_as_it_is_there(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    with ways(net, tmp_path, by, family) as (made, _):
        assert made.leads_to(1)
        longer = f"{ANYCAST[family]}/{32 if family == 4 else 128}"
        roads.route(family, "add", longer, *roads.via([2], family))
        assert made.leads_to(2)
        roads.route(family, "del", longer)
        assert made.leads_to(1)


SAID: dict[tuple[str, Family], str] = {
    ("unreachable", 4): "Destination Host Unreachable",
    ("unreachable", 6): "Destination unreachable: No route",
    ("prohibit", 4): "Packet filtered",
    ("prohibit", 6): "Destination unreachable: Administratively prohibited",
}
KINDS = {"unreachable": "unreachable", "prohibit": "prohibited"}


@pytest.mark.parametrize("kind", ["unreachable", "prohibit"])
@BY
@BOTH
@pytest.mark.moves("xskd_unroutable_packets", reason=("unreachable", "prohibited", "blackhole"))
def test_a_route_that_refuses_is_answered_for_by_the_kernel(
    net: Wire, roads: Routers, tmp_path: Path, *, by: By, family: Family, kind: str
) -> None:
    prefix = ANYCAST_PREFIX[family]
    with ways(net, tmp_path, by, family) as (made, daemon):
        assert made.leads_to(1)
        for refusal in KINDS if daemon else [kind]:
            before = unroutable(daemon, KINDS[refusal]) if daemon else 0
            roads.route(family, "del", prefix)
            roads.route(family, "add", refusal, prefix)
            said = ping(net, ANYCAST[family], "-c", "2", "-i", "0.1")
            assert f"From {roads.gateway(0, family)} " in said
            assert SAID[refusal, family] in said
            if daemon:
                assert unroutable(daemon, KINDS[refusal]) == before + 2
        roads.route(family, "del", prefix)
        roads.route(family, "add", "blackhole", prefix)
        assert made.leads_nowhere()
        if daemon:
            assert unroutable(daemon, "blackhole") == 1
        roads.route(family, "del", prefix)
        roads.lead(1)
        assert made.leads_to(1)


@BY
@BOTH
def test_a_neighbours_new_mac_acts_on_the_next_packet(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    address = roads.address(1, family)
    with ways(net, tmp_path, by, family) as (made, _):
        assert made.leads_to(1)
        for last in range(5):
            mac = f"02:aa:00:00:00:{last:02x}"
            change = ("neigh", "replace", address, "lladdr", mac, "dev", "eth2", "nud", "permanent")
            roads.ip(net.dut, family, *change)
            net.taps[1].waiting()
            payload = made.send()
            (seen,) = until(net, 1, payload)
            assert seen[:12].hex(":") == f"{mac}:{net.mac_of(1, dut_side=True)}"


@BY
@BOTH
def test_rules_of_policy_routing_are_asked_by_source_and_port(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    extra = "10.99.1.3" if family == 4 else "fd99:1::3"
    length, more = ("24", ()) if family == 4 else ("64", ("nodad",))
    net.run(net.hosts[0], "ip", "addr", "add", f"{extra}/{length}", "dev", "eth0", *more)
    roads.route(family, "add", ANYCAST_PREFIX[family], *roads.via([2], family), "table", "100")
    with ways(net, tmp_path, by, family) as (made, _), Ways(net, family, PORT + 1) as other:
        for rule in (["ipproto", "udp", "dport", str(PORT)], ["iif", "eth1", "to", ANYCAST[family]]):
            assert made.leads_to(1)
            roads.ip(net.dut, family, "rule", "add", *rule, "table", "100")
            assert made.leads_to(2)
            assert other.leads_to(1 if "dport" in rule else 2)
            roads.ip(net.dut, family, "rule", "del", *rule, "table", "100")
        roads.ip(net.dut, family, "rule", "add", "from", extra, "table", "100")
        assert made.leads_to(1)
        made.sender = Datagrams(net, 0, family, extra)
        assert made.leads_to(2)


FLOWS, EACH = 200, 3


@BY
@BOTH
def test_several_next_hops_share_the_flows_and_a_flow_keeps_its_way(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    roads.sysctl(net.dut, "net.ipv4.fib_multipath_hash_policy=1", "net.ipv6.fib_multipath_hash_policy=1")
    roads.lead(1, 2)
    with ways(net, tmp_path, by, family) as (made, _):
        flows = [Datagrams(net, 0, family) for _ in range(FLOWS)]
        got: dict[int, list[bytes]] = {host: [] for host in made.receivers}
        for _ in range(EACH):
            for number, flow in enumerate(flows):
                flow.send(b"%d" % number, ANYCAST[family], PORT)
            for host, receiver in made.receivers.items():
                got[host] += receiver.waiting()
        for flow in flows:
            flow.__exit__()
    assert len(got[1]) + len(got[2]) == FLOWS * EACH
    assert not set(got[1]) & set(got[2]), "a flow took both ways"
    # 200 throws of a coin: a share below a quarter has a chance of less than 1 in 10 ** 12.
    assert min(len(got[1]), len(got[2])) > FLOWS * EACH / 4


@BY
@BOTH
@pytest.mark.moves("xskd_unroutable_packets", reason="no_neighbour")
def test_first_packets_wait_for_the_neighbour_and_none_is_lost(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    with ways(net, tmp_path, by, family) as (made, daemon):
        assert made.leads_to(1)
        for _ in range(3):
            roads.ip(net.dut, family, "neigh", "flush", "dev", "eth2")
            before = unroutable(daemon, "no_neighbour") if daemon else 0
            sent = [made.send() for _ in range(20)]
            assert sorted(made.receivers[1].receive(20)) == sorted(sent)
            if daemon:
                settled, went = unroutable(daemon, "no_neighbour"), forwarded(daemon)
                assert 1 <= settled - before <= 20
                sent = [made.send() for _ in range(50)]
                assert made.receivers[1].receive(50) == sent
                assert unroutable(daemon, "no_neighbour") == settled
                assert forwarded(daemon) - went >= 50


@BY
@BOTH
def test_a_next_hop_that_does_not_answer_is_told_by_icmp(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    nobody = "10.99.2.77" if family == 4 else "fd99:2::77"
    with ways(net, tmp_path, by, family) as (made, daemon):
        assert made.leads_to(1)
        roads.route(family, "replace", ANYCAST_PREFIX[family], "via", nobody)
        said = ping(net, ANYCAST[family], "-W", "10")
        expected = "Destination Host Unreachable" if family == 4 else "Address unreachable"
        assert f"From {roads.gateway(0, family)} " in said
        assert expected in said
        if daemon:
            assert unroutable(daemon, "no_neighbour") >= 1


@BY
@BOTH
def test_a_next_hop_that_dies_while_packets_flow_is_noticed(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    """The kernel asks a neighbour again because it sends there; for what xskd sends it has to be told to."""
    for setting in ("base_reachable_time_ms=2000", "delay_first_probe_time=1", "retrans_time_ms=100"):
        roads.sysctl(net.dut, f"net.ipv{family}.neigh.eth2.{setting}")
    roads.ip(net.dut, family, "neigh", "flush", "dev", "eth2")  # entries have the times they were made with
    with ways(net, tmp_path, by, family) as (made, _):
        assert made.leads_to(1)
        net.run(net.hosts[1], "ip", "addr", "flush", "dev", "eth0")
        net.link(net.hosts[1], "eth0", "address", "02:dd:dd:dd:dd:dd")  # whoever was there is away
        expected = "Destination Host Unreachable" if family == 4 else "Address unreachable"
        command = ("ping", "-n", "-i", "0.5", "-w", "40", ANYCAST[family])
        with net.popen(net.hosts[0], *command, stdout=subprocess.PIPE) as pinging:
            assert pinging.stdout
            assert any(expected.encode() in line for line in pinging.stdout)
            pinging.kill()


@BY
@BOTH
@pytest.mark.moves("xskd_unroutable_packets", reason="forwarding_off")
def test_forwarding_that_is_off_is_honoured(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    with ways(net, tmp_path, by, family) as (made, daemon):
        assert made.leads_to(1)
        roads.forwarding(on=False)
        went = forwarded(daemon) if daemon else 0
        assert made.leads_nowhere()
        assert answered(net, roads.gateway(0, family)), "the router itself is still there"
        if daemon:
            assert unroutable(daemon, "forwarding_off") >= 1
            assert forwarded(daemon) == went
        roads.forwarding(on=True)
        assert made.leads_to(1)


@XSKD
@BOTH
@pytest.mark.moves("xskd_unroutable_packets", reason="outside")
def test_what_leaves_by_an_interface_of_no_path_goes_by_the_kernel(
    net: Wire, roads: Routers, tmp_path: Path, by: By, family: Family
) -> None:
    with routing(net, tmp_path, by, "eth1", "eth2") as daemon, Ways(net, family) as made:
        assert daemon
        assert made.leads_to(1)
        roads.lead(2)
        assert made.leads_to(2)
        assert unroutable(daemon, "outside") == 1
        assert answered(net, roads.address(2, family))
