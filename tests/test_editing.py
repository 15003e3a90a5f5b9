"""Laws of editing: strength 0 changes nothing, a mask keeps its pixels bit for bit, no difference of prompts moves nothing, ends are plain pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from iris.editing import EditError, extend, finish, flow_edit, image_to_image, inpaint, interpolation, slerp
from iris.flow import timestep_schedule
from iris.nn.attention import attend, key_bias
from iris.pipeline import GeneratedImages, IRISPipeline
from iris.sampling import GuidedVelocity, SamplingError, initial_noise, last_step, sample_euler

SETTINGS = {"num_steps": 4, "num_iterations": 2, "guidance_scale": 2.0, "seed": 3}
SAMPLERS = ["euler", "heun", "consistency"]


@pytest.fixture
def source() -> Image.Image:
    """A smooth picture of the nano model's size with every colour in it."""
    across, down = np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 32))
    return Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))


@pytest.fixture
def mask() -> np.ndarray:
    half = np.zeros((32, 32), dtype=bool)
    half[5:20, 12:30] = True
    return half


def pixels(result: GeneratedImages) -> np.ndarray:
    return np.stack([np.asarray(image) for image in result.images]).astype(int)


def test_what_is_transparent_lies_on_white(pipeline: IRISPipeline, source: Image.Image) -> None:
    shape = np.zeros((32, 32), dtype=np.uint8)
    shape[8:24, 8:24] = 255
    transparent, expected = source.copy(), Image.new("RGB", (32, 32), "white")
    transparent.putalpha(Image.fromarray(shape))
    expected.paste(source, mask=Image.fromarray(shape))
    drawn, plain = (finish(image_to_image(pipeline, image, "a", strength=0, **SETTINGS)) for image in (transparent, expected))
    assert np.array_equal(pixels(drawn), pixels(plain))
    assert torch.equal(pipeline.encode(transparent), pipeline.encode(expected))
    assert extend(transparent, (0.5, 0, 0, 0), 32)[0].tobytes() == extend(expected, (0.5, 0, 0, 0), 32)[0].tobytes()


# --- image to image ----------------------------------------------------------------------------------------------------


def test_strength_zero_is_the_reconstruction_and_asks_nothing_of_the_network(pipeline: IRISPipeline, source: Image.Image) -> None:
    result = finish(image_to_image(pipeline, source, "a red circle", strength=0, **SETTINGS))
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(pipeline.decode(pipeline.encode(source))[0]))
    assert result.iterations == [[0]]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_one_forgets_the_picture(pipeline: IRISPipeline, source: Image.Image, sampler: str) -> None:
    edited = finish(image_to_image(pipeline, source, "a red circle", strength=1, sampler=sampler, **SETTINGS))
    assert np.array_equal(pixels(edited), pixels(pipeline("a red circle", sampler=sampler, **SETTINGS)))


def test_the_start_is_the_point_of_the_path_and_half_the_strength_takes_half_the_steps(pipeline: IRISPipeline, source: Image.Image) -> None:
    result = finish(image_to_image(pipeline, source, "a red circle", strength=0.5, **SETTINGS))
    with torch.inference_mode():
        context, away = pipeline.contexts(["a red circle"])
        velocity = GuidedVelocity(pipeline.generator, context, away, 2.0, 2)
        start = 0.5 * pipeline.encode(source) + 0.5 * initial_noise([3], (8, 8, 8))
        expected = last_step(sample_euler(velocity, start, timestep_schedule(4)[2:])).latents
    torch.testing.assert_close(result.latents, expected, rtol=1e-4, atol=1e-5)
    assert result.iterations == [[2, 2]]


def test_an_edit_from_one_of_the_steps_takes_the_steps_that_are_left(pipeline: IRISPipeline, source: Image.Image) -> None:
    """A call of four steps without a picture has the times 1, 3/5, 1/3, 1/7, 0 at a shift of a half."""
    result = finish(image_to_image(pipeline, source, "a red circle", strength=0.6, timestep_shift=0.5, **{**SETTINGS, "num_steps": 4}))
    with torch.inference_mode():
        context, away = pipeline.contexts(["a red circle"])
        velocity = GuidedVelocity(pipeline.generator, context, away, 2.0, 2)
        start = 0.4 * pipeline.encode(source) + 0.6 * initial_noise([3], (8, 8, 8))
        expected = last_step(sample_euler(velocity, start, torch.tensor([3 / 5, 1 / 3, 1 / 7, 0.0]))).latents
    torch.testing.assert_close(result.latents, expected, rtol=1e-4, atol=1e-5)


def test_a_seed_draws_the_same_alone_and_beside_others(pipeline: IRISPipeline, source: Image.Image, mask: np.ndarray) -> None:
    settings = {**SETTINGS, "seed": [3, 8]}
    two = {name: value for name, value in settings.items() if name != "seed"}
    for together, alone in (
        (image_to_image(pipeline, source, ["a", "b"], 0.7, **settings), image_to_image(pipeline, source, "b", 0.7, seed=8, **two)),
        (inpaint(pipeline, source, mask, ["a", "b"], **settings), inpaint(pipeline, source, mask, "b", seed=8, **two)),
        (flow_edit(pipeline, source, "c", ["a", "b"], **settings), flow_edit(pipeline, source, "c", "b", seed=8, **two)),
    ):
        assert np.abs(pixels(finish(together))[1] - pixels(finish(alone))[0]).max() <= 1


# --- inpainting and outpainting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_pixels_outside_the_mask_stay_bit_for_bit(pipeline: IRISPipeline, source: Image.Image, mask: np.ndarray, sampler: str, strength: float) -> None:
    for preview in inpaint(pipeline, source, mask, "a red circle", strength, sampler=sampler, num_images=2, **SETTINGS):
        for image in preview.images:
            assert np.array_equal(np.asarray(image)[~mask], np.asarray(source)[~mask])
    assert not np.array_equal(np.asarray(preview.images[0])[mask], np.asarray(source)[mask])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_outside_the_mask_end_at_the_source(pipeline: IRISPipeline, source: Image.Image, mask: np.ndarray, sampler: str) -> None:
    result = finish(inpaint(pipeline, source, mask, "a red circle", sampler=sampler, **SETTINGS))
    kept = ~torch.from_numpy(mask).view(8, 4, 8, 4).any(3).any(1)
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(result.latents[0, :, kept], pipeline.encode(source)[0, :, kept], rtol=1e-4, atol=1e-5)


def test_the_network_sees_the_source_at_its_own_noise_level(pipeline: IRISPipeline, source: Image.Image, mask: np.ndarray) -> None:
    kept = ~torch.from_numpy(mask).view(8, 4, 8, 4).any(3).any(1)
    latents, noise, seen = pipeline.encode(source)[0], initial_noise([3], (8, 8, 8))[0], []
    hook = pipeline.generator.input.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0]))
    try:
        finish(inpaint(pipeline, source, mask, "a red circle", **SETTINGS))
    finally:
        hook.remove()
    for z, t in zip(seen, (1.0, 0.75, 0.5, 0.25), strict=True):
        torch.testing.assert_close(z[:, kept], ((1 - t) * latents + t * noise)[:, kept], rtol=1e-4, atol=1e-5)


def test_a_picture_may_be_its_own_mask_of_white(pipeline: IRISPipeline, source: Image.Image, mask: np.ndarray) -> None:
    painted = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    faint = np.where(mask, 250, 3).astype(np.uint8)
    clear = Image.fromarray(np.dstack([np.full((*mask.shape, 3), 255), np.where(mask, 255, 0)]).astype(np.uint8))  # white everywhere, seen in the mask alone
    forms = (mask, painted, faint, Image.fromarray(faint), mask.astype(np.uint8), mask.astype(np.float32), clear)
    first, *others = (pixels(finish(inpaint(pipeline, source, form, "a red circle", **SETTINGS))) for form in forms)
    assert all(np.array_equal(first, other) for other in others)


def test_a_grey_picture_of_16_bits_is_what_its_8_bits_are(pipeline: IRISPipeline) -> None:
    ramp = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    deep, plain = Image.fromarray(ramp), Image.fromarray((ramp * (255 / 65535)).round().astype(np.uint8))
    assert deep.mode == "I;16"
    torch.testing.assert_close(pipeline.encode(deep), pipeline.encode(plain))
    assert np.array_equal(*(pixels(finish(image_to_image(pipeline, picture, "a star", 0.5, **SETTINGS))) for picture in (deep, plain)))


@pytest.mark.parametrize("margins", [(0.5, 0.5, 0.5, 0.5), (0, 0, 1, 0), (0.25, 0, 0, 0), (0, 2, 0, 0)])
def test_an_extended_canvas_holds_the_whole_picture_where_it_is_not_masked(margins: tuple[float, ...]) -> None:
    colour = Image.new("RGB", (32, 32), (200, 30, 60))
    canvas, mask = extend(colour, margins, 64)
    assert np.array_equal(np.asarray(canvas), np.full((64, 64, 3), (200, 30, 60)))  # an even picture stays even
    rows, columns = np.where(~mask)
    inner = round(64 / max(1 + margins[0] + margins[2], 1 + margins[1] + margins[3]))
    assert len(rows) == inner**2 and np.ptp(rows) == np.ptp(columns) == inner - 1
    if margins == (0.5, 0.5, 0.5, 0.5):
        assert (rows.min(), columns.min()) == (16, 16)
    if margins == (0, 0, 1, 0):
        assert columns.min() == 0 and rows.min() == 16  # room on the right; above and below it is shared


# --- prompt to prompt --------------------------------------------------------------------------------------------------


def test_the_same_prompt_twice_changes_nothing(pipeline: IRISPipeline, source: Image.Image) -> None:
    result = finish(flow_edit(pipeline, source, "a red circle", "a red circle", **SETTINGS))
    assert torch.equal(result.latents, pipeline.encode(source))
    other = finish(flow_edit(pipeline, source, "a red circle", "two stars", **SETTINGS))
    assert not torch.equal(other.latents, result.latents)
    assert result.iterations == [[2] * 6]  # 0.8 of 4 steps, two calls each
    assert result.parameters["sampler"] == "euler"
    with pytest.raises(EditError, match=r"sampler is 'heun'; prompt-to-prompt has steps of its own"):
        finish(flow_edit(pipeline, source, "a red circle", "two stars", **SETTINGS, sampler="heun"))


def test_one_step_is_the_difference_of_two_velocities(pipeline: IRISPipeline, source: Image.Image) -> None:
    result = finish(flow_edit(pipeline, source, "a red circle", "two stars", 0.5, **{**SETTINGS, "num_steps": 1, "guidance_scale": 1.0}))
    from iris.editing import COUPLING
    from iris.rng import rng_for

    latents = pipeline.encode(source)
    z = 0.5 * latents + 0.5 * torch.randn(latents.shape[1:], generator=rng_for(3, COUPLING, 0))
    with torch.inference_mode():
        states = pipeline.text_encoder.encode(["two stars", "a red circle"])
        target, origin = (pipeline.generator(z, torch.tensor([0.5]), states.tokens[row:row + 1], 2, states.mask[row:row + 1]) for row in (0, 1))
    torch.testing.assert_close(result.latents, latents - 0.5 * (target - origin), rtol=1e-4, atol=1e-5)


# --- interpolation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_end_frames_are_the_plain_pictures(pipeline: IRISPipeline, sampler: str, guidance: float) -> None:
    plain = {"num_steps": 3, "num_iterations": 2, "guidance_scale": guidance, "sampler": sampler}
    result = finish(interpolation(pipeline, "a red circle", "two small blue stars", 1, 2, frames=5, **plain))
    assert len(result.images) == 5 and result.seeds == [1, 1, 1, 2, 2]
    for frame, prompt, seed in ((0, "a red circle", 1), (-1, "two small blue stars", 2)):
        assert np.abs(pixels(result)[frame] - pixels(pipeline(prompt, seed=seed, **plain))[0]).max() <= 1
    jumps = np.abs(np.diff(pixels(result), axis=0)).mean((1, 2, 3))
    whole = np.abs(pixels(result)[-1] - pixels(result)[0]).mean()
    assert jumps.min() > 0 and jumps.max() < whole


def test_slerp_keeps_norms_and_equal_angles() -> None:
    a, b = initial_noise([1, 2], (8, 8, 8)).double()
    b = b * a.norm() / b.norm()
    points = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[-1], b)
    torch.testing.assert_close(points.flatten(1).norm(dim=1), a.norm().expand(5))
    cosines = torch.nn.functional.cosine_similarity(points[:-1].flatten(1), points[1:].flatten(1))
    torch.testing.assert_close(cosines, cosines[:1].expand(4))
    assert torch.equal(slerp(a, a, torch.tensor([0.0, 0.3])), torch.stack([a, a]))


def test_a_key_of_half_the_weight_counts_half() -> None:
    query, key, value = torch.randn(3, 1, 1, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    doubled = attend(query, key.repeat(1, 1, 2, 1), value.repeat(1, 1, 2, 1), key_bias(torch.full((1, 1, 1, 8), 0.5), torch.float64))
    torch.testing.assert_close(doubled, attend(query, key, value))
    some = torch.tensor([True, False, True, True]).view(1, 1, 1, 4)
    assert torch.equal(attend(query, key, value, key_bias(some, torch.float64)),
                       attend(query, key, value, key_bias(some.double(), torch.float64)))
    kept = some.flatten()
    torch.testing.assert_close(attend(query, key, value, key_bias(some, torch.float64)), attend(query, key[..., kept, :], value[..., kept, :]))


# --- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "said"), [
    ({"strength": 1.5}, "strength is 1.5"), ({"strength": math.nan}, "strength is nan"), ({"strength": "0.5"}, "strength is '0.5'"),
    ({"strength": True}, "strength is True"), ({"image": None}, "no picture"), ({"image": Image.new("RGB", (50, 32))}, "50 x 32"),
    ({"mask": np.zeros((32, 32), bool)}, "mask is empty"), ({"mask": np.ones((32, 32), bool)}, "whole picture"),
    ({"mask": np.ones((16, 32), bool)}, "mask is 32 x 16"), ({"carry_state": "no"}, "carry_state is 'no'; use True or False"), ({"num_steps": 0}, "num_steps is 0"), ({"speed": 3}, "speed is no setting"),
])
def test_a_bad_argument_gets_one_sentence(pipeline: IRISPipeline, source: Image.Image, mask: np.ndarray, change: dict, said: str) -> None:
    with pytest.raises((EditError, SamplingError), match=said) as refused:
        finish(inpaint(pipeline, **{"image": source, "mask": mask, "prompt": "a", **change}))
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize(("call", "said"), [
    (lambda pipe: interpolation(pipe, "a", frames=1), "frames is 1"), (lambda pipe: interpolation(pipe, "a", frames=2.5), "frames is 2.5"),
    (lambda pipe: interpolation(pipe, "a", seed=-1), "seed is -1"), (lambda pipe: iter([extend(Image.new("RGB", (8, 8)), (0, 0, 0, 0), 8)]), "no side has room"),
    (lambda pipe: iter([extend(Image.new("RGB", (8, 8)), (3, 0, 0, 0), 8)]), "margin is 3"), (lambda pipe: iter([extend(None, (1, 0, 0, 0), 8)]), "no picture to extend"),
    (lambda pipe: iter([extend(Image.new("RGB", (8, 4)), (1, 0, 0, 0), 8)]), "no square picture"),
    (lambda pipe: iter([extend(Image.new("RGB", (8, 8)), (1, 0, 0), 8)]), "use four numbers"),
    (lambda pipe: interpolation(pipe, "a", num_images=2), "num_images is no setting of an interpolation"),
])
def test_other_bad_arguments_too(pipeline: IRISPipeline, call, said: str) -> None:
    with pytest.raises((EditError, SamplingError), match=said):
        finish(call(pipeline))


def test_closing_an_edit_stops_the_work(pipeline: IRISPipeline, source: Image.Image) -> None:
    calls: list[int] = []
    hook = pipeline.generator.core.register_forward_hook(lambda *_: calls.append(1))
    try:
        previews = image_to_image(pipeline, source, "a", 1.0, num_steps=50, num_iterations=2, seed=1)
        assert next(previews).step == 1 and torch.is_grad_enabled()
        previews.close()
        assert len(calls) == 2
    finally:
        hook.remove()
