"""`qraf recall`: evidence as a table."""

from __future__ import annotations

import qraf
from qraf.cli.output import console, print_json
from qraf.cli.render import evidence_table, figures_line, links_table, route_table
from qraf.client import Client

__all__ = ["all_collections", "recall_command"]


async def recall_command(
    url: str, text: str, session: str | None, collections: list[str] | None, *, k: int, explain: bool, as_json: bool
) -> None:
    """Recall and print evidence, route and figures."""
    async with qraf.connect(url) as q:
        if session is None and not collections:
            collections = await all_collections(q)
        done = await q.recall(text, session=session, collections=collections or (), k=k, explain=explain)
    if as_json:
        print_json(done)
        return
    if explain:
        console.print(route_table(done.route.hops, done.route.not_visited))
    console.print(evidence_table(done.evidence))
    if done.links:
        console.print(links_table(done.links))
    console.print(f"coverage {done.coverage:.3f}, {done.ms:.0f} ms; {figures_line(done.state)}", markup=False)
    if done.evicted:
        told = f"{done.evicted} more items have left by byte budgets; a filter looks among the newest of them"
        console.print(told, markup=False)


async def all_collections(q: Client) -> list[str]:
    """Every collection of the server's topology."""
    nodes = (await q.topology())["nodes"]
    return sorted({name for node in nodes for name in node.get("collections") or ()})
