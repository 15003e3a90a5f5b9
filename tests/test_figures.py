"""Laws of the figures: they show the numbers they were given, label every axis, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from iris.evaluation import figures, style
from iris.evaluation.metrics import Estimate
from iris.evaluation.probes import Convergence, LearnedRanges, Overthinking, PathIndependence, Trace
from iris.runs import Run

RNG = np.random.default_rng(0)


def _rows(count: int = 60) -> list[dict]:
    rows: list[dict] = []
    for step in range(10, 10 * count + 1, 10):
        rows.append({"step": step, "loss": 1.0 + 9.0 / step, "kl": 2.0, "loss_by_t": [None, *RNG.random(7).tolist()],
                     "loss_by_depth": {"1": 1.0, "4": 0.5}})
        if step % 100 == 0:
            rows.append({"step": step, "held_out_loss": 1.1 + 9.0 / step})
    return rows


def _pictures(count: int, side: int = 16) -> list[np.ndarray]:
    return list(RNG.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def _trace(steps: int = 2, iterations: int = 3, layers: int = 2, grid: int = 4, gate: float | None = None) -> Trace:
    shape = (steps, iterations, layers, grid, grid)
    gates = RNG.random(shape) if gate is None else np.full(shape, gate)
    return Trace("a red circle", 0, 1.0, np.linspace(1, 0.5, steps), gates, RNG.dirichlet((3, 2, 1), shape), np.full(shape[:3], 0.2),
                 RNG.random((steps, iterations, grid, grid)) + 0.01, np.stack(_pictures(steps * iterations)).reshape(steps, iterations, 16, 16, 3),
                 _pictures(1)[0])


def _everything() -> dict:
    estimate = Estimate(0.6, (0.5, 0.7))
    table = RNG.random((5, 2, 6)) + 0.1
    return {
        "loss_curves": figures.loss_curves(_rows()), "loss_curves_parts": figures.loss_curves(_rows(), keys=("loss", "kl")),
        "loss_by_t": figures.loss_by_t(_rows()), "loss_by_depth": figures.loss_by_depth(_rows(), trained=4),
        "convergence": figures.convergence_curves(Convergence(np.array([1.0, 0.5]), table, 4), 0.03),
        "overthinking": figures.overthinking_curve(Overthinking(np.array([0.2, 0.8]), table, table, 4)),
        "path_independence": figures.path_independence_curves(PathIndependence(np.array([1.0, 0.2]), table.transpose(1, 0, 2), table.transpose(1, 0, 2), 4)),
        "ranges": figures.learned_ranges(LearnedRanges(RNG.random((2, 4)) + 1, RNG.random((2, 16)) + 1, 8)),
        "contribution": figures.contribution_bars(_trace()),
        "accuracy": figures.accuracy_bars({"one": estimate, "two": estimate}, goals={"one": 0.9}),
        "bands": figures.band_bars({"LL": estimate, "HH": estimate}),
        "curves": figures.interval_curves([2, 4], {"a": [estimate] * 2, "b": [estimate] * 2}, "iterations", "KID"),
        "gates": figures.gate_grid(_trace()), "thinking": figures.thinking_map(_trace(), threshold=0.03),
        "grid": figures.image_grid(_pictures(5), ["a", "b $ c $ d"], 3), "reconstruction": figures.reconstruction_grid(_pictures(2), _pictures(2), [30.0, 20.0]),
        "sheet": figures.steps_iterations_sheet([_pictures(2), _pictures(2)], [1, 4], [2, 8], "a $5 bill"),
    }


def test_every_figure_is_drawn_labelled_and_leaves_nothing_behind(tmp_path: Path):
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    drawn = _everything()
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    for name, figure in drawn.items():
        path = figures.save_figure(figure, tmp_path / "new folder" / f"{name}.png", dpi=50)
        assert np.asarray(Image.open(path).convert("L")).std() > 3, name
        for axes in figure.get_axes():
            shared = axes.get_shared_y_axes().joined(axes, figure.get_axes()[0]) and axes is not figure.get_axes()[0]
            plotted = axes.axison and not axes.images and (axes.lines or axes.patches)
            assert not plotted or (axes.get_xlabel() and (axes.get_ylabel() or shared or axes.get_yticklabels()[0].get_text())), name


def test_a_figure_shows_itself_in_a_notebook():
    assert figures.loss_curves(_rows())._repr_png_().startswith(b"\x89PNG")


def test_matplotlib_is_loaded_only_when_something_is_drawn():
    code = ("import sys; from iris.evaluation import figures, metrics; assert 'matplotlib' not in sys.modules; "
            "figures.loss_curves([]); assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_loss_curves_show_the_logged_values():
    rows = _rows()
    axes = figures.loss_curves(rows).get_axes()[0]
    lines = {line.get_label().split(" (")[0]: line for line in axes.lines}
    held_out = [(row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row]
    assert lines["held out"].get_xydata().tolist() == [list(map(float, pair)) for pair in held_out]
    raw = max(axes.lines, key=lambda line: len(line.get_xdata()))
    assert raw.get_ydata().tolist() == [row["loss"] for row in rows if "loss" in row]


def test_curves_of_an_empty_run_say_so():
    for figure in (figures.loss_curves([]), figures.loss_by_t([]), figures.loss_by_depth([{"step": 1, "loss": 1.0}])):
        assert any("logged yet" in text.get_text() for text in figure.get_axes()[0].texts)


def test_loss_by_t_averages_over_what_is_there():
    rows = [{"step": 1, "loss_by_t": [None, 2.0]}, {"step": 2, "loss_by_t": [None, 4.0]}, {"step": 3, "loss_by_t": [1.0, 4.0]}]
    spans = figures.loss_by_t(rows).get_axes()[0].lines   # three rows are three spans
    assert [line.get_xydata().tolist() for line in spans] == [[[0.75, 2.0]], [[0.75, 4.0]], [[0.25, 1.0], [0.75, 4.0]]]


def test_contributions_stack_up_to_the_whole():
    for axes in figures.contribution_bars(_trace()).get_axes():
        tops = [patch.get_y() + patch.get_height() for patch in axes.patches]
        assert max(tops) == pytest.approx(1.0) and len(axes.patches) == 9


def test_the_gate_map_has_the_colours_of_its_paths():
    for gate, colour in ((1.0, style.BLUE), (0.0, style.ORANGE)):
        alone = figures.gate_grid(_trace(gate=gate)).get_axes()[-2].images[0]
        assert alone.get_clim() == (0, 1)
        assert matplotlib.colors.to_hex(alone.cmap(alone.norm(gate))).upper() == colour


def test_a_mixer_without_gates_is_refused_in_one_sentence():
    for draw in (figures.gate_grid, figures.contribution_bars):
        with pytest.raises(ValueError, match="grfm"):
            draw(_trace(layers=0))
    figures.thinking_map(_trace(layers=0))   # needs no gates


def test_pictures_of_every_kind_become_the_same_pixels():
    array = _pictures(1)[0]
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
    for image in (array, Image.fromarray(array), tensor):
        assert np.array_equal(figures.to_pixels(image), array)
    with pytest.raises(ValueError, match="picture"):
        figures.to_pixels(array.astype(float))


def test_live_curves_draw_ever_more_rarely_save_and_leave_no_figure_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import matplotlib.pyplot as plt

    clock = [0.0]
    monkeypatch.setattr(figures.time, "monotonic", lambda: clock[0])
    shown: list[float] = []
    with Run.open(tmp_path / "run") as run:
        run.log(1, loss=3.0)   # from an earlier session
        live = figures.LiveCurves(run, every_seconds=30, show=lambda figure: shown.append(clock[0]))
        for second in range(1, 3601):
            clock[0] = float(second)
            live(run.log(second + 1, loss=1.0))
        rows = run.metrics()
    assert shown[:3] == [30, 60, 90] and np.all(np.diff(shown) >= 30)
    assert len(shown) == live.drawings < 20   # an hour
    assert [row["step"] for row in live.rows] == [row["step"] for row in rows]
    live.close()
    assert live.drawings == len(shown)
    count = len(shown)
    live.close()   # nothing new: nothing drawn
    assert len(shown) == count
    assert (tmp_path / "run" / "figures" / "loss.png").exists() and plt.get_fignums() == []


def test_live_curves_follow_a_run_that_went_back_to_its_checkpoint(tmp_path: Path):
    with Run.open(tmp_path / "run") as run:
        for step in range(1, 10):
            run.log(step, loss=float(step))
        live = figures.LiveCurves(run, every_seconds=1e9)
        run.rewind(4)
        for step in (5, 6):
            live(run.log(step, loss=0.0))
        assert live.rows == run.metrics()


def test_live_curves_reach_a_notebook_while_its_cell_runs(tmp_path: Path):
    """plt.show() under the inline backend gives a picture before the cell goes on; a display handle redraws in place."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [f"""
from iris.runs import Run
from iris.evaluation.figures import LiveCurves, loss_curves
run = Run.open({str(tmp_path / 'run')!r})
live = LiveCurves(run, every_seconds=0)
live(run.log(1, loss=1.0))
print('still training')
live(run.log(2, loss=0.5))
live.close()
""", """
live = LiveCurves(run, every_seconds=0, show=display(display_id=True).update)
live(run.log(3, loss=0.4))
print('still training')
live(run.log(4, loss=0.3))
live.close()
""", "loss_curves(run.metrics())"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(Path(__file__).parents[1])}}).execute()
    pictures = [["image/png" in output.get("data", {}) for output in cell.outputs] for cell in notebook.cells]
    assert pictures == [[True, False, True], [True, False], [True]]
