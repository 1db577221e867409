"""What is done to the machine during a soak: one function for each fault, and how likely it is.

A fault does its harm, takes it back if it is not of the kind that xskd mends by itself, and returns what it
did, in words. It must not wait for the recovery: that is measured by whoever called it.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.machine import Machine
from xskd import control

SETTINGS = "/etc/xskd/xskd.yaml"
FLOOD_SECONDS = 1.0
STOPPED_SECONDS = (1, 4, 10)
FLAPS = 10  # in a second


@dataclass
class Stage:
    """Where it happens: the machine, and what is random about it."""

    machine: Machine
    random: random.Random

    @property
    def socket(self) -> Path:
        """The daemon's control socket, from outside of the box."""
        return self.machine.box.path("/run/xskd/control.sock")

    def status(self) -> dict[str, Any]:
        """Ask the daemon; XskdError if none answers."""
        return dict(control.ask(self.socket, "status")["status"])

    def supervisor(self) -> int:
        """The supervisor's pid as the machine sees it, 0 if there is none."""
        return int(self.machine.show("MainPID"))

    def worker(self) -> tuple[str, int]:
        """Any worker that has a process."""
        living = [(worker["name"], worker["pid"]) for worker in self.status()["workers"] if worker["pid"]]
        return self.random.choice(living)

    def link(self, *arguments: str) -> None:
        """Set something of a link of the machine."""
        lab = self.machine.lab
        lab.run(lab.dut, "ip", "link", "set", *arguments)


def configuration(*, mirror: int = 1024, rules: str = "", limit: str = "", adaptive: bool = True) -> str:
    """The YAML that a soak runs: two hosts joined, a third that hears itself."""
    rings = f"{{fill: {2 * mirror}, rx: {mirror}, tx: {mirror}, completion: {2 * mirror}}}"
    return f"""\
interfaces:
  eth1: {{{rules}}}
  eth2: {{}}
  eth3: {{rings: {rings}}}
paths:
  wire: {{connect: [eth1, eth2]{limit}}}
  mirror: {{reflect: eth3{"" if adaptive else ", poll: wakeup"}}}
"""


INVALID = (
    "interfaces: {eth1: {rings: {rx: 1000}}}\npaths: {wire: {connect: [eth1, eth2]}}\n",
    "paths: {wire: {connect: [eth1]}}\n",
    "interfaces: [eth1, eth2\n",
    "interfaces: {eth1: {}, eth2: {}}\npaths: {wire: {connect: [eth1, eth2]}, wire: {reflect: eth3}}\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "",
)


def kill_worker(stage: Stage) -> str:
    """End any worker at once."""
    name, pid = stage.worker()
    stage.machine.signal("KILL", pid)
    return f"worker {name} killed"


def kill_supervisor(stage: Stage) -> str:
    """End the supervisor at once; systemd starts the next one."""
    stage.machine.signal("KILL", stage.supervisor())
    return "supervisor killed"


def kill_both(stage: Stage) -> str:
    """End the supervisor and a worker at the same time."""
    name, pid = stage.worker()
    stage.machine.box.run("kill", "-KILL", str(pid), str(stage.supervisor()))
    return f"supervisor and worker {name} killed"


def stop_worker(stage: Stage) -> str:
    """Have a worker stand still for a while."""
    name, pid = stage.worker()
    seconds = stage.random.choice(STOPPED_SECONDS)
    stage.machine.signal("STOP", pid)
    time.sleep(seconds)
    stage.machine.box.run("kill", "-CONT", str(pid), check=False)  # the supervisor may have replaced it
    return f"worker {name} stopped (SIGSTOP) for {seconds} s"


def stop_supervisor(stage: Stage) -> str:
    """Have the supervisor stand still; systemd's watchdog may replace it."""
    pid, seconds = stage.supervisor(), stage.random.choice(STOPPED_SECONDS)
    stage.machine.signal("STOP", pid)
    time.sleep(seconds)
    stage.machine.box.run("kill", "-CONT", str(pid), check=False)
    return f"supervisor stopped (SIGSTOP) for {seconds} s"


def restart(stage: Stage) -> str:
    """Restart the service, as an upgrade does."""
    stage.machine.systemctl("restart")
    return "systemctl restart"


def reload(stage: Stage) -> str:
    """Change rings, rules, limits or the way of waiting."""
    text = configuration(
        mirror=stage.random.choice((512, 1024, 2048)),
        rules=stage.random.choice(("", "rules: [{protocol: udp, destination_port: 7, verdict: drop}]")),
        limit=stage.random.choice(("", ", limit: {packets_per_second: 5000000}")),
        adaptive=stage.random.random() < 0.5,
    )
    stage.machine.write(SETTINGS, text)
    stage.machine.systemctl("reload")
    return "systemctl reload, valid"


def reload_invalid(stage: Stage) -> str:
    """Have it read a file that is wrong; AssertionError if it takes it."""
    before = stage.machine.box.path(SETTINGS).read_text(encoding="utf-8")
    stage.machine.write(SETTINGS, stage.random.choice(INVALID))
    refused = stage.machine.systemctl("reload", check=False)
    stage.machine.write(SETTINGS, before)
    if not refused:
        raise AssertionError("a reload of a wrong file was accepted")
    return "systemctl reload, invalid"


def link_down(stage: Stage) -> str:
    """Take a link of the machine down and up again."""
    device = stage.random.choice(stage.machine.lab.dut_devs)
    stage.link(device, "down")
    time.sleep(stage.random.uniform(0.1, 2))
    stage.link(device, "up")
    return f"{device} down and up"


def flapping(stage: Stage) -> str:
    """Have a cable lose contact ten times in a second."""
    lab, host = stage.machine.lab, stage.random.randrange(len(stage.machine.lab.hosts))
    for _ in range(FLAPS):
        for state in ("down", "up"):
            lab.run(lab.hosts[host], "ip", "link", "set", "eth0", state)
            time.sleep(0.5 / FLAPS)
    return f"carrier of {lab.dut_devs[host]} flapping"


def mtu(stage: Stage) -> str:
    """Change an MTU and change it back."""
    stage.link("eth3", "mtu", "1600")
    time.sleep(0.5)
    stage.link("eth3", "mtu", "1500")
    return "MTU of eth3 changed and back"


def flood(stage: Stage) -> str:
    """Send far more than can be forwarded."""
    lab = stage.machine.lab
    host = lab.hosts[stage.random.randrange(len(lab.hosts))]
    generator = lab.popen(host, sys.executable, "-m", "bench.generator", "64")
    time.sleep(0.5 + FLOOD_SECONDS)  # half a second is its start
    generator.terminate()
    generator.wait(10)
    return "a flood"


def capture(stage: Stage) -> str:
    """Look into one worker's packets meanwhile."""
    command = ("xskd", "capture", "wire/0", "--seconds", "2", "-w", "/tmp/soak.pcapng")
    stage.machine.box.run(*command)
    return "a capture"


def nuisance(stage: Stage) -> str:
    """Clients of the control socket that say nonsense, or nothing, all at once."""
    clients = []
    for number in range(50):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(2)
        with suppress(OSError):
            client.connect(str(stage.socket))
            client.sendall(stage.random.randbytes(64) + (b"\n" if number % 2 else b""))
        clients.append(client)
    for client in clients:
        client.close()
    return "nonsense on the control socket"


FAULTS: dict[Callable[[Stage], str], int] = {
    kill_worker: 4,
    kill_supervisor: 3,
    kill_both: 2,
    stop_worker: 2,
    stop_supervisor: 1,
    restart: 3,
    reload: 4,
    reload_invalid: 2,
    link_down: 2,
    flapping: 1,
    mtu: 1,
    flood: 2,
    capture: 1,
    nuisance: 1,
}


def deck(dice: random.Random, only: str = "") -> list[Callable[[Stage], str]]:
    """Every fault, as often as it weighs, shuffled: so that none is left out by chance."""
    chosen = {fault: weight for fault, weight in FAULTS.items() if only in fault.__name__}
    cards = [fault for fault, weight in chosen.items() for _ in range(weight)]
    dice.shuffle(cards)
    return cards
