"""A real server in a process of its own, for benchmarks that measure the service and not a library call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

__all__ = ["serving"]

_START_S = 180.0
_STOP_S = 30.0


@contextlib.asynccontextmanager
async def serving(
    topology: str | Path, *, settings: Mapping[str, str] | None = None, runtime: str = "ray"
) -> AsyncIterator[str]:
    """Run `qraf serve` on a free port with a fresh journal; yields its url, stops it with SIGTERM.

    `topology` is a file, or YAML text (anything with a line break). `settings` are environment variables (`QRAF_...`).
    """
    with tempfile.TemporaryDirectory(prefix="qraf-bench-") as scratch:
        if "\n" in str(topology):
            path = Path(scratch) / "topology.yaml"
            path.write_text(str(topology))
        else:
            path = Path(topology)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "qraf.cli", "serve", "--json", "--port", "0"),
            *("--topology", str(path), "--data", scratch, "--runtime", runtime),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **(settings or {})},
        )
        try:
            yield await asyncio.wait_for(_url(process), _START_S)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _url(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
            return str(json.loads(line)["url"])
    raise RuntimeError(f"the server ended before it listened, with exit code {await process.wait()}")
