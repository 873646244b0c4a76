"""Change constants of recall in the text of a topology file, and nothing else: comments, order and layout stay.

The places come from the YAML composer's marks; after the edit both texts are read as topologies, which must differ in
just what was asked for. How many GPUs this machine has plays no part in that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import yaml

from qraf.errors import InvalidTopology, TopologyFault
from qraf.network.loader import loads
from qraf.network.topology import Topology

__all__ = ["ANY_GPUS", "Value", "with_recall"]

ANY_GPUS = 1 << 20
Value = float | tuple[float, ...]


def with_recall(text: str, changes: Mapping[str, Mapping[str, Value]], *, file: str = "<text>") -> str:
    """The text with the constants that `changes` gives for each node.

    Raises:
        InvalidTopology: the text is no topology, has no such node, or writes a node in a way that cannot be changed by
            itself (an alias, an anchor that others use).
    """
    before = loads(text, file=file, gpus=ANY_GPUS)
    for name in changes:
        if name not in before.nodes:
            raise InvalidTopology((TopologyFault(file, 1, 1, f"unknown node '{name}'"),))
    edited = text
    for start, end, new in sorted(_edits(text, changes, file), reverse=True):
        edited = edited[:start] + new + edited[end:]
    after = loads(edited, file=file, gpus=ANY_GPUS)
    if _as_wanted(before, changes) != replace(after, file=before.file):
        what = f"the constants of {', '.join(changes)} cannot be changed by themselves"
        raise InvalidTopology((TopologyFault(file, 1, 1, what, "write shared anchors out"),))
    return edited


def _as_wanted(before: Topology, changes: Mapping[str, Mapping[str, Value]]) -> Topology:
    nodes = dict(before.nodes)
    for name, constants in changes.items():
        given: dict[str, Any] = dict(constants)
        nodes[name] = replace(nodes[name], recall=replace(nodes[name].recall, **given))
    return replace(before, nodes=nodes)


_Entry = tuple[yaml.Node, yaml.Node]
_Edit = tuple[int, int, str]


def _edits(text: str, changes: Mapping[str, Mapping[str, Value]], file: str) -> Iterator[_Edit]:
    """What to put in place of which characters; no two overlap."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)  # not the C loader: its marks have no index
    assert isinstance(root, yaml.MappingNode)
    entry = _entry(root, "nodes")
    assert entry is not None
    nodes = _mapping(entry, "`nodes`", file)
    for name, constants in changes.items():
        entry = _entry(nodes, name)
        assert entry is not None
        node = _mapping(entry, f"node '{name}'", file)
        entry = _entry(node, "recall")
        if entry is None:
            inner = ", ".join(f"{key}: {_written(value)}" for key, value in constants.items())
            if inner:
                yield _added(text, node, [f"recall: {{{inner}}}"])
            continue
        recall = _mapping(entry, f"`recall` of node '{name}'", file)
        fresh = []
        for key, value in constants.items():
            held = _entry(recall, key)
            if held is None:
                fresh.append(f"{key}: {_written(value)}")
                continue
            _own(held, f"`{key}` of node '{name}'", file)
            yield held[1].start_mark.index, _end(text, held[1]), _written(value)
        if fresh:
            yield _added(text, recall, fresh)


def _end(text: str, value: yaml.Node) -> int:
    """Where a value ends; the mark of a block list lies behind the empty lines and comments that follow it."""
    if not isinstance(value, yaml.SequenceNode) or value.flow_style or not value.value:
        return int(value.end_mark.index)
    return _end(text, value.value[-1])


def _entry(mapping: yaml.MappingNode, key: str) -> _Entry | None:
    return next((entry for entry in mapping.value if entry[0].value == key), None)


def _mapping(entry: _Entry, what: str, file: str) -> yaml.MappingNode:
    _own(entry, what, file)
    assert isinstance(entry[1], yaml.MappingNode)
    return entry[1]


def _own(entry: _Entry, what: str, file: str) -> None:
    """Need the value to stand behind its key, not somewhere else under an anchor."""
    key, value = entry
    if value.start_mark.index < key.end_mark.index:
        mark = key.start_mark
        fault = TopologyFault(file, mark.line + 1, mark.column + 1, f"{what} is an alias", "write it out")
        raise InvalidTopology((fault,))


def _added(text: str, mapping: yaml.MappingNode, entries: list[str]) -> _Edit:
    """More entries in a mapping: behind what is there in a flow, behind the first line in a block."""
    if mapping.flow_style:
        if not mapping.value:
            at = mapping.start_mark.index + 1
            return at, at, ", ".join(entries)
        at = mapping.value[-1][1].end_mark.index
        return at, at, "".join(f", {entry}" for entry in entries)
    key, value = mapping.value[0]
    indent = " " * key.start_mark.column
    end = text.find("\n", value.end_mark.index)
    is_line = isinstance(value, yaml.ScalarNode) and value.style is None
    if is_line and value.start_mark.line == value.end_mark.line:
        lines = "".join(f"{indent}{entry}\n" for entry in entries)
        return (len(text), len(text), "\n" + lines) if end < 0 else (end + 1, end + 1, lines)
    at = key.start_mark.index
    return at, at, "".join(f"{entry}\n{indent}" for entry in entries)


def _written(value: Value) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if value == int(value):
        return str(int(value))
    return f"{Decimal(repr(float(value))):f}"  # YAML 1.1 reads 1e-05 as text
