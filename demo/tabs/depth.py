"""Depth: what thinking longer buys. One seed at several iterations, then one drawing turn by turn; and `/compare_depths`.

No `from __future__ import annotations` here: `gr.api` reads the endpoint's types from the real annotations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.data_classes import FileData

from demo.drawing import saved
from demo.model import LoadedModel
from demo.pictures import row_html
from demo.request import GUIDANCE, ITERATIONS, MAX_SEED, GenerationRequest, RequestError, whole_number
from demo.serving import MODEL_QUEUE, runs_until_stopped, sentences
from demo.settings import ask_row, refreshing, starting_values, suggestion, within_limits
from demo.status import count, status_html, status_line
from demo.thinking import (
    DEPTHS,
    Comparing,
    Refined,
    comparing_stream,
    depth_note,
    depths_html,
    refining_stream,
    request_of,
    scrub_html,
    thinking_stream,
)

MAX_STEPS = 16
MAX_DEPTHS = 8


@dataclass(frozen=True)
class DepthTab:
    """What other tabs may join to: `request` takes what `receive` gives, `run_after(event.then)` compares, `refresh_on(event)` follows the model."""

    request: list[Component]
    run_after: Callable[[Callable[..., Any]], None]
    refresh_on: Callable[[Callable[..., Any]], Any]


def build_tab(model: LoadedModel) -> DepthTab:
    """The tab's components and events inside the current Blocks."""
    steps_at_first, _, scale = starting_values(model)
    note = gr.HTML(depth_note(model.pipeline), elem_id="depth-note", elem_classes="plain")
    prompt, go, stop = ask_row(model, "depth", "Prompt to compare", "Compare")
    with gr.Row(elem_classes="numbers"):
        seed = gr.Number(0, label="Seed", minimum=0, maximum=MAX_SEED, step=1, precision=0, min_width=120, elem_id="depth-seed")
        steps = gr.Slider(1, MAX_STEPS, min(steps_at_first, MAX_STEPS), step=1, precision=0, label="Steps", buttons=[], min_width=160, elem_id="depth-steps")
        turns = gr.Slider(
            2, ITERATIONS[1], 16, step=1, precision=0, label="Iterations to open", buttons=[], min_width=160, elem_id="depth-iterations",
        )
    with gr.Accordion("Advanced", open=False, elem_classes="quiet"):
        guidance = gr.Slider(*GUIDANCE, scale, step=0.1, label="Guidance", buttons=[])
        negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=1, max_length=1000, info="Only with guidance above 1.")
    status = status_line()
    compared = gr.HTML("", elem_id="depths", elem_classes="plain")
    opened = gr.HTML("", elem_id="turns", elem_classes="plain")
    refine = gr.Button("Keep refining", size="md", visible=False, elem_id="refine")
    refined = gr.HTML("", elem_id="refined", elem_classes="plain")
    kept = gr.State(None)

    request = [prompt, negative, seed, steps, turns, guidance]
    compare, open_turns = comparing_stream(model), thinking_stream(model)
    watch = _depth_event(model, compare, open_turns)

    def run_after(start: Callable[..., Any]) -> None:
        runs_until_stopped(start, stop, status, watch, request, [compared, opened, status, refine, refined, kept])

    run_after(partial(gr.on, [prompt.submit, go.click]))
    runs_until_stopped(refine.click, stop, status, _refine_event(model), [kept], [refined, status, kept])
    _compare_endpoint(model, compare)

    def values() -> tuple:
        num_steps, _, guide = starting_values(model)
        return depth_note(model.pipeline), gr.update(placeholder=suggestion(model)), min(num_steps, MAX_STEPS), guide

    return DepthTab(request, run_after, refreshing(model, values, [note, prompt, steps, guidance]))


def receive(
    prompt: str, negative_prompt: str, seed: float, num_steps: float, num_iterations: float, auto: bool, guidance_scale: float,
) -> tuple:
    """A request of the Create tab as this tab's."""
    return prompt, negative_prompt, seed, min(num_steps, MAX_STEPS), 16, guidance_scale


def _parse(prompt: object, negative_prompt: object, seed: object, num_steps: object, turns: object, guidance_scale: object) -> GenerationRequest:
    """The request within this tab's limits."""
    return GenerationRequest.parse(
        prompt, negative_prompt, seed, whole_number("num_steps", num_steps, 1, MAX_STEPS), whole_number("num_iterations", turns, *ITERATIONS), guidance_scale,
    ).with_seed()


def _depth_event(model: LoadedModel, compare: Comparing, open_turns: Callable) -> Callable[..., Iterator[tuple]]:
    """The page's own event: settings -> the comparison, the opened drawing, status, whether it can be refined, and what would be."""

    @sentences
    def watch(
        prompt: str, negative_prompt: str, seed: float, num_steps: float, turns: float, guidance_scale: float,
    ) -> Iterator[tuple]:
        request, size = _parse(prompt, negative_prompt, seed, num_steps, turns, guidance_scale), model.pipeline.image_size
        facts, nothing, done = [f"seed {request.seed}", count(request.num_steps, "step")], gr.skip(), []
        empty = depths_html(done, DEPTHS, request.guidance_factor, size)
        yield empty, "", status_html("Drawing the first depth", facts, 0.0), gr.update(visible=False), "", None
        for at in compare(request, DEPTHS):
            if isinstance(at, float):
                yield nothing, nothing, status_html(f"Drawing depth {len(done) + 1} of {len(DEPTHS)}", facts, at * len(DEPTHS) / (len(DEPTHS) + 1)), *[nothing] * 3
                continue
            done.append(at)
            told = status_html(f"Depth {len(done)} of {len(DEPTHS)}", facts, len(done) / (len(DEPTHS) + 1))
            yield depths_html(done, DEPTHS, request.guidance_factor, size), nothing, told, *[nothing] * 3
        for thought in open_turns(request):
            if isinstance(thought, float):
                yield nothing, nothing, status_html("Opening the drawing", facts, (len(DEPTHS) + thought) / (len(DEPTHS) + 1)), *[nothing] * 3
                continue
            facts = [f"{request.num_steps} × {request.num_iterations}", f"seed {request.seed}", "automatic stopped at " + ", ".join(map(str, thought.stops))]
            yield nothing, scrub_html(thought), status_html("Move the sliders to go back in time", facts), gr.update(visible=True), nothing, request

    return watch


def _refine_event(model: LoadedModel) -> Callable[..., Iterator[tuple]]:
    """The page's own event: what was compared, or refined so far -> pictures, status, what is refined now. The fields may say something else by then."""
    stream = refining_stream(model)

    @sentences
    def refine(kept: GenerationRequest | Refined | None) -> Iterator[tuple]:
        if kept is None:
            raise RequestError("There is nothing to refine yet; press Compare first.")
        request = request_of(kept)
        yield gr.skip(), status_html("Thinking on", [f"seed {request.seed}"], 0.0), gr.skip()
        for further in stream(kept):
            if isinstance(further, float):
                yield gr.skip(), status_html("Drawing it once more", [f"seed {request.seed}"], further), gr.skip()
                continue
            pictures = f"<h3>Thought on from the finished picture</h3>{row_html(further.pictures, model.pipeline.image_size)}"
            yield pictures, status_html("A little noise over the finished picture, and one step on from the state it ended with", [f"seed {request.seed}"]), further

    return refine


def _compare_endpoint(model: LoadedModel, compare: Comparing) -> None:
    steps, _, scale = within_limits(model.pipeline.defaults)

    @sentences
    def compare_depths(
        prompt: str, negative_prompt: str = "", seed: int | None = None, depths: list = [1, 2, 4, 8, 16],  # noqa: B006 - gr.api shows it
        num_steps: int = min(steps, MAX_STEPS), guidance_scale: float = scale,
    ) -> tuple[list[FileData], list]:
        """Draw one seed at several numbers of core iterations, to see what thinking longer buys.

        Args:
            prompt: what to draw, up to 1000 characters.
            negative_prompt: what to keep away from; works with a guidance_scale other than 1.
            seed: a whole number from 0 to 2147483647; none means random. The seed used is returned.
            depths: 1 to 8 numbers of iterations, each from 1 to 32, or "auto".
            num_steps: solver steps, 1 to 16.
            guidance_scale: how strictly to follow the prompt, 0 to 10; 1 means without guidance.

        Returns:
            A PNG for every depth, in their order, and the parameters of each with iterations, core passes and seconds.
        """
        if not isinstance(depths, list) or not 1 <= len(depths) <= MAX_DEPTHS:
            raise RequestError(f"depths must be a list of 1 to {MAX_DEPTHS} numbers of iterations.")
        asked = ["auto" if depth == "auto" else whole_number("depths", depth, *ITERATIONS, other="auto") for depth in depths]
        request = _parse(prompt, negative_prompt, seed, num_steps, 1, guidance_scale)
        files, told = [], []
        for at in compare(request, asked):
            if isinstance(at, float):
                yield list(files), list(told)  # nothing new, but here a request to stop is heard
                continue
            files.append(FileData(path=saved(at.image, at.parameters), mime_type="image/png").model_dump())
            told.append({**at.parameters, "core_passes": sum(at.iterations) * request.guidance_factor, "seconds": round(at.seconds, 3)})
            yield list(files), list(told)

    gr.api(compare_depths, api_name="compare_depths", concurrency_id=MODEL_QUEUE)
