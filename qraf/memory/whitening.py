"""The whitened dense register, for vectors that come from outside and share a direction.

    rho_eps = (1 - eps) rho + eps I / d,      M = rho_eps^(-a),      a = 1/2: the pretty good measurement
    A_d(i) = <q|M|psi_i> / (||M^(1/2) q|| mean_k ||M^(1/2) psi_k||)

rho is the sketch's state with its missing trace spread as I / d, so M = c I + V diag(m) V^T with orthonormal V (d, r).
Items stay as they are stored; only the query is multiplied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qraf.states import quantize
from qraf.states.sketch import Sketch

__all__ = ["Whitening"]


class Whitening:
    """M of one state of a memory."""

    def __init__(self, sketch: Sketch, eps: float, power: float) -> None:
        factor = sketch.factor.numpy()
        self._dim = sketch.dim
        _, singular, directions = np.linalg.svd(factor, full_matrices=False)
        keep = singular > 1e-9 * singular.max(initial=0.0)
        weight = singular[keep] ** 2 / sketch.mass if sketch.mass > 0 else np.zeros(0)
        missing = max(0.0, 1.0 - float(weight.sum()))
        flat = ((1 - eps) * missing + eps) / self._dim
        self._vectors = np.ascontiguousarray(directions[keep], np.float32)
        self._flat = flat**-power
        self._extra = ((1 - eps) * weight + flat) ** -power - self._flat
        self._mean_norm = 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        return int(self._vectors.nbytes + self._extra.nbytes)

    def measure(self, rows: NDArray[np.uint8], bits: int) -> None:
        """Read mean_k ||M^(1/2) psi_k|| from the items, psi_k at unit norm."""
        if not len(rows):
            return
        decoded_norm = np.concatenate(
            [
                np.linalg.norm(quantize.decode(rows[start : start + 1024], self._dim, bits), axis=1)
                for start in range(0, len(rows), 1024)
            ]
        ).astype(np.float64)
        overlap = quantize.scan(rows, self._vectors, self._dim, bits).astype(np.float64)
        square = self._flat * decoded_norm**2 + self._extra @ overlap**2
        self._mean_norm = float(np.sqrt(np.maximum(square, 0)).mean())

    def query(self, q: NDArray[np.float32]) -> NDArray[np.float32]:
        """M q / (||M^(1/2) q|| mean_k ||M^(1/2) psi_k||), (m, d); zero stays zero."""
        overlap = q.astype(np.float64) @ self._vectors.T.astype(np.float64)
        whitened = self._flat * q + (overlap * self._extra) @ self._vectors
        norm = np.sqrt(np.maximum(np.einsum("md,md->m", whitened, q), 0)) * self._mean_norm
        scaled: NDArray[np.float32] = np.divide(
            whitened, norm[:, None], out=np.zeros_like(whitened), where=norm[:, None] > 0
        ).astype(np.float32)
        return scaled
