"""The XDP program's object: into the kernel, with new maps or with those that a predecessor has left.

What a predecessor's maps are is told by their shapes and by the version in `settings`: those of this version
go on, the others are made anew around the sockets. This module must never load an object of another ABI
version than it was written for, and attaches nothing: it only changes what is behind a link.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xskd import hook, maps
from xskd._libbpf import ffi, lib
from xskd.errors import XdpError
from xskd.hook import libbpf_error, program_of
from xskd.maps import ANSWERS, KINDS, SHAPES

ABI_VERSION: int = lib.XSKD_PROG_ABI


def load(path: Path, prepare: Callable[[Any], None]) -> Any:
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


def map_of(loaded: Any, name: str) -> Any:
    """The map of this name in a loaded object. Raises XdpError."""
    found = lib.bpf_object__find_map_by_name(loaded, name.encode())
    if not found:
        raise libbpf_error("bpf_object", None, detail=f"no map {name} in it")
    return found


def program_in(loaded: Any) -> int:
    """The descriptor of the program in a loaded object, which stays the object's."""
    found = lib.bpf_object__find_program_by_name(loaded, hook.PROGRAM.encode())
    return int(lib.bpf_program__fd(found))


def check_adoptable(interface: str, ifindex: int, queues: int, descriptors: Mapping[str, int]) -> None:
    """Raise unless these are a link on this interface and an XSKMAP that fits it."""
    if not {"link", "xsks"} <= set(descriptors):
        detail = f"the descriptors link and xsks are needed, not {', '.join(descriptors) or 'none'}"
        raise libbpf_error("adopt", None, interface, detail)
    if (found := program_of(descriptors["link"])[1]) != ifindex:
        where = f"interface {found}" if found else "an interface that is gone"
        raise libbpf_error("adopt", None, interface, f"the link is that of {where}, not of {ifindex}")
    if wrong := maps.fits(descriptors["xsks"], "xsks", queues):
        raise libbpf_error("adopt", None, interface, wrong)


def of_this_version(descriptors: Mapping[str, int], queues: int) -> dict[str, int]:
    """The maps among them that this version's program can go on with."""
    fitting = {
        name: descriptors[name]
        for name in SHAPES
        if name in descriptors and maps.fits(descriptors[name], name, queues) is None
    }
    if "settings" in fitting and maps.read_settings(fitting["settings"]).abi == ABI_VERSION:
        return fitting
    return {"xsks": fitting["xsks"]}


def fallback_of(descriptors: Mapping[str, int]) -> int:
    """The fallback that was there: in `settings`, or up to ABI version 1 in a map of its own."""
    with suppress(XdpError):
        if "settings" in descriptors and maps.fits(descriptors["settings"], "settings", 1) is None:
            return int(maps.read_settings(descriptors["settings"]).fallback)
    found = ffi.new("uint32_t *", lib.XDP_PASS)
    if "fallback" in descriptors and hook.described(descriptors["fallback"]).get("value_size") == "4":
        lib.bpf_map_lookup_elem(descriptors["fallback"], ffi.new("uint32_t *", 0), found)
    return int(found[0])


def size(opened: Any, queues: int) -> None:
    """Say how many entries the maps have that depend on the number of queues."""
    for name, shape in SHAPES.items():
        if shape.by_queue:
            lib.bpf_map__set_max_entries(map_of(opened, name), shape.entries * queues)


def begin(made: dict[str, int], fallback: int) -> None:
    """Write the settings of a program that nobody has told anything yet. Raises XdpError."""
    first = ffi.new("struct xskd_settings *")
    first.abi, first.fallback = ABI_VERSION, fallback
    first.kind, first.answer = KINDS["connect"], ANSWERS["redirect"]
    maps.write_settings(made, first)


def begin_anew(
    interface: str, link: int, kept: Mapping[str, int], path: Path, *, queues: int, fallback: int
) -> dict[str, int]:
    """Have the program at `path` behind the link, with the maps that are kept; the others, which are new."""

    def prepare(opened: Any) -> None:
        size(opened, queues)
        _reuse(opened, kept, interface)

    made: dict[str, int] = {}
    loaded = load(path, prepare)
    try:
        for name in SHAPES.keys() - kept.keys():
            made[name] = fcntl.fcntl(lib.bpf_map__fd(map_of(loaded, name)), fcntl.F_DUPFD_CLOEXEC, 0)
        if "settings" in made:
            begin(made, fallback)
        if (result := lib.xskd_link_update(link, program_in(loaded))) < 0:
            raise libbpf_error("BPF_LINK_UPDATE", -result, interface)
    except BaseException:
        close_all(made.values())
        raise
    finally:
        lib.bpf_object__close(loaded)
    return made


def _reuse(opened: Any, kept: Mapping[str, int], interface: str) -> None:
    for name, descriptor in kept.items():
        if (result := lib.bpf_map__reuse_fd(map_of(opened, name), descriptor)) < 0:
            raise libbpf_error("bpf_map__reuse_fd", -result, interface, f"map {name}")


def bring_up_to_date(
    interface: str, link: int, kept: Mapping[str, int], path: Path, *, same: bool = False
) -> bool:
    """Have the program at `path` behind the link, with these maps; False if it is there already.

    With `same` a new copy takes its place also then: the kernel tells the driver of nothing less.
    """
    loaded = load(path, lambda opened: _reuse(opened, kept, interface))
    try:
        program, info = program_in(loaded), ffi.new("struct xskd_program_info *")
        if (result := lib.xskd_program_info_of(program, info)) < 0:
            raise libbpf_error("BPF_OBJ_GET_INFO_BY_FD", -result, interface)
        if not same and hook.described(link)["prog_tag"] == bytes(info.tag).hex():
            return False
        if (result := lib.xskd_link_update(link, program)) < 0:
            raise libbpf_error("BPF_LINK_UPDATE", -result, interface)
        return True
    finally:
        lib.bpf_object__close(loaded)


def close_all(descriptors: Any) -> None:
    """Close each once, whatever is closed already."""
    for descriptor in set(descriptors):
        with suppress(OSError):
            os.close(descriptor)
