"""Attention in its three uses: to the text, within local windows (coda), and globally (the mixer to compare GRFM with).

Queries and keys are normalised (QK-norm) everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iris.nn.layers import normalize


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads*c] -> [B, heads, N, c]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class CrossAttention(nn.Module):
    """Image tokens [B, h, w, dim] read text states. Keys and values are made once a prompt by `keys_values`.
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
        read = F.scaled_dot_product_attention(query, *keys_values, attn_mask=mask)
        return self.out(read.transpose(1, 2).reshape(x.shape))


class GlobalAttention(nn.Module):
    """Self-attention over all tokens of [B, h, w, dim], inner width `inner` (a multiple of `head_dim`)."""

    def __init__(self, dim: int, inner: int, head_dim: int) -> None:
        super().__init__()
        self.heads = inner // head_dim
        self.qkv = nn.Linear(dim, 3 * inner)
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (_heads(part, self.heads) for part in self.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
        read = F.scaled_dot_product_attention(normalize(query), normalize(key), value)
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
        """[B, h', w', c] -> [B, tiles, heads, reach^2, c/heads], tiles `window` apart."""
        tiles = x.unfold(1, reach, self.window).unfold(2, reach, self.window)  # [B, th, tw, c, reach, reach]
        tiles = tiles.flatten(4).unflatten(3, (self.heads, -1)).flatten(1, 2)  # [B, tiles, heads, c, reach^2]
        return tiles.transpose(-1, -2)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        if height % self.window or width % self.window:
            raise ValueError(f"the token grid is {height} x {width}; its sides must be multiples of the window ({self.window}).")
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        around = (0, 0, self.halo, self.halo, self.halo, self.halo)
        reach = self.window + 2 * self.halo
        query = self._tiles(query, self.window)
        key, value = (self._tiles(F.pad(part, around), reach) for part in (key, value))
        inside = F.pad(torch.ones(1, height, width, 1, device=x.device), around)
        inside = inside.unfold(1, reach, self.window).unfold(2, reach, self.window).flatten(4).flatten(1, 2)  # [1, tiles, 1, k]
        bias = self._relative_bias().to(x.dtype) + torch.where(inside > 0, 0.0, -1e4).to(x.dtype).unsqueeze(2)  # [1, tiles, heads, q, k]
        read = F.scaled_dot_product_attention(normalize(query), normalize(key), value, attn_mask=bias.expand(batch, -1, -1, -1, -1))
        read = read.view(batch, height // self.window, width // self.window, self.heads, self.window, self.window, -1)
        return self.out(read.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, dim))
