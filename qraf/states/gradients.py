"""Gradients of spectral functions that stay finite and right where eigenvalues meet or vanish.

A figure of a state is a function of its spectrum, tr f(H). Its derivative is f'(H) and does not care about the choice
of eigenvectors inside a degenerate eigenspace; going through single eigenvectors would divide by the differences of
eigenvalues. Where |x| has its kink, at a singular value or an eigenvalue that is zero, the gradient is the subgradient
of least norm (0 in those directions), which is also what a central difference gives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qraf.errors import InvalidState
from qraf.states.checks import eigenvalue_cut

__all__ = ["at_least", "at_most", "no_gradient", "nuclear_norm", "root", "signed_trace_norm"]


def nuclear_norm(m: Tensor) -> Tensor:
    """The sum of the singular values of matrices (..., r, s): (...). Its gradient is the polar factor U V^H.

    Singular values below the cut count in the sum and not in the gradient.
    """
    values: Tensor = torch.linalg.svdvals(m)
    if not values.requires_grad or not values.shape[-1]:
        return values.sum(-1)
    return torch.where(values > eigenvalue_cut(values), values, values.detach()).sum(-1)


def signed_trace_norm(stack: Tensor, signs: Tensor) -> Tensor:
    """|C^H diag(signs) C|_1 of C = `stack` (..., k, d): (...), for any rank of C.

    With C^H = Q R the nonzero eigenvalues are those of R diag(signs) R^H. The gradient is 2 diag(signs) C sign(D),
    D = C^H diag(signs) C, where directions in which D vanishes count as zero.
    """
    value: Tensor = _SignedTraceNorm.apply(stack, signs)  # type: ignore[no-untyped-call]
    return value


class _SignedTraceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stack: Tensor, signs: Tensor) -> Tensor:
        ctx.save_for_backward(stack, signs)
        r = torch.linalg.qr(stack.mH, mode="r").R
        values: Tensor = torch.linalg.eigvalsh((r * signs) @ r.mH)
        return values.abs().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        stack, signs = ctx.saved_tensors
        q, r = torch.linalg.qr(stack.mH)
        values, vectors = torch.linalg.eigh((r * signs) @ r.mH)
        # what is left of equal states is rounding of |C|^2, however small the largest difference; 2.3 k eps was seen
        size = stack.abs().square().sum((-2, -1), keepdim=True)[..., 0]
        cut = 4 * sum(stack.shape[-2:]) * torch.finfo(values.dtype).eps * size
        sign = torch.where(values.abs() > cut, values.sign(), torch.zeros_like(values))
        inside = r.mH @ (vectors * sign[..., None, :]) @ (q @ vectors).mH
        return 2 * grad[..., None, None] * signs[:, None] * inside, None


def root(x: Tensor) -> Tensor:
    """The square root of x >= 0 with gradient 0 where x is 0."""
    alive = x > 0
    return torch.where(alive, x, torch.ones_like(x)).sqrt() * alive


def at_most(x: Tensor, bound: float) -> Tensor:
    """min(x, bound) against rounding: the gradient is that of x, wherever the rounding fell."""
    return x - (x - bound).clamp(min=0).detach()


def at_least(x: Tensor, bound: float) -> Tensor:
    """max(x, bound) against rounding: the gradient is that of x, wherever the rounding fell."""
    return x + (bound - x).clamp(min=0).detach()


def no_gradient(x: Tensor, name: str, instead: str) -> Tensor:
    """Let a tensor pass that asks for no gradient.

    Raises:
        InvalidState: it asks for one. A dense state has its null directions in the matrix, where the derivative of a
            root or a logarithm is infinite; `instead` has the same figure with a gradient.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise InvalidState(name, f"ask for no gradient ({instead} has one)", "requires one")
    return x
