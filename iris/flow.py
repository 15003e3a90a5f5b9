"""Rectified flow (Flow straight and fast, 2209.03003): the only file that knows which way t runs.

t = 0 is data, t = 1 is noise: z_t = (1 - t) data + t noise, and the velocity is dz/dt = noise - data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PathSample:
    """A point on the straight path: `z_t` [B, ...], its `velocity` [B, ...] and `t` [B]."""

    z_t: Tensor
    velocity: Tensor
    t: Tensor


def _expand(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> PathSample:
    """z_t = (1 - t) data + t noise and its velocity, noise - data; data and noise [B, ...], t [B]."""
    return PathSample(torch.lerp(data, noise, _expand(t, data)), noise - data, t)


def velocity_to_data(z_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The data that a velocity points to: z_t - t v. At t = 0 this is z_t itself, whatever the velocity."""
    return z_t - _expand(t, z_t) * velocity


def velocity_to_noise(z_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The noise that a velocity comes from: z_t + (1 - t) v."""
    return z_t + (1 - _expand(t, z_t)) * velocity


def shift_timesteps(t: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t), which adds ln s to logit t (SD3, 2403.03206, equation 23); s > 1 gives more noise."""
    return shift * t / (1 + (shift - 1) * t)


def sample_timesteps(count: int, rng: torch.Generator, logit_mean: float = 0.0, logit_std: float = 1.0, shift: float = 1.0) -> Tensor:
    """t ~ LogitNormal(logit_mean, logit_std), then shifted; [count], float32 on the CPU (SD3, section 3.1)."""
    return shift_timesteps(torch.sigmoid(logit_mean + logit_std * torch.randn(count, generator=rng)), shift)


def timestep_schedule(num_steps: int, shift: float = 1.0) -> Tensor:
    """num_steps + 1 times from 1 (noise) down to 0 (data)."""
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; use 1 or more.")
    return shift_timesteps(torch.linspace(1.0, 0.0, num_steps + 1), shift)


def specification_weight(t: Tensor, limit: float = 20.0) -> Tensor:
    """The specification's loss weight t / (1 - t), clamped at `limit`.

    SD3's t/(1-t) belongs to the noise-prediction loss, where it equals the unweighted velocity loss; on the velocity
    loss it counts twice. With t ~ LogitNormal(0, 1) it equals, up to e^(1/2), the unweighted loss at logit mean 1. It is
    an option so that this can be shown, not the default.
    """
    return (t / (1 - t).clamp_min(1e-6)).clamp_max(limit)
