"""Whose an interface's XDP hook is: what is attached there, and what of it may be removed.

There is one place for a program, and three kinds of tenant. A foreign program is nobody's business here. One
of xskd's that a bpf_link holds belongs to a living process, because links end with their holders, or to a
pin. One of xskd's without a link has been attached through netlink and stays until somebody removes it:
nobody can be holding it, so it is a leftover. This module must never detach anything but such a leftover,
and exactly the one that it looked at: the kernel compares.

Names are read by program id, which needs CAP_SYS_ADMIN; the daemon's unit has no such right, so that there
every program is as foreign as any, and `xskd cleanup` is for root.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xskd._libbpf import ffi, lib
from xskd.errors import XdpError

AttachMode = Literal["native", "generic"]

PROGRAM = "xskd"  # the function in bpf/xdp_prog.bpf.c, which gives the program its name

lib.xskd_libbpf_init()


@dataclass(frozen=True)
class Tenant:
    """One program on an interface; `name` is None where only CAP_SYS_ADMIN may see it."""

    program: int
    mode: AttachMode
    name: str | None


def tenants(ifindex: int) -> tuple[Tenant, ...]:
    """Every program attached to an interface of this network namespace, whoever's. Raises XdpError."""
    attached = _attached(ifindex)
    modes: tuple[tuple[int, AttachMode], ...] = ((attached.drv, "native"), (attached.skb, "generic"))
    return tuple(Tenant(number, mode, _name_of(number)) for number, mode in modes if number)


def cleanup(interface: str, *, ifindex: int | None = None) -> int | None:
    """Remove xskd's own leftover from an interface: the id of that program, None if there was no program.

    Raises XdpError, and leaves everything as it is, if what is attached there is not ours, is held by a
    bpf_link, or cannot be told (no CAP_SYS_ADMIN).
    """
    return make_room(interface, ifindex_of(interface) if ifindex is None else ifindex, "bpf_xdp_detach")


def make_room(interface: str, ifindex: int, call: str) -> int | None:
    """Like `cleanup`, for a call that has found the hook taken: the error is about that one."""
    attached = _attached(ifindex)
    for number, flags in ((attached.drv, lib.XDP_FLAGS_DRV_MODE), (attached.skb, lib.XDP_FLAGS_SKB_MODE)):
        if number:
            _remove(interface, ifindex, number, flags, call)
            return int(number)
    return None


def program_of(link: int) -> tuple[int, int]:
    """The id of the program behind a bpf_link descriptor, and the index of the interface it is attached to.

    The index is 0 once that interface is gone. Raises XdpError if the descriptor is no link for XDP.
    """
    said = described(link)
    if said.get("link_type") != "xdp":
        raise libbpf_error("bpf_link", None, detail=f"descriptor {link} is no bpf_link of an XDP program")
    return int(said["prog_id"]), int(said["ifindex"])


def mode_of(ifindex: int, program: int) -> AttachMode | None:
    """In which mode a program is attached to an interface of this network namespace; None: it is not."""
    attached = _attached(ifindex)
    if program == attached.drv:
        return "native"
    return "generic" if program == attached.skb else None


def described(descriptor: int) -> dict[str, str]:
    """What the kernel says of a descriptor, for a bpf_link also its program's tag.

    Not BPF_OBJ_GET_INFO_BY_FD: that answers for links, maps and programs alike, an XDP link, an XDP program
    and a per-CPU array all begin with the same 6, and it knows a tag only by program, which is reached by id.
    """
    try:
        text = Path("/proc/self/fdinfo", str(descriptor)).read_text(encoding="utf-8")
    except OSError as error:
        detail = f"/proc/self/fdinfo/{descriptor}; is /proc mounted?"
        raise libbpf_error("open", error.errno, detail=detail) from error
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def ifindex_of(interface: str) -> int:
    """The index of an interface of this network namespace. Raises XdpError if there is none."""
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        detail = "no such interface in this network namespace; `ip -br link` lists them"
        raise libbpf_error("if_nametoindex", error.errno, interface, detail) from error


def libbpf_error(call: str, error: int | None, interface: str | None = None, detail: str = "") -> XdpError:
    """An XdpError with what libbpf had to say since the last one."""
    said = ffi.string(lib.xskd_libbpf_log()).decode(errors="replace").strip()
    return XdpError(call, interface=interface, errno=error, detail="\n".join(filter(None, [detail, said])))


def _attached(ifindex: int) -> ffi.CData:
    attached = ffi.new("struct xskd_attached *")
    if (result := lib.xskd_attached_to(ifindex, attached)) < 0:
        raise libbpf_error("bpf_xdp_query", -result, detail=f"interface {ifindex}")
    return attached


def _name_of(number: int) -> str | None:
    program = lib.bpf_prog_get_fd_by_id(number)
    if program < 0:
        return None
    try:
        info = ffi.new("struct xskd_program_info *")
        if lib.xskd_program_info_of(program, info) < 0:
            return None
        return str(ffi.string(info.name).decode(errors="replace"))
    finally:
        os.close(program)


def _remove(interface: str, ifindex: int, number: int, flags: int, call: str) -> None:
    """Detach this program if it is a leftover; raise if it is not."""

    def refuse(program: str, lead: str) -> XdpError:
        text = f"XDP program {program} is attached and is not ours to replace: {lead}"
        return libbpf_error(call, errno.EBUSY, interface, text)

    program = lib.bpf_prog_get_fd_by_id(number)
    if program == -errno.EPERM:
        lead = f"only CAP_SYS_ADMIN may see whose; if it is xskd's leftover: `sudo xskd cleanup {interface}`"
        raise refuse(f"{number}", lead)
    if program < 0:
        raise libbpf_error("BPF_PROG_GET_FD_BY_ID", -program, interface, f"program {number}")
    try:
        info = ffi.new("struct xskd_program_info *")
        if (result := lib.xskd_program_info_of(program, info)) < 0:
            raise libbpf_error("BPF_OBJ_GET_INFO_BY_FD", -result, interface, f"program {number}")
        name = ffi.string(info.name).decode(errors="replace")
        if name != PROGRAM:
            raise refuse(f"{number} ({name})", f"`bpftool prog show id {number}` says more")
        result = lib.xskd_detach(ifindex, flags, program)
    finally:
        os.close(program)
    if result == -errno.EBUSY:
        lead = "another xskd has it, or a pin in /sys/fs/bpf; `sudo bpftool link show` says which process"
        raise refuse(f"{number} ({name})", lead)
    if result < 0:
        raise libbpf_error("bpf_xdp_detach", -result, interface, f"xskd's leftover, program {number}")
