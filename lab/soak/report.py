"""The page at the end of a soak, and the promises it is held to.

Bounds are promises to operators on a small, loaded machine, the same in docs/reliability.md; figures of speed
are the bench's. Latency is from one raw socket of a Python process to another's, so most of it is theirs.
"""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from lab.soak.account import Balance, Sample, slope
from lab.soak.streams import percentile

RECOVERY_SECONDS = 20.0  # until packets flow again after any fault, from its end on
MEMORY_SLOPE = 32 << 20  # bytes an hour of the supervisor; Python's arenas need a while to find their size
FDS_SLOPE = 4.0  # an hour
BATCH = 64  # packets that a worker may have had in its hands when it was killed
IN_VETH = 2 * 256  # packets in the rings of a link that goes down: the kernel frees them and counts nothing
NOT_COUNTED = {"kill worker": BATCH, "kill both": BATCH, "link down": IN_VETH, "flapping": IN_VETH}


@dataclass(frozen=True)
class Episode:
    """One fault: what was done, what was on its way meanwhile, and how long packets kept away afterwards."""

    kind: str
    what: str
    at: float
    balance: Balance
    recovery: float
    silence: float


@dataclass
class Findings:
    """Everything that a soak saw."""

    seed: int
    minutes: float
    seconds: float = 0.0
    episodes: list[Episode] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    total: Balance = field(default_factory=Balance)
    problems: list[str] = field(default_factory=list)

    def judge(self) -> list[str]:
        """Name every promise that was broken."""
        found = list(self.problems)
        for name, stream in self.streams.items():
            for what in ("damaged", "doubled"):
                if stream[what]:
                    found.append(f"stream {name}: {stream[what]} packets {what}")
        for episode in self.episodes:
            if episode.recovery > RECOVERY_SECONDS:
                found.append(f"{episode.what}: packets flowed again after {episode.recovery:.1f} s")
            if not 0 <= episode.balance.uncounted <= NOT_COUNTED.get(episode.kind, 0):
                found.append(f"{episode.what}: {episode.balance.uncounted} packets were lost and not counted")
        for name, bound in (("supervisor_memory", MEMORY_SLOPE), ("supervisor_fds", FDS_SLOPE)):
            if (grew := slope(self._steady(), name)) > bound and self.seconds > 1500:
                found.append(f"{name.replace('_', ' ')} grew by {grew:.0f} an hour")
        return found

    def _steady(self) -> list[Sample]:
        """The second half: the first is the daemon's warming up."""
        return [each for each in self.samples if each.at > self.seconds / 2]

    def page(self) -> str:
        """The report, in Markdown."""
        return "\n".join(
            [*self._head(), *self._packets(), *self._faults(), *self._memory(), *self._verdict()]
        )

    def _head(self) -> list[str]:
        return [
            "# A soak",
            "",
            f"{self.seconds / 60:.1f} minutes with seed {self.seed}: {len(self.episodes)} faults under "
            f"changing load, on Linux {platform.release()}, veth, copy mode, the shipped unit under a real "
            f"systemd. `scripts/soak --minutes {self.minutes:g} --seed {self.seed}` does the same again.",
            "",
        ]

    def _packets(self) -> list[str]:
        total = self.total
        lines = ["## Packets", "", "| | packets |", "| --- | ---: |", f"| sent by hosts | {total.sent:,} |"]
        lines += [f"| arrived at hosts | {total.arrived:,} |"]
        lines += [f"| lost, {why} | {count:,} |" for why, count in sorted(total.lost.items()) if count]
        lines += [f"| lost and not counted | {total.uncounted:,} |", ""]
        lines += [
            "The streams among them: every byte compared, latency from the sender's call to the receiver's.",
            "",
            "| stream | sent | received | doubled | damaged | p50 | p99 | p99.9 |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, one in self.streams.items():
            latency = {int(bucket): count for bucket, count in one["latency"].items()}
            took = (f"{percentile(latency, share) * 1e6:,.0f} us" for share in (0.5, 0.99, 0.999))
            counts = (f"{one[what]:,}" for what in ("sent", "received", "doubled", "damaged"))
            lines.append(f"| {name} | {' | '.join((*counts, *took))} |")
        return [*lines, ""]

    def _faults(self) -> list[str]:
        by_kind: dict[str, list[Episode]] = defaultdict(list)
        for episode in self.episodes:
            by_kind[episode.kind].append(episode)
        lines = [
            "## Faults",
            "",
            "Recovery: from the end of the fault until packets of every stream arrive, every worker forwards "
            "and the daemon says so. Silence: the longest pause of any stream, the fault itself included.",
            "",
            "| fault | times | median recovery | worst | longest silence | lost | of them not counted |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for kind, them in sorted(by_kind.items()):
            took = sorted(each.recovery for each in them)
            lost = sum((each.balance.lost for each in them), Counter()).total()
            uncounted = sum(each.balance.uncounted for each in them)
            lines.append(
                f"| {kind} | {len(them)} | {took[len(took) // 2]:.2f} s | {took[-1]:.2f} s | "
                f"{max(each.silence for each in them):.2f} s | {lost + uncounted:,} | {uncounted:,} |"
            )
        return [*lines, ""]

    def _memory(self) -> list[str]:
        lines = [
            "## What the processes hold",
            "",
            "| | start | end | an hour |",
            "| --- | ---: | ---: | ---: |",
        ]
        if not self.samples:
            return [*lines, ""]
        first, last = self.samples[0], self.samples[-1]
        for name in ("supervisor_memory", "workers_memory"):
            grew = slope(self._steady(), name)
            lines.append(
                f"| {name.replace('_', ' ')}, MiB | {getattr(first, name) / 2**20:.1f} | "
                f"{getattr(last, name) / 2**20:.1f} | {grew / 2**20:+.1f} |"
            )
        for name in ("supervisor_fds", "workers_fds", "processes"):
            grew = slope(self._steady(), name)
            lines.append(
                f"| {name.replace('_', ' ')} | {getattr(first, name)} | {getattr(last, name)} | {grew:+.1f} |"
            )
        return [*lines, "", "The growth is of the second half, by least squares.", ""]

    def _verdict(self) -> list[str]:
        broken = self.judge()
        return [
            "## Verdict",
            "",
            *(["Every promise was kept."] if not broken else [f"* {each}" for each in broken]),
            "",
        ]
