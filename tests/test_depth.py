"""Laws of iris.evaluation.depth: a model that needs four iterations is found to need four, and thresholds keep their word."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import Art, pixel_features
from PIL import Image
from typer.testing import CliRunner

from iris.data import caption_scene, render_scene
from iris.evaluation import depth
from iris.evaluation.__main__ import app
from iris.evaluation.depth import (
    EXAM_KINDS,
    THRESHOLDS,
    DepthExam,
    Outcome,
    Setting,
    calibrate_threshold,
    cheapest_as_good,
    cheapest_equal,
    frontier,
    measure_depth,
    practised_threshold,
)
from iris.evaluation.laws import gained_by_iterations
from iris.evaluation.metrics import Estimate, share
from iris.evaluation.quality import QualityError, scene_specs
from iris.pipeline import IRISPipeline, SamplingDefaults
from reports.release import model_card


class NeedsFour:
    """Draws the true picture with four iterations a step or more and a grey one below; "auto" spends four on one object and six on two."""

    image_size = 64
    defaults = SamplingDefaults(guidance_scale=3.0)
    distilled = False

    def __init__(self, count: int) -> None:
        self.metadata = {"training": {"data": "scenes"}}
        seen = scene_specs(64, count, EXAM_KINDS), scene_specs(64, 2 * count, EXAM_KINDS, "train", seed=1)  # the exam's scenes and those to practise on
        self.truth = {caption_scene(spec)[0]: spec for specs in seen for kind in specs.values() for spec in kind}

    def __call__(self, prompts, seed, num_steps, num_iterations, carry_state, guidance_scale):
        spent = [4 + 2 * bool(self.truth[prompt].facts.relation) if num_iterations == "auto" else num_iterations for prompt in prompts]
        images = [Image.fromarray(render_scene(self.truth[prompt], 64)) if turns >= 4 else Image.new("RGB", (64, 64), "grey")
                  for prompt, turns in zip(prompts, spent, strict=True)]
        return SimpleNamespace(images=images, iterations=[[turns] * num_steps for turns in spent])


def outcome(steps: int, iterations: int, right: int, of: int = 100) -> Outcome:
    return Outcome(Setting(steps, iterations), {"every": share(right, of)}, None, steps * iterations * 2.0, 0.0, {}, 0.0)


def test_an_exam_finds_what_a_model_needs_and_counts_what_it_spends() -> None:
    exam = DepthExam(NeedsFour(6), count=6)
    by_depth = [exam.take(Setting(3, depth)) for depth in (1, 2, 4, 8)]
    assert [found.right["every"].value for found in by_depth] == [0, 0, 1, 1]
    assert [found.passes for found in by_depth] == [2 * 3 * depth for depth in (1, 2, 4, 8)] and {found.spread for found in by_depth} == {0.0}
    assert cheapest_equal(by_depth).setting == Setting(3, 4)
    automatic = exam.take(Setting(3, "auto"))
    assert automatic.iterations == {"one": 4.0, "relation": 6.0} and automatic.passes == 2 * 3 * 5 and automatic.spread == 2 * 3


def test_an_exam_without_scenes_or_samples_is_refused() -> None:
    with pytest.raises(QualityError, match="give a number of samples"):
        DepthExam(NeedsFour(1), count=4, data="emoji:fluent-3d")


def test_equal_quality_is_within_the_interval_of_the_best() -> None:
    best, close, far = outcome(8, 8, 90), outcome(8, 4, 85), outcome(8, 2, 60)
    low = share(90, 100).interval[0]
    assert close.at_least(best) == (0.85 >= low) and not far.at_least(best)
    assert outcome(8, 4, np.int64(85)).at_least(best) is close.at_least(best)  # a plain truth value, also of a sum of NumPy's own
    assert cheapest_equal([best, close, far]) is close


def test_automatic_depth_is_held_against_what_draws_as_many_right() -> None:
    """And not against whatever lies within a wide interval: the fewer the pictures, the cheaper that would be."""
    alike = [outcome(12, iterations, right, 96) for iterations, right in ((1, 82), (2, 86), (3, 88), (4, 91), (6, 91))]
    for right, iterations in ((82, 1), (83, 2), (87, 3), (88, 3), (91, 4), (92, 4)):  # none draws 92 right: then the best, the cheaper of two
        assert cheapest_as_good(alike, outcome(12, 5, right, 96)).setting.num_iterations == iterations, right
    assert cheapest_equal(alike).setting.num_iterations == 2


def test_an_effort_is_the_best_for_what_it_may_cost() -> None:
    outcomes = [outcome(steps, iterations, right) for steps, iterations, right in ((2, 2, 20), (4, 2, 40), (2, 8, 30), (8, 4, 60), (16, 8, 95), (16, 16, 96))]
    assert frontier(outcomes, 12) == {"Draft": [8, 4], "Balanced": [16, 8], "Best": [16, 16], "Automatic": [12, "auto"]}
    assert frontier([outcome(8, 8, 90)], 8)["Draft"] == [8, 8]


@pytest.fixture
def pipe(pipeline: IRISPipeline) -> IRISPipeline:
    """A copy that a test may change."""
    return copy.copy(pipeline)


def test_a_calibrated_threshold_draws_as_closely_as_the_fixed_depth(pipe: IRISPipeline) -> None:
    prompts, seeds = ["red apple", "a blue star", "two green rings"], [1, 2, 3]
    found = calibrate_threshold(pipe, prompts, seeds, 3, fixed=4, deep=16)
    assert pipe.defaults.exit_threshold == SamplingDefaults().exit_threshold
    deep, fixed = (pipe(prompts, seed=seeds, num_steps=3, num_iterations=depth).latents for depth in (16, 4))
    pipe.defaults = replace(pipe.defaults, exit_threshold=found.threshold)
    automatic = pipe(prompts, seed=seeds, num_steps=3, num_iterations="auto")
    distance, allowed = (float(np.median((part - deep).square().flatten(1).mean(1).sqrt())) for part in (automatic.latents, fixed))
    assert found.distance == pytest.approx(distance, rel=1e-5) and found.fixed_distance == pytest.approx(allowed, rel=1e-5)
    assert distance <= allowed and found.iterations == pytest.approx(np.mean(automatic.iterations))


def test_no_larger_threshold_would_have_been_close_enough(pipe: IRISPipeline) -> None:
    prompts, seeds = ["red apple", "a blue star", "two green rings"], [1, 2, 3]
    found = calibrate_threshold(pipe, prompts, seeds, 3, fixed=8, deep=16, carry_state=True)
    assert 0.011 < found.threshold < 0.99

    def latents(depth: int | str, carried: bool) -> np.ndarray:
        return pipe(prompts, seed=seeds, num_steps=3, num_iterations=depth, carry_state=carried).latents.numpy()

    goal = latents(16, False)
    assert found.fixed_distance == pytest.approx(float(np.median(np.sqrt(((latents(8, True) - goal) ** 2).mean((1, 2, 3))))), rel=1e-5)
    pipe.defaults = replace(pipe.defaults, exit_threshold=found.threshold * 1.06)
    assert np.median(np.sqrt(((latents("auto", True) - goal) ** 2).mean((1, 2, 3)))) > found.fixed_distance


def test_a_fixed_depth_is_less_than_the_deep_one(pipe: IRISPipeline) -> None:
    """Else it would be its own goal, and no threshold but the least could equal it."""
    with pytest.raises(QualityError, match="not less than"):
        calibrate_threshold(pipe, ["red apple"], [1], 3, fixed=8, deep=8)


class NeedsTwoWhereCarried(NeedsFour):
    """Two iterations are enough where the state is carried; "auto" always takes three."""

    config = SimpleNamespace(generator=SimpleNamespace(mean_iterations=4))

    def __call__(self, prompts, seed, num_steps, num_iterations, carry_state, guidance_scale):
        turns = 3 if num_iterations == "auto" else num_iterations
        enough = turns >= (2 if carry_state else 4)
        images = [Image.fromarray(render_scene(self.truth[prompt], 64)) if enough else Image.new("RGB", (64, 64), "grey") for prompt in prompts]
        return SimpleNamespace(images=images, iterations=[[turns] * num_steps for _ in prompts])


def test_what_a_carried_state_saves_is_measured_and_becomes_the_default() -> None:
    found = measure_depth(NeedsTwoWhereCarried(4), count=4, num_steps=6, depths=(2, 4, 8), matrix=((2, 4), (1, 2, 4)))
    assert found["carried"]["saved"] == 0.5 and found["carry_state"] is True
    assert [row["carry_state"] for row in found["fixed"]] == [True] * 5 and found["cheapest_fixed"]["setting"] == "6 x 2, state carried"
    assert found["automatic"]["equal"] and found["automatic"]["share_of_fixed"] == 1.5
    assert found["frontier"]["Balanced"] == [2, 2]
    gained = gained_by_iterations(found)
    assert gained == {"relation_gain_points": 100.0, "auto_share_percent": 150.0, "auto_spread_passes": 0.0, "carried_saves_percent": 50.0}
    assert gained_by_iterations(found | {"automatic": found["automatic"] | {"equal": False}})["auto_share_percent"] == 100.0


class NeedsLowTimes(NeedsFour):
    """Draws the true picture where its steps are finer near the finished one."""

    config = SimpleNamespace(generator=SimpleNamespace(mean_iterations=4))

    def __call__(self, prompts, **settings):
        settings["num_iterations"] = 4 if self.defaults.timestep_shift < 1 else 2
        return super().__call__(prompts, **settings)


def test_the_efforts_know_the_depth_that_a_model_draws_with_by_itself() -> None:
    pipe = NeedsTwoWhereCarried(1)
    pipe.defaults = SamplingDefaults(guidance_scale=3.0, num_iterations=6)
    matrix = measure_depth(pipe, count=1, num_steps=2, depths=(2, 8))["matrix"]
    assert {row["num_iterations"] for row in matrix} == {1, 2, 4, 6, 8} and len(matrix) == 4 * 5
    pipe.defaults = replace(pipe.defaults, num_iterations="auto")
    assert {row["num_iterations"] for row in measure_depth(pipe, count=1, num_steps=2, depths=(2, 8))["matrix"]} == {1, 2, 4, 8}


@pytest.mark.parametrize("shift", [None, 0.5])
def test_an_exam_with_shifted_times_tells_so(shift: float | None) -> None:
    """None is the model's own, here no shift."""
    pipe = NeedsLowTimes(4)
    before = pipe.defaults
    found = measure_depth(pipe, count=4, num_steps=2, depths=(2,), matrix=((2,), (2,)), timestep_shift=shift, sampler="consistency")
    assert pipe.defaults == before, "measuring changes no model"
    assert (found["timestep_shift"], found["sampler"]) == (shift or 1.0, "consistency") and found["by_iterations"][0]["right"]["every"]["value"] == (0.0 if shift is None else 1.0)


def test_without_right_answers_the_nearer_pictures_are_the_better_ones() -> None:
    near, close, far = (Outcome(Setting(8, depth), {}, Estimate(value, (value - 0.02, value + 0.02)), 16.0 * depth, 0.0, {}, 0.0)
                        for depth, value in ((8, 0.10), (4, 0.11), (2, 0.13)))
    assert close.at_least(near) and not far.at_least(near) and near.at_least(far)
    assert cheapest_equal([near, close, far]) is close and frontier([near, close, far], 8)["Best"] == [8, 8]


def test_the_threshold_is_the_largest_that_draws_practice_scenes_as_well_as_the_best_depth() -> None:
    """A model that is right from four iterations on, and whose "auto" takes four below a threshold of a half, two above."""
    class Hasty(NeedsFour):
        def __call__(self, *args, num_iterations, **kwargs):
            given = (4 if self.defaults.exit_threshold < 0.5 else 2) if num_iterations == "auto" else num_iterations
            return super().__call__(*args, num_iterations=given, **kwargs)

    practice = DepthExam(Hasty(4), count=4).practice()
    words = [{caption_scene(spec)[0] for specs in exam.specs.values() for spec in specs} for exam in (practice, DepthExam(Hasty(4), count=4))]
    assert not words[0] & words[1]
    assert practised_threshold(practice, Setting(3, "auto"), Setting(3, 4)) == max(value for value in THRESHOLDS if value < 0.5)
    assert practised_threshold(practice, Setting(3, "auto"), Setting(3, 2)) == THRESHOLDS[0]  # nothing is lost where the best depth is wrong too
    assert practice.pipe.defaults.exit_threshold == SamplingDefaults().exit_threshold


def test_without_scenes_the_threshold_is_chosen_on_captions_of_the_training(pipe: IRISPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on those that judge it; and in batches of the size that was asked for."""
    art = {"train": Art(("round",)), "held_out": Art(("flat-style",))}
    monkeypatch.setattr(depth, "load_dataset_by_name", lambda source, size, split, limit: art[split])
    monkeypatch.setattr(depth, "features_by_name", lambda batch_size: pixel_features)
    exam = DepthExam(pipe, 0, 6, "emoji", batch_size=3)
    assert len(exam.captions) == 6 and all(caption.endswith("in flat style style") for caption in exam.captions)
    asked, calibrate = [], depth.calibrate_threshold
    monkeypatch.setattr(depth, "calibrate_threshold", lambda pipe, prompts, *rest: asked.append((prompts, rest[-1])) or calibrate(pipe, prompts, *rest))
    fixed = exam.take(Setting(2, 2))
    threshold, _ = depth._automatic(exam, exam, 2, fixed, fixed, False)
    (prompts, batch_size), = asked
    assert set(prompts) == {item.captions[1] for item in art["train"].items} and batch_size == 3
    one_by_one = calibrate(pipe, prompts, range(len(prompts)), 2, 2, 2 * pipe.config.generator.mean_iterations, batch_size=1)
    assert one_by_one.threshold == pytest.approx(threshold, rel=0.11)


def test_everything_is_measured_and_told_on_the_card(pipe: IRISPipeline) -> None:
    pipe.metadata = {"training": {"data": "scenes", "autoencoder_data": "scenes+emoji:fluent-3d", "stage": 3, "step": 1, "minutes": 1.0, "finished": True, "images_seen": 64, "recipe": {"batch_size": 64}}}
    found = measure_depth(pipe, count=2, num_steps=2, depths=(1, 2), matrix=((1, 2), (1, 2)), teacher=pipe)
    assert json.loads(json.dumps(found)) == found
    assert [row["setting"] for row in found["by_iterations"]] == ["2 x 1", "2 x 2"] and len(found["matrix"]) == 4
    assert {row["carry_state"] for row in found["fixed"]} == {found["automatic"]["outcome"]["carry_state"]} == {found["carry_state"]}
    assert found["automatic"]["share_of_fixed"] == found["automatic"]["outcome"]["passes"] / found["cheapest_fixed"]["passes"]
    assert found["cheapest_fixed"] in found["fixed"]
    assert found["teacher"]["setting"] == "32 x 8" and found["teacher"]["passes"] == 2 * 32 * 8
    card = model_card(pipe, "iris-test", {}, found)
    assert card.count("scenes: drawn by this repository") == 2 and card.count("fluent-3d: MIT") == 1
    assert "| 2 x auto |" in card and f"{found['automatic']['threshold']:g}" in card and "| one right |" in card
    assert card.count("| its teacher, 32 x 8 |") == 1 and all(card.count(f"| {row['setting']} |") == 1 for row in found["matrix"])


def test_a_look_decides_too_whether_automatic_depth_is_equal(pipe: IRISPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right answers alike, but by the look "auto" is told to be twice as far from real pictures, and then not."""
    take, far = DepthExam.take, Estimate(0.2, (0.19, 0.21))
    options = {"count": 2, "num_steps": 2, "depths": (1, 2), "matrix": ((1,), (1,)), "looks": 8}
    for near, equal in ((Estimate(0.1, (0.09, 0.11)), False), (Estimate(0.2, (0.18, 0.21)), True)):
        def looked(exam: DepthExam, setting: Setting, pipe: IRISPipeline | None = None, near: Estimate = near):
            outcome = take(exam, setting, pipe)
            return outcome if outcome.kid is None else replace(outcome, kid=far if setting.num_iterations == "auto" else near)

        monkeypatch.setattr(DepthExam, "take", looked)
        found = measure_depth(pipe, **options)
        assert found["automatic"]["equal"] is equal and found["pictures"] == {"scenes of each kind": 2, "samples": 0, "looks": 8}
        assert "kid" not in found["by_iterations"][0] and found["cheapest_fixed"]["kid"] == near.to_dict() and found["automatic"]["outcome"]["kid"] == far.to_dict()


def test_the_command_refuses_what_is_not_a_model(tmp_path) -> None:
    result = CliRunner().invoke(app, ["depth", str(tmp_path)])
    assert result.exit_code == 2 and "Error:" in result.output
