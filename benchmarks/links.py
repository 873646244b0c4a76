"""What is recalled over noisy links, bare and behind surface codes? Recall on real text against the error rate.

    python -m benchmarks.links --data FILE ... [--json OUT] [--svg OUT] [--crossings 2] [--cache FILE]

Everything runs in this process: the turns of conversations in LoCoMo's format (benchmarks/locomo.py) are encoded once
and held as a memory does, coded to 4 bits. Then every question crosses one link, as `qraf.network.links` does it in the
running service, and is measured: bare, and in rotated surface codes of distance 3, 5 and 7, the crossing lasting as
long as three rounds of correction in each case. A physical error rate p is the probability of a Pauli error at each
place of the circuit (stim's convention), on the bare link in each of the three rounds.

Two figures for each: of the states alone (the squared overlap with each item), and of the whole recipe, whose words,
speakers and dates are classical and cross exactly. The same question meets the same random numbers on every curve, so
that curves differ by their channels alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import device_line, print_table, write_json
from benchmarks.line_chart import Curve, Panel, chart
from benchmarks.locomo import Conversation, Encode, encodings, load
from benchmarks.recipe import cached, filled
from qraf.codes.channel import depolarizing_of_stim
from qraf.network.links import LinkChannel, cross, link_channel
from qraf.network.topology import LinkSpec, NoiseSpec, ProtectSpec
from qraf.records import Prompt, RecallQuery
from qraf.settings import EncoderSettings
from qraf.states import quantize
from qraf.text.encoder import load_encoder
from qraf.text.prepare import prepare

__all__ = ["curve_channels", "evaluate", "main", "picture"]

RATES = (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.01, 0.0125, 0.015, 0.02)
DISTANCES = (3, 5, 7)
ROUNDS = 3
K = 10
_LINK = ("desk", "shelf")
_BITS = 4


class Asked:
    """The questions of one conversation beside its memory."""

    def __init__(self, conversation: Conversation, encode: Encode) -> None:
        coded = encodings(conversation, encode)
        self._ids = [turn.id for turn in conversation.turns]
        self._gold = [frozenset(question.evidence) for question in conversation.questions]
        self._memory = filled(conversation, coded["plain"], _BITS)
        unit = coded["plain"] / np.linalg.norm(coded["plain"], axis=1, keepdims=True)
        self._items = quantize.decode(quantize.encode(unit, _BITS), unit.shape[1], _BITS)
        self._prompts = [
            prepare(question.text, conversation.speakers, row)
            for question, row in zip(conversation.questions, coded["nameless"], strict=True)
        ]
        self.exact = self._recalled(range(len(self._prompts)), self._prompts)
        self._seen: dict[tuple[int, str], NDArray[np.float64]] = {}

    def crossed(self, channel: LinkChannel, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """R@10 of every question after a crossing, (2, n): states alone, whole recipe; and the fidelities, (n,)."""
        out, fidelities, arrived = self.exact.copy(), np.ones(len(self._prompts)), dict[int, tuple[str, Prompt]]()
        for number, prompt in enumerate(self._prompts):
            amplitudes, [crossing] = cross(prompt.amplitudes, (_LINK,), {_LINK: channel}, key)
            fidelities[number] = crossing.fidelity
            if amplitudes is not prompt.amplitudes:
                arrived[number] = crossing.errors, replace(prompt, amplitudes=amplitudes)
        new = [number for number, (errors, _) in arrived.items() if (number, errors) not in self._seen]
        found = self._recalled(new, [arrived[number][1] for number in new])
        self._seen.update({(number, arrived[number][0]): found[:, at] for at, number in enumerate(new)})
        for number, (errors, _) in arrived.items():
            out[:, number] = self._seen[number, errors]
        return out, fidelities

    def _recalled(self, numbers: Sequence[int], prompts: Sequence[Prompt]) -> NDArray[np.float64]:
        if not prompts:
            return np.zeros((2, 0))
        born = (np.stack([prompt.amplitudes for prompt in prompts]) @ self._items.T) ** 2
        best = np.argsort(-born, axis=1, kind="stable")[:, :K]
        answers = self._memory.recall([RecallQuery(prompt, k=K) for prompt in prompts])
        ways = (best.tolist(), [[one.seq - 1 for one in answer.evidence] for answer in answers])
        return np.array([[self._share(*pair) for pair in zip(numbers, way, strict=True)] for way in ways])

    def _share(self, number: int, rows: Sequence[int]) -> float:
        gold = self._gold[number]
        return len(gold & {self._ids[row] for row in rows}) / len(gold)


def curve_channels(p: float) -> dict[str, LinkChannel]:
    """The channels of one qubit at a physical error rate, by curve."""
    noise = depolarizing_of_stim(p)
    specs = {"bare": LinkSpec(*_LINK, noise=NoiseSpec(noise, rounds=ROUNDS))}
    for distance in DISTANCES:
        protect = ProtectSpec("rotated_surface", distance, ROUNDS)
        specs[f"d={distance}"] = LinkSpec(*_LINK, noise=NoiseSpec(noise), protect=protect)
    found = {name: link_channel(spec) for name, spec in specs.items()}
    return {name: channel for name, channel in found.items() if channel is not None}


def evaluate(conversations: Sequence[Conversation], encode: Encode, crossings: int) -> dict[str, Any]:
    """Ask every question over every link at every rate, `crossings` times."""
    asked = [Asked(conversation, encode) for conversation in conversations]
    exact = np.concatenate([one.exact for one in asked], axis=1)
    num_questions = exact.shape[1]
    points = []
    for p in RATES:
        for name, channel in curve_channels(p).items():
            runs = [[one.crossed(channel, f"{number}") for one in asked] for number in range(crossings)]
            recalls = np.stack([np.concatenate([part for part, _ in run], axis=1) for run in runs])
            fidelity = np.stack([np.concatenate([part for _, part in run]) for run in runs])
            error = recalls.mean(0).std(1, ddof=1) / math.sqrt(num_questions)
            points.append(
                {
                    "p": p,
                    "curve": name,
                    "states": round(100 * float(recalls[:, 0].mean()), 2),
                    "states_se": round(100 * float(error[0]), 2),
                    "recipe": round(100 * float(recalls[:, 1].mean()), 2),
                    "recipe_se": round(100 * float(error[1]), 2),
                    "fidelity": round(float(fidelity.mean()), 4),
                    "qubit_error": channel.error,
                    "w": channel.w,
                    "se_w": channel.se_w,
                    "corrections": channel.corrections,
                }
            )
    return {
        "questions": num_questions,
        "crossings": crossings,
        "rounds": ROUNDS,
        "exact": {"states": round(100 * float(exact[0].mean()), 2), "recipe": round(100 * float(exact[1].mean()), 2)},
        "points": points,
    }


def picture(result: dict[str, Any]) -> str:
    """The two panels as SVG."""
    names = dict.fromkeys(point["curve"] for point in result["points"])

    def panel(title: str, which: str) -> Panel:
        curves = [
            Curve(
                "bare" if name == "bare" else f"surface code, {name}",
                tuple((q["p"], q[which], q[f"{which}_se"]) for q in result["points"] if q["curve"] == name),
            )
            for name in names
        ]
        level = result["exact"][which]
        return Panel(title, tuple(curves), level, f"no noise: {level:.1f}")

    return chart(
        "Recall over a noisy link",
        f"{result['questions']} questions, R@{K}; the state of each crosses once, in {result['rounds']} rounds; "
        "bars are standard errors over questions",
        "physical error rate p",
        "gold evidence found, %",
        (
            panel("states alone", "states"),
            panel("whole recipe: words, speakers, dates cross exactly", "recipe"),
        ),
        mark=0.01,
        mark_name="threshold, about 1 %",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="files in LoCoMo's format")
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--svg", type=Path, help="write the plot here")
    parser.add_argument("--crossings", type=int, default=2, help="times that every question crosses every link")
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps encodings between runs")
    args = parser.parse_args(argv)
    encoder = load_encoder(EncoderSettings(name="minilm"))
    encode: Encode = cached(encoder.encode, args.cache, encoder.name) if args.cache else encoder.encode
    result = evaluate([one for path in args.data for one in load(path)], encode, args.crossings)
    names = list(dict.fromkeys(point["curve"] for point in result["points"]))
    for which in ("states", "recipe"):
        table = [
            (
                f"{100 * p:g} %",
                *(f"{q[which]:.1f} +- {q[f'{which}_se']:.1f}" for q in result["points"] if q["p"] == p),
                *(f"{q['fidelity']:.3f}" for q in result["points"] if q["p"] == p),
            )
            for p in RATES
        ]
        title = f"{which}: R@{K}, percent, {result['exact'][which]:.1f} without noise; mean fidelity of the state"
        print_table(title, ("p", *names, *(f"F {name}" for name in names)), table)
    print(f"{result['questions']} questions, {result['crossings']} crossings each; {device_line()}")
    if args.json:
        write_json(args.json, result)
    if args.svg:
        args.svg.write_text(picture(result), encoding="utf-8")


if __name__ == "__main__":
    main()
