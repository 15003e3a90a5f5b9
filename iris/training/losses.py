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
from iris.nn.generator import Generator, TextContext
from iris.nn.haar import BANDS, haar_dwt2
from iris.training.batches import LatentBatch

T_BINS = 8
SIGMA_MAX = 80.0  # the highest noise level of EDM (2206.00364) and of the consistency models trained in its terms


@dataclass(frozen=True)
class LossOutput:
    """A scalar `loss` to minimise, its detached value per sample [B], named parts, and groups to report it by.

    `groups` maps a name to an integer per sample: the loop logs the mean loss of each value ("by t-bin", "by depth").
    """

    loss: Tensor
    per_sample: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, Tensor] = field(default_factory=dict)


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
    starts from, after `warm_depth` iterations there (None: from zeros, as a picture's first step does).
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
    warm_depth: int = 0


class RectifiedFlowLoss:
    """Unweighted velocity loss at logit-normal times (SD3, 2403.03206), random depth, caption dropout.

    The depth is the mean or more: a core that must be right at every depth learns to be right at once and idles from then on
    (measured: reports/LOG.md, 2026-11-26). Only the last `grad_iterations` core iterations are differentiated.
    `weighting="specification"` multiplies by t / (1 - t) as the specification writes it (see `flow.specification_weight`).
    Before step `coarse_until` it learns where things stand: high noise (COARSE_LOGIT_MEAN) and COARSE_ITERATIONS of the core, at
    twice the pictures a second. Later draws, one in 22 above t = 0.9, would teach it ten times as slowly (reports/LOG.md, 2026-11-26).
    From step `free_from` on two things make depth free at inference:

    - with `exit_weight` > 0 a random earlier iteration is read out too, and learns the full depth's own stopped answer
      (intra-loop self-distillation, ELT, 2604.09168);
    - a share `warm_start` of the steps begins with the state that the core reached at a noisier time of the same path, as
      sampling with a carried state does (FPDM, 2401.08741), and is given half of the mean depth or less to bring it up to date:
      a core that has thought about the noisier picture need not begin anew, and one that starts from zeros is not asked to hurry.
    """

    WARM_REACH = (0.03, 0.4)  # how much noisier the neighbouring time is
    COARSE_LOGIT_MEAN, COARSE_ITERATIONS = 2.5, 2

    def __init__(self, logit_mean: float = 0.5, logit_std: float = 1.0, shift: float = 1.0, caption_dropout: float = 0.1,
                 grad_iterations: int = 8, weighting: str = "none", random_depth: bool = True, exit_weight: float = 0.0,
                 warm_start: float = 0.0, free_from: int = 0, coarse_until: int = 0) -> None:
        if weighting not in ("none", "specification"):
            raise ConfigError(f"weighting is {weighting!r}; use 'none' or 'specification'.")
        self.logit_mean, self.logit_std, self.shift = logit_mean, logit_std, shift
        self.caption_dropout, self.grad_iterations = caption_dropout, grad_iterations
        self.weighting, self.random_depth = weighting, random_depth
        self.exit_weight, self.warm_start = exit_weight, warm_start
        self.free_from, self.coarse_until = free_from, coarse_until
        self.is_coarse, self.depth_is_free = coarse_until > 0, max(free_from, coarse_until) <= 0

    def at_step(self, step: int | None) -> None:
        """Called by the loop before each draw; None: held-out data, drawn at every level of noise and the full depth throughout."""
        self.is_coarse = step is not None and step < self.coarse_until
        self.depth_is_free = step is not None and step >= max(self.free_from, self.coarse_until)

    def draw(self, module: Generator, batch: LatentBatch, rng: torch.Generator) -> FlowDraw:
        count = len(batch.latents)
        noise = torch.randn(batch.latents.shape, generator=rng)
        t = sample_timesteps(count, rng, self.COARSE_LOGIT_MEAN if self.is_coarse else self.logit_mean, self.logit_std, self.shift)
        drop = torch.rand(count, generator=rng) < self.caption_dropout
        mean = module.config.mean_iterations
        depth = max(mean, sample_depth(rng, mean)) if self.random_depth else mean
        if self.is_coarse:
            depth = min(mean, self.COARSE_ITERATIONS)
        exit, warm_from, warm_depth = 0, None, 0
        if self.depth_is_free and self.warm_start > 0 and float(torch.rand((), generator=rng)) < self.warm_start:
            low, high = self.WARM_REACH
            warm_from = (t + low + (high - low) * torch.rand(count, generator=rng)).clamp_max(1.0)
            warm_depth, depth = depth, int(torch.randint(1, max(2, mean // 2 + 1), (), generator=rng))
        if self.depth_is_free and self.exit_weight > 0 and depth > 1:
            exit = int(torch.randint(1, depth, (), generator=rng))
        return FlowDraw(batch.latents, batch.tokens, batch.mask, noise, t, drop, depth, exit, warm_from, warm_depth)

    def __call__(self, module: nn.Module, draw: FlowDraw) -> LossOutput:
        path = interpolate(draw.latents, draw.noise, draw.t)
        context = module.condition(draw.tokens, draw.mask, draw.drop)
        velocity, early = self._read(module, path.z_t, draw.t, context, draw, self._start(module, draw, context))
        per_sample = _squared_error(velocity, path.velocity)
        weight = specification_weight(draw.t) if self.weighting == "specification" else torch.ones_like(draw.t)
        loss, logs = (weight * per_sample).mean(), {}
        if early is not None:
            apart = _squared_error(early, velocity.detach())
            loss = loss + self.exit_weight * (weight * apart).mean()
            logs = {"exit_apart": apart.mean().detach()}
        return LossOutput(loss, per_sample.detach(), logs, {"t": t_bin(draw.t), "depth": torch.full_like(draw.drop, draw.depth, dtype=torch.long)})

    @torch.no_grad()
    def _start(self, module: nn.Module, draw: FlowDraw, context: TextContext) -> Tensor | None:
        """The core's initial state: zeros (None); in a warm step what the core makes of them at the noisier time, in `warm_depth` iterations."""
        if draw.warm_from is None:
            return None
        embedded = module.embed(interpolate(draw.latents, draw.noise, draw.warm_from).z_t, draw.warm_from)
        for current in module.iterate(embedded, context, draw.warm_depth):
            state = current.tokens
        return state

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


def consistency_partner(t: Tensor, stage: int, q: float = 4.0, k: float = 8.0) -> Tensor:
    """The earlier time r < t that easy consistency tuning (2406.14548, section 3.3) pairs with t.

    In its noise levels sigma = t / (1 - t): r = sigma (1 - (1 + k sigmoid(-sigma)) / q^(stage+1)), clamped at 0, mapped
    back by sigma / (1 + sigma). As `stage` grows r comes closer to t. Sigma is held at SIGMA_MAX: above it pairs would lie so
    close together that pure noise, where every picture starts, learned nothing.
    """
    sigma = (t / (1 - t)).clamp_max(SIGMA_MAX)
    partner = sigma * (1 - (1 + k * torch.sigmoid(-sigma)) / q ** (stage + 1))
    partner = partner.clamp_min(0.0)
    return partner / (1 + partner)


@dataclass(frozen=True)
class ConsistencyDraw(FlowDraw):
    """A flow draw and the partner times r [B] < t."""

    r: Tensor | None = None


class ConsistencyLoss(RectifiedFlowLoss):
    """Consistency distillation in rectified-flow coordinates: f(z, t) = z - t v(z, t), for which f(z, 0) = z by itself.

    z_r is one guided Euler step of the teacher from z_t; the student's f at t is pulled to its own stop-gradient f at r
    (same depth), by the pseudo-Huber distance sqrt(|x|^2 + c^2) - c with c = `huber` sqrt(D) (iCT,
    2310.14189, has 0.00054; a larger one is softer on pairs that nearly agree). Guidance is inside the student, so it needs no null pass.
    """

    def __init__(self, teacher: Generator, guidance_scale: float, stages: int = 4, steps_per_stage: int = 1000, huber: float = 0.00054,
                 **options) -> None:
        super().__init__(caption_dropout=0.0, warm_start=0.0, **options)
        self.huber = huber
        self.teacher = teacher.eval().requires_grad_(False)
        self.guidance_scale, self.stages, self.steps_per_stage, self.stage = guidance_scale, stages, steps_per_stage, 0

    def at_step(self, step: int | None) -> None:
        """The pairing tightens every `steps_per_stage` steps; held-out data keep the first stage's pairs."""
        super().at_step(step)
        self.stage = min((step or 0) // self.steps_per_stage, self.stages - 1)

    def draw(self, module: Generator, batch: LatentBatch, rng: torch.Generator) -> ConsistencyDraw:
        flow = super().draw(module, batch, rng)
        # A share of the batch starts from pure noise, where one-step generation starts.
        t = torch.where(torch.rand(len(flow.t), generator=rng) < 0.25, 1.0, flow.t)
        return ConsistencyDraw(**{**flow.__dict__, "t": t, "r": consistency_partner(t, self.stage)})

    @torch.no_grad()
    def _teacher_step(self, z_t: Tensor, draw: ConsistencyDraw) -> Tensor:
        """One Euler step of the guided teacher from t to r, at its own mean depth."""
        z, t = z_t.repeat(2, 1, 1, 1), draw.t.repeat(2)
        null = torch.arange(len(t), device=t.device) >= len(draw.t)
        velocity = self.teacher(z, t, draw.tokens.repeat(2, 1, 1), None, draw.mask.repeat(2, 1), null).to(z.dtype)
        text, without = velocity.chunk(2)
        guided = torch.lerp(without, text, self.guidance_scale)
        return z_t + (draw.r - draw.t).view(-1, 1, 1, 1) * guided

    def __call__(self, module: nn.Module, draw: ConsistencyDraw) -> LossOutput:
        z_t = interpolate(draw.latents, draw.noise, draw.t).z_t
        z_r = self._teacher_step(z_t, draw)
        context = module.condition(draw.tokens, draw.mask)
        with torch.no_grad():
            velocity, _ = self._read(module, z_r, draw.r, context, draw)
            target = velocity_to_data(z_r, velocity, draw.r)
        velocity, early = self._read(module, z_t, draw.t, context, draw)
        jump = velocity_to_data(z_t, velocity, draw.t)
        distance = _pseudo_huber(jump, target, self.huber)
        # A pair that lies closer together must agree more closely (iCT's 1 / (t - r), bounded).
        weight = 1 / (draw.t - draw.r).clamp_min(0.05) / math.sqrt(jump[0].numel())
        per_sample, logs = weight * distance, {"pair_distance": distance.mean().detach()}
        if early is not None:
            jump_early = velocity_to_data(z_t, early, draw.t)
            apart = _pseudo_huber(jump_early, jump.detach(), self.huber)
            per_sample = per_sample + self.exit_weight * weight * apart
            logs["exit_apart"] = apart.mean().detach()
        return LossOutput(per_sample.mean(), distance.detach(), logs,
                          {"t": t_bin(draw.t), "depth": torch.full((len(draw.t),), draw.depth, device=draw.t.device)})


def _pseudo_huber(a: Tensor, b: Tensor, huber: float) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c per sample with c = `huber` sqrt(D) (iCT, 2310.14189), [B]."""
    error = (a - b).flatten(1)
    c = huber * math.sqrt(error.shape[1])
    return (error.square().sum(1) + c**2).sqrt() - c
