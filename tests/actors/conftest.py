from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qraf.actors.encoding import EncodeQueue
from qraf.storage.journal import Journal
from tests.actors import samples


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    yield journal
    journal.close()


@pytest.fixture
def encoding() -> Iterator[EncodeQueue]:
    queue = EncodeQueue(samples.encoder)
    yield queue
    queue.close()
