"""Laws of the optimizer: which weights are Muon's, what its step is, and that the two are one to whoever saves them."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import build_generator, seeded
from torch import nn

from iris.config import preset
from iris.nn.autoencoder import WaveletVAE
from iris.training import optimizer as optimizer_module
from iris.training.optimizer import MATRIX_RATE, MuonAdamW, StackedMuon, build_optimizer


def test_every_weight_has_one_place_and_vectors_do_not_decay() -> None:
    generator = build_generator(preset("nano"))
    optimizer = build_optimizer(generator, 1e-3, 0.01)
    places = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(places) == sorted(id(parameter) for parameter in generator.parameters())
    matrices, tensors, vectors = optimizer.param_groups
    assert {p.ndim for p in matrices["params"]} == {2} and min(p.ndim for p in tensors["params"]) > 1 and vectors["weight_decay"] == 0
    names = {id(p): name for name, p in generator.named_parameters()}
    assert "output.weight" not in {names[id(p)] for p in matrices["params"]}
    # A column of numbers and a bias shaped for a block-diagonal product have no directions to make alike, and zero is no place to go to.
    kept = {names[id(p)].rpartition(".")[2] for p in vectors["params"]}
    assert {"bias", "gate_bias", "alpha"} <= kept and not {name for name in kept if name.endswith("weight")} - {"weight"}
    assert all(p.ndim == 1 or "bias" in names[id(p)] or min(p.shape) == 1 for p in vectors["params"])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_an_autoencoder_of_convolutions_is_adamws_alone(kind: str) -> None:
    assert type(build_optimizer(WaveletVAE(preset("nano").autoencoder), 1e-3, 0.01, kind)) is torch.optim.AdamW
    assert type(build_optimizer(build_generator(preset("nano")), 1e-3, 0.01, "adamw")) is torch.optim.AdamW


def test_a_matrix_moves_alike_in_all_its_directions() -> None:
    """Muon's first step is a multiple of a nearly orthogonal matrix, though one singular value of the gradient is a thousand times the least."""
    layer = nn.Linear(24, 24, bias=False)
    before = layer.weight.detach().clone()
    u, _, v = torch.linalg.svd(seeded(24, 24))
    optimizer = build_optimizer(layer, 1.0, 0.0)
    layer.weight.grad = u @ torch.diag(torch.logspace(0, -3, 24)) @ v
    optimizer.step()
    moved = torch.linalg.svdvals(before - layer.weight.detach())
    assert moved[:12].min() > 0.55 * moved.max()  # five Newton-Schulz steps bring singular values to 0.7 .. 1.2, the smallest last
    assert float(moved.max()) == pytest.approx(MATRIX_RATE * 0.2 * 24**0.5, rel=0.3)  # AdamW's root mean square is 0.2


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-12, 1e6])
def test_the_size_of_a_gradient_does_not_change_its_direction_in_fp16(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipped gradients are small: cast to fp16 as they are, most of their entries would be zero, and a step is always of full size."""
    monkeypatch.setattr(optimizer_module, "_fastest_of", lambda device: torch.float16)
    stack = seeded(2, 24, 40)
    direction = optimizer_module.orthogonalize(size * stack).double()
    exact = torch.stack([u @ v for u, _, v in (torch.linalg.svd(matrix.double(), full_matrices=False) for matrix in stack)])
    assert torch.cosine_similarity(direction.flatten(1), exact.flatten(1)).min() > 0.97
    assert torch.equal(optimizer_module.orthogonalize(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6, dtype=torch.float16))


@pytest.mark.parametrize("units", [True, False])
def test_a_cpu_without_units_for_bf16_is_not_asked_for_it(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would emulate them, at twenty times the cost of fp32."""
    monkeypatch.setattr(optimizer_module, "cpu_computes_in_bf16", lambda: units)
    direction = optimizer_module.orthogonalize(seeded(2, 24, 40))
    assert direction.dtype == (torch.bfloat16 if units else torch.float32)
    assert 0.6 < torch.linalg.svdvals(direction.float()).min() and torch.linalg.svdvals(direction.float()).max() < 1.3


def test_saved_in_the_middle_it_goes_on_bitwise() -> None:
    def run(steps: range, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in steps:
            model(seeded(4, 6, seed=step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    other = copy.deepcopy(model)
    optimizer, second = (build_optimizer(m, 1e-2, 0.01) for m in (model, other))
    assert isinstance(optimizer, MuonAdamW)
    run(range(6), model, optimizer)
    run(range(3), other, second)
    stored = copy.deepcopy(second.state_dict())
    third = build_optimizer(other, 1e-2, 0.01)
    third.load_state_dict(stored)
    run(range(3, 6), other, third)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_matrices_stacked_by_shape_move_as_torchs_muon_moves_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 30), nn.Linear(30, 12), nn.Linear(12, 12))
    other = copy.deepcopy(model)
    ours, theirs = ([p for p in m.parameters() if p.ndim == 2] for m in (model, other))
    stacked = StackedMuon(ours, lr=0.02, weight_decay=0.1, momentum=0.95)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):  # the second has no gradient at the third step
            a.grad = None if (step, index) == (2, 1) else seeded(*a.shape, seed=10 * step + index)
            b.grad = None if a.grad is None else a.grad.clone()
        stacked.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)  # a few bf16 roundings of a step of 0.1
