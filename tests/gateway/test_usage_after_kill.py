"""What clients were sent is in the journal, to the token, when the gateway is killed in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import pytest
from websockets.exceptions import ConnectionClosed

from qraf.storage.journal import Journal
from qraf.storage.usage import Counts
from tests.gateway.wire import Wire
from tests.openai_server import Script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

STREAMS, PACE = 6, 150
ALL = (0, 10**6)


@contextlib.contextmanager
def killed_later(model_url: str, journal_url: str):
    """A gateway in a process of its own; yields its URL and what kills it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gateway.process", model_url],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"QRAF_JOURNAL_URL": journal_url},
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http"), "the server did not start"
        yield url, lambda: process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


async def read(url: str, number: int, seen: list[int], most: int) -> None:
    """Count the tokens of one response as they come, until its end or that of the connection."""
    with contextlib.suppress(ConnectionClosed):
        async with Wire(url, hello=False) as wire:
            await wire.ask({"type": "hello", "coalesce_ms": 5})
            await wire.send({"type": "enhance", "id": "1", "prompt": f"p{number}", "generate": {"max_tokens": most}})
            while (frame := await wire.recv())["type"] != "response.done":
                seen[number] += frame.get("tokens", 0) if frame["type"] == "response.delta" else 0


def used(journal_url: str) -> Counts:
    journal = Journal.open(journal_url)
    try:
        return journal.usage.total(None, None, ALL)
    finally:
        journal.close()


async def test_every_token_that_went_out_is_counted_after_kill_9(models, model, tmp_path) -> None:
    journal_url = f"sqlite:///{tmp_path / 'journal.db'}"
    model.script = Script(tokens_per_s=PACE)
    model.produced = 0
    seen = [0] * STREAMS
    with killed_later(models.url, journal_url) as (url, kill):
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(read(url, number, seen, 1000))
            async with asyncio.timeout(20):
                while min(seen) < PACE // 2:
                    await asyncio.sleep(0.01)
            # some items, too: they are counted in the transaction that writes them
            async with Wire(url) as wire:
                items = [{"text": f"item {number}"} for number in range(20)]
                await wire.ask({"type": "write", "id": "w", "collection": "manuals", "items": items})
            kill()
    counted = used(journal_url)
    assert sum(seen) <= counted.generated_tokens <= model.produced
    # what was counted and had not left yet: the tokens of some milliseconds, on a machine that has time
    assert counted.generated_tokens - sum(seen) <= STREAMS * PACE * 0.3
    assert (counted.items, counted.responses) == (20, STREAMS)

    # a gateway that goes on adds to it exactly what its responses say
    model.script = Script(words=("a",), num_tokens=9)
    more = [0]
    with killed_later(models.url, journal_url) as (url, kill):
        await read(url, 0, more, 50)
        kill()
    after = used(journal_url)
    assert after.generated_tokens - counted.generated_tokens == more[0] == 9
