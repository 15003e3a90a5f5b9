"""The inside of one picture as a filmstrip: what the core saw, weighed and changed, iteration by iteration.

Drawn as HTML and small PNGs from a `Trace`, so that it follows the page's light or dark mode and scrolls on a phone. Only
numbers and pixels go in, never a visitor's text. The colours of the three paths are those of every report figure.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from iris.evaluation.probes import Trace
from iris.evaluation.style import BLUE, ORANGE, PATHS, evenly

MAX_SECTIONS = 8  # solver steps shown: a long drawing shows some, evenly spread
NOTE = (
    '<p class="film-note">Each column is one turn of the core. The map over the picture tells which path carried each place, the bar '
    "below it how much every path added, and the last row how far the turn moved the token that it moved most{settled}.</p>"
)
MIDDLE = (243, 239, 234)
GAP = 2  # transparent pixels between two frames of a strip
FRAME, WIDEST = 64, 128  # px: maps are drawn at least this large, and nothing larger is sent: a column is 112 wide at most


def film_note(settled: float | None = None) -> str:
    """How to read the strip; settled: the relative change below which the model's automatic depth stops."""
    return NOTE.format(settled="" if settled is None else f": below {settled:g} automatic depth may stop, after two turns, or one from a carried state")


def filmstrip_html(trace: Trace, settled: float) -> str:
    """At most eight solver steps as folded sections, the first one open, below a legend of the colours."""
    reach = gate_reach(trace)
    steps = evenly(trace.num_steps, MAX_SECTIONS)
    sections = [_step_html(trace, step, reach, settled, opened=step == steps[0]) for step in steps]
    return f'<div class="film">{film_note(settled)}{_legend_html(trace, reach)}{"".join(sections)}</div>'


def gate_reach(trace: Trace) -> float:
    """How far any gate leaves 0.5 (at least 0.05): the colour scale of the whole strip, so that frames compare."""
    return max(0.05, float(np.abs(trace.gates - 0.5).max())) if trace.gates.size else 0.5


def gate_frame(picture: Image.Image, gate: np.ndarray, reach: float) -> Image.Image:
    """A gate map [h, w] laid over its picture: the map gives the colour (orange recurrence, blue Fourier), the picture the light."""
    size = max(FRAME, picture.width)
    light = np.asarray(picture.convert("L").resize((size, size), Image.Resampling.NEAREST), dtype=np.float32)[..., None] / 255
    cells = np.asarray(Image.fromarray(gate.astype(np.float32)).resize((size, size), Image.Resampling.NEAREST))
    lean = np.clip((cells - 0.5) / reach, -1, 1)[..., None]
    side = np.where(lean > 0, np.array(_rgb(BLUE)), np.array(_rgb(ORANGE)))
    colour = np.array(MIDDLE) * (1 - np.abs(lean)) + side * np.abs(lean)
    return Image.fromarray((colour * (0.35 + 0.65 * light)).round().astype(np.uint8))


def _step_html(trace: Trace, step: int, reach: float, settled: float, opened: bool) -> str:
    pictures = [Image.fromarray(picture) for picture in trace.previews[step]]
    gates, shares, changes = trace.gates[step], trace.shares[step].mean((2, 3)), trace.changes[step].max((1, 2))
    count = len(pictures)
    rows = [_label("iteration")]
    rows += [f'<span class="number">{index + 1}</span>' for index in range(count)]
    rows += [_label("picture"), _strip(pictures, f"The decoded picture after each of {count} iterations", exact=True)]
    for layer in range(gates.shape[1]):
        frames = [gate_frame(picture, gate, reach) for picture, gate in zip(pictures, gates[:, layer], strict=True)]
        means = ", ".join(f"{value:.2f}" for value in gates[:, layer].mean((-1, -2)))
        rows += [_label(f"layer {layer + 1}"), _strip(frames, f"Gate of layer {layer + 1} over the picture; means {means}")]
        rows += [_label("")] + [_share_bar(share) for share in shares[:, layer]]
    rows += [_label("change")] + [_change_cell(float(value), settled) for value in changes]
    noise = f"noise level {trace.timesteps[step]:.2f}"
    title = f"<summary>Step {step + 1} of {trace.num_steps} <small>{noise}</small></summary>"
    # A scrolling region must be reachable by keyboard.
    grid = f'<div class="grid" style="--n:{count}" tabindex="0" role="region" aria-label="Step {step + 1}">{"".join(rows)}</div>'
    return f'<details{" open" if opened else ""}>{title}{grid}</details>'


def _legend_html(trace: Trace, reach: float) -> str:
    if not trace.gates.size:
        return '<p class="legend">This model\'s core has no gates; only its pictures and the state change are shown.</p>'
    low, high = 0.5 - reach, 0.5 + reach
    paths = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in PATHS.items())
    ramp = f"linear-gradient(90deg,{ORANGE},rgb{MIDDLE},{BLUE})"
    return (
        f'<div class="legend"><span>Gate <b>{low:.2f}</b> recurrence<i class="ramp" style="background:{ramp}"></i>Fourier <b>{high:.2f}</b></span>'
        f'<span class="paths">Contribution: {paths}</span></div>'
    )


def _label(text: str) -> str:
    return f'<span class="label">{text}</span>'


def _strip(frames: Sequence[Image.Image], description: str, exact: bool = False) -> str:
    """Frames side by side as one image across all columns; maps are reduced to 96 colours, pictures are not."""
    side = min(frames[0].width, WIDEST)
    frames = [frame.resize((side, side), Image.Resampling.BOX) if frame.width > side else frame for frame in frames]
    strip = Image.new("RGBA", (len(frames) * (side + GAP) - GAP, side))
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * (side + GAP), 0))
    if not exact:
        strip = strip.quantize(96, method=Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    strip.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="strip" alt="{description}" src="data:image/png;base64,{data}">'


def _share_bar(share: np.ndarray) -> str:
    """The three paths' parts of a layer's output as one thin bar; the numbers are its text."""
    told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in zip(PATHS, share, strict=True))
    parts = "".join(
        f'<i style="width:{100 * value:.1f}%;background:{colour}"></i>' for value, colour in zip(share, PATHS.values(), strict=True)
    )
    return f'<span class="share" role="img" aria-label="{told}" title="{told}">{parts}</span>'


def _change_cell(value: float, settled: float) -> str:
    """How far an iteration moved the state, as a number and a bar on a logarithmic scale from 0.01 to 1."""
    height = 100 * min(1.0, max(0.04, 1 + math.log10(max(value, 1e-6)) / 2))
    return f'<span class="change{" settled" if value < settled else ""}"><i><b style="height:{height:.0f}%"></b></i>{value:.2f}</span>'


def _rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[index:index + 2], 16) for index in (1, 3, 5))
