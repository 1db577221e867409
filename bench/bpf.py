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
import sys
from typing import Any

Program = list[tuple[int, int, int, int, int]]  # opcode, destination, source, offset, immediate

_LOAD_U16, _LOAD_U32, _STORE_U16 = 0x69, 0x61, 0x6B
_LOAD_U8, _STORE_U8, _STORE_K_U32, _STORE_K_U64, _JUMP_NOT_EQUAL_K, _JUMP_LESS_K = (
    0x71,
    0x73,
    0x62,
    0x7A,
    0x55,
    0xA5,
)
_STORE_U32, _MOVE, _MOVE_K, _ADD, _ADD_K, _CALL, _EXIT = 0x63, 0xBF, 0xB7, 0x0F, 0x07, 0x85, 0x95
_OR_K, _AND_K, _XOR_K, _SHIFT_RIGHT_K, _TO_BIG_ENDIAN = 0x47, 0x57, 0xA7, 0x77, 0xDC
_JUMP_GREATER, _JUMP_NOT_LESS_K = 0x2D, 0x35
_GET_PRANDOM_U32, _BPF_REDIRECT, _XDP_ADJUST_TAIL, _FIB_LOOKUP = 7, 23, 65, 69  # helper numbers
_XDP_DROP, _XDP_PASS, _XDP_TX = 1, 2, 3
_XDP_FLAGS_DRV_MODE = 1 << 2
_BPF_PROG_TYPE_XDP = 6
_BPF_F_TEST_XDP_LIVE_FRAMES = 1 << 1
_BATCH = 64  # frames at a time: what a NIC's driver hands on in one poll, and xdp-trafficgen's value

DROP: Program = [(_MOVE_K, 0, 0, 0, _XDP_DROP), (_EXIT, 0, 0, 0, 0)]
SEND_BACK: Program = [(_MOVE_K, 0, 0, 0, _XDP_TX), (_EXIT, 0, 0, 0, 0)]
PASS: Program = [(_MOVE_K, 0, 0, 0, _XDP_PASS), (_EXIT, 0, 0, 0, 0)]

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


# Where things are in a frame of UDP over IPv4 without options.
_ID, _TTL, _DESTINATION, _SOURCE_PORT, _DESTINATION_PORT, _UDP_END = 18, 22, 30, 34, 36, 42
MIX_OF = 32  # the parts that mixed() divides into


def varied(
    end: Program,
    *,
    addresses: int = 1,
    address: int = 0,
    ports: int = 1,
    port: int = 0,
    flows: bool = False,
    renewed: bytes = b"",
) -> Program:
    """Return a program that writes a random destination into a UDP frame, then does as `end` does.

    One of so many addresses and ports (powers of two) from the given one on, and any source port for `flows`.
    The frame's header checksum must be that of the destination 0.0.0.0 and the identification 0 if addresses
    vary: the identification then takes what makes it right again. Its UDP checksum must be 0, that is none.

    The kernel sends the same few frames again and again. A router changes their MAC addresses, TTL and
    checksum; these are `renewed` from that frame.
    """
    write: Program = [
        (_STORE_K_U32, 2, 0, at, int.from_bytes(renewed[at : at + 4], sys.byteorder, signed=True))
        for at in (0, 4, 8, _TTL)
        if renewed
    ]
    if addresses > 1:
        write += [
            *_one_of(addresses, address, 32, shift=0),
            (_STORE_U32, 2, 5, _DESTINATION, 0),
            (_MOVE, 4, 5, 0, 0),  # r4: the sum of both halves in ones' complement, inverted
            (_SHIFT_RIGHT_K, 4, 0, 0, 16),
            (_AND_K, 5, 0, 0, 0xFFFF),
            (_ADD, 4, 5, 0, 0),
            (_MOVE, 5, 4, 0, 0),
            (_SHIFT_RIGHT_K, 5, 0, 0, 16),
            (_ADD, 4, 5, 0, 0),
            (_XOR_K, 4, 0, 0, 0xFFFF),
            (_STORE_U16, 2, 4, _ID, 0),
        ]
    if ports > 1:
        write += [*_one_of(ports, port, 16, shift=4), (_STORE_U16, 2, 5, _DESTINATION_PORT, 0)]
    if flows:
        write += [*_one_of(1 << 15, 1 << 15, 16, shift=9), (_STORE_U16, 2, 5, _SOURCE_PORT, 0)]
    return [*_RANDOM_R7, *_unless_shorter(_UDP_END, write), *end]


def mixed(share: int, cut: int, port: int) -> Program:
    """Return a program that sends frames back, a random `share` of 32 of them shorter and to another port."""
    change: Program = [
        *_unless_shorter(
            _UDP_END, [(_MOVE_K, 5, 0, 0, socket.htons(port)), (_STORE_U16, 2, 5, _DESTINATION_PORT, 0)]
        ),
        (_MOVE, 1, 6, 0, 0),
        (_MOVE_K, 2, 0, 0, -cut),
        (_CALL, 0, 0, 0, _XDP_ADJUST_TAIL),
    ]
    return [
        *_RANDOM_R7,
        (_AND_K, 7, 0, 0, MIX_OF - 1),
        (_JUMP_NOT_LESS_K, 7, 0, len(change), share),
        *change,
        *SEND_BACK,
    ]


# r6 = context, r7 = 32 random bits
_RANDOM_R7: Program = [(_MOVE, 6, 1, 0, 0), (_CALL, 0, 0, 0, _GET_PRANDOM_U32), (_MOVE, 7, 0, 0, 0)]


def _one_of(count: int, first: int, bits: int, *, shift: int) -> Program:
    """R5 = one of `count` numbers from `first` on, in network order, by the random bits from `shift` on."""
    if count & (count - 1) or first & (count - 1):
        raise ValueError(
            f"{count} values from {first}: use a power of two, and a multiple of it to begin with"
        )
    signed = first - (1 << 32) if first >= 1 << 31 else first
    return [
        (_MOVE, 5, 7, 0, 0),
        (_SHIFT_RIGHT_K, 5, 0, 0, shift),
        (_AND_K, 5, 0, 0, count - 1),
        (_OR_K, 5, 0, 0, signed),
        (_TO_BIG_ENDIAN, 5, 0, 0, bits),
    ]


def _unless_shorter(size: int, write: Program) -> Program:
    """The instructions, with r2 = start of the packet, jumped over if it has fewer bytes than that."""
    return [
        (_LOAD_U32, 2, 6, 0, 0),
        (_LOAD_U32, 3, 6, 4, 0),
        (_MOVE, 4, 2, 0, 0),
        (_ADD_K, 4, 0, 0, size),
        (_JUMP_GREATER, 4, 3, len(write), 0),
        *write,
    ]


def route() -> Program:
    """Return the program that routes IPv4 by the kernel's tables, as xdp-forward of newer xdp-tools does.

    What the kernel would not simply forward is passed to it.
    """
    parameters = -64  # struct bpf_fib_lookup, from the frame pointer
    asked: Program = [
        (_MOVE, 6, 1, 0, 0),
        *_packet(34),
        *_check(_LOAD_U16, 12, socket.htons(0x0800)),
        *((_STORE_K_U64, 10, 0, parameters + word, 0) for word in range(0, 64, 8)),
        *_copy(8, (2, 23), (10, parameters + 1)),  # protocol
        *_copy(8, (2, 15), (10, parameters + 12)),  # type of service
        *_copy(32, (2, 26), (10, parameters + 16)),  # source
        *_copy(32, (2, 30), (10, parameters + 32)),  # destination
        *_copy(32, (6, 12), (10, parameters + 8)),  # ingress_ifindex of the context
        (_LOAD_U16, 4, 2, 16, 0),
        (_TO_BIG_ENDIAN, 4, 0, 0, 16),
        (_STORE_U16, 10, 4, parameters + 6, 0),  # length, in host order
        (_MOVE_K, 4, 0, 0, socket.AF_INET),
        (_STORE_U8, 10, 4, parameters, 0),
        (_MOVE, 1, 6, 0, 0),
        (_MOVE, 2, 10, 0, 0),
        (_ADD_K, 2, 0, 0, parameters),
        (_MOVE_K, 3, 0, 0, 64),
        (_MOVE_K, 4, 0, 0, 0),
        (_CALL, 0, 0, 0, _FIB_LOOKUP),
        (_JUMP_NOT_EQUAL_K, 0, 0, _TO_PASS, 0),
        *_packet(34),
        (_LOAD_U8, 4, 2, 22, 0),
        (_JUMP_LESS_K, 4, 0, _TO_PASS, 2),
        (_ADD_K, 4, 0, 0, -1),
        (_STORE_U8, 2, 4, 22, 0),
        # One less in the high byte of a word is 0x0100 more in the sum; the carry goes around.
        (_LOAD_U16, 4, 2, 24, 0),
        (_ADD_K, 4, 0, 0, socket.htons(0x0100)),
        (_MOVE, 5, 4, 0, 0),
        (_ADD_K, 5, 0, 0, 1),
        (_SHIFT_RIGHT_K, 5, 0, 0, 16),
        (_ADD, 4, 5, 0, 0),
        (_STORE_U16, 2, 4, 24, 0),
        *(
            one
            for word in (0, 2, 4)  # dmac and smac are the last of the parameters, smac first
            for one in (
                *_copy(16, (10, parameters + 58 + word), (2, word)),
                *_copy(16, (10, parameters + 52 + word), (2, 6 + word)),
            )
        ),
        (_LOAD_U32, 1, 10, parameters + 8, 0),
        (_MOVE_K, 2, 0, 0, 0),
        (_CALL, 0, 0, 0, _BPF_REDIRECT),
        (_EXIT, 0, 0, 0, 0),
    ]
    end = len(asked)
    return [
        (op, to, by, end - place - 1 if at == _TO_PASS else at, value)
        for place, (op, to, by, at, value) in enumerate(asked)
    ] + PASS


_TO_PASS = 1 << 14  # stands for the distance to the end, where packets are passed


def _packet(size: int) -> Program:
    """R2 = start of the packet, of which that many bytes are there."""
    return [*_unless_shorter(size, [])[:-1], (_JUMP_GREATER, 4, 3, _TO_PASS, 0)]


def _check(load: int, at: int, value: int) -> Program:
    return [(load, 4, 2, at, 0), (_JUMP_NOT_EQUAL_K, 4, 0, _TO_PASS, value)]


def _copy(size: int, source: tuple[int, int], target: tuple[int, int]) -> Program:
    """Copy so many bits from what one register points to, and an offset, to another, by way of r4."""
    load, store = {8: (_LOAD_U8, _STORE_U8), 16: (_LOAD_U16, _STORE_U16), 32: (_LOAD_U32, _STORE_U32)}[size]
    return [(load, 4, *source, 0), (store, target[0], 4, target[1], 0)]


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


def send_live(frame: bytes, interface: str, times: int, program: Program = SEND_BACK) -> None:
    """Have the kernel send the frame that often, in one system call; a signal ends it early.

    The program is asked before each and may change it: the frame goes where its answer says.
    """
    fd = _load(program)
    try:
        _test_run(fd, frame, interface, repeat=times, flags=_BPF_F_TEST_XDP_LIVE_FRAMES, batch_size=_BATCH)
    finally:
        os.close(fd)


def nanoseconds(program_id: int, frame: bytes, interface: str, repeat: int) -> int:
    """Mean time that the loaded program of that id takes for the frame as if it came in at the interface.

    What it decides is not carried out, so a redirect is the program's part of one only.
    """
    fd: int = _libbpf().bpf_prog_get_fd_by_id(program_id)
    if fd < 0:
        raise OSError(-fd, f"bpf_prog_get_fd_by_id: {os.strerror(-fd)}")
    try:
        return int(_test_run(fd, frame, interface, repeat=repeat).duration)
    finally:
        os.close(fd)


def _test_run(fd: int, frame: bytes, interface: str, **more: int) -> _RunOptions:
    """BPF_PROG_TEST_RUN with the frame on queue 0 of the interface."""
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    context = struct.pack("=6I", 0, len(frame), 0, socket.if_nametoindex(interface), 0, 0)
    options = _RunOptions(
        sz=ctypes.sizeof(_RunOptions),
        data_in=frame,
        data_size_in=len(frame),
        ctx_in=context,
        ctx_size_in=len(context),
        **more,
    )
    error = _libbpf().bpf_prog_test_run_opts(fd, ctypes.byref(options))
    if error < 0:
        raise OSError(-error, f"bpf_prog_test_run_opts on {interface}: {os.strerror(-error)}")
    return options
