"""The specification's nine "Verified properties", one test each, on the presets they are claimed for.

Measured in this repository's terms where the specification is loose: see ARCHITECTURE.md and reports/claims.py.
"""

from __future__ import annotations

import pytest
import torch
from conftest import randomise, seeded

import iris
from iris.config import IRISConfig, preset
from iris.evaluation.footprint import peak_memory
from iris.model import IRISModel
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator, parameter_count
from iris.nn.haar import haar_dwt2, haar_idwt2
from iris.nn.mixer import GRFM
from iris.rng import rng_for
from iris.training.batches import LatentBatch
from iris.training.losses import RectifiedFlowLoss

# CLIP-L/14's text tower: embeddings, twelve layers of width 768 and the last norm.
CLIP_TEXT_PARAMETERS = (49408 + 77) * 768 + 12 * (4 * (768**2 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768) + 2 * 768
MB = 1e6


@pytest.fixture(scope="module")
def tiny() -> IRISModel:
    torch.manual_seed(0)
    model = iris.create_iris_tiny()
    randomise(model.generator, scale=0.02)
    return model


def test_property_1_haar_round_trip_is_lossless() -> None:
    image = seeded(2, 3, 256, 256).clamp(-1, 1)
    assert (haar_idwt2(haar_dwt2(image)) - image).abs().max() < 1e-5


@torch.no_grad()
def test_property_2_the_wavelet_vae_maps_256_x_256_to_16_x_16_with_48_times_compression(tiny: IRISModel) -> None:
    image = seeded(1, 3, 256, 256).clamp(-1, 1)
    latents = tiny.autoencoder.encode(image)
    assert latents.shape == (1, 16, 16, 16) and image.numel() / latents.numel() == 48
    assert tiny.autoencoder.decode(latents).shape == image.shape


def test_property_3_grfm_forward_and_backward_with_all_gradients_flowing() -> None:
    config = preset("tiny").generator
    torch.manual_seed(0)
    grfm, x = GRFM(config), seeded(1, 16, 16, config.dim).requires_grad_()
    output, _ = grfm(x)
    output.square().mean().backward()
    assert output.shape == x.shape and output.isfinite().all()
    assert all(tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0 for tensor in (x, *grfm.parameters()))


@torch.no_grad()
def test_property_4_one_model_runs_at_any_number_of_iterations(tiny: IRISModel) -> None:
    z, t, text = seeded(1, 16, 16, 16), torch.ones(1), seeded(1, 77, 768, seed=1)
    velocities = [tiny.generator(z, t, text, num_iterations=depth) for depth in (1, 2, 4)]
    assert all(velocity.shape == z.shape and velocity.isfinite().all() for velocity in velocities)
    assert not torch.allclose(velocities[0], velocities[1]) and not torch.allclose(velocities[1], velocities[2])


def test_property_5_a_full_training_step_with_the_rectified_flow_loss() -> None:
    torch.manual_seed(0)
    generator = Generator(preset("tiny", generator__mean_iterations=2).generator)
    batch = LatentBatch(seeded(1, 16, 16, 16), seeded(1, 77, 768, seed=1), torch.ones(1, 77, dtype=torch.bool))
    loss = RectifiedFlowLoss(random_depth=False)
    draw = loss.draw(generator, batch, rng_for(0))
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3)
    before = loss(generator, draw).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        assert loss(generator, draw).loss < before


def test_property_6_the_quick_start_generates_end_to_end() -> None:
    """As the specification writes it, with `iris` for `iris_model`; the second call is made with Tiny and fewer steps."""
    model = iris.create_iris_small()
    text_tokens = torch.randn(1, 77, 768, generator=rng_for(0))
    images = model.generate(text_tokens, num_steps=4, num_iterations=4)
    assert images.shape == (1, 3, 256, 256) and images.isfinite().all()


def stored_megabytes(config: IRISConfig) -> float:
    """Generator and autoencoder in fp16 and the CLIP text tower in fp32: the reading that explains the specification's figures."""
    with torch.device("meta"):
        own = parameter_count(Generator(config.generator)) + parameter_count(WaveletVAE(config.autoencoder))
    return (2 * own + 4 * CLIP_TEXT_PARAMETERS) / MB


def peak_megabytes(name: str) -> float:
    """Peak memory of a fresh process that builds the model in fp32 and draws a picture, and a text tower in fp32 beside it."""
    return peak_memory(name, num_steps=1, num_iterations=4, text="without").peak / MB + 4 * CLIP_TEXT_PARAMETERS / MB


def test_property_7_iris_tiny_infers_in_545_mb_of_weights_and_below_3_gb_of_process() -> None:
    assert abs(stored_megabytes(preset("tiny")) / 545 - 1) < 0.05
    assert peak_megabytes("tiny") < 3000


def test_property_8_iris_small_infers_in_597_mb_of_weights_and_below_3_gb_of_process() -> None:
    assert abs(stored_megabytes(preset("small")) / 597 - 1) < 0.05
    assert peak_megabytes("small") < 3000


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_property_9_sixteen_iterations_unroll_to_10_9_times_the_parameters(name: str) -> None:
    """The specification calls it effective capacity; it is effective depth: the same weights, read sixteen times."""
    with torch.device("meta"):
        generator = Generator(preset(name).generator)
    total, core = parameter_count(generator), parameter_count(generator.core)
    assert abs((total + 15 * core) / total - 10.9) <= 0.5
