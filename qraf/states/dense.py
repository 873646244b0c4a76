"""Channels on a density matrix (d, d): for states whose rank comes near d, where a factor saves nothing.

The same maps as in `channels`. There is no spectrum in between, so the noise of twelve qubits is twelve passes over rho
and one factorisation at the end, whatever the rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qraf.states.channels import (
    AmplitudeDamping,
    Channel,
    Dephasing,
    Depolarizing,
    Kraus,
    PauliNoise,
    PhaseDamping,
    Relaxation,
    Unitary,
)
from qraf.states.subsystems import join, split

__all__ = ["growth", "through"]

_FEW = 16  # the dimension up to which a channel is taken by its Kraus operators


def growth(channel: Channel, sizes: tuple[int, ...]) -> int:
    """How many times the rank a channel on subsystems of these sizes may leave; 1 where `through` cannot take it."""
    m = math.prod(sizes)
    match channel:
        case Depolarizing(0) | Dephasing(0) | PhaseDamping(0) | Unitary():
            return 1
        case Dephasing() | PhaseDamping():
            return m
        case Depolarizing():
            return m * m
        case Relaxation():
            return m * m if set(sizes) == {2} else 1
    if m > _FEW:
        return 1
    match channel:
        case Kraus():
            return len(channel.operators)
        case PauliNoise():
            return len(channel.probabilities) + 1
        case AmplitudeDamping():
            return m
    return 1


def through(rho: Tensor, channel: Channel, dims: Sequence[int], on: Sequence[int]) -> Tensor:
    """Give rho (d, d) after a channel on the subsystems `on` as one system.

    What is given is used up: its memory may hold the result.
    """
    sizes = tuple(dims[index] for index in on)
    if isinstance(channel, Relaxation):
        for index in on:
            for kraus in (one.kraus((2,)) for one in channel.steps()):
                rho = _mapped(rho, kraus, dims, (index,))
        return rho
    if isinstance(channel, PhaseDamping):
        channel = channel.dephasing()
    if isinstance(channel, Dephasing):
        parts = _parts(rho, dims, on)
        same = [parts[:, i, :, :, i].clone() for i in range(parts.shape[1])]
        parts *= 1 - channel.p
        for i, block in enumerate(same):
            parts[:, i, :, :, i] = block
        return _whole(parts, dims, on)
    if isinstance(channel, Depolarizing):
        parts = _parts(rho, dims, on)
        m = parts.shape[1]
        rest = sum((parts[:, i, :, :, i] for i in range(1, m)), parts[:, 0, :, :, 0]) * (channel.p / m)
        parts *= 1 - channel.p
        for i in range(m):
            parts[:, i, :, :, i] += rest
        return _whole(parts, dims, on)
    return _mapped(rho, channel.kraus(sizes), dims, on)


def _mapped(rho: Tensor, kraus: Tensor, dims: Sequence[int], on: Sequence[int]) -> Tensor:
    """sum_k K rho K^H, block by block: rho'_ij = sum_ab (sum_k K_ia conj(K_jb)) rho_ab."""
    weights = torch.einsum("kia,kjb->ijab", kraus, kraus.conj())
    is_real = not rho.is_complex() and not bool(weights.imag.any())
    parts = _parts(rho if is_real else rho.to(torch.complex128), dims, on)
    before = parts.clone()
    parts.zero_()
    for i, j, a, b in weights.nonzero().tolist():
        weight = complex(weights[i, j, a, b])
        parts[:, i, :, :, j].add_(before[:, a, :, :, b], alpha=weight.real if is_real else weight)
    return _whole(parts, dims, on)


def _parts(rho: Tensor, dims: Sequence[int], on: Sequence[int]) -> Tensor:
    """View rho as (a, m, b, a, m, b): without a copy where `on` are neighbours in order, else with a = 1."""
    first, m = on[0], math.prod(dims[index] for index in on)
    if list(on) == list(range(first, first + len(on))):
        a = math.prod(dims[:first])
        b = math.prod(dims) // (a * m)
        return rho.contiguous().view(a, m, b, a, m, b)
    columns = split(rho, dims, on)  # (d, m, b)
    return split(columns.permute(1, 2, 0), dims, on).permute(2, 3, 0, 1).contiguous()[None, :, :, None]


def _whole(parts: Tensor, dims: Sequence[int], on: Sequence[int]) -> Tensor:
    """The inverse of `_parts`."""
    d = math.prod(dims)
    if list(on) == list(range(on[0], on[0] + len(on))):
        return parts.reshape(d, d)
    columns = join(parts[0, :, :, 0].permute(2, 3, 0, 1), dims, on)  # columns first, (m, b, d)
    return join(columns.permute(2, 0, 1), dims, on)
