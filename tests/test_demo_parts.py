"""The page's parts without a server: every iteration of a drawing, efforts, links, models on disk, masks, training jobs."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
from demo_server import nano_pipeline
from PIL import Image

from demo import model as models
from demo import training
from demo.app import create_demo
from demo.drawing import Progress, drawing_stream, thinking
from demo.editing import EXTEND, REPAINT, REWORD, fit_mask, fit_picture, painted_mask, plan_edit, uploaded
from demo.effort import DISTILLED, Effort, effort_named, efforts
from demo.link import read_link
from demo.model import LoadedModel, ModelError
from demo.request import GUIDANCE, ITERATIONS, STEPS, GenerationRequest, RequestError
from demo.serving import cache_file, cache_picture, sweep
from demo.settings import starting_values, within_limits
from demo.tabs import train
from demo.tabs.create import _status, asked_of
from demo.visit import MAX_PICTURES, Drawn, captions, picked, remember
from iris.checkpoint import CheckpointError
from iris.evaluation.probes import trace
from iris.locks import start_time
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.sampling import SOLVER_STEPS

REQUEST = GenerationRequest("a red circle", seed=3, num_steps=3, num_iterations=4, guidance_scale=2.0)

# --- every core iteration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 4, "auto"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("sampler", sorted(SOLVER_STEPS))
def test_watching_every_iteration_draws_the_same_picture(pipeline: IRISPipeline, depth: int | str, guidance: float, carried: bool, sampler: str) -> None:
    request = GenerationRequest("a red circle", "blue", 3, 3, depth, guidance)
    defaults = SamplingDefaults(carry_state=carried, exit_threshold=0.2, sampler=sampler)
    pipeline = IRISPipeline(pipeline.config, pipeline.autoencoder, pipeline.generator, pipeline.text_encoder, defaults)
    moments = list(thinking(pipeline, request))
    plain = pipeline(**request.arguments())
    np.testing.assert_array_equal(np.asarray(moments[-1].image), np.asarray(plain.images[0]))
    assert moments[-1].iterations == plain.iterations[0] and len(moments) == sum(plain.iterations[0]) + 1
    assert moments[-1].parameters == {**plain.parameters_of(0), "iterations": plain.iterations[0]}


def test_the_last_iteration_of_a_step_is_what_a_stream_shows(pipeline: IRISPipeline) -> None:
    moments = [moment for moment in thinking(pipeline, REQUEST) if not moment.finished and moment.iterations[-1] == 4]
    previews = list(pipeline.stream(**REQUEST.arguments()))
    for moment, preview in zip(moments[:-1], previews[:-1], strict=True):
        np.testing.assert_array_equal(np.asarray(moment.image), np.asarray(preview.images[0]))


def test_another_solver_shows_its_steps(pipeline: IRISPipeline) -> None:
    other = IRISPipeline(pipeline.config, pipeline.autoencoder, pipeline.generator, pipeline.text_encoder, SamplingDefaults(sampler="heun"))
    moments = list(drawing_stream(LoadedModel(other))(REQUEST, True))
    assert [moment.step for moment in moments] == [1, 2, 3] and moments[-1].finished


@pytest.mark.parametrize("negative", ["", "blue"])
def test_looking_inside_draws_what_create_draws(pipeline: IRISPipeline, negative: str) -> None:
    request = GenerationRequest("a red circle", negative, 3, 3, 4, 2.0)
    created = list(drawing_stream(LoadedModel(pipeline))(request, False))[-1]
    np.testing.assert_array_equal(trace(pipeline, **request.arguments()).image, np.asarray(created.image))


@pytest.mark.parametrize(("negative", "guidance", "told"), [("blue", 1.0, True), ("blue", 2.0, False), ("", 1.0, False)])
def test_a_negative_prompt_that_nothing_heeds_is_told(negative: str, guidance: float, told: bool) -> None:
    status = _status(GenerationRequest("a red circle", negative, 3, 2, 2, guidance), Progress(1, 2, Image.new("RGB", (8, 8)), [2], 0.1))
    assert ("negative prompt unused" in status) is told


# --- efforts, links, the visit -------------------------------------------------------------------------------------


def test_a_model_may_bring_its_own_efforts() -> None:
    pipeline = nano_pipeline()
    pipeline.defaults = SamplingDefaults(num_steps=12, num_iterations=6)
    parts = {"Draft": Effort(4, 2), "Balanced": Effort(6, 3), "Best": Effort(12, 6), "Automatic": Effort(12, "auto")}
    assert efforts(pipeline) == parts and effort_named(pipeline, 6, 3) == "Balanced" and effort_named(pipeline, 12, "auto") == "Automatic"
    assert effort_named(pipeline, 7, 3) is None
    pipeline.metadata["frontier"] = {"Draft": [2, 3], "Best": [12, "auto"], "Balanced": [0, 4], "Automatic": "all", "Other": [1, 1], 5: None}
    assert efforts(pipeline) == {**parts, "Draft": Effort(2, 3), "Best": Effort(12, "auto")}
    assert starting_values(LoadedModel(pipeline))[:2] == (12, "auto"), "the page opens with one of its efforts"
    pipeline.metadata["frontier"] = ["damaged"]
    assert efforts(pipeline) == parts
    pipeline.metadata["stage"] = 5
    assert efforts(pipeline) == DISTILLED


def test_a_link_brings_the_request_back() -> None:
    query = {"prompt": "ein roter Kreis", "negative": "blau", "seed": "7", "steps": "12", "iterations": "auto", "guidance": "2.5"}
    mine = (4, 6, 1.0)
    assert read_link(query, mine) == GenerationRequest("ein roter Kreis", "blau", 7, 12, "auto", 2.5)
    assert read_link({"prompt": "x"}, mine) == GenerationRequest("x", "", 0, 4, 6, 1.0) and read_link({"prompt": "x"}, (4, "auto", 1.0)).num_iterations == "auto"
    assert read_link({}, mine) is None and read_link({"seed": "7"}, mine) is None
    for damaged in ({"seed": "x"}, {"seed": "-1"}, {"steps": "1e9"}, {"iterations": "nan"}, {"guidance": "inf"}, {"seed": "9" * 5000}):
        with pytest.raises(RequestError):
            read_link({**query, **damaged}, mine)


def test_the_buttons_below_a_picture_are_about_that_picture() -> None:
    fields = ("another prompt", "", 0, 12, 8, False, 3.0)
    told = {"prompt": "a red circle", "num_steps": 4, "num_iterations": "auto", "guidance_scale": 2.0, "seed": 10}
    assert asked_of(None, fields) == fields
    assert asked_of(Drawn("1.png", told), fields) == ("a red circle", "", 10, 4, 8, True, 2.0)
    assert asked_of(Drawn("1.png", {**told, "negative_prompt": "blue", "num_iterations": 6}), fields) == ("a red circle", "blue", 10, 4, 6, False, 2.0)


def test_defaults_beyond_the_page_become_its_most() -> None:
    assert within_limits(SamplingDefaults(num_steps=64, num_iterations=48, guidance_scale=12.0)) == (STEPS[1], ITERATIONS[1], GUIDANCE[1])
    assert within_limits(SamplingDefaults(num_steps=4, num_iterations="auto", guidance_scale=1.0)) == (4, "auto", 1.0)


def test_a_visit_remembers_the_newest_pictures_whose_files_are_there(tmp_path: Path) -> None:
    visit: list[Drawn] = []
    for seed in range(MAX_PICTURES + 5):
        path = tmp_path / f"{seed}.png"
        path.touch()
        visit = remember(visit, Drawn(str(path), {"prompt": "x", "seed": seed}))
    assert len(visit) == MAX_PICTURES and captions(visit)[0] == (str(path), f"x · {MAX_PICTURES + 4}")
    assert picked(visit, 0) == visit[0] and picked(visit, MAX_PICTURES) is None and picked(visit, -1) is None and picked(visit, "0") is None
    path.unlink()
    assert picked(visit, 0) is None and remember(visit, visit[1])[1:] == visit[1:]


# --- models on disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "MODELS", tmp_path / "demo" / "models")
    monkeypatch.setattr(models, "RUNS", tmp_path / "runs")
    return tmp_path


def test_an_exchanged_model_leaves_the_memory(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is built for the first model and lives as long as the server."""
    nano_pipeline().save_pretrained(disk / "runs" / "03" / "pipeline")
    model = LoadedModel(nano_pipeline())
    gone = weakref.ref(model.pipeline.generator)
    monkeypatch.setattr("demo.app.LoadedModel", lambda *_: model)
    page = create_demo(model.pipeline)
    model.switch("runs/03/pipeline")
    gc.collect()
    assert gone() is None and page is not None


def test_models_on_disk_are_listed_and_one_replaces_another(disk: Path) -> None:
    first, second = nano_pipeline(), nano_pipeline()
    second.defaults = SamplingDefaults(num_steps=5)
    first.save_pretrained(disk / "demo" / "models" / "shipped")
    second.save_pretrained(disk / "runs" / "03" / "pipeline")
    (disk / "runs" / "01" / "pipeline").mkdir(parents=True)
    (disk / "runs" / "01" / "pipeline" / "manifest.json").write_text('{"autoencoder.safetensors": {}}')  # stage 1 alone cannot draw
    model = LoadedModel(first)
    assert model.choices() == [("shipped", "demo/models/shipped"), ("runs: 03", "runs/03/pipeline")]
    model.switch("runs/03/pipeline")
    assert model.pipeline is not first and model.pipeline.defaults.num_steps == 5 and model.folder == disk / "runs" / "03" / "pipeline"


def test_a_model_that_cannot_be_loaded_leaves_the_present_one(disk: Path) -> None:
    first = nano_pipeline()
    folder = first.save_pretrained(disk / "runs" / "03" / "pipeline")
    weights = next(folder.glob("generator*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0" if weights.read_bytes()[-1:] != b"\0" else weights.read_bytes()[:-1] + b"\1")
    model = LoadedModel(first)
    for source in ("runs/03/pipeline", "", None, 5, "x" * 1000):
        with pytest.raises((ModelError, CheckpointError)):
            model.switch(source)
        assert model.pipeline is first
    with pytest.raises(ModelError, match="shared"):
        LoadedModel(first, public=True).switch("runs/03/pipeline")


# --- pictures and masks from visitors ------------------------------------------------------------------------------


def test_paint_becomes_the_mask_of_the_same_square() -> None:
    layer = np.zeros((64, 96, 4), np.uint8)
    layer[0:32, 16:48] = (125, 102, 217, 255)  # the left upper quarter of the middle square
    mask = painted_mask([Image.fromarray(layer)], 32)
    expected = np.zeros((32, 32), bool)
    expected[:16, :16] = True
    np.testing.assert_array_equal(mask, expected)
    assert painted_mask([], 32) is None and painted_mask([Image.new("RGBA", (9, 9))], 32) is None
    np.testing.assert_array_equal(fit_mask(Image.fromarray(np.where(expected, 255, 0).astype(np.uint8)), 64), np.kron(expected, np.ones((2, 2))) > 0)


def test_an_edit_needs_what_its_kind_needs() -> None:
    image = fit_picture(Image.new("RGB", (50, 40), "red"), 32)
    assert image.size == (32, 32)
    for mode, extra, said in (("Twist", {}, "kind of edit"), (REPAINT, {}, "Paint over"), (EXTEND, {}, "at least one side"), (EXTEND, {"sides": ["Left"], "room": 9}, "room is 9"),
                              (REWORD, {}, "what the picture shows"), (REWORD, {"source_prompt": 5}, "text")):
        with pytest.raises(ValueError, match=said):
            plan_edit(mode, REQUEST, image, 0.5, **extra)
    with pytest.raises(RequestError, match="strength is 2"):
        plan_edit(REPAINT, REQUEST, image, 2)
    assert plan_edit(EXTEND, REQUEST, image, 1, sides=["Left"]).mask.mean() > 0.3
    with pytest.raises(RequestError, match="Choose a picture"):
        fit_picture(None, 32)


def test_an_endpoint_reads_no_file_but_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    inside, outside = tmp_path / "uploads" / "a.png", tmp_path / "b.png"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_bytes(b"x")
    assert uploaded({"path": str(inside)}) == inside
    for file in ({"path": str(outside)}, {"path": f"{inside.parent}/../b.png"}, {"path": "/etc/passwd"}, {"path": None}, {}, None, 5, {"path": "a\0b"}, {"path": "\ud800"}, "\ud800"):
        with pytest.raises(RequestError, match="upload it"):
            uploaded(file)


def test_a_file_that_is_being_read_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = Path(cache_file(b"picture", "one.png"))
    inode = path.stat().st_ino
    path.chmod(0o400)
    assert cache_file(b"picture", "one.png") == str(path) and path.stat().st_ino == inode and path.read_bytes() == b"picture"
    assert Path(cache_file(b"another", "one.png")).read_bytes() == b"another" and path.read_bytes() == b"picture"
    shown = Path(cache_picture(Image.new("RGB", (4, 4), "red")))
    inode = shown.stat().st_ino
    assert Path(cache_picture(Image.new("RGB", (4, 4), "red"))) == shown and shown.stat().st_ino == inode


def test_old_files_go_and_what_is_asked_for_again_is_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    old, again, new = (Path(cache_file(name.encode(), f"{name}.png")) for name in ("old", "again", "new"))
    for path in (old, again):
        os.utime(path, (0, 0))
    assert Path(cache_file(b"again", "again.png")) == again
    sweep(tmp_path, 3600.0, 1e9)
    assert (old.exists(), again.exists(), new.exists()) == (False, True, True)
    os.utime(again, (0, 0))
    sweep(tmp_path, 3600.0, 1e9, {str(again)})
    assert again.exists()  # the page was built with it
    os.utime(again)
    os.utime(old.parent, (0, 0))
    sweep(tmp_path, 3600.0, 1e9)
    assert not old.parent.exists() and again.exists() and new.exists()


def test_the_oldest_files_make_room_on_the_disk(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old", "kept")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    sweep(tmp_path, 3600.0, 250, {str(tmp_path / "kept")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "middle", "new"]


# --- training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(training, "JOBS", tmp_path / "jobs")
    return tmp_path / "jobs"


def captioned_zip(path: Path, count: int = 24) -> Path:
    from iris.data import Scenes

    scenes = Scenes(32, count, max_objects=1)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            example = scenes[index]
            Image.fromarray(example.image).save(path.with_suffix(".png"))
            archive.write(path.with_suffix(".png"), f"{index}.png")
            archive.writestr(f"{index}.txt", example.captions[0])
    return path


def test_an_uploaded_zip_becomes_a_model(jobs: Path, tmp_path: Path) -> None:
    folder = jobs / "one"
    source = train._pictures(train.UPLOADED, str(captioned_zip(tmp_path / "mine.zip")), folder)
    assert source == f"folder:{folder / 'pictures'}"
    job = training.plan_job(source, "nano", 1)
    said = training.run_job(folder, training.Job(job.data, "nano", 0.05, batch_size=8))
    assert said.status == "finished" and said.message.startswith("Finished.")
    drawn = IRISPipeline.from_pretrained(training.model_folder(folder))("a red circle", seed=1, num_steps=1)
    assert drawn.images[0].size == (32, 32)
    assert set(training.stage_rows(folder)) == set(training.STAGES)
    page = train.job_html(folder, said)
    assert page.count("<svg") == 2 and "Finished" in page
    (jobs / "two").mkdir()
    onward = training.run_job(jobs / "two", training.Job(job.data, "nano", 0.02, str(training.model_folder(folder)), 8))
    assert onward.message.startswith("Finished.") and list(training.stage_rows(jobs / "two")) == ["text-to-image"]


def test_a_hostile_zip_is_refused_before_anything_starts(jobs: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../outside.png", b"x")
    with pytest.raises(ValueError):
        train._pictures(train.UPLOADED, str(tmp_path / "evil.zip"), jobs / "one")
    assert not (tmp_path / "outside.png").exists() and training.latest_job() is None
    for preset, minutes in (("huge", 5), ("nano", 0), ("nano", 1e9), ("nano", "5")):
        with pytest.raises(RequestError):
            training.plan_job("scenes", preset, minutes)


def sleeper(folder: Path) -> subprocess.Popen:
    """A job's process as the page sees it, without the training."""
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"data": "scenes", "preset": "nano", "minutes": 1}))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    training._children.append(child)
    training._write_state(folder, training.JobState("running", "Training.", child.pid, start_time(child.pid)))
    return child


def test_one_job_runs_at_a_time_and_can_be_stopped(jobs: Path) -> None:
    child = sleeper(jobs / "one")
    assert training.running_job() == jobs / "one"
    with pytest.raises(RequestError, match="running already"):
        training.start_job(training.Job("scenes", "nano", 1.0), jobs / "two")
    training.stop_job(jobs / "one")
    assert child.wait(10) == -signal.SIGTERM and training.read_state(jobs / "one").status == "stopped" and training.running_job() is None


@pytest.mark.slow
def test_a_stopped_training_keeps_what_it_has_learned(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = jobs / "one"
    training.start_job(training.Job("scenes:one", "nano", 120.0, batch_size=8), folder)
    wait_for(lambda: training.stage_rows(folder).get("autoencoder"), 120)
    training.stop_job(folder)  # there is nothing to draw with yet
    wait_for(lambda: training.running_job() is None, 60)
    assert training.read_state(folder).status == "stopped" and "no model" in training.read_state(folder).message
    autoencoder = folder / "autoencoder" / "pipeline"
    assert (autoencoder / "manifest.json").is_file() and not training.model_folder(folder).exists()

    again = jobs / "two"
    training.start_job(training.Job("scenes:one", "nano", 120.0, str(autoencoder), batch_size=8), again)
    wait_for(lambda: training.stage_rows(again).get("text-to-image"), 120)
    training.stop_job(again)
    assert training.read_state(again).is_alive or training.read_state(again).status == "finished"
    wait_for(lambda: training.running_job() is None, 60)
    state = training.read_state(again)
    steps = training.stage_rows(again)["text-to-image"][-1]["step"]
    assert state.status == "finished" and state.message.startswith(f"Stopped after {steps:,} steps.")
    assert IRISPipeline.from_pretrained(training.model_folder(again))("a red circle", seed=1, num_steps=1).images[0].size == (32, 32)


def test_stopped_twice_a_job_ends_at_once(jobs: Path) -> None:
    """As one does whose step takes long: the second request ends the process, whatever it does with the first."""
    folder = jobs / "one"
    code = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL)); print('ready', flush=True); time.sleep(60); time.sleep(60)"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"data": "scenes", "preset": "nano", "minutes": 1}))
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    training._children.append(child)
    child.stdout.readline()
    training._write_state(folder, training.JobState("running", "Training.", child.pid, start_time(child.pid)))
    training.stop_job(folder)
    time.sleep(0.2)
    assert training.read_state(folder).status == "stopping" and training.running_job() == folder
    training.stop_job(folder)
    assert child.wait(10) == -signal.SIGTERM and training.read_state(folder).status == "stopped" and training.running_job() is None


def wait_for(holds, seconds: float) -> None:
    """Returns as soon as it holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def test_a_job_that_died_is_told_so(jobs: Path) -> None:
    child = sleeper(jobs / "one")
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while training.read_state(jobs / "one").status == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    state = training.read_state(jobs / "one")
    assert state.status == "failed" and "log.txt" in state.message


def test_a_process_number_used_again_is_not_the_job(jobs: Path) -> None:
    child = sleeper(jobs / "one")
    training._write_state(jobs / "one", training.JobState("running", "Training.", child.pid, "1"))  # as after a restart of the machine
    assert training.running_job() is None and training.read_state(jobs / "one").status == "failed"
    training.stop_job(jobs / "one")
    assert child.poll() is None
    child.kill()


def test_a_job_that_fails_says_why(jobs: Path) -> None:
    folder = jobs / "one"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"data": "folder:/nowhere", "preset": "nano", "minutes": 1.0}))
    with pytest.raises(SystemExit):
        training.main(folder)
    assert training.read_state(folder).status == "failed" and "does not exist" in training.read_state(folder).message
