"""The counter page: made once, opened by others, refused when it is not ours, read without waiting."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from xskd._forward import ffi, lib

from xskd.counters import DROPS, PAGE_SIZE, PLACES, RINGS, WAKEUP_ERRORS, CounterPage
from xskd.errors import XskdError


@pytest.fixture
def page() -> Iterator[CounterPage]:
    made = CounterPage(100)
    yield made
    made.close()


def test_a_new_page_is_all_zero_and_says_its_layout(page: CounterPage) -> None:
    read = page.read(2)
    assert page.struct.layout_version == lib.XSKD_LAYOUT_VERSION
    assert (read.heartbeat_ns, read.turns, read.frames, read.frames_unaccounted) == (0, 0, 0, 0)
    assert set(read.frames_in.values()) == {0}
    assert len(read.ports) == 2 and not any(read.ports[1].drops.values())
    assert bytes(page.owner) == bytes(100)


def test_names_are_those_of_the_header_in_its_order() -> None:
    assert DROPS == (
        "undersize",
        "oversize",
        "tx_full",
        "tx_refused",
        "invalid",
        "fragments",
        "no_metadata",
        "abandoned",
    )
    assert PLACES == ("free", "fill", "rx", "held", "tx", "completion", "kernel", "quarantined")
    assert RINGS == ("fill", "rx", "tx", "completion")
    assert WAKEUP_ERRORS == ("EAGAIN", "EBUSY", "ENOBUFS", "ENETDOWN", "ENXIO", "OTHER")


def test_every_counter_of_the_header_can_be_read_under_its_name(page: CounterPage) -> None:
    value = 1
    for name, field in ffi.typeof("struct xskd_port_counters").fields:
        if name == "rx_rest":  # no counter, and nobody's but a successor's
            continue
        counter = getattr(page.port(1), name)
        for index in range(field.type.length if field.type.kind == "array" else 0):
            counter[index] = value + index
        if field.type.kind != "array":
            setattr(page.port(1), name, value)
        found = getattr(page.read(2).ports[1], name)
        elements = list(found.values()) if isinstance(found, dict) else found
        assert (elements[0] if isinstance(elements, list) else elements) == value
        value += 100
    assert page.read(1).ports[0].rx_packets == 0


def test_what_one_process_writes_another_reads(page: CounterPage) -> None:
    other = CounterPage(100, fd=os.dup(page.fd))
    other.port(0).rx_packets = 7
    other.struct.turns = 3
    other.owner[99] = 0x40
    assert (page.read(1).ports[0].rx_packets, page.read(1).turns, page.owner[99]) == (7, 3, 0x40)
    other.close()


def test_counters_outlive_the_one_who_wrote_them(page: CounterPage) -> None:
    writer = CounterPage(100, fd=os.dup(page.fd))
    writer.port(0).tx_packets = 5
    writer.close()
    successor = CounterPage(100, fd=os.dup(page.fd))
    successor.port(0).tx_packets += 1
    successor.close()
    assert page.read(1).ports[0].tx_packets == 6


def test_a_page_of_another_layout_is_refused(page: CounterPage) -> None:
    os.pwrite(page.fd, (99).to_bytes(8, "little"), 0)
    with pytest.raises(XskdError, match=f"of layout 99; this xskd has {lib.XSKD_LAYOUT_VERSION}"):
        CounterPage(100, fd=os.dup(page.fd))


@pytest.mark.parametrize("size", [0, 4096, PAGE_SIZE, PAGE_SIZE + 99])
def test_a_page_that_is_too_small_is_refused(size: int) -> None:
    fd = os.memfd_create("small")
    os.ftruncate(fd, size)
    with pytest.raises(XskdError, match=f"counter page of {size} bytes; 100 frames need {PAGE_SIZE + 100}"):
        CounterPage(100, fd=fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_writer_stopped_in_the_middle_does_not_hold_up_a_reader(page: CounterPage) -> None:
    page.struct.sequence = 1
    page.port(0).rx_packets = 7
    assert page.read(1).ports[0].rx_packets == 7


def test_gauges_of_one_read_belong_to_one_moment(page: CounterPage, monkeypatch: pytest.MonkeyPatch) -> None:
    page.struct.sequence = 1
    page.struct.frames_in[0] = 5  # and the others are still 0: the writer is in the middle
    pauses = []

    def the_writer_finishes(seconds: float) -> None:
        pauses.append(seconds)
        for place in range(len(PLACES)):
            page.struct.frames_in[place] = 5
        page.struct.sequence = 2

    monkeypatch.setattr("xskd.counters.time.sleep", the_writer_finishes)
    assert set(page.read(0).frames_in.values()) == {5}
    assert len(pauses) == 1


def test_a_closed_page_has_no_descriptor_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    CounterPage(100).close()
    assert len(os.listdir("/proc/self/fd")) == before
