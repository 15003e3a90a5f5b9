"""Laws of reports.duel: equal parameters, equal minutes, a verdict only where intervals part, and a table from real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from iris.config import preset
from iris.evaluation.metrics import share
from iris.evaluation.quality import to_plain
from iris.model import IRISModel
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.text import load_text_encoder
from reports import duel


@pytest.mark.parametrize("name", ["micro", "tiny", "small"])
@pytest.mark.parametrize("mixer", ["attention", "fourier", "recurrence"])
def test_every_mixer_has_the_same_number_of_weights(name: str, mixer: str):
    base = preset(name)
    config = duel.contender(base, mixer)
    assert config.generator.mixer == mixer
    assert duel.weights(config) == pytest.approx(duel.weights(base), rel=0.02)


def test_the_unrolled_stack_computes_as_many_layers_once():
    base = preset("micro")
    config = duel.contender(base, "unrolled").generator
    assert config.core_layers * config.mean_iterations == base.generator.core_layers * base.generator.mean_iterations
    assert config.mixer == "grfm" and config.iteration_embedding == "none"


def test_half_a_grid_has_the_same_weights_but_for_its_joints():
    base = preset("micro")
    config = duel.contender(base, "half")
    assert config.generator.core_shape(8, 8)[:2] == (4, 4) and base.generator.core_shape(8, 8)[:2] == (8, 8)
    joints = 2 * (4 - 1) * base.generator.dim**2 + 3 * base.generator.dim  # four tokens into one and back; as many biases more
    assert duel.weights(config) - duel.weights(base) == joints


def test_steps_fill_the_minutes_by_the_time_of_both_phases():
    timed = {"coarse": 0.5, "full": 2.0}
    steps = duel.steps_for(30, timed)
    assert steps / 3 * 0.5 + steps * 2 / 3 * 2.0 == pytest.approx(30 * 60, rel=1e-3)


def test_who_joins_later_is_timed_in_the_minutes_of_the_first_session():
    planned = {"grfm": {"coarse": 1.0, "full": 2.0}}
    timed = {"grfm": {"coarse": 1.5, "full": 3.0}, "attention": {"coarse": 3.0, "full": 6.0}}  # on a machine half as slow again
    assert duel.in_time_of(planned, timed) == {"grfm": planned["grfm"], "attention": {"coarse": 2.0, "full": 4.0}}
    assert duel.in_time_of({}, timed) == timed and duel.in_time_of({"half": planned["grfm"]}, timed)["attention"] == timed["attention"]


def test_intervals_that_overlap_are_not_told_apart():
    low, middle, high = (to_plain(share(right, 100)) for right in (10, 50, 55))
    assert duel.verdict(high, low) == "ahead" and duel.verdict(low, high) == "behind"
    assert duel.verdict(middle, high) == duel.verdict(high, middle) == "not told apart"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = preset("nano")
    torch.manual_seed(0)
    parts = IRISModel(config)
    return IRISPipeline(config, parts.autoencoder, parts.generator, load_text_encoder(config.text), SamplingDefaults(2, 2, 1.0)).save_pretrained(
        tmp_path_factory.mktemp("model") / "nano")


def test_a_duel_from_its_timing_to_its_table_and_the_same_command_trains_nothing_again(model: Path, tmp_path: Path):
    arguments = ["--preset", "nano", "--minutes", "0.01", "--only", "grfm", "unrolled", "--limit", "32", "--batch-size", "8", "--scenes", "2", "--samples", "0",
                 "--rounds", "1", "--image-size", "64", "--autoencoder", str(model), "--run", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert duel.main(arguments) == 0
    found = json.loads((tmp_path / "duel.json").read_text())["nano-64"]
    for name, result in found["contenders"].items():
        assert result["steps"] == duel.steps_for(0.01, result["timed"]) and result["loss"], name
        assert json.loads((tmp_path / "runs" / "nano-64-8" / name / "summary.json").read_text())["step"] == result["steps"]
    text = (tmp_path / "DUEL.md").read_text()
    assert "GRFM against GRFM, " in text and "| nan" not in text and (tmp_path / "duel-nano-64.png").stat().st_size > 5000
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("metrics.jsonl")}
    assert duel.main(arguments) == 0
    assert stamps == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("metrics.jsonl")}
    assert json.loads((tmp_path / "duel.json").read_text())["nano-64"]["contenders"] == found["contenders"]
    assert duel.main([word if word != "unrolled" else "attention" for word in arguments if word != "grfm"]) == 0  # who joins later joins the table
    assert set(json.loads((tmp_path / "duel.json").read_text())["nano-64"]["contenders"]) == {"grfm", "unrolled", "attention"}
    other = {**found, "options": {**found["options"], "image_size": 128}}
    both = duel.duels_markdown({duel.duel_name(one): one for one in (found, other)})
    assert [both.count(f"## Preset `nano` at {side} px") for side in (64, 128)] == [1, 1] and "duel-nano-128.png" in both


def test_what_cannot_be_fought_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert duel.main(["--autoencoder", str(tmp_path / "nothing"), "--run", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
