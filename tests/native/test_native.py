"""The C tests: rings, ports and loop over plain memory, plain and with the sanitizers. No root needed."""

import subprocess

import pytest
from compiling import HERE, VARIANTS, compiled, names_in

PROGRAMS = sorted(path.stem for path in HERE.glob("test_*.c"))
TESTS = [(program, name) for program in PROGRAMS for name in names_in(program)]


def run(program: str, variant: str, argument: str) -> "subprocess.CompletedProcess[str]":
    command = [str(compiled(program, variant)), argument]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("program", "name"), TESTS, ids=[f"{p}-{n}" for p, n in TESTS])
def test_native(program: str, name: str, variant: str) -> None:
    done = run(program, variant, name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_native_test_is_run(program: str) -> None:
    assert sorted(run(program, "plain", "--list").stdout.split()) == sorted(names_in(program))


def test_an_unknown_native_test_does_not_pass() -> None:
    assert run("test_rings", "plain", "no_such_test").returncode != 0
