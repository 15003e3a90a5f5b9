"""Laws of attention: masks are respected, and local attention is dense attention under the same mask and bias."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import randomise, seeded
from torch import Tensor

from iris.nn.attention import CrossAttention, GlobalAttention, LocalAttention, attend, key_bias

HEADS, DIM = 2, 8


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def dense_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(norm(q) norm(k)^T / sqrt(c) + bias) v on [B, N, heads * c]; bias broadcasts to [B, heads, N, M]."""
    query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value))
    scores = layer_norm(query) @ layer_norm(key).mT / math.sqrt(query.shape[-1]) + bias
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (320, 300)], ids=["products", "fused"])
def test_attend_is_torchs_attention_on_both_its_ways(queries: int, keys: int, dtype: torch.dtype) -> None:
    query, key, value = (seeded(2, 3, length, 4, seed=seed, dtype=dtype) for seed, length in enumerate((queries, keys, keys)))
    mask = torch.rand(2, 1, 1, keys, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attend(query, key, value, key_bias(mask, dtype)), expected)


@pytest.mark.parametrize(("window", "halo", "tiles"), [(4, 2, 3), (4, 0, 3), (4, 4, 3), (4, 1, 2)])
def test_tiles_are_those_of_unfold(window: int, halo: int, tiles: int) -> None:
    layer = LocalAttention(DIM, HEADS, window, halo)
    reach = window + 2 * halo
    x = seeded(2, reach + (tiles - 1) * window, reach + (tiles - 1) * window, 3)
    expected = x.unfold(1, reach, window).unfold(2, reach, window).permute(0, 1, 4, 2, 5, 3)  # [B, th, reach, tw, reach, c]
    assert torch.equal(layer._tiles(x, reach), expected)


@pytest.fixture
def cross() -> CrossAttention:
    torch.manual_seed(0)
    return randomise(CrossAttention(DIM, 6, HEADS).double(), scale=0.3)


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_is_softmax_attention_to_the_text(cross: CrossAttention, masked: bool) -> None:
    x, text = seeded(2, 3, 4, DIM, dtype=torch.float64), seeded(2, 5, 6, seed=1, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False, True], [True] * 5]) if masked else None
    bias = torch.where(mask, 0.0, -math.inf)[:, None, None] if masked else 0.0
    key, value = cross.key_value(text).chunk(2, -1)
    read = dense_attention(cross.query(x.flatten(1, 2)), key, value, bias)
    expected = cross.out((read - read.mean(-1, keepdim=True)) / (read.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()).view_as(x)
    output = cross(x, cross.keys_values(text), mask[:, None, None] if masked else None)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=0)


def test_masked_text_has_no_effect_at_all(cross: CrossAttention) -> None:
    x, text = seeded(1, 3, 4, DIM, dtype=torch.float64), seeded(1, 5, 6, seed=1, dtype=torch.float64)
    mask = torch.tensor([True, True, True, False, False])[None, None, None]
    other = text.clone()
    other[:, 3:] = 1e6
    assert torch.equal(cross(x, cross.keys_values(text), mask), cross(x, cross.keys_values(other), mask))


def test_global_attention_is_softmax_attention_and_knows_no_order() -> None:
    torch.manual_seed(0)
    layer, x = GlobalAttention(DIM, 12, 6).double(), seeded(2, 3, 4, DIM, dtype=torch.float64)
    expected = layer.out(dense_attention(*layer.qkv(x.flatten(1, 2)).chunk(3, -1))).view_as(x)
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(layer(x.flip(1)), layer(x).flip(1), atol=1e-12, rtol=0)


def locality_bias(layer: LocalAttention, height: int, width: int) -> Tensor:
    """[heads, N, N]: the bias of the relative offset where the key lies in the query's tile or its halo, else minus infinity."""
    window, halo = layer.window, layer.halo
    bias = torch.full((HEADS, height * width, height * width), -math.inf, dtype=torch.float64)

    def near(query: int, key: int) -> bool:
        first = query // window * window
        return first - halo <= key < first + window + halo

    for query in range(height * width):
        for key in range(height * width):
            (r, c), (s, d) = divmod(query, width), divmod(key, width)
            if near(r, s) and near(c, d):
                centre = window + halo - 1
                bias[:, query, key] = layer.bias[:, s - r + centre, d - c + centre]
    return bias


@torch.no_grad()
@pytest.mark.parametrize(("window", "halo", "height", "width"), [(4, 2, 8, 8), (2, 1, 4, 6), (4, 0, 8, 4), (4, 4, 8, 12), (4, 2, 4, 4), (2, 2, 6, 8)])
def test_local_attention_is_dense_attention_under_the_same_mask_and_bias(window: int, halo: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = randomise(LocalAttention(DIM, HEADS, window, halo).double(), scale=0.5)
    x = seeded(2, height, width, DIM, dtype=torch.float64)
    expected = layer.out(dense_attention(*layer.qkv(x.flatten(1, 2)).chunk(3, -1), locality_bias(layer, height, width))).view_as(x)
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=0)


def test_every_bias_that_can_be_reached_gets_a_gradient() -> None:
    layer = LocalAttention(DIM, HEADS, 4, 2)
    layer(seeded(1, 12, 12, DIM)).square().sum().backward()
    assert (layer.bias.grad != 0).all()


def test_a_grid_that_windows_do_not_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="6 x 8"):
        LocalAttention(DIM, HEADS, 4, 2)(torch.zeros(1, 6, 8, DIM))
