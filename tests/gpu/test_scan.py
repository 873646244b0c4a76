from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qraf.errors import InvalidState
from qraf.states.kernels import reference
from qraf.states.quantize import CODES, Code

pytestmark = pytest.mark.slow  # all of them together

pytest.importorskip("triton", reason="Triton is not installed")
gpu = pytest.importorskip("qraf.states.kernels.gpu")


def unit_rows(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def agree(rows: NDArray[np.uint8], q: NDArray[np.float32], d: int, code: Code, k: int, device: str) -> None:
    want, got = reference.scan(rows, q, d, code, k), gpu.scan(rows, q, d, code, k, device=device)
    scores = q.astype(np.float64) @ code.decode(rows, d).astype(np.float64).T
    assert got.index.shape == want.index.shape == (len(q), min(k, len(rows)))
    assert np.allclose(got.score, want.score, atol=1e-5)
    # rows may change places where their scores are that close
    assert np.allclose(np.take_along_axis(scores, got.index, 1), want.score, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in got.index.tolist())
    assert (np.diff(got.score, axis=1) <= 0).all()
    assert np.allclose(got.radius, np.take_along_axis(radii(rows, q, d, code), got.index, 1), atol=1e-5)
    assert (got.rest >= want.rest - 1e-6).all()
    assert (np.isneginf(got.rest) == (len(rows) <= k)).all()


def radii(rows: NDArray[np.uint8], q: NDArray[np.float32], d: int, code: Code) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.linalg.norm(q, axis=1)[:, None] * reference.reach(code, rows, d)
    return out


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize(
    ("n", "d", "m", "k"),
    [(1, 1, 1, 1), (5, 7, 2, 3), (130, 65, 1, 4), (300, 96, 3, 5), (129, 33, 17, 2), (40, 384, 1, 60)],
)
def test_every_code_gives_the_definition(name: str, n: int, d: int, m: int, k: int, device: str) -> None:
    code = Code(name, None, 32)  # type: ignore[arg-type]
    agree(code.encode(unit_rows(n, d)), unit_rows(m, d, 1), d, code, k, device)


@pytest.mark.parametrize("group", [2, 6, 64, 100])
def test_groups_of_any_size(group: int, device: str) -> None:
    for name in ("int8", "int4", "nf4"):
        code = Code(name, None, group)  # type: ignore[arg-type]
        agree(code.encode(unit_rows(30, 100)), unit_rows(2, 100, 1), 100, code, 5, device)


def test_nothing_asked_and_nothing_held(device: str) -> None:
    for n, m in ((0, 3), (4, 0), (0, 0)):
        best = gpu.scan(Code("int8").encode(unit_rows(n, 32)), unit_rows(m, 32), 32, Code("int8"), 2, device=device)
        assert best.index.shape == (m, min(2, n))
        assert best.rest.shape == (m,)


def test_rows_and_queries_may_be_strided_and_read_only(device: str) -> None:
    code, d = Code("int4"), 64
    rows, q = code.encode(unit_rows(20, d)), unit_rows(6, d, 1)
    want = gpu.scan(rows[::2].copy(), q[::2].copy(), d, code, 4, device=device)
    rows.flags.writeable = q.flags.writeable = False
    got = gpu.scan(rows[::2], q[::2], d, code, 4, device=device)
    assert np.array_equal(got.index, want.index)
    assert np.array_equal(got.score, want.score)
    tensor = gpu.Index(rows[::2], d, code, device=device).scan(torch.from_numpy(q.copy())[::2], 4)
    assert np.array_equal(tensor.index, want.index)


def test_equal_rows_come_in_order_across_blocks(device: str) -> None:
    code = Code("int8")
    rows = code.encode(np.repeat(unit_rows(1, 16), 600, 0))
    assert gpu.scan(rows, unit_rows(1, 16), 16, code, 5, device=device).index.tolist() == [[0, 1, 2, 3, 4]]
    # the sign of zero and negative scores keep their order too
    few = Code("float32").encode(np.array([[-1], [0], [1], [-0.5], [-1]], np.float32))
    best = gpu.scan(few, np.ones((1, 1), np.float32), 1, Code("float32"), 5, device=device)
    assert best.index.tolist() == [[2, 1, 3, 0, 4]]
    assert best.score.tolist() == [[1, 0, -0.5, -1, -1]]


def test_many_asked_for_take_the_way_without_registers(device: str) -> None:
    code = Code("int8")
    agree(code.encode(unit_rows(300, 32)), unit_rows(2, 32, 1), 32, code, 100, device)


@pytest.mark.parametrize("name", CODES)
def test_no_certificate_is_violated(name: str, device: str) -> None:
    code, d = Code(name), 48  # type: ignore[arg-type]
    x, q = unit_rows(200, d), 7 * unit_rows(20, d, 1)
    best = gpu.scan(code.encode(x), q, d, code, 5, device=device)
    exact = q.astype(np.float64) @ x.astype(np.float64).T
    assert (np.abs(np.take_along_axis(exact, best.index, 1) - best.score) <= best.radius).all()
    np.put_along_axis(exact, best.index, -np.inf, 1)
    assert (exact.max(1) <= best.rest).all()


def test_what_cannot_be_asked_is_named(device: str) -> None:
    rows = Code("int8").encode(unit_rows(3, 8))
    with pytest.raises(InvalidState, match=r"`queries` must have shape \(m, 8\)"):
        gpu.scan(rows, unit_rows(1, 9), 8, Code("int8"), device=device)
    with pytest.raises(InvalidState, match="`rows` must be uint8"):
        gpu.scan(rows[:, 1:], unit_rows(1, 8), 8, Code("int8"), device=device)


COMPILE = """
import sys
import numpy as np
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qraf.states.kernels import gpu
from qraf.states.quantize import Code
for name, m in (("int8", 1), ("int4", 40), ("sign1", 9)):
    code = Code(name)
    index = gpu.Index(code.encode(np.ones((1, 384), np.float32)), 384, code, device="cpu")
    constants = index.constants(m, 10)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    types = "*u8 *fp16 *fp32 *fp32 *i64 i32 i32 i32 i32".split() + ["constexpr"] * len(constants)
    source = ASTSource(gpu._scan_block, dict(zip(gpu._scan_block.arg_names, types, strict=True)), constants)
    kernel = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    print(name, len(kernel.asm["cubin"]) > 0, kernel.metadata.shared)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", COMPILE, "90"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["True"] * 3
    # what a block of an A10 or an RTX 3090 may hold
    assert all(int(line.split()[2]) <= 99 * 1024 for line in done.stdout.splitlines())


@pytest.mark.gpu
@pytest.mark.parametrize("name", CODES)
def test_a_hundred_thousand_rows_on_the_device(name: str) -> None:
    code, d = Code(name), 384  # type: ignore[arg-type]
    x, q = unit_rows(100_000, d), unit_rows(40, d, 1)
    rows = code.encode(x)
    for m in (1, 7, 40):
        agree(rows, q[:m], d, code, 10, "cuda")
