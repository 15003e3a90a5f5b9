"""Laws of the footprint: parts sum to the whole, counted work agrees with closed forms, memory comes from a fresh process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from iris.config import preset
from iris.evaluation import footprint as fp
from iris.model import IRISModel
from iris.nn.generator import parameter_count


@pytest.fixture(scope="module")
def nano() -> fp.Footprint:
    return fp.measure_footprint("nano")


@pytest.mark.parametrize("overrides", [{}, {"generator__text_adapter": True, "generator__dim": 48, "generator__head_dim": 8, "generator__text_dim": 48,
                                            "text__dim": 48}])
def test_the_parts_sum_to_the_model(overrides: dict):
    config = preset("nano", **overrides)
    model = IRISModel(config)
    found = fp.measure_footprint(config)
    assert set(found.parameters) == set(fp.PARTS) and set(found.flops) == {"text", "prelude", "core", "coda", "encoder", "decoder"}
    assert sum(found.parameters.values()) == parameter_count(model)
    assert found.generator_parameters == parameter_count(model.generator)
    assert found.parameters["core"] == parameter_count(model.generator.core)
    assert (found.parameters["text_adapter"] > 0) == config.generator.text_adapter


def test_unrolled_depth_is_what_a_stack_without_shared_weights_would_hold(nano: fp.Footprint):
    assert nano.unrolled(1) == nano.generator_parameters and nano.unrolled_multiple(1) == 1
    assert nano.unrolled(16) - nano.unrolled(15) == nano.parameters["core"]
    assert nano.unrolled_multiple(16) == pytest.approx(1 + 15 * nano.core_share)


def test_tiny_keeps_the_specifications_arithmetic():
    """19 M parameters, core share 0.66, 16 iterations unroll to 10.9 times the parameters."""
    found = fp.measure_footprint("tiny")
    assert found.generator_parameters == pytest.approx(19e6, rel=0.03)
    assert found.core_share == pytest.approx(0.66, abs=0.03)
    assert found.unrolled_multiple(16) == pytest.approx(10.9, abs=0.5)


def _convolutions_and_linears(module: nn.Module, call) -> int:
    """2 multiply-adds for every output value and weight it reads, by hooks: a second way to count."""
    total = 0

    def add(layer: nn.Module, _inputs, output: torch.Tensor) -> None:
        nonlocal total
        weight = layer.weight
        total += 2 * output.numel() * weight[0].numel()

    hooks = [layer.register_forward_hook(add) for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return total


def test_counted_work_agrees_with_a_second_count(nano: fp.Footprint):
    model = IRISModel(preset("nano"))
    assert nano.flops["decoder"] == _convolutions_and_linears(model, lambda: model.autoencoder.decode(torch.zeros(1, 8, 8, 8)))
    assert nano.flops["encoder"] == _convolutions_and_linears(model, lambda: model.autoencoder.encode(torch.zeros(1, 3, 32, 32)))
    z, t = torch.zeros(1, 8, 8, 8), torch.zeros(1)
    assert nano.flops["prelude"] == _convolutions_and_linears(model, lambda: model.generator.embed(z, t))


def test_attention_is_counted_by_its_closed_form():
    config = preset("nano", generator__mixer="attention", generator__iteration_embedding="none")
    generator = IRISModel(config).generator
    context = generator.condition(torch.zeros(1, 16, 32))
    embedded = generator.embed(torch.zeros(1, 8, 8, 8), torch.zeros(1))
    linears = _convolutions_and_linears(generator, lambda: generator.core(embedded.injected, embedded.injected, embedded.condition, context, 1))
    tokens, words, layers = 64, 16, config.generator.core_layers
    inner = generator.core.layers[0].mixer.attention.out.in_features
    attention = layers * 4 * tokens * (tokens * inner + words * config.generator.dim)   # scores and weighted sum, 2 FLOPs each
    assert fp.measure_footprint(config).flops["core"] == linears + attention


def test_the_fft_is_added_where_the_counter_does_not_see_it(monkeypatch: pytest.MonkeyPatch):
    assert fp.fft_flops("grfm", 64, 32) == 0 and fp.fft_flops("attention", 128, 32) == 0
    assert fp.fft_flops("fourier", 128, 8) == 2 * 8 * 2.5 * 16384 * 14
    monkeypatch.setattr(fp, "MATMUL_DFT_LIMIT", 16)
    monkeypatch.setattr("iris.nn.fourier.MATMUL_DFT_LIMIT", 16)
    config = preset("nano", generator__latent_size=32, autoencoder__image_size=128)
    model, found = IRISModel(config), fp.measure_footprint(config)
    assert found.flops["core"] > 2 * fp.fft_flops("grfm", 32, 32) > 0
    assert found.image_size == 128 and parameter_count(model) == sum(found.parameters.values())


def test_work_is_steps_times_iterations_and_doubles_with_guidance(nano: fp.Footprint):
    once, more, guided = nano.work(1, 1), nano.work(4, 8), nano.work(4, 8, guidance=True)
    assert more["core_x8"] == 32 * once["core_x1"] and more["coda"] == 4 * once["coda"] and more["decoder"] == once["decoder"]
    assert guided["core_x8"] == 2 * more["core_x8"] and guided["decoder"] == more["decoder"]


def test_bytes_follow_the_precision_and_everything_is_json(nano: fp.Footprint):
    assert sum(nano.weight_bytes("fp16").values()) * 2 == sum(nano.weight_bytes("fp32").values())
    with pytest.raises(fp.FootprintError, match="fp16"):
        nano.weight_bytes("int3")
    assert json.loads(json.dumps(nano.to_dict()))["unrolled"]["16"]["multiple"] == pytest.approx(nano.unrolled_multiple(16))


def test_clip_l_has_the_size_that_everyone_knows():
    pytest.importorskip("transformers")
    assert fp.text_encoder_parameters(preset("tiny").text) == 123_060_480   # 123 M, openai/clip-vit-large-patch14


def test_measuring_draws_no_random_numbers_of_others():
    torch.manual_seed(5)
    fp.measure_footprint("nano")
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_a_folder_has_the_footprint_of_its_config_and_other_folders_are_refused(tmp_path: Path, nano: fp.Footprint):
    from iris.pipeline import IRISPipeline
    from iris.text import load_text_encoder

    config = preset("nano")
    model = IRISModel(config)
    folder = IRISPipeline(config, model.autoencoder, model.generator, load_text_encoder(config.text)).save_pretrained(tmp_path / "model")
    assert fp.measure_footprint(folder) == nano
    with pytest.raises(ValueError):
        fp.measure_footprint(tmp_path / "nothing here")


def test_memory_is_that_of_a_fresh_process(tmp_path: Path):
    ballast = torch.ones(64 * 2**20)   # 256 MB in this process, not in the fresh one
    found = fp.peak_memory("nano", num_steps=1, num_iterations=2)
    assert 50e6 < found.imported <= found.built <= found.peak
    assert found.peak - found.imported < 200e6 < ballast.nbytes
    with pytest.raises(fp.FootprintError, match="failed"):
        fp.peak_memory("nano", num_steps=0)
    with pytest.raises(ValueError):
        fp.peak_memory(tmp_path / "nothing here")
    with pytest.raises(fp.FootprintError, match="with"):
        fp.peak_memory("nano", text="maybe")


def test_memory_of_the_process_without_torch_is_what_that_process_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen = []

    def run(command: list[str], **_):
        seen.append(command)
        return fp.subprocess.CompletedProcess(command, 0, stdout='{"peak_bytes": 123456789}', stderr="")

    with monkeypatch.context() as patch:
        patch.setattr(fp.subprocess, "run", run)
        assert fp.runtime_memory(tmp_path, num_steps=2, num_iterations=3) == 123456789
    assert "iris.runtime" in seen[0] and seen[0][seen[0].index("--num-iterations") + 1] == "3"
    pytest.importorskip("onnxruntime")
    with pytest.raises(fp.FootprintError, match="is not an exported model"):
        fp.runtime_memory(tmp_path)
