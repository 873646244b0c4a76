"""The frames that clients send: valid ones, spoilt ones, and messages that are none; as hypothesis strategies.

What is inside a frame follows from a number (`frames`), so that hundreds of them cost little to draw, or is drawn value
by value (`drawn`), so that each can be made smaller. A frame is plain data; names that are known only when it is sent
are written as `@id` (a new one), `@command` (that of the command before), `@stream 3` (of the fourth response, the
newest first) and `@decoder 0`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import strategies as st

__all__ = ["FRAMINGS", "JSON", "MSGPACK", "Said", "broken", "drawn", "encoded", "frames", "hellos"]

Said = tuple[str, dict[str, Any], int]
"""How (`valid`, `spoilt` or, with its bytes changed, `broken`), what, and for what is broken a seed."""
JSON, MSGPACK = "qraf.v1", "qraf.v1+msgpack"
FRAMINGS = (JSON, MSGPACK)

_SESSIONS = ("ann", "bob", "ses_cat", "nobody")
_WORDS = ("nuts", "Ann", "tea", "boat", "2026-05-07", "Alpe d'Huez", "Zoë", "\x00", "a" * 300)
_FILTERS = (None, {"field": "speaker", "eq": "Ann"}, {"AND": [{"field": "at", "gt": 0}, {"field": "pin", "eq": True}]})
_SURFACE = {"code": "repetition", "distance": 3, "rounds": 2}
ODD: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": ""}, {"a": {"b": [1, {"c": None}]}}),
    *(0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**30, 10**400),
    *(0.5, -0.0, 1e308, 5e-324, math.nan, math.inf),
    *("", " ", "\x00", "\ud800", "x" * 200, "2026-05-07T14:00:00Z", "9999-12-31T23:59:60Z", "💥"),
    *("@stream 0", "network", "session:ann", "default/x", "acme/ann", "../x"),
    *(b"", b"\xff\xfe", b"x" * 40, msgspec.msgpack.Ext(5, b"ext"), msgspec.msgpack.Ext(-1, b"\0" * 12)),
)


# not `st.builds`, which would show how they were made in place of what they are
@st.composite
def frames(draw: st.DrawFn) -> Said:
    """A frame whose inside follows from a number."""
    how, kind = draw(_WHAT)
    return _made(how, kind, random.Random(draw(_NUMBER)))


@st.composite
def drawn(draw: st.DrawFn) -> Said:
    """A frame each value of which is drawn."""
    how, kind = draw(_WHAT)
    return _made(how, kind, draw(st.randoms(use_true_random=False)))


@st.composite
def hellos(draw: st.DrawFn) -> Said:
    """A first frame: mostly a good one, with streams to go on with or without."""
    how = draw(st.sampled_from(("valid",) * 12 + ("spoilt", "early")))
    return _hello(how, random.Random(draw(_NUMBER)))


def encoded(frame: dict[str, Any], framing: str) -> str | bytes:
    """The frame as a message; what its framing cannot say is left out or said in its nearest way."""
    if framing == JSON:
        return json.dumps(_sayable(frame, is_json=True))
    return msgspec.msgpack.encode(_sayable(frame, is_json=False))


def broken(message: str | bytes, framing: str, seed: int) -> str | bytes:
    """The message cut, lengthened, with bytes changed, of the other kind, too long, or too deep."""
    rng = random.Random(seed)
    data = message.encode() if isinstance(message, str) else message
    how = rng.randrange(9)
    if how == 0:
        data = data[: rng.randrange(len(data))]
    elif how == 1:
        data += rng.randbytes(rng.choice((1, 3)))
    elif how in (2, 3):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        data = bytes(changed)
    elif how == 4:
        data = rng.randbytes(rng.randrange(60))
    elif how == 5:
        return data if framing == JSON else data.decode("latin-1")
    elif how == 6:
        data = b"x" * 70_000
    elif how == 7:
        depth = rng.choice((20, 200, 5000))
        data = b"[" * depth + b"]" * depth if framing == JSON else b"\x91" * depth + b"\x01"
    else:
        data = rng.choice(
            (b"", b"null", b"[]", b'"hello"', b"\xc0", b"\x90", b"\x80", b"\xdf\xff\xff\xff\xff", b"{}{}")
        )
    return data.decode("utf-8", "replace") if framing == JSON else data


# ----------------------------------------------------------------------------------------------------------- commands
def _made(how: str, kind: str, rng: random.Random) -> Said:
    frame = {"type": kind, "id": "@id", **_MAKERS[kind](rng)}
    if how == "spoilt":
        return how, _spoilt(frame, rng), 0
    if how == "again":
        return "valid", frame | {"id": "@command"}, 0
    return how, frame, rng.getrandbits(32) if how == "broken" else 0


def _hello(how: str, rng: random.Random) -> Said:
    """`early` is a command instead of it."""
    hello: dict[str, Any] = {"type": "hello", "coalesce_ms": rng.choice((0, 0, 1))}
    if how == "early":
        return "valid", {"type": "ping", "id": "@id"}, 0
    if how == "spoilt":
        return how, _spoilt(hello | {"resume": [_NO_STREAM]}, rng), 0
    if rng.random() < 0.6:
        names = rng.sample(range(12), rng.randrange(1, 5))
        hello["resume"] = [{"stream": f"@stream {n}", "after_seq": rng.choice(("@seen", "@seen", 0))} for n in names]
        if rng.random() < 0.3:
            hello["resume"].append(_NO_STREAM)
    return how, hello, 0


def _where(rng: random.Random) -> dict[str, Any]:
    return {"collection": "manuals"} if rng.random() < 0.2 else {"session": rng.choice(_SESSIONS)}


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randrange(1, 5)))


def _session_open(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"session": rng.choice(_SESSIONS)}
    if rng.random() < 0.4:
        made |= {"create": False}
    if rng.random() < 0.2:
        made |= {"metadata": {"team": "a", "n": [1, 2]}, "ttl_s": rng.choice((None, 3600, 1e-9))}
    return made


def _write(rng: random.Random) -> dict[str, Any]:
    items = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        item: dict[str, Any] = {
            "item_id": f"i{rng.randrange(30)}",
            "text": _text(rng),
            "speaker": rng.choice((None, "Ann")),
        }
        if rng.random() < 0.2:
            item |= {"role": rng.choice(("assistant", "document", "recalled")), "metadata": {"k": rng.randrange(3)}}
        items.append(item)
    return {**_where(rng), "items": items}


def _recall(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"session": rng.choice(_SESSIONS), "text": _text(rng), "k": 3}
    return made | {"filter": rng.choice(_FILTERS), "explain": rng.random() < 0.2}


def _enhance(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"prompt": _text(rng), "collections": ["manuals"]}
    if rng.random() < 0.4:
        made |= {"collections": [], "session": rng.choice(_SESSIONS), "remember": rng.random() < 0.2}
    if rng.random() < 0.3:
        made["generate"] = rng.choice((False, {"max_tokens": 5}, {"max_tokens": 40}))
    if rng.random() < 0.3:
        made |= {"key": f"key{rng.randrange(4)}", "prompt": "the same", "generate": {"max_tokens": 20}}
    return made


def _cancel(rng: random.Random) -> dict[str, Any]:
    target = rng.choice(("@stream 0", "@stream 1", "@stream 5", "key1", "nothing", "@command"))
    return {"target": target}


def _watch(rng: random.Random) -> dict[str, Any]:
    topic = rng.choice(("network", "usage", "session:ann", "session:nobody"))
    return {"topic": topic, "every_ms": rng.choice((100, 1000, 3_600_000))}


def _unwatch(rng: random.Random) -> dict[str, Any]:
    return {"topic": rng.choice(("network", "usage", "session:ann", "else"))}


def _state(rng: random.Random) -> dict[str, Any]:
    ids = [f"st_{rng.randrange(3)}"]
    order = rng.choice(
        (
            {"op": "prepare", "named": rng.choice(("bell", "ghz:3", "no such")), "id": ids[0]},
            {"op": "prepare", "amplitudes": rng.choice(([1, 0], [0.6, 0.8], [3, 4], []))},
            {"op": "read", "ids": ids},
            {"op": "measure", "ids": ids, "basis": "computational", "shots": 10, "seed": 1},
            {"op": "evolve", "ids": ids, "steps": [{"channel": "dephasing", "p": 0.1, "subsystems": [0]}]},
            {"op": "compare", "pairs": [[ids[0], {"named": "bell"}]], "measures": ["fidelity"]},
            {"op": "delete", "ids": ids},
        )
    )
    return {"order": order}


def _decode_open(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"experiment": _SURFACE, "shots": rng.choice((1, 3))}
    return (
        made
        if rng.random() < 0.8
        else made | {"window": rng.choice((0, 2, 9)), "dem": rng.choice((None, "error(0.1)"))}
    )


def _decode_rounds(rng: random.Random) -> dict[str, Any]:
    made = {"stream": f"@decoder {rng.randrange(3)}", "detectors": b"\0"}
    return made | {"rounds": rng.choice((1, 1, 1, 3)), "detectors": rng.choice((b"\0", b"\1", b"\0\0\0", b"\xff" * 9))}


def _decode_close(rng: random.Random) -> dict[str, Any]:
    return {"stream": f"@decoder {rng.randrange(3)}"}


_MAKERS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "ping": lambda rng: {},
    "session.open": _session_open,
    "write": _write,
    "recall": _recall,
    "enhance": _enhance,
    "cancel": _cancel,
    "watch": _watch,
    "unwatch": _unwatch,
    "auth.refresh": lambda rng: {"token": "anything"},
    "state": _state,
    "decode.open": _decode_open,
    "decode.rounds": _decode_rounds,
    "decode.close": _decode_close,
}
_TIMES = dict(zip(_MAKERS, (32, 4, 5, 2, 4, 16, 11, 11, 5, 3, 1, 5, 2), strict=True))
_HOW = {"valid": 60, "again": 7, "spoilt": 31, "broken": 2}
_NUMBER = st.integers(0, 2**32 - 1)
# one draw for both; the simplest first, because what fails is made smaller towards it
_WHAT = st.sampled_from(
    [(how, kind) for how, a in _HOW.items() for kind, b in _TIMES.items() for _ in range(round(a * b / 10))]
)
_NO_STREAM = {"stream": "str_none", "epoch": "e", "after_seq": 3}


# ------------------------------------------------------------------------------------------------------------ spoiling
def _spoilt(frame: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The frame with fields changed, taken away and added, at any depth; still a map."""
    made: dict[str, Any] = _copied(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _spoil(rng, made)
    return made


def _spoil(rng: random.Random, made: Any) -> None:
    """Change one place, the deeper ones too."""
    places = [key for key, value in _pairs(made) if isinstance(value, dict | list) and value]
    if places and rng.random() < 0.5:
        _spoil(rng, made[rng.choice(places)])
        return
    keys = [key for key, _ in _pairs(made)]
    how = rng.random()
    if isinstance(made, dict) and (how < 0.2 or not keys):
        made[rng.choice(("now", "id ", "", "x" * 50, "type2", "seq", "@stream 0"))] = _copied(rng.choice(ODD))
    elif how < 0.35 and keys:
        del made[rng.choice(keys)]
    elif keys:
        made[rng.choice(keys)] = _deep(rng.choice((3, 40, 300))) if how > 0.97 else _copied(rng.choice(ODD))


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else list(enumerate(value))


def _deep(depth: int) -> Any:
    made: Any = 1
    for level in range(depth):
        made = [made] if level % 2 else {"a": made}
    return made


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list | tuple) else value


def _sayable(value: Any, is_json: bool) -> Any:
    if isinstance(value, dict):
        return {_sayable(key, is_json): _sayable(inner, is_json) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(inner, is_json) for inner in value]
    if is_json:
        if isinstance(value, bytes):
            return "AAAA" if value == b"\0\0\0" else "AA==" if value == b"\0" else "/w=="
        return "ext" if isinstance(value, msgspec.msgpack.Ext) else value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return float(value) if abs(value) < 10**300 else math.inf
    return value
