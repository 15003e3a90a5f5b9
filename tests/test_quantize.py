"""Laws of the int8 option: the error is that of 8 bits, weights take a quarter, and the original stays what it was."""

from __future__ import annotations

import pytest
import torch
from conftest import seeded
from torch import nn

from iris.config import preset
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline
from iris.quantize import SMALLEST, quantize_dynamic, quantized


def test_a_linear_layer_is_computed_to_8_bits_of_its_inputs_and_weights() -> None:
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(256, 128)), seeded(64, 256)
    exact, found = layer(x).detach(), quantized(layer)(x)
    weight = layer[0].weight.detach()
    # Half a step of rounding of either factor (two where the engine keeps 7 bits of the input), as independent errors in a sum.
    step_x, step_w = (x.max() - x.min()) / 127, 2 * weight.abs().max() / 255
    bound = (256 * ((step_x * weight.square().mean().sqrt()) ** 2 + (step_w * x.square().mean().sqrt()) ** 2) / 12) ** 0.5
    error = (found - exact).square().mean().sqrt()
    assert 0 < error < 1.5 * bound


def test_large_layers_are_replaced_and_small_ones_and_the_original_are_not() -> None:
    torch.manual_seed(0)
    generator = Generator(preset("micro").generator).eval()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    made = quantized(generator)
    kinds = {name: type(layer) for name, layer in made.named_modules()}
    for name, layer in generator.named_modules():
        if type(layer) is nn.Linear:
            stays = layer.weight.numel() < SMALLEST or ".mlp." in f".{name}."
            assert (kinds[name] is nn.Linear) == stays, name
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_a_quantised_pipeline_draws_nearly_the_same_picture_as_a_wide_generator() -> None:
    torch.manual_seed(0)
    generator = Generator(preset("micro").generator).eval()
    nn.init.normal_(generator.output.weight, std=0.05)
    z, t, text = seeded(2, 16, 8, 8), torch.tensor([0.3, 0.8]), seeded(2, 24, 384)
    with torch.no_grad():
        exact, found = generator(z, t, text, 4), quantized(generator)(z, t, text, 4)
    assert 0 < (found - exact).norm() / exact.norm() < 0.1


def test_the_pipeline_keeps_its_settings_and_refuses_other_devices(pipeline: IRISPipeline) -> None:
    made = quantize_dynamic(pipeline)
    assert made.defaults == pipeline.defaults and made("red apple", seed=1).images[0].size == (32, 32)
    elsewhere = IRISPipeline(pipeline.config, pipeline.autoencoder, Generator(preset("nano").generator).to("meta"), pipeline.text_encoder)
    with pytest.raises(ValueError, match="run on a CPU"):
        quantize_dynamic(elsewhere)
