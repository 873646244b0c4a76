"""How fast do texts become states, end to end, beside the encoder alone?

    python -m benchmarks.write [--items N] [--json OUT]

The texts are docstrings of the standard library, first paragraphs. End to end: client -> WebSocket -> journal (fsync)
-> encode -> absorb -> `write.done`, in a server of its own process. The encoder alone: the same texts and number of
threads, in one process with nothing else. Both runs alternate and the medians are compared.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import statistics
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import qraf
from benchmarks.harness import device_line, print_table, write_json
from benchmarks.serving import serving
from qraf.settings import EncoderSettings
from qraf.text.encoder import load_encoder

TOPOLOGY = """
version: 1
name: bench-write
hosts: {one: {cpus: 1}}
nodes:
  notes: {role: memory, host: one, holds: sessions}
  writer: {role: generator, url: "http://127.0.0.1:9/v1", model: none}
links: [{source: notes, target: writer}]
ingress: notes
"""


def texts(count: int) -> list[str]:
    """`count` different pieces of real text of a turn's length, deterministic."""
    found = [text for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) for text in _docstrings(path)]
    found = list(dict.fromkeys(found))
    if len(found) < count:
        raise SystemExit(f"only {len(found)} texts on this machine; use --items {len(found)}")
    return found[:count]


def _docstrings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(errors="replace"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            doc = ast.get_docstring(node) or ""
            first = " ".join(doc.split("\n\n")[0].split())
            if len(first) > 40:
                yield first


def encoder_rate(items: list[str], threads: int) -> float:
    """Items a second of the encoder alone, in batches as the host makes them."""
    settings = EncoderSettings(threads=threads)
    encoder = load_encoder(settings)
    encoder.encode(items[:64])
    started = time.perf_counter()
    for start in range(0, len(items), settings.max_batch):
        encoder.encode(items[start : start + settings.max_batch])
    return len(items) / (time.perf_counter() - started)


async def end_to_end_rate(url: str, items: list[str], session: str) -> float:
    """Items a second from the first frame to the last `write.done`."""
    async with qraf.connect(url) as q:
        await q.open_session(session)
        started = time.perf_counter()
        done = await q.write(items, session=session)
        seconds = time.perf_counter() - started
    assert done.accepted == len(items), done
    return len(items) / seconds


async def run(count: int, rounds: int, threads: int) -> dict[str, float]:
    """Both rates, alternating, as medians."""
    items = texts(count)
    alone, whole = [], []
    async with serving(TOPOLOGY, settings={"QRAF_ENCODER__THREADS": str(threads)}) as url:
        await end_to_end_rate(url, items[:64], "warm")
        for round_ in range(rounds):
            alone.append(await asyncio.to_thread(encoder_rate, items, threads))
            whole.append(await end_to_end_rate(url, items, f"round-{round_}"))
    items_per_s, encoder = statistics.median(whole), statistics.median(alone)
    return {"items_per_s": items_per_s, "encoder_items_per_s": encoder, "ratio": items_per_s / encoder}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the encoder, in both runs")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    result = asyncio.run(run(args.items, args.rounds, args.threads))
    print_table(
        f"write, {args.items} items, {args.threads} thread(s), median of {args.rounds}; {device_line()}",
        ("what", "items/s"),
        [
            ("encoder alone", f"{result['encoder_items_per_s']:.0f}"),
            ("end to end, durable and absorbed", f"{result['items_per_s']:.0f}"),
            ("ratio", f"{result['ratio']:.2f}"),
        ],
    )
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
