"""What a caller may hand to `write`, turned into wire items that carry an id."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import Any

import msgspec

from qraf.errors import InvalidRequest
from qraf.frames import WireItem

__all__ = ["Items", "Writable", "each", "new_id", "to_wire", "wire_bytes"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

Writable = str | WireItem | Mapping[str, Any]
Items = Writable | Iterable[Writable] | AsyncIterable[Writable]


def new_id(prefix: str) -> str:
    """A new id: the prefix and a ULID (48 bits of milliseconds, 80 random bits, in Crockford's base 32).

    >>> len(new_id("it"))
    29
    """
    number = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    return prefix + "_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def to_wire(item: Writable, index: int = 0) -> WireItem:
    """The item as it goes over the wire; one without an id gets a new one, so that a repeated write changes nothing.

    Raises:
        InvalidRequest: no text, mapping or `WireItem`; or a mapping with an unknown or mistyped field.
    """
    if isinstance(item, str):
        return WireItem(item_id=new_id("it"), text=item)
    if isinstance(item, WireItem):
        wire = item
    elif isinstance(item, Mapping):
        try:
            wire = msgspec.convert(dict(item), WireItem)
        except msgspec.ValidationError as error:
            raise InvalidRequest(str(error), f"/items/{index}") from None
    else:
        raise InvalidRequest(
            f"an item must be a text, a mapping or a WireItem, but is a {type(item).__name__}", f"/items/{index}"
        )
    return wire if wire.item_id else msgspec.structs.replace(wire, item_id=new_id("it"))


def wire_bytes(item: WireItem) -> int:
    """An upper bound of the item's bytes in a msgpack frame, exact enough to cut frames by."""
    return len(msgspec.msgpack.encode(item)) + 8


async def each(items: Items) -> AsyncIterator[Writable]:
    """Yield the items one by one, whatever holds them."""
    if isinstance(items, str | WireItem | Mapping):
        yield items
    elif isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    elif isinstance(items, Iterable):
        for item in items:
            yield item
    else:
        raise InvalidRequest(
            f"items must be a text, an item, or an iterable of them, but is a {type(items).__name__}", "/items"
        )
