"""Writes of several memories in one commit: what hinders one does not hinder the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import update

from qraf.errors import SealBroken, StorageFailed
from qraf.sessions.commits import Batch, Committer
from qraf.settings import SealSettings
from qraf.storage.journal import Journal
from qraf.storage.records import Draft
from qraf.storage.seal import MasterKeys
from qraf.storage.tables import data_keys


async def test_a_memory_whose_key_is_damaged_does_not_stop_what_is_committed_with_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    journal = Journal.open(url, None, MasterKeys(SealSettings(), tmp_path / "master.key"))
    journal.commit("c/bad", [Draft(item_id="0")])
    with journal._write("damage a key") as connection:
        connection.execute(update(data_keys).where(data_keys.c.scope == "c/bad").values(wrapped=b"?" * 60))
    journal._keyring._open.clear()
    committer = Committer(journal, lambda batch, answer: None)
    committed = [asyncio.get_running_loop().create_future() for _ in range(2)]
    batches = [
        Batch(memory, None, [Draft(item_id="1")], future, {})
        for memory, future in zip(("c/bad", "c/good"), committed, strict=True)
    ]
    await committer._commit(batches)
    assert isinstance(committed[0].exception(), SealBroken)
    assert [one.item_id for one in committed[1].result()] == ["1"]
    journal.close()


@pytest.mark.parametrize("fault", [SealBroken("default", "s/ann", 1, "changed"), StorageFailed("read items", "away")])
async def test_what_was_written_is_told_so_though_what_was_there_before_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    journal = Journal.open("sqlite:///:memory:")
    journal.commit("s/ann", [Draft(item_id="0")])

    def fetch(seqs: object) -> None:
        raise fault

    monkeypatch.setattr(journal, "fetch", fetch)
    delivered: list[str] = []
    committer = Committer(journal, lambda batch, answer: delivered.append(batch.memory))
    committed = [asyncio.get_running_loop().create_future() for _ in range(3)]
    wanted = [("s/ann", ["0"]), ("s/ann", ["0", "1"]), ("s/ben", ["0"])]
    batches = [
        Batch(memory, None, [Draft(item_id=one) for one in ids], future, {})
        for (memory, ids), future in zip(wanted, committed, strict=True)
    ]
    await committer._commit(batches)
    assert committed[0].exception() is fault  # nothing of it was written
    assert [one.is_duplicate for one in committed[1].result()] == [True, False]
    assert [one.is_duplicate for one in committed[2].result()] == [False]
    assert delivered == ["s/ann", "s/ben"]
    journal.close()
