"""What a service does with the orders that wait for it: all at once, each with its own answer or its own fault."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # not in its `__all__`

from qraf.code_orders import BuildCode, DecodeShots, SampleCode
from qraf.errors import InvalidRequest, QrafError
from qraf.operations import correct, decode, optimize, quantize
from qraf.service_orders import (
    Align,
    Dequantize,
    Nearest,
    Quantize,
    Recompress,
    Repair,
    ServiceAnswer,
    ServiceOrder,
    Truncate,
)

__all__ = ["work"]

log = logging.getLogger(__name__)

_SINGLE: dict[type, Callable[[Any], ServiceAnswer]] = {
    Quantize: quantize.quantize,
    Dequantize: quantize.dequantize,
    Truncate: optimize.truncated,
    Recompress: optimize.recompress,
    Align: correct.align,
    BuildCode: decode.build,
    SampleCode: decode.sample,
    DecodeShots: decode.decode,
}
_TOGETHER: dict[type, Callable[[Sequence[Any]], Sequence[ServiceAnswer | QrafError]]] = {
    Nearest: optimize.nearest,
    Repair: correct.repair,
}


def work(orders: Sequence[ServiceOrder]) -> list[ServiceAnswer | QrafError]:
    """Answer orders, in order; a fault of one is its answer and spoils no other. Raises nothing.

    A bug is logged here and answered as an internal error: the process that works must not be taken for dead.
    """
    answers: dict[int, ServiceAnswer | QrafError] = {}
    for kind, together in _TOGETHER.items():
        places = [place for place, order in enumerate(orders) if isinstance(order, kind)]
        if len(places) > 1:
            with contextlib.suppress(Exception):  # one by one, to find whose fault it is
                answers |= zip(places, together([orders[place] for place in places]), strict=True)
    for place, order in enumerate(orders):
        if place not in answers:
            answers[place] = _answer(order)
    return [answers[place] for place in range(len(orders))]


def _answer(order: ServiceOrder) -> ServiceAnswer | QrafError:
    try:
        together = _TOGETHER.get(type(order))
        return _SINGLE[type(order)](order) if together is None else together([order])[0]
    except QrafError as fault:
        return fault
    except LinAlgError as error:
        return InvalidRequest(f"holds a matrix whose decomposition did not converge: {error}", "/matrices")
    except Exception:
        log.exception("an order (%s) failed", type(order).__name__)
        return QrafError("an internal error; it was logged")
