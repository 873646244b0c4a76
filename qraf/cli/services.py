"""`qraf quantize`, `qraf optimize`, `qraf correct`, `qraf operations`: arrays from files, answers as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from qraf.cli.output import guarded, run
from qraf.code_orders import CodeName

__all__ = ["correct_app", "operations_app", "optimize_app", "quantize"]

optimize_app = typer.Typer(help="Nearest physical states, fewer directions, smaller sketches.", no_args_is_help=True)
correct_app = typer.Typer(help="Repair and align states; build, sample and decode codes.", no_args_is_help=True)
operations_app = typer.Typer(help="List, show and cancel long jobs.", no_args_is_help=True)

Url = Annotated[
    str, typer.Option("--url", envvar="QRAF_URL", help="The server: ws, wss, http or https.", metavar="URL")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object for machines.")]
States = Annotated[
    list[str] | None, typer.Option("--state", help="A stored state's id instead; may be repeated.", metavar="ID")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help=".npy: one array, or several of one shape; .npz: any.", metavar="FILE"),
]
Matrices = Annotated[
    Path | None,
    typer.Argument(help=".npy or .json: (d, d) or (n, d, d); .npz: every array in it.", metavar="[FILE]"),
]
Rank = Annotated[int | None, typer.Option(help="At most so many directions.", metavar="N")]
Code = Annotated[str, typer.Option(help=" or ".join(get_args(CodeName)), metavar="CODE")]
Distance = Annotated[int, typer.Option(help="Of the code.", metavar="D")]
Rounds = Annotated[int, typer.Option(help="Of syndrome measurement.", metavar="N")]
Noise = Annotated[float, typer.Option(help="One probability for all places.", metavar="P")]
Basis = Annotated[str, typer.Option(help="z or x.")]
_URL = "ws://127.0.0.1:8642"
_SURFACE = "rotated_surface"


def quantize(
    file: Annotated[
        Path | None, typer.Argument(help=".npy, .npz or .json: amplitudes (n, d) or (d,).", metavar="[FILE]")
    ] = None,
    state: States = None,
    code: Annotated[
        str | None, typer.Option(help="float32, int8, int4, nf4, lloyd2 or sign1; default: a table of all.")
    ] = None,
    rotate: Annotated[
        bool | None, typer.Option("--rotate/--no-rotate", help="By a Hadamard matrix first; default: the code's way.")
    ] = None,
    group: Annotated[int, typer.Option(help="Amplitudes that share a scale.", min=1)] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the codes here.", metavar="FILE")] = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Code amplitudes or states: bytes, measured infidelity, guaranteed bound."""
    if out is not None and code is None:
        raise typer.BadParameter("--out needs --code")
    from qraf.cli.service_calls import quantize_command, rows_of

    given = {"states": state} if _one(file, state) else {"rows": _load(rows_of, file, as_json)}
    given |= {"code": code, "rotate": rotate, "group": group}
    run(quantize_command(url, given, out, as_json), as_json)


@optimize_app.command()
def nearest(
    file: Matrices = None,
    state: States = None,
    rank: Rank = None,
    out: Out = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """The states nearest to matrices (Smolin, Gambetta, Smith), of trace 1."""
    from qraf.cli.service_calls import matrices_of, nearest_command

    given = {"states": state} if _one(file, state) else {"matrices": _load(matrices_of, file, as_json)}
    run(nearest_command(url, {**given, "rank": rank}, out, as_json), as_json)


@optimize_app.command()
def truncate(
    file: Matrices = None,
    state: States = None,
    rank: Rank = None,
    loss: Annotated[float | None, typer.Option(help="Most of the trace to lose.", metavar="P")] = None,
    out: Out = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """States of fewer directions: --rank, or --loss. --out has the factors L, rho = L^H L."""
    if (rank is None) == (loss is None):
        raise typer.BadParameter("give --rank or --loss")
    from qraf.cli.service_calls import matrices_of, truncate_command

    given = {"states": state} if _one(file, state) else {"matrices": _load(matrices_of, file, as_json)}
    run(truncate_command(url, {**given, "rank": rank, "loss": loss}, out, as_json), as_json)


@optimize_app.command()
def recompress(
    rank: Annotated[int, typer.Option(help="At most so many directions.", metavar="N")],
    session: Annotated[str | None, typer.Option("--session", "-s", help="The session.", metavar="NAME")] = None,
    collection: Annotated[str | None, typer.Option("--collection", "-c", metavar="NAME")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Change the session's memory, for good.")] = False,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """What the sketch of a memory would be at another rank; with --apply a session's memory gets it."""
    if (session is None) == (collection is None):
        raise typer.BadParameter("give --session or --collection")
    from qraf.cli.service_calls import recompress_command

    given = {"rank": rank, "session": session, "collection": collection, "apply": apply}
    run(recompress_command(url, given, as_json), as_json)


@correct_app.command()
def repair(
    file: Matrices = None,
    state: States = None,
    rank: Rank = None,
    noise: Annotated[
        float | None, typer.Option(help="Bound on the operator norm of what was added; gives a bound.", metavar="X")
    ] = None,
    out: Out = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Find what keeps matrices from being states, and repair it."""
    from qraf.cli.service_calls import matrices_of, repair_command

    given = {"states": state} if _one(file, state) else {"matrices": _load(matrices_of, file, as_json)}
    run(repair_command(url, {**given, "rank": rank, "noise": noise}, out, as_json), as_json)


@correct_app.command()
def align(
    file: Annotated[Path, typer.Argument(help="Vectors (d,) or (n, d); with --factors (r, d) or (n, r, d).")],
    reference: Annotated[Path, typer.Argument(help="What they are turned to.")],
    factors: Annotated[bool, typer.Option("--factors", help="Turn factors by a unitary of their rows.")] = False,
    out: Out = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Turn vectors by their phase, or factors by a unitary, towards a reference; the states stay."""
    from qraf.cli.service_calls import align_command, rows_of

    given = {"factors" if factors else "vectors": _load(rows_of, file, as_json)}
    run(align_command(url, {**given, "reference": _load(rows_of, reference, as_json)}, out, as_json), as_json)


@correct_app.command()
def build(
    code: Code = _SURFACE,
    distance: Distance = 3,
    rounds: Rounds = 3,
    noise: Noise = 0.005,
    basis: Basis = "z",
    dem: Annotated[Path | None, typer.Option(help="Write the detector error model here.", metavar="FILE")] = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """The sizes of a memory experiment."""
    from qraf.cli.service_calls import build_command

    run(build_command(url, _experiment(code, distance, rounds, noise, basis), dem, as_json), as_json)


@correct_app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="FILE.b8 for the events; FILE.obs.b8 for what really happened.")],
    shots: Annotated[int, typer.Option(help="How many.", min=1)] = 1000,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same.", min=0)] = None,
    code: Code = _SURFACE,
    distance: Distance = 3,
    rounds: Rounds = 3,
    noise: Noise = 0.005,
    basis: Basis = "z",
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Draw shots of a memory experiment."""
    from qraf.cli.service_calls import sample_command

    experiment = _experiment(code, distance, rounds, noise, basis)
    run(sample_command(url, experiment, shots, seed, out, as_json), as_json)


@correct_app.command()
def decode(
    file: Annotated[Path, typer.Argument(help="Detection events, b8.", exists=True, dir_okay=False)],
    observables: Annotated[
        Path | None, typer.Option(help="What really happened, b8, to count the errors.", metavar="FILE")
    ] = None,
    dem: Annotated[
        Path | None, typer.Option(help="A detector error model instead of an experiment.", metavar="FILE")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Rounds of a sliding window.", min=1)] = None,
    commit: Annotated[int | None, typer.Option(help="Rounds decided at a time.", min=1)] = None,
    code: Code = _SURFACE,
    distance: Distance = 3,
    rounds: Rounds = 3,
    noise: Noise = 0.005,
    basis: Basis = "z",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the predicted flips, b8.")] = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Decode shots: of an experiment, or of a detector error model."""
    from qraf.cli.service_calls import decode_command

    with guarded(as_json):
        given: dict[str, Any] = {"window": window, "commit": commit}
        if dem is not None:
            given["dem"] = _bytes(dem).decode(errors="replace")
        else:
            given["experiment"] = _experiment(code, distance, rounds, noise, basis)
        given["observables"] = None if observables is None else _bytes(observables)
    run(decode_command(url, _bytes(file), given, out, as_json), as_json)


@operations_app.command("list")
def list_operations(url: Url = _URL, as_json: Json = False) -> None:
    """Every job that the server keeps, newest first; with --json a line for each."""
    from qraf.cli.service_calls import operations_command

    run(operations_command(url, as_json), as_json)


@operations_app.command("show")
def show_operation(
    operation: Annotated[str, typer.Argument(metavar="ID")],
    wait: Annotated[bool, typer.Option("--wait", help="Until it ends, with a bar.")] = False,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """How far a job is; with --json its result too."""
    from qraf.cli.service_calls import operation_command

    run(operation_command(url, operation, wait, as_json), as_json)


@operations_app.command("cancel")
def cancel_operation(
    operation: Annotated[str, typer.Argument(metavar="ID")], url: Url = _URL, as_json: Json = False
) -> None:
    """Stop a job before its next part."""
    from qraf.cli.service_calls import cancel_command

    run(cancel_command(url, operation, as_json), as_json)


def _one(file: Path | None, state: list[str] | None) -> bool:
    """Whether states were given, and not a file."""
    if (file is None) == (not state):
        raise typer.BadParameter("give a file, or --state")
    return file is None


def _load(read: Any, file: Path | None, as_json: bool) -> Any:
    with guarded(as_json):
        return read(file)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"cannot read '{file}': {error.strerror}") from None


def _experiment(code: str, distance: int, rounds: int, noise: float, basis: str) -> dict[str, Any]:
    for name, value, allowed in (("--code", code, get_args(CodeName)), ("--basis", basis, ("z", "x"))):
        if value not in allowed:
            raise typer.BadParameter(f"{name} must be {' or '.join(allowed)}, but is '{value}'")
    return {"code": code, "distance": distance, "rounds": rounds, "noise": noise, "basis": basis}
