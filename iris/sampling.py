"""From noise to latents: noise per seed, guidance, solvers that yield every step, automatic depth.

A sampler takes a `velocity` callable (z [B, C, h, w], t [B]) -> velocity and never sees text or depth. Each image's noise
depends on its own seed alone, so a picture is the same alone and in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iris.flow import interpolate, velocity_to_data
from iris.nn.generator import CoreState, Embedded, Generator, TextContext, relative_change
from iris.rng import rng_for

Velocity = Callable[[Tensor, Tensor], Tensor]
NOISE, RENOISE = 0, 1  # purposes of the random streams of a seed


class SamplingError(ValueError):
    """A sampling argument out of range; the message names it and what is allowed."""


@dataclass(frozen=True)
class SampleStep:
    """After solver step `index` of `num_steps`: time `t`, `latents` there, and `data`, the estimate of the clean latents."""

    index: int
    num_steps: int
    t: float
    latents: Tensor
    data: Tensor


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal [len(seeds), C, h, w]; row i depends on seeds[i] alone."""
    return torch.stack([torch.randn(shape, generator=rng_for(seed, NOISE)) for seed in seeds]).to(device)


def _select(context: TextContext, rows: Tensor) -> TextContext:
    keys_values = tuple((key[rows], value[rows]) for key, value in context.keys_values)
    return TextContext(keys_values, None if context.mask is None else context.mask[rows], context.pooled[rows])


def concatenate_contexts(first: TextContext, second: TextContext) -> TextContext:
    """Stack two contexts along the batch; the shorter one is padded with masked keys."""
    length = max(first.keys_values[0][0].shape[2], second.keys_values[0][0].shape[2])

    def pad(context: TextContext) -> tuple[tuple[tuple[Tensor, Tensor], ...], Tensor]:
        key = context.keys_values[0][0]
        mask = context.mask if context.mask is not None else torch.ones(key.shape[0], 1, 1, key.shape[2], dtype=torch.bool, device=key.device)
        missing = length - key.shape[2]
        padded = tuple(tuple(torch.nn.functional.pad(part, (0, 0, 0, missing)) for part in pair) for pair in context.keys_values)
        return padded, torch.nn.functional.pad(mask, (0, missing), value=False)

    (first_kv, first_mask), (second_kv, second_mask) = pad(first), pad(second)
    keys_values = tuple(tuple(torch.cat(parts) for parts in zip(a, b, strict=True)) for a, b in zip(first_kv, second_kv, strict=True))
    return TextContext(keys_values, torch.cat([first_mask, second_mask]), torch.cat([first.pooled, second.pooled]))


class GuidedVelocity:
    """The generator as a velocity field: text, classifier-free guidance (2207.12598) and depth bound in.

    v = v_null + guidance_scale * (v_text - v_null); at guidance_scale 1 the null pass is skipped. `num_iterations` is a
    number or "auto": each sample stops when its state's relative change falls below `threshold`, between
    `min_iterations` and `max_iterations`. `spent` collects the iterations used by each sample, one [B] tensor a call.
    """

    def __init__(self, generator: Generator, context: TextContext, null_context: TextContext | None = None, guidance_scale: float = 1.0,
                 num_iterations: int | str = 8, min_iterations: int = 2, max_iterations: int = 16, threshold: float = 0.03) -> None:
        self.generator = generator
        self.guided = guidance_scale != 1.0 and null_context is not None
        self.context = concatenate_contexts(context, null_context) if self.guided else context
        self.guidance_scale = guidance_scale
        self.num_iterations = num_iterations
        self.min_iterations, self.max_iterations, self.threshold = min_iterations, max_iterations, threshold
        self.spent: list[Tensor] = []

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        batch = z.shape[0]
        if self.guided:
            z, t = z.repeat(2, 1, 1, 1), t.repeat(2)
        embedded = self.generator.embed(z, t, self.context)
        tokens, used = self._think(embedded)
        self.spent.append(used[:batch])
        velocity = self.generator.readout(tokens, embedded)
        if not self.guided:
            return velocity
        text, null = velocity.chunk(2)
        return torch.lerp(null, text, self.guidance_scale)

    def _think(self, embedded: Embedded) -> tuple[Tensor, Tensor]:
        """Core state for every row and the iterations it took."""
        if self.num_iterations != "auto":
            for current in self.generator.iterate(embedded, self.context, int(self.num_iterations)):
                last = current
            return last.tokens, torch.full((len(last.tokens),), last.iteration)
        return self._think_until_still(embedded)

    def _think_until_still(self, embedded: Embedded) -> tuple[Tensor, Tensor]:
        """Rows whose state has settled leave the batch, so the others cost less and nobody's picture changes."""
        injected, condition = embedded.injected, embedded.condition
        rows = len(injected)
        result = torch.zeros_like(injected)
        used = torch.zeros(rows, dtype=torch.long)
        active, context, tokens = torch.arange(rows, device=injected.device), self.context, result
        for iteration in range(1, self.max_iterations + 1):
            current: CoreState = self.generator.core(tokens, injected[active], condition[active], context, iteration)
            still = relative_change(current.tokens, tokens) < self.threshold
            if self.guided:  # a picture's two rows decide together and leave together
                still = self._both_halves(still, active, rows // 2)
            leaving = still if iteration >= self.min_iterations else torch.zeros_like(still)
            if iteration == self.max_iterations:
                leaving = torch.ones_like(still)
            result[active[leaving]] = current.tokens[leaving]
            used[active[leaving].cpu()] = iteration
            staying = ~leaving
            if not staying.any():
                break
            active, tokens, context = active[staying], current.tokens[staying], _select(context, staying)
        return result, used

    @staticmethod
    def _both_halves(still: Tensor, active: Tensor, half: int) -> Tensor:
        settled = torch.ones(2 * half, dtype=torch.bool, device=still.device)
        settled[active] = still
        return (settled[:half] & settled[half:]).repeat(2)[active]


def _times(z: Tensor, t: Tensor) -> Tensor:
    return t.to(z).expand(z.shape[0])


def sample_euler(velocity: Velocity, noise: Tensor, timesteps: Tensor, seeds: Sequence[int] = ()) -> Iterator[SampleStep]:
    """First-order solver of dz/dt = v from timesteps[0] to timesteps[-1]: one velocity call a step."""
    z, steps = noise, len(timesteps) - 1
    for index in range(steps):
        v = velocity(z, _times(z, timesteps[index]))
        data = velocity_to_data(z, v, _times(z, timesteps[index]))
        z = z + (timesteps[index + 1] - timesteps[index]).to(z) * v
        yield SampleStep(index + 1, steps, float(timesteps[index + 1]), z, data)


def sample_heun(velocity: Velocity, noise: Tensor, timesteps: Tensor, seeds: Sequence[int] = ()) -> Iterator[SampleStep]:
    """Second-order solver (Heun): two velocity calls a step, one in the last."""
    z, steps = noise, len(timesteps) - 1
    for index in range(steps):
        now, then = timesteps[index], timesteps[index + 1]
        v = velocity(z, _times(z, now))
        data = velocity_to_data(z, v, _times(z, now))
        guess = z + (then - now).to(z) * v
        if index + 1 < steps:
            ahead = velocity(guess, _times(z, then))
            data = velocity_to_data(guess, ahead, _times(z, then))
            guess = z + (then - now).to(z) * 0.5 * (v + ahead)
        z = guess
        yield SampleStep(index + 1, steps, float(then), z, data)


def sample_consistency(velocity: Velocity, noise: Tensor, timesteps: Tensor, seeds: Sequence[int] = ()) -> Iterator[SampleStep]:
    """Multi-step consistency sampling (2303.01469, algorithm 1): jump to the data, noise again to the next time.

    The new noise of image i at step n depends on (seeds[i], n) alone.
    """
    if len(seeds) != len(noise):
        raise SamplingError(f"the consistency sampler needs one seed an image; got {len(seeds)} seeds for {len(noise)} images.")
    z, steps = noise, len(timesteps) - 1
    for index in range(steps):
        t = _times(z, timesteps[index])
        data = velocity_to_data(z, velocity(z, t), t)
        z = data
        if index + 1 < steps:
            fresh = torch.stack([torch.randn(z.shape[1:], generator=rng_for(seed, RENOISE, index)) for seed in seeds]).to(z)
            z = interpolate(data, fresh, _times(z, timesteps[index + 1])).z_t
        yield SampleStep(index + 1, steps, float(timesteps[index + 1]), z, data)


SAMPLERS = {"euler": sample_euler, "heun": sample_heun, "consistency": sample_consistency}


def last_step(steps: Iterator[SampleStep]) -> SampleStep:
    """Run a sampler to its end."""
    for step in steps:
        final = step
    return final
