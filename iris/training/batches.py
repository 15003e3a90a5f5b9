"""Which examples a step sees: a pure function of (seed, step), so a resumed run continues the same order."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from iris.data.base import ImageDataset
from iris.rng import rng_for

ORDER, CAPTION = 10, 11  # purposes of the random streams of a training seed
Fields = TypeVar("Fields")


@dataclass(frozen=True)
class LatentBatch:
    """Cached training data on its way to a loss: latents [B, C, h, w], text states [B, L, D] and their mask [B, L]."""

    latents: Tensor
    tokens: Tensor
    mask: Tensor


def each_tensor(record: Fields, change) -> Fields:
    """A copy of a dataclass with `change` applied to its tensors."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return replace(record, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


def indices_of_step(step: int, batch_size: int, length: int, seed: int) -> np.ndarray:
    """Example indices of optimizer step `step` (from 0): consecutive pieces of one fresh permutation an epoch."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // length
    permutations = {epoch: torch.randperm(length, generator=rng_for(seed, ORDER, int(epoch))).numpy() for epoch in np.unique(epochs)}
    return np.array([permutations[epoch][position % length] for epoch, position in zip(epochs, positions, strict=True)])


def to_images(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


class ImageBatches:
    """step -> images [B, 3, H, W] in [-1, 1] of a data set."""

    def __init__(self, dataset: ImageDataset, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def __call__(self, step: int) -> Tensor:
        chosen = indices_of_step(step, self.batch_size, len(self.dataset), self.seed)
        return to_images(np.stack([self.dataset[int(index)].image for index in chosen]))


@dataclass(frozen=True)
class LatentDataset:
    """A data set encoded once: latents [N, C, h, w], text states [M, L, D] (half precision) with mask [M, L] of the M different

    captions, and `captions` [N, V], each item's captions as rows of the text states; -1 fills items with fewer.
    """

    latents: Tensor
    tokens: Tensor
    mask: Tensor
    captions: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, items: np.ndarray, rng: torch.Generator) -> LatentBatch:
        """The items, each with one of its captions drawn uniformly."""
        rows = torch.as_tensor(items)
        captions = self.captions[rows]
        counts = (captions >= 0).sum(1)
        choice = (torch.rand(len(rows), generator=rng) * counts).long()
        text = captions.gather(1, choice[:, None])[:, 0]
        return LatentBatch(self.latents[rows].float(), self.tokens[text].float(), self.mask[text])


class LatentBatches:
    """step -> LatentBatch of a LatentDataset."""

    def __init__(self, dataset: LatentDataset, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def __call__(self, step: int) -> LatentBatch:
        chosen = indices_of_step(step, self.batch_size, len(self.dataset), self.seed)
        return self.dataset.batch(chosen, rng_for(self.seed, CAPTION, step))
