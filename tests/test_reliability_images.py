"""Laws of pictures that strangers send: a typed error or a picture, within two seconds and 150 MB, whatever the file says of itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import subprocess_environment
from PIL import Image

from iris.data.images import UPLOAD_PIXELS, ImageError, open_image

LIMIT_SECONDS, LIMIT_MB = 2.0, 150
SIDE = int(UPLOAD_PIXELS**0.5)


def encoded(mode: str, width: int, height: int, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height), {"F": 0.5, "I;16": 300}.get(mode, 1 if mode in ("L", "P") else tuple(range(1, 1 + len(mode))))).save(stream, kind, **options)
    return stream.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("RGB", 64, 32, "JPEG", exif=exif)


def noise(side: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


HOSTILE = {
    "0 bytes": b"", "text.png": b"a text, not a picture", "truncated": noise(99)[:5000], "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "PDF": b"%PDF-1.7",
    "1 x 1": encoded("RGB", 1, 1, "PNG"), "1 x 4000": encoded("RGB", 1, 4000, "PNG"), "169 megapixels": claiming(13000, 13000),
    "400 megapixels": claiming(20000, 20000), "2 gigapixels": claiming(50000, 40000), "0 x 0": claiming(0, 0), "9 MB of noise": noise(1750),
    "CMYK": encoded("CMYK", 64, 64, "JPEG"), "16 bits": encoded("I;16", 64, 64, "PNG"), "palette": encoded("P", 64, 64, "GIF"), "EXIF": with_exif(6),
    "EXIF of no kind": with_exif(99), "animation": encoded("P", 64, 64, "GIF", save_all=True, append_images=[Image.new("P", (64, 64), 2)] * 50),
}
LARGE = {f"{name}, {UPLOAD_PIXELS // 10**6} megapixels": encoded(mode, SIDE, SIDE, kind, **options) for name, mode, kind, options in (
    ("RGB", "RGB", "PNG", {}), ("RGBA", "RGBA", "PNG", {}), ("16 bits", "I;16", "PNG", {}), ("palette", "P", "PNG", {"transparency": 1}),
    ("WebP", "RGBA", "WEBP", {}), ("float", "F", "TIFF", {"compression": "tiff_deflate"}), ("CMYK", "CMYK", "JPEG", {}), ("progressive", "RGB", "JPEG", {"progressive": True}),
)}
LARGE["JPEG, 49 megapixels"] = encoded("RGB", 7000, 7000, "JPEG")

MEASURE = """
import json, re, sys, time
from iris.data.images import UPLOAD_PIXELS, ImageError, open_image

def peak():  # of this program alone; getrusage would tell the parent's peak too, which a child inherits
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

data = sys.stdin.buffer.read()
before, began = peak(), time.monotonic()
try:
    told = str(open_image(data, 64, max_pixels=UPLOAD_PIXELS).shape)
except ImageError as error:
    told = str(error)
print(json.dumps([told, time.monotonic() - began, peak() - before]))
"""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_picture_is_pixels_or_one_sentence(kind: str) -> None:
    try:
        pixels = open_image(HOSTILE[kind], 32, max_pixels=UPLOAD_PIXELS)
    except ImageError as error:
        assert str(error).endswith(".") and "\n" not in str(error) and error.reason in ("corrupt", "too large", "too small")
    else:
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8


def test_no_picture_takes_more_than_two_seconds_and_150_megabytes(soak: bool, record_property) -> None:
    """Each in a process of its own, whose peak is read from the system."""
    if not soak or not os.path.exists("/proc/self/status"):
        pytest.skip("needs --soak and Linux: a process a picture; time and memory are measured")
    worst = {"seconds": 0.0, "MB": 0.0}
    for kind, data in {**HOSTILE, **LARGE}.items():
        done = subprocess.run([sys.executable, "-c", MEASURE], input=data, capture_output=True, env=subprocess_environment(), timeout=120, check=True)
        told, seconds, grown = json.loads(done.stdout)
        worst = {"seconds": max(seconds, worst["seconds"]), "MB": max(grown, worst["MB"])}
        assert seconds < LIMIT_SECONDS and grown < LIMIT_MB, f"{kind}: {seconds:.2f} s, {grown:.0f} MB, {told}"
    assert worst["MB"] > 20, "a picture of eight megapixels cannot cost nothing: the measurement is broken"
    record_property("tries", len(HOSTILE) + len(LARGE))
    record_property("figure", f"at most {worst['seconds']:.2f} s and {worst['MB']:.0f} MB")


def test_a_large_picture_gives_the_pixels_of_a_plain_resize() -> None:
    """The thrifty way (crop, convert and weigh by opacity inside one resize) against the plain one: to rounding in 8 bits.

    Where a picture is nearly transparent an 8-bit product rounds coarsely, and where LANCZOS overshoots the two clip apart.
    """
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(60, 200, (9, 12, 4), dtype=np.uint8)).resize((400, 300), Image.Resampling.BICUBIC)
    for mode in ("RGBA", "RGB", "L", "LA"):
        image = smooth.convert(mode)
        stream = io.BytesIO()
        image.save(stream, "PNG")
        over = image.convert("RGBA").crop((50, 0, 350, 300))
        plain = Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
        apart = np.abs(open_image(stream.getvalue(), 64).astype(int) - np.asarray(plain).astype(int))
        assert apart.max() <= 4 and apart.mean() < 1, f"{mode}: {apart.max()}, {apart.mean()}"
