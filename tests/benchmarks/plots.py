"""Draws what was measured as bars, in SVG by hand: a library for two pictures would be larger than all the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.measure import PACED, PLAIN, middle
from benchmarks.report import Run
from benchmarks.upstream import CHUNKS

_WIDTH, _LEFT, _BAR, _STEP, _TOP = 860, 250, 18, 28, 46


def plots(run: Run) -> dict[str, str]:
    """Return the pictures by the names of their files."""
    requests = [
        (s.name, middle(run.samples[s.name][PLAIN[-1].name], "cpu"), s.ours) for s in run.subjects if s.name != "direct"
    ]
    chunks = [
        (s.name, middle(run.samples[s.name][PACED[-1].name], "cpu") / (CHUNKS + 1), s.ours)
        for s in run.subjects
        if s.name != "direct" and PACED[-1].name in run.samples[s.name]
    ]
    return {
        "performance-requests.svg": bars("CPU a request, microseconds, 64 connections", requests),
        "performance-chunks.svg": bars("CPU a chunk, microseconds, 64 paced streams", chunks),
    }


def bars(title: str, values: Sequence[tuple[str, float, bool]]) -> str:
    """Bars on a logarithmic scale, shortest first; the third of each says whether it is the gateway's."""
    shown = sorted((v for v in values if v[1] > 0), key=lambda v: v[1])
    low = 10 ** math.floor(math.log10(min((v[1] for v in shown), default=1.0)))
    high = 10 ** math.ceil(math.log10(max((v[1] for v in shown), default=10.0) * 1.01))
    room = _WIDTH - _LEFT - 90

    def place(value: float) -> float:
        return _LEFT + room * math.log10(value / low) / math.log10(high / low)

    height = _TOP + _STEP * len(shown) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(title)}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)} (less is better)</text>',
    ]
    tick = low
    while tick <= high * 1.001:
        x = place(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 24}" stroke="#d8d8d8"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle" fill="#555555">{tick:,.0f}</text>')
        tick *= 10
    for number, (name, value, ours) in enumerate(shown):
        y = _TOP + number * _STEP
        colour, end = ("#0b6e4f" if ours else "#8da0b3"), place(value)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="{_BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{end + 6:.1f}" y="{y + 14}">{value:,.1f}</text>')
    return "\n".join([*parts, "</svg>", ""])
