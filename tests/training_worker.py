"""Training in processes of their own, for test_training.py; also imported there, so that both sides run the same lines.

    python training_worker.py stage3 RUN INIT      stage 3 on nano with a checkpoint after every step
    torchrun ... training_worker.py stage1 OUT     five float64 steps of the autoencoder, stored by the first process
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from iris.config import preset
from iris.data.scenes import Scenes
from iris.nn.autoencoder import WaveletVAE
from iris.runs import Run
from iris.training.batches import ImageBatches
from iris.training.loop import TrainConfig, fit
from iris.training.losses import ReconstructionLoss
from iris.training.stages import StageResult, train_text_to_image

STAGE_3 = TrainConfig(train_steps=24, batch_size=4, warmup_steps=4, log_every=1, eval_every=12, checkpoint_seconds=0.0)
FIVE_STEPS = TrainConfig(train_steps=5, batch_size=8, warmup_steps=1, precision="fp64", ema_decay=0.5)


def train_stage_3(folder: Path, init: Path) -> StageResult:
    """A short stage 3; the same command continues it."""
    with Run.open(folder, STAGE_3.recipe()) as run:
        return train_text_to_image(preset("nano"), Scenes(32, count=24), Scenes(32, count=8, split="held_out"), STAGE_3, run, init)


def five_autoencoder_steps() -> dict[str, torch.Tensor]:
    """Averaged weights after five float64 steps on batches of eight pictures, shared by all processes."""
    torch.manual_seed(0)
    batches = ImageBatches(Scenes(32, count=40), FIVE_STEPS.batch_size, seed=0)
    return dict(fit(WaveletVAE(preset("nano").autoencoder), batches, ReconstructionLoss(None), FIVE_STEPS).module.state_dict())


def main(task: str, folder: str, *rest: str) -> None:
    torch.set_num_threads(1)
    if task == "stage3":
        train_stage_3(Path(folder), Path(rest[0]))
    else:
        weights = five_autoencoder_steps()
        if PartialState().num_processes != 2:
            raise SystemExit("the two processes did not meet")
        if PartialState().is_main_process:
            save_file({name: value.contiguous() for name, value in weights.items()}, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
