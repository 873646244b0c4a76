"""The scan benchmark runs, counts recall rightly, and its methods agree on rows that nothing can confuse."""

from __future__ import annotations

import numpy as np
import pytest

from qraf.states.kernels import native

pytestmark = pytest.mark.slow  # all of them together


def test_share_counts_what_was_found() -> None:
    scan = pytest.importorskip("benchmarks.scan")
    found, exact = np.arange(20).reshape(2, 10), np.array([range(5, 15), range(10, 20)])
    assert scan.share(found, exact) == 0.75


def test_every_method_finds_nearly_all(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    if not native.is_here:
        pytest.skip("the C extension was not built")
    from benchmarks import scan

    result = scan.measured(3000, 40, 1)
    assert set(result) == {"single", "batch32"}
    assert result["single"]["recall"] == 1.0
    assert result["single"]["ours_vs_sq8"] > 0
    methods = result["batch32"]["methods"]
    assert methods["torch float32"]["recall"] == 1.0
    assert all(row["recall"] >= 0.97 for name, row in methods.items() if "+" in name or "int8" in name)
    assert scan.OURS.split()[0] in capsys.readouterr().out
