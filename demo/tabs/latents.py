"""Latents: what the autoencoder makes of a picture, from Haar bands to the way back; and the endpoint `/encode`.

No `from __future__ import annotations` here: `gr.api` reads the endpoint's types from the real annotations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from PIL import Image

from demo.editing import fit_picture, uploaded
from demo.html import figure_html
from demo.model import LoadedModel
from demo.png import write_png
from demo.serving import MODEL_QUEUE, cache_file, on_gpu, runs_until_stopped, sentences
from demo.status import status_html, status_line
from demo.tabs.create import SMOOTH_FROM
from iris.evaluation.metrics import psnr, psnr_by_band
from iris.nn.haar import BANDS, haar_dwt2
from iris.pipeline import IRISPipeline, from_pil

MEANING = {"LL": "average", "LH": "change along a row", "HL": "change along a column", "HH": "diagonal"}
NOTE = (
    '<p class="note">The model never draws pixels. It draws a small grid of latents, which a wavelet autoencoder turns into a picture. '
    "Here is what a picture of yours becomes on that way, and what comes back.</p>"
)


@dataclass(frozen=True)
class Encoded:
    """A picture's way through the autoencoder: latents [C, h, w], bands name -> [h, w, 3], PSNR in dB of the whole and by band."""

    picture: Image.Image
    back: Image.Image
    latents: np.ndarray
    bands: dict[str, np.ndarray]
    decibel: float
    decibel_by_band: dict[str, float]


Encoding = Callable[[Image.Image], Iterator[Encoded]]


def build_tab(model: LoadedModel) -> None:
    """The tab's components and events inside the current Blocks."""
    stream = encoding_stream(model)
    crisp = ["pixels"] if model.pipeline.image_size < SMOOTH_FROM else []
    gr.HTML(NOTE, elem_classes="plain")
    with gr.Row(elem_classes="work even"):
        with gr.Column(scale=1, min_width=300):
            picture = gr.Image(label="Your picture", type="filepath", format="png", sources=["upload", "clipboard"], height=300, buttons=[], elem_id="latents-in")
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Encode", variant="primary", min_width=110, elem_id="latents-go")
                stop = gr.Button("Stop", scale=0, min_width=80, interactive=False)
            status = status_line("Drop a picture and press Encode.")
        with gr.Column(scale=1, min_width=300):
            both = gr.ImageSlider(
                label="Before and after", type="pil", format="png", interactive=False, buttons=[], max_height=450, elem_id="both", elem_classes=crisp,
            )
    parts = gr.HTML("", elem_id="parts", elem_classes="plain")
    runs_until_stopped(partial(gr.on, [go.click]), stop, status, _encode_event(model, stream), [picture], [both, status, parts])
    _endpoint(model, stream)


def encoding_stream(model: LoadedModel) -> Encoding:
    """A picture of the model's size -> Encoded, once; on a ZeroGPU Space it borrows a GPU."""

    @on_gpu(lambda picture: 20)
    def stream(picture: Image.Image) -> Iterator[Encoded]:
        yield encode(model.pipeline, picture)

    return stream


def encode(pipeline: IRISPipeline, picture: Image.Image) -> Encoded:
    """There and back; the figures are of the pictures as they are shown, rounded to 256 levels."""
    latents = pipeline.encode(picture)
    back = pipeline.decode(latents)[0]
    before, after = from_pil([picture]), from_pil([back])
    parts = haar_dwt2(before).chunk(4, dim=1)
    bands = {name: part[0].permute(1, 2, 0).numpy() for name, part in zip(BANDS, parts, strict=True)}
    by_band = {name: float(value) for name, value in psnr_by_band(after, before).items()}
    return Encoded(picture, back, latents[0].cpu().numpy(), bands, float(psnr(after, before)), by_band)


def _encode_event(model: LoadedModel, stream: Encoding) -> Callable[..., Iterator[tuple]]:
    @sentences
    def watch(path: str | None) -> Iterator[tuple]:
        picture = fit_picture(path, model.pipeline.image_size)
        yield gr.skip(), status_html("Encoding"), gr.skip()
        for found in stream(picture):
            channels, height, width = found.latents.shape
            values, kept = 3 * picture.width * picture.height, channels * height * width
            facts = [f"{values:,} values become {kept:,}", f"{values / kept:.0f} to 1"]
            yield (found.picture, found.back), status_html(f"PSNR {found.decibel:.1f} dB", facts), parts_html(found)

    return watch


def parts_html(found: Encoded) -> str:
    """Haar bands and latent channels as rows of small pictures."""
    bands = [figure_html(_band_picture(name, band), name, f"{MEANING[name]}, {_told(found.decibel_by_band[name])}") for name, band in found.bands.items()]
    channels = [figure_html(_map_picture(channel), f"{index + 1}", f"{channel.min():.1f} to {channel.max():.1f}") for index, channel in enumerate(found.latents)]
    return (
        f'<p class="section">Haar bands, and how well each comes back</p><div class="maps" tabindex="0" role="region" aria-label="Haar bands">{"".join(bands)}</div>'
        f'<p class="section">Latent channels</p><div class="maps wrap" tabindex="0" role="region" aria-label="Latent channels">{"".join(channels)}</div>'
    )


def _told(decibel: float) -> str:
    return f"{decibel:.1f} dB" if np.isfinite(decibel) else "exact"


def _band_picture(name: str, band: np.ndarray) -> Image.Image:
    """LL is twice an average; the others are shown around grey, four times enlarged in contrast."""
    values = band / 2 if name == "LL" else 4 * band
    return Image.fromarray(((values.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))


def _map_picture(channel: np.ndarray) -> Image.Image:
    """One channel, blue below zero and orange above; its own largest value is full colour."""
    lean = (channel / max(float(np.abs(channel).max()), 1e-6))[..., None]
    side = np.where(lean > 0, np.array([213, 94, 0]), np.array([0, 114, 178]))
    colours = np.array([243, 239, 234]) * (1 - np.abs(lean)) + side * np.abs(lean)
    return Image.fromarray(colours.round().astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST)


def _endpoint(model: LoadedModel, stream: Encoding) -> None:
    @sentences
    def encode(image: FileData) -> tuple[FileData, dict]:
        """A picture to the model's latents and back.

        Args:
            image: a picture file; its middle square is scaled to the model's size.

        Returns:
            The reconstruction as a PNG; and latents [channel][row][column], psnr in dB and psnr_by_band (none where exact).
        """
        picture = fit_picture(uploaded(image), model.pipeline.image_size)
        for found in stream(picture):
            path = cache_file(write_png(found.back, {}), "iris-reconstruction.png")
            decibels = {name: round(value, 3) if np.isfinite(value) else None for name, value in {"psnr": found.decibel, **found.decibel_by_band}.items()}
            told = {"latents": found.latents.round(5).tolist(), "psnr": decibels.pop("psnr"), "psnr_by_band": decibels}
            yield FileData(path=path, mime_type="image/png").model_dump(), told

    gr.api(encode, api_name="encode", concurrency_id=MODEL_QUEUE)
