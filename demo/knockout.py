"""One path of the mixer silenced: the same weights and the same seed, to see what that path was there for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from iris.nn.mixer import GRFM
from iris.pipeline import IRISPipeline

PATHS = {"Fourier": "fourier", "recurrence": "recurrence", "spatial": "spatial"}


class _Silent(nn.Module):
    """Stands where a path stood and adds nothing. The Fourier path also tells softshrink's share."""

    def __init__(self, tells_share: bool) -> None:
        super().__init__()
        self.tells_share = tells_share

    def forward(self, x: Tensor, record: bool = False) -> Any:
        nothing = torch.zeros_like(x)
        return (nothing, 0.0) if self.tells_share else nothing


def can_knock_out(pipeline: IRISPipeline) -> bool:
    """Whether the core mixes by GRFM; a model with another mixer has no paths to silence."""
    return all(isinstance(layer.mixer, GRFM) for layer in pipeline.generator.core.layers)


def without_path(pipeline: IRISPipeline, path: str) -> IRISPipeline:
    """A pipeline whose core lacks `path` (a key of PATHS) in every layer. It shares all weights with `pipeline`, which is not changed."""
    weights = {id(tensor): tensor for tensor in (*pipeline.generator.parameters(), *pipeline.generator.buffers())}
    generator = copy.deepcopy(pipeline.generator, weights)
    for layer in generator.core.layers:
        setattr(layer.mixer, PATHS[path], _Silent(path == "Fourier"))
    silenced = copy.copy(pipeline)
    silenced.generator = generator
    return silenced
