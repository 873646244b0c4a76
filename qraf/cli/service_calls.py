"""What the service commands ask of a server, how they read and write arrays, and how they print the answers."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from qraf.cli.output import console, errors, print_json
from qraf.client.rest import Rest
from qraf.client.services import Found, ServicesApi
from qraf.errors import InvalidRequest, ServerError
from qraf.service_orders import OperationView

__all__ = [
    "align_command",
    "bar",
    "build_command",
    "cancel_command",
    "decode_command",
    "matrices_of",
    "nearest_command",
    "operation_command",
    "operations_command",
    "quantize_command",
    "recompress_command",
    "repair_command",
    "rows_of",
    "sample_command",
    "truncate_command",
]

_SHOWN = 32  # rows of a table; --json has all


# ------------------------------------------------------------------------------------------------ files
def rows_of(file: Path) -> NDArray[Any]:
    """One array from a .npy, .npz (the only one in it) or .json file.

    Raises:
        InvalidRequest: no such file, another format, or no array in it.
    """
    arrays = _arrays(file)
    if len(arrays) != 1:
        raise InvalidRequest(f"'{file}' must hold one array, but holds {len(arrays)}")
    return arrays[0]


def matrices_of(file: Path) -> NDArray[Any] | list[NDArray[Any]]:
    """The matrices of a file: one array, or all arrays of a .npz."""
    arrays = _arrays(file)
    return arrays[0] if len(arrays) == 1 else arrays


def _arrays(file: Path) -> list[NDArray[Any]]:
    try:
        if file.suffix == ".json":
            return [_of_json(msgspec.json.decode(file.read_bytes()))]
        loaded = np.load(file, allow_pickle=False)
        return [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]
    except OSError as error:
        raise InvalidRequest(f"cannot read '{file}': {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, msgspec.DecodeError) as error:
        raise InvalidRequest(f"'{file}' must be .npy, .npz or .json with numbers: {error}") from None


def _of_json(value: Any) -> NDArray[Any]:
    """Nested lists of numbers, or `{"real": .., "imag": ..}`."""
    if isinstance(value, dict) and value.keys() <= {"real", "imag"} and "real" in value:
        real = np.array(value["real"], np.float64)
        return real if value.get("imag") is None else real + 1j * np.array(value["imag"], np.float64)
    return np.array(value, np.float64)


def _write(out: Path | None, arrays: Sequence[NDArray[Any]]) -> None:
    """Arrays of one shape to .npy, one alone without a batch axis; any to .npz."""
    if out is None:
        return
    try:
        if out.suffix == ".npz":
            np.savez(out, allow_pickle=False, **{f"array_{at}": one for at, one in enumerate(arrays)})
        elif len({one.shape for one in arrays}) == 1:
            np.save(out, arrays[0] if len(arrays) == 1 else np.stack(arrays), allow_pickle=False)
        else:
            raise InvalidRequest(f"the arrays have several shapes; write a .npz, not '{out}'")
    except OSError as error:
        raise InvalidRequest(f"cannot write '{out}': {error.strerror or error}") from None


def _write_bytes(out: Path, data: bytes) -> None:
    try:
        out.write_bytes(data)
    except OSError as error:
        raise InvalidRequest(f"cannot write '{out}': {error.strerror or error}") from None


# ------------------------------------------------------------------------------------------------ commands
async def quantize_command(url: str, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print what each code makes of the rows."""
    async with _api(url) as api:
        with bar(as_json) as progress:
            found = await api.quantize(**given, codes=out is not None, progress=progress)
    if out is not None:
        _write_bytes(out, found.codings[0].codes or b"")
    if as_json:
        print_json(found)
        return
    table = _table("code", "rotated", "bytes/row", "ratio", "infidelity mean", "max", "guaranteed max")
    for one in found.codings:
        numbers = (f"{one.infidelity_mean:.3g}", f"{one.infidelity_max:.3g}", f"{one.bound_max:.3g}")
        rotated = "yes" if one.rotate else "no"
        table.add_row(one.code, rotated, str(one.bytes_per_row), f"{one.ratio:.1f}x", *numbers)
    console.print(table)
    console.print(f"{found.n} rows of {found.d} amplitudes")


async def nearest_command(url: str, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print how far the nearest states are."""
    async with _api(url) as api:
        with bar(as_json) as progress:
            found = await api.nearest(**given, arrays=out is not None, progress=progress)
    columns = ("d", "trace", "negative", "rank", "moved", "Frobenius", "bytes")
    _print(
        found,
        out,
        as_json,
        columns,
        lambda one: (
            str(one.d),
            f"{one.trace:.6g}",
            f"{one.negativity:.3g}",
            str(one.rank),
            f"{one.moved:.6g}",
            f"{one.moved_frobenius:.6g}",
            f"{one.bytes_before} > {one.bytes_after}",
        ),
    )


async def truncate_command(url: str, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print what truncation moved."""
    async with _api(url) as api:
        with bar(as_json) as progress:
            found = await api.truncate(**given, arrays=out is not None, progress=progress)
    _print(
        found,
        out,
        as_json,
        ("d", "rank", "moved", "fidelity", "bytes"),
        lambda one: (
            str(one.d),
            f"{one.rank_before} > {one.rank}",
            f"{one.moved:.6g}",
            f"{one.fidelity:.9f}",
            f"{one.bytes_before} > {one.bytes_after}",
        ),
    )


async def recompress_command(url: str, given: dict[str, Any], as_json: bool) -> None:
    """Print what a smaller sketch would cost."""
    async with _api(url) as api:
        with bar(as_json) as progress:
            found = await api.recompress(**given, progress=progress)
    if as_json:
        print_json(found)
        return
    table = _table("node", "items", "rank", "moved", "certified", "bytes")
    for one in found.results:
        certified = f"{one.loss_before:.3g} > {one.loss_after:.3g}"
        sizes = f"{one.bytes_before} > {one.bytes_after}"
        table.add_row(one.node, str(one.rows), f"{one.rank_before} > {one.rank}", f"{one.moved:.6g}", certified, sizes)
    console.print(table)


async def repair_command(url: str, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print the syndromes and what was changed."""
    async with _api(url) as api:
        with bar(as_json) as progress:
            found = await api.repair(**given, arrays=out is not None, progress=progress)
    _print(
        found,
        out,
        as_json,
        ("d", "trace", "hermiticity", "negativity", "found", "moved", "bound"),
        lambda one: (
            str(one.d),
            f"{one.syndromes.trace:.3g}",
            f"{one.syndromes.hermiticity:.3g}",
            f"{one.syndromes.negativity:.3g}",
            ", ".join(one.syndromes.found) or "nothing",
            f"{one.moved:.6g}",
            "" if one.bound is None else f"{one.bound:.4g}",
        ),
    )


async def align_command(url: str, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print distances before and after."""
    async with _api(url) as api:
        found = await api.align(**given, arrays=out is not None)
    columns = ("distance before", "after", "fidelity")
    _print(
        found,
        out,
        as_json,
        columns,
        lambda one: (f"{one.before:.6g}", f"{one.after:.6g}", f"{one.fidelity:.9f}"),
    )


async def build_command(url: str, experiment: dict[str, Any], dem: Path | None, as_json: bool) -> None:
    """Print the sizes of an experiment."""
    async with _api(url) as api:
        found = await api.build_code(experiment, dem=dem is not None)
    if dem is not None:
        _write_bytes(dem, (found.dem or "").encode())
    if as_json:
        print_json(found)
        return
    console.print(
        f"{found.num_qubits} qubits, {found.num_detectors} detectors ({found.bytes_per_shot} bytes a shot), "
        f"{found.num_errors} mechanisms of error"
    )


async def sample_command(
    url: str, experiment: dict[str, Any], shots: int, seed: int | None, out: Path, as_json: bool
) -> None:
    """Write shots to two files."""
    async with _api(url) as api:
        found = await api.sample_code(experiment, shots, seed=seed)
    real = out.with_suffix(f".obs{out.suffix}")
    _write_bytes(out, found.detectors)
    _write_bytes(real, found.observables)
    facts = {"shots": found.shots, "seed": found.seed, "events": found.events}
    if as_json:
        print_json({**facts, "detectors": str(out), "observables": str(real)})
    else:
        console.print(f"{found.shots} shots with seed {found.seed}, {found.events} events: {out}, {real}", markup=False)


async def decode_command(url: str, detectors: bytes, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print how often the decoder was wrong, if that can be told."""
    async with _api(url) as api:
        with bar(as_json) as progress:
            found = await api.decode_shots(detectors, **given, progress=progress)
    if out is not None:
        _write_bytes(out, found.observables)
    if as_json:
        print_json(found)
        return
    flips = sum(map(int.bit_count, found.observables))
    console.print(f"{found.shots} shots, {found.events} events, {flips} flips of observables found")
    if found.errors is not None:
        rate = found.errors
        text = f"{rate.errors} wrong: {rate.rate:.4g} (95 %: {rate.low:.4g} to {rate.high:.4g})"
        console.print(text + ("" if rate.per_round is None else f", {rate.per_round:.4g} per round"))


async def operations_command(url: str, as_json: bool) -> None:
    """Print every operation."""
    async with _api(url) as api:
        views = await api.operations()
    if as_json:
        for view in views:
            print_json(view)
        return
    table = _table("operation", "what", "status", "progress", "age")
    for view in views:
        table.add_row(view.id, view.op, view.status, f"{view.progress:.0%}", f"{view.age_s:.0f} s")
    console.print(table if table.row_count else "no operations")


async def operation_command(url: str, id: str, wait: bool, as_json: bool) -> None:
    """Print one operation, after its end where that is wished for."""
    async with _api(url) as api:
        operation = api.operation(id)
        if wait:
            with bar(as_json) as progress, contextlib.suppress(ServerError):  # the view tells why it failed
                await operation.result(progress)
        view = await operation.status()
    _print_view(view, as_json)


async def cancel_command(url: str, id: str, as_json: bool) -> None:
    """Cancel an operation."""
    async with _api(url) as api:
        _print_view(await api.operation(id).cancel(), as_json)


# ------------------------------------------------------------------------------------------------ printing
def _print(
    found: Found[Any],
    out: Path | None,
    as_json: bool,
    columns: tuple[str, ...],
    row: Callable[[Any], tuple[str, ...]],
) -> None:
    _write(out, found.arrays)
    if as_json:
        bare = [msgspec.structs.replace(one, **_no_array(one)) for one in found.results]
        print_json({"results": bare})
        return
    table = _table(*columns)
    for one in found.results[:_SHOWN]:
        table.add_row(*row(one))
    console.print(table)
    if len(found.results) > _SHOWN:
        console.print(f"and {len(found.results) - _SHOWN} more; --json has all")


def _no_array(one: msgspec.Struct) -> dict[str, None]:
    """What is in the file needs not be printed too."""
    return {name: None for name in ("density", "factor", "aligned") if name in one.__struct_fields__}


def _print_view(view: OperationView, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    why = f": {view.error.detail}" if view.error else ""
    console.print(f"{view.op} {view.status}, {view.progress:.0%} done, {view.age_s:.0f} s old{why}", markup=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if not at else "right")
    return table


@contextlib.contextmanager
def bar(as_json: bool) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, from the first time that a long job tells how far it is."""
    columns = (TextColumn("working"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        bars: list[tuple[Progress, Any]] = []

        def tell(share: float) -> None:
            if not bars:
                bar = stack.enter_context(Progress(*columns, console=errors, disable=as_json))
                bars.append((bar, bar.add_task("", total=1.0)))
            bars[0][0].update(bars[0][1], completed=share)

        yield tell


@contextlib.asynccontextmanager
async def _api(url: str) -> AsyncIterator[ServicesApi]:
    rest = Rest(url)
    try:
        yield ServicesApi(rest)
    finally:
        await rest.close()
