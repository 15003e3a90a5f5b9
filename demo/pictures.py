"""Pictures inside HTML: as data URIs, so that no file is written, and in rows that fit any screen.

Captions and alternative texts are fixed words and numbers; a visitor's text never comes here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

NOTHING = Image.new("RGBA", (1, 1))  # what an empty frame shows: Gradio's own sign for it confuses screen readers
SMOOTH_FROM = 200  # px: larger pictures are scaled smoothly, smaller ones in crisp squares


class Shown(NamedTuple):
    """One picture of a row; `facts` stand below the caption in a softer colour."""

    image: Image.Image | None
    caption: str
    facts: str = ""


def data_uri(image: Image.Image, lossy: bool = False) -> str:
    """The picture as PNG, exact; or as WebP of high quality, for pictures of many frames."""
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "WEBP", "quality": 92} if lossy else {"format": "PNG"}))
    return f"data:image/{'webp' if lossy else 'png'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def row_html(row: Sequence[Shown], size: int) -> str:
    """Pictures of `size` pixels side by side with captions; an empty square for one still to come."""
    return f'<div class="shots{crisp(size)}">{"".join(map(_figure, row))}</div>'


def looks(size: int, *others: str) -> list[str]:
    """The classes of a picture's component: `others`, and that small ones are shown in crisp squares."""
    return [*others, *crisp(size).split()]


def crisp(size: int) -> str:
    """The class that keeps a small picture's pixels square."""
    return " pixels" if size < SMOOTH_FROM else ""


def sheet(frames: np.ndarray, widest: int = 4096) -> Image.Image:
    """uint8 [rows, columns, H, W, 3] as one picture, at most `widest` pixels a side."""
    rows, columns, height, width, _ = frames.shape
    whole = Image.fromarray(np.ascontiguousarray(frames.transpose(0, 2, 1, 3, 4)).reshape(rows * height, columns * width, 3))
    scale = min(1.0, widest / max(whole.size))
    return whole if scale == 1 else whole.resize((max(1, int(whole.width * scale)), max(1, int(whole.height * scale))), Image.Resampling.BOX)


def _figure(shown: Shown) -> str:
    picture = '<div class="to-come"></div>' if shown.image is None else f'<img alt="{shown.caption}" src="{data_uri(shown.image)}">'
    facts = f"<small>{shown.facts}</small>" if shown.facts else ""
    return f"<figure>{picture}<figcaption>{shown.caption}{facts}</figcaption></figure>"
