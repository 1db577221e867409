"""Generate: send numbered Ethernet frames from a queue of an interface, at a rate or as fast as it goes.

Needs root. No XDP program is needed to send.
"""

from __future__ import annotations

import argparse
import sys
import time

from xskd.errors import XskdError
from xskd.xsk import BURST, Socket, Umem

PATIENCE = 1.0  # seconds without any progress after which the rest is given up


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interface")
    parser.add_argument("--queue", type=int, default=0, metavar="N", help="TX queue (default 0)")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="packets (default 1000)")
    parser.add_argument("--rate", type=float, metavar="PPS", help="packets a second (default: no limit)")
    parser.add_argument("--length", type=int, default=64, metavar="BYTES", help="14 to 1514 (default 64)")
    parser.add_argument("--to", default="ff:ff:ff:ff:ff:ff", metavar="MAC", help="default: broadcast")
    options = parser.parse_args()
    if not 14 <= options.length <= 1514:
        parser.error(f"--length {options.length}: must be 14 to 1514")
    return options


def generate(xsk: Socket, header: bytes, length: int, count: int, rate: float | None) -> int:
    """Send `count` packets; returns how many were given to the kernel and came back as sent."""
    started = progress = time.monotonic()
    made = 0
    while (made < count or xsk.unsent) and time.monotonic() - progress < PATIENCE:
        if xsk.complete():
            progress = time.monotonic()
        due = count if rate is None else min(count, 1 + int((time.monotonic() - started) * rate))
        if due == made:
            time.sleep(0 if rate is None else min(1 / rate, 0.01))
            progress = progress if xsk.unsent else time.monotonic()
            continue
        with xsk.umem.take(min(due - made, BURST)) as batch:
            for index in range(len(batch)):
                number = (made + index).to_bytes(8, "big")
                batch.write(index, (header + number).ljust(length, b"\0")[:length])
            made += xsk.transmit(batch)  # what found no room is released, and made again
    return made - xsk.unsent


def main() -> int:
    """Set up, send, sum up; the exit status."""
    options = arguments()
    umem = Umem(8192)
    try:
        header = bytes.fromhex(options.to.replace(":", "")) + bytes.fromhex("02 00 00 00 00 01 88b5")
        with Socket.open(umem, options.interface, options.queue) as xsk:
            started = time.monotonic()
            try:
                sent = generate(xsk, header, options.length, options.count, options.rate)
            except KeyboardInterrupt:
                sent = int(xsk.port.counters.tx_completed)
            seconds = time.monotonic() - started
    except XskdError as error:
        print(f"generate: {error}", file=sys.stderr)
        return 1
    print(f"{sent} of {options.count} packets of {options.length} bytes in {seconds:.3f} s")
    return 0 if sent == options.count else 1


if __name__ == "__main__":
    sys.exit(main())
