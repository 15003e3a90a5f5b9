"""Laws of taking a path out: its share is zero, the others keep theirs, and the model itself is not touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_generator

from iris.config import preset
from iris.evaluation.knockout import PATHS, KnockoutError, pipeline_without, without_path
from iris.evaluation.probes import trace
from iris.pipeline import IRISPipeline


@pytest.mark.parametrize("path", PATHS)
def test_a_path_taken_out_adds_nothing_and_the_others_go_on(pipeline: IRISPipeline, path: str) -> None:
    before = pipeline("a red circle", seed=1).latents
    found = trace(pipeline_without(pipeline, path), "a red circle", seed=1)
    shares = found.shares.mean((0, 1, 2, 3, 4))
    missing = PATHS.index(path)
    assert shares[missing] == 0 and all(share > 0.01 for index, share in enumerate(shares) if index != missing)
    assert torch.equal(pipeline("a red circle", seed=1).latents, before)
    assert not np.array_equal(found.image, trace(pipeline, "a red circle", seed=1).image)


def test_the_copy_shares_its_weights(pipeline: IRISPipeline) -> None:
    other = without_path(pipeline.generator, "spatial")
    theirs = {parameter.data_ptr() for parameter in pipeline.generator.parameters()}
    assert {parameter.data_ptr() for parameter in other.parameters()} <= theirs


def test_zero_alpha_is_the_spatial_path_taken_out(generator: torch.nn.Module) -> None:
    other = without_path(generator, "spatial")
    z, t, text = torch.randn(1, 8, 8, 8), torch.tensor([0.5]), torch.randn(1, 4, 32)
    with torch.no_grad():
        missing = other(z, t, text)
        for layer in generator.core.layers:
            layer.mixer.alpha.zero_()
        torch.testing.assert_close(generator(z, t, text), missing)


def test_a_path_that_is_not_there_is_refused(pipeline: IRISPipeline) -> None:
    with pytest.raises(KnockoutError, match="use one of fourier"):
        without_path(pipeline.generator, "attention")
    with pytest.raises(KnockoutError, match="by attention alone"):
        without_path(build_generator(preset("nano", generator__mixer="attention")), "fourier")
