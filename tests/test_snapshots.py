"""Samples over training: drawn once a moment, the same as the pipeline would draw, and never worth a training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_server import nano_pipeline

from iris.checkpoint import write_checkpoint
from iris.config import preset
from iris.evaluation.reading import load_pipeline
from iris.evaluation.snapshots import Snapshots
from iris.runs import Run


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano_pipeline().save_pretrained(tmp_path_factory.mktemp("models") / "nano")


def test_snapshots_draw_the_newest_checkpoint_once_a_moment(model_folder: Path, tmp_path: Path) -> None:
    config = preset("nano")
    pipe = load_pipeline(model_folder)
    average = {f"module.{name}": value for name, value in pipe.generator.state_dict().items()} | {"n_averaged": torch.tensor(3)}
    with Run.open(tmp_path) as run:
        shots = Snapshots(run, config, model_folder, ["a red circle", "a star"], train_steps=32, count=3, num_steps=2)
        assert shots.moments == [4, 8, 16]
        shots({"step": 5})  # no checkpoint yet
        assert shots.steps() == []
        for step in (3, 4, 7, 12):  # 3 and 7 are older than the moments that have passed: they would show what 4 and 12 show better
            write_checkpoint(run.checkpoint_path / f"step-{step:08d}", {"recipe": {}}, {"average": average}, {"step": step})
            for _ in range(3):
                shots({"step": step + 1})
        assert shots.steps() == [4, 12]
        images, captions = shots.pictures()
        assert captions == ["step 4: a red circle", "step 4: a star", "step 12: a red circle", "step 12: a star"]
        drawn = pipe(["a red circle", "a star"], num_steps=2, num_iterations=config.generator.mean_iterations, guidance_scale=3.0, seed=[0, 1])
        assert np.array_equal(np.asarray(images[2]), np.asarray(drawn.images[0]))
        assert Snapshots(run, config, model_folder, ["a red circle", "a ring"], train_steps=32).pictures() == ([], [])  # drawn from other words
        assert not [path for path in (run.path / "figures").glob("*.png")]  # no figure of a report
        assert all(re.fullmatch(r"step-\d{8}-\d{2}\.png", path.name) for path in shots.folder.glob("*"))
        torn = shots.folder / "step-00000004-01.png"
        torn.write_bytes(torn.read_bytes()[:200])  # as a full disk leaves it
        assert shots.pictures()[1] == captions[2:]


def test_samples_that_cannot_be_kept_end_no_training(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    average = {f"module.{name}": value for name, value in load_pipeline(model_folder).generator.state_dict().items()} | {"n_averaged": torch.tensor(3)}
    with Run.open(tmp_path) as run:
        shots = Snapshots(run, preset("nano"), model_folder, ["a red circle"], train_steps=8, count=1, num_steps=1)
        write_checkpoint(run.checkpoint_path / "step-00000004", {"recipe": {}}, {"average": average}, {"step": 4})

        def full(step: int, images: list) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shots, "add", full)
        with pytest.warns(UserWarning, match="step 5 are not kept: .*No space left"):
            shots({"step": 5})
