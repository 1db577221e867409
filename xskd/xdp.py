"""The XDP program of an interface: load it, attach it, and say which XSK each queue's packets go to.

Loaded with libbpf, attached by bpf_link: when the last process that holds the link is gone, so is the
program, also after SIGKILL. This module must never replace or detach a program that is not its own, and
never attach one of another ABI version than it was written for. See bpf/xdp_prog.bpf.c for what it does to
a packet.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from xskd._libbpf import ffi, lib
from xskd.errors import XdpError

Attach = Literal["auto", "native", "generic"]
Fallback = Literal["pass", "drop"]

OBJECT = Path(__file__).with_name("xdp_prog.o")
ABI_VERSION = 1  # XSKD_PROG_ABI in bpf/xdp_prog.h
# A driver that cannot take the program natively answers with one of many errnos (no support, MTU, queues,
# memory for its rings); only these say that generic mode would not help either.
NOT_THE_DRIVER = frozenset({errno.EBUSY, errno.EEXIST, errno.EPERM, errno.EACCES, errno.ENODEV})

lib.xskd_libbpf_init()


class HasFileno(Protocol):
    """Anything with a descriptor, like an xskd.xsk.Socket."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


@dataclass(frozen=True)
class Verdicts:
    """What the program did with the packets it saw, since it was loaded; packets."""

    redirected: int
    no_socket_passed: int
    no_socket_dropped: int


class Program:
    """One loaded program for one interface, with an empty XSKMAP of `queues` entries.

    `queues` is the interface's real number of RX queues. Raises XdpError if the object is of another ABI
    version, or if the kernel refuses it (CAP_BPF and CAP_NET_ADMIN are needed).
    """

    def __init__(self, queues: int, *, fallback: Fallback = "pass", path: Path = OBJECT) -> None:
        self.queues = queues
        self.attach_mode: Literal["native", "generic"] | None = None
        self.native_refused: int | None = None
        self._link: int | None = None
        self._object = _open_object(path)
        try:
            _check_abi(self._object, path)
            lib.bpf_map__set_max_entries(self._map("xsks"), queues)
            if (result := lib.bpf_object__load(self._object)) < 0:
                raise _error("BPF_PROG_LOAD", -result)
            self._xsks, self._verdicts = (self._map_fd(name) for name in ("xsks", "verdicts"))
            self.set_fallback(fallback)
        except XdpError:
            self.close()
            raise

    def attach(self, interface: str, mode: Attach = "auto", *, ifindex: int | None = None) -> None:
        """Attach to an interface, natively if the driver can (`auto`); `attach_mode` says which it became.

        Raises XdpError, also if the interface has a program already: that is never replaced.
        """
        index = _ifindex(interface) if ifindex is None else ifindex
        if mode != "generic" and self._try_attach(interface, index, lib.XDP_FLAGS_DRV_MODE, mode == "native"):
            self.attach_mode = "native"
        else:
            self._try_attach(interface, index, lib.XDP_FLAGS_SKB_MODE, True)
            self.attach_mode = "generic"

    def insert(self, queue: int, xsk: HasFileno) -> None:
        """Send what arrives on `queue` to this socket. Raises XdpError, also if another one is there."""
        key, value = ffi.new("uint32_t *", queue), ffi.new("uint32_t *", xsk.fileno())
        if (result := lib.bpf_map_update_elem(self._xsks, key, value, lib.BPF_NOEXIST)) < 0:
            raise _error("BPF_MAP_UPDATE_ELEM(xsks)", -result, detail=f"queue {queue}")

    def remove(self, queue: int) -> None:
        """Stop sending packets of `queue` to a socket, if there is one: closing it has removed it as well."""
        if (result := lib.bpf_map_delete_elem(self._xsks, ffi.new("uint32_t *", queue))) < 0:
            raise _error("BPF_MAP_DELETE_ELEM(xsks)", -result, detail=f"queue {queue}")

    def set_fallback(self, fallback: Fallback) -> None:
        """What happens to packets of a queue without a socket, from the next packet on."""
        action = lib.XDP_DROP if fallback == "drop" else lib.XDP_PASS
        key, value = ffi.new("uint32_t *", 0), ffi.new("uint32_t *", action)
        if (result := lib.bpf_map_update_elem(self._map_fd("fallback"), key, value, lib.BPF_ANY)) < 0:
            raise _error("BPF_MAP_UPDATE_ELEM(fallback)", -result)

    def verdicts(self) -> Verdicts:
        """The counters, summed over all CPUs. Raises XdpError."""
        return Verdicts(*(self._count(index) for index in range(3)))

    def close(self) -> None:
        """Detach and forget the program. Sockets are not touched."""
        if self._link is not None:
            os.close(self._link)
            self._link = None
        if self._object:
            lib.bpf_object__close(self._object)
            self._object = ffi.NULL

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _try_attach(self, interface: str, ifindex: int, flags: int, final: bool) -> bool:
        program = lib.bpf_object__find_program_by_name(self._object, b"xskd")
        result = lib.xskd_link_create(lib.bpf_program__fd(program), ifindex, flags)
        if result >= 0:
            self._link = result
            return True
        if -result in (errno.EBUSY, errno.EEXIST):
            raise _error("BPF_LINK_CREATE", -result, interface, _whose_program(ifindex))
        if final or -result in NOT_THE_DRIVER:
            mode = "native" if flags == lib.XDP_FLAGS_DRV_MODE else "generic"
            raise _error("BPF_LINK_CREATE", -result, interface, f"attaching in {mode} mode")
        self.native_refused = -result
        lib.xskd_libbpf_log()  # the driver's refusal is expected here
        return False

    def _map(self, name: str) -> Any:
        found = lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise _error("bpf_object", None, detail=f"no map {name} in it")
        return found

    def _map_fd(self, name: str) -> int:
        return int(lib.bpf_map__fd(self._map(name)))

    def _count(self, index: int) -> int:
        values = ffi.new("uint64_t[]", lib.libbpf_num_possible_cpus())
        if (result := lib.bpf_map_lookup_elem(self._verdicts, ffi.new("uint32_t *", index), values)) < 0:
            raise _error("BPF_MAP_LOOKUP_ELEM(verdicts)", -result)
        return sum(values)


def _ifindex(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        detail = "no such interface in this network namespace; `ip -br link` lists them"
        raise _error("if_nametoindex", error.errno, interface, detail) from error


def _open_object(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _error("open", error.errno, detail=str(path)) from error
    opened = lib.bpf_object__open_mem(content, len(content), ffi.NULL)
    if not opened:
        raise _error("bpf_object__open", ffi.errno, detail=f"{path} is no BPF object")
    return opened


def _check_abi(opened: Any, path: Path) -> None:
    """Raise unless the object says that it is of the version this module was written for."""
    found = lib.bpf_object__find_map_by_name(opened, b".rodata.abi")
    size = ffi.new("size_t *")
    value = lib.bpf_map__initial_value(found, size) if found else ffi.NULL
    version = ffi.cast("uint32_t *", value)[0] if value and size[0] == ffi.sizeof("uint32_t") else None
    if version != ABI_VERSION:
        detail = f"{path} has ABI version {version}, this xskd needs {ABI_VERSION}; install both together"
        raise _error("bpf_object", None, detail=detail)


def _whose_program(ifindex: int) -> str:
    """Which program is attached, in words that lead on."""
    attached, info = ffi.new("struct xskd_attached *"), ffi.new("struct xskd_program_info *")
    if lib.xskd_attached_to(ifindex, attached) < 0 or attached.id == 0:
        return "another XDP program is attached"
    name = ""
    if lib.xskd_program_info(attached.id, info) == 0:
        name = f" ({ffi.string(info.name).decode(errors='replace')})"
    return (
        f"XDP program {attached.id}{name} is attached and is not ours to replace;"
        f" `bpftool prog show id {attached.id}` says more"
    )


def _error(call: str, error: int | None, interface: str | None = None, detail: str = "") -> XdpError:
    """An XdpError with what libbpf had to say since the last one."""
    said = ffi.string(lib.xskd_libbpf_log()).decode(errors="replace").strip()
    return XdpError(call, interface=interface, errno=error, detail="\n".join(filter(None, [detail, said])))
