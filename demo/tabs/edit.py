"""Edit: redraw, repaint or extend a picture, or change its words; and the endpoints `/edit` and `/inpaint`.

No `from __future__ import annotations` here: `gr.api` reads the endpoints' types from the real annotations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from PIL import Image

from demo.drawing import Progress, core_passes, saved, told_parameters
from demo.editing import (
    EXTEND,
    MODES,
    REDRAW,
    REPAINT,
    REWORD,
    SIDES,
    EditJob,
    editing_stream,
    fit_mask,
    fit_picture,
    painted_mask,
    plan_edit,
    uploaded,
)
from demo.fields import build_numbers
from demo.model import LoadedModel
from demo.pictures import NOTHING, looks
from demo.request import GenerationRequest
from demo.serving import MODEL_QUEUE, cache_picture, runs_until_stopped, sentences
from demo.settings import PRIVATE, QUEUED, number_values, refreshing, within_limits
from demo.status import count, status_html, status_line
from demo.visit import Drawn

NOTES = {
    REDRAW: "The picture is noised as far as the strength says and drawn again from there.",
    REPAINT: "Paint over a part: it is drawn anew. Every pixel outside the paint stays as it is.",
    EXTEND: "The picture is made smaller to make room, and the room is filled.",
    REWORD: "Say what the picture shows and what it should show; only the difference is changed.",
}
STRENGTHS = {REDRAW: 0.6, REPAINT: 1.0, EXTEND: 1.0, REWORD: 0.8}
Moments = Callable[[EditJob], Iterator[Progress]]


@dataclass(frozen=True)
class EditTab:
    """What the page joins to: receive(drawn) gives values for `inputs`: the picture, what it shows, and its prompt; refresh_on(event) follows the model."""

    inputs: list[Any]
    refresh_on: Callable[[Callable[..., Any]], Any]


def build_tab(model: LoadedModel) -> EditTab:
    """The tab's components and events inside the current Blocks."""
    stream = editing_stream(model)
    mode = gr.Radio(MODES, value=REDRAW, label="What to do", show_label=False, elem_id="edit-mode", elem_classes="effort", container=False)
    note = gr.HTML(_note(REDRAW), elem_classes="plain")
    with gr.Row(elem_classes="ask"):
        prompt = gr.Textbox(
            label="New prompt", show_label=False, placeholder="What the picture should show", lines=1, max_lines=1, max_length=1000,
            scale=5, min_width=240, container=False, elem_id="edit-prompt",
        )
        go = gr.Button("Apply", variant="primary", scale=1, min_width=110, elem_id="edit-go")
        stop = gr.Button("Stop", scale=0, min_width=80, interactive=False, elem_id="edit-stop")
    was = gr.Textbox(label="What the picture shows now", lines=1, max_lines=1, max_length=1000, visible=False, elem_id="edit-was")
    with gr.Row(elem_classes="work even"):
        with gr.Column(scale=1, min_width=300):
            # Not the editor's own upload: it would send a photograph back as a PNG many times as large, and past the server's limit.
            choose = gr.UploadButton("Choose a picture", file_types=["image"], type="filepath", size="md", elem_id="edit-file")
            editor = gr.ImageEditor(
                label="Picture to edit", type="pil", format="png", image_mode="RGBA", sources=(), transforms=(),
                layers=False, brush=_brush(model), canvas_size=(448, 448),
                buttons=[], height=440, elem_id="editor", placeholder="Choose a picture, or send one from Create",
            )
            strength = gr.Slider(0, 1, STRENGTHS[REDRAW], step=0.05, label="Strength", buttons=[], info="0 keeps the picture, 1 changes it most.", elem_id="strength")
            with gr.Row(visible=False) as extending:
                sides = gr.CheckboxGroup(SIDES, value=["Right"], label="Sides", elem_id="sides")
                room = gr.Slider(0.1, 1, 0.5, step=0.05, label="Room on each", buttons=[], elem_id="room")
            numbers = build_numbers(model, "edit")
        with gr.Column(scale=1, min_width=300):
            result = gr.Image(
                NOTHING, label="Edited picture", show_label=False, format="png", type="pil", interactive=False, buttons=["fullscreen"],
                elem_id="edited", elem_classes=looks(model.pipeline.image_size, "picture"), alt_text="Nothing edited yet",
            )
            status = status_line("Choose a picture, write what it should show and press Apply.")
            with gr.Row(elem_classes="actions"):
                save = gr.DownloadButton("Save PNG", size="md", interactive=False, min_width=100)
                further = gr.Button("Edit this one", size="md", interactive=False, min_width=100, elem_id="further")
    done = gr.State(None)

    choose.upload(_take_in(model), choose, [editor, status], **QUEUED)
    mode.change(_shown_for, mode, [note, was, extending, strength], **PRIVATE)
    inputs = [mode, editor, prompt, was, strength, sides, room, *numbers.components]
    outputs = [result, status, numbers.seed, save, further, done]
    runs_until_stopped(partial(gr.on, [prompt.submit, go.click]), stop, status, _edit_event(model, stream), inputs, outputs, go)
    further.click(receive, done, [editor, was, prompt], **PRIVATE)
    _edit_endpoint(model, stream)
    _inpaint_endpoint(model, stream)
    fields = [numbers.steps, numbers.iterations, numbers.auto, numbers.guidance]

    def values() -> tuple:
        return *number_values(model), gr.update(brush=_brush(model)), gr.update(elem_classes=looks(model.pipeline.image_size, "picture"))

    return EditTab([editor, was, prompt], refreshing(model, values, [*fields, editor, result]))


def _brush(model: LoadedModel) -> gr.Brush:
    """A tenth of the model's picture wide."""
    return gr.Brush(default_size=max(3, model.pipeline.image_size // 10), colors=["#7d66d9"], color_mode="fixed")


def receive(drawn: Drawn | None) -> tuple[Any, ...]:
    """A finished picture as this tab's source: into the editor, with its prompt as what it shows."""
    if drawn is None:
        return gr.skip(), gr.skip(), gr.skip()
    return {"background": drawn.path, "layers": [], "composite": None}, drawn.parameters["prompt"], drawn.parameters["prompt"]


def _take_in(model: LoadedModel) -> Callable[[str | None], Iterator[tuple]]:
    """A visitor's file -> the editor's picture, of the model's size."""

    @sentences
    def take_in(path: str | None) -> Iterator[tuple]:
        picture = fit_picture(path, model.pipeline.image_size)
        yield {"background": cache_picture(picture), "layers": [], "composite": None}, status_html("Write what it should show and press Apply")

    return take_in


def _note(mode: str) -> str:
    return f'<p class="note">{NOTES[mode]}</p>'


def _shown_for(mode: str) -> tuple[Any, ...]:
    if mode not in NOTES:
        return (gr.skip(),) * 4
    return _note(mode), gr.update(visible=mode == REWORD), gr.update(visible=mode == EXTEND), STRENGTHS[mode]


def _edit_event(model: LoadedModel, stream: Moments) -> Callable[..., Iterator[tuple]]:
    """The page's own event: everything on the tab -> picture, status, seed, download, further, done."""

    @sentences
    def change(  # not `edit`: the endpoint has that name
        mode: str, drawing: dict | None, prompt: str, was: str, strength: float, sides: list[str], room: float, seed: float, randomise: bool,
        num_steps: float, num_iterations: float, auto: bool, guidance_scale: float,
    ) -> Iterator[tuple]:
        size, drawing = model.pipeline.image_size, drawing or {}
        image = fit_picture(drawing.get("background"), size)
        request = GenerationRequest.parse(
            prompt, "", None if randomise else seed, num_steps, "auto" if auto else num_iterations, guidance_scale,
        ).with_seed()
        mask = painted_mask(drawing.get("layers") or [], size) if mode == REPAINT else None
        job = plan_edit(mode, request, image, strength, mask, was, sides, room)
        nothing = gr.skip()
        yield nothing, status_html("Reading the picture", [f"seed {request.seed}"], 0.0), request.seed if randomise or seed is None else nothing, *[nothing] * 3
        for moment in stream(job):
            if not moment.finished:
                forming = gr.update(value=cache_picture(moment.image), alt_text=request.prompt)
                yield forming, _status(request, moment), nothing, *[gr.update(interactive=False)] * 2, nothing
                continue
            drawn = Drawn(saved(moment.image, moment.parameters), moment.parameters)
            enabled = gr.update(interactive=True)
            finished = gr.update(value=drawn.path, alt_text=request.prompt)
            yield finished, _status(request, moment), nothing, gr.update(value=drawn.path, interactive=True), enabled, drawn

    return change


def _status(request: GenerationRequest, moment: Progress) -> str:
    facts = [count(core_passes(request, moment.iterations), "core pass"), f"{moment.seconds:.1f} s", f"seed {request.seed}"]
    if moment.finished:
        return status_html("Done", facts)
    return status_html(f"Step {moment.step} of {moment.num_steps}", facts, moment.step / moment.num_steps)


# --- endpoints -----------------------------------------------------------------------------------------------------


def _answers(stream: Moments, job: EditJob) -> Iterator[tuple[dict, dict]]:
    """An answer after every step, so that a client sees it form and may cancel it."""
    for moment in stream(job):
        parameters = told_parameters(job.request, moment)
        told = {**parameters, "step": moment.step, "seconds": round(moment.seconds, 3), "core_passes": core_passes(job.request, moment.iterations),
                "finished": moment.finished}
        yield FileData(path=saved(moment.image, parameters), mime_type="image/png").model_dump(), told


def _edit_endpoint(model: LoadedModel, stream: Moments) -> None:
    steps, depth, scale = within_limits(model.pipeline.defaults)

    @sentences
    def edit(
        image: FileData, prompt: str, source_prompt: str = "", strength: float = 0.7, seed: int | None = None, num_steps: int = steps,
        num_iterations: int | str = depth, guidance_scale: float = scale,
    ) -> tuple[FileData, dict]:
        """Change a picture by words: image to image, or prompt to prompt (FlowEdit) when source_prompt says what it shows.

        Args:
            image: a picture file; its middle square is scaled to the model's size.
            prompt: what it should show, up to 1000 characters.
            source_prompt: what it shows now; with it only the difference of the two prompts is changed.
            strength: 0 keeps the picture, 1 changes it most; without source_prompt nothing of it is left then.
            seed: a whole number from 0 to 2147483647; none means random. The seed used is returned.
            num_steps: solver steps, 1 to 32; the share `strength` of them is taken.
            num_iterations: core iterations in each step, 1 to 32, or "auto".
            guidance_scale: how strictly to follow the prompt, 0 to 10.

        Returns:
            The edited picture as a PNG, and its parameters.
        """
        request = GenerationRequest.parse(prompt, "", seed, num_steps, num_iterations, guidance_scale).with_seed()
        picture = fit_picture(uploaded(image), model.pipeline.image_size)
        yield from _answers(stream, plan_edit(REWORD if source_prompt else REDRAW, request, picture, strength, source_prompt=source_prompt))

    gr.api(edit, api_name="edit", concurrency_id=MODEL_QUEUE)


def _inpaint_endpoint(model: LoadedModel, stream: Moments) -> None:
    steps, depth, scale = within_limits(model.pipeline.defaults)

    @sentences
    def inpaint(
        image: FileData, mask: FileData, prompt: str, strength: float = 1.0, seed: int | None = None, num_steps: int = steps,
        num_iterations: int | str = depth, guidance_scale: float = scale,
    ) -> tuple[FileData, dict]:
        """Draw a part of a picture anew; pixels outside the mask stay as they are, bit for bit.

        Args:
            image: a picture file; its middle square is scaled to the model's size.
            mask: a picture file of the same proportions, white where to draw and black where to keep.
            prompt: what the picture should show, up to 1000 characters.
            strength: how far the masked part may leave what was there, 0 to 1.
            seed: a whole number from 0 to 2147483647; none means random. The seed used is returned.
            num_steps: solver steps, 1 to 32.
            num_iterations: core iterations in each step, 1 to 32, or "auto".
            guidance_scale: how strictly to follow the prompt, 0 to 10.

        Returns:
            The picture as a PNG, and its parameters.
        """
        request = GenerationRequest.parse(prompt, "", seed, num_steps, num_iterations, guidance_scale).with_seed()
        size = model.pipeline.image_size
        picture = fit_picture(uploaded(image), size)
        drawn = fit_mask(Image.fromarray(_grey(uploaded(mask, "mask"), size)), size)
        yield from _answers(stream, plan_edit(REPAINT, request, picture, strength, drawn))

    gr.api(inpaint, api_name="inpaint", concurrency_id=MODEL_QUEUE)


def _grey(path: Any, size: int) -> Any:
    """The mask file through the same door as every picture, transparent counting as black."""
    from iris.data.images import UPLOAD_PIXELS, open_image

    return open_image(path, size, background=(0, 0, 0), max_pixels=UPLOAD_PIXELS).max(-1)
