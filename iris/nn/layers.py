"""Small parts that several mechanisms use: embeddings, modulation, feed-forward and the normalisation without weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normalize(x: Tensor) -> Tensor:
    """Zero mean and unit variance over the last axis, no weights; in fp32 inside, whatever comes in."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def sinusoid(value: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding (Attention is all you need, 1706.03762, section 3.5): [B] -> [B, dim], cosines first."""
    rates = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=value.device, dtype=torch.float32) / (dim // 2))
    angles = value.to(torch.float32)[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(value.dtype)


def grid_positions(height: int, width: int, dim: int, native: int, device: torch.device | None = None) -> Tensor:
    """Fixed 2-D sinusoidal positions [height, width, dim]: half the channels tell the row, half the column.

    Coordinates are those of the native grid, so that a larger picture sees the same range more finely.
    """
    def axis(length: int) -> Tensor:
        coordinates = (torch.arange(length, dtype=torch.float32, device=device) + 0.5) * (native / length)
        return sinusoid(coordinates, dim // 2, max_period=100.0)

    rows, columns = axis(height), axis(width)
    return torch.cat([rows[:, None].expand(height, width, -1), columns[None].expand(height, width, -1)], dim=-1)


class ScalarEmbedding(nn.Module):
    """A number per sample -> [B, dim]: sinusoid, then a two-layer perceptron (DiT, 2212.09748)."""

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, value: Tensor) -> Tensor:
        return self.mlp(sinusoid(value, self.frequencies).to(self.mlp[0].weight.dtype))


class Modulation(nn.Module):
    """adaLN (DiT, 2212.09748, section 3.2): condition [B, dim] -> `count` tensors [B, 1, 1, dim], all zero at first.

    They are read as offsets: a branch is scaled by 1 + scale and enters by 1 + gate. With DiT's closed
    gates (adaLN-Zero) the core's branches were a tenth of its state after 1,200 steps; that opening them helps is not shown
    yet (reports/LOG.md, 2026-11-23).
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(dim, count * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(condition))[:, None, None].chunk(self.count, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, in one pass."""
    return torch.addcmul(shift, x, 1 + scale)


class MergeTokens(nn.Module):
    """Each `stride` x `stride` square of tokens becomes one: [B, h, w, dim] -> [B, h/stride, w/stride, dim]."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(stride**2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        squares = x.unflatten(2, (-1, self.stride)).unflatten(1, (-1, self.stride)).transpose(2, 3)  # [B, h/s, w/s, s, s, dim]
        return self.linear(squares.flatten(3))


class SplitTokens(nn.Module):
    """One token becomes a `stride` x `stride` square: [B, h, w, dim] -> [B, h * stride, w * stride, dim]."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(dim, stride**2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        squares = self.linear(x).unflatten(-1, (self.stride, self.stride, -1)).transpose(2, 3)  # [B, h, s, w, s, dim]
        return squares.flatten(3, 4).flatten(1, 2)


class FeedForward(nn.Module):
    """Linear -> GELU -> Linear over the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x)))


class ConvBlock(nn.Module):
    """Residual block of the prelude: depthwise 3x3 convolution, feed-forward, adaLN. Tokens stay [B, h, w, dim]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.modulation = Modulation(dim, 3)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.ffn = FeedForward(dim, hidden)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition)
        local = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + (1 + gate) * self.ffn(modulate(normalize(local), shift, scale))
