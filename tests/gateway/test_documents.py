"""AsyncAPI and OpenAPI come from the records, and docs/protocol.md keeps up with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from qraf import frames
from qraf.gateway.asyncapi import asyncapi
from qraf.gateway.problems import CODES
from qraf.gateway.protocol import CLOSE_CODES, JSON, Connection, Refusal
from qraf.settings import LimitSettings, StateSettings

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
STATES = PROTOCOL.with_name("state-api.md")  # orders on states have a page of their own
KINDS = get_args(frames.ClientFrame) + get_args(frames.ServerFrame)


def resolve(document: dict[str, Any], ref: str) -> Any:
    found: Any = document
    for step in ref.removeprefix("#/").split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found


def refs(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for inner in value.values() for ref in refs(inner)]
    return [ref for inner in value for ref in refs(inner)] if isinstance(value, list) else []


def test_every_frame_is_in_the_asyncapi_document() -> None:
    document = asyncapi("0", "127.0.0.1:1")
    tags = {kind.__struct_config__.tag for kind in KINDS}
    assert set(document["channels"]["stream"]["messages"]) == tags
    assert {message["name"] for message in document["components"]["messages"].values()} == tags
    listed = [message["$ref"] for operation in document["operations"].values() for message in operation["messages"]]
    assert len(listed) == len(KINDS)
    told = document["info"]["description"]
    assert [code for code in CLOSE_CODES if f"- {code}: " not in told] == []
    assert [code for code in CODES if f"- `{code}`: " not in told] == []
    write = document["components"]["schemas"]["Write"]
    assert write["properties"]["type"] == {"enum": ["write"]}
    assert write["required"] == ["type", "id", "items"]


async def test_both_documents_are_served_and_every_reference_leads_somewhere(http) -> None:
    for name in ("asyncapi", "openapi"):
        document = (await http.get(f"/v1/{name}.json")).json()
        found = refs(document)
        assert len(found) > 20
        for ref in found:
            assert resolve(document, ref) is not None


async def test_openapi_lists_every_route_and_its_examples_are_accepted(http) -> None:
    document = (await http.get("/v1/openapi.json")).json()
    assert {"/v1/enhance", "/v1/memory", "/v1/memory/{item_id}", "/v1/sessions", "/metrics"} <= set(document["paths"])
    for session in ("ses_ann", "alice"):
        await http.post("/v1/sessions", json={"session": session})
    state = (await http.post("/v1/state", json={"named": "bell"})).json()["id"]
    examples = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"]
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in content:
                examples += 1
                example = re.sub("st_[0-9A-Z]{26}", state, json.dumps(content["example"]))
                where = path.replace("{state}", state).replace("{session}", "ses_ann")
                response = await http.request(method, where, json=json.loads(example))
                assert response.is_success, (path, response.text)
    assert examples >= 5


# ------------------------------------------------------------------------------------------------ docs/protocol.md
def test_the_page_names_every_frame_field_limit_and_code() -> None:
    text = PROTOCOL.read_text() + STATES.read_text()
    missing = [kind.__struct_config__.tag for kind in KINDS if f"`{kind.__struct_config__.tag}`" not in text]
    for schema in msgspec.json.schema_components(KINDS)[1].values():  # parts of frames too
        missing += [name for name in schema.get("properties", {}) if f"`{name}`" not in text]
    missing += [name for name in frames.Limits.__struct_fields__ if f"`{name}`" not in text]
    missing += [str(code) for code in CLOSE_CODES if f"| {code} |" not in text]
    client_only = {"connection_lost", "cannot_connect", "cannot_listen", "timed_out", "invalid_topology"}
    missing += [code for code in CODES.keys() - client_only if f"`{code}`" not in text]
    assert missing == []


def examples() -> list[dict[str, Any]]:
    found = re.findall(r"```json\n(.*?)```", PROTOCOL.read_text() + STATES.read_text(), re.DOTALL)
    return [json.loads(line) for block in found for line in block.splitlines() if line.strip()]


def test_the_examples_on_the_page_are_frames() -> None:
    found = examples()
    assert len(found) > 20
    clients = {kind.__struct_config__.tag for kind in get_args(frames.ClientFrame)}
    for example in found:
        if example["type"] in clients:
            connection = Connection(JSON, LimitSettings())
            if example["type"] != "hello":
                connection.feed('{"type":"hello"}')
            event = connection.feed(json.dumps(example))
            assert not isinstance(event, Refusal), (example, event)
        else:
            frame = msgspec.convert(example, frames.ServerFrame)
            assert example.keys() <= msgspec.to_builtins(frame).keys(), example


@pytest.mark.parametrize("field", ["max_frame_bytes", "max_items_per_write", "max_responses", "max_watches"])
def test_the_limits_on_the_page_are_the_defaults(field) -> None:
    value = LimitSettings.model_fields[field].default
    row = next(line for line in PROTOCOL.read_text().splitlines() if line.startswith(f"| `{field}`"))
    assert f"{value:,}" in row


def test_the_limits_of_states_on_their_page_are_the_defaults() -> None:
    rows = STATES.read_text().splitlines()
    for name, field in StateSettings.model_fields.items():
        [row] = [line for line in rows if line.startswith(f"| `{name}`")]
        assert f"| {field.default:,} |" in row, name


async def test_the_client_on_the_page_holds_a_conversation(server, monkeypatch) -> None:
    monkeypatch.setenv("QRAF_API_KEY", "nobody asks here")
    code = re.search(r"```python\n(.*?)```", PROTOCOL.read_text(), re.DOTALL)
    assert code is not None
    page: dict[str, Any] = {"__name__": "page"}
    exec(code[1], page)  # the page's own example
    assert await page["talk"](server.url.replace("http", "ws") + "/v1/ws") == "Nuts are bad for Ann."
