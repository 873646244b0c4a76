"""YAML text as plain values that remember where they stood, with compose-style interpolation.

Values come from PyYAML's composer, not its constructor: nothing is ever built from a tag, and every mapping, list and
value keeps its line and column. Aliases work within bounds; merge keys and tags do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from qraf.errors import TopologyFault

__all__ = ["MAX_BYTES", "Document", "Mark", "Sequence", "Table", "parse"]

MAX_BYTES = 1024 * 1024
MAX_ALIASES = 64
MAX_DEPTH = 24
MAX_VALUES = 50_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "value")}
_REFERENCE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::([-?])([^}]*))?\})|\$")


@dataclass(frozen=True, slots=True)
class Mark:
    """Line and column, both from 1."""

    line: int
    column: int


class Table(dict[str, Any]):
    """A mapping with the place of each key and value."""

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self.mark = mark
        self.keys_at: dict[str, Mark] = {}
        self.values_at: dict[str, Mark] = {}


class Sequence(list[Any]):
    """A list with the place of each value."""

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self.mark = mark
        self.values_at: list[Mark] = []


@dataclass
class Document:
    """One parsed file: its values, and the faults met so far."""

    file: str
    root: Table = field(default_factory=lambda: Table(Mark(1, 1)))
    faults: list[TopologyFault] = field(default_factory=list)
    hidden: dict[Mark, str] = field(default_factory=dict)
    """Interpolated values as they were written, by place: an error must not print what a variable held."""
    texts: dict[Mark, str] = field(default_factory=dict)
    """The same values after interpolation, before they became numbers: a key that wants text takes these."""

    def at(self, *path: str | int, key: bool = False) -> Mark:
        """Place of a value, or of its key; of the nearest thing around it where the value is not there."""
        here: Any = self.root
        mark = self.root.mark
        for step in path:
            if isinstance(here, Table) and isinstance(step, str) and step in here:
                mark = here.keys_at[step] if key or isinstance(here[step], Table) else here.values_at[step]
            elif isinstance(here, Sequence) and isinstance(step, int) and step < len(here):
                mark = here.values_at[step]
            else:
                return mark
            here = here[step]
        return mark

    def fault(self, mark: Mark, what: str, hint: str = "") -> None:
        """Note one fault; the same one twice counts once."""
        fault = TopologyFault(self.file, mark.line, mark.column, what, hint)
        if fault not in self.faults:
            self.faults.append(fault)


def parse(text: str, file: str, env: Mapping[str, str]) -> Document:
    """Values and places of a YAML text; faults of syntax, bounds and interpolation are in `Document.faults`."""
    document = Document(file)
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        document.fault(Mark(1, 1), f"the file must have at most {MAX_BYTES} bytes")
        return document
    try:
        if not _within_bounds(text, document):
            return document
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where: Any = error.problem_mark or error.context_mark
        mark = Mark(1, 1) if where is None else Mark(where.line + 1, where.column + 1)
        problem = " ".join(part for part in (error.context, error.problem) if part)
        lines = text.splitlines()
        quote = mark.line <= len(lines) and "${" in lines[mark.line - 1]
        hint = "inside { } and [ ] an interpolation must stand in quotes" if quote else ""
        document.fault(mark, f"not valid YAML: {problem}", hint)
        return document
    except (yaml.YAMLError, UnicodeError) as error:
        document.fault(_reader_mark(text, error), f"not valid YAML: {str(error).splitlines()[0]}")
        return document
    if root is None:
        document.fault(
            Mark(1, 1), "the file is empty", "a topology needs at least `version`, `name`, `nodes`, `ingress`"
        )
        return document
    value = _Builder(document, env).build(root)
    if isinstance(value, Table):
        document.root = value
    elif not document.faults:
        document.fault(_mark(root), f"a topology must be a mapping, but is {_kind(value)}")
    return document


def _within_bounds(text: str, document: Document) -> bool:
    """Walk the events once, so that depth and aliases are known before anything recurses."""
    depth = aliases = documents = 0
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        where = Mark(event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                document.fault(where, "a file must hold one YAML document, but another one starts here")
                return False
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > MAX_ALIASES:
                document.fault(where, f"more than {MAX_ALIASES} aliases")
                return False
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                document.fault(where, f"nested deeper than {MAX_DEPTH} levels")
                return False
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return True


class _TooLargeError(Exception):
    """Aliases expand beyond the bound."""


class _Builder:
    """Composer nodes to values."""

    def __init__(self, document: Document, env: Mapping[str, str]) -> None:
        self.document, self.env = document, env
        self.values = 0
        self.open: set[int] = set()
        self.scalars: Any = yaml.SafeLoader("")

    def build(self, node: yaml.Node) -> Any:
        try:
            return self._value(node)
        except _TooLargeError:
            self.document.fault(_mark(node), f"aliases expand to more than {MAX_VALUES} values")
            return None

    def _value(self, node: yaml.Node) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise _TooLargeError
        if id(node) in self.open:
            self.document.fault(_mark(node), "an alias must not contain itself")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.document.fault(_mark(node), f"tags are not supported, but '{node.tag}' came")
            return None
        self.open.add(id(node))
        try:
            return self._table(node) if isinstance(node, yaml.MappingNode) else self._sequence(node)
        finally:
            self.open.discard(id(node))

    def _table(self, node: yaml.MappingNode) -> Table:
        table = Table(_mark(node))
        for key_node, value_node in node.value:
            where = _mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.fault(where, "a key must be a plain word")
                continue
            key = str(key_node.value)
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.document.fault(where, "merge keys (`<<`) are not supported", "write the keys out")
                continue
            if "$" in key:
                self.document.fault(where, f"interpolation works in values only, but key '{key}' has a `$`")
                continue
            if key in table:
                first = table.keys_at[key].line
                self.document.fault(where, f"duplicate key '{key}'", f"it is already on line {first}")
                continue
            table[key] = self._value(value_node)
            table.keys_at[key], table.values_at[key] = where, _mark(value_node)
        return table

    def _sequence(self, node: yaml.Node) -> Sequence:
        sequence = Sequence(_mark(node))
        for child in node.value:
            sequence.append(self._value(child))
            sequence.values_at.append(_mark(child))
        return sequence

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag not in _PLAIN_TAGS:
            self.document.fault(_mark(node), f"tags are not supported, but '{node.tag}' came")
            return None
        raw, tag = str(node.value), node.tag
        if "$" in raw:
            text = self._interpolate(raw, _mark(node))
            self.document.hidden[_mark(node)] = raw
            self.document.texts[_mark(node)] = text
            tag = "tag:yaml.org,2002:str"
            if text:
                tag = self.scalars.resolve(yaml.ScalarNode, text, (True, False))
        else:
            text = raw
        kind = tag.rpartition(":")[2]
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return self.scalars.construct_yaml_bool(yaml.ScalarNode(tag, text))
            if kind == "int":
                return self.scalars.construct_yaml_int(yaml.ScalarNode(tag, text))
            if kind == "float":
                return self.scalars.construct_yaml_float(yaml.ScalarNode(tag, text))
        except ValueError:
            self.document.fault(_mark(node), f"'{raw[:40]}' is no number")
            return None
        return text

    def _interpolate(self, raw: str, mark: Mark) -> str:
        def one(match: re.Match[str]) -> str:
            found, name, operator, rest = match.group(0), match.group(1), match.group(2), match.group(3)
            if found == "$$":
                return "$"
            if name is None:
                self.document.fault(
                    mark, f"'{raw}' is no interpolation", "write ${V}, ${V:-default}, ${V:?error} or $$"
                )
                return found
            value = self.env.get(name)
            if value or (value is not None and operator is None):
                return value
            if operator == "-":
                return rest
            if operator == "?":
                self.document.fault(mark, f"variable {name} is not set: {rest or 'it is required'}")
            else:
                self.document.fault(mark, f"variable {name} is not set", f"set it, or write ${{{name}:-default}}")
            return ""

        return _REFERENCE.sub(one, raw)


def _mark(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


def _reader_mark(text: str, error: Exception) -> Mark:
    position = getattr(error, "position", None)
    if not isinstance(position, int):
        return Mark(1, 1)
    before = text.encode("utf-8", "replace")[:position].decode("utf-8", "ignore")
    return Mark(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _kind(value: object) -> str:
    names = {Table: "a mapping", Sequence: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")
