"""One safe way from any picture file to uint8 pixels. Nothing else in IRIS decodes pictures that it did not make itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from iris.data.base import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000
UPLOAD_PIXELS = 7_000_000  # for a shared server: what keeps the decoding of any format within 150 MB
MAX_BYTES = 64 * 2**20
MIN_SIDE = 8
WHITE = (255, 255, 255)


class ImageError(DataError):
    """A picture that cannot be used; `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def open_image(source: bytes | str | Path | Image.Image, size: int, background: tuple[int, int, int] = WHITE,
               max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Any picture -> uint8 [size, size, 3]: turned as EXIF says, alpha composited on `background`, centre-cropped, resized.

    Reads bytes, a path, or an opened PIL image: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM; grey, palette, CMYK and 16 bits a
    channel too; of an animation the first frame. Raises ImageError (a DataError) for what is corrupt, cut off, below 8 pixels
    a side, above 50 megapixels or 64 MiB, or of another format; and above `max_pixels`, which a JPEG that is decoded smaller keeps.
    """
    name = "the picture" if isinstance(source, bytes | Image.Image) else f"the picture {Path(source).name!r}"
    try:
        image = source if isinstance(source, Image.Image) else Image.open(_open_bytes(source, name), formats=FORMATS)
        _check_area(image, name, MAX_PIXELS)
        # Lets the JPEG decoder skip detail that the resize would throw away.
        image.draft(None, (2 * size, 2 * size))
        _check_area(image, name, max_pixels)
        image.seek(0)
        image.load()
        return _to_pixels(ImageOps.exif_transpose(image), size, background)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("too large", f"{name} has more pixels than any picture needs; at most {max_pixels // 10**6} megapixels are read.") from None
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


def _check_area(image: Image.Image, name: str, max_pixels: int) -> None:
    """Before any pixel is decoded: a small file may hold a picture that fills the memory."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too large", f"{name} has {width} x {height} pixels; at most {max_pixels // 10**6} megapixels are read.")
    if min(width, height) < MIN_SIDE:
        raise ImageError("too small", f"{name} has {width} x {height} pixels; at least {MIN_SIDE} a side are needed.")


def _to_pixels(image: Image.Image, size: int, background: tuple[int, int, int]) -> np.ndarray:
    """The middle square at `size`. A large picture is copied as seldom as can be, and composited when it is small already."""
    image = _eight_bits(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.mode != (mode := "RGBA" if image.has_transparency_data else "RGB"):
        image = image.convert(mode)
    if (side, side) != image.size or side != size:
        # For RGBA this weighs colours by their opacity, so invisible ones do not bleed into the edges.
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return np.array(opaque(image, background), np.uint8)


def opaque(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The picture in RGB, 8 bits a channel; what is transparent lies on `background`."""
    image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits by its top byte, of 32 bits or floats by the range that its largest value is of; PIL's own conversion would clip everything above 255 to white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    most = float(values.max(initial=0.0))
    ranges = (65535.0,) if image.mode.startswith("I;16") else (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    white = next((end for end in ranges if most <= end), most)
    grey = np.empty(values.shape, np.uint8)
    for rows in range(0, len(values), 64):  # in strips: in float64 the whole picture would take four times its memory
        grey[rows:rows + 64] = np.clip(values[rows:rows + 64].astype(np.float64) * (255.0 / white), 0, 255).round()
    return Image.fromarray(grey)
