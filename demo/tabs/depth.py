"""Depth: what thinking longer buys. One seed at several depths, every iteration of a drawing; and the endpoint `/compare_depths`.

No `from __future__ import annotations` here: `gr.api` reads the endpoint's types from the real annotations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from PIL import Image

from demo.drawing import Progress, Stream, core_passes, drawing_stream, saved
from demo.html import curves_html, figure_html, heat, png_data
from demo.model import LoadedModel
from demo.request import GUIDANCE, ITERATIONS, MAX_SEED, STEPS, GenerationRequest, RequestError, whole_number
from demo.serving import MODEL_QUEUE, runs_until_stopped, sentences
from demo.settings import PRIVATE, starting_values
from demo.status import count, status_html, status_line
from demo.tabs.inside import look_stream
from iris.evaluation.probes import Trace
from iris.evaluation.style import evenly

DEPTHS = (1, 2, 4, 8, 16)
TRACED = 16  # iterations of the drawing that the slider goes through
MAX_FRAMES = 256  # pixels: a frame of the slider is not larger
SETTLED = 0.03  # relative change of the state at which automatic depth stops
MAX_DEPTHS = 8
SCRUB = """value => { const film = document.querySelector('#scrub .scrub'); if (!film) return;
  const columns = Number(film.dataset.columns), at = Math.min(value, columns * Number(film.dataset.rows)) - 1;
  film.style.setProperty('--x', at % columns); film.style.setProperty('--y', Math.floor(at / columns));
  const told = document.querySelector('#scrub .told'); if (told) told.textContent = `step ${Math.floor(at / columns) + 1}, iteration ${at % columns + 1}`; }"""
NOTE = (
    '<p class="note">The same noise, drawn with a core that thinks once, twice, or longer in each step. The weights are the same: '
    "only the number of turns changes, and <b>auto</b> decides for itself when nothing moves any more.</p>"
)


@dataclass(frozen=True)
class Depth:
    """One picture of the comparison."""

    depth: int | str
    moment: Progress
    request: GenerationRequest


def build_tab(model: LoadedModel) -> None:
    """The tab's components and events inside the current Blocks."""
    stream, look = drawing_stream(model), look_stream(model)
    steps_at_first, _, scale = starting_values(model)
    gr.HTML(NOTE, elem_classes="plain")
    with gr.Row(elem_classes="ask"):
        prompt = gr.Textbox(
            label="Prompt to draw at several depths", show_label=False, placeholder="Describe a picture, for example: red apple", lines=1,
            max_lines=1, max_length=1000, scale=5, min_width=240, container=False, elem_id="depth-prompt",
        )
        go = gr.Button("Compare", variant="primary", scale=1, min_width=110, elem_id="depth-go")
        stop = gr.Button("Stop", scale=0, min_width=80, interactive=False)
    with gr.Row(elem_classes="numbers"):
        seed = gr.Number(0, label="Seed", minimum=0, maximum=MAX_SEED, step=1, precision=0, min_width=120, elem_id="depth-seed")
        steps = gr.Slider(STEPS[0], 16, min(steps_at_first, 16), step=1, precision=0, label="Steps", buttons=[], min_width=160)
        guidance = gr.Slider(*GUIDANCE, scale, step=0.1, label="Guidance", buttons=[], min_width=160)
    status = status_line("Write a prompt and press Compare.")
    depths = gr.HTML("", elem_id="depths", elem_classes="plain")
    with gr.Row(elem_classes="work even", visible=False) as closer:
        with gr.Column(scale=1, min_width=300):
            film = gr.HTML("", elem_id="scrub", elem_classes="plain")
            slider = gr.Slider(1, TRACED, 1, step=1, precision=0, label="Iteration of the whole drawing", buttons=[], elem_id="scrub-slider")
        with gr.Column(scale=1, min_width=300):
            settled = gr.HTML("", elem_id="settled", elem_classes="plain")
    runs_until_stopped(
        partial(gr.on, [prompt.submit, go.click]), stop, status, _compare_event(stream, look), [prompt, seed, steps, guidance],
        [depths, status, film, settled, slider, closer],
    )
    slider.change(fn=None, js=SCRUB, inputs=slider, **PRIVATE)
    _endpoint(stream)


def compare(stream: Stream, request: GenerationRequest, depths: list[int | str]) -> Iterator[Depth]:
    """One finished picture a depth, from the same noise."""
    for depth in depths:
        asked = replace(request, num_iterations=depth)
        for moment in stream(asked, False):
            if moment.finished:
                yield Depth(depth, moment, asked)


def _compare_event(stream: Stream, look: Callable[[GenerationRequest], Iterator[Trace]]) -> Callable[..., Iterator[tuple]]:
    @sentences
    def watch(prompt: str, seed: float, num_steps: float, guidance_scale: float) -> Iterator[tuple]:
        steps = whole_number("num_steps", num_steps, STEPS[0], 16)
        request = GenerationRequest.parse(prompt, "", seed, steps, TRACED, guidance_scale).with_seed()
        asked, found, nothing = [*DEPTHS, "auto"], [], gr.skip()
        yield "", status_html("Reading the prompt", [f"seed {request.seed}"], 0.0), *[nothing] * 3, gr.update(visible=False)
        for depth in compare(stream, request, asked):
            found.append(depth)
            yield depths_html(found), status_html(f"Depth {depth.depth}", [f"seed {request.seed}"], len(found) / (len(asked) + 1)), *[nothing] * 4
        for trace in look(request):
            total = trace.num_steps * trace.num_iterations
            told = status_html("Done", [f"seed {request.seed}", count(total, "iteration") + " looked at"])
            stopped = found[-1].moment.iterations
            yield nothing, told, scrub_html(trace), settled_html(trace, stopped), gr.update(maximum=total, value=total), gr.update(visible=True)

    return watch


# --- what is shown -------------------------------------------------------------------------------------------------


def depths_html(found: list[Depth]) -> str:
    """The pictures side by side, each with its cost."""
    figures = []
    for item in found:
        cost = f"{count(core_passes(item.request, item.moment.iterations), 'core pass')}, {item.moment.seconds:.1f} s"
        figures.append(figure_html(item.moment.image, "auto" if item.depth == "auto" else count(int(item.depth), "iteration"), cost))
    return f'<div class="depths" tabindex="0" role="region" aria-label="Pictures by depth">{"".join(figures)}</div>'


def scrub_html(trace: Trace) -> str:
    """All decoded iterations as one sheet behind a window; the page's slider moves the window, the server is not asked."""
    rows, columns = trace.num_steps, trace.num_iterations
    side = min(trace.previews.shape[2], MAX_FRAMES)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for row in range(rows):
        for column in range(columns):
            frame = Image.fromarray(trace.previews[row, column])
            sheet.paste(frame if frame.width == side else frame.resize((side, side), Image.Resampling.BOX), (column * side, row * side))
    place = f"--columns:{columns};--rows:{rows};--x:{columns - 1};--y:{rows - 1}"
    return (
        f'<div class="scrub" role="img" aria-label="The picture after the chosen iteration" data-rows="{rows}" data-columns="{columns}" '
        f'style="{place};background-image:url({png_data(sheet)})"></div><p class="note told" aria-live="polite">step {rows}, iteration {columns}</p>'
    )


def settled_html(trace: Trace, stopped: list[int]) -> str:
    """The convergence curve with the threshold and where automatic depth stopped, and how long each place went on moving."""
    chosen = evenly(trace.num_steps, 4)
    series = {f"step {step + 1}": trace.changes[step].mean((1, 2)).tolist() for step in chosen}
    curve = curves_html(series, "core iteration", "relative change of the state", logarithmic=True, line=SETTLED, line_name=f"settled at {SETTLED:g}")
    means = f"{np.mean(stopped):.1f}"
    told = f"Automatic depth stopped after {' + '.join(map(str, stopped))} iterations, {means} a step."
    maps = "".join(
        figure_html(heat(thinking_time(trace, step), 1, trace.num_iterations + 1, 96), f"step {step + 1}", f"noise {trace.timesteps[step]:.2f}")
        for step in evenly(trace.num_steps, 6)
    )
    return (
        f'<p class="section">How fast the state settles</p>{curve}<p class="note">{told}</p>'
        f'<p class="section">Thinking map</p><div class="maps" tabindex="0" role="region" aria-label="Thinking map">{maps}</div>'
        f'<p class="note">The darker a place, the more iterations (up to {trace.num_iterations}) until it settled.</p>'
    )


def thinking_time(trace: Trace, step: int) -> np.ndarray:
    """Iterations until each token's change fell below SETTLED, [h, w]; one more than there are where it never did."""
    still = trace.changes[step] < SETTLED
    return np.where(still.any(0), still.argmax(0), trace.num_iterations) + 1


# --- the endpoint --------------------------------------------------------------------------------------------------


def _endpoint(stream: Stream) -> None:
    @sentences
    def compare_depths(
        prompt: str, depths: list = [1, 4, "auto"], seed: int | None = None, num_steps: int = 8, guidance_scale: float = 3.0,  # noqa: B006
    ) -> tuple[list[FileData], dict]:
        """Draw one seed at several depths.

        Args:
            prompt: what to draw, up to 1000 characters.
            depths: up to 8 numbers of core iterations, each 1 to 32 or "auto".
            seed: a whole number from 0 to 2147483647; none means random. The seed used is returned.
            num_steps: solver steps, 1 to 32.
            guidance_scale: how strictly to follow the prompt, 0 to 10.

        Returns:
            One PNG a depth, and depths, iterations, core_passes and seconds of each, with the seed.
        """
        if not isinstance(depths, list) or not 1 <= len(depths) <= MAX_DEPTHS:
            raise RequestError(f"depths must be a list of 1 to {MAX_DEPTHS} numbers of iterations.")
        asked = ["auto" if depth == "auto" else whole_number("depths", depth, *ITERATIONS, other="auto") for depth in depths]
        request = GenerationRequest.parse(prompt, "", seed, num_steps, asked[0], guidance_scale).with_seed()
        files, told = [], {"prompt": request.prompt, "seed": request.seed, "depths": asked, "iterations": [], "core_passes": [], "seconds": []}
        for item in compare(stream, request, asked):
            files.append(FileData(path=saved(item.moment.image, item.moment.parameters), mime_type="image/png").model_dump())
            told["iterations"].append(item.moment.iterations)
            told["core_passes"].append(core_passes(item.request, item.moment.iterations))
            told["seconds"].append(round(item.moment.seconds, 3))
        yield files, told

    gr.api(compare_depths, api_name="compare_depths", concurrency_id=MODEL_QUEUE)
