"""A real server of the demo on a free port, with the nano model and random weights; for both demo test files."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from conftest import build_generator, randomise

from demo.app import create_demo, launch_options
from iris.config import preset
from iris.nn.autoencoder import WaveletVAE
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.text import load_text_encoder

EXAMPLES = ["red apple", "blue bird"]
STEP_SECONDS = 0.15


class CountingPipeline(IRISPipeline):
    """Takes its time over long drawings and counts their steps, so that a test can see when the work really stops."""

    steps_begun = 0

    def stream(self, prompt, *args, num_steps=None, **kwargs):
        for preview in super().stream(prompt, *args, num_steps=num_steps, **kwargs):
            self.steps_begun += 1
            if (num_steps or 0) > 8:
                time.sleep(STEP_SECONDS)
            yield preview


@dataclass(frozen=True)
class Server:
    url: str
    pipeline: CountingPipeline


def nano_pipeline() -> CountingPipeline:
    """Every weight is random: of a new generator the velocity is zero, and neither words nor depth would change a pixel."""
    torch.manual_seed(0)
    config = preset("nano")
    autoencoder = randomise(WaveletVAE(config.autoencoder), scale=0.02)
    autoencoder.calibrate(torch.zeros(8), torch.full((8,), 0.05))
    return CountingPipeline(config, autoencoder, build_generator(config), load_text_encoder(config.text),
                            SamplingDefaults(num_steps=3, num_iterations=2, guidance_scale=2.0), {"examples": EXAMPLES})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        pipeline = nano_pipeline()
        page = create_demo(pipeline)
        page.launch(**launch_options("127.0.0.1", free_port()), prevent_thread_lock=True)
        yield Server(page.local_url, pipeline)
        page.close()
