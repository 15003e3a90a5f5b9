"""The training loop against what is written down of it: rates, clipping, held-out loss, means that are logged, the scaler, the mirror."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from conftest import seeded
from torch import Tensor, nn

from iris.config import ConfigError
from iris.rng import rng_for
from iris.runs import Run
from iris.step_checkpoints import latest_checkpoint
from iris.training import loop
from iris.training.loop import HELD_OUT, TrainConfig, fit
from iris.training.losses import LossOutput

TRAIN = TrainConfig(train_steps=6, batch_size=4, warmup_steps=3, log_every=2, eval_every=3, ema_decay=0.5)


@dataclass(frozen=True)
class Draw:
    """Numbers [B, 3] and what is added to them."""

    x: Tensor


class Noted:
    """The mean square of a module's answer, times `scale`; remembers every draw and every step that it was told."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.told, self.drawn = scale, [], []

    def at_step(self, step: int | None) -> None:
        self.told.append(step)

    def draw(self, module: nn.Module, batch: Tensor, rng: torch.Generator) -> Draw:
        self.drawn.append(Draw(batch + torch.randn(batch.shape, generator=rng)))
        return self.drawn[-1]

    def __call__(self, module: nn.Module, draw: Draw) -> LossOutput:
        per_sample = self.scale * module(draw.x).square().mean(1)
        return LossOutput(per_sample.mean(), per_sample.detach(), {}, {})


def batches(step: int) -> Tensor:
    return seeded(4, 3, seed=step)


def held_out(step: int) -> Tensor:
    return seeded(4, 3, seed=100 + step)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3))


def test_the_held_out_loss_is_the_averaged_modules_on_the_same_draws_each_time(tmp_path: Path) -> None:
    rows, loss, module = [], Noted(), network()
    with Run.open(tmp_path / "run") as run:
        result = fit(module, batches, loss, TRAIN, run, held_out, rows.append)
    evaluated = [draw for told, draw in zip(loss.told, loss.drawn, strict=True) if told is None]
    assert loss.told.count(None) == 8 and [told for told in loss.told if told is not None] == list(range(6))
    for first, second in zip(evaluated[:4], evaluated[4:], strict=True):
        assert torch.equal(first.x, second.x)
    for index, draw in enumerate(evaluated[:4]):
        assert torch.equal(draw.x, held_out(index) + torch.randn(4, 3, generator=rng_for(TRAIN.seed, HELD_OUT, index)))
    found = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    with torch.no_grad():
        expected, newest = (float(torch.stack([loss(each, draw).per_sample.mean() for draw in evaluated[:4]]).mean()) for each in (result.module, module))
    assert found[-1] == pytest.approx(expected, rel=1e-6) and abs(newest - expected) > 1e-4 * expected


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_group_of_weights_gets_the_rate_of_its_step_and_gradients_that_were_clipped(monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    seen, build = [], loop.build_optimizer

    def watched(*arguments, **options) -> torch.optim.Optimizer:
        made = build(*arguments, **options)
        made.register_step_pre_hook(lambda *_: seen.append(([group["lr"] for group in made.param_groups],
                                                            torch.cat([p.grad.flatten() for group in made.param_groups for p in group["params"]]).norm())))
        return made

    monkeypatch.setattr(loop, "build_optimizer", watched)
    train = TrainConfig(**{**TRAIN.__dict__, "optimizer": optimizer, "clip_norm": 0.5})
    fit(network(), batches, Noted(scale=1e4), train)
    assert len(seen) == 6 and len({train.rate(step) for step in range(6)}) > 3
    for step, (rates, norm) in enumerate(seen):
        assert len(rates) >= 2 and rates == [train.rate(step)] * len(rates)
        assert float(norm) == pytest.approx(0.5, rel=1e-4)


def test_what_is_logged_is_the_mean_since_the_last_log() -> None:
    meters = loop._Meters()
    for values, t, depth in (([1.0, 3.0], [0, 7], [2, 2]), ([5.0, 7.0], [0, 0], [2, 4])):
        per_sample = torch.tensor(values)
        meters.add(LossOutput(per_sample.mean() * 10, per_sample, {"one_step": per_sample[0]}, {"t": torch.tensor(t), "depth": torch.tensor(depth)}))
    row = meters.row()
    assert (row["loss"], row["one_step"]) == (40.0, 3.0)
    assert row["loss_by_t"] == [13 / 3, None, None, None, None, None, None, 3.0] and row["loss_by_depth"] == {2: 3.0, 4: 7.0}
    refused = torch.tensor([float("nan"), 3.0])
    meters.add(LossOutput(refused.mean(), refused, {"one_step": refused[0]}, {"t": torch.tensor([0, 1]), "depth": torch.tensor([2, 2])}))
    row = meters.row()  # a step that was not taken hides none of the others
    assert (row["loss"], row["one_step"]) == (40.0, 3.0) and row["loss_by_t"][:2] == [13 / 3, 3.0] and row["loss_by_depth"] == {2: 3.0, 4: 7.0}


@pytest.mark.parametrize(("wrong", "sentence"), [({"seed": -1}, "seed is -1; use 0 or more"), ({"clip_norm": 0.0}, "clip_norm is 0.0; use a number above 0")])
def test_a_recipe_that_would_fail_late_or_train_nothing_is_refused(wrong: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(**wrong)


def test_an_infinite_step_in_half_precision_is_skipped_and_halves_the_scale_which_a_checkpoint_keeps(tmp_path: Path) -> None:
    """torch's own scaler, which works on a CPU too, stands where accelerate puts it on a GPU without bf16."""
    def scaled(run: Run) -> loop._Session:
        session = loop._Session(network(), TRAIN, run)
        session.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        session.optimizer = AcceleratedOptimizer(session.raw_optimizer, device_placement=False, scaler=session.accelerator.scaler)
        session.restore()
        return session

    with Run.open(tmp_path / "run") as run:
        session, loss = scaled(run), Noted()
        before = [parameter.detach().clone() for parameter in session.parameters]
        session.update(Noted(scale=float("inf")), loss.draw(session.module, batches(0), rng_for(0)))
        assert session.accelerator.scaler.get_scale() == 512.0 and session.skipped == 1
        assert all(torch.equal(a, b) for a, b in zip(before, session.parameters, strict=True))
        session.update(loss, loss.draw(session.module, batches(1), rng_for(1)))
        assert session.skipped == 1 and not all(torch.equal(a, b) for a, b in zip(before, session.parameters, strict=True))
        session.guard.trusts = lambda _: False  # a spike: refused, but no overflow
        session.update(loss, loss.draw(session.module, batches(2), rng_for(2)))
        assert session.skipped == 2 and session.accelerator.scaler.get_scale() == 512.0
        session.guard.trusts = lambda _: True
        session.update(loss, loss.draw(session.module, batches(3), rng_for(3)))
        session.save()
        assert scaled(run).accelerator.scaler.get_scale() == 512.0


class Gone(BaseException):
    """The machine's end: nothing is closed."""


@pytest.mark.parametrize(("seconds", "newest"), [(0.0, 4), (1e6, None)])
def test_a_machine_that_vanishes_leaves_its_last_checkpoint_in_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, newest: int | None) -> None:
    """At most every MIRROR_SECONDS, after a checkpoint; `close`, which brings it up to date, is never reached."""
    monkeypatch.setattr("iris.runs.MIRROR_SECONDS", seconds)

    def until_the_end(step: int) -> Tensor:
        if step == 5:
            raise Gone
        return batches(step)

    run = Run.open(tmp_path / "run", mirror=tmp_path / "mirror")
    with pytest.raises(Gone):
        fit(network(), until_the_end, Noted(), TrainConfig(**{**TRAIN.__dict__, "eval_every": 2}), run, held_out)
    found = latest_checkpoint(tmp_path / "mirror" / "checkpoints")
    assert (found.metadata["step"] if found else None) == newest
    run.close()
