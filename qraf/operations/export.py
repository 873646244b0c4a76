"""States to carry away and to bring back: exact packets, NumPy archives, and JSON that any program reads."""

from __future__ import annotations

from typing import Any

import msgspec

from qraf.errors import InvalidRequest
from qraf.operations.arrays import numbers_of
from qraf.operations.batches import LISTED_MAX
from qraf.operations.state import Made
from qraf.state_orders import Format
from qraf.states.portable import from_npz, from_packet, to_npz, to_packet
from qraf.states.state import RHO_MAX, State

__all__ = ["export", "imported"]


def export(made: Made, form: Format) -> tuple[str, bytes]:
    """Media type and bytes of a state.

    json: `dims`, `factor` and, for d up to 1024, `rho`, each as `{"real": .., "imag": ..}`.

    Raises:
        InvalidRequest: json of a factor of more than `LISTED_MAX` numbers.
    """
    if form == "msgpack":
        return "application/vnd.qraf.packet", to_packet(made.state)
    if form == "npz":
        return "application/x-npz", to_npz(made.state)
    if (numbers := made.state.factor.numel()) > LISTED_MAX:
        detail = f"json holds at most {LISTED_MAX:,} numbers, but the factor has {numbers:,}; take msgpack or npz"
        raise InvalidRequest(detail, "/format")
    document: dict[str, Any] = {"dims": made.state.dims, "factor": numbers_of(made.state.factor)}
    if made.state.d <= RHO_MAX:
        document["rho"] = numbers_of(made.state.rho())
    return "application/json", msgspec.json.encode(document)


def imported(data: bytes) -> State:
    """The state of a packet or of an .npz file.

    Raises:
        InvalidState: neither, or damaged.
    """
    return from_npz(data) if data[:2] == b"PK" else from_packet(data)
