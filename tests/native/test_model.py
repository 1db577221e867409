"""A model of every frame's place, held against the real C by hypothesis: the same frames, in the same order.

Each step of a walk is done to both, the model (model.py) and the C: the loop turns, a user of the library
takes and sends, a worker dies; and the kernel delivers, sends, completes, is late, is down, tells lies. After
it every ring, the free stack, every owner byte and every counter of the C must be as the model has them.
"""

from __future__ import annotations

import errno
import functools
import runpy
from collections.abc import Callable
from typing import Any

import pytest
from cffi import FFI
from compiling import CSRC, shared_library
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import (
    COMPLETION,
    FILL,
    FRAME_SIZE,
    FRAMES,
    MAX_LENGTH,
    NOWHERE,
    OFFSET,
    RX,
    TX,
    Entry,
    Model,
)
from xskd._forward import lib as names  # for its constants only

WRONG_ENTRIES: int = names.XSKD_WRONG_ENTRIES
NEED_WAKEUP = 1  # XDP_RING_NEED_WAKEUP
CAPTURE_BYTES = names.XSKD_CAPTURE_HEADER + (1 << 12)
PORTS = st.integers(0, 1)
MANY = st.integers(1, 64).map(lambda n: 65 - n)  # what is drawn most is much, not little
GOOD = st.sampled_from([60, 14, 1518])
BAD = st.sampled_from([13, 1519, 0, FRAME_SIZE])


@functools.cache
def data_plane() -> tuple[Any, Any]:
    """The C with model_kernel.c in the place of its system calls."""
    ffi, declarations = FFI(), runpy.run_path(str(CSRC / "build.py"))["declarations"]
    ffi.cdef(
        """struct xdp_desc { uint64_t addr; uint32_t len, options; };
        struct bpf_insn { unsigned short code; unsigned char jt, jf; uint32_t k; };
        extern int model_tx_answer, model_rx_answer;
        extern uint64_t model_now_ns;"""
        + declarations(CSRC / "forward.h")
        + declarations(CSRC / "capture.h")
    )
    return ffi, ffi.dlopen(str(shared_library("model_kernel")))


class Walk(RuleBasedStateMachine):
    """The model beside the C; each rule does the same to both."""

    # ---- both begin ------------------------------------------------------------------------------

    @initialize(
        reflect=st.booleans(),
        sizes=st.lists(st.sampled_from([1, 2, 8, 16, 32]), min_size=4, max_size=4),
        start=st.sampled_from([0, 0x7FFFFFFE, 0xFFFFFFFB]),
    )
    def begin(self, reflect: bool, sizes: list[int], start: int) -> None:
        self.model = Model(sizes, reflect=reflect)
        self.make(start)
        for port in (0, 1):
            self.refill(port)

    def make(self, start: int) -> None:
        """The structs of csrc/forward.h over plain memory."""
        self.ffi, self.lib = data_plane()
        new = self.ffi.new
        self.page = new("struct xskd_counters *")
        self.c_umem = new("struct xskd_umem *")
        self.keep: list[Any] = [new("uint8_t[]", FRAMES * FRAME_SIZE), new("uint8_t[]", FRAMES)]
        self.keep.append(new("uint32_t[]", FRAMES))
        self.c_umem.area, self.c_umem.owner, self.c_umem.free = self.keep
        self.c_umem.intent = self.ffi.addressof(self.page, "intent")
        self.c_umem.frames, self.c_umem.frame_size, self.c_umem.frame_shift = FRAMES, FRAME_SIZE, 11
        self.lib.xskd_umem_reset(self.c_umem)
        self.forward = new("struct xskd_forward *")
        self.forward.port_count, self.forward.control_fd = 2, -1
        self.forward.action = names.XSKD_SWAP_MACS if self.model.reflect else names.XSKD_UNCHANGED
        self.forward.counters, self.forward.now_ns = self.page, self.model.now
        self.c_ports = [self.make_port(index, start) for index in (0, 1)]
        self.capture, self.capture_ring = new("struct xskd_capture *"), new("uint64_t[]", CAPTURE_BYTES // 8)
        self.lib.model_tx_answer = 0

    def make_port(self, index: int, start: int) -> Any:
        port = self.ffi.new("struct xskd_port *")
        port.umem, port.index, port.fd, port.max_length = self.c_umem, index, index, MAX_LENGTH
        port.counters = self.ffi.addressof(self.page.ports, index)
        for ring, size in self.model.ports[index].sizes.items():
            words = self.ffi.new("uint32_t[3]", [start, start, NEED_WAKEUP if ring == TX else 0])
            kind = "struct xdp_desc[]" if ring in (RX, TX) else "uint64_t[]"
            entries = self.ffi.new(kind, size)
            self.keep += [words, entries]
            at = port.rings[ring]
            at.producer, at.consumer, at.flags, at.entries = words, words + 1, words + 2, entries
            at.size, at.own = size, start
        self.forward.ports[index] = port
        self.forward.egress[index] = self.model.egress(index)
        return port

    # ---- the kernel ------------------------------------------------------------------------------

    def put(self, port: int, ring: int, entry: Entry, offset: int = OFFSET) -> None:
        """One entry on RX or completion, in both."""
        at = self.c_ports[port].rings[ring]
        slot, addr = at.producer[0] % at.size, entry.frame * FRAME_SIZE + offset
        if ring == RX:
            desc = self.ffi.cast("struct xdp_desc *", at.entries)[slot]
            desc.addr, desc.len, desc.options = addr, entry.length, 0
        else:
            self.ffi.cast("uint64_t *", at.entries)[slot] = addr
        at.producer[0] = at.producer[0] + 1 & 0xFFFFFFFF
        self.model.ports[port].rings[ring].append(entry)

    def consume(self, port: int, ring: int, most: int) -> list[Entry]:
        """Entries that the kernel takes from FILL or TX, in both."""
        at, mine = self.c_ports[port].rings[ring], self.model.ports[port].rings[ring]
        taken = [mine.popleft() for _ in range(min(most, len(mine)))]
        at.consumer[0] = at.consumer[0] + len(taken) & 0xFFFFFFFF
        return taken

    @rule(port=PORTS, most=MANY)
    def kernel_takes_from_fill(self, port: int, most: int) -> None:
        self.model.ports[port].receiving += [entry.frame for entry in self.consume(port, FILL, most)]

    @rule(port=PORTS, most=MANY, length=GOOD)
    def kernel_delivers(self, port: int, most: int, length: int) -> None:
        mine = self.model.ports[port]
        self.kernel_takes_from_fill(port, most)
        for _ in range(min(most, len(mine.receiving), mine.room(RX))):
            self.put(port, RX, Entry(mine.receiving.popleft(), length))

    @rule(port=PORTS, most=st.integers(1, 4), length=BAD)
    def kernel_delivers_what_cannot_go(self, port: int, most: int, length: int) -> None:
        self.kernel_delivers(port, most, length)

    @rule(port=PORTS, most=MANY)
    def kernel_takes_from_tx(self, port: int, most: int) -> None:
        self.model.ports[port].sending += [entry.frame for entry in self.consume(port, TX, most)]

    @rule(port=PORTS, most=MANY)
    def kernel_completes(self, port: int, most: int) -> None:
        mine = self.model.ports[port]
        self.kernel_takes_from_tx(port, most)
        for _ in range(min(most, len(mine.sending), mine.room(COMPLETION))):
            self.put(port, COMPLETION, Entry(mine.sending.popleft()))

    @rule(port=PORTS, most=st.integers(1, 10))
    def kernel_completes_what_is_not(self, port: int, most: int) -> None:
        for _ in range(min(most, self.model.ports[port].room(COMPLETION))):
            self.put(port, COMPLETION, Entry(NOWHERE))

    @rule(port=PORTS, most=st.integers(1, 10), length=GOOD)
    def kernel_delivers_what_is_not(self, port: int, most: int, length: int) -> None:
        for _ in range(min(most, self.model.ports[port].room(RX))):
            self.put(port, RX, Entry(NOWHERE, length))

    @rule(error=st.sampled_from([0, errno.ENETDOWN, errno.EAGAIN, errno.ENOBUFS]))
    def link_goes_up_or_down(self, error: int) -> None:
        self.lib.model_tx_answer = error

    @rule(ns=st.sampled_from([1_000, 5_000_000]))
    def time_passes(self, ns: int) -> None:
        self.model.now += ns
        self.forward.now_ns = self.lib.model_now_ns = self.model.now

    # ---- what a turn does --------------------------------------------------------------------------

    def refill(self, index: int) -> None:
        """Both: FILL to the brim, from the top of the free stack."""
        self.lib.xskd_refill(self.c_ports[index])
        self.model.refill(self.model.ports[index])

    @rule()
    def turn(self) -> None:
        self.lib.xskd_forward_turn(self.forward)
        self.model.turn()

    @rule(port=PORTS, most=MANY, length=GOOD)
    def packets_arrive_and_are_forwarded(self, port: int, most: int, length: int) -> None:
        self.kernel_delivers(port, most, length)
        self.turn()

    @rule(ns=st.sampled_from([10_000_000, 19_999_999, 20_000_000]))
    def a_turn_much_later(self, ns: int) -> None:
        self.turn()
        self.time_passes(ns)
        self.turn()

    # ---- a user of the library ----------------------------------------------------------------------

    @rule(most=st.integers(0, 8))
    def user_takes(self, most: int) -> None:
        descs = self.ffi.new("struct xdp_desc[8]")
        count = self.lib.xskd_umem_take(self.c_umem, descs, most)
        assert count == min(most, len(self.model.free))
        self.model.held += [Entry(self.model.free.pop(), 60) for _ in range(count)]

    @rule(port=PORTS, most=st.integers(1, 8))
    def user_receives(self, port: int, most: int) -> None:
        descs, was_capturing = self.ffi.new("struct xdp_desc[8]"), self.model.capturing
        count, self.model.capturing = self.lib.xskd_receive(self.c_ports[port], descs, most), False
        taken = self.model.take_rx(self.model.ports[port], most)
        self.model.capturing = was_capturing  # only the loop copies
        kept = [entry for entry in taken if self.model.sound(entry)]
        for entry in taken:
            if not self.model.sound(entry):
                self.model.drop(self.model.ports[port], entry, "invalid")
        assert [descs[i].addr // FRAME_SIZE for i in range(count)] == [entry.frame for entry in kept]
        self.model.held += kept

    @rule(port=PORTS, most=st.integers(1, 8))
    def user_transmits(self, port: int, most: int) -> None:
        descs, first = self.ffi.new("struct xdp_desc[8]"), self.model.held[:most]
        for desc, entry in zip(descs, first, strict=False):
            desc.addr, desc.len = entry.frame * FRAME_SIZE + OFFSET, entry.length
        sent = self.lib.xskd_transmit(self.c_ports[port], descs, len(first))
        good = [14 <= entry.length <= MAX_LENGTH for entry in first] + [False]
        assert sent == min(good.index(False), self.model.ports[port].room(TX))
        self.model.ports[port].rings[TX] += first[:sent]
        self.model.ports[port].counts["tx_packets"] += sent
        self.model.held = self.model.held[sent:]

    @rule(most=st.integers(1, 8))
    def user_gives_back(self, most: int) -> None:
        descs, first = self.ffi.new("struct xdp_desc[8]"), self.model.held[:most]
        for desc, entry in zip(descs, first, strict=False):
            desc.addr = entry.frame * FRAME_SIZE
        for expected in (len(first), 0):  # giving twice gives once
            assert self.lib.xskd_umem_give(self.c_umem, descs, len(first)) == expected
        self.model.held = self.model.held[len(first) :]
        self.model.free += [entry.frame for entry in first]

    # ---- others ------------------------------------------------------------------------------------

    @precondition(lambda self: not self.model.capturing)
    @rule()
    def capture_begins(self) -> None:
        ring = self.ffi.cast("struct xskd_capture_ring *", self.capture_ring)
        ring.layout_version = names.XSKD_CAPTURE_LAYOUT
        assert self.lib.xskd_capture_open(self.capture, ring, CAPTURE_BYTES) == 0
        self.capture.directions, self.capture.snaplen = 3, 64
        self.forward.capture, self.model.capturing = self.capture, True

    @precondition(lambda self: self.model.capturing)
    @rule()
    def capture_ends(self) -> None:
        self.forward.capture, self.model.capturing = self.ffi.NULL, False

    @rule()
    def worker_dies_and_a_successor_adopts(self) -> None:
        """What it kept for itself is gone, and not just gone but wrong."""
        garbage, report = 0xA5A5A5A5, self.ffi.new("struct xskd_adoption *")
        self.c_umem.free_count = self.c_umem.held = self.c_umem.quarantined = garbage
        for port in self.c_ports:
            port.rx_side = port.tx_side = port.wrong = garbage
            for ring in port.rings:
                ring.own = garbage
        assert self.lib.xskd_forward_adopt(self.forward, report) == 0
        assert report.waiting == sum(len(port.rings[RX]) for port in self.model.ports)
        assert report.unsent == sum(len(port.rings[TX]) for port in self.model.ports)
        assert (report.skipped, report.undone, report.quarantined) == (0, 0, 0)
        assert report.freed == len(self.model.held)
        held = [entry.frame for entry in self.model.held]
        self.model.free = sorted([*self.model.free, *held], reverse=True)
        self.model.held = []
        for mine in self.model.ports:
            mine.blocked_since = mine.wrong = 0

    # ---- after each step -----------------------------------------------------------------------------

    def slots(self, port: int, ring: int) -> list[Entry]:
        """What the C's ring holds, front first."""
        at = self.c_ports[port].rings[ring]
        descs, addrs = self.ffi.cast("struct xdp_desc *", at.entries), self.ffi.cast("uint64_t *", at.entries)
        count = at.producer[0] - at.consumer[0] & 0xFFFFFFFF
        indices = [(at.consumer[0] + i) % at.size for i in range(count)]
        if ring in (RX, TX):
            return [Entry(descs[i].addr // FRAME_SIZE, descs[i].len) for i in indices]
        return [Entry(addrs[i] // FRAME_SIZE) for i in indices]

    @invariant()
    def every_frame_is_where_the_model_has_it(self) -> None:
        if not hasattr(self, "model"):
            return
        owners = self.model.owners()
        assert list(self.c_umem.owner[0:FRAMES]) == [owners[frame] for frame in range(FRAMES)]
        assert list(self.c_umem.free[0 : self.c_umem.free_count]) == self.model.free
        assert self.c_umem.held == len(self.model.held)
        assert self.c_umem.quarantined == len(self.model.quarantined)
        for index, port in enumerate(self.model.ports):
            for ring in range(4):
                assert self.slots(index, ring) == list(port.rings[ring])
        assert self.lib.xskd_forward_publish(self.forward) == 0

    @invariant()
    def every_packet_is_counted_as_the_model_counts_it(self) -> None:
        if not hasattr(self, "model"):
            return
        for port, c_port in zip(self.model.ports, self.c_ports, strict=True):
            found = c_port.counters
            for name in ("rx_packets", "tx_packets", "tx_completed", "completion_invalid"):
                assert getattr(found, name) == port.counts[name], name
            for name in ("undersize", "oversize", "tx_full", "invalid"):
                assert found.drops[getattr(names, f"XSKD_DROP_{name.upper()}")] == port.counts[name], name
            assert c_port.wrong == port.wrong
            assert (c_port.error == errno.EBADMSG) == (port.wrong >= WRONG_ENTRIES)
        ring = self.ffi.cast("struct xskd_capture_ring *", self.capture_ring)
        counted = [ring.ports[index] for index in (0, 1)]
        assert sum(each.seen for each in counted) == self.model.seen
        assert sum(each.copied + each.lost for each in counted) == self.model.seen

    @rule()
    def audit(self) -> None:
        """Nothing contradicts but the lies that still stand in a ring."""
        lies = sum(
            entry.frame == NOWHERE
            for port in self.model.ports
            for ring in (RX, COMPLETION)
            for entry in port.rings[ring]
        )
        assert self.lib.xskd_forward_audit(self.forward) == lies


@pytest.mark.timeout(900)
def test_every_frame_is_where_the_model_has_it(times: Callable[[int, int], int]) -> None:
    examples = times(200, 2000)
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=examples,
            stateful_step_count=80,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no fault of the test
        ),
    )
