"""How fast are surface codes decoded? Whole shots and a sliding window, beside pymatching's own batch call.

    python -m benchmarks.codes [--json OUT] [--quick]

Rotated surface code, memory in the Z basis, 3 d rounds, one p for all four kinds of circuit noise. All methods decode
the same shots in turns in one process on one thread, packed bits in and packed bits out; the median CPU time counts.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import pymatching

from benchmarks.harness import device_line, interleaved, print_table, write_json
from qraf.codes.decoder import Decoder
from qraf.codes.experiment import Experiment, Noise, dem, sample
from qraf.codes.rates import error_rate
from qraf.codes.window import WindowDecoder, WindowPlan

DISTANCES, NOISES = (3, 5, 7), (0.002, 0.005)
AT_MOST = 3.0  # times of the batch call that a window may take


def measure(distance: int, p: float, shots: int, repeats: int) -> dict[str, float]:
    """Give rates, ratios and error rates of one code at one noise."""
    experiment = Experiment("rotated_surface", distance, 3 * distance, Noise.uniform(p))
    drawn = sample(experiment, shots, seed=1)
    whole = pymatching.Matching.from_detector_error_model(dem(experiment))
    decoder, plan = Decoder.of(experiment), WindowPlan.of(experiment)
    bits = np.unpackbits(drawn.detectors, axis=1, count=experiment.num_detectors, bitorder="little")
    ends = np.cumsum(plan.layer_bits)[:-1]
    layers = [np.packbits(part, axis=1, bitorder="little") for part in np.split(bits, ends, axis=1)]

    def at_once() -> Any:
        stream = WindowDecoder(plan, shots)
        stream.push(drawn.detectors, plan.num_layers)
        return stream.finish().observables

    def round_by_round() -> Any:
        stream = WindowDecoder(plan, shots)
        for layer in layers:
            stream.push(layer, 1)
        return stream.finish().observables

    runs = {
        "pymatching": lambda: whole.decode_batch(drawn.detectors, bit_packed_shots=True, bit_packed_predictions=True),
        "decoder": lambda: decoder.decode(drawn.detectors).observables,
        "window": at_once,
        "window_by_round": round_by_round,
    }
    times = interleaved(runs, repeats)
    found = {name: error_rate(run(), drawn.observables) for name, run in runs.items()}
    two_se = 2 * math.sqrt(sum(found[n].rate * (1 - found[n].rate) / shots for n in ("pymatching", "window")))
    assert abs(found["pymatching"].rate - found["window"].rate) <= two_se
    result: dict[str, float] = {f"{name}_shots_per_s": shots / t for name, t in times.items()}
    result |= {f"{name}_times_pymatching": t / times["pymatching"] for name, t in times.items() if name != "pymatching"}
    result |= {f"{name}_error_rate": rate.rate for name, rate in found.items()}
    result["window_us_per_round"] = 1e6 * times["window"] / shots / experiment.rounds
    return result


def main() -> None:
    """Run, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--quick", action="store_true", help="fewer shots and repeats")
    args = parser.parse_args()
    shots, repeats = (4000, 3) if args.quick else (20_000, 7)

    result: dict[str, Any] = {"shots": shots}
    table = []
    for p in NOISES:
        for d in DISTANCES:
            one = result[f"d{d}_p{p}"] = measure(d, p, shots, repeats)
            times = [one[f"{name}_times_pymatching"] for name in ("decoder", "window", "window_by_round")]
            rates = [one["pymatching_error_rate"], one["window_error_rate"]]
            table.append((f"d = {d}, p = {p}", one["pymatching_shots_per_s"], *times, *rates))
    result["window_times_pymatching_worst"] = max(row[3] for row in table)
    result["window_within_3x"] = all(row[3] <= AT_MOST and row[4] <= AT_MOST for row in table)
    print_table(
        f"{shots:,} shots of 3 d rounds; times relative to pymatching's batch call; {device_line()}",
        ("code", "pymatching, shots/s", "ours, whole", "window", "window, round by round", "errors", "window errors"),
        table,
    )
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
