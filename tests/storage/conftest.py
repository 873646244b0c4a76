import pytest

from qraf.clock import FakeClock
from qraf.storage.journal import Journal


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'journal.db'}"


@pytest.fixture(params=["memory", "file"])
def journal(request, clock, tmp_path):
    url = "sqlite:///:memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'journal.db'}"
    journal = Journal.open(url, clock)
    yield journal
    journal.close()
