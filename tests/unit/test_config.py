"""Configuration files: what loads, and the exact text of every way not to."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from xskd import config
from xskd.errors import ConfigError
from xskd.yamltext import MAX_BYTES

HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "config" / "xskd.yaml"
BAD = sorted((HERE / "bad").glob("*.yaml"))
HEAD = "interfaces: {eth1: {}, eth2: {}}\npaths: {wire: {connect: [eth1, eth2]}}\n"


def errors_of(text: str | bytes, name: str = "x.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, name)
    return str(caught.value)


def interface(value: str) -> config.Interface:
    text = f"interfaces: {{eth1: {value}}}\npaths: {{echo: {{reflect: eth1}}}}\n"
    return config.parse(text, "x.yaml").interfaces["eth1"]


# ---- bad files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_bad_file_gives_exactly_the_expected_text(path: Path) -> None:
    assert errors_of(path.read_bytes(), path.name) + "\n" == path.with_suffix(".expected").read_text()


def test_the_table_is_complete() -> None:
    assert len(BAD) > 70
    assert {path.stem for path in BAD} == {path.stem for path in (HERE / "bad").glob("*.expected")}


def test_problems_carry_file_line_and_key_in_order_of_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(HEAD + "log: {level: loud}\nmetric: 1\n", "x.yaml")
    assert [(p.file, p.line, p.key) for p in caught.value.problems] == [
        ("x.yaml", 3, "log.level"),
        ("x.yaml", 4, "metric"),
    ]


def test_too_large_a_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(HEAD + "#" * MAX_BYTES)
    with pytest.raises(ConfigError, match=r"large.yaml: is larger than 1 MiB"):
        config.load(path)
    path.write_text(HEAD + "#" * (MAX_BYTES - len(HEAD)))
    assert config.load(path).log.level == "info"


HOSTILE = {
    "flat list": "a: [" + "1, " * 300_000 + "]",
    "many keys": "".join(f"k{i}: 1\n" for i in range(90_000)),
    "many unknown keys": HEAD + "".join(f"k{i}: 1\n" for i in range(20_000)),
    "deep flow": "a: " + "[" * 500_000,
    "deep block": "- " * 500_000,
    "deep keys": "? " * 500_000,
    "billion laughs": "a: &a [x,x]\n" + "b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" * 1000,
    "wide ranges": HEAD + "umem: {frames: [" + "0-65535, " * 10_000 + "]}",
    "wide cpu ranges": "interfaces: {a: {}}\npaths: {p: {reflect: a, cpus: [" + "0-65535, " * 10_000 + "]}}",
    "long scalar": HEAD + "log: {level: " + "x" * 1_000_000 + "}",
    "long key": HEAD + "x" * 1_000_000 + ": 1",
    "long number": HEAD + "umem: {frames: " + "9" * 1_000_000 + "}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused_quickly_and_briefly(text: str) -> None:
    started = time.process_time()
    lines = errors_of(text).splitlines()
    assert time.process_time() - started < 20  # some seconds here; without bounds minutes or a crash
    assert max(map(len, lines)) < 400


def test_too_many_values_are_refused_with_the_limit() -> None:
    assert errors_of(HOSTILE["flat list"]).startswith("x.yaml:1: more than 150000 values;")


@pytest.mark.parametrize(
    ("path", "why"),
    [("/nonexistent/xskd.yaml", "No such file or directory"), ("/", "Is a directory")],
)
def test_unreadable_file_is_a_config_error(path: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Path(path))
    assert str(caught.value) == f"{path}: cannot be read: {why}"


def mutations(text: str, count: int, seed: int) -> Iterator[bytes]:
    """The text with bytes changed, lines moved or doubled, and the end cut off."""
    pick = random.Random(seed)
    bits = [b":", b"{", b"}", b"[", b"]", b"-", b"&", b"*", b"!", b"\t", b"\n", b"'", b'"', b"#", b"%", b"?"]
    bits += [
        b"\xff",
        b"\0",
        b"0",
        b"9" * 30,
        b"off",
        b"~",
        b"---\n",
        b"|",
        b">",
        b"\\U",
        b"<<",
        b",",
        b"eth1",
    ]
    for _ in range(count):
        data = bytearray(text.encode())
        for _ in range(pick.randint(1, 6)):
            start = pick.randrange(len(data) + 1)
            data[start : start + pick.choice([0, 0, 1, 3, 40])] = pick.choice(bits)
        if pick.random() < 0.3:
            lines = data.splitlines(keepends=True)
            lines.insert(pick.randrange(len(lines)), pick.choice(lines))
            data = bytearray().join(lines)
        yield bytes(data[: pick.randrange(len(data) + 1)] if pick.random() < 0.3 else data)


def test_mutated_files_load_or_give_config_errors_and_nothing_else() -> None:
    plain = "\n".join(line.partition(" #")[0] for line in SHIPPED.read_text().splitlines())
    outcomes = {True: 0, False: 0}
    for data in mutations(plain, 2000, seed=1):
        try:
            config.parse(data, "m.yaml")
            outcomes[True] += 1
        except ConfigError as error:
            assert error.problems
            assert all(str(problem).isprintable() for problem in error.problems), str(error)
            outcomes[False] += 1
    assert min(outcomes.values()) > 20, outcomes  # both ways were tried


# ---- good files -----------------------------------------------------------------------------------


def test_shipped_file_loads_and_says_the_defaults() -> None:
    shipped = config.load(SHIPPED)
    assert shipped.model_dump() == config.parse(HEAD, "x.yaml").model_dump()
    assert shipped.paths["wire"].kind == "connect"
    assert shipped.paths["wire"].interfaces == ("eth1", "eth2")
    assert shipped.metrics.listen == ("127.0.0.1", 9478)
    assert shipped.control.socket == Path("/run/xskd/control.sock")
    assert (shipped.umem.frame_size, shipped.umem.frames, shipped.umem.huge_pages) == (4096, "auto", False)


def test_shipped_file_writes_out_every_key() -> None:
    written = yaml.safe_load(SHIPPED.read_text())
    sections = config.schema()["$defs"]
    assert set(written) == set(config.schema()["properties"])
    assert set(written["interfaces"]["eth1"]) == set(sections["Interface"]["properties"])
    assert set(written["interfaces"]["eth1"]["rings"]) == set(sections["RingDepths"]["properties"])
    assert set(written["paths"]["wire"]) | {"reflect", "route"} == set(sections["PathConfig"]["properties"])
    for section in ("umem", "metrics", "control", "log"):
        assert set(written[section]) == set(sections[section.capitalize()]["properties"])


def test_documentation_names_every_key_and_its_examples_load() -> None:
    text = (HERE.parents[1] / "docs" / "configuration.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 7
    for example in examples:
        assert config.parse(example, "configuration.md")
    headings = " ".join(line for line in text.splitlines() if line.startswith("#"))
    for section in config.schema()["$defs"].values():
        for key in set(section["properties"]) - {"rings"}:
            assert re.search(rf"[`.]{key}`", headings), key


@pytest.mark.parametrize(
    ("written", "queues"),
    [
        ("all", "all"),
        ("3", (3,)),
        ("[2, 0]", (0, 2)),
        ("0-3", (0, 1, 2, 3)),
        ('"0-1, 6"', (0, 1, 6)),
        ("[6, 0-1, 3 - 4]", (0, 1, 3, 4, 6)),
    ],
)
def test_queues(written: str, queues: object) -> None:
    assert interface(f"{{queues: {written}}}").queues == queues


def test_cpus_keep_their_order_and_repeats() -> None:
    text = "interfaces: {eth1: }\npaths: {echo: {reflect: eth1, cpus: [3, 0-1, 3]}}\n"
    assert config.parse(text, "x.yaml").paths["echo"].cpus == (3, 0, 1, 3)


@pytest.mark.parametrize(
    ("written", "listen"),
    [
        ("off", None),
        ('"off"', None),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ('"[::1]:9478"', ("::1", 9478)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_listen(written: str, listen: object) -> None:
    assert config.parse(f"{HEAD}metrics: {{listen: {written}}}\n", "x.yaml").metrics.listen == listen


def test_an_empty_section_means_its_defaults() -> None:
    text = "interfaces: {eth1: , eth2: {rings: }}\npaths: {wire: {connect: [eth1, eth2]}}\numem:\nlog:\n"
    assert config.parse(text, "x.yaml").model_dump() == config.parse(HEAD, "x.yaml").model_dump()


def test_a_configuration_knows_its_file_and_its_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(HEAD + "# \u00e9\n", encoding="utf-8")
    loaded = config.load(path)
    assert (loaded.file, loaded.text) == (str(path), HEAD + "# \u00e9\n")
    again = config.parse(loaded.text, loaded.file)
    assert (again.model_dump(), again.text) == (loaded.model_dump(), loaded.text)


def test_names_that_yaml_takes_for_other_things_work_as_keys() -> None:
    text = 'interfaces: {no: {}, 7: {}}\npaths: {on: {connect: ["no", "7"]}}\n'
    assert set(config.parse(text, "x.yaml").interfaces) == {"no", "7"}


def test_frames_at_the_least_that_rings_need() -> None:
    rings = "{rings: {fill: 256, rx: 512, tx: 128, completion: 128}}"  # of these, fill and tx count
    text = f"interfaces: {{eth1: {rings}, eth2: {{}}}}\npaths: {{wire: {{connect: [eth1, eth2]}}}}\n"
    least = 256 + 128 + 2048 + 1024
    assert config.parse(f"{text}umem: {{frames: {least}}}\n", "x.yaml").umem.frames == least
    assert f"write {least} or more" in errors_of(f"{text}umem: {{frames: {least - 1}}}\n")


def test_config_is_frozen() -> None:
    loaded = config.parse(HEAD, "x.yaml")
    with pytest.raises(ValueError, match="frozen"):
        loaded.log.level = "debug"


def test_problem_points_at_the_key_or_at_what_encloses_it() -> None:
    loaded = config.load(SHIPPED)
    lines = SHIPPED.read_text().splitlines()
    written = loaded.problem(("interfaces", "eth1", "rings", "tx"), "m")
    assert lines[written.line - 1].lstrip().startswith("tx:")
    assert str(written) == f"{SHIPPED}:{written.line}: interfaces.eth1.rings.tx: m"
    assert lines[loaded.problem(("interfaces", "eth2", "mode"), "m").line - 1].lstrip().startswith("eth2:")
    assert (
        lines[loaded.problem(("paths", "wire", "connect", 1), "m").line - 1].lstrip().startswith("connect:")
    )


# ---- the schema for editors -----------------------------------------------------------------------


def test_schema_is_valid_and_accepts_the_shipped_file() -> None:
    schema = config.schema()
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(yaml.safe_load(SHIPPED.read_text()))
    Draft202012Validator(schema).validate(yaml.safe_load(SHIPPED.read_text().replace("eth2: {}", "eth2:")))


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"umem": {"frame_size": 1500}},
        {"umem": {"huge_pages": 1}},
        {"log": {"level": "loud"}},
        {"paths": {"wire": {"connect": ["eth1"]}}},
        {"paths": {"lan": {"route": ["eth1"]}}},
        {"interfaces": {"eth1": {"rings": {"tx": 1000}}}},
        {"interfaces": {"eth1": {"queues": []}}},
    ],
)
def test_schema_refuses_what_the_loader_refuses(change: dict[str, Any]) -> None:
    assert not Draft202012Validator(config.schema()).is_valid({**yaml.safe_load(HEAD), **change})


def test_schema_describes_and_closes_every_section() -> None:
    schema = config.schema()
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        for name, key in section["properties"].items():
            assert key.get("description"), name
