"""Every check of the doctor over made-up facts: what is well, what is not, and what it says to do."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import device

from xskd import checks, checks_machine, cli, config, doctor, examine, findings, show
from xskd.features import Features
from xskd.findings import Facts, Finding, Fix, Interface, Interrupt, Machine, Offloads, Peer, Routing
from xskd.hook import Tenant
from xskd.plan import make_plan

ROOT = Path(__file__).parents[2]
DRIVER = Features(frozenset({"basic", "redirect", "rx-sg", "xsk-zerocopy"}), 1)
NO_XMIT = Features(frozenset({"basic", "redirect"}), 0)
XMIT = Features(frozenset({"basic", "redirect", "ndo-xmit"}), 0)
VETH = Features(frozenset({"basic", "redirect"}), 0)
MACHINE = Machine(
    kernel=(6, 18),
    af_xdp=0,
    capabilities=frozenset({"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"}),
    memlock=None,
    jit=True,
    huge_pages=10,
    free_huge_pages=4,
    cpus=frozenset({0, 1}),
    irqbalance=False,
    daemon=False,
)
NIC = Interface(
    name="eth1",
    wanted=config.Interface(),
    kind="connect",
    poll="adaptive",
    frame_size=4096,
    device=device("eth1", queues=2, node=0, features=DRIVER),
    hardware_rx=512,
    interrupts=tuple(Interrupt(40 + n, f"eth1-rx-{n}", frozenset({n})) for n in range(2)),
    worker_cpus=frozenset({0, 1}),
    cpu_nodes={0: 0, 1: 0},
)
PAIR = replace(
    NIC,
    device=device("eth1", driver="veth", features=VETH),
    interrupts=(),
    peer=Peer("eth0", "h0", Offloads(), 1),
)


def nic(**changes: Any) -> Interface:
    """Make a NIC that differs from one that is well; keys of the configuration go into `wanted`."""
    of_file = {name: changes.pop(name) for name in list(changes) if name in config.Interface.model_fields}
    of_device = {name: changes.pop(name) for name in list(changes) if hasattr(NIC.device, name)}
    wanted = config.Interface.model_validate(of_file)
    return replace(NIC, wanted=wanted, device=replace(NIC.there, **of_device), **changes)


def pair(*on: str, attach: str = "auto", fixed: tuple[str, ...] = (), **changes: Any) -> Interface:
    """Make a veth with these offloads at its other end."""
    peer = Peer("eth0", "h0", Offloads(frozenset(on), frozenset(fixed)), 1)
    wanted = config.Interface.model_validate({"attach": attach})
    return replace(PAIR, **{"wanted": wanted, "peer": peer, **changes})


def offloads(*on: str, fixed: tuple[str, ...] = ()) -> Offloads:
    return Offloads(frozenset(on), frozenset(fixed))


def routed(*families: int, off: tuple[int, ...] = (), rp_filter: int = 0, name: str = "eth1") -> Interface:
    """Make an interface of a route path with addresses of these families."""
    forwarding = {family: family not in off for family in (4, 6)}
    device = replace(NIC.there, name=name)
    routing = Routing(frozenset(families), forwarding, rp_filter)
    return replace(NIC, name=name, device=device, kind="route", routing=routing)


def lane(
    driver: str = "ice", *, ours: bool = True, features: Features = NO_XMIT, **changes: Any
) -> Interface:
    """Make an interface that express packets may leave by."""
    made = replace(NIC.there, driver=driver, features=features)
    return replace(NIC, device=made, express=True, ours=ours, **changes)


NO_ZEROCOPY = Features(frozenset({"basic"}), 0)
NOTHING = Features(frozenset(), 0)
JUMBO = Features(frozenset({"basic", "redirect", "rx-sg"}), 0)
ONE_SEGMENT = Features(JUMBO.xdp | {"xsk-zerocopy"}, 1)
CROWDED = device("eth1", driver="veth", features=NOTHING)
CROWD = Peer("a", "", Offloads(), 4)  # of more TX queues than the other end has RX queues
ONE_CPU = tuple(Interrupt(40 + n, f"eth1-rx-{n}", frozenset({0})) for n in range(2))
# Check, interface, verdict, and what has to stand in what is said.
INTERFACES: list[tuple[str, Interface, str, str]] = [
    ("link", nic(up=False, carrier=False), "WARN", "ip link set dev eth1 up"),
    ("link", nic(carrier=False), "WARN", "no carrier"),
    ("default route", nic(default_route=True), "FAIL", "interfaces.eth1.allow_default_route: true"),
    ("default route", nic(default_route=True, allow_default_route=True), "OK", "as allow_default_route"),
    ("XDP program", nic(tenants=(Tenant(7, "native", "stranger"),)), "FAIL", "dev eth1 xdpdrv off"),
    ("XDP program", nic(tenants=(Tenant(7, "generic", None),)), "FAIL", "dev eth1 xdpgeneric off"),
    ("XDP program", nic(tenants=(Tenant(7, "native", "xskd"),)), "WARN", "xskd cleanup eth1"),
    ("XDP program", nic(tenants=(Tenant(7, "native", "xskd"),), ours=True), "OK", "xskd's own"),
    ("XDP program", nic(tenants=(Tenant(7, "native", None),), ours=True), "OK", "xskd's own"),
    ("XDP program", nic(tenants=(Tenant(7, "native", "stranger"),), ours=True), "FAIL", "stranger"),
    ("master", nic(master="br0"), "WARN", "ip link set dev eth1 nomaster"),
    ("native XDP", nic(features=NOTHING), "WARN", "interfaces.eth1.attach: generic"),
    ("native XDP", nic(features=NOTHING, attach="native"), "FAIL", "will be refused"),
    ("native XDP", nic(features=NOTHING, attach="generic"), "OK", "generic"),
    ("native XDP", nic(features=None), "OK", "does not tell"),
    (
        "native XDP",
        replace(pair(), device=device("eth1", driver="veth", features=NOTHING), peer=CROWD),
        "WARN",
        "rx 4 tx 4",
    ),
    ("zero-copy", nic(features=NO_ZEROCOPY), "WARN", "interfaces.eth1.mode: copy"),
    ("zero-copy", nic(features=NO_ZEROCOPY, mode="zerocopy"), "FAIL", "interfaces.eth1.mode: copy"),
    ("zero-copy", nic(features=NO_ZEROCOPY, mode="copy"), "OK", "mode: copy"),
    ("zero-copy", nic(features=None), "OK", "does not tell"),
    ("zero-copy", nic(access_platform=False), "WARN", "iommu_platform=on"),
    ("zero-copy", nic(access_platform=False, mode="zerocopy"), "FAIL", "iommu_platform=on"),
    ("zero-copy", nic(access_platform=True), "OK", "announces"),
    ("zero-copy", nic(access_platform=True, module=True), "WARN", "mode: copy"),
    ("zero-copy", pair(), "OK", "copy mode"),
    ("multi-buffer", nic(frame_size=2048), "WARN", "umem.frame_size: 4096"),
    ("multi-buffer", nic(frame_size=2048, mode="copy"), "OK", "has it"),
    ("MTU", nic(mtu=9000, features=NO_ZEROCOPY), "FAIL", "ip link set dev eth1 mtu 3818"),
    ("MTU", nic(mtu=1800, features=NO_ZEROCOPY, frame_size=2048), "FAIL", "umem.frame_size: 4096"),
    ("MTU", nic(mtu=9000, features=JUMBO), "OK", "18 frames take 65513"),
    ("MTU", nic(mtu=9000, features=JUMBO, frame_size=2048), "OK", "18 frames take 32234"),
    ("MTU", nic(mtu=40000, features=JUMBO, frame_size=2048), "FAIL", "ip link set dev eth1 mtu 32234"),
    ("MTU", nic(mtu=9000, features=ONE_SEGMENT), "WARN", "mode: auto becomes copy"),
    ("MTU", nic(mtu=9000, features=ONE_SEGMENT, mode="zerocopy"), "FAIL", "mtu 3818"),
    ("MTU", nic(mtu=9000, features=ONE_SEGMENT, mode="copy"), "OK", "65513"),
    ("MTU", nic(mtu=9000, features=replace(ONE_SEGMENT, zerocopy_segments=8)), "OK", "65513"),
    ("MTU", nic(mtu=3818), "WARN", "ip link set dev eth1 mtu 3814"),
    ("MTU", nic(mtu=3818, mode="zerocopy"), "FAIL", "mtu 3814"),
    ("MTU", nic(mtu=3814), "OK", "3818"),
    ("MTU", nic(mtu=3818, mode="copy"), "OK", "3818"),
    ("queues", nic(queues=[0, 5]), "FAIL", "ethtool -L eth1 combined 6"),
    ("queues", nic(tx_queues=1), "FAIL", "ethtool -L eth1 combined 2"),
    ("RSS", nic(rss=(0, 1, 0, 1), queues=[0]), "WARN", "ethtool -X eth1 equal 1"),
    ("RSS", nic(rss=(1, 1, 1, 1), queues=[0]), "WARN", "come to queue 1"),
    ("RSS", nic(rss=(0, 0), queues=[0]), "OK", "queue 0"),
    ("RSS", nic(queues=[0]), "WARN", "ethtool -L eth1 combined 1"),
    ("RSS", nic(queues=[1]), "WARN", "interfaces.eth1.queues: all"),
    ("LRO", nic(offloads=offloads("rx-lro")), "WARN", "ethtool -K eth1 rx-lro off"),
    ("LRO", nic(offloads=offloads("rx-gro-hw")), "WARN", "ethtool -K eth1 rx-gro-hw off"),
    ("GRO", nic(offloads=offloads("rx-gro"), attach="generic"), "WARN", "ethtool -K eth1 rx-gro off"),
    ("GRO", nic(offloads=offloads("rx-gro")), "OK", "behind a program in the driver"),
    ("VLAN stripping", nic(offloads=offloads("rx-vlan-hw-parse")), "WARN", "rx-vlan-hw-parse off"),
    (
        "VLAN stripping",
        pair("tx-vlan-hw-insert"),
        "WARN",
        "netns exec h0 ethtool -K eth0 tx-vlan-hw-insert off",
    ),
    ("VLAN stripping", pair(offloads=offloads("rx-vlan-hw-parse")), "OK", "eth0 in h0: off"),
    ("checksums", pair("tx-checksum-ip-generic"), "WARN", "netns exec h0 ethtool -K eth0 tx-checksum-ip-gen"),
    ("checksums", pair(peer=None), "WARN", "out of sight"),
    ("segmentation", pair("tx-tcp-segmentation", attach="generic"), "WARN", "tx-tcp-segmentation off"),
    ("segmentation", pair("tx-tcp-segmentation"), "OK", "in the driver"),
    ("promiscuous", nic(takes_all=False), "WARN", "ip link set dev eth1 promisc on"),
    ("fill ring", nic(hardware_rx=4096), "WARN", "interfaces.eth1.rings.fill: 8192"),
    ("fill ring", nic(rings={"rx": 4096}), "WARN", "interfaces.eth1.rings.rx: 2048"),
    ("IRQ affinity", nic(interrupts=ONE_CPU), "WARN", "/proc/irq/41/smp_affinity_list"),
    ("IRQ affinity", nic(poll="busy"), "WARN", "workers on CPU 0-1 too"),
    ("NUMA", nic(cpu_nodes={0: 0, 1: 1}), "WARN", "CPU 1 is on another"),
    ("forwarding", routed(4, off=(4,)), "FAIL", "sysctl -w net.ipv4.conf.eth1.forwarding=1"),
    ("forwarding", routed(4, off=(4,), name="eth1.5"), "FAIL", "net.ipv4.conf.eth1/5.forwarding=1"),
    ("forwarding", routed(6, off=(4, 6)), "FAIL", "sysctl -w net.ipv6.conf.all.forwarding=1"),
    ("forwarding", routed(4, 6, off=(6,)), "FAIL", "off for IPv6"),
    ("forwarding", routed(off=(4, 6)), "FAIL", "off for IPv4:"),
    ("forwarding", routed(4, off=(6,)), "OK", "on for IPv4"),
    ("forwarding", routed(4, 6), "OK", "on for IPv4 and IPv6"),
    ("rp_filter", routed(4, rp_filter=1), "WARN", "interfaces.eth1.rules"),
    ("rp_filter", routed(4, rp_filter=2), "OK", "loose"),
    ("rp_filter", routed(4), "OK", "off"),
    ("express", lane(), "WARN", "by user space instead"),
    ("express", lane(ours=False), "OK", "with a program attached"),
    ("express", lane("veth", peer=PAIR.peer), "WARN", "ip netns exec h0 ethtool -K eth0 gro on"),
    ("express", lane("veth", ours=False), "WARN", "by user space instead"),
    ("express", lane(features=XMIT), "OK", "takes packets"),
]


@pytest.mark.parametrize(("check", "interface", "verdict", "part"), INTERFACES)
def test_a_check_of_an_interface(check: str, interface: Interface, verdict: str, part: str) -> None:
    answer = checks.INTERFACE[check](interface)
    assert answer is not None
    assert (answer.verdict, part in f"{answer.seen}: {answer.why}: {answer.mend}") == (verdict, True), answer
    assert bool(answer.why) is (verdict != "OK")


@pytest.mark.parametrize("interface", [NIC, PAIR], ids=["nic", "veth"])
def test_all_is_well(interface: Interface) -> None:
    answers = {name: ask(interface) for name, ask in checks.INTERFACE.items()}
    assert {name for name, answer in answers.items() if answer and answer.verdict != "OK"} == set()


@pytest.mark.parametrize("check", ["forwarding", "rp_filter", "express"])
def test_what_concerns_routing_and_lanes_is_no_question_elsewhere(check: str) -> None:
    assert checks.INTERFACE[check](NIC) is None
    assert checks.INTERFACE[check](replace(NIC, kind="route")) is None  # where the kernel tells nothing


@pytest.mark.parametrize("check", ["checksums", "segmentation"])
def test_what_only_a_veth_does_is_no_question_elsewhere(check: str) -> None:
    assert checks.INTERFACE[check](NIC) is None


def facts(text: str = "", queues: int = 2, **changes: Any) -> Facts:
    text = text or "interfaces: {eth1: {}, eth2: {}}\npaths: {wire: {connect: [eth1, eth2]}}\n"
    wanted = config.parse(text, "x.yaml")
    devices = {name: device(name, queues=queues) for name in wanted.interfaces}
    plan = make_plan(wanted, devices, range(100))
    interfaces = tuple(
        replace(NIC, name=name, wanted=wanted.interfaces[name], device=devices[name]) for name in devices
    )
    return Facts(replace(MACHINE, **changes), interfaces, wanted, plan)


def router(*chains: str) -> Facts:
    """Make a machine with a route path and these chains."""
    return replace(facts(forward_chains=chains), interfaces=(routed(4),))


HUGE = "interfaces: {eth1: {}}\npaths: {echo: {reflect: eth1}}\numem: {huge_pages: true}\n"
ODD_CPU = "interfaces: {eth1: {}}\npaths: {echo: {reflect: eth1, cpus: [0, 9]}}\n"
MACHINES: list[tuple[str, Facts, str, str]] = [
    ("kernel", facts(kernel=(5, 15)), "FAIL", "5.18"),
    ("kernel", facts(kernel=(6, 1)), "WARN", "6.4"),
    ("AF_XDP", facts(af_xdp=97), "FAIL", "CONFIG_XDP_SOCKETS"),
    ("AF_XDP", facts(af_xdp=1, capabilities=frozenset()), "FAIL", "CAP_NET_RAW"),
    (
        "capabilities",
        facts(capabilities=frozenset({"CAP_NET_ADMIN", "CAP_NET_RAW"})),
        "FAIL",
        "lacks CAP_BPF",
    ),
    (
        "capabilities",
        facts(capabilities=frozenset({*MACHINE.capabilities, "CAP_SYS_ADMIN"})),
        "OK",
        "CAP_BPF",
    ),
    ("memlock", facts(memlock=8 << 20), "FAIL", "8 MiB may be pinned, packet memory takes 96 MiB"),
    ("memlock", facts(memlock=1 << 30), "OK", "1024 MiB"),
    ("memlock", facts(memlock=8 << 20, capabilities=frozenset({"CAP_IPC_LOCK"})), "OK", "no limit"),
    ("BPF JIT", facts(jit=False), "WARN", "bpf_jit_enable=1"),
    ("huge pages", facts(HUGE), "FAIL", "sysctl vm.nr_hugepages=30"),
    ("huge pages", facts(HUGE, daemon=True), "OK", "has its own"),
    ("huge pages", facts(HUGE, free_huge_pages=24), "OK", "24 are free"),
    ("CPUs", facts(ODD_CPU), "FAIL", "may not use CPU 9"),
    ("irqbalance", facts(irqbalance=True), "WARN", "systemctl disable --now irqbalance"),
    ("irqbalance", replace(facts(irqbalance=True), interfaces=(PAIR,)), "OK", "no interface here"),
    (
        "netfilter",
        router("inet filter forward", "ip nat post"),
        "WARN",
        "2 for forwarded packets: inet filter f",
    ),
    ("netfilter", router(*map(str, range(5))), "WARN", "0, 1, 2, 3, ...: "),
    ("netfilter", router(), "OK", "no chain"),
]


@pytest.mark.parametrize(("check", "seen", "verdict", "part"), MACHINES)
def test_a_check_of_the_machine(check: str, seen: Facts, verdict: str, part: str) -> None:
    answer = checks_machine.MACHINE[check](seen)
    assert answer is not None
    assert (answer.verdict, part in f"{answer.seen}: {answer.why}: {answer.mend}") == (verdict, True), answer


def test_netfilter_is_no_question_without_a_route_path_or_an_answer() -> None:
    chains = facts(forward_chains=("inet filter forward",))
    assert checks_machine.MACHINE["netfilter"](chains) is None
    assert checks_machine.MACHINE["netfilter"](replace(router(), machine=MACHINE)) is None


def test_interfaces_of_a_path_with_different_numbers_of_queues() -> None:
    both = facts()
    narrow = replace(both.interfaces[1], device=device("eth2", queues=1))
    answer = checks.width(replace(both, interfaces=(both.interfaces[0], narrow)), "wire")
    assert answer is not None
    assert (answer.verdict, answer.mend) == ("FAIL", "ethtool -L eth2 combined 2")
    same = checks.width(both, "wire")
    assert same is not None
    assert same.verdict == "OK"


def test_every_check_is_shown_to_fail_by_a_test() -> None:
    tried = {check for check, _, verdict, _ in [*INTERFACES, *MACHINES] if verdict != "OK"}
    assert tried == {*checks.INTERFACE, *checks_machine.MACHINE}


def test_one_that_is_missing_is_told_once() -> None:
    both = facts()
    gone = replace(both.interfaces[1], device=None)
    found = doctor.diagnose(replace(both, interfaces=(both.interfaces[0], gone)))
    assert [(f.verdict, f.check) for f in found if f.subject == "eth2"] == [("FAIL", "link")]
    assert doctor.worst(found) == "FAIL"


# ---- what may be changed -----------------------------------------------------------------------------------


def test_only_what_can_be_undone_exactly_is_offered() -> None:
    fixes = {
        check: answer.fix
        for check, interface, _, _ in INTERFACES
        if (answer := checks.INTERFACE[check](interface)) and answer.fix
    }
    assert set(fixes) == set(checks.FIXED)
    for fix in fixes.values():
        assert fix.command != fix.undo
        assert fix.command[:4] == fix.undo[:4] or fix.command[:3] == fix.undo[:3]


def test_what_is_fixed_and_a_table_that_somebody_made_are_left_alone() -> None:
    answer = checks.lro(nic(offloads=offloads("rx-lro", fixed=("rx-lro",))))
    assert (answer.verdict, answer.fix, answer.mend) == ("WARN", None, "")
    assert checks.rss(nic(rss=(0, 0, 1, 1), queues=[0])).fix is None
    assert checks.rss(nic(rss=(0, 1, 0, 1), queues=[0])).fix == Fix(
        ("ethtool", "-X", "eth1", "equal", "1"), ("ethtool", "-X", "eth1", "default")
    )


def finding(**changes: Any) -> Finding:
    fix = Fix((sys.executable, "-c", "raise SystemExit('no such feature')"), ("true",))
    return replace(Finding("eth1", "LRO", "WARN", "on: rx-lro", "why", "mend", fix), **changes)


def test_a_command_that_fails_or_is_not_there_is_told() -> None:
    missing = finding(fix=Fix(("/no/such/ethtool",), ("true",)))
    first, second = doctor.mend([finding(), missing, finding(fix=None)])
    assert (first.success, first.said) == (False, "no such feature")
    assert (second.success, second.said) == (False, "/no/such/ethtool: No such file or directory")


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "COMMAND_SECONDS", 0.1)
    (done,) = doctor.mend([finding(fix=Fix(("sleep", "60"), ("true",)))])
    assert not done.success
    assert "has not ended" in done.said


# ---- reading ----------------------------------------------------------------------------------------------


def test_cpu_lists() -> None:
    assert list(examine.cpu_list("0-2,5")) == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("name", "receives"),
    [
        ("eth1-TxRx-0", True),
        ("virtio0-input.1", True),
        ("mlx5_comp3@pci:0000:01:00.0", True),
        ("ens5-rx-2", True),
        ("virtio0-output.1", False),
        ("ens5-tx-2", False),
        ("virtio0-config", False),
        ("eth1", False),
    ],
)
def test_which_interrupts_announce_packets(name: str, receives: bool) -> None:
    assert bool(examine.RX_INTERRUPT.match(name)) is receives


def test_the_indirection_table_as_the_kernel_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """First the length is asked for, with room for nothing; then the entries."""
    table = (0, 1, 2, 3, 0, 1, 2, 3)

    class Kernel:
        def __init__(self, name: str) -> None:
            self.ifreq: Any = type("ifreq", (), {})()

        def ioctl(self) -> None:
            words = ctypes.cast(self.ifreq.gstats, ctypes.POINTER(ctypes.c_uint32))
            assert words[0] == 0x38
            room, words[1] = words[1], len(table)
            for place in range(room):
                words[2 + place] = table[place]

        def close(self) -> None: ...

    monkeypatch.setattr(examine, "IoctlEthtool", Kernel)
    assert examine._rss("eth1") == table


# ---- showing ----------------------------------------------------------------------------------------------


def test_the_list_fits_80_columns_and_leaves_commands_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "ethtool " + "-K " * 60
    show.doctor(
        [finding(mend=long, seen="on " * 40, why="word " * 50), finding(verdict="FAIL", fix=None)], []
    )
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if long.strip() not in line)
    assert any(line == f"      * {long}" for line in lines)
    assert [line.split()[0] for line in lines if "LRO" in line] == ["FAIL", "WARN"]
    assert lines[-2] == "1 FAIL, 1 WARN, 0 OK"
    assert "\x1b" not in "".join(lines)


def test_the_shape_that_programs_rely_on() -> None:
    done = doctor.mend([finding()])
    said = json.loads(json.dumps(doctor.shape("x.yaml", [finding()], done)))
    assert (said["config"], said["verdict"]) == ("x.yaml", "WARN")
    (found,), (fix,) = said["findings"], said["fixes"]
    assert set(found) == {"subject", "check", "verdict", "seen", "why", "mend", "undo"}
    assert set(fix) == {"subject", "check", "command", "undo", "success", "said"}
    assert found["undo"] == fix["undo"] == "true"


def test_the_page_has_the_checks_as_they_are() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    assert doctor.page(text) == text, "run python -m xskd.doctor docs/doctor.md"


# ---- the verb ---------------------------------------------------------------------------------------------


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """`xskd doctor` over made-up facts."""
    file = tmp_path / "xskd.yaml"
    file.write_text("interfaces: {eth1: {}}\npaths: {echo: {reflect: eth1}}\n")

    def run(seen: Facts, *options: str) -> int:
        monkeypatch.setattr(examine, "examine", lambda wanted: seen)
        return cli.main(["doctor", str(file), *options])

    return run


def test_exit_statuses(verb: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(facts()) == 0
    assert verb(facts(jit=False)) == 0
    assert verb(facts(kernel=(5, 15))) == 4
    capsys.readouterr()
    assert verb(facts(kernel=(5, 15)), "--json") == 4
    assert json.loads(capsys.readouterr().out)["verdict"] == "FAIL"


def test_a_wrong_file_is_told_as_by_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("interfaces: {eth1: {mode: fast}}\npaths: {echo: {reflect: eth1}}\n")
    assert cli.main(["doctor", str(bad)]) == 2
    assert capsys.readouterr().err.startswith(f"{bad}:1: interfaces.eth1.mode: must be ")
    assert cli.main(["doctor", str(tmp_path / "none.yaml")]) == 2


def test_without_a_file_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", tmp_path / "none.yaml")
    monkeypatch.setattr(examine, "defaults", lambda: (None, ["eth0"]))
    monkeypatch.setattr(examine, "examine", lambda wanted: findings.Facts(MACHINE))
    assert cli.main(["doctor", "--fix"]) == 2
    assert "--fix is for the interfaces of a configuration" in capsys.readouterr().err
    assert cli.main(["doctor"]) == 0
    assert "but eth0, which the default route leads over" in capsys.readouterr().out
