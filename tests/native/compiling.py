"""Compiles the native programs: a test, fuzzer or benchmark, the data plane and a kernel to play with."""

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
DATA_PLANE = [source.name for source in COMMON[1:]]
VARIANTS = {
    "plain": [*OPTIMISE, *WARNINGS, "-g"],
    "sanitized": [*OPTIMISE, *WARNINGS, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}

# Faster to compile than with OPTIMISE, and the inlined checks are still where they are.
FUZZED = [
    "-O1",
    "-std=gnu11",
    *WARNINGS,
    "-g",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
]


def gcc(variant: str, *arguments: str | Path) -> None:
    """Runs gcc in the variant's own directory, where it leaves what it makes."""
    directory = BUILD / variant
    directory.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = ["gcc", *VARIANTS[variant], *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"


def clang(directory: Path, *arguments: str | Path) -> None:
    """Runs clang, whose libFuzzer leads the program: what gcc has no equal for."""
    directory.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = ["clang-14", *FUZZED, *arguments]
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


@functools.cache
def fuzzed_objects(csrc: Path, directory: Path) -> tuple[Path, ...]:
    clang(directory, "-c", *(csrc / name for name in DATA_PLANE))
    return tuple(directory / Path(name).with_suffix(".o") for name in DATA_PLANE)


def fuzzer(program: str, csrc: Path = CSRC, directory: Path = BUILD / "fuzzed") -> Path:
    """tests/native/PROGRAM.c as a libFuzzer program over the C of `csrc`."""
    objects = fuzzed_objects(csrc, directory)
    clang(directory, HERE / f"{program}.c", *objects, "-l:libpcap.a", "-o", program)
    return directory / program


@functools.cache
def shared_library(kernel: str) -> Path:
    """The data plane with tests/native/KERNEL.c in the place of its system calls, for cffi to load."""
    sources = [CSRC / name for name in DATA_PLANE]
    gcc("plain", "-fPIC", "-shared", HERE / f"{kernel}.c", *sources, "-l:libpcap.a", "-o", f"{kernel}.so")
    return BUILD / "plain" / f"{kernel}.so"


def names_in(program: str) -> list[str]:
    """The tests in a C file, read from its text."""
    text = (HERE / f"{program}.c").read_text(encoding="utf-8")
    return re.findall(r"^TEST\((\w+)\)", text, flags=re.MULTILINE)
