"""Orders to repair and to align, answered; many repairs at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from qraf.errors import InvalidRequest, QrafError
from qraf.operations.arrays import at, tensor_of
from qraf.operations.batches import array_out, in_groups
from qraf.operations.given import densities_of
from qraf.operations.optimize import check_rank
from qraf.service_orders import Align, Aligned, Alignment, Form, Matrices, Repair, Repaired, RepairedState, Syndromes
from qraf.state_orders import ArrayData
from qraf.states.measures import fidelity_factor
from qraf.states.repair import DEFECTS, align_phase, procrustes
from qraf.states.repair import repair as repair_matrices

__all__ = ["align", "repair"]

_Key = tuple[int | None, float | None, Form]


def repair(orders: Sequence[Repair]) -> list[Repaired | QrafError]:
    """Repairs of many orders: matrices of one shape share one call. A fault answers its own order alone."""
    gathered: list[int | QrafError] = []
    items: list[tuple[_Key, Tensor]] = []
    for order in orders:
        try:
            if order.noise is not None and not 0 <= order.noise < float("inf"):
                raise InvalidRequest(f"must be finite and at least 0, but is {order.noise:g}", "/noise")
            found = densities_of(order.matrices, order.states, order.form)
            for matrix, pointer in found:
                check_rank(order.rank, matrix.shape[-1], pointer)
            gathered.append(len(found))
            items += [((order.rank, order.noise, order.form), matrix) for matrix, _ in found]
        except QrafError as fault:
            gathered.append(fault)
    results = iter(in_groups(items, lambda key, stack: _repaired(stack, *key)))
    return [
        one if isinstance(one, QrafError) else Repaired(results=tuple(next(results) for _ in range(one)))
        for one in gathered
    ]


def align(order: Align) -> Aligned:
    """Vectors or factors turned towards a reference.

    Raises:
        InvalidRequest: with a pointer to what does not fit.
    """
    if (order.vectors is None) == (order.factors is None):
        raise InvalidRequest("give one of `vectors` and `factors`", "/vectors")
    if order.vectors is not None:
        given = tensor_of(order.vectors, "/vectors", (1, 2), "(d,) or (n, d)")
        reference = tensor_of(order.reference, "/reference", (1, 2), "(d,) or (n, d)")
        given, reference = _matched(given if given.ndim == 2 else given[None], reference, 1)
        turned = align_phase(given, reference)
        return _aligned(given[:, None], turned[:, None], reference[:, None], turned, order.form)
    assert order.factors is not None
    given = _factors(order.factors)
    reference = tensor_of(order.reference, "/reference", (2, 3), "(s, d) or (n, s, d)")
    given, reference = _matched(given if given.ndim == 3 else given[None], reference, 2)
    with at("/factors"):
        turned, _ = procrustes(given, reference)
    return _aligned(given, turned, reference, turned, order.form)


def _factors(factors: Matrices) -> Tensor:
    """Factors (r, d) or (n, r, d); a list of arrays, each (r, d) and of one shape, is n of them."""
    if isinstance(factors, ArrayData) or not any(isinstance(one, ArrayData) for one in factors):
        return tensor_of(factors, "/factors", (2, 3), "(r, d) or (n, r, d)")  # type: ignore[arg-type]
    found = [tensor_of(one, f"/factors/{place}", 2, "(r, d)") for place, one in enumerate(factors)]
    for place, one in enumerate(found):
        if one.shape != found[0].shape:
            need = f"must have the shape of the first, {tuple(found[0].shape)}"
            raise InvalidRequest(f"{need}, but has {tuple(one.shape)}", f"/factors/{place}")
    dtype = functools.reduce(torch.promote_types, (one.dtype for one in found))
    return torch.stack([one.to(dtype) for one in found])


def _repaired(mu: Tensor, rank: int | None, noise: float | None, form: Form) -> list[RepairedState]:
    made = repair_matrices(mu, rank, noise)
    syndromes, found = made.syndromes, made.syndromes.found.tolist()
    # a repair for the sake of the rank changes what has no defect
    changed = (made.moved_frobenius > 0).tolist()
    return [
        RepairedState(
            d=mu.shape[-1],
            syndromes=Syndromes(
                trace=float(syndromes.trace[index]),
                hermiticity=float(syndromes.hermiticity[index]),
                negativity=float(syndromes.negativity[index]),
                tolerance=float(syndromes.tolerance[index]),
                found=tuple(name for name, is_there in zip(DEFECTS, found[index], strict=True) if is_there),
            ),
            changed=bool(changed[index]),
            moved=float(made.moved[index]),
            moved_frobenius=float(made.moved_frobenius[index]),
            bound=made.bound,
            density=array_out(made.rho[index], form),
        )
        for index in range(len(mu))
    ]


def _matched(given: Tensor, reference: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Both as batches of one d, one dtype and one length."""
    reference = reference if reference.ndim > ndim else reference[None]
    if reference.shape[-1] != given.shape[-1]:
        raise InvalidRequest(f"must have d = {given.shape[-1]}, but has {reference.shape[-1]}", "/reference")
    if len(reference) not in (1, len(given)):
        raise InvalidRequest(f"must be one, or {len(given)} like the others, but is {len(reference)}", "/reference")
    dtype = torch.promote_types(given.dtype, reference.dtype)
    return given.to(dtype), reference.to(dtype).expand(len(given), *reference.shape[1:])


def _aligned(given: Tensor, turned: Tensor, reference: Tensor, out: Tensor, form: Form) -> Aligned:
    """Distances and fidelities of factors (n, r, d); `out` is what is returned of each."""
    before, after = _distance(given, reference), _distance(turned, reference)
    sizes = [torch.linalg.matrix_norm(x) for x in (given, reference)]
    for size, field in zip(sizes, ("/vectors" if out.ndim == 2 else "/factors", "/reference"), strict=True):
        if not bool((size > 0).all()):
            raise InvalidRequest("must not be zero: a zero vector is no state", field)
    units = [x / size[:, None, None] for x, size in zip((given, reference), sizes, strict=True)]
    fidelity = fidelity_factor(units[0], units[1].contiguous())
    return Aligned(
        results=tuple(
            Alignment(
                before=float(before[index]),
                after=float(after[index]),
                fidelity=min(1.0, float(fidelity[index])),
                aligned=array_out(out[index], form),
            )
            for index in range(len(given))
        )
    )


def _distance(a: Tensor, b: Tensor) -> Tensor:
    rows = max(a.shape[-2], b.shape[-2])
    a, b = (torch.nn.functional.pad(x, (0, 0, 0, rows - x.shape[-2])) for x in (a, b))
    distance: Tensor = torch.linalg.matrix_norm(a - b)
    return distance
