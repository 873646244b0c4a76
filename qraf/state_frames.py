"""The frames of stored states: one command, one answer; what is asked and answered is in `state_orders`."""

from __future__ import annotations

import msgspec

from qraf.state_orders import StateAnswer, StateOrder

__all__ = ["StateCommand", "StateDone"]


class StateCommand(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="state",
    omit_defaults=True,
):
    """Prepare, measure, change, compare, export or delete states; `order.op` says which."""

    id: str
    order: StateOrder


class StateDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="state.done"):
    """The order was carried out: all of it, and what it made is durable. `answer.kind` says what it holds."""

    id: str
    answer: StateAnswer
