"""The whitened dense register, for vectors that come from outside and share a direction.

    rho_eps = (1 - eps) rho + eps I / d,      M = rho_eps^(-a),      a = 1/2: the pretty good measurement
    A_d(i) = <q|M|psi_i> / (||M^(1/2) q|| mean_k ||M^(1/2) psi_k||)

rho is the sketch's state with its missing trace spread as I / d, so M = c I + V diag(m) V^T with orthonormal V (d, r).
Items stay as they are stored; only the query is multiplied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qraf.memory.tiers import Tiers
from qraf.states.sketch import Sketch

__all__ = ["Whitening"]


class Whitening:
    """M = flat I + vectors^T diag(extra) vectors of one state of a memory; `mean_norm` is mean_k ||M^(1/2) psi_k||."""

    def __init__(self, sketch: Sketch, eps: float, power: float) -> None:
        factor = sketch.factor.numpy()
        self._dim = sketch.dim
        _, singular, directions = np.linalg.svd(factor, full_matrices=False)
        keep = singular > 1e-9 * singular.max(initial=0.0)
        weight = singular[keep] ** 2 / sketch.mass if sketch.mass > 0 else np.zeros(0)
        missing = max(0.0, 1.0 - float(weight.sum()))
        flat = ((1 - eps) * missing + eps) / self._dim
        self.vectors = np.ascontiguousarray(directions[keep], np.float32)
        self.flat = flat**-power
        self.extra = ((1 - eps) * weight + flat) ** -power - self.flat
        self.mean_norm = 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        return int(self.vectors.nbytes + self.extra.nbytes)

    @staticmethod
    def most_bytes(dim: int, rank: int) -> int:
        """The most that `nbytes` can be."""
        return min(rank, dim) * (4 * dim + 8)

    def measure(self, coded: Tiers) -> None:
        """Read mean_k ||M^(1/2) psi_k|| from the items, psi_k at unit norm."""
        if not len(coded):
            return
        norms = []
        for start in range(0, len(coded), 1024):
            decoded = coded.decoded(slice(start, start + 1024)).astype(np.float64)
            length = np.linalg.norm(decoded, axis=1, keepdims=True)
            unit = np.divide(decoded, length, out=np.zeros_like(decoded), where=length > 0)
            square = self.flat * (length[:, 0] > 0) + ((unit @ self.vectors.T) ** 2) @ self.extra
            norms.append(np.sqrt(np.maximum(square, 0)))
        self.mean_norm = float(np.concatenate(norms).mean())

    def query(self, q: NDArray[np.float32]) -> NDArray[np.float32]:
        """M q / (||M^(1/2) q|| mean_k ||M^(1/2) psi_k||), (m, d); zero stays zero."""
        overlap = q.astype(np.float64) @ self.vectors.T.astype(np.float64)
        whitened = self.flat * q + (overlap * self.extra) @ self.vectors
        norm = np.sqrt(np.maximum(np.einsum("md,md->m", whitened, q), 0)) * self.mean_norm
        scaled: NDArray[np.float32] = np.divide(
            whitened, norm[:, None], out=np.zeros_like(whitened), where=norm[:, None] > 0
        ).astype(np.float32)
        return scaled
