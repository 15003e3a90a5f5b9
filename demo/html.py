"""Small pieces of HTML that several tabs draw: pictures as data, figures with captions, curves. Only numbers and fixed words go in."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from iris.evaluation.style import CYCLE

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 250, 46, 34, 12


def png_data(image: Image.Image) -> str:
    """The picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure_html(image: Image.Image, title: str, detail: str = "") -> str:
    """A picture with a line of text and a quieter one below; the texts must be our own."""
    small = f"<small>{detail}</small>" if detail else ""
    return f'<figure><img alt="{title} {detail}" src="{png_data(image)}"><figcaption>{title}{small}</figcaption></figure>'


def heat(values: np.ndarray, low: float, high: float, size: int) -> Image.Image:
    """A grid [h, w] as a picture of `size` pixels from pale (low) to violet (high)."""
    place = np.clip((values - low) / max(high - low, 1e-9), 0, 1)[..., None]
    colours = (1 - place) * np.array([243, 240, 250]) + place * np.array([67, 48, 134])
    return Image.fromarray(colours.round().astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)


def curves_html(series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, logarithmic: bool = False, line: float | None = None,
                line_name: str = "", x: Sequence[float] | None = None) -> str:
    """Curves as an SVG that follows light and dark; `x` is 1, 2, ... unless given, and is shared by all series."""
    values = [value for points in series.values() for value in points if value is not None and math.isfinite(value)]
    if not values:
        return ""
    places = list(x) if x is not None else list(range(1, max(map(len, series.values())) + 1))
    scale = (lambda value: math.log10(max(value, 1e-6))) if logarithmic else float
    low, high = min(map(scale, [*values, *([line] if line else [])])), max(map(scale, values))
    high = high if high > low else low + 1
    span = max(places[-1] - places[0], 1e-9)

    def across(place: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * (place - places[0]) / span

    def up(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (scale(value) - low) / (high - low))

    drawn = [f'<line class="axis" x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{WIDTH - 12}" y2="{HEIGHT - BOTTOM}"/>']
    drawn += [f'<text x="{LEFT - 6}" y="{up(v) + 4:.0f}" text-anchor="end">{v:.3g}</text>' for v in ((10**low, 10**high) if logarithmic else (low, high))]
    drawn += [f'<text x="{across(p):.0f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{p:g}</text>' for p in (places[0], places[-1])]
    drawn.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{xlabel}</text><text x="{LEFT}" y="{TOP - 2}">{ylabel}</text>')
    if line is not None:
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{up(line):.1f}" y2="{up(line):.1f}" stroke="currentColor" stroke-dasharray="4 3"/>'
                     f'<text x="{WIDTH - 14}" y="{up(line) - 4:.0f}" text-anchor="end">{line_name}</text>')
    for index, (name, points) in enumerate(series.items()):
        path = " ".join(f"{across(p):.1f},{up(v):.1f}" for p, v in zip(places, points, strict=False) if v is not None and math.isfinite(v))
        colour = CYCLE[index % len(CYCLE)]
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"><title>{name}</title></polyline>')
    names = " ".join(f'<tspan fill="{CYCLE[i % len(CYCLE)]}" dx="10">{name}</tspan>' for i, name in enumerate(series))
    drawn.append(f'<text x="{WIDTH - 12}" y="{TOP - 2}" text-anchor="end">{names}</text>')
    return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{ylabel} by {xlabel}">{"".join(drawn)}</svg>'
