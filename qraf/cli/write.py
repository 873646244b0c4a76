"""`qraf write`: files and lines into a memory, with a progress bar."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TextIO

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import qraf
from qraf.cli.output import console, errors, print_json
from qraf.cli.render import figures_line
from qraf.errors import InvalidRequest
from qraf.frames import WireItem

__all__ = ["read_items", "write_command"]

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".log": "lines", ".lines": "lines"}


async def write_command(
    url: str,
    files: list[str],
    *,
    session: str | None,
    collection: str | None,
    format: str | None,
    speaker: str | None,
    as_json: bool,
) -> None:
    """Write everything and print what became of it."""
    async with qraf.connect(url) as q:
        if session is not None:
            await q.open_session(session)
        files = files or ["-"]
        most = q.welcome.limits.max_item_bytes

        def everything() -> Iterator[WireItem]:
            for file in files:
                yield from read_items(file, format, speaker, most)

        total = None if "-" in files else sum(1 for _ in everything())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=errors, disable=as_json) as progress:
            task = progress.add_task("writing", total=total)
            done = await q.write(
                _in_thread(everything()),
                session=session,
                collection=collection,
                progress=lambda count: progress.advance(task, count),
            )
    if as_json:
        print_json(done)
        return
    for rejected in done.rejected:
        errors.print(f"item {rejected.index} was refused: {rejected.error.detail}", style="yellow", markup=False)
    for warning in done.warnings:
        what = warning.kind.replace("_", " ")
        told = f"item {warning.item_id} held what looks like a secret ({what})"
        done_with = "it was masked" if warning.is_masked else "it was written as it is"
        errors.print(f"{told}; {done_with}", style="yellow", markup=False)
    duplicates = f", {done.duplicates} were there already" if done.duplicates else ""
    console.print(f"{done.accepted} written{duplicates}; {figures_line(done.state)}", markup=False)


def read_items(file: str, format: str | None, speaker: str | None, max_bytes: int) -> Iterator[WireItem]:
    """The items of one file (`-`: standard input).

    `document`: the whole text, cut where it is longer than one item may be. `lines`: an item for each line.
    `jsonl`: a text or an item (`{"text": .., "speaker": .., "at": ..}`) on each line.

    Raises:
        InvalidRequest: a line that is no item, or a file that is no UTF-8, by file and line.
    """
    kind = format or ("lines" if file == "-" else _SUFFIXES.get(Path(file).suffix.lower(), "document"))
    try:
        if file == "-":
            yield from _parse(sys.stdin, "standard input", kind, speaker, max_bytes)
        else:
            with Path(file).open(encoding="utf-8") as stream:
                yield from _parse(stream, file, kind, speaker, max_bytes)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}") from None


def _parse(stream: TextIO, name: str, kind: str, speaker: str | None, max_bytes: int) -> Iterator[WireItem]:
    if kind == "document":
        for part in _parts(stream.read(), max_bytes):
            yield WireItem(text=part, role="document", speaker=speaker, metadata={"source": name})
        return
    for number, line in enumerate(stream, 1):
        line = line.strip()
        if not line:
            continue
        if kind == "lines":
            yield WireItem(text=line, speaker=speaker)
            continue
        try:
            item = msgspec.json.decode(line.encode(), type=WireItem | str)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{name}:{number}: no item: {error}") from None
        item = WireItem(text=item) if isinstance(item, str) else item
        yield item if item.speaker or not speaker else msgspec.structs.replace(item, speaker=speaker)


def _parts(text: str, max_bytes: int) -> Iterator[str]:
    """The text in parts of at most `max_bytes` UTF-8 bytes, cut at empty lines, else at lines, else anywhere."""
    while len(data := text.encode()) > max_bytes:
        window = data[:max_bytes].decode(errors="ignore")
        end = max(window.rfind("\n\n"), 0) or max(window.rfind("\n"), 0) or max(window.rfind(" "), 0) or len(window)
        yield window[:end]
        text = text[end:]
    if text.strip():
        yield text


async def _in_thread(items: Iterator[WireItem]) -> AsyncIterator[WireItem]:
    """The items one by one, read off the event loop: standard input may wait for a person."""
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        assert isinstance(item, WireItem)
        yield item
