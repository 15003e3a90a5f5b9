"""Create: a prompt becomes a picture, shown while it forms; and the endpoint `/generate`, which does the same.

No `from __future__ import annotations` here: `gr.api` reads the endpoint's types from the real annotations.
"""

import html
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.data_classes import FileData

from demo.drawing import Progress, Stream, core_passes, drawing_stream, saved, told_parameters
from demo.link import AGAIN, COPY_LINK, KEEP_IN_ADDRESS, LABEL, has_seed, read_link
from demo.model import LoadedModel, example_prompts
from demo.pictures import NOTHING, looks
from demo.png import PngError, read_png
from demo.request import MAX_SEED, GenerationRequest, RequestError, whole_number
from demo.serving import MODEL_QUEUE, cache_picture, press, runs_until_stopped, sentences, without_tags
from demo.settings import (
    MAX_IMAGES,
    PRIVATE,
    QUEUED,
    build_settings,
    can_watch,
    fill,
    fill_defaults,
    refreshing,
    starting_values,
    suggestion,
    within_limits,
)
from demo.status import count, status_html, status_line
from demo.visit import Drawn, captions, picked, remember
from iris.pipeline import IRISPipeline
from iris.text import PromptError

MAX_EXAMPLES = 6


@dataclass(frozen=True)
class CreateTab:
    """What the page joins to: `request` holds prompt, negative prompt, seed, steps, iterations, automatic and guidance.

    restore_on(event) fills the settings when a page is opened, refresh_on(event) what suggests prompts; `chosen` is the picture on show, as a Drawn.
    """

    think_longer: gr.Button
    look_inside: gr.Button
    edit: gr.Button
    request: list[Component]
    chosen: gr.State
    restore_on: Callable[[Callable[..., Any]], Any]
    refresh_on: Callable[[Callable[..., Any]], Any]


def build_tab(model: LoadedModel) -> CreateTab:
    """The tab's components and events inside the current Blocks."""
    stream = drawing_stream(model)
    visit, chosen = gr.State([]), gr.State(None)
    with gr.Row(elem_classes="ask"):
        prompt = gr.Textbox(
            label="Prompt", show_label=False, placeholder=suggestion(model), lines=1, max_lines=1,
            max_length=1000, scale=5, min_width=240, container=False, autofocus=True, elem_id="prompt",
        )
        go = gr.Button("Generate", variant="primary", scale=1, min_width=110, elem_id="generate")
        stop = gr.Button("Stop", variant="secondary", scale=0, min_width=80, interactive=False, elem_id="stop")
    examples = _examples(model)
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=1, min_width=300):
            picture = gr.Image(
                NOTHING, label="Picture", show_label=False, format="png", type="pil", interactive=False, buttons=["fullscreen"], elem_id="picture",
                elem_classes=looks(model.pipeline.image_size, "picture"), alt_text="No picture yet",
            )
        with gr.Column(scale=1, min_width=300):
            status = status_line()
            with gr.Row(elem_classes="actions four"):
                save = gr.DownloadButton("Save PNG", size="md", interactive=False, min_width=100, elem_id="save")
                think_longer = gr.Button("Think longer", size="md", min_width=110, elem_id="think-longer")
                look_inside = gr.Button("Look inside", size="md", min_width=100, elem_id="look-inside")
                edit = gr.Button("Edit", size="md", min_width=70, interactive=False, elem_id="edit")
            settings, images, watch = build_settings(model)
            link, drop = _restoring()
    with gr.Column(visible=False, elem_id="visit") as shelf:
        gallery = gr.Gallery(
            label="This visit", format="png", columns=8, height="auto", object_fit="contain", allow_preview=False, buttons=[],
            interactive=False, elem_classes=looks(model.pipeline.image_size, "visit"),
        )
        again = gr.Button("Use its settings again", size="md", elem_id="again", interactive=False)
    request = [prompt, settings.negative, settings.seed, settings.steps, settings.iterations, settings.auto, settings.guidance]
    state = [prompt, *settings.components, images]

    draw = _draw_event(model, stream)
    inputs = [*request, settings.randomise, images, watch, visit]
    outputs = [picture, status, settings.seed, save, edit, visit, chosen, gallery, shelf]
    start = partial(gr.on, [prompt.submit, go.click])
    start(fn=None, js=KEEP_IN_ADDRESS, inputs=[*request, settings.randomise], **PRIVATE)
    runs_until_stopped(start, stop, status, draw, inputs, outputs, go)
    examples.click(lambda sample: sample[0], examples, prompt, **PRIVATE).then(fn=None, js=press(go), **PRIVATE)

    gallery.select(_show_again, visit, [picture, status, save, edit, chosen, again], **PRIVATE)
    again.click(lambda drawn: _fill_again(model, drawn), chosen, state, **PRIVATE)
    drop.upload(lambda path: _restore_png(model, path), drop, [*state, status], **QUEUED)
    link.click(fn=None, js=COPY_LINK, inputs=request, outputs=link, **PRIVATE).then(fn=None, js=AGAIN, outputs=link, **PRIVATE)
    _generate_endpoint(model, stream)

    built_for = weakref.ref(model.pipeline)

    def opened(page_request: gr.Request) -> tuple:  # gradio gives the request to a plain function alone, not to a partial
        return _restore_link(model, page_request.query_params, built_for())

    def values() -> tuple:
        size = model.pipeline.image_size
        return (gr.update(placeholder=suggestion(model)), _examples_of(model), gr.update(elem_classes=looks(size, "picture")),
                gr.update(elem_classes=looks(size, "visit")), gr.update(visible=can_watch(model)))

    refresh_on = refreshing(model, values, [prompt, examples, picture, gallery, watch])
    return CreateTab(think_longer, look_inside, edit, request, chosen, lambda event: event(opened, None, [*state, status], **PRIVATE), refresh_on)


def _restoring() -> tuple[gr.Button, gr.File]:
    with gr.Accordion("Share and restore", open=False, elem_classes="quiet"):
        link = gr.Button(LABEL, size="md", elem_id="link")
        drop = gr.File(file_types=[".png"], label="Restore from a saved PNG", height=150, elem_id="drop")
    return link, drop


# --- drawing -------------------------------------------------------------------------------------------------------


def _draw_event(model: LoadedModel, stream: Stream) -> Callable[..., Iterator[tuple]]:
    """The page's own event: settings -> picture, status, seed, download, edit, visit, chosen, gallery and its shelf, after every step."""

    @sentences
    def draw(
        prompt: str, negative_prompt: str, seed: float, num_steps: float, num_iterations: float, auto: bool, guidance_scale: float,
        randomise: bool, num_images: float, every_iteration: bool, visit: list[Drawn],
    ) -> Iterator[tuple]:
        images = whole_number("pictures", num_images, 1, MAX_IMAGES)
        first = GenerationRequest.parse(
            prompt, negative_prompt, None if randomise else seed, num_steps, "auto" if auto else num_iterations, guidance_scale,
        ).with_seed()
        nothing = gr.skip()
        beyond = len(model.pipeline.unread(first.prompt).split())
        told = status_html("Reading the prompt", [f"seed {first.seed}"], 0.0)
        # A seed that was typed stays as it is: by now another one may stand there, for the next picture.
        yield nothing, told, first.seed if randomise or seed is None else nothing, *[nothing] * 6  # until there is a preview, the picture before it is on show, with its buttons
        # One after another and not as a batch: each is then bitwise the picture that its own PNG restores.
        for index in range(images):
            request = replace(first, seed=(first.seed + index) % (MAX_SEED + 1))
            place = f"Picture {index + 1} of {images}: " if images > 1 else ""
            for moment in stream(request, bool(every_iteration)):
                told = _status(request, moment, place, beyond)
                if not moment.finished:
                    forming = gr.update(value=cache_picture(moment.image), alt_text=first.prompt)
                    yield forming, told, nothing, *[gr.update(interactive=False)] * 2, nothing, None, *[nothing] * 2
                    continue
                drawn = Drawn(saved(moment.image, moment.parameters), moment.parameters)
                visit = remember(visit, drawn)
                yield (
                    gr.update(value=drawn.path, alt_text=first.prompt), told, nothing, gr.update(value=drawn.path, interactive=True), gr.update(interactive=True), visit, drawn,
                    gr.Gallery(captions(visit), selected_index=None), gr.update(visible=True),  # gr.update would lose the None
                )

    return draw


def _status(request: GenerationRequest, moment: Progress, place: str = "", beyond: int = 0) -> str:
    """`Step 2 of 4` with what it has cost so far; `beyond` words of the prompt were too many to be read."""
    facts = [count(core_passes(request, moment.iterations), "core pass"), f"{moment.seconds:.1f} s", f"seed {request.seed}"]
    if request.negative_prompt and request.guidance_factor == 1:
        facts.append("negative prompt unused: guidance is 1")
    if beyond:
        facts.append(f"the last {count(beyond, 'word')} not read: the model takes no more")
    if moment.finished and request.num_iterations == "auto":
        facts.insert(0, "iterations " + " + ".join(map(str, moment.iterations)))
    headline = f"Done in {count(moment.num_steps, 'step')}" if moment.finished else f"Step {moment.step} of {moment.num_steps}"
    return status_html(place + headline, facts, None if moment.finished else moment.step / moment.num_steps)


# --- coming back to a picture --------------------------------------------------------------------------------------


def _show_again(visit: list[Drawn], event: gr.SelectData) -> tuple:
    """A picture of the gallery, on show again with what it took."""
    drawn = picked(visit, event.index)
    if drawn is None:
        return (gr.skip(),) * 6
    told, enabled = drawn.parameters, gr.update(interactive=True)
    facts = [f"{told['num_steps']} × {told['num_iterations']}", f"guidance {told['guidance_scale']:g}", f"seed {told['seed']}"]
    picture = gr.update(value=drawn.path, alt_text=told["prompt"])
    return picture, status_html("A picture of this visit", facts), gr.update(value=drawn.path, interactive=True), enabled, drawn, enabled


def asked_of(drawn: Drawn | None, fields: tuple) -> tuple:
    """What a finished picture was asked with, in the order of `CreateTab.request`; the fields' values before there is one."""
    if drawn is None:
        return fields
    told = drawn.parameters
    auto = told["num_iterations"] == "auto"
    return (told["prompt"], told.get("negative_prompt", ""), told["seed"], told["num_steps"], fields[4] if auto else told["num_iterations"], auto,
            told["guidance_scale"])


def _fill_again(model: LoadedModel, drawn: Drawn | None) -> tuple:
    if drawn is None:
        return (gr.skip(),) * 10
    return _filled(model, drawn.parameters)


def _restore_png(model: LoadedModel, path: str) -> tuple:
    """The settings inside a dropped PNG; a file without them is answered with a sentence."""
    try:
        told = read_png(path)
    except PngError as error:
        gr.Warning(without_tags(str(error)))
        return *(gr.skip(),) * 10, status_html("Nothing was restored; the message says why")
    other = told.get("model_hash") not in (None, "", model.pipeline.metadata.get("hash", ""))
    facts = [f"seed {told['seed']}"] + (["drawn by another model"] if other else []) + (["edited afterwards"] if "edit" in told else [])
    return *_filled(model, told), status_html("Restored; press Generate to draw it again", facts)


def _filled(model: LoadedModel, told: dict[str, Any]) -> tuple:
    names = GenerationRequest.__dataclass_fields__
    request = GenerationRequest.parse(**{name: told.get(name, "") for name in names})
    return request.prompt, *fill(model, request), 1


def _restore_link(model: LoadedModel, query: Mapping[str, str], built_for: IRISPipeline | None) -> tuple:
    """What a page opens with, and its status: the state in its address, or the model's own values where another one has been loaded since.

    A page opens beside the queue, or a full one would lose what its address says; so a sentence goes into the status.
    """
    told, request = gr.skip(), None
    try:
        request = read_link(query, starting_values(model))
    except (RequestError, PromptError) as error:
        told = status_html(html.escape(str(error)))
    if request is not None:
        return request.prompt, *fill(model, request.with_seed(), held=has_seed(query)), 1, told
    if model.pipeline is built_for:  # the page shows these values already, and somebody may have begun to change them
        return *(gr.skip(),) * 10, told
    return gr.skip(), *fill_defaults(model), gr.skip(), told


def _examples(model: LoadedModel) -> gr.Dataset:
    """A row of prompts to press."""
    texts = example_prompts(model.pipeline)[:MAX_EXAMPLES]
    return gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[[text] for text in texts], layout="gallery", label="Examples", show_label=False,
        samples_per_page=MAX_EXAMPLES, elem_id="examples", container=False, visible=bool(texts),
    )


def _examples_of(model: LoadedModel) -> gr.Dataset:
    """The row's new content after another model was loaded."""
    texts = example_prompts(model.pipeline)[:MAX_EXAMPLES]
    return gr.Dataset(samples=[[text] for text in texts], visible=bool(texts))


# --- the endpoint --------------------------------------------------------------------------------------------------


def _generate_endpoint(model: LoadedModel, stream: Stream) -> None:
    """The endpoint `/generate`; the first model's defaults become its defaults."""
    steps, depth, scale = within_limits(model.pipeline.defaults)

    # gr.api takes the annotation as the type of one yielded value, hence a tuple and not an Iterator.
    @sentences
    def generate(
        prompt: str, negative_prompt: str = "", seed: int | None = None, num_steps: int = steps, num_iterations: int | str = depth,
        guidance_scale: float = scale,
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
        for moment in stream(request, False):
            parameters = told_parameters(request, moment)
            told = {
                **parameters, "step": moment.step, "seconds": round(moment.seconds, 3),
                "core_passes": core_passes(request, moment.iterations), "finished": moment.finished,
            }
            yield FileData(path=saved(moment.image, parameters), mime_type="image/png").model_dump(), told

    gr.api(generate, api_name="generate", concurrency_id=MODEL_QUEUE)
