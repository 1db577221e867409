"""Reading for the doctor what this network namespace's kernel does with packets that it forwards.

Like examine.py, nothing here changes anything, and what the kernel does not tell is a fact as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from xskd.findings import Routing

CONF = {4: Path("/proc/sys/net/ipv4/conf"), 6: Path("/proc/sys/net/ipv6/conf")}
AF = {4: 2, 6: 10}  # linux/socket.h
LINK_SCOPE = 253  # RT_SCOPE_LINK in linux/rtnetlink.h
NFPROTO = {1: "inet", 2: "ip", 10: "ip6"}  # linux/netfilter.h
HOOKS = {0: "prerouting", 2: "forward", 4: "postrouting"}  # NF_INET_*: what a forwarded packet passes
DROP = 0  # NF_DROP


def read_routing(route: Any, ifindex: int, name: str) -> Routing:
    """Forwarding, the reverse path filter and the addresses of an interface."""
    families = frozenset(
        version
        for version, family in AF.items()
        for address in route.get_addr(family=family, index=ifindex)
        if address["scope"] < LINK_SCOPE
    )
    forwarding = {version: _number(conf / name / "forwarding") for version, conf in CONF.items()}
    everyone, own = (_number(CONF[4] / each / "rp_filter") for each in ("all", name))
    return Routing(
        families,
        {version: bool(value) for version, value in forwarding.items() if value is not None},
        max(everyone or 0, own or 0),  # the kernel takes the stricter number, see ip-sysctl
    )


def forward_chains() -> tuple[str, ...] | None:
    """The chains of nftables (and so iptables-nft) that do something to forwarded packets, as `ip nat post`.

    None where the kernel does not tell: it has no nftables, or this process no right to ask.
    """
    try:
        return tuple(chain for family in NFPROTO for chain in _chains(family))
    except (NetlinkError, OSError):
        return None


def _chains(family: int) -> list[str]:
    with NFTables(nfgen_family=family) as nftables:
        ruled = {(rule.get("NFTA_RULE_TABLE"), rule.get("NFTA_RULE_CHAIN")) for rule in nftables.get_rules()}
        found = []
        for chain in nftables.get_chains():
            place = (chain.get("NFTA_CHAIN_TABLE"), chain.get("NFTA_CHAIN_NAME"))
            hook = chain.get("NFTA_CHAIN_HOOK")
            number = hook.get("NFTA_HOOK_HOOKNUM") if hook else None
            if number in HOOKS and (place in ruled or chain.get("NFTA_CHAIN_POLICY") == DROP):
                found.append(" ".join((NFPROTO[family], *map(str, place))))
        return found


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
