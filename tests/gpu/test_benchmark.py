"""The benchmark that `make gpu` runs, tried out in the interpreter; on a GPU it is run itself."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_benchmark_measures_every_code_and_tells_the_device(device: str) -> None:
    if device == "cuda":
        pytest.skip("`make gpu` runs it")
    from benchmarks import gpu
    from qraf.states.quantize import CODES

    result = gpu.measured(40, device)
    methods = {(row["method"], row["queries"]) for row in result["scan"]}
    assert {(f"ours, {name}", m) for name in CODES for m in (1, 32)} <= methods
    assert all(row["ms"] > 0 and row["share_of_copy"] > 0 for row in result["scan"])
    text = gpu.markdown(result)
    assert text.startswith(result["device"])
    assert result["date"] in text
    assert all(row["what"] in text for row in result["states"])
