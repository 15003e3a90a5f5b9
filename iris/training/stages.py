"""The five stages as recipes: choose data and a loss, call `fit`, measure on held-out data, save a model.

Between stages only folders pass: every recipe writes RUN/pipeline, and the next one takes that folder as `init`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iris.checkpoint import CheckpointError, load_module, read_checkpoint, resolve_folder, write_checkpoint
from iris.config import IRISConfig
from iris.data.base import DataError, ImageDataset, fingerprint
from iris.features import load_features
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator
from iris.pipeline import SamplingDefaults, state_dicts
from iris.runs import Run
from iris.text import load_text_encoder
from iris.training.batches import ImageBatches, LatentBatches, LatentDataset, to_images
from iris.training.ending import training_goes_on
from iris.training.latents import Captions, captions_of_class, encode_dataset, weights_digest, written_captions
from iris.training.loop import FitResult, OnLog, TrainConfig, compile_blocks, fit, join_processes
from iris.training.losses import ConsistencyLoss, ReconstructionLoss, RectifiedFlowLoss


@dataclass(frozen=True)
class StageResult:
    """Where the stage's model lies and the figures it ended with (also in RUN/summary.json)."""

    pipeline_path: Path
    summary: dict[str, Any]


# --- stage 1 -------------------------------------------------------------------------------------------------------


def train_autoencoder(config: IRISConfig, train_data: ImageDataset, held_out_data: ImageDataset, train: TrainConfig, run: Run,
                      init: str | Path | None = None, on_log: OnLog | None = None, perceptual_weight: float = 0.1) -> StageResult:
    """Stage 1: the wavelet VAE. The perceptual term is left out when its package is missing, and the summary says so."""
    torch.manual_seed(train.seed)  # initial weights only; all later draws are named by (seed, step)
    autoencoder = WaveletVAE(config.autoencoder)
    if init is not None:
        load_module(autoencoder, _read_model(init, config, ("autoencoder",))["autoencoder"])
    begun = weights_digest(autoencoder) if init is not None else "from nothing"
    features = load_features("lite0") if perceptual_weight > 0 else None
    run.settle(stage=1, pictures=fingerprint(train_data), autoencoder=begun, perceptual_weight=perceptual_weight, perceptual_network=features is not None)
    loss = ReconstructionLoss(features, perceptual_weight=perceptual_weight)
    if features is not None:
        features.to("cuda" if torch.cuda.is_available() else "cpu", train.dtype)
    result = fit(autoencoder, ImageBatches(train_data, train.batch_size, train.seed), loss, train, run,
                 ImageBatches(held_out_data, train.batch_size, train.seed), on_log)
    autoencoder = result.module.float()
    if _training_of(run.pipeline_path if run.pipeline_path.is_dir() else None).get("step") == result.step:
        # Looked at again, perhaps on another machine: later stages know its latents by the last bit, so they are not measured anew.
        load_module(autoencoder, _read_model(run.pipeline_path, config, ("autoencoder",))["autoencoder"])
    else:
        calibrate(autoencoder, train_data, train.seed)
    summary = {"held_out_psnr": held_out_psnr(autoencoder, held_out_data), "perceptual_loss": features is not None}
    return _finish(1, run, config, train, result, summary, train_data, {"autoencoder": autoencoder}, init=init)


def _sample_images(dataset: ImageDataset, limit: int, seed: int) -> torch.Tensor:
    """Up to `limit` pictures of a data set, evenly chosen by seed, [n, 3, H, W]."""
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:limit]
    return to_images(np.stack([dataset[int(index)].image for index in chosen]))


@torch.no_grad()
def calibrate(autoencoder: WaveletVAE, dataset: ImageDataset, seed: int = 0, limit: int = 1024) -> None:
    """Store the latents' mean per channel and one standard deviation for all, measured on training pictures.

    One factor keeps the channels' proportions: coarse channels stand out of the noise first and detail last, as in pixels,
    and the flow's squared error weighs them as a picture does. Whitening each channel gives detail thirteen sixteenths of
    the loss; that this is worse is an argument, not yet a measurement (reports/LOG.md, 2026-11-23).
    """
    device = next(autoencoder.parameters()).device
    raw = torch.cat([autoencoder.posterior(piece.to(device)).mean for piece in _sample_images(dataset, limit, seed).split(64)])
    common = raw.var((0, 2, 3)).mean().sqrt()
    autoencoder.calibrate(raw.mean((0, 2, 3)), common.expand(raw.shape[1]))


@torch.no_grad()
def held_out_psnr(autoencoder: WaveletVAE, dataset: ImageDataset, limit: int = 256) -> float:
    """Median PSNR in dB (range 2) of reconstructions over up to `limit` held-out pictures."""
    device = next(autoencoder.parameters()).device
    errors = []
    for piece in _sample_images(dataset, limit, 0).split(64):
        output = autoencoder.decode(autoencoder.encode(piece.to(device))).clamp(-1, 1).cpu()
        errors.append((output - piece).square().flatten(1).mean(1))
    return float((10 * torch.log10(4.0 / torch.cat(errors).clamp_min(1e-10))).median())


# --- stages 2 to 4 -------------------------------------------------------------------------------------------------


def train_class_conditional(config: IRISConfig, train_data: ImageDataset, held_out_data: ImageDataset, train: TrainConfig, run: Run,
                            init: str | Path, on_log: OnLog | None = None, **loss_options: Any) -> StageResult:
    """Stage 2 (PixArt-alpha's first decomposition): learn the pictures, told only their class as a caption. DataError where there is none."""
    if not any(train_data[index].label for index in range(min(len(train_data), 100))):
        raise DataError(f"the pictures of {train_data.name} have captions and no classes, which stage 2 is about; train text-to-image, stage 3, on them.")
    return _train_flow(2, config, train_data, held_out_data, train, run, init, on_log, captions_of_class, loss_options)


def train_text_to_image(config: IRISConfig, train_data: ImageDataset, held_out_data: ImageDataset, train: TrainConfig, run: Run,
                        init: str | Path, on_log: OnLog | None = None, **loss_options: Any) -> StageResult:
    """Stage 3: align text and image with the pictures' own captions.

    A third of the steps first for where things stand, unless `init` has been through stage 3 before and knows.
    """
    coarse = 0 if _training_of(init).get("stage", 1) >= 3 else train.train_steps // 3
    return _train_flow(3, config, train_data, held_out_data, train, run, init, on_log, written_captions,
                       {"coarse_until": coarse} | free_depth(train) | loss_options)


def train_aesthetic(config: IRISConfig, train_data: ImageDataset, held_out_data: ImageDataset, train: TrainConfig, run: Run,
                    init: str | Path, on_log: OnLog | None = None, **loss_options: Any) -> StageResult:
    """Stage 4: the same training on the subset whose look is wanted."""
    return _train_flow(4, config, train_data, held_out_data, train, run, init, on_log, written_captions, free_depth(train) | loss_options)


def free_depth(train: TrainConfig) -> dict[str, Any]:
    """Options of the flow loss that make a state worth carrying over, in the second half of stages 3 and 4.

    No exits: they made the shared core right at once, and later iterations idle (reports/LOG.md, 2026-11-26).
    """
    return {"warm_start": 0.25, "free_from": train.train_steps // 2}


def _train_flow(stage: int, config: IRISConfig, train_data: ImageDataset, held_out_data: ImageDataset, train: TrainConfig, run: Run,
                init: str | Path, on_log: OnLog | None, captions: Captions, loss_options: dict[str, Any]) -> StageResult:
    autoencoder, generator = load_models(init, config, train.seed)
    begun = weights_digest(generator) if "generator" in _read_model(init, config, ("generator",)) else "from nothing"
    run.settle(stage=stage, autoencoder=weights_digest(autoencoder), generator=begun, pictures=fingerprint(train_data))
    data = _encode_both(config, autoencoder, train_data, held_out_data, captions, run)
    loss = RectifiedFlowLoss(**loss_options)
    result = _fit_latents(generator, loss, data, train, run, on_log)
    modules = {"autoencoder": autoencoder, "generator": result.module.float()}
    return _finish(stage, run, config, train, result, {}, train_data, modules, init=init, loss_options=loss_options)


def _encode_both(config: IRISConfig, autoencoder: WaveletVAE, train_data: ImageDataset, held_out_data: ImageDataset, captions: Captions,
                 run: Run) -> tuple[LatentDataset, LatentDataset]:
    """Cached latents and text states of both splits; encoders leave the device afterwards."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text_encoder = load_text_encoder(config.text, device)
    autoencoder.to(device)
    with join_processes().main_process_first():  # the others read what the first has written
        encoded = tuple(encode_dataset(autoencoder, text_encoder, data, captions, run.path / "latents" / split)
                        for split, data in (("train", train_data), ("held_out", held_out_data)))
    autoencoder.to("cpu")
    return encoded


def _fit_latents(generator: Generator, loss: RectifiedFlowLoss, data: tuple[LatentDataset, LatentDataset], train: TrainConfig, run: Run,
                 on_log: OnLog | None) -> FitResult:
    batches, held_out = (LatentBatches(split, train.batch_size, train.seed) for split in data)
    return fit(generator, batches, loss, train, run, held_out, on_log)


# --- stage 5 -------------------------------------------------------------------------------------------------------

# A jump's new noise hides detail that the next one must find again: below 1/2 it hides less (reports/LOG.md, 2026-11-28; measured on scenes).
STUDENT_SHIFT = 0.7


def distill(config: IRISConfig, train_data: ImageDataset, held_out_data: ImageDataset, train: TrainConfig, run: Run, init: str | Path,
            on_log: OnLog | None = None, guidance_scale: float = 3.0, student_init: str | Path = "", **loss_options: Any) -> StageResult:
    """Stage 5: a student that jumps to the data in 1, 2 or 4 steps, with the teacher's guidance inside.

    It starts as its teacher, `init`, or as `student_init`, an earlier student that goes on learning.
    """
    autoencoder, teacher = load_models(init, config, train.seed, trained=True)
    beside, student = load_models(student_init or init, config, train.seed, trained=True)
    if weights_digest(beside) != weights_digest(autoencoder):
        raise CheckpointError(f"{student_init} was made with another autoencoder than {init}; a student reads its teacher's latents.")
    run.settle(stage=5, autoencoder=weights_digest(autoencoder), teacher=weights_digest(teacher), student=weights_digest(student),
               pictures=fingerprint(train_data), guidance_scale=guidance_scale)
    data = _encode_both(config, autoencoder, train_data, held_out_data, written_captions, run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loss = ConsistencyLoss(teacher.to(device, train.dtype), guidance_scale, **loss_options)
    if train.compile:
        compile_blocks(loss.teacher)  # asked twice a step, with words and without
    result = _fit_latents(student, loss, data, train, run, on_log)
    student = result.module.float()
    summary = {"guidance_inside": guidance_scale, **one_step_errors(student, teacher.float(), data[1], guidance_scale)}
    defaults = SamplingDefaults(num_steps=4, num_iterations=config.generator.mean_iterations, guidance_scale=1.0, sampler="consistency", timestep_shift=STUDENT_SHIFT)
    return _finish(5, run, config, train, result, summary, train_data, {"autoencoder": autoencoder, "generator": student}, defaults, init,
                   {"guidance_scale": guidance_scale, **loss_options}, student_init or None)


@torch.no_grad()
def one_step_errors(student: Generator, teacher: Generator, held_out: LatentDataset, guidance_scale: float, count: int = 64,
                    reference_steps: int = 32) -> dict[str, float]:
    """Mean squared distance to the teacher's guided 32-step latents, from the same noise: one step of each model."""
    from iris.flow import timestep_schedule
    from iris.rng import rng_for
    from iris.sampling import GuidedVelocity, initial_noise, last_step, sample_euler

    device = next(student.parameters()).device
    items = np.arange(min(count, len(held_out)))
    batch = held_out.batch(items, rng_for(0, 0))
    noise = initial_noise(list(range(len(items))), tuple(batch.latents.shape[1:]), device)
    tokens, mask = batch.tokens.to(device), batch.mask.to(device)
    depth = teacher.config.mean_iterations

    def draw(model: Generator, steps: int, scale: float) -> torch.Tensor:
        velocity = GuidedVelocity(model, model.condition(tokens, mask), model.null_context(len(items)), scale, depth)
        return last_step(sample_euler(velocity, noise, timestep_schedule(steps))).latents

    teacher = teacher.to(device).eval()
    reference = draw(teacher, reference_steps, guidance_scale)
    errors = {"student_one_step_error": draw(student.eval(), 1, 1.0), "teacher_one_step_error": draw(teacher, 1, guidance_scale)}
    return {name: float((latents - reference).square().mean()) for name, latents in errors.items()}


# --- reading and writing models ------------------------------------------------------------------------------------


def _read_model(folder: str | Path, config: IRISConfig, parts: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """The parts that a model folder holds among `parts`; its config must describe the same network."""
    stored = read_checkpoint(resolve_folder(folder))
    theirs = IRISConfig.from_dict(stored.config)
    for part in set(parts) & set(stored.tensors):
        if not config.fits(part, theirs):
            raise CheckpointError(f"the {part} in {folder} was built with another configuration; choose the same preset for every stage.")
    return {part: stored.tensors[part] for part in parts if part in stored.tensors}


def load_models(folder: str | Path, config: IRISConfig, seed: int, trained: bool = False) -> tuple[WaveletVAE, Generator]:
    """Autoencoder and generator of an earlier stage; after stage 1 there is no generator yet and it starts fresh from `seed`,

    unless a `trained` one is asked for.
    """
    stored = _read_model(folder, config, ("autoencoder", "generator"))
    if "autoencoder" not in stored:
        raise CheckpointError(f"{folder} holds no autoencoder; run stage 1 first.")
    if trained and "generator" not in stored:
        raise CheckpointError(f"{folder} holds no generator to learn from; run stage 2, 3 or 4 first.")
    torch.manual_seed(seed)  # initial weights only
    autoencoder, generator = WaveletVAE(config.autoencoder), Generator(config.generator)
    load_module(autoencoder, stored["autoencoder"])
    if "generator" in stored:
        load_module(generator, stored["generator"])
    return autoencoder.eval().requires_grad_(False), generator


def _training_of(folder: str | Path | None) -> dict[str, Any]:
    """What the model in a folder tells of its last training; nothing without a folder."""
    return {} if folder is None else read_checkpoint(resolve_folder(folder), []).metadata.get("training", {})


def _lineage(folder: str | Path | None) -> dict[str, Any]:
    """What went into the model in a folder: `before`, its generator's trainings, the first one first, and what its autoencoder saw."""
    told = _training_of(folder)
    if told.get("stage", 1) == 1:  # made no generator
        seen = dict.fromkeys(filter(None, (told.get("autoencoder_data"), told.get("data"))))  # its own beginning's, and its own
        return {"before": [], "autoencoder_data": "+".join(seen)}
    own = {key: value for key, value in told.items() if key != "before"}
    return {"before": [*told.get("before", []), own], "autoencoder_data": told.get("autoencoder_data", "")}


def _finish(stage: int, run: Run, config: IRISConfig, train: TrainConfig, result: FitResult, summary: dict[str, Any], data: ImageDataset,
            modules: dict[str, torch.nn.Module], defaults: SamplingDefaults | None = None, init: str | Path | None = None,
            loss_options: dict[str, Any] | None = None, student_init: str | Path | None = None) -> StageResult:
    """Write RUN/pipeline and RUN/summary.json (the first process does); the metadata tell the recipe and its `loss_options`."""
    rows = run.metrics()
    held_out = [{"step": row["step"], "held_out_loss": row["held_out_loss"]} for row in rows if row.get("held_out_loss") is not None]
    defaults = defaults or SamplingDefaults(num_iterations=config.generator.mean_iterations)
    lineage = _lineage(init) | ({"before": []} if stage == 1 else {})  # an autoencoder has no part in a generator's trainings
    if student_init:  # it has seen what its first teacher has, which need not be this one
        lineage["before"] += [part for part in _lineage(student_init)["before"] if part not in lineage["before"]]
    training = {"stage": stage, "data": data.name, "examples": len(data), "step": result.step, "minutes": result.seconds / 60,
                "finished": result.finished, "images_seen": result.step * train.batch_size}
    summary = {**training, **summary, "held_out_loss": held_out[-1]["held_out_loss"] if held_out else None,
               "best": min(held_out, key=lambda each: each["held_out_loss"], default=None), "skipped": dict(data.skipped)}
    if join_processes().is_main_process:
        with training_goes_on():
            write_checkpoint(run.pipeline_path, config.to_dict(), state_dicts(**modules),
                             {"stage": stage, "defaults": asdict(defaults), "training": {**training, "recipe": asdict(train), "loss": loss_options or {}, **lineage}})
            run.write_summary(summary)
            run.copy_to_mirror(now=True)  # a notebook's later cells may never come
    return StageResult(run.pipeline_path, summary)
