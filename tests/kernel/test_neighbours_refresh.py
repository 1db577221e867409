"""Neighbours that nobody but xskd sends to: the kernel is made to ask them, and knows when they have gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import Wire

from lab import Routers, entered
from lab.routers import Family
from xskd import neighbours

if TYPE_CHECKING:
    from conftest import MakeWire

HASTE = (
    "net.ipv{}.neigh.{}.base_reachable_time_ms=2000",
    "net.ipv{}.neigh.{}.delay_first_probe_time=1",
    "net.ipv{}.neigh.{}.retrans_time_ms=100",
)


def hasten(roads: Routers, dev: str) -> None:
    """Let the dut's kernel doubt its neighbours sooner than after half a minute."""
    roads.sysctl(roads.lab.dut, *(each.format(family, dev) for family in (4, 6) for each in HASTE))


def state(roads: Routers, family: Family, host: int = 1) -> str:
    """What the dut thinks of a host: REACHABLE, STALE, FAILED, ... or nothing."""
    said = roads.ip(roads.lab.dut, family, "neigh", "show", roads.address(host, family))
    return said.split()[-1] if said else ""


@pytest.mark.parametrize("family", [4, 6])
def test_a_stale_neighbour_is_asked_and_one_that_is_gone_fails(wire: MakeWire, family: Family) -> None:
    net: Wire = wire()
    roads = Routers(net)
    hasten(roads, "eth2")
    roads.meet()
    assert net.eventually(lambda: state(roads, family) == "STALE", 30)
    with entered(net.dut):
        assert neighbours.refresh(["eth1", "nothing"]) >= 0
        assert state(roads, family) == "STALE", "another interface's are none of its business"
        assert neighbours.refresh(["eth2"]) >= 1
    assert net.eventually(lambda: state(roads, family) == "REACHABLE", 10)
    net.run(net.hosts[1], "ip", "addr", "flush", "dev", "eth0")
    assert net.eventually(lambda: state(roads, family) == "STALE", 30)
    with entered(net.dut):
        neighbours.refresh(["eth2"])
    assert net.eventually(lambda: state(roads, family) in ("FAILED", ""), 10)


def test_entries_of_the_operator_are_left_alone(wire: MakeWire) -> None:
    net = wire()
    roads = Routers(net)
    for number, kind in enumerate(("permanent", "noarp", "reachable")):
        entry = f"10.99.2.{100 + number} lladdr 02:00:00:00:99:99 dev eth2 nud {kind}"
        roads.ip(net.dut, 4, "neigh", "add", *entry.split())
    before = roads.ip(net.dut, 4, "neigh", "show", "nud", "all", "dev", "eth2")
    assert before.count("lladdr 02:00:00:00:99:99") == 3
    with entered(net.dut):
        neighbours.refresh(["eth2"])
    assert roads.ip(net.dut, 4, "neigh", "show", "nud", "all", "dev", "eth2") == before
