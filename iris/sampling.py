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
Renoise = Callable[[int], Tensor]  # step -> new standard normal noise [B, C, h, w]
NOISE, RENOISE = 0, 1  # purposes of the random streams of a seed
MAX_AUTOMATIC = 16  # iterations at which "auto" ends in any case


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


def renoise_by_seed(seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> Renoise:
    """The new noise of jumps; row i of step n depends on (seeds[i], n) alone."""
    return lambda step: torch.stack([torch.randn(shape, generator=rng_for(seed, RENOISE, step)) for seed in seeds]).to(device)


def _select(context: TextContext, rows: Tensor) -> TextContext:
    keys_values = tuple((key[rows], value[rows]) for key, value in context.keys_values)
    return TextContext(keys_values, None if context.mask is None else context.mask[rows])


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
    return TextContext(keys_values, torch.cat([first_mask, second_mask]))


class GuidedVelocity:
    """The generator as a velocity field: text, classifier-free guidance (2207.12598) and depth bound in.

    v = v_null + guidance_scale * (v_text - v_null); at guidance_scale 1 the null pass is skipped. `num_iterations` is a
    number or "auto": each sample stops when no token's relative change reaches `threshold`, between
    `min_iterations` and `max_iterations`; one that starts from a carried state may stop after its first, since that state has been
    thought about already (reports/LOG.md, 2026-11-28). `spent` collects the iterations used by each sample, one [B] tensor a call.

    With `carry_state` the core starts each call from the state it left the call before with (FPDM, 2401.08741), the first
    from `state` or zeros. `max_core_passes` is the most that a picture may spend under "auto" in `num_calls` calls, both passes of
    guidance counted; what an easy call leaves is shared among the calls that follow.
    """

    def __init__(self, generator: Generator, context: TextContext, null_context: TextContext | None = None, guidance_scale: float = 1.0,
                 num_iterations: int | str = 8, min_iterations: int = 2, max_iterations: int = MAX_AUTOMATIC, threshold: float = 0.1,
                 carry_state: bool = False, state: Tensor | None = None, max_core_passes: int | None = None, num_calls: int = 1) -> None:
        self.generator = generator
        self.guided = guidance_scale != 1.0 and null_context is not None
        self.context = concatenate_contexts(context, null_context) if self.guided else context
        self.guidance_scale = guidance_scale
        self.num_iterations = num_iterations
        self.min_iterations, self.max_iterations, self.threshold = min_iterations, max_iterations, threshold
        self.carry_state, self.state = carry_state, state
        self.num_calls = num_calls
        self.budget = self._iterations_in(max_core_passes)
        self.spent: list[Tensor] = []

    def _iterations_in(self, max_core_passes: int | None) -> int | None:
        """The budget in iterations of one picture; at least one for each call."""
        if max_core_passes is None:
            return None
        passes = 2 if self.guided else 1
        if self.num_iterations != "auto":
            raise SamplingError('max_core_passes needs num_iterations="auto"; a fixed number spends what it says.')
        if max_core_passes < passes * self.num_calls:
            raise SamplingError(f"max_core_passes is {max_core_passes}; {self.num_calls} calls of {passes} core pass{'es' if passes > 1 else ''} each "
                                f"need at least {passes * self.num_calls}.")
        return max_core_passes // passes

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        embedded = self.embed(z, t)
        start = self.state if self.carry_state else None
        tokens, used = self._think(embedded, start)
        self.state = tokens
        self.spent.append(used[: len(z)])
        return self.guide(self.generator.readout(tokens, embedded))

    def embed(self, z: Tensor, t: Tensor) -> Embedded:
        """What the prelude makes of z, for one pass or, with guidance, for two: the one that reads the prompt comes first."""
        return self.generator.embed(z, t).repeat(2 if self.guided else 1)

    def guide(self, velocity: Tensor) -> Tensor:
        """The velocities of both passes as one; without guidance the velocity itself."""
        if not self.guided:
            return velocity
        text, null = velocity.chunk(2)
        return torch.lerp(null, text, self.guidance_scale)

    def _think(self, embedded: Embedded, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Core state for every row and the iterations it took."""
        if self.num_iterations != "auto":
            for current in self.generator.iterate(embedded, self.context, int(self.num_iterations), start):
                last = current
            return last.tokens, torch.full((len(last.tokens),), last.iteration)
        return self._think_until_still(embedded, start)

    def _limits(self, rows: int) -> Tensor:
        """The most iterations that each row may take in this call: an even share of what is left of its budget, rounded up."""
        if self.budget is None:
            return torch.full((rows,), self.max_iterations)
        calls_left = max(1, self.num_calls - len(self.spent))
        spent = torch.stack(self.spent).sum(0).repeat(rows // len(self.spent[0])) if self.spent else torch.zeros(rows, dtype=torch.long)
        return ((self.budget - spent + calls_left - 1) // calls_left).clamp(1, self.max_iterations)

    def fewest(self, start: Tensor | None) -> int:
        """The iterations that "auto" takes at least, from zeros (None) or from a carried state."""
        return self.min_iterations if start is None else 1

    def _think_until_still(self, embedded: Embedded, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows whose state has settled leave the batch, so the others cost less and nobody's picture changes."""
        injected, condition = embedded.injected, embedded.condition
        rows, device = len(injected), injected.device
        result = torch.zeros_like(injected)
        used = torch.zeros(rows, dtype=torch.long)
        limits = self._limits(rows).to(device)
        active, context, tokens = torch.arange(rows, device=device), self.context, result if start is None else start
        for iteration in range(1, self.max_iterations + 1):
            current: CoreState = self.generator.core(tokens, injected[active], condition[active], context, iteration)
            still = relative_change(current.tokens, tokens) < self.threshold
            if self.guided:  # a picture's two rows decide together and leave together
                still = self._both_halves(still, active, rows // 2)
            leaving = (still & (iteration >= self.fewest(start))) | (iteration >= limits[active])
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


def euler_step(z: Tensor, v: Tensor, timesteps: Tensor, index: int, renoise: Renoise | None = None) -> tuple[Tensor, Tensor]:
    """From z at timesteps[index] and its velocity v: (latents one step on along v, estimate of the data)."""
    data = velocity_to_data(z, v, _times(z, timesteps[index]))
    return z + (timesteps[index + 1] - timesteps[index]).to(z) * v, data


def jump_step(z: Tensor, v: Tensor, timesteps: Tensor, index: int, renoise: Renoise | None = None) -> tuple[Tensor, Tensor]:
    """The same with a jump: to the data along v, and with new noise back to the next time; the last one stays there."""
    data = velocity_to_data(z, v, _times(z, timesteps[index]))
    if index + 2 == len(timesteps):
        return data, data
    fresh = None if renoise is None else renoise(index).to(z)
    if fresh is None or len(fresh) != len(z):
        raise SamplingError(f"the consistency sampler needs one seed an image; got {0 if fresh is None else len(fresh)} for {len(z)} images.")
    return interpolate(data, fresh, _times(z, timesteps[index + 1])).z_t, data


SOLVER_STEPS = {"euler": euler_step, "consistency": jump_step}  # of the samplers that ask for one velocity a step


def sample_euler(velocity: Velocity, noise: Tensor, timesteps: Tensor, renoise: Renoise | None = None) -> Iterator[SampleStep]:
    """First-order solver of dz/dt = v from timesteps[0] to timesteps[-1]: one velocity call a step."""
    return _step_by_step("euler", velocity, noise, timesteps, renoise)


def sample_consistency(velocity: Velocity, noise: Tensor, timesteps: Tensor, renoise: Renoise | None = None) -> Iterator[SampleStep]:
    """Multi-step consistency sampling (2303.01469, algorithm 1): jump to the data, noise again to the next time.

    Made for students; a teacher that knows its pictures well can jump too, and new noise mends what a jump got wrong
    (reports/LOG.md, 2026-11-28).
    """
    return _step_by_step("consistency", velocity, noise, timesteps, renoise)


def _step_by_step(name: str, velocity: Velocity, z: Tensor, timesteps: Tensor, renoise: Renoise | None) -> Iterator[SampleStep]:
    steps = len(timesteps) - 1
    for index in range(steps):
        z, data = SOLVER_STEPS[name](z, velocity(z, _times(z, timesteps[index])), timesteps, index, renoise)
        yield SampleStep(index + 1, steps, float(timesteps[index + 1]), z, data)


def sample_heun(velocity: Velocity, noise: Tensor, timesteps: Tensor, renoise: Renoise | None = None) -> Iterator[SampleStep]:
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


SAMPLERS = {"euler": sample_euler, "heun": sample_heun, "consistency": sample_consistency}


def calls_of(sampler: str, num_steps: int) -> int:
    """How often a sampler asks for the velocity."""
    return 2 * num_steps - 1 if sampler == "heun" else num_steps


def last_step(steps: Iterator[SampleStep]) -> SampleStep:
    """Run a sampler to its end."""
    for step in steps:
        final = step
    return final
