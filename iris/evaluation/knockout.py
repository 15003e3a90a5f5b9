"""A generator without one of GRFM's paths, so that one sees what the path does in a picture.

The copy shares every weight with the original, which stays as it is; in it the path's output is zero, so its term is
missing from every sum of every core layer. Nothing else is put in its place: the model was not trained for it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from iris.nn.generator import Generator
from iris.nn.mixer import GRFM
from iris.pipeline import IRISPipeline

PATHS = ("fourier", "recurrence", "spatial")


class KnockoutError(ValueError):
    """A path that this model does not have; the message names those it has."""


class _Silent(nn.Module):
    """Zeros in place of a path."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return torch.zeros_like(x)


class _SilentFourier(_Silent):
    """The Fourier path also tells the share of coefficients that were set to zero."""

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, float]:
        return torch.zeros_like(x), 0.0


def without_path(generator: Generator, path: str) -> Generator:
    """A copy of `generator` without `path` ("fourier", "recurrence" or "spatial"). Raises KnockoutError."""
    if path not in PATHS:
        raise KnockoutError(f"the path is {path!r}; use one of {', '.join(PATHS)}.")
    if generator.config.mixer != "grfm":
        raise KnockoutError(f"this model's core mixes tokens by {generator.config.mixer} alone; only grfm has paths to take out.")
    weights = {id(tensor): tensor for tensor in (*generator.parameters(), *generator.buffers())}
    other = copy.deepcopy(generator, weights)  # the memo makes the copy share them
    for module in other.modules():
        if isinstance(module, GRFM):
            setattr(module, path, _SilentFourier() if path == "fourier" else _Silent())
    return other


def pipeline_without(pipe: IRISPipeline, path: str) -> IRISPipeline:
    """`pipe` with a generator without `path`; everything else is shared."""
    return IRISPipeline(pipe.config, pipe.autoencoder, without_path(pipe.generator, path), pipe.text_encoder, pipe.defaults, pipe.metadata)
