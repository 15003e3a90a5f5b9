"""Laws of the Manhattan decay: the separable filter is the dense one, its normaliser has a closed form."""

from __future__ import annotations

import pytest
import torch
from conftest import seeded
from torch import Tensor

from iris.nn.spatial import ManhattanDecay


def spatial(heads: int = 4) -> ManhattanDecay:
    made = ManhattanDecay(heads).double()
    with torch.no_grad():
        made.logit += seeded(heads, dtype=torch.float64)
    return made


def dense_filter(gamma: Tensor, height: int, width: int) -> Tensor:
    """[N, N]: gamma^(|dr| + |dc|), each row divided by its sum."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    weights = gamma ** (places[:, None] - places[None]).abs().sum(-1)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 7), (8, 2), (1, 5)])
def test_the_separable_filter_is_the_dense_one(height: int, width: int) -> None:
    made, x = spatial(), seeded(2, height, width, 12, dtype=torch.float64)
    parts = [dense_filter(gamma, height, width) @ x.flatten(1, 2)[..., 3 * head: 3 * head + 3]
             for head, gamma in enumerate(made.logit.detach().sigmoid())]
    expected = torch.cat(parts, dim=-1).view_as(x)
    torch.testing.assert_close(made(x).detach(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_the_normaliser_has_its_closed_form(length: int) -> None:
    made = spatial()
    g, r = made.logit.detach().sigmoid()[:, None], torch.arange(length, dtype=torch.float64)
    normaliser = (1 + g - g ** (r + 1) - g ** (length - r)) / (1 - g)
    diagonal = made.axis_filter(length).detach().diagonal(dim1=1, dim2=2)  # gamma^0 over the sum
    torch.testing.assert_close(1 / diagonal, normaliser)


def test_a_constant_stays_a_constant() -> None:
    torch.testing.assert_close(spatial()(torch.ones(1, 5, 6, 8, dtype=torch.float64)), torch.ones(1, 5, 6, 8, dtype=torch.float64))


def test_decays_start_at_those_of_the_retentive_network() -> None:
    expected = torch.tensor([0.75, 0.851, 0.912, 0.947, 0.969, 0.981, 0.989, 0.993])
    torch.testing.assert_close(ManhattanDecay(8).decay().detach(), expected, atol=6e-4, rtol=0)


def test_the_radius_is_where_the_weight_has_fallen_to_1_over_e() -> None:
    made = ManhattanDecay(8)
    torch.testing.assert_close(made.decay().detach() ** made.radii(), torch.full((8,), torch.e**-1))


def test_the_decay_can_be_learned() -> None:
    made, x = spatial(), seeded(1, 3, 4, 8, dtype=torch.float64)

    def with_logit(logit: Tensor) -> Tensor:
        return torch.func.functional_call(made, {"logit": logit}, (x,))

    assert torch.autograd.gradcheck(with_logit, (made.logit.detach().clone().requires_grad_(),))


def test_a_decay_near_one_or_zero_stays_finite() -> None:
    made = ManhattanDecay(2)
    with torch.no_grad():
        made.logit.copy_(torch.tensor([40.0, -40.0]))
    x = seeded(1, 8, 8, 4)
    blurred, kept = made(x).chunk(2, dim=-1)
    torch.testing.assert_close(blurred, x[..., :2].mean((1, 2), keepdim=True).expand_as(blurred), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(kept, x[..., 2:])
