"""Depth made visible: one seed at several depths, and a finished drawing that can be scrubbed through, turn by turn.

The scrubbing happens in the browser: all pictures of a drawing lie on one sheet, and two sliders move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from demo.chart import Line, Scale, line_chart
from demo.model import LoadedModel
from demo.pictures import Shown, crisp, data_uri, row_html, sheet
from demo.request import GenerationRequest
from demo.serving import on_gpu
from demo.status import count
from iris.evaluation.probes import Trace, tracing
from iris.pipeline import GeneratedImages, IRISPipeline

MAX_REFINED = 8  # pictures shown
DEPTHS: tuple[int | str, ...] = (1, 2, 4, 8, 16, "auto")
VIOLET, GROUND = np.array((99, 73, 196)), np.array((243, 239, 234))
_MOVE = ("const f=this.closest('.scrub');f.style.setProperty('--{0}',this.value-1);"
         "this.parentElement.querySelector('output').value=this.value")


NOTE = ("The core runs the same weights again and again before the model answers. Here one seed is drawn with less and more "
        "of that, and then one drawing is opened turn by turn.")


def depth_note(pipeline: IRISPipeline) -> str:
    """What the tab shows, and what thinking longer was measured to buy in this model: shares drawn right by iterations ("by_iterations" of
    its metadata), or the distances to real pictures of its depth exam."""
    shares, distances = _by_iterations(pipeline.metadata.get("by_iterations")), _by_iterations(_exam_distances(pipeline.metadata))
    said = " What it buys has not been measured for this model."
    if len(shares) > 1:
        said = f" Measured in this model, held-out captions drawn right with every step begun anew: {_after(shares, '.0%')}."
    elif len(distances) > 1:
        said = f" Measured in this model, how far its pictures are from real ones (0 is best): {_after(distances, '.3f')}."
    return f'<p class="note">{NOTE}{said}</p>'


def _by_iterations(told: object) -> dict[int, float]:
    """Iterations -> figure, of what a stranger's metadata may hold in its place."""
    return {int(key): float(value) for key, value in (told.items() if isinstance(told, dict) else ())
            if str(key).isdecimal() and 0 < int(key) <= 64 and isinstance(value, (int, float)) and 0 <= value <= 1}


def _exam_distances(metadata: dict[str, Any]) -> dict[Any, Any]:
    try:
        return {row["num_iterations"]: row["kid"]["value"] for row in metadata["figures"]["depth"]["by_iterations"]}
    except (KeyError, TypeError):
        return {}


def _after(figures: dict[int, float], form: str) -> str:
    return ", ".join(f"{value:{form}} after {count(number, 'iteration')}" for number, value in sorted(figures.items())[:8])


@dataclass(frozen=True)
class AtDepth:
    """One seed drawn at one depth: plain values that may cross to a ZeroGPU process and back."""

    depth: int | str
    image: Image.Image
    iterations: list[int]
    seconds: float
    parameters: dict

    def shown(self, factor: int) -> Shown:
        """factor: core passes an iteration costs, 2 with guidance."""
        name = "automatic" if self.depth == "auto" else f"{self.depth} iteration" + ("s" if self.depth != 1 else "")
        return Shown(self.image, name, f"{sum(self.iterations) * factor} core passes · {self.seconds:.1f} s")


@dataclass(frozen=True)
class Thought:
    """A drawing at a fixed depth with all its turns, and where automatic depth stopped in each step, below `threshold`."""

    trace: Trace
    stops: list[int]
    threshold: float


@dataclass(frozen=True)
class Refined:
    """A finished picture and what thinking on made of it, the newest last; `result` is what the next turn starts from."""

    request: GenerationRequest
    pictures: tuple[Shown, ...]
    result: GeneratedImages


Comparing = Callable[[GenerationRequest, Sequence["int | str"]], Iterator["float | AtDepth"]]


def comparing_stream(model: LoadedModel) -> Comparing:
    """(request, depths) -> the same seed at one depth after another, and after each step the share done, by which Stop is heard."""

    @on_gpu(lambda request, depths: min(120, 10 + request.num_steps * request.guidance_factor * 4 * len(depths) // 10))
    def stream(request: GenerationRequest, depths: Sequence[int | str]) -> Iterator[float | AtDepth]:
        for index, depth in enumerate(depths):
            asked = replace(request, num_iterations=depth)
            for preview in model.pipeline.stream(**asked.arguments()):
                yield (index + preview.step / preview.num_steps) / len(depths)
                result = preview.result
            yield AtDepth(depth, result.images[0], result.iterations[0], result.seconds, {**result.parameters_of(0), "iterations": result.iterations[0]})

    return stream


def thinking_stream(model: LoadedModel) -> Callable[[GenerationRequest], Iterator[float | Thought]]:
    """A request of a fixed depth -> the share of the work done after each step, by which Stop is heard, then its Thought."""

    @on_gpu(lambda request: min(120, 15 + request.max_core_passes // 5))
    def stream(request: GenerationRequest) -> Iterator[float | Thought]:
        for preview in model.pipeline.stream(**replace(request, num_iterations="auto").arguments()):
            yield preview.step / preview.num_steps / 2
        stops, steps = list(preview.iterations[0]), tracing(model.pipeline, **request.arguments())
        while True:
            try:
                yield 0.5 + next(steps) / request.num_steps / 2
            except StopIteration as end:
                yield Thought(end.value, stops, model.pipeline.defaults.exit_threshold)
                return

    return stream


def refining_stream(model: LoadedModel) -> Callable[[GenerationRequest | Refined], Iterator[float | Refined]]:
    """A request, or what was refined so far -> of a request first the finished picture, with the share done after each step; then one that
    was thought on about.

    Nothing is drawn again from noise: a little of it is laid over the finished picture, and one step goes on from the core's state at the
    end (`IRISPipeline.refine`).
    """

    @on_gpu(lambda kept: min(120, 10 + request_of(kept).max_core_passes // 20))
    def stream(kept: GenerationRequest | Refined) -> Iterator[float | Refined]:
        request, before = request_of(kept), kept
        if not isinstance(before, Refined):
            for preview in model.pipeline.stream(**request.arguments()):
                yield preview.step / (preview.num_steps + 1)
                result = preview.result
            before = Refined(request, (Shown(result.images[0], "finished", _cost(request, result)),), result)
            yield before
        result = model.pipeline.refine(before.result, num_iterations=request.num_iterations)
        times = len(result.parameters["refined"])
        shown = Shown(result.images[0], f"refined {times} ×", _cost(request, result))
        yield Refined(request, (*before.pictures, shown)[-MAX_REFINED:], result)

    return stream


def request_of(kept: GenerationRequest | Refined) -> GenerationRequest:
    """What is refined, before its first refinement and after."""
    return kept.request if isinstance(kept, Refined) else kept


def _cost(request: GenerationRequest, result: GeneratedImages) -> str:
    return f"{sum(result.iterations[0]) * request.guidance_factor} core passes · {result.seconds:.1f} s"


def depths_html(done: Sequence[AtDepth], depths: Sequence[int | str], factor: int, size: int) -> str:
    """The pictures so far, and empty squares for those to come."""
    row = [at.shown(factor) for at in done]
    waiting = [Shown(None, "automatic" if depth == "auto" else str(depth)) for depth in depths[len(done):]]
    return row_html([*row, *waiting], size)


def scrub_html(thought: Thought) -> str:
    """Picture, thinking map and curve of one drawing, moved by two sliders; it opens at the last step's last turn."""
    told = thought.trace
    steps, turns, size = told.num_steps, told.num_iterations, told.image.shape[0]
    pictures = data_uri(sheet(told.previews), lossy=True)
    maps = data_uri(sheet(np.stack([[heat_frame(told.previews[s, i], told.changes[s, i]) for i in range(turns)] for s in range(steps)])), lossy=True)
    start = f"--i:{turns - 1};--s:{steps - 1};--n:{turns};--m:{steps}"
    sliders = _slider("Iteration", "i", turns) + (_slider("Step", "s", steps) if steps > 1 else "")
    return (
        f'<div class="scrub{crisp(size)}" style="{start}"><div class="views">'
        f'<figure><div class="frame" role="img" aria-label="The picture after the chosen turn" style="background-image:url({pictures})"></div>'
        "<figcaption>The picture so far<small>where the velocity after this turn points</small></figcaption></figure>"
        f'<figure><div class="frame" role="img" aria-label="Thinking map of the chosen turn" style="background-image:url({maps})"></div>'
        f"<figcaption>Thinking map<small>violet where this turn still moved the state</small></figcaption></figure></div>"
        f'<div class="sliders">{sliders}</div>{convergence_svg(thought)}</div>'
    )


def convergence_svg(thought: Thought) -> str:
    """Change of the token that moves most by iteration, one line a step, with a dot where automatic depth stopped."""
    changes = thought.trace.changes.max((2, 3))
    lines = []
    for step, row in enumerate(changes):
        stop = thought.stops[step] if step < len(thought.stops) else 0
        dots = [(stop, float(row[stop - 1]))] if 0 < stop <= len(row) else []
        lines.append(Line([(turn + 1, float(change)) for turn, change in enumerate(row)], "step", f"--k:{step}", dots))
    stopped = ", ".join(map(str, thought.stops))

    def cursor(scale: Scale) -> str:
        width = scale.x(2) - scale.x(1)
        x, low, high = scale.x(1), scale.y(scale.low), scale.y(scale.high)
        return f'<line class="cursor" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" style="--w:{width:.2f}px"/>'

    chart = line_chart(lines, f"Change of the state by iteration; automatic depth stopped at {stopped}", "iteration", "largest change of a token", thought.threshold, cursor)
    return (f'<figure class="curve">{chart}<figcaption>How far each turn still moves the state<small>one line a step, the chosen one strong; '
            f"dots: after how many iterations automatic depth went on ({stopped}), below {thought.threshold:g} in a drawing of its own</small></figcaption></figure>")


def heat_frame(picture: np.ndarray, change: np.ndarray) -> np.ndarray:
    """A change map [h, w] over its picture uint8 [H, W, 3]: colour from 0.01 (none) to 1 (violet), the picture gives the light."""
    heat = np.clip(1 + np.log10(np.maximum(change, 1e-6)) / 2, 0, 1).astype(np.float32)
    cells = np.asarray(Image.fromarray(heat).resize(picture.shape[1::-1], Image.Resampling.NEAREST))[..., None]
    light = picture.mean(-1, keepdims=True) / 255
    return ((GROUND * (1 - cells) + VIOLET * cells) * (0.35 + 0.65 * light)).round().astype(np.uint8)


def _slider(name: str, variable: str, most: int) -> str:
    return (f'<label>{name}<input type="range" min="1" max="{most}" value="{most}" aria-label="{name}" oninput="{_MOVE.format(variable)}">'
            f"<output>{most}</output></label>")
