"""A picture's PNG carries what drew it: prompt, seed and parameters in a text chunk, read back only after checks.

The chunk is an uncompressed iTXt named `iris` with one JSON object (ASCII, so any prompt fits). Reading never decodes
pixels: a hostile file costs its header and its text, nothing else.
"""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from demo.request import GenerationRequest, RequestError
from iris.text import PromptError

KEYWORD = "iris"
FORMAT = 1
MAX_FILE_BYTES = 16_000_000
MAX_TEXT_CHARACTERS = 40_000  # two prompts of a thousand characters, twelve for each that lies beyond the first plane, and the facts


class PngError(ValueError):
    """A file that is no PNG of ours; the message says what is wrong with it."""


def write_png(image: Image.Image, parameters: Mapping[str, Any]) -> bytes:
    """The exact pixels of `image` as PNG bytes, with `parameters` (JSON values) in the `iris` text chunk."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "IRIS")
    text.add_itxt(KEYWORD, json.dumps({"format": FORMAT, **parameters}, ensure_ascii=True, allow_nan=False))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def read_png(path: str | Path) -> dict[str, Any]:
    """The parameters inside a PNG that `write_png` made; every request value is checked as if a visitor had typed it.

    Returns the request's fields (prompt, seed, num_steps, ...) and, where present, the facts beside them
    (iterations, sampler, model, model_hash). Raises PngError with one sentence for anything else: another format, no parameters, damaged values.
    """
    stored = _read_chunk(Path(path))
    request_names = {field.name for field in fields(GenerationRequest)}
    try:
        request = GenerationRequest.parse(**{name: stored.get(name) for name in request_names})
    except (RequestError, PromptError) as error:
        raise PngError(f"The picture's parameters are damaged: {error}") from error
    if request.seed is None:
        raise PngError("The picture's parameters are damaged: the seed is missing.")
    return {**request.to_dict(), **_facts(stored)}


def file_name(prompt: str, seed: int) -> str:
    """A file name a person recognises, from letters and digits alone: `iris-red-apple-42.png`."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain)
    return "-".join(["iris", *words])[:48].rstrip("-") + f"-{seed}.png"


def _read_chunk(path: Path) -> dict[str, Any]:
    """The JSON object of the `iris` chunk; the picture's header is parsed, its pixels are not."""
    if os.path.getsize(path) > MAX_FILE_BYTES:
        raise PngError(f"The file is larger than {MAX_FILE_BYTES // 1_000_000} MB; drop a PNG saved by this app.")
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            text = picture.info.get(KEYWORD)
    # Pillow answers damaged files with several types, a decompression bomb among them.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PngError("The file is not a readable PNG picture.") from error
    if not isinstance(text, str):
        raise PngError("The PNG carries no IRIS parameters; drop a picture saved by this app.")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise PngError("The PNG's parameters are longer than any this app writes.")
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PngError("The PNG's parameters are not readable JSON.") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise PngError(f"The PNG's parameters are not of format {FORMAT}.")
    return stored


def _facts(stored: dict[str, Any]) -> dict[str, Any]:
    """What is told but never used to draw, kept only in the shape this app writes."""
    facts = {name: stored[name] for name in ("iterations", "sampler", "model", "model_hash", "edit") if name in stored}
    for name, value in facts.items():
        if name == "iterations":
            fits = isinstance(value, list) and len(value) <= 200 and all(type(item) is int for item in value)
        else:
            fits = isinstance(value, str) and len(value) <= 200
        if not fits:
            raise PngError(f"The picture's parameters are damaged: {name} has an unexpected value.")
    return facts
