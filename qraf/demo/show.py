"""How the demonstration looks in a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from qraf.cli.render import bar, figures_table, route_table, shorten
from qraf.frames import (
    EvidenceOut,
    ResponseDelta,
    ResponseDone,
    ResponseEvidence,
    ResponseHop,
    ResponseRoute,
    ServerFrame,
)
from qraf.records import Figures

__all__ = ["Show"]


class Show:
    """Prints the story as it happens; a quiet console makes all of it silent."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._hops: list[ResponseHop] = []
        self._is_answering = False

    def phase(self, phase: str, seconds: float) -> None:
        """A step of starting or stopping."""
        self._console.print(f"{seconds:6.1f} s  {phase}", style="dim", markup=False)

    def network(self, name: str, description: str, url: str) -> None:
        """The network is there."""
        self._console.print(f"\nNetwork '{name}' at {url}. {description}\n", markup=False)

    @contextlib.contextmanager
    def writing(self, totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
        """A bar for each collection, with the figures of its state beside it: bits, bits, share, times smaller."""
        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", style="dim"),
        )
        with Progress(*columns, console=self._console, disable=self._console.quiet) as progress:
            self._progress = progress
            self._bars = {name: progress.add_task(name, total=total, figures="") for name, total in totals.items()}
            try:
                yield lambda name, count: progress.advance(self._bars[name], count)
            finally:
                self._progress = None

    def figures(self, name: str, state: Figures) -> None:
        """A state moved."""
        if self._progress is not None and name in self._bars:
            text = (
                f"coherence {state.coherence_bits:.2f} entropy {state.entropy_bits:.2f} "
                f"purity {state.purity:.2f} {state.compression_ratio:.1f}x"
            )
            self._progress.update(self._bars[name], figures=text)

    def written(self, items: int, seconds: float) -> None:
        """Everything is durable and absorbed."""
        self._console.print(
            f"\n{items} passages written, durable and absorbed in {seconds:.1f} s ({items / seconds:.0f}/s).",
            markup=False,
        )

    def question(self, text: str) -> None:
        """A question is asked."""
        self._hops, self._is_answering = [], False
        self._console.print()
        self._console.print(Rule(Text(text, style="bold"), align="left"))

    def frame(self, frame: ServerFrame) -> None:
        """A frame of the answer came."""
        match frame:
            case ResponseRoute():
                title = f"route, {frame.predicted_ms:.0f} ms predicted"
                self._console.print(route_table(frame.hops, frame.not_visited, title=title))
            case ResponseHop():
                self._hops.append(frame)
            case ResponseEvidence():
                self._console.print(figures_table(self._hops, title="states of the measured nodes"))
                self._console.print(_evidence_table(frame.items, frame.coverage))
            case ResponseDelta():
                if not self._is_answering:
                    self._is_answering = True
                    self._console.print("answer  ", style="italic", end="")
                self._console.print(frame.text, end="", markup=False)
            case ResponseDone():
                if self._is_answering:
                    self._console.print()
                usage = frame.usage
                first_ms, total_s = usage.time_to_first_token_ms or 0.0, usage.total_ms / 1000
                first = f"first token after {first_ms:.0f} ms, {total_s:.1f} s in all"
                rested = f"{usage.evidence_items} of {usage.items_scanned} passages on {usage.nodes_visited} nodes"
                end = f"{frame.status} ({frame.finish_reason}), {usage.completion_tokens} tokens"
                self._console.print(f"[{end}; {first}; {rested}]", style="dim", markup=False)
            case _:
                pass

    def end(self, seconds: Mapping[str, float], written: Mapping[str, Any], questions: Sequence[Any]) -> None:
        """The times of the whole story."""
        table = Table(title="times since the start", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("what")
        table.add_column("s", justify="right")
        names = {"ready": "server ready", "written": "all written", "first_token": "first token", "total": "stopped"}
        for key, name in names.items():
            if key in seconds:
                table.add_row(name, f"{seconds[key]:.1f}")
        self._console.print()
        self._console.print(table)
        known = [question for question in questions if question["expected"]]
        if known:
            right = sum(question["is_right"] for question in known)
            self._console.print(f"{right} of {len(known)} questions found their best evidence on the node that knows.")


def _evidence_table(items: Sequence[EvidenceOut], coverage: float) -> Table:
    title = f"evidence, coverage {coverage:.2f}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("probability", no_wrap=True)
    table.add_column("node")
    table.add_column("source and text", ratio=1)
    most = max((item.probability for item in items), default=1.0) or 1.0
    for item in items:
        source = str(item.metadata.get("source", ""))
        # the passage begins with its own name
        said = item.text.partition(": ")[2] if item.text.startswith(source.partition("(")[0]) else item.text
        said = shorten(" ".join(said.split()), 150)
        text = Text.assemble((source, "bold"), " ", said)
        table.add_row(f"{item.probability:.3f} {bar(item.probability / most, 6)}", item.node, text)
    return table
