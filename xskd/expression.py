"""Filter expressions, in libpcap's language and by libpcap's compiler: what tcpdump understands, this does.

Only `xskd capture` imports this, so that neither daemon nor worker loads libpcap.
"""

from __future__ import annotations

from xskd import tap
from xskd._pcap import ffi, lib
from xskd.errors import XskdError


class BadExpression(XskdError):
    """Not an expression, or not one that a worker can run."""


def compiled(text: str, snaplen: int) -> list[list[int]]:
    """The program for an expression, an instruction each: code, jt, jf, k. Raises BadExpression."""
    handle = lib.pcap_open_dead(lib.DLT_EN10MB, snaplen)
    program = ffi.new("struct bpf_program *")
    try:
        if lib.pcap_compile(handle, program, text.encode(), 1, lib.PCAP_NETMASK_UNKNOWN) < 0:
            why = ffi.string(lib.pcap_geterr(handle)).decode(errors="replace")
            raise BadExpression(f"filter {text!r}: {why}")
        made = [[i.code, i.jt, i.jf, i.k] for i in ffi.unpack(program.bf_insns, program.bf_len)]
        lib.pcap_freecode(program)
    finally:
        lib.pcap_close(handle)
    if not tap.usable(made):
        limit = f"at most {tap.MAX_FILTER} instructions, and no loops (protochain)"
        raise BadExpression(
            f"filter {text!r}: {len(made)} instructions, which a worker does not run: {limit}"
        )
    return made
