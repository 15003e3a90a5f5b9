"""One look for every figure, and how a picture is drawn; with `figures.py` and `core_figures.py` all that knows matplotlib.

White ground, Okabe and Ito's colours (told apart with any colour vision), one colour for each path of GRFM wherever it
appears. Figures belong to nobody: pyplot does not hold them, so nothing leaks and threads do not meet.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B6B6B"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
PATHS = {"Fourier": BLUE, "recurrence": ORANGE, "spatial": GREEN}
STYLE: dict[str, Any] = {
    "figure.facecolor": "white", "figure.dpi": 110, "figure.titlesize": 13, "figure.titleweight": "normal",
    "font.size": 10.5, "axes.titlesize": 11, "axes.labelsize": 10.5, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9A9A9A", "axes.linewidth": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.8,
    "xtick.color": "#4A4A4A", "ytick.color": "#4A4A4A", "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
    "legend.frameon": False, "legend.fontsize": 9.5, "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
}


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draw in the house style; matplotlib's own settings come back afterwards."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


@cache
def _notebook_figure() -> type[Figure]:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that shows itself as the last line of a notebook cell, whether or not pyplot is loaded."""

        def _repr_png_(self) -> bytes:
            stream = io.BytesIO()
            self.savefig(stream, format="png", dpi=STYLE["figure.dpi"])
            return stream.getvalue()

    return NotebookFigure


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of width x height inches that pyplot does not hold."""
    figure = _notebook_figure()(figsize=(width, height), layout="constrained")
    if title:
        add_title(figure, title)
    return figure


def add_title(figure: Figure, title: str) -> None:
    """The figure's title, at its left edge."""
    figure.suptitle(plain_text(title), x=0.01, ha="left")


def save_figure(figure: Figure, path: Path | str, dpi: int = 150) -> Path:
    """Write the figure as PNG (or as the suffix says) and return the path; folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor="white")
    return path


def plain_text(text: str) -> str:
    """Text from anywhere as matplotlib must get it: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def wrap_caption(text: str, width: int, lines: int = 3) -> str:
    """A caption in at most `lines` lines of `width` characters; what does not fit ends in an ellipsis."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …", break_long_words=True))


def to_pixels(image: Any) -> np.ndarray:
    """A PIL image, uint8 array [H, W, 3] or tensor [3, H, W] in [-1, 1] as uint8 [H, W, 3]."""
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    if hasattr(image, "detach"):
        from iris.pipeline import to_pil

        return np.asarray(to_pil(image.detach()[None])[0])
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a picture of {array.dtype} {array.shape}; give PIL, uint8 [H, W, 3] or a tensor [3, H, W] in [-1, 1].")
    return array


def draw_picture(axes: Axes, image: np.ndarray, caption: str = "", **options: Any) -> Any:
    """A picture or map without ticks, its caption below, in a hairline frame (white pictures have no edge of their own).

    `options` go to imshow; its result is returned, for a colour bar.
    """
    drawn = axes.imshow(image, **options)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#D0D0D0", linewidth=0.8)
    if caption:
        axes.set_xlabel(plain_text(caption), fontsize=9, color="#333333", labelpad=3)
    return drawn


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0 .. count - 1, evenly spread, the first and the last among them."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, most))})


def iteration_ticks(count: int) -> list[int]:
    """Ticks for iterations 1 .. count at a step of 1, 2, 4, ...: at most ten, and 8 and 16 always get theirs."""
    step = 1
    while count // step > 10:
        step *= 2
    return list(range(step, count + 1, step))


def plain_ticks(axis: Any) -> None:
    """Numbers as people write them on a logarithmic axis: 0.02 and 20, not powers of ten. Call it when everything is drawn."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=12))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def say_empty(axes: Axes, text: str) -> None:
    """Instead of an empty coordinate system: why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def mark_position(axes: Axes, x: float, label: str) -> None:
    """A thin dashed vertical line with its label at the top."""
    axes.axvline(x, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
    axes.annotate(f" {label}", (x, 0.99), xycoords=("data", "axes fraction"), color=GREY, fontsize=9, va="top")
