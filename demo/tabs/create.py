"""Create: a prompt becomes a picture, shown after every step; and the endpoint `/generate`, which does the same.

No `from __future__ import annotations` here: `gr.api` reads the endpoint's types from the real annotations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.data_classes import FileData
from PIL import Image

from demo.png import file_name, write_png
from demo.request import GUIDANCE, ITERATIONS, MAX_SEED, STEPS, GenerationRequest
from demo.serving import MODEL_QUEUE, cache_file, on_gpu, runs_until_stopped, sentences
from demo.status import count, status_html, status_line
from iris.pipeline import IRISPipeline

MAX_EXAMPLES = 6
SMOOTH_FROM = 200  # px: larger pictures are scaled smoothly, smaller ones in crisp squares


@dataclass(frozen=True)
class Progress:
    """One moment of a drawing: plain values that may cross to a ZeroGPU process and back."""

    step: int
    num_steps: int
    image: Image.Image
    iterations: list[int]
    seconds: float
    parameters: dict[str, Any] | None = None  # with the last picture: all it takes to make it again

    @property
    def finished(self) -> bool:
        return self.parameters is not None


@dataclass(frozen=True)
class CreateTab:
    """What other tabs may join to: `request` holds prompt, negative prompt, seed, steps, iterations, automatic and guidance."""

    look_inside: gr.Button
    request: list[Component]


Stream = Callable[[GenerationRequest], Iterator[Progress]]


def build_tab(pipeline: IRISPipeline) -> CreateTab:
    """The tab's components and events inside the current Blocks."""
    stream = drawing_stream(pipeline)
    with gr.Row(elem_classes="ask"):
        prompt = gr.Textbox(
            label="Prompt", show_label=False, placeholder="Describe a picture, for example: red apple", lines=1, max_lines=1,
            max_length=1000, scale=5, min_width=240, container=False, autofocus=True, elem_id="prompt",
        )
        go = gr.Button("Generate", variant="primary", scale=1, min_width=110, elem_id="generate")
        stop = gr.Button("Stop", variant="secondary", scale=0, min_width=80, interactive=False, elem_id="stop")
    examples = _examples(pipeline.metadata.get("examples", []))
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=1, min_width=300):
            picture = gr.Image(
                label="Picture", show_label=False, format="png", type="pil", interactive=False, buttons=["fullscreen"], elem_id="picture",
                elem_classes=["picture"] + (["pixels"] if pipeline.image_size < SMOOTH_FROM else []), alt_text="No picture yet",
            )
        with gr.Column(scale=1, min_width=300):
            status = status_line()
            with gr.Row(elem_classes="actions"):
                save = gr.DownloadButton("Save PNG", size="md", interactive=False, min_width=120, elem_id="save")
                look_inside = gr.Button("Look inside", size="md", min_width=120, elem_id="look-inside")
            settings = _settings(pipeline)
    seed, randomise, steps, iterations, auto, guidance, negative = settings

    draw = _draw_event(stream)
    inputs = [prompt, negative, seed, randomise, steps, iterations, auto, guidance]
    private = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    starts = [partial(gr.on, [prompt.submit, go.click])]
    if examples is not None:
        starts.append(examples.click(lambda sample: sample[0], examples, prompt, **private).then)
    for start in starts:
        runs_until_stopped(start, stop, status, draw, inputs, [picture, status, seed, save])
    auto.change(lambda on: gr.update(interactive=not on), auto, iterations, **private)
    randomise.change(lambda on: gr.update(interactive=not on), randomise, seed, **private)
    _generate_endpoint(pipeline, stream)
    return CreateTab(look_inside, [prompt, negative, seed, steps, iterations, auto, guidance])


def drawing_stream(pipeline: IRISPipeline) -> Stream:
    """A request with a seed -> Progress after every step; on a ZeroGPU Space it borrows a GPU for as long as it needs."""

    @on_gpu(lambda request: min(120, 10 + request.max_core_passes // 20))
    def stream(request: GenerationRequest) -> Iterator[Progress]:
        for preview in pipeline.stream(**request.to_dict()):
            iterations = list(preview.iterations[0])
            result = preview.result
            parameters = None if result is None else {**result.parameters_of(0), "iterations": iterations}
            yield Progress(preview.step, preview.num_steps, preview.images[0], iterations, preview.seconds, parameters)

    return stream


def _draw_event(stream: Stream) -> Callable[..., Iterator[tuple]]:
    """The page's own event: settings -> (picture, status, seed, download) after every step."""

    @sentences
    def draw(
        prompt: str, negative_prompt: str, seed: float, randomise: bool, num_steps: float, num_iterations: float, auto: bool,
        guidance_scale: float,
    ) -> Iterator[tuple]:
        request = GenerationRequest.parse(
            prompt, negative_prompt, None if randomise else seed, num_steps, "auto" if auto else num_iterations, guidance_scale,
        ).with_seed()
        nothing = gr.skip()
        told = status_html("Reading the prompt", [f"seed {request.seed}"], 0.0)
        yield gr.update(alt_text=request.prompt), told, request.seed, gr.update(interactive=False)
        for moment in stream(request):
            told = _status(request, moment)
            if not moment.finished:
                yield moment.image, told, nothing, nothing
                continue
            path = _saved(request, moment)
            yield path, told, nothing, gr.update(value=path, interactive=True)

    return draw


def _generate_endpoint(pipeline: IRISPipeline, stream: Stream) -> None:
    """The endpoint `/generate`; the pipeline's defaults become its defaults."""
    defaults = pipeline.defaults

    # gr.api takes the annotation as the type of one yielded value, hence a tuple and not an Iterator.
    @sentences
    def generate(
        prompt: str, negative_prompt: str = "", seed: int | None = None, num_steps: int = min(defaults.num_steps, STEPS[1]),
        num_iterations: int | str = defaults.num_iterations, guidance_scale: float = float(defaults.guidance_scale),
    ) -> tuple[FileData, dict]:
        """Draw a picture from words, with a preview after every step.

        Args:
            prompt: what to draw, up to 1000 characters, for example "red apple".
            negative_prompt: what to keep away from; works with a guidance_scale other than 1.
            seed: a whole number from 0 to 2147483647; none means random. The seed used is returned.
            num_steps: solver steps, 1 to 32.
            num_iterations: how often the core thinks in each step, 1 to 32, or "auto" to stop by itself.
            guidance_scale: how strictly to follow the prompt, 0 to 10; 1 means without guidance, at half the cost.

        Returns:
            The picture as a PNG that carries its parameters, and the parameters with seed, iterations and seconds.
        """
        request = GenerationRequest.parse(prompt, negative_prompt, seed, num_steps, num_iterations, guidance_scale).with_seed()
        for moment in stream(request):
            told = {
                **_parameters(request, moment), "step": moment.step, "seconds": round(moment.seconds, 3),
                "core_passes": _core_passes(request, moment), "finished": moment.finished,
            }
            yield FileData(path=_saved(request, moment), mime_type="image/png").model_dump(), told

    gr.api(generate, api_name="generate", concurrency_id=MODEL_QUEUE)


def _examples(prompts: object) -> gr.Dataset | None:
    """A row of prompts to press; a model's metadata is a file from anywhere, so only short strings pass."""
    if not isinstance(prompts, (list, tuple)):
        return None
    texts = [text.strip() for text in prompts if isinstance(text, str) and 0 < len(text.strip()) <= 80][:MAX_EXAMPLES]
    if not texts:
        return None
    return gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[[text] for text in texts], layout="gallery", label="Examples", show_label=False,
        samples_per_page=MAX_EXAMPLES, elem_id="examples", container=False,
    )


def _settings(pipeline: IRISPipeline) -> tuple[Component, ...]:
    """Seed, randomise, steps, iterations, automatic, guidance and negative prompt, at the pipeline's defaults."""
    defaults = pipeline.defaults
    automatic = defaults.num_iterations == "auto"
    with gr.Row(elem_classes="seed-row"):
        seed = gr.Slider(0, MAX_SEED, value=0, step=1, precision=0, label="Seed", interactive=False, scale=3, min_width=180, buttons=[], elem_id="seed")
        randomise = gr.Checkbox(value=True, label="Random", scale=0, min_width=100, elem_id="randomise")
    with gr.Accordion("Advanced", open=False, elem_id="advanced", elem_classes="quiet"):
        steps = gr.Slider(
            *STEPS, value=min(defaults.num_steps, STEPS[1]), step=1, precision=0, label="Steps", buttons=[], elem_id="steps",
            info="How often the picture is refined.",
        )
        iterations = gr.Slider(
            *ITERATIONS, value=8 if automatic else min(int(defaults.num_iterations), ITERATIONS[1]), step=1, precision=0, label="Iterations",
            info="How long the core thinks in each step.", interactive=not automatic, buttons=[], elem_id="iterations",
        )
        auto = gr.Checkbox(value=automatic, label="Decide iterations automatically", elem_id="auto")
        guidance = gr.Slider(
            *GUIDANCE, value=float(defaults.guidance_scale), step=0.1, label="Guidance", buttons=[], elem_id="guidance",
            info="How strictly to follow the prompt. 1 is off and costs half.",
        )
        negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=3, max_length=1000, info="What to keep away from, with guidance above 1.")
    return seed, randomise, steps, iterations, auto, guidance, negative


def _parameters(request: GenerationRequest, moment: Progress) -> dict[str, Any]:
    """What the PNG and the endpoint tell; a preview tells the request and the iterations so far."""
    return moment.parameters or {**request.to_dict(), "iterations": moment.iterations}


def _saved(request: GenerationRequest, moment: Progress) -> str:
    """The picture as a PNG with its parameters, where Gradio serves files from."""
    return cache_file(write_png(moment.image, _parameters(request, moment)), file_name(request.prompt, request.seed))


def _core_passes(request: GenerationRequest, moment: Progress) -> int:
    return sum(moment.iterations) * request.guidance_factor


def _status(request: GenerationRequest, moment: Progress) -> str:
    """`Step 2 of 4` with what it has cost so far."""
    facts = [count(_core_passes(request, moment), "core pass"), f"{moment.seconds:.1f} s", f"seed {request.seed}"]
    if moment.finished and request.num_iterations == "auto":
        facts.insert(0, "iterations " + " + ".join(map(str, moment.iterations)))
    headline = f"Done in {count(moment.num_steps, 'step')}" if moment.finished else f"Step {moment.step} of {moment.num_steps}"
    return status_html(headline, facts, None if moment.finished else moment.step / moment.num_steps)
