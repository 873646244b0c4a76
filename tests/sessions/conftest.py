import pytest

from qraf.clock import FakeClock
from qraf.storage.journal import Journal


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def journal(clock):
    journal = Journal.open("sqlite:///:memory:", clock)
    yield journal
    journal.close()
