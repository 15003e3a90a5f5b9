"""Laws of what notebooks lean on: iris.install, iris.training.prepare, iris.evaluation.reading, and laws."""

from __future__ import annotations

import copy
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from checkpoint_samples import snapshot
from PIL import Image

from iris import install
from iris.checkpoint import CheckpointError, write_checkpoint
from iris.config import ConfigError, preset
from iris.data import Scenes, load_dataset_by_name, parse_caption
from iris.evaluation.footprint import Footprint, MemoryUse
from iris.evaluation.laws import (
    depth_figures,
    depths_that_fail,
    haar_round_trip_error,
    logit_normal_density,
    velocity_of_preset,
    weigh_variant,
    weight_identity,
    weights_without_gradient,
)
from iris.evaluation.probes import Overthinking, PathIndependence
from iris.evaluation.reading import (
    close_run,
    few_step_rows,
    first_examples,
    judged_scenes,
    load_pipeline,
    markdown_table,
    open_measurement,
    prompts_for,
    reconstruct,
    reconstruction_psnr,
    rows_of_samples,
    steps_by_iterations,
)
from iris.flow import sample_timesteps
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.places import find_model, mirror_of, newest_pipeline
from iris.runs import Run, RunError, read_summary
from iris.text import load_text_encoder
from iris.training.__main__ import BATCH_SIZES, LEARNING_RATES, Stage
from iris.training.__main__ import main as train_stage
from iris.training.loop import TrainConfig
from iris.training.prepare import (
    configure,
    find_start,
    first_model,
    load_pictures,
    named_model,
    open_run,
    plan_training,
    require_generator,
    start_with_autoencoder,
)
from reports.notebooks import find_notebooks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A nano model whose zero weights were given values, so that every part acts."""
    config = preset("nano")
    torch.manual_seed(0)
    autoencoder, generator = WaveletVAE(config.autoencoder), Generator(config.generator)
    for parameter in generator.parameters():
        if not bool(parameter.abs().max() > 0):
            torch.nn.init.normal_(parameter, std=0.05)
    pipe = IRISPipeline(config, autoencoder, generator, load_text_encoder(config.text), SamplingDefaults(num_steps=2, num_iterations=2))
    return pipe.save_pretrained(tmp_path_factory.mktemp("model") / "nano", dtype=torch.float32)


# --- install -------------------------------------------------------------------------------------------------------


def test_nothing_missing_calls_no_pip():
    assert install.install_missing(run=lambda command: pytest.fail("pip was called")) == []


def test_missing_packages_come_under_the_installed_versions(monkeypatch, tmp_path, capsys):
    """torch is never asked for, and whatever pip adds is bound to the torch, numpy and pillow that are there; what is too old is replaced."""
    there = {"torch": "2.6.0+cu124", "torchvision": "0.21.0", "numpy": "1.26.4", "transformers": "4.56", "datasets": "3.9"}
    monkeypatch.setattr(install, "_version", there.get)
    (tmp_path / "requirements.txt").write_text("# note\ntorch>=2.9,<2.14\ngradio>=6\njupyter\ntransformers>=4.56\nsafetensors>=0.5  # why\nhuggingface_hub>=0.34,<3\ndatasets>=4.0,<6\n")
    calls = []

    def run(command):
        calls.append((command, Path(command[command.index("--constraint") + 1]).read_text()))
        if "openmoji" in command[-1]:
            raise subprocess.CalledProcessError(1, command)

    added = install.install_missing(tmp_path / "requirements.txt", run)
    wanted = ["safetensors>=0.5", "huggingface_hub>=0.34,<3", "datasets>=4.0,<6"]
    assert added[:3] == wanted and set(added[3:]) == set(install.FILES_ONLY)
    assert "torch 2.6.0+cu124 is installed" in capsys.readouterr().out
    full, *alone = calls
    assert full[0][-3:] == wanted
    assert all(bound == "torch==2.6.0+cu124\ntorchvision==0.21.0\nnumpy==1.26.4\n" for _, bound in calls)
    assert all(command[-2] == "--no-deps" for command, _ in alone) and len(alone) == len(install.FILES_ONLY)


def test_the_lists_agree_with_the_packaging():
    named = " ".join((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "Makefile"))
    assert all(requirement in named for requirement in install.FILES_ONLY)
    assert not any(install._name(line) in install.NOT_FOR_NOTEBOOKS for line in install.requirements()) and len(install.requirements()) > 5


# --- prepare -------------------------------------------------------------------------------------------------------


def test_configure_changes_the_size_and_nothing_else():
    config = configure("nano", 64)
    assert config.autoencoder.image_size == 64 and config.generator.latent_size == 16
    assert configure("nano") == preset("nano") and configure("nano", 32) == preset("nano")
    with pytest.raises(ConfigError):
        configure("nano", 30)


def test_training_on_takes_the_configuration_of_the_model_that_it_begins_with(tmp_path: Path) -> None:
    older = preset("nano", generator__core_stride=2)
    folder = write_checkpoint(tmp_path / "older", older.to_dict(), {"autoencoder": dict(WaveletVAE(older.autoencoder).state_dict())})
    assert configure("", init=folder) == configure("nano", init=folder) == older
    assert configure("nano", changes=["generator.core_stride=1"], init=folder) == preset("nano") and configure("") == preset("micro")
    assert configure("micro", init=folder) == preset("micro")  # another size begins anew


def test_a_field_of_a_preset_is_changed_by_its_name() -> None:
    changed = configure("nano", 0, ["generator.mixer=attention", "generator.core_layers=3"])
    assert changed == preset("nano", generator__mixer="attention", generator__core_layers=3)
    for wrong in ("mixer=attention", "generator.mixer", "generator.=1", "text.colour=red", "generator.dim=wide", "other.dim=3"):
        with pytest.raises(ConfigError):
            configure("nano", 0, [wrong])


def test_a_stage_on_the_command_line_is_that_of_its_notebook() -> None:
    for stage, notebook in zip(Stage, ("01", "02", "03", "04", "05"), strict=True):
        told = find_notebooks()[notebook].defaults()
        assert (BATCH_SIZES[stage], LEARNING_RATES[stage]) == (told["batch_size"], told["learning_rate"]), stage


def test_a_stage_refuses_an_option_of_the_loss_that_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="autoencoder has no exit weight"):
        train_stage(Stage.autoencoder, tmp_path, exit_weight=0.0)
    with pytest.raises(typer.BadParameter, match="distill has no warm start"):
        train_stage(Stage.distill, tmp_path, init="somewhere", warm_start=0.5)
    with pytest.raises(typer.BadParameter, match="aesthetic has no student init"):
        train_stage(Stage.aesthetic, tmp_path, init="somewhere", student_init="elsewhere")



@pytest.mark.parametrize("steps", [1, 7, 400, 100_000])
def test_the_recipe_suits_its_length(steps):
    train = plan_training(steps, 0.0, 8, 1e-3)
    assert isinstance(train, TrainConfig) and 1 <= train.warmup_steps <= max(1, steps // 20)
    assert 1 <= train.log_every <= 50 and train.eval_every >= 10
    again = plan_training(steps, 30.0, 8, 1e-3)
    assert again.recipe() == train.recipe()  # the clock decides nothing about a step


def test_the_same_recipe_continues_and_another_is_refused(tmp_path):
    config, train = preset("nano"), plan_training(10, 0.0, 4, 1e-3)
    with open_run(tmp_path, config, train, "scenes") as run:
        run.log(1, loss=0.5)
    open_run(tmp_path, config, plan_training(10, 5.0, 4, 1e-3), "scenes").close()
    with pytest.raises(RunError, match=r"another configuration \(it differs in recipe\.train_steps"):
        open_run(tmp_path, config, plan_training(11, 0.0, 4, 1e-3), "scenes")
    open_run(tmp_path, config, plan_training(11, 0.0, 4, 1e-3), "scenes", start_over=True).close()


def test_a_run_that_never_made_a_step_gives_way_to_a_mended_recipe(tmp_path: Path) -> None:
    config = preset("nano")
    open_run(tmp_path / "run", config, plan_training(10, 0.0, 4, 1e-3), "scenes", mirror=tmp_path / "mirror").close()
    with open_run(tmp_path / "run", config, plan_training(10, 0.0, 2, 1e-3), "scenes", mirror=tmp_path / "mirror") as run:  # half the batch fits
        run.log(1, loss=0.5)
    with pytest.raises(RunError, match=r"another configuration \(it differs in recipe\.batch_size"):
        open_run(tmp_path / "run", config, plan_training(10, 0.0, 4, 1e-3), "scenes", mirror=tmp_path / "mirror")


def test_a_measurement_belongs_to_one_model(model_folder: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(model_folder)
    folder, other = tmp_path / "10", copy.copy(pipe)
    other.metadata = {"hash": "another"}
    with open_measurement(folder, pipe) as run:
        run.figure_path("1_bands").write_bytes(b"png")
        close_run(run, "10_quality", ["Good."], psnr=30.0)
    with open_measurement(folder, pipe) as run:
        assert run.summary()["psnr"] == 30.0 and run.summary()["measured"]["preset"] == "nano"
        assert not run.figure_path("1_bands").exists()  # with other counts it might not be made again, and stand beside what it is not of
        run.figure_path("1_bands").write_bytes(b"png")
    with open_measurement(folder, other) as run:
        assert run.summary() == {} and not run.figure_path("1_bands").exists() and (folder / "previous-1" / "figures" / "1_bands.png").exists()


def test_what_nobody_asked_for_are_captions_of_the_models_own_pictures(model_folder: Path) -> None:
    pipe = load_pipeline(model_folder)
    assert prompts_for(pipe, "scenes", ["a cat", "a dog"]) == ["a cat", "a dog"]
    asked = prompts_for(pipe, "scenes", ["", "a cat", ""])
    assert asked[1] == "a cat" and len(set(asked)) == 3 and all(parse_caption(asked[index]) for index in (0, 2))


def test_a_notebook_that_is_run_again_from_the_top_opens_its_run_again(tmp_path: Path) -> None:
    """The kernel still holds the first handle; another process would be refused, and a handle that someone else holds is not taken."""
    config, train = preset("nano"), plan_training(10, 0.0, 4, 1e-3)
    run = open_run(tmp_path, config, train, "scenes")
    run.log(1, loss=0.5)
    run = open_run(tmp_path, config, train, "scenes")
    run.log(2, loss=0.4)
    assert [row["step"] for row in run.metrics()] == [1, 2]
    with pytest.raises(RunError, match="open for writing"):
        Run.open(tmp_path)
    run.close()


def test_a_stage_takes_the_layout_of_the_first_model_that_is_there(tmp_path: Path) -> None:
    older = preset("nano", generator__core_stride=2)
    folder = str(write_checkpoint(tmp_path / "older", older.to_dict(), {"autoencoder": dict(WaveletVAE(older.autoencoder).state_dict())}))
    assert first_model("", "runs/none/pipeline", str(tmp_path / "nothing" / "pipeline"), folder, "user/name") == folder
    assert first_model("user/name", folder) == "user/name" and first_model("", "runs/none/pipeline") == first_model() == ""
    assert configure("nano", init=first_model("runs/none/pipeline", folder)) == older and configure("nano", init=first_model("")) == preset("nano")


def test_pictures_come_at_the_models_size():
    pictures, held_out = load_pictures("scenes", preset("nano"), 6, 3)
    assert (len(pictures), len(held_out)) == (6, 3) and pictures[0].image.shape == (32, 32, 3)


def test_a_start_is_a_model_of_the_same_kind(model_folder, tmp_path):
    config = preset("nano")
    assert find_start(["", str(tmp_path / "nowhere"), str(model_folder)], config, ("autoencoder",)).folder == model_folder
    with pytest.raises(CheckpointError, match=r"the autoencoder in .* is that of nano at 32 px, not of nano at 64 px"):
        find_start([str(model_folder)], configure("nano", 64), ("autoencoder",))
    assert find_start([str(model_folder)], preset("nano", generator__core_ffn=96), ("autoencoder",)) is not None  # the generator starts fresh
    with pytest.raises(CheckpointError, match="the generator in"):
        find_start([str(model_folder)], preset("nano", generator__core_ffn=96), ("autoencoder", "generator"))
    assert find_start([str(model_folder)], preset("nano", generator__mean_iterations=2), ("autoencoder", "generator")) is not None  # no weight depends on it
    only = write_checkpoint(tmp_path / "vae", config.to_dict(), {"autoencoder": dict(WaveletVAE(config.autoencoder).state_dict())})
    assert find_start([str(only)], config, ("autoencoder",)).folder == only
    with pytest.raises(CheckpointError, match="run the earlier stages first"):
        require_generator([str(only), ""], config)
    assert require_generator([str(only), str(model_folder)], config).folder == model_folder


def test_without_a_start_an_autoencoder_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, train = preset("nano"), plan_training(2, 0.0, 4, 1e-3)
    rows = []
    arguments = (["runs/none/pipeline"], config, load_pictures("scenes", config, 8, 8), train, tmp_path / "vae", lambda run: rows.append)
    start = start_with_autoencoder(*arguments)
    assert start.folder == tmp_path / "vae" / "pipeline" and "2 steps" in start.why and rows
    assert "No earlier stage in runs/none/pipeline" in capsys.readouterr().out
    assert find_start([str(start.folder)], config, ("autoencoder",)) is not None
    # More minutes, or another machine that would measure another last bit, must not change what a generator has learned to read.
    weights, trained = snapshot(start.folder), len(rows)
    longer = plan_training(2, 30.0, 4, 1e-3)
    again = start_with_autoencoder(*arguments[:3], longer, *arguments[4:])
    assert again.folder == start.folder and snapshot(start.folder) == weights and len(rows) == trained and "start_over" in again.why
    with pytest.raises(RunError, match=r"recipe\.train_steps"):
        start_with_autoencoder(*arguments[:3], plan_training(3, 0.0, 4, 1e-3), *arguments[4:])
    others = (load_pictures("scenes", config, 9, 8), *arguments[3:])
    with pytest.raises(RunError, match="it differs in pictures"):  # a folder is known by its name alone, and may hold others by now
        start_with_autoencoder(*arguments[:2], *others)
    earlier = tmp_path / "01" / "pipeline"  # run since; what was begun here goes on all the same, unless it is told to start over
    shutil.copytree(start.folder, earlier)
    assert start_with_autoencoder([str(earlier)], *arguments[1:]).folder == start.folder
    assert start_with_autoencoder([str(earlier)], *arguments[1:], start_over=True).folder == earlier
    start_with_autoencoder(*arguments, start_over=True)
    assert len(rows) == 2 * trained


def test_a_model_that_was_named_has_to_be_there_and_to_fit(model_folder: Path, tmp_path: Path) -> None:
    """Training from nothing where someone meant to train on is an hour lost, and says nothing."""
    data, train = load_pictures("scenes", preset("nano"), 8, 8), plan_training(2, 0.0, 4, 1e-3)
    with pytest.raises(CheckpointError, match="no model in demo/models/iris-emojis"):
        first_model("demo/models/iris-emojis")
    with pytest.raises(CheckpointError, match="no model in demo/models/iris-emojis"):
        start_with_autoencoder(["demo/models/iris-emojis"], preset("nano"), data, train, tmp_path / "vae")
    with pytest.raises(CheckpointError, match="image_size"):
        start_with_autoencoder([str(model_folder)], configure("nano", 64), data, train, tmp_path / "vae")
    stage = tmp_path / "runs" / "00" / "pipeline"
    shutil.copytree(model_folder, stage)
    with pytest.raises(CheckpointError, match="image_size"):
        start_with_autoencoder([str(stage)], configure("nano", 64), data, train, tmp_path / "vae")
    assert named_model(str(stage)) == str(stage) and named_model("") == ""
    with pytest.raises(CheckpointError, match="no model in runs/0O/pipeline"):
        named_model("runs/0O/pipeline")
    assert not (tmp_path / "vae").exists()


def test_a_mirror_has_a_place_for_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRIS_MIRROR", str(tmp_path / "drive"))
    home = tmp_path / "work"
    home.mkdir()
    monkeypatch.chdir(home)
    assert mirror_of("runs/cpu/03") == mirror_of(home / "runs" / "cpu" / "03") == tmp_path / "drive" / "runs" / "cpu" / "03"
    outside = [mirror_of(tmp_path / name / "autoencoder") for name in ("a", "b")]
    assert outside[0] != outside[1] and all(path.parent == tmp_path / "drive" and path.name.startswith("autoencoder-") for path in outside)
    monkeypatch.delenv("IRIS_MIRROR")
    monkeypatch.setattr(os.path, "relpath", lambda *_: pytest.fail("ValueError on another drive of Windows"))
    assert mirror_of("runs/cpu/03") is None


def test_models_are_found_in_a_notebooks_clone_and_in_the_mirror(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRIS_MIRROR", raising=False)
    assert find_model("demo/models/mine") == find_model("runs/01/pipeline") == find_model("") == newest_pipeline() == ""
    shutil.copytree(model_folder, tmp_path / "iris-code" / "demo" / "models" / "mine")
    assert find_model("demo/models/mine") == first_model("demo/models/mine") == "iris-code/demo/models/mine"
    shutil.copytree(model_folder, tmp_path / "drive" / "runs" / "01" / "pipeline")
    monkeypatch.setenv("IRIS_MIRROR", str(tmp_path / "drive"))
    assert find_model("runs/01/pipeline") == str(tmp_path / "drive" / "runs" / "01" / "pipeline")
    shutil.copytree(model_folder, tmp_path / "runs" / "01" / "pipeline")
    assert find_model("runs/01/pipeline") == "runs/01/pipeline"  # what is here comes first
    os.utime(tmp_path / "drive" / "runs" / "01" / "pipeline" / "manifest.json", (1, 1))
    assert newest_pipeline() == "runs/01/pipeline"
    (tmp_path / "runs" / "01" / "pipeline" / "manifest.json").write_text('{"autoencoder.safetensors": {}}')
    assert newest_pipeline() == str(tmp_path / "drive" / "runs" / "01" / "pipeline")  # an autoencoder alone draws nothing
    assert find_model("user/name") == "user/name"


# --- reading -------------------------------------------------------------------------------------------------------


def test_only_the_last_cell_marks_a_notebook_as_finished(tmp_path, capsys):
    with Run.open(tmp_path) as run:
        run.write_summary({"finished": True, "step": 3})
    run = Run.open(tmp_path)
    close_run(run, "03_text_to_image", ["One.", "Two."], ratio=np.float32(0.5))
    summary = read_summary(tmp_path)
    assert summary["step"] == 3 and summary["ratio"] == 0.5 and summary["notebook"] == "03_text_to_image" and "torch" in summary["machine"]
    assert capsys.readouterr().out == "One.\nTwo.\n"
    Run.open(tmp_path).close()  # the folder was given back


def test_reconstructions_and_rows(model_folder):
    pipe = load_pipeline(model_folder)
    pictures = [example.image for example in first_examples(Scenes(32, 3), 8)]
    assert len(pictures) == 3
    again = reconstruct(model_folder, pictures)
    assert reconstruction_psnr(pictures, [Image.fromarray(p) for p in pictures]) == [math.inf] * 3
    assert all(value < 60 for value in reconstruction_psnr(pictures, again))
    images, captions = rows_of_samples([pipe, pipe], ["a red circle", "a star"], ("before", "after"))
    assert captions == ["before: a red circle", "before: a star", "after: a red circle", "after: a star"]
    assert images[0].tobytes() == images[2].tobytes() and images[0].tobytes() != images[1].tobytes()
    images, captions = few_step_rows(pipe, pipe, ["a star"], 3.0)
    assert len(images) == len(captions) == 5 and captions[-1] == "student, 4 steps: a star"
    sheet = steps_by_iterations(pipe, "a star", [1, 2], [1, 2, 3])
    assert [len(row) for row in sheet] == [3, 3]
    assert sheet[1][1].tobytes() == pipe("a star", num_steps=2, num_iterations=2, seed=0).images[0].tobytes()
    judged, said = judged_scenes(pipe, 1)
    assert len(judged) == 5 and all(caption.startswith(("right: ", "wrong: ")) for caption in said)
    pipe.defaults = SamplingDefaults(num_steps=3, num_iterations=2, sampler="consistency", carry_state=True)
    assert rows_of_samples([pipe], ["a star"], ("as it draws",))[0][0].tobytes() == pipe("a star", seed=0).images[0].tobytes()


def test_markdown_table():
    assert markdown_table(["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


# --- laws ----------------------------------------------------------------------------------------------------------


def test_haar_is_exact_and_untrained_velocity_zero():
    assert haar_round_trip_error([np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)]) < 1e-5
    assert velocity_of_preset("nano") == 0.0


def test_the_weights_identity_against_sampling():
    """E[w(t) f(t)] under LogitNormal(0, 1) = sqrt(e) E[f(t)] under LogitNormal(1, 1), and the effective batch, 1/e without the clamp, is a little more."""
    t, curves, gap, share = weight_identity()
    assert gap < 1e-12 and math.exp(-1) < share < 0.42 and len(t) == 19 and len(curves) == 2
    rng = torch.Generator().manual_seed(0)
    a, b = sample_timesteps(400_000, rng).double(), sample_timesteps(400_000, rng, logit_mean=1.0).double()
    left, right = (a / (1 - a) * (a - 0.3).square()).mean(), math.exp(0.5) * (b - 0.3).square().mean()
    assert float(left) == pytest.approx(float(right), rel=0.02)
    fine = np.linspace(1e-6, 1 - 1e-6, 2_000_001)
    assert np.trapezoid(logit_normal_density(fine, 1.0), fine) == pytest.approx(1.0, abs=1e-4)


def test_every_weight_gets_a_gradient_and_a_dead_one_is_named(model_folder):
    pipe = load_pipeline(model_folder)
    data = load_dataset_by_name("scenes", 32, "held_out", 4)
    assert weights_without_gradient(pipe, data) == []
    assert weights_without_gradient(pipe, load_dataset_by_name("scenes", 32, "held_out", 1)) == []  # a small folder holds one out
    assert not any(parameter.requires_grad for parameter in pipe.generator.parameters())
    with torch.no_grad():
        next(parameter for name, parameter in pipe.generator.named_parameters() if name.startswith("output")).zero_()
    assert len(weights_without_gradient(pipe, data)) > 10  # a closed exit lets nothing through


def test_depths_that_fail_names_the_bad_ones(model_folder):
    pipe = load_pipeline(model_folder)
    assert depths_that_fail(pipe, "a star", [1, 5, 20]) == []
    with torch.no_grad():
        next(iter(pipe.generator.core.parameters())).fill_(float("nan"))
    assert depths_that_fail(pipe, "a star", [1, 5]) == [1, 5]


def test_depth_figures_by_hand():
    errors = np.array([[[4.0, 2.0, 1.0, 3.0]]])
    longer = Overthinking(np.array([0.5]), errors, errors, 2)
    starts = PathIndependence(np.array([1.0]), np.ones((1, 2, 3)), np.array([[[1.0, 0.5, 0.2], [1.0, 0.5, 0.4]]]), 2)
    assert depth_figures(longer, starts, [[2, 4], [3, 3]]) == {
        "best_depth": 3, "error_ratio": 3.0, "start_distance": pytest.approx(0.3), "mean_spent": 3.0, "least_spent": 2, "most_spent": 4}


def test_a_variants_total_needs_memory_and_the_text_tower():
    parameters = dict.fromkeys(("prelude", "core", "coda", "embeddings", "text_adapter", "encoder", "decoder"), 1_000_000)
    size = Footprint("tiny", 256, 8, parameters, {}, "clip-l", 100_000_000)
    found = weigh_variant("tiny", size, MemoryUse("x", imported=1, built=200_000_000, peak=250_000_000))
    assert found["weights_megabytes"] == 214 and found["activations_megabytes"] == 50 and found["total_megabytes"] == 264
    assert found["compression"] == 48 and found["latent_side"] == 16 and found["process_megabytes"] == 250
    assert weigh_variant("tiny", size, None)["total_megabytes"] is None
    bare = Footprint("tiny", 256, 8, parameters, {}, "clip-l", None)
    assert weigh_variant("tiny", bare, MemoryUse("x", 1, 2, 3))["total_megabytes"] is None
