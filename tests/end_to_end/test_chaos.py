"""kill -9 of a host while two clients write and one streams: nothing acknowledged is lost, every response ends once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

import qraf
from qraf.errors import ServerError
from qraf.frames import ResponseDone
from tests.end_to_end.serving import Served, served
from tests.openai_server import OpenAIServer, Script

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(240)]


async def write_until(server: Served, session: str, stop: asyncio.Event) -> list[str]:
    """Item ids that were acknowledged."""
    acknowledged: list[str] = []
    async with qraf.connect(server.url) as q:
        await q.open_session(session)
        number = 0
        while not stop.is_set():
            items = [
                {"item_id": f"{session}-{number + i}", "text": f"note {number + i} of {session}"} for i in range(4)
            ]
            number += 4
            try:
                done = await q.write(items, session=session)
            except ServerError as error:
                if not error.can_retry:
                    raise
                continue
            assert done.rejected == ()
            acknowledged += [item["item_id"] for item in items]
    return acknowledged


async def stream(server: Served, tokens: int) -> list[ResponseDone]:
    """The ends that one response had."""
    async with qraf.connect(server.url) as q:
        response = q.enhance("which note?", collections=["manuals"], generate={"max_tokens": tokens})
        return [frame async for frame in response if isinstance(frame, ResponseDone)]


async def answered_within(server: Served, seconds: float) -> float:
    """Seconds until a new prompt works."""
    begun = time.monotonic()
    async with qraf.connect(server.url) as q:
        while True:
            try:
                found = await q.recall("note 1", session="one", k=3)
                if found.evidence:
                    return time.monotonic() - begun
            except ServerError as error:
                if not error.can_retry:
                    raise
            assert time.monotonic() - begun < seconds, "new prompts do not work"
            await asyncio.sleep(0.1)


async def test_a_killed_host_loses_nothing(tmp_path: Path, model: OpenAIServer) -> None:
    model.script = Script(tokens_per_s=20)
    with served(tmp_path, model.endpoint.url, runtime="ray") as server:
        stop = asyncio.Event()
        writers = [asyncio.create_task(write_until(server, name, stop)) for name in ("one", "two")]
        streaming = asyncio.create_task(stream(server, 120))
        await asyncio.sleep(2)
        os.kill(server.host_pid(), signal.SIGKILL)
        await asyncio.sleep(0.2)
        back_s = await answered_within(server, 60)
        await asyncio.sleep(1)
        stop.set()
        acknowledged = dict(zip(("one", "two"), await asyncio.gather(*writers), strict=True))
        ends = await streaming
        assert len(ends) == 1
        assert ends[0].status in ("completed", "incomplete") or (ends[0].error is not None and ends[0].error.retryable)
        print(f"a new prompt worked {back_s:.1f} s after the kill")
        async with qraf.connect(server.url) as q:
            for session, ids in acknowledged.items():
                assert len(ids) > 0
                state = (await q.open_session(session, create=False)).state
                written: set[str] = set()
                cursor = None
                while True:
                    page = await q.items.list(session=session, limit=200, cursor=cursor)
                    written |= {item["item_id"] for item in page["data"]}
                    cursor = page["next_cursor"]
                    if not cursor:
                        break
                assert set(ids) <= written
                assert state.items == len(written)  # each of them is in the rebuilt memory, once
                last = await q.recall(f"note {ids[-1].split('-')[1]} of {session}", session=session, k=3)
                assert last.evidence
