"""One safe way from any picture file to uint8 pixels. Nothing else in IRIS decodes pictures that it did not make itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from iris.data.base import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000
MAX_BYTES = 64 * 2**20
MIN_SIDE = 8


class ImageError(DataError):
    """A picture that cannot be used; `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def open_image(source: bytes | str | Path | Image.Image, size: int, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Any picture -> uint8 [size, size, 3]: turned as EXIF says, alpha composited on `background`, centre-cropped, resized.

    Reads bytes, a path, or an opened PIL image: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM; grey, palette, CMYK and 16 bits a
    channel too; of an animation the first frame. Raises ImageError (a DataError) for what is corrupt, cut off, below 8 pixels
    a side, above 50 megapixels or 64 MiB, or of another format.
    """
    name = "the picture" if isinstance(source, bytes | Image.Image) else f"the picture {Path(source).name!r}"
    try:
        image = source if isinstance(source, Image.Image) else Image.open(_open_bytes(source, name), formats=FORMATS)
        _check_area(image, name)
        # Lets the JPEG decoder skip detail that the resize would throw away.
        image.draft(None, (2 * size, 2 * size))
        image.seek(0)
        image.load()
        return _to_pixels(ImageOps.exif_transpose(image), size, background)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("too large", f"{name} has more pixels than any picture needs; at most {MAX_PIXELS // 10**6} megapixels are read.") from None
    except Exception as error:  # decoders raise a dozen types, from OSError to struct.error
        raise ImageError("corrupt", f"{name} cannot be decoded ({type(error).__name__}); use a whole {', '.join(FORMATS)} file.") from None


def _open_bytes(source: bytes | str | Path, name: str) -> io.BytesIO:
    if isinstance(source, bytes):
        data = source
    else:
        path = Path(source)
        if not path.is_file():
            raise ImageError("missing", f"{name} does not exist.")
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else bytes(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError("too large", f"{name} is larger than {MAX_BYTES // 2**20} MiB.")
    return io.BytesIO(data)


def _check_area(image: Image.Image, name: str) -> None:
    """Before any pixel is decoded: a small file may hold a picture that fills the memory."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError("too large", f"{name} has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read.")
    if min(width, height) < MIN_SIDE:
        raise ImageError("too small", f"{name} has {width} x {height} pixels; at least {MIN_SIDE} a side are needed.")


def _to_pixels(image: Image.Image, size: int, background: tuple[int, int, int]) -> np.ndarray:
    image = _eight_bits(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if "A" in image.getbands() or "transparency" in image.info:
        # Composite first: resizing straight RGBA would bleed the colour of invisible pixels into the edges.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    image = image.convert("RGB")
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.array(image, np.uint8)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey -> 8-bit grey by its top byte; PIL's own conversion would clip everything above 255 to white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, np.float64)
    if image.mode == "F" and values.max(initial=0.0) <= 1.0:
        values = values * 65535.0
    return Image.fromarray(np.clip(values / 257.0, 0, 255).round().astype(np.uint8))
