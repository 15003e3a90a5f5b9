"""Between two pictures: the way from one prompt and seed to another as a short animation; and the endpoint `/interpolate`.

No `from __future__ import annotations` here: `gr.api` reads the endpoint's types from the real annotations.
"""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from PIL import Image

from demo.fields import build_numbers
from demo.model import LoadedModel
from demo.pictures import crisp, data_uri
from demo.request import MAX_SEED, GenerationRequest, whole_number
from demo.serving import MODEL_QUEUE, cache_file, on_gpu, runs_until_stopped, sentences
from demo.settings import number_values, refreshing, within_limits
from demo.status import count, status_html, status_line
from iris.editing import interpolation

FRAMES = (3, 16)
FRAME_MILLISECONDS = 140
MOVING_MILLISECONDS = 5000  # what moves longer by itself needs a way to stop it (WCAG 2.2.2)
NOTE = '<p class="note">Noise turns along a great circle from one seed to the other, and the words fade from one prompt into the other.</p>'


@dataclass(frozen=True)
class Way:
    """A checked request for an animation."""

    request: GenerationRequest
    other_prompt: str
    other_seed: int
    frames: int


@dataclass(frozen=True)
class Film:
    """One moment: every frame as it looks now, and with the last one the numbers it took."""

    step: int
    num_steps: int
    frames: list[Image.Image]
    seconds: float
    core_passes: int
    finished: bool


Filming = Callable[[Way], Iterator[Film]]


def build_tab(model: LoadedModel) -> Callable[[Callable[..., Any]], Any]:
    """The tab's components and events inside the current Blocks; returns what brings them up to date on an event."""
    stream = filming(model)
    gr.HTML(NOTE, elem_classes="plain")
    with gr.Row():
        prompt = gr.Textbox(label="From", placeholder=model.example, lines=1, max_lines=1, max_length=1000, min_width=200, elem_id="from")
        other = gr.Textbox(label="To", placeholder="The same words when left empty", lines=1, max_lines=1, max_length=1000, min_width=200, elem_id="to")
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Animate", variant="primary", scale=1, min_width=110, elem_id="between-go")
        stop = gr.Button("Stop", scale=0, min_width=80, interactive=False)
    with gr.Row(elem_classes="work even"):
        with gr.Column(scale=1, min_width=300):
            film = gr.HTML(film_html([]), elem_id="between", elem_classes="plain")
        with gr.Column(scale=1, min_width=300):
            status = status_line("Write two prompts and press Animate.")
            save = gr.DownloadButton("Save animation", size="md", interactive=False)
            frames = gr.Slider(*FRAMES, 8, step=1, precision=0, label="Frames", buttons=[], elem_id="frames")
            other_seed = gr.Number(1, label="Seed at the end", minimum=0, maximum=MAX_SEED, step=1, precision=0, elem_id="other-seed")
            numbers = build_numbers(model, "between")
    inputs = [prompt, other, frames, other_seed, *numbers.components]
    runs_until_stopped(
        partial(gr.on, [prompt.submit, other.submit, go.click]), stop, status, _animate_event(stream), inputs, [film, status, numbers.seed, save], go,
    )
    _interpolate_endpoint(model, stream)
    return refreshing(model, lambda: (gr.update(placeholder=model.example), *number_values(model)),
                      [prompt, numbers.steps, numbers.iterations, numbers.auto, numbers.guidance])


def filming(model: LoadedModel) -> Filming:
    """A way -> its films, one a step; on a ZeroGPU Space it borrows a GPU."""

    @on_gpu(lambda way: min(120, 10 + way.frames * way.request.max_core_passes // 40))
    def stream(way: Way) -> Iterator[Film]:
        settings = way.request.arguments()
        for preview in interpolation(
            model.pipeline, settings.pop("prompt"), way.other_prompt, settings.pop("seed"), way.other_seed, way.frames, **settings,
        ):
            spent = sum(map(sum, preview.iterations)) * way.request.guidance_factor
            yield Film(preview.step, preview.num_steps, preview.images, preview.seconds, spent, preview.result is not None)

    return stream


def film_html(frames: list[Image.Image], finished: bool = True) -> str:
    """The animation in a square, and its frames in a row below; an empty square without frames, and the first one, standing, before all are finished."""
    if not frames:
        return '<div class="moving empty"></div>'
    look = crisp(frames[0].width)
    row = f'<div class="frames{look}">' + "".join(_still(frame, index, len(frames), finished) for index, frame in enumerate(frames)) + "</div>"
    if not finished:  # with every step megabytes would go to a phone
        return f'<img class="moving{look}" alt="The first of {len(frames)} frames" src="{data_uri(frames[0], lossy=True)}">' + row
    turns = max(1, MOVING_MILLISECONDS // (FRAME_MILLISECONDS * max(1, 2 * len(frames) - 2)))
    moving = f'<img class="moving{look}" alt="Animation of {len(frames)} frames" src="data:image/webp;base64,{base64.b64encode(animation(frames, turns)).decode()}">'
    shown = f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{data_uri(frames[0])}">{moving}</picture>'
    return shown + row


def animation(frames: list[Image.Image], turns: int = 0) -> bytes:
    """The frames there and back as a lossless WebP, so many times; 0: endless."""
    there_and_back = [*frames, *frames[-2:0:-1]]
    buffer = io.BytesIO()
    there_and_back[0].save(buffer, "WEBP", save_all=True, append_images=there_and_back[1:], duration=FRAME_MILLISECONDS, loop=turns, lossless=True)
    return buffer.getvalue()


def _still(frame: Image.Image, index: int, count: int, exact: bool) -> str:
    return f'<img alt="Frame {index + 1} of {count}" src="{data_uri(frame, lossy=not exact)}">'


def _plan(prompt: object, other_prompt: object, seed: object, other_seed: object, frames: object, num_steps: object, num_iterations: object,
          guidance_scale: object) -> Way:
    """Check untrusted values; raises RequestError, or PromptError from `iris.text`."""
    request = GenerationRequest.parse(prompt, "", seed, num_steps, num_iterations, guidance_scale).with_seed()
    other = replace(request, prompt=GenerationRequest.parse(other_prompt or prompt, "", other_seed, 1, 1, 1.0).prompt)
    last = request.seed if other_seed is None else whole_number("other_seed", other_seed, 0, MAX_SEED)
    return Way(request, other.prompt, last, whole_number("frames", frames, *FRAMES))


def _animate_event(stream: Filming) -> Callable[..., Iterator[tuple]]:
    @sentences
    def animate(
        prompt: str, other_prompt: str, frames: float, other_seed: float, seed: float, randomise: bool, num_steps: float, num_iterations: float,
        auto: bool, guidance_scale: float,
    ) -> Iterator[tuple]:
        way = _plan(prompt, other_prompt, None if randomise else seed, other_seed, frames, num_steps, "auto" if auto else num_iterations, guidance_scale)
        nothing = gr.skip()
        yield nothing, status_html("Reading the prompts", [f"seeds {way.request.seed} and {way.other_seed}"], 0.0), way.request.seed if randomise or seed is None else nothing, gr.update(interactive=False)
        for film in stream(way):
            facts = [count(film.core_passes, "core pass"), f"{film.seconds:.1f} s"]
            headline = count(len(film.frames), "frame") if film.finished else f"Step {film.step} of {film.num_steps}"
            told = status_html(headline, facts, None if film.finished else film.step / film.num_steps)
            path = cache_file(animation(film.frames), "iris-animation.webp") if film.finished else None
            yield film_html(film.frames, film.finished), told, nothing, gr.update(value=path, interactive=True) if path else nothing

    return animate


def _interpolate_endpoint(model: LoadedModel, stream: Filming) -> None:
    steps, depth, scale = within_limits(model.pipeline.defaults)

    @sentences
    def interpolate(
        prompt: str, other_prompt: str = "", seed: int | None = None, other_seed: int | None = None, frames: int = 8, num_steps: int = steps,
        num_iterations: int | str = depth, guidance_scale: float = scale,
    ) -> tuple[FileData, dict]:
        """Pictures on the way from one prompt and seed to another, as an animation there and back; a preview after every step.

        Args:
            prompt: where it begins, up to 1000 characters.
            other_prompt: where it ends; the same prompt when empty.
            seed: of the first frame, 0 to 2147483647; none means random.
            other_seed: of the last frame; the first one's when none.
            frames: 3 to 16.
            num_steps: solver steps, 1 to 32.
            num_iterations: core iterations in each step, 1 to 32, or "auto".
            guidance_scale: how strictly to follow the prompts, 0 to 10.

        Returns:
            An animated lossless WebP, and what it took.
        """
        way = _plan(prompt, other_prompt, seed, other_seed, frames, num_steps, num_iterations, guidance_scale)
        for film in stream(way):
            told = {**way.request.to_dict(), "other_prompt": way.other_prompt, "other_seed": way.other_seed, "frames": way.frames,
                    "core_passes": film.core_passes, "seconds": round(film.seconds, 3), "step": film.step, "finished": film.finished}
            path = cache_file(animation(film.frames), "iris-animation.webp")
            yield FileData(path=path, mime_type="image/webp").model_dump(), told

    gr.api(interpolate, api_name="interpolate", concurrency_id=MODEL_QUEUE)
