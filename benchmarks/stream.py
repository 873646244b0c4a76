"""What does QRAF add before the first delta, and how many tokens does it forward?

    python -m benchmarks.stream [--json OUT]

The model is a scripted OpenAI-compatible server in a process of its own that emits known tokens as fast as it can:
these are figures of the path (generator -> gateway -> WebSocket -> client), not of a language model.

added_ms: median time from `enhance` to the first delta, less the median time that the same request takes to its first
token when it goes to the model's server directly. It holds encoding the prompt, routing, measuring, and joining texts.
tokens_per_s: tokens that reach 1, 50 and 300 clients together, each a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from contextlib import AsyncExitStack, aclosing
from typing import Any

import qraf
from benchmarks.harness import device_line, print_table, write_json
from benchmarks.serving import serving
from qraf.client.client import Client
from qraf.frames import ResponseDelta, ResponseDone
from qraf.settings import GeneratorSettings
from qraf.text.generator import Endpoint, Generator

TOPOLOGY = """
version: 1
name: bench-stream
hosts: {{one: {{cpus: 1}}}}
nodes:
  notes: {{role: memory, host: one, holds: {{sessions: true, collections: [facts]}}}}
  writer: {{role: generator, url: "{url}", model: scripted}}
links: [{{source: notes, target: writer}}]
ingress: notes
"""
QUESTION = "Which of the notes tells about the harbour at night?"


async def model_server() -> tuple[asyncio.subprocess.Process, str]:
    """The scripted model in a process of its own; its base url."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.openai_server"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    return process, line.decode().strip()


async def first_token_direct(url: str, rounds: int) -> list[float]:
    """Milliseconds to the first token without QRAF."""
    generator = Generator(lambda: Endpoint(url, "scripted"), GeneratorSettings())
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        async with aclosing(generator.stream([{"role": "user", "content": QUESTION}], max_tokens=8)) as pieces:
            async for piece in pieces:
                if piece.text:
                    times.append((time.perf_counter() - started) * 1000)
                    break
    await generator.aclose()
    return times


async def first_delta(q: Client, rounds: int) -> list[float]:
    """Milliseconds to the first delta through QRAF."""
    times = []
    for _ in range(rounds):
        started, first = time.perf_counter(), 0.0
        async for frame in q.enhance(QUESTION, collections=["facts"], generate={"max_tokens": 8}):
            if isinstance(frame, ResponseDelta) and not first:
                first = time.perf_counter()
        times.append((first - started) * 1000)
    return times


async def forwarded(url: str, clients: int, tokens: int) -> float:
    """Tokens a second that reach `clients` connections together."""
    gate, ready, few = asyncio.Event(), asyncio.Semaphore(0), asyncio.Semaphore(16)

    async def one() -> int:
        async with AsyncExitStack() as stack:
            async with few:  # connecting is not what is measured
                q = await stack.enter_async_context(qraf.connect(url, timeout_s=300, open_timeout_s=60))
            ready.release()
            await gate.wait()
            count = 0
            async for frame in q.enhance(QUESTION, collections=["facts"], generate={"max_tokens": tokens}):
                if isinstance(frame, ResponseDelta):
                    count += frame.tokens
                elif isinstance(frame, ResponseDone) and frame.error is not None:
                    raise RuntimeError(f"a response failed: {frame.error.detail}")
            return count

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one()) for _ in range(clients)]
        for _ in range(clients):
            await ready.acquire()
        started = time.perf_counter()
        gate.set()
    seconds = time.perf_counter() - started
    total = sum(task.result() for task in tasks)
    assert total == clients * tokens, (total, clients * tokens)
    return total / seconds


async def run(rounds: int) -> dict[str, Any]:
    """All figures."""
    process, model_url = await model_server()
    settings = {"QRAF_GENERATOR__SLOTS": "512"}
    try:
        async with serving(TOPOLOGY.format(url=model_url), settings=settings) as url:
            async with qraf.connect(url, coalesce_ms=0) as q:
                facts = [f"Note {i}: the harbour at night, boat {i}, wind from {i % 360} degrees." for i in range(500)]
                await q.write(facts, collection="facts")
                await first_delta(q, 3)
                await first_token_direct(model_url, 3)
                direct = await first_token_direct(model_url, rounds)
                through = await first_delta(q, rounds)
            rates = {
                "1": await forwarded(url, 1, 2000),
                "50": await forwarded(url, 50, 2000),
                "300": await forwarded(url, 300, 400),
            }
    finally:
        process.terminate()
        await process.wait()
    alone, whole = statistics.median(direct), statistics.median(through)
    return {"added_ms": whole - alone, "direct_ms": alone, "through_ms": whole, "tokens_per_s": rates}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    result = asyncio.run(run(args.rounds))
    print_table(
        f"stream, from a scripted generator that emits known tokens as fast as it can; {device_line()}",
        ("what", "figure"),
        [
            ("first token, model alone", f"{result['direct_ms']:.1f} ms"),
            ("first delta, through QRAF", f"{result['through_ms']:.1f} ms"),
            ("added", f"{result['added_ms']:.1f} ms"),
            *((f"forwarded to {n} client(s)", f"{rate:,.0f} tokens/s") for n, rate in result["tokens_per_s"].items()),
        ],
    )
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
