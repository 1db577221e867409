"""The checks of `xskd doctor` for interfaces of `route` paths: does the kernel route as is wanted?

A route path does what the kernel's tables say, but not all that the kernel does with a packet it forwards
itself: netfilter and the reverse path filter are behind the XDP program and never see one that goes on. What
an operator relies on there has to be said in `rules`. Like checks.py this must never ask the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from xskd.findings import Answer, Facts, Fix, Interface, fail, ok, warn

RP_FILTER = {0: "off", 1: "strict", 2: "loose"}  # net.ipv4.conf.*.rp_filter
SYSCTL = {4: "net.ipv4.conf.{}.forwarding=1", 6: "net.ipv6.conf.all.forwarding=1"}  # IPv6 has but one switch


def forwarding(interface: Interface) -> Answer | None:
    """FAIL if it is off for a family that a `route` path's interface has an address of."""
    if interface.kind != "route" or interface.routing is None:
        return None
    routing = interface.routing
    families = sorted(routing.families) or [4]
    off = [family for family in families if not routing.forwarding.get(family)]
    if not off:
        return ok("on for " + " and ".join(f"IPv{family}" for family in families))
    seen = "off for " + " and ".join(f"IPv{family}" for family in off)
    why = "the kernel is no router here: it gets these packets, and drops them"
    settings = " ".join(SYSCTL[family].format(sysctl_name(interface.name)) for family in off)
    return fail(seen, why, f"sysctl -w {settings}")


def rp_filter(interface: Interface) -> Answer | None:
    """WARN if it is strict on a `route` path's interface, where it has no say."""
    if interface.kind != "route" or interface.routing is None:
        return None
    seen = RP_FILTER.get(interface.routing.rp_filter, str(interface.routing.rp_filter))
    if interface.routing.rp_filter != 1:
        return ok(seen)
    why = "packets that xskd routes are not asked whether their source is reached by this interface"
    return warn(seen, why, f"say which sources may come in: interfaces.{interface.name}.rules, `source`")


def express(interface: Interface) -> Answer | None:
    """WARN if express packets may leave by it and it does not take them (veth: GRO at the other end)."""
    if not interface.express or interface.features is None:
        return None
    if "ndo-xmit" in interface.features.xdp:
        return ok("takes packets that a program redirects")
    if interface.there.driver != "veth" and not interface.ours:
        return ok("takes none now; many drivers do only with a program attached")
    seen, why = "takes no packets that a program redirects", "express packets go by user space instead"
    if interface.peer is None:
        return warn(seen, why)
    switch = ("ethtool", "-K", interface.peer.name, "gro")
    command = interface.peer.command
    return warn(seen, why, fix=Fix(command(*switch, "on"), command(*switch, "off")))


def netfilter(facts: Facts) -> Answer | None:
    """WARN if chains of nftables would see forwarded packets, and a path routes them past these."""
    routing = [interface.name for interface in facts.interfaces if interface.kind == "route"]
    chains = facts.machine.forward_chains
    if not routing or chains is None:
        return None
    if not chains:
        return ok("no chain for forwarded packets")
    seen = f"{len(chains)} for forwarded packets: {', '.join(chains[:4])}{', ...' if chains[4:] else ''}"
    why = "packets that xskd routes pass none: nothing is filtered, translated or counted there"
    return warn(seen, why, "say it in interfaces.*.rules, or pass what needs them: `verdict: pass`")


def sysctl_name(interface: str) -> str:
    """An interface as a part of a sysctl's name: there `/` and `.` have changed places."""
    return interface.replace(".", "/")


INTERFACE: dict[str, Callable[[Interface], Answer | None]] = {
    "forwarding": forwarding,
    "rp_filter": rp_filter,
    "express": express,
}
MACHINE: dict[str, Callable[[Facts], Answer | None]] = {"netfilter": netfilter}
FIXED = {"express": "`ethtool -K ... gro on`, at the other end of a veth"}
