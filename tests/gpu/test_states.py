"""Block sketches and the nearest state where the rows are: on a GPU as on the processor, by torch."""

from __future__ import annotations

import pytest
import torch

from qraf.states.physical import nearest_state
from qraf.states.sketch import Sketch


def rows(n: int, d: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    x = x / torch.arange(1, d + 1)
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sketch_of_rows_on_the_device_keeps_its_certificate(dtype: torch.dtype, device: str) -> None:
    sketch, weights = Sketch(48, 6), torch.linspace(0.5, 2, 300, dtype=torch.float64)
    x = rows(300, 48, dtype)
    sketch.update(x[:3].to(device), weights[:3].to(device))  # fits beside
    sketch.update(x[3:20].to(device), weights[3:20])  # fewer than d: folded on the processor
    sketch.update(x[20:].to(device), weights[20:].to(device))
    exact = (x.double() * weights[:, None]).T @ x.double()
    assert sketch.factor.device.type == "cpu"
    assert sketch.mass == pytest.approx(float(weights.sum()), rel=1e-6)
    lost = torch.linalg.eigvalsh(exact - sketch.factor.T @ sketch.factor)
    assert -sketch.slack - 1e-12 * sketch.mass <= float(lost[0])
    assert float(lost[-1]) <= sketch.delta + 1e-12 * sketch.mass


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_nearest_states_are_the_same_on_the_device(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, rank in (((3, 1, 1), None), ((0, 4, 4), None), ((5, 7, 7), None), ((2, 33, 33), 4)):
        mu = torch.randn(*shape, dtype=dtype, generator=generator)
        there = nearest_state(mu.cuda(), rank)
        assert there.is_cuda
        tolerance = 1e-4 if dtype in (torch.float32, torch.complex64) else 1e-11
        assert torch.allclose(there.cpu(), nearest_state(mu, rank), atol=tolerance)


@pytest.mark.gpu
def test_a_sketch_folded_there_equals_one_folded_here() -> None:
    here, there = Sketch(64, 8, dtype="float64"), Sketch(64, 8, dtype="float64")
    x = rows(1000, 64)
    here.update(x)
    there.update(x.cuda())
    assert torch.allclose(here.factor.T @ here.factor, there.factor.T @ there.factor, atol=1e-9 * here.mass)
    assert there.delta == pytest.approx(here.delta, rel=1e-9)
