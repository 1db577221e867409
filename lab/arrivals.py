"""The receiving half of a stream of numbered packets: a socket that takes them, and which of them arrived.

What a packet looks like and how often one goes is its sender's; here is only what arrived, what arrived once
more, and for how long nothing did.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from lab.topology import entered

ETHER_TYPE = 0x88B5  # of local experiments (IEEE 802)
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SOL_PACKET, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 26, 33, 263, 23, 3


def raw(ns: str, *, only: int | None = None) -> socket.socket:
    """A raw socket on eth0 of a namespace: takes all that arrives or one EtherType `only`, and none it sent.

    The filter is the kernel's: a flood of other packets costs the receiver nothing.
    """
    with entered(ns):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        made.bind(("eth0", 0))
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 27)
    made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    if only is not None:  # load, compare, all or nothing
        code = [(0x28, 0, 0, 12), (0x15, 0, 1, only), (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)]
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
        argument = struct.pack("HL", len(code), ctypes.addressof(program))
        made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, argument)
    return made


class Arrivals:
    """Which numbers have arrived.

    `received` counts packets, `doubled` those of them that had arrived before; `silence` is the longest time
    in seconds between two.
    """

    def __init__(self) -> None:
        self._seen = bytearray()  # a bit for each number
        self._last = 0.0
        self.received = self.doubled = 0
        self.silence = 0.0

    def take(self, number: int, now: float) -> None:
        """One has arrived, at this time in seconds."""
        place, bit = divmod(number, 8)
        if place >= len(self._seen):
            self._seen.extend(bytes(place - len(self._seen) + 4096))
        self.received += 1
        self.doubled += bool(self._seen[place] & 1 << bit)
        self._seen[place] |= 1 << bit
        last, self._last = self._last, now  # at once: another thread may begin anew
        if last:
            self.silence = max(self.silence, now - last)

    def waiting(self, now: float) -> float:
        """Seconds since the last one arrived; 0 if none has."""
        last = self._last
        return now - last if last else 0.0

    def begin_anew(self) -> None:
        """Count silence from the next one on: until then nothing is to be expected."""
        self._last = self.silence = 0.0
