"""A streaming state in bounded space: block Frequent Directions with certificates.

A stream of real amplitudes x_i (rows of A) with weights w_i has the state

    rho = M / mass,      M = sum_i w_i |x_i><x_i|,      mass = tr M

The sketch keeps a factor B of at most `rank` rows. Every fold stacks B and a block of rows, takes the spectrum
lambda_1 >= lambda_2 >= ... of the stack's Gram matrix in float64, keeps `rank` directions, takes lambda_{rank+1} off
the lowest `alpha * rank` of them and adds it to `delta` (Ghashami et al. 2016; alpha: Desai, Ghashami, Phillips 2015,
arXiv 1501.06561; block form: one eigendecomposition per block). What rounding the stored factor moves is measured at
every fold: E = before - after; `delta` takes its positive part, `slack` its negative part. So, always,

    - slack I  <=  M - B^T B  <=  delta I                                                                        (1)

Merging adds deltas, slacks and masses; decay by gamma scales all of them: (1) holds for the weighted stream. From (1):
  Born       (|Bx|^2 - slack) / mass <= <x|rho|x> <= (|Bx|^2 + delta) / mass
  state      T(rho, rho^) <= `trace_loss`, F >= 1 - `trace_loss`, with rho^ = B^T B / |B|^2
  spectrum   lambda_i(rho) mass lies in [b_i - slack, b_i + delta] (Weyl), and sums to mass; entropy and purity are
             Schur-monotone, so their extremes over that set are at its two extreme spectra (`spectra`)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.envelope import seal, unseal

__all__ = ["Sketch"]

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}
_CHUNK = 4096  # rows widened to float64 at a time
_SHORT = 256  # rows multiplied in float32 at a time, in blocks of at least 4 d rows: 1.8 times as fast
_UNIT32 = 2.0**-24
_EPS = torch.finfo(torch.float64).eps


class Sketch:
    """The state of a stream of amplitudes, held as a factor of at most `rank` rows.

    Attributes:
        dim: d.
        rank: most rows of the factor.
        alpha: share of the kept directions that is shrunk, in (0, 1]. 0.5 keeps most of the trace (Desai, Ghashami,
            Phillips 2015).
        dtype: "float64", "float32" or "float16", of the stored factor; its rounding is in the certificates. Every fold
            rounds again, so fold blocks, not single rows, when storing float16.
        mass: total weight times squared norm.
        rows: how many rows came in.
        delta: largest possible lost weight in any direction.
        slack: largest possible excess weight in any direction, from rounding alone.
    """

    def __init__(self, dim: int, rank: int = 32, alpha: float = 0.5, dtype: str = "float32") -> None:
        if dim < 1 or rank < 1:
            raise InvalidState("dim, rank", "be at least 1", f"are {dim}, {rank}")
        if not 0 < alpha <= 1:
            raise InvalidState("alpha", "be in (0, 1]", f"is {alpha}")
        if dtype not in _DTYPES:
            raise InvalidState("dtype", f"be one of {tuple(_DTYPES)}", f"is {dtype}")
        self.dim, self.rank, self.alpha, self.dtype = dim, rank, alpha, dtype
        self.rows = 0
        self.mass = self.delta = self.slack = 0.0
        self._excess = 0.0  # trace of the excess, for the trace certificate
        self._log_mass = 0.0  # sum of m_i log2 m_i over the rows' masses, for the entropy of the weights
        self._stored = torch.zeros(0, dim, dtype=_DTYPES[dtype])
        self._scale = torch.zeros(0, dtype=torch.float64)  # one per stored row, so that float16 keeps its digits

    @property
    def factor(self) -> Tensor:
        """B, (r, d) float64 with r <= rank; B^T B approximates M from below, see (1)."""
        return self._stored.double() * self._scale[:, None]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        return self._stored.nbytes + self._scale.nbytes

    @property
    def trace_loss(self) -> float:
        """An upper bound on the trace distance between the sketch's state and the true one; 0 when nothing was cut."""
        if self.mass <= 0:
            return 0.0
        kept = float(self.factor.square().sum())
        # |rho - rho^|_1 <= (|M - N|_1 + |mass - kept|) / mass, and |M - N|_1 <= mass - kept + 2 excess
        loss = (self.mass - kept + 2 * self._excess + abs(self.mass - kept)) / (2 * self.mass)
        return min(1.0, max(0.0, loss) + 64 * _EPS)

    def update(self, rows: Tensor | NDArray[np.floating], weights: Tensor | NDArray[np.floating] | None = None) -> None:
        """Fold a block of rows in, with one eigendecomposition for the whole block.

        Args:
            rows: amplitudes, (n, d), real and finite; n may be 0. Rows on a GPU are folded there, in float64; the
                sketch itself stays with the processor.
            weights: (n,), at least 0; 1 each when left out.

        Raises:
            InvalidState: shapes differ, or a value is not finite, or a weight is negative.
        """
        x = _tensor("rows", rows, stays=True)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InvalidState("rows", f"have shape (n, {self.dim})", f"has {tuple(x.shape)}")
        w = torch.ones(1).expand(len(x)) if weights is None else _tensor("weights", weights)
        w = w.to(x.device, torch.float64)
        if w.shape != (len(x),) or bool((w < 0).any()):
            raise InvalidState("weights", f"have shape ({len(x)},) and be at least 0", f"has {tuple(w.shape)}")
        if not len(x):
            return
        masses = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square() * w
        total = float(masses.sum())
        if not math.isfinite(total):
            raise InvalidState("rows, weights", "be finite", "hold NaN, infinity or too large a number")
        self._fold(x, None if weights is None else w.sqrt(), total)
        self.rows += len(x)
        self.mass += total
        self._log_mass += float(torch.special.xlogy(masses, masses).sum()) / math.log(2)

    def merge(self, other: Sketch) -> None:
        """Add another sketch of the same dimension; certificates and masses add up.

        Raises:
            InvalidState: the dimensions differ.
        """
        if other.dim != self.dim:
            raise InvalidState("other", f"have dimension {self.dim}", f"has {other.dim}")
        factor = other.factor
        theirs = other.delta, other.slack, other._excess, other.mass, other.rows, other._log_mass
        self._fold(factor, None, float(factor.square().sum()))
        self.delta, self.slack, self._excess = self.delta + theirs[0], self.slack + theirs[1], self._excess + theirs[2]
        self.mass, self.rows, self._log_mass = self.mass + theirs[3], self.rows + theirs[4], self._log_mass + theirs[5]

    def decay(self, gamma: float) -> None:
        """Scale the whole past by gamma in [0, 1]: a convex mixing of the old state with whatever comes next.

        Raises:
            InvalidState: gamma is outside [0, 1].
        """
        if not 0 <= gamma <= 1:
            raise InvalidState("gamma", "be in [0, 1]", f"is {gamma}")
        if gamma:
            self._log_mass = gamma * (self._log_mass + self.mass * math.log2(gamma))
        else:
            self._log_mass = 0.0
        self._scale = self._scale * math.sqrt(gamma)
        self.mass, self.delta, self.slack = self.mass * gamma, self.delta * gamma, self.slack * gamma
        self._excess *= gamma

    def copy(self) -> Sketch:
        """Give an independent copy."""
        return Sketch.from_bytes(self.to_bytes())

    def state_factor(self) -> Tensor:
        """L, (r, d) float64 with tr L^T L = 1: the sketch's state; no rows when nothing of weight came in."""
        factor = self.factor
        norm = float(torch.linalg.norm(factor))
        return factor / norm if norm > 0 else factor[:0]

    def born_interval(self, x: Tensor | NDArray[np.floating]) -> tuple[Tensor, Tensor]:
        """Bounds on the Born probabilities <x|rho|x> of rows x, (n, d) or (d,): two tensors, (n,) or scalar."""
        x = _tensor("x", x).double()
        if x.shape[-1] != self.dim:
            raise InvalidState("x", f"have shape (..., {self.dim})", f"has {tuple(x.shape)}")
        if self.mass <= 0:
            raise InvalidState("sketch", "hold some weight", "is empty")
        born, norm = (x @ self.factor.T).square().sum(-1), x.square().sum(-1)
        room = 64 * _EPS * self.mass
        low = (born - (self.slack + room) * norm) / self.mass
        high = (born + (self.delta + room) * norm) / self.mass
        return low.clamp(min=0), torch.minimum(high, norm)

    def spectra(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the least and the most mixed spectrum, each (min(d, rows),) with sum 1, that (1) allows.

        Every admissible spectrum is majorised by the first and majorises the second.
        """
        size = min(self.dim, self.rows)
        if self.mass <= 0 or size == 0:
            return np.zeros(0), np.zeros(0)
        factor = self.factor
        values = torch.linalg.eigvalsh(factor @ factor.T).flip(0).clamp(min=0).numpy()
        kept = np.zeros(size)
        kept[: min(size, len(values))] = values[:size]
        room = 64 * _EPS * self.mass
        low = np.maximum(kept - self.slack - room, 0) / self.mass
        high = np.minimum((kept + self.delta + room) / self.mass, 1)
        left = max(0.0, 1 - low.sum())
        given = np.clip(left - np.concatenate(([0], np.cumsum(high - low)[:-1])), 0, high - low)
        pure = low + given
        mixed = _filled(low, high)
        return pure / pure.sum(), mixed / mixed.sum()

    def entropy_interval(self) -> tuple[float, float]:
        """Bounds on the von Neumann entropy of the true state, in bits: the tightest that (1) allows."""
        least, most = (_bits(values) for values in self.spectra())
        return max(0.0, least - 1e-9), most + 1e-9 if most else 0.0

    def weight_entropy(self) -> float:
        """H(p) of the rows' own masses p_i = w_i |x_i|^2 / mass, in bits, exactly, through decay and merge."""
        if self.mass <= 0:
            return 0.0
        return max(0.0, math.log2(self.mass) - self._log_mass / self.mass)

    def to_bytes(self) -> bytes:
        """Give the sketch as a checked packet of about `nbytes`."""
        names = ("dim", "rank", "alpha", "dtype", "rows", "mass", "delta", "slack", "_excess", "_log_mass")
        facts = {name: getattr(self, name) for name in names}
        return seal("sketch", facts, {"stored": self._stored.numpy(), "scale": self._scale.numpy()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """Read a packet of `to_bytes`.

        Raises:
            InvalidState: damaged, or no sketch.
        """
        _, facts, arrays = unseal(data, "sketch")
        return cls._from_parts(facts, arrays)

    @classmethod
    def _from_parts(cls, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Sketch:
        try:
            dim, rank = (_fact(name, facts[name]) for name in ("dim", "rank"))
            sketch = cls(dim, rank, facts["alpha"], facts["dtype"])
            stored, scale = torch.from_numpy(arrays["stored"]), torch.from_numpy(arrays["scale"])
            for name in ("rows", "mass", "delta", "slack", "_excess", "_log_mass"):
                setattr(sketch, name, _fact(name, facts[name]))
        except (KeyError, TypeError) as error:
            raise InvalidState("packet", "hold every part of a sketch", f"lacks {error}") from error
        fits = stored.shape == (len(scale), sketch.dim) and len(scale) <= sketch.rank
        if not fits or stored.dtype != _DTYPES[sketch.dtype] or scale.dtype != torch.float64:
            raise InvalidState("packet", f"hold a factor of at most {sketch.rank} rows of {sketch.dim}", "does not")
        if not bool(stored.isfinite().all() and scale.isfinite().all()):
            raise InvalidState("packet", "hold finite numbers", "holds NaN or infinity")
        sketch._stored, sketch._scale = stored, scale
        return sketch

    def _fold(self, x: Tensor, root: Tensor | None, total: float) -> None:
        """Replace B by a factor of at most `rank` rows of [B; root x], x of mass `total`; count what is lost."""
        old = self.factor
        if len(old) + len(x) < self.dim:
            x, root = x.cpu(), None if root is None else root.cpu()
        if len(old) + len(x) <= self.rank:
            stored, scale = self._rounded(_scaled(x, root))
            self._stored, self._scale = torch.cat((self._stored, stored)), torch.cat((self._scale, scale))
            return
        if len(old) + len(x) < self.dim:
            stack = torch.cat((old, _scaled(x, root)))
            values, vectors = torch.linalg.eigh(stack @ stack.T)
            values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
            top = stack.T @ vectors[:, : self.rank]
            directions = (top / torch.linalg.norm(top, dim=0).clamp(min=torch.finfo(torch.float64).tiny)).T
        else:
            gram = (old.T @ old).to(x.device) + self._moment(x, root, total)
            values, vectors = (part.cpu() for part in torch.linalg.eigh(gram))
            values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
            directions = vectors[:, : self.rank].T
        cut = float(values[self.rank]) if len(values) > self.rank else 0.0
        kept = values[: self.rank].clone()
        first = self.rank - max(1, math.ceil(self.alpha * self.rank))
        kept[first:] = (kept[first:] - cut).clamp(min=0)
        floor = len(values) * _EPS * float(values[0])
        alive = kept > floor
        # the eigensolver's own error moves a spectrum by a few d eps lambda_1; it may go either way
        self.delta += cut + 2 * floor
        self.slack += floor
        self._excess += floor * self.rank
        self._stored, self._scale = self._rounded(directions[alive] * kept[alive].sqrt()[:, None])

    def _moment(self, x: Tensor, root: Tensor | None, total: float) -> Tensor:
        """Sum of w_i |x_i><x_i|, float64; in large blocks from float32 products whose rounding is counted."""
        gram = torch.zeros(self.dim, self.dim, dtype=torch.float64, device=x.device)
        is_short = len(x) >= 4 * self.dim and x.dtype == torch.float32 and self.dtype != "float64" and not x.is_cuda
        chunk = _SHORT if is_short else _CHUNK
        roots = [None] * -(-len(x) // chunk) if root is None else torch.split(root, chunk)
        for piece, part in zip(torch.split(x, chunk), roots, strict=True):
            if is_short:
                scaled = piece if part is None else piece * part[:, None].float()
                gram += scaled.T @ scaled
            else:
                wide = _scaled(piece, part)
                gram.addmm_(wide.T, wide)
        if is_short:
            # k products summed in any order err by at most k u sum |a b| (Higham 2002, section 3.1), and weighting a
            # row by 3 u; so |E| <= (k + 6) u tr M. Measured: 3e-10 tr M. It may go either way
            moved = (_SHORT + 8) * _UNIT32 * total
            self.delta, self.slack = self.delta + moved, self.slack + moved
            self._excess += self.dim**0.5 * moved  # |E|_1 <= sqrt d |E|_F
        return gram

    def _rounded(self, exact: Tensor) -> tuple[Tensor, Tensor]:
        """Round a factor to the stored dtype, row by row on a power-of-two scale, and count the rounding."""
        peak = exact.abs().amax(1) if exact.numel() else exact.new_zeros(len(exact))
        scale = torch.where(peak > 0, torch.exp2(torch.ceil(torch.log2(peak.clamp(min=1e-300)))), 1.0)
        stored = (exact / scale[:, None]).to(_DTYPES[self.dtype])
        again = stored.double() * scale[:, None]
        if not torch.equal(again, exact):
            # E = exact^T exact - again^T again has rank <= 2r: its eigenvalues are those of R diag(1, -1) R^T
            r = torch.linalg.qr(torch.cat((exact, again)).T, mode="r").R
            sign = torch.ones(2 * len(exact), dtype=torch.float64)
            sign[len(exact) :] = -1
            moved = torch.linalg.eigvalsh((r * sign) @ r.T)
            self.delta += max(0.0, float(moved[-1]))
            self.slack += max(0.0, -float(moved[0]))
            self._excess += float(moved.clamp(max=0).abs().sum())
        return stored, scale


def _fact(name: str, value: Any) -> Any:
    """Let a number of a packet pass: finite, at least 0 but for the logarithm, whole where it counts."""
    kinds = int if name in ("dim", "rank", "rows") else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        raise InvalidState("packet", f"hold a number `{name.lstrip('_')}`", f"holds {value!r:.40}")
    if value < 0 and name != "_log_mass":
        raise InvalidState("packet", f"hold `{name.lstrip('_')}` of at least 0", f"holds {value}")
    return value


def _scaled(x: Tensor, root: Tensor | None) -> Tensor:
    return x.double() if root is None else x.double() * root[:, None]


def _filled(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """The flattest vector between low and high that sums to one: clip(c, low, high) at the level c that fits."""
    ends = np.concatenate((low, high))
    order = np.argsort(ends, kind="stable")
    # the sum as a function of the level is piecewise linear: one more value rises past each low, one fewer past a high
    slopes = np.cumsum(np.where(order < len(low), 1.0, -1.0))
    levels = ends[order]
    sums = low.sum() + np.concatenate(([0.0], np.cumsum(slopes[:-1] * np.diff(levels))))
    filled: NDArray[np.float64] = np.clip(np.full(len(low), np.interp(1.0, sums, levels)), low, high)
    return filled


def _bits(values: NDArray[np.float64]) -> float:
    positive = values[values > 0]
    return max(0.0, float(-(positive * np.log2(positive)).sum()))


def _tensor(name: str, values: Tensor | NDArray[np.floating], stays: bool = False) -> Tensor:
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        values = torch.from_numpy(array if array.flags.writeable else array.copy())
    if values.is_complex():
        raise InvalidState(name, "be real", "is complex")
    values = values.detach() if stays and values.is_cuda else values.detach().cpu()
    return values if values.is_floating_point() else values.double()
