"""States as files that other programs read: the msgpack packet, and NumPy's .npz, which QuTiP reads in three lines.

    import numpy as np, qutip
    data = np.load("state.npz")
    rho = qutip.Qobj(data["rho"], dims=[data["dims"].tolist()] * 2)

An .npz holds `factor` (r, d) with rho = L^H L, `dims` (n,), and for d up to `RHO_MAX` also `rho` (d, d). Above that a
pure state is `qutip.Qobj(data["factor"].conj().T, dims=[dims, [1] * len(dims)])`. QuTiP's order of subsystems is ours.
The way back: `np.savez("state.npz", rho=q.full(), dims=q.dims[0])`. Nothing is ever pickled or unpickled.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import TOLERANCE
from qraf.states.packet import opened, pack
from qraf.states.state import DIM_MAX, RHO_MAX, State

__all__ = ["BYTES_MAX", "from_npz", "from_packet", "to_npz", "to_packet"]

BYTES_MAX = 16 * (DIM_MAX**2 + RHO_MAX**2) + 2**16
"""The largest file that is read: the largest factor or matrix, the largest rho beside it, room for headers; 272 MiB."""

_ARRAYS = {"factor": 2, "rho": 2, "psi": 1, "dims": 1}
_BYTES = {"psi.npy": 16 * DIM_MAX + 2**12, "dims.npy": 16 * DIM_MAX + 2**12}  # a file of zeros packs well
_DTYPES = ("<f4", "<f8", "<c8", "<c16")


def to_packet(state: State) -> bytes:
    """The state as a packet of kind "factor": versioned, with a checksum; `packet.unpack` reads it too."""
    return pack(state.factor, state.dims)


def from_packet(data: bytes, *, is_own: bool = False) -> State:
    """Read a packet that holds a factor or a dense state. `is_own`: one of `to_packet`, kept safe; its rank is known.

    Raises:
        InvalidState: too large, damaged, of another kind or version, or no state.
    """
    _check_bytes(len(data))
    kind, facts, arrays = opened(data)
    if kind not in ("factor", "dense"):
        raise InvalidState("packet", "hold a factor or a dense state", f"holds a {kind}")
    dims = facts.get("dims", [])
    if not isinstance(dims, list) or not all(isinstance(size, int) for size in dims):
        raise InvalidState("packet", "hold dims, a list of whole numbers", f"holds {dims!r}")
    if is_own and kind == "factor":
        return State.of_rank(_tensor("factor", arrays["factor"]), tuple(dims))
    return _made({**arrays, "dims": np.array(dims, dtype=np.int64)})


def to_npz(state: State) -> bytes:
    """The state as an .npz file: `factor`, `dims`, and `rho` for d up to `RHO_MAX`."""
    arrays: dict[str, NDArray[Any]] = {
        "factor": state.factor.cpu().numpy(),
        "dims": np.array(state.dims, dtype=np.int64),
    }
    if state.d <= RHO_MAX:
        arrays["rho"] = state.rho().cpu().numpy()
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def from_npz(data: bytes) -> State:
    """Read an .npz file with `factor`, `rho` or `psi`, and `dims` if it has them; several arrays must agree.

    Raises:
        InvalidState: too large, packed or unpacked; no .npz; objects in it; no state.
    """
    _check_bytes(len(data))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                _check_bytes(member.file_size, _BYTES.get(member.filename, BYTES_MAX), member.filename)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS if name in file.files}
    except InvalidState:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds; all mean the same here
        raise InvalidState("npz", "be an .npz file of plain arrays", f"is not: {error}") from error
    return _made(arrays)


def _made(arrays: Mapping[str, NDArray[Any]]) -> State:
    sizes = arrays.get("dims", np.array([], dtype=np.int64))
    if sizes.ndim != 1 or sizes.size > DIM_MAX or (sizes.size and sizes.dtype.kind not in "iu"):
        raise InvalidState("dims", "be whole numbers in one row", f"is {sizes.dtype} of shape {sizes.shape}")
    dims = tuple(int(size) for size in sizes)
    found = {name: _tensor(name, array) for name, array in arrays.items() if name != "dims"}
    makers = {"factor": State.of_factor, "rho": State.of_density, "psi": State.of_ket}
    name = next((name for name in makers if name in found), None)
    if name is None:
        raise InvalidState("file", "hold a factor, rho or psi", f"holds {sorted(arrays)}")
    state = makers[name](found.pop(name), dims)
    for other, x in found.items():
        _check_agrees(state, other, x, dims)
    return state


def _check_agrees(state: State, name: str, x: Tensor, dims: tuple[int, ...]) -> None:
    again = State.of_density(x, dims) if name == "rho" else State.of_ket(x, dims)
    if again.d != state.d:
        raise InvalidState(name, f"have dimension {state.d}, as the first array", f"has {again.d}")
    a, b = (one.factor.to(torch.complex128) for one in (state, again))
    # |rho - sigma|_F^2 from three small Gram matrices, so that no matrix is made
    parts = [float(torch.linalg.matrix_norm(x @ y.mH)) ** 2 for x, y in ((a, a), (b, b), (a, b))]
    off = math.sqrt(max(0.0, parts[0] + parts[1] - 2 * parts[2]))
    if off > math.sqrt(TOLERANCE[x.dtype]):
        raise InvalidState(name, "be the same state as the first array", f"is off by {off:.3g}")


def _tensor(name: str, array: NDArray[Any]) -> Tensor:
    native = array.dtype.newbyteorder("<")
    if native.str not in _DTYPES or array.ndim != _ARRAYS.get(name):
        need = f"be float or complex numbers on {_ARRAYS.get(name, 0)} axes"
        raise InvalidState(name, need, f"is {array.dtype} of shape {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _check_bytes(size: int, most: int = BYTES_MAX, name: str = "") -> None:
    if size > most:
        raise InvalidState("file", f"be at most {most} bytes{f' in {name}' if name else ''}", f"is {size}")
