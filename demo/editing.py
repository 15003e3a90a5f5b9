"""What a visitor may do to a picture: an upload made ready, a checked job, and the previews of its way (iris.editing)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from demo.drawing import Progress
from demo.model import LoadedModel
from demo.request import GenerationRequest, RequestError, number
from demo.serving import on_gpu
from iris.data.images import MAX_PIXELS, UPLOAD_PIXELS, open_image
from iris.editing import extend, flow_edit, image_to_image, inpaint
from iris.pipeline import IRISPipeline, Preview
from iris.text import clean_prompt

REDRAW, REPAINT, EXTEND, REWORD = "Redraw", "Repaint", "Extend", "Change words"
MODES = [REDRAW, REPAINT, EXTEND, REWORD]
SIDES = ["Left", "Above", "Right", "Below"]
PAINTED = 0.25  # a pixel of the model counts as painted from this share of paint on


@dataclass(frozen=True)
class EditJob:
    """One checked edit. mask: bool [H, W] for Repaint and Extend; source_prompt for Change words."""

    mode: str
    request: GenerationRequest
    image: Image.Image
    strength: float
    mask: np.ndarray | None = None
    source_prompt: str = ""

    @property
    def core_passes(self) -> int:
        """The most it can cost; Change words asks the network about both prompts."""
        return self.request.max_core_passes * (2 if self.mode == REWORD else 1)


def plan_edit(mode: object, request: GenerationRequest, image: Image.Image, strength: object, mask: np.ndarray | None = None,
              source_prompt: object = "", sides: object = (), room: object = 0.5) -> EditJob:
    """Check what belongs to the mode; `image` is already of the model's size. Raises RequestError, PromptError or EditError."""
    if mode not in MODES:
        raise RequestError(f"The kind of edit is unknown; use one of {', '.join(MODES)}.")
    strength = number("strength", strength, 0, 1)
    if mode == REPAINT and mask is None:
        raise RequestError("Paint over the part that should be drawn anew first.")
    if mode == EXTEND:
        if not isinstance(sides, (list, tuple)) or not sides or any(side not in SIDES for side in sides):
            raise RequestError("Choose at least one side to extend: left, above, right or below.")
        amount = number("room", room, 0.1, 1)
        image, mask = extend(image, tuple(amount if side in sides else 0.0 for side in SIDES), image.width)
    if mode == REWORD:
        source_prompt = clean_prompt(source_prompt)
        if not source_prompt:
            raise RequestError("Say what the picture shows now, so that only the difference is changed.")
    return EditJob(str(mode), request, image, strength, mask, str(source_prompt or ""))


def start_edit(pipeline: IRISPipeline, job: EditJob) -> Iterator[Preview]:
    """The edit's previews."""
    settings: dict[str, Any] = job.request.arguments()
    prompt = settings.pop("prompt")
    if job.mode == REDRAW:
        return image_to_image(pipeline, job.image, prompt, job.strength, **settings)
    if job.mode == REWORD:
        return flow_edit(pipeline, job.image, job.source_prompt, prompt, job.strength, **settings)
    return inpaint(pipeline, job.image, job.mask, prompt, job.strength, **settings)


def editing_stream(model: LoadedModel) -> Callable[[EditJob], Iterator[Progress]]:
    """A job -> its moments; on a ZeroGPU Space it borrows a GPU for as long as it needs."""

    @on_gpu(lambda job: min(120, 10 + job.core_passes // 20))
    def stream(job: EditJob) -> Iterator[Progress]:
        for preview in start_edit(model.pipeline, job):
            iterations, result = list(preview.iterations[0]), preview.result
            parameters = None if result is None else {**result.parameters_of(0), "iterations": iterations}
            yield Progress(preview.step, preview.num_steps, preview.images[0], iterations, preview.seconds, parameters)

    return stream


# --- pictures from visitors ----------------------------------------------------------------------------------------


def fit_picture(source: str | Path | Image.Image | None, size: int) -> Image.Image:
    """An uploaded picture as RGB of the model's size: its middle square, scaled. Raises ImageError, or RequestError for None."""
    if source is None:
        raise RequestError("Choose a picture first.")
    most = MAX_PIXELS if isinstance(source, Image.Image) else UPLOAD_PIXELS  # the editor's picture is decoded already
    return Image.fromarray(open_image(source, size, max_pixels=most))


def painted_mask(layers: list[Image.Image], size: int) -> np.ndarray | None:
    """The paint on an editor's layers as bool [size, size], cropped and scaled as `fit_picture` does; None without any."""
    strokes = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in layers if layer is not None]
    if not strokes or not any(stroke.any() for stroke in strokes):
        return None
    return fit_mask(Image.fromarray(np.maximum.reduce(strokes)), size)


def fit_mask(mask: Image.Image, size: int) -> np.ndarray:
    """A grey picture, white where to draw, as bool [size, size]: its middle square, scaled by area."""
    side = min(mask.size)
    left, top = (mask.width - side) // 2, (mask.height - side) // 2
    square = mask.convert("L").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BOX if side >= size else Image.Resampling.NEAREST)) >= 255 * PAINTED


def uploaded(file: object, what: str = "picture") -> Path:
    """The path of a file that this server received; an endpoint's file is JSON and could name any other. Raises RequestError."""
    name = file.get("path") if isinstance(file, dict) else getattr(file, "path", file)
    try:
        path = Path(name).resolve() if isinstance(name, str) else None
    except ValueError:  # NUL, or half of a surrogate pair: no file has such a name
        path = None
    if path is None or not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise RequestError(f"The {what} is missing; upload it, for example with handle_file of gradio_client.")
    return path
