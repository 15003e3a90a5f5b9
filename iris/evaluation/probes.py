"""Looking inside while it draws: gates, contributions, where and how long the core works, and what depth does.

Everything is read from `Generator.iterate`, the Python generator that sampling itself uses: no hooks and no second forward.
Results are frozen dataclasses of numpy arrays that `figures.py` draws.
"""

from __future__ import annotations

from collections.abc import Generator as Steps
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from iris.data import ImageDataset
from iris.flow import interpolate, timestep_schedule, velocity_to_data
from iris.nn.generator import INITIAL_STATE_STD, Generator, TextContext, relative_change
from iris.nn.mixer import MixerMaps
from iris.pipeline import LIMITS, IRISPipeline, from_pil
from iris.prompts import clean_negative_prompt, clean_prompt
from iris.rng import rng_for
from iris.sampling import NOISE, SAMPLERS, GuidedVelocity, initial_noise, last_step, renoise_by_seed

START = 9  # purpose of the random stream that draws initial states


class ProbeError(ValueError):
    """A probe that cannot look at this model or with these arguments; the message says why."""


@dataclass(frozen=True)
class Trace:
    """One picture's way through the network: S velocity calls (one a solver step; Heun has two), I core iterations, L core
    layers, a grid of h x w tokens.

    timesteps [S], t at each velocity call, from noise (1) towards data (0); gates [S, I, L, h, w], 1 = Fourier, 0 = recurrence; shares [S, I, L, h, w, 3],
    the norms of the Fourier, recurrent and spatial term over their sum; zeroed [S, I, L], share of Fourier coefficients that
    softshrink set to zero; changes [S, I, h, w], ||s_i - s_{i-1}|| / ||s_i|| of each token; previews uint8 [S, I, H, W, 3], the
    picture that the velocity after each iteration points to; image uint8 [H, W, 3], the result. With guidance the maps are
    those of the pass that reads the prompt. A mixer other than GRFM has no maps: L is 0 there.
    """

    prompt: str
    seed: int
    guidance_scale: float
    timesteps: np.ndarray
    gates: np.ndarray
    shares: np.ndarray
    zeroed: np.ndarray
    changes: np.ndarray
    previews: np.ndarray
    image: np.ndarray

    @property
    def num_steps(self) -> int:
        """Velocity calls: solver steps, for the Euler and the consistency sampler."""
        return self.changes.shape[0]

    @property
    def num_iterations(self) -> int:
        """Core iterations in each velocity call."""
        return self.changes.shape[1]


@dataclass(frozen=True)
class Convergence:
    """How fast the state settles: changes [N, S, I], mean over tokens of ||s_i - s_{i-1}|| / ||s_i||, for N pictures.

    timesteps [S] are the noise levels of the sampling steps. `trained_depth` is the least depth of a training step from zeros.
    """

    timesteps: np.ndarray
    changes: np.ndarray
    trained_depth: int


@dataclass(frozen=True)
class Overthinking:
    """Velocity error on known pictures by depth: errors [N, T, I], mean squared, for N pictures, T noise levels, I iterations.

    changes [N, T, I]: relative change of the token that moves most. trained_depth: the least depth of a training step from zeros.
    """

    timesteps: np.ndarray
    errors: np.ndarray
    changes: np.ndarray
    trained_depth: int


@dataclass(frozen=True)
class PathIndependence:
    """Distance of runs from K random initial states to the run from zeros: state_distance, velocity_distance [T, K, I].

    Both are ||x - x_zeros|| / ||x_zeros|| over the whole grid, after each of I iterations, at T noise levels.
    """

    timesteps: np.ndarray
    state_distance: np.ndarray
    velocity_distance: np.ndarray
    trained_depth: int


@dataclass(frozen=True)
class LearnedRanges:
    """How far each of L core layers looks, in tokens: radii [L, heads] of the spatial decay, memory [L, dim] of the recurrence.

    Both are distances to 1/e (the recurrence's at a half-open gate); grid is the side of the token grid.
    """

    radii: np.ndarray
    memory: np.ndarray
    grid: int


# ---------------------------------------------------------------------------------------------------- one picture


class _RecordingVelocity(GuidedVelocity):
    """The guided velocity field of sampling, at a fixed depth, which also keeps what happened in each iteration."""

    def __init__(self, generator: Generator, context: TextContext, away: TextContext, guidance_scale: float, num_iterations: int,
                 carry_state: bool) -> None:
        super().__init__(generator, context, away, guidance_scale, num_iterations, carry_state=carry_state)
        self.calls: list[dict[str, Tensor]] = []
        self.times: list[float] = []

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """Velocity at one picture's latents [1, C, h, w]; row 0 of every recorded tensor is the pass that reads the prompt."""
        embedded = self.embed(z, t)
        records, previous = [], None
        start = self.state if self.carry_state else None
        for state in self.generator.iterate(embedded, self.context, int(self.num_iterations), start, record=True):
            velocity = self.guide(self.generator.readout(state.tokens, embedded))
            if previous is None:
                previous = torch.zeros_like(state.tokens) if start is None else start
            records.append(_record(state.maps or (), state.tokens[0], previous[0]) | {"data": velocity_to_data(z, velocity, t)[0]})
            previous = state.tokens
        self.state = previous
        self.calls.append({name: torch.stack([record[name] for record in records]) for name in records[0]})
        self.times.append(float(t[0]))
        return velocity


def _record(maps: Sequence[MixerMaps], tokens: Tensor, previous: Tensor) -> dict[str, Tensor]:
    """What one iteration did to one picture's grid of tokens [h, w, d]."""
    empty = tokens.new_zeros(0, *tokens.shape[:2])
    return {
        "gates": torch.stack([layer.gate[0] for layer in maps]) if maps else empty,
        "shares": torch.stack([layer.shares[0] for layer in maps]) if maps else empty[..., None].expand(-1, -1, -1, 3),
        "zeroed": torch.tensor([layer.zeroed for layer in maps]),
        "changes": (tokens - previous).norm(dim=-1) / tokens.norm(dim=-1).clamp_min(1e-12),
    }


def trace(pipe: IRISPipeline, prompt: str, *arguments: Any, **options: Any) -> Trace:
    """Draw one picture as `pipe(prompt, seed=seed, ...)` does, and keep what every iteration of every step did; see `tracing`."""
    steps = tracing(pipe, prompt, *arguments, **options)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def tracing(pipe: IRISPipeline, prompt: str, seed: int = 0, num_steps: int | None = None, num_iterations: int | None = None,
            guidance_scale: float | None = None, negative_prompt: str | None = None, sampler: str | None = None) -> Steps[int, None, Trace]:
    """`trace` step by step: yields the number of steps done after each, so that it can be watched and stopped, and returns the trace.

    The picture is the one that the pipeline draws. Depth is a fixed number here (the trained mean where the model's default is "auto").
    Raises ProbeError for "auto" or a depth out of range.
    """
    defaults = pipe.defaults
    fixed = defaults.num_iterations if defaults.num_iterations != "auto" else pipe.config.generator.mean_iterations
    depth = fixed if num_iterations is None else num_iterations
    low, high = LIMITS["num_iterations"]
    if isinstance(depth, str) or not low <= depth <= high:
        raise ProbeError(f"num_iterations is {depth!r}; a trace needs a fixed number from {low} to {high}.")
    prompt, negative_prompt = clean_prompt(prompt), clean_negative_prompt(negative_prompt)
    scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    with torch.inference_mode():
        context, away = pipe.contexts([prompt], negative_prompt)
    velocity = _RecordingVelocity(pipe.generator, context, away, scale, depth, defaults.carries(sampler or defaults.sampler))
    ours = ([seed], pipe.config.autoencoder.latent_shape, pipe.device)
    schedule = timestep_schedule(defaults.num_steps if num_steps is None else num_steps, defaults.timestep_shift)
    solver, previews = SAMPLERS[sampler or defaults.sampler](velocity, initial_noise(*ours), schedule, renoise_by_seed(*ours)), []
    while True:
        with torch.inference_mode():  # not around the yield: another's code runs there
            step = next(solver, None)
            if step is None:
                break
            latents = step.latents
            previews += [_pixels(pipe, call["data"]) for call in velocity.calls[len(previews):]]
        yield step.index
    arrays = {name: np.stack([call[name].float().cpu().numpy() for call in velocity.calls]) for name in velocity.calls[0] if name != "data"}
    return Trace(prompt, seed, float(scale), np.array(velocity.times), previews=np.stack(previews), image=_pixels(pipe, latents)[0], **arrays)


def _pixels(pipe: IRISPipeline, latents: Tensor) -> np.ndarray:
    """Latents [B, C, h, w] -> uint8 [B, H, W, 3]."""
    return np.stack([np.asarray(image) for image in pipe.decode(latents)])


# ---------------------------------------------------------------------------------------------------- what depth does


@torch.inference_mode()
def convergence(pipe: IRISPipeline, prompts: Sequence[str], seeds: Sequence[int], num_steps: int = 4, num_iterations: int = 32) -> Convergence:
    """Relative change of the state by iteration while `prompts` are drawn without guidance, one picture a (prompt, seed)."""
    if len(prompts) != len(seeds):
        raise ProbeError(f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed for each prompt.")
    context, _ = pipe.contexts(list(prompts))
    changes: list[Tensor] = []
    times: list[float] = []

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        embedded = pipe.generator.embed(z, t)
        previous, moved = None, []
        for state in pipe.generator.iterate(embedded, context, num_iterations):
            moved.append(relative_change(state.tokens, torch.zeros_like(state.tokens) if previous is None else previous))
            previous = state.tokens
        changes.append(torch.stack(moved, dim=1))
        times.append(float(t[0]))
        return pipe.generator.readout(previous, embedded)

    noise = initial_noise(seeds, pipe.config.autoencoder.latent_shape, pipe.device)
    last_step(SAMPLERS["euler"](velocity, noise, timestep_schedule(num_steps, pipe.defaults.timestep_shift)))
    return Convergence(np.array(times), torch.stack(changes, dim=1).float().cpu().numpy(), pipe.config.generator.mean_iterations)


@torch.inference_mode()
def overthinking(pipe: IRISPipeline, dataset: ImageDataset, limit: int = 32, max_iterations: int = 32,
                 timesteps: Sequence[float] = (0.25, 0.5, 0.75), seed: int = 0, batch_size: int = 16) -> Overthinking:
    """Velocity error on the first `limit` pictures of `dataset` after every iteration up to `max_iterations`, past the trained depth.

    error_i = mean (v_i - (noise - data))^2, with the first caption of each picture. One pass of `iterate` a noise level, and a
    readout after each iteration. An error that rises again past the trained depth is "overthinking".
    """
    count = min(limit, len(dataset))
    if count == 0:
        raise ProbeError("the data set is empty; overthinking needs pictures with captions.")
    errors, changes = [], []
    for start in tqdm(range(0, count, batch_size), desc="overthinking", leave=False):
        examples = [dataset[i] for i in range(start, min(start + batch_size, count))]
        latents = pipe.autoencoder.encode(from_pil([Image.fromarray(example.image) for example in examples]).to(pipe.device))
        context, _ = pipe.contexts([example.captions[0] for example in examples])
        rows = range(start, start + len(examples))
        noise = torch.stack([torch.randn(latents.shape[1:], generator=rng_for(seed, NOISE, row)) for row in rows]).to(latents)
        by_time = [_errors_by_depth(pipe.generator, latents, noise, float(t), context, max_iterations) for t in timesteps]
        errors.append(torch.stack([error for error, _ in by_time], dim=1))
        changes.append(torch.stack([change for _, change in by_time], dim=1))
    return Overthinking(np.array(timesteps, dtype=float), torch.cat(errors).cpu().numpy(), torch.cat(changes).cpu().numpy(),
                        pipe.config.generator.mean_iterations)


def _errors_by_depth(generator: Generator, latents: Tensor, noise: Tensor, t: float, context: TextContext, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Velocity error and relative change after each iteration, both [B, I]."""
    path = interpolate(latents, noise, latents.new_full((len(latents),), t))
    embedded = generator.embed(path.z_t, path.t)
    previous, errors, changes = None, [], []
    for state in generator.iterate(embedded, context, max_iterations):
        velocity = generator.readout(state.tokens, embedded)
        errors.append((velocity - path.velocity).float().square().flatten(1).mean(1))
        changes.append(relative_change(state.tokens, torch.zeros_like(state.tokens) if previous is None else previous).float())
        previous = state.tokens
    return torch.stack(errors, dim=1), torch.stack(changes, dim=1)


@torch.inference_mode()
def path_independence(pipe: IRISPipeline, prompt: str, seed: int = 0, num_iterations: int = 64, starts: int = 4,
                      timesteps: Sequence[float] = (1.0, 0.6, 0.2)) -> PathIndependence:
    """Do different initial states come to the same answer? The core runs from zeros and from `starts` random states.

    The noisy latents at each t lie on the straight path between the seed's noise and the picture drawn from it. Random states
    have the standard deviation sqrt(2/5) of Huginn (2502.05171).
    """
    if starts < 1 or num_iterations < 1:
        raise ProbeError(f"starts is {starts} and num_iterations {num_iterations}; use 1 or more of both.")
    generator, rows = pipe.generator, 1 + starts
    noise = initial_noise([seed], pipe.config.autoencoder.latent_shape, pipe.device)
    data = pipe(prompt, seed=seed).latents.to(pipe.device)
    context, _ = pipe.contexts([prompt] * rows)
    grid = pipe.config.generator.core_shape(*pipe.config.autoencoder.latent_shape[1:])
    states = torch.stack([torch.zeros(grid), *(INITIAL_STATE_STD * torch.randn(grid, generator=rng_for(seed, START, k)) for k in range(starts))])
    found = []
    for t in timesteps:
        times = torch.full((rows,), float(t), device=pipe.device)
        z = interpolate(data, noise, times[:1]).z_t.expand(rows, -1, -1, -1)
        embedded, turns = generator.embed(z, times), []
        for state in generator.iterate(embedded, context, num_iterations, state=states.to(pipe.device)):
            turns.append((_distance_to_first(state.tokens), _distance_to_first(generator.readout(state.tokens, embedded))))
        found.append([torch.stack(part, dim=1) for part in zip(*turns, strict=True)])
    by_state, by_velocity = (torch.stack([pair[which] for pair in found]).float().cpu().numpy() for which in (0, 1))
    return PathIndependence(np.array(timesteps, dtype=float), by_state, by_velocity, pipe.config.generator.mean_iterations)


def _distance_to_first(rows: Tensor) -> Tensor:
    """||x_k - x_0|| / ||x_0|| for k = 1 .., over everything but the batch."""
    flat = rows.flatten(1)
    return (flat[1:] - flat[:1]).norm(dim=1) / flat[:1].norm(dim=1).clamp_min(1e-12)


@torch.no_grad()
def learned_ranges(generator: Generator) -> LearnedRanges:
    """Radii of the spatial decay and memories of the recurrence of every core layer; ProbeError for a mixer without them."""
    mixers = [layer.mixer for layer in generator.core.layers]
    if not all(hasattr(mixer, "spatial") and hasattr(mixer, "recurrence") for mixer in mixers):
        raise ProbeError(f"the mixer {generator.config.mixer!r} has no spatial and recurrent path; only 'grfm' has both.")
    return LearnedRanges(np.stack([mixer.spatial.radii().cpu().numpy() for mixer in mixers]),
                         np.stack([mixer.recurrence.memory_lengths().cpu().numpy() for mixer in mixers]),
                         generator.config.latent_size // generator.config.core_stride)
