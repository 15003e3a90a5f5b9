"""What every notebook does with a finished run: load its model, show it in rows of pictures, keep figures, leave a summary."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from iris.checkpoint import load_module, read_checkpoint
from iris.config import IRISConfig
from iris.data import Example, ImageDataset, caption_scene, check_scene, load_dataset_by_name, streams
from iris.evaluation.drawing import telling_caption, usual_device
from iris.evaluation.metrics import Estimate, psnr
from iris.evaluation.neighbours import Nearest
from iris.evaluation.quality import SCENE_FACTS, scene_specs
from iris.evaluation.style import save_figure
from iris.nn.autoencoder import WaveletVAE
from iris.pipeline import IRISPipeline, from_pil, to_pil
from iris.places import SHIPPED, find_model, mirror_of, newest_pipeline
from iris.runs import CONFIG_FILE, Run, read_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL_MODEL = "runs/04/pipeline"  # what the notebooks that measure take when nothing else is said


# --- the run's own record ------------------------------------------------------------------------------------------


def listed(value: Sequence[Any] | str) -> list[Any]:
    """A list parameter of a notebook; the one word that `papermill -p` gives for it is a list of one, not of its letters."""
    return [value] if isinstance(value, str) and value else list(value)


def machine() -> str:
    """The computer in a few words, e.g. "Tesla T4, 2 CPU cores, Python 3.11, torch 2.13.0"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cores} CPU core{'s' if cores > 1 else ''}, Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"


def open_measurement(folder: str | Path, pipe: IRISPipeline | None = None) -> Run:
    """The run folder of a notebook that measures and trains nothing, with its mirror where IRIS_MIRROR names one.

    With a `pipe` it belongs to that model: what another one left there is put aside, in RUN/previous-N.
    """
    mirror = mirror_of(folder)
    measured = {} if pipe is None else {"measured": {"preset": pipe.config.name, "model_hash": pipe.metadata.get("hash", "")}}
    known = [read_config(place) for place in (folder, mirror) if place and (Path(place) / CONFIG_FILE).exists()]
    run = Run.open(folder, measured, resume=all(there == measured for there in known), mirror=mirror, take_over=True)
    for figure in (run.path / "figures").glob("*.png"):
        figure.unlink()  # of an earlier measurement; one that is not made again now would stand beside figures that it is not of
    return run


def keep_figure(run: Run, name: str, figure: Figure) -> Figure:
    """Save the figure as RUN/figures/NAME.png and give it back, so that the last line of a cell shows it."""
    save_figure(figure, run.figure_path(name), dpi=110)
    return figure


def close_run(run: Run, notebook: str, reading: Sequence[str], **figures: Any) -> None:
    """Add `figures` and the `reading` (sentences) to the run's summary, print the reading, and give the folder back.

    The entry "notebook" is written here alone: a summary without it belongs to a notebook that did not reach its end.
    """
    run.write_summary({**run.summary(), **read_config(run.path), **figures, "reading": list(reading), "machine": machine(), "notebook": notebook})
    run.close()
    print("\n".join(reading))


def steps_reading(summary: Mapping[str, Any], train_steps: int) -> str:
    """How long a training took, and whether its minutes ended it before its `train_steps`."""
    told = f"{summary['step']:,} of {train_steps:,} steps in {summary['minutes']:.1f} minutes, {summary['images_seen']:,} pictures seen."
    return told if summary["finished"] else f"{told} Its minutes or a stop ended it before its last step: run it again with more, and it goes on."


def retrieval_reading(found: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], dict[str, float]]:
    """`quality.art_retrieval` in sentences, and the first five in per cent by split; "of_ceiling" is that of held-out pairs over what real art reaches."""
    sentences = [f"Found among real art, {split.replace('_', ' ')}: {result['top_5'].value:.0%} in the first five, {result['top_1'].value:.0%} first."
                 for split, result in found.items()]
    percent = {split: 100 * result["top_5"].value for split, result in found.items()}
    pairs = found.get("held_out_pairs")
    if pairs and "ceiling_top_5" in pairs and pairs["ceiling_top_5"].value > 0:
        percent["of_ceiling"] = 100 * pairs["top_5"].value / pairs["ceiling_top_5"].value
    return sentences, percent


def scene_bars(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Estimate]:
    """`quality.scene_accuracy` as bars: what is right by kind, what the autoencoder would allow, and who stands on which side."""
    bars = {kind: result["right"] for kind, result in found.items()} | {f"ceiling: {kind}": result["ceiling"] for kind, result in found.items()}
    sides = found.get("relation", {}).get("sides")
    return bars | ({"sides (chance: 50 %)": sides} if sides else {})


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown: the first column left, figures right."""
    align = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, align, *rows))


# --- models and pictures -------------------------------------------------------------------------------------------


def load_pipeline(folder: str | Path) -> IRISPipeline:
    """A model folder or hub id as a pipeline, on the GPU where there is one; for USUAL_MODEL, where no stage 4 was run, what is there instead."""
    name = find_model(str(folder))
    if not name and str(folder) == USUAL_MODEL:
        name = newest_pipeline() or find_model(SHIPPED)
        print(f"There is no model in {folder}; this is {name}.")
    return IRISPipeline.from_pretrained(name or folder, usual_device())


def load_autoencoder(folder: str | Path) -> WaveletVAE:
    """The autoencoder of a model folder, which needs no generator, on the GPU where there is one."""
    stored = read_checkpoint(find_model(str(folder)) or folder, ["autoencoder"])
    autoencoder = WaveletVAE(IRISConfig.from_dict(stored.config).autoencoder)
    load_module(autoencoder, stored.tensors["autoencoder"])
    return autoencoder.eval().requires_grad_(False).to(usual_device())


def first_examples(dataset: ImageDataset, count: int = 8) -> list[Example]:
    """The first `count` examples of a data set, or all of a smaller one."""
    return [dataset[index] for index in range(min(count, len(dataset)))]


def load_pictures_for(pipe: IRISPipeline, data: str, split: str = "held_out", limit: int = 500) -> ImageDataset:
    """Pictures of the source `data` at the size that the model draws; at most `limit` of one that is streamed."""
    return load_dataset_by_name(data, pipe.image_size, split, limit if streams(data) else None)


def prompts_for(pipe: IRISPipeline, data: str, given: Sequence[str]) -> list[str]:
    """`given`, each empty one replaced by the next caption of a held-out picture of `data`: what a model is asked for, it should have been taught."""
    if all(given):
        return list(given)
    captions = list(dict.fromkeys(telling_caption(item) for item in first_examples(load_pictures_for(pipe, data), 8 * len(given))))
    unasked = iter(captions * len(given))
    return [prompt or next(unasked) for prompt in given]


@torch.inference_mode()
def reconstruct(folder: str | Path, images: Sequence[np.ndarray]) -> list[Image.Image]:
    """uint8 pictures through the autoencoder of a model folder and back."""
    autoencoder = load_autoencoder(folder)
    return to_pil(autoencoder.decode(autoencoder.encode(from_pil([Image.fromarray(image) for image in images]).to(usual_device()))))


def reconstruction_psnr(before: Sequence[np.ndarray], after: Sequence[Image.Image]) -> list[float]:
    """PSNR in dB of each reconstruction."""
    return psnr(from_pil(list(after)), from_pil([Image.fromarray(image) for image in before])).tolist()


# --- rows of samples -----------------------------------------------------------------------------------------------


def rows_of_samples(pipes: Sequence[IRISPipeline], prompts: Sequence[str], names: Sequence[str], seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    """One row a model, the same prompts and seeds, all drawn as the last model draws by itself: pictures and captions for `image_grid` with one column a prompt."""
    images, captions = [], []
    last = pipes[-1].defaults  # the same way for all: the models are compared, not their ways of drawing
    settings = {name: getattr(last, name) for name in ("num_steps", "num_iterations", "guidance_scale", "sampler", "timestep_shift")}
    settings["carry_state"] = last.carries(last.sampler)
    for pipe, name in zip(pipes, names, strict=True):
        images += pipe(list(prompts), seed=_seeds(prompts, seed), **settings).images
        captions += [f"{name}: {prompt}" for prompt in prompts]
    return images, captions


def few_step_rows(teacher: IRISPipeline, student: IRISPipeline, prompts: Sequence[str], guidance_scale: float,
                  seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    """The teacher at 16 steps and at one, the student at one, two and four: one row each, same prompts and seeds."""
    images, captions = [], []
    plan = [("teacher", teacher, 16, guidance_scale), ("teacher", teacher, 1, guidance_scale), *(("student", student, n, None) for n in (1, 2, 4))]
    for name, pipe, num_steps, scale in plan:
        sampler = "euler" if name == "teacher" else None  # the path that was learned
        images += pipe(list(prompts), num_steps=num_steps, guidance_scale=scale, seed=_seeds(prompts, seed), sampler=sampler).images
        captions += [f"{name}, {num_steps} step{'s' if num_steps > 1 else ''}: {prompt}" for prompt in prompts]
    return images, captions


def beside_training(found: Sequence[Nearest]) -> tuple[list[Any], list[str]]:
    """`neighbours.nearest_training` for `image_grid`: a row of drawn pictures, and below each the training picture nearest to it."""
    images = [item.image for item in found] + [item.neighbour.image for item in found]
    return images, [item.prompt for item in found] + [f"{item.neighbour.captions[0]} ({item.ratio:.2f})" for item in found]


def steps_by_iterations(pipe: IRISPipeline, prompt: str, steps: Sequence[int], iterations: Sequence[int], seed: int = 0,
                        **arguments: Any) -> list[list[Image.Image]]:
    """One prompt and seed at every (solver steps, core iterations): pictures[row of steps][column of iterations]."""
    return [[pipe(prompt, num_steps=count, num_iterations=depth, seed=seed, **arguments).images[0] for depth in iterations] for count in steps]


def _seeds(prompts: Sequence[str], seed: int) -> list[int]:
    return list(range(seed, seed + len(prompts)))


def judged_scenes(pipe: IRISPipeline, each: int = 2, seed: int = 0, **arguments: Any) -> tuple[list[Image.Image], list[str]]:
    """`each` held-out scenes of every kind, drawn, with "right" or "wrong" by the checker before the caption."""
    scenes = [spec for specs in scene_specs(pipe.image_size, each).values() for spec in specs]
    prompts = [caption_scene(spec)[0] for spec in scenes]
    images = pipe(prompts, seed=_seeds(prompts, seed), **arguments).images
    reports = [check_scene(np.asarray(image), spec.facts) for image, spec in zip(images, scenes, strict=True)]
    return images, [f"{'right' if SCENE_FACTS['right'](report) else 'wrong'}: {prompt}" for report, prompt in zip(reports, prompts, strict=True)]
