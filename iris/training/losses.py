"""What a training step minimises. Each loss has two halves:

`draw(batch, rng)` makes every random choice of a step for the whole (global) batch, and `loss(module, draw)` is then a
deterministic function. So several processes can share one draw, a resumed run repeats it, and a test can hold it fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iris.config import ConfigError
from iris.features import FeatureNet
from iris.flow import interpolate, sample_timesteps, specification_weight, velocity_to_data
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Embedded, Generator, TextContext
from iris.nn.haar import BANDS, haar_dwt2
from iris.sampling import GuidedVelocity
from iris.training.batches import LatentBatch

T_BINS = 8


@dataclass(frozen=True)
class LossOutput:
    """A scalar `loss` to minimise, its detached value per sample [B], named parts, and groups to report it by.

    `groups` maps a name to an integer per sample: the loop logs the mean loss of each value ("by t-bin", "by depth").
    """

    loss: Tensor
    per_sample: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, Tensor] = field(default_factory=dict)

    def without_numbers(self) -> LossOutput:
        """Of a step that was refused: it changed nothing, so it counts for no mean."""
        nothing = {name: torch.full_like(value, math.nan) for name, value in self.logs.items()}
        return LossOutput(torch.full_like(self.loss.detach(), math.nan), torch.full_like(self.per_sample, math.nan), nothing, self.groups)


def sample_depth(rng: torch.Generator, mean_iterations: int, spread: float = 0.5) -> int:
    """Random depth: Poisson(rate) + 1 with rate ~ LogNormal(ln mean - spread^2 / 2, spread), at most 4 x mean.

    Huginn (2502.05171, section 3.3); at mean 8 its 5, 50 and 95 % quantiles are 3, 8 and 19.
    """
    normal = torch.randn((), generator=rng)
    rate = torch.exp(math.log(mean_iterations) - spread**2 / 2 + spread * normal)
    return min(int(torch.poisson(rate, generator=rng)) + 1, 4 * mean_iterations)


def t_bin(t: Tensor) -> Tensor:
    """The index 0..7 of the eighth of [0, 1] that t lies in."""
    return (t * T_BINS).long().clamp(0, T_BINS - 1)


# --- stage 1 -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReconstructionDraw:
    """Images [B, 3, H, W] and the posterior's noise [B, C, h, w]."""

    images: Tensor
    noise: Tensor


class ReconstructionLoss:
    """L1 and squared error of pixels + L1 per Haar band (high bands weighted up, since they are nearly zero) + KL + perceptual.

    The squared error is what sharp edges need: L1 alone fits the flat areas first and leaves them (measured: reports/LOG.md).
    The perceptual term compares EfficientNet features; `features` None leaves it out.
    """

    BAND_WEIGHTS = (1.0, 2.0, 2.0, 3.0)

    def __init__(self, features: FeatureNet | None, kl_weight: float = 1e-4, square_weight: float = 4.0, band_weight: float = 0.25,
                 perceptual_weight: float = 0.1) -> None:
        self.features = features
        self.kl_weight, self.square_weight = kl_weight, square_weight
        self.band_weight, self.perceptual_weight = band_weight, perceptual_weight

    def draw(self, module: WaveletVAE, images: Tensor, rng: torch.Generator) -> ReconstructionDraw:
        config = module.config
        height, width = images.shape[2] // config.downsample, images.shape[3] // config.downsample
        return ReconstructionDraw(images, torch.randn(len(images), config.latent_channels, height, width, generator=rng))

    def __call__(self, module: nn.Module, draw: ReconstructionDraw) -> LossOutput:
        output, posterior = module(draw.images, draw.noise)
        difference = (output - draw.images).flatten(1)
        pixel, square = difference.abs().mean(1), difference.square().mean(1)
        error = (haar_dwt2(output) - haar_dwt2(draw.images)).abs().unflatten(1, (4, 3)).flatten(2).mean(2)  # [B, 4]
        kl = posterior.kl()
        per_sample = pixel + self.square_weight * square + self.kl_weight * kl + self.band_weight * (error * error.new_tensor(self.BAND_WEIGHTS)).sum(1)
        logs = {"pixel": pixel.mean(), "square": square.mean(), "kl": kl.mean()} | {f"band_{name.lower()}": error[:, i].mean() for i, name in enumerate(BANDS)}
        if self.features is not None:
            perceptual = self._perceptual(output, draw.images)
            per_sample = per_sample + self.perceptual_weight * perceptual
            logs["perceptual"] = perceptual.mean()
        return LossOutput(per_sample.mean(), per_sample.detach(), {name: value.detach() for name, value in logs.items()})

    def _perceptual(self, output: Tensor, images: Tensor) -> Tensor:
        """Squared distance of channel-normalised features, averaged over stages (the form of LPIPS, 1801.03924, unweighted)."""
        with torch.no_grad():
            targets = self.features.stages(images)
        distances = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).flatten(1).mean(1)
                     for a, b in zip(self.features.stages(output), targets, strict=True)]
        return torch.stack(distances).mean(0)


# --- stages 2 to 4 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowDraw:
    """Everything a flow step needs: data, text, noise [B, C, h, w], t [B], `drop` [B] and the core's depth.

    `exit` is the earlier iteration that is read out too (0: none), `warm_from` [B] the noisier time whose state the core
    starts from, after `warm_depth` iterations there (None: from zeros, as a picture's first step does). `is_coarse`: drawn for
    where things stand.
    """

    latents: Tensor
    tokens: Tensor
    mask: Tensor
    noise: Tensor
    t: Tensor
    drop: Tensor
    depth: int
    exit: int = 0
    warm_from: Tensor | None = None
    warm_noise: Tensor | None = None
    warm_depth: int = 0
    is_coarse: bool = False


class RectifiedFlowLoss:
    """Unweighted velocity loss at logit-normal times (SD3, 2403.03206), random depth, caption dropout.

    The depth is the mean or more: a core that must be right at every depth learns to be right at once and idles from then on
    (measured: reports/LOG.md, 2026-11-26). Only the last `grad_iterations` core iterations are differentiated.
    `weighting="specification"` multiplies by t / (1 - t) as the specification writes it (see `flow.specification_weight`).
    A share PURE_NOISE_SHARE of the pictures stands at t = 1, where every drawing begins and no logit-normal time lies.
    Before step `coarse_until` it learns where things stand: high noise (COARSE_LOGIT_MEAN) and COARSE_ITERATIONS of the core, at
    twice the pictures a second. Later draws, one in 22 above t = 0.9, would teach it ten times as slowly (reports/LOG.md, 2026-11-26).
    From step `free_from` on two things make depth free at inference:

    - with `exit_weight` > 0 a random earlier iteration is read out too, and learns the full depth's own stopped answer
      (intra-loop self-distillation, ELT, 2604.09168);
    - a share `warm_start` of the steps begins with the state that the core reached at a noisier time, as sampling with a carried
      state does (FPDM, 2401.08741), and is given half of the mean depth or less to bring it up to date: a core that has thought
      about the noisier picture need not begin anew, and one that starts from zeros is not asked to hurry. The noisier picture is
      one step of the solver back from z_t, with the core's own velocity; in half of these steps it has noise of its own, as before
      a jump. The true path's would give the answer away: it is a straight line, and two points of a line tell its direction.
    """

    WARM_REACH = (0.03, 0.4)  # how much noisier the neighbouring time is
    WARM_JUMPS = 0.5  # the share of them that jumps
    COARSE_LOGIT_MEAN, COARSE_ITERATIONS = 2.5, 2
    PURE_NOISE_SHARE = 0.05

    def __init__(self, logit_mean: float = 0.5, logit_std: float = 1.0, caption_dropout: float = 0.1,
                 grad_iterations: int = 8, weighting: str = "none", random_depth: bool = True, exit_weight: float = 0.0,
                 warm_start: float = 0.0, free_from: int = 0, coarse_until: int = 0) -> None:
        if weighting not in ("none", "specification"):
            raise ConfigError(f"weighting is {weighting!r}; use 'none' or 'specification'.")
        if grad_iterations < 1:
            raise ConfigError(f"grad_iterations is {grad_iterations}; use 1 or more.")
        self.logit_mean, self.logit_std = logit_mean, logit_std
        self.caption_dropout, self.grad_iterations = caption_dropout, grad_iterations
        self.weighting, self.random_depth = weighting, random_depth
        self.exit_weight, self.warm_start = exit_weight, warm_start
        self.free_from, self.coarse_until = free_from, coarse_until
        RectifiedFlowLoss.at_step(self, 0)

    def at_step(self, step: int | None) -> None:
        """Called by the loop before each draw; None: held-out data, drawn at every level of noise and the full depth throughout."""
        self.pure_noise_share = 0.0 if step is None else self.PURE_NOISE_SHARE
        self.is_coarse = step is not None and step < self.coarse_until
        self.depth_is_free = step is not None and step >= max(self.free_from, self.coarse_until)

    def draw(self, module: Generator, batch: LatentBatch, rng: torch.Generator) -> FlowDraw:
        count = len(batch.latents)
        noise = torch.randn(batch.latents.shape, generator=rng)
        t = sample_timesteps(count, rng, self.COARSE_LOGIT_MEAN if self.is_coarse else self.logit_mean, self.logit_std)
        t = torch.where(torch.rand(count, generator=rng) < self.pure_noise_share, 1.0, t)
        drop = torch.rand(count, generator=rng) < self.caption_dropout
        mean = module.config.mean_iterations
        depth = max(mean, sample_depth(rng, mean)) if self.random_depth else mean
        if self.is_coarse:
            depth = min(mean, self.COARSE_ITERATIONS)
        exit, warm_from, warm_noise, warm_depth = 0, None, None, 0
        if self.depth_is_free and self.warm_start > 0 and float(torch.rand((), generator=rng)) < self.warm_start:
            low, high = self.WARM_REACH
            warm_from = (t + low + (high - low) * torch.rand(count, generator=rng)).clamp_max(1.0)
            if float(torch.rand((), generator=rng)) < self.WARM_JUMPS:
                warm_noise = torch.randn(noise.shape, generator=rng)
            warm_depth, depth = depth, int(torch.randint(1, max(2, mean // 2 + 1), (), generator=rng))
        if self.depth_is_free and self.exit_weight > 0 and depth > 1:
            exit = int(torch.randint(1, depth, (), generator=rng))
        return FlowDraw(batch.latents, batch.tokens, batch.mask, noise, t, drop, depth, exit, warm_from, warm_noise, warm_depth, self.is_coarse)

    def __call__(self, module: nn.Module, draw: FlowDraw) -> LossOutput:
        path = interpolate(draw.latents, draw.noise, draw.t)
        context = module.condition(draw.tokens, draw.mask, draw.drop)
        velocity, early = self._read(module, path.z_t, draw.t, context, draw, self._start(module, path.z_t, draw, context))
        per_sample = _squared_error(velocity, path.velocity)
        weight = specification_weight(draw.t) if self.weighting == "specification" else torch.ones_like(draw.t)
        loss, logs = (weight * per_sample).mean(), {}
        if early is not None:
            apart = _squared_error(early, velocity.detach())
            loss = loss + self.exit_weight * (weight * apart).mean()
            logs = {"exit_apart": apart.mean().detach()}
        groups = {"t": t_bin(draw.t)}
        if draw.warm_from is None and not draw.is_coarse:  # warm steps have thought before, coarse ones see other noise: no points of one line
            groups["depth"] = torch.full_like(draw.drop, draw.depth, dtype=torch.long)
        return LossOutput(loss, per_sample.detach(), logs, groups)

    @torch.no_grad()
    def _start(self, module: nn.Module, z_t: Tensor, draw: FlowDraw, context: TextContext) -> Tensor | None:
        """The core's initial state: zeros (None); in a warm step what the core makes of them, in `warm_depth` iterations, of a noisier picture.

        Its data are those that the core's v at z_t points to, its noise what v leaves of z_t, or `warm_noise`. So it knows nothing that z_t does not say.
        """
        if draw.warm_from is None:
            return None
        state, embedded = self._think(module, z_t, draw.t, context, draw.warm_depth)
        velocity = module.readout(state, embedded).to(z_t.dtype)
        data = velocity_to_data(z_t, velocity, draw.t)
        noisier = interpolate(data, data + velocity if draw.warm_noise is None else draw.warm_noise, draw.warm_from).z_t
        state, _ = self._think(module, noisier, draw.warm_from, context, draw.warm_depth)
        torch.clear_autocast_cache()  # as in Generator.iterate: these casts of the weights have no graph
        return state

    @staticmethod
    def _think(module: nn.Module, z_t: Tensor, t: Tensor, context: TextContext, depth: int) -> tuple[Tensor, Embedded]:
        """The core's state after `depth` iterations from zeros, and what it thought about."""
        embedded = module.embed(z_t, t)
        for current in module.iterate(embedded, context, depth):
            state = current.tokens
        return state, embedded

    def _read(self, module: nn.Module, z_t: Tensor, t: Tensor, context: TextContext, draw: FlowDraw, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Velocities after all iterations and, if one is drawn, at the exit. The last iterations before each are differentiated."""
        embedded, early, k = module.embed(z_t, t), None, self.grad_iterations
        differentiated = {i for end in (draw.exit, draw.depth) for i in range(end - k + 1, end + 1)}
        for current in module.iterate(embedded, context, draw.depth, state, differentiated=differentiated):
            if current.iteration == draw.exit:
                early = module.readout(current.tokens, embedded).to(z_t.dtype)
        return module.readout(current.tokens, embedded).to(z_t.dtype), early


def _squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean square of a - b per sample, [B]."""
    return (a - b).square().flatten(1).mean(1)


# --- stage 5 -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConsistencyDraw(FlowDraw):
    """A flow draw, the times [B, n] of the teacher's steps, from 1 down (the n-th ends at 0), and which of them are learned from [B, k]."""

    times: Tensor | None = None
    learned: Tensor | None = None


class ConsistencyLoss(RectifiedFlowLoss):
    """Consistency distillation (2303.01469) in rectified-flow coordinates: f(z, t) = z - t v(z, t) is the end of the path through z.

    The frozen teacher solves its guided path from pure noise in `teacher_steps` Euler steps, at times drawn anew. At pure noise and at
    up to `points` - 1 more of these times, spread evenly, the student's velocity learns to point at the end z_0: the squared error to
    (z_t - z_0) / t. So it regresses on the function that a consistency model approaches by agreeing with itself a little later on the
    path. That bootstrap was here before and left a grain on every picture (reports/LOG.md, 2026-11-27); a path of eight steps costs
    less than its pairs did. The pictures are not looked at, only their captions. Guidance is inside the student, so it needs no null pass.
    """

    def __init__(self, teacher: Generator, guidance_scale: float, teacher_steps: int = 8, points: int = 8, **options) -> None:
        super().__init__(caption_dropout=0.0, warm_start=0.0, **options)
        if teacher_steps < 1:
            raise ConfigError(f"teacher_steps is {teacher_steps}; use 1 or more.")
        self.teacher = teacher.eval().requires_grad_(False)
        self.guidance_scale, self.teacher_steps, self.points = guidance_scale, teacher_steps, min(points, teacher_steps)

    def draw(self, module: Generator, batch: LatentBatch, rng: torch.Generator) -> ConsistencyDraw:
        flow, n, k = super().draw(module, batch, rng), self.teacher_steps, self.points
        later = (torch.arange(n - 1, 0, -1) - 0.5 + torch.rand(len(flow.t), n - 1, generator=rng)) / n
        times = torch.cat([torch.ones(len(later), 1), later], dim=1)
        part = (n - 1) / max(1, k - 1)  # pure noise, and one point of each equal part of the rest
        rest = 1 + ((torch.arange(k - 1) + torch.rand(len(times), k - 1, generator=rng)) * part).long().clamp(max=n - 2)
        learned = torch.cat([torch.zeros(len(times), 1, dtype=torch.long), rest], dim=1)
        return ConsistencyDraw(**{**flow.__dict__, "t": times[:, 0], "times": times, "learned": learned})

    @torch.no_grad()
    def _solve(self, draw: ConsistencyDraw) -> tuple[Tensor, Tensor]:
        """The teacher's paths: points [B, n, C, h, w] at `times`, and their ends [B, 1, C, h, w]."""
        context = self.teacher.condition(draw.tokens, draw.mask)
        velocity = GuidedVelocity(self.teacher, context, self.teacher.null_context(len(draw.noise)), self.guidance_scale, self.teacher.config.mean_iterations)
        points, z = [], draw.noise
        for t, later in zip(draw.times.unbind(1), F.pad(draw.times, (0, 1))[:, 1:].unbind(1), strict=True):
            points.append(z)
            z = z + (later - t).view(-1, 1, 1, 1) * velocity(z, t).to(z.dtype)
        return torch.stack(points, dim=1), z[:, None]

    def __call__(self, module: nn.Module, draw: ConsistencyDraw) -> LossOutput:
        path, end = self._solve(draw)
        rows = torch.arange(len(path), device=path.device)[:, None]
        points, times = path[rows, draw.learned], draw.times[rows, draw.learned]
        z_t, t = points.flatten(0, 1), times.flatten()
        target = ((points - end) / times[..., None, None, None]).flatten(0, 1)
        context = module.condition(draw.tokens, draw.mask).each(self.points)
        velocity, early = self._read(module, z_t, t, context, draw)
        per_sample = _squared_error(velocity, target)
        loss, logs = per_sample.mean(), {"one_step": per_sample.detach().unflatten(0, times.shape)[:, 0].mean()}
        if early is not None:
            apart = _squared_error(early, velocity.detach())
            loss = loss + self.exit_weight * apart.mean()
            logs["exit_apart"] = apart.mean().detach()
        return LossOutput(loss, per_sample.detach(), logs, {"t": t_bin(t), "depth": torch.full_like(t, draw.depth, dtype=torch.long)})
