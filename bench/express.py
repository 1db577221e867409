"""How fast is the express lane? Beside the kernel's own redirect, and the way through the XSK, in one run.

    python -m bench.express [--quick] [--rounds N] [--seconds S] [--only WORD]   (as scripts/bench --express)

The measure is what the kernel can do at all: `bpf_redirect` in four instructions, by the bench's own program.
xdp-bench of xdp-tools, which does the same, attaches tracing programs first, which not every kernel has. All
but the XSK are inside the kernel and get the same thread for the receiving NAPI on the forwarder's CPU.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from typing_extensions import override

from bench import series, throughput
from bench.contenders import CONNECT, Contender, InKernel, Redirect, Xskd, run_xskd, verdicts
from bench.filters import FIRST_PORT
from bench.generator import Load
from bench.machine import FORWARDER_CPU
from bench.series import Series, spread, table
from bench.throughput import Run
from lab import Topology

SIZES = (64, 1500)
MANY = 1024
GOAL = 0.9  # of the kernel's redirect


class Express(Xskd, InKernel):
    """xskd with its lane open for everything."""

    name = "xskd, express: auto"
    express = "auto"
    interface: dict[str, Any] = {}  # noqa: RUF012 - never changed

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        path = {"connect": ["eth1", "eth2"], "cpus": [FORWARDER_CPU], "express": self.express}
        run_xskd(
            *(lab, workdir),
            {
                "interfaces": {"eth1": self.interface, "eth2": {}},
                "paths": {"bench": path},
                "control": {"socket": str(workdir / "control.sock")},
            },
        )

    @override
    def settled(self, workdir: Path) -> bool:
        return verdicts(workdir / "control.sock", "expressed") > 0


class LateExpress(Express):
    """The last of many rules says express; the others ask for other ports."""

    name = f"xskd, the last of {MANY:,} rules: express"
    express = "rules"
    interface = {  # noqa: RUF012 - never changed
        "rules": [
            {
                "protocol": "udp",
                "destination_port": FIRST_PORT + number,
                "verdict": "express" if number == MANY - 1 else "drop",
            }
            for number in range(MANY)
        ]
    }


class Through(Express):
    """The same daemon without its lane."""

    name = "xskd, express: off (XSK)"
    express = "off"

    @override
    def settled(self, workdir: Path) -> bool:
        return True

    @override
    def own_core(self, lab: Topology) -> set[int]:
        return set()


LIMIT = Redirect()
CONTENDERS: tuple[Contender, ...] = (LIMIT, Express(), LateExpress(), Through())


def trials() -> dict[str, series.Trial[Run]]:
    """Return everything that is measured, by name."""
    return {
        f"{one.name}: {size}": partial(speed, one, size)
        for size in SIZES
        for one in CONTENDERS
        if not one.missing()
    }


def speed(contender: Contender, size: int, seconds: float, number: int) -> Run:
    """Measure one of them."""
    load = Load(frame_bytes=size, port=FIRST_PORT + MANY - 1)
    return throughput.measure(contender, CONNECT, load, seconds, number)


def page(measured: Series[Run]) -> str:
    """Render the record."""
    lines = measured.heading("connect on veth, native XDP, AF_XDP in copy mode, one queue.")
    for size in SIZES:
        lines += [f"**{size} bytes**", ""]
        limit = [run.kpps for run in _of(measured, LIMIT.name, size)]
        rows = []
        for one in CONTENDERS:
            runs = _of(measured, one.name, size)
            part = f"{median(run.kpps for run in runs) / median(limit):.2f}" if runs and limit else "-"
            figures = spread([run.kpps for run in runs]), part, spread([run.cpu_ns for run in runs])
            rows.append([one.name, *figures])
        lines += table(["", "thousand packets/s", "of the kernel's redirect", "CPU ns/packet"], rows)
    lines += [f"The goal for the lane is {GOAL:.0%} of the kernel's redirect.", ""]
    return "\n".join([*lines, *measured.ending()])


def _of(measured: Series[Run], name: str, size: int) -> list[Run]:
    return measured.good(lambda run: (run.contender, run.frame_bytes) == (name, size))


def main() -> int:
    """Measure all of it; the page is kept as bench/results/express.md."""
    arguments = series.options("express", "How fast is the express lane?", rounds=7, seconds=3.0)
    versions = {one.name: one.missing() or one.version() for one in CONTENDERS}
    measured = series.carry_out("express", trials(), arguments, versions)
    series.keep(measured, page(measured), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
