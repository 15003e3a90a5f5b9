"""A short training of the nano generator, for test_reliability_training.py: imported there, and run as a process of its own.

    python reliability_worker.py RUN STEPS      prints "Error: ..." and exits with 2 when it cannot go on
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from conftest import seeded

from iris.config import preset
from iris.nn.generator import Generator
from iris.runs import Run
from iris.training.batches import LatentBatches, LatentDataset
from iris.training.loop import FitResult, TrainConfig, fit
from iris.training.losses import RectifiedFlowLoss

RECIPE = TrainConfig(train_steps=16, batch_size=4, warmup_steps=4, log_every=1, eval_every=10, checkpoint_seconds=0.0, precision="fp32")
SECONDS = 1.2  # about what RECIPE takes


def flow() -> tuple[Generator, LatentBatches, RectifiedFlowLoss]:
    """A new nano generator, batches of made-up latents, and the loss of stages 2 to 4."""
    torch.manual_seed(0)
    captions = torch.arange(12)[:, None] % 5
    data = LatentDataset(seeded(12, 8, 8, 8), seeded(5, 16, 32, seed=1).half(), torch.arange(16)[None] < torch.arange(3, 8)[:, None], captions)
    return Generator(preset("nano").generator), LatentBatches(data, 4, 0), RectifiedFlowLoss()


def train(folder: Path, train_steps: int = RECIPE.train_steps) -> FitResult:
    """Begin the run in `folder`, or continue it."""
    module, batches, loss = flow()
    with Run.open(folder, {"seed": 0}) as run:
        return fit(module, batches, loss, dataclasses.replace(RECIPE, train_steps=train_steps, decay_share=0.0), run, batches)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        train(Path(sys.argv[1]), int(sys.argv[2]))
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
