"""A checkpoint with one tensor of every kind, shared by the tests of checkpoint folders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def some_tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 4, generator=rng)
    return {
        "generator": {
            "weight": base,
            "shared": base,
            "view": base[1:3],
            "transposed": base.t(),
            "strided": base[:, ::2],
            "half": base.half(),
            "brain": base.bfloat16(),
            "double": base.double(),
            "integers": torch.arange(5),
            "flags": torch.tensor([True, False]),
            "bytes": torch.arange(7, dtype=torch.uint8),
            "scalar": torch.tensor(3.5),
            "nothing": torch.empty(0, 3),
            "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        },
        "ema": {"weight": base + 1, "parameter": nn.Parameter(base * 2)},
        "empty": {},
    }


def assert_same(read: dict, written: dict) -> None:
    assert {part: set(named) for part, named in read.items()} == {part: set(named) for part, named in written.items()}
    for part, named in written.items():
        for name, tensor in named.items():
            other = read[part][name]
            assert other.dtype == tensor.dtype and other.shape == tensor.shape, name
            assert torch.equal(other.nan_to_num(7.0), tensor.detach().nan_to_num(7.0)), name


def snapshot(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}
