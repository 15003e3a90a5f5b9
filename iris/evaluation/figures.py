"""Every figure of the notebooks, the reports and the demo.

A function takes plain results (rows of metrics.jsonl, pictures, `Estimate`s, the dataclasses of `probes.py` and
`footprint.py`) and returns a Figure; as the last line of a notebook cell it shows itself. Only `LiveCurves`, which draws
while a cell still runs, goes through pyplot. The figures of the core's inside live in `core_figures.py` and are named here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iris.evaluation.core_figures import (
    contribution_bars,
    convergence_curves,
    gate_grid,
    learned_ranges,
    overthinking_curve,
    path_independence_curves,
    thinking_map,
)
from iris.evaluation.metrics import Estimate
from iris.evaluation.style import (
    AMBER,
    BLUE,
    CYCLE,
    ORANGE,
    SKY,
    add_title,
    draw_picture,
    drawing_style,
    iteration_ticks,
    mark_position,
    new_figure,
    plain_ticks,
    save_figure,
    say_empty,
    to_pixels,
    wrap_caption,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from iris.evaluation.footprint import Footprint
    from iris.runs import Run


# ---------------------------------------------------------------------------------------------------- training


def loss_curves(metrics: Sequence[Mapping[str, Any]], title: str = "Loss while training", keys: Sequence[str] = ("loss",)) -> Figure:
    """Training loss (each logged value faint, its running median strong) and held-out loss over optimizer steps.

    metrics: rows of metrics.jsonl. `keys` may name more columns ("reconstruction", "kl", ...): one panel each.
    """
    with drawing_style():
        figure = new_figure(7.2 if len(keys) == 1 else 3.9 * min(len(keys), 3), 3.9 * math.ceil(len(keys) / 3), title)
        _draw_losses(figure, metrics, keys)
    return figure


def _draw_losses(figure: Figure, metrics: Sequence[Mapping[str, Any]], keys: Sequence[str] = ("loss",)) -> None:
    columns = min(len(keys), 3)
    panels = figure.subplots(math.ceil(len(keys) / columns), columns, squeeze=False).ravel()
    for spare in panels[len(keys):]:
        spare.remove()
    for axes, key in zip(panels, keys, strict=False):
        _draw_column(axes, metrics, key, BLUE, "training")
        _draw_column(axes, metrics, f"held_out_{key}", ORANGE, "held out", markers=True)
        positive = [row[key] for row in metrics if isinstance(row.get(key), (int, float))]
        if positive and min(positive) > 0 and max(positive) > 8 * min(positive):
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.set(xlabel="optimizer step", ylabel=key.replace("_", " "))
        axes.margins(x=0.01)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        else:
            say_empty(axes, f"no {key.replace('_', ' ')} logged yet")


def _draw_column(axes: Axes, metrics: Sequence[Mapping[str, Any]], key: str, colour: str, label: str, markers: bool = False) -> None:
    steps, values = _column(metrics, key)
    if not len(values):
        return
    if markers or len(values) < 20:
        axes.plot(steps, values, color=colour, marker="o", markersize=4, label=f"{label} ({values[-1]:.3g})")
        return
    smooth = _running_median(values, max(5, len(values) // 25))
    axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.9)
    axes.plot(steps, smooth, color=colour, label=f"{label} ({smooth[-1]:.3g})")


def _column(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have a number under `key` (null stands for NaN in metrics.jsonl)."""
    rows = [(row["step"], row[key]) for row in metrics if isinstance(row.get(key), (int, float))]
    table = np.array(rows, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    half = width // 2
    return np.array([np.median(values[max(0, i - half): i + half + 1]) for i in range(len(values))])


def _early_middle_late(metrics: Sequence[Mapping[str, Any]], key: str, parts: int = 3) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The rows that have `key`, cut into `parts` spans of training, each with its label."""
    rows = [row for row in metrics if row.get(key)]
    spans = [[rows[i] for i in part] for part in np.array_split(np.arange(len(rows)), parts) if len(part)]
    return [(f"steps {span[0]['step']:,} to {span[-1]['step']:,}", span) for span in spans]


def loss_by_t(metrics: Sequence[Mapping[str, Any]], title: str = "Loss by noise level") -> Figure:
    """Mean loss in each bin of t (0 = data, 1 = noise), early, in the middle and late in training; from "loss_by_t" rows."""
    lines = {}
    for label, span in _early_middle_late(metrics, "loss_by_t"):
        table = np.array([[np.nan if v is None else v for v in row["loss_by_t"]] for row in span], dtype=float)
        seen = ~np.isnan(table).all(0)   # a bin that no sample fell into is null
        centres = (np.arange(table.shape[1]) + 0.5) / table.shape[1]
        lines[label] = (centres[seen], np.nanmean(table[:, seen], axis=0))
    figure, axes = _draw_spans(lines, title, "noise level t   (0 = data, 1 = noise)")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    return figure


def loss_by_depth(metrics: Sequence[Mapping[str, Any]], title: str = "Loss by core depth", trained: int | None = None) -> Figure:
    """Mean loss at each number of core iterations, early, in the middle and late in training; from "loss_by_depth" rows.

    Depths that were drawn fewer than three times in a long span are left out: their mean would be noise.
    """
    lines = {}
    for label, span in _early_middle_late(metrics, "loss_by_depth"):
        found: dict[int, list[float]] = {}
        for row in span:
            for depth, value in row["loss_by_depth"].items():
                if value is not None:
                    found.setdefault(int(depth), []).append(value)
        depths = sorted(depth for depth, values in found.items() if len(values) >= 3 or len(span) < 30)
        lines[label] = (depths, [np.mean(found[depth]) for depth in depths])
    figure, axes = _draw_spans(lines, title, "core iterations")
    if trained and lines:
        with drawing_style():
            mark_position(axes, trained, "least depth in training")
            axes.set_xticks(iteration_ticks(max(max(depths, default=1) for depths, _ in lines.values())))
    return figure


def loss_comparison(runs: Mapping[str, Sequence[tuple[float, float]]], title: str = "", xlabel: str = "minutes") -> Figure:
    """A line of (x, held-out loss) for each run, the first one drawn last so that none hides it; losses on a logarithmic scale."""
    with drawing_style():
        figure = new_figure(6.8, 4.1, title)
        axes = figure.subplots()
        for order, ((name, points), colour) in enumerate(zip(runs.items(), CYCLE, strict=False)):
            axes.plot(*np.array(points, dtype=float).reshape(-1, 2).T, color=colour, marker="o", markersize=3.5, label=name, zorder=20 - order)
        axes.set(xlabel=xlabel, ylabel="held-out loss", yscale="log")
        plain_ticks(axes.yaxis)
        figure.legend(ncols=min(len(runs), 2), loc="outside lower center")
    return figure


def _draw_spans(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str) -> tuple[Figure, Axes]:
    """A line for each span of training, from light to dark."""
    with drawing_style():
        figure = new_figure(6.4, 4.1, title)
        axes = figure.subplots()
        for (label, (x, y)), colour in zip(lines.items(), (SKY, AMBER, BLUE), strict=False):
            axes.plot(x, y, color=colour, marker="o", markersize=4, label=label)
        axes.set(xlabel=xlabel, ylabel="mean velocity loss")
        if lines:
            figure.legend(ncols=3, loc="outside lower center")
        else:
            say_empty(axes, "nothing logged yet")
    return figure, axes


class LiveCurves:
    """The loss curves of a run, drawn again and again while the cell that trains still runs: pass it as `on_log`.

    A drawing comes at most every `every_seconds`, and ever more rarely the longer the cell runs (each waits for half the time
    that has gone by), so a night of training leaves tens of pictures and not thousands. `show` gets the figure: by default
    `plt.show()`, which the notebook's inline backend answers at once with a picture below the cell. To redraw in place pass
    the update of a display handle: `LiveCurves(run, show=display(display_id=True).update)`. Each drawing is also saved as
    RUN/figures/NAME.png; `close()` draws the last one.
    """

    def __init__(self, run: Run, every_seconds: float = 30.0, keys: Sequence[str] = ("loss",), title: str = "",
                 show: Callable[[Figure], object] | None = None, name: str = "loss") -> None:
        self.run, self.every_seconds, self.keys, self.name = run, every_seconds, tuple(keys), name
        self.title = title or f"Training: {run.path.name}"
        self.rows: list[Mapping[str, Any]] = list(run.metrics())
        self.drawings = 0
        self._show = show
        self._started = self._last = time.monotonic()
        self._undrawn = False

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take one logged row; draw when the time has come."""
        if self.rows and row["step"] < self.rows[-1]["step"]:   # a continued run goes back to its checkpoint and logs again
            self.rows = [known for known in self.rows if known["step"] < row["step"]]
        self.rows.append(row)
        self._undrawn = True
        now = time.monotonic()
        if now - self._last >= max(self.every_seconds, 0.5 * (self._last - self._started)):
            self.draw()

    def draw(self) -> None:
        """Draw now: save the picture, show it, and let it go."""
        import matplotlib.pyplot as plt

        self._undrawn = False
        self.drawings += 1
        in_place = self._show is not None
        with drawing_style():
            figure = new_figure(7.2, 3.9) if in_place else plt.figure(figsize=(7.2, 3.9), layout="constrained")
            add_title(figure, self.title)
            _draw_losses(figure, self.rows, self.keys)
        try:
            save_figure(figure, self.run.figure_path(self.name))
            if self._show is not None:
                self._show(figure)
            elif plt.get_backend().lower() != "agg":   # Agg has nowhere to show a picture and would warn
                plt.show()
        finally:
            plt.close(figure)
            self._last = time.monotonic()   # counted from the end: on a slow machine drawing must not crowd out training

    def close(self) -> None:
        """Draw what came since the last drawing."""
        if self._undrawn:
            self.draw()


def image_grid(images: Sequence[Any], captions: Sequence[str] = (), columns: int = 4, title: str = "", cell: float = 1.75) -> Figure:
    """Pictures in rows of `columns`, each with its caption below; `cell` inches a picture."""
    if not len(images):
        raise ValueError("there are no pictures to show.")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    texts = [wrap_caption(caption, round(13 * cell)) for caption in captions]
    deepest = max((text.count("\n") + 1 for text in texts), default=0)
    with drawing_style():
        figure = new_figure(cell * columns, (cell + 0.17 * deepest) * rows + (0.4 if title else 0.1), title)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for index, axes in enumerate(panels):
            if index < len(images):
                draw_picture(axes, to_pixels(images[index]), texts[index] if index < len(texts) else "")
            else:
                axes.axis("off")
    return figure


def reconstruction_grid(before: Sequence[Any], after: Sequence[Any], psnr: Sequence[float], title: str = "Original and reconstruction") -> Figure:
    """Columns of pictures: original, reconstruction with its PSNR in dB, and their difference, four times as strong."""
    count = len(before)
    with drawing_style():
        figure = new_figure(1.55 * count + 0.35, 5.5, title)
        panels = figure.subplots(3, count, squeeze=False)
        for column, (left, right, value) in enumerate(zip(before, after, psnr, strict=True)):
            a, b = to_pixels(left), to_pixels(right)
            difference = np.clip(np.abs(b.astype(int) - a.astype(int)) * 4, 0, 255).astype(np.uint8)
            for axes, image, text in zip(panels[:, column], (a, b, difference), ("", f"{float(value):.1f} dB", ""), strict=True):
                draw_picture(axes, image, text)
        for axes, label in zip(panels[:, 0], ("original", "reconstruction", "difference x 4"), strict=True):
            axes.set_ylabel(label, fontsize=10)
    return figure


def steps_iterations_sheet(images: Sequence[Sequence[Any]], steps: Sequence[int], iterations: Sequence[int], title: str = "") -> Figure:
    """One prompt and seed at every (solver steps, core iterations): images[row of steps][column of iterations].

    Below each picture stands steps x iterations, which is what it costs in core passes (twice that with guidance).
    """
    with drawing_style():
        figure = new_figure(1.75 * len(iterations) + 0.5, 1.97 * len(steps) + 0.75, title)
        panels = figure.subplots(len(steps), len(iterations), squeeze=False)
        for row, num_steps in enumerate(steps):
            for column, num_iterations in enumerate(iterations):
                draw_picture(panels[row, column], to_pixels(images[row][column]), f"{num_steps} x {num_iterations} = {num_steps * num_iterations}")
                if row == 0:
                    panels[row, column].set_title(f"{num_iterations} iteration{'s' if num_iterations > 1 else ''}", loc="center", fontsize=10)
            panels[row, 0].set_ylabel(f"{num_steps} step{'s' if num_steps > 1 else ''}", fontsize=10)
    return figure




# ---------------------------------------------------------------------------------------------------- measured results


def accuracy_bars(results: Mapping[str, Estimate], title: str = "Accuracy", goals: Mapping[str, float] | None = None) -> Figure:
    """One horizontal bar a share (0..1) with its interval; `goals` marks what was promised, by the same names."""
    names = list(results)
    with drawing_style():
        figure = new_figure(7.2, 0.36 * len(names) + 1.35, title)
        axes = figure.subplots()
        for row, name in enumerate(names):
            value, (low, high) = results[name]
            axes.barh(row, value, color=SKY, height=0.62)
            axes.plot([low, high], [row, row], color="#333333", linewidth=1.3)
            goal = (goals or {}).get(name)
            if goal is not None:
                axes.plot([goal, goal], [row - 0.42, row + 0.42], color=ORANGE, linewidth=2.2, label="goal")
            axes.annotate(f"{value:.0%}", (1.02, row), va="center", fontsize=10, annotation_clip=False)
        axes.set(yticks=range(len(names)), xlim=(0, 1), xlabel="share correct (line: 95 % interval)")
        axes.set_yticklabels([name.replace("_", " ") for name in names])
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles[:1], labels[:1], loc="outside lower right")
    return figure


def band_bars(bands: Mapping[str, Estimate], title: str = "Reconstruction by Haar band") -> Figure:
    """PSNR of each Haar band (dB) with its interval; every band against the same range, so a longer bar is a smaller error."""
    with drawing_style():
        figure = new_figure(1.0 * len(bands) + 1.9, 3.5, title)
        axes = figure.subplots()
        for column, (value, (low, high)) in enumerate(bands.values()):
            axes.bar(column, value, color=SKY, width=0.62)
            axes.plot([column, column], [low, high], color="#333333", linewidth=1.3)
            axes.annotate(f"{value:.1f}", (column, max(high, value)), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9.5)
        axes.set(xticks=range(len(bands)), ylabel="PSNR (dB)", xlabel="Haar band")
        axes.set_xticklabels(list(bands))
        axes.margins(y=0.12)
        axes.grid(False, axis="x")
    return figure


def interval_curves(x: Sequence[float], series: Mapping[str, Sequence[Estimate]], xlabel: str, ylabel: str, title: str = "",
                    log_x: bool = False) -> Figure:
    """Lines of estimates with their intervals as bands, e.g. KID over iterations."""
    with drawing_style():
        figure = new_figure(6.8, 3.9, title)
        axes = figure.subplots()
        # Lines differ in dash as well as in colour: one that lies on another stays visible.
        for (name, estimates), colour, dash in zip(series.items(), CYCLE, ("-", (0, (4, 2)), (0, (1, 1.5)), "-.", "-", "--"), strict=False):
            axes.plot(x, [e.value for e in estimates], color=colour, linestyle=dash, marker="o", markersize=4.5, label=name)
            axes.fill_between(x, [e.interval[0] for e in estimates], [e.interval[1] for e in estimates], color=colour, alpha=0.15, linewidth=0)
        if log_x:
            axes.set_xscale("log", base=2)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if len(x) <= 12:   # few points: their own values are the ticks
            axes.set_xticks(list(x), [f"{value:g}" for value in x])
        axes.minorticks_off()
        if len(series) > 1:
            figure.legend(ncols=min(len(series), 3), loc="outside lower center")  # inside it would cover a line
    return figure


def footprint_bars(result: Footprint, num_iterations: int | None = None) -> Figure:
    """Parameters (millions) and work (GFLOP at `num_iterations`) by part of the model, side by side: where weights and time go."""
    turns = num_iterations or result.mean_iterations
    parameters = {name: count / 1e6 for name, count in result.parameters.items()}
    work = {name: flops / 1e9 for name, flops in result.work(num_steps=1, num_iterations=turns).items()}
    with drawing_style():
        figure = new_figure(9.6, 0.34 * max(len(parameters), len(work)) + 1.5, f"Footprint of {result.name}")
        for axes, values, label in zip(figure.subplots(1, 2), (parameters, work),
                                       ("parameters (millions)", f"GFLOP: one forward at {turns} iterations, one decode"), strict=True):
            names = list(values)
            colours = [BLUE if name.startswith("core") else SKY if name in ("prelude", "coda") else "#BFBFBF" for name in names]
            axes.barh(range(len(names)), list(values.values()), color=colours, height=0.64)
            for row, value in enumerate(values.values()):
                axes.annotate(f" {value:.2f}", (value, row), va="center", fontsize=9)
            axes.set(yticks=range(len(names)), xlabel=label)
            axes.set_yticklabels([name.replace("_", " ") for name in names])
            axes.invert_yaxis()
            axes.margins(x=0.16)
            axes.grid(False, axis="y")
    return figure


__all__ = ["LiveCurves", "accuracy_bars", "band_bars", "contribution_bars", "convergence_curves", "footprint_bars", "gate_grid", "image_grid",
           "interval_curves", "learned_ranges", "loss_by_depth", "loss_by_t", "loss_comparison", "loss_curves", "overthinking_curve",
           "path_independence_curves", "reconstruction_grid", "save_figure", "steps_iterations_sheet", "thinking_map", "to_pixels"]
