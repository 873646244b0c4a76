"""The `qraf` command: one small function for each verb; what they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qraf.cli.keys import keys_app, tenants
from qraf.cli.seal import rotate
from qraf.cli.services import correct_app, operations_app, optimize_app, quantize
from qraf.cli.snapshots import app as snapshots_app
from qraf.cli.state import app as state_app
from qraf.cli.topology import app as topology_app
from qraf.cli.usage import audit_app, usage

__all__ = ["app"]

app = typer.Typer(
    name="qraf",
    help="A memory for text generation that lives in a network of quantum states.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
sessions_app = typer.Typer(help="List, show and delete sessions.", no_args_is_help=True)
app.add_typer(sessions_app, name="sessions")
app.add_typer(topology_app, name="topology")
app.add_typer(state_app, name="state")
app.command("quantize")(quantize)
app.add_typer(optimize_app, name="optimize")
app.add_typer(correct_app, name="correct")
app.add_typer(operations_app, name="operations")
app.add_typer(keys_app, name="keys")
app.add_typer(snapshots_app, name="snapshots")
keys_app.command("rotate")(rotate)
app.command("tenants")(tenants)
app.command("usage")(usage)
app.add_typer(audit_app, name="audit")

Url = Annotated[
    str, typer.Option("--url", envvar="QRAF_URL", help="The server: ws, wss, http or https.", metavar="URL")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, or JSON lines, for machines.")]
Session = Annotated[str | None, typer.Option("--session", "-s", help="The session.", metavar="NAME")]
Collections = Annotated[
    list[str] | None, typer.Option("--collection", "-c", help="A collection; may be repeated.", metavar="NAME")
]
DEFAULT_URL = "ws://127.0.0.1:8642"


def _version(wanted: bool) -> None:
    if wanted:
        from qraf import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="As `qraf version`.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """A memory for text generation that lives in a network of quantum states."""


@app.command()
def serve(
    topology: Annotated[Path | None, typer.Option(help="Topology file.", metavar="FILE")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; default: 127.0.0.1.", metavar="HOST")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free port.", min=0, max=65535)] = None,
    data: Annotated[Path | None, typer.Option(help="Directory of the journal.", metavar="DIR")] = None,
    runtime: Annotated[str | None, typer.Option(help="ray or local.", metavar="KIND")] = None,
    generator_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server.", metavar="URL")] = None,
    generator_model: Annotated[str | None, typer.Option(help="The model's name there.", metavar="NAME")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Everybody on this machine may do everything.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.", metavar="FILE")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.", metavar="FILE")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="A proxy in front ends TLS.")] = False,
    as_json: Json = False,
) -> None:
    """Run a server until Ctrl-C. Options go before `QRAF_...` variables, these before defaults.

    On loopback it makes an API key that programs of the same user find by themselves. Elsewhere it needs TLS, and keys
    made before with `qraf keys create`.
    """
    from qraf.cli.serve import serve_command

    serve_command(
        topology=topology,
        host=host,
        port=port,
        data=data,
        runtime=runtime,
        generator_url=generator_url,
        generator_model=generator_model,
        no_auth=no_auth,
        tls_cert=tls_cert,
        tls_key=tls_key,
        behind_proxy=behind_proxy,
        as_json=as_json,
    )


@app.command()
def demo(
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="Ask this instead; may be repeated.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Keep the journal here.", metavar="DIR")] = None,
    runtime: Annotated[str, typer.Option(help="ray or local.", metavar="KIND")] = "ray",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 96,
    as_json: Json = False,
) -> None:
    """Show the whole path: documentation streams in, three questions are routed, answers stream out."""
    from qraf.cli.output import run
    from qraf.demo.story import demo_command

    run(demo_command(question or [], data=data, runtime=runtime, max_tokens=max_tokens, as_json=as_json), as_json)


@app.command()
def chat(
    session: Session = None,
    collection: Collections = None,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not remember what is said.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Talk with a session's memory. With --json: a prompt per line in, a frame per line out."""
    from qraf.cli.chat import chat_command

    chat_command(
        url, session=session, collections=collection, remember=not no_memory, max_tokens=max_tokens, as_json=as_json
    )


@app.command()
def write(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SESSION] [FILES|-]", help="The session (not with --collection), then files."),
    ] = None,
    collection: Annotated[str | None, typer.Option("--collection", "-c", metavar="NAME")] = None,
    format: Annotated[
        str | None, typer.Option(help="document, lines or jsonl; default: by the file's name.", metavar="KIND")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Who said it.", metavar="NAME")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Write files, or lines of standard input, into a session or a collection."""
    from qraf.cli.output import run
    from qraf.cli.write import write_command

    words = words or []
    if collection is None and not words:
        raise typer.BadParameter("name a session, or a collection with --collection")
    session, files = (None, words) if collection is not None else (words[0], words[1:])
    if format not in (None, "document", "lines", "jsonl"):
        raise typer.BadParameter(f"--format must be document, lines or jsonl, but is '{format}'")
    for file in files:
        if file != "-" and not Path(file).is_file():
            raise typer.BadParameter(f"there is no file '{file}'")
    work = write_command(
        url, files, session=session, collection=collection, format=format, speaker=speaker, as_json=as_json
    )
    run(work, as_json)


@app.command()
def recall(
    text: Annotated[str, typer.Argument(help="What to recall.")],
    session: Session = None,
    collection: Collections = None,
    k: Annotated[int, typer.Option("-k", help="How many.", min=1)] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="Show the terms of every score.")] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Evidence for a text, from a session, collections, or (neither named) every collection."""
    from qraf.cli.output import run
    from qraf.cli.recall import recall_command

    run(recall_command(url, text, session, collection, k=k, explain=explain, as_json=as_json), as_json)


@sessions_app.command("list")
def sessions_list(url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """All sessions; with --json a line for each."""
    from qraf.cli.output import run
    from qraf.cli.sessions import list_command

    run(list_command(url, as_json), as_json)


@sessions_app.command("show")
def sessions_show(session: str, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """One session with its figures."""
    from qraf.cli.output import run
    from qraf.cli.sessions import show_command

    run(show_command(url, session, as_json), as_json)


@sessions_app.command("delete")
def sessions_delete(
    session: str,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Erase a session and everything that it remembers."""
    from qraf.cli.output import run
    from qraf.cli.sessions import delete_command

    if not yes and not as_json:
        typer.confirm(f"Erase session '{session}' and everything that it remembers?", abort=True)
    run(delete_command(url, session, as_json), as_json)


@app.command()
def tune(
    topology: Annotated[Path, typer.Argument(help="A topology file.", metavar="TOPOLOGY")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Memories and prompts, JSON lines.", metavar="LABELS")],
    node: Annotated[
        list[str] | None, typer.Option("--node", "-n", help="Only this memory node; may be repeated.", metavar="NAME")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here, not over TOPOLOGY.", metavar="FILE")
    ] = None,
    own_text: Annotated[bool, typer.Option("--own-text", help="Do not read the prompts of LABELS.")] = False,
    folds: Annotated[int, typer.Option(help="Parts that the prompts are cut into.", min=2, max=20)] = 5,
    seed: Annotated[int, typer.Option(help="Of the folds.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Fit the recall constants to prompts with known evidence; they change only if unseen prompts gain.

    A line of LABELS is a memory: {"session": .., "items": [{"item_id": "t1", "text": ..}], "prompts": [{"prompt": ..,
    "evidence": ["t1"]}]}. Without prompts a memory asks itself, and only `alpha` is fitted.
    """
    from qraf.cli.output import guarded

    with guarded(as_json):
        from qraf.cli.tune import tune_command

        tune_command(
            topology, data, nodes=node or [], out=out, own_text=own_text, folds=folds, seed=seed, as_json=as_json
        )


@app.command()
def version(as_json: Json = False) -> None:
    """The version of this program."""
    from qraf import __version__

    if as_json:
        from qraf.cli.output import print_json

        print_json({"version": __version__})
    else:
        typer.echo(__version__)
