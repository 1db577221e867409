"""The bench's XDP programs, short enough to be written as instructions, and the call that makes load.

They are not taken from xdp-tools because Debian's xdp-bench insists on tracing programs, which not every
kernel has, and its xdp-trafficgen knows 64-byte frames only. The facilities of the kernel that do the work
are the same ones.

Everything acts in the network namespace of the calling thread (see `lab.entered`); nothing here may be
called outside a lab namespace. A program stays attached until its interface is removed.
"""

import ctypes
import os
import socket
import struct
from typing import Any

Program = list[tuple[int, int, int, int, int]]  # opcode, destination, source, offset, immediate

_LOAD_U16, _LOAD_U32, _STORE_U16 = 0x69, 0x61, 0x6B
_MOVE, _MOVE_K, _ADD_K, _JUMP_GREATER, _CALL, _EXIT = 0xBF, 0xB7, 0x07, 0x2D, 0x85, 0x95
_BPF_REDIRECT = 23  # helper number
_XDP_DROP, _XDP_TX = 1, 3
_XDP_FLAGS_DRV_MODE = 1 << 2
_BPF_PROG_TYPE_XDP = 6
_BPF_F_TEST_XDP_LIVE_FRAMES = 1 << 1

DROP: Program = [(_MOVE_K, 0, 0, 0, _XDP_DROP), (_EXIT, 0, 0, 0, 0)]
SEND_BACK: Program = [(_MOVE_K, 0, 0, 0, _XDP_TX), (_EXIT, 0, 0, 0, 0)]

_SWAP_TWO_BYTES = [(_LOAD_U16, 4, 2), (_LOAD_U16, 5, 2), (_STORE_U16, 2, 5), (_STORE_U16, 2, 4)]
SWAP_AND_SEND_BACK: Program = [
    (_LOAD_U32, 2, 1, 0, 0),  # r2 = data
    (_LOAD_U32, 3, 1, 4, 0),  # r3 = data_end
    (_MOVE, 4, 2, 0, 0),
    (_ADD_K, 4, 0, 0, 14),
    (_JUMP_GREATER, 4, 3, 12, 0),  # no Ethernet header: over the twelve instructions of the swap
    *(
        (opcode, to, by, at + word, 0)
        for word in (0, 2, 4)
        for (opcode, to, by), at in zip(_SWAP_TWO_BYTES, (0, 6, 0, 6), strict=True)
    ),
    *SEND_BACK,
]


def redirect_to(ifindex: int) -> Program:
    """Return the program that sends every frame out of another interface."""
    return [
        (_MOVE_K, 1, 0, 0, ifindex),
        (_MOVE_K, 2, 0, 0, 0),
        (_CALL, 0, 0, 0, _BPF_REDIRECT),
        (_EXIT, 0, 0, 0, 0),
    ]


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.x."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def _libbpf() -> Any:
    return ctypes.CDLL("libbpf.so.1")


def _load(program: Program) -> int:
    code = b"".join(struct.pack("=BBhi", op, to | by << 4, at, value) for op, to, by, at, value in program)
    fd: int = _libbpf().bpf_prog_load(_BPF_PROG_TYPE_XDP, b"bench", b"GPL", code, len(program), None)
    if fd < 0:
        raise OSError(-fd, f"bpf_prog_load: {os.strerror(-fd)}")
    return fd


def attach(program: Program, interface: str) -> None:
    """Attach the program to an interface in native mode."""
    fd = _load(program)
    try:
        error = _libbpf().bpf_xdp_attach(socket.if_nametoindex(interface), fd, _XDP_FLAGS_DRV_MODE, None)
    finally:
        os.close(fd)
    if error < 0:
        raise OSError(-error, f"bpf_xdp_attach to {interface}: {os.strerror(-error)}")


def send_live(frame: bytes, interface: str, times: int) -> None:
    """Have the kernel send the frame that often, in one system call; a signal ends it early."""
    fd = _load(SEND_BACK)
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    context = struct.pack("=6I", 0, len(frame), 0, socket.if_nametoindex(interface), 0, 0)
    options = _RunOptions(
        sz=ctypes.sizeof(_RunOptions),
        data_in=frame,
        data_size_in=len(frame),
        ctx_in=context,
        ctx_size_in=len(context),
        repeat=times,
        flags=_BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size=64,  # what a NIC's driver hands on in one poll, and xdp-trafficgen's value
    )
    try:
        error = _libbpf().bpf_prog_test_run_opts(fd, ctypes.byref(options))
    finally:
        os.close(fd)
    if error < 0:
        raise OSError(-error, f"bpf_prog_test_run_opts on {interface}: {os.strerror(-error)}")
