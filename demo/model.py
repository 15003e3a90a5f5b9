"""The model that every tab reads: the one in memory, those that can be chosen, and the change from one to another."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from demo.ranges import ranges_html
from iris.checkpoint import resolve_folder
from iris.pipeline import IRISPipeline
from iris.places import can_draw
from iris.prompts import without_control

ROOT = Path(__file__).resolve().parent.parent
MODELS, RUNS = ROOT / "demo" / "models", ROOT / "runs"
FIRST = "iris-tiny-emoji"  # what the demo starts on and lists first
MAX_SOURCE = 300  # characters of a folder or hub id


class ModelError(ValueError):
    """A model that cannot be chosen; the message says what to do."""


class LoadedModel:
    """Holds one pipeline at a time. Events that draw read `pipeline` when they begin, in one queue, so a change never meets a drawing.

    public: visitors share the server and may not change what the others see: no choice of model, no training.
    """

    def __init__(self, pipeline: IRISPipeline, folder: Path | None = None, public: bool = False) -> None:
        self.pipeline, self.folder, self.public = pipeline, folder, public

    @property
    def source(self) -> str:
        """Where the model came from: a folder as the list of choices writes it; "" when it was made in memory."""
        if self.folder is None:
            return ""
        folder = self.folder.resolve()
        return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)

    @property
    def name(self) -> str:
        """What a visitor reads: the folder's name, or the configuration's."""
        return self.pipeline.config.name if self.folder is None else shown_name(self.folder.resolve())

    @property
    def example(self) -> str:
        """A prompt that this model can draw, for empty fields to suggest."""
        return next(iter(example_prompts(self.pipeline)), "a red circle")

    def choices(self) -> list[tuple[str, str]]:
        """(shown name, source) of every model on this disk."""
        return [(shown_name(folder), str(folder.relative_to(ROOT))) for folder in folders_on_disk()]

    def switch(self, source: object) -> None:
        """Load a folder or hub id in place of the present model, which is freed. The present one stays when that fails.

        Raises ModelError, or CheckpointError with one sentence.
        """
        if self.public:
            raise ModelError("This page is shared, so its model cannot be changed here. Run it at home: python -m demo.app --model NAME.")
        if not isinstance(source, str) or not source.strip() or len(source) > MAX_SOURCE:
            raise ModelError("Name a model folder or a Hub id, for example runs/03/pipeline or user/name.")
        named = source.strip()
        inside = ROOT / named
        folder = inside if (inside / "manifest.json").is_file() else resolve_folder(named)
        self.pipeline, self.folder = load_pipeline(folder), folder
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def example_prompts(pipeline: IRISPipeline) -> list[str]:
    """The prompts that the model's makers suggest; its metadata is a file from anywhere, so only short strings pass, and what a page can show of them."""
    told = pipeline.metadata.get("examples", [])
    texts = [without_control(text).strip() for text in told if isinstance(text, str)] if isinstance(told, (list, tuple)) else []
    return [text for text in texts if 0 < len(text) <= 80]


def load_pipeline(folder: Path) -> IRISPipeline:
    """The pipeline of a model folder, on a GPU where there is one, warmed up: the first visitor does not pay for the first call.

    On a ZeroGPU Space no GPU is there until an event borrows one; weights that are sent to it before wait for that.
    """
    pipeline = IRISPipeline.from_pretrained(folder)
    ranges_html(pipeline)  # from the weights, while they are here: on ZeroGPU zeros stand in for those that are on the card
    if torch.cuda.is_available():
        pipeline.to("cuda")
    if not on_zero_gpu():
        pipeline("warm up", num_steps=1, num_iterations=1)
    return pipeline


def on_zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space; read as its `spaces` package reads it."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def shipped_models(folder: Path = MODELS) -> list[Path]:
    """Model folders in demo/models, the one that the demo starts on first."""
    return sorted((path.parent for path in folder.glob("*/manifest.json")), key=lambda model: (model.name != FIRST, model.name))


def folders_on_disk(models: Path | None = None, runs: Path | None = None) -> list[Path]:
    """Model folders in demo/models, then those of finished runs, the newest first. Stage-1 folders, which cannot draw, are left out."""
    trained = [folder for folder in (runs or RUNS).glob("**/pipeline") if can_draw(folder)]
    return shipped_models(models or MODELS) + sorted(trained, key=lambda folder: (folder / "manifest.json").stat().st_mtime, reverse=True)


def shown_name(folder: Path) -> str:
    """`iris-micro`, `runs: 03` for the model of a run, `user/name` for the local copy of one from the Hub."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    if folder.name != "pipeline":
        return folder.name
    return "runs: " + folder.parent.relative_to(RUNS).as_posix() if folder.is_relative_to(RUNS) else folder.parent.name
