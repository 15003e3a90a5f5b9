"""Laws of the losses: the draw holds all chance, the loss is its written formula, a share of the batch is a share of the loss."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import build_generator, randomise, seeded
from torch import Tensor, nn

from iris.config import ConfigError, GeneratorConfig, preset
from iris.flow import interpolate
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import CoreState, Generator
from iris.nn.haar import haar_idwt2
from iris.rng import rng_for
from iris.training.batches import LatentBatch, each_tensor
from iris.training.losses import (
    ConsistencyDraw,
    ConsistencyLoss,
    FlowDraw,
    ReconstructionDraw,
    ReconstructionLoss,
    RectifiedFlowLoss,
    sample_depth,
    t_bin,
)

CONFIG = preset("nano").generator


def batch(count: int = 4, dtype: torch.dtype = torch.float32) -> LatentBatch:
    return LatentBatch(seeded(count, 8, 8, 8, seed=1, dtype=dtype), seeded(count, 16, 32, seed=2, dtype=dtype), torch.arange(16)[None] < torch.arange(3, 3 + count)[:, None])


def double(draw):
    return each_tensor(draw, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


class Field(nn.Module):
    """A velocity field given as a function of z and t, with a generator's methods; remembers how it was called.

    `by_depth` is added to the field's velocity once for each iteration that the full depth has and a readout has not.
    """

    def __init__(self, field, config: GeneratorConfig = CONFIG, by_depth: float = 0.0) -> None:
        super().__init__()
        self.field, self.config, self.by_depth = field, config, by_depth
        self.conditions: list[tuple] = []
        self.walks: list[tuple] = []  # (t, depth, state, differentiated) of each `iterate`

    def forward(self, z, t, *rest):
        return self.field(z, t)

    def condition(self, tokens, mask=None, drop=None):
        self.conditions.append((tokens, mask, drop))

    def embed(self, z, t):
        return z, t

    def iterate(self, embedded, context, num_iterations, state=None, record=False, differentiated=None):
        self.walks.append((embedded[1], num_iterations, state, differentiated))
        for iteration in range(1, num_iterations + 1):
            yield CoreState(iteration, torch.full((1,), float(num_iterations - iteration)))

    def readout(self, tokens, embedded):
        return self.field(*embedded) + self.by_depth * float(tokens)


# --- random depth ------------------------------------------------------------------------------------------------------


def test_random_depth_has_the_quantiles_of_its_law() -> None:
    rng = rng_for(0)
    depths = np.array([sample_depth(rng, 8) for _ in range(20_000)])
    assert np.quantile(depths, [0.05, 0.5, 0.95]).tolist() == [3, 8, 19]
    assert depths.min() >= 1 and depths.max() <= 32 and abs(depths.mean() - 9) < 0.2
    assert max(sample_depth(rng, 2) for _ in range(2000)) == 8


def test_depth_depends_on_its_stream_alone() -> None:
    assert [sample_depth(rng_for(3, step), 8) for step in range(20)] == [sample_depth(rng_for(3, step), 8) for step in range(20)]


def test_bins_of_t_cover_the_unit_interval() -> None:
    assert t_bin(torch.tensor([0.0, 0.124, 0.126, 0.5, 0.99, 1.0])).tolist() == [0, 0, 1, 4, 7, 7]


# --- all three losses --------------------------------------------------------------------------------------------------


def reconstruction() -> tuple[nn.Module, ReconstructionLoss, ReconstructionDraw]:
    vae, loss = randomise(WaveletVAE(preset("nano").autoencoder), scale=0.02).double(), ReconstructionLoss(None)
    return vae, loss, double(loss.draw(vae, seeded(4, 3, 32, 32).clamp(-1, 1), rng_for(0)))


def flow(**options) -> tuple[Generator, RectifiedFlowLoss, FlowDraw]:
    generator, loss = build_generator(preset("nano")).double(), RectifiedFlowLoss(**options)
    return generator, loss, double(loss.draw(generator, batch(), rng_for(0)))


def consistency(**options) -> tuple[Generator, ConsistencyLoss, ConsistencyDraw]:
    generator = build_generator(preset("nano"), seed=1).double()
    loss = ConsistencyLoss(build_generator(preset("nano")).double(), 3.0, **options)
    loss.at_step(0)
    return generator, loss, double(loss.draw(generator, batch(), rng_for(0)))


LOSSES = {"reconstruction": reconstruction, "flow": flow, "consistency": consistency}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_draw_is_the_mean_over_its_shares(name: str) -> None:
    """What lets several processes share one draw."""
    module, loss, draw = LOSSES[name]()
    halves = [each_tensor(draw, lambda tensor, half=half: tensor.chunk(2)[half]) for half in (0, 1)]
    whole, parts = loss(module, draw), [loss(module, half) for half in halves]
    torch.testing.assert_close(whole.loss, (parts[0].loss + parts[1].loss) / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.per_sample, torch.cat([part.per_sample for part in parts]), rtol=1e-10, atol=1e-14)
    assert not whole.per_sample.requires_grad and all(not value.requires_grad for value in whole.logs.values())


@pytest.mark.parametrize("name", LOSSES)
def test_chance_is_in_the_draw_alone(name: str) -> None:
    module, loss, draw = LOSSES[name]()
    again = LOSSES[name]()[2]
    for field in dataclasses.fields(draw):
        first, second = getattr(draw, field.name), getattr(again, field.name)
        assert torch.equal(first, second) if isinstance(first, Tensor) else first == second
    torch.manual_seed(1)
    value = loss(module, draw).loss
    torch.manual_seed(2)
    assert torch.equal(loss(module, draw).loss, value)


# --- stage 1 -----------------------------------------------------------------------------------------------------------


class Copy(nn.Module):
    """An autoencoder that gives back its input plus `error`."""

    def __init__(self, error: Tensor) -> None:
        super().__init__()
        self.error, self.vae = error, WaveletVAE(preset("nano").autoencoder)

    def forward(self, images, noise):
        return images + self.error, self.vae.posterior(images)


def test_a_perfect_reconstruction_costs_only_its_posterior() -> None:
    images = seeded(2, 3, 32, 32)
    module, loss = Copy(torch.zeros(())), ReconstructionLoss(None, kl_weight=0.5)
    output = loss(module, ReconstructionDraw(images, torch.zeros(())))
    torch.testing.assert_close(output.loss, 0.5 * module.vae.posterior(images).kl().mean())
    assert all(float(value) == 0 for name, value in output.logs.items() if name != "kl")


@pytest.mark.parametrize(("band", "weight"), [(0, 1.0), (1, 2.0), (2, 2.0), (3, 3.0)])
def test_an_error_in_one_band_is_weighted_as_that_band(band: int, weight: float) -> None:
    bands = torch.zeros(1, 4, 3, 16, 16)
    bands[:, band] = 0.2
    error = haar_idwt2(bands.flatten(1, 2))
    loss = ReconstructionLoss(None, kl_weight=0.0, square_weight=0.0, band_weight=0.25)
    output = loss(Copy(error), ReconstructionDraw(seeded(2, 3, 32, 32), torch.zeros(())))
    torch.testing.assert_close(output.loss, error.abs().mean() + 0.25 * weight * torch.tensor(0.2), rtol=1e-4, atol=0)
    name = ("band_ll", "band_lh", "band_hl", "band_hh")[band]
    torch.testing.assert_close(output.logs[name], torch.tensor(0.2), rtol=1e-4, atol=0)


def test_squares_and_features_enter_with_their_weights() -> None:
    class Features:
        def stages(self, images: Tensor) -> list[Tensor]:
            return [images, images.flip(1)]

    images, error = seeded(2, 3, 32, 32), 0.3 * seeded(1, 3, 32, 32, seed=5)
    draw = ReconstructionDraw(images, torch.zeros(()))
    plain = ReconstructionLoss(None, kl_weight=0.0, square_weight=0.0)(Copy(error), draw)
    squared = ReconstructionLoss(None, kl_weight=0.0, square_weight=4.0)(Copy(error), draw)
    torch.testing.assert_close(squared.loss - plain.loss, 4 * error.square().mean(), rtol=1e-4, atol=0)
    seen = ReconstructionLoss(Features(), kl_weight=0.0, square_weight=0.0, perceptual_weight=0.7)(Copy(error), draw)
    cosine = nn.functional.cosine_similarity(images + error, images, dim=1)
    torch.testing.assert_close(seen.loss - plain.loss, 0.7 * (2 - 2 * cosine).mean(), rtol=1e-3, atol=0)
    assert "perceptual" in seen.logs and "perceptual" not in plain.logs


# --- stages 2 to 4 -----------------------------------------------------------------------------------------------------


def test_the_true_velocity_costs_nothing_and_another_its_mean_square() -> None:
    loss = RectifiedFlowLoss()
    draw = loss.draw(Field(None), batch(), rng_for(0))
    truth = interpolate(draw.latents, draw.noise, draw.t).velocity
    assert loss(Field(lambda z, t: truth), draw).loss == 0
    error = seeded(4, 8, 8, 8, seed=7)
    output = loss(Field(lambda z, t: truth + error), draw)
    torch.testing.assert_close(output.per_sample, error.square().mean((1, 2, 3)))
    torch.testing.assert_close(output.loss, error.square().mean())
    assert torch.equal(output.groups["t"], t_bin(draw.t)) and set(output.groups["depth"].tolist()) == {draw.depth}


def test_the_specifications_weighting_is_an_option_that_reports_the_same_errors() -> None:
    plain, weighted = RectifiedFlowLoss(), RectifiedFlowLoss(weighting="specification")
    draw = plain.draw(Field(None), batch(), rng_for(0))
    a, b = (loss(Field(lambda z, t: torch.zeros_like(z)), draw) for loss in (plain, weighted))
    torch.testing.assert_close(b.loss, (draw.t / (1 - draw.t) * a.per_sample).mean())
    assert torch.equal(a.per_sample, b.per_sample)
    with pytest.raises(ConfigError, match="weighting is 'snr'"):
        RectifiedFlowLoss(weighting="snr")


def test_the_network_is_asked_with_the_draw() -> None:
    loss = RectifiedFlowLoss(grad_iterations=2)
    draw, field = loss.draw(Field(None), batch(), rng_for(0)), Field(lambda z, t: z)
    loss(field, draw)
    (tokens, mask, drop), = field.conditions
    (t, depth, state, differentiated), = field.walks
    assert tokens is draw.tokens and mask is draw.mask and drop is draw.drop and state is None and t is draw.t
    assert depth == draw.depth and {i for i in differentiated if i >= 1} == {i for i in (depth - 1, depth) if i >= 1}


def test_an_exit_learns_what_the_full_depth_says() -> None:
    """The field is off by `by_depth` for every missing iteration: its distance to truth and to the full depth is known."""
    loss = RectifiedFlowLoss(exit_weight=0.5, grad_iterations=1)
    draw = dataclasses.replace(loss.draw(Field(None), batch(), rng_for(0)), depth=5, exit=3)
    truth = interpolate(draw.latents, draw.noise, draw.t).velocity
    field = Field(lambda z, t: truth + 0.1, by_depth=0.2)
    output = loss(field, draw)
    assert float(output.loss) == pytest.approx(0.1**2 + 0.5 * 0.4**2, rel=1e-4)
    torch.testing.assert_close(output.per_sample, torch.full((4,), 0.01))
    assert field.walks[0][3] == {3, 5}
    exits = {loss.draw(Field(None), batch(), rng_for(step)).exit for step in range(64)}
    assert len(exits) > 3 and all(d.exit < d.depth for d in (loss.draw(Field(None), batch(), rng_for(step)) for step in range(64)))


def test_depth_becomes_free_at_its_step() -> None:
    """Before it neither exits nor warm starts are drawn. From zeros the truth is never asked of fewer iterations than the mean, from a warm state of half as many."""
    loss = RectifiedFlowLoss(exit_weight=0.5, warm_start=0.5, free_from=100)
    loss.at_step(99)
    before = [loss.draw(Field(None), batch(), rng_for(step)) for step in range(64)]
    loss.at_step(100)
    after = [loss.draw(Field(None), batch(), rng_for(step)) for step in range(64)]
    assert all(draw.exit == 0 and draw.warm_from is None for draw in before)
    assert all(draw.exit > 0 for draw in after if draw.depth > 1) and any(draw.warm_from is not None for draw in after)
    cold = [draw.depth for draw in before + after if draw.warm_from is None]
    warm = [draw for draw in after if draw.warm_from is not None]
    assert min(cold) == CONFIG.mean_iterations and max(cold) > CONFIG.mean_iterations
    assert {draw.depth for draw in warm} == set(range(1, CONFIG.mean_iterations // 2 + 1))
    assert all(draw.warm_depth >= CONFIG.mean_iterations for draw in warm)


def test_a_training_begins_where_things_stand() -> None:
    """Before `coarse_until` the noise is high and the core brief, whatever else is asked for; held-out data are drawn alike at every step."""
    loss = RectifiedFlowLoss(exit_weight=0.5, warm_start=0.5, coarse_until=100)
    draws: dict[int | None, list] = {}
    for at in (0, 99, 100, None):
        loss.at_step(at)
        draws[at] = [loss.draw(Field(None), batch(64), rng_for(step)) for step in range(32)]
    times = {at: torch.cat([draw.t for draw in drawn]).double() for at, drawn in draws.items()}
    logits = {at: torch.logit(t[t < 1]) for at, t in times.items()}
    for at, mean in {0: 2.5, 99: 2.5, 100: 0.5, None: 0.5}.items():
        assert float(logits[at].mean()) == pytest.approx(mean, abs=0.1) and float(logits[at].std()) == pytest.approx(1.0, abs=0.1)
    for at, share in {0: 0.05, 99: 0.05, 100: 0.05, None: 0.0}.items():  # where every drawing begins and no logit-normal time lies
        assert float((times[at] == 1).double().mean()) == pytest.approx(share, abs=0.02)
    assert {draw.depth for draw in draws[0] + draws[99]} == {2}
    assert all(draw.exit == 0 and draw.warm_from is None for at in (0, 99, None) for draw in draws[at])
    assert any(draw.warm_from is not None for draw in draws[100]) and min(draw.depth for draw in draws[None]) == CONFIG.mean_iterations


def test_a_students_exit_learns_its_own_full_depth_which_is_stopped() -> None:
    generator, loss, draw = consistency(exit_weight=0.5, teacher_steps=2)
    draw = dataclasses.replace(draw, depth=3, exit=1)
    weights = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    output = loss(generator, draw)
    points, end = loss._solve(draw)
    expected, apart = [], []
    for k in range(2):
        z_t, t = points[:, k], draw.times[:, k]
        early, full = (generator(z_t, t, draw.tokens, depth, draw.mask) for depth in (1, 3))
        expected.append((full - (z_t - end[:, 0]) / t.view(-1, 1, 1, 1)).square().mean())
        apart.append((early - full.detach()).square().mean())
    whole = (expected[0] + expected[1]) / 2 + 0.5 * (apart[0] + apart[1]) / 2
    torch.testing.assert_close(output.loss, whole, rtol=1e-8, atol=0)
    for ours, theirs in zip(torch.autograd.grad(output.loss, weights, allow_unused=True), torch.autograd.grad(whole, weights, allow_unused=True), strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_the_exits_teacher_is_stopped() -> None:
    """The exit's gradient is that of its distance to a constant."""
    generator, loss = build_generator(preset("nano")).double(), RectifiedFlowLoss(exit_weight=1.0)
    draw = double(dataclasses.replace(loss.draw(generator, batch(), rng_for(0)), depth=3, exit=1, warm_from=None))
    weights = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(loss(generator, draw).loss, weights, allow_unused=True)
    path = interpolate(draw.latents, draw.noise, draw.t)
    early, full = (generator(path.z_t, draw.t, draw.tokens, depth, draw.mask, draw.drop) for depth in (1, 3))
    expected = torch.autograd.grad((full - path.velocity).square().mean() + (early - full.detach()).square().mean(), weights, allow_unused=True)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("jumps", [False, True])
def test_a_warm_step_starts_from_the_state_of_a_noisier_picture_of_its_own(jumps: bool) -> None:
    """One step of the solver back: along the model's own velocity, or from its own data with the noise before a jump."""
    generator, loss = build_generator(preset("nano")).double(), RectifiedFlowLoss(warm_start=1.0)
    loss.WARM_JUMPS = float(jumps)
    draw = double(loss.draw(generator, batch(), rng_for(0)))
    assert (draw.warm_from > draw.t).all() and (draw.warm_from <= 1).all() and (draw.warm_from - draw.t <= 0.4 + 1e-6).all()
    path, later, t = interpolate(draw.latents, draw.noise, draw.t), draw.warm_from.view(-1, 1, 1, 1), draw.t.view(-1, 1, 1, 1)
    velocity = generator(path.z_t, draw.t, draw.tokens, draw.warm_depth, draw.mask, draw.drop)
    noisier = (1 - later) * (path.z_t - t * velocity) + later * draw.warm_noise if jumps else path.z_t + (later - t) * velocity
    context = generator.condition(draw.tokens, draw.mask, draw.drop)
    *_, before = generator.iterate(generator.embed(noisier, draw.warm_from), context, draw.warm_depth)
    velocity = generator(path.z_t, draw.t, draw.tokens, draw.depth, draw.mask, draw.drop, state=before.tokens.detach())
    torch.testing.assert_close(loss(generator, draw).loss, (velocity - path.velocity).square().mean(), atol=1e-12, rtol=0)


def test_warm_steps_and_their_jumps_come_at_their_rates() -> None:
    drawn = [RectifiedFlowLoss(warm_start=0.25).draw(Field(None), batch(), rng_for(step)) for step in range(400)]
    warm = [draw for draw in drawn if draw.warm_from is not None]
    jumps = [draw for draw in warm if draw.warm_noise is not None]
    assert 0.19 < len(warm) / 400 < 0.31 and 0.35 < len(jumps) / len(warm) < 0.65
    assert all(not torch.equal(draw.warm_noise, draw.noise) for draw in jumps)


def test_a_warm_state_knows_only_the_noisy_picture() -> None:
    """Two pairs of picture and noise that meet at the same z_t start from the same state: it cannot tell the answer, which differs."""
    generator, loss = build_generator(preset("nano")).double(), RectifiedFlowLoss(warm_start=1.0)
    for step in range(8):
        draw = double(loss.draw(generator, batch(), rng_for(step)))
        t = draw.t.view(-1, 1, 1, 1)
        other = dataclasses.replace(draw, latents=draw.latents + t, noise=draw.noise - (1 - t))
        context = generator.condition(draw.tokens, draw.mask, draw.drop)
        paths = [interpolate(each.latents, each.noise, each.t) for each in (draw, other)]
        torch.testing.assert_close(*[loss._start(generator, path.z_t, each, context) for path, each in zip(paths, (draw, other), strict=True)], atol=1e-9, rtol=0)
        assert float((paths[0].velocity - paths[1].velocity).abs().min()) > 0.99


def test_captions_are_dropped_at_their_rate() -> None:
    loss, many = RectifiedFlowLoss(caption_dropout=0.1), batch(1000)
    draw = loss.draw(Field(None), many, rng_for(0))
    assert abs(float(draw.drop.float().mean()) - 0.1) < 0.03
    assert not RectifiedFlowLoss(caption_dropout=0.0).draw(Field(None), many, rng_for(0)).drop.any()


def test_fixed_depth_is_the_configured_one() -> None:
    loss = RectifiedFlowLoss(random_depth=False)
    assert {loss.draw(Field(None), batch(), rng_for(step)).depth for step in range(8)} == {CONFIG.mean_iterations}
    loss = RectifiedFlowLoss()
    assert len({loss.draw(Field(None), batch(), rng_for(step)).depth for step in range(32)}) > 3


# --- stage 5 -----------------------------------------------------------------------------------------------------------


def straight(generator: Generator, velocity: float) -> Generator:
    """The generator, whose velocity is now the same everywhere: every path is a straight line."""
    with torch.no_grad():
        generator.output.weight.zero_()
        generator.output.bias.fill_(velocity)
    return generator


def test_a_straight_teacher_is_learned_when_the_velocities_agree() -> None:
    student, loss, draw = consistency()
    straight(loss.teacher, 0.75)
    assert float(loss(straight(student, 0.75), draw).per_sample.max()) < 1e-24
    torch.testing.assert_close(loss(straight(student, 1.0), draw).per_sample, torch.full((32,), 0.0625, dtype=torch.float64), rtol=1e-9, atol=0)


def test_consistency_is_the_squared_error_to_the_end_of_the_teachers_guided_path() -> None:
    generator, loss, draw = consistency(grad_iterations=2, teacher_steps=3)
    output = loss(generator, draw)
    z, points = draw.noise, []
    with torch.no_grad():
        for k in range(3):
            t, step = draw.times[:, k], draw.times[:, k] - (draw.times[:, k + 1] if k < 2 else 0.0)
            text, null = (loss.teacher(z, t, draw.tokens, None, draw.mask, torch.full((4,), dropped)) for dropped in (False, True))
            points.append((z, t))
            z = z - step.view(-1, 1, 1, 1) * (null + 3.0 * (text - null))
    errors = []
    for z_t, t in points:
        jump = z_t - t.view(-1, 1, 1, 1) * generator(z_t, t, draw.tokens, draw.depth, draw.mask, None, 2)
        errors.append((jump - z).square().flatten(1).mean(1) / t**2)
    expected = torch.stack(errors, dim=1)
    torch.testing.assert_close(output.per_sample, expected.detach().flatten(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(output.logs["one_step"], expected[:, 0].mean().detach(), rtol=1e-8, atol=0)
    parameters = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(output.loss, parameters, allow_unused=True), torch.autograd.grad(expected.mean(), parameters, allow_unused=True), strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in loss.teacher.parameters())


def test_a_student_learns_from_some_points_of_a_longer_path() -> None:
    generator, loss, draw = consistency(teacher_steps=5, points=2)
    _, every, _ = consistency(teacher_steps=5, points=5)
    whole = every(generator, dataclasses.replace(draw, learned=torch.arange(5).expand(4, 5))).per_sample.view(4, 5)
    torch.testing.assert_close(loss(generator, draw).per_sample.view(4, 2), whole.gather(1, draw.learned), rtol=1e-8, atol=1e-12)
    assert (draw.learned[:, 0] == 0).all() and (draw.learned[:, 1] > 0).all()


@pytest.mark.parametrize(("steps", "points"), [(16, 8), (5, 2), (4, 4), (3, 8)])
def test_the_learned_points_are_pure_noise_and_one_of_each_equal_part(steps: int, points: int) -> None:
    generator, loss, _ = consistency(teacher_steps=steps, points=points)
    learned, kept = loss.draw(generator, batch(4000), rng_for(0)).learned, min(steps, points)
    assert learned.shape == (4000, kept) and (learned[:, 0] == 0).all() and (learned.diff(dim=1) >= 0).all()
    counts = learned.flatten().bincount(minlength=steps).double() / 4000
    assert counts[0] == 1 and (counts[1:] - (kept - 1) / (steps - 1)).abs().max() < 0.04


@pytest.mark.parametrize("steps", [0, -1])
def test_a_teachers_path_has_a_step(steps: int) -> None:
    with pytest.raises(ConfigError, match="teacher_steps"):
        consistency(teacher_steps=steps)


def test_the_teachers_times_fall_from_one_and_are_everywhere() -> None:
    generator, loss, _ = consistency(teacher_steps=4)
    times = loss.draw(generator, batch(400), rng_for(0)).times
    assert times.shape == (400, 4) and (times[:, 0] == 1).all()
    assert (times.diff(dim=1) < 0).all() and (times > 0.12).all()
    later = times[:, 1:].flatten()
    assert np.abs(np.quantile(later, [0.25, 0.5, 0.75]) - [0.3125, 0.5, 0.6875]).max() < 0.02  # even over 0.125 to 0.875
    assert not torch.equal(times[:200], times[200:])


def test_the_student_learns_where_paths_end() -> None:
    """It begins as a copy of its teacher, without guidance; its one step then comes ever nearer to the teacher's eight guided ones."""
    student, loss = build_generator(preset("nano")), ConsistencyLoss(build_generator(preset("nano")), 3.0)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    draw = loss.draw(student, batch(), rng_for(0))
    found = []
    for _ in range(60):
        output = loss(student, draw)
        found.append(float(output.logs["one_step"]))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert found[-1] < 0.3 * found[0]
