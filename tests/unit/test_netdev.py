"""What the kernel says of real interfaces, in a network namespace of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xskd import netdev
from xskd.netdev import NetDevice, read_devices

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces)")

# Run inside the namespace: setns in this process would move pytest's own thread. The program attached is two
# instructions (return XDP_PASS) loaded by the bpf() system call, so that no object file is needed.
CHILD = """
import ctypes, dataclasses, json, platform, struct, sys
from pyroute2 import IPRoute
from xskd.netdev import read_devices

def attach_xdp_pass(name):
    bpf = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(128, b"\\0")
    fd = ctypes.CDLL(None, use_errno=True).syscall(bpf, 5, ctypes.c_char_p(attr), 128)
    assert fd >= 0, ctypes.get_errno()
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname=name)[0], xdp_fd=fd)

names = sys.argv[1].split(",")
if len(sys.argv) > 2:
    attach_xdp_pass(sys.argv[2])
print(json.dumps({n: d and dataclasses.asdict(d) for n, d in read_devices(names).items()}, default=sorted))
"""


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"xskd-netdev-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def ip(netns: str, *commands: str) -> None:
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(commands), text=True, check=True)


def facts(netns: str, names: str, *attach: str) -> dict[str, Any]:
    command = ["ip", "netns", "exec", netns, sys.executable, "-W", "error", "-c", CHILD, names, *attach]
    root = Path(netdev.__file__).parents[1]
    child = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout)
    return found


@needs_root
def test_veth(netns: str) -> None:
    ip(
        netns,
        "link add v0 mtu 1400 address 02:00:00:00:00:01 numrxqueues 4 numtxqueues 2 type veth "
        "peer name v1 mtu 3000 address 02:00:00:00:00:02 numrxqueues 2 numtxqueues 4",
        "link set v0 up",
    )
    found = facts(netns, "v0,v1,v2")
    assert found["v2"] is None
    v0, v1 = (NetDevice(**found[name]) for name in ("v0", "v1"))
    assert "xsk-zerocopy" not in found["v0"]["features"]["xdp"]
    assert v0 == NetDevice(
        name="v0",
        ifindex=v0.ifindex,
        mtu=1400,
        up=True,
        carrier=False,
        driver="veth",
        mac="02:00:00:00:00:01",
        queues=4,
        tx_queues=2,
        numa_node=None,
        xdp_prog_id=None,
        default_route=False,
        max_queues=4,
        features=v0.features,
    )
    assert v1 == replace(
        v0,
        name="v1",
        ifindex=v1.ifindex,
        mtu=3000,
        up=False,
        mac="02:00:00:00:00:02",
        queues=2,
        tx_queues=4,
        max_queues=2,
    )
    assert v0.ifindex != v1.ifindex
    ip(netns, "link set v1 up")
    assert facts(netns, "v0")["v0"]["carrier"] is True


@needs_root
def test_the_real_number_of_queues_not_the_allocated_one(netns: str) -> None:
    ip(netns, "link add v0 numrxqueues 8 numtxqueues 8 type veth peer name v1 numrxqueues 8 numtxqueues 8")
    subprocess.run(["ip", "netns", "exec", netns, "ethtool", "-L", "v0", "rx", "3", "tx", "5"], check=True)
    found = facts(netns, "v0,v1")
    assert (found["v0"]["queues"], found["v0"]["tx_queues"]) == (3, 5)
    assert (found["v1"]["queues"], found["v1"]["tx_queues"]) == (8, 8)
    assert (found["v0"]["max_queues"], found["v1"]["max_queues"]) == (8, 8)


@needs_root
def test_an_interface_without_ethtool_channels(netns: str) -> None:
    ip(netns, "link add br0 numrxqueues 3 numtxqueues 2 type bridge")
    found = facts(netns, "br0,lo")
    assert (found["br0"]["queues"], found["br0"]["tx_queues"], found["br0"]["driver"]) == (3, 2, "bridge")
    assert (found["br0"]["max_queues"], found["lo"]["max_queues"]) == (3, 1)
    assert (found["lo"]["queues"], found["lo"]["driver"]) == (1, "")


@needs_root
def test_default_routes_of_both_families_and_with_several_hops(netns: str) -> None:
    ip(netns, "link add d0 type veth peer name d1", "link add d2 type veth peer name d3")
    for number in range(4):
        ip(netns, f"link set d{number} up", f"addr add 10.9.{number}.1/24 dev d{number}")
    ip(netns, "route add default nexthop via 10.9.0.2 nexthop via 10.9.1.2", "route add ::/0 dev d2")
    found = facts(netns, "d0,d1,d2,d3")
    assert [found[f"d{number}"]["default_route"] for number in range(4)] == [True, True, True, False]


@needs_root
def test_routes_that_mean_everything_else_and_those_that_say_no(netns: str) -> None:
    ip(
        netns,
        "link add d0 type veth peer name d1",
        "link set d0 up",
        "link set d1 up",
        "addr add 10.9.0.1/24 dev d0",
    )
    ip(netns, "route add 0.0.0.0/1 via 10.9.0.2", "route add 128.0.0.0/1 via 10.9.0.2")
    assert facts(netns, "d0")["d0"]["default_route"]
    ip(netns, "route del 128.0.0.0/1", "route add 240.0.0.0/8 via 10.9.0.2", "route add blackhole default")
    assert not facts(netns, "d0")["d0"]["default_route"]
    ip(netns, "route add 2000::/3 dev d0")
    assert facts(netns, "d0")["d0"]["default_route"]


@needs_root
def test_a_long_routing_table_is_not_read(netns: str) -> None:
    """50,000 routes as Python objects would take some hundred MiB, and the daemon asks again and again."""

    def memory() -> int:
        child = (
            "import resource; from xskd.netdev import read_devices; read_devices(['d0']);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = ("ip", "netns", "exec", netns, sys.executable, "-c", child)
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    ip(
        netns,
        "link add d0 type veth peer name d1",
        "link set d0 up",
        "link set d1 up",
        "addr add 10.9.0.1/24 dev d0",
    )
    before = memory()
    ip(netns, *(f"route add 20.{number >> 8}.{number & 255}.0/24 dev d0" for number in range(50_000)))
    assert memory() < before + 8 * 1024  # KiB


@needs_root
def test_an_attached_program(netns: str) -> None:
    ip(netns, "link add v0 type veth peer name v1")
    found = facts(netns, "v0,v1", "v0")
    assert found["v0"]["xdp_prog_id"] > 0
    assert found["v1"]["xdp_prog_id"] is None


def test_reading_nothing_asks_for_nothing_and_an_unknown_name_is_none() -> None:
    assert read_devices([]) == {}
    assert read_devices(["xskd-absent"]) == {"xskd-absent": None}


def test_driver_and_node_of_a_device_on_a_bus(tmp_path: Path) -> None:
    """The node is that of the nearest device above (virtio sits on PCI); the kernel says -1 for unknown."""
    bus = tmp_path / "pci0" / "0000:00:01.0"
    virtio = bus / "virtio2"
    virtio.mkdir(parents=True)
    (tmp_path / "virtio_net").mkdir()
    (virtio / "driver").symlink_to(tmp_path / "virtio_net")
    (bus / "numa_node").write_text("1\n")
    assert netdev._driver(virtio) == "virtio_net"
    assert netdev._driver(bus) == netdev._driver(None) == ""
    assert netdev._numa_node(virtio) == 1
    (bus / "numa_node").write_text("-1\n")
    assert netdev._numa_node(virtio) is None
    assert netdev._numa_node(None) is None
