"""Two tenants with the same names: nothing of one is reachable by the other, through any route or any frame.

What `acme` writes holds the word `zebra`; no answer to `brook`, or to the default tenant, may. The walk has a call for
every route and every frame, and says so when one is added without.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from qraf.gateway.security.guard import FRAMES, ORDERS, ROUTES
from qraf.tenants import inside, plain, tenant_of
from tests.gateway.security.conftest import Place
from tests.gateway.wire import Wire

pytestmark = pytest.mark.slow  # all of them together

SECRET = "zebra"
STATE = "st_same"
KEY = "the same key"
OTHERS = ("brook admin", "default admin")


@dataclass
class Held:
    """What acme has."""

    session: str
    item: str
    response: str
    stream: str
    epoch: str
    operation: str
    key: str

    def paths(self, path: str, prefix: str = "") -> str:
        names = {"session": self.session, "item_id": self.item, "response": self.response, "state": STATE}
        names |= {"operation": self.operation, "key": self.key}
        return re.sub(r"\{(\w+)(?::path)?\}", lambda m: quote(prefix + names[m[1]], safe=""), path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def held(place: Place) -> AsyncIterator[Held]:
    """Acme's admin makes one of everything, by the names that anybody might choose."""
    async with place.http("acme admin") as http, Wire(place.url, additional_headers=place.bearer("acme admin")) as wire:
        opened = await wire.ask({"type": "session.open", "id": "1", "session": "same"})
        items = [{"item_id": "i1", "text": f"The {SECRET} eats nuts.", "speaker": SECRET, "metadata": {"k": SECRET}}]
        for where in ({"session": "same"}, {"collection": "manuals"}):
            assert (await http.post("/v1/memory", json=where | {"items": items})).json()["accepted"] == 1
        state = await http.post("/v1/state", json={"named": "bell", "id": STATE, "label": SECRET})
        assert (state.status_code, state.json()["id"], opened["session"]) == (201, STATE, "same")
        asked = {"session": "same", "prompt": f"What does the {SECRET} eat?", "key": KEY}
        await wire.send({"type": "enhance", "id": "2"} | asked)
        frames = await wire.until("response.done")
        created = frames[0]
        background = {"prefer": "respond-async"}
        job = await http.post("/v1/quantize", json={"states": [STATE], "code": "int8"}, headers=background)
        key = (await http.get("/v1/keys")).json()["data"][0]["key"]
        evidence = next(frame for frame in frames if frame["type"] == "response.evidence")["items"]
        assert {(one["session"], one["collection"]) for one in evidence} == {("same", None), (None, "manuals")}
        hops = {frame["memory"] for frame in frames if frame["type"] == "response.hop"}
        assert hops == {"s/same", "c/manuals"}
        yield Held("same", "i1", created["response"], created["stream"], created["epoch"], job.json()["id"], key)


Body = dict[str, Any]
NUTS = [{"item_id": "mine", "text": "nuts"}]
NOT_THERE, EMPTY, REFUSED, OWN = "404", "an empty page", "refused", "of one's own"

# what a stranger asks on each route to get at what acme has, and what comes of it
WALK: dict[tuple[str, str], list[tuple[str, Callable[[Held], Body]]]] = {
    ("POST", "/v1/sessions"): [(NOT_THERE, lambda h: {"json": {"session": h.session, "create": False}})],
    ("GET", "/v1/sessions"): [(EMPTY, lambda h: {})],
    ("GET", "/v1/sessions/{session}"): [(NOT_THERE, lambda h: {})],
    ("PATCH", "/v1/sessions/{session}"): [(NOT_THERE, lambda h: {"json": {"bits": 2}})],
    ("DELETE", "/v1/sessions/{session}"): [(NOT_THERE, lambda h: {})],
    ("POST", "/v1/sessions/{session}/pause"): [(NOT_THERE, lambda h: {})],
    ("POST", "/v1/sessions/{session}/resume"): [(NOT_THERE, lambda h: {})],
    ("POST", "/v1/memory"): [(NOT_THERE, lambda h: {"json": {"session": h.session, "items": NUTS}})],
    ("GET", "/v1/memory"): [
        (NOT_THERE, lambda h: {"params": {"session": h.session}}),
        (EMPTY, lambda h: {"params": {"collection": "manuals"}}),
    ],
    ("POST", "/v1/memory/recall"): [
        (NOT_THERE, lambda h: {"json": {"session": h.session, "text": SECRET}}),
        (OWN, lambda h: {"json": {"collections": ["manuals"], "text": "nuts"}}),
    ],
    ("POST", "/v1/memory/forget"): [
        (NOT_THERE, lambda h: {"json": {"session": h.session, "filter": {"field": "speaker", "eq": "x"}}}),
        (OWN, lambda h: {"json": {"collection": "manuals", "filter": {"NOT": {"field": "speaker", "eq": "x"}}}}),
    ],
    ("GET", "/v1/memory/{item_id:path}"): [
        (NOT_THERE, lambda h: {"params": {"session": h.session}}),
        (NOT_THERE, lambda h: {"params": {"collection": "manuals"}}),
    ],
    ("DELETE", "/v1/memory/{item_id:path}"): [
        (NOT_THERE, lambda h: {"params": {"session": h.session}}),
        (NOT_THERE, lambda h: {"params": {"collection": "manuals"}}),
    ],
    ("POST", "/v1/enhance"): [
        (NOT_THERE, lambda h: {"json": {"session": h.session, "prompt": "nuts"}}),
        (OWN, lambda h: {"json": {"prompt": "nuts", "key": KEY}}),
    ],
    ("GET", "/v1/responses/{response}"): [(NOT_THERE, lambda h: {})],
    ("GET", "/v1/responses/{response}/events"): [(NOT_THERE, lambda h: {})],
    ("POST", "/v1/responses/{response}/cancel"): [(NOT_THERE, lambda h: {})],
    ("GET", "/v1/topology"): [(OWN, lambda h: {})],
    ("GET", "/v1/topology/route"): [(OWN, lambda h: {"params": {"prompt": "nuts", "session": h.session}})],
    ("POST", "/v1/state"): [(REFUSED, lambda h: {"json": {"state": STATE}})],
    ("GET", "/v1/state"): [(EMPTY, lambda h: {})],
    ("POST", "/v1/state/compare"): [(REFUSED, lambda h: {"json": {"pairs": [[STATE, {"named": "bell"}]]}})],
    ("POST", "/v1/state/measure"): [(REFUSED, lambda h: {"json": {"ids": [STATE], "basis": "ZZ"}})],
    ("POST", "/v1/state/evolve"): [
        (REFUSED, lambda h: {"json": {"ids": [STATE], "steps": [{"channel": "dephasing", "p": 0.1}]}})
    ],
    ("GET", "/v1/state/{state}"): [(NOT_THERE, lambda h: {})],
    ("DELETE", "/v1/state/{state}"): [(NOT_THERE, lambda h: {})],
    ("POST", "/v1/state/{state}/measure"): [(NOT_THERE, lambda h: {"json": {"basis": "ZZ"}})],
    ("POST", "/v1/state/{state}/evolve"): [
        (NOT_THERE, lambda h: {"json": {"steps": [{"channel": "dephasing", "p": 0.1}]}})
    ],
    ("POST", "/v1/state/{state}/merge"): [(NOT_THERE, lambda h: {"json": {"others": [{"named": "bell"}]}})],
    ("POST", "/v1/state/{state}/tensor"): [(NOT_THERE, lambda h: {"json": {"others": [{"named": "bell"}]}})],
    ("POST", "/v1/state/{state}/partial_trace"): [(NOT_THERE, lambda h: {"json": {"keep": [0]}})],
    ("POST", "/v1/state/{state}/fork"): [(NOT_THERE, lambda h: {"json": {}})],
    ("GET", "/v1/state/{state}/export"): [(NOT_THERE, lambda h: {})],
    ("POST", "/v1/quantize"): [(REFUSED, lambda h: {"json": {"states": [STATE], "code": "int8"}})],
    ("POST", "/v1/quantize/decode"): [(OWN, lambda h: {"json": {"codes": "AwQALg==", "d": 2, "code": "int8"}})],
    ("POST", "/v1/optimize"): [
        (NOT_THERE, lambda h: {"json": {"op": "recompress", "rank": 1, "session": h.session, "form": "bytes"}}),
        (REFUSED, lambda h: {"json": {"op": "recompress", "rank": 1, "collection": "manuals", "form": "bytes"}}),
        (REFUSED, lambda h: {"json": {"op": "truncate", "rank": 1, "states": [STATE]}}),
    ],
    ("POST", "/v1/correct"): [(REFUSED, lambda h: {"json": {"op": "repair", "states": [STATE]}})],
    ("GET", "/v1/services"): [(OWN, lambda h: {})],
    ("GET", "/v1/operations"): [(EMPTY, lambda h: {})],
    ("GET", "/v1/operations/{operation}"): [(NOT_THERE, lambda h: {})],
    ("POST", "/v1/operations/{operation}/cancel"): [(NOT_THERE, lambda h: {})],
    ("DELETE", "/v1/operations/{operation}"): [(NOT_THERE, lambda h: {})],
    ("POST", "/v1/snapshots"): [
        (NOT_THERE, lambda h: {"json": {"session": h.session}}),
        (OWN, lambda h: {"json": {"collection": "manuals"}}),
    ],
    ("POST", "/v1/ws-tickets"): [(OWN, lambda h: {})],
    ("GET", "/v1/whoami"): [(OWN, lambda h: {})],
    ("GET", "/v1/keys"): [(OWN, lambda h: {})],
    ("POST", "/v1/keys"): [(REFUSED, lambda h: {"json": {"tenant": "acme"}})],
    ("DELETE", "/v1/keys/{key}"): [(NOT_THERE, lambda h: {})],
    ("GET", "/v1/tenants"): [(OWN, lambda h: {})],
    ("GET", "/v1/audit"): [(OWN, lambda h: {})],
    ("GET", "/v1/audit/check"): [(REFUSED, lambda h: {})],
    ("GET", "/v1/usage"): [(OWN, lambda h: {}), (REFUSED, lambda h: {"params": {"tenant": "acme"}})],
    **{
        ("GET", path): [(OWN, lambda h: {})]
        for path in (
            *("/v1/health/live", "/v1/health/ready", "/v1/health", "/health/live", "/health/ready", "/health"),
            *("/metrics", "/v1/asyncapi.json", "/v1/openapi.json"),
        )
    },
}
# an admin of the default tenant makes and revokes the keys of every tenant
GOVERNED = {("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/{key}"), ("GET", "/v1/tenants")}
GOVERNED |= {("GET", "/v1/audit"), ("GET", "/v1/audit/check"), ("GET", "/v1/usage")}


def test_the_walk_has_every_route() -> None:
    assert set(WALK) == set(ROUTES)


@pytest.mark.parametrize("who", OTHERS)
async def test_nothing_of_a_tenant_is_reachable_by_any_route(place, held, who) -> None:
    async with place.http(who) as http:
        for (method, path), calls in WALK.items():
            if who == "default admin" and (method, path) in GOVERNED:
                continue
            for outcome, make in calls:
                response = await http.request(method, held.paths(path), **make(held))
                said = f"{method} {path}: {response.status_code} {response.text[:300]}"
                assert SECRET not in response.text, said
                assert "acme" not in response.text or path in ("/v1/keys", "/v1/openapi.json"), said
                status = response.status_code
                match outcome:
                    case "404":
                        assert status == 404, said
                    case "an empty page":
                        assert (status, response.json()["data"]) == (200, []), said
                    case "refused":
                        assert status in (403, 422), said
                    case _:
                        assert status < 300, said
                        if "/recall" in path:
                            assert response.json()["evidence"] == [], said
                        if "/forget" in path:
                            assert response.json()["count"] == 0, said
                        if "/enhance" in path:
                            assert response.json()["response"] != held.response, said


@pytest.mark.parametrize("who", OTHERS)
async def test_the_names_that_things_have_inside_lead_nowhere(place, held, who) -> None:
    inner = Held(*(f"acme/{value}" for value in vars(held).values()))
    async with place.http(who) as http:
        for (method, path), calls in WALK.items():
            if (method, path) in GOVERNED:
                continue
            for outcome, make in calls:
                asked = make(inner)
                if asked.get("json", {}).get("collection"):
                    asked["json"]["collection"] = "acme/manuals"
                response = await http.request(method, held.paths(path, "acme/"), **asked)
                assert SECRET not in response.text
                if outcome == NOT_THERE:
                    assert response.status_code in (404, 405, 422), f"{method} {path} {response.text}"


def orders() -> dict[str, Body]:
    """A `state` order of every kind, on acme's state."""
    ids, bell = {"ids": [STATE]}, {"named": "bell"}
    return {
        "prepare": {"state": STATE},
        "read": ids,
        "measure": ids | {"basis": "ZZ"},
        "evolve": ids | {"steps": [{"channel": "dephasing", "p": 0.1}], "into": "new"},
        "merge": ids | {"others": [bell]},
        "tensor": ids | {"others": [bell]},
        "partial_trace": ids | {"keep": [0]},
        "fork": ids,
        "compare": {"pairs": [[bell, {"state": STATE}]]},
        "export": {"id": STATE},
        "delete": ids,
    }


@pytest.mark.parametrize("who", OTHERS)
async def test_nothing_of_a_tenant_is_reachable_by_any_frame(place, held, who) -> None:
    resume = [{"stream": held.stream, "epoch": held.epoch, "after_seq": 0}]
    seen = {"hello", "auth.refresh"}  # a refresh by acme's key ends the connection: the last one below
    async with Wire(place.url, hello=False, additional_headers=place.bearer(who)) as wire:

        async def ask(frame: Body) -> Body:
            seen.add(frame["type"])
            answer = await wire.ask({"id": str(len(seen))} | frame)
            assert SECRET not in str(answer)
            assert "acme" not in str(answer)
            return answer

        welcome = await ask({"type": "hello", "resume": resume})
        assert [one["result"] for one in welcome["resumed"]] == ["expired"]
        by_name: list[Body] = [
            {"type": "session.open", "session": held.session, "create": False},
            {"type": "write", "session": held.session, "items": NUTS},
            {"type": "recall", "session": held.session, "text": SECRET},
            {"type": "enhance", "session": held.session, "prompt": "nuts"},
            {"type": "watch", "topic": f"session:{held.session}"},
        ]
        for frame in by_name:
            for prefix in ("", "acme/"):
                named = {name: value for name, value in frame.items() if name in ("session", "topic")}
                named = {name: value.replace(held.session, prefix + held.session) for name, value in named.items()}
                error = (await wire.ask({"id": "n"} | frame | named))["error"]
                assert error["code"] in ("session_not_found", "invalid_request"), (frame, error)
                assert SECRET not in str(error)
                seen.add(frame["type"])
        assert (await ask({"type": "recall", "collections": ["manuals"], "text": "nuts"}))["evidence"] == []
        for target in (held.response, held.stream, KEY, f"acme\0{KEY}"):
            await ask({"type": "cancel", "target": target})
        for op, fields in orders().items():
            answer = await ask({"type": "state", "order": {"op": op} | fields})
            assert answer["type"] == "error", (op, answer)
            assert answer["error"]["code"] in ("not_found", "invalid_request"), (op, answer)
        assert (await ask({"type": "unwatch", "topic": f"session:{held.session}"}))["status"] == "not_found"
        assert (await ask({"type": "ping"}))["type"] == "pong"
        code = {"code": "repetition", "distance": 3, "rounds": 3, "basis": "Z", "p": 0.01}
        opened = await ask({"type": "decode.open", "experiment": code})
        for frame in ("decode.rounds", "decode.close"):  # decoders are a connection's own
            seen.add(frame)
        assert set(FRAMES) == seen, set(FRAMES) - seen
        assert set(orders()) == set(ORDERS)
        assert opened["type"] in ("decode.opened", "error")
        await wire.send({"type": "auth.refresh", "id": "z", "token": place.keys["acme admin"]})
        assert await wire.closed() == 4403


async def test_the_same_names_are_everybodys_own(place, held) -> None:
    """Brook and the default tenant make the same; each reads its own, and what they delete is their own."""
    for who, word in (("brook admin", "heron"), ("default admin", "otter")):
        async with place.http(who) as http:
            items = [{"item_id": "i1", "text": f"The {word} eats nuts.", "speaker": word}]
            assert (await http.post("/v1/sessions", json={"session": "same"})).json()["created"]
            for where in ({"session": "same"}, {"collection": "manuals"}):
                done = (await http.post("/v1/memory", json=where | {"items": items})).json()
                assert (done["accepted"], done["duplicates"]) == (1, 0)
            made = await http.post("/v1/state", json={"named": "ghz:3", "id": STATE, "label": word})
            assert (made.status_code, made.json()["d"]) == (201, 8)
            fork = (await http.post(f"/v1/state/{STATE}/fork", json={})).json()
            assert fork["id"].startswith("st_")
    words = {"acme admin": (SECRET, 4), "brook admin": ("heron", 8), "default admin": ("otter", 8)}
    for who, (word, d) in words.items():
        async with place.http(who) as http:
            found = (
                await http.post(
                    "/v1/memory/recall", json={"session": "same", "collections": ["manuals"], "text": "nuts"}
                )
            ).json()["evidence"]
            assert {one["text"] for one in found} == {f"The {word} eats nuts."}
            assert [one["session"] for one in (await http.get("/v1/sessions")).json()["data"]].count("same") == 1
            item = (await http.get("/v1/memory/i1", params={"collection": "manuals"})).json()
            assert (item["speaker"], item["collection"]) == (word, "manuals")
            state = (await http.get(f"/v1/state/{STATE}")).json()
            assert (state["label"], state["d"]) == (word, d)
            labels = {one["label"] for one in (await http.get("/v1/state")).json()["data"]}
            assert labels == {word}
    for who in OTHERS:
        async with place.http(who) as http:
            assert (await http.delete("/v1/sessions/same")).json()["session"] == "same"
            await http.delete("/v1/memory/i1", params={"collection": "manuals"})
            await http.delete(f"/v1/state/{STATE}")
            assert (await http.get("/v1/sessions/same")).status_code == 404
    async with place.http("acme admin") as http:
        assert (await http.get("/v1/sessions/same")).json()["state"]["items"] == 1
        asked = {"session": "same", "collections": ["manuals"], "text": "nuts"}
        assert len((await http.post("/v1/memory/recall", json=asked)).json()["evidence"]) == 2
        assert (await http.get(f"/v1/state/{STATE}")).json()["d"] == 4
        assert (await http.get(f"/v1/responses/{held.response}")).status_code == 200


def test_names_go_in_and_come_out() -> None:
    for tenant in ("default", "acme", "a-1"):
        assert (plain(inside(tenant, "x")), tenant_of(inside(tenant, "x"))) == ("x", tenant)
        with pytest.raises(ValueError, match="a/x"):
            inside(tenant, "a/x")
