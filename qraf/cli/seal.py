"""`qraf keys rotate`: a new master key for what the journal holds sealed, while servers run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["rotate"]


def rotate(
    data: Annotated[
        Path | None, typer.Option(help="Data directory; QRAF_JOURNAL_URL and QRAF_SEAL__... count.", metavar="DIR")
    ] = None,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Take the old keys out of the file: older backups can no longer be read.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
) -> None:
    """Wrap every data key anew, by a new master key in front of the file. Servers go on meanwhile.

    Keys from a variable or a command: put the new one in front there, then run this.
    """
    from qraf.cli.output import run

    run(_rotate(data, drop_old, as_json), as_json)


async def _rotate(data: Path | None, drop_old: bool, as_json: bool) -> None:
    import msgspec

    from qraf.cli.output import console, errors, print_json
    from qraf.cli.serve import make_settings

    settings = make_settings(data=data)

    def on_progress(done: int) -> None:
        if not as_json:
            errors.print(f"{done} data keys wrapped anew", style="dim", markup=False)

    done, source = await asyncio.to_thread(_work, settings, drop_old, on_progress)
    if as_json:
        print_json(msgspec.to_builtins(done))
        return
    made = "a new key" if done.is_new else "its first key"
    console.print(f"master key {done.first} ({made} in {source}) wraps; {done.wrapped} data keys were wrapped anew")
    if done.dropped:
        console.print(f"{done.dropped} old keys are gone from the file; backups made before need them", markup=False)
    elif done.is_new:
        console.print("keep a copy of the file; the old keys stay in it for backups made before", style="dim")


def _work(settings: Any, drop_old: bool, on_progress: Any) -> tuple[Any, str]:
    from qraf.errors import NotFound
    from qraf.storage.journal import Journal
    from qraf.storage.rotation import rotate as wrap_anew
    from qraf.storage.seal import MasterKeys

    if not settings.journal_url and not (settings.data / "journal.db").is_file():
        raise NotFound("journal in", str(settings.data))
    masters = MasterKeys(settings.seal, settings.master_key_file())
    journal = Journal.open(settings.journal(), None, masters, leads=False)
    try:
        return wrap_anew(journal, masters, drop_old=drop_old, on_progress=on_progress), masters.source
    finally:
        journal.close()
