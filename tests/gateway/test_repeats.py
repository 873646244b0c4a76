"""`Idempotency-Key`: carried out once, answered each time."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from sqlalchemy import select
from starlette.responses import Response

from qraf.client.reconnect import Reconnect
from qraf.client.rest import Rest
from qraf.clock import FakeClock
from qraf.errors import KeyInUse, StorageFailed
from qraf.gateway.repeats import Repeats
from qraf.settings import RepeatSettings
from qraf.storage import tables
from qraf.storage.journal import Journal
from tests.gateway.test_stream import eventually

KEY = {"idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


def key(name: str) -> dict[str, str]:
    return {"idempotency-key": name}


@pytest_asyncio.fixture(loop_scope="module")
async def session(http):
    made = (await http.post("/v1/sessions", json={})).json()["session"]
    yield made
    await http.delete(f"/v1/sessions/{made}")


async def items_of(http, session: str) -> list[str]:
    return [one["text"] for one in (await http.get(f"/v1/memory?session={session}")).json()["data"]]


async def test_the_same_again_is_answered_and_not_carried_out(http, session) -> None:
    body = {"session": session, "items": [{"text": "I am allergic to nuts."}]}
    first = await http.post("/v1/memory", json=body, headers=key("a"))
    again = await http.post("/v1/memory", json=body, headers=key("a"))
    assert (first.status_code, again.status_code) == (200, 200)
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert (again.json(), again.headers["content-type"]) == (first.json(), first.headers["content-type"])
    assert await items_of(http, session) == ["I am allergic to nuts."]
    assert (await http.post("/v1/memory", json=body)).json()["accepted"] == 1  # without a key it is a second item


async def test_the_same_key_with_another_request_is_refused(http, session) -> None:
    body = {"session": session, "items": [{"text": "One."}]}
    await http.post("/v1/memory", json=body, headers=key("b"))
    for path, other in (("/v1/memory", body | {"items": [{"text": "Two."}]}), ("/v1/sessions", body)):
        refused = await http.post(path, json=other, headers=key("b"))
        problem = refused.json()
        assert (refused.status_code, problem["code"], problem["retryable"]) == (422, "idempotency_key_reused", False)
        assert problem["errors"][0]["pointer"] == "/headers/idempotency-key"


async def test_a_request_under_way_holds_its_key(http, session, server, monkeypatch) -> None:
    go, body = asyncio.Event(), {"session": session, "items": [{"text": "Slow."}]}
    write = server.service.writer.write

    async def slow(**given):
        await go.wait()
        return await write(**given)

    monkeypatch.setattr(server.service.writer, "write", slow)
    first = asyncio.create_task(http.post("/v1/memory", json=body, headers=key("c")))
    await asyncio.sleep(0.1)
    busy = await http.post("/v1/memory", json=body, headers=key("c"))
    assert (busy.status_code, busy.json()["code"], busy.json()["retryable"]) == (409, "idempotency_key_in_use", True)
    assert busy.headers["retry-after"] == "1"
    go.set()
    assert (await first).json()["accepted"] == 1
    assert (await http.post("/v1/memory", json=body, headers=key("c"))).headers["idempotent-replayed"] == "true"


async def test_what_fails_frees_its_key(http, session) -> None:
    wrong = await http.post("/v1/memory", json={"session": session, "items": []}, headers=key("d"))
    right = await http.post("/v1/memory", json={"session": session, "items": [{"text": "x"}]}, headers=key("d"))
    assert (wrong.status_code, right.status_code) == (422, 200)


async def test_a_try_whose_gateway_died_wrote_under_ids_that_the_next_try_finds(http, session, server) -> None:
    body = {"session": session, "items": [{"text": "Once."}, {"text": "Twice."}]}
    first = (await http.post("/v1/memory", json=body, headers=key("e"))).json()
    journal = server.service.journal.answers
    # as if the gateway had died after the commit and before it kept the answer, and the lease had ended
    with journal._write("forget") as connection:
        connection.execute(tables.answers.delete())
    again = (await http.post("/v1/memory", json=body, headers=key("e"))).json()
    assert (first["accepted"], again["accepted"], again["duplicates"]) == (2, 0, 2)
    named = [(await http.post("/v1/sessions", json={}, headers=key("f"))).json() for _ in range(2)]
    with journal._write("forget") as connection:
        connection.execute(tables.answers.delete())
    named.append((await http.post("/v1/sessions", json={}, headers=key("f"))).json())
    assert len({one["session"] for one in named}) == 1
    assert [one["created"] for one in named] == [True, True, False]
    states = [(await http.post("/v1/state", json={"named": "bell"}, headers=key("g"))) for _ in range(2)]
    with journal._write("forget") as connection:
        connection.execute(tables.answers.delete())
    states.append(await http.post("/v1/state", json={"named": "bell"}, headers=key("g")))
    assert len({one.json()["id"] for one in states}) == 1
    assert [one.status_code for one in states] == [201, 201, 201]
    assert states[1].headers["location"] == states[0].headers["location"]


async def test_a_change_of_a_state_happens_once(http) -> None:
    state = (await http.post("/v1/state", json={"named": "bell"})).json()["id"]
    change = {"steps": [{"channel": "depolarizing", "p": 0.1, "subsystems": [0]}]}
    views = [(await http.post(f"/v1/state/{state}/evolve", json=change, headers=key("h"))) for _ in range(3)]
    assert [one.json()["version"] for one in views] == [2, 2, 2]
    assert views[2].headers["etag"] == '"2"'


async def test_a_job_is_started_once_and_a_plain_answer_is_not_kept(http) -> None:
    order = {"op": "nearest", "matrices": [[1.25, 0.0], [0.0, -0.25]]}
    jobs = [
        await http.post("/v1/optimize", json=order, headers=key("i") | {"prefer": "respond-async"}) for _ in range(2)
    ]
    assert jobs[0].json()["id"] == jobs[1].json()["id"]
    assert [one.status_code for one in jobs] == [202, 202]
    plain = [await http.post("/v1/optimize", json=order, headers=key("j")) for _ in range(2)]
    assert ["idempotent-replayed" in one.headers for one in plain] == [False, False]


async def test_a_request_that_is_at_work_for_longer_than_a_lease_keeps_its_key() -> None:
    clock = FakeClock()
    journal = Journal.open("sqlite:///:memory:", clock)
    repeats = Repeats(journal.answers, RepeatSettings(lease_s=0.03))  # of the clock, which is renewed every 0.01 s
    go = asyncio.Event()

    async def work() -> Response:
        await go.wait()
        return Response(b"done", 200)

    def expires_at() -> float:
        with journal.answers._write("look") as connection:
            return connection.execute(select(tables.answers.c.expires_at)).scalar() or 0.0

    first = asyncio.create_task(repeats.once("acme", "k", b"a", work, lambda _: True))
    await eventually(lambda: expires_at() > 0)
    for _ in range(3):
        clock.advance(0.02)
        until = clock.now() + 0.03
        await eventually(lambda until=until: expires_at() >= until)
    with pytest.raises(KeyInUse):
        await repeats.once("acme", "k", b"a", work, lambda _: True)
    go.set()
    assert (await first).body == (await repeats.once("acme", "k", b"a", work, lambda _: True)).body == b"done"
    journal.close()


async def test_a_journal_that_fails_after_the_work_does_not_spoil_the_answer(
    http, session, server, monkeypatch
) -> None:
    def fails(*given):
        raise StorageFailed("keep an answer", "the disk is full")

    monkeypatch.setattr(server.service.journal.answers, "finish", fails)
    body = {"session": session, "items": [{"text": "x"}]}
    done = await http.post("/v1/memory", json=body, headers=key("k"))
    assert (done.status_code, done.json()["accepted"]) == (200, 1)
    assert (await http.post("/v1/memory", json=body, headers=key("k"))).status_code == 409  # until its lease ends


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 256])
async def test_a_key_that_cannot_be_is_refused(http, session, name) -> None:
    body = {"session": session, "items": [{"text": "x"}]}
    refused = await http.post("/v1/memory", json=body, headers={"idempotency-key": name.encode("latin-1")})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/headers/idempotency-key")


async def test_secrets_are_not_kept(http) -> None:
    for path in ("/v1/keys", "/v1/ws-tickets"):
        refused = await http.post(path, json={}, headers=KEY)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


async def test_the_client_sends_again_what_broke_off_and_it_is_carried_out_once(http, server) -> None:
    """A proxy brings the first two requests to the server and cuts the connection when the answer comes."""
    lost: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        below.write(await reader.read(65536))
        answer = await above.read(65536)
        if len(lost) < 2:
            lost.append(answer)
            writer.transport.abort()
        else:
            writer.write(answer)
            await writer.drain()
            writer.close()
        below.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        rest = Rest(f"http://127.0.0.1:{port}", reconnect=Reconnect(first_s=0.01, give_up_s=5))
        made = await rest.call("POST", "/v1/state", body={"named": "bell", "label": "made once"})
        await rest.close()
    assert [b" 201 " in answer.partition(b"\r\n")[0] for answer in lost] == [True, True]
    states = (await http.get("/v1/state?limit=200")).json()["data"]
    assert [one["id"] for one in states if one["label"] == "made once"] == [made["id"]]


async def test_an_answer_that_names_a_session_is_gone_with_the_session(http, server) -> None:
    table, journal = tables.answers, server.service.journal.answers
    made = (await http.post("/v1/sessions", json={"metadata": {"note": "walnuts"}}, headers=key("s1"))).json()
    session = made["session"]
    await http.post(f"/v1/sessions/{session}/pause", headers=key("s2"))
    await http.post(f"/v1/sessions/{session}/resume", headers=key("s3"))
    written = {"session": session, "items": [{"text": "walnuts", "item_id": "walnuts"}]}
    await http.post("/v1/memory", json=written, headers=key("s4"))
    gone = {"session": session, "filter": {"field": "item_id", "eq": "walnuts"}}
    await http.post("/v1/memory/forget", json=gone, headers=key("s5"))
    with journal._write("look") as connection:
        held = connection.execute(select(table.c.body).where(table.c.session == session)).scalars().all()
    assert len(held) == 5
    assert b"walnuts" in b"".join(map(bytes, held))
    await http.delete(f"/v1/sessions/{session}")
    with journal._write("look") as connection:
        assert not [body for body in connection.execute(select(table.c.body)).scalars() if session.encode() in body]
    again = await http.post("/v1/memory", json=written, headers=key("s4"))
    assert (again.status_code, again.json()["code"]) == (404, "session_not_found")
    for name in ("a/b", "%2e"):
        refused = await http.post("/v1/memory", json=written | {"session": name}, headers=key(f"s-{name[0]}"))
        assert (refused.status_code, refused.json()["code"]) == (404, "session_not_found")
