"""What the kernels reach on a GPU: time, and the share of the bandwidth that a plain copy has there.

    python -m benchmarks.gpu [--out NAME] [--rows N]

Writes NAME.json and NAME.md with device, date and versions. Needs torch, triton and numpy, nothing else; `make gpu`
runs it after the tests. Times are medians of single calls between two synchronisations, answers left on the device.
Bytes are the codes and scales that a scan has to read; a copy's are what it reads and writes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qraf.states.physical import nearest_state
from qraf.states.quantize import CODES, Code
from qraf.states.sketch import Sketch

D, K = 384, 10


def main() -> None:
    """Run, print the tables, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", default="gpu", help="where the results go, without .json and .md")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu only tries this program out")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing measured, nothing written")
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, below
    result = measured(args.rows, args.device)
    Path(f"{args.out}.json").write_text(json.dumps(result, indent=2) + "\n")
    text = markdown(result)
    Path(f"{args.out}.md").write_text(text)
    print(text)


def measured(n: int, device: str) -> dict[str, Any]:
    """Measure everything on one device."""
    import triton

    is_cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_cuda else "Triton's interpreter: times mean nothing",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda},
        "copy_gb_per_s": (copy := copy_bandwidth(device, 2**28 if is_cuda else 2**20)) / 1e9,
        "rows": n,
        "scan": scans(n, device, copy),
        "states": states(device, 8192 if is_cuda else 512),
    }


def scans(n: int, device: str, copy: float) -> list[dict[str, Any]]:
    """Best ten of n rows for 1 and 32 queries: every code, and float32 and float16 matrix products by torch."""
    from qraf.states.kernels.gpu import Index

    repeats = 21 if device == "cuda" else 1  # the interpreter is slow, and what it takes says nothing
    rng = np.random.default_rng(0)
    some = rng.standard_normal((min(n, 50_000), D), dtype=np.float32)
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    queries = torch.from_numpy(some[:32] + 0.05 * rng.standard_normal((32, D), dtype=np.float32)).to(device)
    times = -(-n // len(some))
    out = []
    for name in CODES:
        code = Code(name)
        rows = np.tile(code.encode(some), (times, 1))[:n]
        index = Index(rows, D, code, device=device)
        for m in (1, 32):
            seconds = timed(lambda index=index, m=m: index.keys(queries[:m], K), device, repeats)
            out.append(entry(f"ours, {name}", m, rows.nbytes, seconds, copy))
    wide = torch.from_numpy(np.tile(some, (times, 1))[:n]).to(device)
    for dtype in (torch.float32, torch.float16):
        rows_there, asked = wide.to(dtype), queries.to(dtype)
        for m in (1, 32):
            seconds = timed(lambda r=rows_there, q=asked, m=m: (q[:m] @ r.T).topk(K), device, repeats)
            out.append(entry(f"torch, {str(dtype).removeprefix('torch.')}", m, rows_there.nbytes, seconds, copy))
    return out


def entry(method: str, m: int, nbytes: int, seconds: float, copy: float) -> dict[str, Any]:
    """One line of the table."""
    speed = nbytes / seconds
    return {
        "method": method,
        "queries": m,
        "ms": 1e3 * seconds,
        "gb_per_s": speed / 1e9,
        "share_of_copy": speed / copy,
    }


def states(device: str, n: int) -> list[dict[str, Any]]:
    """The nearest state for batches, and a block sketch: here and on the device."""
    out = []
    generator = torch.Generator().manual_seed(0)
    for d, batch in ((16, 1024), (64, 64), (256, 8)) if n > 1000 else ((8, 4),):
        mu = torch.randn(batch, d, d, dtype=torch.complex128, generator=generator)
        there = mu.to(device)
        here_s, there_s = (
            timed(lambda mu=mu: nearest_state(mu), "cpu"),
            timed(lambda mu=there: nearest_state(mu), device),
        )
        out.append({"what": f"nearest state, {batch} x {d} x {d}", "cpu_ms": 1e3 * here_s, "device_ms": 1e3 * there_s})
    x = torch.randn(n, D, generator=generator)
    x_there = x.to(device)
    here_s = timed(lambda: Sketch(D).update(x), "cpu")
    there_s = timed(lambda: Sketch(D).update(x_there), device)
    out.append({"what": f"sketch of {n} x {D}", "cpu_ms": 1e3 * here_s, "device_ms": 1e3 * there_s})
    return out


def copy_bandwidth(device: str, floats: int) -> float:
    """Bytes per second, read and written, of a copy on the device."""
    source = torch.ones(floats, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), device)


def timed(run: Callable[[], object], device: str, repeats: int = 21) -> float:
    """Median seconds of a call."""
    times = []
    warm_up = min(3, repeats // 2)
    for turn in range(repeats + warm_up):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= warm_up:
            times.append(time.perf_counter() - start)
        if device == "cpu" and sum(times) > 2:
            break
    return statistics.median(times)


def markdown(result: dict[str, Any]) -> str:
    """The results as text."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['device']}, {result['date']}, {versions}.",
        f"A copy reads and writes {result['copy_gb_per_s']:,.0f} GB/s.",
        "",
        f"Best {K} of {result['rows']:,} x {D}:",
        "",
        "| method | queries | ms | GB/s | share of copy |",
        "|---|---|---|---|---|",
    ]
    for row in result["scan"]:
        cells = (
            row["method"],
            row["queries"],
            f"{row['ms']:.3f}",
            f"{row['gb_per_s']:,.0f}",
            f"{row['share_of_copy']:.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| states | processor, ms | device, ms |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['cpu_ms']:.2f} | {row['device_ms']:.2f} |" for row in result["states"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
