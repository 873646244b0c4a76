"""The states that a host keeps at hand. The journal is the truth: every call looks at the version there first.

So any host can serve any state, and a change is written against the version that it was made from; a process that was
believed dead changes nothing that its successor has changed. A change without a version is made again on the newer
one when another process was faster.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray
from ulid import ULID

from qraf.errors import InvalidRequest, LimitExceeded, NotFound, QrafError, VersionConflict
from qraf.operations.budget import Budget
from qraf.operations.compose import merge, partial_trace, tensor
from qraf.operations.evolve import evolve
from qraf.operations.export import export
from qraf.operations.measure import compare, measure
from qraf.operations.prepare import Wanted, prepare, wanted
from qraf.operations.state import Made, check_label, view_of
from qraf.settings import QuotaSettings, StateSettings
from qraf.state_orders import (
    Compared,
    Deleted,
    Exported,
    Measured,
    Operand,
    Preparation,
    StateAnswer,
    StateCompare,
    StateDelete,
    StateEvolve,
    StateExport,
    StateFork,
    StateMeasure,
    StateMerge,
    StateOrder,
    StatePartialTrace,
    StatePrepare,
    StateRead,
    StateTensor,
    StateView,
    StateViews,
)
from qraf.states.portable import from_packet, to_packet
from qraf.states.spectral import foreseen
from qraf.storage.fences import Fence
from qraf.storage.journal import Journal
from qraf.storage.records import StateRecord
from qraf.storage.states import shown
from qraf.tenants import inside, outside, plain, tenant_of

__all__ = ["StateRoom"]

_log = logging.getLogger(__name__)

_ID = re.compile(r"(?:[a-z0-9-]{1,32}/)?st_[A-Za-z0-9._-]{1,60}", re.ASCII)  # the tenant's, where it is another one
_LOCKS = 64
_PAUSE_S = 0.005  # at most, after the first collision
_TRIES = 16  # a change without a version, against other processes
_PACKETS, _PACKET_BYTES = 8, 64 * 1024**2  # read from the journal at once; a larger one alone
_DRAWS = 256  # ids that are tried for one that belongs to this host

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


class StateRoom:
    """Stored states behind one door. Every method may be called from any thread.

    Args:
        journal: where states are written before they are acknowledged.
        encode: texts to amplitudes (n, d).
        settings: the bounds.
        is_mine: whether calls about a state come to this host; new ids are drawn so that they do.
        quotas: the bytes that a tenant may hold.
        fence: the life of the host that writes.
    """

    def __init__(
        self,
        journal: Journal,
        encode: Encode,
        settings: StateSettings | None = None,
        is_mine: Callable[[str], bool] | None = None,
        quotas: QuotaSettings | None = None,
        *,
        fence: Fence | None = None,
    ) -> None:
        self._table, self._encode = journal.states.under(fence), encode
        self._settings, self._quotas = settings or StateSettings(), quotas
        self._is_mine = is_mine or (lambda state: True)
        self._lock = threading.Lock()  # guards _kept and _bytes
        self._kept: OrderedDict[str, tuple[int, Made]] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._changing = [threading.Lock() for _ in range(_LOCKS)]  # changes of one state queue instead of colliding

    @property
    def kept_bytes(self) -> int:
        """Bytes of the decoded states."""
        return self._bytes

    def answer(
        self, order: StateOrder, started: float | None = None, *, is_job: bool = False
    ) -> StateAnswer | QrafError:
        """Carry out an order; what hindered it is the answer, and then nothing was changed.

        `started`: when it came, in monotonic seconds; `max_call_s` later nobody waits for it, so nothing is written.
        `is_job`: it may take `max_operation_s`. It keeps no other change waiting: it is made on the version that is
        there when it begins, and refused where that has changed meanwhile.
        """
        limits = self._settings
        started = time.monotonic() if started is None else started
        try:
            what = "max_operation_s" if is_job else "max_call_s"
            budget = Budget(getattr(limits, what), limits.max_call_bytes, started, limit=f"states.{what}")
            budget.check()
            with foreseen(budget.foresee):
                return self._answer(order, budget)
        except QrafError as fault:
            return fault
        except Exception:  # a fault of ours must not take the others of a batch along
            _log.exception("order '%s' failed", type(order).__name__)
            return QrafError("an internal error; it was logged")

    def _answer(self, order: StateOrder, budget: Budget) -> StateAnswer:
        match order:
            case StatePrepare():
                return self._prepare(order, budget)
            case StateRead():
                self._check_ids(order.ids)
                return StateViews(states=tuple(map(shown, self._records(order.ids, packets=False))))
            case StateMeasure():
                loaded = self._load(self._check_ids(order.ids), budget)
                results = measure([made for _, made in loaded], order, self._settings, budget)
                named = zip(order.ids, loaded, results, strict=True)
                return Measured(
                    results=tuple(msgspec.structs.replace(one, id=id_, version=held[0]) for id_, held, one in named)
                )
            case StateEvolve():
                steps = self._settings.max_steps
                return self._change(order, lambda made: evolve(made, order, steps, budget), budget)
            case StateMerge():
                others = self._operands(order.others, "/others", budget)
                return self._change(
                    order, lambda made: [budget.take(merge(one, others, order)) for one in made], budget
                )
            case StateTensor():
                others = self._operands(order.others, "/others", budget)
                return self._change(order, lambda made: [budget.take(tensor(one, others)) for one in made], budget)
            case StatePartialTrace():
                return self._change(
                    order, lambda made: [budget.take(partial_trace(one, order)) for one in made], budget
                )
            case StateFork():
                return self._fork(order, budget)
            case StateCompare():
                return self._compare(order, budget)
            case StateExport():
                [(version, made)] = self._load([order.id], budget)
                media_type, data = export(made, order.format)
                return Exported(id=order.id, version=version, format=order.format, media_type=media_type, data=data)
            case StateDelete():
                self._check_versions(order.ids, order.versions)
                self._table.delete(self._check_ids(order.ids), order.versions)
                for state in order.ids:
                    self._let_go(state)
                return Deleted(ids=order.ids)

    # ------------------------------------------------------------------------------------------------- one by one
    def _prepare(self, order: StatePrepare, budget: Budget) -> StateViews:
        asked = wanted(order, self._settings.max_batch)
        ids = self._ids(asked)
        made = self._made(asked, budget)
        return self._store([(state, 1, one) for state, one in zip(ids, made, strict=True)], budget)

    def _fork(self, order: StateFork, budget: Budget) -> StateViews:
        loaded = self._load(self._check_ids(order.ids), budget)
        count = len(loaded) * order.copies
        if order.copies < 1 or count > self._settings.max_batch:
            most = self._settings.max_batch
            raise InvalidRequest(f"must make 1 to {most} copies in all, but makes {count}", "/copies")
        check_label(order.label, "/label")
        copies = [replace(made, label=order.label or made.label) for _, made in loaded for _ in range(order.copies)]
        owners = [state for state in order.ids for _ in range(order.copies)]
        places = zip(owners, copies, strict=True)
        return self._store([(self._new_id(state), 1, budget.take(one)) for state, one in places], budget)

    def _compare(self, order: StateCompare, budget: Budget) -> Compared:
        if not 1 <= len(order.pairs) <= self._settings.max_batch:
            raise InvalidRequest(f"must be 1 to {self._settings.max_batch} pairs", "/pairs")
        operands = [one for pair in order.pairs for one in pair]
        pointers = [f"/pairs/{place}/{side}" for place in range(len(order.pairs)) for side in (0, 1)]
        made = self._operands_at(operands, pointers, budget)
        pairs = list(zip(made[::2], made[1::2], strict=True))
        return Compared(results=tuple(compare(pairs, order.measures, budget)))

    def _change(self, order: _Changing, work: Callable[[list[Made]], list[Made]], budget: Budget) -> StateViews:
        """Change states to their next versions, or make new ones from them: all or none."""
        ids, into = self._check_ids(order.ids), order.into
        self._check_versions(ids, order.versions)
        if into == "same" and len(set(ids)) < len(ids):
            raise InvalidRequest("must name each state once where they are changed", "/ids")
        for attempt in range(_TRIES):
            with self._alone(ids if into == "same" and not budget.is_long else ()):
                loaded = self._load(ids, budget)
                for place, (version, _) in enumerate(loaded):
                    if order.versions is not None and order.versions[place] != version:
                        raise VersionConflict("state", ids[place], order.versions[place], version)
                made = work([one for _, one in loaded])
                places = zip(ids, loaded, made, strict=True)
                try:
                    if into == "new":
                        return self._store([(self._new_id(state), 1, one) for state, _, one in places], budget)
                    changed = [(state, version + 1, one) for state, (version, _), one in places]
                    return self._store(changed, budget)
                except VersionConflict:
                    if order.versions is not None or budget.is_long or attempt == _TRIES - 1:
                        raise
            time.sleep(random.uniform(0, _PAUSE_S * (attempt + 1)))  # two processes in step would meet again
        raise AssertionError("unreachable")

    # ------------------------------------------------------------------------------------------------- in and out
    def _store(self, states: Sequence[tuple[str, int, Made]], budget: Budget) -> StateViews:
        """Write states and keep them at hand; their views."""
        records: list[StateRecord] = []
        for state, version, made in states:
            packet = to_packet(made.state)
            if len(packet) > self._settings.max_bytes:
                raise LimitExceeded("states.max_bytes", self._settings.max_bytes, len(packet))
            view = msgspec.json.encode(view_of(made, state, version, len(packet)))
            records.append(StateRecord(state, version, view, packet))
            budget.check()
        limits = self._settings
        written = self._table.put(
            records, max_states=limits.max_states, max_bytes=limits.max_total_bytes, quotas=self._quotas
        )
        for state, version, made in states:
            self._keep(state, version, made)
        return StateViews(states=tuple(map(shown, written)))

    def _load(self, ids: Sequence[str], budget: Budget) -> list[tuple[int, Made]]:
        """Version and state of each id, as the journal has them now.

        Raises:
            NotFound: one is not there.
        """
        sizes = self._table.sizes(ids)
        found: dict[str, tuple[int, Made]] = {}
        with self._lock:
            for state, (version, _) in sizes.items():
                kept = self._kept.get(state)
                if kept is not None and kept[0] == version:
                    self._kept.move_to_end(state)
                    found[state] = kept
        missing = {state: size for state, (_, size) in sizes.items() if state not in found}
        for _, made in found.values():
            budget.take(made)
        for some in _few(missing):
            for state, record in self._table.fetch(some).items():
                view = msgspec.json.decode(record.view, type=StateView)
                made = Made(
                    from_packet(record.packet, is_own=True), view.certificate.trace_distance, view.moved, view.label
                )
                found[state] = record.version, budget.take(made)
                self._keep(state, record.version, made)
        for state in ids:
            if state not in found:
                raise NotFound("state", state)
        return [found[state] for state in ids]

    def _records(self, ids: Sequence[str], packets: bool) -> list[StateRecord]:
        found = self._table.fetch(ids, packets=packets)
        for state in ids:
            if state not in found:
                raise NotFound("state", state)
        return [found[state] for state in ids]

    def _made(self, asked: Sequence[Wanted], budget: Budget) -> list[Made]:
        """What was asked for, made; stored states among it are loaded."""

        def given(state: str, pointer: str) -> Made:
            try:
                return self._load([state], Budget(started=budget.started))[0][1]  # counted where it is made
            except NotFound as fault:
                raise InvalidRequest(str(outside(fault)), pointer) from None

        return prepare(asked, self._encode, given, budget, self._settings.max_text_bytes)

    def _operands(self, operands: Sequence[Operand], pointer: str, budget: Budget) -> list[Made]:
        if not 1 <= len(operands) <= self._settings.max_batch:
            raise InvalidRequest(f"must be 1 to {self._settings.max_batch} states", pointer)
        return self._operands_at(operands, [f"{pointer}/{place}" for place in range(len(operands))], budget)

    def _operands_at(self, operands: Sequence[Operand], pointers: Sequence[str], budget: Budget) -> list[Made]:
        for one, pointer in zip(operands, pointers, strict=True):
            if isinstance(one, Preparation) and one.id is not None:
                raise InvalidRequest("is for states that are stored; this one is not", f"{pointer}/id")
        asked = [
            (Preparation(state=one), pointer) if isinstance(one, str) else (one, pointer)
            for one, pointer in zip(operands, pointers, strict=True)
        ]
        return self._made(asked, budget)

    # ------------------------------------------------------------------------------------------------- at hand
    def _keep(self, state: str, version: int, made: Made) -> None:
        with self._lock:
            old = self._kept.pop(state, None)
            self._bytes += made.state.nbytes - (old[1].state.nbytes if old else 0)
            self._kept[state] = version, made
            while self._bytes > self._settings.cache_bytes and self._kept:
                _, (_, gone) = self._kept.popitem(last=False)
                self._bytes -= gone.state.nbytes

    def _let_go(self, state: str) -> None:
        with self._lock:
            old = self._kept.pop(state, None)
            self._bytes -= old[1].state.nbytes if old else 0

    @contextlib.contextmanager
    def _alone(self, ids: Sequence[str]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for place in sorted({hash(state) % _LOCKS for state in ids}):  # in one order, so that none waits in a ring
                stack.enter_context(self._changing[place])
            yield

    def _new_id(self, parent: str = "") -> str:
        """A new id, of the tenant that has the parent."""
        for _ in range(_DRAWS):
            state = inside(tenant_of(parent), f"st_{ULID()}")
            if self._is_mine(state):
                break
        return state

    def _ids(self, asked: Sequence[Wanted]) -> list[str]:
        """The ids of states to be made: those that were asked for, else new ones."""
        ids: list[str] = []
        for one, pointer in asked:
            if one.id is not None and (_ID.fullmatch(one.id) is None or one.id in ids):
                need = "must be `st_` and 1 to 60 letters, digits, `.`, `_`, `-`, each id once"
                raise InvalidRequest(f"{need}, but is {plain(one.id)!r:.80}", f"{pointer}/id")
            ids.append(one.id or self._new_id())
        return ids

    # ------------------------------------------------------------------------------------------------- checks
    def _check_ids(self, ids: Sequence[str]) -> Sequence[str]:
        if not 1 <= len(ids) <= self._settings.max_batch:
            raise InvalidRequest(f"must be 1 to {self._settings.max_batch} states, but are {len(ids)}", "/ids")
        return ids

    @staticmethod
    def _check_versions(ids: Sequence[str], versions: Sequence[int] | None) -> None:
        if versions is not None and len(versions) != len(ids):
            raise InvalidRequest(f"must be one for each of {len(ids)} states, but are {len(versions)}", "/versions")


def _few(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The states in groups that are read from the journal at once."""
    some: list[str] = []
    for state, size in sizes.items():
        if some and (len(some) == _PACKETS or sum(sizes[one] for one in some) + size > _PACKET_BYTES):
            yield some
            some = []
        some.append(state)
    if some:
        yield some


_Changing = StateEvolve | StateMerge | StateTensor | StatePartialTrace
