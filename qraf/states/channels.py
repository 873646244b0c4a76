"""Channels: what noise and gates do to a state, on factors. `evolve` sends states through them.

A channel sum_k K rho K^H turns the factor L (r, d) of rho = L^H L into the stacked rows L K_k^H. Where a closed form
adds fewer rows than one per Kraus operator it is used:

  depolarising        (1 - p) rho + p tr_on(rho) (x) I / m         p = 1 forgets all; Nielsen & Chuang 8.3.4 for any m
  dephasing           (1 - p) rho + p sum_i |i><i| rho |i><i|      coherences times 1 - p
  amplitude damping   K_0 = diag(1, sqrt(1 - gamma), ...), K_j = sqrt(gamma) |0><j|       one row more on a whole system
  phase damping       coherences times sqrt(1 - lambda); Nielsen & Chuang 8.3.6 for m = 2
  T1, T2              gamma = 1 - exp(-t / T1), lambda = 1 - exp(-2 t (1 / T2 - 1 / (2 T1))), each qubit for itself
  Pauli, Kraus set, unitary

m is the dimension of the subsystems acted on, taken together as one system. In PennyLane the depolarising p of a
qubit is 3/4 of this one; in toqito it is 1 - p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import TOLERANCE, check_finite, check_square
from qraf.states.state import principal_rows
from qraf.states.subsystems import apply_operator, fold, join, split, stack

__all__ = [
    "AmplitudeDamping",
    "Channel",
    "Dephasing",
    "Depolarizing",
    "Kraus",
    "PauliNoise",
    "PhaseDamping",
    "Relaxation",
    "Unitary",
]

_PAULI = {
    "I": torch.eye(2, dtype=torch.complex128),
    "X": torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128),
    "Y": torch.tensor([[0, -1j], [1j, 0]], dtype=torch.complex128),
    "Z": torch.tensor([[1, 0], [0, -1]], dtype=torch.complex128),
}


class Channel(Protocol):
    """A completely positive map that keeps the trace."""

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Turn factors (..., r, m, rest) into factors (..., s, m, rest); `sizes` multiply to m."""
        ...

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """The Kraus operators (k, m, m) on subsystems of these sizes: the definition, of m^2 operators at most."""
        ...


@dataclass(frozen=True, slots=True)
class Depolarizing:
    """(1 - p) rho + p tr_on(rho) (x) I / m."""

    p: float

    def __post_init__(self) -> None:
        _check_probability("p", self.p)

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """At most r + m min(r m, rest) rows."""
        if self.p == 0:
            return parts
        m = parts.shape[-2]
        rest = principal_rows(parts.flatten(-3, -2))[0]  # tr_on(rho): every basis row of the part gives one
        mixed = torch.einsum("...kb,ij->...kijb", rest, torch.eye(m, dtype=parts.dtype, device=parts.device))
        return torch.cat((math.sqrt(1 - self.p) * parts, math.sqrt(self.p / m) * mixed.flatten(-4, -3)), -3)

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """sqrt(1 - p) I, and sqrt(p / m) |i><j| of all i and j."""
        m = math.prod(sizes)
        units = torch.eye(m * m, dtype=torch.complex128).reshape(m * m, m, m)
        return torch.cat((math.sqrt(1 - self.p) * _eye(m)[None], math.sqrt(self.p / m) * units))


@dataclass(frozen=True, slots=True)
class Dephasing:
    """(1 - p) rho + p sum_i |i><i| rho |i><i|, in the computational basis."""

    p: float

    def __post_init__(self) -> None:
        _check_probability("p", self.p)

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """At most r + m min(r, rest) rows."""
        if self.p == 0:
            return parts
        blocks = principal_rows(parts.movedim(-2, -3))[0]  # (..., m, k, rest): |i><i| rho |i><i| one by one
        eye = torch.eye(parts.shape[-2], dtype=parts.dtype, device=parts.device)
        split = torch.einsum("...ikb,ij->...ikjb", blocks, eye).flatten(-4, -3)
        return torch.cat((math.sqrt(1 - self.p) * parts, math.sqrt(self.p) * split), -3)

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """sqrt(1 - p) I, and sqrt(p) |i><i|."""
        m = math.prod(sizes)
        return torch.cat((math.sqrt(1 - self.p) * _eye(m)[None], math.sqrt(self.p) * torch.diag_embed(_eye(m))))


@dataclass(frozen=True, slots=True)
class PhaseDamping:
    """Coherences times sqrt(1 - lam); populations stay."""

    lam: float

    def __post_init__(self) -> None:
        _check_probability("lam", self.lam)

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """As dephasing by 1 - sqrt(1 - lam)."""
        return self.dephasing().rows(parts, sizes)

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """As dephasing; on a qubit the same channel as diag(1, sqrt(1 - lam)), diag(0, sqrt(lam))."""
        return self.dephasing().kraus(sizes)

    def dephasing(self) -> Dephasing:
        """The dephasing that is the same channel."""
        return Dephasing(self.lam / (1 + math.sqrt(1 - self.lam)))  # 1 - sqrt(1 - lam), with all digits


@dataclass(frozen=True, slots=True)
class AmplitudeDamping:
    """Every level j > 0 falls to level 0 with probability gamma."""

    gamma: float

    def __post_init__(self) -> None:
        _check_probability("gamma", self.gamma)

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """At most r + min(r (m - 1), rest) rows."""
        if self.gamma == 0 or parts.shape[-2] == 1:
            return parts
        stay = math.sqrt(1 - self.gamma) * parts
        stay[..., 0, :] = parts[..., 0, :]
        fallen = math.sqrt(self.gamma) * principal_rows(parts[..., 1:, :].flatten(-3, -2))[0]
        return torch.cat((stay, torch.nn.functional.pad(fallen[..., None, :], (0, 0, 0, parts.shape[-2] - 1))), -3)

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """K_0 = diag(1, sqrt(1 - gamma), ...), K_j = sqrt(gamma) |0><j|."""
        m = math.prod(sizes)
        stay = math.sqrt(1 - self.gamma) * _eye(m)
        stay[0, 0] = 1
        fall = torch.zeros(m, m, m, dtype=torch.complex128)
        fall[:, 0, :] = math.sqrt(self.gamma) * _eye(m)
        return torch.cat((stay[None], fall[1:]))


@dataclass(frozen=True, slots=True)
class Relaxation:
    """T1 and T2 for `t_s` seconds: p_1 falls by e^{-t / T1}, coherence by e^{-t / T2}; each qubit for itself.

    Raises:
        InvalidState: a time is negative or zero, or T2 > 2 T1, which no channel has.
    """

    t_s: float
    t1_s: float
    t2_s: float

    def __post_init__(self) -> None:
        if not (self.t_s >= 0 and math.isfinite(self.t_s)):
            raise InvalidState("t_s", "be finite and at least 0", f"is {self.t_s}")
        for name, value in (("t1_s", self.t1_s), ("t2_s", self.t2_s)):
            if not value > 0:
                raise InvalidState(name, "be above 0", f"is {value}")
        if self.t2_s > 2 * self.t1_s:
            raise InvalidState("t2_s", "be at most 2 t1_s", f"is {self.t2_s:g} with t1_s = {self.t1_s:g}")

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Amplitude damping, then phase damping, qubit by qubit, folded after each."""
        dims = (*sizes, parts.shape[-1])
        factor = parts.flatten(-2)
        for index in range(len(_qubits(sizes))):
            for one in self.steps():
                factor = fold(join(one.rows(split(factor, dims, (index,)), (2,)), dims, (index,)))
        return factor.reshape(*factor.shape[:-1], *parts.shape[-2:])

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """The products of the qubits' operators."""
        damp, dephase = (one.kraus((2,)) for one in self.steps())
        both = torch.einsum("aij,bjk->abik", dephase, damp).flatten(0, 1)
        whole = torch.ones(1, 1, 1, dtype=torch.complex128)
        for _ in _qubits(sizes):
            whole = torch.stack([torch.kron(a, b) for a in whole for b in both])
        return whole

    def steps(self) -> tuple[AmplitudeDamping, PhaseDamping]:
        """What happens to each qubit, one after the other."""
        pure = max(0.0, 1 / self.t2_s - 1 / (2 * self.t1_s))  # the rate that T1 alone does not explain
        return AmplitudeDamping(-math.expm1(-self.t_s / self.t1_s)), PhaseDamping(-math.expm1(-2 * self.t_s * pure))


@dataclass(frozen=True, slots=True)
class PauliNoise:
    """sum_s p_s P_s rho P_s of Pauli strings such as {"XI": 0.1, "ZZ": 0.02}; the identity has what is left.

    Raises:
        InvalidState: no Pauli strings of one length, a probability outside [0, 1], or a sum above 1.
    """

    probabilities: Mapping[str, float] = field(hash=False)

    def __post_init__(self) -> None:
        names = list(self.probabilities)
        if not names or any(not name or set(name) - set("IXYZ") or len(name) != len(names[0]) for name in names):
            raise InvalidState("probabilities", "name Pauli strings of one length, of I, X, Y and Z", f"name {names}")
        for name, p in self.probabilities.items():
            _check_probability(f"probabilities.{name}", p)
        total = math.fsum(p for name, p in self.probabilities.items() if set(name) != {"I"})
        given = math.fsum(self.probabilities.values())
        tolerance = TOLERANCE[torch.float64]
        named = "I" * len(names[0]) in self.probabilities
        if total > 1 + tolerance or (named and abs(given - 1) > tolerance):
            raise InvalidState("probabilities", "sum to 1, the identity included", f"sum to {given:.12g}")

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """As many rows per string as there were."""
        dims, factor = (*sizes, parts.shape[-1]), parts.flatten(-2)

        def turned(name: str, p: float) -> Tensor:
            rows = math.sqrt(p) * factor
            for index, letter in enumerate(name):
                if letter != "I":
                    rows = apply_operator(rows, _PAULI[letter].conj(), dims, (index,))
            return rows

        grown = stack(turned(name, p) for name, p in self._all(sizes))
        return grown.reshape(*grown.shape[:-1], *parts.shape[-2:])

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """sqrt(p_s) P_s."""
        operators = []
        for name, p in self._all(sizes):
            operator = torch.full((1, 1), math.sqrt(p), dtype=torch.complex128)
            for letter in name:
                operator = torch.kron(operator, _PAULI[letter])
            operators.append(operator)
        return torch.stack(operators)

    def _all(self, sizes: tuple[int, ...]) -> list[tuple[str, float]]:
        length = len(next(iter(self.probabilities)))
        if length != len(_qubits(sizes)):
            raise InvalidState("probabilities", f"name {len(sizes)} Pauli letters a string", f"name {length}")
        others = {name: p for name, p in self.probabilities.items() if set(name) != {"I"} and p > 0}
        return [("I" * length, max(0.0, 1 - math.fsum(others.values()))), *others.items()]


@dataclass(frozen=True, slots=True, eq=False)
class Kraus:
    """Any Kraus set (k, m, m).

    Raises:
        InvalidState: not square, not finite, or sum K^H K is not I.
    """

    operators: Tensor

    def __post_init__(self) -> None:
        if self.operators.ndim != 3 or not len(self.operators):
            raise InvalidState("kraus", "have shape (k, m, m) with k >= 1", f"has {tuple(self.operators.shape)}")
        check_finite(check_square(self.operators, "kraus"), "kraus")
        _check_isometry(self.operators, "kraus", "preserve the trace (sum K^H K = I)")

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """As many rows per operator as there were, folded where they get many."""
        operators = _fitting(self.operators, parts, "kraus")
        wide = parts.to(operators.dtype)
        grown = stack(torch.einsum("ij,...jb->...ib", one.conj(), wide).flatten(-2) for one in operators)
        return grown.reshape(*grown.shape[:-1], *parts.shape[-2:])

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """The operators themselves."""
        return self.operators


@dataclass(frozen=True, slots=True, eq=False)
class Unitary:
    """U rho U^H.

    Raises:
        InvalidState: not square, not finite, or U^H U is not I.
    """

    operator: Tensor

    def __post_init__(self) -> None:
        if self.operator.ndim != 2:
            raise InvalidState("unitary", "have shape (m, m)", f"has {tuple(self.operator.shape)}")
        check_finite(check_square(self.operator, "unitary"), "unitary")
        _check_isometry(self.operator[None], "unitary", "be unitary (U^H U = I)")

    def rows(self, parts: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """As many rows as there were."""
        operator = _fitting(self.operator, parts, "unitary")
        return torch.einsum("ij,...jb->...ib", operator.conj(), parts.to(operator.dtype))

    def kraus(self, sizes: tuple[int, ...]) -> Tensor:
        """U alone."""
        return self.operator[None]


def _check_probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise InvalidState(name, "be from 0 to 1", f"is {p}")


def _check_isometry(operators: Tensor, name: str, need: str) -> None:
    total = torch.einsum("kji,kjl->il", operators.conj(), operators)
    off = float((total - torch.eye(len(total), dtype=total.dtype, device=total.device)).abs().max())
    if off > TOLERANCE[operators.dtype]:
        raise InvalidState(name, need, f"is off by {off:.3g}")


def _fitting(operator: Tensor, parts: Tensor, name: str) -> Tensor:
    if operator.shape[-1] != parts.shape[-2]:
        need = f"act on dimension {parts.shape[-2]}, that of the chosen subsystems"
        raise InvalidState(name, need, f"acts on {operator.shape[-1]}")
    is_complex = operator.is_complex() or parts.is_complex()
    return operator.to(parts.device, torch.complex128 if is_complex else torch.float64)


def _qubits(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(size != 2 for size in sizes):
        raise InvalidState("on", "name qubits for this channel", f"names subsystems of dimensions {sizes}")
    return sizes


def _eye(m: int) -> Tensor:
    return torch.eye(m, dtype=torch.complex128)
