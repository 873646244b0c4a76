"""Rates and quotas at the gateway: what is refused, how it is told, over REST and WebSocket, and what the log says."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest
import pytest_asyncio

from qraf.settings import QuotaSettings
from tests import redis_server
from tests.gateway.security.conftest import Place, guarded
from tests.gateway.security.test_enter import refused
from tests.gateway.wire import Wire
from tests.openai_server import Script

pytestmark = pytest.mark.slow  # all of them together

NARROW = {
    "few-items": {"items": 2},
    "few-requests": {"requests": "4/hour"},
    "few-frames": {"frames": "4/hour"},
    "few-bytes": {"write_bytes": "3000/hour"},
    "few-sockets": {"sockets": 1},
    "few-responses": {"responses": 1},
    "few-tokens": {"tokens_per_day": 10},
    "slow-tokens": {"tokens": "10/hour"},
    "near": {"frames": "100/hour"},
}
"""Tenants, and what they may not do."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(models, tmp_path_factory, signer):
    async with guarded(models, tmp_path_factory.mktemp("narrow"), signer, QuotaSettings(tenants=NARROW)) as place:
        yield place


async def key(place: Place, tenant: str, role: str = "client") -> str:
    async with place.http("default admin") as http:
        made = (await http.post("/v1/keys", json={"tenant": tenant, "role": role})).json()
    return str(made["api_key"])


def wire(place: Place, credential: str | None, **options: Any) -> Wire:
    headers = {} if credential is None else {"additional_headers": place.bearer(credential)}
    return Wire(place.url, **headers, **options)


def items(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


WRITE = {"collection": "manuals", "items": items("one", "two", "three")}


# ------------------------------------------------------------------------------------------------------ what is told
async def test_every_answer_says_how_the_rates_stand(narrow, model) -> None:
    async with narrow.http(await key(narrow, "few-requests", "viewer")) as http:
        first = await http.get("/v1/sessions")
        assert first.headers["ratelimit-policy"].startswith('"tenant.requests";q=4;w=3600, "')
        left = int(first.headers["x-ratelimit-remaining-requests"])
        assert f'"tenant.requests";r={left};t=' in first.headers["ratelimit"]
        assert first.headers["x-ratelimit-limit-requests"] == "4"
        assert first.headers["x-ratelimit-limit-tokens"].isdigit()
        while (last := await http.get("/v1/sessions")).status_code == 200:
            left -= 1
        assert left == int(last.headers["x-ratelimit-remaining-requests"]) == 0
        assert 1 <= int(last.headers["retry-after"]) <= 3600
        assert last.json()["retryable"] is True
        assert "ratelimit" not in (await http.get("/health/live")).headers  # probes are always answered


async def test_a_socket_is_told_when_little_is_left(narrow, model) -> None:
    async with wire(narrow, await key(narrow, "near")) as one:
        frames = next(limit for limit in one.welcome["rate_limits"] if limit["policy"] == "tenant.frames")
        assert (frames["limit"], frames["window_s"]) == (100, 3600)
        seen = []
        for number in range(100):
            await one.send({"type": "ping", "id": str(number)})
        while len(seen) < 101:
            seen.append(await one.recv())
        told = [frame for frame in seen if frame["type"] == "rate_limits"]
        assert 1 <= len(told) <= 3
        limit = next(limit for limit in told[0]["limits"] if limit["policy"] == "tenant.frames")
        assert 0 < limit["remaining"] < 20
        assert 0 < limit["reset_ms"] <= 3_600_000


# ----------------------------------------------------------------------------------------------- what goes on, and ends
async def test_over_a_quota_the_rest_goes_on_and_forgetting_makes_room(narrow, model) -> None:
    async with wire(narrow, await key(narrow, "few-items")) as one:
        write = {"type": "write", "collection": "manuals", "items": [{"text": "a", "item_id": "a"}]}
        assert (await one.ask(write | {"id": "1"}))["accepted"] == 1
        two = [{"text": "b", "item_id": "b"}, {"text": "c", "item_id": "c"}]
        error = (await one.ask(write | {"id": "2", "items": two}))["error"]
        assert (error["code"], error["retryable"]) == ("quota_exceeded", False)
        assert (await one.ask(write | {"id": "3"}))["duplicates"] == 1
        recalled = await one.ask({"type": "recall", "id": "4", "collections": ["manuals"], "text": "a"})
        assert [item["item_id"] for item in recalled["evidence"]] == ["a"]
        async with narrow.http(await key(narrow, "few-items")) as http:
            await http.delete("/v1/memory/a", params={"collection": "manuals"})
        assert (await one.ask(write | {"id": "5", "items": two}))["accepted"] == 2


async def test_written_bytes_have_a_rate(narrow, model) -> None:
    async with narrow.http(await key(narrow, "few-bytes")) as http:
        answers = [await http.post("/v1/memory", json=WRITE | {"items": items("x" * 500)}) for _ in range(5)]
    assert [one.status_code for one in answers] == [200] * 3 + [429] * 2
    assert answers[-1].json()["detail"].startswith("`tenant.write_bytes` allows 3000")


async def test_running_responses_have_a_bound_and_leave_it_when_they_end(narrow, model) -> None:
    model.script = Script(tokens_per_s=50)
    async with wire(narrow, await key(narrow, "few-responses")) as one:
        ask = {"type": "enhance", "prompt": "x", "generate": {"max_tokens": 1000}}
        await one.send(ask | {"id": "1"})
        await one.until("response.delta")
        await one.send(ask | {"id": "2"})
        frame = await one.recv()
        while frame["type"] != "error":
            frame = await one.recv()
        assert (frame["id"], frame["error"]["code"]) == ("2", "quota_exceeded")
        assert frame["error"]["retry_after_ms"] == 1000
        await one.send({"type": "cancel", "id": "3", "target": "1"})
        await one.until("response.done")
        await one.send(ask | {"id": "4", "generate": {"max_tokens": 2}})
        assert (await one.until("response.done"))[-1]["status"] == "incomplete"


async def test_a_socket_that_went_makes_room_for_another(narrow, model) -> None:
    own = await key(narrow, "few-sockets")
    async with wire(narrow, own), wire(narrow, own, hello=False) as other:
        await other.send({"type": "hello"})
        assert await refused(other) == ("quota_exceeded", 4429)
    async with asyncio.timeout(5):
        while True:
            async with wire(narrow, own, hello=False) as other:
                if (await other.ask({"type": "hello"}))["type"] == "welcome":
                    return


@pytest.mark.parametrize(("tenant", "code"), [("few-tokens", "quota_exceeded"), ("slow-tokens", "rate_limited")])
async def test_a_response_out_of_tokens_ends_there_and_says_why(narrow, model, tenant, code) -> None:
    model.script = Script(tokens_per_s=25)  # so that few come together, which are shown together or not at all
    ask = {"prompt": "x", "generate": {"max_tokens": 60}}
    async with wire(narrow, await key(narrow, tenant)) as one:
        await one.send({"type": "enhance", "id": "1", **ask})
        frames = await one.until("response.done")
    done = frames[-1]
    assert (done["status"], done["finish_reason"], done["error"]["code"]) == ("incomplete", "quota", code)
    assert done["error"]["retry_after_ms"] > 0
    shown = sum(frame.get("tokens", 0) for frame in frames if frame["type"] == "response.delta")
    assert 1 <= shown == done["usage"]["completion_tokens"] <= 10
    await narrow.audited(action="WS enhance", outcome=code, tenant=tenant)
    async with narrow.http(await key(narrow, tenant)) as http:
        if shown == 10:
            response = await http.post("/v1/enhance", json=ask)
            assert (response.status_code, response.json()["code"]) == (429, code)
        total = (await http.get("/v1/usage")).json()["total"]  # of another key of this tenant
        assert total["generated_tokens"] <= 10 - shown


async def test_over_rest_what_came_until_then_is_the_answer(models, model, tmp_path, signer) -> None:
    quotas = QuotaSettings(key={"tokens_per_day": 20})
    async with guarded(models, tmp_path, signer, quotas) as place, place.http("acme client") as http:
        model.script = Script(words=("Nuts",), tokens_per_s=50)
        response = await http.post("/v1/enhance", json={"prompt": "x", "generate": {"max_tokens": 60}})
        told = response.json()
        assert (response.status_code, told["status"], told["error"]["code"]) == (200, "incomplete", "quota_exceeded")
        assert told["text"] == "Nuts" * told["usage"]["completion_tokens"]
        total = (await http.get("/v1/usage")).json()["total"]
        assert total["generated_tokens"] == told["usage"]["completion_tokens"] <= 20


# ------------------------------------------------------------------------------------------------------------- usage
async def test_usage_is_what_was_done_to_the_item_and_the_token(models, model, tmp_path, signer) -> None:
    async with guarded(models, tmp_path, signer) as place, place.http("acme client") as http:
        done = []
        async with wire(place, "acme client") as one:
            model.script = Script(words=("Nuts", " are"), num_tokens=7)
            for number in range(3):
                ask = {"type": "enhance", "id": str(number), "prompt": "What is bad?"}
                await one.send(ask)
                done.append((await one.until("response.done"))[-1]["usage"])
            await one.ask({"type": "write", "id": "w", "collection": "manuals", "items": items("abc", "de")})
            await one.ask({"type": "watch", "id": "u", "topic": "usage"})
            watched = (await one.until("usage"))[-1]["today"]
        assert (await http.post("/v1/memory", json=WRITE)).status_code == 200
        page = (await http.get("/v1/usage")).json()
        [day] = page["data"]
        assert day["tenant"] == "acme"
        assert day["key"] == place.keys["acme client"].split("_")[1]
        assert day["items"] == 5
        assert day["bytes"] == len("abcdeonetwothree") + 5 * len("{}")
        assert (day["requests"], day["frames"], day["responses"]) == (2, 5, 3)
        assert day["generated_tokens"] == sum(one["completion_tokens"] for one in done) == 21
        assert day["prompt_tokens"] == sum(one["prompt_tokens"] for one in done) > 0
        assert (watched["generated_tokens"], watched["items"], watched["held_items"]) == (21, 2, 2)
        quotas = {one["policy"]: one["used"] for one in page["quotas"]}
        assert quotas["key.items"] == 5
        assert quotas["key.tokens_per_day"] == 21


async def test_cancelled_and_failed_responses_are_charged_what_was_shown(models, model, tmp_path, signer) -> None:
    async with guarded(models, tmp_path, signer) as place, place.http("acme client") as http:
        shown = 0
        async with wire(place, "acme client") as one:
            for number, script in enumerate((Script(tokens_per_s=60), Script(tokens_per_s=60, close_after=12))):
                model.script = script
                await one.send({"type": "enhance", "id": str(number), "prompt": "x", "generate": {"max_tokens": 500}})
                frames = await one.until("response.delta")
                if number == 0:
                    await one.send({"type": "cancel", "id": "c", "target": "0"})
                frames += await one.until("response.done")
                tokens = sum(frame.get("tokens", 0) for frame in frames if frame["type"] == "response.delta")
                assert frames[-1]["status"] == ("cancelled", "failed")[number]
                assert frames[-1]["usage"]["completion_tokens"] == tokens
                shown += tokens
        assert (await http.get("/v1/usage")).json()["total"]["generated_tokens"] == shown > 12


async def test_each_sees_its_own_usage_and_an_admin_its_tenants(narrow, model) -> None:
    own = {who: narrow.keys[f"brook {who}"].split("_")[1] for who in ("client", "viewer", "admin")}
    for who in own:
        async with narrow.http(f"brook {who}") as http:
            await http.get("/v1/sessions")
            seen = {one["key"] for one in (await http.get("/v1/usage")).json()["data"]}
            assert seen == ({own[who]} if who != "admin" else set(own.values()))
            chosen = await http.get("/v1/usage", params={"key": own["viewer"]})
            assert chosen.status_code == (403 if who == "client" else 200)
            assert (await http.get("/v1/usage", params={"tenant": "acme"})).status_code == 403
            for wrong in ({"from": "yesterday"}, {"from": "2026-02-01", "to": "2026-01-01"}, {"since": "2026-01-01"}):
                assert (await http.get("/v1/usage", params=wrong)).status_code == 422
            assert (await http.get("/v1/usage", params={"to": "2020-01-01", "from": "2019-01-01"})).json()["data"] == []
    async with narrow.http("default admin") as http:
        tenants = {one["tenant"] for one in (await http.get("/v1/usage", params={"limit": "200"})).json()["data"]}
        assert {"default", "brook"} <= tenants
        only = (await http.get("/v1/usage", params={"tenant": "brook"})).json()["data"]
        assert {one["tenant"] for one in only} == {"brook"}


async def test_the_log_can_be_checked_by_those_who_run_the_server(narrow, model) -> None:
    async with narrow.http("brook admin") as http:
        assert (await http.get("/v1/audit/check")).status_code == 403  # which is a line, soon
    async with narrow.http("default admin") as http:
        async with asyncio.timeout(20):
            while not (found := (await http.get("/v1/audit/check")).json())["last"]:
                await asyncio.sleep(0.05)
        assert (found["broken"], found["unchained"]) == (None, 0)
        assert (await http.get("/v1/audit/check", params={"head": f"{found['last']}:{found['head']}"})).json()[
            "broken"
        ] is None
        other = f"{found['last']}:{'0' * 64}"
        assert (await http.get("/v1/audit/check", params={"head": other})).json()["broken"] == found["last"]
        assert (await http.get("/v1/audit/check", params={"head": "x"})).status_code == 422


# --------------------------------------------------------------------------------------------------------- two gateways
async def test_rates_hold_over_two_gateways_on_redis(models, model, tmp_path, signer) -> None:
    tenant = f"t{secrets.token_hex(6)}"
    quotas = QuotaSettings(storage=redis_server.url(), tenants={tenant: {"requests": "60/hour", "frames": "60/hour"}})
    async with guarded(models, tmp_path, signer, quotas) as one, guarded(models, tmp_path, signer, quotas) as two:
        own = await key(one, tenant)

        async def requests(place: Place) -> int:
            async with place.http(own) as http:
                return sum([(await http.get("/v1/whoami")).status_code == 200 for _ in range(50)])

        async def pings(place: Place) -> int:
            passed = 0
            async with wire(place, own) as socket:
                for number in range(45):
                    frame = await socket.ask({"type": "ping", "id": str(number)})
                    while frame["type"] == "rate_limits":
                        frame = await socket.recv()
                    passed += frame["type"] == "pong"
            return passed

        for client in (requests, pings):
            passed = await asyncio.gather(client(one), client(two))
            # a lease of one gateway that ended unused is lost
            assert 56 <= sum(passed) <= 60, passed
            assert min(passed) > 0


async def test_sockets_and_responses_are_counted_over_two_gateways_on_redis(models, model, tmp_path, signer) -> None:
    tenant = f"t{secrets.token_hex(6)}"
    quotas = QuotaSettings(storage=redis_server.url(), tenants={tenant: {"sockets": 3, "responses": 2}})
    model.script = Script(tokens_per_s=50)
    async with guarded(models, tmp_path, signer, quotas) as one, guarded(models, tmp_path, signer, quotas) as two:
        own, other = await key(one, tenant), await key(two, tenant)
        async with wire(one, own) as first, wire(two, own) as second, wire(two, other):
            for place in (one, two):
                async with wire(place, own, hello=False) as fourth:
                    await fourth.send({"type": "hello"})
                    assert await refused(fourth) == ("quota_exceeded", 4429)
            ask = {"type": "enhance", "prompt": "x", "generate": {"max_tokens": 1000}}
            for socket in (first, second):
                await socket.send(ask | {"id": "1"})
                await socket.until("response.delta")
            for place in (one, two):
                async with place.http(own) as http:
                    response = await http.post("/v1/enhance", json={"prompt": "x"})
                assert (response.status_code, response.json()["code"]) == (429, "quota_exceeded")
                assert "`tenant.responses` of 2" in response.json()["detail"]
            await first.send({"type": "cancel", "id": "2", "target": "1"})
            await first.until("response.done")
            model.script = Script(num_tokens=1)
            async with asyncio.timeout(5), two.http(own) as http:
                while (await http.post("/v1/enhance", json={"prompt": "x"})).status_code != 200:
                    await asyncio.sleep(0.02)
        async with asyncio.timeout(5):
            while True:
                async with wire(one, own, hello=False) as again, wire(two, own, hello=False) as too:
                    if {(await each.ask({"type": "hello"}))["type"] for each in (again, too)} == {"welcome"}:
                        return


async def test_quotas_hold_over_two_gateways_on_one_journal(models, model, tmp_path, signer) -> None:
    quotas = QuotaSettings(tenants={"acme": {"items": 10}})
    async with guarded(models, tmp_path, signer, quotas) as one, guarded(models, tmp_path, signer, quotas) as two:

        async def write(place: Place, number: int) -> int:
            async with place.http(one.keys["acme client"]) as http:
                body = {"collection": "manuals", "items": items(f"{number} a", f"{number} b", f"{number} c")}
                return (await http.post("/v1/memory", json=body)).status_code

        answers = await asyncio.gather(*(write(place, n) for n, place in enumerate((one, two) * 4)))
        assert sorted(answers) == [200] * 3 + [429] * 5
        async with two.http(one.keys["acme client"]) as http:
            quota = (await http.get("/v1/usage")).json()["quotas"][0]
            assert quota == {"policy": "key.items", "allowed": 50_000_000, "used": 9}
