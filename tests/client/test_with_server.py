"""The client against the real server: local runtime, scripted model."""

from __future__ import annotations

import asyncio

import pytest

import qraf
from qraf.errors import ServerError
from qraf.frames import NetworkSnapshot, ResponseDelta, ResponseDone
from tests.openai_server import OpenAIServer, Script

pytestmark = pytest.mark.slow  # a whole service, or processes


async def test_write_recall_enhance(url: str) -> None:
    async with qraf.connect(url) as q:
        opened = await q.open_session("parrot", metadata={"kind": "test"})
        assert opened.created
        done = await q.write(
            ["The parrot is called Pixel.", {"text": "The cat is called Byte.", "speaker": "Ann"}], session="parrot"
        )
        assert (done.accepted, done.rejected, done.state.items) == (2, (), 2)
        recalled = await q.recall("What is the parrot called?", session="parrot", explain=True)
        assert recalled.evidence[0].text == "The parrot is called Pixel."
        assert recalled.evidence[0].terms is not None
        response = q.enhance("What is the parrot called?", session="parrot", collections=[], generate={"max_tokens": 8})
        frames = [frame async for frame in response]
        assert response.text == "It is Pixel."
        assert isinstance(frames[-1], ResponseDone)
        assert [frame.seq for frame in frames] == sorted(frame.seq for frame in frames)
        assert response.evidence[0].text == "The parrot is called Pixel."
        assert (await q.response(response.id))["text"] == "It is Pixel."


async def test_a_session_is_configured(url: str) -> None:
    async with qraf.connect(url) as q:
        await q.open_session("small", bits=8, budget_bytes=100_000)
        done = await q.write(["The parrot is called Pixel."], session="small")
        assert (done.state.bits, done.state.budget_bytes, done.state.tiers["8"]) == (8, 100_000, 1)
        changed = await q.configure_session("small", bits=1)
        assert (changed["bits"], changed["budget_bytes"], changed["state"]["tiers"]["1"]) == (1, 100_000, 1)
        changed = await q.configure_session("small", bits=None, budget_bytes=None)
        assert (changed["bits"], changed["budget_bytes"], changed["state"]["bits"]) == (None, None, 4)

    def twin() -> None:
        with qraf.connect_sync(url) as q:
            assert q.open_session("small", bits=2).state.tiers == {"2": 1, "1": 0, "evicted": 0}
            assert q.configure_session("small", budget_bytes=8192)["state"]["budget_bytes"] == 8192
            assert q.sessions.configure("small", bits=4)["state"]["tiers"]["4"] == 1

    await asyncio.to_thread(twin)


async def test_same_items_again_change_nothing(url: str) -> None:
    items = [{"item_id": f"i{number}", "text": f"line {number}"} for number in range(70)]
    async with qraf.connect(url) as q:
        await q.open_session("twice")
        first = await q.write(items, session="twice", batch=16)
        again = await q.write(items, session="twice", batch=16)
        assert (first.accepted, again.accepted, again.duplicates) == (70, 0, 70)
        assert [item["item_id"] for item in (await q.items.list(session="twice", limit=200))["data"]] == list(
            first.item_ids
        )


async def test_leaving_the_loop_stops_the_model(url: str, model: OpenAIServer) -> None:
    model.script = Script(num_tokens=100_000, tokens_per_s=500)
    async with qraf.connect(url) as q:
        async for frame in q.enhance("Go on.", collections=["notes"], generate={"max_tokens": 2000}):
            if isinstance(frame, ResponseDelta):
                break
        for _ in range(500):
            if not model.running:
                break
            await asyncio.sleep(0.01)
        assert not model.running
        assert model.produced < 1000


async def test_generate_false_ends_with_the_evidence(url: str) -> None:
    async with qraf.connect(url, framing="json") as q:
        await q.write("Ducks quack.", collection="papers")
        response = q.enhance("What do ducks do?", collections=["papers"], generate=False)
        done = await response.result()
        assert (done.status, response.text) == ("completed", "")
        assert [item.text for item in response.evidence] == ["Ducks quack."]


async def test_rest_nouns(url: str) -> None:
    async with qraf.connect(url) as q:
        await q.open_session("rest")
        done = await q.write([{"text": "One.", "item_id": "one"}, {"text": "Two.", "item_id": "two"}], session="rest")
        assert done.accepted == 2
        assert "rest" in {session["session"] for session in (await q.sessions.list(limit=200))["data"]}
        assert (await q.sessions.get("rest"))["state"]["items"] == 2
        assert (await q.items.get("one", session="rest"))["text"] == "One."
        condition = {"field": "item_id", "eq": "one"}
        assert (await q.items.forget(session="rest", filter=condition, dry_run=True))["count"] == 1
        await q.items.forget(session="rest", filter=condition)
        await q.items.delete("two", session="rest")
        assert (await q.items.list(session="rest"))["data"] == []
        await q.sessions.pause("rest")
        with pytest.raises(ServerError, match="session_closed"):
            await q.write("Three.", session="rest")
        await q.sessions.resume("rest")
        await q.write("Three.", session="rest")
        await q.sessions.delete("rest")
        with pytest.raises(ServerError, match="session_not_found"):
            await q.open_session("rest", create=False)
        assert (await q.topology())["name"] == "lab"
        assert (await q.route("parrot"))["hops"]
        assert (await q.health())["ready"]
        assert "qraf_write_items_total" in await q.metrics()


async def test_watch_the_network(url: str) -> None:
    async with qraf.connect(url) as q:
        async for frame in q.watch("network", every_ms=100):
            assert isinstance(frame, NetworkSnapshot)
            assert {view.node for view in frame.nodes} == {"alpha", "beta", "gamma", "writer"}
            break
        assert 0 <= await q.ping() < 5


async def test_cancel_by_another_call(url: str, model: OpenAIServer) -> None:
    model.script = Script(num_tokens=100_000, tokens_per_s=200)
    async with qraf.connect(url) as q:
        response = q.enhance("Go on.", collections=["notes"], generate={"max_tokens": 2000})
        said = ""
        async for frame in response:
            if isinstance(frame, ResponseDelta) and not said:
                said = response.text
                assert await q.cancel(response.id)
        assert response.done is not None
        assert response.done.status == "cancelled"
        assert response.text.startswith(said)
        assert not await q.cancel(response.id)


async def test_server_names_what_is_wrong(url: str) -> None:
    async with qraf.connect(url) as q:
        with pytest.raises(ServerError) as failed:
            await q.recall("x", collections=["nowhere"])
        assert "nowhere" in failed.value.detail
        done = await q.write(["fine", "x" * 600_000], collection="notes")
        assert (done.accepted, [item.index for item in done.rejected]) == (1, [1])
        assert (await q.write(["nul \x00 inside"], collection="notes")).accepted == 1
