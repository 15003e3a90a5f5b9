"""The Fourier path of GRFM: AFNO (2111.13587), a block-diagonal MLP on the 2-D spectrum.

rfft2 -> two complex block-diagonal layers (ReLU on real and imaginary parts after the first) -> softshrink -> irfft2,
plus the input. The path runs in fp32 whatever surrounds it: no CPU has an FFT in half precision.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MATMUL_DFT_LIMIT = 16  # up to this side two small matrix products are as fast as the FFT, and they export everywhere


@lru_cache(maxsize=32)
def _dft_matrix(length: int, half: bool) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the orthonormal DFT matrix [frequencies, length], float64; `half` keeps n/2 + 1 rows."""
    rows = length // 2 + 1 if half else length
    angles = -2 * torch.pi * torch.outer(torch.arange(rows, dtype=torch.float64), torch.arange(length, dtype=torch.float64)) / length
    return angles.cos() / length**0.5, angles.sin() / length**0.5


def _matrix(length: int, half: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    real, imaginary = _dft_matrix(length, half)
    return real.to(like), imaginary.to(like)


def rdft2(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real-input 2-D DFT of [B, h, w, d] over h and w, orthonormal: real and imaginary part, each [B, h, w//2 + 1, d]."""
    height, width = x.shape[1:3]
    if max(height, width) > MATMUL_DFT_LIMIT:
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        return spectrum.real, spectrum.imag
    row_real, row_imag = _matrix(width, True, x)
    column_real, column_imag = _matrix(height, False, x)
    across = torch.cat([row_real, row_imag]) @ x  # [B, h, 2f, d]: both parts of the row transform at once
    stacked = across.flatten(2)  # [B, h, 2f*d]
    both = torch.cat([column_real, column_imag]) @ stacked
    (rr, ri), (ir, ii) = (half.unflatten(2, across.shape[2:]).chunk(2, dim=2) for half in both.chunk(2, dim=1))
    return rr - ii, ri + ir


def irdft2(real: Tensor, imag: Tensor, width: int) -> Tensor:
    """The inverse of `rdft2`: [B, h, width//2 + 1, d] twice -> [B, h, width, d]."""
    height = real.shape[1]
    if max(height, width) > MATMUL_DFT_LIMIT:
        return torch.fft.irfft2(torch.complex(real, imag), s=(height, width), dim=(1, 2), norm="ortho")
    column_real, column_imag = _matrix(height, False, real)
    row_real, row_imag = _matrix(width, True, real)
    # The discarded half of the spectrum mirrors the kept one, so inner frequencies count twice; the imaginary parts of
    # the zero and the Nyquist frequency have no effect on a real signal, as in irfft2.
    weight = torch.full((width // 2 + 1, 1), 2.0, dtype=real.dtype, device=real.device)
    weight[0] = 1.0
    if width % 2 == 0:
        weight[-1] = 1.0
    parts = torch.cat([real, imag], dim=2).flatten(2)
    both = torch.cat([column_real.mT, -column_imag.mT]) @ parts
    (rr, ri), (ir, ii) = (half.unflatten(2, (-1, real.shape[-1])).chunk(2, dim=2) for half in both.chunk(2, dim=1))
    return torch.cat([(weight * row_real).mT, (weight * row_imag).mT], dim=1) @ torch.cat([rr - ii, ri + ir], dim=2)


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

    def _complex_linear(self, parts: Tensor, layer: int) -> Tensor:
        """[blocks, n, 2*size] (real beside imaginary) -> the same shape: one real product does the complex one."""
        real, imag = self.weight[layer].to(parts.dtype)
        matrix = torch.cat([torch.cat([real, imag], dim=-1), torch.cat([-imag, real], dim=-1)], dim=-2)
        return torch.baddbmm(torch.cat(tuple(self.bias[layer].to(parts.dtype)), dim=-1), parts, matrix)

    def spectrum(self, x: Tensor) -> Tensor:
        """The filtered spectrum before the inverse transform: [blocks, B*h*(w//2+1), 2*size], real beside imaginary."""
        parts = torch.stack([half.unflatten(-1, (self.blocks, -1)) for half in rdft2(x)], dim=-2)
        parts = parts.flatten(0, 2).flatten(2).transpose(0, 1)
        parts = self._complex_linear(F.relu(self._complex_linear(parts, 0)), 1)
        return F.softshrink(parts, self.shrink)

    def forward(self, x: Tensor, record: bool = False) -> tuple[Tensor, float]:
        """[B, h, w, dim] -> the same shape, and the share of coefficients that softshrink set to zero (NaN unless `record`)."""
        batch, height, width, _ = x.shape
        with torch.autocast(x.device.type, enabled=False):
            source = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            parts = self.spectrum(source)
            zeroed = (parts == 0).float().mean().item() if record else float("nan")
            grid = parts.transpose(0, 1).reshape(batch, height, width // 2 + 1, self.blocks, 2, -1)
            real, imag = (half.flatten(3) for half in grid.unbind(4))
            return (source + irdft2(real, imag, width)).to(x.dtype), zeroed
