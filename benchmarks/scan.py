"""How fast are the ten best of 100,000 and of a million coded rows found, and how many of the true ten are they?

    python -m benchmarks.scan [--json OUT] [--rows N ...] [--repeats R]

Rows and queries are drawn from one distribution, unit vectors of d = 384 with a falling spectrum: no query has a
planted neighbour, so the tenth and the eleventh are close and codes are told apart. Everything runs in one process, one
thread; the methods take turns, and the medians of their CPU times make the ratios to FAISS SQ8. Recall is the share of
the ten best by exact float32 products, over `--queries` queries.

The shortlist is 2 bits an amplitude (`qraf.states.kernels.coarse`); "+ float32" and "+ int8" say which rows then give
the scores and their certified intervals. FAISS's RaBitQ has no re-rank over codes of ours, so `native.rank` does it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.harness import device_line, print_table, write_json
from qraf.states.kernels import native
from qraf.states.kernels.cpu import Index
from qraf.states.quantize import Code

D, K, BATCH = 384, 10, 32
CHUNK = 50_000
Search = Callable[[NDArray[np.float32]], NDArray[np.integer[Any]]]


def main() -> None:
    """Run, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--kernels", choices=native.LEVELS, help="ours, at most; FAISS takes the best that it has")
    args = parser.parse_args()
    if not native.is_here:
        sys.exit("the C extension is not built: nothing to measure")
    best = native.best_level()
    if args.kernels:
        best = min(best, native.LEVELS.index(args.kernels))
        native.best_level = lambda: best  # type: ignore[assignment]
    result: dict[str, Any] = {"kernels": native.LEVELS[best]}
    for n in args.rows:
        result[_name(n)] = measured(n, args.queries, args.repeats)
    if args.json:
        write_json(args.json, result)


def measured(n: int, num_queries: int, repeats: int) -> dict[str, Any]:
    """Time every method over n rows; print the table."""
    x, q = rows_and_queries(n, num_queries)
    methods = searches(x)
    torch.set_num_threads(1)
    threadpool_limits(1)
    exact = np.concatenate([(torch.from_numpy(part @ x.T)).topk(K).indices.numpy() for part in np.split(q, 10)])
    recall = {
        name: share(np.concatenate([run(part) for part in np.split(q, 10)]), exact) for name, run in methods.items()
    }
    times = {m: timed(methods, q, m, repeats if m == 1 else max(3, repeats // 3)) for m in (1, BATCH)}
    table = []
    for name in methods:
        one, many = (1e3 * statistics.median(times[m][name]) for m in (1, BATCH))
        table.append((name, one, ratio(times[1], name), many, ratio(times[BATCH], name), recall[name]))
    columns = ("method", "1 query, ms", "x SQ8", f"{BATCH} queries, ms", "x SQ8", f"recall@{K}")
    print_table(f"{n:,} x {D}, best {K}, one thread; {device_line()}", columns, table)
    out: dict[str, Any] = {}
    for label, m in (("single", 1), (f"batch{BATCH}", BATCH)):
        out[label] = {"ours_vs_sq8": ratio(times[m], OURS), "recall": recall[OURS]}
        out[label]["methods"] = {
            name: {
                "ms": 1e3 * statistics.median(times[m][name]),
                "vs_sq8": ratio(times[m], name),
                "recall": recall[name],
            }
            for name in methods
        }
    return out


OURS = "ours: 2-bit shortlist + float32"


def searches(x: NDArray[np.float32]) -> dict[str, Search]:
    """Every method as a function from queries (m, d) to rows (m, k)."""
    import faiss

    faiss.omp_set_num_threads(1)
    raw, int8 = Code("float32"), Code("int8")
    rows = {"float32": x.view(np.uint8).reshape(len(x), -1), "int8": int8.encode(x)}
    fine, small = Index(rows["float32"], D, raw), Index(rows["int8"], D, int8)
    sq8 = faiss.IndexScalarQuantizer(D, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    rabitq = faiss.IndexRaBitQFastScan(D, faiss.METRIC_INNER_PRODUCT)
    for index in (sq8, rabitq):
        index.train(x[:CHUNK])
        for start in range(0, len(x), CHUNK):
            index.add(x[start : start + CHUNK])
    transposed = torch.from_numpy(x).T

    def reranked(keep: int, name: str) -> Search:
        layout = native.Layout(name, D, 64)

        def run(q: NDArray[np.float32]) -> NDArray[np.integer[Any]]:
            found = rabitq.search(q, keep)[1].astype(np.int32)
            return native.rank(layout, rows[name], q, found, np.full(len(q), keep), K)[0]

        return run

    return {
        OURS: lambda q: fine.scan(q, K).index,
        "ours: 2-bit shortlist + int8": lambda q: small.scan(q, K).index,
        "ours: int8, one exact pass": lambda q: small.scan(q, K, len(x)).index,
        "FAISS SQ8": lambda q: sq8.search(q, K)[1],
        "FAISS RaBitQ fast-scan": lambda q: rabitq.search(q, K)[1],
        "FAISS RaBitQ fast-scan + 200 int8": reranked(200, "int8"),
        "FAISS RaBitQ fast-scan + 1000 int8": reranked(1000, "int8"),
        "FAISS RaBitQ fast-scan + 1000 float32": reranked(1000, "float32"),
        "torch float32": lambda q: (torch.from_numpy(q) @ transposed).topk(K).indices.numpy(),
    }


def timed(methods: dict[str, Search], q: NDArray[np.float32], m: int, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every method, turn by turn, each turn with other queries."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(repeats + 1):
        start = turn * m % (len(q) - m)
        part = np.ascontiguousarray(q[start : start + m])
        for name, run in methods.items():
            before = time.process_time()
            run(part)
            if turn:  # the first one warms up
                times[name].append(time.process_time() - before)
    return times


def ratio(times: dict[str, list[float]], name: str) -> float:
    """How many times faster than FAISS SQ8, by the medians."""
    return statistics.median(times["FAISS SQ8"]) / statistics.median(times[name])


def share(found: NDArray[np.integer[Any]], exact: NDArray[np.integer[Any]]) -> float:
    """Mean share of the exact rows that were found."""
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))


def rows_and_queries(n: int, m: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit rows (n, d) and queries (m, d) whose i-th principal axis has a standard deviation of i^-1/2; seeded."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((D, D)).astype(np.float32))[0]
    axes = basis / np.sqrt(np.arange(1, D + 1, dtype=np.float32))[:, None]
    x = np.empty((n + m, D), np.float32)
    for start in range(0, n + m, CHUNK):
        part = x[start : start + CHUNK]
        np.matmul(rng.standard_normal(part.shape, dtype=np.float32), axes, out=part)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return x[:n], x[n:].copy()


def _name(n: int) -> str:
    return f"{n // 1_000_000}M" if n % 1_000_000 == 0 else f"{n // 1000}k"


if __name__ == "__main__":
    main()
