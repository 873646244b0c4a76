"""What the log tells of a request: its id in every line, and nothing that anybody wrote."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator

import pytest

from qraf.logs import JsonLines, Readable, current_request, request
from tests.gateway.wire import Wire

SECRET = "xylophone-of-Wanda"
PROMPT = f"What does the {SECRET} like?"


@contextlib.contextmanager
def captured(formatter: logging.Formatter | None = None) -> Iterator[io.StringIO]:
    """What a server logs inside the block, at any level of ours."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter or JsonLines())
    root, ours = logging.getLogger(), logging.getLogger("qraf")
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)  # as `log_to` has it
    ours.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])


async def use_everything(http, server, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"x-request-id": "trace-17", "authorization": "Bearer qraf_SECRET"}
    item = {"text": f"Wanda's {SECRET} likes oil.", "speaker": SECRET, "metadata": {"a": SECRET}, "item_id": SECRET}
    body = {"collection": "manuals", "items": [item]}
    assert (await http.post("/v1/memory", json=body, headers=headers)).json()["accepted"] == 1
    ask = {"collections": ["manuals"], "text": PROMPT}
    assert (await http.post("/v1/memory/recall", json=ask, headers=headers)).json()["evidence"]
    assert (await http.post("/v1/enhance", json={"prompt": PROMPT}, headers=headers)).status_code == 200
    await http.get(f"/v1/memory/{SECRET}?collection=manuals", headers=headers)
    await http.get("/v1/topology/route", params={"prompt": PROMPT}, headers=headers)
    await http.post("/v1/memory", content=SECRET, headers=headers)
    await http.get(f"/{SECRET}", headers=headers)
    async with Wire(server.url) as wire:
        await wire.ask({"type": "recall", "id": "r", **ask})
        await wire.send({"type": "enhance", "id": "e", "prompt": PROMPT})
        await wire.until("response.done")

    async def broken(*_: object) -> None:
        raise RuntimeError(f"cannot do {SECRET}") from ValueError(SECRET)

    monkeypatch.setattr(server.service, "recall", broken)
    assert (await http.post("/v1/memory/recall", json=ask, headers=headers)).status_code == 500
    async with Wire(server.url) as wire:
        await wire.ask({"type": "recall", "id": "r", **ask})
    monkeypatch.undo()
    await http.delete(f"/v1/memory/{SECRET}?collection=manuals", headers=headers)


@pytest.mark.parametrize("formatter", [JsonLines(), Readable()], ids=["json", "readable"])
async def test_no_line_holds_texts_prompts_or_keys(http, server, monkeypatch, formatter) -> None:
    with captured(formatter) as stream:
        await use_everything(http, server, monkeypatch)
    text = stream.getvalue()
    assert text.count("served") >= 9
    assert "RuntimeError" in text
    for told in (SECRET, "Wanda", "xylophone", "qraf_SECRET", "likes", "oil"):
        assert told not in text


async def test_every_line_of_a_request_has_its_id(http, server, monkeypatch) -> None:
    with captured() as stream:
        await use_everything(http, server, monkeypatch)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    served = [line for line in lines if line["message"] == "served" and line["method"] != "WS"]
    assert len(served) == 9
    assert {line["request"] for line in served} == {"trace-17"}
    failed = [line for line in lines if line["level"] == "error" and "recall failed" in line["message"]]
    assert [(line["request"], line["logger"]) for line in failed] == [("trace-17", "qraf.gateway.door")]
    assert any("test_logs.py" in place for place in failed[0]["exception"])
    assert [line["status"] for line in served] == [200, 200, 200, 200, 200, 415, 404, 500, 200]


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\u00e9", "line"])
async def test_a_request_id_comes_back_where_it_is_a_plain_one(http, given) -> None:
    response = await http.get("/v1/topology", headers={"x-request-id": given.encode()})
    told = response.headers["x-request-id"]
    assert told == given if given == "line" else told.startswith("req_")


def test_nesting_gives_the_outer_id_back() -> None:
    with request("a"):
        with request("b"):
            assert current_request() == "b"
        assert current_request() == "a"
    assert current_request() == ""


def test_a_message_stays_one_line_and_a_foreign_error_its_type() -> None:
    record = logging.LogRecord("qraf.x", logging.WARNING, "f", 1, "a\nb: %s", (OSError("secret"),), None)
    assert json.loads(JsonLines().format(record))["message"] == "a\nb: OSError"
    assert Readable().format(record).endswith("WARNING qraf.x: a\\nb: OSError")


def test_what_ray_puts_on_a_record_is_not_told() -> None:
    record = logging.makeLogRecord({"msg": "served", "_ray_timestamp_ns": 1, "status": 200})
    assert Readable().format(record).endswith(": served status=200")
    assert "_ray" not in JsonLines().format(record)
