"""The Fourier path of GRFM: AFNO (2111.13587), a block-diagonal MLP on the 2-D spectrum.

rfft2 -> two complex block-diagonal layers (ReLU on real and imaginary parts after the first) -> softshrink -> irfft2,
plus the input. The path runs in fp32 whatever surrounds it: no CPU has an FFT in half precision.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MATMUL_DFT_LIMIT = 64  # up to this side matrix products are faster than the FFT on a CPU, and they export everywhere
DENSE_DFT_LIMIT = 64  # up to this many tokens one product with the matrix of the whole 2-D transform is the fastest
_KEPT: dict[tuple, dict[str, Tensor]] = {}


def _axis_matrix(length: int, half: bool) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part of the orthonormal DFT matrix [frequencies, length], float64; `half` keeps length // 2 + 1 rows.

    No complex numbers: these lines are also traced, and a compiler makes no code for those.
    """
    rows = length // 2 + 1 if half else length
    angle = 2 * np.pi / length * np.outer(np.arange(rows), np.arange(length))
    return np.cos(angle) / length**0.5, -np.sin(angle) / length**0.5


def _factors(height: int, width: int) -> dict[str, np.ndarray]:
    """The constant factors of both transforms for one grid. Complex products are real ones on stacked parts."""
    (row_real, row_imag), (real, imag) = _axis_matrix(width, True), _axis_matrix(height, False)
    # The discarded half of the spectrum mirrors the kept one, so inner frequencies count twice in the inverse; the
    # imaginary parts of the zero and the Nyquist frequency have no effect on a real signal, as in irfft2.
    twice = np.array([[1.0 if k == 0 or 2 * k == width else 2.0] for k in range(len(row_real))])
    if height * width <= DENSE_DFT_LIMIT:
        whole_real = np.kron(real, row_real) - np.kron(imag, row_imag)  # [h * f, h * w]
        whole_imag = np.kron(real, row_imag) + np.kron(imag, row_real)
        weight = np.tile(twice, (height, 1))
        return {"there": np.concatenate([whole_real, whole_imag]), "back_real": (weight * whole_real).T, "back_imag": (weight * whole_imag).T}
    # Columns read (row, part) pairs and give the real parts of all, then the imaginary ones; backwards, by the conjugate transpose, they write (row, part) pairs.
    square = (height, 2 * height)
    across = np.concatenate([row_real, row_imag])
    return {"across": across,
            "there": np.concatenate([np.stack(pair, axis=-1).reshape(square) for pair in ((real, -imag), (imag, real))]),
            "back_real": np.stack([real.T, -imag.T], axis=1).reshape(square[::-1]),
            "back_imag": np.stack([imag.T, real.T], axis=1).reshape(square[::-1]),
            "back_across": (across * np.tile(twice, (2, 1))).T}


def _make(height: int, width: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    with torch.inference_mode(False):  # whoever asks first, a later training step can save them for its gradient
        return {name: torch.from_numpy(np.ascontiguousarray(factor)).to(device, dtype) for name, factor in _factors(height, width).items()}


def keep_factors(height: int, width: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The factors for one grid, made once. A compiler finds those that are kept; others its code would make on the CPU at every call."""
    key = (height, width, dtype, device)
    if key not in _KEPT:
        if len(_KEPT) >= 32:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = _make(*key)
    return _KEPT[key]


def _products(height: int, width: int, like: Tensor) -> dict[str, Tensor]:
    """The factors as tensors, kept between calls; made within an exported graph, whose tensors belong to the trace."""
    key = (height, width, like.dtype, like.device)
    if torch.compiler.is_compiling():
        return _KEPT[key] if key in _KEPT and not torch.compiler.is_exporting() else _make(*key)
    return keep_factors(*key)


def _left(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix [m, n] times each of x [B, n, d]."""
    return torch.bmm(matrix.expand(x.shape[0], -1, -1), x)


def rdft2(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real-input 2-D DFT of [B, h, w, d] over h and w, orthonormal: real and imaginary part, each [B, h, w//2 + 1, d]."""
    batch, height, width, dim = x.shape
    if max(height, width) > MATMUL_DFT_LIMIT:
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        return spectrum.real, spectrum.imag
    by = _products(height, width, x)
    if "across" in by:  # a row becomes its parts [2, f, d], so (row, part) is one axis for the columns
        x = _left(by["across"], x.reshape(batch * height, width, dim))
    lines = x.reshape(batch, by["there"].shape[1], -1)
    return _left(by["there"], lines).view(batch, 2, height, -1, dim).unbind(1)


def irdft2(real: Tensor, imag: Tensor, width: int) -> Tensor:
    """The inverse of `rdft2`: [B, h, width//2 + 1, d] twice -> [B, h, width, d]."""
    batch, height, half, dim = real.shape
    if max(height, width) > MATMUL_DFT_LIMIT:
        return torch.fft.irfft2(torch.complex(real, imag), s=(height, width), dim=(1, 2), norm="ortho")
    by = _products(height, width, real)
    real, imag = (part.reshape(batch, by["back_real"].shape[1], -1) for part in (real, imag))
    lines = _left(by["back_real"], real).baddbmm_(by["back_imag"].expand(batch, -1, -1), imag)
    if "back_across" in by:
        lines = _left(by["back_across"], lines.view(batch * height, 2 * half, dim))
    return lines.view(batch, height, width, dim)


class FourierPath(nn.Module):
    """AFNO token mixer on [B, h, w, dim]; `blocks` diagonal blocks, softshrink threshold `shrink`.

    At zero biases and without ReLU and softshrink the path is the identity plus a circular convolution; with them it is
    not translation-equivariant (they act on real and imaginary parts separately).
    """

    def __init__(self, dim: int, blocks: int = 8, shrink: float = 0.01) -> None:
        super().__init__()
        size = dim // blocks
        self.blocks, self.shrink = blocks, shrink
        # [layer, real or imaginary, block, in, out], 0.02 * randn as in the authors' code.
        self.weight = nn.Parameter(0.02 * torch.randn(2, 2, blocks, size, size))
        self.bias = nn.Parameter(0.02 * torch.randn(2, 2, blocks, 1, size))

    def _complex_linear(self, real: Tensor, imag: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Complex [blocks, n, size] in two parts -> the same: four real products, no matrix put together for them."""
        (w_real, w_imag), (b_real, b_imag) = self.weight[layer].to(real.dtype), self.bias[layer].to(real.dtype)
        return (torch.baddbmm(b_real, real, w_real).baddbmm_(imag, w_imag, alpha=-1),
                torch.baddbmm(b_imag, real, w_imag).baddbmm_(imag, w_real))

    def spectrum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The filtered spectrum before the inverse transform: real and imaginary part, each [blocks, B*h*(w//2+1), size]."""
        real, imag = (part.flatten(0, 2).unflatten(-1, (self.blocks, -1)).transpose(0, 1) for part in rdft2(x))
        real, imag = (F.relu(part, inplace=True) for part in self._complex_linear(real, imag, 0))
        real, imag = (F.softshrink(part, self.shrink) for part in self._complex_linear(real, imag, 1))
        return real, imag

    def forward(self, x: Tensor, record: bool = False) -> tuple[Tensor, float]:
        """[B, h, w, dim] -> the same shape, and the share of coefficients that softshrink set to zero (NaN unless `record`)."""
        batch, height, width, _ = x.shape
        with torch.autocast(x.device.type, enabled=False):
            source = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            real, imag = self.spectrum(source)
            zeroed = torch.stack([real == 0, imag == 0]).float().mean().item() if record else float("nan")
            real, imag = (part.view(self.blocks * batch, height, width // 2 + 1, -1) for part in (real, imag))
            filtered = irdft2(real, imag, width).view(self.blocks, batch, height, width, -1)
            return (source.unflatten(-1, (self.blocks, -1)) + filtered.permute(1, 2, 3, 0, 4)).flatten(3).to(x.dtype), zeroed
