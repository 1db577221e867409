"""The checks of `xskd doctor` for interfaces and paths: one small function each, and the tables of them.

A check looks at frozen facts and answers OK, WARN or FAIL with what was seen, why it matters, and what mends
it; None where the question does not arise. FAIL is for what keeps xskd from running or loses packets for
certain, WARN for what works otherwise than one would think. It must never ask the kernel, and must never
offer a Fix that cannot be taken back exactly, that resets a link, or that belongs to the machine and not to
an interface: MTU, queue counts, sysctls, services, and other people's programs are the operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from xskd import checks_route
from xskd.findings import Answer, Command, Facts, Fix, Interface, Offloads, fail, ok, warn
from xskd.hook import PROGRAM
from xskd.plan import (
    LINK_HEADER,
    can_multi_buffer,
    counted,
    largest_mtu,
    listed,
    set_queues,
    zerocopy_mtu,
)
from xskd.umem import HEADROOM, MAX_FRAGMENTS
from xskd.xsk import BURST

FCS = 4  # bytes of an Ethernet frame's check sequence, which zero-copy drivers reckon with
ZEROCOPY_STEP = 128  # drivers receive into multiples of it
VLAN = ("rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")
PEER_VLAN = ("tx-vlan-hw-insert", "tx-vlan-stag-hw-insert")
CHECKSUM = ("tx-checksum-ipv4", "tx-checksum-ip-generic", "tx-checksum-ipv6", "tx-checksum-sctp")
SEGMENTATION = ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation")


# ---- one interface ----------------------------------------------------------------------------------------


def link(interface: Interface) -> Answer:
    """FAIL if there is none of that name; WARN if it is down or has no carrier."""
    if not interface.there.up:
        why = "nothing is received or sent until it is up"
        return warn("down", why, f"ip link set dev {interface.name} up")
    if not interface.there.carrier:
        return warn(
            "up, no carrier", "nothing is received or sent", "look at cable, switch, or the other end"
        )
    return ok("up, carrier")


def default_route(interface: Interface) -> Answer:
    """FAIL if it leads over the interface and `allow_default_route` is not set."""
    if not interface.there.default_route:
        return ok("does not lead here")
    if interface.wanted.allow_default_route:
        return ok("leads here, as allow_default_route: true says")
    why = "xskd would take the packets that this machine, and you, are reached by, and refuses"
    return fail(
        "leads here", why, f"choose another interface, or set {key(interface)}.allow_default_route: true"
    )


def foreign_program(interface: Interface) -> Answer:
    """FAIL if another's is attached, WARN if a leftover of xskd's is."""
    if not interface.tenants:
        return ok("no XDP program")
    for tenant in interface.tenants:
        seen = f"XDP program {tenant.program} ({tenant.name or 'name unknown'}), {tenant.mode}"
        if interface.ours and tenant.name in (PROGRAM, None):
            continue
        if tenant.name == PROGRAM:
            why = "no xskd that answers has it: a leftover, or another xskd's"
            return warn(seen, why, f"xskd cleanup {interface.name}")
        look = f"`bpftool prog show id {tenant.program}` says whose; xskd never replaces it"
        return fail(seen, look, detach(interface.name, tenant.mode))
    return ok("xskd's own, which runs")


def native_xdp(interface: Interface) -> Answer:
    """WARN if the driver cannot run programs itself, FAIL if `attach: native` wants it."""
    wanted, features = interface.wanted.attach, interface.features
    if wanted == "generic":
        return ok("attach: generic")
    if features is None:
        return ok("the kernel does not tell (before 6.3)")
    if "basic" in features.xdp:
        return ok("the driver has it")
    seen, mend = "not now, says the driver", f"set {key(interface)}.attach: generic"
    why = "the program runs in the kernel's stack, behind a copy of each packet"
    if interface.peer and interface.peer.tx_queues > interface.there.queues:
        why = f"a veth needs as many RX queues as {interface.peer.name}, its other end, has TX queues"
        mend = set_queues(interface.there, interface.peer.tx_queues)
    return (
        fail(seen, f"attach: native will be refused; {why}", mend)
        if wanted == "native"
        else warn(seen, why, mend)
    )


def zero_copy(interface: Interface) -> Answer:
    """WARN if the driver has none, or virtio has trouble; FAIL if `mode: zerocopy` will be refused."""
    mode, features = interface.wanted.mode, interface.features
    if mode == "copy":
        return ok("mode: copy")
    if features is None:
        return ok("the kernel does not tell (before 6.3)")
    bad = fail if mode == "zerocopy" else warn
    if "xsk-zerocopy" in features.xdp:
        return _announced(interface, bad)
    seen = "the driver has no zero-copy"
    if mode == "auto" and interface.there.driver == "veth":
        return ok(f"{seen}: copy mode")
    why = "without it each packet is copied and each burst costs a system call"
    return bad(seen, why, f"set {key(interface)}.mode: copy")


def _announced(interface: Interface, bad: Callable[..., Answer]) -> Answer:
    """virtio_net announces more than it keeps."""
    if interface.access_platform is False:
        why = "virtio_net announces zero-copy and refuses it without VIRTIO_F_ACCESS_PLATFORM"
        return bad("announced, but will be refused", why, "start the virtual machine with iommu_platform=on")
    if interface.access_platform and interface.module:
        why = "a virtio_net that is a module may lose all that is sent, once memory gets short, in silence"
        return warn("the driver announces it", why, f"set {key(interface)}.mode: copy")
    return ok("the driver announces it")


def multi_buffer(interface: Interface) -> Answer | None:
    """WARN for 2,048-byte frames with zero-copy, which may cut packets."""
    if interface.features is None:
        return None
    seen = "the driver has it" if "rx-sg" in interface.features.xdp else "the driver has none"
    if interface.zerocopy:
        segments = max(interface.features.zerocopy_segments, 1)
        seen += f"; with zero-copy up to {counted(segments, 'frame')} a packet"
    if interface.zerocopy and interface.frame_size == 2048:
        why = "a zero-copy driver may make two packets of one over 1,024 bytes (igb does), in silence"
        return warn(f"{seen}; umem.frame_size is 2048", why, "set umem.frame_size: 4096")
    return ok(seen)


def mtu(interface: Interface) -> Answer:
    """FAIL if a packet does not fit the frames it may have; WARN if zero-copy will be refused for it."""
    size, has = interface.frame_size, interface.there.mtu
    largest = largest_mtu(size)
    zerocopy = (size - HEADROOM) // ZEROCOPY_STEP * ZEROCOPY_STEP - LINK_HEADER - FCS
    seen = f"{has}; a frame of {size} bytes takes {largest}"
    if has > largest and can_multi_buffer(interface.there):
        return _jumbo(interface, seen)
    if has > largest:
        mend = f"ip link set dev {interface.name} mtu {largest}"
        if size == 2048 and has <= largest_mtu(4096):
            mend = "set umem.frame_size: 4096"
        return fail(
            seen,
            "the driver takes no packets of several frames, as far as the kernel tells; this path will wait",
            mend,
        )
    if interface.zerocopy and has > zerocopy:
        why = f"with more than {zerocopy} newer kernels refuse zero-copy, and mode: auto becomes copy"
        command = f"ip link set dev {interface.name} mtu {zerocopy}"
        return (fail if interface.wanted.mode == "zerocopy" else warn)(seen, why, command)
    return ok(seen)


def _jumbo(interface: Interface, seen: str) -> Answer:
    """The same for packets that take several frames, with a driver that has them."""
    has, most = interface.there.mtu, largest_mtu(interface.frame_size, MAX_FRAGMENTS)
    zerocopy = zerocopy_mtu(interface.there, interface.frame_size)
    seen += f", {MAX_FRAGMENTS} frames take {most}"
    if has > most:
        command = f"ip link set dev {interface.name} mtu {most}"
        return fail(seen, "a packet may have no more frames; this path will wait", command)
    if interface.zerocopy and (has > zerocopy or zerocopy == largest_mtu(interface.frame_size)):
        strict = interface.wanted.mode == "zerocopy"
        then = "this path will wait" if strict else "mode: auto becomes copy"
        command = f"ip link set dev {interface.name} mtu {zerocopy}"
        why = f"with more than {zerocopy} a packet takes more frames than zero-copy has here, and {then}"
        return (fail if strict else warn)(seen, why, command)
    return ok(seen)


def queues(interface: Interface) -> Answer:
    """FAIL if a wanted queue has no RX or no TX queue."""
    device, wanted = interface.there, interface.queues
    seen = f"{device.queues} RX and {device.tx_queues} TX; queue {listed(wanted)} wanted"
    if max(wanted) >= device.queues or max(wanted) >= device.tx_queues:
        why = "a worker receives and sends on the queue of its number; this path will wait"
        return fail(seen, why, set_queues(device, max(wanted) + 1))
    return ok(seen)


def rss(interface: Interface) -> Answer:
    """WARN if packets come to queues without a worker."""
    device, wanted = interface.there, set(interface.queues)
    filled = set(interface.rss) or set(range(device.queues))
    left = sorted(filled - wanted)
    if not left:
        return ok(f"packets come to queue {listed(sorted(filled))}, all have a worker")
    first = len(wanted)
    seen, why = f"packets also come to queue {listed(left)}", "without a worker they take the path's fallback"
    if wanted != set(range(first)):
        return warn(seen, why, f"set {key(interface)}.queues: all")
    if not interface.rss:
        return warn(seen, why, set_queues(device, first))
    usual = all(queue == entry % device.queues for entry, queue in enumerate(interface.rss))
    command: Command = ("ethtool", "-X", interface.name, "equal", str(first))
    undo: Command = ("ethtool", "-X", interface.name, "default")
    fix = Fix(command, undo) if usual else None  # a table that somebody made could not be had back
    return warn(seen, why, " ".join(command), fix)


def lro(interface: Interface) -> Answer:
    """WARN if LRO or hardware GRO is on."""
    names = ("rx-lro", "rx-gro-hw")
    why = "the NIC joins packets to ones longer than a frame; many drivers refuse XDP until it is off"
    return offload(interface, names, why)


def gro(interface: Interface) -> Answer:
    """WARN if GRO is on and the program is generic."""
    if interface.native and "rx-gro" in interface.offloads.on:
        return ok("on, behind a program in the driver")
    why = "a generic program runs after GRO, which joins packets to ones longer than a frame"
    return offload(interface, ("rx-gro",), why)


def vlan(interface: Interface) -> Answer | None:
    """WARN if tags are taken off packets (veth: at the other end)."""
    why = "the tag travels beside the packet, where AF_XDP does not see it: tagged packets come out untagged"
    if interface.there.driver != "veth":
        return offload(interface, VLAN, why)
    return peer_offload(interface, PEER_VLAN, why)


def checksum(interface: Interface) -> Answer | None:
    """WARN if the other end of a veth leaves them unfinished."""
    why = "the other end sends TCP and UDP with unfinished checksums, and whoever gets them drops them"
    return peer_offload(interface, CHECKSUM, why)


def segmentation(interface: Interface) -> Answer | None:
    """WARN if the other end of a veth sends TCP uncut to a generic program."""
    if interface.native and interface.there.driver == "veth":
        return ok("the kernel cuts packets for a program in the driver")
    why = "the other end sends TCP in pieces of up to 64 KiB, which fit no frame"
    return peer_offload(interface, SEGMENTATION, why)


def promiscuous(interface: Interface) -> Answer | None:
    """WARN if `connect` gets packets for one address only."""
    if interface.kind != "connect":
        return None
    if interface.there.takes_all:
        return ok("takes packets for any address")
    why = "connect is for packets to other hosts, and the NIC drops those before XDP"
    base: Command = ("ip", "link", "set", "dev", interface.name, "promisc")
    return warn("takes packets for its own address only", why, fix=Fix((*base, "on"), (*base, "off")))


def fill_ring(interface: Interface) -> Answer | None:
    """WARN if it is smaller than the NIC's own RX ring, or RX has room for both rings, with zero-copy."""
    if not interface.zerocopy or not interface.hardware_rx:
        return None
    fill, need = interface.wanted.rings.fill, interface.hardware_rx + BURST
    rx, seen = interface.wanted.rings.rx, f"{fill} entries, the NIC's own RX ring has {interface.hardware_rx}"
    if fill < need:
        why = "zero-copy fills the NIC's ring from it: it is empty before the first packet"
        return warn(seen, why, f"set {key(interface)}.rings.fill: {1 << (need - 1).bit_length()}")
    if rx >= fill + interface.hardware_rx:
        why = "a worker that pauses lets both run dry before RX is full, from which igb does not recover"
        return warn(f"{seen}, rx {rx}", why, f"set {key(interface)}.rings.rx: {fill}")
    return ok(seen)


def master(interface: Interface) -> Answer:
    """WARN if the interface belongs to a bridge or bond."""
    if not interface.master:
        return ok("belongs to no bridge or bond")
    why = f"packets that xskd takes never reach {interface.master}"
    return warn(f"belongs to {interface.master}", why, f"ip link set dev {interface.name} nomaster")


def irq_affinity(interface: Interface) -> Answer | None:
    """WARN if one CPU receives for all queues, or a busy worker's does."""
    interrupts = interface.interrupts
    if not interrupts:
        return None
    places = {interrupt.cpus for interrupt in interrupts}
    seen = "; ".join(f"{i.name or i.number} on CPU {listed(sorted(i.cpus))}" for i in interrupts)
    everywhere = frozenset().union(*places)
    if len(interrupts) > 1 and len(everywhere) == 1 and interface.there.queues > 1:
        why = "one CPU receives for all queues"
        mend = f"echo CPU > /proc/irq/{interrupts[-1].number}/smp_affinity_list"
        return warn(seen, why, f"{mend} # one CPU for each queue")
    busy = {cpu for cpu in interface.worker_cpus if cpu is not None} if interface.poll == "busy" else set()
    if shared := sorted(busy & everywhere):
        why = "a worker with poll: busy never leaves its CPU, and receiving has to interrupt it"
        mend = f"echo CPU > /proc/irq/{interrupts[0].number}/smp_affinity_list"
        return warn(f"{seen}; workers on CPU {listed(shared)} too", why, f"{mend} # a CPU without a worker")
    return ok(seen)


def numa(interface: Interface) -> Answer | None:
    """WARN if a worker's CPU is on another node than the NIC."""
    node = interface.there.numa_node
    chosen = sorted(cpu for cpu in interface.worker_cpus if cpu is not None)
    far = [cpu for cpu in chosen if interface.cpu_nodes.get(cpu, node) != node]
    if node is None or not chosen:
        return None
    if not far:
        return ok(f"node {node}, as the workers' CPUs")
    why = "every packet crosses between the nodes, which costs some percent"
    return warn(f"node {node}, but CPU {listed(far)} is on another", why, "choose others in paths.*.cpus")


# ---- one path ---------------------------------------------------------------------------------------------


def width(facts: Facts, path: str) -> Answer | None:
    """FAIL if the interfaces of a path have different numbers of queues."""
    if facts.config is None:
        return None
    members = facts.config.paths[path].interfaces
    counts = {i.name: len(i.queues) for i in facts.interfaces if i.name in members and i.device}
    if len(counts) < 2 or len(counts) < len(members):
        return None
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    seen = ", ".join(f"{counted(number, 'queue')} of {name}" for name, number in counts.items())
    if counts[fewest] == counts[most]:
        return ok(seen)
    few = next(i for i in facts.interfaces if i.name == fewest)
    mend = f"select {counts[most]} in interfaces.{fewest}.queues"
    if few.there.queues < counts[most]:
        mend = set_queues(few.there, counts[most])
    return fail(seen, "a worker needs one queue of each; this path will wait", mend)


# ---- what checks share ------------------------------------------------------------------------------------


def offload(interface: Interface, names: Iterable[str], why: str) -> Answer:
    """That none of these is on at the interface itself."""
    return _off(interface.offloads, names, why, lambda *words: words, interface.name)


def peer_offload(interface: Interface, names: Iterable[str], why: str) -> Answer | None:
    """That none of these is on at the other end of a veth; None for other drivers."""
    peer = interface.peer
    if interface.there.driver != "veth":
        return None
    if peer is None:
        seen = "its other end is out of sight, in a namespace without a name"
        wrong = " ".join(f"{name} off" for name in names)
        return warn(seen, f"if it is on there: {why}", f"ethtool -K OTHER {wrong} # in that namespace")
    answer = _off(peer.offloads, names, why, peer.command, peer.name)
    where = f"{peer.name} in {peer.namespace}" if peer.namespace else peer.name
    return Answer(answer.verdict, f"{where}: {answer.seen}", answer.why, answer.mend, answer.fix)


def _off(
    offloads: Offloads, names: Iterable[str], why: str, command: Callable[..., Command], device: str
) -> Answer:
    names = tuple(names)
    on = [name for name in names if name in offloads.on]
    if not on:
        return ok("off")
    change = offloads.mendable(*names)
    seen = f"on: {', '.join(on)}"
    if not change:
        return warn(f"{seen} (fixed)", why)

    def switch(way: str) -> Command:
        return command("ethtool", "-K", device, *(word for name in change for word in (name, way)))

    return warn(seen, why, fix=Fix(switch("off"), switch("on")))


def key(interface: Interface) -> str:
    """The interface's section of the configuration."""
    return f"interfaces.{interface.name}"


def detach(name: str, mode: str) -> str:
    """What removes a program: of whomever, so the operator's to run."""
    return f"ip link set dev {name} {'xdpgeneric' if mode == 'generic' else 'xdpdrv'} off"


# ---- the tables -------------------------------------------------------------------------------------------

INTERFACE: dict[str, Callable[[Interface], Answer | None]] = {
    "link": link,
    "XDP program": foreign_program,
    "default route": default_route,
    "master": master,
    "native XDP": native_xdp,
    "zero-copy": zero_copy,
    "multi-buffer": multi_buffer,
    "MTU": mtu,
    "queues": queues,
    "RSS": rss,
    "LRO": lro,
    "GRO": gro,
    "VLAN stripping": vlan,
    "checksums": checksum,
    "segmentation": segmentation,
    "promiscuous": promiscuous,
    "fill ring": fill_ring,
    "IRQ affinity": irq_affinity,
    "NUMA": numa,
    **checks_route.INTERFACE,
}
PATH: dict[str, Callable[[Facts, str], Answer | None]] = {"width": width}
FIXED = {  # what --fix does, for the page
    "RSS": "`ethtool -X`, if the table is the driver's own",
    **dict.fromkeys(("LRO", "GRO", "VLAN stripping"), "`ethtool -K`"),
    **dict.fromkeys(("checksums", "segmentation"), "`ethtool -K`, at the other end"),
    "promiscuous": "`ip link set ... promisc on`",
    **checks_route.FIXED,
}
