"""The committed XDP object belongs to its source: a target without a compiler runs what can be read here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xskd.xdp import ABI_VERSION, OBJECT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clang_major() -> int:
    clang = shutil.which("clang-14") or shutil.which("clang")
    if clang is None:
        pytest.skip("needs clang: builds the XDP program again")
    for tool in ("make", "gcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: builds the XDP program again")
    said = subprocess.run((clang, "--version"), capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)", said)
    assert found, said
    return int(found[1])


@pytest.fixture(scope="module")
def rebuilt(clang_major: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the object in a copy of the sources elsewhere, so that a path in it would differ."""
    copy = tmp_path_factory.mktemp("elsewhere") / "bpf"
    shutil.copytree(ROOT / "bpf", copy)
    out = copy / "rebuilt.o"
    command = ["make", "-C", str(copy), f"OUT={out}"]
    if clang_major != 14:
        strip = next(
            (name for name in (f"llvm-strip-{clang_major}", "llvm-strip") if shutil.which(name)), None
        )
        if strip is None:
            pytest.skip("needs llvm-strip: builds the XDP program again")
        command += ["CLANG=clang", f"LLVM_STRIP={strip}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "file not found" in done.stderr:
        pytest.skip(f"needs the headers of libbpf and the kernel: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return out


def listed(path: Path) -> list[str]:
    """The program section as text, an instruction a line, with addresses."""
    objdump = shutil.which("llvm-objdump-14") or shutil.which("llvm-objdump")
    if objdump is None:
        pytest.skip("needs llvm-objdump: looks at the program by instruction")
    command = (objdump, "-d", "--no-show-raw-insn", "--section=xdp.frags", str(path))
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if re.match(r"\s+\d+:", line)]


def instructions(path: Path) -> list[str]:
    """The program section as text, without addresses."""
    return [line.split(":", 1)[1].strip() for line in listed(path)]


def test_the_committed_object_is_what_the_source_gives(clang_major: int, rebuilt: Path) -> None:
    if clang_major == 14:
        assert rebuilt.read_bytes() == OBJECT.read_bytes(), "run `make -B -C bpf` and commit the object"
    else:
        assert instructions(rebuilt) == instructions(OBJECT), "run `make -B -C bpf` and commit the object"


def edges(listing: str) -> dict[int, list[tuple[int, bool]]]:
    """Where each instruction of a disassembly may go on, and whether it jumps there."""
    found = [(int(line[1]), line[2]) for line in re.finditer(r"^\s+(\d+):\s+(.*)$", listing, re.MULTILINE)]
    behind = dict(zip((at for at, _ in found), (at for at, _ in found[1:]), strict=False))
    ways: dict[int, list[tuple[int, bool]]] = {}
    for at, text in found:
        jump = re.search(r"goto ([+-]\d+)", text)
        there = [(at + 1 + int(jump[1]), True)] if jump else []
        falls = [] if text.startswith(("exit", "goto")) else [(behind[at], jump is not None)]
        ways[at] = falls + there
    return ways


def loops_closed_by_falling(ways: dict[int, list[tuple[int, bool]]]) -> list[tuple[int, int]]:
    """Loops whose end falls into their beginning: what check_cfg() of Linux 6.1 calls a back-edge."""
    found = []
    under_way, walk = {0: True}, [(0, iter(ways[0]))]
    while walk:
        at, rest = walk[-1]
        for to, jumps in rest:
            if under_way.get(to) and not jumps:
                found.append((at, to))
            if to not in under_way:
                under_way[to] = True
                walk.append((to, iter(ways[to])))
                break
        else:
            under_way[at] = False
            walk.pop()
    return found


def test_every_loop_is_closed_by_a_jump_as_linux_6_1_wants_it() -> None:
    falling = {0: [(3, True)], 1: [(2, False)], 2: [(3, False)], 3: [(4, True), (1, True)], 4: []}
    assert loops_closed_by_falling(falling) == [(2, 3)]
    assert loops_closed_by_falling(edges("\n".join(listed(OBJECT)))) == []


def test_a_changed_source_gives_another_object(clang_major: int, rebuilt: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bpf"
    shutil.copytree(rebuilt.parent, copy)
    source = copy / "xdp_prog.bpf.c"
    text = source.read_text()
    assert "XDP_DROP : XDP_PASS" in text
    source.write_text(text.replace("XDP_DROP : XDP_PASS", "XDP_PASS : XDP_DROP"))
    command = ["make", "-C", str(copy), f"OUT={tmp_path / 'other.o'}"]
    if clang_major != 14:
        pytest.skip("needs clang 14: the comparison below is the byte-wise one")
    subprocess.run(command, capture_output=True, check=True)
    assert (tmp_path / "other.o").read_bytes() != OBJECT.read_bytes()


def test_no_path_of_the_building_machine_is_in_it() -> None:
    strings = re.findall(rb"[ -~]{4,}", OBJECT.read_bytes())
    assert strings
    absolute = [text for text in strings if re.search(rb"(^|[^.\w])/(home|root|work|tmp|usr|build)\b", text)]
    assert absolute == []


def test_the_loader_and_the_header_speak_of_the_same_abi_version() -> None:
    header = (ROOT / "bpf" / "xdp_prog.h").read_text()
    found = re.search(r"#define XSKD_PROG_ABI (\d+)", header)
    assert found and int(found[1]) == ABI_VERSION
