"""Laws of silencing a path: its share is zero, the others keep theirs, and the model itself is not touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from demo_server import nano_pipeline

from demo.knockout import PATHS, can_knock_out, without_path
from iris.config import preset
from iris.evaluation.probes import trace
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline


@pytest.mark.parametrize("path", PATHS)
def test_a_silent_path_adds_nothing_and_the_others_go_on(pipeline: IRISPipeline, path: str) -> None:
    before = pipeline("a red circle", seed=1).latents
    found = trace(without_path(pipeline, path), "a red circle", seed=1)
    shares = found.shares.mean((0, 1, 2, 3, 4))
    missing = list(PATHS).index(path)
    assert shares[missing] == 0 and all(share > 0.01 for index, share in enumerate(shares) if index != missing)
    assert torch.equal(pipeline("a red circle", seed=1).latents, before)
    assert not np.array_equal(found.image, trace(pipeline, "a red circle", seed=1).image)


def test_the_silenced_pipeline_shares_its_weights(pipeline: IRISPipeline) -> None:
    other = without_path(pipeline, "spatial")
    theirs = {parameter.data_ptr() for parameter in pipeline.generator.parameters()}
    assert {parameter.data_ptr() for parameter in other.generator.parameters()} <= theirs


def test_zero_alpha_is_the_spatial_path_silenced(generator: torch.nn.Module, pipeline: IRISPipeline) -> None:
    whole = IRISPipeline(pipeline.config, pipeline.autoencoder, generator, pipeline.text_encoder, pipeline.defaults)
    expected = without_path(whole, "spatial")("a red circle", seed=1).latents
    for layer in generator.core.layers:
        layer.mixer.alpha.zero_()
    torch.testing.assert_close(whole("a red circle", seed=1).latents, expected)


def test_only_grfm_has_paths_to_silence() -> None:
    pipeline = nano_pipeline()
    assert can_knock_out(pipeline)
    pipeline.generator = Generator(preset("nano", generator__mixer="attention").generator)
    assert not can_knock_out(pipeline)
