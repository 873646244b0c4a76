"""One of two gateways over one journal is killed at the worst moment: its client sees one end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qraf
from qraf.client.reconnect import Reconnect
from qraf.frames import ResponseCreated, ResponseDelta, ResponseDone
from qraf.storage.journal import Journal
from tests.cutting_proxy import cutting
from tests.openai_server import OpenAIServer, Script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TOKENS = 60


@contextlib.contextmanager
def processes(model_url: str, data: Path, count: int) -> Iterator[list[tuple[str, subprocess.Popen[str]]]]:
    """Gateways in processes of their own, over one journal and data directory: their URLs, and what they are."""
    environment = os.environ | {"QRAF_JOURNAL_URL": f"sqlite:///{data / 'journal.db'}", "QRAF_DATA": str(data)}
    command = [sys.executable, "-m", "tests.gateway.process", model_url]
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(count):
            one = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
            stack.callback(one.kill)
            started.append(one)
        yield [(one.stdout.readline().strip(), one) for one in started if one.stdout is not None]


async def test_a_gateway_that_is_killed_right_after_it_began_leaves_one_end_and_every_token_counted(
    models: OpenAIServer, model: OpenAIServer, tmp_path: Path
) -> None:
    model.script = Script(num_tokens=TOKENS, tokens_per_s=100)
    before, shown = model.produced, 0
    with processes(models.url, tmp_path, 2) as [(url, one), (other, _)]:
        async with (
            cutting(url) as proxy,
            qraf.connect(proxy.url, coalesce_ms=0, reconnect=Reconnect(first_s=0.01, most_s=0.1)) as q,
        ):
            response = q.enhance("what is there?", collections=["manuals"], generate={"max_tokens": TOKENS})
            kinds: list[type[Any]] = []
            async for frame in response:
                kinds.append(type(frame))
                shown += frame.tokens if isinstance(frame, ResponseDelta) else 0
                if one.poll() is None:
                    proxy.lead_to(other)
                    one.send_signal(signal.SIGKILL)
                    await asyncio.to_thread(one.wait)
            assert (kinds.count(ResponseCreated), kinds.count(ResponseDone)) == (1, 1)
            end = response.done
            assert end is not None
            if end.status == "failed":  # on a slow machine it was noted already
                assert end.error is not None
                assert (end.error.code, end.error.retryable) == ("gateway_lost", True)
            else:
                assert response.text == model.script.text(TOKENS)
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    counted = journal.usage.total(None, None, (0, 10**6)).generated_tokens
    journal.close()
    assert shown <= counted <= model.produced - before
