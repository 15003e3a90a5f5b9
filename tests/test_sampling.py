"""Laws of sampling: a picture is its own, guidance is linear, solvers have their order, depth is bounded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import seeded
from torch import Tensor

from iris.flow import interpolate, timestep_schedule
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline
from iris.rng import rng_for
from iris.sampling import (
    SAMPLERS,
    GuidedVelocity,
    SamplingError,
    concatenate_contexts,
    initial_noise,
    last_step,
    renoise_by_seed,
    sample_consistency,
    sample_euler,
    sample_heun,
)

SHAPE = (8, 8, 8)
PROMPTS = ["a red circle", "", "a blue square left of a green triangle", "three stars", "red", "two small yellow hearts", "x " * 30, "a cat"]


@pytest.fixture
def text() -> tuple[Tensor, Tensor]:
    """States of three captions of different lengths, and their mask."""
    mask = torch.arange(16)[None] < torch.tensor([4, 16, 9])[:, None]
    return seeded(3, 16, 32, dtype=torch.float64) * mask[..., None], mask


# --- random numbers ----------------------------------------------------------------------------------------------------


def test_streams_of_different_names_differ_and_equal_names_agree() -> None:
    names = [(7,), (7, 0), (7, 0, 0), (0, 7), (7, 1), (1, 7), (2**31 - 1, 3), (0,), (0, 0)]
    draws = [torch.randn(4, generator=rng_for(*name)) for name in names]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert all(torch.equal(draw, torch.randn(4, generator=rng_for(*name))) for name, draw in zip(names, draws, strict=True))


def test_noise_belongs_to_a_seed_not_to_a_place_in_the_batch() -> None:
    together = initial_noise([5, 6, 5, 2**31 - 1], SHAPE)
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    assert torch.equal(together[3:], initial_noise([2**31 - 1], SHAPE))
    many = initial_noise(list(range(64)), SHAPE)
    assert abs(float(many.mean())) < 0.02 and abs(float(many.std()) - 1) < 0.02


def test_nothing_reads_or_moves_the_global_random_state(pipeline: IRISPipeline) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = pipeline("a red circle", seed=3, sampler="consistency")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)
    assert torch.equal(pipeline("a red circle", seed=3, sampler="consistency").latents, first.latents)


# --- a picture alone and in a batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_iterations", "guidance_scale", "sampler"), [
    (4, 1.0, "euler"), (4, 3.0, "heun"), ("auto", 1.0, "consistency"), ("auto", 3.0, "euler"),
])
def test_a_picture_is_the_same_alone_and_in_a_batch_of_eight(pipeline: IRISPipeline, num_iterations, guidance_scale: float, sampler: str) -> None:
    settings = {"num_steps": 3, "num_iterations": num_iterations, "guidance_scale": guidance_scale, "sampler": sampler}
    seeds = [11 * index for index in range(8)]
    batch = pipeline(PROMPTS, seed=seeds, **settings)
    for index in (0, 3, 6):
        alone = pipeline(PROMPTS[index], seed=seeds[index], **settings)
        difference = np.asarray(alone.images[0], dtype=int) - np.asarray(batch.images[index], dtype=int)
        assert np.abs(difference).max() <= 1
        assert alone.iterations[0] == batch.iterations[index]
    pixels = np.stack([np.asarray(image) for image in batch.images])
    assert ((pixels > 0) & (pixels < 255)).mean() > 0.5  # the law would be empty on saturated pictures


def test_a_picture_does_not_depend_on_the_number_of_threads(pipeline: IRISPipeline) -> None:
    one = pipeline(PROMPTS, seed=3)
    try:
        torch.set_num_threads(2)
        two = pipeline(PROMPTS, seed=3)
    finally:
        torch.set_num_threads(1)
    differences = [np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() for a, b in zip(one.images, two.images, strict=True)]
    assert max(differences) <= 1 and one.iterations == two.iterations


# --- guidance ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_guidance_one_is_the_conditional_velocity_and_zero_the_unconditional(generator64: Generator, text) -> None:
    z, t = seeded(3, *SHAPE, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    context, null = generator64.condition(*text), generator64.null_context(3)
    conditional = generator64(z, t, text[0], 3, text[1])
    unconditional = generator64(z, t, text[0], 3, text[1], drop_text=torch.ones(3, dtype=torch.bool))

    def guided(scale: float) -> Tensor:
        return GuidedVelocity(generator64, context, null, scale, num_iterations=3)(z, t)

    assert (conditional - unconditional).abs().max() > 1e-3
    torch.testing.assert_close(guided(1.0), conditional, atol=1e-10, rtol=0)
    torch.testing.assert_close(guided(0.0), unconditional, atol=1e-10, rtol=0)
    torch.testing.assert_close(guided(4.5), unconditional + 4.5 * (conditional - unconditional), atol=1e-10, rtol=0)


@torch.no_grad()
def test_joining_contexts_of_different_lengths_changes_neither(generator64: Generator, text) -> None:
    z, t = seeded(6, *SHAPE, dtype=torch.float64), torch.full((6,), 0.5, dtype=torch.float64)
    context, null = generator64.condition(*text), generator64.null_context(3)
    joined = GuidedVelocity(generator64, concatenate_contexts(context, null), num_iterations=2)(z, t)
    apart = [GuidedVelocity(generator64, part, num_iterations=2)(z[rows], t[rows])
             for part, rows in ((context, slice(0, 3)), (null, slice(3, 6)))]
    torch.testing.assert_close(joined, torch.cat(apart), atol=1e-10, rtol=0)


# --- automatic depth ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_automatic_depth_that_never_settles_is_the_fixed_depth(generator64: Generator, text, scale: float) -> None:
    z, t = seeded(3, *SHAPE, dtype=torch.float64), torch.full((3,), 0.7, dtype=torch.float64)
    context, null = generator64.condition(*text), generator64.null_context(3)
    auto = GuidedVelocity(generator64, context, null, scale, "auto", min_iterations=1, max_iterations=5, threshold=0.0)
    fixed = GuidedVelocity(generator64, context, null, scale, 5)
    torch.testing.assert_close(auto(z, t), fixed(z, t), atol=1e-10, rtol=0)
    assert auto.spent[0].tolist() == fixed.spent[0].tolist() == [5, 5, 5]


@torch.no_grad()
def test_automatic_depth_stops_each_picture_where_its_own_state_settles(generator64: Generator, text) -> None:
    z, t = seeded(3, *SHAPE, dtype=torch.float64), torch.tensor([0.02, 0.5, 1.0], dtype=torch.float64)
    context = generator64.condition(*text)
    embedded = generator64.embed(z, t)
    states = [state.tokens for state in generator64.iterate(embedded, context, 12)]
    changes = torch.stack([((new - old).norm(dim=-1) / new.norm(dim=-1)).amax((1, 2)) for old, new in pairwise(states)])
    threshold = float(changes[4:8].median()) * (1 + 1e-9)  # not a value that occurs: a tie would be decided by rounding
    expected = [next((n + 2 for n in range(11) if n + 2 >= 3 and changes[n, row] < threshold), 12) for row in range(3)]
    auto = GuidedVelocity(generator64, context, None, 1.0, "auto", min_iterations=3, max_iterations=12, threshold=threshold)
    velocity = auto(z, t)
    assert auto.spent[0].tolist() == expected
    for row, depth in enumerate(expected):
        alone = generator64.readout(states[depth - 1], embedded)[row]
        torch.testing.assert_close(velocity[row], alone, atol=1e-10, rtol=0)


@torch.no_grad()
def test_automatic_depth_has_a_floor(generator64: Generator, text) -> None:
    auto = GuidedVelocity(generator64, generator64.condition(*text), None, 1.0, "auto", min_iterations=4, threshold=100.0)
    auto(seeded(3, *SHAPE, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64))
    assert auto.spent[0].tolist() == [4, 4, 4]


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_budget_is_never_passed_and_spent_whole_by_a_core_that_never_settles(generator64: Generator, text, scale: float) -> None:
    passes, context, null = 1 if scale == 1.0 else 2, generator64.condition(*text), generator64.null_context(3)
    options = {"max_core_passes": 23 * passes, "num_calls": 4, "min_iterations": 1}
    restless = GuidedVelocity(generator64, context, null, scale, "auto", threshold=0.0, **options)
    easy = GuidedVelocity(generator64, context, null, scale, "auto", threshold=0.4, **options)
    for t in (1.0, 0.75, 0.5, 0.25):
        for velocity in (restless, easy):
            velocity(seeded(3, *SHAPE, dtype=torch.float64), torch.full((3,), t, dtype=torch.float64))
    assert [spent.tolist() for spent in restless.spent] == [[6] * 3, [6] * 3, [6] * 3, [5] * 3]
    assert (torch.stack(easy.spent).sum(0) < 23).all()


@torch.no_grad()
def test_what_an_easy_call_leaves_goes_to_the_later_ones(generator64: Generator, text) -> None:
    velocity = GuidedVelocity(generator64, generator64.condition(*text), None, 1.0, "auto", min_iterations=1, threshold=100.0, max_core_passes=13, num_calls=3)
    z = seeded(3, *SHAPE, dtype=torch.float64)
    velocity(z, torch.ones(3, dtype=torch.float64))
    velocity.threshold = 0.0
    for t in (0.6, 0.3):
        velocity(z, torch.full((3,), t, dtype=torch.float64))
    assert [spent[0].item() for spent in velocity.spent] == [1, 6, 6]


@pytest.mark.parametrize(("depth", "budget", "sentence"), [(4, 24, 'needs num_iterations="auto"'), ("auto", 7, "at least 16")])
def test_a_budget_that_cannot_be_kept_is_refused(generator64: Generator, text, depth, budget: int, sentence: str) -> None:
    with pytest.raises(SamplingError, match=sentence):
        GuidedVelocity(generator64, generator64.condition(*text), generator64.null_context(3), 3.0, depth, max_core_passes=budget, num_calls=8)


@torch.no_grad()
@pytest.mark.parametrize("depth", [3, "auto"])
def test_a_carried_state_is_where_the_next_call_starts(generator64: Generator, text, depth) -> None:
    z, context = seeded(3, *SHAPE, dtype=torch.float64), generator64.condition(*text)
    times = [torch.full((3,), t, dtype=torch.float64) for t in (1.0, 0.6)]
    options = {"min_iterations": 3, "max_iterations": 3, "threshold": 0.0} if depth == "auto" else {}
    carried = GuidedVelocity(generator64, context, num_iterations=depth, carry_state=True, **options)
    first, second = (carried(z, t) for t in times)
    assert torch.allclose(first, GuidedVelocity(generator64, context, num_iterations=3)(z, times[0]), atol=1e-12)
    *_, before = generator64.iterate(generator64.embed(z, times[0]), context, 3)
    embedded = generator64.embed(z, times[1])
    *_, after = generator64.iterate(embedded, context, 3, state=before.tokens)
    torch.testing.assert_close(second, generator64.readout(after.tokens, embedded), atol=1e-12, rtol=0)
    fresh = GuidedVelocity(generator64, context, num_iterations=3)(z, times[1])
    assert not torch.allclose(second, fresh, atol=1e-6)


@torch.no_grad()
def test_a_carried_state_that_stands_needs_the_fewest_iterations(generator64: Generator, text) -> None:
    """The same call again, from where it ended: at rest already, it takes one, where from nothing it took longer than its two at least."""
    z, t = seeded(3, *SHAPE, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    velocity = GuidedVelocity(generator64, generator64.condition(*text), num_iterations="auto", threshold=0.4, carry_state=True)
    for _ in range(2):
        velocity(z, t)
    assert (velocity.spent[0] > 2).all() and velocity.spent[1].tolist() == [1, 1, 1]



def test_depth_zero_is_refused(generator: Generator) -> None:
    velocity = GuidedVelocity(generator, generator.null_context(1), num_iterations=0)
    with pytest.raises(ValueError, match="num_iterations is 0"):
        velocity(seeded(1, *SHAPE), torch.ones(1))


# --- solvers -----------------------------------------------------------------------------------------------------------

NOISE, DATA = seeded(2, *SHAPE, seed=1, dtype=torch.float64), seeded(2, *SHAPE, seed=2, dtype=torch.float64)
FRESH = renoise_by_seed([1, 2], SHAPE)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("num_steps", [1, 5])
def test_every_sampler_is_exact_on_a_straight_field_and_shows_every_step(name: str, num_steps: int) -> None:
    def to_data(z: Tensor, t: Tensor) -> Tensor:  # the field of a data set with one picture: v = (z - data) / t
        return (z - DATA) / t.view(-1, 1, 1, 1)

    times = timestep_schedule(num_steps).double()
    steps = list(SAMPLERS[name](to_data, NOISE, times, FRESH))
    assert [(step.index, step.num_steps) for step in steps] == [(index + 1, num_steps) for index in range(num_steps)]
    assert [step.t for step in steps] == [float(t) for t in times[1:]]
    for step in steps:
        torch.testing.assert_close(step.data, DATA, atol=1e-12, rtol=0)
        if name != "consistency":
            at_t = interpolate(DATA, NOISE, torch.full((2,), step.t)).z_t
            torch.testing.assert_close(step.latents, at_t, atol=1e-12, rtol=0)
    torch.testing.assert_close(steps[-1].latents, DATA, atol=1e-12, rtol=0)


def solver_error(sampler, num_steps: int) -> float:
    """Error at t = 0 on the curved field dz/dt = z cos(3 t), whose solution is z(1) exp((sin 0 - sin 3) / 3)."""
    result = last_step(sampler(lambda z, t: z * torch.cos(3 * t).view(-1, 1, 1, 1), NOISE, timestep_schedule(num_steps).double())).latents
    exact = NOISE * torch.exp(-torch.sin(torch.tensor(3.0, dtype=torch.float64)) / 3)
    return float((result - exact).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [(sample_euler, 1), (sample_heun, 2)])
def test_solvers_converge_with_their_order(sampler, order: int) -> None:
    coarse, fine = solver_error(sampler, 64), solver_error(sampler, 128)
    assert abs(np.log2(coarse / fine) - order) < 0.15


def test_calls_of_the_network_are_those_promised() -> None:
    for sampler, calls in ((sample_euler, 6), (sample_heun, 11), (sample_consistency, 6)):
        times: list[float] = []

        def counted(z: Tensor, t: Tensor, times: list[float] = times) -> Tensor:
            times.append(float(t[0]))
            return torch.zeros_like(z)

        last_step(sampler(counted, NOISE, timestep_schedule(6), FRESH))
        assert len(times) == calls and 0.0 not in times


def test_consistency_sampling_repeats_by_seed_and_each_row_has_its_own_noise() -> None:
    def field(z: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(z)

    def draw(seeds: list[int], noise: Tensor) -> Tensor:
        return last_step(sample_consistency(field, noise, timestep_schedule(4), renoise_by_seed(seeds, SHAPE))).latents

    both = draw([1, 2], NOISE)
    assert torch.equal(both, draw([1, 2], NOISE)) and not torch.equal(both, draw([3, 2], NOISE))
    torch.testing.assert_close(both[1:], draw([2], NOISE[1:]))


def test_consistency_sampling_needs_a_seed_a_picture() -> None:
    for few in (renoise_by_seed([1], SHAPE), None):
        with pytest.raises(SamplingError, match="one seed an image"):
            next(sample_consistency(lambda z, t: z, NOISE, timestep_schedule(2), few))
