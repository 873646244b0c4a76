"""What `qraf state` asks of a server and how it prints the answers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from qraf.cli.output import console, print_json
from qraf.client.rest import Rest
from qraf.client.states import StatesApi
from qraf.state_orders import Format, StateView

__all__ = [
    "compare_command",
    "delete_command",
    "evolve_command",
    "export_command",
    "list_command",
    "measure_command",
    "prepare_command",
    "show_command",
]

_SHOWN = 32  # outcomes of a measurement in a table; --json has all


async def prepare_command(url: str, asked: dict[str, Any], as_json: bool) -> None:
    """Make states and print them."""
    async with _api(url) as api:
        many = asked.get("states")
        views = (await api.prepare(asked),) if many is None else await api.prepare_many(many)
    for view in views:
        _print_view(view, as_json)


async def show_command(url: str, state: str, as_json: bool) -> None:
    """Print one state."""
    async with _api(url) as api:
        _print_view(await api.get(state), as_json)


async def list_command(url: str, as_json: bool) -> None:
    """Print all states, page by page."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("state", "label", "version", "dims", "rank", "purity", "entropy"):
        # an id that is cut short names nothing
        justify: JustifyMethod = "left" if name in ("state", "label", "dims") else "right"
        table.add_column(name, justify=justify, no_wrap=name == "state")
    async with _api(url) as api:
        cursor: str | None = None
        while True:
            page = await api.list(limit=200, cursor=cursor)
            for view in page.data:
                if as_json:
                    print_json(view)
                    continue
                figures = view.figures
                dims = "x".join(map(str, view.dims))
                numbers = (f"{figures.purity:.4f}", f"{figures.entropy_bits:.4f}")
                table.add_row(view.id, Text(view.label), str(view.version), dims, str(view.rank), *numbers)
            cursor = page.next_cursor
            if not cursor:
                break
    if not as_json:
        console.print(table if table.row_count else "no states")


async def measure_command(url: str, state: str, asked: dict[str, Any], as_json: bool) -> None:
    """Measure a state and print what was found."""
    async with _api(url) as api:
        found = await api.measure(state, **asked)
    if as_json:
        print_json(found)
        return
    if found.mean is not None:
        console.print(f"mean {found.mean:.10g}, variance {found.variance:.10g} (mean right to {found.error:.1e})")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("outcome", "probability", *(["drawn"] if found.shots else [])):
        table.add_column(name, justify="left" if name == "outcome" else "right")
    rows = sorted(zip(found.outcomes or (), found.probabilities or (), strict=True), key=lambda row: (-row[1], row[0]))
    for outcome, p in rows[:_SHOWN]:
        drawn = [str((found.counts or {}).get(outcome, 0))] if found.shots else []
        table.add_row(outcome, f"{p:.10f}", *drawn)
    console.print(table)
    if len(rows) > _SHOWN:
        console.print(f"and {len(rows) - _SHOWN} more outcomes; --json has all")
    tail = f"; {found.shots} shots with seed {found.seed}" if found.shots else ""
    console.print(f"version {found.version}; each probability is right to {found.error:.1e}{tail}", markup=False)


async def evolve_command(url: str, state: str, steps: list[Any], new: bool, version: int | None, as_json: bool) -> None:
    """Send a state through steps and print it."""
    async with _api(url) as api:
        view = await api.evolve(state, *steps, into="new" if new else "same", version=version)
    _print_view(view, as_json)


async def compare_command(url: str, first: str, second: str, as_json: bool) -> None:
    """Print how far two states are apart."""
    sides = [one if one.startswith("st_") else {"named": one} for one in (first, second)]
    async with _api(url) as api:
        found = await api.compare(sides[0], sides[1])
    if as_json:
        print_json(found)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("fidelity", f"{found.fidelity:.12f}", f"1 - {found.infidelity:.4g}")
    table.add_row("trace distance", f"{found.trace_distance:.12f}", f"right to {found.error:.1e}")
    table.add_row("Bures distance", f"{found.bures:.12f}", "")
    console.print(table)


async def export_command(url: str, state: str, form: Format, out: Path | None) -> None:
    """Write a state to a file."""
    async with _api(url) as api:
        data = await api.export(state, form)
    if out is not None and str(out) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    out = out or Path(f"{state}.{form}")
    out.write_bytes(data)
    console.print(f"{len(data)} bytes in {out}", markup=False, soft_wrap=True)


async def delete_command(url: str, states: list[str], version: int | None, as_json: bool) -> None:
    """Delete states."""
    async with _api(url) as api:
        for state in states:
            await api.delete(state, version=version)
            if as_json:
                print_json({"state": state, "deleted": True})
            else:
                console.print(f"state '{state}' is deleted", markup=False)


@contextlib.asynccontextmanager
async def _api(url: str) -> AsyncIterator[StatesApi]:
    rest = Rest(url)
    try:
        yield StatesApi(rest)
    finally:
        await rest.close()


def _print_view(view: StateView, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    figures, sure = view.figures, view.certificate
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("state", view.id, Text(view.label))
    table.add_row("version", str(view.version), view.updated_at)
    table.add_row("dims", "x".join(map(str, view.dims)), f"d = {view.d}, rank {view.rank}, {view.bytes} bytes")
    table.add_row("purity", f"{figures.purity:.10f}", _interval(sure.purity))
    table.add_row("entropy", f"{figures.entropy_bits:.10f}", f"bits, {_interval(sure.entropy_bits)}")
    table.add_row("effective rank", f"{figures.effective_rank:.10f}", "")
    table.add_row("coherence", f"{figures.coherence_bits:.10f}", "bits, in the computational basis")
    if figures.l1_coherence is not None:
        table.add_row("l1 coherence", f"{figures.l1_coherence:.10f}", "")
    table.add_row("right to", f"{sure.trace_distance:.1e}", "trace distance to the exact state")
    if view.moved:
        table.add_row("moved", f"{view.moved:.10f}", "trace distance from what was given")
    for bits, p in list((view.bits or {}).items())[:_SHOWN]:
        table.add_row("bits", f"{p:.10f}", bits)
    console.print(table)


def _interval(bounds: tuple[float, float]) -> str:
    return f"between {bounds[0]:.10f} and {bounds[1]:.10f}"
