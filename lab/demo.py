"""The demo: two hosts, xskd between them, real traffic, a live table, and at the end the account.

Everything is real: the daemon with a YAML file, ping, iperf3, and a flood of small packets. It shows what
xskd and the kernel counted, never a figure of its own making, and it must leave nothing behind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from lab import Topology, grafana
from xskd import control, show
from xskd.errors import XskdError

READY_SECONDS = 20.0
REFRESH_SECONDS = 0.5
REST_SECONDS = 10.0
PING_COUNT, IPERF_SECONDS, FLOOD_SECONDS, FLOOD_BYTES = 20, 5, 5, 64
QUEUES = 2
METRICS = "127.0.0.1:9478"  # inside the namespace of xskd

# In a pipe there is no width to ask for, and 80 columns would wrap what is meant to be read or searched.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class DemoError(Exception):
    """Something is missing or did not work; the text says what to do."""


def configuration(socket: Path) -> str:
    """The YAML that the demo runs: short, as a first file would be."""
    return f"""\
interfaces:
  eth1: {{queues: all}}
  eth2: {{queues: all}}
paths:
  wire: {{connect: [eth1, eth2]}}
metrics: {{listen: "{METRICS}"}}
control: {{socket: {socket}}}
"""


@contextmanager
def forwarder(lab: Topology, directory: Path) -> Iterator[Path]:
    """xskd, running between the hosts; gives its control socket."""
    socket, file = directory / "control.sock", directory / "xskd.yaml"
    file.write_text(configuration(socket), encoding="utf-8")
    log = (directory / "log").open("w+", encoding="utf-8")
    daemon = lab.popen(lab.dut, sys.executable, "-m", "xskd", "run", "-c", str(file), stderr=log)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _is_ready(socket):
            if daemon.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise DemoError(f"xskd did not start; it said:\n{log.read()}")
            time.sleep(0.05)
        yield socket
    finally:
        daemon.terminate()
        status = daemon.wait(10)
        log.seek(0)
        console.print(f"\n[bold]What xskd logged[/] (exit status {status})")
        console.print(log.read().rstrip(), markup=False)
        log.close()


def _is_ready(socket: Path) -> bool:
    try:
        return bool(control.ask(socket, "status")["status"]["ready"])
    except XskdError:
        return False


def watch(lab: Topology, socket: Path, title: str, *command: str, seconds: float | None = None) -> str:
    """Run one kind of traffic from the first host with the table live; its output. DemoError if it fails.

    With `seconds` the traffic has no end of its own and is ended then.
    """
    console.print(f"\n[bold]{title}[/]  [dim]{' '.join(command[:6])}[/]")
    traffic = lab.popen(lab.hosts[0], *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    begun = time.monotonic()
    before, at = control.ask(socket, "status")["status"], begun
    with Live(console=console) as live:
        while traffic.poll() is None:
            if seconds is not None and time.monotonic() - begun > seconds:
                traffic.terminate()
                break
            time.sleep(REFRESH_SECONDS)
            now, at_now = control.ask(socket, "status")["status"], time.monotonic()
            live.update(show.sockets(now, before, at_now - at, show.look_of(console)))
            before, at = now, at_now
    if not console.is_terminal:
        console.print()
    output, errors = traffic.communicate(timeout=10)
    if seconds is None and traffic.returncode:
        raise DemoError(f"{command[0]} failed:\n{output.decode()}{errors.decode()}")
    return output.decode()


def traffic(lab: Topology, socket: Path) -> None:
    """Ping, then iperf3, then the flood."""
    target = lab.ip_of(1)
    said = watch(lab, socket, "Ping through xskd", "ping", "-i", "0.1", "-c", str(PING_COUNT), target)
    console.print("\n".join(said.strip().splitlines()[-2:]))
    lab.popen(lab.hosts[1], "iperf3", "--server", "--one-off")
    time.sleep(0.3)
    said = watch(
        lab, socket, "A TCP stream", "iperf3", "--json", "-t", str(IPERF_SECONDS), "-P", "2", "-c", target
    )
    received = json.loads(said)["end"]["sum_received"]
    console.print(f"iperf3: {received['bits_per_second'] / 1e9:.2f} Gbit/s received")
    flood = (sys.executable, "-m", "bench.generator", str(FLOOD_BYTES))
    watch(lab, socket, f"A flood of {FLOOD_BYTES}-byte packets, more than it can take", *flood,
          seconds=FLOOD_SECONDS)  # fmt: skip


def at_rest(socket: Path) -> dict[str, Any]:
    """A picture in which nothing is on its way any more: what was sent last is still being received."""
    deadline = time.monotonic() + REST_SECONDS
    before: list[int] = []
    while True:
        picture = control.ask(socket, "status")["status"]
        moved = [port["counters"]["rx_packets"] for worker in picture["workers"] for port in worker["ports"]]
        if moved == before or time.monotonic() > deadline:
            return dict(picture)
        before = moved
        time.sleep(REFRESH_SECONDS)


def account(lab: Topology, picture: dict[str, Any]) -> None:
    """What went in, what came out, and where the rest is."""
    console.print("\n[bold]The account[/]")
    console.print(show.sockets(picture, None, 0, show.look_of(console)))
    ports = [port for worker in picture["workers"] for port in worker["ports"]]
    taken = sum(port["counters"]["rx_packets"] for port in ports)
    sent = sum(port["counters"]["tx_packets"] for port in ports)
    dropped = sum(sum(port["counters"]["drops"].values()) for port in ports)
    kernel = sum(port["kernel"]["rx_dropped"] + port["kernel"]["rx_ring_full"] for port in ports)
    seen = sum(interface["verdicts"]["redirected"] for interface in picture["interfaces"])
    hosts = [lab.counters(host, "eth0") for host in lab.hosts]
    offered, arrived = sum(h.tx_packets for h in hosts), sum(h.rx_packets for h in hosts)
    unaccounted = sum(worker["counters"]["frames_unaccounted"] for worker in picture["workers"])
    for what, count in (
        ("sent by the two hosts", offered),
        ("redirected to xskd by its XDP program", seen),
        ("lost in the kernel because xskd was slower than the flood", kernel),
        ("taken by xskd", taken),
        ("dropped by xskd, each with a reason", dropped),
        ("forwarded", sent),
        ("arrived at the two hosts", arrived),
        ("frames unaccounted for", unaccounted),
    ):
        console.print(f"{count:>14,}  {what}")
    console.print(f"{(offered - arrived) / offered:>14.1%}  lost, nearly all of it in the flood")
    console.print(f"metrics: http://{METRICS}/metrics, inside the namespace {lab.dut}")


def explore(lab: Topology, socket: Path, page: str | None) -> None:
    """Leave everything up until Enter, and say how to look around."""
    if page:
        console.print(f"\n[bold]Dashboards, drawn from what just happened:[/] {page}")
    inside = f"ip netns exec {lab.dut}"
    python = sys.executable
    console.print("\n[bold]It stays up.[/] In another terminal, as root:\n")
    for command in (
        f"{python} -m xskd top --socket {socket}",
        f"{python} -m xskd status --socket {socket}",
        f"{inside} curl -s http://{METRICS}/metrics",
        f"ip netns exec {lab.hosts[0]} ping {lab.ip_of(1)}",
        f"{inside} bpftool net",
        f"cat {socket.parent}/xskd.yaml",
    ):
        console.print(f"    {command}", soft_wrap=True)
    console.print("\nEnter ends it.")
    sys.stdin.readline()


def main() -> int:
    """Run it; 0 if everything worked."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="See xskd at work.")
    parser.add_argument("--keep", action="store_true", help="leave it running until Enter, to look around")
    parser.add_argument(
        "--grafana",
        metavar="PORT",
        type=int,
        nargs="?",
        const=grafana.PORT,
        help="the same, and serve the dashboards on that port of 127.0.0.1 (default: %(const)s)",
    )
    options = parser.parse_args()
    Topology.cleanup_stale("xskd-demo")
    try:
        with (
            tempfile.TemporaryDirectory(prefix="xskd-demo-") as directory,
            Topology("xskd-demo", links=2, queues=QUEUES) as lab,
        ):
            console.print("[bold]host h0[/] eth0 <--> eth1 [bold]xskd[/] eth2 <--> eth0 [bold]host h1[/]\n")
            console.print(
                configuration(Path(directory) / "control.sock").rstrip(), style="cyan", markup=False
            )
            with forwarder(lab, Path(directory)) as socket, ExitStack() as stack:
                page = None
                if options.grafana is not None:
                    stack.enter_context(grafana.prometheus(lab, Path(directory), METRICS))
                    page = stack.enter_context(grafana.viewer(lab.dut, port=options.grafana))
                traffic(lab, socket)
                account(lab, at_rest(socket))
                if options.keep or page:
                    explore(lab, socket, page)
    except (DemoError, grafana.GrafanaError, XskdError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or ""
        console.print(f"[red]demo: {error}[/]\n{said}".rstrip())
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("\nEverything is cleaned up.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
