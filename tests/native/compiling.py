"""Compiles the native programs: a test or benchmark, the fake kernel and the data plane."""

import functools
import os
import re
import runpy
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
# Each of several processes that run tests has its own: one must not replace what another executes.
BUILD = HERE / "build" / os.environ.get("PYTEST_XDIST_WORKER", "")
# As xskd itself is compiled.
OPTIMISE: list[str] = runpy.run_path(str(CSRC / "build.py"))["OPTIMISE"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# All of the data plane but syscalls.c, whose part the fake kernel plays.
COMMON = [
    HERE / "fake_kernel.c",
    *(CSRC / f"{name}.c" for name in ("forward", "packets", "port", "frames", "observe", "adopt", "capture")),
]
VARIANTS = {
    "plain": [*OPTIMISE, *WARNINGS, "-g"],
    "sanitized": [*OPTIMISE, *WARNINGS, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


def gcc(variant: str, *arguments: str | Path) -> None:
    """Runs gcc in the variant's own directory, where it leaves what it makes."""
    directory = BUILD / variant
    directory.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = ["gcc", *VARIANTS[variant], *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"


@functools.cache
def common_objects(variant: str) -> tuple[Path, ...]:
    gcc(variant, "-c", *COMMON)
    return tuple(BUILD / variant / f"{source.stem}.o" for source in COMMON)


@functools.cache
def compiled(program: str, variant: str) -> Path:
    """tests/native/PROGRAM.c as an executable, compiled once per session."""
    gcc(variant, HERE / f"{program}.c", *common_objects(variant), "-l:libpcap.a", "-o", program)
    return BUILD / variant / program


def names_in(program: str) -> list[str]:
    """The tests in a C file, read from its text."""
    text = (HERE / f"{program}.c").read_text(encoding="utf-8")
    return re.findall(r"^TEST\((\w+)\)", text, flags=re.MULTILINE)
