"""What several test modules share: one thread, the nano model with random weights everywhere, and a pipeline of it."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from checkpoint_samples import some_tensors
from torch import Tensor, nn

from iris.checkpoint import write_checkpoint
from iris.config import IRISConfig, preset
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.text import load_text_encoder
from iris.training.batches import LatentDataset

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Add noise to every parameter, so that no zero-initialised weight hides a path; returns the module."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
    return module


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers that are the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build_generator(config: IRISConfig, seed: int = 0) -> Generator:
    """A generator whose every weight is random."""
    torch.manual_seed(seed)
    return randomise(Generator(config.generator), seed)


def some_latents(count: int = 12) -> LatentDataset:
    """Random latents of the nano model with five captions between them."""
    captions = torch.arange(count)[:, None] % 5
    return LatentDataset(seeded(count, 8, 8, 8), seeded(5, 16, 32, seed=1).half(), torch.arange(16)[None] < torch.arange(3, 8)[:, None], captions)


def subprocess_environment() -> dict[str, str]:
    """The environment for a Python process that imports this repository, on one thread and without a GPU."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="the long form of the reliability tests: every try that reports/RELIABILITY.md counts")


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a test was asked for (`make soak`)."""
    return request.config.getoption("--soak")


@pytest.fixture
def nano() -> IRISConfig:
    """The configuration that tests use."""
    return preset("nano")


@pytest.fixture(scope="session")
def _random_generator() -> Generator:
    return build_generator(preset("nano"))


@pytest.fixture
def generator(_random_generator: Generator) -> Generator:
    """A nano generator with random weights everywhere; each test has its own copy."""
    return copy.deepcopy(_random_generator)


@pytest.fixture
def generator64(generator: Generator) -> Generator:
    """The same in float64, where laws hold to many digits."""
    return generator.double()


@pytest.fixture(scope="session")
def pipeline() -> IRISPipeline:
    """A nano pipeline with random weights; tests must not change it. Its pictures are noise, but not saturated noise."""
    config = preset("nano")
    torch.manual_seed(0)
    autoencoder = randomise(WaveletVAE(config.autoencoder), scale=0.02)
    autoencoder.calibrate(torch.zeros(8), torch.full((8,), 0.05))
    defaults = SamplingDefaults(num_steps=3, num_iterations=3, guidance_scale=2.0)
    return IRISPipeline(config, autoencoder, build_generator(config), load_text_encoder(config.text), defaults)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint folder with one tensor of every kind, in several shards."""
    return write_checkpoint(tmp_path / "model", {"dim": 8}, some_tensors(), {"step": 7}, shard_bytes=300)
