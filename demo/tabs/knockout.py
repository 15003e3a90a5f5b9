"""A part of Inside: the same picture drawn without the Fourier, the recurrent or the spatial path."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from demo.html import figure_html
from demo.model import LoadedModel
from demo.request import GenerationRequest
from demo.serving import on_gpu, runs_until_stopped, sentences
from demo.status import status_html, status_line
from iris.evaluation.knockout import PATHS, pipeline_without

NOTE = (
    '<p class="section">Knock out a path</p><p class="note">Each core layer adds three paths: Fourier, recurrence and spatial. Here the same '
    "noise is drawn with one of them silenced. The model was not trained to do without, so what breaks is what that path had carried.</p>"
)
Parse = Callable[..., GenerationRequest]


@dataclass(frozen=True)
class Without:
    """A picture drawn without `path` (None: with all of them), and how far its pixels are from the whole one's, 0 to 255."""

    path: str | None
    image: Image.Image
    distance: float


def build_part(model: LoadedModel, request: list[Component], parse: Parse) -> None:
    """The part's components and events; `request` are the tab's own settings and `parse` checks them."""
    stream = knockout_stream(model)
    gr.HTML(NOTE, elem_classes="plain")
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Draw without each path", size="md", min_width=160, elem_id="knockout-go")
        stop = gr.Button("Stop", size="md", scale=0, min_width=80, interactive=False)
    status = status_line("The prompt and the numbers above are used.")
    shown = gr.HTML("", elem_id="knockout", elem_classes="plain")

    @sentences
    def watch(*values: object) -> Iterator[tuple]:
        asked, found = parse(*values), []
        yield "", status_html("Drawing", [f"seed {asked.seed}"], 0.0)
        for item in stream(asked):
            found.append(item)
            done = len(found) == 1 + len(PATHS)
            told = status_html("Done" if done else f"{len(found)} of {1 + len(PATHS)} pictures", [f"seed {asked.seed}"], None if done else len(found) / 4)
            yield pictures_html(found), told

    runs_until_stopped(partial(gr.on, [go.click]), stop, status, watch, request, [shown, status])


def knockout_stream(model: LoadedModel) -> Callable[[GenerationRequest], Iterator[Without]]:
    """A request with a seed -> the whole picture, then one without each path."""

    @on_gpu(lambda request: min(120, 15 + request.max_core_passes // 5))
    def stream(request: GenerationRequest) -> Iterator[Without]:
        whole = None
        for path in (None, *PATHS):
            pipeline = model.pipeline if path is None else pipeline_without(model.pipeline, path)
            for preview in pipeline.stream(**request.to_dict()):
                image = preview.images[0]
            whole = image if whole is None else whole
            yield Without(path, image, float(np.abs(np.asarray(image, dtype=float) - np.asarray(whole, dtype=float)).mean()))

    return stream


def pictures_html(found: list[Without]) -> str:
    """The pictures side by side."""
    figures = [
        figure_html(item.image, "all paths" if item.path is None else f"without {item.path}", "" if item.path is None else f"{item.distance:.1f} of 255 away")
        for item in found
    ]
    return f'<div class="depths" tabindex="0" role="region" aria-label="Pictures without a path">{"".join(figures)}</div>'
