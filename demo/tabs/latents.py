"""Latents: an uploaded picture on its way through the autoencoder, and back; and the endpoint `/encode`.

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

from demo.editing import fit_picture, uploaded
from demo.encoding import Encoded, bands_html, encoding_stream, latents_html
from demo.model import LoadedModel
from demo.pictures import looks
from demo.png import write_png
from demo.serving import MODEL_QUEUE, cache_file, cache_picture, runs_until_stopped, sentences
from demo.settings import refreshing
from demo.status import status_html, status_line
from demo.visit import Drawn

NOTE = ('<p class="note">The model never draws pixels. It draws a small grid of latents, from which the autoencoder makes the picture; '
        "Haar wavelets, exact and without weights, do the first part of that way.</p>")
Encoding = Callable[[Image.Image], Iterator[Encoded]]


@dataclass(frozen=True)
class LatentsTab:
    """What the page joins to: `take` asks for the picture of the Create tab, which `receive` turns into values for `inputs`; refresh_on follows the model."""

    take: gr.Button
    inputs: list[Component]
    run_after: Callable[[Callable[..., Any]], None]
    refresh_on: Callable[[Callable[..., Any]], Any]


def build_tab(model: LoadedModel) -> LatentsTab:
    """The tab's components and events inside the current Blocks."""
    stream = encoding_stream(model)
    gr.HTML(NOTE, elem_classes="plain")
    with gr.Row(elem_classes="work"):
        with gr.Column(scale=1, min_width=300):
            source = gr.Image(
                label="Picture", type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"], buttons=[], elem_id="latents-source",
                elem_classes=looks(model.pipeline.image_size, "picture"), placeholder="Drop any picture here",
            )
        with gr.Column(scale=1, min_width=300):
            status = status_line("Drop a picture, or take the one from Create.")
            with gr.Row(elem_classes="actions"):
                take = gr.Button("Take it from Create", size="md", min_width=140, elem_id="latents-take")
                stop = gr.Button("Stop", size="md", scale=0, min_width=80, interactive=False)
            slider = gr.ImageSlider(
                label="Before and after", show_label=False, type="pil", format="png", interactive=False, visible=False, buttons=[],
                elem_id="latents-slider", elem_classes=looks(model.pipeline.image_size, "picture"),
            )
    bands = gr.HTML("", elem_id="bands", elem_classes="plain")
    maps = gr.HTML("", elem_id="maps", elem_classes="plain")
    event = _encode_event(model, stream)

    def run_after(start: Callable[..., Any]) -> None:
        runs_until_stopped(start, stop, status, event, [source], [slider, bands, maps, status])

    run_after(partial(gr.on, [source.upload]))
    _encode_endpoint(model, stream)

    def values() -> tuple:
        return (gr.update(elem_classes=looks(model.pipeline.image_size, "picture")),) * 2

    return LatentsTab(take, [source], run_after, refreshing(model, values, [source, slider]))


def receive(drawn: Drawn | None) -> Any:
    """The picture on show in Create; a sentence when there is none."""
    if drawn is None:
        raise gr.Error("There is no picture in Create yet; draw one there first.", print_exception=False)
    return drawn.path


def _encode_event(model: LoadedModel, stream: Encoding) -> Callable[..., Iterator[tuple]]:
    """The page's own event: a picture -> compare slider, bands, maps and status."""

    @sentences
    def watch(source: str | None) -> Iterator[tuple]:
        picture = fit_picture(source, model.pipeline.image_size)
        for encoded in stream(picture):
            channels, height, width = encoded.latents.shape
            values = picture.width * picture.height * 3
            facts = [f"{values:,} values become {encoded.latents.size:,}", f"{channels} channels of {height} × {width}"]
            pair = gr.update(value=(cache_picture(encoded.original), cache_picture(encoded.rebuilt)), visible=True)
            heads = ('<h3>Haar bands, the details four times as strong</h3>', '<h3>Latents, with the share of the energy that each channel carries</h3>')
            yield pair, heads[0] + bands_html(encoded), heads[1] + latents_html(encoded), status_html(f"Rebuilt at {encoded.psnr:.1f} dB", facts)

    return watch


def _encode_endpoint(model: LoadedModel, stream: Encoding) -> None:
    @sentences
    def encode(image: FileData) -> tuple[FileData, dict]:
        """Send a picture through the autoencoder and back.

        Args:
            image: a picture file; its middle square is scaled to the model's size.

        Returns:
            The reconstruction as a PNG; its psnr in dB against the scaled picture, and the latents [channel][row][column].
        """
        picture = fit_picture(uploaded(image), model.pipeline.image_size)
        for encoded in stream(picture):
            path = cache_file(write_png(encoded.rebuilt, {"edit": "reconstruction"}), "iris-reconstruction.png")
            told = {"psnr": round(encoded.psnr, 3), "shape": list(encoded.latents.shape), "latents": encoded.latents.round(4).tolist()}
            yield FileData(path=path, mime_type="image/png").model_dump(), told

    gr.api(encode, api_name="encode", concurrency_id=MODEL_QUEUE)
