"""Laws of the generator: the depth axis, text and its absence, truncated gradients, and the sizes of the presets."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import build_generator, seeded
from torch import Tensor

from iris.config import preset
from iris.nn.generator import Generator, TextAdapter, parameter_count, relative_change
from iris.nn.layers import MergeTokens, SplitTokens
from iris.rng import rng_for
from iris.training.batches import LatentBatch
from iris.training.losses import RectifiedFlowLoss

SHAPE = (8, 8, 8)
ADAPTED = preset("nano", generator__text_adapter=True, generator__text_dim=48, text__dim=48)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and text states in float64."""
    return seeded(3, *SHAPE, dtype=torch.float64), torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64), seeded(3, 16, 32, seed=1, dtype=torch.float64)


@pytest.mark.parametrize("mixer", ["grfm", "attention", "fourier", "recurrence"])
def test_a_new_generator_says_zero_velocity(mixer: str, inputs) -> None:
    torch.manual_seed(0)
    generator = Generator(preset("nano", generator__mixer=mixer).generator).double()
    assert (generator(*inputs, 3) == 0).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_every_parameter_gets_a_gradient_once_no_weight_is_zero(stride: int, inputs) -> None:
    generator = build_generator(preset("nano", generator=replace(ADAPTED.generator, core_stride=stride), text=ADAPTED.text)).double()
    z, t, _ = inputs
    drop = torch.tensor([False, True, False])
    generator(z, t, seeded(3, 16, 48, dtype=torch.float64), 2, drop_text=drop).square().sum().backward()
    without = [name for name, parameter in generator.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum() > 0]
    # On an 8 x 8 grid of 4 x 4 windows some corners of the coda's bias table are out of reach, none of the tables is.
    assert without == []


# --- the depth axis ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_parameters_do_not_depend_on_the_number_of_iterations(generator64: Generator, inputs) -> None:
    before = {name: value.clone() for name, value in generator64.state_dict().items()}
    velocities = [generator64(*inputs, depth) for depth in (1, 2, 4, 16)]
    after = generator64.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(not torch.allclose(a, b) for a, b in pairwise(velocities))


def test_splitting_undoes_merging_when_their_weights_are_inverse() -> None:
    """Both put a square's tokens in the same order."""
    x, dim = seeded(2, 6, 4, 3, dtype=torch.float64), 12
    merge, split = MergeTokens(3, 2).double(), SplitTokens(3, 2).double()
    merge.linear = torch.nn.Linear(dim, dim).double()
    split.linear = torch.nn.Linear(dim, dim).double()
    with torch.no_grad():
        split.linear.weight.copy_(merge.linear.weight.inverse())
        split.linear.bias.copy_(-split.linear.weight @ merge.linear.bias)
        torch.testing.assert_close(split(merge(x)), x, atol=1e-10, rtol=0)
        square = torch.cat([x[:, 2, 0], x[:, 2, 1], x[:, 3, 0], x[:, 3, 1]], -1)
        torch.testing.assert_close(merge(x)[:, 1, 0], merge.linear(square))


def test_a_coarser_core_thinks_on_half_the_side_and_still_draws_on_the_whole_grid(inputs) -> None:
    generator = build_generator(preset("nano", generator__core_stride=2)).double()
    z, t, text = inputs
    context = generator.condition(text)
    embedded = generator.embed(z, t)
    *_, state = generator.iterate(embedded, context, 3, record=True)
    assert state.tokens.shape == (3, 4, 4, 32) == (3, *generator.config.core_shape(8, 8)) and state.maps[0].gate.shape == (3, 4, 4)
    velocity = generator.readout(state.tokens, embedded)
    assert torch.equal(velocity, generator(z, t, text, 3)) and velocity.shape == z.shape
    assert velocity[0, 0].unique().numel() == 64


@torch.no_grad()
def test_forward_is_iterate_then_readout(generator64: Generator, inputs) -> None:
    z, t, text = inputs
    context = generator64.condition(text)
    embedded = generator64.embed(z, t)
    states = list(generator64.iterate(embedded, context, 5))
    assert [state.iteration for state in states] == [1, 2, 3, 4, 5]
    for depth in (1, 3, 5):
        assert torch.equal(generator64(z, t, text, depth), generator64.readout(states[depth - 1].tokens, embedded))
    assert torch.equal(generator64(z, t, text), generator64(z, t, text, generator64.config.mean_iterations))


@torch.no_grad()
def test_without_an_iteration_embedding_the_core_can_go_on_from_any_state(inputs) -> None:
    generator = build_generator(preset("nano", generator__iteration_embedding="none")).double()
    z, t, text = inputs
    context = generator.condition(text)
    embedded = generator.embed(z, t)
    *_, whole = generator.iterate(embedded, context, 5)
    *_, first = generator.iterate(embedded, context, 2)
    *_, second = generator.iterate(embedded, context, 3, state=first.tokens)
    assert torch.equal(second.tokens, whole.tokens)


@torch.no_grad()
def test_the_state_keeps_its_scale_at_any_depth(generator64: Generator, inputs) -> None:
    z, t, text = inputs
    context = generator64.condition(text)
    for state in generator64.iterate(generator64.embed(z, t), context, 64):
        torch.testing.assert_close(state.tokens.square().mean(-1), torch.ones(3, 8, 8, dtype=torch.float64), atol=1e-3, rtol=0)


@torch.no_grad()
def test_recording_shows_every_grfm_layer_and_changes_nothing(generator64: Generator, inputs) -> None:
    z, t, text = inputs
    context = generator64.condition(text)
    embedded = generator64.embed(z, t)
    for plain, recorded in zip(generator64.iterate(embedded, context, 3), generator64.iterate(embedded, context, 3, record=True), strict=True):
        assert torch.equal(plain.tokens, recorded.tokens) and plain.maps is None
        assert len(recorded.maps) == 2 and all(maps.gate.shape == (3, 8, 8) for maps in recorded.maps)
    attention = build_generator(preset("nano", generator__mixer="attention")).double()
    context = attention.condition(text)
    assert next(attention.iterate(attention.embed(z, t), context, 1, record=True)).maps is None


def test_relative_change_is_that_of_the_token_that_moves_most() -> None:
    old = torch.tensor([[[[3.0, 4.0], [0.0, 1.0]]]])
    new = torch.tensor([[[[6.0, 8.0], [0.0, 1.0]]]])
    assert relative_change(new, old).tolist() == [0.5]
    assert relative_change(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)).tolist() == [0.0]


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(generator64: Generator, inputs, depth: int) -> None:
    with pytest.raises(ValueError, match=f"num_iterations is {depth}"):
        generator64(*inputs, depth)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(4, 4), (12, 8), (16, 16)])
def test_other_grids_that_windows_tile_work(generator: Generator, height: int, width: int) -> None:
    velocity = generator(seeded(1, 8, height, width), torch.ones(1), seeded(1, 16, 32), 2)
    assert velocity.shape == (1, 8, height, width) and velocity.isfinite().all()


# --- text --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("config", [preset("nano"), ADAPTED], ids=["plain", "adapter"])
def test_no_mask_means_that_all_tokens_count_and_padding_beyond_a_mask_has_no_effect(config, inputs) -> None:
    generator, (z, t, _) = build_generator(config).double(), inputs
    text = seeded(3, 16, config.text.dim, dtype=torch.float64)
    torch.testing.assert_close(generator(z, t, text, 2), generator(z, t, text, 2, torch.ones(3, 16, dtype=torch.bool)), atol=1e-12, rtol=0)
    mask = torch.arange(16)[None] < torch.tensor([5, 16, 9])[:, None]
    other = torch.where(mask[..., None], text, 100.0 * seeded(3, 16, config.text.dim, seed=9, dtype=torch.float64))
    torch.testing.assert_close(generator(z, t, other, 2, mask), generator(z, t, text, 2, mask), atol=1e-12, rtol=0)
    shorter = generator(z[:1], t[:1], text[:1, :5], 2)
    torch.testing.assert_close(generator(z, t, text, 2, mask)[:1], shorter, atol=1e-12, rtol=0)
    assert (generator(z, t, other, 2) - generator(z, t, text, 2)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("config", [preset("nano"), ADAPTED], ids=["plain", "adapter"])
def test_a_dropped_caption_is_exactly_the_null_context(config, inputs) -> None:
    generator, (z, t, _) = build_generator(config).double(), inputs
    text, mask = seeded(3, 16, config.text.dim, dtype=torch.float64), torch.arange(16)[None] < torch.tensor([1, 16, 9])[:, None]
    drop = torch.tensor([True, True, False])
    velocity = generator(z, t, text, 3, mask, drop)
    for length in (1, 7):
        null = generator.null_context(3, length)
        embedded = generator.embed(z, t)
        *_, state = generator.iterate(embedded, null, 3)
        torch.testing.assert_close(velocity[:2], generator.readout(state.tokens, embedded)[:2], atol=1e-12, rtol=0)
    torch.testing.assert_close(velocity[2:], generator(z, t, text, 3, mask)[2:], atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_text_adapter_reads_the_order_of_words(inputs) -> None:
    generator, (z, t, _) = build_generator(ADAPTED).double(), inputs
    text = seeded(3, 16, 48, dtype=torch.float64)
    assert (generator(z, t, text, 2) - generator(z, t, text.flip(1), 2)).abs().max() > 1e-3


def ordered_adapter(part: slice | None = None) -> TextAdapter:
    """An adapter whose heads read in order; only the heads whose columns are in `part` reach its output."""
    torch.manual_seed(0)
    adapter = TextAdapter(48, 9, ordered=True).double()
    if part is not None:
        kept = adapter.out.weight[:, part].clone()
        adapter.out.weight.data.zero_()
        adapter.out.weight.data[:, part] = kept
    return adapter


@torch.no_grad()
@pytest.mark.parametrize("seen", [None, torch.ones(2, 9, dtype=torch.bool)], ids=["no mask", "mask"])
@pytest.mark.parametrize(("part", "unread", "read"), [(slice(0, 24), slice(5, 9), 3), (slice(24, 48), slice(0, 4), 5)], ids=["before", "after"])
def test_half_of_the_heads_read_what_stands_before_a_word_and_half_what_follows(part: slice, unread: slice, read: int, seen: Tensor | None) -> None:
    adapter, text, word = ordered_adapter(part), seeded(2, 9, 48, dtype=torch.float64), 4

    def change(where: slice | int) -> Tensor:
        other = text.clone()
        other[:, where] = seeded(2, 9, 48, seed=1, dtype=torch.float64)[:, where]
        return (adapter(other, seen) - adapter(text, seen))[:, word].abs().max()

    assert change(unread) == 0 and change(read) > 1e-3


@torch.no_grad()
def test_an_ordered_adapter_does_not_read_padding_and_is_finite_on_it() -> None:
    adapter, text = ordered_adapter(), seeded(2, 9, 48, dtype=torch.float64)
    mask = torch.arange(9)[None] < torch.tensor([[4], [9]])
    other = torch.where(mask[..., None], text, seeded(2, 9, 48, seed=1, dtype=torch.float64))
    once, again = adapter(text, mask), adapter(other, mask)
    assert torch.equal(once[mask], again[mask]) and once.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 17, 32), (3, 16, 31), (3, 32)])
def test_text_of_another_shape_is_refused_with_a_sentence(generator: Generator, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="this generator reads"):
        generator(seeded(3, *SHAPE), torch.ones(3), torch.zeros(shape))


# --- truncated backpropagation -----------------------------------------------------------------------------------------


def gradients(generator: Generator, inputs, depth: int, grad_iterations: int | None) -> dict[str, Tensor]:
    generator.zero_grad()
    generator(*inputs, depth, grad_iterations=grad_iterations).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in generator.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("grad_iterations", [4, 7])
def test_truncation_beyond_the_depth_is_the_full_gradient(generator64: Generator, inputs, grad_iterations: int) -> None:
    full, truncated = (gradients(generator64, inputs, 4, k) for k in (None, grad_iterations))
    assert full.keys() == truncated.keys() and all(torch.equal(full[name], truncated[name]) for name in full)


def test_a_truncated_gradient_is_that_of_the_last_iterations_from_a_fixed_state(generator64: Generator, inputs) -> None:
    z, t, text = inputs
    truncated = gradients(generator64, inputs, 5, 2)
    context = generator64.condition(text)
    embedded = generator64.embed(z, t)
    with torch.no_grad():
        *_, fixed = generator64.iterate(embedded, context, 3)
    generator64.zero_grad()
    tokens = fixed.tokens
    for iteration in (4, 5):
        tokens = generator64.core(tokens, embedded.injected, embedded.condition, context, iteration).tokens
    generator64.readout(tokens, embedded).square().sum().backward()
    for name, parameter in generator64.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(truncated[name], parameter.grad, atol=1e-10, rtol=1e-8)
    assert any(not torch.allclose(value, gradients(generator64, inputs, 5, None)[name]) for name, value in truncated.items())


def saved_bytes(generator: Generator, inputs, depth: int, grad_iterations: int) -> int:
    """Bytes that a forward pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = generator(*inputs, depth, grad_iterations=grad_iterations)
    assert output.requires_grad
    return sum(kept.values())


def test_iterations_without_gradient_cost_no_graph(generator64: Generator, inputs) -> None:
    shallow, deep, full = (saved_bytes(generator64, inputs, depth, k) for depth, k in ((2, 2), (12, 2), (12, 12)))
    assert deep <= 1.02 * shallow and full > 3 * shallow


def test_iterating_leaves_the_callers_grad_mode_alone(generator64: Generator, inputs) -> None:
    z, t, text = inputs
    context = generator64.condition(text)
    for state in generator64.iterate(generator64.embed(z, t), context, 4, differentiated=(3, 4)):
        assert torch.is_grad_enabled() and state.tokens.requires_grad == (state.iteration > 2)


# --- presets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "millions"), [("tiny", 19), ("small", 47), ("base", 135)])
def test_presets_have_the_specifications_sizes(name: str, millions: int) -> None:
    with torch.device("meta"):
        generator = Generator(preset(name).generator)
    total, core = parameter_count(generator), parameter_count(generator.core)
    assert abs(total / (millions * 1e6) - 1) < 0.03
    assert abs(core / total - 0.66) <= 0.03
    assert abs((total - core + 16 * core) / total - 10.9) <= 0.5  # 16 iterations unrolled


def take_one_training_step(generator: Generator) -> tuple[float, float]:
    """The loss on one latent before and after one AdamW step on it."""
    config = generator.config
    batch = LatentBatch(seeded(1, config.latent_channels, 8, 8), seeded(1, config.text_tokens, config.text_dim), torch.ones(1, config.text_tokens, dtype=torch.bool))
    loss = RectifiedFlowLoss(random_depth=False, caption_dropout=0.0)
    draw = loss.draw(generator, batch, rng_for(0))
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3, fused=True)
    before = loss(generator, draw).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        return float(before), float(loss(generator, draw).loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "base"])
def test_small_and_base_take_a_training_step(name: str) -> None:
    config = preset(name, autoencoder__image_size=128, generator__latent_size=8, generator__mean_iterations=2)
    torch.manual_seed(0)
    before, after = take_one_training_step(Generator(config.generator))
    assert after < before
