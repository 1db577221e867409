"""What a single value of the configuration file may be: its checks, its type, its JSON Schema.

A check says in one line what is wrong and what would be right, where pydantic's own words would speak of
Python. It must never look beyond its one value: what one key means for another is config.py's, what the
machine says is plan.py's.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from xskd.yamltext import printable

MIN_RING = 64  # entries; one burst of a worker
MAX_RING = 1 << 20
MAX_FRAMES = 1 << 24  # 64 GiB of 4096-byte frames for one worker
MAX_NUMBER = (1 << 16) - 1  # of a queue or a CPU
MAX_ROUTED = 16  # interfaces of one path: XSKD_MAX_PORTS


def wrong(message: str, *below: str | int) -> PydanticCustomError:
    """An error already in our words; `below` leads on to a key inside the value that is being validated."""
    return PydanticCustomError("xskd", "{message}", {"message": message, "below": below})


def shown(value: object) -> str:
    """A value as an error quotes it: in YAML's own writing, short."""
    if isinstance(value, str):
        return f'"{printable(value)}"'
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return "an empty value" if value is None else printable(json.dumps(value))


def instead(value: object) -> str:
    """`, not "4096" (remove the quotes)`: what was given in place of a number or word, and the usual slip."""
    slip = ""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        slip = " (remove the quotes)"
    elif isinstance(value, bool):
        slip = " (YAML reads yes, no, on and off so, unless quoted)"
    return f", not {shown(value)}{slip}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean tx?`, or "" where nothing known is near."""
    near = difflib.get_close_matches(word[:60].lower(), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _interface_name(name: str) -> str:
    size = len(name.encode(errors="replace"))
    if size > 15 or not re.fullmatch(r"[^\s/:]+", name) or name in (".", ".."):
        raise wrong("is no interface name; the kernel's have 1 to 15 bytes without space, / and :")
    return name


def _path_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,63}", name):
        raise wrong("is no path name; use 1 to 63 letters, digits, '-', '_' and '.'")
    return name


def _ring(entries: int) -> int:
    if not MIN_RING <= entries <= MAX_RING:
        raise wrong(f"must be from {MIN_RING} (one burst) to {MAX_RING}, not {shown(entries)}")
    if entries & (entries - 1):
        below = 1 << entries.bit_length() - 1
        raise wrong(f"{entries} is no power of two; the nearest are {below} and {2 * below}")
    return entries


def _numbers(value: object, word: str, what: str) -> list[int]:
    """`0`, `0-3,6` or `[0, 2-3]` as numbers in the order written; `word` may stand instead of them."""
    right = f"write {word}, 0, 0-3 or [0, 2-3]"
    numbers: list[int] = []
    for part in value if isinstance(value, list) else [value]:
        for piece in part.split(",") if isinstance(part, str) else [part]:
            match = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", str(piece))
            if not match:
                raise wrong(f"{shown(piece)} is no {what} number; {right}")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise wrong(f"{shown(piece)} runs backwards; write {last}-{first}")
            if last > MAX_NUMBER or len(numbers) > MAX_NUMBER:
                raise wrong(f"{shown(piece)} is beyond {MAX_NUMBER}; no machine has so many")
            numbers += range(first, last + 1)
    if not numbers:
        raise wrong(f"names no {what}; {right}")
    return numbers


def _queues(value: object) -> object:
    if value == "all":
        return value
    numbers = sorted(_numbers(value, "all", "queue"))
    for number, after in itertools.pairwise(numbers):
        if number == after:
            raise wrong(f"names queue {number} twice; a queue has one worker")
    return tuple(numbers)


def _cpus(value: object) -> object:
    return value if value == "auto" else tuple(_numbers(value, "auto", "CPU"))


def _frames(value: object) -> object:
    if value == "auto" or (type(value) is int and 1 <= value <= MAX_FRAMES):
        return value
    raise wrong(f"must be auto or a whole number from 1 to {MAX_FRAMES}{instead(value)}")


def _two_interfaces(value: object) -> object:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise wrong("must be a list of two interface names, like [eth1, eth2]")


def _several_interfaces(value: object) -> object:
    listed = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if isinstance(value, list) and listed and 2 <= len(value) <= MAX_ROUTED:
        return tuple(value)
    raise wrong(f"must be a list of 2 to {MAX_ROUTED} interface names, like [eth1, eth2, eth3]")


def _listen(value: object) -> tuple[str, int] | None:
    if value is False or value == "off":  # YAML reads a bare off as false
        return None
    text = value if isinstance(value, str) else ""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", text)
    if not match or not 1 <= int(match[3]) <= 65535:
        raise wrong(f'must be "ADDRESS:PORT", "[IPV6]:PORT" or off, not {shown(value)}')
    host = match[1] or match[2]
    if match[1] or re.fullmatch(r"[0-9.]+", host):  # anything else is a name to look up
        try:
            ipaddress.IPv6Address(host) if match[1] else ipaddress.IPv4Address(host)
        except ValueError:
            raise wrong(f"{shown(host)} is no IP address") from None
    return host, int(match[3])


def _express(value: object) -> object:
    if value is False:  # YAML reads a bare off as false
        return "off"
    if value in ("rules", "auto", "off"):
        return value
    near = nearest(value, ("rules", "auto", "off")) if isinstance(value, str) else ""
    raise wrong(f"must be rules, auto or off{instead(value)}{near}")


def _socket(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise wrong(f"must be an absolute path, like /run/xskd/control.sock, not {shown(value)}")
    if len(value.encode()) > 107:
        raise wrong("is longer than the 107 bytes that the path of a unix socket may have")
    return Path(value)


def _group(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", value):
        raise wrong(f"must be the name of a group, or null for none{instead(value)}")
    return value


_NUMBER = {"type": ["integer", "string"], "minimum": 0}
_NUMBERS = WithJsonSchema({"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER, "minItems": 1}]})
_POWERS = [1 << bit for bit in range(MIN_RING.bit_length() - 1, MAX_RING.bit_length())]

InterfaceName = Annotated[
    str, AfterValidator(_interface_name), WithJsonSchema({"type": "string", "pattern": r"^[^\s/:]{1,15}$"})
]
PathName = Annotated[
    str, AfterValidator(_path_name), WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,63}$"})
]
Entries = Annotated[int, AfterValidator(_ring), WithJsonSchema({"type": "integer", "enum": _POWERS})]
Queues = Annotated[Literal["all"] | tuple[int, ...], PlainValidator(_queues), _NUMBERS]
Cpus = Annotated[Literal["auto"] | tuple[int, ...], PlainValidator(_cpus), _NUMBERS]
Frames = Annotated[
    Literal["auto"] | int,
    PlainValidator(_frames),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": MAX_FRAMES}]}),
]
TwoInterfaces = Annotated[
    tuple[str, str],
    PlainValidator(_two_interfaces),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}),
]
Express = Annotated[
    Literal["rules", "auto", "off"],
    PlainValidator(_express),
    WithJsonSchema({"enum": ["rules", "auto", "off", False]}),
]
SeveralInterfaces = Annotated[
    tuple[str, ...],
    PlainValidator(_several_interfaces),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": MAX_ROUTED}),
]
Listen = Annotated[
    tuple[str, int] | None, PlainValidator(_listen), WithJsonSchema({"type": ["string", "boolean"]})
]
Group = Annotated[str | None, PlainValidator(_group), WithJsonSchema({"type": ["string", "null"]})]
SocketPath = Annotated[Path, PlainValidator(_socket), WithJsonSchema({"type": "string", "pattern": "^/"})]
