"""Line charts as SVG text: panels side by side, a logarithmic x axis, percent upwards, error bars, marks at values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Curve", "Panel", "chart"]

# Okabe and Ito's palette, each with a marker of its own, so that colour is never the only sign
_COLOURS = ("#4D4D4D", "#D55E00", "#0072B2", "#009E73", "#CC79A7")
_MARKERS = ("circle", "square", "triangle", "diamond", "circle")
_INK, _FAINT, _GRID = "#1B1F24", "#57606A", "#D8DEE4"
_WIDE, _HIGH, _LEFT, _TOP, _GAP, _FOOT = 400.0, 320.0, 62.0, 92.0, 76.0, 62.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line through points (x, percent, half an error bar)."""

    name: str
    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over one x axis; `level` is a dashed line across, for what would be without noise."""

    title: str
    curves: tuple[Curve, ...]
    level: float | None = None
    level_name: str = ""


def chart(
    title: str,
    note: str,
    x_name: str,
    y_name: str,
    panels: Sequence[Panel],
    mark: float | None = None,
    mark_name: str = "",
) -> str:
    """Draw panels over the same axes.

    Args:
        title: above everything.
        note: a line below the title.
        x_name: what x is; its values are above 0.
        y_name: what percent is of.
        panels: from the left.
        mark: an x to mark with a dotted line in every panel.
        mark_name: what it is.
    """
    xs = sorted({x for panel in panels for curve in panel.curves for x, _, _ in curve.points})
    low, high = math.log10(xs[0]) - 0.04, math.log10(xs[-1]) + 0.04
    most = max(y + bar for panel in panels for curve in panel.curves for _, y, bar in curve.points)
    most = max([most, *(panel.level for panel in panels if panel.level is not None)])
    top = 10 * math.ceil(most / 10)
    width = _LEFT + len(panels) * _WIDE + (len(panels) - 1) * _GAP + 24
    height = _TOP + _HIGH + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">",
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#FFFFFF"/>',
        _text(_LEFT, 28, title, 17, weight=650),
        _text(_LEFT, 47, note, 12, _FAINT),
    ]
    for number, panel in enumerate(panels):
        left = _LEFT + number * (_WIDE + _GAP)
        frame = _Frame(left, low, high, top)
        parts += frame.axes(panel.title, x_name, y_name if number == 0 else "", xs)
        if mark is not None:
            parts += frame.mark(mark, mark_name)
        if panel.level is not None:
            parts += frame.level(panel.level, panel.level_name)
        for at, curve in enumerate(panel.curves):
            parts += frame.curve(curve, _COLOURS[at % len(_COLOURS)], _MARKERS[at % len(_MARKERS)])
        parts += frame.legend(panel.curves)
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True)
class _Frame:
    left: float
    low: float
    high: float
    top: float

    def x(self, value: float) -> float:
        return self.left + _WIDE * (math.log10(value) - self.low) / (self.high - self.low)

    def y(self, value: float) -> float:
        return _TOP + _HIGH * (1 - value / self.top)

    def axes(self, title: str, x_name: str, y_name: str, xs: Sequence[float]) -> list[str]:
        right, bottom = self.left + _WIDE, _TOP + _HIGH
        parts = [_text(self.left, _TOP - 14, title, 13, weight=600)]
        for value in range(0, int(self.top) + 1, 10):
            y = self.y(value)
            parts.append(_line(self.left, y, right, y, _GRID))
            parts.append(_text(self.left - 8, y + 4, str(value), 11, _FAINT, "end"))
        shown = [value for value in xs if value in (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02)]
        for value in shown:
            parts.append(_line(self.x(value), bottom, self.x(value), bottom + 5, _FAINT))
            parts.append(_text(self.x(value), bottom + 19, f"{100 * value:g} %", 11, _FAINT, "middle"))
        parts.append(_line(self.left, bottom, right, bottom, _INK))
        parts.append(_text((self.left + right) / 2, bottom + 42, x_name, 12, _INK, "middle"))
        if y_name:
            turn = f'transform="rotate(-90 {self.left - 42:.1f} {(_TOP + bottom) / 2:.1f})"'
            parts.append(_text(self.left - 42, (_TOP + bottom) / 2, y_name, 12, _INK, "middle", extra=turn))
        return parts

    def mark(self, value: float, name: str) -> list[str]:
        x = self.x(value)
        return [
            _line(x, _TOP, x, _TOP + _HIGH, _FAINT, dashes="2 4"),
            _text(x - 6, _TOP + 12, name, 11, _FAINT, "end"),
        ]

    def level(self, value: float, name: str) -> list[str]:
        y = self.y(value)
        return [
            _line(self.left, y, self.left + _WIDE, y, _FAINT, dashes="6 4"),
            _text(self.left + _WIDE - 4, y - 5, name, 11, _FAINT, "end"),
        ]

    def curve(self, curve: Curve, colour: str, marker: str) -> list[str]:
        places = [(self.x(x), self.y(y), _HIGH * bar / self.top) for x, y, bar in curve.points]
        path = " ".join(f"{'M' if at == 0 else 'L'}{x:.1f} {y:.1f}" for at, (x, y, _) in enumerate(places))
        parts = [f"<g><title>{escape(curve.name)}</title>"]
        parts += [_line(x, y - bar, x, y + bar, colour) for x, y, bar in places]
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        return [*parts, *(_marker(x, y, colour, marker) for x, y, _ in places), "</g>"]

    def legend(self, curves: Sequence[Curve]) -> list[str]:
        x, y = self.left + 14, _TOP + _HIGH - 18.0 * len(curves)
        parts = [
            f'<rect x="{x - 8:.1f}" y="{y - 12:.1f}" width="{22 + 6.4 * max(len(curve.name) for curve in curves):.0f}" '
            f'height="{18 * len(curves) + 4:.0f}" fill="#FFFFFF" fill-opacity="0.85"/>'
        ]
        for at, curve in enumerate(curves):
            line = y + 18 * at
            parts.append(_marker(x, line, _COLOURS[at % len(_COLOURS)], _MARKERS[at % len(_MARKERS)]))
            parts.append(_text(x + 12, line + 4, curve.name, 12))
        return parts


def _marker(x: float, y: float, colour: str, marker: str) -> str:
    if marker == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>'
    shapes = {
        "square": "M-3.4 -3.4h6.8v6.8h-6.8z",
        "triangle": "M0 -4.4L4.2 3.4H-4.2z",
        "diamond": "M0 -4.8L4.4 0L0 4.8L-4.4 0z",
    }
    return f'<path d="{shapes[marker]}" transform="translate({x:.1f} {y:.1f})" fill="{colour}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{style}/>'


def _text(
    x: float,
    y: float,
    text: str,
    size: float,
    fill: str = _INK,
    anchor: str = "start",
    weight: int = 400,
    extra: str = "",
) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f"<text {at} {extra}>{escape(text)}</text>" if extra else f"<text {at}>{escape(text)}</text>"
