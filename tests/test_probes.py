"""Laws of the probes: what they report is what sampling does, read from the same iterations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iris.config import preset
from iris.data import Scenes
from iris.evaluation import probes
from iris.model import IRISModel
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.text import load_text_encoder

STEPS, TURNS = 3, 5


def _pipeline(**overrides) -> IRISPipeline:
    """A nano pipeline whose zero-initialised weights are drawn, so that every part has an effect."""
    config = preset("nano", **overrides)
    torch.manual_seed(0)
    model = IRISModel(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return IRISPipeline(config, model.autoencoder, model.generator, load_text_encoder(config.text), SamplingDefaults(STEPS, TURNS))


@pytest.fixture(scope="module")
def pipe() -> IRISPipeline:
    return _pipeline()


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"negative_prompt": "blue"}, {"negative_prompt": " "}, {"sampler": "heun"}, {"sampler": "consistency"}])
def test_tracing_changes_nothing_in_the_picture(pipe: IRISPipeline, options: dict):
    found = probes.trace(pipe, " a red circle ", seed=3, **options)
    assert np.array_equal(found.image, np.asarray(pipe("a red circle", seed=3, **options).images[0]))


def test_a_trace_holds_every_step_iteration_and_layer(pipe: IRISPipeline):
    found = probes.trace(pipe, "a red circle", seed=1)
    layers, grid, side = len(pipe.generator.core.layers), pipe.config.generator.latent_size, pipe.image_size
    assert (found.num_steps, found.num_iterations) == (STEPS, TURNS)
    assert found.gates.shape == (STEPS, TURNS, layers, grid, grid) and found.previews.shape == (STEPS, TURNS, side, side, 3)
    assert 0 < found.gates.min() and found.gates.max() < 1 and 0 <= found.zeroed.min() <= found.zeroed.max() <= 1
    assert np.allclose(found.shares.sum(-1), 1, atol=1e-5)
    assert np.allclose(found.timesteps, [1, 2 / 3, 1 / 3])


def test_the_last_preview_is_the_picture_and_the_first_change_is_whole(pipe: IRISPipeline):
    # The last Euler step ends at t = 0, where the latents are the estimate of the data; the state starts from zeros.
    found = probes.trace(pipe, "a red circle", seed=1)
    assert np.abs(found.previews[-1, -1].astype(int) - found.image).max() <= 1
    assert np.allclose(found.changes[:, 0], 1, atol=1e-5)


def test_maps_and_changes_are_those_of_the_iterations(pipe: IRISPipeline):
    """The first step again, written out by hand."""
    from iris.sampling import initial_noise

    found = probes.trace(pipe, "a red circle", seed=2, guidance_scale=1.0)
    context, _ = pipe.contexts(["a red circle"])
    noise = initial_noise([2], (8, 8, 8))
    with torch.inference_mode():
        states = list(pipe.generator.iterate(pipe.generator.embed(noise, torch.ones(1)), context, TURNS, record=True))
    for turn in range(1, TURNS):
        new, old = states[turn].tokens[0].double(), states[turn - 1].tokens[0].double()
        assert np.allclose(found.changes[0, turn], ((new - old).norm(dim=-1) / new.norm(dim=-1)).numpy(), atol=1e-5)
        assert np.allclose(found.gates[0, turn, 1], states[turn].maps[1].gate[0].numpy(), atol=1e-6)


def test_a_trace_with_guidance_shows_the_pass_that_reads_the_prompt(pipe: IRISPipeline):
    plain, guided = (probes.trace(pipe, "a red circle", seed=2, guidance_scale=scale) for scale in (1.0, 5.0))
    assert np.allclose(plain.gates[0], guided.gates[0], atol=1e-5)      # the first step starts from the same noise
    assert not np.allclose(plain.gates[1], guided.gates[1], atol=1e-5)  # then guidance has moved the latents


def test_an_attention_core_is_traced_without_maps():
    found = probes.trace(_pipeline(generator__mixer="attention"), "a red circle")
    assert found.gates.shape[2] == 0 and found.shares.shape[-1] == 3 and found.changes.shape == (STEPS, TURNS, 8, 8)


@pytest.mark.parametrize("depth", ["auto", 0, 65])
def test_a_trace_needs_a_fixed_depth(pipe: IRISPipeline, depth):
    with pytest.raises(probes.ProbeError, match="fixed number"):
        probes.trace(pipe, "a red circle", num_iterations=depth)


def test_convergence_agrees_with_the_trace_and_with_automatic_depth(pipe: IRISPipeline):
    found = probes.convergence(pipe, ["a red circle", "a blue star"], [4, 5], num_steps=2, num_iterations=16)
    alone = probes.trace(pipe, "a blue star", seed=5, num_steps=2, num_iterations=16, guidance_scale=1.0)
    assert found.changes.shape == (2, 2, 16)
    assert np.allclose(found.changes[1], alone.changes.max((2, 3)), atol=1e-4)
    drawn = pipe(["a red circle", "a blue star"], seed=[4, 5], num_steps=2, num_iterations="auto", guidance_scale=1.0)
    still = np.append(found.changes[:, 0] < pipe.defaults.exit_threshold, np.ones((2, 1), bool), axis=1)
    assert np.array_equal(np.clip(still.argmax(1) + 1, 2, 16), np.array(drawn.iterations)[:, 0])


def test_overthinking_measures_the_loss_that_training_minimises(pipe: IRISPipeline):
    data = Scenes(32, 5, split="held_out")
    found = probes.overthinking(pipe, data, limit=4, max_iterations=6, timesteps=(0.3, 0.9), batch_size=3)
    assert found.errors.shape == found.changes.shape == (4, 2, 6) and found.trained_depth == pipe.config.generator.mean_iterations
    # Batches do not matter: each picture has noise of its own.
    again = probes.overthinking(pipe, data, limit=4, max_iterations=6, timesteps=(0.3, 0.9), batch_size=2)
    assert np.allclose(found.errors, again.errors, rtol=1e-4)
    # A velocity of zero has the error E |noise - data|^2.
    silent = _pipeline()
    for layer in (silent.generator.output,):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    errors = probes.overthinking(silent, data, limit=4, max_iterations=2, timesteps=(0.3,)).errors
    assert np.allclose(errors[..., 0], errors[..., 1]) and errors.min() > 0.5


def test_path_independence_is_zero_where_nothing_depends_on_the_state(pipe: IRISPipeline):
    found = probes.path_independence(pipe, "a red circle", num_iterations=6, starts=3, timesteps=(1.0, 0.5))
    assert found.state_distance.shape == found.velocity_distance.shape == (2, 3, 6)
    assert (found.state_distance > 0).all()
    forgetful = _pipeline()
    with torch.no_grad():   # the adapter reads [state, input]; blind it to the state
        forgetful.generator.core.adapter.weight[:, : forgetful.config.generator.dim] = 0
    assert probes.path_independence(forgetful, "a red circle", num_iterations=3, starts=2).state_distance.max() < 1e-5


def test_learned_ranges_are_distances_to_one_over_e(pipe: IRISPipeline):
    found = probes.learned_ranges(pipe.generator)
    decay = pipe.generator.core.layers[0].mixer.spatial.decay().detach().numpy()
    assert np.allclose(decay ** found.radii[0], np.exp(-1), atol=1e-4)
    assert found.memory.shape == (2, pipe.config.generator.dim)
    with pytest.raises(probes.ProbeError, match="grfm"):
        probes.learned_ranges(_pipeline(generator__mixer="fourier").generator)
