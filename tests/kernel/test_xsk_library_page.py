"""Every block of code in docs/library.md runs, from top to bottom, while packets arrive."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import entered
from xskd.xsk import Statistics

if TYPE_CHECKING:
    from conftest import MakeWire

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_every_block_of_the_page_runs(wire: MakeWire, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numpy", reason="needs numpy: the page shows it")
    text = PAGE.read_text(encoding="utf-8")
    net = wire()
    names: dict[str, Any] = {"__name__": "page"}
    ended = threading.Event()

    def traffic() -> None:
        number = 0
        while not ended.wait(0.001):
            net.taps[0].send([net.frame(number)])
            number += 1

    sender = threading.Thread(target=traffic)
    sender.start()
    try:
        with entered(net.dut):
            for block in BLOCK.finditer(text):
                assert block[1] == "python", "a block that no test runs"
                line = text.count("\n", 0, block.start(2))
                exec(compile("\n" * line + block[2], str(PAGE), "exec"), names)
    finally:
        ended.set()
        sender.join()
    said = capsys.readouterr().out
    assert said.startswith("copy native\n64 bytes from 02:00:00:00:00:01\n")
    assert "\n0 frames unaccounted for\n" in said
    assert "queue 7 does not exist" in said
    assert (names["seen"] >= 10, names["sent"], names["source"]) == (True, 8, bytes.fromhex("020000000001"))
    assert names["forwarder"].sockets[1].port.counters.tx_packets > 0
    assert names["lengths"].tolist() and "array" not in names
    arrived = [packet for packet in net.taps[0].waiting() if packet[14:19] == b"hello"]
    assert len(arrived) == 8


def test_the_page_names_every_statistic() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in Statistics.__dataclass_fields__ if f"`{name}`" not in text] == []
