"""What holds for every test: nothing is fetched, and small matrices are not spread over threads."""

from __future__ import annotations

import os

# before anything imports NumPy or torch: on a busy machine threads that wait for each other cost more than they give
for name, value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(name, value)

import functools  # noqa: E402
import logging  # noqa: E402
import re  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import httpx._transports.default as transports  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.ray_fixture import ray_cluster  # noqa: E402

__all__ = ["ray_cluster"]  # in one place: imported in two, it would be two, and Ray starts once in a process

# a machine under load is slow, not wrong; CI tries the same examples every time, everybody else new ones
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("quick", deadline=None, max_examples=20)  # for `make quick`
settings.load_profile("ci" if os.environ.get("CI") else "default")

# reading all certificates takes each client 15 ms
transports.create_ssl_context = functools.cache(transports.create_ssl_context)  # type: ignore[attr-defined]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import a file all of whose tests `-m "not slow and ..."` leaves out."""
    wanted = config.option.markexpr
    if not (collection_path.match("test_*.py") and re.fullmatch(r"not \w+( and not \w+)*", wanted)):
        return None
    marks = re.findall(r"^pytestmark = .*", collection_path.read_text(), re.MULTILINE)
    return any(f"mark.{name}" in line for line in marks for name in re.findall(r"not (\w+)", wanted)) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "qutip" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)  # its import takes a second


def pytest_collection_finish() -> None:
    """Let torch's loggers propagate: pytest would hang two handlers on each of the fifty, three times a test."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True


@pytest.fixture(scope="session")
def qutip() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # without matplotlib it says so
        import qutip
    return qutip


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that sets up the process's log, in a test, does so for that test: its stream is closed afterwards."""
    root, own = logging.getLogger(), logging.getLogger("qraf")
    levels, handlers = (root.level, own.level), root.handlers[:]
    yield
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(levels[0])
    own.setLevel(levels[1])


@pytest.fixture(scope="session", autouse=True)
def _quick_journals() -> Iterator[None]:
    """In `make quick` the migrations run once in a process, and other new journals in SQLite are made as they left it.

    That is the slowest part of many small tests; the whole suite takes the long way every time.
    """
    if settings.default.max_examples >= 100:
        yield
        return
    from sqlalchemy import Connection, inspect, text

    from qraf.storage import database

    upgrade = database._upgrade
    made: list[str] = []

    def upgraded(connection: Connection) -> None:
        if connection.dialect.name != "sqlite" or inspect(connection).get_table_names():
            upgrade(connection)
        elif made:
            for statement in made:
                connection.exec_driver_sql(statement)
        else:
            upgrade(connection)
            query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'"
            made.extend(connection.execute(text(query)).scalars())
            made.append(f"INSERT INTO alembic_version VALUES ('{database._revision(connection)}')")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_upgrade", upgraded)
        yield
