"""A small network, a journal with text, and prompts for it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qraf.network.topology import HostSpec, LinkSpec, NodeSpec, Topology
from qraf.records import Item, RecallQuery, Visit
from qraf.settings import GeneratorSettings, RuntimeSettings, Settings
from qraf.storage.journal import Journal
from qraf.storage.records import Draft
from qraf.text.prepare import prepare
from tests.encoders import HashEncoder

DIM = 64
encoder = partial(HashEncoder, DIM)

FACTS = (
    "The parrot is called Pixel.",
    "Berlin is the capital of Germany.",
    "Water boils at one hundred degrees.",
    "My sister plays the violin in an orchestra.",
    "The bicycle has a flat tyre.",
    "Tomatoes grow best in full sun.",
)


def topology(**nodes: Any) -> Topology:
    """`desk` holds sessions on host `front`; `shelf` and `attic` on `back` share the collection `notes`."""
    specs = {
        "desk": NodeSpec("desk", "memory", "front", sessions=True, rank=8, **nodes.get("desk", {})),
        "shelf": NodeSpec("shelf", "memory", "back", collections=("notes",), rank=8),
        "attic": NodeSpec("attic", "memory", "back", collections=("notes",), rank=8),
        "writer": NodeSpec("writer", "generator", model="test", url="http://127.0.0.1:9/v1"),
    }
    links = tuple(LinkSpec("desk", name) for name in ("shelf", "attic", "writer"))
    hosts = {"front": HostSpec("front"), "back": HostSpec("back")}
    return Topology("lab", hosts, specs, links, "desk")


def settings(folder: Path, **runtime: Any) -> Settings:
    return Settings(
        data=folder,
        generator=GeneratorSettings(),
        runtime=RuntimeSettings(namespace=f"test-{secrets.token_hex(4)}", **runtime),
    )


def commit(journal: Journal, memory: str, texts: Sequence[str], prefix: str = "") -> list[Item]:
    """Commit texts and give the journal's items back."""
    drafts = [Draft(item_id=f"{prefix}{n}", text=text, at=1000.0 + n) for n, text in enumerate(texts)]
    seqs = [one.seq for one in journal.commit(memory, drafts)]
    found = journal.fetch(seqs)
    return [found[seq] for seq in seqs]


def query(text: str, k: int = 3) -> RecallQuery:
    return RecallQuery(prepare(text, (), HashEncoder(DIM).encode([text])[0]), k=k)


def visit(node: str, memory: str, text: str, k: int = 3) -> Visit:
    return Visit(node, memory, query(text, k))
