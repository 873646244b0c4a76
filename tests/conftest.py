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

import contextlib  # noqa: E402
import functools  # noqa: E402
import gc  # noqa: E402
import logging  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.ray_fixture import ray_cluster  # noqa: E402

__all__ = ["ray_cluster"]  # in one place: imported in two, it would be two, and Ray starts once in a process

# a machine under load is slow, not wrong; CI tries the same examples every time, everybody else new ones
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("quick", deadline=None, max_examples=20)  # for `make quick`
settings.load_profile("ci" if os.environ.get("CI") else "default")


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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What imports and collection make stays to the end, so no garbage is looked for among it, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000)
        gc.enable()


def pytest_collection_finish() -> None:
    """Make once what is the same for every test, and let torch's loggers propagate.

    To read all certificates takes each HTTP client 15 ms, and to build the command line each call 25 ms. On every
    logger that does not propagate, and torch has fifty, pytest would hang two handlers three times a test.
    """
    for module, name in (("httpx._transports.default", "create_ssl_context"), ("typer.testing", "_get_command")):
        if there := sys.modules.get(module):
            setattr(there, name, functools.cache(getattr(there, name)))
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
    for logger, level in zip((root, own), levels, strict=True):
        if logger.level != level:  # to set it looks through all loggers
            logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _journals_are_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A new journal in SQLite begins as a copy of one that the migrations made: they are slower than many small tests.

    The whole suite takes the long way in every process that is started and in the tests of `qraf.storage`.
    """
    import sqlite3

    from sqlalchemy import Engine

    from qraf.storage import database, journal

    @functools.cache
    def made() -> Path:
        file = tmp_path_factory.mktemp("made") / "journal.db"
        engine = database.open_engine(f"sqlite:///{file}")
        database.migrate(engine)
        engine.dispose()
        return file

    def migrate(engine: Engine) -> None:
        if engine.dialect.name == "sqlite":
            if database.is_in_memory(str(engine.url)):
                with (
                    contextlib.closing(engine.raw_connection()) as new,
                    contextlib.closing(sqlite3.connect(made())) as old,
                ):
                    old.backup(new.driver_connection)
            elif (path := Path(engine.url.database or "")).stat().st_size == 0:
                path.write_bytes(made().read_bytes())
        database.migrate(engine)  # finds it as it must be

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "migrate", migrate)
        yield
