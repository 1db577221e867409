"""Those that decide packet by packet what goes on: the same rules for xskd, nftables and xdp-filter.

All sit on eth1 of the dut and forward to eth2 in the cheapest way they have. A rule says yes to one
destination port or one prefix. In a forwarding case what no rule says yes to is dropped; in a dropping case
it is forwarded, so that probes can tell a filter that works from one that is not there.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from bench.contenders import (
    CONNECT,
    DROP,
    Bridge,
    Contender,
    InKernel,
    Xskd,
    launch,
    receive_on_own_core,
    run_xskd,
)
from bench.generator import Load
from bench.machine import FORWARDER_CPU
from lab import Topology

FIRST_PORT = 1024  # a power of two, as Load wants it


@dataclass(frozen=True)
class Case:
    """So many rules, what they ask about, what they say, and whether the load meets the last or all."""

    mode: str  # CONNECT: what matches is forwarded; or DROP
    asks: Literal["port", "prefix"] = "port"
    rules: int = 0
    spread: bool = False

    @property
    def text(self) -> str:
        """Return what the tables call it."""
        if not self.rules:
            return "no rules"
        of = {"port": "port", "prefix": "prefix"}[self.asks]
        met = "all" if self.spread else "the last"
        return f"{self.rules:,} by {of}, {met} met" if self.rules > 1 else f"1 by {of}"

    @property
    def ports(self) -> range:
        """Return the port of each rule."""
        return range(FIRST_PORT, FIRST_PORT + self.rules)

    @property
    def prefixes(self) -> list[str]:
        """Return the prefix of each rule: 10.128.0.0/24 and so on."""
        return [f"10.{128 + number // 256}.{number % 256}.0/24" for number in range(self.rules)]

    @property
    def load(self) -> Load:
        """Return a load of which every packet matches."""
        if not self.rules:
            return Load()
        if self.asks == "port":
            return Load(port=self.ports[0], ports=self.rules) if self.spread else Load(port=self.ports[-1])
        first = (self.prefixes[0] if self.spread else self.prefixes[-1]).removesuffix("/24")
        return Load(address=first, addresses=self.rules * 256) if self.spread else Load(address=first)

    @property
    def refused(self) -> Load | None:
        """Return a load of which nothing may come through, so that a filter that is not there yet shows."""
        if not self.rules:
            return None
        return self.load if self.mode == DROP else Load()


class Filter(Contender):
    """One filter with the rules of one case."""

    def __init__(self, case: Case) -> None:
        self.case = case


class XskdFilter(Filter, Xskd):
    """xskd's rules on eth1; `redirect` takes a packet through its XSK, `drop` ends it in the program."""

    name = "xskd"

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        run_xskd(lab, workdir, self.configuration())

    def configuration(self) -> dict[str, Any]:
        """Return the file, as YAML that is JSON."""
        case = self.case
        verdict, default = ("drop", "redirect") if case.mode == DROP else ("redirect", "drop")
        matches: list[dict[str, Any]] = (
            [{"protocol": "udp", "destination_port": port} for port in case.ports]
            if case.asks == "port"
            else [{"destination": prefix} for prefix in case.prefixes]
        )
        rules = [match | {"verdict": verdict} for match in matches]
        filtering = {"default": default, "rules": rules} if rules else {}
        return {
            "interfaces": {"eth1": filtering, "eth2": {}},
            "paths": {"bench": {"connect": ["eth1", "eth2"], "cpus": [FORWARDER_CPU]}},
        }

    @override
    def own_core(self, lab: Topology) -> set[int]:
        # What drops is the kernel's part alone, so it gets the CPU that the others' get.
        return receive_on_own_core(lab) if self.case.mode == DROP else set()


class NftRules(Filter, InKernel):
    """nftables in the netdev family, at the ingress hook of eth1: a rule for each rule, `fwd` to forward."""

    name = "nftables"

    @override
    def missing(self) -> str:
        return "" if shutil.which("nft") else "nft (package nftables)"

    @override
    def version(self) -> str:
        return subprocess.run(
            ("nft", "--version"), capture_output=True, text=True, check=False
        ).stdout.strip()

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        lab.run(lab.dut, "nft", "-f", "-", stdin=self.ruleset())

    def ruleset(self) -> str:
        """Return what nft reads."""
        forward = 'fwd to "eth2"'
        verdict, default = ("drop", forward) if self.case.mode == DROP else (forward, "drop")
        body = self.body(verdict) if self.case.rules else []
        head = 'type filter hook ingress device "eth1" priority 0; policy accept;'
        rules = [*body, default if body else forward]
        return "\n".join(
            ["table netdev bench {", *self.sets(), "chain ingress {", head, *rules, "}", "}", ""]
        )

    def body(self, verdict: str) -> list[str]:
        """Return the rules before the last."""
        if self.case.asks == "port":
            return [f"udp dport {port} {verdict}" for port in self.case.ports]
        return [f"ip daddr {prefix} {verdict}" for prefix in self.case.prefixes]

    def sets(self) -> list[str]:
        """Return the sets that the rules use."""
        return []


class NftSet(NftRules):
    """The same with one rule over a set, as nftables' manual advises."""

    name = "nftables, a set"

    @override
    def body(self, verdict: str) -> list[str]:
        return [f"{'udp dport' if self.case.asks == 'port' else 'ip daddr'} @wanted {verdict}"]

    @override
    def sets(self) -> list[str]:
        if self.case.asks == "port":
            kind, elements = "type inet_service;", [str(port) for port in self.case.ports]
        else:
            kind, elements = "type ipv4_addr; flags interval;", self.case.prefixes
        return ["set wanted {", kind, f"elements = {{ {', '.join(elements)} }}", "}"] if elements else []


class XdpFilter(Filter, Bridge):
    """xdp-filter, an array of ports in XDP; it cannot forward, so a Linux bridge does behind it."""

    name = "xdp-filter (and bridge)"

    @override
    def missing(self) -> str:
        return "" if shutil.which("xdp-filter") else "xdp-filter (package xdp-tools)"

    @override
    def version(self) -> str:
        query = ("dpkg-query", "-Wf", "${Version}", "xdp-tools")
        said = subprocess.run(query, capture_output=True, text=True, check=False)
        return f"xdp-tools {said.stdout or 'unknown'}"

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        super().start(lab, mode, workdir)
        # `ip netns exec` hides the bpffs that xdp-filter keeps its maps in, and one of our own goes with the
        # last process that sees it: so the shell that has mounted it stays until the namespace goes.
        script = ["set -e", "mount -t bpf bpf /sys/fs/bpf"]
        script += [f"xdp-filter load eth1 -m native -p {'allow' if self.case.mode == DROP else 'deny'}"]
        script += [f"xdp-filter port {port} -m dst -p udp" for port in self.case.ports]
        launch(lab, workdir, "sh", "-c", "\n".join([*script, "exec sleep infinity"]))


def contenders(case: Case) -> list[Filter]:
    """Return who can do what the case asks for; without rules these are plain forwarders."""
    if not case.rules:
        return [XskdFilter(case), NftRules(case)]
    if case.asks == "prefix":
        return [XskdFilter(case), NftRules(case), NftSet(case)]
    return [XskdFilter(case), NftRules(case), NftSet(case), XdpFilter(case)]


CASES = (
    *(
        Case(CONNECT),
        Case(CONNECT, "port", 1),
        Case(CONNECT, "port", 32),
        Case(CONNECT, "port", 1024),
        Case(CONNECT, "port", 1024, spread=True),
        Case(CONNECT, "prefix", 32),
        Case(CONNECT, "prefix", 1024),
        Case(CONNECT, "prefix", 1024, spread=True),
    ),
    *(Case(DROP, "port", 1), Case(DROP, "port", 32), Case(DROP, "port", 1024)),
    *(Case(DROP, "port", 1024, spread=True), Case(DROP, "prefix", 1024)),
)
