"""Laws of the pipeline: stored and loaded it draws the same, a stream ends where a call ends, bad arguments get one sentence."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iris.checkpoint import CheckpointError, write_checkpoint
from iris.evaluation.probes import trace
from iris.flow import interpolate
from iris.pipeline import MAX_SEED, GeneratedImages, IRISPipeline, Preview, from_pil, state_dicts, to_pil
from iris.sampling import GuidedVelocity, SamplingError, initial_noise
from iris.text import PromptError, TextError, load_text_encoder

HOSTILE = ["", "   ", "\0", "\ud800 lone", "👩‍👩‍👧‍👦🏳️‍🌈", "مرحبا بالعالم", "<script>alert(1)</script>", "../../etc/passwd", "x" * 1000, "\n\t \r"]


def pixels(result: GeneratedImages) -> np.ndarray:
    return np.stack([np.asarray(image) for image in result.images])


def assert_same(a: GeneratedImages, b: GeneratedImages) -> None:
    assert np.array_equal(pixels(a), pixels(b)) and a.iterations == b.iterations and a.seeds == b.seeds


# --- storing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_stored_pipeline_draws_bitwise_the_same(pipeline: IRISPipeline, tmp_path: Path, dtype: torch.dtype) -> None:
    pipeline.save_pretrained(tmp_path / "one", dtype=dtype)
    first = IRISPipeline.from_pretrained(tmp_path / "one")
    reference = pipeline if dtype == torch.float32 else first  # half precision rounds once, at the first save
    first.save_pretrained(tmp_path / "two", dtype=dtype)
    second = IRISPipeline.from_pretrained(str(tmp_path / "two"))
    expected = reference(["a red circle", "two stars"], seed=4, num_iterations="auto")
    assert_same(second(["a red circle", "two stars"], seed=4, num_iterations="auto"), expected)
    assert second.defaults == pipeline.defaults and second.config == pipeline.config
    assert first.metadata["hash"] == second.metadata["hash"] and len(first.metadata["hash"]) == 12


def test_saving_twice_in_one_place_keeps_the_newer_model(pipeline: IRISPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    other = IRISPipeline.from_pretrained(tmp_path / "model")
    other.defaults = dataclasses.replace(other.defaults, num_steps=2)
    other.save_pretrained(tmp_path / "model")
    assert IRISPipeline.from_pretrained(tmp_path / "model").defaults.num_steps == 2


def test_automatic_depth_stops_where_the_models_own_threshold_says(pipeline: IRISPipeline) -> None:
    mine = copy.copy(pipeline)
    spent = []
    for threshold in (100.0, 0.4, 0.0):
        mine.defaults = dataclasses.replace(pipeline.defaults, exit_threshold=threshold)
        spent.append(mine("a red circle", seed=1, num_iterations="auto").iterations[0])
    assert spent[0] == [2, 2, 2] and spent[2] == [16, 16, 16] and 6 < sum(spent[1]) < 48


def test_another_type_of_number_is_refused_before_anything_is_moved(pipeline: IRISPipeline) -> None:
    with pytest.raises(TypeError):
        pipeline.to(torch.float16)
    assert {parameter.dtype for part in (pipeline.autoencoder, pipeline.generator) for parameter in part.parameters()} == {torch.float32}


def test_a_folder_without_a_generator_is_refused(pipeline: IRISPipeline, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "stage-1", pipeline.config.to_dict(), state_dicts(autoencoder=pipeline.autoencoder))
    with pytest.raises(CheckpointError, match="holds autoencoder; a pipeline needs"):
        IRISPipeline.from_pretrained(tmp_path / "stage-1")


@pytest.mark.parametrize(("change", "said"), [
    (lambda config, metadata: config["generator"].update(dim=64), "shape|tensor"),
    (lambda config, metadata: metadata.update(defaults={"speed": 1}), "sampling defaults"),
])
def test_weights_and_configuration_must_fit(pipeline: IRISPipeline, tmp_path: Path, change, said: str) -> None:
    config, metadata = pipeline.config.to_dict(), {}
    change(config, metadata)
    write_checkpoint(tmp_path / "model", config, state_dicts(autoencoder=pipeline.autoencoder, generator=pipeline.generator), metadata)
    with pytest.raises(CheckpointError, match=said):
        IRISPipeline.from_pretrained(tmp_path / "model")


# --- generating --------------------------------------------------------------------------------------------------------


def test_the_result_tells_all_it_takes_to_draw_it_again(pipeline: IRISPipeline) -> None:
    result = pipeline(["a red circle", "two stars"], "blue", num_images=2, sampler="consistency", num_iterations="auto")
    assert len(set(result.seeds)) == 4 and result.prompts == ["a red circle"] * 2 + ["two stars"] * 2
    for index in (0, 3):
        told = result.parameters_of(index)
        again = pipeline(**{name: value for name, value in told.items() if not name.startswith("model")})
        assert np.abs(pixels(again)[0].astype(int) - pixels(result)[index]).max() <= 1
        exactly = pipeline(**{name: value for name, value in told.items() if not name.startswith("model")})
        assert_same(again, exactly)


def test_defaults_are_the_models(pipeline: IRISPipeline) -> None:
    told = pipeline("a red circle", seed=1).parameters
    names = ("num_steps", "num_iterations", "guidance_scale", "sampler")
    assert {name: told[name] for name in names} == {name: dataclasses.asdict(pipeline.defaults)[name] for name in names}


def test_a_shift_of_the_times_is_a_models_own_a_calls_and_refines(pipeline: IRISPipeline) -> None:
    """By hand: two Euler steps at 1 and 1/3, which is where a shift of a half puts 1/2."""
    settings = {"seed": 3, "num_steps": 2, "num_iterations": 2, "guidance_scale": 1.0, "carry_state": False}
    shifted = pipeline("a red circle", timestep_shift=0.5, **settings)
    with torch.inference_mode():
        context, _ = pipeline.contexts(["a red circle"])
        velocity = GuidedVelocity(pipeline.generator, context, num_iterations=2)
        z = initial_noise([3], tuple(shifted.latents.shape[1:]))
        for t, then in ((1.0, 1 / 3), (1 / 3, 0.0)):
            z = z + (then - t) * velocity(z, torch.tensor([t]))
    torch.testing.assert_close(shifted.latents, z, rtol=0, atol=1e-5)
    assert shifted.parameters["timestep_shift"] == 0.5
    assert not np.array_equal(pixels(shifted), pixels(pipeline("a red circle", **settings)))
    own = copy.copy(pipeline)
    own.defaults = dataclasses.replace(pipeline.defaults, timestep_shift=0.5)
    assert np.array_equal(pixels(own("a red circle", **settings)), pixels(shifted))
    assert pipeline.refine(shifted).parameters["refined"][0][0] == pytest.approx(1 / 3)
    assert pipeline.refine(pipeline("a", seed=3, num_steps=1, num_iterations=1, timestep_shift=0.4)).parameters["refined"][0][0] == 0.5  # at 1 nothing of it would be left
    with pytest.raises(SamplingError, match=r"timestep_shift is 0; use a number from 0\.1 to 10"):
        pipeline("a red circle", timestep_shift=0)


def test_refining_goes_on_from_the_kept_state(pipeline: IRISPipeline) -> None:
    """Against the same made by hand: back on the seed's path, then steps whose core starts where the picture's ended."""
    result = pipeline(["a red circle", "two stars"], seed=3, num_steps=4, num_iterations=2, guidance_scale=2.0)
    refined = pipeline.refine(result, strength=0.5, num_steps=2, num_iterations=5)
    with torch.inference_mode():
        context, away = pipeline.contexts(result.prompts)
        velocity = GuidedVelocity(pipeline.generator, context, away, 2.0, 5, carry_state=True, state=result.state)
        noise = initial_noise(result.seeds, tuple(result.latents.shape[1:]))
        z = interpolate(result.latents, noise, torch.full((2,), 0.5)).z_t
        for t, then in ((0.5, 0.25), (0.25, 0.0)):
            z = z + (then - t) * velocity(z, torch.full((2,), t))
    assert torch.allclose(refined.latents, z, atol=1e-5)
    assert refined.iterations == [[2, 2, 2, 2, 5, 5]] * 2 and refined.seeds == result.seeds and refined.parameters["refined"] == [[0.5, 2, 5]]


def test_refining_from_nothing_changes_nothing_and_can_be_repeated(pipeline: IRISPipeline) -> None:
    result = pipeline("a red circle", seed=3, num_steps=4, num_iterations=2)
    assert np.array_equal(pixels(pipeline.refine(result, strength=0.0)), pixels(result))
    twice = pipeline.refine(pipeline.refine(result), num_iterations="auto")
    assert [entry[0] for entry in twice.parameters["refined"]] == [0.25, 0.25] and len(twice.iterations[0]) == 6
    stranger = dataclasses.replace(result, parameters={**result.parameters, "model_hash": "another"})
    for wrong in (stranger, dataclasses.replace(result, state=None)):
        with pytest.raises(SamplingError, match="hold no state of this model"):
            pipeline.refine(wrong)
    with pytest.raises(SamplingError, match=r"are an edit \(inpaint\)"):
        pipeline.refine(dataclasses.replace(result, parameters={**result.parameters, "edit": "inpaint"}))


def test_a_budget_and_a_carried_state_are_told_and_kept(pipeline: IRISPipeline) -> None:
    result = pipeline(["a red circle", "two stars"], seed=1, num_steps=4, num_iterations="auto", guidance_scale=2.0, max_core_passes=24, carry_state=True)
    assert all(2 * sum(spent) <= 24 for spent in result.iterations)
    assert result.parameters["max_core_passes"] == 24 and result.parameters["carry_state"] is True
    told = {name: value for name, value in result.parameters_of(1).items() if not name.startswith("model")}
    assert np.abs(pixels(pipeline(**told))[0].astype(int) - pixels(result)[1]).max() <= 1


def test_what_a_picture_tells_draws_it_again_whatever_the_model_would_do_by_itself(pipeline: IRISPipeline) -> None:
    carrying = copy.copy(pipeline)
    carrying.defaults = dataclasses.replace(pipeline.defaults, carry_state=True)
    for options in ({"carry_state": False}, {"carry_state": True}, {"negative_prompt": " "}, {"negative_prompt": "a star"}):
        result = carrying("a red circle", seed=3, num_steps=3, num_iterations=2, guidance_scale=3.0, **options)
        told = {name: value for name, value in result.parameters_of(0).items() if not name.startswith("model")}
        assert np.array_equal(pixels(carrying(**told)), pixels(result)), options


def test_a_state_is_not_carried_over_a_jump_unless_it_is_asked_for_or_the_models_own_way(pipeline: IRISPipeline) -> None:
    """It was made for noise that the jump has replaced: a model that carries by default drew 29 % right so, and all of them without."""
    carrying, settings = copy.copy(pipeline), {"seed": 3, "num_steps": 3, "num_iterations": 2, "sampler": "consistency"}
    carrying.defaults = dataclasses.replace(pipeline.defaults, carry_state=True)
    result, fresh, carried = (carrying("a red circle", carry_state=carry, **settings) for carry in (None, False, True))
    assert torch.equal(result.latents, fresh.latents) and result.parameters["carry_state"] is False
    assert not torch.equal(carried.latents, fresh.latents)
    assert np.array_equal(trace(carrying, "a red circle", **settings).image, np.asarray(fresh.images[0]))
    carrying.defaults = dataclasses.replace(carrying.defaults, sampler="consistency")  # jumps and carrying were measured together
    assert torch.equal(carrying("a red circle", **settings).latents, carried.latents)
    assert np.array_equal(trace(carrying, "a red circle", **settings).image, np.asarray(carried.images[0]))


def test_seeds_count_up_within_a_prompt(pipeline: IRISPipeline) -> None:
    three = pipeline(["a", "b"], seed=5, num_images=3)
    assert three.seeds == [5, 6, 7, 5, 6, 7]
    assert pipeline("a", seed=[9, 4], num_images=2).seeds == [9, 4]
    assert pipeline("a", seed=MAX_SEED, num_images=2).seeds == [MAX_SEED, 0]
    assert pipeline("a", seed=7.0).seeds == [7] and pipeline("a", seed=np.int64(7)).seeds == [7]


def test_a_prompt_a_seed_and_a_negative_prompt_each_matter(pipeline: IRISPipeline) -> None:
    base = pixels(pipeline("a red circle", seed=1))
    for other in (pipeline("two stars", seed=1), pipeline("a red circle", seed=2), pipeline("a red circle", "blue", seed=1)):
        assert not np.array_equal(pixels(other), base)
    assert np.array_equal(pixels(pipeline("a red circle", "", seed=1)), base)


def test_iterations_are_reported_for_every_call(pipeline: IRISPipeline) -> None:
    assert pipeline(["a", "b"], seed=1, num_steps=3, num_iterations=5).iterations == [[5, 5, 5], [5, 5, 5]]
    assert pipeline("a", seed=1, num_steps=3, num_iterations=5, sampler="heun").iterations == [[5] * 5]
    auto = pipeline("a", seed=1, num_steps=4, num_iterations="auto").iterations[0]
    assert len(auto) == 4 and all(2 <= used <= 16 for used in auto)


@pytest.mark.parametrize("prompt", HOSTILE)
def test_any_text_is_a_picture(pipeline: IRISPipeline, prompt: str) -> None:
    image = pipeline(prompt, seed=1, num_steps=1, num_iterations=1).images[0]
    assert image.size == (32, 32) and image.mode == "RGB"


@pytest.mark.parametrize(("arguments", "said"), [
    ({"prompt": None}, "prompt must be text"), ({"prompt": 5}, "prompt must be text"), ({"prompt": b"a"}, "prompt must be text"),
    ({"prompt": ["a", None]}, "prompt must be text"), ({"prompt": "x" * 100_000}, "100000 characters"), ({"prompt": []}, "0 prompts"),
    ({"prompt": ["a"] * 65}, "65 prompts"), ({"prompt": ["a"] * 5, "num_images": 16}, "use 1 to 64 pictures"),
    ({"negative_prompt": "red", "guidance_scale": 1}, "a negative_prompt needs a guidance_scale other than 1"),
    ({"negative_prompt": 5}, "prompt must be text"), ({"negative_prompt": "x" * 2000}, "2000 characters"),
    ({"seed": -1}, "seed is -1"), ({"seed": 1.7}, "seed is 1.7"), ({"seed": 2**31}, "seed is 2147483648"), ({"seed": 1e99}, "seed is 1e\\+99"),
    ({"seed": "abc"}, "seed is 'abc'"), ({"seed": "9" * 100_000}, "seed is '99"), ({"seed": math.nan}, "seed is nan"), ({"seed": math.inf}, "seed is inf"),
    ({"seed": True}, "seed is True"), ({"seed": [1, 2]}, "2 seeds were given for 1"), ({"seed": [1.5]}, "seed is 1.5"), ({"seed": {}}, "seed is"),
    ({"num_steps": 0}, "num_steps is 0"), ({"num_steps": 101}, "num_steps is 101"), ({"num_steps": 2.5}, "num_steps is 2.5"),
    ({"num_steps": "4"}, "num_steps is '4'"), ({"num_steps": math.nan}, "num_steps is nan"), ({"num_steps": 10**30}, "num_steps is 1000"),
    ({"num_iterations": 0}, "num_iterations is 0"), ({"num_iterations": 65}, "num_iterations is 65"), ({"num_iterations": "deep"}, "num_iterations is 'deep'"),
    ({"guidance_scale": -1}, "guidance_scale is -1"), ({"guidance_scale": 20.5}, "guidance_scale is 20.5"),
    ({"guidance_scale": math.nan}, "guidance_scale is nan"), ({"guidance_scale": "3"}, "guidance_scale is '3'"),
    ({"num_images": 0}, "num_images is 0"), ({"num_images": 17}, "num_images is 17"), ({"num_images": False}, "num_images is False"),
    ({"sampler": "ddim"}, "sampler is 'ddim'"), ({"sampler": ["euler"]}, "sampler is"), ({"sampler": 3}, "sampler is 3"),
])
def test_a_bad_argument_gets_one_sentence(pipeline: IRISPipeline, arguments: dict, said: str) -> None:
    with pytest.raises((PromptError, SamplingError), match=said) as refused:
        pipeline(**{"prompt": "a", **arguments})
    sentence = str(refused.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 200


# --- streaming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "consistency"])
def test_a_stream_ends_with_what_a_call_returns(pipeline: IRISPipeline, sampler: str) -> None:
    settings = {"seed": [3, 8], "num_steps": 4, "num_iterations": "auto", "sampler": sampler}
    previews = list(pipeline.stream(["a red circle", "two stars"], **settings))
    assert [preview.step for preview in previews] == [1, 2, 3, 4] and {preview.num_steps for preview in previews} == {4}
    assert all(preview.result is None and len(preview.images) == 2 for preview in previews[:-1])
    assert_same(previews[-1].result, pipeline(["a red circle", "two stars"], **settings))
    assert previews[-1].images is previews[-1].result.images
    assert not np.array_equal(np.asarray(previews[0].images[0]), np.asarray(previews[-1].images[0]))


def test_closing_a_stream_stops_the_work(pipeline: IRISPipeline) -> None:
    calls: list[int] = []
    hook = pipeline.generator.core.register_forward_hook(lambda *_: calls.append(1))
    try:
        stream = pipeline.stream("a red circle", seed=1, num_steps=50, num_iterations=2)
        first: Preview = next(stream)
        done = len(calls)
        stream.close()
        assert first.step == 1 and done == 2 and len(calls) == done
        assert next(stream, None) is None
    finally:
        hook.remove()


def test_a_stream_leaves_the_callers_grad_mode_alone_and_two_streams_do_not_meet(pipeline: IRISPipeline) -> None:
    settings = {"num_steps": 3, "num_iterations": 2}
    apart = [pipeline(prompt, seed=seed, **settings) for prompt, seed in (("a", 1), ("b", 2))]
    streams = [pipeline.stream(prompt, seed=seed, **settings) for prompt, seed in (("a", 1), ("b", 2))]
    rounds = []
    for previews in zip(*streams, strict=True):
        rounds.append(previews)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    for preview, alone in zip(rounds[-1], apart, strict=True):
        assert_same(preview.result, alone)


# --- pictures and latents ----------------------------------------------------------------------------------------------


def test_pictures_and_tensors_are_inverse_on_every_value() -> None:
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    tensor = from_pil([every])
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(np.asarray(to_pil(tensor)[0]), np.asarray(every))
    assert to_pil(torch.full((1, 3, 1, 1), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)


def test_encode_and_decode_are_the_autoencoders(pipeline: IRISPipeline) -> None:
    picture = pipeline("a red circle", seed=1).images[0]
    latents = pipeline.encode([picture, picture.transpose(Image.Transpose.ROTATE_90)])
    assert latents.shape == (2, 8, 8, 8)
    assert torch.allclose(pipeline.encode(picture), latents[:1], atol=1e-5)
    with torch.no_grad():
        expected = to_pil(pipeline.autoencoder.decode(pipeline.autoencoder.encode(from_pil([picture]))))
    assert np.array_equal(np.asarray(pipeline.decode(pipeline.encode(picture))[0]), np.asarray(expected[0]))


def test_decoding_the_latents_of_a_result_gives_its_pictures(pipeline: IRISPipeline) -> None:
    result = pipeline(["a", "b"], seed=1)
    assert np.array_equal(np.stack([np.asarray(image) for image in pipeline.decode(result.latents)]), pixels(result))


def test_a_stored_model_does_not_tell_where_this_computer_keeps_its_text_encoder(pipeline: IRISPipeline, tmp_path: Path) -> None:
    config = dataclasses.replace(pipeline.config, text=dataclasses.replace(pipeline.config.text, path="/home/me/encoder"))
    folder = IRISPipeline(config, pipeline.autoencoder, pipeline.generator, pipeline.text_encoder).save_pretrained(tmp_path / "model")
    assert IRISPipeline.from_pretrained(folder).config.text == pipeline.config.text
    assert IRISPipeline.from_pretrained(folder, text_path=tmp_path).config.text.path == str(tmp_path)


def test_a_model_is_told_where_the_text_encoder_is(pipeline: IRISPipeline, tmp_path: Path) -> None:
    config = pipeline.config.to_dict() | {"text": pipeline.config.to_dict()["text"] | {"encoder": "minilm", "path": str(tmp_path / "gone")}}
    folder = write_checkpoint(tmp_path / "model", config, state_dicts(autoencoder=pipeline.autoencoder, generator=pipeline.generator))
    with pytest.raises(TextError, match=r"no text encoder folder .*gone; give text_path"):
        IRISPipeline.from_pretrained(folder)
    with pytest.raises(TextError, match="elsewhere"):
        IRISPipeline.from_pretrained(folder, text_path=tmp_path / "elsewhere")


def test_a_pipeline_moves_as_a_whole(pipeline: IRISPipeline) -> None:
    other = IRISPipeline(pipeline.config, copy.deepcopy(pipeline.autoencoder), copy.deepcopy(pipeline.generator), pipeline.text_encoder)
    assert other.to("cpu") is other and other.device == torch.device("cpu") and other.image_size == 32
    encoder = IRISPipeline(other.config, other.autoencoder, other.generator, load_text_encoder(other.config.text)).to("meta").text_encoder
    assert {part.device.type for module in (other.autoencoder, other.generator) for part in module.parameters()} == {"meta"} == {encoder.device.type}
