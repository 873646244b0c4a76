"""`qraf sessions`: list, show, delete."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qraf.cli.output import console, print_json
from qraf.client.rest import Json, Rest, SessionsApi

__all__ = ["delete_command", "list_command", "show_command"]


async def list_command(url: str, as_json: bool) -> None:
    """Print all sessions, page by page."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("session", "status", "created", "node"):
        table.add_column(name)
    async with _api(url) as api:
        cursor: str | None = None
        while True:
            page = await api.list(limit=100, cursor=cursor)
            for session in page["data"]:
                if as_json:
                    print_json(session)
                else:
                    fields = (session.get(key, "") for key in ("session", "status", "created_at", "node"))
                    table.add_row(*map(str, fields))
            cursor = page.get("next_cursor")
            if not cursor:
                break
    if not as_json:
        console.print(table if table.row_count else "no sessions")


async def show_command(url: str, session: str, as_json: bool) -> None:
    """Print one session."""
    async with _api(url) as api:
        found = await api.get(session)
    if as_json:
        print_json(found)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    _rows(table, found)
    console.print(table)


async def delete_command(url: str, session: str, as_json: bool) -> None:
    """Erase one session."""
    async with _api(url) as api:
        receipt = await api.delete(session)
    if as_json:
        print_json(receipt or {"session": session, "deleted": True})
    else:
        console.print(f"session '{session}' is erased", markup=False)


@contextlib.asynccontextmanager
async def _api(url: str) -> AsyncIterator[SessionsApi]:
    rest = Rest(url)
    try:
        yield SessionsApi(rest)
    finally:
        await rest.close()


def _rows(table: Table, value: Json, prefix: str = "") -> None:
    for key, item in value.items():
        if isinstance(item, dict):
            _rows(table, item, f"{prefix}{key}.")
        else:
            table.add_row(f"{prefix}{key}", str(item))
