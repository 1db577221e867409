"""Receive: print one line for each packet that arrives on a queue of an interface.

The packets are taken from the kernel: nothing else on this machine sees them. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

from xskd.errors import XskdError
from xskd.xdp import Program
from xskd.xsk import Socket, Umem


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interface")
    parser.add_argument("--queue", type=int, default=0, metavar="N", help="RX queue (default 0)")
    parser.add_argument("--queues", type=int, default=1, metavar="N", help="RX queues it has (default 1)")
    parser.add_argument("--count", type=int, metavar="N", help="end after N packets")
    return parser.parse_args()


def line(packet: memoryview, number: int, seconds: float) -> str:
    """Describe a packet: its number, when, its length, the Ethernet header, and how it goes on."""
    to, source, kind = packet[:6].hex(":"), packet[6:12].hex(":"), packet[12:14].hex()
    start = packet[14:30].hex(" ", 4)
    return f"{number} {seconds:.6f} s {len(packet)} bytes {source} > {to} type {kind} {start}"


def receive(xsk: Socket, count: int | None) -> int:
    """Print packets until there have been `count`, or for ever; returns how many."""
    started, seen = time.monotonic(), 0
    while count is None or seen < count:
        if not xsk.wait(1.0):
            continue
        with xsk.receive() as batch:
            for packet in batch[: None if count is None else count - seen]:
                seen += 1
                print(line(packet, seen, time.monotonic() - started), flush=True)
    return seen


def main() -> int:
    """Set up, receive, clean up; the exit status."""
    options = arguments()
    umem = Umem(8192)
    try:
        with Socket.open(umem, options.interface, options.queue) as xsk, Program(options.queues) as program:
            program.insert(options.queue, xsk)
            program.attach(options.interface)
            print(f"{options.interface}: {program.attach_mode} program, {xsk.mode} mode", file=sys.stderr)
            with contextlib.suppress(KeyboardInterrupt):
                receive(xsk, options.count)
            print(xsk.statistics(), file=sys.stderr)
    except XskdError as error:
        print(f"receive: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
