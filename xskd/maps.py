"""The maps of the XDP program: how Python and the program tell each other what they know.

Their layout is bpf/xdp_prog.h; nothing of it is written down again here. What is changed while packets go is
changed word by word (settings) or as a whole by one pointer (rules). This module must never attach, load or
detach anything: xdp.py does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xskd import hook
from xskd._libbpf import ffi, lib
from xskd.hook import libbpf_error

Answer = Literal["redirect", "express", "pass", "drop"]
Kind = Literal["reflect", "connect", "route"]
Fallback = Literal["pass", "drop"]

ANSWERS: dict[Answer, int] = {
    "redirect": lib.XSKD_REDIRECT,
    "express": lib.XSKD_EXPRESS,
    "pass": lib.XSKD_PASS,
    "drop": lib.XSKD_DROP,
}
KINDS: dict[Kind, int] = {
    "reflect": lib.XSKD_KIND_REFLECT,
    "connect": lib.XSKD_KIND_CONNECT,
    "route": lib.XSKD_KIND_ROUTE,
}
FALLBACKS: dict[Fallback, int] = {"pass": lib.XDP_PASS, "drop": lib.XDP_DROP}
_PREFIX = "XSKD_UNROUTABLE_"
_REASONS = ffi.typeof("enum xskd_unroutable").elements
# In the order of enum xskd_unroutable.
UNROUTABLE = tuple(
    _REASONS[number].removeprefix(_PREFIX).lower()
    for number in sorted(_REASONS)
    if number < lib.XSKD_UNROUTABLES
)
# What a map answers when there was nothing to delete. A queue beyond an XSKMAP is EINVAL.
NOTHING_THERE = frozenset({errno.ENOENT, errno.E2BIG, errno.EINVAL})


@dataclass(frozen=True)
class Shape:
    """What a map must be for this version of the program to go on with it."""

    kind: int
    value: int  # bytes
    entries: int  # at least
    by_queue: bool = False  # and that for each queue


# A key is four bytes in all of them.
SHAPES = {
    "xsks": Shape(lib.BPF_MAP_TYPE_XSKMAP, 4, 1, by_queue=True),
    "settings": Shape(lib.BPF_MAP_TYPE_ARRAY, ffi.sizeof("struct xskd_settings"), 1),
    "verdicts": Shape(lib.BPF_MAP_TYPE_PERCPU_ARRAY, ffi.sizeof("struct xskd_tally"), lib.XSKD_COUNTS),
    "rules": Shape(lib.BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 1),
    "rule_tallies": Shape(
        lib.BPF_MAP_TYPE_PERCPU_ARRAY, ffi.sizeof("struct xskd_rule_tally"), 2 * lib.XSKD_TALLIES
    ),
    "buckets": Shape(
        lib.BPF_MAP_TYPE_ARRAY, ffi.sizeof("struct xskd_bucket"), lib.XSKD_MAX_LIMITS, by_queue=True
    ),
    "egress": Shape(lib.BPF_MAP_TYPE_DEVMAP, 4, lib.XSKD_MAX_PORTS),
}


@dataclass(frozen=True)
class Settings:
    """What the program must know of its interface and of the path that it belongs to."""

    kind: Kind = "connect"
    answer: Answer = "redirect"  # where no rules are in force
    ports: tuple[int, ...] = ()  # ifindexes of the path's interfaces, in its order
    own: int = 0  # index of this interface among them
    mac: bytes = bytes(6)  # this interface's own


@dataclass(frozen=True)
class RuleTally:
    """What one rule has counted."""

    packets: int = 0  # that met this rule first
    bytes: int = 0  # theirs, whole frames without FCS
    limited: int = 0  # of these packets: dropped, because they were over the rule's limit


@dataclass(frozen=True)
class Verdicts:
    """What became of the packets the program saw, since its maps were made; packets (or bytes).

    In the order of enum xskd_verdict; each packet is in exactly one.
    """

    redirected: int = 0
    expressed: int = 0
    passed: int = 0
    dropped: int = 0
    rule_limited: int = 0
    path_limited: int = 0
    unroutable: int = 0
    no_socket_passed: int = 0
    no_socket_dropped: int = 0


def fits(descriptor: int, name: str, queues: int) -> str | None:
    """Why a descriptor cannot be this map of the program; None if it can. Raises XdpError if it is closed."""
    shape, said = SHAPES[name], hook.described(descriptor)
    *found, entries = (
        int(said.get(key, -1)) for key in ("map_type", "key_size", "value_size", "max_entries")
    )
    if found != [shape.kind, 4, shape.value]:
        return f"descriptor {name} is not that map of the program"
    if entries < (wanted := shape.entries * (queues if shape.by_queue else 1)):
        return f"map {name} has {entries} entries, {wanted} are needed"
    return None


def update(maps: dict[str, int], name: str, key: int, value: Any, *, flags: int | None = None) -> int:
    """Write one entry: 0 or a negative errno."""
    flags = lib.BPF_ANY if flags is None else flags
    return int(lib.bpf_map_update_elem(maps[name], ffi.new("uint32_t *", key), value, flags))


def read_settings(descriptor: int) -> Any:
    """The `struct xskd_settings` as it is. Raises XdpError."""
    found = ffi.new("struct xskd_settings *")
    if (result := lib.bpf_map_lookup_elem(descriptor, ffi.new("uint32_t *", 0), found)) < 0:
        raise libbpf_error("BPF_MAP_LOOKUP_ELEM(settings)", -result)
    return found


def write_settings(maps: dict[str, int], changed: Any) -> None:
    """Put it back. Raises XdpError."""
    if (result := update(maps, "settings", 0, changed)) < 0:
        raise libbpf_error("BPF_MAP_UPDATE_ELEM(settings)", -result)


def open_lanes_to(maps: dict[str, int], ports: Sequence[int]) -> None:
    """Let `egress` be these interfaces of this network namespace; one that is gone is left out.

    Raises XdpError.
    """
    for place in range(lib.XSKD_MAX_PORTS):
        result = -errno.ENODEV
        if place < len(ports):
            result = update(maps, "egress", place, ffi.new("uint32_t *", ports[place]))
        if result in (-errno.ENODEV, -errno.EINVAL):
            result = lib.bpf_map_delete_elem(maps["egress"], ffi.new("uint32_t *", place))
        if result < 0 and -result not in NOTHING_THERE:
            raise libbpf_error(
                "BPF_MAP_UPDATE_ELEM(egress)", -result, detail=f"interface {place} of the path"
            )


def tallies(descriptor: int, kind: str, first: int, count: int) -> list[tuple[int, ...]]:
    """Entries of a per-CPU map of structs of u64, each summed over all CPUs. Raises XdpError."""
    cpus, words = _possible_cpus(), ffi.sizeof(kind) // 8
    start = ffi.new("uint32_t *", first - 1) if first else ffi.NULL  # the batch begins behind it
    keys, values = ffi.new("uint32_t[]", count), ffi.new("uint64_t[]", count * cpus * words)
    got, behind = ffi.new("uint32_t *", count), ffi.new("uint32_t *")
    result = lib.bpf_map_lookup_batch(descriptor, start, behind, keys, values, got, ffi.NULL)
    if got[0] != count or (result < 0 and result != -errno.ENOENT):  # ENOENT: there are no more behind them
        raise libbpf_error("BPF_MAP_LOOKUP_BATCH", -result, detail=f"{got[0]} of {count} entries")
    flat = ffi.unpack(values, count * cpus * words)
    size = cpus * words
    return [
        tuple(sum(flat[at + word : at + size : words]) for word in range(words))
        for at in range(0, count * size, size)
    ]


def _possible_cpus() -> int:
    """How many values an entry of a per-CPU map has. libbpf reads it once. Raises XdpError."""
    cpus = int(lib.libbpf_num_possible_cpus())
    if cpus < 0:
        raise libbpf_error("open", -cpus, detail="/sys/devices/system/cpu/possible")
    return cpus


def clear(descriptor: int, kind: str, first: int, count: int, *, per_cpu: bool) -> None:
    """Set entries to zero. Raises XdpError."""
    keys = ffi.new("uint32_t[]", list(range(first, first + count)))
    size = ffi.sizeof(kind) * (_possible_cpus() if per_cpu else 1)
    got = ffi.new("uint32_t *", count)
    result = lib.bpf_map_update_batch(descriptor, keys, ffi.new("char[]", count * size), got, ffi.NULL)
    if result < 0:
        raise libbpf_error("BPF_MAP_UPDATE_BATCH", -result, detail=f"{got[0]} of {count} entries")


class Sets:
    """The rules in force, and the halves of `rule_tallies` that they and those before them count into.

    Which half is whose is told by `settings`, and which set is in force by the slot itself, so that a process
    that was killed between two steps leaves nothing that a successor could misread.
    """

    def __init__(self, maps: dict[str, int], queues: int) -> None:
        self._maps = maps
        self._queues = queues

    def in_force(self) -> int | None:
        """The half of the set in force; None if there is none. Raises XdpError."""
        found = ffi.new("uint32_t *")
        result = lib.bpf_map_lookup_elem(self._maps["rules"], ffi.new("uint32_t *", 0), found)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise libbpf_error("BPF_MAP_LOOKUP_ELEM(rules)", -result)
        settings = read_settings(self._maps["settings"])
        for half in (0, 1):
            if settings.sets[half].map == found[0]:
                return half
        raise libbpf_error("rules", None, detail=f"map {found[0]} is in force, which nobody has written down")

    def counted(self, half: int | None) -> tuple[RuleTally, ...]:
        """What the set of a half has counted, the default last; nothing without one. Raises XdpError."""
        if half is None:
            return ()
        settings = read_settings(self._maps["settings"])
        begin, count = half * lib.XSKD_TALLIES, settings.sets[half].count
        places = [(begin, count)] if count else []
        places.append((begin + lib.XSKD_DEFAULT, 1))
        return tuple(
            RuleTally(*each)
            for first, number in places
            for each in tallies(self._maps["rule_tallies"], "struct xskd_rule_tally", first, number)
        )

    def remove(self) -> None:
        """Have no rules; returns when no packet sees them any more. Raises XdpError."""
        result = lib.bpf_map_delete_elem(self._maps["rules"], ffi.new("uint32_t *", 0))
        if result < 0 and result != -errno.ENOENT:
            raise libbpf_error("BPF_MAP_DELETE_ELEM(rules)", -result)

    def put(self, image: bytes, half: int) -> None:
        """Have these rules, counted in this half; returns when no packet sees others. Raises XdpError."""
        content = ffi.new("struct xskd_rules *")
        if len(image) != ffi.sizeof("struct xskd_rules"):
            detail = f"an image has {ffi.sizeof('struct xskd_rules')} bytes, not {len(image)}"
            raise libbpf_error("rules", None, detail=detail)
        ffi.memmove(content, image, len(image))
        content.tallies = half * lib.XSKD_TALLIES
        clear(
            self._maps["rule_tallies"],
            "struct xskd_rule_tally",
            content.tallies,
            lib.XSKD_TALLIES,
            per_cpu=True,
        )
        clear(
            self._maps["buckets"],
            "struct xskd_bucket",
            0,
            self._queues * lib.XSKD_MAX_LIMITS,
            per_cpu=False,
        )
        inner = lib.xskd_rules_map()
        if inner < 0:
            raise libbpf_error("BPF_MAP_CREATE(xskd_rules)", -inner)
        try:
            self._swap_in(inner, content, half)
        finally:
            os.close(inner)

    def _swap_in(self, inner: int, content: Any, half: int) -> None:
        number = ffi.new("uint32_t *")
        result = lib.bpf_map_update_elem(inner, ffi.new("uint32_t *", 0), content, lib.BPF_ANY)
        if result < 0 or (result := lib.xskd_map_id(inner, number)) < 0:
            raise libbpf_error("BPF_MAP_UPDATE_ELEM(xskd_rules)", -result)
        changed = read_settings(self._maps["settings"])
        changed.sets[half].map, changed.sets[half].count = number[0], content.count
        write_settings(self._maps, changed)
        if (result := update(self._maps, "rules", 0, ffi.new("uint32_t *", inner))) < 0:
            raise libbpf_error("BPF_MAP_UPDATE_ELEM(rules)", -result)
