"""Random configurations for reload storms: right ones, and wrong ones with exactly one mistake.

Path `a` joins eth1 and eth2 and is the same in all of them, so that nothing may ever happen to it. Paths `b`
and `c` have eth3 and eth4, together or one each, or are not there; their queues, rings, rules, limits,
waiting and fallback are drawn. One seed gives the same configurations in the same order.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import yaml

SIZES = (64, 128, 256, 512)
RINGS = {"fill": 1024, "rx": 512, "tx": 512, "completion": 1024}
UNTOUCHED: dict[str, Any] = {
    "interfaces": {"eth1": {"rings": dict(RINGS)}, "eth2": {"rings": dict(RINGS)}},
    "paths": {"a": {"connect": ["eth1", "eth2"], "cpus": [0]}},
    "umem": {"frame_size": 2048},
}
Config = dict[str, Any]


def plain() -> Config:
    """Path a and, as simple as can be, path b: what a storm begins and ends with."""
    made = copy.deepcopy(UNTOUCHED)
    made["interfaces"] |= {"eth3": {"rings": dict(RINGS)}, "eth4": {"rings": dict(RINGS)}}
    made["paths"]["b"] = {"connect": ["eth3", "eth4"], "cpus": [1]}
    return made


def text_of(config: Config, rest: Config) -> str:
    """The YAML of a configuration, with what every one of a storm has."""
    return str(yaml.safe_dump(copy.deepcopy(config | rest), sort_keys=False))


def right(chance: random.Random) -> Config:
    """Draw one that a daemon with four interfaces of two queues can carry out."""
    made = copy.deepcopy(UNTOUCHED)
    kind = chance.choice(("connect", "connect", "connect", "reflect", "none"))
    if kind == "none":
        return made
    rings = _rings(chance)
    queues = chance.choice(([0], [1], "all", [0, 1]))
    for name in ("eth3", "eth4"):
        made["interfaces"][name] = _interface(chance, rings, queues, reflects=kind == "reflect")
    options = _options(chance)
    if kind == "connect":
        made["paths"]["b"] = {"connect": ["eth3", "eth4"], **options}
    else:
        made["paths"]["b"] = {"reflect": "eth3", **options}
        made["paths"]["c"] = {"reflect": "eth4", **copy.deepcopy(options)}
    return made


def wrong(chance: random.Random, rest: Config) -> str:
    """Draw the text of one with a single mistake."""
    made = plain()
    spoil = chance.choice(MISTAKES)
    text = spoil(made, chance)
    return text_of(made, rest) if text is None else text


def _rings(chance: random.Random) -> dict[str, int]:
    tx = chance.choice(SIZES)
    rx = chance.choice(SIZES)
    return {"fill": 2 * rx, "rx": rx, "tx": tx, "completion": tx * chance.choice((1, 2))}


def _interface(chance: random.Random, rings: dict[str, int], queues: object, *, reflects: bool) -> Config:
    made: Config = {"rings": dict(rings), "queues": copy.copy(queues)}
    if chance.random() < 0.5:
        made["rules"] = [_rule(chance, n, reflects=reflects) for n in range(chance.randrange(6))]
    if chance.random() < 0.3:
        made["default"] = chance.choice(("redirect", "pass", "drop"))
    return made


def _rule(chance: random.Random, number: int, *, reflects: bool) -> Config:
    """A rule that no earlier one hides, which would be a mistake: each asks for ports of its own."""
    verdict = chance.choice(
        ("redirect", "pass", "drop") if reflects else ("redirect", "express", "pass", "drop")
    )
    port = 1_000 * number + chance.randrange(1_000)
    rule: Config = {"verdict": verdict, "protocol": "udp", "destination_port": port}
    asks = {
        "vlan": chance.choice(("none", 7, "10-19")),
        "source": chance.choice(("192.0.2.0/24", "2001:db8::/32", ["198.51.100.7", "::1"])),
        "fragment": chance.choice((False, "first")),
    }
    for key in chance.sample(sorted(asks), chance.randrange(3)):
        rule[key] = asks[key]
    if verdict in ("redirect", "express") and chance.random() < 0.3:
        rule["limit"] = {"packets_per_second": chance.randrange(1_000, 1_000_000)}
    return rule


def _options(chance: random.Random) -> Config:
    made: Config = {
        "poll": chance.choice(("adaptive", "adaptive", "wakeup")),
        "fallback": chance.choice(("pass", "drop")),
        "cpus": [chance.randrange(2)],
    }
    if chance.random() < 0.3:
        made["limit"] = {"packets_per_second": chance.randrange(1_000, 1_000_000)}
    if chance.random() < 0.3:
        made["express"] = chance.choice(("off", "rules"))
    return made


# ---- mistakes: each spoils a good configuration, or gives a text that is none -----------------------


def _unknown_key(made: Config, chance: random.Random) -> None:
    made[chance.choice(("path", "interface", "metric", "logs"))] = {}


def _no_power_of_two(made: Config, chance: random.Random) -> None:
    made["interfaces"]["eth3"]["rings"][chance.choice(("fill", "rx", "tx"))] = chance.choice(
        (-1, 0, 63, 1000, "x")
    )


def _interface_twice(made: Config, chance: random.Random) -> None:
    made["paths"]["c"] = {"reflect": chance.choice(("eth1", "eth3"))}


def _no_such_interface(made: Config, chance: random.Random) -> None:
    made["paths"]["c"] = {"reflect": chance.choice(("eth5", "eth33", "lo0"))}


def _wrong_verdict(made: Config, chance: random.Random) -> None:
    made["interfaces"]["eth3"]["rules"] = [{"verdict": chance.choice(("allow", 7, None))}]


def _wrong_port(made: Config, chance: random.Random) -> None:
    port = chance.choice((65536, -1, "nobody", "9-1"))
    made["interfaces"]["eth3"]["rules"] = [{"verdict": "pass", "protocol": "udp", "destination_port": port}]


def _wrong_value(made: Config, chance: random.Random) -> None:
    key, value = chance.choice((("poll", "often"), ("fallback", "reject"), ("cpus", [-1]), ("express", 3)))
    made["paths"]["b"][key] = value


def _torn(made: Config, chance: random.Random) -> str:
    """The file as an editor leaves it that was killed: it ends in the middle of a bracket."""
    return "interfaces: {eth1: {rings: {fill: 10"[: chance.randrange(14, 36)]


def _no_yaml(made: Config, chance: random.Random) -> str:
    return chance.choice(("\tinterfaces: {}\n", "interfaces: [\n", "a: b: c\n", "%\n", "- eth1\n", "", "\0"))


MISTAKES = (
    _unknown_key,
    _no_power_of_two,
    _interface_twice,
    _no_such_interface,
    _wrong_verdict,
    _wrong_port,
    _wrong_value,
    _torn,
    _no_yaml,
)
