"""Configuration files that somebody made to hurt, or that chance did: a list of errors or a plan, never else.

What is generated is the same in every run (derandomized), more of it with --long. The error list is looked at
as an operator would: each line has the file, a line that is there, and one printable sentence.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import device
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from lab.figures import figure
from xskd import config
from xskd.errors import ConfigError
from xskd.plan import make_plan
from xskd.rules import MAX_RULES

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "config/xskd.yaml", *sorted((ROOT / "config/examples").glob("*.yaml"))]
SCHEMA = config.schema()
Times = Callable[[int, int], int]
REFUSAL_SECONDS, REFUSAL_KB = 20.0, 400_000.0  # some three seconds and 150 MB here


def outcome(data: bytes) -> str:
    """Read a file of these bytes and plan what it asks for: "plan" or "errors"; anything else is raised."""
    try:
        loaded = config.parse(data, "x.yaml")
    except ConfigError as error:
        lines = data.decode(errors="replace").count("\n") + 1
        assert error.problems
        for problem in error.problems:
            assert 0 <= problem.line <= lines, problem
            assert problem.line or not problem.key, problem
            assert str(problem).startswith(f"x.yaml:{problem.line}: " if problem.line else "x.yaml: ")
            assert problem.message and str(problem).isprintable() and len(str(problem)) < 500, problem
            assert "Error" not in problem.message and "xception" not in problem.message, problem
        return "errors"
    found = {name: device(name, ifindex=9, queues=2) for name in loaded.interfaces}
    made = make_plan(loaded, found, (0, 1))
    assert {worker.path for worker in made.workers} | {path.name for path in made.waiting} == set(
        loaded.paths
    )
    for worker in made.workers:
        json.loads(json.dumps(worker.to_json()))
    return "plan"


def tried(examples: int) -> settings:
    return settings(
        derandomize=True,
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# ---- mutations of good files ------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_a_file_cut_off_at_every_byte(file: Path, times: Times) -> None:
    whole = file.read_bytes()
    seen = {outcome(whole[:end]) for end in range(0, len(whole) + 1, times(61, 1))}
    assert seen == {"errors", "plan"}
    assert outcome(whole) == "plan"


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_a_file_with_bits_flipped(file: Path, times: Times) -> None:
    """Comments are left out: a bit there is rarely news."""
    plain = "\n".join(line.partition(" #")[0] for line in file.read_text().splitlines()).encode()
    seen = set()
    for bit in range(0, 8 * len(plain), times(199, 1)):
        data = bytearray(plain)
        data[bit // 8] ^= 1 << bit % 8
        seen.add(outcome(bytes(data)))
    assert seen == {"errors", "plan"}


TEXTS = [
    "", " ", "\t", "\n", "\0", "\x1b[2J", "\u202e", "\ufeff", "é", "\U0001f600", "\ud800", "eth1", "no", "~",
    "null", "<<", "=", "*", "&a", "!!int", "%TAG", "---", "...", "- ", "? ", ": ", "{", "[", "|", ">", "'",
    '"', "0x" + "f" * 5000,
    "9" * 5000, "1e999", ".inf", ".nan", "-0", "0b", "0_1", "09", "1:2:3", "2001-01-01", "x" * 300,
    "../../etc/passwd",
    "10.0.0.0/33", "::/129", "0-65535", "65536", "-1", "4294967296", "a, b", "%s%n", "${HOME}", "__class__",
]  # fmt: skip
SCALARS = (
    some.sampled_from(TEXTS)
    | some.text(max_size=12)
    | some.integers()
    | some.integers(-1, 70000)
    | some.floats()
    | some.booleans()
    | some.none()
)
ANYTHING = some.recursive(
    SCALARS,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(SCALARS, inner, max_size=4),
    max_leaves=12,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(inside):
        yield value, key
        yield from places(below)


def mutated(draw: Callable[[Any], Any], tree: Any) -> Any:
    """One change: a value replaced, dropped, wrapped, copied to elsewhere, a key renamed."""
    around = list(places(tree))
    if not around:
        return draw(ANYTHING)
    container, key = draw(some.sampled_from(around))
    match draw(some.sampled_from(("replace", "replace", "drop", "wrap", "copy", "rename"))):
        case "replace":
            container[key] = draw(ANYTHING)
        case "drop":
            del container[key]
        case "wrap":
            container[key] = draw(some.sampled_from(([container[key]], {"tx": container[key]}, {})))
        case "copy":
            target, place = draw(some.sampled_from(around))
            target[place] = json.loads(json.dumps(container[key], default=str))
        case "rename" if isinstance(container, dict):
            container[draw(SCALARS)] = container.pop(key)
    return tree


def written(draw: Callable[[Any], Any], tree: Any) -> bytes:
    """Write a tree as YAML, in one of its styles; now and then with a line doubled, or a tab."""
    flow = draw(some.sampled_from((True, False, None)))
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=draw(some.booleans()), sort_keys=False)
    lines = text.splitlines(keepends=True)
    match draw(some.sampled_from(("as it is", "as it is", "as it is", "doubled", "tab", "moved"))):
        case "doubled" if lines:
            line = draw(some.integers(0, len(lines) - 1))
            lines.insert(line, lines[line])
        case "tab" if lines:
            line = draw(some.integers(0, len(lines) - 1))
            lines[line] = lines[line].replace("  ", "\t", 1)
        case "moved" if lines:
            lines.insert(
                draw(some.integers(0, len(lines))), lines.pop(draw(some.integers(0, len(lines) - 1)))
            )
    return "".join(lines).encode(errors="surrogatepass")


def test_files_changed_in_some_places(times: Times) -> None:
    trees = [file.read_text() for file in FILES]
    seen: dict[str, int] = {}

    @tried(times(60, 5_000))
    @given(some.data())
    def holds(data: Any) -> None:
        tree = yaml.safe_load(data.draw(some.sampled_from(trees)))
        for _ in range(data.draw(some.integers(1, 4))):
            tree = mutated(data.draw, tree)
        told = outcome(written(data.draw, tree))
        seen[told] = seen.get(told, 0) + 1

    holds()
    assert min(seen["plan"], seen["errors"]) > 0, seen


# ---- files made from the schema ---------------------------------------------------------------------


WORDS = ("eth1", "eth2", "eth3", "tcp", "syn", "10.0.0.0/8", "80", "0-3", "127.0.0.1:1", "off", "all")


def conforming(schema: dict[str, Any]) -> some.SearchStrategy[Any]:  # noqa: PLR0911
    """Make values that the schema allows, and some that it does not."""
    if "$ref" in schema:
        return some.deferred(lambda: conforming(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]))
    if choices := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return some.one_of([conforming(choice) for choice in choices])
    if "enum" in schema or "const" in schema:
        return some.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) else kind:
        case "object" if "properties" in schema:
            required = set(schema.get("required", ()))
            parts = {key: conforming(part) for key, part in schema["properties"].items()}
            return some.fixed_dictionaries(
                {key: part for key, part in parts.items() if key in required},
                optional={key: part for key, part in parts.items() if key not in required},
            )
        case "object":
            names = some.sampled_from(("eth1", "eth2", "eth3", "wire", "lan"))
            return some.dictionaries(names, conforming(schema.get("additionalProperties") or {}), max_size=3)
        case "array":
            return some.lists(conforming(schema.get("items") or {}), max_size=4)
        case "integer" | "number":
            return some.integers(schema.get("minimum", 0), min(schema.get("maximum", 4096), 4096))
        case "boolean":
            return some.booleans()
        case "null":
            return some.none()
        case "string":
            return some.sampled_from(WORDS)
    return ANYTHING


def test_files_made_from_the_schema(times: Times) -> None:
    seen: dict[str, int] = {}
    grammar = conforming(SCHEMA)

    @tried(times(100, 5_000))
    @given(some.data())
    def holds(data: Any) -> None:
        told = outcome(written(data.draw, data.draw(grammar)))
        seen[told] = seen.get(told, 0) + 1

    holds()
    assert seen["errors"] > 0, seen


@pytest.mark.parametrize("number", ["0x" + "f" * 9000, "0b" + "1" * 30_000, "0" + "7" * 9000, "9" * 9000])
@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "interfaces: {{eth1: {{rings: {{tx: {}}}}}}}\npaths: {{echo: {{reflect: eth1}}}}\n",
        "interfaces: {{eth1: {{queues: [{}]}}}}\npaths: {{echo: {{reflect: eth1, cpus: {}}}}}\n",
        "interfaces: {{eth1: }}\npaths: {{echo: {{reflect: {}}}}}\nlog: {}\n",
        "interfaces: {{eth1: {{rules: [{{verdict: drop, vlan: {}, protocol: {}}}]}}}}\n"
        "paths: {{e: {{reflect: eth1}}}}\n",
    ],
)
def test_a_number_too_long_to_be_written(text: str, number: str) -> None:
    """Python reads such numbers and refuses to write them: the error about it must not be one of Python's."""
    assert outcome(text.format(number, number).encode()) == "errors"


# ---- bombs ------------------------------------------------------------------------------------------

HEAD = "interfaces: {eth1: {}, eth2: {}}\npaths: {wire: {connect: [eth1, eth2]}}\n"
BOMBS: dict[str, str] = {
    "aliases": "a: &a [x,x]\n" + "".join(f"b{i}: &b{i} [{'*a,' * 9}]\n" for i in range(9000)),
    "merge keys": "a: &a {x: 1}\n" + "".join(f"b{i}: {{<<: *a}}\n" for i in range(9000)),
    "merge keys without aliases": HEAD + "<<: {<<: {<<: {log: {level: info}}}}\n",
    "a merge of itself": "a: &a {<<: *a}\n",
    "depth of lists": "[" * (1 << 20),
    "depth of mappings": "{a: " * 250_000,
    "depth of keys": "? " * 500_000,
    "many values": "a: [" + "1, " * 300_000 + "]",
    "many empty lists": "a: [" + "[]," * 300_000 + "]",
    "many lines": "- 1\n" * 250_000,
    "a long key": "x" * 1_000_000 + ": 1",
    "many long keys": "".join(f"{'x' * 1000}{i}: 1\n" for i in range(1000)),
    "a long number": HEAD + "umem: {frames: 0x" + "f" * 1_000_000 + "}",
    "a long float": HEAD + "umem: {frames: " + "1" * 500_000 + "." + "1" * 500_000 + "}",
    "quoted escapes": 'a: "' + "\\U0001F600" * 100_000 + '"',
    "a block scalar": "a: |\n" + "  x\n" * 250_000,
    "comments": "#" * (1 << 20),
    "spaces": " " * (1 << 20),
    "newlines": "\n" * (1 << 20),
    "anchors": "".join(f"k{i}: &a{i} 1\n" for i in range(60_000)),
    "tags": "".join(f"k{i}: !t{i} 1\n" for i in range(60_000)),
    "directives": "%TAG !a! tag:x,2000:\n" * 40_000 + "--- a",
    "ranges": HEAD + "umem: {frames: [" + "0-65535, " * 10_000 + "]}",
    "queues": "interfaces: {eth1: {queues: [" + "0-65535, " * 10_000 + "]}}\npaths: {e: {reflect: eth1}}\n",
    "ports": "interfaces: {eth1: {rules: [{verdict: drop, protocol: udp, source_port: ["
    + "1-2, " * 40_000 + "]}]}}\npaths: {e: {reflect: eth1}}\n",
    "prefixes": "interfaces: {eth1: {rules: [{verdict: drop, source: ["
    + "10.0.0.0/8, " * 40_000 + "]}]}}\npaths: {e: {reflect: eth1}}\n",
    "rules": "interfaces: {eth1: {rules: ["
    + "{verdict: drop}, " * 15_000 + "]}}\npaths: {e: {reflect: eth1}}\n",
    "interfaces": "interfaces: {"
    + ", ".join(f"e{i}: {{}}" for i in range(20_000)) + "}\npaths: {e: {reflect: e1}}\n",
    "one wide path": "interfaces: {eth1: }\npaths: {e: {route: [" + "eth1, " * 45_000 + "]}}\n",
}  # fmt: skip
JUDGE = """
import sys, time
from pathlib import Path
from xskd import config
from xskd.errors import ConfigError

def most():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

before = most()
for name in sys.argv[1:]:
    began = time.process_time()
    try:
        config.load(Path(name))
        said = "loaded"
    except ConfigError as error:
        said = str(error)
    print(time.process_time() - began, most() - before, max(map(len, said.splitlines())), said == "loaded")
"""


def judged(*files: Path) -> list[tuple[float, float, int, bool]]:
    """Load files in one process: CPU seconds, kB of memory so far, longest line it said, and if it loaded."""
    command = (sys.executable, "-c", JUDGE, *map(str, files))
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    told = [line.split() for line in done.stdout.splitlines()]
    assert len(told) == len(files)
    return [(float(s), float(kb), int(longest), loaded == "True") for s, kb, longest, loaded in told]


def test_bombs_are_refused_quickly_and_in_little_memory(tmp_path: Path, times: Times) -> None:
    """All of them with --long, else one of four; more of the same kinds are in test_config.py."""
    names = list(BOMBS)[:: times(4, 1)]
    files = [tmp_path / f"{name}.yaml" for name in names]
    for file, name in zip(files, names, strict=True):
        file.write_text(BOMBS[name])
    answers = dict(zip(names, judged(*files), strict=True))
    for name, (took, grown, longest, _) in answers.items():
        print(f"{name}: {took:.2f} s, {grown:.0f} kB so far")
        assert longest < 500, name
    slowest = max(took for took, _, _, _ in answers.values())
    largest = max(grown for _, grown, _, _ in answers.values())
    figure("the slowest configuration bomb is refused after CPU time of", slowest, "s", REFUSAL_SECONDS)
    figure("the largest one takes", largest, "kB", REFUSAL_KB)


def test_as_many_rules_as_six_interfaces_may_have(tmp_path: Path) -> None:
    rules = "".join(
        f"      - {{name: r{i}, source: 10.0.{i % 256}.0/24, protocol: udp, destination_port: [{i}, 9], "
        "verdict: drop}\n"
        for i in range(MAX_RULES)
    )
    text = "interfaces:\n" + "".join(f"  eth{n}:\n    rules:\n{rules}" for n in range(6))
    file = tmp_path / "rules.yaml"
    file.write_text(text + "paths: {lan: {route: [eth0, eth1, eth2, eth3, eth4, eth5]}}\n")
    ((took, grown, _, loaded),) = judged(file)
    assert loaded
    figure("a configuration of 6 times 1,024 rules is read in CPU time of", took, "s", REFUSAL_SECONDS)
    figure("the same takes", grown, "kB", REFUSAL_KB)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/urandom"])
def test_a_file_without_an_end_is_refused(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match="is larger than 1 MiB"):
        config.load(Path(name))
    assert time.monotonic() - began < REFUSAL_SECONDS
