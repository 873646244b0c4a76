"""A topology as a picture: SVG with its own layout, Graphviz DOT, Mermaid."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import pairwise

from qraf.network.layout import Layout, layered
from qraf.network.links import LinkChannel
from qraf.network.topology import LinkSpec, NodeSpec, Topology

__all__ = ["dot", "mermaid", "svg"]

# Okabe and Ito's palette: told apart with every kind of colour vision, and never the only sign (the name stands by)
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A6A00", "#4D4D4D")
_ENGINE = "#4D4D4D"
_INK, _FAINT, _LINE, _PAPER = "#1B1F24", "#57606A", "#8C959F", "#FFFFFF"
_BOX = (184.0, 66.0)
_COLUMN, _ROW, _MARGIN = 344.0, 92.0, 36.0
_HEAD, _FOOT, _ENTRY = 58.0, 44.0, 70.0
_LINE_HIGH = 12.5
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


Channels = Mapping[tuple[str, str], LinkChannel]


def svg(topology: Topology, channels: Channels | None = None) -> str:
    """A standalone SVG: layers from the ingress on the left to the generators, hosts by colour and name.

    `channels` of `links.link_channels`: noisy links then show their error and w, not just what is stated of them.
    """
    graph = topology.graph()
    layout = layered(graph, column=_COLUMN, row=_ROW, box=_BOX, margin=_MARGIN)
    width, height = max(layout.width + _ENTRY, 560.0), layout.height + _HEAD + _FOOT
    colour = _host_colours(topology)
    many_out, many_in = dict(graph.out_degree()), dict(graph.in_degree())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{_FONT}" role="img" '
        f'aria-label="{escape(f"Topology {topology.name}", quote=True)}">',
        f"<title>{escape(topology.name)}</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 1 L9 5 L0 9 z" fill="{_LINE}"/></marker></defs>',
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>',
        _text(_MARGIN, 32, topology.name, size=19, weight=650),
        _text(_MARGIN, 51, _shortened(topology.description, int(width / 6.6)), size=12, fill=_FAINT),
        f'<g transform="translate({_ENTRY:.0f} {_HEAD:.0f})">',
    ]
    parts += [
        _link(link, layout, many_out[link.source] >= many_in[link.target], channels or {}) for link in topology.links
    ]
    parts += [
        _box(node, *layout.place[node.name], colour, node.name == topology.ingress) for node in topology.nodes.values()
    ]
    x, y = layout.place[topology.ingress]
    parts.append(_line(((x - _BOX[0] / 2 - 62, y), (x - _BOX[0] / 2 - 3, y))))
    parts.append(_text(x - _BOX[0] / 2 - 34, y - 8, "prompts", size=11, fill=_FAINT, anchor="middle"))
    parts.append("</g>")
    parts.append(_legend(topology, colour, _MARGIN, height - 20))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def dot(topology: Topology, channels: Channels | None = None) -> str:
    """Graphviz DOT, hosts as clusters; `channels` as of `svg`."""
    colour = _host_colours(topology)
    lines = [
        f"digraph {_quoted(topology.name)} {{",
        '  rankdir=LR; bgcolor="white"; node [shape=box style="rounded,filled" fillcolor="white" '
        'fontname="sans-serif"]; edge [color="#8C959F" fontname="sans-serif" fontsize=10];',
    ]
    for at, host in enumerate(topology.hosts):
        lines.append(f"  subgraph cluster_{at} {{ label={_quoted(host)}; color={_quoted(colour[host])};")
        lines += [f"    {_dot_node(node, topology)};" for node in topology.nodes_on(host)]
        lines.append("  }")
    lines += [f"  {_dot_node(node, topology)};" for node in topology.generators()]
    if topology.services:
        lines.append(f"  label={_quoted(f'service {_replicas(topology)}')};")
    for link in topology.links:
        label = _quoted("\n".join(_label(link, channels or {}))).replace("\n", "\\n")
        style = "" if link.noise is None else " style=dashed"
        lines.append(f"  {_quoted(link.source)} -> {_quoted(link.target)} [label={label}{style}];")
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(topology: Topology, channels: Channels | None = None) -> str:
    """A Mermaid flowchart, hosts as subgraphs; for Markdown files; `channels` as of `svg`."""
    ids = {name: f"n{at}" for at, name in enumerate(topology.nodes)}
    lines = ["flowchart LR"]
    for at, host in enumerate(topology.hosts):
        lines.append(f'  subgraph h{at}["{_entity(host)}"]')
        lines += [f'    {ids[node.name]}["{_bold(node)}"]' for node in topology.nodes_on(host)]
        lines.append("  end")
    lines += [f'  {ids[node.name]}(["{_bold(node)}"])' for node in topology.generators()]
    lines.append(f'  prompts(("prompts")) --> {ids[topology.ingress]}')
    if topology.services:
        lines.append(f'  services["service {_entity(_replicas(topology))}"]')
    for each in topology.links:
        label = "<br/>".join(_entity(line) for line in _label(each, channels or {}))
        arrow = "-->" if each.noise is None else "-.->"
        lines.append(f'  {ids[each.source]} {arrow}|"{label}"| {ids[each.target]}')
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------- SVG parts
def _box(node: NodeSpec, x: float, y: float, colour: dict[str, str], is_ingress: bool) -> str:
    wide, high = _BOX
    left, top = x - wide / 2, y - high / 2
    tint = colour.get(node.host, _ENGINE) if node.host else _ENGINE
    is_memory = node.role == "memory"
    role = "memory, ingress" if is_ingress else node.role
    parts = [
        f"<g><title>{escape(f'{node.name}: {_what(node)}')}</title>",
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.0f}" height="{high:.0f}" rx="{7 if is_memory else 20}" '
        f'fill="{_PAPER}" stroke="{tint}" stroke-width="{2.6 if is_ingress else 1.6}"/>',
    ]
    if is_memory:
        parts.append(
            f'<path d="M{left + 7:.1f} {top:.1f} h5 v{high:.0f} h-5 a7 7 0 0 1 -7 -7 v{-(high - 14):.0f} '
            f'a7 7 0 0 1 7 -7 z" fill="{tint}"/>'
        )
    text_x = left + (22 if is_memory else 20)
    parts += [
        _text(text_x, top + 21, _shortened(node.name, 20), size=14, weight=650),
        _text(text_x, top + 38, role + (f" on {_shortened(node.host, 14)}" if node.host else ""), size=11, fill=_FAINT),
        _text(text_x, top + 54, _shortened(_what(node), 27), size=11),
        "</g>",
    ]
    return "".join(parts)


def _link(link: LinkSpec, layout: Layout, label_at_target: bool, channels: Channels) -> str:
    (x1, y1), (x2, y2) = layout.place[link.source], layout.place[link.target]
    half = _BOX[0] / 2
    label, is_noisy = _label(link, channels), link.noise is not None
    above = 7 + _LINE_HIGH * (len(label) - 1)
    if layout.layer[link.target] <= layout.layer[link.source]:  # inside a cycle: around the right side
        out = max(x1, x2) + half + 56
        path = f"M{x1 + half:.1f} {y1:.1f} C{out:.1f} {y1:.1f} {out:.1f} {y2:.1f} {x2 + half + 3:.1f} {y2:.1f}"
        return _path(path, is_noisy) + _halo(out - 14, (y1 + y2) / 2 + 4, label)
    points = [(x1 + half, y1), *layout.bends[link.source, link.target], (x2 - half - 3, y2)]
    if len(points) > 2:
        wide = half + 8  # straight while beside the boxes of the layers between
        points = [points[0]] + [(x + side, y) for x, y in points[1:-1] for side in (-wide, wide)] + [points[-1]]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for at, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
        pull = (bx - ax) * 0.5
        straight = len(points) > 2 and at % 2 == 1 and at < len(points) - 2
        path += (
            f" L{bx:.1f} {by:.1f}"
            if straight
            else (f" C{ax + pull:.1f} {ay:.1f} {bx - pull:.1f} {by:.1f} {bx:.1f} {by:.1f}")
        )
    if len(points) > 2:
        return _path(path, is_noisy) + _halo((points[1][0] + points[2][0]) / 2, points[1][1] - above + 2, label)
    (ax, ay), (bx, by) = points  # the label lies at its end of the link, on the side that the curve does not take
    if label_at_target:
        return _path(path, is_noisy) + _halo(bx - 14, by + (15 if ay < by - 1 else -above), label, "end")
    return _path(path, is_noisy) + _halo(ax + 9, ay + (15 if by < ay - 1 else -above), label, "start")


def _legend(topology: Topology, colour: dict[str, str], x: float, y: float) -> str:
    parts = []
    for host in topology.hosts.values():
        asks = f"{host.name}: {host.cpus:g} CPU" + (f", {host.gpus:g} GPU" if host.gpus else "")
        parts.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" rx="2" fill="{colour[host.name]}"/>')
        parts.append(_text(x + 18, y, asks, size=12))
        x += 46 + 6.8 * len(asks)
    parts += [_text(x, y, f"service {_replicas(topology)}", size=12, fill=_FAINT)] if topology.services else []
    return "".join(parts)


def _replicas(topology: Topology) -> str:
    """The services with how many replicas of each may run."""
    return ", ".join(f"{one.name} {one.min_replicas}-{one.max_replicas}" for one in topology.services)


def _path(d: str, is_noisy: bool = False) -> str:
    dashes = ' stroke-dasharray="6 4"' if is_noisy else ""
    return f'<path d="{d}" fill="none" stroke="{_LINE}" stroke-width="1.4"{dashes} marker-end="url(#tip)"/>'


def _line(points: tuple[tuple[float, float], tuple[float, float]]) -> str:
    (x1, y1), (x2, y2) = points
    return _path(f"M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}")


def _halo(x: float, y: float, label: tuple[str, ...], anchor: str = "middle") -> str:
    """A label that stays readable where it stands on a line; (x, y) is where its first line stands."""
    style = f'paint-order="stroke" stroke="{_PAPER}" stroke-width="4" stroke-linejoin="round"'
    style += f' font-size="10.5" fill="{_FAINT}" text-anchor="{anchor}"'
    return "".join(
        f'<text x="{x:.1f}" y="{y + _LINE_HIGH * at:.1f}" {style}>{escape(line)}</text>'
        for at, line in enumerate(label)
    )


def _text(
    x: float, y: float, text: str, *, size: float, weight: int = 400, fill: str = _INK, anchor: str = "start"
) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f"<text {at}>{escape(text)}</text>"


# ----------------------------------------------------------------------------------------------------------- words
def _what(node: NodeSpec) -> str:
    """What a node is there for, in a few words."""
    if node.role == "generator":
        return f"{node.model} by URL" if node.url else node.model
    return ", ".join((("sessions",) if node.sessions else ()) + node.collections)


def _label(link: LinkSpec, channels: Channels) -> tuple[str, ...]:
    """What the operator states of a link, and of a noisy one what a qubit meets there."""
    first = f"{link.latency_ms:g} ms, {link.bits} bit"
    if link.noise is None:
        return (first,)
    lines: tuple[str, ...] = (f"{first}, bare",)
    if link.protect is not None:
        lines = (first, f"{link.protect.code} d={link.protect.distance}")
    channel = channels.get((link.source, link.target))
    if channel is None:
        return *lines, "noisy"
    error = "logical error" if link.protect is not None else "error"
    return *lines, f"{error} {channel.error:.2g}, w {_fraction(channel.w)}"


def _fraction(w: float) -> str:
    """A number near 1 with the digits that tell it from 1."""
    digits = 3 if w < 0.99 else 4 if w < 0.999 else 6
    return f"{w:.{digits}f}".rstrip("0").rstrip(".")


def _host_colours(topology: Topology) -> dict[str, str]:
    return {host: _COLOURS[at % len(_COLOURS)] for at, host in enumerate(topology.hosts)}


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}\u2026"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _dot_node(node: NodeSpec, topology: Topology) -> str:
    label = f"{node.name}\n{_what(node)}"
    width = " penwidth=2.5" if node.name == topology.ingress else ""
    shape = " shape=ellipse" if node.role == "generator" else ""
    return f"{_quoted(node.name)} [label={_quoted(label)}{shape}{width}]".replace("\n", "\\n")


def _bold(node: NodeSpec) -> str:
    return f"<b>{_entity(node.name)}</b><br/>{_entity(_what(node))}"


def _entity(text: str) -> str:
    """Text inside a Mermaid label, whose own escape is a numbered entity."""
    return "".join(char if char.isalnum() or char in " .,-_:/" else f"#{ord(char)};" for char in text)
