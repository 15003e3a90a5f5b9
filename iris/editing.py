"""Changing pictures and moving between them: functions of an IRISPipeline that only choose where a path starts and what drives it.

`image_to_image` starts on the way between a picture and noise (SDEdit, 2108.01073). `inpaint` keeps what a mask leaves out on the
source's own path. `flow_edit` moves a picture along the difference of two prompts' velocities, without inversion (FlowEdit,
2412.08629). `interpolation` draws the pictures between two prompts and seeds. Each one yields Previews as `pipe.stream` does;
`finish` runs one to its end:

    picture = finish(image_to_image(pipe, source, "a blue star", strength=0.6, seed=1)).images[0]

`settings` are the pipeline's own arguments: negative_prompt, num_steps, num_iterations, guidance_scale, seed, num_images, sampler,
carry_state, timestep_shift. A picture is taken as it lies in its file, not turned as its EXIF says. What is transparent in a picture lies on white, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from iris.data.images import opaque
from iris.flow import interpolate, unshifted
from iris.nn.generator import TextContext
from iris.pipeline import GeneratedImages, IRISPipeline, Preview, to_pil
from iris.rng import rng_for
from iris.sampling import SAMPLERS, GuidedVelocity, SampleStep, Velocity

COUPLING = 2  # purpose of a seed's random stream, beside those of sampling
MAX_FRAMES = 24
Pictures = list[Image.Image]


class EditError(ValueError):
    """A picture, mask or setting that cannot be edited with; the message says what is allowed."""


def finish(previews: Iterator[Preview]) -> GeneratedImages:
    """Run an edit to its end."""
    for preview in previews:
        last = preview
    return last.result


# --- the four edits ------------------------------------------------------------------------------------------------


def image_to_image(pipe: IRISPipeline, image: Image.Image, prompt: str | Sequence[str], strength: float = 0.6, **settings: Any) -> Iterator[Preview]:
    """Draw `prompt` from `image` with noise added up to t = `strength` (0: the reconstruction, 1: nothing of it is left).

    image: of the model's own size. Of num_steps only those below t = `strength` are taken, at least one. Raises EditError,
    SamplingError or PromptError at the first step.
    """
    source, strength = _source(pipe, image), _share("strength", strength)
    request, velocity, noise = _open(pipe, prompt, settings)

    def steps() -> Iterator[SampleStep]:
        return _solve(pipe, velocity, pipe.encode(source), noise, strength, request)

    yield from _watch(pipe, request, velocity, steps, {"edit": "image-to-image", "strength": strength})


def inpaint(pipe: IRISPipeline, image: Image.Image, mask: Image.Image | np.ndarray, prompt: str | Sequence[str], strength: float = 1.0,
            **settings: Any) -> Iterator[Preview]:
    """Draw `prompt` where `mask` is set; every pixel outside it stays that of `image`, bit for bit.

    mask: [H, W] of the picture's size, true or at least half white where to draw. A latent is drawn anew when any of its
    pixels is; the others follow the source's own path (1 - t) source + t noise, so that the drawn part sees them at its
    own noise level. Raises EditError for a mask that is empty, full or of another size.
    """
    source, strength = _source(pipe, image), _share("strength", strength)
    drawn = _mask(mask, source)
    request, velocity, noise = _open(pipe, prompt, settings)
    factor = pipe.config.autoencoder.downsample
    cells = F.max_pool2d(torch.from_numpy(drawn)[None, None].float(), factor).bool().to(pipe.device)

    def steps() -> Iterator[SampleStep]:
        latents = pipe.encode(source)

        def field(z: Tensor, t: Tensor) -> Tensor:
            # The velocity that points at the source from anywhere: z = (1 - t) source + t noise stays on that path.
            return torch.where(cells, velocity(z, t), (z - latents) / t.view(-1, 1, 1, 1))

        return _solve(pipe, field, latents, noise, strength, request)

    def composite(pictures: Pictures) -> Pictures:
        return [Image.fromarray(np.where(drawn[..., None], np.asarray(picture), np.asarray(source))) for picture in pictures]

    yield from _watch(pipe, request, velocity, steps, {"edit": "inpaint", "strength": strength}, composite)


def flow_edit(pipe: IRISPipeline, image: Image.Image, source_prompt: str, prompt: str, strength: float = 0.8, source_guidance: float | None = None,
              **settings: Any) -> Iterator[Preview]:
    """Change `image`, which `source_prompt` describes, into what `prompt` says, and keep the rest (FlowEdit, 2412.08629, algorithm 1).

    With x the encoded picture and fresh noise n at each time, z_source = (1 - t) x + t n and z_target = z_source + (edit - x);
    d edit = (v(z_target, prompt) - v(z_source, source_prompt)) dt from t = `strength` to 0, starting at edit = x.
    source_guidance: guidance of the source's velocity, by default the target's. Two network calls a step. The steps are Euler's,
    whatever sampler is the model's own.
    """
    if settings.get("sampler") not in (None, "euler"):
        raise EditError(f"sampler is {shortened(settings['sampler'])}; prompt-to-prompt has steps of its own, leave it out.")
    settings["sampler"] = "euler"
    source, strength = _source(pipe, image), _share("strength", strength)
    request, target, _ = _open(pipe, prompt, settings)
    told = dict(settings) | {"guidance_scale": request.guidance_scale if source_guidance is None else source_guidance}
    told |= {"negative_prompt": None} if told["guidance_scale"] == 1 else {}  # nothing is steered away from there
    _, origin, _ = _open(pipe, [source_prompt] * len(request.prompts), {**told, "seed": request.seeds, "num_images": 1})
    origin.spent = target.spent  # one list of calls, in their order

    def steps() -> Iterator[SampleStep]:
        latents = pipe.encode(source).expand(len(request.seeds), -1, -1, -1)
        times = _times(request, strength).to(latents)
        edited, count = latents, len(times) - 1
        if count == 0:
            yield _untouched(latents)
        for index in range(count):
            noise = torch.stack([torch.randn(latents.shape[1:], generator=rng_for(seed, COUPLING, index)) for seed in request.seeds]).to(latents)
            t = times[index].expand(len(latents))
            on_path = interpolate(latents, noise, t).z_t
            pull = target(on_path + (edited - latents), t) - origin(on_path, t)
            edited = edited + (times[index + 1] - times[index]) * pull
            yield SampleStep(index + 1, count, float(times[index + 1]), edited, edited)

    yield from _watch(pipe, request, target, steps, {"edit": "prompt-to-prompt", "strength": strength, "source_prompt": source_prompt, "source_guidance": told["guidance_scale"]})


def interpolation(pipe: IRISPipeline, prompt: str, other_prompt: str | None = None, seed: int = 0, other_seed: int | None = None, frames: int = 8,
                  **settings: Any) -> Iterator[Preview]:
    """`frames` pictures on the way from (prompt, seed) to (other_prompt, other_seed); the first and the last are the plain ones.

    Noise goes along the great circle (slerp), which keeps its norm; keys, values and the weight of every text token go straight.
    """
    if isinstance(frames, bool) or not isinstance(frames, (int, np.integer)) or not 2 <= frames <= MAX_FRAMES:
        raise EditError(f"frames is {shortened(frames)}; use a whole number from 2 to {MAX_FRAMES}.")
    if settings.get("num_images", 1) != 1:
        raise EditError("num_images is no setting of an interpolation; it draws `frames` pictures.")
    ends = [prompt, prompt if other_prompt is None else other_prompt]
    request, velocity, noise = _open(pipe, ends, {**settings, "seed": [seed, seed if other_seed is None else other_seed]})
    where = torch.linspace(0, 1, frames, device=pipe.device)
    nearest = [int(position > 0.5) for position in where]
    with torch.inference_mode():
        context, away = (_between(pair, where) for pair in pipe.contexts(request.prompts, request.negative_prompt))
        velocity = pipe._velocity(request, context, away)
        path = slerp(noise[0], noise[1], where)
    jumped = pipe._renoise(request.seeds)  # the new noise of jumps goes the same way, or the pictures would break in the middle
    request = replace(request, prompts=[request.prompts[end] for end in nearest], seeds=[request.seeds[end] for end in nearest])

    def steps() -> Iterator[SampleStep]:
        return SAMPLERS[request.sampler](velocity, path, request.times(), lambda step: slerp(*jumped(step), where))

    yield from _watch(pipe, request, velocity, steps, {"edit": "interpolation", "frames": frames})


def extend(image: Image.Image, margins: tuple[float, float, float, float], size: int) -> tuple[Image.Image, np.ndarray]:
    """A canvas for outpainting and its mask: `inpaint(pipe, *extend(image, (0, 0, 0.5, 0), pipe.image_size), prompt)`.

    margins: room to add left, above, right and below, each from 0 to 2, in parts of the picture's side. Picture and room are
    scaled together to fit `size` x `size` (shorter sides get more room); the picture's edge is drawn out as a first guess.
    """
    if not isinstance(image, Image.Image) or image.width != image.height:
        raise EditError("there is no square picture to extend; cut its middle out first." if isinstance(image, Image.Image) else "there is no picture to extend; give one.")
    if len(margins) != 4:
        raise EditError(f"margins are {shortened(margins)}; use four numbers, for left, above, right and below.")
    left, top, right, bottom = (_share("margin", margin, 2.0) for margin in margins)
    width, height = 1 + left + right, 1 + top + bottom
    longest = max(width, height)
    if longest == 1:
        raise EditError("no side has room; use a margin above 0 on at least one side.")
    left, top = left + (longest - width) / 2, top + (longest - height) / 2
    inner = max(1, round(size / longest))
    x, y = (min(round(size * offset / longest), size - inner) for offset in (left, top))
    small = np.asarray(opaque(image).resize((inner, inner), Image.Resampling.LANCZOS))
    canvas = np.pad(small, ((y, size - inner - y), (x, size - inner - x), (0, 0)), mode="edge")
    mask = np.ones((size, size), dtype=bool)
    mask[y:y + inner, x:x + inner] = False
    return Image.fromarray(canvas), mask


# --- what they share -----------------------------------------------------------------------------------------------


def slerp(first: Tensor, other: Tensor, where: Tensor) -> Tensor:
    """Points [n, ...] on the great circle between two tensors, at where [n] in [0, 1]; straight where they are parallel."""
    a, b = first.flatten(), other.flatten()
    angle = torch.acos((a @ b / (a.norm() * b.norm()).clamp_min(1e-12)).clamp(-1, 1))
    place = where.to(first).view(-1, *[1] * first.ndim)
    if angle.sin() < 1e-4:
        return torch.lerp(first, other, place)
    return ((1 - place) * angle).sin() / angle.sin() * first + (place * angle).sin() / angle.sin() * other


def _between(pair: TextContext, where: Tensor) -> TextContext:
    """Contexts [n] between the two rows of `pair`. A token that one prompt lacks counts with a weight that grows from 0 to 1."""
    def lerp(rows: Tensor) -> Tensor:
        place = where.to(rows.dtype if rows.is_floating_point() else where.dtype).view(-1, *[1] * (rows.ndim - 1))
        return torch.lerp(rows[:1].to(place.dtype), rows[1:].to(place.dtype), place)

    keys_values = tuple((lerp(key), lerp(value)) for key, value in pair.keys_values)
    return TextContext(keys_values, None if pair.mask is None else lerp(pair.mask))


def _open(pipe: IRISPipeline, prompt: str | Sequence[str], settings: dict[str, Any]) -> tuple[Any, GuidedVelocity, Tensor]:
    """The checked request, its velocity field and the seeds' noise: the one place that knows how a pipeline begins."""
    names = ("negative_prompt", "num_steps", "num_iterations", "guidance_scale", "seed", "num_images", "sampler", "carry_state", "timestep_shift")
    unknown = set(settings) - set(names)
    if unknown:
        raise EditError(f"{sorted(unknown)[0]} is no setting of an edit; use {', '.join(names)}.")
    request = pipe._request(prompt, **{name: settings.get(name) for name in names} | {"num_images": settings.get("num_images", 1)})
    with torch.inference_mode():
        velocity = pipe._velocity(request, *pipe.contexts(request.prompts, request.negative_prompt))
        return request, velocity, pipe._noise(request.seeds)


def _times(request: Any, strength: float) -> Tensor:
    """From t = strength to 0 in as many steps as the call would have left there; [0] alone when there is nothing to do."""
    left = max(1, round(request.num_steps * unshifted(strength, request.timestep_shift)))
    return request.times(strength, left) if strength > 0 else torch.zeros(1)


def _solve(pipe: IRISPipeline, field: Velocity, latents: Tensor, noise: Tensor, strength: float, request: Any) -> Iterator[SampleStep]:
    """The request's sampler from the point t = strength of the path between `latents` and `noise`."""
    latents = latents.expand_as(noise)
    times = _times(request, strength)
    if len(times) == 1:
        return iter([_untouched(latents)])
    start = interpolate(latents, noise, times[:1].to(latents).expand(len(latents))).z_t
    return SAMPLERS[request.sampler](field, start, times, pipe._renoise(request.seeds))


def _untouched(latents: Tensor) -> SampleStep:
    return SampleStep(0, 0, 0.0, latents, latents)


def _watch(pipe: IRISPipeline, request: Any, velocity: GuidedVelocity, begin: Callable[[], Iterator[SampleStep]], facts: dict[str, Any],
           complete: Callable[[Pictures], Pictures] = list) -> Iterator[Preview]:
    """Previews of every step; the last one carries the result, with `facts` among its parameters."""
    started = time.monotonic()
    with torch.inference_mode():
        steps = begin()
    while True:
        with torch.inference_mode():  # entered anew each step: the mode must not leak to whoever iterates
            step = next(steps, None)
            if step is None:
                return
            if not velocity.spent:  # nothing was asked of the network
                velocity.spent.append(torch.zeros(len(step.latents), dtype=torch.long))
            result = None
            if step.index == step.num_steps:
                result = pipe._result(request, step.latents, velocity, started)
                result = replace(result, images=complete(result.images), parameters={**result.parameters, **facts})
            images = result.images if result else complete(to_pil(pipe.autoencoder.decode(step.data)))
            seconds = result.seconds if result else time.monotonic() - started
        yield Preview(step.index, step.num_steps, images, torch.stack(velocity.spent).T.tolist(), seconds, result)


# --- checks --------------------------------------------------------------------------------------------------------


def _share(name: str, value: object, most: float = 1.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not 0 <= value <= most:
        raise EditError(f"{name} is {shortened(value)}; use a number from 0 to {most:g}.")
    return float(value)


def _source(pipe: IRISPipeline, image: object) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise EditError("there is no picture to edit; give one.")
    if image.size != (pipe.image_size, pipe.image_size):
        raise EditError(f"the picture is {image.width} x {image.height}; this model edits {pipe.image_size} x {pipe.image_size}.")
    return opaque(image)


def _mask(mask: Image.Image | np.ndarray, source: Image.Image) -> np.ndarray:
    """bool [H, W], true where to draw."""
    values = np.asarray(opaque(mask, (0, 0, 0)).convert("L")) if isinstance(mask, Image.Image) else np.asarray(mask)
    if values.dtype != bool:
        values = values >= (128 if values.max(initial=0) > 1 else 0.5)  # 0 to 255, or 0 to 1
    if values.shape != (source.height, source.width):
        raise EditError(f"the mask is {' x '.join(map(str, values.shape[::-1]))}; it must be {source.width} x {source.height} like the picture.")
    if not values.any():
        raise EditError("the mask is empty; mark the part that should be drawn anew.")
    if values.all():
        raise EditError("the mask covers the whole picture; leave a part of it, or use image to image.")
    return values
