"""The forwarders that are compared, each started the way its own documentation says, on the same interfaces.

User-space forwarders are pinned to one CPU. Those inside the kernel have no process; for the measurement of
speed they get that CPU too, by a thread for the receiving NAPI: else the packet generator's core would do
their work.

A contender must not be tuned beyond its documented options, nor be given anything another is not.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from typing_extensions import override

from bench import bpf
from bench.machine import FORWARDER_CPU, KERNEL_THREADS, LOAD_CPU
from lab import Topology, entered
from xskd import control
from xskd.errors import XskdError

CONNECT, REFLECT, DROP = "connect", "reflect", "drop"
_PINNED = ("taskset", "-c", str(FORWARDER_CPU))


class Contender(ABC):
    """One way to forward packets between the interfaces of the dut."""

    name: str
    modes: Sequence[str] = (CONNECT, REFLECT)

    def missing(self) -> str:
        """Say what is lacking to run it, or nothing."""
        return ""

    @abstractmethod
    def version(self) -> str:
        """Return what the record of a run calls this contender's version."""

    @abstractmethod
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        """Start forwarding; the caller waits until packets come through."""

    def settled(self, workdir: Path) -> bool:
        """Whether packets go the way they will go from now on, asked once they come through."""
        return True

    def own_core(self, lab: Topology) -> set[int]:
        """Move the kernel's work for this contender to the forwarder's CPU; return the threads doing it."""
        return set()


class InKernel(Contender):
    """A forwarder without a process."""

    @override
    def version(self) -> str:
        return os.uname().release

    @override
    def own_core(self, lab: Topology) -> set[int]:
        return receive_on_own_core(lab)


class Redirect(InKernel):
    """The kernel's own XDP redirect, or XDP_TX after a swap of addresses: nothing can be faster."""

    name = "kernel XDP (limit)"

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        with entered(lab.dut):
            if mode == REFLECT:
                bpf.attach(bpf.SWAP_AND_SEND_BACK, "eth1")
            else:
                for here, there in (("eth1", "eth2"), ("eth2", "eth1")):
                    bpf.attach(bpf.redirect_to(socket.if_nametoindex(there)), here)


class Bridge(InKernel):
    """The Linux bridge; it does not send back where a packet came from, so it cannot reflect."""

    name = "Linux bridge"
    modes = (CONNECT,)

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        lab.run(lab.dut, "ip", "link", "add", "br0", "type", "bridge")
        for host, dev in enumerate(lab.dut_devs):
            lab.run(lab.dut, "ip", "link", "set", dev, "master", "br0")
            # The generator's target never speaks, so the bridge could not learn where it is and would flood.
            lab.run(lab.dut, "bridge", "fdb", "add", lab.mac_of(host), "dev", dev, "master", "static")
        lab.run(lab.dut, "ip", "link", "set", "br0", "up")


class AfPacket(Contender):
    """A Python loop over AF_PACKET sockets."""

    name = "Python AF_PACKET"

    @override
    def version(self) -> str:
        return f"Python {sys.version.split()[0]}"

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        devs = lab.dut_devs if mode == CONNECT else lab.dut_devs[:1]
        launch(lab, workdir, *_PINNED, sys.executable, "-m", "bench.afpacket", *devs)


class Testpmd(Contender):
    """DPDK's testpmd over its AF_XDP driver, without huge pages."""

    name = "dpdk-testpmd AF_XDP"

    @override
    def missing(self) -> str:
        return "" if shutil.which("dpdk-testpmd") else "dpdk-testpmd (packages dpdk-dev, librte-net-af-xdp23)"

    @override
    def version(self) -> str:
        query = ("dpkg-query", "-Wf", "${Version}", "dpdk-dev")
        said = subprocess.run(query, capture_output=True, text=True, check=False)
        return f"DPDK {said.stdout or 'unknown'}"

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        devs = lab.dut_devs if mode == CONNECT else lab.dut_devs[:1]
        launch(
            lab,
            workdir,
            # The main thread waits for a key; only the other one works. The prefix keeps two runs apart.
            *("dpdk-testpmd", f"--lcores=0@{LOAD_CPU},1@{FORWARDER_CPU}", f"--file-prefix={lab.prefix}"),
            *("--no-huge", "-m", "256", "--no-pci", "--no-telemetry"),
            *(f"--vdev=net_af_xdp{i},iface={dev}" for i, dev in enumerate(devs)),
            *("--", "--auto-start", "--no-lsc-interrupt", "--total-num-mbufs=16384"),
            f"--forward-mode={'io' if mode == CONNECT else 'macswap'}",
        )


_XSKD_YAML = {
    CONNECT: f"""
interfaces: {{eth1: {{}}, eth2: {{}}}}
paths: {{bench: {{connect: [eth1, eth2], cpus: [{FORWARDER_CPU}], poll: %s}}}}
""",
    REFLECT: f"""
interfaces: {{eth1: {{}}}}
paths: {{bench: {{reflect: eth1, cpus: [{FORWARDER_CPU}], poll: %s}}}}
""",
}


class Xskd(Contender):
    """What this project makes, with its defaults."""

    name = "xskd"
    poll = "adaptive"

    @override
    def missing(self) -> str:
        return "" if importlib.util.find_spec("xskd.cli") else "xskd/cli.py"

    @override
    def version(self) -> str:
        try:
            return metadata.version("xskd")
        except metadata.PackageNotFoundError:
            return "not installed"

    @override
    def start(self, lab: Topology, mode: str, workdir: Path) -> None:
        run_xskd(lab, workdir, _XSKD_YAML[mode] % self.poll)


class XskdSpinning(Xskd):
    """The same, never sleeping, as testpmd: tells the wakeup of poll() from what is ours."""

    name = "xskd, poll: busy"
    modes = ()  # under a flood nothing ever sleeps
    poll = "busy"


ALL: tuple[Contender, ...] = (Xskd(), XskdSpinning(), Testpmd(), AfPacket(), Bridge(), Redirect())


def launch(lab: Topology, workdir: Path, *command: str) -> None:
    """Start a process in the dut; what it says is shown if it never forwards anything."""
    with (workdir / "log").open("wb") as log:
        lab.popen(lab.dut, *command, stdin=subprocess.PIPE, stdout=log, stderr=log)


def run_xskd(lab: Topology, workdir: Path, configuration: str | dict[str, Any]) -> None:
    """Start the daemon in the dut on the forwarder's CPU with a file of this text, or of this as JSON."""
    text = configuration if isinstance(configuration, str) else json.dumps(configuration)
    config = workdir / "xskd.yaml"
    config.write_text(text)
    launch(lab, workdir, *_PINNED, sys.executable, "-m", "xskd", "run", "-c", str(config))


def verdicts(socket: Path, verdict: str) -> int:
    """Packets that met this end in the programs of the daemon that listens there; 0 while none does."""
    try:
        status = control.ask(socket, "status")["status"]
    except XskdError:
        return 0
    return sum(interface["verdicts"][verdict] for interface in status["interfaces"])


def receive_on_own_core(lab: Topology) -> set[int]:
    """Give what arrives on eth1 to a kernel thread on the forwarder's CPU; return that thread."""
    before = _napi_threads()
    lab.run(lab.dut, "sh", "-c", "echo 1 > /sys/class/net/eth1/threaded")
    threads = _napi_threads() - before
    for pid in threads:
        os.sched_setaffinity(pid, {FORWARDER_CPU})
    return threads


def _napi_threads() -> set[int]:
    threads = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.startswith("napi/") and int(rest.split()[1]) == KERNEL_THREADS:
            threads.add(int(stat.parent.name))
    return threads
