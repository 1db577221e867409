"""libFuzzer with the address and undefined-behaviour sanitizers against loop, adoption and capture.

fuzz_forward.c, fuzz_adopt.c and fuzz_capture.c say what is tried, laws.h what must hold. The corpus that a
run begins with is made here, from a fixed seed. Every input that ever broke a law is in REGRESSIONS.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from compiling import CSRC, fuzzer

from lab.figures import figure

TARGETS = ("fuzz_forward", "fuzz_adopt", "fuzz_capture")
SEEDS, SHORTEST, LONGEST = 100, 16, 1024  # inputs of a corpus, bytes
SECONDS, LONG_SECONDS = 8, 200  # of fuzzing, of each target
INPUT_SECONDS = 60  # what an input may take, on a machine that has other things to do: none hangs
# By target, inputs as hexadecimal digits.
REGRESSIONS: dict[str, list[str]] = {}
# What a law must find: a line of csrc that keeps the harm in, and the same line without its point.
MUTANTS = [
    (
        "fuzz_forward",
        "frames.h",
        "length - 1 <= (~addr & frames->mask)",
        "length - 1 <= (addr | frames->mask)",
    ),
    ("fuzz_forward", "frames.h", "frame < frames->count && frames->owner", "frames->owner"),
    ("fuzz_forward", "forward.c", "frames->owner[frame] != before", "!before"),
    ("fuzz_forward", "frames.c", "if (used > ring->size)", "if (false)"),
    ("fuzz_forward", "frames.c", "++port->wrong >= XSKD_WRONG_ENTRIES", "++port->wrong == 0"),
    (
        "fuzz_adopt",
        "adopt.c",
        "return frame < port->umem->frames ? (uint32_t)frame : NO_FRAME;",
        "return (uint32_t)frame;",
    ),
    ("fuzz_adopt", "adopt.c", "from >= forward->port_count || ", ""),
    ("fuzz_capture", "capture.c", "size_of_record(next->kept) <= used", "true"),
]


def corpus(target: str, directory: Path) -> Path:
    """Make a small corpus: random bytes of all lengths, always the same ones."""
    directory.mkdir()
    chance = random.Random(target)
    for number in range(SEEDS):
        length = chance.choice((SHORTEST, 64, 256, LONGEST))
        (directory / f"{number}").write_bytes(chance.randbytes(length))
    return directory


def fuzz(program: Path, seeds: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a fuzzer in the directory of its corpus, where it leaves an input that breaks a law."""
    common = (f"-max_len={LONGEST}", "-len_control=0", f"-timeout={INPUT_SECONDS}", "-print_final_stats=1")
    command = [str(program), *common, *options, str(seeds)]
    return subprocess.run(command, cwd=seeds.parent, capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_a_kernel_does_breaks_a_law(
    target: str, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    program, seeds = fuzzer(target), corpus(target, tmp_path / "corpus")
    for number, digits in enumerate(REGRESSIONS.get(target, ())):
        (seeds / f"regression{number}").write_bytes(bytes.fromhex(digits))
    seconds = times(SECONDS, LONG_SECONDS)
    done = fuzz(program, seeds, f"-max_total_time={seconds}", f"-seed={times(1, 0)}")
    broken = [path.read_bytes().hex() for path in tmp_path.glob("*-*")]
    assert broken == [] and done.returncode == 0, f"{broken}\n{done.stderr[-5000:]}"
    executed = int(re.findall(r"number_of_executed_units: (\d+)", done.stderr)[-1])
    covered, features = re.findall(r"DONE\s+cov: (\d+) ft: (\d+)", done.stderr)[-1]
    print(f"{target}: {executed} inputs in {seconds} s, {covered} edges, {features} features")
    assert executed >= SEEDS
    figure(f"{target}: inputs that broke a law", len(broken), "inputs", 0)


@pytest.mark.timeout(1800)
def test_the_laws_find_what_they_are_for(tmp_path: Path, times: Callable[[int, int], int]) -> None:
    """With a line of csrc disarmed the corpus alone, or a little more, finds it."""
    for number, (target, file, line, instead) in enumerate(MUTANTS[: times(1, len(MUTANTS))]):
        tree = tmp_path / f"{number}"
        for directory in ("csrc", "bpf"):
            shutil.copytree(CSRC.parent / directory, tree / directory)
        source = tree / "csrc" / file
        text = source.read_text(encoding="utf-8")
        assert text.count(line) == 1, line
        source.write_text(text.replace(line, instead), encoding="utf-8")
        program = fuzzer(target, tree / "csrc", tree / "built")
        done = fuzz(program, corpus(target, tree / "corpus"), "-seed=1", "-max_total_time=60")
        assert done.returncode != 0, f"{file}: {instead}"
