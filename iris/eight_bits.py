"""Weights in eight bits on disk: each row of a matrix as int8, beside the one number that its largest weight, 127, stands for.

Half of fp16's size. This is about files and downloads alone: read back, the weights are fp32 and multiply as ever (for products
in eight bits see `iris.quantize`). The error of a weight is at most half a step, 1/254 of the largest weight of its row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".row_scale"   # beside the int8 tensor NAME lies NAME.row_scale, fp32 [rows]
LEAST_ROW = 64         # weights; for shorter rows a scale of their own saves too little
_SCALE_BITS = 11       # of the scale's mantissa: 127 times such a number is exact in fp32, so a second rounding changes nothing


def to_eight_bits(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every floating tensor [rows, ...] whose rows hold LEAST_ROW weights or more as int8 and its scales; the others as they are.

    Raises ValueError, naming the tensor, where a weight is not finite.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if not tensor.is_floating_point() or tensor.dim() < 2 or tensor[0].numel() < LEAST_ROW:
            stored[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        largest = rows.abs().amax(1)
        if not bool(torch.isfinite(largest).all()):
            raise ValueError(f"{name} holds weights that are not finite, which eight bits cannot store")
        mantissa, exponent = torch.frexp(largest / 127)
        scale = torch.ldexp((mantissa * 2**_SCALE_BITS).round() / 2**_SCALE_BITS, exponent)
        steps = rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]  # a row of zeros stays one
        stored[name], stored[name + SCALE] = steps.round().clamp(-127, 127).to(torch.int8).view_as(tensor), scale
    return stored


def from_eight_bits(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `to_eight_bits` was given, rounded: fp32 where it stored int8 rows. Raises ValueError where scales and rows do not belong together."""
    read = {name: tensor for name, tensor in named.items() if not name.endswith(SCALE)}
    for name, scale in named.items():
        if not name.endswith(SCALE):
            continue
        tensor = read.get(name.removesuffix(SCALE))
        if tensor is None or tensor.dtype != torch.int8 or tensor.dim() < 2:
            raise ValueError(f"{name} has no int8 rows beside it")
        if not scale.is_floating_point() or scale.shape != tensor.shape[:1] or not bool(torch.isfinite(scale.float()).all()):
            raise ValueError(f"{name} is not one finite number for each of {len(tensor)} rows")
        read[name.removesuffix(SCALE)] = (tensor.flatten(1).float() * scale.float()[:, None]).view_as(tensor)
    return read
