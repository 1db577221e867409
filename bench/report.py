"""A campaign's record as a table in Markdown and as a picture: medians, their spread, and what was thrown
away.

Nothing is computed here that is not in the record, and no contender is left out because of its figures.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from bench.campaign import CASES, Record
from bench.contenders import Redirect
from bench.latency import Delay
from bench.measurement import M, Measurement
from bench.scaling import Scaling
from bench.throughput import Run

_XSKD, _LIMIT, _OTHERS = "#2b6cb0", "#d0d0d0", "#8a97a8"  # colours


def markdown(record: Record) -> str:
    """Render the record."""
    host = record.machine
    lines = [
        f"Measured {record.when} on {host['cpu']} ({host['cores']} cores, {host['virtual']}), "
        f"kernel {host['kernel']}, {host['system']}. {record.mode}. "
        f"{record.settings['rounds']:g} rounds of {record.settings['seconds']:g} s; "
        "median (smallest to largest).",
        "",
    ]
    for mode, size in CASES:
        lines += _speed_table(
            [run for run in record.runs if (run.mode, run.frame_bytes) == (mode, size)], mode, size
        )
    lines += _latency_table(record.delays)
    lines += _scaling_lines(record.scalings)
    lines += [
        "Versions: " + "; ".join(f"{name}: {version}" for name, version in record.versions.items()) + ".",
        "",
    ]
    lines += [f"Not measured: {name}, lacks {what}." for name, what in record.missing.items()]
    lines += [f"Failed: {failure.splitlines()[0]}." for failure in record.failures]
    lines += [_thrown_away([*record.runs, *record.delays, *record.scalings])]
    return "\n".join(lines) + "\n"


def _speed_table(runs: Sequence[Run], mode: str, size: int) -> list[str]:
    lines = [
        f"**{mode}, {size} bytes**",
        "",
        "| forwarder | thousand packets/s | CPU ns/packet | of it user space | runs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    ranked = sorted(_kept(runs).items(), key=lambda item: -median([run.kpps for run in item[1]] or [0]))
    for name, good in ranked:
        figures = (
            _spread(good, lambda run: run.kpps),
            _spread(good, lambda run: run.cpu_ns),
            f"{median(run.user_share for run in good):.1%}" if good else "",
        )
        lines.append(f"| {name} | {' | '.join(figures)} | {len(good)} |")
    return [*lines, ""]


def _latency_table(delays: Sequence[Delay]) -> list[str]:
    lines = [
        "**round trip through `connect` (ping), 1,000 packets/s, microseconds**",
        "",
        "| forwarder | p50 | p99 | p99.9 | CPU idle | CPU at 1,000/s | lost | runs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, good in sorted(
        _kept(delays).items(), key=lambda item: median([one.p50 for one in item[1]] or [0])
    ):
        figures = (
            _spread(good, lambda one: one.p50, 1),
            _spread(good, lambda one: one.p99, 1),
            _spread(good, lambda one: one.p999, 1),
            f"{median(one.cpu_idle for one in good):.1%}" if good else "",
            f"{median(one.cpu_loaded for one in good):.1%}" if good else "",
            f"{sum(one.lost for one in good)}",
        )
        lines.append(f"| {name} | {' | '.join(figures)} | {len(good)} |")
    return [*lines, ""]


def _scaling_lines(scalings: Sequence[Scaling]) -> list[str]:
    good = [one for one in scalings if not one.thrown_away]
    if not good:
        return []
    return [
        "**two queues on two CPUs, each with its own load on the same CPU**",
        "",
        f"Both at once reach {_spread(good, lambda one: one.ratio, 2)} of the sum of each alone: "
        f"{_spread(good, lambda one: one.together)} thousand packets/s against "
        f"{_spread(good, lambda one: sum(one.alone))}; 1.00 is no loss.",
        "",
    ]


def _kept(measurements: Sequence[M]) -> dict[str, list[M]]:
    """Group what may count by contender; one of which nothing is left keeps its (empty) place."""
    return {
        name: [one for one in measurements if one.contender == name and not one.thrown_away]
        for name in dict.fromkeys(one.contender for one in measurements)
    }


def _spread(good: Sequence[M], figure: Callable[[M], float], digits: int = 0) -> str:
    values = [figure(one) for one in good]
    if not values:
        return "nothing left"
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def _thrown_away(measurements: Sequence[Measurement]) -> str:
    reasons = Counter(one.thrown_away.split(" ")[0] for one in measurements if one.thrown_away)
    return (
        f"{len(measurements)} measurements were made and {reasons.total()} of them thrown away: "
        f"{reasons['others']} because other programs used the CPU, "
        f"{reasons['the']} because the machine changed its speed."
    )


def picture(record: Record, path: Path) -> None:
    """Draw packets per second at 64 bytes and keep the picture."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only this function needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    cases = [case for case in CASES if case[1] == 64]
    figure, panels = plt.subplots(1, len(cases), figsize=(9, 2.4), constrained_layout=True)
    for panel, (mode, size) in zip(panels, cases, strict=True):
        groups = _kept([run for run in record.runs if (run.mode, run.frame_bytes) == (mode, size)])
        bars = sorted((median(run.kpps for run in good), name) for name, good in groups.items() if good)
        for value, name in bars:
            colour = {"xskd": _XSKD, Redirect.name: _LIMIT}.get(name, _OTHERS)
            panel.bar_label(panel.barh(name, value, color=colour), fmt="{:,.0f}", padding=3, fontsize=8)
        panel.set_title(f"{mode}, {size}-byte frames: thousand packets/s", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
