"""Figures of merit: what is measured on pictures and on features, each with an interval that says how sure it is.

Images are float tensors [B, 3, H, W] in [-1, 1], so their data range is 2. Nothing here knows a model: `quality.py` asks
models for pictures and brings them here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DATA_RANGE = 2.0


class Estimate(NamedTuple):
    """A measured figure and the interval (low, high) around it; unpacks as `value, interval`."""

    value: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, float | list[float]]:
        """{"value": v, "interval": [low, high]}, ready for JSON."""
        return {"value": self.value, "interval": list(self.interval)}


# ---------------------------------------------------------------------------------------------------- pictures


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, [B] in dB: 10 log10(range^2 / MSE) with range 2; equal pictures give inf.

    Raises ValueError when the shapes differ.
    """
    _require_same_shape(images, reference)
    return _decibel((images.double() - reference.double()).square().flatten(1).mean(1))


def psnr_by_band(images: Tensor, reference: Tensor, levels: int = 1) -> dict[str, Tensor]:
    """PSNR of each orthonormal Haar band, band name -> [B] in dB.

    One level gives LL, LH, HL, HH; with more levels the high bands carry their level (HH1 is the finest, 2 px wide) and LL
    the last one. Every band is measured against the same range of 2, and the Haar transform is orthonormal, so the bands'
    mean squared errors, weighted by their share of the coefficients, sum to that of the pictures:
    with one level MSE = (LL + LH + HL + HH) / 4.
    """
    from iris.nn.haar import haar_dwt2

    _require_same_shape(images, reference)
    if levels < 1 or any(side % 2**levels for side in images.shape[-2:]):
        raise ValueError(f"{levels} Haar levels do not fit pictures of {tuple(images.shape[-2:])}; sides must divide by 2^levels.")
    # The transform is linear: the bands of the difference are the differences of the bands.
    rest, bands = images.double() - reference.double(), {}
    for level in range(1, levels + 1):
        rest, *high = haar_dwt2(rest).chunk(4, dim=1)
        mark = "" if levels == 1 else str(level)
        for name, band in zip(("LH", "HL", "HH"), high, strict=True):
            bands[name + mark] = _decibel(band.square().flatten(1).mean(1))
    lowest = {"LL" if levels == 1 else f"LL{levels}": _decibel(rest.square().flatten(1).mean(1))}
    return lowest | bands


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each picture, [B], at most 1 (Wang et al. 2004; Gaussian window of sigma 1.5, torchmetrics).

    SSIM's luminance term is not invariant to an offset, so pictures are moved to [0, 1] first, where everyone measures it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _require_same_shape(images, reference)
    values = structural_similarity_index_measure((images.double() + 1) / 2, (reference.double() + 1) / 2, data_range=1.0,
                                                 reduction="none")
    return values.reshape(-1)


def _decibel(error: Tensor) -> Tensor:
    return 10 * torch.log10(DATA_RANGE**2 / error)


def _require_same_shape(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape or images.dim() != 4:
        raise ValueError(f"pictures of {tuple(images.shape)} and {tuple(reference.shape)}; give two equal [B, C, H, W] shapes.")


# ---------------------------------------------------------------------------------------------------- distances of features


def kernel_distance(features_a: Tensor, features_b: Tensor, resamples: int = 200, seed: int = 0, level: float = 0.95,
                    paired: bool = False) -> Estimate:
    """Kernel distance (KID) of two sets of features [N, D] and [M, D]: the unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3.

    MMD^2 = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)
    (Gretton et al. 2012, lemma 6; Binkowski et al. 2018). Unbiased: it may be below zero when the two sets are alike.

    paired=True: a_i belongs to b_i (a picture and its reconstruction, or both of one caption). Such pairs are more alike than
    two strangers and would push the value below zero, so they are left out of the last mean too (Gretton's equation 3 for
    m = n); a set against itself is then exactly 0.

    The interval is a bootstrap over both sets (over pairs, if paired). An item that is drawn twice is not compared with itself,
    which would bias the resampled values: with w the multiplicities, a mean is sum_{i != j} w_i w_j k_ij / sum_{i != j} w_i w_j.
    When the two sets come from one distribution the interval is wider than it need be (the statistic is degenerate there).

    Computed in float64 and in blocks of rows, so memory is linear in N. Raises ValueError for fewer than 2 features a set.
    """
    a, b = _as_features(features_a), _as_features(features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features have {a.shape[1]} and {b.shape[1]} dimensions; both sets must come from one feature network.")
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} features; pairs need as many of one as of the other.")
    rng = np.random.default_rng(seed)
    weights_a = _multiplicities(len(a), resamples, rng)
    weights_b = weights_a if paired else _multiplicities(len(b), resamples, rng)
    within = _mean_without_pairs(a, a, weights_a) + _mean_without_pairs(b, b, weights_b)
    values = within - 2 * (_mean_without_pairs(a, b, weights_a) if paired else _mean_of_all(a, b, weights_a, weights_b))
    value = float(values[0])
    return Estimate(value, _percentiles(values[1:].numpy(), level) if resamples else (value, value))


def _as_features(features: Tensor) -> Tensor:
    features = torch.as_tensor(features).detach().to("cpu", torch.float64)
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"features have the shape {tuple(features.shape)}; give [N, D] with N of 2 or more.")
    return features


def _multiplicities(count: int, resamples: int, rng: np.random.Generator) -> Tensor:
    """[1 + resamples, count]: ones (the plain estimate), then how often each item is drawn in each resample of `count` items."""
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return torch.from_numpy(np.concatenate([np.ones((1, count)), drawn]).astype(np.float64))


def _weighted_kernel_sums(x: Tensor, y: Tensor, weights_x: Tensor, weights_y: Tensor, rows: int = 1024) -> Tensor:
    """sum_ij w_i k(x_i, y_j) v_j for every row of weights, [R]."""
    total = torch.zeros(len(weights_x), dtype=torch.float64)
    for block, weights in zip(x.split(rows), weights_x.split(rows, dim=1), strict=True):
        kernel = (block @ y.T / x.shape[1] + 1) ** 3
        total += ((kernel @ weights_y.T) * weights.T).sum(0)
    return total


def _mean_without_pairs(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """sum_{i != j} w_i w_j k(x_i, y_j) / sum_{i != j} w_i w_j for every row of weights, [R]."""
    diagonal = ((x * y).sum(1) / x.shape[1] + 1) ** 3
    squares = weights.square()
    pairs = weights.sum(1).square() - squares.sum(1)
    # A tiny set can be drawn as one item many times: no pair is left, and the mean is nan (such resamples are skipped).
    return (_weighted_kernel_sums(x, y, weights, weights) - squares @ diagonal) / pairs


def _mean_of_all(x: Tensor, y: Tensor, weights_x: Tensor, weights_y: Tensor) -> Tensor:
    return _weighted_kernel_sums(x, y, weights_x, weights_y) / (weights_x.sum(1) * weights_y.sum(1))


def retrieval_ranks(queries: Tensor, gallery: Tensor, targets: Sequence[int]) -> Tensor:
    """Rank (1 is first) of each query's target among the gallery by cosine similarity, [N] long.

    queries [N, D], gallery [M, D], targets: N indices into the gallery. A tie counts against the query, so features that say
    nothing give the worst rank and not the best.
    """
    if len(queries) != len(targets):
        raise ValueError(f"{len(queries)} queries and {len(targets)} targets; give one target for each query.")
    norm = torch.nn.functional.normalize
    similarity = norm(queries.double(), dim=1) @ norm(gallery.double(), dim=1).T
    own = similarity.gather(1, torch.as_tensor(list(targets)).reshape(-1, 1))
    return (similarity >= own - 1e-12).sum(1)


# ---------------------------------------------------------------------------------------------------- intervals


def wilson_interval(successes: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share; z = 1.96 gives 95 %. With total 0 nothing is known: (0, 1).

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half = z / (1 + z^2 / n) sqrt(p (1 - p) / n + z^2 / 4 n^2)  (Wilson 1927).
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}; give 0 to total.")
    if total == 0:
        return 0.0, 1.0
    share, scale = successes / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At 0 and at 1 one end is exactly 0 or 1; rounding must not move it inside.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == total else centre + half)


def share(successes: int, total: int) -> Estimate:
    """successes / total with its 95 % Wilson interval; the value of nothing out of nothing is nan."""
    successes = int(successes)  # a sum of NumPy's truth values is a NumPy number, and what is compared with it no JSON
    return Estimate(successes / total if total else math.nan, wilson_interval(successes, total))


def bootstrap(values: Sequence[float] | Tensor | np.ndarray, statistic: Callable[..., np.ndarray] = np.mean, resamples: int = 1000,
              seed: int = 0, level: float = 0.95) -> Estimate:
    """statistic(values) with its percentile bootstrap interval; `statistic` takes an array and `axis`. Raises on no values."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"values have the shape {data.shape}; give a list of one or more numbers.")
    drawn = np.random.default_rng(seed).integers(0, data.size, size=(resamples, data.size))
    return Estimate(float(statistic(data, axis=0)), _percentiles(statistic(data[drawn], axis=1), level))


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
