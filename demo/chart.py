"""Line charts as inline SVG: they take the page's colours in light and dark, need no script, and load with the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 230, 44, 10, 10, 34


class Line(NamedTuple):
    """Points (x, y) in the order of x; `name` is its class (colours stand in the theme), `dots` marks some of them."""

    points: Sequence[tuple[float, float]]
    name: str = ""
    css: str = ""
    dots: Sequence[tuple[float, float]] = ()


def line_chart(lines: Sequence[Line], described: str, xlabel: str, ylabel: str, threshold: float | None = None,
               extra: Callable[[Scale], str] | None = None) -> str:
    """Lines over a common x, y on a logarithmic scale; `described` is what a screen reader says. Empty without points.

    threshold: a dashed level. extra: more SVG from the scale.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    scale = Scale.around(points, threshold)
    drawn = "".join(_line(line, scale) for line in lines)
    level = "" if threshold is None else (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{scale.y(threshold):.1f}" y2="{scale.y(threshold):.1f}"/>')
    words = (f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{xlabel}</text>'
             f'<text x="{LEFT}" y="{TOP + 1}" dy="-.1em" dx="6">{ylabel}</text>')
    return (f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">{scale.axes()}{level}{drawn}{words}'
            f'{extra(scale) if extra else ""}</svg>')


class Scale(NamedTuple):
    """From values to places in the chart."""

    first: float
    last: float
    low: float
    high: float
    end: float  # the last x that there is; `last` is one more where that is the first too

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]], threshold: float | None = None) -> Scale:
        xs, ys = [x for x, _ in points], [y for _, y in points if y > 0] + ([threshold] if threshold else [])
        low, high = (min(ys), max(ys)) if ys else (0.1, 1.0)
        return cls(min(xs), max(max(xs), min(xs) + 1), low * 0.8, high * 1.25, max(xs))

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        share = (math.log(max(value, self.low)) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share

    def axes(self) -> str:
        """Quiet lines at round values, with their numbers."""
        rows = [(tick, self.y(tick)) for tick in self._levels()]
        grid = "".join(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>' for _, y in rows)
        numbers = "".join(f'<text x="{LEFT - 6}" y="{y:.1f}" dy=".35em" text-anchor="end">{tick:g}</text>' for tick, y in rows)
        ends = "".join(f'<text x="{self.x(x):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="{anchor}">{x:,.0f}</text>'
                       for x, anchor in ((self.first, "start"), (self.end, "end")) if anchor == "start" or x != self.first)
        return grid + numbers + ends

    def _levels(self) -> list[float]:
        """1, 2 and 5 times powers of ten inside the range; of many, the powers alone; of too few, more between them."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for multiples in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(tenth / 10 for tenth in range(10, 100))):
            inside = [m * 10.0**p for p in powers for m in multiples if self.low <= m * 10.0**p <= self.high]
            if len(inside) > 1:
                break
        inside = inside if len(multiples) < 10 else inside[:: max(1, len(inside) // 3)]
        return inside if len(inside) <= 6 else [tick for tick in inside if f"{tick:e}"[0] == "1"]


def _line(line: Line, scale: Scale) -> str:
    path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in line.points)
    dots = "".join(f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="4"/>' for x, y in line.dots)
    return f'<g class="line {line.name}" style="{line.css}"><polyline points="{path}"/>{dots}</g>'
