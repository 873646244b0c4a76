"""`qraf usage`: what keys have used, by day. `qraf audit`: the log of who was refused what, and whether it is whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qraf.cli.keys import Data, Json, Url, run_calls, show_list

__all__ = ["audit_app", "usage"]

audit_app = typer.Typer(help="The audit log: read it, and check that nobody changed it.", no_args_is_help=True)
_URL = "ws://127.0.0.1:8642"
_COUNTS = ("requests", "frames", "items", "bytes", "responses", "prompt_tokens", "generated_tokens")
_Day = Annotated[str | None, typer.Option(metavar="DATE")]


def usage(
    since: Annotated[
        str | None, typer.Option("--from", help="First day, UTC; default: 30 days.", metavar="DATE")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="Last day; default: today.", metavar="DATE")] = None,
    key: Annotated[str | None, typer.Option(help="One key's id; default: all that you may see.", metavar="KEY")] = None,
    tenant: Annotated[str | None, typer.Option(help="For admins of the default tenant.", metavar="NAME")] = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """What keys have used, by day, and how the caller's quotas stand; with --json a line for each day and key."""
    asked = {"from": since, "to": to, "key": key, "tenant": tenant, "limit": "200"}

    async def work(call: Any) -> None:
        from urllib.parse import urlencode

        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        from qraf.cli.output import console, print_json

        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
        table.add_column("day", min_width=10)
        table.add_column("key", overflow="fold")
        for name in _COUNTS:
            table.add_column(name.replace("_", "\n"), overflow="fold", justify="right")
        cursor: str | None = None
        while True:
            fields = {name: value for name, value in (asked | {"cursor": cursor}).items() if value is not None}
            page = await call("GET", f"/v1/usage?{urlencode(fields)}", None)
            for one in page["data"]:
                if as_json:
                    print_json(one)
                else:
                    whose = Text(f"{one['tenant']} {one['key']}")
                    table.add_row(one["day"], whose, *(f"{one[name]:,}" for name in _COUNTS))
            cursor = page["next_cursor"]
            if not cursor:
                break
        if as_json:
            print_json({"total": page["total"], "quotas": page["quotas"]})
            return
        if table.row_count:
            table.add_section()
            table.add_row("all", "", *(f"{page['total'][name]:,}" for name in _COUNTS))
        console.print(table if table.row_count else "nothing was used")
        for one in page["quotas"]:
            console.print(f"{one['policy']}: {one['used']:,} of {one['allowed']:,}", style="dim", markup=False)

    run_calls(work, url, None, as_json)


@audit_app.command("list")
def list_(url: Url = _URL, as_json: Json = False) -> None:
    """Who was refused what, and every change of a key, newest first; with --json a line for each."""
    columns = {"at": ("at",), "who": ("tenant", "subject", "address"), "what": ("action", "target", "outcome")}
    columns |= {"times": ("times",), "detail": ("detail",)}
    show_list("/v1/audit", columns, "lines", url, None, as_json)


@audit_app.command("verify")
def verify(
    head: Annotated[
        str | None, typer.Option(help="An older head, as LAST:DIGEST, that must still be in the chain.", metavar="HEAD")
    ] = None,
    data: Data = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Check that every line is as it was written and that none is missing; exit 1 where it is not.

    Keep the head that it prints somewhere else: with --head it shows later that no line was cut off at the end either.
    """

    async def work(call: Any) -> None:
        from qraf.cli.output import console, print_json

        path = "/v1/audit/check" if head is None else f"/v1/audit/check?head={head}"
        found = await call("GET", path, None)
        if as_json:
            print_json(found)
        elif found["broken"] is not None:
            console.print(f"line {found['broken']} was changed, or one before it is missing", markup=False)
        else:
            console.print(f"{found['lines']} lines, all as they were written", markup=False)
            console.print(f"head: {found['last']}:{found['head']}", markup=False, soft_wrap=True)
        if found["broken"] is not None:
            raise typer.Exit(1)

    run_calls(work, url, data, as_json)
