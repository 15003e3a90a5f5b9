"""Architectures that other projects use, with random weights, built alike for measuring beside IRIS.

Everyone reads 77 text states of 768 numbers (DiT: a class) and works on 16 x 16 tokens for 256 px, of which IRIS-Tiny's core makes 8 x 8. Widths and depths are
chosen for 40 to 55 million parameters, PixArt and SANA rather below the size that SPEED's table names, so not in IRIS's favour.
The classes are diffusers' own; no weights are fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TEXT = (77, 768)
PEERS = ("pixart", "sana", "dit", "unet", "taesd")


class PeerError(ValueError):
    """A peer that cannot be measured; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A denoiser: `velocity(z, t)` on latents of `shape`; `tokens` is the side of its token grid."""

    name: str
    module: nn.Module
    velocity: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, int, int]


def check_peers(names: list[str]) -> list[str]:
    """`names` if all are known and diffusers is there; raises PeerError with one sentence otherwise."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise PeerError(f"there is no peer {unknown[0]!r}; use {', '.join(PEERS)}.")
    if names:
        _diffusers()
    return names


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise PeerError('measuring beside other architectures needs the package diffusers; run: pip install "iris-workbench[dev]".') from error
    return diffusers


def build_peer(name: str, side: int = 16) -> Peer:
    """The denoiser called `name` for a grid of side x side tokens."""
    kinds = {"pixart": _pixart, "sana": _sana, "dit": _dit, "unet": _unet}
    if name not in kinds:
        raise PeerError(f"there is no denoiser {name!r}; use {', '.join(kinds)}.")
    return kinds[name](_diffusers(), side)


def build_taesd() -> nn.Module:
    """TAESD's autoencoder (AutoencoderTiny): [B, 3, H, W] <-> [B, 4, H/8, W/8]."""
    return _diffusers().AutoencoderTiny().eval()


def _text(z: Tensor) -> Tensor:
    return torch.zeros(len(z), *TEXT)


def _pixart(library: Any, side: int) -> Peer:
    module = library.PixArtTransformer2DModel(num_attention_heads=8, attention_head_dim=64, num_layers=10, in_channels=4, out_channels=4,
                                              cross_attention_dim=512, caption_channels=TEXT[1], sample_size=2 * side, patch_size=2,
                                              use_additional_conditions=False)  # by default on from 1024 px
    nothing = {"resolution": None, "aspect_ratio": None}
    return Peer("pixart", module, lambda z, t: module(z, encoder_hidden_states=_text(z), timestep=t, added_cond_kwargs=nothing).sample, (4, 2 * side, 2 * side))


def _sana(library: Any, side: int) -> Peer:
    module = library.SanaTransformer2DModel(in_channels=16, out_channels=16, num_attention_heads=16, attention_head_dim=32, num_layers=10,
                                            num_cross_attention_heads=8, cross_attention_head_dim=64, cross_attention_dim=512,
                                            caption_channels=TEXT[1], mlp_ratio=2.5, sample_size=side, patch_size=1)
    return Peer("sana", module, lambda z, t: module(z, encoder_hidden_states=_text(z), timestep=t).sample, (16, side, side))


def _dit(library: Any, side: int) -> Peer:
    module = library.DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=64, num_layers=12, in_channels=4, out_channels=4,
                                           sample_size=2 * side, patch_size=2, num_embeds_ada_norm=1000)
    return Peer("dit", module, lambda z, t: module(z, timestep=t.long(), class_labels=torch.zeros(len(z), dtype=torch.long)).sample, (4, 2 * side, 2 * side))


def _unet(library: Any, side: int) -> Peer:
    module = library.UNet2DConditionModel(sample_size=2 * side, in_channels=4, out_channels=4, block_out_channels=(64, 128, 256, 512), layers_per_block=1,
                                          cross_attention_dim=TEXT[1], attention_head_dim=8,
                                          down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                                          up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    return Peer("unet", module, lambda z, t: module(z, t, encoder_hidden_states=_text(z)).sample, (4, 2 * side, 2 * side))
