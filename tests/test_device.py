"""A training step stays on its device: a number asked of a GPU, or a tensor sent to it, makes the processor wait for all that is queued."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from conftest import build_generator, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iris.config import preset
from iris.nn import fourier
from iris.nn.generator import Generator
from iris.rng import rng_for
from iris.training.batches import LatentBatch, each_tensor
from iris.training.loop import compile_blocks
from iris.training.losses import ConsistencyLoss, RectifiedFlowLoss


class StaysThere(TorchDispatchMode):
    """Refuses a number asked of the device, and a tensor moved to or from it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{function} asks the device for a number")
        before = {arg.device for arg in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(arg, Tensor) and arg.ndim}
        result = function(*args, **(kwargs or {}))
        after = {out.device for out in torch.utils._pytree.tree_leaves(result) if isinstance(out, Tensor)}
        if before and after and before != after:
            raise AssertionError(f"{function} moves {before} to {after}")
        return result


def a_batch(generator: Generator, count: int = 4) -> LatentBatch:
    config = generator.config
    return LatentBatch(seeded(count, config.latent_channels, config.latent_size, config.latent_size), seeded(count, 5, config.text_dim),
                       torch.ones(count, 5, dtype=torch.bool))


def draws(generator: Generator) -> dict[str, tuple]:
    batch = a_batch(generator)
    flow, warm, exits = RectifiedFlowLoss(random_depth=False), RectifiedFlowLoss(warm_start=1.0), RectifiedFlowLoss(exit_weight=1.0)
    distilled = ConsistencyLoss(build_generator(preset("nano")), 3.0, random_depth=False, exit_weight=0.5)
    return {name: (loss, loss.draw(generator, batch, rng_for(0, 1))) for name, loss in {"flow": flow, "warm": warm, "exits": exits, "student": distilled}.items()}


@pytest.mark.parametrize("name", ["flow", "warm", "exits", "student"])
def test_a_step_asks_nothing_of_the_device_and_moves_nothing_to_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no device "meta"
    generator = build_generator(preset("nano")).to("meta")
    loss, draw = draws(generator)[name]
    if name == "student":
        loss.teacher.to("meta")
    draw = each_tensor(draw, lambda tensor: tensor.to("meta"))
    loss(generator, draw).loss.backward()  # constants are made and sent once, at the first step
    with StaysThere():
        loss(generator, draw).loss.backward()
    still = {key for key, parameter in generator.named_parameters() if parameter.grad is None}
    assert still == ({"null_text"} if name == "student" else set())  # a student's guidance is inside it


def test_a_compiled_block_takes_its_constants_from_where_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, the matrices of the Fourier path would be made on the CPU and sent to the device at every call."""
    monkeypatch.setattr(fourier, "_KEPT", {})
    generator, traced = build_generator(preset("nano")), []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        traced.append({str(node.target) for node in graph.graph.nodes if node.op.startswith("call")})
        return graph

    compile_blocks(generator, backend=backend)
    loss, draw = draws(generator)["flow"]
    loss(generator, draw)
    assert traced and not [name for names in traced for name in names if "Wrapped" in name or "as_tensor" in name]


def test_the_guard_of_the_law_above_sees_both_faults() -> None:
    with StaysThere(), pytest.raises(AssertionError, match="moves"):
        torch.ones(2).to("meta")
    with StaysThere(), pytest.raises(AssertionError, match="number"):
        float(torch.ones(2).sum())
