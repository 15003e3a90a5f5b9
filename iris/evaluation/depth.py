"""What thinking buys: quality by iterations, steps against iterations, what automatic depth and a carried state save.

Every setting draws the same captions from the same seeds, so two settings differ in nothing else. Quality is the share of
held-out scenes drawn right where the model knows scenes, and the kernel distance of samples (see `quality`). The cost is
counted in core passes of one picture, both passes of guidance included; "equal quality" means within the interval of the best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from iris.data import Example, caption_scene, load_dataset_by_name, streams
from iris.evaluation.drawing import (
    Features,
    QualityError,
    different_pictures,
    features_by_name,
    has_scenes,
    require_enough,
    source_of,
    telling_caption,
    to_tensor,
)
from iris.evaluation.metrics import Estimate, kernel_distance
from iris.evaluation.quality import scene_specs, score_scenes
from iris.pipeline import IRISPipeline

EXAM_KINDS = ("one", "relation")  # what is drawn right soonest, and what needs two objects to agree
Grid = tuple[tuple[int, ...], tuple[int, ...]]  # steps and iterations of the matrix
GRID: Grid = ((2, 4, 8, 16), (1, 2, 4, 8))
STUDENT_GRID: Grid = ((1, 2, 4), (2, 4, 8, 16))
CARRIED_DEPTHS = (1, 2, 3, 4, 6)  # a carried state needs fewer
PRACTICE_CAPTIONS = 32  # of the training, where there are no scenes
THRESHOLDS = (1.0, 0.84, 0.71, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.21, 0.18, 0.15, 0.12, 0.1)  # of "auto", tried on practice scenes


@dataclass(frozen=True)
class Setting:
    """How a picture is drawn; what is left out are the model's defaults."""

    num_steps: int
    num_iterations: int | str
    carry_state: bool = False

    def __str__(self) -> str:
        return f"{self.num_steps} x {self.num_iterations}{', state carried' if self.carry_state else ''}"


@dataclass(frozen=True)
class Outcome:
    """What a setting gave: `right` by kind of scene and over all ("every"), `kid` of samples, and what one picture cost.

    passes and spread: mean and standard deviation over pictures of the core passes; iterations: their mean a step, by kind.
    """

    setting: Setting
    right: dict[str, Estimate]
    kid: Estimate | None
    passes: float
    spread: float
    iterations: dict[str, float]
    seconds: float

    def at_least(self, best: Outcome) -> bool:
        """Whether this one's quality lies within the interval of the best one's, or above it."""
        if self.right:
            return self.right["every"].value >= best.right["every"].interval[0]
        return self.kid.value <= best.kid.interval[1]

    def looks_like(self, other: Outcome) -> bool:
        """Whether this one's pictures are as near to real ones, within the interval of the other's; so it is where nobody looked."""
        return self.kid is None or other.kid is None or self.kid.value <= other.kid.interval[1]

    @property
    def quality(self) -> float:
        """A number to order by; higher is better."""
        return self.right["every"].value if self.right else -self.kid.value


class DepthExam:
    """The captions, seeds and real pictures that every setting is measured with."""

    def __init__(self, pipe: IRISPipeline, count: int = 64, samples: int = 0, data: str = "", seed: int = 0, batch_size: int = 16,
                 guidance_scale: float | None = None, split: str = "held_out") -> None:
        """count: scenes of each of EXAM_KINDS and of `split`, for a model that knows scenes; samples: held-out captions for the kernel distance."""
        source = source_of(pipe, data)
        self.pipe, self.seed, self.batch_size, self.guidance_scale = pipe, seed, batch_size, guidance_scale
        self.source, self.count = source, count
        self.specs = scene_specs(pipe.image_size, count, EXAM_KINDS, split, seed) if count and has_scenes(source) else {}
        self.features: Features | None = features_by_name(batch_size=batch_size) if samples else None
        self.captions: list[str] = []
        if samples:
            items = self._items("held_out", samples)
            require_enough(len(items))
            self.captions, self.real = [telling_caption(item) for item in items], self.features(to_tensor([item.image for item in items]))
        if not self.specs and not self.captions:
            raise QualityError(f"there is nothing to judge pictures of {source} by; give a number of samples for the kernel distance.")

    def _items(self, split: str, number: int) -> list[Example]:
        """Up to `number` different pictures of a split with their captions, chosen by the seed."""
        dataset = load_dataset_by_name(self.source, self.pipe.image_size, split, number if streams(self.source) else None)
        return different_pictures(dataset, number, np.random.default_rng(self.seed).permutation(len(dataset)))

    def practice(self) -> DepthExam:
        """Twice as many scenes of the same kinds as training has them: what is chosen on these may be judged by the exam's own."""
        return DepthExam(self.pipe, 2 * self.count, 0, self.source, self.seed + 1, self.batch_size, self.guidance_scale, "train")

    def practice_captions(self) -> list[str]:
        """The same for a model without scenes: captions of the training."""
        return [telling_caption(item) for item in self._items("train", PRACTICE_CAPTIONS)]

    def take(self, setting: Setting, pipe: IRISPipeline | None = None) -> Outcome:
        """Draw everything with `setting` and judge it; another `pipe` is asked the same captions and seeds."""
        pipe = pipe or self.pipe
        begun, spent, right, kid = time.monotonic(), {}, {}, None
        told, drawn = [], []
        for kind, specs in self.specs.items():
            images, spent[kind] = self._draw(pipe, setting, [caption_scene(spec)[0] for spec in specs])
            right[kind] = score_scenes(images, specs)["right"]
            told, drawn = told + list(specs), drawn + images
        if told:
            right["every"] = score_scenes(drawn, told)["right"]
        if self.captions:
            images, spent["samples"] = self._draw(pipe, setting, self.captions)
            kid = kernel_distance(self.features(to_tensor(images)), self.real, paired=True)
        every = np.concatenate(list(spent.values()))
        scale = pipe.defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale
        passes = every.sum(1) * (2 if scale != 1.0 else 1)
        return Outcome(setting, right, kid, float(passes.mean()), float(passes.std()), {kind: float(part.mean()) for kind, part in spent.items()},
                       (time.monotonic() - begun) / len(every))

    def _draw(self, pipe: IRISPipeline, setting: Setting, prompts: Sequence[str]) -> tuple[list[Image.Image], np.ndarray]:
        """The pictures, and the iterations of each at each step [N, S]."""
        images, spent = [], []
        for start in tqdm(range(0, len(prompts), self.batch_size), desc=str(setting), unit="batch", leave=False):
            part = list(prompts[start: start + self.batch_size])
            seeds = list(range(self.seed + start, self.seed + start + len(part)))
            result = pipe(part, seed=seeds, guidance_scale=self.guidance_scale, **asdict(setting))
            images, spent = images + result.images, spent + result.iterations
        return images, np.array(spent)


# --- what follows from outcomes ------------------------------------------------------------------------------------


def cheapest_equal(outcomes: Sequence[Outcome]) -> Outcome:
    """The one of fewest core passes among those as good as the best."""
    best = max(outcomes, key=lambda outcome: outcome.quality)
    return min((outcome for outcome in outcomes if outcome.at_least(best)), key=lambda outcome: outcome.passes)


def cheapest_as_good(outcomes: Sequence[Outcome], as_what: Outcome) -> Outcome:
    """The one of fewest core passes that is no worse than `as_what` on the same captions and seeds; where none is, the best.

    Not within an interval: one that wide lets the cheapest pass for equal, and the wider, the fewer pictures were drawn.
    """
    enough = [outcome for outcome in outcomes if outcome.quality >= as_what.quality]
    return min(enough, key=lambda outcome: outcome.passes) if enough else max(outcomes, key=lambda outcome: outcome.quality)


def frontier(outcomes: Sequence[Outcome], automatic_steps: int) -> dict[str, list[int | str]]:
    """Steps and iterations of each effort, in the form that the demo reads from a model's metadata.

    "Best" is the best; "Balanced" the cheapest whose quality lies within the interval of that; "Draft" the best that costs at most
    half of Balanced. "Automatic" takes the steps that it was measured with.
    """
    best, balanced = min(outcomes, key=lambda outcome: (-outcome.quality, outcome.passes)), cheapest_equal(outcomes)
    affordable = [outcome for outcome in outcomes if outcome.passes <= balanced.passes / 2] or [min(outcomes, key=lambda outcome: outcome.passes)]
    draft = min(affordable, key=lambda outcome: (-outcome.quality, outcome.passes))
    table = {name: [outcome.setting.num_steps, outcome.setting.num_iterations] for name, outcome in (("Draft", draft), ("Balanced", balanced), ("Best", best))}
    return table | {"Automatic": [automatic_steps, "auto"]}


@dataclass(frozen=True)
class Calibration:
    """The exit threshold that loses no more than a fixed depth does: distances to what a deep core draws, and iterations a step."""

    threshold: float
    distance: float
    iterations: float
    fixed_distance: float
    fixed_iterations: int


@torch.inference_mode()
def calibrate_threshold(pipe: IRISPipeline, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, fixed: int, deep: int,
                        guidance_scale: float | None = None, carry_state: bool = False, batch_size: int = 16) -> Calibration:
    """The largest threshold of "auto" whose pictures lie as close to those of `deep` iterations as those of `fixed` iterations do,

    found to 5 % by halving on a logarithmic scale from 0.01 to 1; 0.01 where none is close enough.

    Distances are medians over pictures of the root mean square between final latents. With `carry_state` "auto" and the fixed depth
    carry their state from step to step; the deep core never does. `fixed` must be less than `deep`, or there is nothing to be as
    close as. The pipeline's defaults are left as they were.
    """
    if fixed >= deep:
        raise QualityError(f"a fixed depth of {fixed} is not less than the deep one of {deep}.")

    def latents(num_iterations: int | str, carried: bool = carry_state) -> tuple[torch.Tensor, float]:
        found, spent = [], []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            result = pipe(list(prompts[part]), seed=list(seeds[part]), num_steps=num_steps, num_iterations=num_iterations,
                          guidance_scale=guidance_scale, carry_state=carried)
            found, spent = [*found, result.latents.float()], spent + result.iterations
        return torch.cat(found), float(np.mean(spent))

    def distance(found: torch.Tensor) -> float:
        return float((found - goal).square().flatten(1).mean(1).sqrt().median())

    goal, _ = latents(deep, carried=False)
    allowed, kept = distance(latents(fixed)[0]), pipe.defaults

    def tried(threshold: float) -> Calibration:
        pipe.defaults = replace(kept, exit_threshold=float(f"{threshold:.3g}"))
        found, spent = latents("auto")
        return Calibration(pipe.defaults.exit_threshold, distance(found), spent, allowed, fixed)

    close, far = 0.01, 1.0
    try:
        best = tried(far)
        if best.distance > allowed:
            best = tried(close)
            while best.distance <= allowed and far > 1.05 * close:
                middle = tried(math.sqrt(close * far))
                if middle.distance <= allowed:
                    best, close = middle, middle.threshold
                else:
                    far = middle.threshold
    finally:
        pipe.defaults = kept
    return best


def measure_depth(pipe: IRISPipeline, count: int = 64, samples: int = 0, data: str = "", seed: int = 0, batch_size: int = 16,
                  num_steps: int | None = None, depths: Sequence[int] = (1, 2, 4, 6, 8, 16, 32), matrix: Grid | None = None,
                  guidance_scale: float | None = None, teacher: IRISPipeline | None = None, looks: int = 0,
                  timestep_shift: float | None = None, sampler: str | None = None) -> dict[str, Any]:
    """Everything that a model's card tells about depth, as plain data.

    "by_iterations" at `num_steps` steps (12; 4 of a student), each step from a fresh state. "carried": 8 steps (4 of a student),
    fresh and with the state carried from step to step, and the share of core passes that carrying saves; where it saves any,
    "carry_state" holds and the rest is drawn so. "matrix" of steps x iterations with the "frontier" that follows. "automatic": the
    threshold chosen on practice scenes (where there are none, by distances on captions of the training), and auto beside "cheapest_fixed", the cheapest of the
    "fixed" depths that is as good as it: as many steps, their state carried where auto carries its own. "equal": auto is as good as the best of
    them too, within its interval; and where right answers decide, `looks` held-out captions tell by the kernel distance whether auto looks like the cheapest. "teacher": what a
    student's teacher draws in 32 steps of 8 iterations, with its own guidance where none is given. A `timestep_shift` and a
    `sampler` stand for the pipeline's own, which stay.
    """
    instead = {name: value for name, value in (("timestep_shift", timestep_shift), ("sampler", sampler)) if value is not None}
    if instead:
        with _defaults(pipe, **instead):
            return measure_depth(pipe, count, samples, data, seed, batch_size, num_steps, depths, matrix, guidance_scale, teacher, looks)
    student = pipe.distilled
    num_steps = num_steps or (4 if student else 12)
    steps, iterations = matrix or _with_its_own(STUDENT_GRID if student else GRID, pipe.defaults.num_iterations)
    exam = DepthExam(pipe, count, samples, data, seed, batch_size, guidance_scale)
    look = DepthExam(pipe, 0, looks, data, seed, batch_size, guidance_scale) if exam.specs and looks > samples else exam
    by_iterations = [exam.take(Setting(num_steps, depth)) for depth in depths]
    carried_steps = 4 if student else 8
    fresh, carried = ([exam.take(Setting(carried_steps, depth, carry)) for depth in CARRIED_DEPTHS] for carry in (False, True))
    saved = _saved(fresh, carried)
    carry = saved > 0
    drawn = [exam.take(Setting(step, depth, carry)) for step in steps for depth in iterations]
    alike = [exam.take(Setting(num_steps, depth, True)) for depth in CARRIED_DEPTHS] if carry else by_iterations
    best = max(alike, key=lambda outcome: outcome.quality)
    threshold, automatic = _automatic(exam, look, num_steps, best, cheapest_equal(alike), carry)
    fixed = cheapest_as_good(alike, automatic)
    if look is not exam:
        fixed = replace(fixed, kid=look.take(fixed.setting).kid)
    return {
        "pictures": {"scenes of each kind": count if exam.specs else 0, "samples": len(exam.captions), "looks": len(look.captions)}, "data": exam.source, "seed": seed,
        "model_hash": pipe.metadata.get("hash", ""),
        "trained_iterations": pipe.config.generator.mean_iterations,
        "guidance_scale": pipe.defaults.guidance_scale if guidance_scale is None else guidance_scale, "carry_state": carry,
        "timestep_shift": pipe.defaults.timestep_shift, "sampler": pipe.defaults.sampler,
        "by_iterations": [_plain(outcome) for outcome in by_iterations],
        "fixed": [_plain(outcome) for outcome in alike], "cheapest_fixed": _plain(fixed),
        "carried": {"num_steps": carried_steps, "fresh": [_plain(outcome) for outcome in fresh], "carried": [_plain(outcome) for outcome in carried], "saved": saved},
        "matrix": [_plain(outcome) for outcome in drawn], "frontier": frontier(drawn, num_steps),
        "automatic": {"threshold": threshold, "outcome": _plain(automatic), "share_of_fixed": automatic.passes / fixed.passes,
                      "equal": automatic.at_least(best) and automatic.looks_like(fixed)},
    } | ({"teacher": _plain(exam.take(Setting(32, 8), teacher))} if teacher else {})


def _with_its_own(grid: Grid, depth: int | str) -> Grid:
    """The grid with the model's own depth in it, or its efforts would pass over what it draws with by itself."""
    steps, iterations = grid
    return steps, iterations if depth == "auto" else tuple(sorted({*iterations, int(depth)}))


def _automatic(exam: DepthExam, look: DepthExam, num_steps: int, best: Outcome, fixed: Outcome, carry_state: bool) -> tuple[float, Outcome]:
    """The threshold that is as good as the `best` depth, or by distances as `fixed`, and what "auto" gives with it; its kernel distance is `look`'s."""
    pipe, setting = exam.pipe, Setting(num_steps, "auto", carry_state)
    if exam.specs:
        threshold = practised_threshold(exam.practice(), setting, best.setting)
    else:
        prompts = exam.practice_captions()
        seeds, depth = range(exam.seed, exam.seed + len(prompts)), int(fixed.setting.num_iterations)
        threshold = calibrate_threshold(pipe, prompts, seeds, num_steps, depth, max(2 * depth, 2 * pipe.config.generator.mean_iterations),
                                        exam.guidance_scale, carry_state, exam.batch_size).threshold
    with _defaults(pipe, exit_threshold=threshold):
        automatic = exam.take(setting)
        return threshold, automatic if look is exam else replace(automatic, kid=look.take(setting).kid)


def practised_threshold(practice: DepthExam, automatic: Setting, best: Setting) -> float:
    """The largest of THRESHOLDS with which `automatic` is as good on these scenes as `best`, the best fixed depth; the least where none is.

    As good is what it is for a fixed depth too: within the best one's interval. Right answers, not distances: two good pictures
    of a caption can lie far apart, and a picture near to another can lack an object (a threshold chosen by distances drew a tenth
    fewer scenes right, reports/LOG.md, 2026-11-27).
    """
    goal = practice.take(best)
    for threshold in THRESHOLDS:
        with _defaults(practice.pipe, exit_threshold=threshold):
            if practice.take(automatic).at_least(goal):
                break
    return threshold


@contextmanager
def _defaults(pipe: IRISPipeline, **changes: Any) -> Iterator[None]:
    """The pipeline with other defaults for a while."""
    kept, pipe.defaults = pipe.defaults, replace(pipe.defaults, **changes)
    try:
        yield
    finally:
        pipe.defaults = kept


def _saved(fresh: Sequence[Outcome], carried: Sequence[Outcome]) -> float:
    """Share of core passes that carrying saves: the cheapest of each that is as good as the best fresh one."""
    best = max(fresh, key=lambda outcome: outcome.quality)
    enough = [outcome.passes for outcome in carried if outcome.at_least(best)]
    return 1 - min(enough) / cheapest_equal(fresh).passes if enough else 0.0


def _plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON data."""
    told: dict[str, Any] = {}
    told |= {"setting": str(outcome.setting), **asdict(outcome.setting)}
    told |= {"right": {kind: value.to_dict() for kind, value in outcome.right.items()}} if outcome.right else {}
    told |= {"kid": outcome.kid.to_dict()} if outcome.kid is not None else {}
    return told | {"passes": outcome.passes, "spread": outcome.spread, "iterations_a_step": outcome.iterations, "seconds": outcome.seconds}
