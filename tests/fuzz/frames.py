"""Sequences of frames from a seed: plain data, so that any of them can be run again, and cut down.

A step is a tuple. `("open", slot, framing, hello)`, `("send", slot, frame)`, `("spoil", slot, frame, seed)` (the frame,
with values changed), `("break", slot, frame, seed)` (its bytes changed), `("stall", slot)` (it reads no more),
`("drop", slot)`, `("rest", n)` and `("settle",)`. Names that are known only when it runs are written as `@stream 3` (of
the fourth response, the newest first) and `@decoder 0`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["FRAMINGS", "JSON", "MSGPACK", "Step", "broken", "encoded", "episode", "spoilt"]

Step = tuple[Any, ...]
JSON, MSGPACK = "qraf.v1", "qraf.v1+msgpack"
FRAMINGS = (JSON, MSGPACK)
SLOTS = 4

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


def episode(seed: int, num_frames: int) -> list[Step]:
    """The steps of one episode: some connections at once, about so many frames."""
    rng = random.Random(seed)
    steps: list[Step] = [_open(rng, slot) for slot in range(SLOTS)]
    while len(steps) < num_frames:
        slot, what = rng.randrange(SLOTS), rng.random()
        if what < 0.55:
            steps.append(("send", slot, _frame(rng)))
        elif what < 0.83:
            steps.append(("spoil", slot, _frame(rng), rng.getrandbits(32)))
        elif what < 0.90 and (sent := [step for step in steps[-20:] if step[0] == "send" and step[1] == slot]):
            steps.append(("send", slot, _frame(rng) | {"id": rng.choice(sent)[2].get("id", "")}))  # an id twice
        elif what < 0.93:
            steps.append(("rest", rng.choice((1, 1, 1, 3, 10))))
        elif what < 0.945:
            steps += [("break", slot, _frame(rng), rng.getrandbits(32)), ("settle",), _open(rng, slot)]
        elif what < 0.975:
            steps += [("drop", slot), _open(rng, slot)]
        elif what < 0.977:
            steps += [("stall", slot), *(("send", slot, _ping(rng)) for _ in range(80)), ("rest", 3), ("drop", slot)]
            steps.append(_open(rng, slot))
        elif what < 0.99:
            steps.append(("settle",))
        else:
            steps.append(("send", slot, _frame(rng)))
    return steps


def spoilt(frame: dict[str, Any], seed: int) -> dict[str, Any]:
    """The frame with fields changed, taken away and added, at any depth; still a map."""
    rng = random.Random(seed)
    made: dict[str, Any] = _copied(frame) | {"id": f"m{seed}"}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _spoil(rng, made)
    return made


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
def _open(rng: random.Random, slot: int) -> Step:
    hello: dict[str, Any] = {"type": "hello", "coalesce_ms": rng.choice((0, 0, 1))}
    if rng.random() < 0.6:
        names = rng.sample(range(12), rng.randrange(1, 5))
        hello["resume"] = [{"stream": f"@stream {n}", "after_seq": rng.choice(("@seen", "@seen", 0))} for n in names]
        if rng.random() < 0.3:
            hello["resume"].append({"stream": "str_none", "epoch": "e", "after_seq": 3})
    return ("open", slot, rng.choice(FRAMINGS), hello)


def _ping(rng: random.Random) -> dict[str, Any]:
    return {"type": "ping", "id": _id(rng)}


def _frame(rng: random.Random) -> dict[str, Any]:
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng)


def _id(rng: random.Random) -> str:
    return f"c{rng.getrandbits(40)}"


def _where(rng: random.Random) -> dict[str, Any]:
    return {"collection": "manuals"} if rng.random() < 0.2 else {"session": rng.choice(_SESSIONS)}


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randrange(1, 5)))


def _session_open(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "session.open", "id": _id(rng), "session": rng.choice(_SESSIONS)}
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
    return {"type": "write", "id": _id(rng), **_where(rng), "items": items}


def _recall(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "recall",
        "id": _id(rng),
        "session": rng.choice(_SESSIONS),
        "text": _text(rng),
        "k": 3,
    }
    return made | {"filter": rng.choice(_FILTERS), "explain": rng.random() < 0.2}


def _enhance(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "enhance", "id": _id(rng), "prompt": _text(rng), "collections": []}
    if rng.random() < 0.4:
        made |= {"session": rng.choice(_SESSIONS), "remember": rng.random() < 0.2}
    if rng.random() < 0.3:
        made["generate"] = rng.choice((False, {"max_tokens": 5}, {"max_tokens": 40}))
    if rng.random() < 0.3:
        made |= {"key": f"key{rng.randrange(4)}", "prompt": "the same", "generate": {"max_tokens": 20}}
    return made


def _cancel(rng: random.Random) -> dict[str, Any]:
    target = rng.choice(("@stream 0", "@stream 1", "@stream 5", "key1", "nothing", "@command"))
    return {"type": "cancel", "id": _id(rng), "target": target}


def _watch(rng: random.Random) -> dict[str, Any]:
    topic = rng.choice(("network", "usage", "session:ann", "session:nobody"))
    return {"type": "watch", "id": _id(rng), "topic": topic, "every_ms": rng.choice((100, 1000, 3_600_000))}


def _unwatch(rng: random.Random) -> dict[str, Any]:
    return {"type": "unwatch", "id": _id(rng), "topic": rng.choice(("network", "usage", "session:ann", "else"))}


def _refresh(rng: random.Random) -> dict[str, Any]:
    return {"type": "auth.refresh", "id": _id(rng), "token": "anything"}


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
    return {"type": "state", "id": _id(rng), "order": order}


def _decode_open(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "decode.open", "id": _id(rng), "experiment": _SURFACE, "shots": rng.choice((1, 3))}
    return (
        made
        if rng.random() < 0.8
        else made | {"window": rng.choice((0, 2, 9)), "dem": rng.choice((None, "error(0.1)"))}
    )


def _decode_rounds(rng: random.Random) -> dict[str, Any]:
    made = {"type": "decode.rounds", "id": _id(rng), "stream": f"@decoder {rng.randrange(3)}", "detectors": b"\0"}
    return made | {"rounds": rng.choice((1, 1, 1, 3)), "detectors": rng.choice((b"\0", b"\1", b"\0\0\0", b"\xff" * 9))}


def _decode_close(rng: random.Random) -> dict[str, Any]:
    return {"type": "decode.close", "id": _id(rng), "stream": f"@decoder {rng.randrange(3)}"}


_MAKERS: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    _ping, _session_open, _write, _recall, _enhance, _cancel, _watch, _unwatch, _refresh, _state, _decode_open,
    _decode_rounds, _decode_close,
)  # fmt: skip
_WEIGHTS = (32, 4, 5, 2, 4, 16, 11, 11, 5, 3, 1, 5, 2)


# ------------------------------------------------------------------------------------------------------------ spoiling
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
