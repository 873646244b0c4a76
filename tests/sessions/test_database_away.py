"""A service on PostgreSQL whose server goes away for a while: recall works, writes say when to try again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from qraf.actors.runtime import LocalRuntime
from qraf.errors import StorageFailed
from qraf.frames import Recall, SessionOpen, WireItem, Write
from qraf.sessions.faults import error_body
from qraf.sessions.service import Service
from qraf.settings import Settings
from qraf.storage import line
from qraf.storage.journal import Journal
from tests import postgres
from tests.encoders import HashEncoder
from tests.sessions.samples import topology

pytestmark = pytest.mark.slow  # a whole service


@pytest.fixture
def relay() -> Iterator[postgres.Relay]:
    relay = postgres.Relay()
    yield relay
    relay.close()


def write(item: str, text: str) -> Write:
    return Write(id=item, session="ana", items=(WireItem(item_id=item, text=text, speaker="Ana"),))


async def test_recall_works_and_writes_say_when_to_try_again(relay, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(line, "PATIENCE_S", 0.3)
    with postgres.schema() as direct:
        settings = Settings(data=tmp_path, journal_url=postgres.through(direct, relay.port))
        journal, network = Journal.open(settings.journal()), topology()
        runtime = LocalRuntime(network, settings, journal, encoder=lambda: HashEncoder(network.dim))
        service = Service(settings, network, journal, runtime)
        await service.start()
        try:
            await service.open_session(SessionOpen(id="0", session="ana"))
            assert (await service.write(write("a", "I am allergic to nuts."))).accepted == 1
            relay.cut()
            for round_ in range(3):
                with pytest.raises(StorageFailed) as caught:
                    await service.write(write("b", "The train leaves at nine."))
                body = error_body(caught.value)
                assert (body.code, body.retryable, body.retry_after_ms) == ("storage_failed", True, 1000)
                found = await service.recall(Recall(id=f"r{round_}", session="ana", text="Who is allergic to nuts?"))
                assert [one.text for one in found.evidence] == ["I am allergic to nuts."]
                await asyncio.sleep(0.4)  # the session's record is older than a second by the last round
            assert [one["what"] for one in service.health.report()["degraded"]] == ["journal"]
            relay.is_open = True
            await asyncio.sleep(line.REST_S)
            assert (await service.write(write("b", "The train leaves at nine."))).accepted == 1
            found = await service.recall(Recall(id="9", session="ana", text="When does the train leave?"))
            assert found.evidence[0].text == "The train leaves at nine."
            assert service.health.report()["degraded"] == []
        finally:
            await service.close()
            journal.close()
