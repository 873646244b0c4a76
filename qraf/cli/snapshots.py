"""`qraf snapshots`: which snapshots of memories there are, and whether they are whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(help="List and verify snapshots of memories; servers make them by themselves.", no_args_is_help=True)

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
def verify(data: Data = None, as_json: Json = False) -> None:
    """Read every snapshot, with its checksum and seals. Exit code 1 when one is not whole."""
    _run(data, as_json, verifies=True)


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
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        is_time = name == "made_at"
        table.add_column("made" if is_time else name, overflow="fold", min_width=10 if is_time else None)
    for row in rows:
        table.add_row(*("whole" if name == "fault" and not value else shown(value) for name, value in row.items()))
    console.print(table)
