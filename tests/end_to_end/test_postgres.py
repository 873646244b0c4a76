"""`qraf serve` on PostgreSQL: what was written is recalled after kill -9 of the host."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import text

import qraf
from qraf.errors import ServerError
from qraf.storage.database import open_engine
from tests import postgres
from tests.end_to_end.serving import served
from tests.openai_server import OpenAIServer

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(120)]


async def test_a_server_on_postgresql_recalls_after_its_host_was_killed(tmp_path: Path, model: OpenAIServer) -> None:
    with (
        postgres.schema() as url,
        served(tmp_path, model.endpoint.url, runtime="ray", settings={"QRAF_JOURNAL_URL": url}) as server,
    ):
        async with qraf.connect(server.url) as q:
            await q.open_session("ana")
            notes = [{"item_id": f"n{n}", "text": f"Note {n}: the key is under stone {n}."} for n in range(20)]
            assert (await q.write(notes, session="ana")).accepted == 20
            os.kill(server.host_pid(), signal.SIGKILL)
            async with asyncio.timeout(60):
                while True:
                    try:
                        found = await q.recall("Where is the key of note 7?", session="ana", k=3)
                        if found.evidence:
                            break
                    except ServerError as error:
                        if not error.can_retry:
                            raise
                    await asyncio.sleep(0.1)
            assert any("stone 7." in one.text for one in found.evidence)
            assert (await q.write(notes, session="ana")).duplicates == 20
            assert found.state.items == 20
        engine = open_engine(url)
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT text, metadata, key FROM items")).all()
        engine.dispose()
        assert len(rows) == 20
        assert all(b"stone" not in bytes(row.text) and row.key is not None for row in rows)  # sealed unless told not to
        assert not list((tmp_path / "data").glob("*.db*"))
