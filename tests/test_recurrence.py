"""Laws of the recurrence: the fast scan is the slow one, gradients too; directions are what they say; the first token is whole."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import randomise, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iris.nn.recurrence import MEMORY, GatedLinearRecurrence, _traced_scan, linear_scan

DIM = 32
RIGHT, LEFT, DOWN, UP = range(4)


def slow_scan(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """h_t = a_t h_{t-1} + b_t, one token at a time in float64."""
    state, states = torch.zeros_like(b.select(dim, 0), dtype=torch.float64), []
    for decay, inflow in zip(a.double().unbind(dim), b.double().unbind(dim), strict=True):
        state = decay * state + inflow
        states.append(state)
    return torch.stack(states, dim)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    return seeded(*shape, seed=seed, dtype=dtype).sigmoid(), seeded(*shape, seed=seed + 1, dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_the_scan_is_the_loop_over_any_axis_of_any_shape(shape: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, len(shape) - 1))
    a, b = inputs(*shape)
    torch.testing.assert_close(linear_scan(a, b, dim), slow_scan(a, b, dim), atol=1e-12, rtol=0)


def test_single_precision_stays_close_over_a_long_axis() -> None:
    a, b = inputs(4, 1024, dtype=torch.float32)
    a = 1 - 0.01 * a  # long memory, where errors would gather
    torch.testing.assert_close(linear_scan(a, b, 1).double(), slow_scan(a, b, 1), atol=1e-4, rtol=1e-5)


def test_two_halves_with_the_state_carried_are_the_whole() -> None:
    a, b = inputs(3, 10, 5)
    first = linear_scan(a[:, :4], b[:, :4], 1)
    carried = b[:, 4:].clone()
    carried[:, 0] += a[:, 4] * first[:, -1]
    torch.testing.assert_close(torch.cat([first, linear_scan(a[:, 4:], carried, 1)], 1), linear_scan(a, b, 1), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("shape", "dim"), [((2, 5, 3), 1), ((4, 2), 0), ((2, 1, 3), 1), ((2, 3, 4), 2)])
def test_gradients_are_those_of_the_recurrence(shape: tuple[int, ...], dim: int) -> None:
    a, b = (part.requires_grad_() for part in inputs(*shape))
    assert torch.autograd.gradcheck(lambda decay, inflow: linear_scan(decay, inflow, dim), (a, b))


@pytest.mark.parametrize("laid_out", ["contiguous", "a part of something", "transposed"])
@pytest.mark.parametrize(("dim", "ways"), [(2, 0), (1, 0), (2, 1), (3, 1)])
def test_two_ways_are_a_scan_and_the_scan_of_the_flipped_axis(dim: int, ways: int, laid_out: str) -> None:
    shape = [2 if axis == ways else length for axis, length in enumerate((3, 4, 5, 3))]
    a, b = inputs(*shape)
    if laid_out == "a part of something":
        a, b = (torch.cat([part, part], -1)[..., shape[-1]:] for part in (a, b))
    if laid_out == "transposed":
        a, b = (part.transpose(0, 3).contiguous().transpose(0, 3) for part in (a, b))
    a, b = a.requires_grad_(), b.requires_grad_()
    (there, back), (b_there, b_back), inner = a.unbind(ways), b.unbind(ways), dim - 1
    expected = torch.stack([slow_scan(there, b_there, inner), slow_scan(back.flip(inner), b_back.flip(inner), inner).flip(inner)], ways)
    torch.testing.assert_close(linear_scan(a, b, dim, ways), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(_traced_scan(a, b, dim, ways), expected, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda decay, inflow: linear_scan(decay, inflow, dim, ways), (a, b))


def test_states_take_the_memory_of_the_inflow_only_where_told_to_and_no_gradient_is_asked_for() -> None:
    a, b = inputs(2, 4, 3)
    expected, before = linear_scan(a, b, 1, 0), b.clone()
    assert torch.equal(b, before)
    states = linear_scan(a, b, 1, 0, overwrite=True)
    assert torch.equal(states, expected) and states.data_ptr() == b.data_ptr()
    b = before.clone().requires_grad_()
    assert torch.equal(linear_scan(a, b, 1, 0, overwrite=True), expected) and torch.equal(b, before)


@pytest.mark.parametrize(("dim", "ways"), [(0, 1), (1, 1), (1, -2)])
def test_the_axis_of_the_ways_comes_first(dim: int, ways: int) -> None:
    with pytest.raises(ValueError, match="comes before"):
        linear_scan(*inputs(2, 2), dim, ways)


def test_the_result_is_the_same_with_and_without_a_graph() -> None:
    a, b = inputs(2, 6, 3)
    with torch.no_grad():
        plain = linear_scan(a.requires_grad_(), b.requires_grad_(), 1)
    assert torch.equal(linear_scan(a, b, 1).detach(), plain)


# --- the gated recurrence on a grid ------------------------------------------------------------------------------------


@pytest.fixture
def recurrence() -> GatedLinearRecurrence:
    torch.manual_seed(0)
    return randomise(GatedLinearRecurrence(DIM).double(), scale=0.2)


def slow_recurrence(layer: GatedLinearRecurrence, x: Tensor) -> Tensor:
    """Griffin's equations 1-4, token by token along every row and column of x [h, w, d]."""
    height, width, dim = x.shape
    size = dim // layer.blocks
    softplus = torch.log1p(layer.decay.exp())

    def gates(token: Tensor) -> tuple[Tensor, Tensor]:
        r, i = torch.empty(dim, dtype=x.dtype), torch.empty(dim, dtype=x.dtype)
        for block in range(layer.blocks):
            channels = slice(block * size, (block + 1) * size)
            both = token[channels] @ layer.gate_weight[block] + layer.gate_bias[block, 0]
            r[channels], i[channels] = torch.sigmoid(both[:size]), torch.sigmoid(both[size:])
        return r, i

    result = torch.empty_like(x)
    rows = [[(row, column) for column in range(width)] for row in range(height)]
    columns = [[(row, column) for row in range(height)] for column in range(width)]
    lines = {RIGHT: rows, LEFT: [line[::-1] for line in rows], DOWN: columns, UP: [line[::-1] for line in columns]}
    for direction, scans in lines.items():
        quarter = slice(direction * dim // 4, (direction + 1) * dim // 4)
        for line in scans:
            state = None
            for place in line:
                r, i = gates(x[place])
                a = torch.exp(-8 * r * softplus)
                inflow = i * x[place]
                state = inflow if state is None else a * state + torch.sqrt(1 - a**2) * inflow
                result[place][quarter] = state[quarter]
    return result


@torch.no_grad()
def test_the_layer_is_griffins_recurrence_along_rows_and_columns_both_ways(recurrence: GatedLinearRecurrence) -> None:
    x = seeded(2, 3, 5, DIM, dtype=torch.float64)
    expected = torch.stack([slow_recurrence(recurrence, picture) for picture in x])
    torch.testing.assert_close(recurrence(x), expected, atol=1e-6, rtol=0)  # 1e-8 under the root keeps its gradient finite


@torch.no_grad()
def test_an_impulse_spreads_only_along_its_line_in_the_right_direction(recurrence: GatedLinearRecurrence) -> None:
    row, column = 2, 3
    x = torch.zeros(1, 5, 7, DIM, dtype=torch.float64)
    x[0, row, column] = 1.0
    touched = (recurrence(x)[0] != 0).unflatten(-1, (4, -1)).all(-1)  # [h, w, direction]
    expected = torch.zeros(5, 7, 4, dtype=torch.bool)
    expected[row, column:, RIGHT] = True
    expected[row, : column + 1, LEFT] = True
    expected[row:, column, DOWN] = True
    expected[: row + 1, column, UP] = True
    assert torch.equal(touched, expected)


@torch.no_grad()
def test_the_first_token_of_every_scan_enters_unscaled(recurrence: GatedLinearRecurrence) -> None:
    x = seeded(2, 4, 6, DIM, dtype=torch.float64)
    inward = recurrence.gate_weight.chunk(2, dim=-1)[1]
    logits = torch.einsum("...bc,bcd->...bd", x.unflatten(-1, (recurrence.blocks, -1)), inward) + recurrence.gate_bias.chunk(2, dim=-1)[1][:, 0]
    inflow = logits.flatten(-2).sigmoid() * x
    quarters = [part.chunk(4, dim=-1) for part in (recurrence(x), inflow)]
    for direction, edge in {RIGHT: (slice(None), 0), LEFT: (slice(None), -1), DOWN: (0, slice(None)), UP: (-1, slice(None))}.items():
        output, whole = (part[direction][:, edge[0], edge[1]] for part in quarters)
        torch.testing.assert_close(output, whole, atol=1e-15, rtol=0)


def test_memory_starts_log_uniform_between_a_token_and_a_side() -> None:
    layer = GatedLinearRecurrence(512)
    at_half = torch.exp(-8 * 0.5 * torch.nn.functional.softplus(layer.decay.detach()))
    torch.testing.assert_close(layer.memory_lengths(), -1 / at_half.log(), rtol=1e-3, atol=0)
    low, high = (math.log(tokens) for tokens in MEMORY)
    uniform = (layer.memory_lengths().log() - low) / (high - low)
    assert uniform.min() > -1e-3 and uniform.max() < 1 + 1e-3
    assert abs(float(uniform.mean()) - 0.5) < 0.05 and abs(float(uniform.std()) - 1 / math.sqrt(12)) < 0.04


def test_white_noise_keeps_its_variance_along_a_scan() -> None:
    """With an open input gate sqrt(1 - a^2) makes the state's variance that of the input, at every distance from the edge."""
    torch.manual_seed(0)
    layer = GatedLinearRecurrence(16)
    with torch.no_grad():
        layer.gate_weight.zero_()
        layer.gate_bias[:, :, 1:] = 30.0  # one channel a block: [recurrence gate, input gate]
    states = layer(seeded(4000, 1, 12, 16))[..., : 16 // 4]
    assert (states.detach().var(0) - 1).abs().max() < 0.15


@torch.no_grad()
def test_half_precision_input_is_computed_in_fp32(recurrence: GatedLinearRecurrence) -> None:
    layer, x = recurrence.float(), seeded(1, 4, 4, DIM).bfloat16()
    output = layer(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, layer(x.float()).bfloat16())


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 3)])
def test_gradients_of_gates_and_weights_are_those_of_the_formula(height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = randomise(GatedLinearRecurrence(16).double(), scale=0.3)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = seeded(1, height, width, 16, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda grid, *weights: torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (grid,)), (x, *values))


def test_every_parameter_gets_a_gradient(recurrence: GatedLinearRecurrence) -> None:
    x = seeded(1, 3, 4, DIM, dtype=torch.float64).requires_grad_()
    recurrence(x).square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 and tensor.grad.isfinite().all() for tensor in (x, *recurrence.parameters()))
