"""Clients that know only docs/protocol.md: a plain WebSocket in JSON framing, curl, and one that is killed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import websockets

import qraf
from tests.end_to_end.serving import Served, served
from tests.openai_server import OpenAIServer, Script

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def shared_model() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shared_model: OpenAIServer) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), shared_model.endpoint.url, runtime="local") as server:
        yield server


@pytest.fixture
def model(shared_model: OpenAIServer) -> OpenAIServer:
    shared_model.script = Script(words=("Nuts", ",", " Ana", "."), num_tokens=4)
    shared_model.produced = 0
    return shared_model


async def test_a_conversation_in_json_with_nothing_but_websockets(server: Served, model: OpenAIServer) -> None:
    async with websockets.connect(
        server.url.replace("http", "ws") + "/v1/ws",
        subprotocols=[websockets.Subprotocol("qraf.v1")],
        additional_headers={"Authorization": server.bearer},
    ) as ws:

        async def say(**frame: object) -> None:
            await ws.send(json.dumps(frame))

        async def hear(kind: str) -> dict[str, object]:
            async with asyncio.timeout(20):
                while True:
                    frame = json.loads(await ws.recv())
                    assert next(iter(frame)) == "type"
                    assert frame["type"] != "error", frame
                    if frame["type"] == kind:
                        return dict(frame)

        await say(type="hello", client={"name": "stranger", "version": "1"})
        assert (await hear("welcome"))["limits"]
        await say(type="session.open", id="1")
        session = (await hear("session.opened"))["session"]
        await say(type="write", id="2", session=session, items=[{"text": "I am allergic to nuts.", "speaker": "Ana"}])
        assert (await hear("write.done"))["accepted"] == 1
        await say(type="recall", id="3", session=session, text="What can Ana not eat?")
        evidence = (await hear("recall.done"))["evidence"]
        assert evidence[0]["text"] == "I am allergic to nuts."  # type: ignore[index]
        await say(type="enhance", id="4", session=session, prompt="What can Ana not eat?", collections=[])
        text, last = "", 0
        while True:
            async with asyncio.timeout(20):
                frame = json.loads(await ws.recv())
            if "stream" in frame:
                assert frame["seq"] == last + 1
                last = frame["seq"]
            if frame["type"] == "response.delta":
                text += frame["text"]
            if frame["type"] == "response.done":
                break
        assert (text, frame["status"]) == ("Nuts, Ana.", "completed")
        await say(type="ping", id="5")
        await hear("pong")


async def test_who_has_no_key_stays_out(server: Served) -> None:
    with pytest.raises(qraf.QrafError, match="not_authenticated"):
        async with qraf.connect(server.url, api_key=""):
            pass
    async with qraf.connect(server.url) as q:  # found unasked
        assert await q.ping() < 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_server_sent_events_with_curl(server: Served, model: OpenAIServer) -> None:
    body = json.dumps({"prompt": "What can Ana not eat?", "collections": ["manuals"], "stream": True})
    headers = ("content-type: application/json", f"authorization: {server.bearer}")
    told = subprocess.run(
        [
            "curl",
            "-sSN",
            f"{server.url}/v1/enhance",
            *(part for header in headers for part in ("-H", header)),
            "-d",
            body,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    events = [dict(line.split(": ", 1) for line in block.splitlines()) for block in told.strip().split("\n\n")]
    kinds = [event["event"] for event in events if "event" in event]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.done"
    assert kinds.count("response.done") == 1
    data = [json.loads(event["data"]) for event in events if "data" in event]
    assert "".join(frame["text"] for frame in data if frame["type"] == "response.delta") == "Nuts, Ana."


async def test_without_a_grace_a_killed_client_stops_the_model_within_one_token(
    shared_model: OpenAIServer, model: OpenAIServer, tmp_path: Path
) -> None:
    settings = {"QRAF_LIMITS__RESPONSE_GRACE_S": "0"}
    with served(tmp_path, shared_model.endpoint.url, runtime="local", settings=settings) as server:
        await killed_client(server, model)
        at_kill = model.produced
        for _ in range(200):
            if not model.running:
                break
            await asyncio.sleep(0.02)
        assert model.running == 0
        assert model.produced <= at_kill + 1
        assert at_kill < 1000


async def test_a_killed_clients_response_runs_on_until_its_grace_is_over(server: Served, model: OpenAIServer) -> None:
    response = await killed_client(server, model)
    at_kill = model.produced
    for _ in range(200):
        if model.produced > at_kill + 5:
            break
        await asyncio.sleep(0.02)
    assert model.running == 1
    assert model.produced > at_kill + 5
    async with httpx.AsyncClient(base_url=server.url, headers={"Authorization": server.bearer}) as http:
        assert (await http.post(f"/v1/responses/{response}/cancel")).status_code == 200
        for _ in range(200):
            ended = (await http.get(f"/v1/responses/{response}")).json()["status"]
            if ended != "running":
                break
            await asyncio.sleep(0.02)
    assert ended == "cancelled"
    assert model.running == 0


async def killed_client(server: Served, model: OpenAIServer) -> str:
    """Kill a client that has three tokens of a long answer; the id of the response."""
    model.script = Script(tokens_per_s=10)
    program = textwrap.dedent(
        f"""
        import asyncio, qraf
        async def main():
            async with qraf.connect({server.url!r}) as q:
                response = q.enhance("nuts?", collections=["manuals"], generate={{"max_tokens": 1000}})
                async for piece in response.texts():
                    print(response.id, flush=True)
        asyncio.run(main())
        """
    )
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert client.stdout is not None
    for _ in range(3):
        response = (await client.stdout.readline()).decode().strip()
        assert response
    client.kill()
    await client.wait()
    return response
