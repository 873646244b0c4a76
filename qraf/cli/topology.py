"""`qraf topology`: check, draw and question a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from qraf.cli.output import FAILED, console, errors, guarded, print_json, run

__all__ = ["app"]

app = typer.Typer(help="Check, draw and question a topology.", no_args_is_help=True)

Url = Annotated[
    str, typer.Option("--url", envvar="QRAF_URL", help="The server: ws, wss, http or https.", metavar="URL")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write here, not to the terminal.", metavar="FILE")]


@app.command()
def lint(
    files: Annotated[list[Path], typer.Argument(help="Topology files.", metavar="FILE...")],
    gpus: Annotated[int | None, typer.Option(help="GPUs of the cluster; counted here if not given.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Check topology files: every fault with file, line and column. Exit code 1 when there is one."""
    from qraf.errors import InvalidTopology, TopologyFault
    from qraf.network.loader import load

    faults: list[TopologyFault] = []
    for file in files:
        try:
            topology = load(file, gpus=gpus)
        except InvalidTopology as invalid:
            faults.extend(invalid.faults)
            continue
        if not as_json:
            counts = f"{len(topology.nodes)} nodes, {len(topology.links)} links, {len(topology.hosts)} hosts"
            console.print(f"{file}: {counts}, no fault", markup=False, soft_wrap=True)
    if as_json:
        told = [
            {"file": each.file, "line": each.line, "column": each.column, "what": each.what, "hint": each.hint}
            for each in faults
        ]
        print_json({"files": [str(file) for file in files], "faults": told})
    else:
        for each in faults:
            errors.print(str(each), markup=False, soft_wrap=True)
    if faults:
        raise typer.Exit(FAILED)


@app.command()
def schema(out: Out = None) -> None:
    """The JSON Schema of a topology file, for editors."""
    from qraf.network.loader import schema as made

    _write(json.dumps(made(), indent=2, ensure_ascii=False) + "\n", out)


@app.command()
def graph(
    file: Annotated[Path, typer.Argument(help="A topology file.", metavar="FILE")],
    format: Annotated[Literal["svg", "dot", "mermaid"], typer.Option(help="What to draw.")] = "svg",
    out: Out = None,
) -> None:
    """Draw a topology; the channels of protected links are sampled, or read where a server has sampled them."""
    from qraf.cli.serve import make_settings
    from qraf.network import graph as pictures
    from qraf.network.links import link_channels
    from qraf.network.loader import load

    with guarded():
        topology = load(file)
        data = make_settings().data
        channels = link_channels(topology, data / "links" if data.is_dir() else None)
    _write({"svg": pictures.svg, "dot": pictures.dot, "mermaid": pictures.mermaid}[format](topology, channels), out)


@app.command("test")
def run_tests(
    file: Annotated[Path, typer.Argument(help="A topology file.", metavar="FILE")],
    url: Annotated[
        str | None, typer.Option("--url", help="On this server, not in a network of its own.", metavar="URL")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the tests of a topology file: write, ask, compare. Exit code 1 when one fails."""
    from qraf.cli.topology_runs import tests_command

    run(tests_command(file, url, as_json), as_json)


@app.command()
def route(
    prompt: Annotated[str, typer.Argument(help="What would be asked.", metavar="PROMPT")],
    url: Url = "ws://127.0.0.1:8642",
    session: Annotated[str | None, typer.Option("--session", "-s", help="In this session.", metavar="NAME")] = None,
    max_visits: Annotated[int | None, typer.Option(help="Most nodes to visit.", min=1)] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every term of every score.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a running server where a prompt would go, and why; nothing is measured."""
    with guarded(as_json):
        answer = _asked(url, prompt, session, max_visits, explain)
    if as_json:
        print_json(answer)
        return
    import msgspec

    from qraf.cli.render import route_table
    from qraf.frames import RouteOut

    found = msgspec.convert(answer, RouteOut, strict=False)
    console.print(route_table(found.hops, found.not_visited))
    if explain:
        for hop in found.hops:
            terms = ", ".join(f"{name} {value:.4g}" for name, value in hop.terms.items())
            console.print(f"{hop.node}: {terms}", markup=False, soft_wrap=True)
    end = f"then to {found.generator}" if found.generator else "no generator can be reached"
    console.print(f"answers expected in {found.predicted_ms:.0f} ms, {end}", markup=False)


def _asked(url: str, prompt: str, session: str | None, max_visits: int | None, explain: bool) -> dict[str, object]:
    """The server's answer.

    Raises:
        CannotConnect: nothing listens there. TimedOut: no answer in time.
        ServerError: the server refused, with its own code and detail.
    """
    import asyncio

    from qraf.client.rest import Rest

    async def ask() -> dict[str, object]:
        rest = Rest(url, timeout_s=30.0)
        try:
            return await rest.call(
                "GET", "/v1/topology/route", prompt=prompt, session=session, max_visits=max_visits, explain=explain
            )
        finally:
            await rest.close()

    return asyncio.run(ask())


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
