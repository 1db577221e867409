"""What is promised of `xskd status --json`: every field has its words, and the answer fits the schema."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import connect, device, installed, resting
from jsonschema import Draft202012Validator

from xskd import cli, schema
from xskd.daemon import Supervisor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    with installed(monkeypatch):
        yield resting(connect(), device("eth1", queues=2), device("eth2", queues=2))


@pytest.mark.parametrize("kind", schema.WORDS, ids=lambda kind: kind.__name__)
def test_every_field_has_its_words(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    _, words = schema.WORDS[kind]
    assert set(words) == {field.name for field in dataclasses.fields(kind)}
    for text in words.values():
        assert text[0].isupper() or text.startswith(("`", "poll()", "sendto()", "recvfrom()"))
        assert text.endswith(".")


def test_every_part_of_the_answer_has_its_words() -> None:
    assert set(schema.status()["$defs"]) | {"DaemonStatus"} == {kind.__name__ for kind in schema.WORDS}


def test_the_page_is_generated_from_the_words() -> None:
    assert (ROOT / "docs" / "status.md").read_text() == schema.as_markdown(), (
        "run python -m xskd.schema > docs/status.md"
    )


def test_an_answer_is_valid_and_one_without_a_field_is_not(
    supervisor: Supervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["schema", "status"]) == 0
    validator = Draft202012Validator(json.loads(capsys.readouterr().out))
    validator.check_schema(validator.schema)
    answer = json.loads(json.dumps(supervisor.status().as_json()))
    assert list(validator.iter_errors(answer)) == []
    for part in (answer, answer["workers"][0], answer["workers"][0]["ports"][0]["counters"]):
        for name in list(part):
            value = part.pop(name)
            assert not validator.is_valid(answer), f"{name} is not required"
            part[name] = value
    answer["workers"][0]["ports"][0]["kernel"]["one_day"] = 1  # it may grow
    assert validator.is_valid(answer)
