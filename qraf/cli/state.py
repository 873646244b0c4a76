"""`qraf state`: prepare, show, measure, evolve, compare, export, list and delete stored states."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qraf.cli.output import guarded, run
from qraf.state_orders import Format

__all__ = ["app"]

app = typer.Typer(help="Prepare, measure and change stored quantum states.", no_args_is_help=True)

Url = Annotated[
    str, typer.Option("--url", envvar="QRAF_URL", help="The server: ws, wss, http or https.", metavar="URL")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, or JSON lines, for machines.")]
State = Annotated[str, typer.Argument(help="The state's id.", metavar="ID")]
Version = Annotated[int | None, typer.Option("--version", help="Only if this is its version now.", metavar="N")]
On = Annotated[list[int] | None, typer.Option("--on", help="A subsystem, from 0; may be repeated.", metavar="N")]
_URL = "ws://127.0.0.1:8642"


@app.command()
def prepare(
    named: Annotated[
        str | None, typer.Option(help="bell, ghz:3, w:3, plus:2, basis:010, mixed:2.", metavar="NAME")
    ] = None,
    amplitudes: Annotated[
        str | None, typer.Option(help="Comma-separated, such as 0.6,0.8j.", metavar="NUMBERS")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A text, by the server's encoder.")] = None,
    circuit: Annotated[Path | None, typer.Option(help="OpenQASM 3; -: standard input.", metavar="FILE")] = None,
    counts: Annotated[Path | None, typer.Option(help="JSON: setting, outcome, how often.", metavar="FILE")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help=".npy: amplitudes (d,) or a matrix (d, d). .npz, .msgpack: an export. .json: a preparation.",
            metavar="FILE",
        ),
    ] = None,
    dims: Annotated[str | None, typer.Option(help="Subsystem sizes, such as 2x2.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale a norm or trace that is not 1.")] = False,
    label: Annotated[str, typer.Option(help="A name for people.")] = "",
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Make a state, from exactly one of the first six options."""
    given = {"named": named, "amplitudes": amplitudes, "text": text, "circuit": circuit, "counts": counts, "file": file}
    if sum(value is not None for value in given.values()) != 1:
        raise typer.BadParameter(f"give exactly one of {', '.join('--' + name for name in given)}")
    with guarded(as_json):
        asked: dict[str, Any] = {"named": named, "text": text}
        if amplitudes is not None:
            asked["amplitudes"] = _numbers(amplitudes)
        if circuit is not None:
            asked["circuit"] = _read(circuit).decode()
        if counts is not None:
            asked["counts"] = _decoded(counts)
        if file is not None:
            asked |= _from_file(file)
        if dims is not None:
            asked["dims"] = _dims(dims)
        asked |= {"normalize": normalize} if normalize else {}
        asked |= {"label": label} if label else {}
    from qraf.cli.state_calls import prepare_command

    run(prepare_command(url, asked, as_json), as_json)


@app.command()
def show(state: State, url: Url = _URL, as_json: Json = False) -> None:
    """A state's figures with their certificate."""
    from qraf.cli.state_calls import show_command

    run(show_command(url, state, as_json), as_json)


@app.command("list")
def list_states(url: Url = _URL, as_json: Json = False) -> None:
    """All states; with --json a line for each."""
    from qraf.cli.state_calls import list_command

    run(list_command(url, as_json), as_json)


@app.command()
def measure(
    state: State,
    basis: Annotated[
        str | None, typer.Option(help="computational, or a letter X, Y, Z for each qubit.", metavar="BASIS")
    ] = None,
    pauli: Annotated[
        list[str] | None,
        typer.Option("--pauli", help="A term of an observable, such as ZZ=0.5; may be repeated.", metavar="P=C"),
    ] = None,
    on: On = None,
    shots: Annotated[int | None, typer.Option(help="Draw so many outcomes.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same.", min=0)] = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Probabilities and samples in a basis, or an observable's mean; the state stays as it is."""
    if basis is not None and pauli:
        raise typer.BadParameter("give --basis or --pauli, not both")
    asked: dict[str, Any] = {"subsystems": on or None, "shots": shots, "seed": seed}
    asked |= {"paulis": dict(map(_term, pauli))} if pauli else {"basis": basis or "computational"}
    from qraf.cli.state_calls import measure_command

    run(measure_command(url, state, asked, as_json), as_json)


@app.command()
def evolve(
    state: State,
    channel: Annotated[
        str | None,
        typer.Option(
            help="depolarizing, dephasing (--p), amplitude_damping (--gamma), phase_damping (--lam), "
            "thermal_relaxation (--t --t1 --t2), pauli (--probability X=0.01)."
        ),
    ] = None,
    circuit: Annotated[Path | None, typer.Option(help="OpenQASM 3; -: standard input.", metavar="FILE")] = None,
    steps: Annotated[Path | None, typer.Option(help="JSON: a list of steps.", metavar="FILE")] = None,
    on: On = None,
    together: Annotated[bool, typer.Option("--together", help="Take the subsystems as one.")] = False,
    p: Annotated[float | None, typer.Option()] = None,
    gamma: Annotated[float | None, typer.Option()] = None,
    lam: Annotated[float | None, typer.Option()] = None,
    t: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    t1: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    t2: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    probability: Annotated[list[str] | None, typer.Option(help="May be repeated.", metavar="P=C")] = None,
    new: Annotated[bool, typer.Option("--new", help="Leave the state; make a new one.")] = False,
    version: Version = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Send a state through a channel, a circuit, or a file of steps."""
    if sum(value is not None for value in (channel, circuit, steps)) != 1:
        raise typer.BadParameter("give exactly one of --channel, --circuit, --steps")
    with guarded(as_json):
        if steps is not None:
            asked = _decoded(steps)
            asked = asked if isinstance(asked, list) else [asked]
        else:
            step: dict[str, Any] = {"channel": channel, "p": p, "gamma": gamma, "lam": lam}
            step |= {"t_s": t, "t1_s": t1, "t2_s": t2, "subsystems": on or None}
            step["circuit"] = _read(circuit).decode() if circuit is not None else None
            step["probabilities"] = dict(map(_term, probability)) if probability else None
            step |= {"together": True} if together else {}
            asked = [{name: value for name, value in step.items() if value is not None}]
    from qraf.cli.state_calls import evolve_command

    run(evolve_command(url, state, asked, new, version, as_json), as_json)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="An id, or a name such as bell.", metavar="A")],
    second: Annotated[str, typer.Argument(help="An id, or a name such as bell.", metavar="B")],
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Fidelity, trace distance and Bures distance of two states."""
    from qraf.cli.state_calls import compare_command

    run(compare_command(url, first, second, as_json), as_json)


@app.command()
def export(
    state: State,
    format: Annotated[Format, typer.Option(help="An exact packet, NumPy's .npz, or JSON.")] = "msgpack",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here; -: standard output.", metavar="FILE")
    ] = None,
    url: Url = _URL,
) -> None:
    """Carry a state away; `qraf state prepare --file` brings it back."""
    from qraf.cli.state_calls import export_command

    run(export_command(url, state, format, out))


@app.command()
def delete(
    states: Annotated[list[str], typer.Argument(help="Ids.", metavar="ID...")],
    version: Version = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Delete states, one after the other."""
    if version is not None and len(states) > 1:
        raise typer.BadParameter("--version goes with one state")
    from qraf.cli.state_calls import delete_command

    run(delete_command(url, states, version, as_json), as_json)


# ------------------------------------------------------------------------------------------------------ how it is done
def _from_file(file: Path) -> dict[str, Any]:
    """What a file holds: arrays, an export, a preparation, or a list of preparations."""
    suffix = file.suffix.lower()
    if suffix == ".npy":
        import numpy as np

        array = np.load(file, allow_pickle=False)
        return {"density" if array.ndim == 2 else "amplitudes": array}
    if suffix == ".json":
        found = _decoded(file)
        return {"states": found} if isinstance(found, list) else dict(found)
    return {"packet": _read(file)}


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    if not file.is_file():
        raise typer.BadParameter(f"there is no file '{file}'")
    return file.read_bytes()


def _decoded(file: Path) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(_read(file))
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"{file} is no JSON: {error}") from None


def _numbers(text: str) -> list[complex]:
    try:
        return [complex(re.sub(r"\s+", "", one).replace("i", "j")) for one in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"'{text}' must be numbers with commas between, such as 0.6,0.8j") from None


def _dims(text: str) -> list[int]:
    if re.fullmatch(r"\d+(x\d+)*", text) is None:
        raise typer.BadParameter(f"--dims must be such as 2x2, but is '{text}'")
    return [int(size) for size in text.split("x")]


def _term(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value) if value else 1.0
    except ValueError:
        raise typer.BadParameter(f"'{text}' must be such as ZZ=0.5") from None
