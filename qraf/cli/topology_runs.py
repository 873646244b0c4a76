"""`qraf topology test`: the tests of a topology file, run in a network of this process or on a running server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.table import Table

from qraf.cli.output import FAILED, console, print_json
from qraf.errors import QrafError
from qraf.frames import Recall, RecallDone, SessionOpen, WireItem, Write

__all__ = ["Result", "tests_command"]

_K = 10  # items of evidence that are looked through


@dataclass(frozen=True, slots=True)
class Result:
    """How a test went: what was missing, none where it passed; the best evidence, the nodes measured."""

    prompt: str
    faults: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    visits: tuple[str, ...] = ()
    ms: float = 0.0


class _Network(Protocol):
    """What a test needs of a network."""

    async def write(self, session: str, texts: tuple[str, ...]) -> None: ...

    async def recall(self, prompt: str, session: str | None, collections: tuple[str, ...]) -> RecallDone: ...

    async def erase(self, session: str) -> None: ...


async def tests_command(file: Path, url: str | None, as_json: bool) -> None:
    """Run every test, in this process or on the server at `url`, and print a table; exit code 1 when one fails."""
    from qraf.network.loader import load

    topology = load(file)
    results: list[Result] = []
    if topology.tests:
        async with _server(url) if url else _here(topology) as network:
            for index, test in enumerate(topology.tests):
                results.append(await _run(network, test, f"topology-test-{index}-{time.time_ns()}"))
    failed = sum(bool(one.faults) for one in results)
    if as_json:
        print_json({"file": str(file), "tests": len(results), "failed": failed, "results": results})
    else:
        _print(file, results, failed)
        if url is None and any(
            one.faults and test.collections for one, test in zip(results, topology.tests, strict=True)
        ):
            console.print(
                "collections are empty here; name a server that has them with --url", markup=False, soft_wrap=True
            )
    if failed:
        raise typer.Exit(FAILED)


async def _run(network: _Network, test: Any, session: str) -> Result:
    """One test: write to a session of its own, ask, compare; the session is erased."""
    started = time.perf_counter()
    own = None if test.collections and not test.write else session
    try:
        if own is not None:
            await network.write(own, test.write)
        done = await network.recall(test.prompt, own, test.collections)
    except QrafError as error:
        return Result(test.prompt, (str(error),), ms=(time.perf_counter() - started) * 1000)
    finally:
        if own is not None:
            with contextlib.suppress(QrafError):
                await network.erase(own)
    texts = tuple(item.text for item in done.evidence)
    visits = tuple(hop.node for hop in done.route.hops if hop.measured)
    faults = [
        f"no evidence has '{text}'"
        for text in test.expect.evidence_contains
        if not any(text.casefold() in one.casefold() for one in texts)
    ]
    faults += [f"'{node}' was not measured" for node in test.expect.visits if node not in visits]
    return Result(test.prompt, tuple(faults), texts[:1], visits, (time.perf_counter() - started) * 1000)


class _Here:
    def __init__(self, service: Any) -> None:
        self._service = service

    async def write(self, session: str, texts: tuple[str, ...]) -> None:
        await self._service.open_session(SessionOpen(id="test", session=session))
        if texts:
            items = tuple(WireItem(item_id=f"{session}-{index}", text=text) for index, text in enumerate(texts))
            done = await self._service.write(Write(id="test", session=session, items=items))
            if done.rejected:
                raise QrafError(done.rejected[0].error.detail)

    async def recall(self, prompt: str, session: str | None, collections: tuple[str, ...]) -> RecallDone:
        found: RecallDone = await self._service.recall(
            Recall(id="test", session=session, collections=collections, text=prompt, k=_K)
        )
        return found

    async def erase(self, session: str) -> None:
        await self._service.delete_session(session)


class _Server:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def write(self, session: str, texts: tuple[str, ...]) -> None:
        await self._client.open_session(session)
        if texts:
            done = await self._client.write(list(texts), session=session)
            if done.rejected:
                raise QrafError(done.rejected[0].error.detail)

    async def recall(self, prompt: str, session: str | None, collections: tuple[str, ...]) -> RecallDone:
        found: RecallDone = await self._client.recall(prompt, session=session, collections=collections, k=_K)
        return found

    async def erase(self, session: str) -> None:
        await self._client.sessions.delete(session)


@contextlib.asynccontextmanager
async def _server(url: str) -> AsyncIterator[_Network]:
    import qraf

    async with qraf.connect(url) as client:
        yield _Server(client)


@contextlib.asynccontextmanager
async def _here(topology: Any) -> AsyncIterator[_Network]:
    """The network in this process, with an empty journal in memory; its generators are never asked."""
    from qraf.cli.serve import installed, make_settings

    with installed():
        from qraf.actors.runtime import LocalRuntime
        from qraf.sessions.service import Service
        from qraf.storage.journal import Journal
        from qraf.text.generator import Endpoint

    settings = make_settings().model_copy(update={"journal_url": "sqlite:///:memory:"})
    journal = Journal.open(settings.journal())
    unasked = Endpoint("http://127.0.0.1:9/v1", "none")
    service = Service(settings, topology, journal, LocalRuntime(topology, settings, journal, endpoint=unasked))
    try:
        await service.start()
        yield _Here(service)
    finally:
        await service.close()
        journal.close()


def _print(file: Path, results: list[Result], failed: int) -> None:
    if not results:
        console.print(f"{file}: no tests", markup=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("", "prompt", "measured", "best evidence", "missing"):
        table.add_column(name, overflow="fold")
    for one in results:
        mark = "[red]failed[/red]" if one.faults else "[green]passed[/green]"
        shown = (one.prompt, ", ".join(one.visits), "".join(one.evidence)[:120], "; ".join(one.faults))
        table.add_row(mark, *(text.replace("[", r"\[") for text in shown))
    console.print(table)
    console.print(f"{file}: {len(results) - failed} of {len(results)} passed", markup=False, soft_wrap=True)
