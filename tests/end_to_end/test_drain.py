"""SIGTERM: what runs comes to its end, sockets hear goodbye, nothing new is begun, and the process ends with 0."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.serving import served
from tests.gateway.wire import Wire
from tests.openai_server import OpenAIServer, Script

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(120)]

ENHANCE = {"type": "enhance", "id": "e", "prompt": "Say something."}
TOKENS = 30


async def test_sigterm_lets_responses_finish_and_says_goodbye(tmp_path: Path, model: OpenAIServer) -> None:
    model.script = Script(num_tokens=TOKENS, tokens_per_s=15)
    with served(tmp_path, model.endpoint.url, runtime="local") as server:
        bearer = {"additional_headers": {"Authorization": server.bearer}}
        async with Wire(server.url, **bearer) as wire, Wire(server.url, **bearer) as idle:
            await wire.send(ENHANCE)
            seen = await wire.until("response.delta")
            server.process.send_signal(signal.SIGTERM)

            goodbye = await idle.recv()
            assert goodbye["type"] == "goodbye"
            assert goodbye["reason"]
            assert goodbye["reconnect_after_ms"] > 0
            assert await idle.closed() == 1001

            # the other one still streams: nothing new for it, and nobody new
            await wire.send({"type": "session.open", "id": "s", "session": "late"})
            while (frame := await wire.recv())["type"] != "error":
                seen.append(frame)
            assert (frame["error"]["code"], frame["error"]["retryable"]) == ("not_ready", True)
            async with Wire(server.url, hello=False, **bearer) as late:
                assert await late.closed() == 1013
            async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
                ready = await http.get("/health/ready")
                assert (ready.status_code, ready.json()["state"]) == (503, "draining")
                assert (await http.get("/health/live")).status_code == 200
                body = {"text": "x", "collections": ["notes"]}
                refused = await http.post("/v1/memory/recall", json=body, headers={"Authorization": server.bearer})
                assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
                assert refused.headers["retry-after"] == "1"

            seen += await wire.until("goodbye")
            done = next(frame for frame in seen if frame["type"] == "response.done")
            assert (done["status"], done["usage"]["completion_tokens"]) == ("completed", TOKENS)
            text = "".join(frame["text"] for frame in seen if frame["type"] == "response.delta")
            assert text == model.script.text(TOKENS)
            assert await wire.closed() == 1001
        assert await asyncio.to_thread(server.process.wait, 20) == 0


async def test_a_second_signal_ends_at_once(tmp_path: Path, model: OpenAIServer) -> None:
    model.script = Script(num_tokens=2000, tokens_per_s=20)
    with pytest.raises(AssertionError, match="exit code 130"):
        await _signal_twice(tmp_path, model)


async def _signal_twice(tmp_path: Path, model: OpenAIServer) -> None:
    with served(tmp_path, model.endpoint.url, runtime="local") as server:
        async with Wire(server.url, additional_headers={"Authorization": server.bearer}) as wire:
            await wire.send(ENHANCE)
            await wire.until("response.delta")
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert server.process.poll() is None  # it drains
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.process.wait, 10)
            assert time.monotonic() - begun < 5  # of fifteen seconds
