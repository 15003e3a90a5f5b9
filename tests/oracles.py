"""Stand-ins for a trained model and its data: a pipeline that draws the truth, a small art collection, pixels as features."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iris.data import Example
from iris.pipeline import from_pil, to_pil


class Oracle:
    """A pipeline that draws the true picture of each caption it was told, and whose autoencoder loses nothing."""

    image_size = 64
    metadata: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, truth: dict[str, np.ndarray]) -> None:
        self.truth, self.seeds, self.arguments = truth, [], {}

    def __call__(self, prompts: list[str], seed: list[int], **arguments) -> SimpleNamespace:
        self.seeds += seed
        self.arguments = arguments
        return SimpleNamespace(images=[Image.fromarray(self.truth[prompt]) for prompt in prompts])

    def encode(self, images: list[Image.Image]) -> Tensor:
        return from_pil(images)

    def decode(self, latents: Tensor) -> list[Image.Image]:
        return to_pil(latents)


class Art:
    """A tiny art collection: one random picture for each concept and style, with keys STYLE/CONCEPT."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, styles: tuple[str, ...] = ("flat-style", "round"), concepts: int = 8) -> None:
        self.name = "art"
        rng = np.random.default_rng(0)
        motifs = rng.integers(0, 256, (concepts, 8, 8, 3))
        # Each style changes the motif a little: other styles of a concept are near, other concepts far.
        self.items = [
            Example((motifs[c] + rng.integers(-20, 21, (8, 8, 3))).clip(0, 255).astype(np.uint8).repeat(4, 0).repeat(4, 1),
                    (f"concept {c}", f"concept {c} in {style.replace('-', ' ')} style"), "thing", f"{style}/{c:04x}")
            for style in styles for c in range(concepts)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return self.items[index]


def pixel_features(images: Tensor) -> Tensor:
    """Stand-in features: the picture itself, small."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)
