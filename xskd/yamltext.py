"""YAML text as plain dicts, lists and scalars, with the line of every key.

It exists because a line number is half of a useful error, and a plain `yaml.safe_load` throws it away along
with keys given twice. It must never build objects, follow an alias, or answer bad text with anything but
`ConfigError`: the file may come from anywhere. It knows no key of xskd; config.py does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from xskd.errors import ConfigError, Problem

Keys = tuple[str | int, ...]  # the way to a value: ("interfaces", "eth1", "rings", "tx")

# A file an operator writes is far below these; a file made to hurt is stopped by them within some seconds
# and 150 MB.
MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 150_000  # six interfaces with 1,024 rules of five keys each have half of it
MAX_NUMBER = 40  # characters; Python reads 0xfff... of any length, and then refuses to write it


@dataclass(frozen=True)
class Source:
    """A file's name and the line of each key in it, so that any later check can point at the place.

    Never compared: two files that say the same are equal wherever their lines are.
    """

    file: str = field(compare=False)
    lines: dict[Keys, int] = field(default_factory=dict, compare=False)

    def problem(self, keys: Keys, message: str, line: int | None = None) -> Problem:
        """A problem at the line of the key, or of what encloses it where the key itself is not written."""
        known = keys
        while known and known not in self.lines:
            known = known[:-1]
        return Problem(self.file, line or self.lines.get(known, 1), _dotted(keys), message)


def read(content: bytes | str, file: str) -> tuple[Any, Source, list[Problem]]:
    """Plain values, the source to report against, keys given twice; ConfigError where it is no YAML."""
    root = _compose(_decode(content, file), file)
    reader = _Reader(file)
    return reader.value(root, ()), reader.source, reader.problems


def printable(text: str, limit: int = 60) -> str:
    """Text from the file, safe for a terminal and short enough for a line."""
    cut = text if len(text) <= limit else text[:limit] + "..."
    return cut if cut.isprintable() else ascii(cut)[1:-1]


def _dotted(keys: Keys) -> str:
    """`paths.wire.connect[1]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{printable(key)}" for key in keys).removeprefix(
        "."
    )


def _decode(content: bytes | str, file: str) -> str:
    data = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    if len(data) > MAX_BYTES:
        why = f"is larger than {MAX_BYTES >> 20} MiB; is it the right file?"
        raise ConfigError([Problem(file, 0, "", why)])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        why = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ConfigError([Problem(file, line, "", why)]) from None


class _Refused(yaml.MarkedYAMLError):
    """YAML indeed, but of a kind that no configuration needs."""


class _Loader(yaml.SafeLoader):
    """Composes a plain tree within bounds: what aliases, anchors and tags could do is never needed here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.depth += 1
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag is not None:
            why = "anchors, aliases and tags (& * !) are refused; write the value out, or quote the text"
        elif isinstance(event, yaml.ScalarEvent) and re.search("[\ud800-\udfff]", event.value):
            why = "an escape that stands for no character; remove it"
        elif self.depth > MAX_DEPTH:
            why = f"nested more than {MAX_DEPTH} levels deep; no key of xskd needs that"
        elif self.nodes > MAX_NODES:
            why = f"more than {MAX_NODES} values; divide the interfaces between several daemons"
        else:
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node
        raise _Refused(problem=why, problem_mark=event.start_mark)


def _compose(text: str, file: str) -> yaml.Node:
    """The root node; ConfigError with the one problem that keeps the text from being YAML."""
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        why = "a control character; remove it"
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        why = _in_plain_words(error)
    except (ValueError, OverflowError) as error:  # PyYAML lets an escape like "\UFFFFFFFF" reach chr()
        line = loader.get_mark().line + 1 if loader else 0
        why = f"invalid YAML: a number or escape that Python cannot read ({error})"
    else:
        if root is not None and (root.value or not isinstance(root, yaml.ScalarNode)):
            return root
        line, why = 0, "is empty; start from config/xskd.yaml, where every key is explained"
    raise ConfigError([Problem(file, line, "", why)])


def _in_plain_words(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _Refused):
        return str(error.problem)
    if "'\\t'" in (error.problem or ""):
        return "a tab where YAML wants spaces; indent with spaces"
    if "single document" in (error.context or ""):
        return "a second document starts here; one file is one document, remove the ---"
    if "found ':'" in (error.problem or ""):
        return 'a value cannot begin with a colon; quote an address, like "::/0"'
    context = f"{error.context} from line {error.context_mark.line + 1}, " if error.context_mark else ""
    return f"invalid YAML: {context}{error.problem}"


class _Reader:
    """Turns nodes into plain values, remembering the line of every key and every key given twice."""

    def __init__(self, file: str) -> None:
        self.source = Source(file)
        self.problems: list[Problem] = []
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        """The plain value of the node that stands at `keys`."""
        self.source.lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
        if node.tag.rpartition(":")[2] not in ("bool", "float", "int", "null"):
            return node.value  # dates and the like mean nothing here: text
        if ":" in node.value or len(node.value) > MAX_NUMBER:  # YAML 1.1 would read 22:25 as 1345, in base 60
            return node.value
        try:
            return self._scalars.construct_object(node)
        except ValueError:  # what YAML takes for a number and Python does not, like 0b_ or 09
            return node.value

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value  # as written: an interface may be called `no`, which is no boolean here
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                why = "a key must be plain text, not a list or mapping"
                self.problems.append(self.source.problem(keys, why, line))
            elif key in values:
                why = f"is given twice (first on line {self.source.lines[*keys, key]}); remove one"
                self.problems.append(self.source.problem((*keys, key), why, line))
            else:
                self.source.lines[*keys, key] = line
                values[key] = self.value(value_node, (*keys, key))
        return values
