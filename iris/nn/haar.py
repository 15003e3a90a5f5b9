"""Orthonormal Haar wavelets in two dimensions (Haar 1910; as the front of a generative model: WaveDiff, 2211.16152).

One level maps [B, C, H, W] to [B, 4C, H/2, W/2] in four blocks of C channels: LL (average), LH (change along a row),
HL (change along a column), HH (diagonal). The transform is orthonormal: energy is kept, and the inverse is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

BANDS = ("LL", "LH", "HL", "HH")


def haar_dwt2(x: Tensor) -> Tensor:
    """One analysis level, [B, C, H, W] -> [B, 4C, H/2, W/2]; raises ValueError when H or W is odd."""
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"haar_dwt2 needs an even height and width, got {x.shape[-2]} x {x.shape[-1]}.")
    top_left, top_right = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    bottom_left, bottom_right = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    top, top_change = top_left + top_right, top_left - top_right
    bottom, bottom_change = bottom_left + bottom_right, bottom_left - bottom_right
    return torch.cat([top + bottom, top_change + bottom_change, top - bottom, top_change - bottom_change], dim=-3) * 0.5


def haar_idwt2(bands: Tensor) -> Tensor:
    """The inverse of `haar_dwt2`, [B, 4C, h, w] -> [B, C, 2h, 2w]."""
    if bands.shape[-3] % 4:
        raise ValueError(f"haar_idwt2 needs four blocks of channels, got {bands.shape[-3]} channels.")
    ll, lh, hl, hh = (bands * 0.5).chunk(4, dim=-3)
    left, right = ll + lh, ll - lh
    left_change, right_change = hl + hh, hl - hh
    top = torch.stack([left + left_change, right + right_change], dim=-1).flatten(-2)
    bottom = torch.stack([left - left_change, right - right_change], dim=-1).flatten(-2)
    return torch.stack([top, bottom], dim=-2).flatten(-3, -2)


def haar_packets(x: Tensor, levels: int) -> Tensor:
    """`levels` analysis levels, each applied to every band: [B, C, H, W] -> [B, C*4^levels, H/2^levels, W/2^levels].

    The first C channels are the average over 2^levels x 2^levels pixels times 2^levels.
    """
    for _ in range(levels):
        x = haar_dwt2(x)
    return x


def inverse_haar_packets(bands: Tensor, levels: int) -> Tensor:
    """The inverse of `haar_packets`."""
    for _ in range(levels):
        bands = haar_idwt2(bands)
    return bands
