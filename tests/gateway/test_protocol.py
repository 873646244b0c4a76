"""The protocol without a socket: every message gives exactly one event, and bad input gives the right one."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.frames import Ack, Hello, Ping, Pong, Recall, Watch
from qraf.gateway.protocol import JSON, MSGPACK, Close, Connection, Refusal, choose_subprotocol
from qraf.settings import LimitSettings
from tests.examples import examples

LIMITS = LimitSettings(max_frame_bytes=4096, max_items_per_write=3)


def greeted(subprotocol: str = JSON) -> Connection:
    connection = Connection(subprotocol, LIMITS)
    hello = {"type": "hello"}
    connection.feed(json.dumps(hello) if subprotocol == JSON else msgspec.msgpack.encode(hello))
    return connection


def refused(message: Any, connection: Connection | None = None) -> Refusal:
    event = (connection or greeted()).feed(json.dumps(message) if isinstance(message, dict) else message)
    assert isinstance(event, Refusal)
    return event


def test_the_first_known_subprotocol_is_chosen() -> None:
    assert choose_subprotocol(["mqtt", JSON, MSGPACK]) == JSON
    assert choose_subprotocol(["mqtt"]) is None


def test_hello_comes_first_and_once() -> None:
    connection = Connection(JSON, LIMITS)
    assert isinstance(connection.feed('{"type":"hello","coalesce_ms":0}'), Hello)
    again = refused({"type": "hello"}, connection)
    assert (again.frame.error.code, again.close) == ("protocol", None)
    early = refused({"type": "ping"}, Connection(JSON, LIMITS))
    assert early.close == Close.MALFORMED


def test_a_wrong_hello_may_be_said_again() -> None:
    connection = Connection(JSON, LIMITS)
    assert refused({"type": "hello", "resumes": []}, connection).frame.error.pointer == "/resumes"
    one = {"stream": "s", "epoch": "e"}
    assert refused({"type": "hello", "resume": [one, one]}, connection).frame.error.pointer == "/resume/1/stream"
    early = {"type": "hello", "resume": [one | {"after_seq": -1}]}
    assert refused(early, connection).frame.error.pointer == "/resume/0/after_seq"
    many = [one | {"stream": str(number)} for number in range(65)]
    assert refused({"type": "hello", "resume": many}, connection).frame.error.pointer == "/resume"
    assert isinstance(connection.feed('{"type":"hello"}'), Hello)


@pytest.mark.parametrize(
    ("message", "pointer", "says"),
    [
        ({"type": "write", "id": "1", "items": [{"text": 3}]}, "/items/0/text", "expected `str | null`, got `int`"),
        ({"type": "write", "id": "1", "items": [{"txt": ""}]}, "/items/0/txt", "unknown field `txt`"),
        ({"type": "write", "id": "1"}, "/items", "field `items` is required"),
        ({"type": "write", "id": "1", "items": [{"text": ""}]}, "/session", "exactly one of"),
        ({"type": "write", "id": "1", "session": "s", "items": []}, "/items", "at least one"),
        ({"type": "write", "id": "1", "session": "s", "items": [{"role": "boss"}]}, "/items/0/role", "recalled"),
        ({"type": "enhance", "id": "1", "prompt": "x", "generate": {"modl": 1}}, "/generate/modl", "unknown field"),
        ({"type": "enhance", "id": "1", "prompt": "x", "generate": True}, "/generate", "True"),
        (
            {"type": "recall", "id": "1", "session": "s", "text": "x", "filter": {"OR": [{"x": 1}]}},
            "/filter/OR/0/x",
            "un",
        ),
        ({"type": "recall", "id": "1", "text": "x"}, "/session", "`collections`"),
        ({"type": "session.open", "id": "1", "metadata": {"a/b~": 2**64}}, "/metadata/a~1b~0", "64 bits"),
        ({"type": "session.open", "id": "1", "ttl_s": -1}, "/ttl_s", "but is -1"),
        ({"type": "watch", "id": "1", "topic": "network", "every_ms": 10**40}, "/every_ms", "64 bits"),
        ({"type": "watch", "id": "1", "topic": "weather"}, "/topic", "session:ID"),
        ({"type": "hallo", "id": "1"}, "/type", "did you mean 'hello'?"),
        ({"id": "1"}, "/type", "required"),
    ],
)
def test_a_fault_is_named_and_the_connection_goes_on(message: dict[str, Any], pointer: str, says: str) -> None:
    connection = greeted()
    refusal = refused(message, connection)
    assert refusal.close is None
    assert (refusal.frame.id, refusal.frame.error.pointer) == ("1", pointer)
    assert says in refusal.frame.error.detail
    assert isinstance(connection.feed('{"type":"ping","id":"1"}'), Ping)


@pytest.mark.parametrize(
    "message",
    ["", "[1]", "null", '{"type":"ping"', '{"type":"ping"} x', "\ud800", "[" * 4000, '{"a":' * 600, b"\x81"],
)
def test_what_is_no_frame_closes(message: str | bytes) -> None:
    refusal = refused(message)
    assert (refusal.close, refusal.frame.error.code) == (Close.MALFORMED, "protocol")


@pytest.mark.parametrize(
    "message", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 4000, b"\x82\xa4type\xa4ping\xa2id\xa1\xff"]
)
def test_what_is_no_msgpack_closes(message: bytes) -> None:
    assert refused(message, greeted(MSGPACK)).close == Close.MALFORMED


def test_a_message_of_the_wrong_kind_closes() -> None:
    assert refused(b'{"type":"ping"}').close == Close.MALFORMED
    assert refused('{"type":"ping"}', greeted(MSGPACK)).close == Close.MALFORMED


def test_a_frame_that_is_too_large_closes() -> None:
    refusal = refused({"type": "ping", "id": "x" * 5000})
    assert (refusal.close, refusal.frame.error.code) == (Close.TOO_LARGE, "too_large")
    umlauts = refused('{"type":"ping","id":"' + "ü" * 2100 + '"}')  # bytes count, not characters
    assert umlauts.close == Close.TOO_LARGE


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"\\ud800"'])
def test_what_some_json_writers_emit_is_refused_by_name(value: str) -> None:
    refusal = refused(f'{{"type":"session.open","id":"7","metadata":{{"x":{value}}}}}')
    assert (refusal.close, refusal.frame.id) == (None, "7")


@pytest.mark.parametrize("value", [float("nan"), b"bytes", [[float("inf")]]])
def test_msgpack_values_that_json_lacks_are_refused(value: Any) -> None:
    frame = {"type": "session.open", "id": "7", "metadata": {"x": value}}
    refusal = greeted(MSGPACK).feed(msgspec.msgpack.encode(frame))
    assert isinstance(refusal, Refusal)
    assert refusal.frame.error.pointer.startswith("/metadata/x")


def test_a_deep_value_is_refused_and_a_deeper_one_closes() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    assert refused({"type": "session.open", "id": "1", "metadata": {"x": deep}}).close is None


def test_of_a_key_that_comes_twice_the_last_counts() -> None:
    frame = greeted().feed('{"type":"watch","id":"1","topic":"usage","topic":"network"}')
    assert isinstance(frame, Watch)
    assert frame.topic == "network"


def test_nul_and_other_scripts_are_text() -> None:
    frame = greeted().feed('{"type":"recall","id":"1","session":"s","text":"\\u0000 ナッツ"}')
    assert isinstance(frame, Recall)
    assert frame.text == "\0 ナッツ"


def test_an_id_in_use_is_refused_until_it_is_settled() -> None:
    connection = greeted()
    connection.feed('{"type":"recall","id":"a","session":"s","text":"x"}')
    assert refused({"type": "ping", "id": "a"}, connection).frame.error.code == "duplicate_id"
    connection.settle("a")
    assert isinstance(connection.feed('{"type":"ping","id":"a"}'), Ping)


def test_an_id_that_cannot_be_echoed_is_left_out() -> None:
    refusal = refused({"type": "cancel", "id": "x" * 200, "target": "y"})
    assert (refusal.frame.id, refusal.frame.error.pointer) == ("", "/id")
    half = refused('{"type":"cancel","id":"\\ud800","target":"y"}')
    assert half.frame.id == ""
    assert isinstance(greeted().encode(half.frame), str)


def test_frames_are_encoded_in_the_framing_of_the_connection() -> None:
    assert greeted().encode(Pong(id="1")) == '{"type":"pong","id":"1"}'
    packed = greeted(MSGPACK).encode(Ack(id="1", status="accepted"))
    assert msgspec.msgpack.decode(packed) == {"type": "ack", "id": "1", "status": "accepted"}  # type: ignore[arg-type]


IDS = st.sampled_from(["", "1", "2", "3"])
SANE = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["ping", "hello"]), "id": IDS}),
    st.fixed_dictionaries({"type": st.just("cancel"), "id": IDS, "target": st.text(max_size=5)}),
    st.fixed_dictionaries({"type": st.just("watch"), "id": IDS, "topic": st.sampled_from(["network", "x"])}),
)
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ODD = st.dictionaries(st.sampled_from(["type", "id", "topic", "text", "zz"]), JSONISH, max_size=4)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(SANE | ODD, st.booleans()), max_size=8))
def test_both_framings_give_the_same_events_one_for_each_message(script: list[tuple[dict[str, Any], bool]]) -> None:
    text, packed = greeted(JSON), greeted(MSGPACK)
    for message, is_settled in script:
        left = text.feed(json.dumps(message))
        right = packed.feed(msgspec.msgpack.encode(message))
        assert type(left) is type(right)
        if isinstance(left, Refusal) and isinstance(right, Refusal):
            assert (left.close, left.frame.id) == (right.close, right.frame.id)
            assert left.frame.error.pointer == right.frame.error.pointer
            msgspec.json.encode(left.frame)
            assert left.frame.id == message.get("id") or left.frame.id == ""
        else:
            assert left == right
            if is_settled:
                text.settle(left.id)
                packed.settle(left.id)
        assert text.in_use == packed.in_use


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_make_it_raise(data: bytes, is_text: bool) -> None:
    connection = greeted(JSON if is_text else MSGPACK)
    event = connection.feed(data.decode("utf-8", "surrogateescape") if is_text else data)
    assert isinstance(event, Refusal | Ping | Hello)
