from __future__ import annotations

import itertools
import random

import pytest

from qraf.network.choice import choose


def value(chosen: frozenset[str], parent: dict[str, str], step: dict[str, float], gain: dict[str, float]) -> float:
    """Gains less the price of every link on the ways to the root, each once."""
    links = set()
    for name in chosen:
        while name in parent:
            links.add(name)
            name = parent[name]
    return sum(gain[name] for name in chosen) - sum(step[name] for name in links)


def brute(
    parent: dict[str, str], step: dict[str, float], gain: dict[str, float], limit: int, required: set[str]
) -> float:
    return max(
        value(frozenset(chosen), parent, step, gain)
        for size in range(len(required), max(limit, len(required)) + 1)
        for chosen in itertools.combinations(gain, min(size, len(gain)))
        if required <= set(chosen)
    )


@pytest.mark.parametrize("seed", range(150))
def test_the_choice_is_as_good_as_brute_force_over_all_subsets(seed: int):
    rng = random.Random(seed)
    order = [f"n{at}" for at in range(rng.randint(1, 8))]
    shape = rng.choice(["any", "star", "chain"])
    parent = {
        name: order[0 if shape == "star" else at - 1 if shape == "chain" else rng.randrange(at)]
        for at, name in enumerate(order)
        if at
    }
    step = {name: rng.choice([0.0, rng.uniform(0, 1), rng.uniform(0, 3)]) for name in order}
    gain = {name: rng.uniform(-1, 3) for name in order if rng.random() < 0.8}
    required = {name for name in gain if rng.random() < 0.15}
    limit = rng.randint(1, 8)
    chosen = choose(order, parent, step, gain, limit, required)
    assert required <= chosen <= set(gain)
    assert len(chosen) <= max(limit, len(required))
    assert value(chosen, parent, step, gain) == pytest.approx(brute(parent, step, gain, limit, required), abs=1e-12)


def test_a_shared_link_is_paid_once():
    parent = {"relay": "root", "a": "relay", "b": "relay", "c": "root"}
    step = {"relay": 1.0, "a": 0.0, "b": 0.0, "c": 0.0}
    gain = {"a": 0.7, "b": 0.7, "c": 0.3}
    assert choose(["root", "relay", "a", "b", "c"], parent, step, gain, 3) == {"a", "b", "c"}
    assert choose(["root", "relay", "a", "b", "c"], parent, step, gain, 1) == {"c"}


def test_nothing_worth_its_price_means_no_visit():
    assert choose(["root", "a"], {"a": "root"}, {"a": 2.0}, {"a": 1.0}, 4) == frozenset()
    assert choose(["root", "a"], {"a": "root"}, {"a": 2.0}, {"a": 1.0}, 4, ["a"]) == {"a"}
    assert choose(["root"], {}, {}, {}, 4) == frozenset()


def test_many_leaves_keep_the_best():
    order = ["root", *(f"n{at}" for at in range(500))]
    gain = {name: float((at * 7919) % 500) + 1 for at, name in enumerate(order[1:])}
    chosen = choose(order, dict.fromkeys(order[1:], "root"), dict.fromkeys(order, 0.0), gain, 16)
    assert chosen == set(sorted(gain, key=lambda name: -gain[name])[:16])
