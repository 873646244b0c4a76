"""REST over the real service: every route, and every way to ask wrongly."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import pytest_asyncio

from qraf.errors import LimitExceeded
from qraf.gateway.problems import PROBLEM_JSON
from qraf.network.links import LinkChannel
from tests.gateway.conftest import serving
from tests.gateway.test_logs import captured
from tests.openai_server import Script

pytestmark = pytest.mark.slow  # a whole service, or processes

NUTS = {"text": "Ann is allergic to nuts.", "speaker": "Ann", "item_id": "a/1", "at": "2023-05-07T14:00:00Z"}
TEA = {"text": "Bo drinks tea.", "speaker": "Bo", "item_id": "b2", "metadata": {"kind": "drink"}}


@pytest_asyncio.fixture(loop_scope="module")
async def session(http):
    created = await http.post("/v1/sessions", json={"session": "s", "metadata": {"team": "x"}})
    assert created.status_code == 201
    written = await http.post("/v1/memory", json={"session": "s", "items": [NUTS, TEA]})
    assert written.json()["accepted"] == 2
    yield "s"
    await http.delete("/v1/sessions/s")


def problem(response: httpx.Response, status: int, code: str, pointer: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_JSON
    document: dict[str, Any] = response.json()
    assert (document["status"], document["code"]) == (status, code)
    if pointer is not None:
        assert [fault["pointer"] for fault in document["errors"]] == [pointer]
    assert document["instance"].endswith(response.headers["x-request-id"])
    return document


# ------------------------------------------------------------------------------------------------ sessions
async def test_a_session_changes_its_bits_and_budget_while_it_lives(http, session) -> None:
    plain = (await http.get("/v1/sessions/s")).json()
    assert (plain["bits"], plain["budget_bytes"], plain["state"]["bits"]) == (None, None, 4)
    assert plain["state"]["tiers"] == {"4": 2, "2": 0, "1": 0, "evicted": 0}
    changed = await http.patch("/v1/sessions/s", json={"bits": 2, "budget_bytes": 65_536})
    assert changed.status_code == 200, changed.text
    body = changed.json()
    assert (body["bits"], body["budget_bytes"]) == (2, 65_536)
    assert body["state"]["tiers"] == {"2": 2, "1": 0, "evicted": 0}
    assert (body["state"]["budget_bytes"], body["state"]["fidelity"] < 0.95) == (65_536, True)
    assert changed.headers["etag"] == f'"{body["state"]["version"]}"'
    assert body["state"]["version"] > plain["state"]["version"]
    found = await http.post("/v1/memory/recall", json={"session": "s", "text": "What is Ann allergic to?", "k": 1})
    assert found.json()["evidence"][0]["item_id"] == "a/1"
    assert found.json()["state"]["bits"] == 2
    kept = await http.patch("/v1/sessions/s", json={"bits": None})
    assert (kept.json()["bits"], kept.json()["budget_bytes"], kept.json()["state"]["bits"]) == (None, 65_536, 4)
    assert kept.json()["state"]["fidelity"] == plain["state"]["fidelity"]  # nothing was lost
    same = await http.patch("/v1/sessions/s", json={})
    assert same.headers["etag"] == kept.headers["etag"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"bits": 3}, "/bits"),
        ({"bits": "4"}, "/bits"),
        ({"budget_bytes": 100}, "/budget_bytes"),
        ({"budget_bytes": 1 << 50}, "/budget_bytes"),
        ({"bytes": 1}, "/bytes"),
    ],
)
async def test_a_change_that_cannot_be_changes_nothing(http, session, body, pointer) -> None:
    problem(await http.patch("/v1/sessions/s", json=body), 422, "invalid_request", pointer)
    assert (await http.get("/v1/sessions/s")).json()["bits"] is None
    problem(await http.patch("/v1/sessions/nobody", json={"bits": 2}), 404, "session_not_found")


async def test_a_session_is_opened_with_a_budget_and_keeps_to_it(http) -> None:
    opened = await http.post("/v1/sessions", json={"session": "tight", "budget_bytes": 8192})
    assert opened.status_code == 201
    items = [{"text": f"Line {n} of a log about thing{n}.", "item_id": str(n)} for n in range(120)]
    items[0] |= {"speaker": "Zoe"}
    written = (await http.post("/v1/memory", json={"session": "tight", "items": items})).json()["state"]
    assert written["bytes"] <= 8192
    assert written["tiers"]["evicted"] > 0
    assert sum(written["tiers"].values()) == 120
    listed = await http.get("/v1/memory", params={"session": "tight", "limit": 1})
    assert listed.json()["data"][0]["item_id"] == "0"  # the journal has what left
    ask = {"session": "tight", "text": "thing0", "filter": {"field": "speaker", "eq": "Zoe"}}
    assert [one["item_id"] for one in (await http.post("/v1/memory/recall", json=ask)).json()["evidence"]] == ["0"]
    plain = (await http.post("/v1/memory/recall", json={"session": "tight", "text": "thing0"})).json()
    assert plain["evicted"] == written["tiers"]["evicted"]
    assert "0" not in {one["item_id"] for one in plain["evidence"]}
    wider = await http.post("/v1/sessions", json={"session": "tight", "budget_bytes": 1 << 20})
    assert wider.json()["state"]["tiers"] == {"4": 120, "2": 0, "1": 0, "evicted": 0}
    await http.delete("/v1/sessions/tight")


async def test_a_session_lives_and_is_erased(http, session) -> None:
    again = await http.post("/v1/sessions", json={"session": "s"})
    assert (again.status_code, again.json()["created"], again.headers["location"]) == (200, False, "/v1/sessions/s")
    found = await http.get("/v1/sessions/s")
    assert found.json()["metadata"] == {"team": "x"}
    assert found.json()["state"]["items"] == 2
    assert found.headers["etag"] == f'"{found.json()["state"]["version"]}"'
    assert (await http.post("/v1/sessions/s/pause")).json()["status"] == "paused"
    problem(await http.post("/v1/memory", json={"session": "s", "items": [TEA]}), 409, "session_closed")
    assert (await http.post("/v1/sessions/s/resume")).json()["status"] == "open"
    erased = (await http.delete("/v1/sessions/s")).json()
    assert (erased["session"], erased["forgotten"]) == ("s", 2)
    problem(await http.get("/v1/sessions/s"), 404, "session_not_found")


async def test_sessions_come_in_pages(http) -> None:
    names = {"page-a", "page-b", "page-c"}
    for name in names:
        await http.post("/v1/sessions", json={"session": name})
    found: list[str] = []
    where: dict[str, Any] = {"limit": 2}
    while where.get("cursor", "first"):
        page = (await http.get("/v1/sessions", params=where)).json()
        where["cursor"] = page["next_cursor"]
        assert len(page["data"]) <= 2
        found += [session["session"] for session in page["data"]]
    assert names <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("limit", ["0", "201", "9" * 400, "x", "-1"])
async def test_a_limit_outside_1_to_200_is_refused_never_capped(http, limit) -> None:
    problem(await http.get("/v1/sessions", params={"limit": limit}), 422, "invalid_request", "/query/limit")


# ------------------------------------------------------------------------------------------------ memory
async def test_items_are_read_listed_and_forgotten(http, session) -> None:
    where = {"session": "s"}
    item = (await http.get("/v1/memory/a%2F1", params=where)).json()
    assert (item["text"], item["speaker"], item["at"]) == (NUTS["text"], "Ann", NUTS["at"])
    drinks = json.dumps({"field": "metadata.kind", "eq": "drink"})
    listed = (await http.get("/v1/memory", params=where | {"filter": drinks})).json()
    assert [found["item_id"] for found in listed["data"]] == ["b2"]
    receipt = (await http.delete("/v1/memory/a%2F1", params=where)).json()
    assert (receipt["forgotten"], receipt["before"]["items"], receipt["after"]["items"]) == (1, 2, 1)
    problem(await http.get("/v1/memory/a%2F1", params=where), 404, "not_found")


async def test_recall_finds_what_was_written(http, session) -> None:
    found = (await http.post("/v1/memory/recall", json={"session": "s", "text": "allergic to nuts", "k": 1})).json()
    assert [item["item_id"] for item in found["evidence"]] == ["a/1"]
    assert found["route"]["hops"][0]["measured"]


async def test_deleting_can_be_tried_first(http) -> None:
    items = [{"text": "I like tea.", "item_id": "t"}, {"text": "And milk.", "item_id": "m"}]
    await http.post("/v1/sessions", json={"session": "tried"})
    await http.post("/v1/memory", json={"session": "tried", "items": items})
    dry = (await http.delete("/v1/memory/t?session=tried&dry_run=true")).json()
    assert (dry["forgotten"], dry["before"], dry["before"]["items"]) == (1, dry["after"], 2)
    dry = (await http.delete("/v1/sessions/tried?dry_run=true")).json()
    assert (dry["forgotten"], dry["before"], dry["before"]["items"]) == (2, dry["after"], 2)
    assert (await http.get("/v1/memory/t?session=tried")).status_code == 200
    done = (await http.delete("/v1/sessions/tried")).json()
    assert (done["forgotten"], done["before"]["items"], done["after"]["items"]) == (2, 2, 0)
    assert (await http.get("/v1/sessions/tried")).status_code == 404


async def test_forget_counts_first_and_then_forgets(http, session) -> None:
    body = {"session": "s", "filter": {"field": "speaker", "eq": "Bo"}}
    dry = (await http.post("/v1/memory/forget", json=body | {"dry_run": True})).json()
    assert (dry["count"], dry["receipts"]) == (1, [])
    done = (await http.post("/v1/memory/forget", json=body)).json()
    assert [receipt["forgotten"] for receipt in done["receipts"]] == [1]
    assert (await http.post("/v1/memory/forget", json=body)).json()["count"] == 0


async def test_a_collection_is_a_memory_too(http) -> None:
    written = await http.post("/v1/memory", json={"collection": "manuals", "items": [TEA]})
    assert written.json()["accepted"] == 1
    listed = (await http.get("/v1/memory", params={"collection": "manuals"})).json()
    assert listed["data"][0]["collection"] == "manuals"
    problem(await http.get("/v1/memory", params={"collection": "none"}), 404, "not_found")


# ------------------------------------------------------------------------------------------------ wrong requests
@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/v1/memory", {"session": "s", "items": [{"txt": "x"}]}, "/items/0/txt"),
        ("/v1/memory", {"session": "s", "items": [], "limit": 3}, "/limit"),
        ("/v1/memory", {"session": "s", "items": []}, "/items"),
        ("/v1/memory", {"type": "write", "session": "s", "items": [TEA]}, "/type"),
        ("/v1/memory/recall", {"session": "s", "text": "x", "top_k": 3}, "/top_k"),
        ("/v1/memory/recall", {"session": "s", "text": "x", "k": 0}, "/k"),
        ("/v1/memory/recall", {"session": "s"}, "/text"),
        (
            "/v1/memory/forget",
            {"session": "s", "filter": {"field": "speaker", "eq": [{}, {"x": 2**70}]}},
            "/filter/eq/1/x",
        ),
        ("/v1/sessions", {"ttl_s": "soon"}, "/ttl_s"),
        ("/v1/enhance", {"prompt": "x", "generate": {"max_token": 1}}, "/generate/max_token"),
        ("/v1/enhance", {"prompt": "x", "evidence": {"min_share": 1.5}}, "/evidence/min_share"),
        ("/v1/enhance", {"prompt": "", "session": "s"}, "/prompt"),
    ],
)
async def test_a_wrong_field_is_named(http, session, path, body, pointer) -> None:
    problem(await http.post(path, json=body), 422, "invalid_request", pointer)


async def test_a_query_that_is_not_known_or_comes_twice_is_refused(http, session) -> None:
    problem(await http.get("/v1/memory", params={"session": "s", "top": 5}), 422, "invalid_request", "/query/top")
    problem(await http.get("/v1/memory?session=s&session=t"), 422, "invalid_request", "/query/session")
    wrong = {"session": "s", "filter": '{"field":"speaker","equals":1}'}
    problem(await http.get("/v1/memory", params=wrong), 422, "invalid_request", "/query/filter/equals")


@pytest.mark.parametrize("body", [b"", b"{", b'{"session":"s"}x', b"\xff", b'{"metadata":' + b'{"a":' * 3000])
async def test_a_body_that_is_no_json_is_refused(http, body) -> None:
    problem(
        await http.post("/v1/sessions", content=body, headers={"content-type": "application/json"}), 400, "protocol"
    )


async def test_other_content_types_routes_and_methods_are_problems_too(http) -> None:
    wrong = await http.post("/v1/sessions", content=b"session=s", headers={"content-type": "text/plain"})
    problem(wrong, 415, "unsupported_media_type")
    problem(await http.get("/v1/nothing"), 404, "not_found")
    assert problem(await http.patch("/v1/sessions"), 405, "method_not_allowed")["detail"].startswith("PATCH")


async def test_a_body_that_is_too_long_is_refused_told_or_not(model) -> None:
    async def parts():
        for _ in range(4):
            yield b" " * 1000

    async with serving(model, max_frame_bytes=2048) as server, httpx.AsyncClient(trust_env=False) as http:
        url, headers = server.url + "/v1/sessions", {"content-type": "application/json"}
        problem(await http.post(url, content=b" " * 3000, headers=headers), 413, "too_large")
        problem(await http.post(url, content=parts(), headers=headers), 413, "too_large")


async def test_an_unexpected_failure_says_nothing_but_its_request(http, server, monkeypatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(server.service.sessions, "list", broken)
    with captured() as log:
        document = problem(await http.get("/v1/sessions"), 500, "internal")
    assert "secret" not in json.dumps(document)
    assert document["instance"].split(":")[-1] in log.getvalue()
    assert "RuntimeError" in log.getvalue()
    assert "secret" not in log.getvalue()


async def test_a_limit_tells_when_to_come_again(http, server, monkeypatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise LimitExceeded("max_running_responses", 1, 2, retry_after_ms=1500)

    monkeypatch.setattr(server.service.prompts, "start", full)
    response = await http.post("/v1/enhance", json={"prompt": "x"})
    assert problem(response, 429, "limit_exceeded")["retry_after_ms"] == 1500
    assert response.headers["retry-after"] == "2"


# ------------------------------------------------------------------------------------------------ enhance
async def test_enhance_answers_with_one_document(http, session) -> None:
    answer = (await http.post("/v1/enhance", json={"session": "s", "prompt": "What is Ann allergic to?"})).json()
    assert (answer["status"], answer["text"]) == ("completed", "Nuts are bad for Ann.")
    assert answer["evidence"][0]["item_id"] == "a/1"
    assert {hop["node"] for hop in answer["hops"]} == {"desk", "shelf"}
    again = (await http.get(f"/v1/responses/{answer['response']}")).json()
    assert (again["text"], again["usage"]) == (answer["text"], answer["usage"])
    late = (await http.post(f"/v1/responses/{answer['response']}/cancel")).json()
    assert (late["was_running"], late["status"]) == (False, "completed")
    problem(await http.get("/v1/responses/rsp_none"), 404, "not_found")


async def test_a_response_that_fails_is_a_problem(http, session, model) -> None:
    model.script = Script(status=500)
    response = await http.post("/v1/enhance", json={"session": "s", "prompt": "x"})
    assert problem(response, 502, "engine_failed")["retryable"]


async def test_enhance_streams_events(http, session) -> None:
    events: list[tuple[str, int, dict[str, Any]]] = []
    async with http.stream("POST", "/v1/enhance", json={"session": "s", "prompt": "Nuts?", "stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                events.append((value, 0, {}))
            elif name == "id":
                events[-1] = (events[-1][0], int(value), {})
            elif name == "data":
                events[-1] = (*events[-1][:2], json.loads(value))
    assert [seq for _, seq, _ in events] == list(range(1, len(events) + 1))
    assert all(kind == data["type"] for kind, _, data in events)
    assert (events[0][0], events[-1][0]) == ("response.created", "response.done")
    assert "".join(data["text"] for kind, _, data in events if kind == "response.delta") == "Nuts are bad for Ann."


async def test_a_client_that_nobody_could_replace_stops_the_model_when_it_goes(http, session, model) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=20)
    body = {"session": "s", "prompt": "x"}
    asking = asyncio.create_task(http.post("/v1/enhance", json=body))
    async with asyncio.timeout(20):
        while model.produced < 2:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        gone = model.produced
        while model.running:
            await asyncio.sleep(0.01)
    assert model.produced <= gone + 2


async def test_a_running_response_is_cancelled_over_rest(http, session, model) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=50)
    async with http.stream("POST", "/v1/enhance", json={"session": "s", "prompt": "x", "stream": True}) as response:
        lines = response.aiter_lines()
        created = json.loads([await anext(lines) for _ in range(3)][2].removeprefix("data: "))
        cancelled = (await http.post(f"/v1/responses/{created['response']}/cancel")).json()
        assert cancelled["was_running"]
        rest = [line async for line in lines if line.startswith("data: ")]
    assert json.loads(rest[-1].removeprefix("data: "))["status"] == "cancelled"


# ------------------------------------------------------------------------------------------------ network
async def test_the_topology_shows_what_operators_wrote_and_what_lives(http, session) -> None:
    found = (await http.get("/v1/topology")).json()
    assert (found["name"], found["ingress"], found["dim"]) == ("lab", "desk", 384)
    nodes = {node["node"]: node for node in found["nodes"]}
    assert nodes["shelf"]["collections"] == ["manuals"]
    assert nodes["desk"]["up"]
    assert {"source": "desk", "target": "shelf"}.items() <= found["links"][0].items()


async def test_a_noisy_link_shows_its_channel_and_what_it_did(http, server, session, monkeypatch) -> None:
    router = server.service.recaller.router
    before = router.channels
    router.channels = {("desk", "shelf"): LinkChannel((0.0, 0.0, 0.0, 1.0), corrections=0.5)}
    try:
        links = (await http.get("/v1/topology")).json()["links"]
        wanted = {"collections": ["manuals"], "text": "nuts"}
        done = (await http.post("/v1/memory/recall", json=wanted)).json()
    finally:
        router.channels = before
    assert links[0]["channel"]["probabilities"] == [0.0, 0.0, 0.0, 1.0]
    assert "channel" not in links[1]
    [link] = done["links"]
    assert (link["source"], link["target"], link["errors"], link["corrections"]) == ("desk", "shelf", "Z" * 9, 4.5)


async def test_a_route_is_shown_without_measuring(http, session) -> None:
    route = (await http.get("/v1/topology/route", params={"prompt": "nuts", "session": "s", "explain": "true"})).json()
    assert {hop["node"] for hop in route["hops"]} >= {"desk", "shelf"}
    problem(await http.get("/v1/topology/route"), 422, "invalid_request", "/query/prompt")


# ------------------------------------------------------------------------------------------------ health
@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_health_is_at_the_root_and_under_v1(http, prefix) -> None:
    assert (await http.get(prefix + "/health/live")).json() == {"live": True}
    assert (await http.get(prefix + "/health/ready")).status_code == 200
    report = (await http.get(prefix + "/health")).json()
    assert (report["ready"], report["topology"], report["degraded"]) == (True, "lab", [])


async def test_not_ready_is_503_and_says_what_is_degraded(http, server, monkeypatch) -> None:
    degraded = [{"what": "node desk", "since": 0.0, "detail": "down"}]
    told = {"ready": False, "state": "ready", "degraded": degraded}
    monkeypatch.setattr(server.service.health, "report", lambda: told)
    response = await http.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["degraded"][0]["since"] == "1970-01-01T00:00:00Z"
    assert (await http.get("/health")).status_code == 200


async def test_metrics_count_requests_and_items(model) -> None:
    async with serving(model) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        await http.post("/v1/sessions", json={"session": "s"})
        await http.post("/v1/memory", json={"session": "s", "items": [NUTS, TEA]})
        text = (await http.get("/metrics")).text
    assert 'qraf_http_requests_total{status="201"} 1.0' in text
    assert 'qraf_write_items_total{node="desk"} 2.0' in text
    assert "qraf_ws_connections 0.0" in text
    assert "qraf_build_info" in text


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/sessions", "GET, POST"), ("/v1/sessions/ann", "DELETE, GET, PATCH"), ("/v1/memory/a/b", "DELETE, GET")],
)
async def test_a_method_that_is_not_for_an_address_is_told_all_that_are(http, path, allowed) -> None:
    refused = await http.put(path, json={})
    assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == allowed
    assert allowed in refused.json()["detail"]


async def test_an_integer_over_64_bits_is_told_by_its_place(http) -> None:
    text = '{"session": "ann", "text": "nuts 12345678901234567890", "token_budget": %s}' % ("9" * 300)
    for budget in (text, text.replace("9" * 300, "1" + "0" * 25)):
        refused = await http.post("/v1/memory/recall", content=budget, headers={"content-type": "application/json"})
        [error] = refused.json()["errors"]
        assert (refused.status_code, error["pointer"]) == (422, "/token_budget")
        assert "64 bits" in error["detail"]
