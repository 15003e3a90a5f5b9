"""Attention in its three uses: to the text, within local windows (coda), and globally (the mixer to compare GRFM with).

Queries and keys are normalised (QK-norm) everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iris.nn.layers import normalize

PRODUCT_LIMIT = 1 << 16  # scores a head: 256 x 256


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads*c] -> [B, heads, N, c]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(c) + bias) v over [..., N, c] and [..., L, c]; `bias` broadcasts to [..., N, L].

    On a CPU two plain products: torch's fused attention is 1.3 times slower there for short sequences forward and
    backward, in bf16 three to six times (reports/LOG.md, 2026-11-25). It stays where the scores would not fit a cache.
    """
    if query.is_cuda or query.shape[-2] * key.shape[-2] > PRODUCT_LIMIT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    return (scores if bias is None else scores + bias).softmax(-1).to(value.dtype) @ value


def key_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A key mask (True = counts) as a bias for `attend`: 0 where a key counts, the lowest number elsewhere.

    A mask of weights in [0, 1] gives their logarithm: softmax counts a key of weight 1/2 as half a key.
    """
    return None if mask is None else mask.to(dtype).log().clamp_min(torch.finfo(dtype).min)


class CrossAttention(nn.Module):
    """Image tokens [B, h, w, dim] read text states. Keys and values are made once a prompt by `keys_values`.

    What is read is normalised: an average over many words is small, and the branch must count beside the mixer (measured:
    reports/LOG.md, 2026-11-26).
    """

    def __init__(self, dim: int, text_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(text_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text states [B, L, text_dim] -> normalised keys and values, each [B, heads, L, c]."""
        key, value = (_heads(part, self.heads) for part in self.key_value(text).chunk(2, dim=-1))
        return normalize(key), value

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        query = normalize(_heads(self.query(x.flatten(1, 2)), self.heads))
        read = attend(query, *keys_values, key_bias(mask, query.dtype))
        return self.out(normalize(read.transpose(1, 2).reshape(x.shape)))


class GlobalAttention(nn.Module):
    """Self-attention over all tokens of [B, h, w, dim], inner width `inner` (a multiple of `head_dim`)."""

    def __init__(self, dim: int, inner: int, head_dim: int) -> None:
        super().__init__()
        self.heads = inner // head_dim
        self.qkv = nn.Linear(dim, 3 * inner)
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (_heads(part, self.heads) for part in self.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
        read = attend(normalize(query), normalize(key), value)
        return self.out(read.transpose(1, 2).flatten(2)).view(x.shape)


class LocalAttention(nn.Module):
    """Attention of each `window` x `window` tile to itself and `halo` tokens around it (HaloNet, 2103.12731).

    A learned bias for each relative offset and head tells positions; tokens beyond the border are masked.
    """

    def __init__(self, dim: int, heads: int, window: int, halo: int) -> None:
        super().__init__()
        self.heads, self.window, self.halo = heads, window, halo
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        reach = 2 * window + 2 * halo - 1
        self.bias = nn.Parameter(torch.zeros(heads, reach, reach))
        side = torch.arange(window + 2 * halo)[None] - torch.arange(window)[:, None] + window - 1  # offset of a key, from 0
        self.register_buffer("offset", side, persistent=False)

    def _relative_bias(self) -> Tensor:
        """[heads, window^2, (window + 2 halo)^2] from the table of offsets."""
        rows = self.bias[:, self.offset]  # [heads, q, k, reach]
        return rows[..., self.offset].permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)

    def _tiles(self, x: Tensor, reach: int) -> Tensor:
        """[B, h', w', ...] -> [B, th, reach, tw, reach, ...]: overlapping tiles, `window` apart, put together from whole windows.

        Slices and concatenations cost a copy each way; the gradient of `unfold` costs far more.
        """
        for axis in (1, 3):
            tiles = (x.shape[axis] - reach) // self.window + 1
            x = F.pad(x, (0, 0) * (x.ndim - 1 - axis) + (0, -reach % self.window))
            pieces = [x.narrow(axis, start, tiles * self.window).unflatten(axis, (tiles, self.window)) for start in range(0, reach, self.window)]
            x = torch.cat(pieces, axis + 1).narrow(axis + 1, 0, reach)
        return x

    def _by_tile(self, x: Tensor, reach: int) -> Tensor:
        """[B, h', w', heads * c] -> [B, tiles, heads, reach^2, c]."""
        tiles = self._tiles(x, reach).unflatten(-1, (self.heads, -1))  # [B, th, r, tw, r, heads, c]
        return tiles.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        if height % self.window or width % self.window:
            raise ValueError(f"the token grid is {height} x {width}; its sides must be multiples of the window ({self.window}).")
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        around = (0, 0, self.halo, self.halo, self.halo, self.halo)
        reach = self.window + 2 * self.halo
        query = self._by_tile(query, self.window)
        key, value = (self._by_tile(F.pad(part, around), reach) for part in (key, value))
        inside = self._tiles(F.pad(torch.ones(1, height, width, 1, device=x.device), around), reach)
        inside = inside.transpose(2, 3).flatten(3).flatten(1, 2)[:, :, None, None]  # [1, tiles, 1, 1, k]
        bias = self._relative_bias().to(x.dtype) + torch.where(inside > 0, 0.0, -1e4).to(x.dtype)  # [1, tiles, heads, q, k]
        read = attend(normalize(query), normalize(key), value, bias)
        read = read.view(batch, height // self.window, width // self.window, self.heads, self.window, self.window, -1)
        return self.out(read.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, dim))
