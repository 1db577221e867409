"""The contender that anybody can write in ten minutes: a forwarder in Python over AF_PACKET sockets.

    python -m bench.afpacket eth1           swaps the MAC addresses and sends back
    python -m bench.afpacket eth1 eth2      sends out of the other interface, both directions

It is written as a careful programmer would: no copy between receive and send, no queueing discipline, no
look at what it sent itself. It must not grow any cleverer than that.
"""

import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 263, 20, 23
_BURST = 64


def _open(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((interface, _ETH_P_ALL))
    return sock


def _forward(receive: Callable[[bytearray], int], send: Callable[[memoryview], int], swap: bool) -> None:
    """Move up to a burst of frames from one socket to the other."""
    frame = bytearray(2048)
    view = memoryview(frame)
    for _ in range(_BURST):
        try:
            size = receive(frame)
        except BlockingIOError:
            return
        if swap:
            frame[0:6], frame[6:12] = frame[6:12], frame[0:6]
        with suppress(OSError):  # the way out is full or down: the frame is lost, as in any forwarder
            send(view[:size])


def main(interfaces: list[str]) -> None:
    """Forward for ever."""
    sockets = [_open(interface) for interface in interfaces]
    swap = len(sockets) == 1
    partner = dict(zip(sockets, reversed(sockets), strict=True))
    while True:
        for ready in select.select(sockets, (), ())[0]:
            _forward(ready.recv_into, partner[ready].send, swap)


if __name__ == "__main__":
    main(sys.argv[1:])
