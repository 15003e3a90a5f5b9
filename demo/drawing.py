"""One picture, moment by moment: after every solver step, or on request after every core iteration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from demo.model import LoadedModel
from demo.png import file_name, write_png
from demo.request import GenerationRequest
from demo.serving import cache_file, on_gpu
from iris.flow import velocity_to_data
from iris.nn.generator import relative_change
from iris.pipeline import IRISPipeline
from iris.sampling import SOLVER_STEPS, GuidedVelocity


@dataclass(frozen=True)
class Progress:
    """One moment of a drawing: plain values that may cross to a ZeroGPU process and back.

    iterations: those of every step begun so far. parameters: with the last picture, all it takes to make it again.
    """

    step: int
    num_steps: int
    image: Image.Image
    iterations: list[int]
    seconds: float
    parameters: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        return self.parameters is not None


Stream = Callable[[GenerationRequest, bool], Iterator[Progress]]


def drawing_stream(model: LoadedModel) -> Stream:
    """(request with a seed, every iteration?) -> Progress; on a ZeroGPU Space it borrows a GPU for as long as it needs."""

    @on_gpu(lambda request, every_iteration=False: min(120, 10 + request.max_core_passes // 20))
    def stream(request: GenerationRequest, every_iteration: bool = False) -> Iterator[Progress]:
        # With Heun a step is no single call of the network, so only its steps can be shown.
        if every_iteration and model.pipeline.defaults.sampler in SOLVER_STEPS:
            yield from thinking(model.pipeline, request)
            return
        for preview in model.pipeline.stream(**request.arguments()):
            iterations = list(preview.iterations[0])
            result = preview.result
            parameters = None if result is None else {**result.parameters_of(0), "iterations": iterations}
            yield Progress(preview.step, preview.num_steps, preview.images[0], iterations, preview.seconds, parameters)

    return stream


@torch.inference_mode()
def thinking(pipeline: IRISPipeline, request: GenerationRequest) -> Iterator[Progress]:
    """The picture that `pipeline.stream` draws, shown after every core iteration as the data its velocity points to."""
    started = time.monotonic()
    asked = pipeline._request(**request.arguments(), num_images=1, sampler=None)
    field = pipeline._velocity(asked, *pipeline.contexts(asked.prompts, asked.negative_prompt))
    z, times, renoise = pipeline._noise(asked.seeds), asked.times(), pipeline._renoise(asked.seeds)
    spent: list[int] = []
    for index in range(asked.num_steps):
        t = times[index].expand(1).to(z)
        for used, velocity in enumerate(_velocities(pipeline, field, z, t), start=1):
            data = velocity_to_data(z, velocity, t)
            yield Progress(index + 1, asked.num_steps, pipeline.decode(data)[0], [*spent, used], time.monotonic() - started)
        spent.append(used)
        field.spent.append(torch.tensor([used]))
        z, _ = SOLVER_STEPS[asked.sampler](z, velocity, times, index, renoise)
    result = pipeline._result(asked, z, field, started)
    yield Progress(asked.num_steps, asked.num_steps, result.images[0], spent, result.seconds, {**result.parameters_of(0), "iterations": spent})


def _velocities(pipeline: IRISPipeline, field: GuidedVelocity, z: Tensor, t: Tensor) -> Iterator[Tensor]:
    """The guided velocity after each iteration, until the field's depth is reached or, with "auto", both passes are still."""
    automatic = field.num_iterations == "auto"
    embedded = field.embed(z, t)
    start = field.state if field.carry_state else None
    previous = torch.zeros_like(embedded.injected) if start is None else start
    for state in pipeline.generator.iterate(embedded, field.context, field.max_iterations if automatic else int(field.num_iterations), start):
        velocity, field.state = pipeline.generator.readout(state.tokens, embedded), state.tokens
        yield field.guide(velocity)
        still = bool((relative_change(state.tokens, previous) < field.threshold).all())
        if automatic and still and state.iteration >= field.fewest(start):
            return
        previous = state.tokens


def told_parameters(request: GenerationRequest, moment: Progress) -> dict[str, Any]:
    """What the PNG and the endpoints tell; a preview tells the request and the iterations so far."""
    return moment.parameters or {**request.to_dict(), "iterations": moment.iterations}


def core_passes(request: GenerationRequest, iterations: list[int]) -> int:
    """What a drawing has cost: core iterations, twice with guidance."""
    return sum(iterations) * request.guidance_factor


def saved(image: Image.Image, parameters: dict[str, Any]) -> str:
    """The picture as a PNG with its parameters, where Gradio serves files from."""
    return cache_file(write_png(image, parameters), file_name(str(parameters["prompt"]), int(parameters["seed"])))
