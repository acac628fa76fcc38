"""The plot: a line for each row, a mark for each contender, on a logarithmic axis. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.contenders import NATIVE, VAULT
from bench.figures import RowFigures

_COLOURS = {
    VAULT: "#c2185b",
    "mergerfs": "#1565c0",
    "bindfs": "#2e7d32",
    "unionfs": "#ef6c00",
}
_LEFT = 330  # for the titles
_WIDTH = 900
_LINE = 24
_TOP = 50


def svg(rows: Sequence[RowFigures]) -> str:
    """How many times as long as the plain folder each took. Rows without a native figure are left out."""
    shown = [row for row in rows if row.medians.get(NATIVE)]
    factors = [
        row.medians[who] / row.medians[NATIVE]
        for row in shown
        for who in _COLOURS
        if who in row.medians
    ]
    lowest = math.floor(math.log10(min(factors, default=1.0)))
    highest = max(lowest + 1, math.ceil(math.log10(max(factors, default=10.0))))
    bottom = _TOP + _LINE * len(shown)

    def across(factor: float) -> float:
        part = (math.log10(factor) - lowest) / (highest - lowest)
        return _LEFT + part * (_WIDTH - _LEFT - 30)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{bottom + 40}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, who in enumerate(_COLOURS):
        parts.append(_mark(who, _LEFT + 10 + 110 * index, 20))
        parts.append(_text(_LEFT + 20 + 110 * index, 24, who))
    for power in range(lowest, highest + 1):
        for step in range(1, 10):
            factor = step * 10.0**power
            if power == highest and step > 1:
                break
            x = across(factor)
            colour = "#777" if step == 1 else "#eee"
            parts.append(f'<path d="M{x:.1f} {_TOP - 14}V{bottom}" stroke="{colour}"/>')
        parts.append(_text(across(10.0**power), bottom + 16, f"{10.0**power:g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH) / 2, bottom + 32, "times as long as native", "middle"))
    for index, row in enumerate(shown):
        y = _TOP + _LINE * index
        parts.append(_text(_LEFT - 12, y + 4, row.title, "end"))
        for who in reversed(_COLOURS):  # the vault on top
            if who in row.medians:
                parts.append(_mark(who, across(row.medians[who] / row.medians[NATIVE]), y))
    return "\n".join([*parts, "</svg>\n"])


def _mark(who: str, x: float, y: float) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y}" r="{6 if who == VAULT else 4}" fill="{_COLOURS[who]}"'
        f' fill-opacity="0.8"><title>{escape(who)}</title></circle>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
