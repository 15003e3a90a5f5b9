"""WaveletVAE: Haar wavelets in front of a small convolutional autoencoder (LiteVAE, 2405.14477; SnapGen, 2412.09619).

image [B, 3, H, W] -> Haar packets -> encoder -> latents [B, C, H/f, W/f] -> decoder -> Haar packets -> image. The wavelet
levels are exact and free, so the convolutions run on small grids only. Beside the convolutions a linear shortcut joins the
full packet transform of an f x f tile to its latents, so that training starts from a coarse picture and not from nothing
(residual autoencoding: DC-AE, 2410.10733, section 3.1). Latents leave `encode` with zero mean and the
variance that `calibrate` sets (statistics per channel, stored with the weights); `decode` takes them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iris.config import AutoencoderConfig
from iris.nn.haar import haar_packets, inverse_haar_packets

LOG_VARIANCE_RANGE = (-30.0, 20.0)
INITIAL_LOG_VARIANCE = -6.0


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over raw latents: `mean` and `logvar`, each [B, C, h, w]."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + exp(logvar / 2) * noise."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL divergence to the standard normal in nats per latent value, [B]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).mean(1)


class SeparableBlock(nn.Module):
    """Residual block: depthwise 3x3, group norm, then two pointwise convolutions with a SiLU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.contract = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.contract(F.silu(self.expand(self.norm(self.depthwise(x)))))


def _stage(channels: int, blocks: int) -> list[nn.Module]:
    return [SeparableBlock(channels) for _ in range(blocks)]


def _encoder(config: AutoencoderConfig, bands: int) -> nn.Sequential:
    widths = config.encoder_channels
    layers: list[nn.Module] = [nn.Conv2d(bands, widths[0], 3, padding=1), *_stage(widths[0], config.blocks)]
    for narrow, wide in pairwise(widths):
        layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * narrow, wide, 1), *_stage(wide, config.blocks)]
    return nn.Sequential(*layers, nn.GroupNorm(1, widths[-1]), nn.Conv2d(widths[-1], 2 * config.latent_channels, 1))


def _decoder(config: AutoencoderConfig, bands: int) -> nn.Sequential:
    widths = config.decoder_channels[::-1]
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1), *_stage(widths[0], config.blocks)]
    for wide, narrow in pairwise(widths):
        layers += [nn.Conv2d(wide, 4 * narrow, 1), nn.PixelShuffle(2), *_stage(narrow, config.blocks)]
    return nn.Sequential(*layers, nn.GroupNorm(1, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], bands, 3, padding=1))


def _coarse_first(levels: int) -> list[int]:
    """Channels of `haar_packets` of an RGB image from coarse to fine.

    A packet's block number has one base-4 digit a level, the coarsest level first; pictures have their energy where the
    fine levels are LL, so those digits decide the order: the number is read backwards.
    """
    backwards = np.arange(4**levels).reshape([4] * levels).transpose().flatten()
    return [3 * block + channel for block in backwards.tolist() for channel in range(3)]


def _shortcuts(config: AutoencoderConfig, levels: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Linear maps tile -> latents and back; at first they keep the coarsest packet coefficients and are each other's inverse."""
    tile, latent = 3 * 4**levels, config.latent_channels
    into, out = nn.Conv2d(tile, latent, 1), nn.Conv2d(latent, tile, 1)
    kept = torch.zeros(latent, tile, 1, 1)
    for row, packet in enumerate(_coarse_first(levels)[:latent]):
        kept[row, packet] = 2.0**-levels  # a pixel's range, as the first latent channels see it
    with torch.no_grad():
        into.weight.copy_(kept)
        out.weight.copy_(kept.transpose(0, 1) * 4.0**levels)
    for layer in (into, out):
        nn.init.zeros_(layer.bias)
    return into, out


class WaveletVAE(nn.Module):
    """Images in [-1, 1] to normalised latents and back; any height and width that are multiples of `downsample`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        bands = 3 * 4**config.haar_levels
        # LL is 2^levels times a pixel average; bring it back to the range of a pixel. The other bands are small already.
        scale = torch.ones(bands, 1, 1)
        scale[:3] = 2.0**-config.haar_levels
        self.register_buffer("band_scale", scale, persistent=False)
        self.encoder = _encoder(config, bands)
        self.decoder = _decoder(config, bands)
        self.levels = config.downsample.bit_length() - 1
        self.encoder_shortcut, self.decoder_shortcut = _shortcuts(config, self.levels)
        for layer in (self.encoder[-1], self.decoder[-1]):  # the convolutions begin as a correction of zero
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.encoder[-1].bias[config.latent_channels:], INITIAL_LOG_VARIANCE)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))
        self.to(memory_format=torch.channels_last)

    def bands(self, images: Tensor) -> Tensor:
        """Scaled Haar packets of images, [B, 3*4^levels, H/2^levels, W/2^levels]."""
        factor = self.config.downsample
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(f"images have shape {tuple(images.shape)}; use [B, 3, H, W] with sides that are multiples of {factor}.")
        return haar_packets(images, self.config.haar_levels) * self.band_scale.to(images.dtype)

    def posterior(self, images: Tensor) -> Posterior:
        """Images [B, 3, H, W] -> the Gaussian over raw latents [B, C, H/f, W/f]."""
        mean, logvar = self.encoder(self.bands(images).contiguous(memory_format=torch.channels_last)).chunk(2, dim=1)
        return Posterior(mean + self.encoder_shortcut(haar_packets(images, self.levels)), logvar.clamp(*LOG_VARIANCE_RANGE))

    def decode_raw(self, raw: Tensor) -> Tensor:
        """Raw latents -> images, unclamped."""
        bands = self.decoder(raw.contiguous(memory_format=torch.channels_last))
        detail = inverse_haar_packets(bands / self.band_scale.to(bands.dtype), self.config.haar_levels)
        return detail + inverse_haar_packets(self.decoder_shortcut(raw), self.levels)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """Reconstruction through a latent sampled with `noise` [B, C, h, w], and the posterior: one training pass."""
        posterior = self.posterior(images)
        return self.decode_raw(posterior.sample(noise)), posterior

    def encode(self, images: Tensor) -> Tensor:
        """Images -> normalised latents (the posterior's mean)."""
        return (self.posterior(images).mean - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`: latents [B, C, h, w] -> images [B, 3, h*f, w*f], unclamped."""
        return self.decode_raw(latents * self.latent_std + self.latent_mean)

    @torch.no_grad()
    def calibrate(self, mean: Tensor, std: Tensor) -> None:
        """Store what `encode` subtracts and divides by, each [C]: the mean and the scale of raw latents over the training data."""
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError("latent statistics must be finite and the standard deviations positive.")
        self.latent_mean.copy_(mean.view(-1, 1, 1))
        self.latent_std.copy_(std.view(-1, 1, 1))
