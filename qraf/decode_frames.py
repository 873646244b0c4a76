"""The frames of decoding while rounds come in: open a decoder, push rounds of detectors, get what is decided."""

from __future__ import annotations

from typing import Literal

import msgspec

from qraf.code_orders import CodeExperiment

__all__ = ["DecodeClose", "DecodeCommitted", "DecodeDone", "DecodeOpen", "DecodeOpened", "DecodeRounds"]


class _In(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", omit_defaults=True):
    pass


class _Out(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    pass


class _Stamped(_Out, frozen=True, kw_only=True):
    stream: str
    seq: int


class DecodeOpen(_In, tag="decode.open", frozen=True, kw_only=True):
    """Open a decoder for `shots` shots side by side: of an `experiment`, or of a `dem` whose detectors have times.

    `window` rounds of detectors are matched together, the first `commit` of them believed; left out: 2 d and d, and for
    a `dem` 20 and 10. `count`: count the corrections too, which takes about twice the time.
    """

    id: str
    experiment: CodeExperiment | None = None
    dem: str | None = None
    shots: int = 1
    window: int | None = None
    commit: int | None = None
    count: bool = False


class DecodeRounds(_In, tag="decode.rounds", frozen=True, kw_only=True):
    """The next `rounds` rounds of detectors of every shot, as b8 (base64 in JSON).

    `start`: how many rounds came before; where it is given and wrong, nothing is taken. Give it when sending ahead.
    """

    id: str
    stream: str
    detectors: bytes
    rounds: int = 1
    start: int | None = None


class DecodeClose(_In, tag="decode.close", frozen=True, kw_only=True):
    """Give a decoder up before its last round. Harmless when late."""

    id: str
    stream: str


class DecodeOpened(_Out, tag="decode.opened", frozen=True, kw_only=True):
    """The decoder is ready. `rounds`: of detectors in a whole shot, one more than rounds of measurement.

    `detectors`: how many each of these rounds has. `max_bytes`: of rounds sent and not yet answered.
    """

    id: str
    stream: str
    rounds: int
    detectors: tuple[int, ...]
    num_observables: int
    shots: int
    window: int
    commit: int
    max_bytes: int


class DecodeCommitted(_Stamped, tag="decode.committed", frozen=True, kw_only=True):
    """The answer to `decode.rounds`. `received` rounds came, `committed` are decided for good.

    `observables`: flips found in those as b8, a row for each shot.
    """

    id: str
    received: int
    committed: int
    observables: bytes


class DecodeDone(_Stamped, tag="decode.done", frozen=True, kw_only=True):
    """The end, exactly one for each decoder: after the last round, after `decode.close`, or after a failure.

    `observables`: predicted flips as b8, whole only when `completed`. `events`: detection events on which an observable
    depends. `corrections`: edges of the committed matchings over all shots, where counted. `ms`: spent decoding.
    """

    status: Literal["completed", "cancelled", "failed"]
    observables: bytes
    rounds: int
    committed: int
    events: int
    corrections: int | None = None
    ms: float = 0.0
    ms_per_round: float = 0.0
