"""A row that was moved stops its memory: the session's prompts fail by name, other sessions go on, health tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from qraf.actors.runtime import LocalRuntime
from qraf.errors import SealBroken
from qraf.frames import Recall, SessionOpen, WireItem, Write
from qraf.sessions.service import Service
from qraf.settings import Settings
from qraf.storage.journal import Journal
from qraf.storage.seal import MasterKeys
from tests.encoders import HashEncoder
from tests.sessions.samples import topology

pytestmark = pytest.mark.slow  # two whole services

TEXT = "I am allergic to nuts."


def make(settings: Settings) -> tuple[Service, Journal]:
    journal = Journal.open(settings.journal(), None, MasterKeys(settings.seal, settings.master_key_file()))
    network = topology()
    runtime = LocalRuntime(network, settings, journal, encoder=lambda: HashEncoder(network.dim))
    return Service(settings, network, journal, runtime), journal


def held(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("journal.db*"))


async def test_a_moved_row_stops_its_memory_and_nothing_else(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    service, journal = make(settings)
    await service.start()
    for session in ("ana", "bo", "cy"):
        await service.open_session(SessionOpen(id="0", session=session))
        await service.write(Write(id="1", session=session, items=(WireItem(item_id=session, text=TEXT),)))
    await service.close()
    with journal._engine.execution_options(write="full").begin() as connection:
        connection.execute(text("UPDATE items SET memory = 's/bo' WHERE item_id = 'ana'"))
        connection.execute(text("UPDATE sessions SET metadata = substr(metadata, 2) WHERE id = 'ana'"))
    journal.close()
    assert TEXT.encode() not in held(tmp_path)

    service, journal = make(settings)
    await service.start()
    try:
        with pytest.raises(SealBroken, match="tenant 'default', memory 's/bo'") as caught:
            await service.recall(Recall(id="2", session="bo", text="Who is allergic to nuts?"))
        assert (caught.value.retryable, TEXT in str(caught.value)) == (False, False)
        with pytest.raises(SealBroken):
            await service.write(Write(id="3", session="bo", items=(WireItem(item_id="n", text="more"),)))
        found = await service.recall(Recall(id="4", session="cy", text="Who is allergic to nuts?"))
        assert found.evidence[0].text == TEXT
        health = service.health.report()
        assert health["ready"]
        assert [one["what"] for one in health["degraded"]] == ["seals"]
        assert len((await service.sessions.list(None, 10))[0]) == 3
        await service.delete_session("bo")
        await service.delete_session("ana")  # its metadata cannot be read
        assert service.health.report()["degraded"] == []
    finally:
        await service.close()
        journal.close()
