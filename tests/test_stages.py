"""The five stages run one after the other on nano: between them only folders pass, and the last is a pipeline that draws."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_generator, randomise, some_latents

from iris.checkpoint import CheckpointError, read_checkpoint
from iris.config import preset
from iris.data.base import DataError, Example
from iris.data.pictures import PictureSet
from iris.data.scenes import Scenes
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline
from iris.runs import Run, RunError, read_metrics, read_summary
from iris.training import stages
from iris.training.loop import TrainConfig
from iris.training.stages import StageResult

NANO = preset("nano")
TRAIN = TrainConfig(train_steps=6, batch_size=4, warmup_steps=2, log_every=2, eval_every=3, ema_decay=0.5)
DATA = (Scenes(32, count=16), Scenes(32, count=8, split="held_out"))
FLOW_STAGES = {2: stages.train_class_conditional, 3: stages.train_text_to_image, 4: stages.train_aesthetic, 5: stages.distill}


def run_stage(stage: int, root: Path, init: Path | None = None, train: TrainConfig = TRAIN) -> StageResult:
    with Run.open(root / f"stage-{stage}", train.recipe()) as run:
        if stage == 1:
            return stages.train_autoencoder(NANO, *DATA, train, run, perceptual_weight=0.0)
        return FLOW_STAGES[stage](NANO, *DATA, train, run, init)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, StageResult]:
    """All five stages, each started from the folder of the one before."""
    root = tmp_path_factory.mktemp("runs")
    done = {1: run_stage(1, root)}
    for stage in FLOW_STAGES:
        done[stage] = run_stage(stage, root, done[stage - 1].pipeline_path)
    return done


@pytest.mark.parametrize("stage", [1, 2, 3, 4, 5])
def test_every_stage_leaves_a_model_figures_and_a_summary(results: dict[int, StageResult], stage: int) -> None:
    result, folder = results[stage], results[stage].pipeline_path.parent
    stored = read_checkpoint(result.pipeline_path)
    assert set(stored.tensors) == ({"autoencoder"} if stage == 1 else {"autoencoder", "generator"})
    assert all(value.isfinite().all() for part in stored.tensors.values() for value in part.values() if value.is_floating_point())
    assert stored.metadata["stage"] == stage and stored.metadata["training"]["recipe"] == dataclasses.asdict(TRAIN)
    summary = read_summary(folder)
    assert summary == {**summary, "stage": stage, "step": 6, "finished": True, "images_seen": 24, "examples": 16}
    assert math.isfinite(summary["held_out_loss"])
    rows = read_metrics(folder)
    assert summary["best"] == min(({"step": row["step"], "held_out_loss": row["held_out_loss"]} for row in rows if "held_out_loss" in row), key=lambda best: best["held_out_loss"])
    assert [row["step"] for row in rows] == [2, 3, 4, 6] and all(math.isfinite(row["loss"]) for row in rows)
    assert [row["step"] for row in rows if "held_out_loss" in row] == [3, 6]
    if stage > 1:
        assert all(len(row["loss_by_t"]) == 8 for row in rows) and any(row.get("loss_by_depth") for row in rows)


def test_a_model_tells_every_training_its_generator_went_through(results: dict[int, StageResult]) -> None:
    told = {stage: read_checkpoint(result.pipeline_path).metadata["training"] for stage, result in results.items()}
    assert [part["stage"] for part in told[5]["before"]] == [2, 3, 4] and told[1]["before"] == told[2]["before"] == []
    assert {told[stage]["autoencoder_data"] for stage in (2, 3, 4, 5)} == {told[1]["data"]}
    assert [{**told[stage], "before": []} for stage in (2, 3, 4)] == [{**part, "before": []} for part in told[5]["before"]]


def test_stage_1_calibrates_and_measures(results: dict[int, StageResult]) -> None:
    assert math.isfinite(results[1].summary["held_out_psnr"]) and results[1].summary["perceptual_loss"] is False
    stored = read_checkpoint(results[1].pipeline_path).tensors["autoencoder"]
    assert not torch.equal(stored["latent_mean"], torch.zeros(8, 1, 1)) and (stored["latent_std"] > 0).all()


def test_the_autoencoder_passes_through_unchanged_and_the_generator_learns(results: dict[int, StageResult]) -> None:
    stored = {stage: read_checkpoint(result.pipeline_path).tensors for stage, result in results.items()}
    for stage in (2, 3, 4, 5):
        assert all(torch.equal(stored[1]["autoencoder"][name], value) for name, value in stored[stage]["autoencoder"].items())
    for stage in (3, 4, 5):
        assert any(not torch.equal(stored[stage - 1]["generator"][name], value) for name, value in stored[stage]["generator"].items())


def test_stage_5_reports_its_one_step_error_beside_the_teachers(results: dict[int, StageResult]) -> None:
    summary = results[5].summary
    assert summary["student_one_step_error"] > 0 and summary["teacher_one_step_error"] > 0 and summary["guidance_inside"] == 3.0


class Known:
    """A generator whose velocity is the same everywhere: from noise z it ends at z - velocity, in one step and in many."""

    def __init__(self, velocity: float) -> None:
        self.made = Generator(NANO.generator)
        torch.nn.init.constant_(self.made.output.bias, velocity)


def test_one_step_errors_are_distances_to_the_end_of_the_teachers_path() -> None:
    held_out = some_latents()
    found = stages.one_step_errors(Known(1.0).made, Known(0.75).made, held_out, 3.0)
    assert found["student_one_step_error"] == pytest.approx(0.0625, rel=1e-5) and found["teacher_one_step_error"] < 1e-10
    teacher = build_generator(NANO)
    alike = stages.one_step_errors(copy.deepcopy(teacher), teacher, held_out, 1.0)
    assert alike["student_one_step_error"] == pytest.approx(alike["teacher_one_step_error"]) and alike["teacher_one_step_error"] > 1e-4


class Shifted(torch.nn.Module):
    """An autoencoder whose pictures come back `by` too bright."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(by))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents + self.by


def test_held_out_psnr_is_that_of_pictures_from_minus_one_to_one_cut_off_there() -> None:
    dark = [Example(np.full((32, 32, 3), 50, np.uint8), ("",), "", "dark") for _ in range(3)]
    assert stages.held_out_psnr(Shifted(0.2), dark) == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-3)
    white = [Example(np.full((32, 32, 3), 255, np.uint8), ("",), "", "white")]
    assert stages.held_out_psnr(Shifted(0.2), white) == pytest.approx(10 * math.log10(4 / 1e-10), abs=1e-3)  # all that was too bright is cut off


def test_calibrated_latents_have_a_mean_of_zero_and_one_deviation_for_all_channels() -> None:
    autoencoder = randomise(WaveletVAE(NANO.autoencoder))
    stages.calibrate(autoencoder, DATA[0])
    assert autoencoder.latent_std.unique().numel() == 1
    with torch.no_grad():
        latents = autoencoder.encode(stages._sample_images(DATA[0], 16, 0))
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert float(latents.var((0, 2, 3)).mean()) == pytest.approx(1.0, rel=1e-4) and latents.var((0, 2, 3)).std() > 0.01


@pytest.mark.parametrize("stage", [2, 3, 4, 5])
def test_what_a_stage_leaves_is_a_pipeline(results: dict[int, StageResult], stage: int) -> None:
    pipeline = IRISPipeline.from_pretrained(results[stage].pipeline_path)
    images = pipeline(["a red circle", "two blue squares"], seed=1).images
    assert [image.size for image in images] == [(32, 32)] * 2
    assert not np.array_equal(np.asarray(images[0]), np.asarray(images[1]))
    expected = ("consistency", 4, 1.0) if stage == 5 else ("euler", 16, 3.0)
    assert (pipeline.defaults.sampler, pipeline.defaults.num_steps, pipeline.defaults.guidance_scale) == expected
    assert pipeline.defaults.num_iterations == NANO.generator.mean_iterations


def test_a_stage_run_again_gives_the_same_model_without_training(results: dict[int, StageResult], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = results[3].pipeline_path
    before = read_checkpoint(folder).tensors
    monkeypatch.setattr(stages.RectifiedFlowLoss, "__call__", None)  # a training step would fail
    again = run_stage(3, folder.parent.parent, results[2].pipeline_path)
    after = read_checkpoint(again.pipeline_path).tensors
    assert all(torch.equal(before[part][name], after[part][name]) for part in before for name in before[part])
    assert again.summary["held_out_loss"] == results[3].summary["held_out_loss"]


def test_a_finished_autoencoder_keeps_its_last_bit_on_another_machine(results: dict[int, StageResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its latents' statistics, measured again elsewhere, would differ in rounding, and no later stage would go on with them."""
    monkeypatch.setattr(stages, "calibrate", lambda autoencoder, *_: autoencoder.calibrate(torch.ones(8), torch.ones(8)))
    before = read_checkpoint(results[1].pipeline_path).tensors["autoencoder"]
    again = run_stage(1, results[1].pipeline_path.parent.parent)
    after = read_checkpoint(again.pipeline_path).tensors["autoencoder"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_student_can_be_trained_on(results: dict[int, StageResult], tmp_path: Path) -> None:
    """Without a rate it stays the earlier student, not its teacher; it tells that one's training, and whom it saw through a first teacher."""
    still, earlier = dataclasses.replace(TRAIN, train_steps=1, learning_rate=0.0), results[5].pipeline_path
    with Run.open(tmp_path / "on") as run:
        result = stages.distill(NANO, *DATA, still, run, results[2].pipeline_path, student_init=earlier)
    after = read_checkpoint(result.pipeline_path)
    student, teacher = (read_checkpoint(folder).tensors["generator"] for folder in (earlier, results[2].pipeline_path))
    assert all(torch.equal(after.tensors["generator"][name], student[name]) for name in student)
    assert not all(torch.equal(teacher[name], student[name]) for name in student)
    assert [part["stage"] for part in after.metadata["training"]["before"]] == [2, 3, 4, 5]
    other = run_stage(1, tmp_path, train=dataclasses.replace(TRAIN, seed=5))
    stranger = run_stage(2, tmp_path, other.pipeline_path).pipeline_path
    with Run.open(tmp_path / "refused") as run, pytest.raises(CheckpointError, match="another autoencoder"):
        stages.distill(NANO, *DATA, TRAIN, run, results[4].pipeline_path, student_init=stranger)


def test_what_a_loss_asks_is_part_of_a_run(results: dict[int, StageResult], tmp_path: Path) -> None:
    """Other guidance on a finished student would train nothing, and be written down as its own."""
    run_stage(5, tmp_path, results[4].pipeline_path)
    with Run.open(tmp_path / "stage-5", TRAIN.recipe()) as run, pytest.raises(RunError, match="it differs in guidance_scale"):
        stages.distill(NANO, *DATA, TRAIN, run, results[4].pipeline_path, guidance_scale=5.0)
    run_stage(1, tmp_path)
    with Run.open(tmp_path / "stage-1", TRAIN.recipe()) as run, pytest.raises(RunError, match="it differs in autoencoder"):
        stages.train_autoencoder(NANO, *DATA, TRAIN, run, results[1].pipeline_path, perceptual_weight=0.0)


def test_a_run_goes_on_with_the_autoencoder_and_the_pictures_it_began_with(results: dict[int, StageResult], tmp_path: Path) -> None:
    """A generator has learned the latents of one autoencoder; another one under it would draw something else, without a word."""
    root = tmp_path / "runs"
    run_stage(2, root, results[1].pipeline_path)
    other = run_stage(1, tmp_path / "other", train=dataclasses.replace(TRAIN, seed=5))
    with pytest.raises(RunError, match=r"it differs in autoencoder\)"):
        run_stage(2, root, other.pipeline_path)
    with Run.open(root / "stage-2", TRAIN.recipe()) as run, pytest.raises(RunError, match=r"it differs in pictures\)"):
        stages.train_class_conditional(NANO, Scenes(32, count=17), DATA[1], TRAIN, run, results[1].pipeline_path)
    assert run_stage(2, root, results[1].pipeline_path).summary["finished"]


def test_a_stages_end_is_in_the_mirror_before_its_run_is_closed(results: dict[int, StageResult], tmp_path: Path) -> None:
    with Run.open(tmp_path / "here", TRAIN.recipe(), mirror=tmp_path / "drive") as run:
        result = stages.train_class_conditional(NANO, *DATA, TRAIN, run, results[1].pipeline_path)
        assert read_checkpoint(tmp_path / "drive" / "pipeline").config == read_checkpoint(result.pipeline_path).config
        assert read_summary(tmp_path / "drive")["finished"]


def test_a_run_is_of_one_stage_and_of_one_generator(results: dict[int, StageResult], tmp_path: Path) -> None:
    """Another stage in its folder would find its steps done, train nothing, and call the weights its own."""
    folder = run_stage(2, tmp_path, results[1].pipeline_path).pipeline_path.parent
    for train in (stages.train_text_to_image, stages.distill):
        with Run.open(folder, TRAIN.recipe()) as run, pytest.raises(RunError, match=r"it differs in .*stage"):
            train(NANO, *DATA, TRAIN, run, results[2].pipeline_path)
    again = run_stage(3, tmp_path, results[2].pipeline_path)
    with Run.open(again.pipeline_path.parent, TRAIN.recipe()) as run, pytest.raises(RunError, match=r"it differs in generator\)"):
        stages.train_text_to_image(NANO, *DATA, TRAIN, run, results[4].pipeline_path)


@pytest.mark.parametrize("stage", [1, 3, 5])
def test_every_stage_trains_in_double_precision(results: dict[int, StageResult], stage: int, tmp_path: Path) -> None:
    train = dataclasses.replace(TRAIN, train_steps=2, precision="fp64")
    assert math.isfinite(run_stage(stage, tmp_path, results.get(stage - 1) and results[stage - 1].pipeline_path, train).summary["held_out_loss"])


def test_a_stage_may_iterate_more_often_than_the_one_before(results: dict[int, StageResult], tmp_path: Path) -> None:
    deeper = preset("nano", generator__mean_iterations=7)
    with Run.open(tmp_path / "run") as run:
        result = stages.train_text_to_image(deeper, *DATA, dataclasses.replace(TRAIN, train_steps=1), run, results[2].pipeline_path)
    assert read_checkpoint(result.pipeline_path, []).config["generator"]["mean_iterations"] == 7
    assert read_checkpoint(result.pipeline_path, []).metadata["defaults"]["num_iterations"] == 7


def test_where_things_stand_is_learned_once(results: dict[int, StageResult], tmp_path: Path) -> None:
    """Stage 3 begins with it, at two iterations; a model that has been through stage 3 trains on at its full depth at once."""
    again = run_stage(3, tmp_path, results[3].pipeline_path)
    told = [read_checkpoint(result.pipeline_path, []).metadata["training"]["loss"]["coarse_until"] for result in (results[3], again)]
    assert told == [2, 0]
    first, first_again = (read_metrics(result.pipeline_path.parent)[0] for result in (results[3], again))  # two of six steps
    assert "loss_by_depth" not in first and min(map(int, first_again["loss_by_depth"])) >= NANO.generator.mean_iterations


def test_a_stage_refuses_what_does_not_fit(results: dict[int, StageResult], tmp_path: Path) -> None:
    with Run.open(tmp_path / "a") as run, pytest.raises(CheckpointError, match="another configuration"):
        stages.train_text_to_image(preset("nano", generator__core_ffn=96), *DATA, TRAIN, run, results[2].pipeline_path)
    with Run.open(tmp_path / "b") as run, pytest.raises(CheckpointError, match="no folder"):
        stages.train_text_to_image(NANO, *DATA, TRAIN, run, tmp_path / "nothing")
    with Run.open(tmp_path / "c") as run, pytest.raises(CheckpointError, match="generator"):
        stages.distill(NANO, *DATA, TRAIN, run, results[1].pipeline_path)
    captioned = PictureSet("mine", np.zeros((4, 32, 32, 3), np.uint8), [(("a cat",), "", str(n)) for n in range(4)], {})
    with Run.open(tmp_path / "d") as run, pytest.raises(DataError, match="no classes, which stage 2 is about"):
        stages.train_class_conditional(NANO, captioned, captioned, TRAIN, run, results[1].pipeline_path)


def test_stage_1_can_go_on_from_another_autoencoder(results: dict[int, StageResult], tmp_path: Path) -> None:
    with Run.open(tmp_path / "run") as run:
        result = stages.train_autoencoder(NANO, *DATA, dataclasses.replace(TRAIN, train_steps=1, learning_rate=0.0), run,
                                          results[1].pipeline_path, perceptual_weight=0.0)
    first, second = (read_checkpoint(folder).tensors["autoencoder"] for folder in (results[1].pipeline_path, result.pipeline_path))
    assert all(torch.equal(first[name], second[name]) for name in first if not name.startswith("latent_"))
    told = read_checkpoint(result.pipeline_path, []).metadata["training"]
    assert told["autoencoder_data"] == DATA[0].name and told["before"] == []
