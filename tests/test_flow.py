"""Laws of rectified flow: which way t runs, inverse maps, and the algebra of shifts and weights."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import seeded

from iris.flow import (
    interpolate,
    sample_timesteps,
    specification_weight,
    timestep_schedule,
    unshifted,
    velocity_to_data,
)
from iris.rng import rng_for
from iris.sampling import last_step, sample_euler

DATA, NOISE = seeded(5, 3, 4, 4, seed=1, dtype=torch.float64), seeded(5, 3, 4, 4, seed=2, dtype=torch.float64)
T = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)


def test_t_0_is_data_and_t_1_is_noise() -> None:
    path = interpolate(DATA, NOISE, T)
    assert torch.equal(path.z_t[0], DATA[0]) and torch.equal(path.z_t[-1], NOISE[-1])
    torch.testing.assert_close(path.z_t, (1 - T.view(-1, 1, 1, 1)) * DATA + T.view(-1, 1, 1, 1) * NOISE)


def test_the_velocity_is_the_derivative_of_the_path() -> None:
    step = 1e-6
    slope = (interpolate(DATA, NOISE, T + step).z_t - interpolate(DATA, NOISE, T).z_t) / step
    torch.testing.assert_close(interpolate(DATA, NOISE, T).velocity, slope, atol=1e-8, rtol=1e-8)


def test_the_true_velocity_gives_data_and_noise_back() -> None:
    path = interpolate(DATA, NOISE, T)
    torch.testing.assert_close(velocity_to_data(path.z_t, path.velocity, T), DATA, atol=1e-14, rtol=0)
    torch.testing.assert_close(path.z_t + (1 - T.view(-1, 1, 1, 1)) * path.velocity, NOISE, atol=1e-14, rtol=0)


def test_the_true_velocity_and_one_euler_step_give_the_data_back() -> None:
    step = last_step(sample_euler(lambda z, t: NOISE - DATA, NOISE, timestep_schedule(1).double()))
    torch.testing.assert_close(step.latents, DATA, atol=1e-14, rtol=0)
    torch.testing.assert_close(step.data, DATA, atol=1e-14, rtol=0)


def test_at_t_0_the_data_is_the_point_itself_whatever_the_velocity() -> None:
    assert torch.equal(velocity_to_data(DATA, 1e6 * NOISE, torch.zeros(5)), DATA)


def test_sampled_times_are_logit_normal() -> None:
    t = sample_timesteps(20_000, rng_for(0), logit_mean=0.5, logit_std=0.8).double()
    logits = torch.logit(t)
    assert 0 < t.min() and t.max() < 1
    assert abs(float(logits.mean()) - 0.5) < 0.02 and abs(float(logits.std()) - 0.8) < 0.02
    assert torch.equal(sample_timesteps(7, rng_for(3)), sample_timesteps(7, rng_for(3)))


@pytest.mark.parametrize("num_steps", [1, 3, 4, 16, 100])
def test_a_schedule_falls_from_exactly_1_to_exactly_0(num_steps: int) -> None:
    times = timestep_schedule(num_steps)
    assert len(times) == num_steps + 1 and times[0] == 1 and times[-1] == 0
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("shift", [0.2, 0.3, 0.4, 0.55, 0.66, 1.0, 1.32, 3.0])  # in single precision some of these would start above 1
def test_a_shift_multiplies_the_ratio_of_noise_to_data(shift: float) -> None:
    """SD3 (2403.03206, section 5.3.2) derives the shift so that t / (1 - t), noise over data, is multiplied by it at every step."""
    even, shifted = timestep_schedule(8).double(), timestep_schedule(8, shift).double()
    torch.testing.assert_close((shifted / (1 - shifted))[1:], shift * (even / (1 - even))[1:], rtol=1e-5, atol=0)
    assert shifted[0] == 1 and shifted[-1] == 0 and (shifted.diff() < 0).all()


@pytest.mark.parametrize("shift", [0.1, 0.3, 1.0, 3.0, 10.0])
def test_a_time_is_that_which_its_unshifted_one_moves_to(shift: float) -> None:
    for index, t in enumerate(timestep_schedule(8, shift).tolist()):
        assert unshifted(t, shift) == pytest.approx(1 - index / 8, abs=1e-6)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("skipped", [1, 5])
def test_a_schedule_that_starts_at_one_of_its_times_goes_on_as_the_whole_one(shift: float, skipped: int) -> None:
    whole = timestep_schedule(8, shift)
    torch.testing.assert_close(timestep_schedule(8 - skipped, shift, float(whole[skipped])), whole[skipped:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_a_schedule_needs_a_step(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}"):
        timestep_schedule(num_steps)


def logit_normal_density(t: torch.Tensor, mean: float) -> torch.Tensor:
    return torch.exp(-0.5 * (torch.logit(t) - mean) ** 2) / (math.sqrt(2 * math.pi) * t * (1 - t))


def test_the_specifications_weight_is_another_distribution_of_t() -> None:
    """w(t) p(t; 0, 1) = e^(1/2) p(t; 1, 1) with w = t / (1 - t): not a better weight, only a shifted sampling of t."""
    t = torch.linspace(1e-3, 1 - 1e-3, 2001, dtype=torch.float64)
    weight = specification_weight(t, limit=math.inf)
    torch.testing.assert_close(weight * logit_normal_density(t, 0.0), math.exp(0.5) * logit_normal_density(t, 1.0))


def test_sd3s_weight_on_the_noise_error_is_the_unweighted_velocity_loss() -> None:
    """t/(1-t) * (-1/2 dlambda/dt) * |noise error|^2 = |velocity error|^2, lambda = 2 ln((1-t)/t): on the velocity it counts twice."""
    t = T[1:-1]
    path = interpolate(DATA[1:-1], NOISE[1:-1], t)
    predicted = path.velocity + seeded(*path.velocity.shape, seed=3, dtype=torch.float64)
    noise = path.z_t + (1 - t.view(-1, 1, 1, 1)) * predicted  # that the prediction comes from
    noise_error = (noise - NOISE[1:-1]).square().flatten(1).sum(1)
    half_slope = 1 / (t * (1 - t))
    velocity_error = (predicted - path.velocity).square().flatten(1).sum(1)
    torch.testing.assert_close(specification_weight(t) * half_slope * noise_error, velocity_error)


def test_the_specifications_weight_is_bounded() -> None:
    weight = specification_weight(torch.tensor([0.0, 0.5, 0.99, 1.0]))
    torch.testing.assert_close(weight, torch.tensor([0.0, 1.0, 20.0, 20.0]))
