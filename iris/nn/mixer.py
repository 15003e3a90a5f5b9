"""GRFM, the Gated Recurrent Fourier Mixer: three paths at equal scale, fused by a gate per head and token.

out = W_o (g * fourier + (1 - g) * recurrent + alpha * s * spatial)

Each path is normalised before the fusion, so a gate of 0.8 means that four fifths come from the Fourier path. `g` and
`s` are sigmoids of a linear map of the token, one value a head; `alpha` is learned per head and starts at one half.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iris.config import GeneratorConfig
from iris.nn.attention import GlobalAttention
from iris.nn.fourier import FourierPath
from iris.nn.layers import normalize
from iris.nn.recurrence import GatedLinearRecurrence
from iris.nn.spatial import ManhattanDecay


@dataclass(frozen=True)
class MixerMaps:
    """What one GRFM layer did: `gate` [B, h, w] (mean over heads; 1 = Fourier, 0 = recurrent), `shares` [B, h, w, 3]

    (norm of the Fourier, recurrent and spatial term over their sum) and `zeroed`, the share of Fourier coefficients that
    softshrink set to zero.
    """

    gate: Tensor
    shares: Tensor
    zeroed: float


class GRFM(nn.Module):
    """Token mixer on [B, h, w, dim]; see the module's docstring for the formula."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        # One product gives the recurrent path's input and both gates' logits.
        self.input = nn.Linear(config.dim, config.dim + 2 * self.heads)
        self.fourier = FourierPath(config.dim, config.fourier_blocks, config.softshrink)
        self.recurrence = GatedLinearRecurrence(config.dim)
        self.spatial = ManhattanDecay(self.heads)
        self.alpha = nn.Parameter(torch.full((self.heads, 1), 0.5))
        self.out = nn.Linear(config.dim, config.dim)

    def paths(self, x: Tensor, record: bool = False) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], float]:
        """The gates g and s [B, h, w, heads, 1], the three normalised paths [B, h, w, heads, c], and softshrink's share."""
        inner, logits = self.input(x).split([x.shape[-1], 2 * self.heads], dim=-1)
        gate, spatial_gate = logits.sigmoid().unsqueeze(-1).chunk(2, dim=-2)
        fourier, zeroed = self.fourier(x, record)
        paths = (normalize(path).unflatten(-1, (self.heads, -1)) for path in (fourier, self.recurrence(inner), self.spatial(x)))
        return gate, spatial_gate, tuple(paths), zeroed

    def forward(self, x: Tensor, record: bool = False) -> tuple[Tensor, MixerMaps | None]:
        gate, spatial_gate, (fourier, recurrent, spatial), zeroed = self.paths(x, record)
        share = self.alpha.to(x.dtype) * spatial_gate
        # A gradient needs the recurrent path as it was; without one nothing fresh is asked for.
        lerp = torch.lerp if torch.is_grad_enabled() or record else Tensor.lerp_
        mixed = lerp(recurrent, fourier, gate.to(recurrent.dtype)).addcmul_(share, spatial)
        maps = None
        if record:
            norms = [term.flatten(3).norm(dim=-1) for term in (gate * fourier, (1 - gate) * recurrent, share * spatial)]
            shares = torch.stack(norms, dim=-1)
            maps = MixerMaps(gate.mean((-1, -2)), shares / shares.sum(-1, keepdim=True), zeroed)
        return self.out(mixed.flatten(3)), maps


class AttentionMixer(nn.Module):
    """Self-attention with as many parameters as GRFM at the same `dim`: the mixer every claim is tested against."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        with torch.device("meta"):
            budget = sum(parameter.numel() for parameter in GRFM(config).parameters())
        # The inner width that spends the same budget, in whole heads of even width.
        heads = config.num_heads
        head_dim = max(2, 2 * round((budget - config.dim) / (4 * config.dim + 3) / heads / 2))
        self.attention = GlobalAttention(config.dim, heads * head_dim, head_dim)

    def forward(self, x: Tensor, record: bool = False) -> tuple[Tensor, None]:
        return self.attention(x), None


class SinglePath(nn.Module):
    """One of GRFM's paths alone between GRFM's projections, for ablations."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.dim, config.dim)
        self.fourier = FourierPath(config.dim, config.fourier_blocks, config.softshrink) if config.mixer == "fourier" else None
        self.recurrence = GatedLinearRecurrence(config.dim) if config.mixer == "recurrence" else None
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, record: bool = False) -> tuple[Tensor, None]:
        inner = self.input(x)
        mixed = self.fourier(inner)[0] if self.fourier is not None else self.recurrence(inner)
        return self.out(normalize(mixed)), None


def build_mixer(config: GeneratorConfig) -> nn.Module:
    """The mixer that `config.mixer` names; every one maps [B, h, w, dim] to (the same shape, MixerMaps or None)."""
    kinds = {"grfm": GRFM, "attention": AttentionMixer, "fourier": SinglePath, "recurrence": SinglePath}
    return kinds[config.mixer](config)
