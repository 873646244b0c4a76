"""`qraf keys`: create, list and revoke API keys; `qraf tenants`: who has some. By a server, or on the journal."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Call", "Data", "Json", "Url", "keys_app", "run_calls", "show_list", "tenants"]

keys_app = typer.Typer(help="Create, list and revoke API keys; rotate the master key.", no_args_is_help=True)

Url = Annotated[
    str, typer.Option("--url", envvar="QRAF_URL", help="The server: ws, wss, http or https.", metavar="URL")
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="No server: work on the journal of this data directory (QRAF_JOURNAL_URL counts).", metavar="DIR"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, or JSON lines, for machines.")]
_URL = "ws://127.0.0.1:8642"
_Json = dict[str, Any]
_Columns = Mapping[str, tuple[str, ...]]
_WIDTHS = {"at": 10, "created": 10, "expires": 10, "what": 18}  # a day, its time below; the longest code


@keys_app.command("create")
def create(
    role: Annotated[str, typer.Option(help="viewer, client, operator or admin.", metavar="ROLE")] = "client",
    tenant: Annotated[str | None, typer.Option(help="Whose; default: the caller's.", metavar="NAME")] = None,
    name: Annotated[str, typer.Option(help="What it is for.", metavar="TEXT")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="Only this scope; may be repeated.", metavar="SCOPE")] = None,
    ttl_s: Annotated[float | None, typer.Option(help="It ends after so many seconds; default: never.", min=1)] = None,
    data: Data = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    body: _Json = {"role": role, "tenant": tenant, "name": name, "scopes": scope or [], "ttl_s": ttl_s}

    async def work(call: Call) -> None:
        made = await call("POST", "/v1/keys", {key: value for key, value in body.items() if value is not None})
        _print_new(made, as_json)

    run_calls(work, url, data, as_json, makes=True)


@keys_app.command("list")
def list_(data: Data = None, url: Url = _URL, as_json: Json = False) -> None:
    """The keys, without their secrets; with --json a line for each."""
    columns = {name: (name,) for name in ("key", "tenant", "role", "name", "status")}
    columns |= {"created": ("created_at",), "expires": ("expires_at",)}
    show_list("/v1/keys", columns, "keys", url, data, as_json)


@keys_app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, as `qraf keys list` shows it.", metavar="KEY")],
    data: Data = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Refuse a key from now on, within a second on every gateway."""

    async def work(call: Call) -> None:
        from urllib.parse import quote

        from qraf.cli.output import console, print_json

        gone = await call("DELETE", f"/v1/keys/{quote(_id(key), safe='')}", None)
        if as_json:
            print_json(gone)
        else:
            console.print(f"key {gone['key']} is revoked", markup=False)

    run_calls(work, url, data, as_json)


def tenants(data: Data = None, url: Url = _URL, as_json: Json = False) -> None:
    """Every tenant that has keys; with --json a line for each."""
    columns = {"tenant": ("tenant",), "active keys": ("active_keys",), "keys": ("keys",)}
    show_list("/v1/tenants", columns, "tenants", url, data, as_json)


Call = Callable[[str, str, _Json | None], Awaitable[_Json]]


def run_calls(
    work: Callable[[Call], Awaitable[None]], url: str, data: Path | None, as_json: bool, makes: bool = False
) -> None:
    """Run what makes REST calls: by a server, or on the journal of a data directory, which `makes` it if need be."""
    from qraf.cli.output import run

    async def whole() -> None:
        async with _server(url) if data is None else _journal(data, makes) as call:
            await work(call)

    run(whole(), as_json)


def show_list(path: str, columns: _Columns, what: str, url: str, data: Path | None, as_json: bool) -> None:
    """Print every page of a list, as a table with the named fields in each column, or as JSON lines."""

    async def work(call: Call) -> None:
        from urllib.parse import quote

        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        from qraf.cli.output import console, print_json, shown

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            # `revoke` needs all of a key
            width = _WIDTHS.get(name)
            table.add_column(name, no_wrap=name == "key", overflow="fold", min_width=width, max_width=width)
        cursor: str | None = None
        while True:
            page = await call("GET", path if cursor is None else f"{path}?cursor={quote(cursor)}", None)
            for one in page["data"]:
                if as_json:
                    print_json(one)
                else:
                    cells = (" ".join(filter(None, map(shown, map(one.get, names)))) for names in columns.values())
                    table.add_row(*map(Text, cells))
            cursor = page.get("next_cursor")
            if not cursor:
                break
        if not as_json:
            console.print(table if table.row_count else f"no {what}")

    run_calls(work, url, data, as_json)


def _print_new(made: _Json, as_json: bool) -> None:
    from qraf.cli.output import console, print_json

    if as_json:
        print_json(made)
        return
    console.print(made["api_key"], markup=False, soft_wrap=True)
    console.print(
        f"{made['role']} of tenant '{made['tenant']}', id {made['key']}; this is the only time that it is shown",
        style="dim",
        markup=False,
    )


def _id(key: str) -> str:
    """The id of a key that was given whole."""
    return key.split("_")[1] if key.startswith("qraf_") and key.count("_") >= 2 else key


@contextlib.asynccontextmanager
async def _server(url: str) -> AsyncIterator[Call]:
    from urllib.parse import parse_qsl, urlsplit

    from qraf.client.rest import Rest

    rest = Rest(url)

    async def call(method: str, path: str, body: _Json | None) -> _Json:
        parts = urlsplit(path)  # a query in the path would be dropped for the one that is given beside it
        query: dict[str, Any] = dict(parse_qsl(parts.query))
        return await rest.call(method, parts.path, body=body, **query)

    try:
        yield call
    finally:
        await rest.close()


@contextlib.asynccontextmanager
async def _journal(data: Path, makes: bool) -> AsyncIterator[Call]:
    """The same calls on the journal itself: for the first key of a server that nobody can enter yet."""
    import asyncio

    from qraf.cli.offline import KeyDesk
    from qraf.cli.serve import make_settings

    desk = await asyncio.to_thread(KeyDesk, make_settings(data=data), makes)
    try:
        yield desk.call
    finally:
        desk.close()
