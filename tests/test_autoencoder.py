"""Laws of the wavelet VAE: sizes, an exact wavelet stage, latents of unit variance, and a posterior that is a Gaussian."""

from __future__ import annotations

import pytest
import torch
from conftest import randomise, seeded
from torch.distributions import Normal, kl_divergence

from iris.config import AutoencoderConfig, preset
from iris.nn.autoencoder import Posterior, WaveletVAE
from iris.nn.haar import inverse_haar_packets


def small(downsample: int, haar_levels: int, image_size: int = 64) -> WaveletVAE:
    grids = downsample.bit_length() - haar_levels
    config = AutoencoderConfig(image_size=image_size, downsample=downsample, latent_channels=6, haar_levels=haar_levels,
                               encoder_channels=(8,) * grids, decoder_channels=(8,) * grids, blocks=1)
    torch.manual_seed(0)
    return randomise(WaveletVAE(config), scale=0.02)


@pytest.fixture
def vae() -> WaveletVAE:
    torch.manual_seed(0)
    return randomise(WaveletVAE(preset("nano").autoencoder), scale=0.02)


@pytest.mark.parametrize(("downsample", "haar_levels"), [(2, 1), (4, 1), (4, 2), (8, 2), (8, 3), (16, 2)])
def test_the_downsampling_factor_is_a_config_value(downsample: int, haar_levels: int) -> None:
    vae = small(downsample, haar_levels)
    for height, width in ((16, 16), (32, 16), (48, 64)):
        latents = vae.encode(seeded(2, 3, height, width))
        assert latents.shape == (2, 6, height // downsample, width // downsample)
        assert vae.decode(latents).shape == (2, 3, height, width)


@pytest.mark.parametrize("shape", [(2, 3, 30, 32), (2, 3, 32, 31), (2, 1, 32, 32), (3, 32, 32)])
def test_other_shapes_are_refused_with_a_sentence(vae: WaveletVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        vae.encode(torch.zeros(shape))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_wavelet_stage_loses_nothing_and_keeps_the_range_of_pixels(levels: int) -> None:
    vae, images = small(8, levels), seeded(2, 3, 32, 32).clamp(-1, 1)
    bands = vae.bands(images)
    assert (inverse_haar_packets(bands / vae.band_scale, levels) - images).abs().max() < 1e-5
    flat = vae.bands(torch.full((1, 3, 32, 32), 0.7))
    torch.testing.assert_close(flat[:, :3], torch.full_like(flat[:, :3], 0.7))
    assert flat[:, 3:].abs().max() < 1e-6


def test_calibration_gives_latents_zero_mean_and_unit_variance_and_changes_no_picture(vae: WaveletVAE) -> None:
    images = seeded(16, 3, 32, 32).clamp(-1, 1)
    before = vae.decode(vae.encode(images))
    raw = vae.posterior(images).mean
    vae.calibrate(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    latents = vae.encode(images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latents), before, atol=1e-5, rtol=1e-5)


def test_latent_statistics_travel_with_the_weights(vae: WaveletVAE) -> None:
    vae.calibrate(seeded(8), seeded(8).abs() + 0.1)
    other = WaveletVAE(vae.config)
    other.load_state_dict(vae.state_dict())
    images = seeded(1, 3, 32, 32)
    assert torch.equal(other.encode(images), vae.encode(images))


@pytest.mark.parametrize(("mean", "std"), [(float("nan"), 1.0), (0.0, float("inf")), (0.0, 0.0), (0.0, -1.0)])
def test_statistics_that_would_break_latents_are_refused(vae: WaveletVAE, mean: float, std: float) -> None:
    with pytest.raises(ValueError, match="statistics"):
        vae.calibrate(torch.full((8,), mean), torch.full((8,), std))
    assert (vae.latent_mean == 0).all() and (vae.latent_std == 1).all()


def test_the_posterior_is_a_gaussian() -> None:
    mean, logvar = seeded(3, 4, 2, 2, seed=1), seeded(3, 4, 2, 2, seed=2)
    posterior, reference = Posterior(mean, logvar), Normal(mean, (0.5 * logvar).exp())
    noise = seeded(3, 4, 2, 2, seed=3)
    torch.testing.assert_close(posterior.sample(noise), reference.loc + reference.scale * noise)
    expected = kl_divergence(reference, Normal(torch.zeros(()), torch.ones(()))).flatten(1).mean(1)
    torch.testing.assert_close(posterior.kl(), expected)
    assert (Posterior(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)).kl() == 0).all()


def test_a_training_pass_is_a_sample_decoded(vae: WaveletVAE) -> None:
    images, noise = seeded(2, 3, 32, 32), seeded(2, 8, 8, 8, seed=1)
    output, posterior = vae(images, noise)
    torch.testing.assert_close(output, vae.decode_raw(posterior.sample(noise)))
    torch.testing.assert_close(vae.encode(images), vae.posterior(images).mean)  # not calibrated: nothing to normalise by


def test_every_parameter_gets_a_gradient(vae: WaveletVAE) -> None:
    output, posterior = vae(seeded(2, 3, 32, 32), seeded(2, 8, 8, 8, seed=1))
    (output.square().mean() + posterior.kl().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in vae.parameters())


def test_pictures_do_not_see_each_other(vae: WaveletVAE) -> None:
    images = seeded(4, 3, 32, 32)
    torch.testing.assert_close(vae.encode(images)[2:3], vae.encode(images[2:3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("downsample", [2, 4, 8, 16])
def test_a_new_autoencoder_already_keeps_the_coarse_half_of_a_picture(downsample: int) -> None:
    """12 latent channels hold four RGB pixels a tile; the rest is what training adds."""
    grids = downsample.bit_length() - 1
    vae = WaveletVAE(AutoencoderConfig(image_size=64, downsample=downsample, latent_channels=12, haar_levels=1, encoder_channels=(8,) * grids,
                                       decoder_channels=(8,) * grids, blocks=1))
    coarse = torch.nn.functional.interpolate(seeded(2, 3, 64 // downsample * 2, 64 // downsample * 2), size=64)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(vae.encode(coarse)), coarse, atol=1e-5, rtol=0)
