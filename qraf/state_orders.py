"""What is asked of states and what is answered: bodies of REST, orders in frames, the client's records. No torch.

Conventions: rho (d, d), amplitudes (d,), the first subsystem varies slowest, squared fidelity, entropies in bits,
`factor` L (r, d) with rho = L^H L. A state that is stored has an id and a version, which rises by one with each change.
"""

from __future__ import annotations

from typing import Literal

from qraf.base_orders import AnswerPart, OrderPart, TaggedAnswer

__all__ = [
    "MEASURES",
    "ArrayData",
    "Certificate",
    "Channel",
    "Compared",
    "Comparison",
    "DType",
    "Deleted",
    "Ensemble",
    "Exported",
    "Format",
    "Into",
    "Measure",
    "Measured",
    "Measurement",
    "Numbers",
    "Operand",
    "Preparation",
    "Reals",
    "StateAnswer",
    "StateCompare",
    "StateCompareBody",
    "StateDelete",
    "StateEvolve",
    "StateEvolveBody",
    "StateExport",
    "StateFigures",
    "StateFork",
    "StateForkBody",
    "StateMeasure",
    "StateMeasureBody",
    "StateMerge",
    "StateMergeBody",
    "StateOrder",
    "StatePage",
    "StatePartialTrace",
    "StatePartialTraceBody",
    "StatePrepare",
    "StatePrepareBody",
    "StateRead",
    "StateTensor",
    "StateTensorBody",
    "StateView",
    "StateViews",
    "Step",
]

DType = Literal["float32", "float64", "complex64", "complex128"]
Format = Literal["msgpack", "npz", "json"]
Into = Literal["same", "new"]
Measure = Literal["fidelity", "trace_distance", "bures"]
Channel = Literal["depolarizing", "dephasing", "amplitude_damping", "phase_damping", "thermal_relaxation", "pauli"]

MEASURES: tuple[Measure, ...] = ("fidelity", "trace_distance", "bures")

Reals = list[float | list[float | list[float | list[float]]]]
"""Real numbers in up to four nested lists, the first axis outermost."""


# ------------------------------------------------------------------------------------------------------------- numbers
class ArrayData(OrderPart, frozen=True, kw_only=True):
    """An array that is not a plain list: `real` and `imag` lists of one shape, or `data` with `shape` and `dtype`.

    `data` are the numbers' bytes, little endian, first axis slowest; base64 in JSON.
    """

    real: Reals | None = None
    imag: Reals | None = None
    data: bytes | None = None
    shape: tuple[int, ...] | None = None
    dtype: DType | None = None


Numbers = ArrayData | Reals
"""An array on the wire: nested lists of real numbers, or `ArrayData`."""


# -------------------------------------------------------------------------------------------------------- preparation
class Ensemble(OrderPart, frozen=True, kw_only=True):
    """sum_i p_i |psi_i><psi_i|: `kets` (n, d); equal `probabilities` when left out."""

    kets: Numbers
    probabilities: tuple[float, ...] | None = None


class Preparation(OrderPart, frozen=True, kw_only=True):
    """How a state is made: exactly one of the first ten fields.

    `amplitudes` (d,); `density` (d, d); `factor` L (r, d) with rho = L^H L; `ensemble`; `text` (the encoder's
    amplitudes); `counts` of measurements: Pauli setting -> outcome -> how often, such as `{"XX": {"00": 490, ...}}`
    (linear inversion, then the nearest physical state); `circuit` (OpenQASM 3 source, first qubit slowest); `named`
    (`bell`, `ghz:3`, ...); `packet` (an export as msgpack or .npz, base64 in JSON); `state` (id of a stored one).

    `dims`: subsystem sizes, product d. `normalize` scales a norm or trace that is not 1; without it that is refused.
    `id` (`st_...`) names the stored state; the same preparation again under one id changes nothing.
    """

    amplitudes: Numbers | None = None
    density: Numbers | None = None
    factor: Numbers | None = None
    ensemble: Ensemble | None = None
    text: str | None = None
    counts: dict[str, dict[str, int]] | None = None
    circuit: str | None = None
    named: str | None = None
    packet: bytes | None = None
    state: str | None = None
    dims: tuple[int, ...] | None = None
    normalize: bool = False
    label: str = ""
    id: str | None = None


Operand = str | Preparation
"""A state by its id, or made for this one call."""


# ------------------------------------------------------------------------------------- what is asked: bodies and orders
class StatePrepareBody(Preparation, frozen=True, kw_only=True):
    """Make one state (the fields of a preparation), or many at once (`states`): all or none."""

    states: tuple[Preparation, ...] | None = None


class StateMeasureBody(OrderPart, frozen=True, kw_only=True):
    """What to measure: `vectors`, a `basis`, an `observable` or `paulis`. The state stays as it is.

    `vectors` (k, d): Born probabilities <x|rho|x> of unit vectors. `basis`: `computational`, a letter X, Y or Z for
    every measured qubit (`XZ`), or a unitary whose rows are the vectors. `observable`: a Hermitian (d, d) matrix, or
    `paulis`: Pauli strings with coefficients (`{"ZZ": 1.0, "XI": 0.5}`); mean and variance. `subsystems` are measured,
    in this order, the others traced out. With `shots` outcomes of a basis are drawn, the same for the same `seed`.
    """

    vectors: Numbers | None = None
    basis: str | Numbers | None = None
    observable: Numbers | None = None
    paulis: dict[str, float] | None = None
    subsystems: tuple[int, ...] | None = None
    shots: int | None = None
    seed: int | None = None


class Step(OrderPart, frozen=True, kw_only=True):
    """One step of an evolution: exactly one of `channel`, `unitary` (k, k), `kraus` (n, k, k), `circuit` (OpenQASM 3).

    `subsystems` (left out: all) are acted on together, as one system in this order; but `channel` acts on each of them
    for itself unless `together`. `depolarizing` and `dephasing` need `p`, `amplitude_damping` needs `gamma`,
    `phase_damping` needs `lam`, `thermal_relaxation` needs `t_s`, `t1_s`, `t2_s`, and `pauli` needs `probabilities` of
    Pauli strings (`{"X": 0.01, "Z": 0.02}`; the identity has the rest), of more than one letter with `together`.
    """

    channel: Channel | None = None
    unitary: Numbers | None = None
    kraus: Numbers | None = None
    circuit: str | None = None
    subsystems: tuple[int, ...] | None = None
    together: bool = False
    p: float | None = None
    gamma: float | None = None
    lam: float | None = None
    t_s: float | None = None
    t1_s: float | None = None
    t2_s: float | None = None
    probabilities: dict[str, float] | None = None


class StateEvolveBody(OrderPart, frozen=True, kw_only=True):
    """Steps, one after the other. `into: same` changes the state to its next version, `new` leaves it and makes one.

    `loss`: after each step, and each subsystem of a channel, the smallest eigenvalues of at most this sum are cut off,
    and the certificate says so.
    """

    steps: tuple[Step, ...]
    into: Into = "same"
    loss: float = 0.0


class StateMergeBody(OrderPart, frozen=True, kw_only=True):
    """Mix with `others`: sum_i w_i rho_i; `weights` has the state's own first, then theirs; equal when left out."""

    others: tuple[Operand, ...]
    weights: tuple[float, ...] | None = None
    into: Into = "same"
    loss: float = 0.0


class StateTensorBody(OrderPart, frozen=True, kw_only=True):
    """The product with `others`, in order; this state's subsystems vary slowest."""

    others: tuple[Operand, ...]
    into: Into = "new"


class StatePartialTraceBody(OrderPart, frozen=True, kw_only=True):
    """Keep these subsystems, in their order in `dims`, and trace out the others."""

    keep: tuple[int, ...]
    into: Into = "new"


class StateForkBody(OrderPart, frozen=True, kw_only=True):
    """Copy the state as it is now, `copies` times; each copy has an id of its own and version 1."""

    copies: int = 1
    label: str = ""


class StateCompareBody(OrderPart, frozen=True, kw_only=True):
    """Pairs of states and what is measured between the two."""

    pairs: tuple[tuple[Operand, Operand], ...]
    measures: tuple[Measure, ...] = MEASURES


class StatePrepare(StatePrepareBody, frozen=True, kw_only=True, tag_field="op", tag="prepare"):
    """`StatePrepareBody` as an order."""


class StateRead(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="read"):
    """The views of these states."""

    ids: tuple[str, ...]


class StateMeasure(StateMeasureBody, frozen=True, kw_only=True, tag_field="op", tag="measure"):
    """Measure each of these states."""

    ids: tuple[str, ...]


class StateEvolve(StateEvolveBody, frozen=True, kw_only=True, tag_field="op", tag="evolve"):
    """Evolve each of these states: all or none. `versions`: change them only if these are their versions now."""

    ids: tuple[str, ...]
    versions: tuple[int, ...] | None = None


class StateMerge(StateMergeBody, frozen=True, kw_only=True, tag_field="op", tag="merge"):
    """Mix other states into each of these."""

    ids: tuple[str, ...]
    versions: tuple[int, ...] | None = None


class StateTensor(StateTensorBody, frozen=True, kw_only=True, tag_field="op", tag="tensor"):
    """The product of each of these states with others."""

    ids: tuple[str, ...]
    versions: tuple[int, ...] | None = None


class StatePartialTrace(StatePartialTraceBody, frozen=True, kw_only=True, tag_field="op", tag="partial_trace"):
    """Reduce each of these states."""

    ids: tuple[str, ...]
    versions: tuple[int, ...] | None = None


class StateFork(StateForkBody, frozen=True, kw_only=True, tag_field="op", tag="fork"):
    """Copy each of these states."""

    ids: tuple[str, ...]


class StateCompare(StateCompareBody, frozen=True, kw_only=True, tag_field="op", tag="compare"):
    """`StateCompareBody` as an order."""


class StateExport(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="export"):
    """A state to carry away: `msgpack` (a packet, exact), `npz` (NumPy) or `json` (numbers and dims for QuTiP)."""

    id: str
    format: Format = "msgpack"


class StateDelete(OrderPart, frozen=True, kw_only=True, tag_field="op", tag="delete"):
    """Delete these states: all or none."""

    ids: tuple[str, ...]
    versions: tuple[int, ...] | None = None


StateOrder = (
    StatePrepare
    | StateRead
    | StateMeasure
    | StateEvolve
    | StateMerge
    | StateTensor
    | StatePartialTrace
    | StateFork
    | StateCompare
    | StateExport
    | StateDelete
)
"""Everything that can be asked of states, told apart by `op`."""


# -------------------------------------------------------------------------------------------------- what is answered
class StateFigures(AnswerPart, frozen=True, kw_only=True):
    """What a state measures. `l1_coherence` is null above d = 1024; `coherence_bits` is in the computational basis."""

    purity: float
    entropy_bits: float
    effective_rank: float
    coherence_bits: float
    l1_coherence: float | None = None


class Certificate(AnswerPart, frozen=True, kw_only=True):
    """How far the stored state, and so its figures, can be from the exact result of all that was done to it.

    `trace_distance` bounds the distance: what recompression cut off on the way, plus rounding. Measured probabilities
    are right to that; `fidelity` is at least this much (1 - T, squared); the intervals follow from Fannes and Audenaert
    (entropy) and |Tr rho^2 - Tr sigma^2| <= 2 T (purity).
    """

    trace_distance: float
    fidelity: float
    entropy_bits: tuple[float, float]
    purity: tuple[float, float]


class StateView(AnswerPart, frozen=True, kw_only=True):
    """A stored state without its numbers. `bytes` are those of its packet; times are RFC 3339.

    `moved` is the trace distance from what was given to what is held where a preparation had to move it (counts to the
    nearest physical state, a norm that was scaled); 0 otherwise. `bits` are the probabilities of the classical bits of
    the circuit that made this version, first bit first, registers apart by a space; null where it has none.
    """

    id: str
    version: int
    dims: tuple[int, ...]
    d: int
    rank: int
    bytes: int
    figures: StateFigures
    certificate: Certificate
    moved: float = 0.0
    label: str = ""
    bits: dict[str, float] | None = None
    created_at: str = ""
    updated_at: str = ""


class StateViews(TaggedAnswer, frozen=True, kw_only=True, tag="states"):
    """States, in the order that they were asked for."""

    states: tuple[StateView, ...]


class StatePage(AnswerPart, frozen=True, kw_only=True):
    """A page of states; `next_cursor` leads to the next page, null on the last."""

    data: tuple[StateView, ...]
    next_cursor: str | None


class Measurement(AnswerPart, frozen=True, kw_only=True):
    """What was measured of one state. Each probability is right to `error` (the state's certificate).

    `outcomes` names the probabilities of a basis (`01`: the first measured subsystem gave 0), `counts` how often each
    was drawn. `mean` and `variance` are an observable's.
    """

    id: str
    version: int
    error: float
    probabilities: tuple[float, ...] | None = None
    outcomes: tuple[str, ...] | None = None
    counts: dict[str, int] | None = None
    shots: int | None = None
    seed: int | None = None
    mean: float | None = None
    variance: float | None = None


class Measured(TaggedAnswer, frozen=True, kw_only=True, tag="measured"):
    """Measurements, in the order of the states."""

    results: tuple[Measurement, ...]


class Comparison(AnswerPart, frozen=True, kw_only=True):
    """Two states: squared fidelity, |rho - sigma|_1 / 2, Bures distance sqrt(2 - 2 sqrt F). Null: not asked for.

    `infidelity` is 1 - F with all its digits. `error` bounds how far the trace distance is from that of the exact
    states.
    """

    fidelity: float | None = None
    infidelity: float | None = None
    trace_distance: float | None = None
    bures: float | None = None
    error: float = 0.0


class Compared(TaggedAnswer, frozen=True, kw_only=True, tag="compared"):
    """Comparisons, in the order of the pairs."""

    results: tuple[Comparison, ...]


class Exported(TaggedAnswer, frozen=True, kw_only=True, tag="exported"):
    """A state as a file."""

    id: str
    version: int
    format: Format
    media_type: str
    data: bytes


class Deleted(TaggedAnswer, frozen=True, kw_only=True, tag="deleted"):
    """What was deleted."""

    ids: tuple[str, ...]


StateAnswer = StateViews | Measured | Compared | Exported | Deleted
"""The answer to an order, told apart by `kind`."""
