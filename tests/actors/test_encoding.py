from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from qraf.actors.encoding import EncodeQueue
from qraf.errors import LimitExceeded, NodeDown
from tests.encoders import HashEncoder


class Gated(HashEncoder):
    """Encodes only while the gate is open, and remembers its batches."""

    def __init__(self) -> None:
        super().__init__(16)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        self.batches.append(texts)
        self.entered.set()
        assert self.gate.wait(10)
        if "poison" in texts:
            raise RuntimeError("out of memory")
        return super().encode(texts)


def held(encoder: Gated, queue: EncodeQueue, pool: ThreadPoolExecutor) -> None:
    """Occupy the encoder with one text, so that what comes next waits."""
    queue.encoder()
    encoder.batches.clear()
    encoder.gate.clear()
    encoder.entered.clear()
    pool.submit(queue.encode, ["first"])
    assert encoder.entered.wait(10)


def wait_for(queue: EncodeQueue, count: int) -> None:
    tick = threading.Event()
    while queue.waiting < count:
        tick.wait(0.001)


def test_rows_are_those_of_the_encoder_in_order_also_across_batches() -> None:
    queue = EncodeQueue(lambda: HashEncoder(16), max_batch=4)
    texts = [f"text number {n}" for n in range(11)]
    assert np.array_equal(queue.encode(texts), HashEncoder(16).encode(texts))
    assert queue.encode([]).shape == (0, 16)
    queue.close()


def test_calls_that_wait_merge_into_one_batch_and_prompts_go_first() -> None:
    encoder = Gated()
    queue = EncodeQueue(lambda: encoder)
    with ThreadPoolExecutor(8) as pool:
        held(encoder, queue, pool)
        written = [pool.submit(queue.encode, [f"written {n}"]) for n in range(3)]
        wait_for(queue, 3)
        asked = pool.submit(queue.encode, ["asked"], urgent=True)
        wait_for(queue, 4)
        encoder.gate.set()
        for n, future in enumerate(written):
            assert np.array_equal(future.result(10), HashEncoder(16).encode([f"written {n}"]))
        assert np.array_equal(asked.result(10), HashEncoder(16).encode(["asked"]))
    assert encoder.batches[:2] == [["first"], ["asked"]]
    assert sorted(encoder.batches[2]) == ["written 0", "written 1", "written 2"]
    queue.close()


def test_a_full_queue_refuses_and_an_empty_one_takes_a_call_of_any_size() -> None:
    encoder = Gated()
    queue = EncodeQueue(lambda: encoder, max_waiting=2)
    assert len(queue.encode(["a", "b", "c", "d"])) == 4
    with ThreadPoolExecutor(2) as pool:
        held(encoder, queue, pool)
        late = pool.submit(queue.encode, ["x", "y"])
        wait_for(queue, 2)
        with pytest.raises(LimitExceeded) as refused:
            queue.encode(["z"])
        assert (refused.value.allowed, refused.value.got) == (2, 3)
        encoder.gate.set()
        assert len(late.result(10)) == 2
    queue.close()


def test_a_failing_batch_fails_its_calls_alone() -> None:
    encoder = Gated()
    queue = EncodeQueue(lambda: encoder)
    with pytest.raises(NodeDown, match="out of memory"):
        queue.encode(["poison"])
    assert len(queue.encode(["sound"])) == 1
    queue.close()


def test_an_encoder_that_does_not_load_is_told_to_every_caller() -> None:
    def load() -> HashEncoder:
        raise OSError("no weights")

    queue = EncodeQueue(load)
    for _ in range(2):
        with pytest.raises(NodeDown, match="no weights"):
            queue.encode(["text"])
    assert not queue.is_ready
    queue.close()


def test_close_fails_what_waits_and_refuses_what_comes() -> None:
    encoder = Gated()
    queue = EncodeQueue(lambda: encoder)
    with ThreadPoolExecutor(3) as pool:
        held(encoder, queue, pool)
        waiting = pool.submit(queue.encode, ["late"])
        wait_for(queue, 1)
        closing = pool.submit(queue.close)
        tick = threading.Event()
        while not queue._closed:
            tick.wait(0.001)
        encoder.gate.set()
        with pytest.raises(NodeDown, match="closed"):
            waiting.result(10)
        closing.result(10)
    with pytest.raises(NodeDown, match="closed"):
        queue.encode(["later"])
