"""Compiled blocks, and draws made ahead: another way to the same numbers."""

from __future__ import annotations

import pytest
import torch

from iris.config import preset
from iris.nn.generator import CodaBlock, CoreLayer, Generator
from iris.nn.recurrence import GatedLinearRecurrence, linear_scan
from iris.training.batches import LatentBatch
from iris.training.loop import TrainConfig, _Draws, fit
from iris.training.losses import RectifiedFlowLoss


def traced(module: torch.nn.Module) -> torch.nn.Module:
    """The module as torch.compile's tracer reads it, run without making code."""
    module.compile(dynamic=False, backend="aot_eager", fullgraph=True)
    return module


def values_and_gradients(module: torch.nn.Module, run) -> list[torch.Tensor]:
    module.zero_grad(set_to_none=True)
    output = run(module)
    output.square().mean().backward()
    return [output.detach(), *(parameter.grad for parameter in module.parameters() if parameter.grad is not None)]


def test_the_recurrence_traced_is_the_recurrence():
    torch.manual_seed(0)
    path = GatedLinearRecurrence(64).double()
    x = torch.randn(2, 4, 6, 64, dtype=torch.double)
    plain = values_and_gradients(path, lambda module: module(x))
    for a, b in zip(plain, values_and_gradients(traced(path), lambda module: module(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [(4, 4), (12, 12)], ids=["one product", "two products"])
def test_a_core_layer_is_traced_whole(size):
    """`fullgraph`: a break would leave Python between the pieces, and nothing would be fused over it."""
    torch.manual_seed(0)
    config = preset("nano").generator
    generator = Generator(config).double()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        context = generator.condition(torch.randn(2, 5, config.text_dim, dtype=torch.double), torch.ones(2, 5, dtype=torch.bool))
    x, condition = torch.randn(2, *size, config.dim, dtype=torch.double), torch.randn(2, config.dim, dtype=torch.double)
    layer = generator.core.layers[0]

    def run(module: torch.nn.Module) -> torch.Tensor:
        return module(x, condition, context.keys_values[0], context.mask, False)[0]

    plain = values_and_gradients(layer, run)
    for a, b in zip(plain, values_and_gradients(traced(layer), run), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_layers_of_one_kind_share_what_was_compiled():
    from torch._dynamo.utils import counters

    generator = Generator(preset("nano").generator)
    assert len(generator.core.layers) == 2
    for block in generator.modules():
        if isinstance(block, (CoreLayer, CodaBlock)):
            traced(block)
    counters.clear()
    generator(torch.randn(2, 8, 8, 8), torch.rand(2), torch.randn(2, 5, 32), 3)
    graphs = counters["stats"]["unique_graphs"]
    generator(torch.randn(2, 8, 8, 8), torch.rand(2), torch.randn(2, 5, 32), 7)  # another depth
    assert 2 <= graphs <= 3 and counters["stats"]["unique_graphs"] == graphs


def test_a_scan_of_one_way_is_traced_too():
    a, b = torch.rand(2, 5, 3), torch.randn(2, 5, 3)
    torch.testing.assert_close(torch.compile(linear_scan, backend="aot_eager", fullgraph=True)(a, b, 1), linear_scan(a, b, 1))


def test_draws_made_ahead_are_the_same_draws():
    asked = []
    draws = _Draws(lambda step: asked.append(step) or step * step, is_ahead=True)
    assert [draws(step) for step in range(5, 9)] == [25, 36, 49, 64]
    draws.close()
    assert asked[:4] == [5, 6, 7, 8]


def test_training_compiled_follows_training_plain(monkeypatch):
    """Three steps of the whole loop; the blocks are traced, and the draws come from the thread."""
    import iris.training.loop as loop

    monkeypatch.setattr(loop, "compile_blocks", lambda module: [traced(block) for block in module.modules() if isinstance(block, CoreLayer)])
    results = []
    for compiled in (False, True):
        if compiled:
            monkeypatch.setattr(loop._Draws, "__init__", ahead(loop._Draws.__init__))
        torch.manual_seed(0)
        generator = Generator(preset("nano").generator)
        batches = lambda step: LatentBatch(torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(step)), torch.ones(4, 5, 32), torch.ones(4, 5, dtype=torch.bool))  # noqa: E731
        train = TrainConfig(train_steps=3, batch_size=4, precision="fp64", optimizer="adamw", compile=compiled, warmup_steps=1)
        results.append(fit(generator, batches, RectifiedFlowLoss(), train).module.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-7)


def ahead(init):
    """`_Draws` as beside a GPU."""
    return lambda self, make, is_ahead: init(self, make, True)
