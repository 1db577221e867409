"""Makes a router's neighbourhood of a topology: a subnet of both families for each link, the dut between.

::

    h0: 10.99.1.2, fd99:1::2 <-> 10.99.1.1, fd99:1::1 :dut: 10.99.2.1, fd99:2::1 <-> 10.99.2.2, fd99:2::2 :h1

The hosts' default routes lead to the dut, whose kernel has forwarding on and its limits on ICMP off, so that
a test never waits for a token. `anycast` gives several hosts the same addresses on their loopback: what is
sent there says by where it arrives which way it was routed, without a further row of namespaces.

Every sysctl set here belongs to a namespace of the topology; this module must never write one of the machine.
"""

from collections.abc import Sequence
from typing import Literal

from lab.topology import Topology

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)
ANYCAST: dict[Family, str] = {4: "10.200.0.1", 6: "fd20::1"}
ANYCAST_PREFIX: dict[Family, str] = {4: "10.200.0.0/24", 6: "fd20::/64"}
UNLIMITED = ("net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_msgs_per_sec=100000", "net.ipv6.icmp.ratelimit=0")


class Routers:
    """Addresses and routes on a topology that has none; they go when it goes."""

    def __init__(self, lab: Topology) -> None:
        self.lab = lab
        self.forwarding(on=True)
        self.sysctl(lab.dut, *UNLIMITED)
        for host, (ns, dev) in enumerate(zip(lab.hosts, lab.dut_devs, strict=True)):
            self._address(lab.dut, dev, self.gateway(host, 4), self.gateway(host, 6), "fe80::1")
            self._address(ns, "eth0", self.address(host, 4), self.address(host, 6), "fe80::2")
            for family in FAMILIES:
                self.ip(ns, family, "route", "add", "default", "via", self.gateway(host, family))

    @staticmethod
    def address(host: int, family: Family) -> str:
        """Return the address of a host's eth0."""
        return f"10.99.{host + 1}.2" if family == 4 else f"fd99:{host + 1}::2"

    @staticmethod
    def gateway(host: int, family: Family) -> str:
        """Return the address of the dut on a host's link."""
        return f"10.99.{host + 1}.1" if family == 4 else f"fd99:{host + 1}::1"

    def _address(self, ns: str, dev: str, *addresses: str) -> None:
        for address in addresses:
            length, more = ("64", ("nodad",)) if ":" in address else ("24", ())
            self.lab.run(ns, "ip", "addr", "add", f"{address}/{length}", "dev", dev, *more)

    def ip(self, ns: str, family: Family, *words: str) -> str:
        """Run `ip` for one family in a namespace; what it prints."""
        return self.lab.run(ns, "ip", f"-{family}", *words).stdout

    def route(self, family: Family, *words: str) -> None:
        """Run `ip route` in the dut."""
        self.ip(self.lab.dut, family, "route", *words)

    def sysctl(self, ns: str, *settings: str) -> None:
        """Set sysctls of a namespace."""
        self.lab.run(ns, "sysctl", "-qw", *settings)

    def forwarding(self, *, on: bool) -> None:
        """Let the dut's kernel forward, or not."""
        self.sysctl(
            self.lab.dut, f"net.ipv4.conf.all.forwarding={on:d}", f"net.ipv6.conf.all.forwarding={on:d}"
        )

    def anycast(self, *hosts: int) -> None:
        """Give these hosts the anycast addresses; no route leads there yet."""
        for host in hosts:
            for family, length in ((4, "32"), (6, "128")):
                to = ("addr", "add", f"{ANYCAST[family]}/{length}", "dev", "lo")  # type: ignore[index]
                self.lab.run(self.lab.hosts[host], "ip", *to)

    def via(self, hosts: Sequence[int], family: Family) -> list[str]:
        """Return the words of `ip route` for these next hops: one, or several that share the traffic."""
        if len(hosts) == 1:
            return ["via", self.address(hosts[0], family)]
        return [word for host in hosts for word in ("nexthop", "via", self.address(host, family))]

    def lead(self, *hosts: int) -> None:
        """Route the anycast addresses to these hosts."""
        for family in FAMILIES:
            self.route(family, "replace", ANYCAST_PREFIX[family], *self.via(hosts, family))

    def meet(self) -> None:
        """Have the dut and every host know each other's MAC address, by asking."""
        for host, ns in enumerate(self.lab.hosts):
            for family in FAMILIES:
                self.lab.run(ns, "ping", "-c", "1", "-W", "5", self.gateway(host, family))
