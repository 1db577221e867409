"""What outlives the supervisor: sets of descriptors and one file, whole or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeSystemd, installed, with_store

from xskd.store import Store


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSystemd]:
    """A store with its directory."""
    with installed(monkeypatch) as made:
        with_store(monkeypatch, tmp_path)
        yield made


@pytest.fixture
def memories() -> Iterator[list[int]]:
    """Three files that can be told apart."""
    made = [os.memfd_create(str(number)) for number in range(3)]
    for number, fd in enumerate(made):
        os.write(fd, b"content %d" % number)
    yield made
    for fd in made:
        os.close(fd)


def contents(taken: dict[str, int] | None) -> dict[str, bytes]:
    """Read and close what was taken."""
    assert taken is not None
    found = {name: os.pread(fd, 100, 0) for name, fd in taken.items()}
    for fd in taken.values():
        os.close(fd)
    return found


def inodes(fds: Iterator[int] | list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


# ---- sets of descriptors --------------------------------------------------------------------------


def test_a_set_arrives_whole_in_order_and_is_the_same_objects(
    systemd: FakeSystemd, memories: list[int]
) -> None:
    first = Store()
    assert not first.inherited
    first.put("worker wire/0", dict(zip(("umem", "counters", "xsk eth1"), memories, strict=True)))
    second = Store()
    assert second.inherited
    taken = second.take("worker wire/0")
    assert taken is not None
    assert list(taken) == ["umem", "counters", "xsk eth1"]
    assert inodes(list(taken.values())) == inodes(memories)
    assert not any(os.get_inheritable(fd) for fd in taken.values())
    assert not set(taken.values()) & set(memories)
    os.write(memories[0], b", more")
    assert contents(taken)["umem"] == b"content 0, more"


def test_what_was_taken_is_still_there_for_the_successor_of_one_that_died_early(
    systemd: FakeSystemd, memories: list[int]
) -> None:
    Store().put("a", {"x": memories[0], "y": memories[1]})
    for _ in range(3):
        assert contents(Store().take("a")) == {"x": b"content 0", "y": b"content 1"}


def test_a_set_is_taken_once_by_one_process(systemd: FakeSystemd, memories: list[int]) -> None:
    Store().put("a", {"x": memories[0]})
    heir = Store()
    assert contents(heir.take("a")) == {"x": b"content 0"}
    assert heir.take("a") is None
    assert heir.take("b") is None


def test_systemd_is_told_not_to_watch_what_nobody_writes_to(
    systemd: FakeSystemd, memories: list[int]
) -> None:
    Store().put("a", {"x": memories[0]})
    assert list(systemd.kept) == ["a"]
    assert systemd.polled == set()


def test_a_set_of_the_same_name_takes_the_place_of_the_older(
    systemd: FakeSystemd, memories: list[int]
) -> None:
    store = Store()
    store.put("a", {"x": memories[0]})
    store.put("a", {"x": memories[1]})  # the fake refuses two of a name
    assert contents(Store().take("a")) == {"x": b"content 1"}


def test_what_is_dropped_is_gone_here_and_at_systemd(systemd: FakeSystemd, memories: list[int]) -> None:
    store = Store()
    store.put("a", {"x": memories[0]})
    store.put("b", {"x": memories[1]})
    heir = Store()
    heir.drop("a")
    assert heir.take("a") is None
    assert heir.untaken == ["b"]
    assert list(systemd.kept) == ["b"]
    heir.drop("a")  # once more is no error
    assert Store().untaken == ["b"]


def test_a_set_that_is_dropped_after_it_was_taken_stays_with_who_took_it(
    systemd: FakeSystemd, memories: list[int]
) -> None:
    Store().put("a", {"x": memories[0]})
    heir = Store()
    taken = heir.take("a")
    heir.drop("a")
    assert contents(taken) == {"x": b"content 0"}
    assert not Store().inherited


def test_who_has_not_been_taken_is_known(systemd: FakeSystemd, memories: list[int]) -> None:
    for name in ("c", "a", "b"):
        Store().put(name, {"x": memories[0]})
    heir = Store()
    assert heir.untaken == ["a", "b", "c"]
    contents(heir.take("b"))
    assert heir.untaken == ["a", "c"]


def test_as_many_descriptors_as_a_worker_may_have_go_in(systemd: FakeSystemd, memories: list[int]) -> None:
    Store().put("a", {str(number): memories[number % 3] for number in range(66)})
    taken = Store().take("a")
    assert taken is not None
    assert inodes(list(taken.values())) == inodes(memories) * 22
    contents(taken)


def test_a_kernel_that_has_no_room_costs_the_set_and_not_the_daemon(
    systemd: FakeSystemd,
    memories: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> int:
        raise OSError(109, "Too many references: cannot splice")

    Store().put("a", {"x": memories[0]})
    monkeypatch.setattr(socket, "send_fds", full)
    Store().put("a", {"x": memories[1]})
    assert systemd.kept == {}  # an older set of the name would be a wrong one
    assert caplog.messages == [
        "a cannot be stored, so a restart will start it anew: [Errno 109] Too many references: cannot splice"
    ]


@pytest.mark.parametrize(
    "garbage",
    [None, b"", b"\xff", b"no json", b"17", b'["x", "y"]', b"[]"],
    ids=["nothing", "empty", "bytes", "words", "a number", "names without descriptors", "none without names"],
)
def test_garbage_in_the_store_is_nothing(
    systemd: FakeSystemd, memories: list[int], garbage: bytes | None
) -> None:
    inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with inside, outside:
        if garbage is not None:
            # Names without a descriptor, or with one too many.
            socket.send_fds(outside, [garbage], [] if garbage == b'["x", "y"]' else memories[:1])
        systemd.kept["a"] = os.dup(inside.fileno())
        store = Store()
        before = set(os.listdir("/proc/self/fd"))
        assert store.take("a") is None
        assert set(os.listdir("/proc/self/fd")) < before  # nothing came, and the set itself is closed


def test_a_descriptor_that_is_no_socket_is_nothing(systemd: FakeSystemd, memories: list[int]) -> None:
    systemd.kept["a"] = os.dup(memories[0])
    store = Store()
    assert (store.inherited, store.take("a")) == (False, None)


# ---- the file -------------------------------------------------------------------------------------


def test_a_successor_reads_what_was_saved_last(systemd: FakeSystemd) -> None:
    Store().save('{"a": 1}')
    Store().save('{"a": 2}')
    assert Store().load() == {"a": 2}


def test_the_file_is_replaced_and_never_written_into(systemd: FakeSystemd, tmp_path: Path) -> None:
    store = Store()
    store.save('{"a": 1}')
    with (tmp_path / "state.json").open() as reading:
        store.save('{"a": 2}')
        assert reading.read() == '{"a": 1}'  # who had begun to read sees the old one to its end
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_save_that_fails_leaves_the_old_file(systemd: FakeSystemd, tmp_path: Path) -> None:
    store = Store()
    store.save('{"a": 1}')
    (tmp_path / "state.new").mkdir()
    with pytest.raises(OSError, match=r"state\.new"):
        store.save('{"a": 2}')
    assert store.load() == {"a": 1}


@pytest.mark.parametrize("text", [None, b"", b"{", b'["a"]', b"17", b"null", b"\xff\xfe", b'{"a": 1}x'])
def test_a_file_that_is_missing_or_garbage_is_empty(
    systemd: FakeSystemd, tmp_path: Path, text: bytes | None
) -> None:
    if text is not None:
        (tmp_path / "state.json").write_bytes(text)
    assert Store().load() == {}


def test_a_file_that_cannot_be_read_is_empty(systemd: FakeSystemd, tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()
    assert Store().load() == {}


def test_the_first_runtime_directory_is_ours(
    systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/one:{tmp_path}/two")
    Store().save("{}")
    assert (tmp_path / "one" / "state.json").exists()


# ---- without systemd ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["RUNTIME_DIRECTORY", "NOTIFY_SOCKET"])
def test_without_systemd_nothing_is_kept(
    systemd: FakeSystemd,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    memories: list[int],
    missing: str,
) -> None:
    Store().put("a", {"x": memories[0]})
    Store().save('{"a": 1}')
    monkeypatch.delenv(missing)
    store = Store()
    assert (store.active, store.inherited, store.untaken, store.load()) == (False, False, [], {})
    store.put("b", {"x": memories[0]})
    store.drop("a")
    store.save('{"a": 2}')
    assert store.take("a") is None
    assert list(systemd.kept) == ["a"]
    assert (tmp_path / "state.json").read_text() == '{"a": 1}'
