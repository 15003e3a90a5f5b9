"""What may be released, and what a released folder holds."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import typer

from iris.pipeline import IRISPipeline
from reports.release import data_lines, release, seen_by_generator


def training(data: str, **more) -> dict:
    return {"data": data, "autoencoder_data": "scenes", "stage": 3, "step": 1, "minutes": 1.0, "finished": True, "images_seen": 64, "recipe": {"batch_size": 64}} | more


@pytest.fixture
def run(pipeline: IRISPipeline, tmp_path: Path):
    """Saves a pipeline with the trainings it is told, and returns its folder."""
    def save(told: dict) -> Path:
        pipe = copy.copy(pipeline)
        pipe.metadata = {"training": told}
        pipe.save_pretrained(tmp_path / "run")
        return tmp_path / "run"

    return save


@pytest.mark.parametrize("told", [training("emoji:openmoji"), training("scenes", before=[training("scenes*2+emoji:noto,openmoji")]), training("scenes", autoencoder_data="emoji"),
                                  training("scenes", before=[training("folder:art")]), training("hub:someone/pictures")])
def test_share_alike_art_and_art_without_a_known_licence_are_not_released(run, tmp_path: Path, told: dict) -> None:
    """Whichever training of the model saw it."""
    with pytest.raises(typer.BadParameter, match=r"share-alike|no licence"):
        release(run(told), tmp_path / "released", None, None, None, None, None, "", None, "")
    assert not (tmp_path / "released").exists()


def test_a_card_names_every_source_once() -> None:
    told = training("scenes*2+scenes:pair", before=[training("emoji:fluent-3d,noto"), training("scenes")])
    assert seen_by_generator(told) == "emoji:fluent-3d,noto+scenes+scenes*2+scenes:pair"
    lines = data_lines(seen_by_generator(told))
    assert [line.split(":")[0] for line in lines] == ["fluent-3d", "noto", "scenes"] and "MIT" in lines[0] and "Apache-2.0" in lines[2]


@pytest.mark.slow
def test_a_release_draws_by_what_was_measured_and_tells_it(run, tmp_path: Path) -> None:
    figures, thinking = tmp_path / "quality.json", tmp_path / "depth.json"
    figures.write_text(json.dumps({"scenes": {"one": {"pictures": 8, "right": {"value": 0.5, "interval": [0.2, 0.8]}}}, "seed": 0}))
    row = {"setting": "12 x 2", "num_steps": 12, "num_iterations": 2, "right": {kind: {"value": 0.5, "interval": [0.2, 0.8]} for kind in ("one", "every")}, "passes": 48.0, "spread": 0.0}
    thinking.write_text(json.dumps({
        "pictures": {"scenes of each kind": 8, "samples": 0, "looks": 0}, "data": "scenes", "seed": 3, "guidance_scale": 3.0, "carry_state": True, "timestep_shift": 0.6, "sampler": "heun",
        "by_iterations": [row], "fixed": [row],
        "cheapest_fixed": row, "carried": {"num_steps": 8, "saved": 0.25}, "frontier": {"Draft": [2, 2], "Balanced": [4, 2], "Best": [8, 4], "Automatic": [12, "auto"]},
        "automatic": {"threshold": 0.42, "outcome": row | {"setting": "12 x auto"}, "share_of_fixed": 0.8, "equal": True}}))
    release(run(training("scenes", before=[training("emoji:fluent-3d")])), tmp_path / "released", figures, thinking, 3, 2, None, "", None, "By hand.")
    pipe = IRISPipeline.from_pretrained(tmp_path / "released")
    assert (pipe.defaults.num_steps, pipe.defaults.num_iterations, pipe.defaults.guidance_scale) == (3, 2, 2.0)
    assert (pipe.defaults.exit_threshold, pipe.defaults.carry_state, pipe.defaults.timestep_shift, pipe.defaults.sampler) == (0.42, True, 0.6, "heun")
    assert pipe.metadata["frontier"]["Draft"] == [2, 2] and pipe.metadata["by_iterations"] == {"2": 0.5} and len(pipe.metadata["examples"]) == 6
    card = (tmp_path / "released" / "README.md").read_text()
    assert (tmp_path / "released" / "samples.png").stat().st_size > 1000
    for told in ("on these weights", "fluent-3d: MIT", "scenes: drawn by this repository", "0.5 (0.2 to 0.8)", "relative change of 0.42", "80%", "By hand.",
                 "--data scenes --count 8 --samples 0 --num-steps 12 --guidance-scale 3 --timestep-shift 0.6 --sampler heun --seed 3 --json"):
        assert told in card, told
    shards = [file.read_bytes() for file in sorted((tmp_path / "released").glob("*.safetensors"))]
    thinking.write_text(thinking.read_text().replace('"threshold": 0.42', '"threshold": 0.31'))
    release(tmp_path / "released", tmp_path / "released", None, thinking, None, None, None, "", None, "")
    assert (tmp_path / "released" / "README.md").read_text() == card.replace("relative change of 0.42", "relative change of 0.31")
    again = IRISPipeline.from_pretrained(tmp_path / "released")
    assert again.defaults == dataclasses.replace(pipe.defaults, exit_threshold=0.31) and again.metadata["training"] == pipe.metadata["training"]
    assert [file.read_bytes() for file in sorted((tmp_path / "released").glob("*.safetensors"))] == shards
    del again.metadata["figures"]  # a model released before they were kept
    again.save_pretrained(tmp_path / "released")
    with pytest.raises(typer.BadParameter, match="tells its figures on its card alone"):
        release(tmp_path / "released", tmp_path / "released", None, thinking, None, None, None, "", None, "")


@pytest.mark.slow
def test_a_release_in_eight_bits_stays_so_and_takes_figures_of_its_own(run, tmp_path: Path) -> None:
    half, small = tmp_path / "half", tmp_path / "small"
    told = run(training("scenes"))
    release(told, half, None, None, None, None, None, "", None, "")
    release(told, small, None, None, None, None, None, "", True, "By hand.")

    def shards(folder: Path) -> list[bytes]:
        return [file.read_bytes() for file in sorted(folder.glob("*.safetensors"))]

    assert sum(map(len, shards(small))) < sum(map(len, shards(half))) and "stored in eight bits" in (small / "README.md").read_text()
    first, figures = shards(small), tmp_path / "quality.json"
    figures.write_text(json.dumps({"scenes": {}, "seed": 0, "model_hash": IRISPipeline.from_pretrained(small).metadata["hash"]}))
    with pytest.raises(typer.BadParameter, match="measures another model"):
        release(half, tmp_path / "other", figures, None, None, None, None, "", None, "")
    again = tmp_path / "again"
    shutil.copytree(half, again)
    figures.write_text(json.dumps({"scenes": {}, "seed": 0, "model_hash": IRISPipeline.from_pretrained(again).metadata["hash"]}))
    release(again, again, figures, None, None, None, None, "", True, "By hand.")  # eight bits are other weights than the ones that were measured
    assert "before they were rounded to eight bits" in (again / "README.md").read_text()
    figures.write_text(json.dumps({"scenes": {}, "seed": 0, "model_hash": IRISPipeline.from_pretrained(small).metadata["hash"]}))
    release(small, small, figures, None, None, None, None, "", None, "")
    assert shards(small) == first
    card = (small / "README.md").read_text()
    assert "stored in eight bits" in card and "on these weights" in card


def test_what_was_measured_otherwise_is_not_told_of_these_weights(run, tmp_path: Path) -> None:
    told, file = run(training("scenes")), tmp_path / "figures.json"
    for quality, depth, sampler, figures, sentence in (
        (file, None, None, {"parameters": {"int8": True}}, "measured with --int8"), (None, file, "euler", {"sampler": "consistency"}, "measured with the sampler consistency"),
        (tmp_path / "gone.json", None, None, {}, "cannot be read"), (file, None, None, [1], "holds no figures"),
    ):
        file.write_text(json.dumps(figures))
        with pytest.raises(typer.BadParameter, match=sentence):
            release(told, tmp_path / "released", quality, depth, None, None, None, "", None, "", sampler)
    assert not (tmp_path / "released").exists()


def test_a_release_that_fails_half_way_changes_nothing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, released = run(training("scenes")), tmp_path / "released"
    monkeypatch.setattr("reports.release.contact_sheet", lambda pipe, source: (["a red circle"], pipe("a red circle", num_steps=1, num_iterations=1).images, ["a red circle"]))
    release(told, released, None, None, None, None, None, "", None, "The first.")
    (released / "LICENSE").write_text("mine")
    before = {path.name: path.read_bytes() for path in released.iterdir()}

    def fails(pipe: IRISPipeline, source: str) -> None:
        raise ValueError("no art here")

    monkeypatch.setattr("reports.release.contact_sheet", fails)
    with pytest.raises(ValueError, match="no art here"):
        release(told, released, None, None, 3, None, None, "", None, "The second.")
    assert {path.name: path.read_bytes() for path in released.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["released", "run"], "nor is a draft left"
