"""What is asked of the stateless services and what they answer: bodies of REST, the client's records. No torch.

Conventions as in `state_orders`. A fidelity F is the squared one; an infidelity is 1 - F; `moved` is a trace distance.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qraf.base_orders import AnswerPart, OrderPart, TaggedAnswer
from qraf.code_orders import CodeAnswer, CodeOrder
from qraf.frames import ErrorBody
from qraf.state_orders import ArrayData, Compared, Measured, Numbers, Operand, StateViews

__all__ = [
    "CODES",
    "Align",
    "Aligned",
    "Alignment",
    "Code",
    "Coding",
    "Correct",
    "Corrected",
    "Dequantize",
    "Dequantized",
    "Form",
    "Matrices",
    "Nearest",
    "NearestState",
    "NearestStates",
    "OperationResult",
    "OperationStatus",
    "OperationView",
    "Optimize",
    "Optimized",
    "Quantize",
    "Quantized",
    "Recompress",
    "Recompressed",
    "Recompression",
    "Repair",
    "Repaired",
    "RepairedState",
    "ServiceAnswer",
    "ServiceOrder",
    "SnapshotsMade",
    "Syndromes",
    "Truncate",
    "Truncated",
    "TruncatedState",
]

Code = Literal["float32", "int8", "int4", "nf4", "lloyd2", "sign1"]
Form = Literal["lists", "bytes", "none"]

CODES: tuple[Code, ...] = ("float32", "int8", "int4", "nf4", "lloyd2", "sign1")

_Bytes = bytes  # where a field has that name

Matrices = ArrayData | tuple[Numbers, ...]
"""One matrix (d, d), several (n, d, d), or a list of such arrays, also of different d."""


# ------------------------------------------------------------------------------------------------------------ quantize
class Quantize(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="quantize"):
    """Code amplitudes: `rows` (n, d) or (d,), real or complex, each a pure state, or the factors of `states`.

    `code`: int8, int4, nf4, lloyd2 (2 bits), sign1 (1 bit) or float32; without one, a table of all. `rotate`: turn the
    rows by a fixed Hadamard matrix first; left out, lloyd2 and sign1 do, the others do not. `group`: amplitudes that
    share a scale, for int8, int4 and nf4. `return`: the codes too. Rows are coded at unit norm, states at trace 1.
    """

    rows: Numbers | None = None
    states: tuple[Operand, ...] | None = None
    code: Code | None = None
    rotate: bool | None = None
    group: int = 64
    returned: bool = msgspec.field(name="return", default=False)


class Dequantize(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="dequantize"):
    """The amplitudes of coded rows: `codes` (base64 in JSON) as `Quantize` returned them, with their layout.

    `d` is that of the coded rows, which for complex amplitudes is twice the dimension: real parts, then imaginary.
    """

    codes: bytes
    d: int
    code: Code
    rotate: bool | None = None
    group: int = 64
    form: Form = "lists"


class Coding(AnswerPart, frozen=True, kw_only=True):
    """What one code makes of the rows. `ratio`: bytes of float32 amplitudes / bytes of the codes.

    Infidelity and trace distance are measured, for each row or, for states, for each state. The bounds on the
    infidelity are guaranteed: they are read from the codes alone. `codes` only where asked for.
    """

    code: Code
    rotate: bool
    group: int
    bytes_per_row: int
    bytes: int
    ratio: float
    infidelity_mean: float
    infidelity_max: float
    trace_distance_mean: float
    trace_distance_max: float
    bound_mean: float
    bound_max: float
    codes: _Bytes | None = None


class Quantized(TaggedAnswer, frozen=True, kw_only=True, tag="quantized"):
    """`n` rows of `d` real amplitudes, coded in each way. A complex row is one of twice the length: real, imaginary.

    `rows_of` is how many of the rows belong to each state, where states were given.
    """

    n: int
    d: int
    codings: tuple[Coding, ...]
    rows_of: tuple[int, ...] | None = None


class Dequantized(TaggedAnswer, frozen=True, kw_only=True, tag="dequantized"):
    """The decoded rows, (n, d) float32, nearly but not exactly of unit norm."""

    n: int
    d: int
    rows: ArrayData | None


# ------------------------------------------------------------------------------------------------------------ optimize
class Nearest(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="nearest"):
    """The states nearest to matrices in the Frobenius norm (Smolin, Gambetta, Smith 2012).

    They have trace 1, and any rank, or at most `rank`. `form`: the density matrices as lists, as bytes, or not at all.
    """

    matrices: Matrices | None = None
    states: tuple[Operand, ...] | None = None
    rank: int | None = None
    form: Form = "lists"


class Truncate(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="truncate"):
    """States of fewer directions: `rank` of them, or the fewest that lose at most `loss` of the trace.

    `matrices` must be states (Hermitian, trace 1, no negative eigenvalue). `form`: the factors L, rho = L^H L.
    """

    matrices: Matrices | None = None
    states: tuple[Operand, ...] | None = None
    rank: int | None = None
    loss: float | None = None
    form: Form = "lists"


class Recompress(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="recompress"):
    """What the sketch of a memory would be with at most `rank` directions; the memory itself stays as it is.

    Exactly one of `session`, `collection` and `sketches` (packets, base64 in JSON). `form: bytes` returns the packets.

    `apply`: give the memory of `session` this rank, smaller or larger, until it is changed again; its sketch is made
    anew from the items, and the answer compares it with the one of before. `after`: packets of the same streams as
    `sketches`, which are compared instead of being made.
    """

    rank: int
    session: str | None = None
    collection: str | None = None
    sketches: tuple[bytes, ...] | None = None
    after: tuple[bytes, ...] | None = None
    apply: bool = False
    form: Literal["bytes", "none"] = "none"


class NearestState(AnswerPart, frozen=True, kw_only=True):
    """One matrix and the state nearest to it.

    `before`: the eigenvalues of the matrix's Hermitian part, falling; `after`: those of the state that are not 0.
    `negativity`: how much of the trace was negative. `moved`: half the trace norm of the difference from the Hermitian
    part; `moved_frobenius`: from the matrix as it came. `bytes_after`: of a factor, which is all that it takes.
    """

    d: int
    rank: int
    trace: float
    negativity: float
    before: tuple[float, ...]
    after: tuple[float, ...]
    moved: float
    moved_frobenius: float
    bytes_before: int
    bytes_after: int
    density: ArrayData | None = None


class NearestStates(TaggedAnswer, frozen=True, kw_only=True, tag="nearest"):
    """In the order of the matrices."""

    results: tuple[NearestState, ...]


class TruncatedState(AnswerPart, frozen=True, kw_only=True):
    """One truncated state. `moved`, the trace distance, is the trace that was cut off; the fidelity is 1 - moved."""

    d: int
    rank_before: int
    rank: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    moved: float
    fidelity: float
    bytes_before: int
    bytes_after: int
    factor: ArrayData | None = None


class Truncated(TaggedAnswer, frozen=True, kw_only=True, tag="truncated"):
    """In the order of the states."""

    results: tuple[TruncatedState, ...]


class Recompression(AnswerPart, frozen=True, kw_only=True):
    """One sketch before and after. `moved` is the trace distance between the two; `applied`: the memory has it now.

    `loss_before` and `loss_after` bound the trace distance from the stream's true state. `node` holds the memory.
    """

    node: str = ""
    rows: int
    rank_before: int
    rank: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    moved: float
    loss_before: float
    loss_after: float
    bytes_before: int
    bytes_after: int
    packet: bytes | None = None
    applied: bool = False


class Recompressed(TaggedAnswer, frozen=True, kw_only=True, tag="recompressed"):
    """One entry for each node that holds a part of the memory, or for each packet."""

    results: tuple[Recompression, ...]


# ------------------------------------------------------------------------------------------------------------- correct
class Repair(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="repair"):
    """Find what keeps matrices from being states (trace, hermiticity, negativity) and give the nearest states.

    `rank`: of the true state, where it is known. `noise`: a bound on the operator norm of what was added to the true
    state; then the answer bounds the distance from it. `form`: the repaired density matrices.
    """

    matrices: Matrices | None = None
    states: tuple[Operand, ...] | None = None
    rank: int | None = None
    noise: float | None = None
    form: Form = "lists"


class Align(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="align"):
    """Turn what is free in a state's description towards a reference; the states stay.

    `vectors` (d,) or (n, d): the global phase, towards `reference` (d,) or (n, d). `factors` (r, d) or (n, r, d): the
    unitary among the rows (Procrustes), towards `reference` (s, d) or (n, s, d).
    """

    vectors: Numbers | None = None
    factors: Matrices | None = None
    reference: Numbers
    form: Form = "lists"


class Syndromes(AnswerPart, frozen=True, kw_only=True):
    """The three defects: |tr mu - 1|, |mu - mu^H|_F / 2, the sum of negative eigenvalues.

    Below `tolerance` is rounding; `found` names those that are above it.
    """

    trace: float
    hermiticity: float
    negativity: float
    tolerance: float
    found: tuple[str, ...]


class RepairedState(AnswerPart, frozen=True, kw_only=True):
    """One repaired matrix. `moved` and `moved_frobenius` as of `NearestState`.

    `bound`: the trace distance from the true state is at most this; only where `noise` was given.
    """

    d: int
    syndromes: Syndromes
    changed: bool
    moved: float
    moved_frobenius: float
    bound: float | None = None
    density: ArrayData | None = None


class Repaired(TaggedAnswer, frozen=True, kw_only=True, tag="repaired"):
    """In the order of the matrices."""

    results: tuple[RepairedState, ...]


class Alignment(AnswerPart, frozen=True, kw_only=True):
    """One aligned vector or factor. `before` and `after` are its Frobenius distances from the reference.

    `fidelity` with the reference, squared, which turning does not change; both are taken at unit norm.
    """

    before: float
    after: float
    fidelity: float
    aligned: ArrayData | None = None


class Aligned(TaggedAnswer, frozen=True, kw_only=True, tag="aligned"):
    """In the order of the vectors or factors."""

    results: tuple[Alignment, ...]


Optimize = Nearest | Truncate | Recompress
Optimized = NearestStates | Truncated | Recompressed
Correct = Repair | Align | CodeOrder
Corrected = Repaired | Aligned | CodeAnswer
ServiceOrder = Quantize | Dequantize | Optimize | Correct
ServiceAnswer = Quantized | Dequantized | Optimized | Corrected


# ---------------------------------------------------------------------------------------------------------- operations
OperationStatus = Literal["queued", "running", "completed", "failed", "cancelled"]


class SnapshotsMade(TaggedAnswer, frozen=True, kw_only=True, tag="snapshots"):
    """What became of an order to make snapshots: of how many memories.

    `made`: there is a new one. `unchanged`: the newest one holds all that there is. `failed`: none could be made;
    `reason` says why of one of them, and the log of each.
    """

    made: int = 0
    unchanged: int = 0
    failed: int = 0
    reason: str = ""


OperationResult = ServiceAnswer | StateViews | Measured | Compared | SnapshotsMade
"""What an operation may end in: the answer to an order of a service, to one on stored states, or to make snapshots."""


class OperationView(AnswerPart, frozen=True, kw_only=True):
    """A long job. `progress` is the share of the work that is done, 0 to 1; times are RFC 3339.

    `result` is there once it is completed, in the answer that names this operation, until `expires_at`; `error` says
    why it failed. `age_s`: since it was ordered.
    """

    id: str
    op: str
    status: OperationStatus
    progress: float
    created_at: str
    age_s: float
    ended_at: str | None = None
    expires_at: str | None = None
    result: OperationResult | None = None
    error: ErrorBody | None = None
