"""The configuration file: YAML text in, one frozen `Config` out, or every error at once with its line.

An operator who mistypes three keys gets three lines, each naming file, line, key, what is wrong and what
would be right; not one line and two more tries. yamltext.py turns the text into plain values and knows their
lines, values.py says what a single value may be, pydantic puts them together here, and its own errors are put
into our words.

Nothing in this module asks the kernel: what depends on the machine is plan.py's to check, which reports
through `Config.problem` so that its errors carry lines too. It must never answer a bad file with anything but
`ConfigError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from xskd import yamltext
from xskd.errors import ConfigError, Problem
from xskd.matches import (
    BitRate,
    Burst,
    EtherTypes,
    Flags,
    Fragments,
    IcmpTypes,
    PacketRate,
    Ports,
    Prefixes,
    Protocols,
    RuleName,
    Vlans,
    contradictions,
    rule_errors,
)
from xskd.rules import DEFAULT_BURST, MATCH_FIELDS, MAX_RULES, REFLECT_RULES, Answer, Limit, Rule, RuleSet
from xskd.values import (
    Cpus,
    Entries,
    Express,
    Frames,
    Group,
    InterfaceName,
    Listen,
    PathName,
    Queues,
    SeveralInterfaces,
    SocketPath,
    TwoInterfaces,
    instead,
    nearest,
    shown,
    wrong,
)

# ---- the sections --------------------------------------------------------------------------------


class _Section(BaseModel):
    """A mapping of the file: no unknown keys, no conversions, no changes; left empty, all defaults."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, data: object) -> object:
        return {} if data is None else data


class RingDepths(_Section):
    """Entries of the four rings of each AF_XDP socket, powers of two."""

    fill: Entries = Field(
        default=2048, description="Entries of fill: frames lent to the kernel to receive into."
    )
    rx: Entries = Field(
        default=1024, description="Entries of RX: packets received, not yet seen by the worker."
    )
    tx: Entries = Field(default=1024, description="Entries of TX: packets handed to the kernel to send.")
    completion: Entries = Field(
        default=2048, description="Entries of completion: frames sent, given back; at least tx."
    )

    @field_validator("completion")
    @classmethod
    def _takes_what_tx_holds(cls, completion: int, info: ValidationInfo) -> int:
        tx = info.data.get("tx", 0)
        if completion < tx:
            raise wrong(
                f"{completion} is less than tx ({tx}): TX stalls when the completion ring cannot take "
                f"what TX holds; write {tx} or more"
            )
        return completion


class LimitConfig(_Section):
    """At most so much a second; what is over it is dropped. One of the two rates, or both."""

    packets_per_second: PacketRate | None = Field(default=None, description="Packets a second, at most.")
    bits_per_second: BitRate | None = Field(
        default=None, description="Bits of whole frames (without FCS) a second, at most."
    )
    burst: Burst = Field(
        default=DEFAULT_BURST,
        description="How much may come at once: so many milliseconds' worth of the rate.",
    )

    @model_validator(mode="after")
    def _says_a_rate(self) -> LimitConfig:
        if self.packets_per_second is None and self.bits_per_second is None:
            raise wrong("needs packets_per_second or bits_per_second")
        return self

    @property
    def plain(self) -> Limit:
        """The same as a value that travels."""
        return Limit(self.packets_per_second, self.bits_per_second, self.burst)


class RuleConfig(_Section):
    """Which packets, and what becomes of them; what is not asked about may be anything.

    A key of the match left empty is an error, where other empty keys mean their default: it might be meant to
    ask for less than everything.
    """

    name: RuleName | None = Field(
        default=None, description="Label of its counters; its position, from 1, unless given."
    )
    vlan: Vlans = Field(
        default_factory=lambda: ((), False),
        description="VLAN of the outermost tag, like 5 or [5, 10-19], or none: no tag.",
    )
    ether_type: EtherTypes = Field(
        default_factory=tuple, description="EtherType behind up to two VLAN tags, like arp or 0x88cc."
    )
    source: Prefixes = Field(
        default_factory=tuple, description="Source addresses: prefixes, IPv4 or IPv6, like 10.0.0.0/8."
    )
    destination: Prefixes = Field(default_factory=tuple, description="Destination addresses: prefixes.")
    protocol: Protocols = Field(
        default_factory=tuple, description="Protocol behind IPv6 extension headers, like udp or 47."
    )
    source_port: Ports = Field(
        default_factory=tuple,
        description="Source ports of TCP, UDP, SCTP, DCCP and UDP-Lite: like 53, ntp, 8000-8100.",
    )
    destination_port: Ports = Field(default_factory=tuple, description="Destination ports, as source_port.")
    tcp_flags: Flags = Field(
        default_factory=tuple,
        description="TCP flags that must be set, or clear: like syn !ack; of a list, any text.",
    )
    icmp_type: IcmpTypes = Field(
        default_factory=tuple, description="ICMP types, like echo-request or 3; protocol says icmp or icmpv6."
    )
    fragment: Fragments = Field(
        default_factory=tuple, description="true: any fragment; false: whole packets; or first, later."
    )
    verdict: Answer = Field(
        description="What becomes of them: redirect (to user space), express (straight out), pass, drop."
    )
    limit: LimitConfig | None = Field(
        default=None, description="The most of them that may come, where they are not passed or dropped."
    )

    @model_validator(mode="after")
    def _can_match(self) -> RuleConfig:
        if self.limit and self.verdict in ("pass", "drop"):
            raise wrong(f"says nothing where the verdict is {self.verdict}; remove it", "limit")
        for key, message in contradictions(self.plain("")):
            raise wrong(message, key)
        return self

    def plain(self, name: str) -> Rule:
        """The same as a value that travels, called `name`."""
        match = {key: getattr(self, key) for key in MATCH_FIELDS if key != "vlan"}
        vlans, untagged = self.vlan
        limit = self.limit.plain if self.limit else None
        return Rule(name, self.verdict, vlan=vlans, untagged=untagged, limit=limit, **match)


class Interface(_Section):
    """One network interface: which queues, and how its sockets and its BPF program are set up."""

    queues: Queues = Field(
        default="all", description="RX queues to take: all, or numbers and ranges, like [0, 2-3]."
    )
    mode: Literal["auto", "zerocopy", "copy"] = Field(
        default="auto", description="AF_XDP mode: auto tries zerocopy, then copy."
    )
    attach: Literal["auto", "native", "generic"] = Field(
        default="auto",
        description="Where the XDP program runs: auto tries native (the driver), then generic.",
    )
    allow_default_route: bool = Field(
        default=False,
        description="Take the interface although it carries the default route: you may be cut off.",
    )
    rings: RingDepths = Field(
        default_factory=RingDepths, description="Depths of the four rings of each socket."
    )
    default: Answer = Field(
        default="redirect", description="What becomes of packets that match no rule: as a rule's verdict."
    )
    rules: list[RuleConfig] | None = Field(
        default=None,
        max_length=MAX_RULES,
        description="Rules, the first that matches wins; null: what the kind of the path has built in.",
    )


class PathConfig(_Section):
    """Interfaces joined by one action; exactly one of reflect, connect and route is given."""

    reflect: str | None = Field(
        default=None, description="Send each packet back out of this interface, MAC addresses swapped."
    )
    connect: TwoInterfaces | None = Field(
        default=None, description="Send each packet out of the other of these two interfaces, unchanged."
    )
    route: SeveralInterfaces | None = Field(
        default=None,
        description="Send each packet where the kernel's routing tables say, between these interfaces.",
    )
    fallback: Literal["pass", "drop"] = Field(
        default="pass", description="Packets on a queue without a worker: pass (to the kernel) or drop."
    )
    poll: Literal["adaptive", "busy", "wakeup"] = Field(
        default="adaptive",
        description="How a worker waits: spin a little, then sleep; always spin; always sleep.",
    )
    cpus: Cpus = Field(
        default="auto", description="CPUs for the workers, in order, repeated as needed; or auto."
    )
    express: Express = Field(
        default="rules",
        description="Packets sent on without user space: those of rules that say so, auto (all), off (none).",
    )
    limit: LimitConfig | None = Field(
        default=None, description="The most that each interface of the path may bring; null: any."
    )

    @property
    def kind(self) -> Literal["reflect", "connect", "route"]:
        """What the path does with a packet."""
        return "connect" if self.connect else "route" if self.route else "reflect"

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Names of the path's interfaces, as listed."""
        return self.connect or self.route or ((self.reflect,) if self.reflect else ())


class Umem(_Section):
    """The packet memory of each worker."""

    frame_size: Literal[2048, 4096] = Field(
        default=4096, description="Bytes of a frame; 256 of them are headroom."
    )
    frames: Frames = Field(
        default="auto", description="Frames of each worker: a number, or auto to fit every ring."
    )
    huge_pages: bool = Field(
        default=False, description="Take the memory from 2 MiB huge pages (reserve them first)."
    )


class Metrics(_Section):
    """The Prometheus endpoint."""

    listen: Listen = Field(
        default=("127.0.0.1", 9478),
        description='Address and port of /metrics, like "127.0.0.1:9478"; or off.',
        json_schema_extra={"default": "127.0.0.1:9478"},
    )


class Control(_Section):
    """The unix socket behind `xskd status`, `xskd reload` and `xskd capture`."""

    socket: SocketPath = Field(
        default=Path("/run/xskd/control.sock"), description="Path of the control socket."
    )
    group: Group = Field(
        default=None,
        description="Group whose members may ask for status and captures; null: none.",
    )


class Log(_Section):
    """What is written to the journal or terminal."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe message that is logged."
    )


class Config(_Section):
    """A whole configuration file, checked as far as that is possible without asking the kernel."""

    interfaces: Mapping[InterfaceName, Interface] = Field(description="Interfaces xskd takes, by name.")
    paths: Mapping[PathName, PathConfig] = Field(description="How packets go; every interface in one path.")
    umem: Umem = Field(default_factory=Umem, description="Packet memory of each worker.")
    metrics: Metrics = Field(default_factory=Metrics, description="Where Prometheus finds the metrics.")
    control: Control = Field(default_factory=Control, description="The socket behind xskd status.")
    log: Log = Field(default_factory=Log, description="Logging.")

    _source: yamltext.Source = PrivateAttr(default_factory=lambda: yamltext.Source("(no file)"))
    _text: str = PrivateAttr(default="")

    @property
    def text(self) -> str:
        """The YAML this was made of."""
        return self._text

    @property
    def file(self) -> str:
        """The name of the file it came from."""
        return self._source.file

    def path_of(self, interface: str) -> PathConfig:
        """The one path that an interface is in."""
        return next(path for path in self.paths.values() if interface in path.interfaces)

    def rules_of(self, interface: str) -> RuleSet:
        """Rules, default and limit of an interface as written; the built-in rules where there are none."""
        path, given = self.path_of(interface), self.interfaces[interface]
        limit = path.limit.plain if path.limit else None
        if given.rules is None:
            return RuleSet(REFLECT_RULES if path.kind == "reflect" else (), given.default, limit)
        named = (rule.plain(rule.name or str(place)) for place, rule in enumerate(given.rules, 1))
        return RuleSet(tuple(named), given.default, limit)

    def problem(self, keys: yamltext.Keys, message: str) -> Problem:
        """A problem with the value at `keys`, like ("interfaces", "eth1", "queues"), with file and line."""
        return self._source.problem(keys, message)

    @field_validator("umem")
    @classmethod
    def _frames_for_the_rings(cls, umem: Umem, info: ValidationInfo) -> Umem:
        """Refuses a UMEM that full FILL and TX rings would exhaust: one direction would starve the other."""
        interfaces: Mapping[str, Interface] = info.data.get("interfaces", {})
        paths: Mapping[str, PathConfig] = info.data.get("paths", {})
        least, name = max(((_held(path, interfaces), name) for name, path in paths.items()), default=(0, ""))
        if umem.frames != "auto" and umem.frames < least:
            raise wrong(
                f"{umem.frames} are too few for path {name}: its fill and tx rings hold {least}; "
                f"write {least} or more, or auto",
                "frames",
            )
        return umem


def _held(path: PathConfig, interfaces: Mapping[str, Interface]) -> int:
    """Frames that the FILL and TX rings of one worker hold when all are full."""
    rings = [interfaces[name].rings for name in path.interfaces if name in interfaces]
    return sum(ring.fill + ring.tx for ring in rings)


# ---- from text to Config -------------------------------------------------------------------------


def load(path: Path) -> Config:
    """Reads and checks a file; ConfigError with every problem, also where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(yamltext.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(str(path), 0, "", f"cannot be read: {error.strerror}")]) from None
    return parse(content, str(path))


def parse(text: bytes | str, name: str) -> Config:
    """Checks the text of a file called `name`; ConfigError with every problem, sorted by line."""
    values, source, problems = yamltext.read(text, name)
    problems += [source.problem(keys, message) for keys, message in _path_errors(values)]
    problems += [source.problem(keys, message) for keys, message in _rule_errors(values)]
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += [_problem(source, detail) for detail in error.errors()]
    if problems:
        raise ConfigError(problems)
    config._source = source
    config._text = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return config


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the file, for editors."""
    made = _or_nothing(Config.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _or_nothing(node: Any) -> Any:
    """Sections may be left empty (`eth2:`), which YAML reads as null and pydantic's schema does not know."""
    if isinstance(node, list):
        return [_or_nothing(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return {**rest, "anyOf": [{"$ref": node["$ref"]}, {"type": "null"}]}
    return {key: _or_nothing(value) for key, value in node.items()}


_ACTIONS = "reflect: eth1, connect: [eth1, eth2] and route: [eth1, eth2, eth3]"


def _path_errors(values: Any) -> Iterator[tuple[yamltext.Keys, str]]:
    """Who is in which path, asked of the plain values so that an error elsewhere hides none of these."""
    interfaces = values.get("interfaces") if isinstance(values, dict) else None
    paths = values.get("paths") if isinstance(values, dict) else None
    if not isinstance(paths, dict) or not isinstance(interfaces, dict):
        return  # pydantic says what they should be
    if not paths:
        yield ("paths",), "is empty; add a path, like wire: {connect: [eth1, eth2]}"
    unclear = [name for name, path in paths.items() if len(_actions(path)) != 1]
    for name in unclear:
        if isinstance(paths[name], dict | None):
            yield ("paths", name), f"needs exactly one of {_ACTIONS}"
    taken: dict[str, str] = {}
    for keys, path, name in _members(paths):
        if name not in interfaces:
            yield keys, f"{shown(name)} is not under interfaces{nearest(name, interfaces)}"
        elif name in taken:
            other = "this path" if taken[name] == path else f"path {taken[name]}"
            yield keys, f"{name} is in {other} already; an interface is in one path, once"
        taken.setdefault(name, path)
    for name in interfaces:
        if paths and not unclear and name not in taken:
            yield ("interfaces", name), "is in no path; add it to a path or remove it"


def _actions(path: Any) -> list[str]:
    given = path if isinstance(path, dict) else {}
    return [action for action in ("connect", "reflect", "route") if given.get(action) is not None]


def _members(paths: dict[str, Any]) -> Iterator[tuple[yamltext.Keys, str, str]]:
    """Keys, path and name of every interface that a path names, whatever else is wrong with the path."""
    for path, value in paths.items():
        for action in _actions(value)[:1]:
            keys, named = ("paths", path, action), value[action]
            if isinstance(named, str):
                yield keys, path, named
            elif isinstance(named, list):
                yield from (((*keys, i), path, name) for i, name in enumerate(named) if isinstance(name, str))


def _rule_errors(values: Any) -> Iterator[tuple[yamltext.Keys, str]]:
    """What rules are to each other and to the path, asked of the plain values as `_path_errors` does."""
    interfaces = values.get("interfaces") if isinstance(values, dict) else None
    for name, interface in interfaces.items() if isinstance(interfaces, dict) else ():
        rules = interface.get("rules") if isinstance(interface, dict) else None
        if isinstance(rules, list):
            for keys, message in rule_errors(rules):
                yield ("interfaces", name, "rules", *keys), message
    paths = values.get("paths") if isinstance(values, dict) else None
    for name, path in paths.items() if isinstance(paths, dict) else ():
        if isinstance(path, dict) and _actions(path) == ["reflect"]:
            if path.get("express") == "auto":
                yield ("paths", name, "express"), f"auto {_NOWHERE}; write rules or off"
            yield from _express_in(interfaces, path["reflect"])


_NOWHERE = "has nowhere to go in a path that reflects, which has one interface"


def _express_in(interfaces: Any, name: Any) -> Iterator[tuple[yamltext.Keys, str]]:
    """Where an interface that reflects says express."""
    interface = interfaces.get(name) if isinstance(interfaces, dict) and isinstance(name, str) else None
    if not isinstance(interface, dict):
        return
    if interface.get("default") == "express":
        yield ("interfaces", name, "default"), f"express {_NOWHERE}; write redirect"
    rules = interface.get("rules")
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        if isinstance(rule, dict) and rule.get("verdict") == "express":
            yield ("interfaces", name, "rules", index, "verdict"), f"express {_NOWHERE}; write redirect"


_WANTED = {
    "string_type": "the name of one interface",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "model_type": "a mapping, like {key: value}",
    "dict_type": "a mapping, like {name: {key: value}}",
    "list_type": "a list of rules, like [{protocol: udp, verdict: drop}]",
}


def _problem(source: yamltext.Source, error: ErrorDetails) -> Problem:
    """One error of pydantic in our words, at its line."""
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    keys = error["loc"]
    if kind == "xskd":
        keys = keys[:-1] if keys[-1] == "[key]" else keys  # pydantic's mark for the key itself
        return source.problem((*keys, *context["below"]), context["message"])
    if kind == "too_long":
        most = context["max_length"]
        return source.problem(keys, f"has {len(given)} rules; an interface has at most {most}")
    if kind == "missing":
        return source.problem(keys, "is missing")
    if kind == "extra_forbidden":
        *section, word = keys
        known = _known_keys(section)
        right = nearest(str(word), known) or f"; known are {', '.join(known)}"
        return source.problem(keys, f"unknown key{right}")
    if kind == "literal_error":
        expected = context["expected"].replace("'", "")
        others = [word for word in expected.replace(" or ", ", ").split(", ") if word != given]
        near = nearest(given, others) if isinstance(given, str) else ""
        return source.problem(keys, f"must be {expected}{instead(given)}{near}")
    wanted = f"must be {_WANTED[kind]}{instead(given)}" if kind in _WANTED else error["msg"]
    return source.problem(keys, wanted)


def _known_keys(section: list[str | int]) -> list[str]:
    """The keys that the section at this place has."""
    kind: Any = Config
    for key in section:
        fields = getattr(kind, "model_fields", {})
        kind = fields[key].annotation if fields else get_args(kind)[-1]  # of a section; of a mapping or list
        kind = get_args(kind)[0] if type(None) in get_args(kind) else kind
    return list(kind.model_fields)
