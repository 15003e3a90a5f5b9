"""python -m reports.duel [--minutes 20] [--only grfm attention] [--preset micro] [--image-size 128] [--data scenes] [--run DIR] [--out DIR]

The same recipe, pictures and wall-clock for GRFM, for attention and two of GRFM's paths alone with as many parameters, and,
their parameters being what they are, for a stack without recurrence in depth and for a core on a grid of half the side. A step of each is timed first, in turns, and each gets as many steps as its minutes hold: so every
schedule reaches its end, and what the machine does meanwhile decides nothing. Then all are examined alike and DUEL.md is
written, a section for each preset and size of picture. The same command again continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from iris.checkpoint import read_checkpoint, write_checkpoint
from iris.config import IRISConfig, changed
from iris.data import ImageDataset
from iris.evaluation.drawing import QualityError, features_by_name
from iris.evaluation.figures import loss_comparison, save_figure
from iris.evaluation.quality import sample_kid, scene_accuracy, scene_specs, to_plain
from iris.evaluation.reading import load_pipeline, machine, markdown_table
from iris.nn.generator import Generator, parameter_count
from iris.runs import read_metrics, read_summary
from iris.training.loop import TrainConfig
from iris.training.prepare import configure, load_pictures, open_run, plan_training
from iris.training.stages import train_text_to_image
from reports.notebooks import ROOT
from reports.results import write_text
from reports.runner import code_version

CONTENDERS = {
    "grfm": "GRFM, the core applied {depth} times",
    "attention": "self-attention in its place",
    "fourier": "GRFM's Fourier path alone",
    "recurrence": "GRFM's recurrent path alone",
    "unrolled": "GRFM, {depth} times as many layers applied once",
    "half": "GRFM, one core token for {side} x {side} of the grid",
}
TIMED_STEPS = 6  # of each phase, in one round
EXAM = {"num_steps": 16, "guidance_scale": 3.0}
KINDS = ("one", "relation")
# One depth for all: with a random one, a stack that has no depth would train on another distribution.
LOSS = {"random_depth": False, "warm_start": 0.0}


def contender(base: IRISConfig, name: str) -> IRISConfig:
    """`base` with the core that `name` means; a mixer with fewer weights gets a wider feed-forward for them."""
    generator = base.generator
    if name == "half":
        return changed(base, generator__core_stride=2 * generator.core_stride)
    if name == "unrolled":
        return changed(base, generator__core_layers=generator.core_layers * generator.mean_iterations, generator__mean_iterations=1,
                       generator__iteration_embedding="none")
    config = changed(base, generator__mixer=name)
    missing = weights(base) - weights(config)
    per_unit = generator.core_layers * (2 * generator.dim + 1)
    return changed(config, generator__core_ffn=generator.core_ffn + round(missing / per_unit))


def called(name: str, found: Mapping[str, Any]) -> str:
    """A contender in words."""
    return CONTENDERS[name].format(depth=found["depth"], side=found["half"])


def weights(config: IRISConfig) -> int:
    """Parameters of the generator that `config` describes; nothing is allocated."""
    with torch.device("meta"):
        return parameter_count(Generator(config.generator))


def autoencoder_alone(model: str, folder: Path, base: IRISConfig) -> Path:
    """The autoencoder of a model folder as a model of its own, where every contender begins; a convolution fits any size of picture."""
    stored = read_checkpoint(model, ["autoencoder"])
    config = IRISConfig.from_dict(stored.config)
    config = changed(config, autoencoder__image_size=base.autoencoder.image_size, generator__latent_size=base.autoencoder.image_size // config.autoencoder.downsample)
    told = {"stage": 1, "training": {"stage": 1, "data": stored.metadata.get("training", {}).get("autoencoder_data", "")}}
    return write_checkpoint(folder, config.to_dict(), {"autoencoder": stored.tensors["autoencoder"]}, told)


def time_steps(configs: Mapping[str, IRISConfig], pictures: tuple[ImageDataset, ImageDataset], train: TrainConfig, start: Path, home: Path,
               rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a training step, "coarse" (the first third of stage 3) and "full": medians over steps and rounds, contenders in turns."""
    seen: dict[str, dict[str, list[float]]] = {name: {"coarse": [], "full": []} for name in configs}
    short = replace(train, train_steps=2 * TIMED_STEPS, minutes=0.0, log_every=1, eval_every=10**9)
    for round_ in range(rounds):
        for name, config in tqdm(configs.items(), desc=f"timing steps, round {round_ + 1} of {rounds}"):
            with open_run(home / f"{name}-{round_}", config, short, "timing", start_over=True) as run:
                train_text_to_image(config, *pictures, short, run, start, coarse_until=TIMED_STEPS, **LOSS)
                rows = run.metrics()
            seconds = [short.batch_size / row["images_per_second"] for row in rows]
            seen[name]["coarse"] += seconds[1:TIMED_STEPS]  # the first step of a phase meets shapes that are new
            seen[name]["full"] += seconds[TIMED_STEPS + 1:]
    return {name: {phase: statistics.median(values) for phase, values in phases.items()} for name, phases in seen.items()}


def in_time_of(planned: Mapping[str, dict[str, float]], timed: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Contenders that join later, in the time of the first session: its machine may have been slower, by as much as those in both tell."""
    both = [timed[name]["full"] / planned[name]["full"] for name in timed if name in planned]
    slower = statistics.median(both) if both else 1.0
    return {name: {phase: seconds / slower for phase, seconds in phases.items()} for name, phases in timed.items()} | dict(planned)


def steps_for(minutes: float, timed: Mapping[str, float]) -> int:
    """Optimizer steps that take `minutes`, a third of them coarse."""
    return max(3, round(60 * minutes / (timed["coarse"] / 3 + timed["full"] * 2 / 3)))


def examine(folder: Path, data: ImageDataset, scenes: int, samples: int) -> dict[str, Any]:
    """Held-out scenes read back from pixels and the kernel distance of samples, at the settings of EXAM; plain data."""
    pipe = load_pipeline(folder)
    found = scene_accuracy(pipe, scene_specs(pipe.image_size, scenes, KINDS), **EXAM)
    result = {kind: {fact: found[kind][fact] for fact in ("right", "colour", "shape")} for kind in KINDS}
    try:
        distance = sample_kid(pipe, data, samples, features_by_name(), **EXAM) if samples else {"kid": None, "pictures": 0}
        result |= {name: distance[name] for name in ("kid", "pictures")}
    except QualityError:
        result |= {"kid": None, "pictures": 0}  # too few, or the feature packages are not here
    return to_plain(result)


def fight(options: argparse.Namespace) -> dict[str, Any]:
    """Time, train and examine; what was found, as plain data."""
    base = configure(options.preset, options.image_size)
    home = options.run / f"{options.preset}-{base.autoencoder.image_size}-{options.batch_size}"  # what the time of a step depends on
    configs = {name: contender(base, name) for name in options.only}
    start = autoencoder_alone(options.autoencoder, home / "start", base)
    plan_file, planned = home / "plan.json", {}
    if plan_file.is_file():
        planned = json.loads(plan_file.read_text(encoding="utf-8"))
    train = plan_training(1, 0.0, options.batch_size, options.learning_rate, seed=options.seed)
    if not set(configs) <= set(planned):
        few = load_pictures(options.data, base, 4 * options.batch_size, options.batch_size)
        planned = in_time_of(planned, time_steps(configs, few, train, start, home / "timing", options.rounds))
        write_text(plan_file, json.dumps(planned, indent=1) + "\n")
    pictures = load_pictures(options.data, base, options.limit, max(500, options.samples))
    results: dict[str, Any] = {}
    for name, config in configs.items():
        steps = steps_for(options.minutes, planned[name])
        recipe = plan_training(steps, 0.0, options.batch_size, options.learning_rate, seed=options.seed)
        print(f"{name}: {weights(config) / 1e6:.2f} M weights, {steps:,} steps of {planned[name]['full']:.2f} s ({planned[name]['coarse']:.2f} s coarse)", file=sys.stderr)
        exam_file = home / name / f"exam-{options.scenes}-{options.samples}.json"
        with open_run(home / name, config, recipe, options.data, loss_options=LOSS) as run:
            trained = train_text_to_image(config, *pictures, recipe, run, start, **LOSS)
        if not exam_file.is_file():
            found = examine(trained.pipeline_path, pictures[1], options.scenes, options.samples)
            if found["kid"] is None and options.samples:
                exam_file = exam_file.with_name(".exam-without-distance.json")  # once the features are here, it is asked again
            write_text(exam_file, json.dumps(found, indent=1) + "\n")
        results[name] = {"weights": weights(config), "timed": planned[name], "steps": steps, "minutes": read_summary(home / name)["minutes"],
                         "loss": [[row["seconds"] / 60, row["held_out_loss"]] for row in read_metrics(home / name) if row.get("held_out_loss") is not None],
                         **json.loads(exam_file.read_text(encoding="utf-8"))}
    told = {name: getattr(options, name) for name in ("preset", "image_size", "data", "minutes", "batch_size", "learning_rate", "limit", "seed", "scenes", "samples")}
    told["image_size"] = base.autoencoder.image_size
    return {"options": told, "depth": base.generator.mean_iterations, "half": 2 * base.generator.core_stride, "machine": machine(), "commit": code_version(), "contenders": results}


# --- what is said of it ----------------------------------------------------------------------------------------------


def _shown(entry: Mapping[str, Any] | None, scale: float = 100, unit: str = " %") -> str:
    if not entry or entry["value"] is None:
        return "–"
    low, high = (scale * bound for bound in entry["interval"])
    return f"{scale * entry['value']:.0f}{unit} ({low:.0f} to {high:.0f})"


def verdict(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """ "ahead", "behind" or "not told apart": `one` against `other`, shares whose 95 % intervals overlap are not told apart."""
    if one["interval"][0] > other["interval"][1]:
        return "ahead"
    return "behind" if one["interval"][1] < other["interval"][0] else "not told apart"


def duel_name(found: Mapping[str, Any]) -> str:
    """What a duel is called among others: another one of this name replaces it."""
    return f"{found['options']['preset']}-{found['options']['image_size']}"


def duels_markdown(duels: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of DUEL.md; `duels` by name."""
    told = (f"Generated by `python -m reports.duel`; do not edit. Each contender trains for the minutes told, by the time of a step, which was taken in turns before; `minutes` is what it took. "
            f"Then held-out scenes and samples in {EXAM['num_steps']} steps, guidance {EXAM['guidance_scale']:g}, in brackets 95 % intervals; the held-out loss is that of the averaged weights, on the same "
            "noise for all. Intervals that overlap are not told apart.")
    return "\n\n".join(["# The duel: what the mixer and the loop are worth", told, *(_section(name, found) for name, found in duels.items())]) + "\n"


def _section(name: str, found: Mapping[str, Any]) -> str:
    options, contenders = found["options"], found["contenders"]
    rows = []
    for key, result in contenders.items():
        rows.append([called(key, found), f"{result['weights'] / 1e6:.2f} M", f"{result['timed']['full']:.2f} s", f"{result['steps']:,}",
                     f"{result['steps'] * options['batch_size']:,}", f"{result['minutes']:.1f}", f"{result['loss'][-1][1]:.4f}" if result["loss"] else "–",
                     *(_shown(result[kind]["right"]) for kind in KINDS), _shown(result.get("kid"), 1000, "")])
    head = ["core", "weights", "a step", "steps", "pictures", "minutes", "held-out loss", *(f"{kind} right" for kind in KINDS), "kernel distance x 1000"]
    lines = [f"## Preset `{options['preset']}` at {options['image_size']} px", "",
             f"Data `{options['data']}`, stage 3 from the same autoencoder, seed {options['seed']}, batches of {options['batch_size']}, rate {options['learning_rate']:g}, one depth throughout; "
             f"{options['minutes']:g} minutes each, {options['scenes']} held-out scenes of each kind and {max(result.get('pictures', options['samples']) for result in contenders.values())} samples. {found['machine']}; commit {found['commit']}.",
             "", markdown_table(head, rows), "", f"![Held-out loss by minutes](duel-{name}.png)"]
    if "grfm" in contenders:
        lines += [""]
        for other, result in contenders.items():
            if other != "grfm":
                words = [f"{kind}: {verdict(contenders['grfm'][kind]['right'], result[kind]['right'])}" for kind in KINDS]
                words += [f"kernel distance: {verdict(result['kid'], contenders['grfm']['kid'])}"] if result.get("kid") and contenders["grfm"].get("kid") else []  # less is better
                lines.append(f"- GRFM against {called(other, found)}: {', '.join(words)}.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all were trained and examined, 2 for what cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m reports.duel", description="GRFM against attention and others: same data, parameters and minutes.")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, each")
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--image-size", type=int, default=0, help="side of the pictures; 0 takes the preset's")
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--autoencoder", default="demo/models/iris-scenes", help="a model whose autoencoder all of them use")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--limit", type=int, default=20_000, help="training pictures")
    parser.add_argument("--scenes", type=int, default=100, help="held-out scenes of each kind in the exam")
    parser.add_argument("--samples", type=int, default=256, help="pictures for the kernel distance; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, default=Path("runs/duel"), help="where the trainings go")
    parser.add_argument("--out", type=Path, default=ROOT / "reports", metavar="DIR", help="where DUEL.md, duel.json and its figures go")
    options = parser.parse_args(arguments)
    try:
        found = fight(options)
    except ValueError as error:  # every error of iris that is meant for people is one
        print(f"reports.duel: {error}", file=sys.stderr)
        return 2
    name, file = duel_name(found), options.out / "duel.json"
    duels = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if duels.get(name, {}).get("options") == found["options"]:  # who fought before, on the same terms, stays in the table
        found["contenders"] = duels[name]["contenders"] | found["contenders"]
    duels[name] = found
    write_text(file, json.dumps(duels, indent=1) + "\n")
    curves = {called(key, found): result["loss"] for key, result in found["contenders"].items()}
    save_figure(loss_comparison(curves, "Held-out loss by minutes of training"), options.out / f"duel-{name}.png")
    write_text(options.out / "DUEL.md", duels_markdown(duels))
    return 0


if __name__ == "__main__":
    sys.exit(main())
