"""The XDP program of an interface: load it, attach it, and say which XSK each queue's packets go to.

Loaded with libbpf, attached by bpf_link: when the last process that holds the link is gone, so is the
program, also after SIGKILL. Whoever keeps the link and the maps can go on with the program later, in another
process (`adopt`), and no packet notices. This module must never replace or detach a program that is not its
own (xskd/hook.py knows whose one is), and never attach one of another ABI version than it was written for.
See bpf/xdp_prog.bpf.c for what it does to a packet, and xskd/maps.py for what its maps say.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from xskd import hook, loading, maps
from xskd._libbpf import ffi, lib
from xskd.errors import XdpError
from xskd.hook import AttachMode, cleanup, libbpf_error, program_of
from xskd.loading import ABI_VERSION
from xskd.maps import (
    ANSWERS,
    FALLBACKS,
    KINDS,
    NOTHING_THERE,
    SHAPES,
    UNROUTABLE,
    Answer,
    Fallback,
    Kind,
    RuleTally,
    Sets,
    Settings,
    Verdicts,
)

__all__ = [
    "ABI_VERSION",
    "OBJECT",
    "UNROUTABLE",
    "Answer",
    "Attach",
    "AttachMode",
    "Fallback",
    "HasFileno",
    "Kind",
    "Program",
    "RuleTally",
    "Settings",
    "TestRun",
    "Verdicts",
    "cleanup",
    "detach_link",
    "program_of",
    "test_run",
]

Attach = Literal["auto", "native", "generic"]

OBJECT = Path(__file__).with_name("xdp_prog.o")
TAKEN = frozenset({errno.EBUSY, errno.EEXIST})
# A driver that cannot take the program natively answers with one of many errnos (no support, MTU, queues,
# memory for its rings); only these say that generic mode would not help either.
NOT_THE_DRIVER = TAKEN | {errno.EPERM, errno.EACCES, errno.ENODEV}
_ACTIONS = {
    lib.XDP_ABORTED: "aborted",
    lib.XDP_DROP: "drop",
    lib.XDP_PASS: "pass",
    lib.XDP_TX: "tx",
    lib.XDP_REDIRECT: "redirect",
}


class HasFileno(Protocol):
    """Anything with a descriptor, like an xskd.xsk.Socket."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


class Program:
    """One loaded program for one interface, with an empty XSKMAP of `queues` entries.

    `queues` is the interface's real number of RX queues. Raises XdpError if the object is of another ABI
    version, or if the kernel refuses it (CAP_BPF and CAP_NET_ADMIN are needed).

    `attach_mode` is None until it is attached. `native_refused` is the errno of a driver that would not take
    it. `took_over` is the id of our own leftover that had to make room for it. `replaced` says that `adopt`
    found the program of another version attached.
    """

    attach_mode: AttachMode | None = None
    native_refused: int | None = None
    took_over: int | None = None
    replaced: bool = False
    _link: int | None = None
    _object: Any = ffi.NULL  # libbpf's, which has the maps' descriptors; none if adopted

    def __init__(self, queues: int, *, fallback: Fallback = "pass", path: Path = OBJECT) -> None:
        self.queues = queues
        self._object = loading.load(path, lambda opened: loading.size(opened, queues))
        self._maps = {name: int(lib.bpf_map__fd(loading.map_of(self._object, name))) for name in SHAPES}
        self._sets = Sets(self._maps, queues)
        try:
            loading.begin(self._maps, FALLBACKS[fallback])
        except XdpError:
            self.close()
            raise

    @classmethod
    def adopt(
        cls, interface: str, queues: int, descriptors: Mapping[str, int], *, ifindex: int, path: Path = OBJECT
    ) -> Program:
        """Go on with an attached program, whose `descriptors()` somebody has kept; they are ours from now on.

        If it is not the one of this version, that takes its place, with the same maps: every packet meets
        one of the two, with the sockets and the fallback that were there. `link` and `xsks` must fit. Another
        map that is missing, or of another version, is made anew: then there are no rules, and the settings
        are the default ones. Raises XdpError, and has closed the descriptors, if they are not those of a
        program on this interface with at least `queues` entries.
        """
        kept: dict[str, int] = {}
        try:
            loading.check_adoptable(interface, ifindex, queues, descriptors)
            program = cls.__new__(cls)
            program.queues, program._link = queues, descriptors["link"]
            program.attach_mode = hook.mode_of(ifindex, program.id)
            if program.attach_mode is None:
                detail = f"program {program.id} is not attached to it in this network namespace"
                raise libbpf_error("adopt", None, interface, detail)
            kept = loading.of_this_version(descriptors, queues)
            if len(kept) == len(SHAPES):
                program.replaced = loading.bring_up_to_date(interface, program._link, kept, path)
            else:
                kept |= loading.begin_anew(
                    interface,
                    program._link,
                    kept,
                    path,
                    queues=queues,
                    fallback=loading.fallback_of(descriptors),
                )
                program.replaced = True
        except BaseException:
            loading.close_all({*descriptors.values(), *kept.values()})
            raise
        loading.close_all(set(descriptors.values()) - {program._link, *kept.values()})
        program._maps, program._sets = kept, Sets(kept, queues)
        return program

    def attach(self, interface: str, mode: Attach = "auto", *, ifindex: int | None = None) -> None:
        """Attach to an interface, natively if the driver can (`auto`); `attach_mode` says which it became.

        Our own leftover there is removed first. Raises XdpError, also if the interface has any other program
        already: that is never replaced.
        """
        if not self._object or self._link is not None:
            raise libbpf_error("attach", None, interface, "this program is attached already, or closed")
        index = hook.ifindex_of(interface) if ifindex is None else ifindex
        if mode != "generic" and self._try_attach(interface, index, lib.XDP_FLAGS_DRV_MODE, mode == "native"):
            self.attach_mode = "native"
        else:
            self._try_attach(interface, index, lib.XDP_FLAGS_SKB_MODE, True)
            self.attach_mode = "generic"

    def renew(self, interface: str, path: Path = OBJECT) -> None:
        """Have the driver take the program anew, without a packet lost: it may have new queues to run it on.

        veth runs none on queues that it got after attaching. Raises XdpError.
        """
        loading.bring_up_to_date(interface, self._attached_by(), self._maps, path, same=True)

    @property
    def id(self) -> int:
        """The id of the program that is attached now. Raises XdpError if none is."""
        return program_of(self._attached_by())[0]

    def descriptors(self) -> dict[str, int]:
        """What `adopt` needs: `link`, and the maps by name; they stay ours.

        Whoever has a duplicate of the link keeps the program attached. Raises XdpError if it is not attached.
        """
        return {"link": self._attached_by(), **self._maps}

    def insert(self, queue: int, xsk: HasFileno, *, replace: bool = False) -> None:
        """Send what arrives on `queue` to this socket.

        Raises XdpError, also if another one is there, unless this is to take its place (`replace`).
        """
        key, value = ffi.new("uint32_t *", queue), ffi.new("uint32_t *", xsk.fileno())
        flags = lib.BPF_ANY if replace else lib.BPF_NOEXIST
        if (result := lib.bpf_map_update_elem(self._maps["xsks"], key, value, flags)) < 0:
            raise libbpf_error("BPF_MAP_UPDATE_ELEM(xsks)", -result, detail=f"queue {queue}")

    def remove(self, queue: int) -> None:
        """Stop sending packets of `queue` to a socket, if there is one: closing it has removed it as well.

        A queue that the map has no place for has none either. Raises XdpError if the kernel refuses.
        """
        result = lib.bpf_map_delete_elem(self._maps["xsks"], ffi.new("uint32_t *", queue))
        if result < 0 and -result not in NOTHING_THERE:
            raise libbpf_error("BPF_MAP_DELETE_ELEM(xsks)", -result, detail=f"queue {queue}")

    def set_fallback(self, fallback: Fallback) -> None:
        """What happens to packets of a queue without a socket, from the next packet on. Raises XdpError."""
        changed = maps.read_settings(self._maps["settings"])
        changed.fallback = FALLBACKS[fallback]
        maps.write_settings(self._maps, changed)

    def configure(self, settings: Settings) -> None:
        """Say which path this is and who its interfaces are, in this network namespace.

        One that is gone is left out. Where interfaces or kind are others than before, all lanes are closed:
        `open_lanes` comes after this. Raises XdpError.
        """
        changed = maps.read_settings(self._maps["settings"])
        ports = list(settings.ports) + [0] * (lib.XSKD_MAX_PORTS - len(settings.ports))
        if (
            list(changed.ifindex) != ports
            or changed.kind != KINDS[settings.kind]
            or changed.own != settings.own
        ):
            changed.lanes = changed.lanes_sg = 0
            maps.write_settings(self._maps, changed)
        maps.open_lanes_to(self._maps, settings.ports)
        changed.kind, changed.answer = KINDS[settings.kind], ANSWERS[settings.answer]
        changed.own, changed.ports, changed.ifindex, changed.mac = (
            settings.own,
            len(settings.ports),
            ports,
            list(settings.mac),
        )
        maps.write_settings(self._maps, changed)

    def open_lanes(self, lanes: Collection[int], multi_buffer: Collection[int] = ()) -> None:
        """By which interfaces of the path express packets may leave, and those of several buffers too.

        The others are closed: what is express goes to user space instead. Raises XdpError.
        """
        changed = maps.read_settings(self._maps["settings"])
        changed.lanes = sum(1 << lane for lane in set(lanes))
        changed.lanes_sg = sum(1 << lane for lane in set(multi_buffer))
        maps.write_settings(self._maps, changed)

    def install(self, image: bytes | None) -> tuple[RuleTally, ...]:
        """Swap in the rules of an image (struct xskd_rules; None: have none), whole, between two packets.

        Returns when no packet sees the old ones any more, with what those have counted since they were
        installed, the default last; nothing if there were none. Raises XdpError: then the old are in force.
        """
        old = self._sets.in_force()
        if image is not None:
            self._sets.put(image, 0 if old is None else 1 - old)
        elif old is not None:
            self._sets.remove()
        return self._sets.counted(old)

    def rule_tallies(self) -> tuple[RuleTally, ...]:
        """What the rules in force have counted, the default last; nothing without any. Raises XdpError."""
        return self._sets.counted(self._sets.in_force())

    def verdicts(self) -> Verdicts:
        """What became of the packets, summed over all CPUs. Raises XdpError."""
        return Verdicts(*(packets for packets, _ in self._counts()[: lib.XSKD_VERDICTS]))

    def verdict_bytes(self) -> Verdicts:
        """What became of the bytes: of whole frames, without FCS. Raises XdpError."""
        return Verdicts(*(count for _, count in self._counts()[: lib.XSKD_VERDICTS]))

    def unroutable(self) -> dict[str, int]:
        """Packets that `route` left to the kernel, by reason (UNROUTABLE). Raises XdpError."""
        reasons = self._counts()[lib.XSKD_VERDICTS : lib.XSKD_UNPARSED]
        return {reason: packets for reason, (packets, _) in zip(UNROUTABLE, reasons, strict=True)}

    def unparsed(self) -> int:
        """Packets that took the default because no rule could be asked about them. Raises XdpError."""
        packets, _ = self._counts()[int(lib.XSKD_UNPARSED)]
        return packets

    def detach(self) -> None:
        """Take the program off its interface, whoever else has the link; `close` alone leaves that to them.

        Raises XdpError.
        """
        detach_link(self._attached_by())

    def close(self) -> None:
        """Forget the program, which detaches it unless somebody has its link too. Sockets are not touched."""
        if self._link is not None:
            os.close(self._link)
            self._link = None
        if self._object:
            lib.bpf_object__close(self._object)
            self._object = ffi.NULL
        else:
            loading.close_all(self._maps.values())
        self._maps.update(dict.fromkeys(SHAPES, -1))

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _attached_by(self) -> int:
        if self._link is None:
            raise libbpf_error("bpf_link", None, detail="this program is not attached")
        return self._link

    def _try_attach(self, interface: str, ifindex: int, flags: int, final: bool) -> bool:
        result = lib.xskd_link_create(loading.program_in(self._object), ifindex, flags)
        if -result in TAKEN and (number := hook.make_room(interface, ifindex, "BPF_LINK_CREATE")):
            self.took_over = number
            result = lib.xskd_link_create(loading.program_in(self._object), ifindex, flags)
        if result >= 0:
            self._link = result
            return True
        if -result in TAKEN:
            detail = "an XDP program is attached to a device that it is a part of, or was in this moment"
            raise libbpf_error("BPF_LINK_CREATE", -result, interface, detail)
        if final or -result in NOT_THE_DRIVER:
            mode = "native" if flags == lib.XDP_FLAGS_DRV_MODE else "generic"
            raise libbpf_error("BPF_LINK_CREATE", -result, interface, f"attaching in {mode} mode")
        self.native_refused = -result
        lib.xskd_libbpf_log()  # the driver's refusal is expected here
        return False

    def _counts(self) -> list[tuple[int, ...]]:
        return maps.tallies(self._maps["verdicts"], "struct xskd_tally", 0, lib.XSKD_COUNTS)


@dataclass(frozen=True)
class TestRun:
    """What the program made of a packet that arrived nowhere."""

    __test__ = False  # nothing for pytest to collect

    action: str  # aborted, drop, pass, tx or redirect
    packet: bytes  # as it is afterwards
    metadata: bytes  # in front of it
    duration: int  # ns, the mean of all repetitions


def test_run(
    program: Program, packet: bytes, *, repeat: int = 1, ifindex: int = 0, queue: int = 0
) -> TestRun:
    """Let a program that this process has loaded see a packet; for tests and measurements.

    It arrives on a queue of an interface of this network namespace that has an XDP program, or on queue 0 of
    the loopback interface (`ifindex` 0). Counters count it, and nothing is sent. Raises XdpError.
    """
    if not program._object:
        raise libbpf_error("BPF_PROG_TEST_RUN", None, detail="this program was not loaded here")
    room, result = len(packet) + 256, ffi.new("struct xskd_test *")
    out = ffi.new("unsigned char[]", room)
    answer = lib.xskd_test_run(
        loading.program_in(program._object), packet, len(packet), ifindex, queue, repeat, out, room, result
    )
    if answer < 0:
        raise libbpf_error("BPF_PROG_TEST_RUN", -answer)
    content = bytes(ffi.buffer(out, result.metadata + result.length))
    metadata = content[: result.metadata]
    return TestRun(_ACTIONS[result.action], content[result.metadata :], metadata, result.duration)


test_run.__test__ = False  # type: ignore[attr-defined]


def detach_link(link: int) -> None:
    """Take whatever a bpf_link descriptor has attached off its interface, whoever else has the link.

    An interface that is gone has done that already. Raises XdpError.
    """
    result = lib.bpf_link_detach(link)
    if result < 0 and -result != errno.ENOLINK:
        raise libbpf_error("BPF_LINK_DETACH", -result)
