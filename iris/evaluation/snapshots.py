"""Samples over training: pictures of the same prompts and seeds, drawn from the checkpoints that a running stage leaves."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from iris.checkpoint import CheckpointError, load_module, read_checkpoint
from iris.config import IRISConfig
from iris.mirror import newest_step
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline
from iris.runs import Run
from iris.step_checkpoints import latest_checkpoint
from iris.text import load_text_encoder

_FILE = re.compile(r"step-(\d+)-(\d+)\.png")


class Snapshots:
    """Pass it as `on_log`: at most `count` times, at steps that double, it draws `prompts` with the averaged weights of the first
    checkpoint from there on. So the first changes are seen, and a long training is hardly held up.

    Pictures are kept as RUN/figures/samples/step-STEP-INDEX.png, so a run that is continued keeps its earlier ones.
    """

    def __init__(self, run: Run, config: IRISConfig, autoencoder: str | Path, prompts: Sequence[str], train_steps: int, count: int = 5,
                 num_steps: int = 8, guidance_scale: float = 3.0, seed: int = 0) -> None:
        self.run, self.config, self.autoencoder, self.prompts = run, config, Path(autoencoder), list(prompts)
        self.settings = {"num_steps": num_steps, "num_iterations": config.generator.mean_iterations, "guidance_scale": guidance_scale,
                         "seed": [seed + index for index in range(len(self.prompts))]}
        self.moments = [round(train_steps * 2.0**-power) for power in range(count, 0, -1)]
        self._pipe: IRISPipeline | None = None

    @property
    def folder(self) -> Path:
        return self.run.path / "figures" / "samples"

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take one logged row; draw when a moment has passed since the last drawing and a checkpoint has been made since."""
        drawn = max(self.steps(), default=0)
        due = [moment for moment in self.moments if drawn < moment <= row["step"]]
        if due:
            try:
                self._draw(max(due))
            except CheckpointError:
                return  # a checkpoint being replaced: the next row comes soon
            except OSError as error:  # a full disk, say: samples are not worth a training
                warnings.warn(f"The samples of step {row['step']} are not kept: {error}", stacklevel=2)

    def _draw(self, since: int) -> None:
        if newest_step(self.run.path) < since:  # by its name, before all of it is read
            return
        found = latest_checkpoint(self.run.checkpoint_path)
        if found is None or found.metadata["step"] < since:
            return
        pipe = self._pipeline()
        weights = {name.removeprefix("module."): value for name, value in found.tensors["average"].items() if name != "n_averaged"}
        load_module(pipe.generator, weights)
        self.add(found.metadata["step"], pipe(self.prompts, **self.settings).images)

    def _pipeline(self) -> IRISPipeline:
        if self._pipe is None:
            autoencoder = WaveletVAE(self.config.autoencoder)
            load_module(autoencoder, read_checkpoint(self.autoencoder, ["autoencoder"]).tensors["autoencoder"])
            pipe = IRISPipeline(self.config, autoencoder, Generator(self.config.generator), load_text_encoder(self.config.text))
            self._pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        return self._pipe

    def add(self, step: int, images: Sequence[Image.Image]) -> None:
        """Keep pictures, one a prompt, as those of `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, (image, prompt) in enumerate(zip(images, self.prompts, strict=True)):
            told = PngInfo()
            told.add_itxt("prompt", prompt)
            draft = self.folder / f".draft-{index:02d}"
            image.save(draft, "PNG", pnginfo=told)
            os.replace(draft, self.folder / f"step-{step:08d}-{index:02d}.png")

    def steps(self) -> list[int]:
        """The steps at which pictures were drawn."""
        return sorted({int(match[1]) for path in self.folder.glob("*.png") if (match := _FILE.fullmatch(path.name))})

    def pictures(self) -> tuple[list[Image.Image], list[str]]:
        """All pictures, one row a step, and a caption for each: what `figures.image_grid` takes with one column a prompt.

        A step that an earlier session drew with fewer prompts, or others, is left out.
        """
        images, captions = [], []
        for step in self.steps():
            files = [self.folder / f"step-{step:08d}-{index:02d}.png" for index in range(len(self.prompts))]
            try:
                found = [Image.open(file) for file in files if file.is_file()]
                prompts = [image.text.get("prompt") for image in found]  # which reads all of each
            except OSError:
                continue  # torn, by a version that wrote in place or by a full disk
            if prompts == self.prompts:
                images += found
                captions += [f"step {step:,}: {prompt}" for prompt in self.prompts]
        return images, captions
