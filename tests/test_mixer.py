"""Laws of GRFM: the fusion is the written formula, shares mean something, and the attention mixer is its equal in size."""

from __future__ import annotations

import pytest
import torch
from conftest import randomise, seeded
from torch import nn

from iris.config import GeneratorConfig, preset
from iris.nn.generator import parameter_count
from iris.nn.layers import normalize
from iris.nn.mixer import GRFM, AttentionMixer, SinglePath, build_mixer

CONFIG = preset("nano").generator
HEADS = CONFIG.num_heads


@pytest.fixture
def grfm() -> GRFM:
    torch.manual_seed(0)
    return randomise(GRFM(CONFIG).double())


@pytest.fixture
def x() -> torch.Tensor:
    return normalize(seeded(2, 6, 8, CONFIG.dim, dtype=torch.float64))


def set_gate(grfm: GRFM, logit: float) -> None:
    """Fix the gate of every head, whatever the token."""
    rows = slice(CONFIG.dim, CONFIG.dim + HEADS)
    with torch.no_grad():
        grfm.input.weight[rows] = 0
        grfm.input.bias[rows] = logit


@torch.no_grad()
@pytest.mark.parametrize(("logit", "name"), [(1000.0, "fourier"), (-1000.0, "recurrent")])
def test_gate_one_and_alpha_zero_is_the_fourier_path_alone_and_gate_zero_the_recurrent_one(grfm: GRFM, x, logit: float, name: str) -> None:
    set_gate(grfm, logit)
    grfm.alpha.zero_()
    inner = (x @ grfm.input.weight.T + grfm.input.bias)[..., : CONFIG.dim]
    alone = grfm.fourier(x)[0] if name == "fourier" else grfm.recurrence(inner)
    torch.testing.assert_close(grfm(x)[0], grfm.out(normalize(alone)), atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_fusion_is_the_written_formula(grfm: GRFM, x) -> None:
    inner, gate, spatial_gate = (x @ grfm.input.weight.T + grfm.input.bias).split([CONFIG.dim, HEADS, HEADS], dim=-1)
    gate, spatial_gate, alpha = (part.repeat_interleave(CONFIG.head_dim, dim=-1)
                                 for part in (gate.sigmoid(), spatial_gate.sigmoid(), grfm.alpha[:, 0]))
    fourier, recurrent, spatial = normalize(grfm.fourier(x)[0]), normalize(grfm.recurrence(inner)), normalize(grfm.spatial(x))
    expected = grfm.out(gate * fourier + (1 - gate) * recurrent + alpha * spatial_gate * spatial)
    torch.testing.assert_close(grfm(x)[0], expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_paths_meet_at_equal_scale(grfm: GRFM, x) -> None:
    grfm.fourier.weight *= 100
    for term in grfm.paths(x)[2]:
        torch.testing.assert_close(term.flatten(3).square().mean(-1), torch.ones_like(x[..., 0]), atol=1e-3, rtol=0)


@torch.no_grad()
def test_maps_are_shares_of_a_whole_and_recording_changes_nothing(grfm: GRFM, x) -> None:
    output, maps = grfm(x, record=True)
    plain, nothing = grfm(x)
    assert torch.equal(output, plain) and nothing is None
    torch.testing.assert_close(maps.shares.sum(-1), torch.ones_like(maps.gate))
    assert maps.shares.min() >= 0 and 0 < maps.gate.min() and maps.gate.max() < 1
    assert maps.gate.shape == (2, 6, 8) and maps.shares.shape == (2, 6, 8, 3) and 0 <= maps.zeroed <= 1


@torch.no_grad()
def test_shares_follow_the_gate(grfm: GRFM, x) -> None:
    grfm.alpha.zero_()
    set_gate(grfm, 1000.0)
    shares = grfm(x, record=True)[1].shares
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand_as(shares), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mixer", ["grfm", "attention", "fourier", "recurrence"])
def test_every_parameter_gets_a_gradient(mixer: str) -> None:
    torch.manual_seed(0)
    made = randomise(build_mixer(GeneratorConfig(**{**CONFIG.__dict__, "mixer": mixer})))
    x = seeded(2, 8, 8, CONFIG.dim).requires_grad_()
    made(x)[0].square().sum().backward()
    without = [name for name, parameter in made.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum() > 0]
    assert without == [] and x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["tiny", "small", "base", "micro"])
def test_the_attention_mixer_has_the_parameters_of_grfm_within_two_percent(name: str) -> None:
    config = preset(name).generator
    with torch.device("meta"):
        grfm, attention = parameter_count(GRFM(config)), parameter_count(AttentionMixer(config))
    assert abs(attention / grfm - 1) < 0.02


def test_the_config_picks_the_mixer() -> None:
    kinds: dict[str, type[nn.Module]] = {"grfm": GRFM, "attention": AttentionMixer, "fourier": SinglePath, "recurrence": SinglePath}
    for mixer, kind in kinds.items():
        made = build_mixer(GeneratorConfig(**{**CONFIG.__dict__, "mixer": mixer}))
        assert type(made) is kind and made(seeded(1, 8, 8, CONFIG.dim))[0].shape == (1, 8, 8, CONFIG.dim)
