"""Seed, steps, iterations and guidance in a closed accordion, for the tabs beside Create."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from demo.model import LoadedModel
from demo.request import GUIDANCE, ITERATIONS, MAX_SEED, STEPS
from demo.settings import PRIVATE, Components, starting_values


@dataclass(frozen=True)
class NumberFields(Components):
    """The numbers of a drawing, and whether two of them are decided by chance or by the model."""

    seed: Component
    randomise: Component
    steps: Component
    iterations: Component
    auto: Component
    guidance: Component


def build_numbers(model: LoadedModel, name: str) -> NumberFields:
    """The accordion inside the current layout; `name` begins the components' ids."""
    num_steps, depth, scale = starting_values(model)
    automatic = depth == "auto"
    with gr.Accordion("Advanced", open=False, elem_classes="quiet", elem_id=f"{name}-advanced"):
        seed = gr.Number(0, label="Seed", minimum=0, maximum=MAX_SEED, step=1, precision=0, min_width=120, elem_id=f"{name}-seed")
        randomise = gr.Checkbox(True, label="Random seed", elem_id=f"{name}-random")
        steps = gr.Slider(*STEPS, num_steps, step=1, precision=0, label="Steps", buttons=[], elem_id=f"{name}-steps")
        iterations = gr.Slider(
            *ITERATIONS, 8 if automatic else depth, step=1, precision=0, label="Iterations", buttons=[], interactive=not automatic,
            elem_id=f"{name}-iterations",
        )
        auto = gr.Checkbox(automatic, label="Decide iterations automatically")
        guidance = gr.Slider(*GUIDANCE, scale, step=0.1, label="Guidance", buttons=[])
    auto.change(lambda on: gr.update(interactive=not on), auto, iterations, **PRIVATE)
    return NumberFields(seed, randomise, steps, iterations, auto, guidance)
