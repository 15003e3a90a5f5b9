"""Laws of the Haar transform: exact inverse, energy kept, the bands of another library, and what each band sees."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
from conftest import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from iris.nn.haar import BANDS, haar_dwt2, haar_idwt2, haar_packets, inverse_haar_packets

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12).map(lambda n: 2 * n), st.integers(1, 12).map(lambda n: 2 * n))


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_the_inverse_is_exact_and_energy_is_kept_at_any_even_size(shape: tuple[int, int, int, int], seed: int) -> None:
    x = seeded(*shape, seed=seed)
    bands = haar_dwt2(x)
    assert bands.shape == (shape[0], 4 * shape[1], shape[2] // 2, shape[3] // 2)
    assert (haar_idwt2(bands) - x).abs().max() < 1e-5
    torch.testing.assert_close(bands.double().square().sum(), x.double().square().sum(), rtol=1e-6, atol=0)


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_analysis_after_synthesis_is_the_identity(shape: tuple[int, int, int, int], seed: int) -> None:
    bands = seeded(shape[0], 4 * shape[1], shape[2], shape[3], seed=seed)
    assert (haar_dwt2(haar_idwt2(bands)) - bands).abs().max() < 1e-5


def test_the_bands_are_those_of_pywavelets() -> None:
    x = seeded(2, 3, 10, 14, dtype=torch.float64)
    low, (along_columns, along_rows, diagonal) = pywt.dwt2(x.numpy(), "haar")  # its "horizontal detail" is the change between rows
    expected = np.concatenate([low, along_rows, along_columns, diagonal], axis=1)
    np.testing.assert_allclose(haar_dwt2(x).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("band", "picture"), [
    ("LL", [[1.0, 1.0], [1.0, 1.0]]), ("LH", [[1.0, -1.0], [1.0, -1.0]]), ("HL", [[1.0, 1.0], [-1.0, -1.0]]), ("HH", [[1.0, -1.0], [-1.0, 1.0]]),
])
def test_each_band_sees_its_own_pattern_alone(band: str, picture: list) -> None:
    x = torch.tensor(picture).repeat(4, 4)[None, None]
    bands = dict(zip(BANDS, haar_dwt2(x)[0], strict=True))
    assert all((values == (2.0 if name == band else 0.0)).all() for name, values in bands.items())


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_packets_invert_and_begin_with_the_average(levels: int) -> None:
    x = seeded(2, 3, 16, 24)
    packets = haar_packets(x, levels)
    side = 2**levels
    assert packets.shape == (2, 3 * 4**levels, 16 // side, 24 // side)
    torch.testing.assert_close(packets[:, :3], torch.nn.functional.avg_pool2d(x, side) * side, atol=1e-5, rtol=0)
    assert (inverse_haar_packets(packets, levels) - x).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 3, 5, 4), (1, 3, 4, 7)])
def test_odd_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="even height and width"):
        haar_dwt2(torch.zeros(shape))


def test_synthesis_needs_four_blocks() -> None:
    with pytest.raises(ValueError, match="four blocks"):
        haar_idwt2(torch.zeros(1, 6, 2, 2))


def test_gradients_flow_both_ways() -> None:
    x = seeded(1, 2, 4, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(haar_dwt2, (x,))
    assert torch.autograd.gradcheck(haar_idwt2, (haar_dwt2(x).detach().requires_grad_(),))
