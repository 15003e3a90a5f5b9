"""Steps recorded as CUDA graphs: what makes them recordable is held here on any machine, what they compute on one with a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch
from conftest import build_generator, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iris.config import preset
from iris.nn.generator import Generator
from iris.rng import rng_for
from iris.training.batches import LatentBatch, each_tensor
from iris.training.graphs import GraphedGradients, _kind
from iris.training.loop import TrainConfig, fit
from iris.training.losses import ConsistencyLoss, FlowDraw, RectifiedFlowLoss


class StaysThere(TorchDispatchMode):
    """Refuses what a recording cannot hold: a number asked of the device, or a tensor moved to or from it."""

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
    loss(generator, draw).loss.backward()  # constants are made and sent at the first step, before any recording
    with StaysThere():
        loss(generator, draw).loss.backward()
    still = {key for key, parameter in generator.named_parameters() if parameter.grad is None}
    assert still == ({"null_text"} if name == "student" else set())  # a student's guidance is inside it


def test_the_guard_of_the_law_above_sees_both_faults() -> None:
    with StaysThere(), pytest.raises(AssertionError, match="moves"):
        torch.ones(2).to("meta")
    with StaysThere(), pytest.raises(AssertionError, match="number"):
        float(torch.ones(2).sum())


def test_a_kind_is_everything_but_the_numbers() -> None:
    generator = build_generator(preset("nano"))
    loss = RectifiedFlowLoss(random_depth=False)
    one, other = (loss.draw(generator, a_batch(generator), rng_for(0, seed)) for seed in (1, 2))
    assert _kind(one) == _kind(other) and not torch.equal(one.noise, other.noise)
    changes = {field.name: 1 + getattr(one, field.name) for field in fields(FlowDraw) if isinstance(getattr(one, field.name), int)}
    assert set(changes) == {"depth", "exit", "warm_depth"}
    others = [replace(one, **{name: value}) for name, value in changes.items()] + [replace(one, warm_from=one.t), each_tensor(one, lambda tensor: tensor[:2])]
    assert len({_kind(draw) for draw in (one, *others)}) == 1 + len(others)


def test_without_recordings_every_step_runs_as_it_comes() -> None:
    """Where recording is not possible (here there is no GPU to record) it is said once, and the gradients are those of the step."""
    if torch.cuda.is_available():
        pytest.skip("a GPU records")
    generator = build_generator(preset("nano"))
    loss, draw = draws(generator)["flow"]

    def compute(loss, draw):
        output = loss(generator, draw)
        output.loss.backward()
        return output

    graphed = GraphedGradients(compute, list(generator.parameters()))
    with pytest.warns(UserWarning, match="no CUDA graphs") as told:
        for _ in range(6):
            generator.zero_grad()
            graphed(loss, draw)
    assert len(told) == 1
    gradients = [parameter.grad.clone() for parameter in generator.parameters()]
    generator.zero_grad()
    compute(loss, draw)
    assert all(torch.equal(a, parameter.grad) for a, parameter in zip(gradients, generator.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_steps_train_as_steps_do() -> None:
    def train(compile: bool) -> list[Tensor]:
        generator = build_generator(preset("nano"))
        recipe = TrainConfig(train_steps=24, batch_size=4, precision="fp32", compile=compile, log_every=1)
        batch = a_batch(generator)
        result = fit(generator, lambda step: batch, RectifiedFlowLoss(warm_start=0.3), recipe)
        return list(result.module.parameters())

    for a, b in zip(train(False), train(True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
