"""Echo: send every packet back where it came from, with its Ethernet addresses swapped, in Python.

The packets are taken from the kernel: nothing else on this machine sees them. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from xskd.errors import XskdError
from xskd.xdp import Program
from xskd.xsk import Socket, Umem


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interface")
    parser.add_argument("--queue", type=int, default=0, metavar="N", help="queue (default 0)")
    parser.add_argument("--queues", type=int, default=1, metavar="N", help="RX queues it has (default 1)")
    parser.add_argument("--mtu", type=int, default=1500, metavar="BYTES", help="of the interface (1500)")
    return parser.parse_args()


def echo(xsk: Socket) -> None:
    """Echo until Ctrl-C. A packet that finds no room on the TX ring is dropped by leaving the block."""
    while True:
        if not xsk.wait(0.1 if not xsk.unsent else 0.001):
            xsk.complete()
            continue
        with xsk.receive() as batch:
            for packet in batch:
                packet[:6], packet[6:12] = bytes(packet[6:12]), bytes(packet[:6])
            xsk.transmit(batch)


def main() -> int:
    """Set up, echo, clean up; the exit status."""
    options = arguments()
    umem = Umem(8192)
    try:
        with (
            Socket.open(umem, options.interface, options.queue, mtu=options.mtu) as xsk,
            Program(options.queues) as program,
        ):
            program.insert(options.queue, xsk)
            program.attach(options.interface)
            print(f"{options.interface}: {program.attach_mode} program, {xsk.mode} mode", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                echo(xsk)
            counted = xsk.port.counters
            print(f"{counted.rx_packets} packets received, {counted.tx_packets} sent back")
    except XskdError as error:
        print(f"echo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
