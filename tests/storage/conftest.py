import contextlib

import pytest
from hypothesis import settings

from qraf.clock import FakeClock
from qraf.settings import SealSettings
from qraf.storage import database
from qraf.storage import journal as journal_module
from qraf.storage.journal import Journal
from qraf.storage.seal import MasterKeys
from tests import postgres


def _slow(name):
    """`make quick` does with the one in memory."""
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _migrations_run(monkeypatch):
    """In the whole suite every journal of these tests is made by the migrations, not copied."""
    if settings.default.max_examples >= 100:
        monkeypatch.setattr(journal_module, "migrate", database.migrate)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'journal.db'}"


@pytest.fixture(params=["sqlite", _slow("postgresql")])
def any_url(request, tmp_path):
    """A new database that several processes can open, of each kind."""
    with contextlib.ExitStack() as stack:
        yield (
            f"sqlite:///{tmp_path / 'any.db'}" if request.param == "sqlite" else stack.enter_context(postgres.schema())
        )


@pytest.fixture
def masters(tmp_path):
    """Master keys in a file of this test's own."""
    return MasterKeys(SealSettings(), tmp_path / "keys" / "master.key")


@pytest.fixture(params=["memory", *map(_slow, ("file", "postgresql", "sealed file", "sealed postgresql"))])
def journal(request, clock, tmp_path, masters):
    with contextlib.ExitStack() as stack:
        if "postgresql" in request.param:
            url = stack.enter_context(postgres.schema())
        else:
            url = "sqlite:///:memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'journal.db'}"
        journal = Journal.open(url, clock, masters if "sealed" in request.param else None)
        stack.callback(journal.close)
        yield journal
