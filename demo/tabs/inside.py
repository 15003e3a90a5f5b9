"""Inside: one drawing taken apart, iteration by iteration; and the endpoint `/inspect`, which returns the same numbers.

No `from __future__ import annotations` here: `gr.api` reads the endpoint's types from the real annotations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from demo.filmstrip import film_note, filmstrip_html
from demo.knockout import PATHS, can_knock_out, without_path
from demo.model import LoadedModel
from demo.pictures import Shown, row_html
from demo.ranges import ranges_html
from demo.request import GUIDANCE, MAX_SEED, STEPS, GenerationRequest, whole_number
from demo.serving import MODEL_QUEUE, on_gpu, runs_until_stopped, sentences
from demo.settings import PRIVATE, ask_row, refreshing, starting_values, suggestion, within_limits
from demo.status import count, status_html, status_line
from iris.evaluation.probes import Trace, tracing

# Every iteration is decoded and kept, so a look inside costs more than a picture: fewer iterations than in Create.
MAX_ITERATIONS = 16
Looking = Callable[[GenerationRequest], Iterator["int | Trace"]]


@dataclass(frozen=True)
class InsideTab:
    """What other tabs may join to: `request` takes what `receive` gives, `run_after(event.then)` looks, `refresh_on(event)` follows the model."""

    request: list[Component]
    run_after: Callable[[Callable[..., Any]], None]
    refresh_on: Callable[[Callable[..., Any]], Any]


def build_tab(model: LoadedModel) -> InsideTab:
    """The tab's components and events inside the current Blocks."""
    look = look_stream(model)
    steps_at_first, depth, scale = _first_values(model)
    prompt, go, stop = ask_row(model, "inside", "Prompt to look inside", "Look inside")
    with gr.Row(elem_classes="numbers"):
        seed = gr.Number(0, label="Seed", minimum=0, maximum=MAX_SEED, step=1, precision=0, min_width=120, elem_id="inside-seed")
        steps = gr.Slider(*STEPS, steps_at_first, step=1, precision=0, label="Steps", buttons=[], min_width=160)
        iterations = gr.Slider(1, MAX_ITERATIONS, depth, step=1, precision=0, label="Iterations", buttons=[], min_width=160)
    with gr.Accordion("Advanced", open=False, elem_classes="quiet"):
        guidance = gr.Slider(*GUIDANCE, scale, step=0.1, label="Guidance", buttons=[])
        negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=1, max_length=1000, info="Only with guidance above 1.")
    request = [prompt, negative, seed, steps, iterations, guidance]
    status = status_line()
    film = gr.HTML(film_note(), elem_id="film", elem_classes="plain")
    with gr.Row(elem_classes="actions"):
        silence = gr.Button("Draw it without each path", size="md", scale=0, min_width=220, elem_id="silence", visible=can_knock_out(model.pipeline))
    silenced = gr.HTML("", elem_id="silenced", elem_classes="plain")
    with gr.Accordion("How far it looks", open=False, elem_classes="quiet", elem_id="ranges") as ranges:
        charts = gr.HTML("", elem_classes="plain")
    ranges.expand(lambda: ranges_html(model.pipeline), None, charts, **PRIVATE)

    watch = _look_event(model, look)

    def run_after(start: Callable[..., Any]) -> None:
        runs_until_stopped(start, stop, status, watch, request, [film, status, seed])

    run_after(partial(gr.on, [prompt.submit, go.click]))
    runs_until_stopped(silence.click, stop, status, _silence_event(model), request, [silenced, status, seed])
    _inspect_endpoint(model, look)

    def values() -> tuple:
        return gr.update(placeholder=suggestion(model)), *_first_values(model), gr.update(visible=can_knock_out(model.pipeline))

    return InsideTab(request, run_after, refreshing(model, values, [prompt, steps, iterations, guidance, silence]))


def _first_values(model: LoadedModel) -> tuple[int, int, float]:
    """Steps, iterations and guidance that the tab begins with; automatic depth becomes eight, so that there is something to see."""
    steps, depth, scale = starting_values(model)
    return steps, 8 if depth == "auto" else min(int(depth), MAX_ITERATIONS), scale


def receive(
    prompt: str, negative_prompt: str, seed: float, num_steps: float, num_iterations: float, auto: bool, guidance_scale: float,
) -> tuple:
    """A request of the Create tab as this tab's; automatic depth becomes the most, so that one sees where it settles."""
    depth = MAX_ITERATIONS if auto else min(num_iterations, MAX_ITERATIONS)
    return prompt, negative_prompt, seed, num_steps, depth, guidance_scale


def look_stream(model: LoadedModel) -> Looking:
    """A request with a seed and a number of iterations -> the steps done so far, then the trace: Stop is heard after each step."""

    @on_gpu(lambda request: min(120, 15 + request.max_core_passes // 5))
    def look(request: GenerationRequest) -> Iterator[int | Trace]:
        yield (yield from tracing(model.pipeline, **request.arguments()))

    return look


def _look_event(model: LoadedModel, look: Looking) -> Callable[..., Iterator[tuple]]:
    """The page's own event: settings -> (filmstrip, status, seed)."""

    @sentences
    def watch(
        prompt: str, negative_prompt: str, seed: float, num_steps: float, num_iterations: float, guidance_scale: float,
    ) -> Iterator[tuple]:
        request = _parse(prompt, negative_prompt, seed, num_steps, num_iterations, guidance_scale)
        cost = [count(request.max_core_passes, "core pass"), f"seed {request.seed}"]
        yield gr.skip(), status_html(f"Looking at {count(request.num_steps, 'step')}", cost), _chosen(seed, request)
        for result in look(request):
            if isinstance(result, int):
                yield gr.skip(), status_html(f"Step {result} of {request.num_steps}", cost, result / request.num_steps), gr.skip()
                continue
            told = status_html(f"{count(result.num_steps, 'step')}, {count(result.num_iterations, 'iteration')} each", cost)
            yield filmstrip_html(result, model.pipeline.defaults.exit_threshold), told, gr.skip()

    return watch


def silencing_stream(model: LoadedModel) -> Callable[[GenerationRequest], Iterator[float | tuple[str, Image.Image]]]:
    """A request -> (what is silent, picture): the whole core first, then without each path, from the same noise; after each step the share done."""

    @on_gpu(lambda request: min(120, 15 + request.max_core_passes // 5))
    def stream(request: GenerationRequest) -> Iterator[float | tuple[str, Image.Image]]:
        whole, names = model.pipeline, ("", *PATHS)
        for index, name in enumerate(names):
            for preview in (without_path(whole, name) if name else whole).stream(**request.arguments()):
                yield (index + preview.step / preview.num_steps) / len(names)
                image = preview.images[0]
            yield name, image

    return stream


def _silence_event(model: LoadedModel) -> Callable[..., Iterator[tuple]]:
    """The page's own event: settings -> (pictures without each path, status, seed)."""
    stream = silencing_stream(model)

    @sentences
    def silence(
        prompt: str, negative_prompt: str, seed: float, num_steps: float, num_iterations: float, guidance_scale: float,
    ) -> Iterator[tuple]:
        request = _parse(prompt, negative_prompt, seed, num_steps, num_iterations, guidance_scale)
        row = [Shown(None, "whole core"), *(Shown(None, f"without {name}") for name in PATHS)]
        yield row_html(row, model.pipeline.image_size), status_html("Drawing the whole core", [f"seed {request.seed}"], 0.0), _chosen(seed, request)
        index = 0
        for drawn in stream(request):
            if isinstance(drawn, float):
                yield gr.skip(), status_html(f"Picture {index + 1} of {len(row)}", [f"seed {request.seed}"], drawn), gr.skip()
                continue
            name, image = drawn
            whole = image if not name else row[0].image
            moved = np.abs(np.asarray(image, dtype=float) - np.asarray(whole)).mean()
            row[index] = Shown(image, row[index].caption, f"a pixel moves by {moved:.1f} of 255" if name else "the picture itself")
            last = index == len(row) - 1
            told = status_html("Same weights, same noise, one path silent" if last else f"Picture {index + 1} of {len(row)}",
                               [f"seed {request.seed}"], None if last else (index + 1) / len(row))
            yield row_html(row, model.pipeline.image_size), told, gr.skip()
            index += 1

    return silence


def _chosen(seed: float | None, request: GenerationRequest) -> Any:
    """An empty seed is filled with the one that was drawn, so that the tab's two buttons show one drawing."""
    return request.seed if seed is None else gr.skip()


def _inspect_endpoint(model: LoadedModel, look: Looking) -> None:
    """The endpoint `/inspect`."""
    steps, _, scale = within_limits(model.pipeline.defaults)

    @sentences
    def inspect(
        prompt: str, negative_prompt: str = "", seed: int | None = None, num_steps: int = steps, num_iterations: int = 8,
        guidance_scale: float = scale,
    ) -> dict:
        """Take one drawing apart: gates, contributions and state change of every step, iteration and layer.

        Args:
            prompt: what to draw, up to 1000 characters.
            negative_prompt: what to keep away from; works with a guidance_scale other than 1.
            seed: a whole number from 0 to 2147483647; none means random. The seed used is returned.
            num_steps: solver steps, 1 to 32.
            num_iterations: core iterations in each step, 1 to 16.
            guidance_scale: how strictly to follow the prompt, 0 to 10; 1 means without guidance.

        Returns:
            After every step the request, with the seed used, and the step; with the last one also timesteps of every step (1 is noise, 0 the picture); gates
            [step][iteration][layer][row][column] from 0 (recurrence) to 1 (Fourier); shares [step][iteration][layer] of the
            Fourier, recurrent and spatial path; changes [step][iteration], the relative change of the token that moves most.
        """
        request = _parse(prompt, negative_prompt, seed, num_steps, num_iterations, guidance_scale)
        for result in look(request):
            if isinstance(result, int):
                yield {**request.to_dict(), "step": result, "finished": False}
                continue
            yield {
                **request.to_dict(), "step": result.num_steps, "finished": True,
                "timesteps": [round(float(t), 4) for t in result.timesteps],
                "gates": result.gates.round(3).tolist(), "shares": result.shares.mean((3, 4)).round(4).tolist(),
                "changes": result.changes.max((2, 3)).round(5).tolist(),
            }

    gr.api(inspect, api_name="inspect", concurrency_id=MODEL_QUEUE)


def _parse(
    prompt: object, negative_prompt: object, seed: object, num_steps: object, num_iterations: object, guidance_scale: object,
) -> GenerationRequest:
    """The request within this tab's limits."""
    depth = whole_number("num_iterations", num_iterations, 1, MAX_ITERATIONS)
    return GenerationRequest.parse(prompt, negative_prompt, seed, num_steps, depth, guidance_scale).with_seed()
