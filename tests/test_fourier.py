"""Laws of the Fourier path: an explicit float64 DFT, a circular convolution when the activations are off, two equal branches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import randomise, seeded
from torch import Tensor

from iris.nn import fourier
from iris.nn.fourier import FourierPath, irdft2, rdft2

SIZES = [(4, 6), (6, 4), (5, 7), (7, 5), (1, 4), (8, 1), (8, 8), (16, 16), (18, 20), (17, 3)]  # up to 64 tokens densely, above by axes


def path(dim: int = 8, blocks: int = 2, shrink: float = 0.01, scale: float = 0.3) -> FourierPath:
    torch.manual_seed(0)
    return randomise(FourierPath(dim, blocks, shrink).double(), scale=scale)


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> FourierPath:
    """The path with its activations off and zero biases."""
    monkeypatch.setattr(fourier.F, "relu", lambda values, inplace: values)
    made = path(shrink=0.0)
    torch.nn.init.zeros_(made.bias)
    return made


def exponential(length: int) -> np.ndarray:
    """The orthonormal DFT matrix, entry by entry."""
    return np.array([[np.exp(-2j * np.pi * k * n / length) for n in range(length)] for k in range(length)]) / np.sqrt(length)


def slow_path(x: np.ndarray, made: FourierPath) -> np.ndarray:
    """AFNO on [h, w, d] by matrix products over the half spectrum, every step written out in complex numbers."""
    height, width, dim = x.shape
    weight, bias = made.weight.detach().numpy(), made.bias.detach().numpy()
    rows, columns, half, size = exponential(height), exponential(width), width // 2 + 1, dim // made.blocks
    spectrum = np.einsum("ky,lx,yxd->kld", rows, columns[:half], x)
    filtered = np.zeros_like(spectrum)
    for block in range(made.blocks):
        values = spectrum[..., block * size: (block + 1) * size]
        for layer in (0, 1):
            values = values @ (weight[layer, 0, block] + 1j * weight[layer, 1, block]) + (bias[layer, 0, block] + 1j * bias[layer, 1, block])
            if layer == 0:
                values = np.maximum(values.real, 0) + 1j * np.maximum(values.imag, 0)
        shrunk = [np.sign(part) * np.maximum(np.abs(part) - made.shrink, 0) for part in (values.real, values.imag)]
        filtered[..., block * size: (block + 1) * size] = shrunk[0] + 1j * shrunk[1]
    back = np.einsum("ky,kld->yld", rows.conj(), filtered)
    result = np.zeros_like(x)
    for frequency in range(half):  # the other half mirrors this one, so its real part counts twice
        twice = 1 if frequency == 0 or 2 * frequency == width else 2
        result += twice * np.real(back[:, frequency, None] * columns[frequency].conj()[None, :, None])
    return x + result


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_full_path_is_an_explicit_dft(height: int, width: int) -> None:
    made, x = path(), seeded(2, height, width, 8, dtype=torch.float64)
    expected = np.stack([slow_path(picture, made) for picture in x.numpy()])
    np.testing.assert_allclose(made(x)[0].detach().numpy(), expected, atol=1e-11)


@pytest.mark.parametrize("activations", [True, False])
def test_zero_weights_and_biases_are_the_identity(activations: bool, linear: FourierPath) -> None:
    made = path() if activations else linear
    for parameter in made.parameters():
        torch.nn.init.zeros_(parameter)
    x = seeded(2, 4, 6, 8, dtype=torch.float64)
    assert torch.equal(made(x)[0], x)


def circular_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """y[i, j, e] = sum over p, q, c of x[p, q, c] kernel[c, (i - p) mod h, (j - q) mod w, e]; x [h, w, c]."""
    height, width, channels = x.shape
    result = torch.zeros(height, width, kernel.shape[-1], dtype=x.dtype)
    for p in range(height):
        for q in range(width):
            for c in range(channels):
                result += x[p, q, c] * kernel[c].roll((p, q), dims=(0, 1))
    return result


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (3, 20)])
def test_without_activations_and_biases_it_is_the_identity_plus_a_circular_convolution(linear: FourierPath, height: int, width: int) -> None:
    impulses = torch.zeros(8, height, width, 8, dtype=torch.float64)
    impulses[range(8), 0, 0, range(8)] = 1
    kernel = linear(impulses)[0].detach() - impulses
    x = seeded(height, width, 8, dtype=torch.float64)
    torch.testing.assert_close(linear(x[None])[0][0].detach(), x + circular_convolution(x, kernel), atol=1e-12, rtol=0)
    assert kernel.abs().max() > 0.01


def test_with_activations_it_is_not_a_convolution() -> None:
    made, x = path(), seeded(1, 4, 6, 8, dtype=torch.float64)
    assert (made(x.roll(1, 2))[0] - made(x)[0].roll(1, 2)).abs().max() > 1e-3


def run(made: FourierPath, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output = made(x)[0]
    made.zero_grad()
    (output * seeded(*output.shape, seed=5, dtype=output.dtype)).sum().backward()
    return [output.detach(), x.grad, made.weight.grad.clone(), made.bias.grad.clone()]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (7, 12), (12, 7)])
def test_the_fft_branch_equals_the_matrix_branch(monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> None:
    made, x = path(), seeded(2, height, width, 8, dtype=torch.float64)
    products = run(made, x)
    monkeypatch.setattr(fourier, "MATMUL_DFT_LIMIT", 0)
    for fft, product in zip(run(made, x), products, strict=True):
        torch.testing.assert_close(fft, product, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_inverse_transform_undoes_the_transform_and_keeps_energy(height: int, width: int) -> None:
    x = seeded(2, height, width, 3, dtype=torch.float64)
    real, imag = rdft2(x)
    torch.testing.assert_close(irdft2(real, imag, width), x, atol=1e-12, rtol=0)
    twice = torch.tensor([1.0 if k == 0 or 2 * k == width else 2.0 for k in range(width // 2 + 1)]).view(-1, 1)
    torch.testing.assert_close((twice * (real.square() + imag.square())).sum(), x.square().sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", [8, 18])
def test_half_precision_goes_through_an_island_of_fp32(dtype: torch.dtype, side: int) -> None:
    made, x = path().float(), seeded(1, side, side, 8)
    half = made.to(dtype)(x.to(dtype))[0]
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), path().float()(x)[0], atol=0.1, rtol=0.02)


def test_a_large_threshold_zeroes_every_coefficient_and_says_so() -> None:
    x = seeded(1, 4, 4, 8, dtype=torch.float64)
    output, zeroed = path(shrink=100.0)(x, record=True)
    assert torch.equal(output, x) and zeroed == 1.0
    assert path(shrink=0.0)(x, record=True)[1] == 0.0


def test_a_path_that_first_served_inference_can_be_trained() -> None:
    made, x = path(), seeded(1, 3, 9, 8, dtype=torch.float64)  # a grid that no other test uses: its factors are made here
    with torch.inference_mode():
        expected = made(x)[0].clone()
    output = made(x.requires_grad_())[0]
    output.sum().backward()
    assert torch.equal(output.detach(), expected) and x.grad.isfinite().all()
