"""How fast are states? Factors and projections against QuTiP, the sketch against scikit-learn, the scan.

    python -m benchmarks.states [--json OUT] [--quick]

Everything runs in one process on one thread; alternatives take turns and the median CPU time counts. QuTiP has no
batches, so two of its states are timed and scaled to 64. Ratios are what to compare, milliseconds are this machine's.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.harness import device_line, interleaved, print_table, write_json
from qraf.states import measures, quantize
from qraf.states.figures import exact_figures, memory_figures
from qraf.states.physical import nearest_state
from qraf.states.sketch import Sketch

BATCH, D, RANK = 64, 256, 32


def against_qutip(repeats: int) -> dict[str, float]:
    """Give seconds for 64 complex128 states of d = 256: factors of rank 32, dense torch, QuTiP."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import qutip
    one_thread()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(BATCH, RANK, D, dtype=torch.complex128, generator=generator) for _ in range(2))
    a, b = (x / torch.linalg.matrix_norm(x)[:, None, None] for x in (a, b))
    dense_a, dense_b = a.mH @ a, b.mH @ b
    few = 2
    pairs = [(qutip.Qobj(dense_a[i].numpy()), qutip.Qobj(dense_b[i].numpy())) for i in range(few)]
    want = torch.tensor([qutip.fidelity(x, y) ** 2 for x, y in pairs], dtype=torch.float64)
    # the roots of 224 null eigenvalues cost QuTiP 4e-5 here; the factor has no null eigenvalues
    assert torch.allclose(measures.fidelity_factor(a[:few], b[:few]), want, atol=1e-3)
    times = interleaved(
        {
            "entropy_factor": lambda: measures.entropy_bits_factor(a),
            "entropy_dense": lambda: measures.entropy_bits(dense_a[:few]),
            "entropy_qutip": lambda: [qutip.entropy_vn(x, 2) for x, _ in pairs],
            "fidelity_factor": lambda: measures.fidelity_factor(a, b),
            "fidelity_dense": lambda: measures.fidelity(dense_a[:few], dense_b[:few]),
            "fidelity_qutip": lambda: [qutip.fidelity(x, y) for x, y in pairs],
            "distance_factor": lambda: measures.trace_distance_factor(a, b),
            "distance_dense": lambda: measures.trace_distance(dense_a[:few], dense_b[:few]),
            "distance_qutip": lambda: [qutip.tracedist(x, y) for x, y in pairs],
        },
        repeats,
    )
    return {name: t if name.endswith("factor") else t * BATCH / few for name, t in times.items()}


def projecting(repeats: int) -> dict[str, float]:
    """Give seconds to project 64 noisy complex128 matrices of d = 64 on the nearest states: one batch, and QuTiP."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import qutip
    one_thread()
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(BATCH, 4, 64, dtype=torch.complex128, generator=generator)
    factor = factor / torch.linalg.matrix_norm(factor)[:, None, None]
    error = torch.randn(BATCH, 64, 64, dtype=torch.complex128, generator=generator) * 0.05 / (2 * (64 * 4) ** 0.5)
    mu = factor.mH @ factor + (error + error.mH) / 2
    mu = mu - torch.eye(64) * (mu.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)[:, None, None] / 64  # QuTiP wants trace 1
    noisy = [qutip.Qobj(one.numpy()) for one in mu]
    want = torch.stack([torch.from_numpy(one.trunc_neg(method="sgs").full()) for one in noisy[:4]])
    assert torch.allclose(nearest_state(mu)[:4], want, atol=1e-12)
    return interleaved(
        {
            "sgs_batch": lambda: nearest_state(mu),
            "sgs_qutip": lambda: [one.trunc_neg(method="sgs") for one in noisy],
        },
        repeats,
    )


def against_sklearn(rows: int, repeats: int) -> dict[str, float]:
    """Rows per second of d = 384 with 32 directions kept; IncrementalPCA on fewer rows, because it is slow."""
    from sklearn.decomposition import IncrementalPCA

    one_thread()
    x = embeddings(rows, 384)
    part = x[:2048]

    def sketch(block: int) -> Sketch:
        sketch = Sketch(384, 32)
        for start in range(0, rows, block):
            sketch.update(x[start : start + block])
        return sketch

    times = interleaved(
        {
            "sketch_8192": lambda: sketch(8192),
            "sketch_512": lambda: sketch(512),
            "sklearn_32": lambda: IncrementalPCA(32, batch_size=32).fit(part),
            "sklearn_160": lambda: IncrementalPCA(32, batch_size=160).fit(part),
            "sklearn_8192": lambda: IncrementalPCA(32, batch_size=8192).fit(x[:8192]),
        },
        repeats,
    )
    counts = {"sketch_8192": rows, "sketch_512": rows, "sklearn_8192": min(rows, 8192)}
    return {name: counts.get(name, len(part)) / t for name, t in times.items()}


def scanning(repeats: int) -> list[tuple[str, float, float, float, float]]:
    """Milliseconds to scan 5,000 coded rows of d = 384, bytes a row, mean infidelity, guaranteed infidelity."""
    x = embeddings(5000, 384)
    rows = {bits: quantize.encode(x, bits) for bits in quantize.BITS}

    def run(bits: int, queries: int) -> object:
        return quantize.scan(rows[bits], x[:queries], 384, bits)

    times = interleaved({f"{b} {m}": lambda b=b, m=m: run(b, m) for b in quantize.BITS for m in (1, 32)}, 3 * repeats)
    table = []
    for bits in quantize.BITS:
        fidelity, bound = quantize.loss(x, rows[bits], bits)
        one, many = 1e3 * times[f"{bits} 1"], 1e3 * times[f"{bits} 32"]
        table.append(
            (f"{bits} bits, {rows[bits].shape[1]} B", one, many, float(1 - fidelity.mean()), float(bound.mean()))
        )
    return table


def figures(repeats: int) -> dict[str, float]:
    """Milliseconds for the figures of 5,000 rows, from the sketch and exactly, and the entropies."""
    x = embeddings(5000, 384)
    sketch = Sketch(384, 32, dtype="float16")
    for start in range(0, len(x), 512):
        sketch.update(x[start : start + 512])
    times = interleaved({"sketch": lambda: memory_figures(sketch), "exact": lambda: exact_figures(x)}, repeats)
    got, want = memory_figures(sketch), exact_figures(x)
    return {
        "sketch_ms": 1e3 * times["sketch"],
        "exact_ms": 1e3 * times["exact"],
        "entropy_sketch": got.entropy_bits,
        "entropy_low": got.entropy_interval[0],
        "entropy_high": got.entropy_interval[1],
        "entropy_exact": want.entropy_bits,
    }


def one_thread() -> None:
    """Hold every BLAS that is loaded by now to one thread: those that spin would count as the others' CPU time."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def embeddings(n: int, d: int) -> NDArray[np.float32]:
    """Unit rows with a falling spectrum, as sentence embeddings have; seeded."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32) / np.sqrt(np.arange(1, d + 1, dtype=np.float32))
    x @= np.linalg.qr(rng.standard_normal((d, d)).astype(np.float32))[0]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x, np.float32)


def main() -> None:
    """Run, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats")
    args = parser.parse_args()
    one_thread()
    repeats, rows = (3, 8192) if args.quick else (5, 32768)

    qutip = against_qutip(repeats)
    result: dict[str, Any] = {"qutip_s": qutip}
    table = []
    for measure in ("entropy", "fidelity", "distance"):
        ours, dense, theirs = (qutip[f"{measure}_{way}"] for way in ("factor", "dense", "qutip"))
        result[f"{measure}_vs_qutip_d{D}_b{BATCH}"] = theirs / ours
        table.append((measure, 1e3 * ours, 1e3 * dense, 1e3 * theirs, theirs / ours, theirs / dense))
    print_table(
        f"{BATCH} states, d = {D}, rank {RANK}, complex128, ms; {device_line()}",
        ("measure", "factor", "dense", "QuTiP", "QuTiP / factor", "QuTiP / dense"),
        table,
    )

    sgs = projecting(repeats)
    result["sgs_s"], result["sgs_vs_qutip_d64_b64"] = sgs, sgs["sgs_qutip"] / sgs["sgs_batch"]
    print_table(
        f"{BATCH} projections on the nearest state (Smolin, Gambetta, Smith), d = 64, complex128, ms",
        ("batch", "QuTiP", "QuTiP / batch"),
        [(1e3 * sgs["sgs_batch"], 1e3 * sgs["sgs_qutip"], result["sgs_vs_qutip_d64_b64"])],
    )

    rates = against_sklearn(rows, max(2, repeats - 2))
    best = max(rates["sklearn_32"], rates["sklearn_160"])
    result["sketch_rows_per_s"] = rates
    result["sketch_vs_sklearn_l32"] = rates["sketch_8192"] / best
    result["sketch_vs_sklearn_l32_same_block"] = rates["sketch_8192"] / rates["sklearn_8192"]
    print_table(
        f"{rows:,} rows, d = 384, 32 directions; ratio to the better streaming IncrementalPCA (batch 32 or 160)",
        ("method", "rows/s", "ratio"),
        [(name.replace("_", ", block "), rate, rate / best) for name, rate in rates.items()],
    )

    scans = scanning(repeats)
    names = ("one_query_ms", "queries_32_ms", "infidelity", "bound")
    result["scan_5000x384"] = {row[0]: dict(zip(names, row[1:], strict=True)) for row in scans}
    print_table("scan of 5,000 x 384", ("code", "1 query, ms", "32 queries, ms", "infidelity", "bound"), scans)

    result["figures_5000x384"] = spectrum = figures(repeats)
    print_table("figures of 5,000 x 384", ("what", "value"), list(spectrum.items()))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
