"""docs/conformance.md names each behaviour that the conformance tests check, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "tests" / "kernel" / "conformance").glob("test_*.py"))
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]


def section_of(file: Path) -> str:
    (found,) = (section for section in SECTIONS if f"`{file.name}`" in section.splitlines()[0])
    return found


def functions_of(file: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_test_is_a_row_and_each_row_a_test(file: Path) -> None:
    rows = re.findall(r"^\| [^|]+ \| `(test_\w+)` \|", section_of(file), flags=re.MULTILINE)
    assert sorted(rows) == sorted(functions_of(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_tells_a_result_for_the_modes_where_a_test_runs_in_them(file: Path) -> None:
    for name, function in functions_of(file).items():
        in_modes = any(argument.arg == "ends" for argument in function.args.args)
        (row,) = re.findall(rf"^\| [^|]+ \| `{name}` \|([^|]*)\|", section_of(file), flags=re.MULTILINE)
        assert (row.strip() in ("all modes", "differs")) == in_modes, name


def test_every_section_is_of_a_file() -> None:
    named = {name for section in SECTIONS for name in re.findall(r"`(test_conformance_\w+\.py)`", section)}
    assert named == {file.name for file in FILES}
