"""YAML to Topology: every fault at once, each with file, line, column and the nearest right name.

A fault does not stop the reading: the value is repaired (to the nearest right name) or left out, and the rest is
checked as if it had been right, so that one slip is one line of output and hides none behind it.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from qraf.errors import InvalidTopology, TopologyFault
from qraf.network import models
from qraf.network.checks import check, count_gpus
from qraf.network.document import MAX_BYTES, Document, Mark, Sequence, Table, parse
from qraf.network.models import schema
from qraf.network.noise import noise_of, protect_of
from qraf.network.topology import (
    EMBEDDED_MODEL,
    Expectation,
    HostSpec,
    LinkSpec,
    NodeSpec,
    RouteWeights,
    RoutingSpec,
    ServiceSpec,
    Topology,
    TopologyTest,
)
from qraf.records import RecallSettings
from qraf.state_orders import Preparation

__all__ = ["count_gpus", "load", "loads", "schema"]

_ROUNDS = 8
_Path = tuple[str | int, ...]


def load(path: Path | str, *, env: Mapping[str, str] | None = None, gpus: int | None = None) -> Topology:
    """The topology in a file.

    Args:
        path: a YAML file.
        env: variables for interpolation; the process's environment when not given.
        gpus: how many GPUs the hosts may ask for together; counted on this machine when not given.

    Raises:
        InvalidTopology: the file cannot be read, or has faults; all of them are in `faults`.
    """
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InvalidTopology((TopologyFault(file, 1, 1, f"cannot be read: {error.strerror or error}"),)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise InvalidTopology((TopologyFault(file, line, column, "the file must be UTF-8"),)) from None
    return loads(text, file=file, env=env, gpus=gpus)


def loads(
    text: str, *, file: str = "<text>", env: Mapping[str, str] | None = None, gpus: int | None = None
) -> Topology:
    """The topology in a YAML text; like `load`."""
    document = parse(text, file, os.environ if env is None else env)
    if not document.root:
        raise InvalidTopology(_in_order(document.faults))
    names = _Names(document.root)
    parsed = _validated(document)
    if parsed is not None and names.has_nodes:
        check(document, parsed, nodes=names.nodes, hosts=names.hosts, has_ingress=names.has_ingress, gpus=gpus)
    if document.faults or parsed is None:
        raise InvalidTopology(_in_order(document.faults))
    return _built(parsed, file)


class _Names:
    """The names as the file has them, before anything is repaired."""

    def __init__(self, root: Table) -> None:
        nodes, hosts = root.get("nodes"), root.get("hosts")
        self.nodes = tuple(nodes) if isinstance(nodes, Table) else ()
        self.hosts = tuple(hosts) if isinstance(hosts, Table) else ()
        self.has_nodes = bool(self.nodes)
        self.has_ingress = bool(difflib.get_close_matches("ingress", list(root), 1))


def _in_order(faults: Iterable[TopologyFault]) -> tuple[TopologyFault, ...]:
    return tuple(sorted(faults, key=lambda fault: (fault.line, fault.column)))


# ------------------------------------------------------------------------------------------- shape, with repair
def _validated(document: Document) -> models.File | None:
    """The file's model; faults are noted and repaired until it fits, or None when it cannot be made to fit."""
    told: set[_Path] = set()
    for _ in range(_ROUNDS):
        try:
            return models.File.model_validate(document.root)
        except ValidationError as invalid:
            left_out: list[_Path] = []
            for error in invalid.errors(include_url=False):
                path: _Path = error["loc"]
                if _as_text(document, path, error):
                    continue
                if path not in told and path[:-1] not in told:
                    _tell(document, path, error)
                told.add(path)
                if not _repair(document.root, path, error, told):
                    left_out.append(path)
            for path in sorted(left_out, key=lambda each: [str(step).zfill(9) for step in each], reverse=True):
                _leave_out(document.root, path)
    return None


def _tell(document: Document, path: _Path, error: Any) -> None:
    kind, where = error["type"], _dotted(path)
    parent, last = _follow(document.root, path[:-1]), path[-1]
    inside = f" in `{_dotted(path[:-1])}`" if len(path) > 1 else ""
    if kind == "extra_forbidden":
        hint = _nearest_hint(str(last), _fields_at(path[:-1]))
        document.fault(document.at(*path, key=True), f"unknown key '{last}'{inside}", hint)
    elif kind == "missing":
        known = tuple(parent) if isinstance(parent, Table) else ()
        near = difflib.get_close_matches(str(last), known, 1)
        misspelt = near and near[0] not in _fields_at(path[:-1])
        if not misspelt:
            document.fault(document.at(*path[:-1], key=True), f"`{where}` is required, but is not there")
    else:
        value = _follow(document.root, path)
        mark = document.at(*path)
        failed = any((fault.line, fault.column) == (mark.line, mark.column) for fault in document.faults)
        if mark in document.hidden and failed:
            return  # its interpolation has been told
        hint = _nearest_hint(str(value), _choices(error)) if isinstance(value, str) else ""
        document.fault(mark, f"`{where}` {_need(error)}, but is {_shown(document, mark, value)}", hint)


def _as_text(document: Document, path: _Path, error: Any) -> bool:
    """Whether the fault was only that an interpolated text looks like a number; then it is put right."""
    parent, mark = _follow(document.root, path[:-1]), document.at(*path)
    value = _follow(document.root, path)
    if isinstance(value, str) or mark not in document.texts or not isinstance(parent, dict | list):
        return False
    if error["type"] not in ("string_type", "name", "names", "texts"):
        return False
    parent[path[-1]] = document.texts[mark]  # type: ignore[index]
    return True


def _need(error: Any) -> str:
    kind, message, context = error["type"], str(error["msg"]), error.get("ctx") or {}
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "must be a mapping"
    if kind == "literal_error":
        return f"must be {str(context.get('expected', '')).replace(chr(39), '`')}"
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length") or context.get("max_length")
        return f"must have {'at least' if kind == 'too_short' else 'at most'} {bound} entries"
    if message.startswith("Input should be "):
        return "must be " + message.removeprefix("Input should be ").replace("a valid ", "a ").replace(
            "a int", "an int"
        )
    if message.startswith("must "):
        return message
    return f"is not right ({message})"


def _shown(document: Document, mark: Mark, value: object) -> str:
    if mark in document.hidden:
        return f"{document.hidden[mark]} (interpolated)"
    if isinstance(value, Table):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"'{text}'" if isinstance(value, str) else text


def _choices(error: Any) -> tuple[str, ...]:
    expected = str((error.get("ctx") or {}).get("expected", ""))
    return tuple(part.strip(" '") for part in expected.replace(" or ", ",").split(",") if "'" in part)


def _nearest_hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else ""


def _repair(root: Table, path: _Path, error: Any, told: set[_Path]) -> bool:
    """Put the likeliest right value in the place of a fault; False: leave the value out."""
    parent, last, kind = _follow(root, path[:-1]), path[-1], error["type"]
    if not isinstance(parent, Table) or not isinstance(last, str):
        return False
    if kind == "extra_forbidden":
        fields = [name for name in _fields_at(path[:-1]) if name not in parent]
        near = difflib.get_close_matches(last, fields, 1)
        if near:
            parent[near[0]] = parent.pop(last)
            parent.keys_at[near[0]], parent.values_at[near[0]] = parent.keys_at.pop(last), parent.values_at.pop(last)
        return bool(near)
    if kind == "missing":
        if any(difflib.get_close_matches(last, [key], 1) for key in parent if key not in _fields_at(path[:-1])):
            return True  # the misspelt key is about to be renamed
        placeholder = _placeholder(root, last, parent)
        if placeholder is None:
            return False
        parent[last], parent.keys_at[last], parent.values_at[last] = placeholder, parent.mark, parent.mark
        return True
    if kind == "literal_error" and isinstance(parent.get(last), str):
        near = difflib.get_close_matches(parent[last], _choices(error), 1)
        if near:
            parent[last] = near[0]
            return True
    return False


def _placeholder(root: Table, key: str, parent: Table) -> Any:
    """A value that lets the rest be checked; its absence has been told."""
    nodes = root.get("nodes")
    if key == "role":
        return "generator" if parent.keys() & {"model", "url", "scaling"} else "memory"
    if key == "ingress":
        return (
            next((name for name in nodes if models.NAME.fullmatch(name)), "none")
            if isinstance(nodes, Table)
            else "none"
        )
    if key == "nodes":
        return Table(parent.mark) | {"none": {"role": "memory"}}
    return {"version": 1, "name": "unnamed", "prompt": "?", "expect": Table(parent.mark), "half_life": 1.0}.get(key)


def _leave_out(root: Table, path: _Path) -> None:
    """Drop a value that cannot be repaired; a missing one takes its parent with it."""
    while path:
        parent, last = _follow(root, path[:-1]), path[-1]
        if isinstance(parent, Table) and isinstance(last, str) and last in parent:
            del parent[last]
            return
        if isinstance(parent, Sequence) and isinstance(last, int) and last < len(parent):
            del parent[last]
            del parent.values_at[last]
            return
        path = path[:-1]


def _follow(root: Any, path: _Path) -> Any:
    for step in path:
        try:
            root = root[step]
        except (KeyError, IndexError, TypeError):
            return None
    return root


def _dotted(path: _Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _fields_at(path: _Path) -> tuple[str, ...]:
    """The keys that the models allow at a path."""
    kind: Any = models.File
    for step in path:
        kind = _model_in(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found = kind.model_fields.get(str(step))
            if found is None:
                return ()
            kind = found.annotation
        else:
            arguments = typing.get_args(kind)
            kind = arguments[-1] if arguments else None
    kind = _model_in(kind)
    return tuple(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else ()


def _model_in(kind: Any) -> Any:
    """The annotation without `| None` and `Annotated`."""
    while True:
        origin = typing.get_origin(kind)
        if origin is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif origin in (typing.Union, types.UnionType):
            kind = next(each for each in typing.get_args(kind) if each is not type(None))
        else:
            return kind


# ------------------------------------------------------------------------------------------------------- records
def _built(parsed: models.File, file: str) -> Topology:
    hosts = {name: HostSpec(name, **(host or models.Host()).model_dump()) for name, host in parsed.hosts.items()}
    if not hosts:
        hosts = {"main": HostSpec("main")}
    only = next(iter(hosts)) if len(hosts) == 1 else ""
    nodes = {name: _node(name, node, parsed.defaults, only) for name, node in parsed.nodes.items()}
    links = tuple(
        LinkSpec(source, target, link.latency_ms, link.bandwidth_mbps, link.bits, noise_of(link), protect_of(link))
        for link in parsed.links
        for source in link.source
        for target in link.target
    )
    routing = parsed.routing
    return Topology(
        name=parsed.name,
        hosts=hosts,
        nodes=nodes,
        links=links,
        ingress=parsed.ingress,
        version=parsed.version,
        description=parsed.description,
        encoder=nodes[parsed.ingress].encoder,
        routing=RoutingSpec(routing.max_visits, routing.deadline_ms, RouteWeights(**routing.weights.model_dump())),
        tests=tuple(_test(test) for test in parsed.tests),
        services=_services(parsed.services),
        states=tuple(_state(name, state) for name, state in parsed.states.items()),
        file=file,
    )


def _node(name: str, node: models.Node, defaults: models.Defaults, only_host: str) -> NodeSpec:
    holds = node.holds or models.Holds()
    given: dict[str, Any] = node.recall.model_dump(exclude_unset=True) if node.recall is not None else {}
    own: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    is_memory = node.role == "memory"
    return NodeSpec(
        name=name,
        role=node.role,
        host=node.host or (only_host if is_memory else ""),
        sessions=holds.sessions,
        collections=tuple(holds.collections),
        capacity_bytes=node.capacity,
        recall=replace(RecallSettings(), **own),
        half_life_s=node.decay.half_life if node.decay else None,
        rank=node.rank or defaults.rank,
        bits=node.bits or defaults.bits,
        encoder=node.encoder or defaults.encoder,
        model=(node.model or ("" if node.url else EMBEDDED_MODEL)) if not is_memory else "",
        url=node.url or "",
        budget_bytes=node.budget,
    )


def _state(name: str, state: models.State) -> Preparation:
    given = state.model_dump(exclude_none=True)
    given |= {key: tuple(value) for key, value in given.items() if key == "dims"}
    return Preparation(id=f"st_{name}", label=name, **given)


def _services(services: models.Services | None) -> tuple[ServiceSpec, ...]:
    found = [(name, getattr(services, name)) for name in models.Services.model_fields] if services else []
    return tuple(ServiceSpec(name, one.scaling.min, one.scaling.max) for name, one in found if one is not None)


def _test(test: models.Test) -> TopologyTest:
    expect = Expectation(tuple(test.expect.evidence_contains), tuple(test.expect.visits or ()))
    return TopologyTest(test.prompt, tuple(test.write), tuple(test.collections), expect)
