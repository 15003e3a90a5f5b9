"""Laws of notebooks/: one shape for all, nothing but calls into iris, and they run where nothing has been set up."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from iris.config import preset
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.runs import read_metrics, read_summary
from iris.text import load_text_encoder
from reports.notebooks import find_notebooks

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("00_quickstart", "01_wavelet_vae", "02_class_conditional", "03_text_to_image", "04_aesthetic", "05_distill", "10_quality",
         "11_inside_grfm", "12_recurrent_depth", "13_footprint")
every_notebook = pytest.mark.parametrize("name", NAMES)


def cells(name: str) -> list[dict]:
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def code(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"]


def test_there_are_ten():
    assert tuple(path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))) == NAMES


@every_notebook
def test_valid_and_without_output(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5) and notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@every_notebook
def test_shape(name):
    found = cells(name)
    assert 9 <= len(found) <= 14
    first = "".join(found[0]["source"])
    assert first.startswith("# ") and "**Question.**" in first and "**Cost.**" in first
    sources = code(name)
    tagged = [cell for cell in found if "parameters" in cell["metadata"].get("tags", [])]
    assert ["".join(cell["source"]) for cell in tagged] == sources[:1]
    assert sources[1] == code("00_quickstart")[1] and "install_missing" in sources[1]
    assert f'close_run(run, "{name}"' in sources[-1] and found[-1]["cell_type"] == "markdown"
    assert sum("**What to expect.**" in "".join(cell["source"]) for cell in found) >= 3


@every_notebook
def test_cells_are_short_and_only_call(name):
    for source in code(name):
        if source == code(name)[0]:
            continue
        tree = ast.parse(source, feature_version=(3, 10))
        assert len(source.splitlines()) <= 12, source
        forbidden = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While, ast.For)
        assert not [node for node in ast.walk(tree) if isinstance(node, forbidden)], source
        assert "backward" not in source and "optimizer" not in source and "plt." not in source


@every_notebook
def test_what_a_notebook_imports_exists(name):
    for source in code(name):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in ("iris", "statistics")
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), f"{node.module}.{alias.name}"


@every_notebook
def test_parameters_have_types_and_comments_that_papermill_reads_too(name):
    import papermill

    ours = find_notebooks()[name[:2]].parameters
    theirs = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    assert set(ours) == set(theirs) and all(parameter.comment for parameter in ours.values())
    for parameter in ours.values():
        told = theirs[parameter.name]
        assert told["inferred_type_name"] == parameter.kind.__name__ and ast.literal_eval(told["default"]) == parameter.default
        assert told["help"] == parameter.comment
    assert {"run_folder", "repo_url"} <= set(ours)
    if name < "10":
        common = {"data", "preset", "image_size", "train_steps", "minutes", "batch_size", "learning_rate", "seed", "precision", "init", "start_over"}
        assert common <= set(ours)


@every_notebook
def test_no_measured_figure_and_no_place_is_written_down(name):
    for cell in cells(name):
        text = "".join(cell["source"])
        assert not re.search(r"(?<![\w.])/(home|root|work|tmp|content|kaggle)/", text)
        assert "http" not in text


# --- every cell runs -----------------------------------------------------------------------------------------------


class Shown:
    """Instead of IPython's display: draws what it is given, so that a figure that cannot be drawn fails."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *objects, **options):
        for item in objects:
            self.update(item)
        return self

    def update(self, item) -> None:
        self.count += 1
        if hasattr(item, "_repr_png_"):
            assert item._repr_png_()[:4] == b"\x89PNG"


@pytest.fixture(scope="module")
def nano_model(tmp_path_factory) -> Path:
    """An untrained model whose zero weights were given values, so that every part acts."""
    config = preset("nano")
    torch.manual_seed(0)
    generator = Generator(config.generator)
    for parameter in generator.parameters():
        if not bool(parameter.abs().max() > 0):
            torch.nn.init.normal_(parameter, std=0.05)
    pipe = IRISPipeline(config, WaveletVAE(config.autoencoder), generator, load_text_encoder(config.text),
                        SamplingDefaults(num_steps=2, num_iterations=2))
    return pipe.save_pretrained(tmp_path_factory.mktemp("model") / "nano", dtype=torch.float32)


SMALL = {"copies": 4, "preset": "nano", "train_steps": 3, "batch_size": 4, "limit": 16, "held_out_limit": 6, "num_steps": 2, "num_iterations": 2,
         "pictures": 8, "scenes": 1, "samples": 6, "max_iterations": 3, "variants": ["tiny"], "measure_memory": False, "perceptual_weight": 0.0}


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES[1:3] + NAMES[4:])  # 00 and 03 run in a kernel below
def test_every_cell_runs(name, nano_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    known = find_notebooks()[name[:2]].defaults()
    folders = dict.fromkeys(("init", "model", "teacher", "autoencoder"), str(nano_model))
    values = {**known, **{key: value for key, value in {**SMALL, **folders}.items() if key in known}}
    namespace = {"display": Shown(), **values}
    for number, source in enumerate(code(name)[2:], start=2):
        lines = ast.parse(source).body
        if isinstance(lines[-1], ast.Expr):  # what a kernel would show
            lines[-1] = ast.fix_missing_locations(ast.Assign([ast.Name("shown", ast.Store())], lines[-1].value))
        exec(compile(ast.Module(lines, []), f"{name}:{number}", "exec"), namespace)
        namespace["display"](namespace.pop("shown", None))
    summary = read_summary(values["run_folder"])
    assert summary["notebook"] == name and summary["reading"]
    assert list((tmp_path / values["run_folder"] / "figures").glob("*.png"))


# --- where nothing has been set up ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone_of_this(tmp_path_factory) -> Path:
    """A git repository with the code as it stands here, committed or not."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path_factory.mktemp("origin") / "workbench"
    shutil.copytree(ROOT / "iris", folder / "iris", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", folder)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def bare_environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """This interpreter as on a fresh machine: iris is not to be found, and pip only leaves a mark."""
    hidden = tmp_path / "hidden"
    (hidden / "pip").mkdir(parents=True)
    (hidden / "pip" / "__init__.py").touch()
    (hidden / "pip" / "__main__.py").write_text(f"open({str(tmp_path / 'pip-was-called')!r}, 'a').write('yes')\n")
    (hidden / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if '__editable__' not in repr(finder)]\n"
        f"sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]\n")
    return os.environ | {"PYTHONPATH": str(hidden), "OMP_NUM_THREADS": "1", "IRIS_CACHE": str(tmp_path / "cache"), **more}


def run_papermill(name: str, folder: Path, environment: dict[str, str], parameters: dict[str, object]) -> Path:
    folder.mkdir()
    words = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    done = subprocess.run([sys.executable, "-m", "papermill", str(ROOT / "notebooks" / f"{name}.ipynb"), "out.ipynb", *words, "--no-progress-bar"],
                          cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def torch_state() -> tuple[str, float]:
    package = Path(importlib.util.find_spec("torch").origin)
    return importlib.metadata.version("torch"), package.stat().st_mtime


TINY = {"preset": "nano", "train_steps": 4, "batch_size": 4, "vae_steps": 4, "held_out_limit": 8}


@pytest.mark.notebook
def test_03_runs_in_an_empty_directory_as_in_colab(clone_of_this, tmp_path):
    environment = bare_environment(tmp_path, COLAB_RELEASE_TAG="release-colab", COLAB_GPU="0", MPLBACKEND="module://matplotlib_inline.backend_inline")
    before = torch_state()
    folder = run_papermill("03_text_to_image", tmp_path / "content", environment, {**TINY, "limit": 16, "repo_url": clone_of_this})
    assert (folder / "iris-code" / "iris" / "config.py").is_file()
    assert torch_state() == before and not (tmp_path / "pip-was-called").exists()
    summary = read_summary(folder / "runs" / "03")
    assert summary["notebook"] == "03_text_to_image" and summary["step"] == 4 and summary["weight_identity_gap"] < 1e-6
    assert read_metrics(folder / "runs" / "03")[-1]["held_out_loss"] > 0
    executed = nbformat.read(folder / "out.ipynb", as_version=4)
    assert sum("image/png" in output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", [])) >= 5


@pytest.mark.notebook
def test_00_trains_on_a_folder_of_ones_own_as_in_kaggle(clone_of_this, tmp_path):
    pictures = tmp_path / "mine"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    rows = ["file_name,text"]
    for index in range(40):
        colour = rng.integers(0, 256, 3)
        Image.fromarray(np.full((48, 40, 3), colour, np.uint8)).save(pictures / f"{index:03d}.png")
        rows.append(f"{index:03d}.png,a plain picture number {index}")
    (pictures / "metadata.csv").write_text("\n".join(rows) + "\n")
    environment = bare_environment(tmp_path, KAGGLE_KERNEL_RUN_TYPE="Interactive", KAGGLE_URL_BASE="none")
    parameters = {**TINY, "data": f"folder:{pictures}", "vae_batch_size": 4, "repo_url": clone_of_this}
    folder = run_papermill("00_quickstart", tmp_path / "working", environment, parameters)
    assert not (tmp_path / "pip-was-called").exists()
    summary = read_summary(folder / "runs" / "00")
    assert summary["notebook"] == "00_quickstart" and summary["examples"] + 1 <= 40 and summary["seconds_per_picture"] > 0
    assert {path.stem for path in (folder / "runs" / "00" / "figures").glob("*.png")} >= {"1_pictures", "2_reconstructions", "3_samples", "4_gate"}
    assert (folder / "runs" / "00" / "pipeline" / "manifest.json").is_file()
