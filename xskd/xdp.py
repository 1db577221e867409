"""The XDP program of an interface: load it, attach it, and say which XSK each queue's packets go to.

Loaded with libbpf, attached by bpf_link: when the last process that holds the link is gone, so is the
program, also after SIGKILL. Whoever keeps the link and the maps can go on with the program later, in another
process (`adopt`), and no packet notices. This module must never replace or detach a program that is not its
own (xskd/hook.py knows whose one is), and never attach one of another ABI version than it was written for.
See bpf/xdp_prog.bpf.c for what it does to a packet.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from xskd import hook
from xskd._libbpf import ffi, lib
from xskd.errors import XdpError
from xskd.hook import AttachMode, cleanup, libbpf_error, program_of

__all__ = [
    "ABI_VERSION",
    "OBJECT",
    "Attach",
    "AttachMode",
    "Fallback",
    "HasFileno",
    "Program",
    "Verdicts",
    "cleanup",
    "detach_link",
    "program_of",
]

Attach = Literal["auto", "native", "generic"]
Fallback = Literal["pass", "drop"]

OBJECT = Path(__file__).with_name("xdp_prog.o")
ABI_VERSION = 1  # XSKD_PROG_ABI in bpf/xdp_prog.h
# The maps of the program: type, bytes of a key and of a value, entries needed at least.
MAPS = {
    "xsks": (lib.BPF_MAP_TYPE_XSKMAP, 4, 4, 1),
    "fallback": (lib.BPF_MAP_TYPE_ARRAY, 4, 4, 1),
    "verdicts": (lib.BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 3),
}
TAKEN = frozenset({errno.EBUSY, errno.EEXIST})
# A driver that cannot take the program natively answers with one of many errnos (no support, MTU, queues,
# memory for its rings); only these say that generic mode would not help either.
NOT_THE_DRIVER = TAKEN | {errno.EPERM, errno.EACCES, errno.ENODEV}
# What a map answers when there was nothing to delete. A queue beyond an XSKMAP is EINVAL.
NOTHING_THERE = frozenset({errno.ENOENT, errno.E2BIG, errno.EINVAL})


class HasFileno(Protocol):
    """Anything with a descriptor, like an xskd.xsk.Socket."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


@dataclass(frozen=True)
class Verdicts:
    """What the program did with the packets it saw, since its maps were made; packets."""

    redirected: int
    no_socket_passed: int
    no_socket_dropped: int


class Program:
    """One loaded program for one interface, with an empty XSKMAP of `queues` entries.

    `queues` is the interface's real number of RX queues. Raises XdpError if the object is of another ABI
    version, or if the kernel refuses it (CAP_BPF and CAP_NET_ADMIN are needed).

    `attach_mode` is None until it is attached. `native_refused` is the errno of a driver that would not take
    it. `took_over` is the id of our own leftover that had to make room for it. `replaced` says that `adopt`
    found the program of another version attached.
    """

    attach_mode: AttachMode | None = None
    native_refused: int | None = None
    took_over: int | None = None
    replaced: bool = False
    _link: int | None = None
    _object: Any = ffi.NULL  # libbpf's, which has the maps' descriptors; none if adopted

    def __init__(self, queues: int, *, fallback: Fallback = "pass", path: Path = OBJECT) -> None:
        self.queues = queues
        self._object = _load(
            path, lambda opened: lib.bpf_map__set_max_entries(_map_of(opened, "xsks"), queues)
        )
        self._maps = {name: int(lib.bpf_map__fd(_map_of(self._object, name))) for name in MAPS}
        try:
            self.set_fallback(fallback)
        except XdpError:
            self.close()
            raise

    @classmethod
    def adopt(
        cls, interface: str, queues: int, descriptors: Mapping[str, int], *, ifindex: int, path: Path = OBJECT
    ) -> Program:
        """Go on with an attached program, whose `descriptors()` somebody has kept; they are ours from now on.

        If it is not the one of this version, that takes its place, with the same maps: every packet meets
        one of the two, with the sockets and the fallback that were there. Raises XdpError, and has closed
        the descriptors, if they are not those of a program on this interface with at least `queues` entries.
        """
        try:
            _check_adoptable(interface, ifindex, queues, descriptors)
            program = cls.__new__(cls)
            program.queues, program._link = queues, descriptors["link"]
            program._maps = {name: descriptors[name] for name in MAPS}
            program.attach_mode = hook.mode_of(ifindex, program.id)
            if program.attach_mode is None:
                detail = f"program {program.id} is not attached to it in this network namespace"
                raise libbpf_error("adopt", None, interface, detail)
            program.replaced = _bring_up_to_date(interface, program._link, program._maps, path)
        except BaseException:
            _close_all(descriptors.values())
            raise
        return program

    def attach(self, interface: str, mode: Attach = "auto", *, ifindex: int | None = None) -> None:
        """Attach to an interface, natively if the driver can (`auto`); `attach_mode` says which it became.

        Our own leftover there is removed first. Raises XdpError, also if the interface has any other program
        already: that is never replaced.
        """
        if not self._object or self._link is not None:
            raise libbpf_error("attach", None, interface, "this program is attached already, or closed")
        index = hook.ifindex_of(interface) if ifindex is None else ifindex
        if mode != "generic" and self._try_attach(interface, index, lib.XDP_FLAGS_DRV_MODE, mode == "native"):
            self.attach_mode = "native"
        else:
            self._try_attach(interface, index, lib.XDP_FLAGS_SKB_MODE, True)
            self.attach_mode = "generic"

    def renew(self, interface: str, path: Path = OBJECT) -> None:
        """Have the driver take the program anew, without a packet lost: it may have new queues to run it on.

        veth runs none on queues that it got after attaching. Raises XdpError.
        """
        _bring_up_to_date(interface, self._attached_by(), self._maps, path, same=True)

    @property
    def id(self) -> int:
        """The id of the program that is attached now. Raises XdpError if none is."""
        return program_of(self._attached_by())[0]

    def descriptors(self) -> dict[str, int]:
        """What `adopt` needs: `link`, and the maps `xsks`, `fallback`, `verdicts`; they stay ours.

        Whoever has a duplicate of the link keeps the program attached. Raises XdpError if it is not attached.
        """
        return {"link": self._attached_by(), **self._maps}

    def insert(self, queue: int, xsk: HasFileno, *, replace: bool = False) -> None:
        """Send what arrives on `queue` to this socket.

        Raises XdpError, also if another one is there, unless this is to take its place (`replace`).
        """
        key, value = ffi.new("uint32_t *", queue), ffi.new("uint32_t *", xsk.fileno())
        flags = lib.BPF_ANY if replace else lib.BPF_NOEXIST
        if (result := lib.bpf_map_update_elem(self._maps["xsks"], key, value, flags)) < 0:
            raise libbpf_error("BPF_MAP_UPDATE_ELEM(xsks)", -result, detail=f"queue {queue}")

    def remove(self, queue: int) -> None:
        """Stop sending packets of `queue` to a socket, if there is one: closing it has removed it as well.

        A queue that the map has no place for has none either. Raises XdpError if the kernel refuses.
        """
        result = lib.bpf_map_delete_elem(self._maps["xsks"], ffi.new("uint32_t *", queue))
        if result < 0 and -result not in NOTHING_THERE:
            raise libbpf_error("BPF_MAP_DELETE_ELEM(xsks)", -result, detail=f"queue {queue}")

    def set_fallback(self, fallback: Fallback) -> None:
        """What happens to packets of a queue without a socket, from the next packet on. Raises XdpError."""
        action = lib.XDP_DROP if fallback == "drop" else lib.XDP_PASS
        key, value = ffi.new("uint32_t *", 0), ffi.new("uint32_t *", action)
        if (result := lib.bpf_map_update_elem(self._maps["fallback"], key, value, lib.BPF_ANY)) < 0:
            raise libbpf_error("BPF_MAP_UPDATE_ELEM(fallback)", -result)

    def verdicts(self) -> Verdicts:
        """The counters, summed over all CPUs. Raises XdpError."""
        return Verdicts(*(self._count(index) for index in range(3)))

    def detach(self) -> None:
        """Take the program off its interface, whoever else has the link; `close` alone leaves that to them.

        Raises XdpError.
        """
        detach_link(self._attached_by())

    def close(self) -> None:
        """Forget the program, which detaches it unless somebody has its link too. Sockets are not touched."""
        if self._link is not None:
            os.close(self._link)
            self._link = None
        if self._object:
            lib.bpf_object__close(self._object)
            self._object = ffi.NULL
        else:
            _close_all(self._maps.values())
        self._maps = dict.fromkeys(MAPS, -1)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _attached_by(self) -> int:
        if self._link is None:
            raise libbpf_error("bpf_link", None, detail="this program is not attached")
        return self._link

    def _try_attach(self, interface: str, ifindex: int, flags: int, final: bool) -> bool:
        result = lib.xskd_link_create(_program_of(self._object), ifindex, flags)
        if -result in TAKEN and (number := hook.make_room(interface, ifindex, "BPF_LINK_CREATE")):
            self.took_over = number
            result = lib.xskd_link_create(_program_of(self._object), ifindex, flags)
        if result >= 0:
            self._link = result
            return True
        if -result in TAKEN:
            detail = "an XDP program is attached to a device that it is a part of, or was in this moment"
            raise libbpf_error("BPF_LINK_CREATE", -result, interface, detail)
        if final or -result in NOT_THE_DRIVER:
            mode = "native" if flags == lib.XDP_FLAGS_DRV_MODE else "generic"
            raise libbpf_error("BPF_LINK_CREATE", -result, interface, f"attaching in {mode} mode")
        self.native_refused = -result
        lib.xskd_libbpf_log()  # the driver's refusal is expected here
        return False

    def _count(self, index: int) -> int:
        values = ffi.new("uint64_t[]", lib.libbpf_num_possible_cpus())
        key = ffi.new("uint32_t *", index)
        if (result := lib.bpf_map_lookup_elem(self._maps["verdicts"], key, values)) < 0:
            raise libbpf_error("BPF_MAP_LOOKUP_ELEM(verdicts)", -result)
        return sum(values)


def detach_link(link: int) -> None:
    """Take whatever a bpf_link descriptor has attached off its interface, whoever else has the link.

    An interface that is gone has done that already. Raises XdpError.
    """
    result = lib.bpf_link_detach(link)
    if result < 0 and -result != errno.ENOLINK:
        raise libbpf_error("BPF_LINK_DETACH", -result)


def _load(path: Path, prepare: Callable[[Any], None]) -> Any:
    """The object at `path` in the kernel, attached nowhere; `prepare` sees to its maps before."""
    opened = _open_object(path)
    try:
        _check_abi(opened, path)
        prepare(opened)
        if (result := lib.bpf_object__load(opened)) < 0:
            raise libbpf_error("BPF_PROG_LOAD", -result)
    except XdpError:
        lib.bpf_object__close(opened)
        raise
    return opened


def _open_object(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise libbpf_error("open", error.errno, detail=str(path)) from error
    opened = lib.bpf_object__open_mem(content, len(content), ffi.NULL)
    if not opened:
        raise libbpf_error("bpf_object__open", ffi.errno, detail=f"{path} is no BPF object")
    return opened


def _check_abi(opened: Any, path: Path) -> None:
    """Raise unless the object says that it is of the version this module was written for."""
    found = lib.bpf_object__find_map_by_name(opened, b".rodata.abi")
    size = ffi.new("size_t *")
    value = lib.bpf_map__initial_value(found, size) if found else ffi.NULL
    version = ffi.cast("uint32_t *", value)[0] if value and size[0] == ffi.sizeof("uint32_t") else None
    if version != ABI_VERSION:
        detail = f"{path} has ABI version {version}, this xskd needs {ABI_VERSION}; install both together"
        raise libbpf_error("bpf_object", None, detail=detail)


def _map_of(loaded: Any, name: str) -> Any:
    found = lib.bpf_object__find_map_by_name(loaded, name.encode())
    if not found:
        raise libbpf_error("bpf_object", None, detail=f"no map {name} in it")
    return found


def _program_of(loaded: Any) -> int:
    found = lib.bpf_object__find_program_by_name(loaded, hook.PROGRAM.encode())
    return int(lib.bpf_program__fd(found))


def _check_adoptable(interface: str, ifindex: int, queues: int, descriptors: Mapping[str, int]) -> None:
    """Raise unless these are a link on this interface and maps that fit it."""
    if set(descriptors) != {"link", *MAPS}:
        detail = f"the descriptors link, {', '.join(MAPS)} are needed, not {', '.join(descriptors) or 'none'}"
        raise libbpf_error("adopt", None, interface, detail)
    if (found := program_of(descriptors["link"])[1]) != ifindex:
        where = f"interface {found}" if found else "an interface that is gone"
        raise libbpf_error("adopt", None, interface, f"the link is that of {where}, not of {ifindex}")
    for name, (kind, key, value, least) in MAPS.items():
        keys = ("map_type", "key_size", "value_size", "max_entries")
        said = hook.described(descriptors[name])
        *shape, entries = (int(said.get(key, -1)) for key in keys)
        if shape != [kind, key, value]:
            raise libbpf_error("adopt", None, interface, f"descriptor {name} is not that map of the program")
        if entries < (wanted := queues if name == "xsks" else least):
            detail = f"map {name} has {entries} entries, {wanted} are needed"
            raise libbpf_error("adopt", None, interface, detail)


def _bring_up_to_date(
    interface: str, link: int, maps: Mapping[str, int], path: Path, *, same: bool = False
) -> bool:
    """Have the program at `path` behind the link, with these maps; False if it is there already.

    With `same` a new copy takes its place also then: the kernel tells the driver of nothing less.
    """

    def reuse(opened: Any) -> None:
        for name, descriptor in maps.items():
            if (result := lib.bpf_map__reuse_fd(_map_of(opened, name), descriptor)) < 0:
                raise libbpf_error("bpf_map__reuse_fd", -result, interface, f"map {name}")

    loaded = _load(path, reuse)
    try:
        program, info = _program_of(loaded), ffi.new("struct xskd_program_info *")
        if (result := lib.xskd_program_info_of(program, info)) < 0:
            raise libbpf_error("BPF_OBJ_GET_INFO_BY_FD", -result, interface)
        if not same and hook.described(link)["prog_tag"] == bytes(info.tag).hex():
            return False
        if (result := lib.xskd_link_update(link, program)) < 0:
            raise libbpf_error("BPF_LINK_UPDATE", -result, interface)
        return True
    finally:
        lib.bpf_object__close(loaded)


def _close_all(descriptors: Any) -> None:
    for descriptor in set(descriptors):
        with suppress(OSError):
            os.close(descriptor)
