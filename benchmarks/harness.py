"""What the benchmarks share: tables on the terminal, JSON for a record, a line about the device, fair timing.

Absolute times on shared machines are noise; print ratios, with both sides timed in the same run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["device_line", "interleaved", "print_table", "write_json"]


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: the first column to the left, the others to the right; floats with three significant digits."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    Console().print(table)


def write_json(path: str | Path, obj: Mapping[str, Any]) -> None:
    """Write a result with the device and the time beside it; the file appears whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    part.write_text(json.dumps({"device": device_line(), "taken_at": taken, **obj}, indent=2) + "\n")
    part.replace(target)


def device_line() -> str:
    """Give the machine in one line: processor, cores that this process may use, system, Python."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()}, {usable} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Time alternatives turn by turn in one process: median CPU seconds of each, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
