"""`qraf snapshots`: make snapshots of memories now, list those that there are, and look whether they are whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from qraf.cli.keys import Url

__all__ = ["app"]

app = typer.Typer(
    help="Make, list and verify snapshots of memories; servers make them by themselves, too.", no_args_is_help=True
)

Data = Annotated[
    Path | None,
    typer.Option(help="Data directory; QRAF_JOURNAL_URL, QRAF_SNAPSHOTS__... and QRAF_SEAL__... count.", metavar="DIR"),
]
Json = Annotated[bool, typer.Option("--json", help="JSON lines, for machines.")]


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """Every snapshot: its memory, items, size and age, and up to where the journal is in it."""
    _run(data, as_json, verifies=False)


@app.command()
def make(
    session: Annotated[str | None, typer.Option(help="Of one session's memory.", metavar="NAME")] = None,
    collection: Annotated[str | None, typer.Option(help="Of one collection's.", metavar="NAME")] = None,
    url: Url = "ws://127.0.0.1:8642",
    as_json: Json = False,
) -> None:
    """Make snapshots now, as before a planned stop: of one memory, or of all that have changed since theirs.

    Needs a key of an operator. Small memories are left out unless they are named. Exit code 1 when one could not be
    made, 3 when no server answers; Ctrl-C stops after the memory that it is at.
    """
    from qraf.cli.output import FAILED, console, print_json, run
    from qraf.service_orders import SnapshotsMade

    done = run(_make(url, {"session": session, "collection": collection}, as_json), as_json)
    assert isinstance(done, SnapshotsMade)
    if as_json:
        print_json({"made": done.made, "unchanged": done.unchanged, "failed": done.failed, "reason": done.reason})
    else:
        console.print(f"{done.made} made, {done.unchanged} unchanged, {done.failed} failed", markup=False)
        if done.reason:
            console.print(done.reason, markup=False, soft_wrap=True)
    if done.failed:
        raise typer.Exit(FAILED)


@app.command()
def verify(data: Data = None, as_json: Json = False) -> None:
    """Read every snapshot, with its checksum and seals. Exit code 1 when one is not whole."""
    _run(data, as_json, verifies=True)


async def _make(url: str, wanted: dict[str, str | None], as_json: bool) -> Any:
    from qraf.cli.service_calls import bar
    from qraf.client.rest import Rest
    from qraf.client.services import Operation

    rest = Rest(url)
    try:
        body = {key: name for key, name in wanted.items() if name is not None}
        operation = Operation(rest, (await rest.call("POST", "/v1/snapshots", body=body))["id"])
        with bar(as_json) as progress:
            try:
                return await operation.result(progress)
            except asyncio.CancelledError:
                await operation.cancel()
                raise
    finally:
        await rest.close()


def _run(data: Path | None, as_json: bool, verifies: bool) -> None:
    from qraf.cli.output import FAILED, run

    broken: list[str] = []

    async def work() -> None:
        rows = await asyncio.to_thread(_rows, data, verifies)
        broken.extend(row["id"] for row in rows if row.get("fault"))
        _show(rows, as_json)

    run(work(), as_json)
    if broken:
        raise typer.Exit(FAILED)


def _rows(data: Path | None, verifies: bool) -> list[dict[str, Any]]:
    from qraf.cli.serve import make_settings
    from qraf.errors import InvalidState, NotFound, SealBroken
    from qraf.storage.journal import Journal
    from qraf.storage.seal import MasterKeys
    from qraf.storage.snapshot_files import SnapshotStore
    from qraf.storage.snapshots import read_parts
    from qraf.times import format_time

    settings = make_settings(data=data)
    if not settings.journal_url and not (settings.data / "journal.db").is_file():
        raise NotFound("journal in", str(settings.data))
    masters = MasterKeys(settings.seal, settings.master_key_file())
    journal = Journal.open(settings.journal(), None, masters, leads=False)
    try:
        here = settings.snapshots_here()
        store = None if here is None else SnapshotStore(here.url)
        place = "" if store is None else store.find()
        rows = []
        for one in journal.snapshots.every():
            row: dict[str, Any] = {"id": one.id, "memory": one.memory, "node": one.node, "items": one.items}
            row |= {"bytes": one.size, "through": one.through, "made_at": format_time(one.made_at)}
            if verifies and store is not None and one.store == place:
                try:
                    read_parts(journal.snapshots, one, store.read(one.id))
                    row["fault"] = ""
                except (InvalidState, SealBroken) as fault:
                    row["fault"] = str(fault)
            elif verifies:
                row["fault"] = "it is in another place than this one"
            rows.append(row)
        return rows
    finally:
        journal.close()


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from qraf.cli.output import console, print_json, shown

    if as_json:
        for row in rows:
            print_json(row)
        return
    if not rows:
        console.print("no snapshots")
        return
    # what there is to say of a broken one needs room: the widest cell of its row is its own
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = {"made_at": "made", "items": "items", "bytes": "bytes", "memory": "memory", "node": "node"}
    columns |= {"through": "through", "id": "id"}
    if "fault" in rows[0]:
        table.add_column("state", overflow="fold", min_width=8)
    for name, shown_as in columns.items():
        table.add_column(shown_as, overflow="fold", min_width=10 if name == "made_at" else None)
    for row in rows:
        state = [("broken" if row["fault"] else "whole")] if "fault" in row else []
        table.add_row(*state, *(shown(row[name]) for name in columns))
    console.print(table)
    for row in rows:
        if row.get("fault"):
            console.print(f"{row['id']}: {row['fault']}", markup=False, soft_wrap=True)
