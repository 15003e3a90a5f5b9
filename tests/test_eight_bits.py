"""Laws of iris.eight_bits: half a step of error at most, nothing lost by a second rounding, and nothing read that was not written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iris.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from iris.eight_bits import LEAST_ROW, SCALE, from_eight_bits, to_eight_bits
from iris.pipeline import IRISPipeline


def weights(rows: int, size: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, LEAST_ROW, generator=torch.Generator().manual_seed(seed)) * size


@settings(max_examples=40, deadline=None)
@given(exponent=st.floats(-30, 30), seed=st.integers(0, 2**32))
def test_a_weight_is_off_by_half_a_step_of_its_row_at_most(exponent: float, seed: int) -> None:
    named = {"w": weights(5, 10.0**exponent, seed)}
    again = from_eight_bits(to_eight_bits(named))["w"]
    step = named["w"].flatten(1).abs().amax(1)[:, None] / 127
    assert bool(((again - named["w"]).flatten(1).abs() <= step * (0.5 + 0.07)).all())  # 127 steps of a scale of eleven bits miss the largest by 0.06 of one
    assert torch.allclose(again.flatten(1).abs().amax(1, keepdim=True), 127 * step, rtol=2**-11, atol=0)  # the largest keeps its size


@settings(max_examples=40, deadline=None)
@given(exponent=st.floats(-30, 30), seed=st.integers(0, 2**32))
def test_a_second_rounding_changes_nothing(exponent: float, seed: int) -> None:
    once = to_eight_bits({"w": weights(5, 10.0**exponent, seed), "zeros": torch.zeros(2, LEAST_ROW)})
    twice = to_eight_bits(from_eight_bits(once))
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)
    assert once["w"].dtype == torch.int8 and once["w" + SCALE].shape == (5,) and not bool(once["zeros"].any())


def test_vectors_short_rows_and_whole_numbers_stay_as_they_are() -> None:
    named = {"bias": torch.randn(500), "kernel": torch.randn(8, 1, 5, 5), "count": torch.arange(4 * LEAST_ROW).view(4, -1)}
    stored = to_eight_bits(named)
    assert stored.keys() == named.keys() and all(torch.equal(stored[name], named[name]) for name in named)


def test_a_checkpoint_holds_the_chosen_part_so_in_any_kind_of_float(tmp_path: Path) -> None:
    tensors = {"generator": {"w": weights(6, 1e-6), "bias": torch.randn(6)}, "autoencoder": {"w": weights(6, 1.0)}}
    read = read_checkpoint(write_checkpoint(tmp_path / "m", {}, tensors, dtype=torch.float16, eight_bits=("generator",))).tensors
    assert torch.equal(read["generator"]["w"], from_eight_bits(to_eight_bits(tensors["generator"]))["w"])  # the scales did not become fp16
    assert read["generator"]["bias"].dtype == torch.float16 and torch.equal(read["autoencoder"]["w"], tensors["autoencoder"]["w"].half())
    again = write_checkpoint(tmp_path / "again", {}, read, dtype=torch.float16, eight_bits=("generator",))
    assert [path.read_bytes() for path in sorted(again.iterdir())] == [path.read_bytes() for path in sorted((tmp_path / "m").iterdir())]


def test_what_cannot_be_stored_is_refused_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", {}, {"p": {"w": weights(2, 1.0)}})
    broken = weights(2, 1.0)
    broken[1, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"could not be written: w holds weights that are not finite"):
        write_checkpoint(folder, {}, {"p": {"w": broken}}, eight_bits=("p",))
    with pytest.raises(CheckpointError, match="no part 'genrator' to store in eight bits; the parts are p"):
        write_checkpoint(folder, {}, {"p": {"w": broken}}, eight_bits=("genrator",))
    assert torch.equal(read_checkpoint(folder).tensors["p"]["w"], weights(2, 1.0))


@pytest.mark.parametrize("change", [
    {"w": torch.zeros(2, 64)},                       # no int8 beside the scale
    {"w" + SCALE: torch.ones(3)},                    # a scale too many
    {"w" + SCALE: torch.tensor([1.0, torch.inf])},
    {"w" + SCALE: torch.ones(2, dtype=torch.int32)},
    {"v" + SCALE: torch.ones(2)},                    # of a tensor that is not there
])
def test_scales_and_rows_that_do_not_belong_together_are_refused(tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
    stored = to_eight_bits({"w": weights(2, 1.0)}) | change
    folder = write_checkpoint(tmp_path / "m", {}, {"p": stored})
    with pytest.raises(CheckpointError, match=SCALE):
        read_checkpoint(folder)


def test_a_model_of_eight_bits_draws_nearly_the_same_from_a_smaller_file(pipeline: IRISPipeline, tmp_path: Path) -> None:
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.glob("generator-*"))

    half, small = pipeline.save_pretrained(tmp_path / "half"), pipeline.save_pretrained(tmp_path / "small", eight_bits=("generator",))
    matrices = [weight for weight in pipeline.generator.parameters() if weight.dim() > 1 and weight[0].numel() >= LEAST_ROW]
    saved = sum(weight.numel() - 4 * len(weight) for weight in matrices)  # a byte each, but for the scales
    assert size(half) - size(small) == pytest.approx(saved, abs=150 * len(matrices)) and saved > 0.15 * size(half)
    drawn = [IRISPipeline.from_pretrained(folder)("red apple", seed=1, num_steps=2, num_iterations=4).latents for folder in (half, small)]
    moved = (drawn[0] - drawn[1]).square().mean().sqrt() / drawn[0].square().mean().sqrt()
    assert 0 < moved < 0.05
