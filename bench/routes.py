"""What does a large routing table cost? The same load with ten routes and with a million in the kernel.

    python -m bench.routes [--quick] [--rounds N] [--seconds S] [--only WORD]     (as scripts/bench --routes)

Packets go to random addresses all over 32.0.0.0/4, which eight routes cover in the small table and 1,048,576
prefixes of 24 bits in the large one, which has 100,000 routes for IPv6 too. They are the kernel's, in the
dut's namespace; xskd asks for each packet. Beside its speed its memory is looked at: neither may change by
more than what the kernel's own forwarding with the same table shows.
"""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from typing_extensions import override

from bench import bpf, series, throughput
from bench.contenders import CONNECT, Contender, InKernel, Xskd, run_xskd, verdicts
from bench.generator import Load
from bench.machine import FORWARDER_CPU
from bench.series import Series, spread, table
from bench.stand import Stand
from bench.throughput import Run
from lab import Topology, entered

COVERED = ipaddress.ip_network("32.0.0.0/4")
LOAD = Load(address=str(COVERED[0]), addresses=COVERED.num_addresses, routed=True)
_GATEWAY, _GATEWAY6 = "10.98.2.2", "2001:db8:98::2"
_LOAD_SECONDS = 300.0  # within which the large table must be there; it takes some ten


@dataclass(frozen=True)
class Table:
    """A routing table: prefixes of this length all over what is covered, and some for IPv6."""

    name: str
    length: int
    ipv6: int

    def batch(self) -> Iterator[str]:
        """Return what `ip -batch` reads."""
        for prefix in COVERED.subnets(new_prefix=self.length):
            yield f"route add {prefix} via {_GATEWAY} dev eth2"
        for number in range(self.ipv6):
            yield f"route add 2001:{number >> 16:x}:{number & 0xFFFF:x}::/48 via {_GATEWAY6} dev eth2"

    def load(self, lab: Topology) -> None:
        """Make the dut a router with this table; the far host's addresses are resolved for ever."""
        began = time.monotonic()
        settings = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
        settings |= {f"ipv4/conf/{where}/rp_filter": 0 for where in ("all", "eth1", "eth2")}
        for name, value in settings.items():
            lab.run(lab.dut, "sh", "-c", f"echo {value} > /proc/sys/net/{name}")
        first = [
            # Two connected networks; with the eight others that makes ten.
            "address add 10.99.0.254/24 dev eth1",
            "address add 10.98.2.254/24 dev eth2",
            "address add 2001:db8:98::1/64 dev eth2 nodad",
            f"neighbour add {_GATEWAY} lladdr {lab.mac_of(1)} dev eth2 nud permanent",
            f"neighbour add {_GATEWAY6} lladdr {lab.mac_of(1)} dev eth2 nud permanent",
        ]
        text = "\n".join([*first, *self.batch(), ""])
        lab.run(lab.dut, "ip", "-batch", "-", stdin=text, timeout=_LOAD_SECONDS)
        print(f"{self.name}: loaded in {time.monotonic() - began:.1f} s", file=sys.stderr)


SMALL = Table("10 routes", 7, 0)
LARGE = Table("1,048,576 routes and 100,000 of IPv6", 24, 100_000)


class Router(Contender):
    """Somebody who routes by one table."""

    modes = (CONNECT,)

    def __init__(self, routes: Table) -> None:
        self.routes = routes

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        self.routes.load(lab)
        self.begin(lab, workdir)

    def begin(self, lab: Topology, workdir: Path) -> None:
        """Start forwarding by the table that is there now."""


class XskdRoute(Router, Xskd):
    """A route path, every packet through the XSK."""

    name = "xskd, route"
    express = "off"
    verdict = "redirected"

    @override
    def begin(self, lab: Topology, workdir: Path) -> None:
        path = {"route": ["eth1", "eth2"], "cpus": [FORWARDER_CPU], "express": self.express}
        run_xskd(
            *(lab, workdir),
            {
                "interfaces": {"eth1": {}, "eth2": {}},
                "paths": {"bench": path},
                "control": {"socket": str(workdir / "control.sock")},
            },
        )

    @override
    def settled(self, workdir: Path) -> bool:
        # Until then the kernel forwards, as it does whatever xskd leaves to it.
        return verdicts(workdir / "control.sock", self.verdict) > 0


class XskdExpressRoute(XskdRoute):
    """A route path whose packets go by its express lane."""

    name = "xskd, route, express: auto"
    express = "auto"
    verdict = "expressed"

    @override
    def own_core(self, lab: Topology) -> set[int]:
        return InKernel.own_core(self, lab)  # type: ignore[arg-type]  # it needs nothing of its own


class KernelForwarding(Router, InKernel):
    """The kernel's own routing, without any XDP."""

    name = "kernel, ip_forward"


class XdpRoute(Router, InKernel):
    """The kernel's lookup and redirect from XDP, nothing else: what xdp-forward does."""

    name = "kernel XDP, lookup and redirect"

    @override
    def begin(self, lab: Topology, workdir: Path) -> None:
        with entered(lab.dut):
            bpf.attach(bpf.route(), "eth1")


ROUTERS: tuple[type[Router], ...] = (XskdRoute, XskdExpressRoute, KernelForwarding, XdpRoute)


def memory(made: Stand) -> dict[str, float]:
    """Resident memory of the supervisor and of its workers together, MiB."""
    # Whoever was asked for the list is in it too, alive, dying or gone.
    listed = {pid: _status(pid) for pid in made.forwarder()}
    status = {pid: one for pid, one in listed.items() if "VmRSS" in one and one["Name"] != "ip"}
    supervisors = [one for one in status.values() if int(one["PPid"]) not in status]
    workers = [one for one in status.values() if int(one["PPid"]) in status]
    return {"supervisor": _mib(supervisors), "workers": _mib(workers)} if workers else {}


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _mib(processes: list[dict[str, str]]) -> float:
    return sum(int(one["VmRSS"].split()[0]) for one in processes) / 1024


def speed(router: Router, seconds: float, number: int) -> Run:
    """Measure one router with one table."""
    return throughput.measure(router, CONNECT, LOAD, seconds, number, case=router.routes.name, beside=memory)


def trials() -> dict[str, series.Trial[Run]]:
    """Return everything that is measured, by name."""
    return {
        f"{kind.name}: {routes.name}": partial(speed, kind(routes))
        for kind in ROUTERS
        for routes in (SMALL, LARGE)
        if not kind(routes).missing()
    }


def page(measured: Series[Run]) -> str:
    """Render the record."""
    lines = measured.heading(
        f"veth, native XDP, AF_XDP in copy mode, one queue, 64 bytes to random addresses in {COVERED}."
    )
    lines += ["**thousand packets/s**", ""]
    rows = []
    for kind in ROUTERS:
        small, large = ([run.kpps for run in _of(measured, kind.name, routes)] for routes in (SMALL, LARGE))
        part = f"{median(large) / median(small):.2f}" if small and large else "-"
        rows.append([kind.name, spread(small), spread(large), part])
    lines += table(["", SMALL.name, LARGE.name, "of the speed with ten"], rows)
    lines += ["**resident memory under that load, MiB**", ""]
    rows = []
    for kind in (XskdRoute, XskdExpressRoute):
        for whose in ("supervisor", "workers"):
            row = [
                spread([run.beside[whose] for run in _of(measured, kind.name, routes)], 1)
                for routes in (SMALL, LARGE)
            ]
            rows.append([f"{kind.name}: {whose}", *row])
    lines += table(["", SMALL.name, LARGE.name], rows)
    return "\n".join([*lines, *measured.ending()])


def _of(measured: Series[Run], name: str, routes: Table) -> list[Run]:
    return measured.good(lambda run: (run.contender, run.mode) == (name, routes.name))


def main() -> int:
    """Measure all of it; the page is kept as bench/results/routes.md."""
    arguments = series.options("routes", "What does a large routing table cost?", rounds=5, seconds=3.0)
    versions = {kind.name: kind(SMALL).missing() or kind(SMALL).version() for kind in ROUTERS}
    measured = series.carry_out("routes", trials(), arguments, versions)
    series.keep(measured, page(measured), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
