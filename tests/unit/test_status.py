"""The sentence that systemd and an operator read first."""

from __future__ import annotations

from typing import Any

import pytest

from xskd.status import WorkerState, describe

Workers = list[tuple[str, WorkerState, set[str]]]


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        ([("wire/0", "forwarding", {"copy"})], "1 path, 1 queue forwarding, copy mode"),
        (
            [
                ("a/0", "forwarding", {"zerocopy"}),
                ("a/1", "forwarding", {"zerocopy"}),
                ("b/0", "forwarding", {"copy"}),
            ],
            "2 paths, 3 queues forwarding, copy and zerocopy mode",
        ),
        (
            [("wire/0", "forwarding", {"copy"}), ("wire/1", "backoff", set())],
            "1 path, 1 queue forwarding, copy mode; not forwarding: wire/1 (backoff)",
        ),
        (
            [("wire/0", "starting", set()), ("wire/1", "backoff", set())],
            "0 paths, 0 queues forwarding; not forwarding: wire/0 (starting), wire/1 (backoff)",
        ),
        ([], "0 paths, 0 queues forwarding"),
    ],
)
def test_one_sentence_says_what_forwards_and_what_does_not(workers: Workers, sentence: str) -> None:
    assert describe(workers) == sentence


WORKERS: Workers = [
    ("wire/0", "forwarding", {"copy"}),
    ("wire/1", "backoff", set()),
    ("echo/0", "waiting", set()),
    ("echo/1", "stopping", set()),
]
START = "1 path, 1 queue forwarding, copy mode; not forwarding: wire/1 (backoff)"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, START + ", echo/0 (waiting), echo/1 (stopping)"),
        ({"waiting": ["echo"]}, START + "; waiting: echo"),
        ({"waiting": ["echo", "wire"]}, "1 path, 1 queue forwarding, copy mode; waiting: echo, wire"),
        (
            {"waiting": ["echo"], "troubled": ["eth1 is down", "eth2 has no carrier"]},
            START + "; waiting: echo; link: eth1 is down, eth2 has no carrier",
        ),
        (
            {"waiting": ["echo"], "stale_config": True},
            START + "; waiting: echo; the configuration file is wrong, an older one runs",
        ),
    ],
)
def test_the_sentence_says_what_waits_what_is_wrong_with_links_and_that_the_file_is(
    more: dict[str, Any], sentence: str
) -> None:
    assert describe(WORKERS, **more) == sentence


def test_a_path_is_counted_once_however_many_queues_it_has() -> None:
    assert describe([(f"a.b-c/{index}", "forwarding", {"copy"}) for index in range(12)]) == (
        "1 path, 12 queues forwarding, copy mode"
    )
