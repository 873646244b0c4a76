"""The demonstration: real text streams in, questions are routed, evidence and answers stream out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

import qraf
from qraf.cli.output import print_json
from qraf.cli.serve import make_settings, running
from qraf.client import Client, Response
from qraf.demo.corpus import SHELVES, Passage, collect
from qraf.demo.show import Show
from qraf.errors import QrafError
from qraf.frames import NetworkDelta, NetworkSnapshot, ResponseDelta, WireItem, WriteDone

__all__ = ["QUESTIONS", "Question", "demo_command"]

TOPOLOGY = Path("topologies/library.yaml")
EVIDENCE = {"k": 5, "token_budget": 200}  # a short prompt: the model reads it on one core


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the node that should know (none for questions from outside)."""

    text: str
    node: str = ""


QUESTIONS = (
    Question("How do I find the shortest path between two nodes of a weighted graph?", "networkx"),
    Question("How can I limit how many times an actor is restarted after a failure?", "ray"),
    Question("How do I compute the singular value decomposition of a matrix?", "numpy"),
)


@dataclass(slots=True)
class _Report:
    """Everything the demonstration found out, for `--json`."""

    begun: float = field(default_factory=time.monotonic)
    version: str = qraf.__version__
    network: str = ""
    nodes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    moving: list[dict[str, Any]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)

    def mark(self, name: str) -> float:
        """Note the seconds since the start, once."""
        return self.seconds.setdefault(name, round(time.monotonic() - self.begun, 3))

    def to_builtins(self) -> dict[str, Any]:
        names = ("version", "network", "nodes", "seconds", "written", "moving", "questions")
        return {name: getattr(self, name) for name in names}


async def demo_command(
    questions: Sequence[str], *, data: Path | None, runtime: str, max_tokens: int, as_json: bool
) -> None:
    """Run the demonstration in this process and end; with JSON, print one object at the end.

    Cancel (Ctrl-C, SIGTERM): safe; server, hosts and temporary files are gone afterwards.

    Raises:
        QrafError: a part did not start, or an answer failed.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    report = _Report()
    show = Show(Console(quiet=as_json, highlight=False))
    asked = [Question(text) for text in questions] or list(QUESTIONS)
    with contextlib.ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qraf-demo-")))
        settings = make_settings(topology=TOPOLOGY, data=folder, runtime=runtime, port=0)
        reading = asyncio.create_task(asyncio.to_thread(_read_shelves))
        try:
            async with running(settings, lambda phase: show.phase(phase, time.monotonic() - report.begun)) as server:
                report.mark("ready")
                report.network = server.topology.name
                report.nodes = list(server.topology.nodes)
                show.network(server.topology.name, server.topology.description, server.url)
                async with qraf.connect(server.url) as q:
                    await _write(q, await reading, report, show)
                    for question in asked:
                        await _ask(q, question, max_tokens, report, show)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    report.mark("total")
    show.end(report.seconds, report.written, report.questions)
    if as_json:
        print_json(report.to_builtins())


def _read_shelves() -> dict[str, list[Passage]]:
    return {shelf.name: collect(shelf) for shelf in SHELVES}


async def _write(q: Client, shelves: dict[str, list[Passage]], report: _Report, show: Show) -> None:
    """Stream every shelf into its collection, all at once, and watch the states of the nodes move."""
    begun = time.monotonic()
    with show.writing({name: len(passages) for name, passages in shelves.items()}) as advance:
        async with _moving(q, report, show):
            done = await asyncio.gather(
                *(_write_shelf(q, name, passages, advance, show) for name, passages in shelves.items())
            )
    seconds = time.monotonic() - begun
    report.mark("written")
    items = sum(each.accepted + each.duplicates for each in done)
    report.written = {
        "items": items,
        "seconds": round(seconds, 3),
        "items_per_s": round(items / seconds, 1),
        "collections": {
            name: {"accepted": each.accepted, "duplicates": each.duplicates, "state": each.state}
            for name, each in zip(shelves, done, strict=True)
        },
    }
    for name, each in zip(shelves, done, strict=True):
        if each.rejected:
            raise QrafError(f"'{name}' refused {len(each.rejected)} items: {each.rejected[0].error.detail}")
    show.written(items, seconds)


async def _write_shelf(q: Client, name: str, passages: list[Passage], advance: Any, show: Show) -> WriteDone:
    # the name as id: with --data a second run finds everything there already
    items = [
        WireItem(
            item_id=f"demo/{passage.source}",
            text=passage.text,
            role="document",
            metadata={"source": passage.source},
        )
        for passage in passages
    ]
    # small frames, few at a time: the states are seen to move
    done = await q.write(items, collection=name, batch=16, window=2, progress=lambda count: advance(name, count))
    show.figures(name, done.state)
    return done


@contextlib.asynccontextmanager
async def _moving(q: Client, report: _Report, show: Show) -> AsyncIterator[None]:
    """For the length of the block, note and show what the nodes tell of their states."""
    versions: dict[str, int] = {}

    async def follow() -> None:
        async for frame in q.watch("network", every_ms=250):
            if not isinstance(frame, NetworkSnapshot | NetworkDelta):
                continue
            for view in frame.nodes:
                state = view.state
                if not state.items or versions.get(view.node) == state.version:
                    continue
                versions[view.node] = state.version
                show.figures(view.node, state)
                report.moving.append(
                    {
                        "seconds": round(time.monotonic() - report.begun, 3),
                        "node": view.node,
                        "items": state.items,
                        "coherence_bits": state.coherence_bits,
                        "entropy_bits": state.entropy_bits,
                        "purity": state.purity,
                        "compression_ratio": state.compression_ratio,
                    }
                )

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _ask(q: Client, question: Question, max_tokens: int, report: _Report, show: Show) -> None:
    """Ask one question; show the frames as they come; note everything."""
    show.question(question.text)
    begun = time.monotonic()
    first_token_s: float | None = None
    response = q.enhance(question.text, route={"explain": True}, evidence=EVIDENCE, generate={"max_tokens": max_tokens})
    async for frame in response:
        if isinstance(frame, ResponseDelta) and first_token_s is None:
            first_token_s = time.monotonic() - begun
            report.mark("first_token")
        show.frame(frame)
    await response.result()  # raises where it failed
    report.questions.append(_answer(question, response, first_token_s, time.monotonic() - begun))


def _answer(question: Question, response: Response, first_token_s: float | None, seconds: float) -> dict[str, Any]:
    assert response.route is not None
    assert response.done is not None
    best = response.evidence[0].node if response.evidence else ""
    return {
        "question": question.text,
        "expected": question.node,
        "is_right": best == question.node if question.node else None,
        "route": response.route.hops,
        "generator": response.route.generator,
        "predicted_ms": response.route.predicted_ms,
        "states": [{"node": hop.node, "ms": hop.ms, "state": hop.state} for hop in response.hops],
        "evidence": [
            {
                "probability": item.probability,
                "node": item.node,
                "source": item.metadata.get("source", ""),
                "text": item.text,
            }
            for item in response.evidence
        ],
        "coverage": response.coverage,
        "answer": response.text,
        "status": response.done.status,
        "finish_reason": response.done.finish_reason,
        "usage": response.done.usage,
        "first_token_s": None if first_token_s is None else round(first_token_s, 3),
        "seconds": round(seconds, 3),
    }
