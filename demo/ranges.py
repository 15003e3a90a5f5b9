"""How far the mixer has learned to look: the reach of the spatial heads and the memory of the recurrent channels, as charts."""

from __future__ import annotations

import weakref

import numpy as np

from demo.chart import Line, line_chart
from iris.evaluation.probes import ProbeError, learned_ranges
from iris.evaluation.style import PATHS
from iris.pipeline import IRISPipeline

_DRAWN: weakref.WeakKeyDictionary[IRISPipeline, str] = weakref.WeakKeyDictionary()


def ranges_html(pipeline: IRISPipeline) -> str:
    """Two charts, one line a core layer, values in order of size; a sentence for a mixer without these paths. Drawn once a model."""
    if pipeline not in _DRAWN:
        _DRAWN[pipeline] = _charts(pipeline)
    return _DRAWN[pipeline]


def _charts(pipeline: IRISPipeline) -> str:
    try:
        found = learned_ranges(pipeline.generator)
    except ProbeError:
        return '<p class="note">This model\'s core has no spatial and recurrent path.</p>'
    side = found.grid
    radii = _chart(found.radii, side, PATHS["spatial"], "head", "Reach of the spatial heads")
    memory = _chart(found.memory, side, PATHS["recurrence"], "channel", "Memory of the recurrent channels")
    return (f'<div class="pair"><figure>{radii}<figcaption>How far each spatial head looks<small>tokens until its weight has fallen to 1/e</small>'
            f"</figcaption></figure><figure>{memory}<figcaption>How long each recurrent channel remembers<small>tokens until a state has faded to 1/e, "
            f'at a half-open gate</small></figcaption></figure></div><p class="note">One line a core layer, in order of size; dashed: the side of the '
            f"grid, {side} tokens. They are weights, learned once, and the same for every picture.</p>")


def _chart(values: np.ndarray, side: int, colour: str, unit: str, described: str) -> str:
    """values [L, n] in tokens."""
    lines = [Line([(index + 1, float(value)) for index, value in enumerate(np.sort(row))], "ranges", f"--line:{colour}") for row in values]
    return line_chart(lines, f"{described}: from {values.min():.1f} to {values.max():.1f} tokens", unit, "tokens", float(side))
