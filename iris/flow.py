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


def sample_timesteps(count: int, rng: torch.Generator, logit_mean: float = 0.0, logit_std: float = 1.0) -> Tensor:
    """t ~ LogitNormal(logit_mean, logit_std); [count], float32 on the CPU (SD3, 2403.03206, section 3.1)."""
    return torch.sigmoid(logit_mean + logit_std * torch.randn(count, generator=rng))


def timestep_schedule(num_steps: int, shift: float = 1.0, start: float = 1.0) -> Tensor:
    """num_steps + 1 times from `start` (1 is noise) down to 0 (data), evenly spaced before they are shifted.

    The shift moves a time u to shift u / (1 + (shift - 1) u) (SD3, 2403.03206, equation 23): above 1 the steps are finer near noise,
    below 1 near data. Both ends stay.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; use 1 or more.")
    even = torch.linspace(unshifted(start, shift), 0.0, num_steps + 1, dtype=torch.float64)
    times = (shift * even / (1 + (shift - 1) * even)).float()
    times[0] = start  # whatever rounding made of it
    return times


def unshifted(t: float, shift: float) -> float:
    """The time that a shift moves to `t`."""
    return t / (shift - (shift - 1) * t)


def specification_weight(t: Tensor, limit: float = 20.0) -> Tensor:
    """The specification's loss weight t / (1 - t), clamped at `limit`.

    In SD3 that factor, times -1/2 of the slope of the log signal-to-noise ratio, 1 / (t (1 - t)), weighs the error of the noise; together
    they are 1 / (1 - t)^2, which makes it the unweighted error of the velocity. On the velocity it is one weight too many. With
    t ~ LogitNormal(0, 1) it equals, up to e^(1/2), the unweighted loss at logit mean 1. It is an option so that this can be shown, not
    the default.
    """
    return (t / (1 - t).clamp_min(1e-6)).clamp_max(limit)
