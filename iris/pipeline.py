"""Prompt to image: the one object that a notebook, the demo and a script hold.

prompt -> text encoder -> Generator.condition -> sampler (a velocity field and noise by seed) -> WaveletVAE.decode -> PIL.
The pipeline is immutable while it generates: every call carries its own parameters.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from iris.checkpoint import CheckpointError, build_module, read_checkpoint, resolve_folder, write_checkpoint
from iris.config import IRISConfig
from iris.data.images import opaque
from iris.flow import interpolate, timestep_schedule
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator, TextContext
from iris.prompts import PromptError, clean_negative_prompt, clean_prompt
from iris.sampling import (
    SAMPLERS,
    GuidedVelocity,
    Renoise,
    SamplingError,
    calls_of,
    initial_noise,
    last_step,
    renoise_by_seed,
)
from iris.text import TextEncoder, load_text_encoder

MAX_SEED = 2**31 - 1
LIMITS = {"num_steps": (1, 100), "num_iterations": (1, 64), "guidance_scale": (0.0, 20.0), "num_images": (1, 16),
          "max_core_passes": (1, 12_800), "strength": (0.0, 1.0), "timestep_shift": (0.1, 10.0)}
MAX_PICTURES = 64  # prompts times images in one call


@dataclass(frozen=True)
class SamplingDefaults:
    """What a call without arguments uses; stored with the weights."""

    num_steps: int = 16
    num_iterations: int | str = 8
    guidance_scale: float = 3.0
    sampler: str = "euler"
    exit_threshold: float = 0.1  # of "auto": relative change of the token that moves most
    carry_state: bool = False
    timestep_shift: float = 1.0

    def carries(self, sampler: str) -> bool:
        """Whether a call with `sampler` that does not say carries the state.

        Over jumps only where they are the model's own and it was measured so: their new noise is not what the old state was made for, and a
        model that never met that in training drew 29 % right where it drew all (reports/LOG.md, 2026-11-28).
        """
        return self.carry_state and (sampler == self.sampler or sampler != "consistency")


@dataclass(frozen=True)
class GeneratedImages:
    """Pictures and all it takes to make them again.

    `iterations[i]` lists the core iterations of picture i at every call of the network: one a step, two with Heun. `latents` and
    `state`, the core's last one, are where `IRISPipeline.refine` goes on; both lie in main memory, wherever they were computed.
    """

    images: list[Image.Image]
    prompts: list[str]
    seeds: list[int]
    iterations: list[list[int]]
    seconds: float
    parameters: dict[str, Any]
    latents: Tensor = field(repr=False)
    state: Tensor | None = field(repr=False, default=None)

    def parameters_of(self, index: int) -> dict[str, Any]:
        """Prompt, seed and settings of one picture, as they are written into a PNG."""
        return {"prompt": self.prompts[index], "seed": self.seeds[index], **self.parameters}


@dataclass(frozen=True)
class Preview:
    """Decoded pictures after a solver step; the last one carries the `result`."""

    step: int
    num_steps: int
    images: list[Image.Image]
    iterations: list[list[int]]
    seconds: float
    result: GeneratedImages | None = None


@dataclass(frozen=True)
class _Request:
    """A checked call: one entry a picture."""

    prompts: list[str]
    negative_prompt: str | None
    seeds: list[int]
    num_steps: int
    num_iterations: int | str
    guidance_scale: float
    sampler: str
    carry_state: bool = False
    max_core_passes: int | None = None
    timestep_shift: float = 1.0

    def times(self, start: float = 1.0, num_steps: int | None = None) -> Tensor:
        """The times of the call's steps, from `start` down to 0."""
        return timestep_schedule(self.num_steps if num_steps is None else num_steps, self.timestep_shift, start)


def _number(name: str, value: object, kind: type, other: str = "") -> Any:
    """`value` as int or float within its limits, or a SamplingError that says what is allowed; `other` is a word that would do too."""
    low, high = LIMITS[name]
    whole = isinstance(value, (int, np.integer)) or (isinstance(value, float) and kind is int and value.is_integer())
    fits = not isinstance(value, bool) and (whole or (kind is float and isinstance(value, (float, np.floating))))
    if not fits or not low <= value <= high:
        raise SamplingError(f"{name} is {shortened(value)}; use {'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}{other and f' or {other!r}'}.")
    return kind(value)


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise SamplingError(f"{name} is {shortened(value)}; use True or False.")
    return bool(value)


def _seed(value: object) -> int:
    whole = isinstance(value, (int, np.integer)) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value <= MAX_SEED:
        raise SamplingError(f"seed is {shortened(value)}; use a whole number from 0 to {MAX_SEED}.")
    return int(value)


def to_pil(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [-1, 1] -> PIL pictures: round((x + 1) * 127.5), clamped."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def from_pil(images: Sequence[Image.Image]) -> Tensor:
    """PIL pictures of one size -> [B, 3, H, W] in [-1, 1], transparency on white as in training; the inverse of `to_pil`."""
    pixels = np.stack([np.asarray(opaque(image)) for image in images])
    return torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


class IRISPipeline:
    """A trained IRIS model with its text encoder: `pipe("red apple", seed=7).images[0]`."""

    def __init__(self, config: IRISConfig, autoencoder: WaveletVAE, generator: Generator, text_encoder: TextEncoder,
                 defaults: SamplingDefaults | None = None, metadata: dict[str, Any] | None = None) -> None:
        self.config = config
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.generator = generator.eval().requires_grad_(False)
        self.text_encoder = text_encoder
        self.defaults = defaults or SamplingDefaults()
        self.metadata = metadata or {}

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return self.config.autoencoder.image_size

    @property
    def distilled(self) -> bool:
        """Whether this is a student: it learned to jump in one to four steps, with its teacher's guidance inside (stage 5)."""
        return self.metadata.get("stage") == 5

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def to(self, device: torch.device | str) -> IRISPipeline:
        """Move every part; returns the pipeline. It stays in fp32: for half precision draw within torch.autocast."""
        device = torch.device(device)
        self.autoencoder.to(device)
        self.generator.to(device)
        self.text_encoder = self.text_encoder.to(device)
        return self

    # --- generating ------------------------------------------------------------------------------------------------

    def __call__(self, prompt: str | Sequence[str], negative_prompt: str | None = None, num_steps: int | None = None,
                 num_iterations: int | str | None = None, guidance_scale: float | None = None,
                 seed: int | Sequence[int] | None = None, num_images: int = 1, sampler: str | None = None,
                 carry_state: bool | None = None, max_core_passes: int | None = None,
                 timestep_shift: float | None = None) -> GeneratedImages:
        """Pictures for one prompt or a list of them (`num_images` each); arguments left out are the model's defaults.

        seed: one number (image k of a prompt takes seed + k), one a picture, or None for random ones, which the result
        names. num_iterations: 1 to 64 or "auto"; max_core_passes bounds what "auto" spends on a picture over all steps.
        A negative_prompt needs guidance. carry_state: each step's core starts from the last one's state. timestep_shift: below 1 the steps are finer near the finished
        picture, above 1 near noise. A prompt is read up to config.text.max_tokens; `unread` tells what is beyond. Raises PromptError or SamplingError with one
        sentence.
        """
        request = self._request(prompt, negative_prompt, num_steps, num_iterations, guidance_scale, seed, num_images, sampler, carry_state,
                                max_core_passes, timestep_shift)
        started = time.monotonic()
        with torch.inference_mode():
            velocity, steps = self._start(request)
            latents = last_step(steps).latents
            return self._result(request, latents, velocity, started)

    def stream(self, prompt: str | Sequence[str], negative_prompt: str | None = None, num_steps: int | None = None,
               num_iterations: int | str | None = None, guidance_scale: float | None = None,
               seed: int | Sequence[int] | None = None, num_images: int = 1, sampler: str | None = None,
               carry_state: bool | None = None, max_core_passes: int | None = None,
               timestep_shift: float | None = None) -> Iterator[Preview]:
        """As calling the pipeline, but yields decoded pictures after every step; closing the iterator stops the work."""
        request = self._request(prompt, negative_prompt, num_steps, num_iterations, guidance_scale, seed, num_images, sampler, carry_state,
                                max_core_passes, timestep_shift)
        started = time.monotonic()
        with torch.inference_mode():
            velocity, steps = self._start(request)
        while True:
            with torch.inference_mode():  # entered anew each step: the mode must not leak to whoever iterates
                step = next(steps, None)
                if step is None:
                    return
                result = self._result(request, step.latents, velocity, started) if step.index == step.num_steps else None
                images = result.images if result is not None else to_pil(self.autoencoder.decode(step.data))
                seconds = result.seconds if result is not None else time.monotonic() - started
            yield Preview(step.index, step.num_steps, images, _spent(velocity), seconds, result)

    def _request(self, prompt, negative_prompt, num_steps, num_iterations, guidance_scale, seed, num_images, sampler,
                 carry_state=None, max_core_passes=None, timestep_shift=None) -> _Request:
        prompts = [prompt] if isinstance(prompt, str) or not isinstance(prompt, (list, tuple)) else list(prompt)
        count = _number("num_images", num_images, int)
        if not prompts or len(prompts) * count > MAX_PICTURES:
            raise PromptError(f"{len(prompts)} prompts of {count} pictures were asked for; use 1 to {MAX_PICTURES} pictures in one call.")
        prompts = [clean_prompt(text) for text in prompts for _ in range(count)]
        depth = self.defaults.num_iterations if num_iterations is None else num_iterations
        name = self.defaults.sampler if sampler is None else sampler
        if not isinstance(name, str) or name not in SAMPLERS:
            raise SamplingError(f"sampler is {shortened(name)}; use one of {', '.join(SAMPLERS)}.")
        scale = _number("guidance_scale", self.defaults.guidance_scale if guidance_scale is None else guidance_scale, float)
        negative_prompt = clean_negative_prompt(negative_prompt)
        if negative_prompt is not None and scale == 1.0:
            raise SamplingError("a negative_prompt needs a guidance_scale other than 1: without guidance nothing is steered away from.")
        return _Request(
            prompts, negative_prompt, self._seeds(seed, len(prompts), count),
            _number("num_steps", self.defaults.num_steps if num_steps is None else num_steps, int),
            "auto" if depth == "auto" else _number("num_iterations", depth, int, "auto"),
            scale, name,
            self.defaults.carries(name) if carry_state is None else _switch("carry_state", carry_state),
            None if max_core_passes is None else _number("max_core_passes", max_core_passes, int),
            _number("timestep_shift", self.defaults.timestep_shift if timestep_shift is None else timestep_shift, float))

    @staticmethod
    def _seeds(seed: object, pictures: int, per_prompt: int) -> list[int]:
        if seed is None:
            return [secrets.randbelow(MAX_SEED + 1) for _ in range(pictures)]
        if isinstance(seed, (list, tuple)):
            if len(seed) != pictures:
                raise SamplingError(f"{len(seed)} seeds were given for {pictures} pictures; give one a picture, or a single one.")
            return [_seed(value) for value in seed]
        first = _seed(seed)
        return [(first + index % per_prompt) % (MAX_SEED + 1) for index in range(pictures)]

    def unread(self, prompt: str) -> str:
        """The end of a prompt that the text encoder does not read, for it takes config.text.max_tokens; "" of one that it reads whole."""
        return self.text_encoder.unread(clean_prompt(prompt))

    def contexts(self, prompts: list[str], negative_prompt: str | None = None) -> tuple[TextContext, TextContext]:
        """The context of the prompts and the one guidance steers away from: the null caption, or a negative prompt."""
        def encode(texts: list[str]) -> TextContext:
            condition = self.text_encoder.encode(texts).to(self.device)
            return self.generator.condition(condition.tokens, condition.mask)

        away = self.generator.null_context(len(prompts)) if negative_prompt is None else encode([negative_prompt] * len(prompts))
        return encode(prompts), away

    def _start(self, request: _Request) -> tuple[GuidedVelocity, Iterator]:
        velocity = self._velocity(request, *self.contexts(request.prompts, request.negative_prompt))
        return velocity, SAMPLERS[request.sampler](velocity, self._noise(request.seeds), request.times(), self._renoise(request.seeds))

    def _noise(self, seeds: list[int]) -> Tensor:
        return initial_noise(seeds, self.config.autoencoder.latent_shape, self.device)

    def _renoise(self, seeds: list[int]) -> Renoise:
        return renoise_by_seed(seeds, self.config.autoencoder.latent_shape, self.device)

    def _velocity(self, request: _Request, context: TextContext, away: TextContext, state: Tensor | None = None) -> GuidedVelocity:
        """The velocity field of a request; `state` is where the core starts when it carries its state."""
        return GuidedVelocity(self.generator, context, away, request.guidance_scale, request.num_iterations, threshold=self.defaults.exit_threshold,
                              carry_state=request.carry_state, state=state, max_core_passes=request.max_core_passes,
                              num_calls=calls_of(request.sampler, request.num_steps))

    def refine(self, result: GeneratedImages, strength: float | None = None, num_steps: int = 1,
               num_iterations: int | str | None = None) -> GeneratedImages:
        """Think on about finished pictures: back to time `strength` on each seed's path, then `num_steps` steps from the kept state.

        Without `strength` it goes back to the time at which the last step began, at most to 1/2: of pictures of one step that
        time is 1, where nothing is left of them. The first core pass starts from the state that the pictures were finished with.
        The steps are Euler's, whatever sampler drew the pictures.
        """
        kept = result.parameters
        if result.state is None or kept["model_hash"] != self.metadata.get("hash", ""):
            raise SamplingError("these pictures hold no state of this model; draw them with it before refining.")
        if "edit" in kept:  # its mask, its two prompts or its frames are not kept, and an inpainted picture would change outside the mask
            raise SamplingError(f"these pictures are an edit ({kept['edit']}); only what was drawn from a prompt alone is refined.")
        request = self._request(result.prompts, kept["negative_prompt"], num_steps, kept["num_iterations"] if num_iterations is None else num_iterations,
                                kept["guidance_scale"], result.seeds, 1, "euler", True, timestep_shift=kept["timestep_shift"])
        last = float(timestep_schedule(kept["num_steps"], request.timestep_shift)[-2])
        begin = _number("strength", min(last, 0.5) if strength is None else strength, float)
        started = time.monotonic()
        with torch.inference_mode():
            velocity = self._velocity(request, *self.contexts(request.prompts, request.negative_prompt), state=result.state.to(self.device))
            z = interpolate(result.latents.to(self.device), self._noise(request.seeds), torch.full((len(request.seeds),), begin, device=self.device)).z_t
            latents = last_step(SAMPLERS["euler"](velocity, z, request.times(begin))).latents
            refined = self._result(request, latents, velocity, started)
        return replace(refined, iterations=[before + after for before, after in zip(result.iterations, refined.iterations, strict=True)],
                       seconds=result.seconds + refined.seconds, parameters={**kept, "refined": [*kept.get("refined", []), [begin, request.num_steps, request.num_iterations]]})

    def _result(self, request: _Request, latents: Tensor, velocity: GuidedVelocity, started: float) -> GeneratedImages:
        """The finished pictures of what began at `started`; the time counts until they are here as pixels, also from a GPU."""
        images = self.decode(latents)
        seconds = time.monotonic() - started
        parameters = {"num_steps": request.num_steps, "num_iterations": request.num_iterations, "guidance_scale": request.guidance_scale,
                      "sampler": request.sampler, "negative_prompt": request.negative_prompt or "", "model": self.config.name,
                      "model_hash": self.metadata.get("hash", ""), "carry_state": request.carry_state, "timestep_shift": request.timestep_shift}
        if request.max_core_passes is not None:
            parameters["max_core_passes"] = request.max_core_passes
        state = None if velocity.state is None else velocity.state.cpu()
        return GeneratedImages(images, request.prompts, request.seeds, _spent(velocity), seconds, parameters, latents.cpu(), state)

    # --- images and latents ----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """PIL pictures of one size (sides multiples of the downsampling factor) -> latents [B, C, h, w]."""
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        return self.autoencoder.encode(from_pil(pictures).to(self.device))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Latents [B, C, h, w] -> PIL pictures."""
        return to_pil(self.autoencoder.decode(latents.to(self.device)))

    # --- storing ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: torch.device | str | None = None, text_path: str | Path = "") -> IRISPipeline:
        """Load a folder or a hub id. Only safetensors and JSON are read, and every file's sha256 is checked.

        text_path: a folder of the text encoder, in place of the one that the model's own config names.
        """
        folder = resolve_folder(name_or_path)
        stored = read_checkpoint(folder)
        if set(stored.tensors) != {"autoencoder", "generator"}:
            raise CheckpointError(f"{folder} holds {', '.join(sorted(stored.tensors)) or 'nothing'}; a pipeline needs an autoencoder and a generator.")
        config = IRISConfig.from_dict(stored.config)
        config = replace(config, text=replace(config.text, path=str(text_path))) if text_path else config
        autoencoder = build_module(lambda: WaveletVAE(config.autoencoder), stored.tensors["autoencoder"])
        generator = build_module(lambda: Generator(config.generator), stored.tensors["generator"])
        try:
            defaults = SamplingDefaults(**stored.metadata.get("defaults", {}))
            float(defaults.exit_threshold + 0)  # the one that no call can say otherwise, so nothing else would look at it
        except TypeError:
            raise CheckpointError(f"the sampling defaults in {folder} are not those this version knows.") from None
        pipeline = cls(config, autoencoder, generator, load_text_encoder(config.text), defaults, {**stored.metadata, "hash": manifest_hash(stored.folder)})
        return pipeline.to(device) if device is not None else pipeline

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = torch.float16, eight_bits: Sequence[str] = ()) -> Path:
        """Write config.json, safetensors shards below 10 MB and a sha256 manifest, atomically; returns the folder.

        eight_bits: of "generator" and "autoencoder" those whose matrices are stored as int8, in half of fp16's size.
        Where this computer keeps the text encoder is left out: it would be wrong on another one.
        """
        metadata = {key: value for key, value in self.metadata.items() if key != "hash"} | {"defaults": asdict(self.defaults)}
        config = replace(self.config, text=replace(self.config.text, path=""))
        return write_checkpoint(Path(folder), config.to_dict(), state_dicts(autoencoder=self.autoencoder, generator=self.generator),
                                metadata, dtype=dtype, eight_bits=eight_bits)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload to the hub (a login is needed); returns the address of the commit."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:  # that of an earlier push, which a later wish does not change
            raise CheckpointError(f"the repository {repo_id} is public already; make it private in its settings first.")
        with tempfile.TemporaryDirectory() as folder:
            # What an earlier push left of more shards would not belong to the checkpoint.
            return str(api.upload_folder(repo_id=repo_id, folder_path=str(self.save_pretrained(Path(folder) / "model")), delete_patterns=["*.safetensors", "*.json"]))


def state_dicts(**modules: nn.Module) -> dict[str, dict[str, Tensor]]:
    """part -> state dict, as checkpoints take them."""
    return {part: dict(module.state_dict()) for part, module in modules.items()}


def manifest_hash(folder: Path) -> str:
    """Twelve hex digits that name the exact weights and config of a checkpoint folder."""
    import hashlib

    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()[:12]


def _spent(velocity: GuidedVelocity) -> list[list[int]]:
    """iterations[picture][step], from the field's record of calls."""
    return torch.stack(velocity.spent).T.tolist()
