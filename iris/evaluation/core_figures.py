"""Figures of the core's inside: gates, contributions, where and how long it works. Drawn from the results of `probes.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from iris.evaluation.style import (
    BLUE,
    CYCLE,
    GREY,
    ORANGE,
    PATHS,
    draw_picture,
    drawing_style,
    evenly,
    iteration_ticks,
    mark_position,
    new_figure,
    plain_ticks,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from iris.evaluation.probes import Convergence, LearnedRanges, Overthinking, PathIndependence, Trace


def _enlarge(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear enlargement of a map [h, w] to the picture's size."""
    for axis, size in ((0, height), (1, width)):
        at = np.clip((np.arange(size) + 0.5) * grid.shape[axis] / size - 0.5, 0, grid.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, grid.shape[axis] - 1)
        part = (at - low).reshape(-1, 1) if axis == 0 else (at - low)
        grid = np.take(grid, low, axis) * (1 - part) + np.take(grid, high, axis) * part
    return grid


def _tint(picture: np.ndarray, grid: np.ndarray, colour_map: Any) -> np.ndarray:
    """The picture in grey, coloured by a map [h, w] in 0..1: the map gives the colour, the picture the light."""
    light = picture.astype(float).mean(-1, keepdims=True) / 255
    colour = colour_map(_enlarge(grid, *picture.shape[:2]))[..., :3]
    return (255 * np.clip(colour * (0.45 + 0.55 * light), 0, 1)).astype(np.uint8)


def _gate_colours() -> Any:
    """0 recurrence (orange) - light grey - 1 Fourier (blue): the colours these paths have everywhere."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("gate", [ORANGE, "#F3EFEA", BLUE])


def _require_maps(trace: Trace) -> None:
    if trace.gates.shape[2] == 0:
        raise ValueError("this model's mixer has no gates; only the mixer 'grfm' records maps.")


def gate_grid(trace: Trace, step: int = -1) -> Figure:
    """What each path carried, by iteration (columns), at one solver step.

    Rows: the decoded picture after the iteration; the gate's mean over layers laid over that picture; the gate of each layer
    alone, token by token. 1 = the Fourier path alone, 0 = the recurrent path alone.
    """
    _require_maps(trace)
    step = range(trace.num_steps)[step]
    chosen = evenly(trace.num_iterations, 8)
    layers, colours = trace.gates.shape[2], _gate_colours()
    with drawing_style():
        figure = new_figure(1.25 * len(chosen) + 1.5, 1.38 * (layers + 2) + 0.7,
                         f"Gate by iteration and layer, step {step + 1} of {trace.num_steps} (t = {trace.timesteps[step]:.2f})")
        panels = figure.subplots(layers + 2, len(chosen), squeeze=False)
        for column, iteration in enumerate(chosen):
            picture, gates = trace.previews[step, iteration], trace.gates[step, iteration]
            draw_picture(panels[0, column], picture)
            draw_picture(panels[1, column], _tint(picture, gates.mean(0), colours))
            panels[0, column].set_title(f"iteration {iteration + 1}", loc="center", fontsize=10)
            for layer in range(layers):
                drawn = draw_picture(panels[layer + 2, column], gates[layer], f"mean {gates[layer].mean():.2f}", cmap=colours, vmin=0, vmax=1)
        for axes, label in zip(panels[:, 0], ("decoded", "overlay", *(f"layer {n + 1}" for n in range(layers))), strict=True):
            axes.set_ylabel(label, fontsize=10)
        bar = figure.colorbar(drawn, ax=panels[1:], shrink=0.6, aspect=30, pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.set_label("gate   (0 = recurrence, 1 = Fourier)")
        bar.outline.set_visible(False)
    return figure


def contribution_bars(trace: Trace, step: int = -1) -> Figure:
    """Share of each path in what a layer adds (norm of its term over the three norms), mean over tokens, by iteration."""
    _require_maps(trace)
    step = range(trace.num_steps)[step]
    shares = trace.shares[step].mean((2, 3))   # [iterations, layers, 3]
    layers, turns = shares.shape[1], np.arange(1, trace.num_iterations + 1)
    with drawing_style():
        figure = new_figure(2.5 * layers + 0.6, 3.3, f"Contribution of the three paths, step {step + 1} of {trace.num_steps}")
        panels = figure.subplots(1, layers, sharey=True, squeeze=False)[0]
        for layer, axes in enumerate(panels):
            base = np.zeros(len(turns))
            for path, (name, colour) in enumerate(PATHS.items()):
                axes.bar(turns, shares[:, layer, path], bottom=base, color=colour, width=0.86, label=name)
                base = base + shares[:, layer, path]
            axes.set(title=f"layer {layer + 1}", xlabel="core iteration", xticks=iteration_ticks(len(turns)), ylim=(0, 1))
            axes.grid(False)
        panels[0].set_ylabel("share of the sum of norms")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def thinking_map(trace: Trace, step: int = -1, threshold: float | None = None) -> Figure:
    """Where the core still works: ||s_i - s_{i-1}|| / ||s_i|| of each token after each iteration, and its mean by step.

    `threshold` marks the relative change below which automatic depth stops.
    """
    step = range(trace.num_steps)[step]
    chosen = evenly(trace.num_iterations, 8)
    change = np.maximum(trace.changes, 1e-6)
    with drawing_style():
        from matplotlib.colors import LogNorm

        figure = new_figure(1.25 * len(chosen) + 1.6, 6.1,
                         f"Thinking map: relative change of each token, step {step + 1} of {trace.num_steps} (t = {trace.timesteps[step]:.2f})")
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.05, 1))
        panels = top.subplots(2, len(chosen), squeeze=False)
        scale = LogNorm(float(np.quantile(change[step], 0.02)), float(change[step].max()))
        for column, iteration in enumerate(chosen):
            panels[0, column].set_title(f"iteration {iteration + 1}", loc="center", fontsize=10)
            draw_picture(panels[0, column], trace.previews[step, iteration])
            drawn = draw_picture(panels[1, column], change[step, iteration], cmap="viridis", norm=scale)
        for axes, label in zip(panels[:, 0], ("decoded", "change"), strict=True):
            axes.set_ylabel(label, fontsize=10)
        bar = top.colorbar(drawn, ax=panels, shrink=0.8, aspect=22, pad=0.02, label="relative change")
        bar.outline.set_visible(False)
        _draw_change_by_step(bottom, trace, threshold)
    return figure


def _draw_change_by_step(figure: SubFigure, trace: Trace, threshold: float | None) -> None:
    import matplotlib

    axes = figure.subplots()
    turns = np.arange(1, trace.num_iterations + 1)
    for index, colour in zip(range(trace.num_steps), matplotlib.colormaps["cividis"](np.linspace(0, 0.9, trace.num_steps)), strict=True):
        axes.plot(turns, trace.changes[index].max((1, 2)), color=colour, marker="o", markersize=3.5,
                  label=f"step {index + 1}, t = {trace.timesteps[index]:.2f}")
    if threshold:
        axes.axhline(threshold, color=GREY, linestyle=(0, (4, 3)), linewidth=1, label=f"automatic exit at {threshold:g}")
    axes.set(xlabel="core iteration", ylabel="largest relative change", yscale="log", xticks=iteration_ticks(len(turns)))
    if trace.num_steps <= 8:
        axes.legend(ncols=2)


# ---------------------------------------------------------------------------------------------------- depth


def overthinking_curve(result: Overthinking) -> Figure:
    """Velocity error on known pictures after each iteration, also past the trained depth, one line for each noise level t."""
    depths = np.arange(1, result.errors.shape[2] + 1)
    with drawing_style():
        figure = new_figure(7.2, 4.0, "Does thinking longer help? Velocity error by core iteration")
        axes = figure.subplots()
        for index, (t, colour) in enumerate(zip(result.timesteps, CYCLE, strict=False)):
            errors = result.errors[:, index]   # [pictures, depths]
            mean, half = errors.mean(0), 1.96 * errors.std(0) / np.sqrt(len(errors))
            axes.plot(depths, mean, color=colour, marker="o", markersize=3.5, label=f"t = {t:.2f}")
            axes.fill_between(depths, mean - half, mean + half, color=colour, alpha=0.14, linewidth=0)
        mark_position(axes, result.trained_depth, f"least depth in training ({result.trained_depth})")
        axes.set(xlabel="core iteration", ylabel="mean squared velocity error", xticks=iteration_ticks(len(depths)))
        figure.legend(title="noise level (band: 95 % interval of the mean)", ncols=3, loc="outside lower center")
    return figure


def convergence_curves(result: Convergence, threshold: float | None = None) -> Figure:
    """How the state settles: relative change of the token that moves most by iteration over many pictures, one line a sampling step (band: 10 to 90 %)."""
    turns = np.arange(1, result.changes.shape[2] + 1)
    with drawing_style():
        figure = new_figure(7.2, 4.2, f"How fast the state settles ({len(result.changes)} pictures)")
        axes = figure.subplots()
        chosen = evenly(len(result.timesteps), len(CYCLE))
        for index, colour in zip(chosen, CYCLE, strict=False):
            low, middle, high = np.quantile(np.maximum(result.changes[:, index], 1e-8), [0.1, 0.5, 0.9], axis=0)
            axes.plot(turns, middle, color=colour, marker="o", markersize=3.5, label=f"t = {result.timesteps[index]:.2f}")
            axes.fill_between(turns, low, high, color=colour, alpha=0.14, linewidth=0)
        if threshold:
            axes.axhline(threshold, color=GREY, linestyle=(0, (4, 3)), linewidth=1, label=f"automatic exit ({threshold:g})")
        mark_position(axes, result.trained_depth, "least depth in training")
        axes.set(xlabel="core iteration", ylabel="largest relative change of a token", yscale="log", xticks=iteration_ticks(len(turns)))
        plain_ticks(axes.yaxis)
        figure.legend(ncols=5, loc="outside lower center", columnspacing=1.2)
    return figure


def path_independence_curves(result: PathIndependence) -> Figure:
    """How far apart runs from different initial states are after each iteration: of the state, and of the velocity.

    Relative distance to the run that starts from zeros; one faint line a start, the median strong.
    """
    turns = np.arange(1, result.state_distance.shape[-1] + 1)
    with drawing_style():
        figure = new_figure(8.6, 3.7, f"Path independence: {result.state_distance.shape[1]} random starts against a start from zeros")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, distances, what in zip(panels, (result.state_distance, result.velocity_distance), ("state", "velocity"), strict=True):
            for index, (t, colour) in enumerate(zip(result.timesteps, CYCLE, strict=False)):
                lines = np.maximum(distances[index], 1e-8)
                axes.plot(turns, lines.T, color=colour, alpha=0.2, linewidth=0.9)
                axes.plot(turns, np.median(lines, axis=0), color=colour, label=f"t = {t:.2f}")
            mark_position(axes, result.trained_depth, "trained depth")
            axes.set(title=f"of the {what}", xlabel="core iteration", yscale="log", xticks=iteration_ticks(len(turns)))
        panels[0].set_ylabel("relative distance")
        panels[1].legend()
    return figure


def learned_ranges(result: LearnedRanges) -> Figure:
    """How far each layer looks: 1/e radius of every spatial head and 1/e memory of the recurrence's channels, in tokens."""
    layers = np.arange(1, len(result.radii) + 1)
    with drawing_style():
        figure = new_figure(8.6, 3.5, "How far each core layer looks")
        left, right = figure.subplots(1, 2)
        for layer, radii in zip(layers, result.radii, strict=True):
            left.plot(np.full(len(radii), layer), radii, color=PATHS["spatial"], marker="o", markersize=6, linestyle="", alpha=0.75,
                      markeredgecolor="white")
        quartiles = np.quantile(result.memory, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
        right.vlines(layers, quartiles[0], quartiles[4], color=PATHS["recurrence"], linewidth=1.2)
        right.vlines(layers, quartiles[1], quartiles[3], color=PATHS["recurrence"], linewidth=7, alpha=0.45)
        right.plot(layers, quartiles[2], color=PATHS["recurrence"], marker="o", linestyle="", markersize=6, markeredgecolor="white")
        left.set(title="spatial gate, one dot a head", ylabel="radius (tokens)")
        right.set(title="recurrence: median, quartiles, 5 to 95 %", ylabel="memory at half-open gate (tokens)")
        for axes in (left, right):
            axes.set(xlabel="core layer", xticks=layers, yscale="log", xlim=(0.5, len(layers) + 0.5))
            axes.axhline(result.grid, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
            axes.annotate("side of the grid", (0.99, result.grid), xycoords=("axes fraction", "data"), ha="right", va="center", color=GREY,
                          fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
            plain_ticks(axes.yaxis)
    return figure
