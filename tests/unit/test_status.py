"""The sentence that systemd and an operator read first."""

from __future__ import annotations

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
