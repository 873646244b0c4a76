"""What the records of orders and answers have in common: the bases that `state_orders` and its neighbours build on."""

from __future__ import annotations

import msgspec

__all__ = ["AnswerPart", "OrderPart", "TaggedAnswer"]


class OrderPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of what is asked: a field that it does not have is a fault."""


class AnswerPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of what is answered."""


class TaggedAnswer(AnswerPart, frozen=True, kw_only=True, tag_field="kind"):
    """A whole answer, told apart by `kind`."""
