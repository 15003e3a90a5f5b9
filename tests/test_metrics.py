"""Laws of iris.evaluation.metrics: closed forms, slow references and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from iris.evaluation import metrics


def _pictures(seed: int, batch: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_of_a_constant_error_is_its_closed_form():
    reference = _pictures(0) * 0.5
    # An error of 0.02 on a range of 2 is 1 %: 40 dB.
    assert torch.allclose(metrics.psnr(reference + 0.02, reference), torch.tensor(40.0, dtype=torch.float64), atol=1e-4)
    assert torch.isinf(metrics.psnr(reference, reference)).all()


def test_psnr_is_per_picture_and_refuses_other_shapes():
    a, b = _pictures(1), _pictures(2)
    assert torch.equal(metrics.psnr(a, b)[1:2], metrics.psnr(a[1:2], b[1:2]))
    with pytest.raises(ValueError, match="equal"):
        metrics.psnr(a, b[:1])


@pytest.mark.parametrize("levels", [1, 3])
def test_band_errors_add_up_to_the_error_of_the_picture(levels: int):
    a, b = _pictures(3), _pictures(4)
    bands = metrics.psnr_by_band(a, b, levels)
    assert len(bands) == 3 * levels + 1
    total = torch.zeros(len(a), dtype=torch.float64)
    for name, value in bands.items():
        level = int(name[2:] or 1)
        total += 4.0**-level * 10 ** (-value / 10)
    assert torch.allclose(-10 * torch.log10(total), metrics.psnr(a, b), atol=1e-9)


def test_a_constant_offset_is_an_error_of_the_low_band_only():
    reference = _pictures(5) * 0.5
    bands = metrics.psnr_by_band(reference + 0.1, reference)
    assert bands["LL"].max() < 26 and min(bands[name].min() for name in ("LH", "HL", "HH")) > 100


def test_ssim_does_not_depend_on_how_pixels_are_stored():
    from torchmetrics.functional.image import structural_similarity_index_measure as reference

    a, b = _pictures(6), (_pictures(6) + 0.2 * _pictures(7)).clamp(-1, 1)
    bytes_a, bytes_b = ((x.double() + 1) * 127.5 for x in (a, b))
    wanted = reference(bytes_a, bytes_b, data_range=255.0, reduction="none")
    assert torch.allclose(metrics.ssim(a, b), wanted, atol=1e-9)
    assert torch.allclose(metrics.ssim(a, a), torch.ones(3, dtype=torch.float64))


def _slow_kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, as a double loop."""
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(x: np.ndarray) -> float:
        return sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))

    between = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return within(a) + within(b) - 2 * between


def test_kernel_distance_equals_its_definition_also_for_sets_of_unequal_size():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 5)), rng.normal(0.4, 1.2, size=(7, 5))
    value, _ = metrics.kernel_distance(torch.from_numpy(a), torch.from_numpy(b), resamples=0)
    assert value == pytest.approx(_slow_kernel_distance(a, b), abs=1e-12)


def test_kernel_distance_equals_torchmetrics():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(1500, 16, generator=rng).double(), torch.randn(1500, 16, generator=rng).double() + 0.1
    value, _ = metrics.kernel_distance(a, b, resamples=0)   # more rows than one block of the sum holds
    assert value == pytest.approx(float(poly_mmd(a, b)), abs=1e-12)


def test_kernel_distance_of_one_distribution_has_mean_zero():
    rng = torch.Generator().manual_seed(1)
    values = [metrics.kernel_distance(torch.randn(20, 8, generator=rng), torch.randn(20, 8, generator=rng), resamples=0).value
              for _ in range(400)]
    standard_error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * standard_error
    # The biased form (pairs of a picture with itself counted) would be far from zero here.
    assert standard_error < 0.02


def test_the_interval_of_kernel_distance_covers_the_true_value():
    rng = torch.Generator().manual_seed(2)

    def draw(count: int, shift: float) -> torch.Tensor:
        return torch.randn(count, 4, generator=rng) + shift

    truth = metrics.kernel_distance(draw(5000, 0.0), draw(5000, 0.7), resamples=0).value
    hits = 0
    for seed in range(100):
        _, (low, high) = metrics.kernel_distance(draw(60, 0.0), draw(60, 0.7), resamples=200, seed=seed)
        hits += low <= truth <= high
    assert hits >= 88


def test_pairs_are_left_out_where_they_would_bias():
    rng = torch.Generator().manual_seed(3)
    a = torch.randn(30, 6, generator=rng)
    same = metrics.kernel_distance(a, a, paired=True)
    assert same.value == pytest.approx(0, abs=1e-12) and same.interval == pytest.approx((0, 0), abs=1e-12)
    assert metrics.kernel_distance(a, a).value < -0.05   # what pairs do when they are counted
    # Shuffled, pairs are strangers: both forms estimate the same thing, and the paired one is a double loop as well.
    b = a[torch.randperm(30, generator=rng)] + 0.5
    x, y = a.double().numpy(), b.double().numpy()
    kernel = lambda p, q: (float(p @ q) / 6 + 1) ** 3  # noqa: E731
    slow = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i]) for i in range(30) for j in range(30) if i != j)
    assert metrics.kernel_distance(a, b, paired=True).value == pytest.approx(slow / (30 * 29), abs=1e-12)
    with pytest.raises(ValueError, match="pairs"):
        metrics.kernel_distance(a, b[:-1], paired=True)


def test_kernel_distance_repeats_and_refuses_what_it_cannot_use():
    a, b = torch.randn(8, 3), torch.randn(8, 3)
    assert metrics.kernel_distance(a, b, seed=3) == metrics.kernel_distance(a, b, seed=3)
    with pytest.raises(ValueError, match="dimensions"):
        metrics.kernel_distance(a, torch.randn(8, 4))
    with pytest.raises(ValueError, match="2 or more"):
        metrics.kernel_distance(a[:1], b)


def test_retrieval_ranks_count_the_better_ones_and_ties_against():
    gallery = torch.eye(4)
    queries = torch.tensor([[1.0, 0.2, 0.1, 0.0], [1.0, 0.9, 0.1, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert metrics.retrieval_ranks(queries, gallery, [0, 1, 2]).tolist() == [1, 2, 4]


def test_wilson_interval_has_its_known_values():
    low, high = metrics.wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)   # statsmodels' proportion_confint(8, 10, method="wilson")
    assert metrics.wilson_interval(0, 10)[0] == 0 and metrics.wilson_interval(10, 10)[1] == 1
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    assert metrics.wilson_interval(3, 10) == pytest.approx([1 - x for x in reversed(metrics.wilson_interval(7, 10))])
    with pytest.raises(ValueError):
        metrics.wilson_interval(11, 10)


def test_share_and_bootstrap():
    assert metrics.share(3, 4).value == 0.75 and math.isnan(metrics.share(0, 0).value)
    values = np.random.default_rng(0).normal(5, 2, size=400)
    value, (low, high) = metrics.bootstrap(values)
    assert value == pytest.approx(values.mean()) and low < value < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    with pytest.raises(ValueError):
        metrics.bootstrap([])
