"""How much work a picture gets: four words for steps x iterations. The numbers stand here and nowhere else.

A model may bring its own, measured ones, as metadata: "frontier": {"Draft": [4, 2], ..., "Automatic": [8, "auto"]}.
"""

from __future__ import annotations

from typing import NamedTuple

from demo.request import ITERATIONS, STEPS, RequestError, whole_number
from iris.pipeline import IRISPipeline, SamplingDefaults


class Effort(NamedTuple):
    """Solver steps, and core iterations in each ("auto": until the state is still)."""

    num_steps: int
    num_iterations: int | str

    def __str__(self) -> str:
        return f"{self.num_steps} × {self.num_iterations}"


NAMES = ["Draft", "Balanced", "Best", "Automatic"]
SHARES = {"Draft": 1 / 3, "Balanced": 1 / 2, "Best": 1.0}  # of the steps and of the iterations that a model's makers chose
# A distilled student jumps to the data; more than four jumps only add noise again.
DISTILLED = {"Draft": Effort(1, 4), "Balanced": Effort(2, 4), "Best": Effort(4, 8), "Automatic": Effort(4, "auto")}


def efforts(pipeline: IRISPipeline) -> dict[str, Effort]:
    """The four efforts for this model: its own measured ones, else parts of its defaults; entries of a damaged "frontier" are passed over."""
    table = dict(DISTILLED) if pipeline.distilled else _parts_of(pipeline.defaults)
    measured = pipeline.metadata.get("frontier")
    for name, pair in (measured.items() if isinstance(measured, dict) else ()):
        if name in table and isinstance(pair, list) and len(pair) == 2:
            try:
                steps = whole_number("num_steps", pair[0], *STEPS)
                table[name] = Effort(steps, "auto" if pair[1] == "auto" else whole_number("num_iterations", pair[1], *ITERATIONS))
            except RequestError:
                continue
    return table


def _parts_of(defaults: SamplingDefaults) -> dict[str, Effort]:
    steps = min(defaults.num_steps, STEPS[1])
    depth = 8 if defaults.num_iterations == "auto" else min(int(defaults.num_iterations), ITERATIONS[1])
    table = {name: Effort(max(1, round(share * steps)), max(1, round(share * depth))) for name, share in SHARES.items()}
    return table | {"Automatic": Effort(steps, "auto")}


def effort_named(pipeline: IRISPipeline, num_steps: int, num_iterations: int | str) -> str | None:
    """The word for these numbers, or None."""
    return next((name for name, effort in efforts(pipeline).items() if effort == (num_steps, num_iterations)), None)
