"""torch's normal numbers in numpy, so that a seed draws the same picture with and without torch.

torch fills a tensor of 16 or more numbers on a CPU like this: uniform numbers of 24 bits from the Mersenne twister
(MT19937, seeded by the low 32 bits), then Box and Muller's transform within each group of 16, the first eight as radii and the
last eight as angles; a remainder is drawn as one more group that ends at the last number.
"""

from __future__ import annotations

import numpy as np

NOISE, RENOISE = 0, 1  # purposes of a seed's streams, as in iris.sampling


def stream(*numbers: int) -> np.random.RandomState:
    """The generator that `iris.rng.rng_for` names by the same numbers."""
    state = int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0]) >> 1
    return np.random.RandomState(state & 0xFFFFFFFF)


def standard_normal(rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers of `shape` (16 or more in all), those of torch.randn to rounding."""
    count = int(np.prod(shape))
    if count < 16:
        raise ValueError(f"{count} numbers were asked for; torch draws fewer than 16 in another way, so ask for 16 or more.")
    uniform = _uniform(rng, count)
    whole = count - count % 16
    values = np.concatenate([_box_muller(uniform[:whole]), uniform[whole:]])
    if whole < count:
        values[-16:] = _box_muller(_uniform(rng, 16))
    return values.reshape(shape)


def _uniform(rng: np.random.RandomState, count: int) -> np.ndarray:
    bits = rng.randint(0, 2**32, size=count, dtype=np.uint32) & np.uint32(2**24 - 1)
    return bits.astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    groups = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2 * np.log(1 - groups[:, 0]))
    angle = np.float32(2 * np.pi) * groups[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32).reshape(-1)
