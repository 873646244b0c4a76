"""Routes, evidence and figures as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from qraf.frames import EvidenceOut, Hop, LinkOut, ResponseHop
from qraf.records import Figures, Terms

__all__ = [
    "bar",
    "evidence_table",
    "figures_line",
    "figures_table",
    "links_table",
    "route_line",
    "route_table",
    "shorten",
]


def route_table(hops: Sequence[Hop], not_visited: dict[str, str] | None = None, title: str = "route") -> Table:
    """Every node that the router weighed: what it promised, what it costs, whether it was measured, and why."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("node")
    table.add_column("relevance", justify="right")
    table.add_column("price", justify="right")
    table.add_column("measured")
    table.add_column("why", ratio=1)
    for hop in hops:
        measured = Text("measured", style="green") if hop.measured else Text("no", style="dim")
        why = hop.why or (" > ".join(hop.path) if hop.path else "")
        table.add_row(hop.node, f"{hop.relevance:.3f}", f"{hop.price:.3f}", measured, Text(why))
    known = {hop.node for hop in hops}
    for node, why in (not_visited or {}).items():
        if node not in known:
            table.add_row(node, "", "", Text("no", style="dim"), Text(why))
    return table


def route_line(hops: Sequence[Hop]) -> str:
    """The measured nodes in a line."""
    measured = [f"{hop.node} ({hop.relevance:.2f})" for hop in hops if hop.measured]
    return f"{', '.join(measured) or 'no node'} of {len(hops)}"


def evidence_table(items: Sequence[EvidenceOut], title: str = "evidence", limit: int = 0, width: int = 0) -> Table:
    """Evidence by falling probability, the bar relative to the best; with the terms of the scores where asked for."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("probability", no_wrap=True)
    table.add_column("node")
    table.add_column("text", ratio=1)
    most = max((item.probability for item in items), default=1.0) or 1.0
    explained = any(item.terms for item in items)
    if explained:
        table.add_column("terms")
    for item in items[: limit or None]:
        who = f"{item.speaker}: " if item.speaker else ""
        text = who + " ".join(item.text.split())
        row: list[str | Text] = [
            f"{item.probability:.3f} {bar(item.probability / most, 6)}",
            item.node,
            Text(shorten(text, width)),
        ]
        table.add_row(*row, *([_terms(item.terms)] if explained else []))
    return table


def figures_table(hops: Sequence[ResponseHop], title: str = "states") -> Table:
    """What each measured node said of its state."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("node", "items", "entropy", "coherence", "purity", "smaller", "fidelity", "ms"):
        table.add_column(name, justify="left" if name == "node" else "right")
    for hop in hops:
        state = hop.state
        table.add_row(
            hop.node,
            str(state.items),
            f"{state.entropy_bits:.2f} bit",
            f"{state.coherence_bits:.2f} bit",
            f"{state.purity:.3f}",
            f"{state.compression_ratio:.1f}x",
            f"{state.fidelity:.4f}",
            hop.error or f"{hop.ms:.1f}",
        )
    return table


def links_table(links: Sequence[LinkOut], title: str = "noisy links") -> Table:
    """What each noisy link did to the prompt's state."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("link", "errors", "fidelity", "lost", "corrections", "w"):
        table.add_column(name, justify="left" if name in ("link", "errors") else "right")
    for link in links:
        table.add_row(
            f"{link.source} > {link.target}",
            link.errors,
            f"{link.fidelity:.4f}",
            f"{link.lost:.4f}",
            f"{link.corrections:.1f}",
            f"{link.w:.4f}",
        )
    return table


def figures_line(state: Figures) -> str:
    """A state's figures in a line."""
    return (
        f"{state.items} items, coherence {state.coherence_bits:.2f} bit, entropy {state.entropy_bits:.2f} bit, "
        f"purity {state.purity:.3f}, compression {state.compression_ratio:.1f}x, fidelity {state.fidelity:.4f}"
    )


def bar(share: float, width: int = 10) -> str:
    """A share from 0 to 1 as a bar of eighths.

    >>> bar(0.5, 4)
    '██  '
    """
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")).ljust(width)


def shorten(text: str, width: int) -> str:
    """The text cut at `width` characters; 0 keeps it whole.

    >>> shorten("amplitudes", 6)
    'ampli…'
    """
    return text if not width or len(text) <= width else text[: width - 1] + "…"


def _terms(terms: Terms | None) -> str:
    if terms is None:
        return ""
    factors = {"speaker": terms.speaker, "question": terms.question, "clock": terms.clock, "decay": terms.decay}
    shown = [f"{name} x{value:.2f}" for name, value in factors.items() if value != 1.0]
    summed = f"dense {terms.dense:.3f} lexical {terms.lexical:.3f} interference {terms.interference:.3f}"
    return " ".join([summed, f"neighbours {terms.neighbours:.3f}", *shown])
