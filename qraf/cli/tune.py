"""`qraf tune`: fit a topology's recall constants to prompts with known evidence, and write the topology."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from qraf.cli.output import console, errors, print_json
from qraf.errors import InvalidRequest, InvalidTopology, TopologyFault
from qraf.memory.labels import LabelledMemory, Sample, Spec, read_labels, sample_of
from qraf.memory.tune import STEPS, Tuning, tune
from qraf.network.edit import ANY_GPUS, with_recall
from qraf.network.loader import loads
from qraf.network.topology import NodeSpec, Topology
from qraf.settings import EncoderSettings
from qraf.text.encoder import load_encoder

__all__ = ["tune_command"]


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes that keep and read their memories alike and have the same lines: one fit does for all of them."""

    nodes: tuple[str, ...]
    spec: NodeSpec
    lines: tuple[int, ...]
    use_labels: bool


def tune_command(
    file: Path,
    data: Path,
    *,
    nodes: Sequence[str],
    out: Path | None,
    own_text: bool,
    folds: int,
    seed: int,
    as_json: bool,
) -> None:
    """Fit, say what came of it, and write the file if anything changed.

    Raises:
        InvalidTopology: the topology has faults, or cannot be changed as wanted.
        InvalidRequest: the data do not fit.
    """
    raw = _read(file)
    topology = loads(raw, file=str(file), gpus=ANY_GPUS)
    memories = read_labels(data)
    groups = _groups(topology, _chosen(topology, nodes), memories, own_text)
    if not groups:
        raise InvalidRequest(f"'{data}' has no memory that one of the nodes would hold")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=as_json) as progress:
        tunings = [_tuned(group, memories, folds, seed, progress) for group in groups]
    changes = {
        node: tuning.changed(group.spec.recall)
        for group, tuning in zip(groups, tunings, strict=True)
        for node in group.nodes
        if tuning.is_better
    }
    edited = with_recall(raw, changes, file=str(file))
    target = out or file
    is_written = edited != raw or (out is not None and out != file)
    if is_written:
        _write(target, edited)
    told = _told(groups, tunings)
    if as_json:
        print_json({"file": str(target), "written": is_written, "nodes": told})
    else:
        _print(groups, tunings)
        wrote = f"{target} written" if is_written else f"{file} stays as it was"
        console.print(wrote, markup=False, soft_wrap=True)


def _chosen(topology: Topology, names: Sequence[str]) -> list[NodeSpec]:
    memories = [node for node in topology.nodes.values() if node.role == "memory"]
    if not names:
        return memories
    known = [node.name for node in memories]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InvalidRequest(f"'{topology.file}' has no memory node '{name}'{hint}")
    return [node for node in memories if node.name in names]


def _groups(
    topology: Topology, nodes: Iterable[NodeSpec], memories: Sequence[LabelledMemory], own_text: bool
) -> list[_Group]:
    groups: dict[Any, _Group] = {}
    for node in nodes:
        lines = tuple(number for number, memory in enumerate(memories) if memory.items and _holds(node, memory))
        labelled = tuple(number for number in lines if memories[number].prompts)
        use_labels = bool(labelled) and not own_text
        lines = labelled if use_labels else lines
        if not lines:
            continue
        key = (node.recall, node.encoder, node.bits, node.rank, node.half_life_s, lines)
        others = groups[key].nodes if key in groups else ()
        groups[key] = _Group((*others, node.name), node, lines, use_labels)
    return list(groups.values())


def _holds(node: NodeSpec, memory: LabelledMemory) -> bool:
    if memory.session is not None:
        return node.sessions
    return memory.collection is None or memory.collection in node.collections


def _tuned(group: _Group, memories: Sequence[LabelledMemory], folds: int, seed: int, progress: Progress) -> Tuning:
    node, names = group.spec, ", ".join(group.nodes)
    encoder = load_encoder(EncoderSettings(name=node.encoder))
    texts = sum(len(memories[line].items) + len(memories[line].prompts) for line in group.lines)
    encoding = progress.add_task(f"{names}: encoding", total=texts if group.use_labels else None)
    encode: Callable[[list[str]], NDArray[np.float32]] = encoder.encode
    spec = Spec(node.recall, node.bits, node.rank, node.half_life_s)
    samples: list[Sample] = [
        sample_of(
            memories[line],
            spec,
            encode,
            encoder.dim,
            use_labels=group.use_labels,
            seed=seed,
            progress=lambda count: progress.advance(encoding, count),
        )
        for line in group.lines
    ]
    progress.update(encoding, total=(done := progress.tasks[encoding].completed), completed=done)
    fitting = progress.add_task(f"{names}: fitting", total=STEPS * (folds + 1))
    result = tune(
        samples,
        node.recall,
        folds=folds,
        seed=seed,
        progress=lambda done, total: progress.update(fitting, completed=done, total=total),
    )
    progress.update(fitting, total=(done := progress.tasks[fitting].completed), completed=done)
    return result


def _told(groups: Sequence[_Group], tunings: Sequence[Tuning]) -> list[dict[str, object]]:
    return [
        {
            "node": node,
            "prompts": tuning.prompts,
            "labelled": tuning.is_labelled,
            "better": tuning.is_better,
            "reason": tuning.reason,
            "held_out": {
                "before": {"recall_at_10": tuning.before.recall_at_10, "mrr": tuning.before.mrr},
                "after": {"recall_at_10": tuning.after.recall_at_10, "mrr": tuning.after.mrr},
                "gain": tuning.gain,
                "noise": tuning.noise,
            },
            "recall": tuning.changed(group.spec.recall),
        }
        for group, tuning in zip(groups, tunings, strict=True)
        for node in group.nodes
    ]


def _print(groups: Sequence[_Group], tunings: Sequence[Tuning]) -> None:
    table = Table("node", "prompts", "R@10", "MRR", "gain", "verdict", title="held-out prompts, percent")
    for group, tuning in zip(groups, tunings, strict=True):
        kind = "" if tuning.is_labelled else " of its own"
        before, after = tuning.before, tuning.after
        table.add_row(
            ", ".join(group.nodes),
            f"{tuning.prompts}{kind}",
            f"{100 * before.recall_at_10:.1f} -> {100 * after.recall_at_10:.1f}",
            f"{100 * before.mrr:.1f} -> {100 * after.mrr:.1f}",
            f"{100 * tuning.gain:+.2f}, noise {100 * tuning.noise:.2f}",
            "changed" if tuning.is_better else "kept",
        )
    console.print(table)
    for group, tuning in zip(groups, tunings, strict=True):
        changed = ", ".join(f"{name} {value}" for name, value in tuning.changed(group.spec.recall).items())
        said = f"{', '.join(group.nodes)}: {tuning.reason}" + (f"; now {changed}" if changed else "; nothing changed")
        console.print(said, markup=False, soft_wrap=True)


def _read(file: Path) -> str:
    """The text with its line ends as they are."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTopology((TopologyFault(str(file), 1, 1, f"cannot be read: {error}"),)) from None


def _write(target: Path, text: str) -> None:
    """The file appears whole or not at all."""
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidRequest(f"'{target}' cannot be written: {error.strerror or error}") from None
