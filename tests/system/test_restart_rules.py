"""A restart of the supervisor leaves rules, their counts and lanes as they were, and loses nothing."""

from __future__ import annotations

from typing import Any

import pytest
from booted import Machine, booted, eventually
from stream import Stream

RATE = 5_000  # packets a second
RESTARTS = 5
RULES = (
    "[{name: stream, ether_type: 0x88b5, verdict: VERDICT, limit: {packets_per_second: 1000000}}, "
    "{name: arp, ether_type: arp, verdict: redirect}]"
)
CONFIG = """\
interfaces: {eth1: {rules: RULES, default: drop}, eth2: {}}
paths: {wire: {connect: [eth1, eth2]}}
"""


def configured(verdict: str) -> str:
    return CONFIG.replace("RULES", RULES.replace("VERDICT", verdict))


def interface(machine: Machine) -> dict[str, Any]:
    (found,) = (each for each in machine.status()["interfaces"] if each["name"] == "eth1")
    return dict(found)


def counted(machine: Machine) -> int:
    return {str(rule["name"]): int(rule["packets"]) for rule in interface(machine)["rules"]}["stream"]


def lane(machine: Machine) -> str:
    (found,) = (each for each in machine.status()["interfaces"] if each["name"] == "eth2")
    return str(found["lane"])


@pytest.mark.alone  # at this rate a ring overruns while others have the CPUs
@pytest.mark.parametrize("verdict", ["redirect", "express"])
def test_rules_counts_and_lanes_outlive_the_supervisor(verdict: str) -> None:
    with booted() as machine:
        machine.write("/etc/xskd/xskd.yaml", configured(verdict))
        machine.systemctl("start")
        wanted = "open" if verdict == "express" else "off"
        assert eventually(lambda: lane(machine) == wanted)
        seen = [0]
        with Stream(machine.lab, RATE) as stream:
            for _ in range(RESTARTS):
                seen.append(counted(machine))
                machine.systemctl("restart")
                seen.append(counted(machine))
                assert lane(machine) == wanted
        assert (stream.lost, stream.doubled) == (0, 0)
        assert seen == sorted(seen)
        assert counted(machine) == stream.sent
        how = interface(machine)["verdicts"]
        assert how["expressed" if verdict == "express" else "redirected"] == stream.sent
        assert "lane closed" not in "\n".join(machine.said())
        assert machine.status()["reloads"]["generation"] == 1  # it is another supervisor
        machine.write("/etc/xskd/xskd.yaml", configured(verdict).replace("name: stream", "name: other"))
        machine.systemctl("restart")
        assert [rule["packets"] for rule in interface(machine)["rules"]] == [0, 0, 0]
        machine.write("/etc/xskd/xskd.yaml", configured(verdict))
        machine.systemctl("reload")
        assert eventually(lambda: interface(machine)["rules"][0]["name"] == "stream")
        assert counted(machine) == stream.sent  # it is counted under its name again
