"""The shape of a topology file: one set of models for the loader and for the editors' JSON Schema.

The models know keys, types and ranges. What needs the whole file (names that must exist, paths, dimensions) is in
`checks`. Sizes and durations are parsed here: `512MiB`, `30d`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from qraf.codes.experiment import MAX_DISTANCE, MAX_ROUNDS
from qraf.records import MIN_BUDGET_BYTES, RecallSettings

__all__ = [
    "NAME",
    "Channel",
    "Defaults",
    "File",
    "Host",
    "Link",
    "Node",
    "Pauli",
    "Protect",
    "Recall",
    "Routing",
    "Service",
    "State",
    "Test",
    "schema",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31557600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match and match.group(2) in _SIZES and float(match.group(1)) > 0:
        return int(float(match.group(1)) * _SIZES[match.group(2)])
    raise PydanticCustomError("size", "must be a size such as 512MiB or 2GB")


def _duration(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match and match.group(2) in _SECONDS and float(match.group(1)) > 0:
        return float(match.group(1)) * _SECONDS[match.group(2)]
    raise PydanticCustomError("duration", "must be a duration such as 30d, 12h or 90s")


def _name(value: Any) -> str:
    if isinstance(value, str) and NAME.fullmatch(value):
        return value
    raise PydanticCustomError("name", "must be a name of letters, digits, '_', '-' and '.', at most 64")


def _names(value: Any) -> list[str]:
    """One name, or a list of them."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise PydanticCustomError("names", "must be a name or a list of names")
    return [_name(name) for name in names]


def _texts(value: Any) -> list[str]:
    """One text, or a list of them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise PydanticCustomError("texts", "must be a text or a list of texts")
    return list(texts)


def _holds(value: Any) -> dict[str, Any]:
    """`sessions`, [collections], or {sessions: true, collections: [...]} in its long form."""
    if value == "sessions":
        return {"sessions": True}
    if isinstance(value, list):
        return {"collections": value}
    if isinstance(value, dict):
        return value
    if isinstance(value, Holds):
        return value.model_dump()
    raise PydanticCustomError(
        "holds", "must be `sessions`, a list of collections, or {{sessions: true, collections: [..]}}"
    )


Name = Annotated[str, BeforeValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$"})]
Names = Annotated[
    list[str],
    BeforeValidator(_names),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
    ),
]
Texts = Annotated[
    list[str],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["512MiB", "2GB"]}]}),
]
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["30d"]}]}),
]
Bits = Literal[1, 2, 4, 8, 32]
Encoder = Literal["minilm", "wordllama"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Defaults(_Model):
    """What nodes use when they do not say otherwise."""

    encoder: Encoder = "minilm"
    rank: int = Field(default=32, ge=1, le=4096)
    bits: Bits = 4


class Host(_Model):
    """A process that runs nodes; one Ray actor."""

    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    replicas: int = Field(default=1, ge=1)


class Holds(_Model):
    """What a memory node holds, in the long form."""

    sessions: bool = False
    collections: list[Name] = []


class Decay(_Model):
    """Old items fade: after a half-life they weigh half."""

    half_life: Duration


class Scaling(_Model):
    """How many copies may run."""

    min: int = Field(default=1, ge=0)
    max: int = Field(default=1, ge=1)


def _recall_fields() -> dict[str, Any]:
    """Every constant of `RecallSettings`, optional, with its range."""
    ranges: dict[str, dict[str, float]] = {
        "alpha": {"ge": 0, "le": 1},
        "whiten_eps": {"gt": 0, "le": 1},
        "whiten_power": {"ge": 0, "le": 1},
        "b": {"ge": 0, "le": 1},
        "question_loss": {"ge": 0, "le": 1},
        "question_words": {"ge": 0},
        "day_sigma_d": {"gt": 0},
        "month_sigma_d": {"gt": 0},
        "year_sigma_d": {"gt": 0},
    }
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(RecallSettings):
        if isinstance(each.default, tuple):
            share = Annotated[float, Field(ge=0, le=1)]
            fields[each.name] = (list[share], Field(default=list(each.default), max_length=16))
        elif each.name.endswith("_gap_s"):
            fields[each.name] = (Duration, each.default)
        else:
            kind = type(each.default)
            limits: dict[str, Any] = {} if kind is bool else ranges.get(each.name, {"ge": 0})
            fields[each.name] = (kind, Field(default=each.default, **limits))
    return fields


Recall: type[_Model] = create_model(
    "Recall", __base__=_Model, __doc__="Constants of recall that this node sets for itself.", **_recall_fields()
)


class Node(_Model):
    """A logical place: it holds memories on a host, or it generates."""

    role: Literal["memory", "generator"]
    description: str = ""
    host: str | None = None
    """the host that runs this memory node; with one host it may be left out"""
    holds: Annotated[Holds, BeforeValidator(_holds)] | None = None
    """`sessions`, a list of collections, or both in the long form"""
    capacity: Size | None = None
    """bytes that all memories of the node may take together"""
    budget: Annotated[Size, Field(ge=MIN_BUDGET_BYTES)] | None = None
    """bytes that each memory may take; the oldest items step down, 4 bits to 2 to 1, and then leave"""
    recall: Recall | None = None
    decay: Decay | None = None
    rank: int | None = Field(default=None, ge=1, le=4096)
    bits: Bits | None = None
    encoder: Encoder | None = None
    fidelity: float | None = Field(default=None, gt=0, le=1)
    """the fidelity that coded states must keep; `bits` must suffice for it"""
    model: str | None = None
    """`smollm2-135m` (embedded), or the model's name at `url`"""
    url: str | None = None
    """an OpenAI-compatible server"""
    scaling: Scaling | None = None


class Pauli(_Model):
    """Probabilities of the three errors of a qubit."""

    x: float = Field(default=0.0, ge=0, le=1)
    y: float = Field(default=0.0, ge=0, le=1)
    z: float = Field(default=0.0, ge=0, le=1)


class Channel(_Model):
    """What a qubit meets on a noisy quantum link, for laboratories."""

    depolarizing: float = Field(default=0.0, ge=0, le=1)
    """p of (1-p) rho + p I/2"""
    dephasing: float = Field(default=0.0, ge=0, le=1)
    """l: coherences times 1 - l"""
    pauli: Pauli | None = None
    """probabilities of X, Y and Z"""
    rounds: int | None = Field(default=None, ge=1, le=MAX_ROUNDS)
    """how often the noise acts on an unprotected state that crosses; 1 when not given"""


class Protect(_Model):
    """A stabiliser code that protects a noisy link."""

    code: Literal["rotated_surface", "repetition"]
    distance: int = Field(default=3, ge=3, le=MAX_DISTANCE)
    """odd: an even one corrects no more than the odd one below it"""
    rounds: int | None = Field(default=None, ge=1, le=MAX_ROUNDS)
    """of correction while a state crosses; as many as the distance when not given"""


class Link(_Model):
    """A directed link, or one from each of several sources to each of several targets."""

    source: Names
    target: Names
    latency_ms: float = Field(default=1.0, ge=0)
    bandwidth_mbps: float = Field(default=1000.0, gt=0)
    bits: Bits = 32
    fidelity: float | None = Field(default=None, gt=0, le=1)
    """the fidelity that this link must keep; `bits` must suffice for it"""
    noise: Channel | None = None
    """for laboratories: what happens to the qubits of a state on its way"""
    protect: Protect | None = None
    """the code against `noise`"""


class Weights(_Model):
    """What relevance is worth and what a path costs."""

    relevance: float = Field(default=1.0, ge=0)
    latency: float = Field(default=0.2, ge=0)
    load: float = Field(default=0.2, ge=0)
    infidelity: float = Field(default=1.0, ge=0)


class Routing(_Model):
    """How a prompt finds its nodes."""

    max_visits: int = Field(default=8, ge=1, le=4096)
    deadline_ms: float = Field(default=200.0, gt=0)
    weights: Weights = Weights()


class Service(_Model):
    """A stateless service on Ray Serve; `scaling` bounds its replicas, which follow the load."""

    scaling: Scaling = Scaling()


class Services(_Model):
    """Services that run in replicas of their own; those that are not named here run in a host."""

    optimization: Service | None = None
    """`/v1/quantize` and `/v1/optimize`"""
    correction: Service | None = None
    """`/v1/correct`"""
    encode: Service | None = None
    """the encoder, for prompts and for what is written"""
    generate: Service | None = None
    """the embedded model, for generator nodes without a `url`"""


class State(_Model):
    """A stored state that the server makes when it is not there: exactly one of `named`, `circuit`, `text`, ..."""

    named: str | None = None
    """bell, ghz:3, w:3, plus:2, basis:010, mixed:2"""
    circuit: str | None = None
    """OpenQASM 3"""
    text: str | None = None
    """by the encoder"""
    amplitudes: list[float] | None = None
    counts: dict[str, dict[str, int]] | None = None
    """Pauli setting, outcome, how often"""
    dims: list[Annotated[int, Field(ge=1)]] | None = None
    normalize: bool = False


class Expect(_Model):
    """What a test wants."""

    evidence_contains: Texts = []
    visits: Names | None = None


class Test(_Model):
    """A test that travels with the topology."""

    __test__ = False
    prompt: str = Field(min_length=1)
    write: Texts = []
    collections: list[Name] = []
    expect: Expect


class File(_Model):
    """A topology of QRAF: hosts, nodes, links, and how prompts are routed over them."""

    version: Literal[1]
    name: Name
    description: str = ""
    defaults: Defaults = Defaults()
    hosts: dict[str, Host | None] = {}
    nodes: dict[str, Node] = Field(min_length=1)
    links: list[Link] = []
    ingress: Name
    """the memory node where prompts enter"""
    routing: Routing = Routing()
    services: Services | None = None
    """stateless services in replicas of their own"""
    states: dict[Annotated[Name, Field(max_length=60)], State] = {}
    """stored states, each with the id `st_` and its name"""
    tests: list[Test] = []


def schema() -> dict[str, Any]:
    """The JSON Schema of a topology file, for editors; every number and choice may also be a `${VARIABLE}`."""
    made = File.model_json_schema()
    holds = {
        "anyOf": [
            {"const": "sessions"},
            {"type": "array", "items": {"type": "string"}, "description": "collections"},
            {"$ref": "#/$defs/Holds"},
        ]
    }
    node = made["$defs"]["Node"]["properties"]
    node["holds"] = {**holds, "description": node["holds"].get("description", "")}
    interpolated = _with_references(made)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "schema.json", **interpolated}


_REFERENCE = {"type": "string", "pattern": r"^\$\{.+\}$"}


def _with_references(part: Any) -> Any:
    """Let an interpolation stand wherever a number, a choice or a truth value is wanted."""
    if isinstance(part, list):
        return [_with_references(each) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") in ("integer", "number", "boolean") or "enum" in part:
        outer = {key: part[key] for key in ("title", "description", "default") if key in part}
        inner = {key: value for key, value in part.items() if key not in outer}
        return {**outer, "anyOf": [inner, dict(_REFERENCE)]}
    return {key: _with_references(each) for key, each in part.items()}
