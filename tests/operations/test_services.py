"""Quantize, optimize, correct: orders as clients write them, answers against QuTiP and closed forms."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qraf.errors import InvalidRequest, LimitExceeded, QrafError
from qraf.operations import optimize
from qraf.operations.work import work
from qraf.service_orders import CODES, Correct, Dequantize, NearestStates, Optimize, Quantize, ServiceAnswer
from qraf.state_orders import ArrayData
from qraf.states.envelope import seal, unseal
from qraf.states.sketch import Sketch
from qraf.states.state import State
from tests.closed_forms import bell

rng = np.random.default_rng(5)


def ask(kind: Any, body: dict[str, Any]) -> Any:
    """The answer to a body as it comes over HTTP; a fault is raised."""
    [answer] = work([msgspec.json.decode(msgspec.json.encode(body), type=kind)])
    if isinstance(answer, Exception):
        raise answer
    return answer


def spoilt(d: int, rank: int = 2, noise: float = 0.1) -> np.ndarray:
    """A random state with Gaussian noise on every entry."""
    factor = rng.normal(size=(rank, d)) + 1j * rng.normal(size=(rank, d))
    factor /= np.linalg.norm(factor)
    return factor.conj().T @ factor + noise * (rng.normal(size=(d, d)) + 1j * rng.normal(size=(d, d)))


def parts(x: np.ndarray) -> dict[str, Any]:
    return {"real": x.real.tolist(), "imag": x.imag.tolist()}


def array(x: ArrayData | None) -> np.ndarray:
    assert x is not None
    if x.data is not None:
        return np.frombuffer(x.data, x.dtype).reshape(x.shape)
    return np.array(x.real) + (0 if x.imag is None else 1j * np.array(x.imag))


# ------------------------------------------------------------------------------------------------------------ optimize
def test_the_nearest_states_are_those_of_qutip_and_say_how_far_they_are(qutip):
    given_ = [spoilt(d) for d in (2, 5, 2, 8)]
    answer = ask(Optimize, {"op": "nearest", "matrices": [parts(mu) for mu in given_]})
    assert len(answer.results) == 4
    for mu, found in zip(given_, answer.results, strict=True):
        hermitian = (mu + mu.conj().T) / 2
        shifted = hermitian + np.eye(len(mu)) * (1 - np.trace(hermitian)) / len(mu)
        exact = qutip.Qobj(shifted).trunc_neg(method="sgs").full()
        rho = array(found.density)
        np.testing.assert_allclose(rho, exact, atol=1e-12)
        np.testing.assert_allclose(found.before, np.linalg.eigvalsh(hermitian)[::-1], atol=1e-12)
        assert found.moved == pytest.approx(np.abs(np.linalg.eigvalsh(hermitian - rho)).sum() / 2, abs=1e-12)
        assert found.moved_frobenius == pytest.approx(np.linalg.norm(mu - rho), abs=1e-12)
        assert found.trace == pytest.approx(np.trace(hermitian).real)
        assert found.rank == np.linalg.matrix_rank(rho, tol=1e-10) == len(found.after)
        assert sum(found.after) == pytest.approx(1)


def test_one_matrix_may_be_written_without_a_list_around_it():
    plain = ask(Optimize, {"op": "nearest", "matrices": [[1.25, 0], [0, -0.25]]})
    stacked = ask(Optimize, {"op": "nearest", "matrices": [[[1.25, 0], [0, -0.25]]]})
    raw = np.array([[1.25, 0], [0, -0.25]])
    packed = {"data": raw.tobytes(), "shape": [1, 2, 2], "dtype": "float64"}
    as_bytes = ask(Optimize, {"op": "nearest", "matrices": packed, "form": "bytes"})
    assert plain == stacked
    assert array(plain.results[0].density).tolist() == [[1, 0], [0, 0]] == array(as_bytes.results[0].density).tolist()


def test_orders_that_go_together_are_answered_as_if_alone():
    bodies = [{"op": "nearest", "matrices": [parts(spoilt(d))], "rank": rank} for d in (3, 4, 3) for rank in (1, None)]
    bodies.insert(2, {"op": "nearest", "matrices": [[1, 2]]})
    bodies.insert(4, {"op": "repair", "matrices": [parts(spoilt(3))]})
    orders = [msgspec.json.decode(msgspec.json.encode(body), type=Optimize | Correct) for body in bodies]
    together = work(orders)
    assert isinstance(together[2], InvalidRequest)
    for order, answer in zip(orders, together, strict=True):
        [alone] = work([order])
        if isinstance(alone, Exception):
            assert str(alone) == str(answer)
        else:
            first, second = (np.array(array(one.results[0].density)) for one in (alone, answer))  # type: ignore[union-attr]
            np.testing.assert_allclose(first, second, atol=1e-14)


@pytest.mark.parametrize(
    ("wish", "kept", "moved"), [({"rank": 1}, 1, 0.4), ({"loss": 0.15}, 2, 0.1), ({"loss": 0.0}, 3, 0)]
)
def test_truncation_moves_by_what_it_cuts(qutip, wish: dict[str, Any], kept: int, moved: float):
    rho = np.diag([0.6, 0.3, 0.1, 0.0])
    [found] = ask(Optimize, {"op": "truncate", "matrices": rho.tolist(), **wish}).results
    factor = array(found.factor)
    after = factor.conj().T @ factor
    assert (found.rank_before, found.rank) == (3, kept)
    assert found.moved == pytest.approx(moved, abs=1e-12)
    assert qutip.tracedist(qutip.Qobj(rho), qutip.Qobj(after)) == pytest.approx(moved, abs=1e-7)
    assert qutip.fidelity(qutip.Qobj(rho), qutip.Qobj(after)) ** 2 == pytest.approx(found.fidelity, abs=1e-7)
    assert (found.bytes_before, found.bytes_after) == (3 * 4 * 8, kept * 4 * 8)


def test_recompression_tells_the_sketch_before_and_after(qutip):
    sketch = Sketch(16, 8)
    sketch.update(rng.normal(size=(100, 16)) * np.linspace(2, 0.1, 16))
    [found] = ask(Optimize, {"op": "recompress", "sketches": [sketch.to_bytes()], "rank": 3, "form": "bytes"}).results
    assert (found.rows, found.rank_before, found.rank) == (100, 8, 3)
    smaller = Sketch.from_bytes(found.packet)
    before, after = (one.state_factor().numpy() for one in (sketch, smaller))
    exact = qutip.tracedist(qutip.Qobj(before.T @ before), qutip.Qobj(after.T @ after))
    assert found.moved == pytest.approx(exact, abs=1e-7)
    assert found.bytes_after < found.bytes_before == len(sketch.to_bytes())
    assert found.loss_before <= found.loss_after == smaller.trace_loss
    np.testing.assert_allclose(found.after, np.linalg.eigvalsh(after.T @ after)[::-1][:3], atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ quantize
def test_without_a_code_every_code_is_in_the_table_and_none_breaks_its_bound():
    rows = rng.normal(size=(20, 384))
    answer = ask(Quantize, {"rows": rows.tolist()})
    assert {coding.code for coding in answer.codings} == set(CODES)
    assert len({(coding.code, coding.rotate) for coding in answer.codings}) == len(answer.codings)
    for coding in answer.codings:
        assert coding.infidelity_mean <= coding.infidelity_max <= coding.bound_max + 1e-12
        assert coding.bytes == 20 * coding.bytes_per_row
        assert coding.ratio == 384 * 4 / coding.bytes_per_row
        assert coding.codes is None
    by_name = {coding.code: coding for coding in answer.codings if not coding.rotate or coding.code == "lloyd2"}
    assert by_name["int8"].bytes_per_row == 396
    assert by_name["int4"].bytes_per_row == 204


@given(st.sampled_from(CODES), st.integers(1, 40), st.integers(1, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_is_coded_comes_back_as_far_off_as_was_said(code: str, d: int, n: int, is_complex: bool, seed: int):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, d)) + (1j * random.normal(size=(n, d)) if is_complex else 0)
    given_ = parts(rows) if is_complex else rows.tolist()
    answer = ask(Quantize, {"rows": given_, "code": code, "return": True})
    [coding] = answer.codings
    back = ask(
        Dequantize, {"codes": coding.codes, "d": answer.d, "code": code, "rotate": coding.rotate, "form": "bytes"}
    )
    decoded = array(back.rows).astype(float)
    coded = decoded[:, :d] + 1j * decoded[:, d:] if is_complex else decoded
    overlap = np.abs(np.einsum("nd,nd->n", rows.conj(), coded)) ** 2
    norms = np.linalg.norm(rows, axis=1) ** 2 * np.linalg.norm(coded, axis=1) ** 2
    infidelity = 1 - np.divide(overlap, norms, out=np.zeros(n), where=norms > 0)
    assert infidelity.max() == pytest.approx(coding.infidelity_max, abs=1e-6)
    assert infidelity.max() <= coding.bound_max + 1e-6


def test_a_state_is_coded_by_its_factor_and_its_fidelity_is_that_of_the_state():
    mixed = np.diag([0.7, 0.2, 0.1])
    answer = ask(Quantize, {"states": [{"density": mixed.tolist()}, {"amplitudes": [0.6, 0.8, 0]}]})
    assert answer.rows_of == (3, 1)
    for coding in answer.codings:
        assert coding.infidelity_max <= coding.bound_max
        assert coding.trace_distance_max**2 <= coding.bound_max + 1e-12
    [exact] = [coding for coding in answer.codings if coding.code == "float32"]
    assert exact.infidelity_max < 1e-12


# ------------------------------------------------------------------------------------------------------------- correct
def test_a_spoilt_bell_pair_is_repaired_and_its_syndromes_are_told(qutip):
    psi = bell().numpy()
    noisy = np.outer(psi, psi.conj()) + 0.02 * (rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)))
    noise = float(np.linalg.norm((noisy + noisy.conj().T) / 2 - np.outer(psi, psi.conj()), 2))
    [found] = ask(Correct, {"op": "repair", "matrices": [parts(noisy)], "rank": 1, "noise": noise}).results
    assert found.syndromes.trace == pytest.approx(abs(np.trace(noisy) - 1))
    assert found.syndromes.hermiticity == pytest.approx(np.linalg.norm(noisy - noisy.conj().T) / 2)
    assert found.syndromes.found == ("trace", "hermiticity", "negativity")
    rho = array(found.density)
    distance = qutip.tracedist(qutip.Qobj(rho), qutip.Qobj(np.outer(psi, psi.conj())))
    assert distance <= found.bound == pytest.approx(2 * noise)
    assert np.trace(rho @ rho).real == pytest.approx(1)


def test_what_has_no_defect_comes_back_as_it_is():
    rho = np.diag([0.5, 0.5])
    [found] = ask(Correct, {"op": "repair", "matrices": rho.tolist()}).results
    assert not found.changed
    assert found.syndromes.found == ()
    assert array(found.density).tolist() == rho.tolist()


def test_vectors_are_aligned_by_their_phase_and_factors_by_a_unitary():
    psi = np.array([0.6, 0.8j])
    turned = {"op": "align", "vectors": parts(np.stack([psi * 1j, -psi])), "reference": parts(psi)}
    answer = ask(Correct, turned)
    for found in answer.results:
        np.testing.assert_allclose(array(found.aligned), psi, atol=1e-12)
        assert found.fidelity == pytest.approx(1)
        assert found.after < 1e-7 < found.before
    factor = rng.normal(size=(3, 4))
    factor /= np.linalg.norm(factor)
    unitary = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    body = {"op": "align", "factors": (unitary @ factor).tolist(), "reference": factor.tolist()}
    [found] = ask(Correct, body).results
    np.testing.assert_allclose(array(found.aligned), factor, atol=1e-12)
    assert found.before**2 > 2 - 2 * found.fidelity**0.5  # the least distance is Bures'


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("kind", "body", "pointer", "need"),
    [
        (Optimize, {"op": "nearest", "matrices": [[1, 0, 0], [0, 1, 0]]}, "/matrices", "must be square"),
        (Optimize, {"op": "nearest", "matrices": [[[1]], [[1, 2], [3, 4], [5, 6]]]}, "/matrices/1", "must be square"),
        (Optimize, {"op": "nearest", "matrices": [[[1, 0], [0]]]}, "/matrices/0/1", "must have one length"),
        (Optimize, {"op": "nearest", "matrices": []}, "/matrices", "at least one"),
        (Optimize, {"op": "nearest"}, "/matrices", "one of `matrices` and `states`"),
        (Optimize, {"op": "nearest", "matrices": [[1]], "states": ["st_1"]}, "/matrices", "one of"),
        (Optimize, {"op": "nearest", "matrices": [[1, 0], [0, 0]], "rank": 0}, "/rank", "from 1 to 2"),
        (Optimize, {"op": "nearest", "matrices": [[1, 0], [0, 0]], "rank": 3}, "/rank", "from 1 to 2"),
        (Optimize, {"op": "truncate", "matrices": [[1, 1], [0, 0]], "rank": 1}, "/matrices", "be Hermitian"),
        (Optimize, {"op": "truncate", "matrices": [[2, 0], [0, 0]], "rank": 1}, "/matrices", "have trace 1"),
        (Optimize, {"op": "truncate", "matrices": [[0, 0], [0, 0]], "rank": 1}, "/matrices", "have trace 1"),
        (Optimize, {"op": "truncate", "matrices": [[2, 0], [0, -1]], "rank": 1}, "/matrices", "negative eigenvalue"),
        (Optimize, {"op": "truncate", "matrices": [[1]], "rank": 0}, "/rank", "at least 1"),
        (Optimize, {"op": "truncate", "matrices": [[1]], "loss": 1}, "/loss", "below 1"),
        (Optimize, {"op": "truncate", "matrices": [[1]]}, "/rank", "one of `rank` and `loss`"),
        (Optimize, {"op": "recompress", "rank": 0, "sketches": ["AAAA"]}, "/rank", "at least 1"),
        (Optimize, {"op": "recompress", "rank": 2, "sketches": ["AAAA"]}, "/sketches/0", "packet"),
        (Optimize, {"op": "nearest", "states": [{"density": [[1, 0], [0, 1]]}]}, "/states/0/density", "have trace 1"),
        (Optimize, {"op": "nearest", "matrices": {"data": "AAAA", "shape": [2, 2], "dtype": "float64"}},
         "/matrices/data", "32 bytes"),
        (Optimize, {"op": "nearest", "matrices": [[[1]], [[1e300]]]}, "/matrices/1", "no number above"),
        (Correct, {"op": "repair", "matrices": [[1e300, 0], [0, 0]]}, "/matrices", "no number above"),
        (Quantize, {"rows": [[1, 0], [1e200, 1e200]]}, "/rows/1", "too large"),
        (Quantize, {}, "/rows", "one of `rows` and `states`"),
        (Quantize, {"rows": [[1, 0], [0, 0]]}, "/rows/1", "zero"),
        (Quantize, {"rows": [1, 2], "code": "int4", "group": 3}, "/group", "even"),
        (Quantize, {"rows": [1, 2], "group": 0}, "/group", "positive"),
        (Quantize, {"rows": [1, 2], "code": "float32", "rotate": True}, "/rotate", "float32"),
        (Quantize, {"rows": []}, "/rows", "hold numbers"),
        (Dequantize, {"codes": "AAAA", "d": 384, "code": "int4"}, "/codes", "rows of 204 bytes"),
        (Dequantize, {"codes": "", "d": 2, "code": "int8"}, "/codes", "rows of"),
        (Dequantize, {"codes": "AAAA", "d": 0, "code": "int8"}, "/d", "at least 1"),
        (Dequantize, {"codes": "AQD/fw==", "d": 2, "code": "int8"}, "/codes", "NaN or infinity"),
        (Correct, {"op": "repair", "matrices": [[1, 0], [0, 0]], "noise": -1}, "/noise", "at least 0"),
        (Correct, {"op": "align", "vectors": [1, 0], "reference": [1, 0, 0]}, "/reference", "d = 2"),
        (Correct, {"op": "align", "vectors": [0, 0], "reference": [1, 0]}, "/vectors", "not be zero"),
        (Correct, {"op": "align", "reference": [1, 0]}, "/vectors", "one of `vectors` and `factors`"),
        (Correct, {"op": "align", "vectors": [[1, 0]] * 3, "reference": [[1, 0]] * 2}, "/reference", "be one, or 3"),
    ],
)  # fmt: skip
def test_bad_input_is_told_by_its_place_and_what_it_needs(kind: Any, body: dict[str, Any], pointer: str, need: str):
    with pytest.raises(InvalidRequest) as fault:
        ask(kind, body)
    assert fault.value.pointer == pointer
    assert need in fault.value.detail


def test_numbers_that_are_not_finite_are_told_by_their_place():
    for bad in (np.nan, np.inf):
        raw = np.array([[1, 0], [0, bad]])
        body = {"op": "nearest", "matrices": {"data": raw.tobytes(), "shape": [2, 2], "dtype": "float64"}}
        with pytest.raises(InvalidRequest, match="NaN or infinity at 1/1"):
            ask(Optimize, body)


def test_numbers_of_any_size_are_answered():
    huge = 10**30
    [cut] = ask(Optimize, {"op": "truncate", "matrices": [[0.5, 0], [0, 0.5]], "rank": huge}).results
    assert cut.rank == 2
    sketch = Sketch(4, 2)
    sketch.update(np.eye(4))
    [smaller] = ask(Optimize, {"op": "recompress", "sketches": [sketch.to_bytes()], "rank": huge}).results
    assert smaller.rank == smaller.rank_before
    assert smaller.rank_before >= 1
    for rows in ([3, 4, 0], [1]):  # a scale for the whole row, however large the group
        wide, whole = (ask(Quantize, {"rows": rows, "group": group, "return": True}) for group in (2**62, 4))
        assert [one.codes for one in wide.codings] == [one.codes for one in whole.codings]


def test_a_packet_of_a_sketch_is_read_number_by_number():
    sketch = Sketch(4, 2)
    sketch.update(np.eye(4))
    _, facts, arrays = unseal(sketch.to_bytes(), "sketch")
    for name, bad in (("mass", "x"), ("mass", -1.0), ("delta", np.inf), ("rows", 2.5), ("rank", True), ("dim", 0)):
        with pytest.raises(InvalidRequest, match=r"packet|dim, rank") as fault:
            ask(Optimize, {"op": "recompress", "sketches": [seal("sketch", {**facts, name: bad}, arrays)], "rank": 1})
        assert fault.value.pointer == "/sketches/0"
    for name in arrays:
        spoilt = {**arrays, name: np.full_like(arrays[name], np.nan)}
        with pytest.raises(InvalidRequest, match="finite numbers"):
            ask(Optimize, {"op": "recompress", "sketches": [seal("sketch", facts, spoilt)], "rank": 1})


def test_an_unknown_code_is_refused_by_its_name():
    with pytest.raises(msgspec.ValidationError, match=r"'int3' - at `\$.code`"):
        msgspec.json.decode(json.dumps({"rows": [1], "code": "int3"}).encode(), type=Quantize)


def test_every_answer_survives_the_wire():
    for kind, body in [
        (Optimize, {"op": "nearest", "matrices": [[1, 0], [0, 0]]}),
        (Optimize, {"op": "truncate", "matrices": [[1, 0], [0, 0]], "rank": 1, "form": "bytes"}),
        (Quantize, {"rows": [1, 2], "return": True}),
        (Correct, {"op": "repair", "matrices": [[1, 0], [0, 0]]}),
        (Correct, {"op": "align", "vectors": [1, 0], "reference": [1, 0]}),
    ]:
        answer = ask(kind, body)
        assert msgspec.json.decode(msgspec.json.encode(answer), type=ServiceAnswer) == answer


def test_a_bug_in_one_order_is_its_answer_and_spoils_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    exact = optimize.nearest_spectrum

    def broken(w: Tensor, rank: int | None = None) -> Tensor:
        if w.shape[-1] == 3:
            raise RuntimeError("a secret")
        return exact(w, rank)

    monkeypatch.setattr(optimize, "nearest_spectrum", broken)
    bodies = [{"op": "nearest", "matrices": np.eye(d).tolist()} for d in (2, 3, 4)]
    answers = work([msgspec.convert(body, Optimize) for body in bodies])
    assert [type(one) for one in answers] == [NearestStates, QrafError, NearestStates]
    assert "secret" not in str(answers[1])
    assert "a secret" in caplog.text


@pytest.mark.parametrize("order", [{"op": "nearest"}, {"op": "repair"}])
def test_a_matrix_of_twelve_qubits_is_not_listed_and_so_not_made(order, monkeypatch):
    monkeypatch.delattr(State, "rho")
    kind = Optimize if order["op"] == "nearest" else Correct
    with pytest.raises(InvalidRequest, match="take `bytes` or `none`") as caught:
        ask(kind, {**order, "states": [{"named": "ghz:12"}]})
    assert caught.value.pointer == "/form"


def test_density_matrices_are_counted_before_they_are_made():
    with pytest.raises(LimitExceeded, match="density matrices of one order") as caught:
        ask(Optimize, {"op": "nearest", "states": [{"named": "ghz:12"}] * 5, "form": "none"})
    assert caught.value.limit == "bytes of the density matrices of one order"
