"""The settings of a drawing as components, and the two ways to fill them: from a request and from the model's own defaults."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr
from gradio.components import Component

from demo.effort import NAMES, effort_named, efforts
from demo.model import LoadedModel
from demo.request import GUIDANCE, ITERATIONS, MAX_SEED, STEPS, GenerationRequest
from iris.pipeline import SamplingDefaults
from iris.sampling import SOLVER_STEPS

MAX_IMAGES = 4
PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
QUEUED = {**PRIVATE, "queue": True, "concurrency_limit": None}  # only through the queue a warning or an error's sentence reaches the page


class Components:
    """Base of a dataclass of components."""

    @property
    def components(self) -> list[Component]:
        """In the order in which events take them."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Settings(Components):
    """All that decides a picture but its prompt, in the order in which `fill` gives their values."""

    negative: Component
    seed: Component
    randomise: Component
    steps: Component
    iterations: Component
    auto: Component
    guidance: Component
    effort: Component


def ask_row(model: LoadedModel, name: str, label: str, action: str) -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """The first row of a tab beside Create: prompt, a button that begins and one that stops; `name` begins the components' ids."""
    with gr.Row(elem_classes="ask"):
        prompt = gr.Textbox(
            label=label, show_label=False, placeholder=suggestion(model), lines=1, max_lines=1,
            max_length=1000, scale=5, min_width=240, container=False, elem_id=f"{name}-prompt",
        )
        go = gr.Button(action, variant="primary", scale=1, min_width=110, elem_id=f"{name}-go")
        stop = gr.Button("Stop", scale=0, min_width=80, interactive=False, elem_id=f"{name}-stop")
    return prompt, go, stop


def fill(model: LoadedModel, request: GenerationRequest, held: bool = True) -> tuple[Any, ...]:
    """Values for Settings.components that draw `request` again, if its seed is `held`."""
    auto = request.num_iterations == "auto"
    return (
        request.negative_prompt, gr.update(value=request.seed, interactive=held), not held, request.num_steps,
        gr.update(interactive=False) if auto else gr.update(value=request.num_iterations, interactive=True), auto, request.guidance_scale,
        effort_named(model.pipeline, request.num_steps, request.num_iterations),
    )


def fill_defaults(model: LoadedModel) -> tuple[Any, ...]:
    """The present model's own values, with a random seed."""
    steps, iterations, _ = starting_values(model)
    return "", gr.update(interactive=False), True, *number_values(model), effort_named(model.pipeline, steps, iterations)


def number_values(model: LoadedModel) -> tuple[Any, ...]:
    """The present model's own steps, iterations, "automatic" and guidance, for fields that were built for another one."""
    steps, depth, scale = starting_values(model)
    automatic = depth == "auto"
    return steps, gr.update(interactive=False) if automatic else gr.update(value=depth, interactive=True), automatic, scale


def within_limits(defaults: SamplingDefaults) -> tuple[int, int | str, float]:
    """Steps, iterations and guidance that a model's makers chose, within what this page and its endpoints allow."""
    iterations = defaults.num_iterations
    depth = "auto" if iterations == "auto" else min(int(iterations), ITERATIONS[1])
    return min(defaults.num_steps, STEPS[1]), depth, min(float(defaults.guidance_scale), GUIDANCE[1])


def starting_values(model: LoadedModel) -> tuple[int, int | str, float]:
    """What the fields begin with: the makers' choice, or the best of the model's efforts where that is none of them."""
    steps, depth, scale = within_limits(model.pipeline.defaults)
    if effort_named(model.pipeline, steps, depth) is None:
        steps, depth = efforts(model.pipeline)["Best"]
    return steps, depth, scale


def refreshing(model: LoadedModel, values: Callable[[], tuple], outputs: list[Component]) -> Callable[[Callable[..., Any]], Any]:
    """A function of an event that brings `outputs` up to date, where another model has been loaded since the page was built."""
    built_for = weakref.ref(model.pipeline)  # the page must not keep a model that has been exchanged

    def fresh() -> tuple:
        return (gr.skip(),) * len(outputs) if model.pipeline is built_for() else values()

    return lambda event: event(fresh, None, outputs, **PRIVATE)


def suggestion(model: LoadedModel) -> str:
    """What an empty prompt field says."""
    return f"Describe a picture, for example: {model.example}"


def can_watch(model: LoadedModel) -> bool:
    """Whether `drawing_stream` can show every iteration: a step is one call of the network."""
    return model.pipeline.defaults.sampler in SOLVER_STEPS


def build_settings(model: LoadedModel) -> tuple[Settings, Component, Component]:
    """The components inside the current layout, then the number of images and "every iteration", which no picture depends on."""
    steps_at_first, depth, scale = starting_values(model)
    automatic = depth == "auto"
    effort = gr.Radio(NAMES, value=effort_named(model.pipeline, steps_at_first, depth), label="Effort", elem_id="effort", elem_classes="effort")
    with gr.Row(elem_classes="seed-row"):
        seed = gr.Slider(0, MAX_SEED, value=0, step=1, precision=0, label="Seed", interactive=False, scale=3, min_width=180, buttons=[], elem_id="seed")
        randomise = gr.Checkbox(value=True, label="Random", scale=0, min_width=100, elem_id="randomise")
    with gr.Accordion("Advanced", open=False, elem_id="advanced", elem_classes="quiet"):
        steps = gr.Slider(
            *STEPS, value=steps_at_first, step=1, precision=0, label="Steps", buttons=[], elem_id="steps", info="How often the picture is refined.",
        )
        iterations = gr.Slider(
            *ITERATIONS, value=8 if automatic else depth, step=1, precision=0, label="Iterations", info="How long the core thinks in each step.",
            interactive=not automatic, buttons=[], elem_id="iterations",
        )
        auto = gr.Checkbox(value=automatic, label="Decide iterations automatically", elem_id="auto")
        guidance = gr.Slider(
            *GUIDANCE, value=scale, step=0.1, label="Guidance", buttons=[], elem_id="guidance",
            info="How strictly to follow the prompt. 1 is off and costs half.",
        )
        negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=3, max_length=1000, info="What to keep away from, with guidance above 1.")
        images = gr.Slider(1, MAX_IMAGES, value=1, step=1, precision=0, label="Pictures", buttons=[], elem_id="images", info="One after another; the seed counts up.")
        watch = gr.Checkbox(value=False, label="Show every core iteration", elem_id="watch", info="Decoding them all takes longer.",
                            visible=can_watch(model))
    settings = Settings(negative, seed, randomise, steps, iterations, auto, guidance, effort)
    _join(model, settings)
    return settings, images, watch


def _join(model: LoadedModel, settings: Settings) -> None:
    """An effort moves the numbers; a number moved by hand takes the effort's name away."""
    steps, iterations, auto, effort = settings.steps, settings.iterations, settings.auto, settings.effort
    last = {**PRIVATE, "trigger_mode": "always_last"}  # of quick choices the last one counts
    effort.input(lambda name: _numbers(model, name), effort, [steps, iterations, auto], **last)
    for moved in (steps, iterations, auto):
        moved.input(
            lambda number, depth, on: effort_named(model.pipeline, number, "auto" if on else depth), [steps, iterations, auto], effort, **last,
        )
    auto.change(lambda on: gr.update(interactive=not on), auto, iterations, **PRIVATE)
    settings.randomise.change(lambda on: gr.update(interactive=not on), settings.randomise, settings.seed, **PRIVATE)


def _numbers(model: LoadedModel, name: str) -> tuple[Any, ...]:
    effort = efforts(model.pipeline).get(name)
    if effort is None:
        return gr.skip(), gr.skip(), gr.skip()
    auto = effort.num_iterations == "auto"
    return effort.num_steps, gr.skip() if auto else effort.num_iterations, auto
