"""Answers that come from an epoch that has passed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import qraf.actors.host  # noqa: F401  torch is imported before the clock of a test starts
from qraf.actors.messages import Spell
from qraf.actors.runtime import LocalRuntime
from qraf.errors import NodeDown
from qraf.storage.journal import Journal
from tests.actors import samples
from tests.actors.samples import DIM, FACTS, commit, visit
from tests.encoders import HashEncoder


class Frozen(HashEncoder):
    """Stands still at the word `freeze` until it is thawed."""

    def __init__(self) -> None:
        super().__init__(DIM)
        self.entered, self.thawed = threading.Event(), threading.Event()

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        if "freeze" in texts:
            self.entered.set()
            assert self.thawed.wait(10)
        return super().encode(texts)


async def test_a_late_answer_of_a_host_that_was_given_up_is_refused(tmp_path: Path) -> None:
    settings = samples.settings(tmp_path)
    journal = Journal.open(settings.journal())
    encoder = Frozen()
    runtime = LocalRuntime(samples.topology(), settings, journal, encoder=lambda: encoder)
    await runtime.start()
    late = asyncio.create_task(runtime.absorb("desk", "s/ann", commit(journal, "s/ann", ["freeze"])))
    await asyncio.to_thread(encoder.entered.wait, 10)

    # the host is believed dead; a successor takes its name under the next epoch
    runtime._host_down("front")
    assert not runtime.health["desk"].up
    with pytest.raises(NodeDown, match="front"):
        await runtime.figures("desk", "s/ann")
    runtime._host_up(runtime._hosts["front"].adopt(Spell("front", 2, runtime.topology)))
    assert (runtime.health["desk"].up, runtime.health["desk"].epoch) == (True, 2)

    encoder.thawed.set()
    with pytest.raises(NodeDown, match="stale epoch 1"):
        await late
    answers = [one async for one in runtime.recall([visit("desk", "s/ann", "freeze")])]
    assert answers[0].items_scanned == 1  # it was durable, so the successor has it
    await runtime.close()
    journal.close()


async def test_a_host_that_is_down_is_told_visit_by_visit_and_prompts_go_to_another(tmp_path: Path) -> None:
    settings = samples.settings(tmp_path)
    journal = Journal.open(settings.journal())
    runtime = LocalRuntime(samples.topology(), settings, journal, encoder=samples.encoder)
    await runtime.start()
    await runtime.absorb("desk", "s/ann", commit(journal, "s/ann", FACTS))
    runtime._host_down("back")
    assert len(await runtime.encode(["still there"])) == 1
    visits = [visit("desk", "s/ann", "parrot"), *(visit(node, "c/notes", "parrot") for node in ("shelf", "attic"))]
    answers = {one.node: one.error async for one in runtime.recall(visits)}
    assert answers["desk"] == ""
    assert "'back' is down" in answers["shelf"]
    assert "'back' is down" in answers["attic"]
    runtime._host_down("front")
    with pytest.raises(NodeDown, match="no host"):
        await runtime.encode(["nobody"])
    await runtime.close()
    journal.close()
