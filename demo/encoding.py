"""A picture taken apart by the autoencoder: its Haar bands, its latents as maps, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo.model import LoadedModel
from demo.pictures import Shown, row_html
from demo.serving import on_gpu
from iris.evaluation.metrics import psnr
from iris.evaluation.style import BLUE, ORANGE
from iris.nn.haar import BANDS, haar_dwt2
from iris.pipeline import from_pil

DETAIL_GAIN = 4.0  # bands of detail are faint; they are shown so many times stronger
MIDDLE = (243, 239, 234)
MAP_SIDE = 64  # px: a latent map is drawn at least this large
BAND_NAMES = {"LL": "coarse picture", "LH": "change along rows", "HL": "change along columns", "HH": "diagonal"}


@dataclass(frozen=True)
class Encoded:
    """original and rebuilt of one size; bands: the four of the first Haar level; latents [C, h, w]; psnr in dB."""

    original: Image.Image
    rebuilt: Image.Image
    bands: dict[str, Image.Image]
    latents: np.ndarray
    psnr: float


def encoding_stream(model: LoadedModel) -> Callable[[Image.Image], Iterator[Encoded]]:
    """A picture of the model's size -> what the autoencoder makes of it; a generator, as every event of the model."""

    @on_gpu(lambda picture: 15)
    def stream(picture: Image.Image) -> Iterator[Encoded]:
        latents = model.pipeline.encode(picture)
        rebuilt = model.pipeline.decode(latents)[0]
        error = psnr(from_pil([rebuilt]), from_pil([picture]))
        yield Encoded(picture, rebuilt, haar_pictures(from_pil([picture])), latents[0].float().cpu().numpy(), float(error[0]))

    return stream


def haar_pictures(images: Tensor) -> dict[str, Image.Image]:
    """The bands of one level of [1, 3, H, W]: LL as a picture of half the side, details as differences from grey, stronger."""
    bands = haar_dwt2(images)[0].chunk(4)
    shown = (band / 2 if name == "LL" else band * DETAIL_GAIN / 2 for name, band in zip(BANDS, bands, strict=True))
    return {name: _picture(band) for name, band in zip(BANDS, shown, strict=True)}


def latent_map(values: np.ndarray, reach: float) -> Image.Image:
    """One channel [h, w] in colour: blue above zero, orange below, pale at zero; `reach` is the full colour's value."""
    lean = np.clip(values / reach, -1, 1)[..., None]
    side = np.where(lean > 0, _rgb(BLUE), _rgb(ORANGE))
    colour = np.array(MIDDLE) * (1 - np.abs(lean)) + side * np.abs(lean)
    picture = Image.fromarray(colour.round().astype(np.uint8))
    scale = max(1, MAP_SIDE // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def bands_html(encoded: Encoded) -> str:
    """The four Haar bands in a row."""
    size = encoded.original.width
    return row_html([Shown(picture, name, BAND_NAMES[name]) for name, picture in encoded.bands.items()], size)


def latents_html(encoded: Encoded) -> str:
    """Every latent channel as a map, all on one scale, with the share of the energy it carries."""
    reach = max(1e-6, float(np.abs(encoded.latents).max()))
    energy = (encoded.latents**2).sum((1, 2))
    shares = 100 * energy / max(energy.sum(), 1e-12)
    row = [Shown(latent_map(channel, reach), f"Channel {index + 1}", f"{share:.0f} %")
           for index, (channel, share) in enumerate(zip(encoded.latents, shares, strict=True))]
    return row_html(row, 1).replace('class="shots', 'class="shots small', 1)


def _picture(band: Tensor) -> Image.Image:
    pixels = ((band.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels)


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[index:index + 2], 16) for index in (1, 3, 5)])
