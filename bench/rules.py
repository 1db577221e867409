"""What do rules cost? Packets a second with 0 to 1,024 of them, beside nftables and xdp-filter.

    python -m bench.rules [--quick] [--rounds N] [--seconds S] [--only WORD]     (as scripts/bench --rules)

Two questions, for each number of rules and each shape (the last rule of a list of ports or prefixes matches,
or all of them are met): how many packets come through when the verdict is to forward, and how many are dealt
with when it is to drop. Beside it the program alone, by BPF_PROG_TEST_RUN: nanoseconds a packet without any
driver. Instructions are not counted: no performance counters reach this virtual machine.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from statistics import median

from typing_extensions import override

from bench import bpf, machine, series, throughput
from bench.contenders import CONNECT, DROP
from bench.filters import CASES, Case, Filter, XdpFilter, XskdFilter, contenders
from bench.generator import Load
from bench.measurement import Measurement
from bench.series import Series, spread, table
from bench.stand import Stand, stand
from bench.throughput import Run
from lab import entered

REPEAT, SAMPLES = 200_000, 9


@dataclass(frozen=True, kw_only=True)
class Cost(Measurement):
    """Nanoseconds that a program takes for a packet."""

    case: str
    nanoseconds: float

    @override
    def figures(self) -> str:
        return f"{self.case}: {self.nanoseconds:.0f} ns a packet in the program"


def speed(contender: Filter, seconds: float, number: int) -> Run:
    """Measure one filter in its case."""
    case = contender.case
    return throughput.measure(
        *(contender, case.mode, case.load, seconds, number),
        case=f"{case.mode}: {case.text}",
        refused=case.refused,
    )


def cost(contender: Filter, _seconds: float, number: int) -> Cost:
    """Ask the attached program about the same packet again and again."""
    case = contender.case
    before = machine.speed()
    through = Load() if case.mode == DROP else case.load
    with (
        stand(contender, case.mode, flooded=False, load=through, refused=case.refused) as made,
        entered(made.lab.dut),
    ):
        program = program_id(made)
        # The frame itself, not what a spread load would make of it.
        frame = case.load.frame()
        taken = median(bpf.nanoseconds(program, frame, "eth1", REPEAT) for _ in range(SAMPLES))
    return Cost(
        round=number,
        contender=contender.name,
        case=f"{case.mode}: {case.text}",
        nanoseconds=taken,
        strangers=0.0,
        speed_before=before,
        speed_after=machine.speed(),
    )


def program_id(made: Stand) -> int:
    """Return the id of the XDP program on the dut's eth1."""
    listed = made.lab.run(made.lab.dut, "ip", "-j", "link", "show", "dev", "eth1").stdout
    return int(json.loads(listed)[0]["xdp"]["prog"]["id"])


def trials() -> dict[str, series.Trial[Measurement]]:
    """Return everything that is measured, by name."""
    found: dict[str, series.Trial[Measurement]] = {}
    for case in CASES:
        for one in contenders(case):
            if one.missing():
                continue
            called = f"{one.name}: {case.mode}: {case.text}"
            found[called] = partial(speed, one)
            if isinstance(one, (XskdFilter, XdpFilter)) and not case.spread:
                found[f"program of {called}"] = partial(cost, one)
    return found


def page(measured: Series[Measurement]) -> str:
    """Render the record."""
    runs = [run for run in measured.good(lambda _: True) if isinstance(run, Run)]
    costs = [one for one in measured.good(lambda _: True) if isinstance(one, Cost)]
    lines = measured.heading("veth, native XDP, AF_XDP in copy mode, one queue, 64 bytes.")
    for mode, says in ((CONNECT, "forwarded by a rule"), (DROP, "dropped by a rule")):
        cases = [case for case in CASES if case.mode == mode]
        names = list(dict.fromkeys(one.name for case in cases for one in contenders(case)))
        lines += [f"**{says}, thousand packets/s**", ""]
        lines += table(
            ["rules", *names],
            [[case.text, *(spread(_kpps(runs, case, name)) for name in names)] for case in cases],
        )
    lines += ["**the program alone, nanoseconds a packet (BPF_PROG_TEST_RUN)**", ""]
    names = [XskdFilter.name, XdpFilter.name]
    lines += table(
        ["rules", *names],
        [
            [f"{case.mode}: {case.text}", *(spread(_nanoseconds(costs, case, name)) for name in names)]
            for case in CASES
            if not case.spread
        ],
    )
    return "\n".join([*lines, *measured.ending()])


def _kpps(runs: list[Run], case: Case, name: str) -> list[float]:
    return [run.kpps for run in runs if (run.contender, run.mode) == (name, f"{case.mode}: {case.text}")]


def _nanoseconds(costs: list[Cost], case: Case, name: str) -> list[float]:
    named = (name, f"{case.mode}: {case.text}")
    return [one.nanoseconds for one in costs if (one.contender, one.case) == named]


def main() -> int:
    """Measure all of it; the page is kept as bench/results/rules.md."""
    arguments = series.options("rules", "What do rules cost?", rounds=5, seconds=2.0)
    everybody = {one.name: one for case in CASES for one in contenders(case)}
    versions = {name: one.missing() or one.version() for name, one in everybody.items()}
    measured = series.carry_out("rules", trials(), arguments, versions)
    series.keep(measured, page(measured), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
