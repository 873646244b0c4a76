"""A client whose connections break, against the real server behind a proxy that cuts, and against a scripted one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

import qraf
from qraf.client import Reconnect
from qraf.errors import ConnectionLost, ServerError
from qraf.frames import NetworkSnapshot, ResponseDelta, ResponseDone, SessionOpen
from tests.client.scripted import FIGURES, Frame, Peer, answer, created, scripted, stamped, write_done
from tests.cutting_proxy import cutting
from tests.gateway.conftest import serving
from tests.openai_server import OpenAIServer, Script

QUICK = Reconnect(first_s=0.005, most_s=0.05, give_up_s=5.0, max_sends=50)


# ------------------------------------------------------------------------------------------------ the real server
@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("framing", ["msgpack", "json"])
async def test_streams_cut_at_a_random_frame_are_identical_to_uncut_ones(model: OpenAIServer, framing: Any) -> None:
    """100 cuts in each framing; the user of the client sees neither."""
    dice = random.Random(framing)
    before = model.produced
    model.script = Script(num_tokens=250, tokens_per_s=500)
    async with serving(model) as server, cutting(server.url, lambda: dice.randint(1, 12)) as proxy:
        responses = 0
        async with qraf.connect(proxy.url, framing=framing, coalesce_ms=0, reconnect=QUICK) as q:
            while proxy.cuts < 100:
                runs = [q.enhance(f"Go {i}.", generate={"max_tokens": 300}) for i in range(3)]
                ends = await asyncio.gather(*(collect(run) for run in runs))
                for run, frames in zip(runs, ends, strict=True):
                    responses += 1
                    assert run.text == model.script.text(250)
                    assert sum(frame.tokens for frame in frames if isinstance(frame, ResponseDelta)) == 250
                    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
                    assert [type(frame) for frame in frames].count(ResponseDone) == 1
                    assert (run.gaps, run.done.status) == (0, "completed")
            assert q.reconnects >= 90
        assert model.produced - before == 250 * responses  # the model spoke once for each
        meters = server.app.state.gate.meters
        assert meters.resumes.labels("replayed")._value.get() > 50
        assert meters.resumes.labels("expired")._value.get() == 0


async def collect(response: qraf.client.Response) -> list[Any]:
    return [frame async for frame in response]


@pytest.mark.slow
async def test_everything_else_goes_on_through_cuts(model: OpenAIServer) -> None:
    dice = random.Random(3)
    async with serving(model) as server, cutting(server.url, lambda: dice.randint(1, 8)) as proxy:
        async with qraf.connect(proxy.url, reconnect=QUICK) as q:
            opened = await q.open_session()
            done = await q.write((f"line {n}" for n in range(200)), session=opened.session, batch=4)
            assert done.accepted + done.duplicates == 200
            assert done.rejected == ()
            assert len((await q.items.list(session=opened.session, limit=200))["data"]) == 200
            for n in range(20):
                found = await q.recall(f"line {n}", session=opened.session, k=1)
                assert len(found.evidence) == 1
            assert q.reconnects > 10
        async with qraf.connect(server.url) as q:
            assert (await q.open_session(opened.session)).state.items == 200


@pytest.mark.slow
async def test_a_gap_is_filled_with_the_text_that_the_server_has(model: OpenAIServer) -> None:
    model.script = Script(num_tokens=600, tokens_per_s=400)
    async with (
        serving(model, ring_frames=3) as server,
        cutting(server.url) as proxy,
        qraf.connect(proxy.url, coalesce_ms=0, reconnect=QUICK) as q,
    ):
        response = q.enhance("Go on.", generate={"max_tokens": 600})
        fetch = response._fetch

        async def slowly(id: str) -> dict[str, Any]:
            await asyncio.sleep(0.2)
            told = await fetch(id)
            await asyncio.sleep(0.2)  # more than 64 frames come meanwhile: some are in `told`, some are new
            return told

        response._fetch = slowly
        async for frame in response:
            if isinstance(frame, ResponseDelta) and len(response.text) > 50 and not proxy.cuts:
                proxy.is_refusing = True
                proxy.cut()
                for _ in range(20):  # while the client is away somebody asks for the text, so the ring moves on
                    await asyncio.sleep(0.01)
                    server.service.responses.find(response.id).snapshot()
                proxy.is_refusing = False
        assert response.text == model.script.text(600)
        assert response.gaps == 1


@pytest.mark.slow
async def test_a_client_that_was_away_too_long_sees_one_end(model: OpenAIServer) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    before = model.produced
    async with (
        serving(model, response_grace_s=0.1) as server,
        cutting(server.url) as proxy,
        qraf.connect(proxy.url, reconnect=QUICK) as q,
    ):
        response = q.enhance("Go on.", generate={"max_tokens": 2000})
        async for frame in response:
            if isinstance(frame, ResponseDelta) and not proxy.cuts:
                proxy.is_refusing = True
                proxy.cut()
                asyncio.get_running_loop().call_later(1.0, setattr, proxy, "is_refusing", False)
        assert (response.done.status, response.done.finish_reason) == ("cancelled", "disconnected")
        assert model.script.text(2000).startswith(response.text)
        assert model.produced - before < 1000


@pytest.mark.slow
async def test_leaving_a_response_while_the_connection_is_down_stops_it(model: OpenAIServer) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with serving(model) as server, cutting(server.url) as proxy, qraf.connect(proxy.url, reconnect=QUICK) as q:
        async for frame in q.enhance("Go on.", generate={"max_tokens": 2000}):
            if isinstance(frame, ResponseDelta):
                proxy.is_refusing = True
                proxy.cut()
                await asyncio.sleep(0.05)
                break
        proxy.is_refusing = False
        async with asyncio.timeout(15):
            while model.running:
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_newer_connection_ends_the_older_client_for_good(model: OpenAIServer) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=100)
    async with serving(model) as server, qraf.connect(server.url, reconnect=QUICK) as old:
        response = old.enhance("Go on.", generate={"max_tokens": 2000})
        frames = aiter(response)
        await anext(frames)
        server.service.responses.find(response.id).attach()
        with pytest.raises(ConnectionLost) as lost:
            async for _ in frames:
                pass
        assert lost.value.close == 4009
        assert old.reconnects == 0
        with pytest.raises(ConnectionLost):
            await old.ping()


@pytest.mark.slow
def test_the_synchronous_client_comes_back_too(url: str, model: OpenAIServer) -> None:
    model.script = Script(num_tokens=200, tokens_per_s=400)
    loop = asyncio.new_event_loop()

    async def scenario() -> tuple[str, int]:
        async with cutting(url, lambda: 20) as proxy:

            def talk() -> tuple[str, int]:
                with qraf.connect_sync(proxy.url, coalesce_ms=0, reconnect=QUICK) as q:
                    text = "".join(q.enhance("Go on.", collections=["notes"], generate={"max_tokens": 200}).texts())
                    return text, q.reconnects

            return await asyncio.to_thread(talk)

    try:
        text, reconnects = loop.run_until_complete(scenario())
    finally:
        loop.close()
    assert text == model.script.text(200)
    assert reconnects > 2


# ------------------------------------------------------------------------------------------------ a scripted server
async def die(peer: Peer, frame: Frame) -> None:
    peer.ws.transport.abort()


def dies_first(then: Any) -> Any:
    """A handler that breaks the connection the first time that a command comes."""
    seen: set[str] = set()

    async def handle(peer: Peer, frame: Frame) -> None:
        if frame["id"] in seen:
            await then(peer, frame)
        else:
            seen.add(frame["id"])
            peer.ws.transport.abort()

    return handle


async def recalled(peer: Peer, frame: Frame) -> None:
    route = {"hops": []}
    await peer.send({"type": "recall.done", "id": frame["id"], "evidence": [], "route": route, "state": FIGURES})


async def opened(peer: Peer, frame: Frame) -> None:
    await peer.send({"type": "session.opened", "id": frame["id"], "session": frame["session"], "state": FIGURES})


async def test_what_was_not_answered_is_sent_again_as_it_was() -> None:
    handlers = {
        "recall": dies_first(recalled),
        "write": dies_first(write_done),
        "session_open": dies_first(opened),
        "enhance": dies_first(answer),
    }
    async with scripted(**handlers) as server, qraf.connect(server.url, reconnect=QUICK) as q:
        assert (await q.open_session()).session.startswith("ses_")
        assert (await q.recall("x", collections=["a"])).coverage == 0
        assert (await q.write(["a", "b"], session="s")).accepted == 2
        response = q.enhance("hi")
        await response.result()
        assert response.text == "Hello, world"
        assert q.reconnects == 4
        for kind in ("recall", "write", "session.open", "enhance"):
            first, second = server.of(kind)
            again = {"again": True} if kind == "enhance" else {}  # which another gateway may have begun
            assert first | again == second
        assert server.of("enhance")[0]["key"].startswith("key_")


async def test_what_may_not_be_repeated_ends_with_a_clear_error() -> None:
    async with scripted(decode_open=die, session_open=die) as server, qraf.connect(server.url, reconnect=QUICK) as q:
        with pytest.raises(ConnectionLost, match=r"`decode\.open` is not repeated"):
            await q.decode({"code": "repetition", "distance": 3, "rounds": 2}).__aenter__()
        nameless = SessionOpen(id="x")
        with pytest.raises(ConnectionLost, match=r"`session\.open` is not repeated"):
            await q._connection.request(nameless, object)
        assert await q.ping() >= 0
        assert len(server.of("session.open")) == 1


async def test_a_command_that_always_breaks_the_connection_is_given_up() -> None:
    policy = Reconnect(first_s=0.001, most_s=0.002, max_sends=3)
    async with scripted(recall=die) as server, qraf.connect(server.url, reconnect=policy) as q:
        with pytest.raises(ConnectionLost, match="was sent 3 times"):
            await q.recall("x", collections=["a"])
        assert len(server.of("recall")) == 3
        assert await q.ping() >= 0


async def test_when_there_is_no_way_back_everything_ends() -> None:
    policy = Reconnect(first_s=0.01, most_s=0.02, give_up_s=0.2)
    async with (
        scripted(recall=die) as server,
        cutting(server.url) as proxy,
        qraf.connect(proxy.url, reconnect=policy) as q,
    ):
        proxy.is_refusing = True
        with pytest.raises(ConnectionLost, match="no way back"):
            await q.recall("x", collections=["a"])
        assert not q.is_open
        with pytest.raises(ConnectionLost):
            await q.ping()


async def test_goodbye_says_how_long_to_wait_at_least() -> None:
    async def leave(peer: Peer, frame: Frame) -> None:
        if len(server.of("recall")) > 1:
            await recalled(peer, frame)
        else:
            await peer.send({"type": "goodbye", "reason": "the server stops", "reconnect_after_ms": 300})
            await peer.ws.close(1001)

    async with scripted(recall=leave) as server, qraf.connect(server.url, reconnect=QUICK) as q:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await q.recall("x", collections=["a"])
        assert loop.time() - began >= 0.3


@pytest.mark.parametrize("close", [4010, 4401, 4403, 4411, 4412, 4421, 4422])
async def test_some_closes_are_not_come_back_from(close) -> None:
    async def shut(peer: Peer, frame: Frame) -> None:
        await peer.ws.close(close)

    async with scripted(recall=shut) as server, qraf.connect(server.url, reconnect=QUICK) as q:
        with pytest.raises(ConnectionLost) as lost:
            await q.recall("x", collections=["a"])
        assert lost.value.close == close
        assert len(server.peers) == 1


async def test_a_response_that_the_new_server_does_not_know_ends_once_as_failed() -> None:
    async def begin(peer: Peer, frame: Frame) -> None:
        make = stamped("st_1")
        await peer.send(created(make, frame))
        await peer.send(make("response.delta", text="half"))
        peer.ws.transport.abort()

    async with scripted(enhance=begin) as server, qraf.connect(server.url, reconnect=QUICK) as q:
        response = q.enhance("hi")
        frames = [frame async for frame in response]
        assert [type(frame).__name__ for frame in frames] == ["ResponseCreated", "ResponseDelta", "ResponseDone"]
        with pytest.raises(ServerError, match="replay_gone") as failed:
            await response.result()
        assert failed.value.can_retry
        assert len(server.of("enhance")) == 1


@pytest.mark.parametrize("has_text", [False, True])
async def test_a_response_that_nobody_had_heard_of_is_asked_for_again_if_it_had_said_nothing(has_text: bool) -> None:
    async def begin(peer: Peer, frame: Frame) -> None:
        if frame.get("again"):
            await answer(peer, frame)
            return
        make = stamped("st_lost")
        await peer.send(created(make, frame))
        await peer.send(make("response.hop", node="desk", memory="s/x", ms=1.0, items_scanned=1, state=FIGURES))
        if has_text:
            await peer.send(make("response.delta", text="Hel"))
        peer.ws.transport.abort()

    async with scripted(enhance=begin) as server, qraf.connect(server.url, reconnect=QUICK) as q:
        server.result = "expired"
        response = q.enhance("hi")
        kinds = [type(frame).__name__ async for frame in response]
        assert (kinds.count("ResponseCreated"), kinds.count("ResponseDone")) == (1, 1)
        assert response.done is not None
        if has_text:
            assert (response.text, response.done.status) == ("Hel", "failed")
        else:
            assert (response.text, response.done.status) == ("Hello, world", "completed")
            assert [hop.stream for hop in response.hops] == ["st_c1"]  # none of the lost one
        assert len(server.of("enhance")) == 2 - has_text


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_what_runs_elsewhere_comes_in_pieces_and_ends_once(end: str) -> None:
    async def begin(peer: Peer, frame: Frame) -> None:
        make = stamped("st_1")
        await peer.send(created(make, frame))
        await peer.send(make("response.delta", text="a"))
        peer.ws.transport.abort()

    told: list[Any] = [("running", 2, "a"), ServerError("runs_elsewhere", "later", "", True, 1), ("running", 4, "abc")]
    told += [("running", 4, "abc"), (end, 9, "abcdef" if end == "completed" else "")]

    async def fetch(_: str) -> Any:
        if isinstance(now := told.pop(0), ServerError):
            raise now
        whole = {"stream": "st_1", "finish_reason": "stop", "usage": {}, "error": None}
        return whole | dict(zip(("status", "seq", "text"), now, strict=True))

    async with scripted(enhance=begin) as server, qraf.connect(server.url, reconnect=QUICK) as q:
        server.result = "elsewhere"
        response = q.enhance("hi")
        response._fetch = fetch
        frames = [frame async for frame in response]
        texts = [frame.text for frame in frames if isinstance(frame, ResponseDelta)]
        assert texts == (["a", "bc", "def"] if end == "completed" else ["a", "bc"])
        assert isinstance(frames[-1], ResponseDone)
        assert (frames[-1].status, response.gaps, told) == (end, 1, [])


async def test_watches_begin_anew() -> None:
    async def watch(peer: Peer, frame: Frame) -> None:
        make = stamped(f"st_{len(server.peers)}")
        await peer.send({"type": "ack", "id": frame["id"], "status": "accepted"})
        await peer.send(
            make("network.snapshot", topology="t", nodes=[{"node": f"n{len(server.peers)}", "role": "memory"}])
        )
        if len(server.peers) < 3:
            peer.ws.transport.abort()

    async with scripted(watch=watch) as server, qraf.connect(server.url, reconnect=QUICK) as q:
        seen = []
        async for frame in q.watch("network", every_ms=250):
            assert isinstance(frame, NetworkSnapshot)
            seen.append(frame.nodes[0].node)
            if len(seen) == 3:
                break
        assert seen == ["n1", "n2", "n3"]
        assert {frame["every_ms"] for frame in server.of("watch")} == {250}


def test_pauses_grow_with_jitter_up_to_a_bound() -> None:
    policy = Reconnect(first_s=0.1, most_s=5.0)
    for attempt, most in ((0, 0.1), (3, 0.8), (6, 5.0), (1000, 5.0)):
        pauses = [policy.pause_s(attempt) for _ in range(200)]
        assert 0 <= min(pauses) < 0.2 * most
        assert 0.8 * most < max(pauses) <= most
    assert policy.pause_s(0, at_least_s=2.0) >= 2.0
