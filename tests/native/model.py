"""What csrc/forward.h promises, written down again: where each frame is, and what a turn of the loop moves.

A free stack, and four rings a port. There is nothing of the C in here: test_model.py holds it against this.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import chain

from xskd._forward import lib as names  # for its constants only

FRAMES, FRAME_SIZE, OFFSET = 48, 2048, 256
MAX_LENGTH = 1518
BURST: int = names.XSKD_BURST
DEADLINE_NS = 20_000_000
FILL, RX, TX, COMPLETION = names.XSKD_FILL, names.XSKD_RX, names.XSKD_TX, names.XSKD_COMPLETION
FREE, HELD, QUARANTINED, RX_SIDE, TX_SIDE = 0x00, 0x01, 0x02, 0x40, 0x80  # owner bytes, csrc/frames.h
NOWHERE = FRAMES + 7  # the frame of an address outside the UMEM


@dataclass(frozen=True)
class Entry:
    """What a slot of a ring says: a frame, and of RX and TX a packet's length."""

    frame: int
    length: int = 0


@dataclass
class Port:
    """One port as the model has it: ring contents, front first, and what the kernel holds."""

    sizes: dict[int, int]
    rings: dict[int, deque[Entry]] = field(default_factory=lambda: {ring: deque() for ring in range(4)})
    receiving: deque[int] = field(default_factory=deque)  # frames taken from FILL
    sending: deque[int] = field(default_factory=deque)  # frames taken from TX
    blocked_since: int = 0
    wrong: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def room(self, ring: int) -> int:
        return self.sizes[ring] - len(self.rings[ring])


class Model:
    """Both ports and all frames."""

    def __init__(self, sizes: list[int], *, reflect: bool) -> None:
        self.reflect, self.now = reflect, 1_000_000  # ns
        self.free = list(range(FRAMES - 1, -1, -1))  # the top is last
        self.held: list[Entry] = []
        self.quarantined: set[int] = set()
        self.ports = [Port(dict(enumerate(sizes))) for _ in range(2)]
        self.capturing, self.seen = False, 0

    def egress(self, index: int) -> int:
        return index if self.reflect else 1 - index

    def turn(self) -> None:
        for index, port in enumerate(self.ports):
            out = self.ports[self.egress(index)]
            self.recycle(out, port)
            self.burst(port, out)
            self.refill(port)

    def drop(self, port: Port, entry: Entry, otherwise: str) -> None:
        """A packet that does not go on, and where its frame is then."""
        if entry.frame == NOWHERE or not 0 < entry.length <= FRAME_SIZE - OFFSET:
            port.counts["invalid"] += 1
            port.wrong += 1
            if entry.frame != NOWHERE:
                self.quarantined.add(entry.frame)
            return
        port.counts["undersize" if entry.length < 14 else otherwise] += 1
        self.free.append(entry.frame)

    def complete_one(self, port: Port, entry: Entry) -> bool:
        """Take a completion; whether it was one."""
        good = entry.frame != NOWHERE
        port.counts["tx_completed" if good else "completion_invalid"] += 1
        port.wrong += not good
        return good

    def recycle(self, out: Port, into: Port) -> None:
        """Completions onto FILL, as far as it has room; the rest onto the free stack."""
        for _ in range(min(len(out.rings[COMPLETION]), into.room(FILL))):
            entry = out.rings[COMPLETION].popleft()
            if self.complete_one(out, entry):
                into.rings[FILL].append(Entry(entry.frame))
        self.complete(out)

    def complete(self, port: Port) -> None:
        while port.rings[COMPLETION]:
            entry = port.rings[COMPLETION].popleft()
            if self.complete_one(port, entry):
                self.free.append(entry.frame)

    def take_rx(self, port: Port, most: int) -> list[Entry]:
        taken = [port.rings[RX].popleft() for _ in range(min(most, len(port.rings[RX])))]
        port.counts["rx_packets"] += len(taken)
        good = [entry for entry in taken if self.sound(entry)]
        self.seen += len(good) if self.capturing else 0
        return taken

    @staticmethod
    def sound(entry: Entry) -> bool:
        return entry.frame != NOWHERE and 0 < entry.length <= FRAME_SIZE - OFFSET

    def burst(self, port: Port, out: Port) -> None:
        """RX to TX; packets wait for a full TX, but not for ever."""
        room = out.room(TX)
        if room == 0:
            self.blocked(port, out)
            return
        out.blocked_since = 0
        for entry in self.take_rx(port, min(room, BURST)):
            if self.sound(entry) and 14 <= entry.length <= MAX_LENGTH:
                out.rings[TX].append(entry)
                out.counts["tx_packets"] += 1
                self.seen += self.capturing
            else:
                self.drop(port, entry, "oversize")

    def blocked(self, port: Port, out: Port) -> None:
        if not port.rings[RX]:
            return
        out.blocked_since = out.blocked_since or self.now
        if self.now - out.blocked_since >= DEADLINE_NS:
            for entry in self.take_rx(port, BURST):
                self.drop(port, entry, "tx_full")

    def refill(self, port: Port) -> None:
        """FILL to the brim, from the top of the free stack."""
        for _ in range(min(port.room(FILL), len(self.free))):
            port.rings[FILL].append(Entry(self.free.pop()))

    def owners(self) -> dict[int, int]:
        """Each frame's owner as the model has it; a frame in two places is found here."""
        places: list[tuple[int, int]] = [(frame, FREE) for frame in self.free]
        places += [(entry.frame, HELD) for entry in self.held]
        places += [(frame, QUARANTINED) for frame in self.quarantined]
        for index, port in enumerate(self.ports):
            rx = chain(port.receiving, (e.frame for ring in (FILL, RX) for e in port.rings[ring]))
            tx = chain(port.sending, (e.frame for ring in (TX, COMPLETION) for e in port.rings[ring]))
            places += [(frame, RX_SIDE | index) for frame in rx if frame != NOWHERE]
            places += [(frame, TX_SIDE | index) for frame in tx if frame != NOWHERE]
        assert len(places) == FRAMES, "a frame is nowhere, or in two places"
        return dict(places)
