"""From a trained run to a folder that a stranger can use: half-precision shards, a model card, a sheet of samples.

    python -m iris.evaluation quality runs/release/03/pipeline --json > quality.json
    python -m iris.evaluation depth runs/release/03/pipeline --json > depth.json
    python -m reports.release runs/release/03/pipeline demo/models/iris-scenes --quality quality.json --depth depth.json

Every number on the card comes from the run's own metadata or from these files; nothing is typed in. The model's
metadata keep both, so a released model can be released again over itself with one of them new: its own are taken for those left out.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from iris.config import IRISConfig, preset
from iris.data import check_scene, emoji_of, load_dataset_by_name, parse_caption
from iris.data.emoji import PACKS
from iris.evaluation.drawing import Features
from iris.evaluation.figures import image_grid, save_figure
from iris.evaluation.neighbours import Gallery, retrieve
from iris.nn.generator import parameter_count
from iris.pipeline import IRISPipeline
from iris.training.latents import weights_digest

# Not picked by their looks: the first prompts of each kind that a visitor would try, always with seed 0.
SCENES = ("a red circle", "a blue star", "a large green triangle", "two red squares", "three yellow circles", "a purple ring on a black background",
          "a red circle left of a blue square", "a green star above a purple cross")
MORE_SCENES = ("a small yellow star", "a pink ring", "an orange triangle on a white background", "two purple crosses", "three green squares",
               "a blue circle above a red star", "a yellow cross right of a green ring", "a large red square")
SHARE_ALIKE = ("openmoji",)
EXAMPLES = 6  # prompts that the demo suggests


def contact_sheet(pipe: IRISPipeline, source: str, features: Features | None = None) -> tuple[list[str], list[Image.Image], list[str]]:
    """Prompts, one picture of each and the prompts that the model draws best, for a model that was trained on `source`.

    Art: captions of the first 64 training pictures, which lie in a shuffled order; best is what is found first among all art
    of its style. Scenes: the prompts above; best is what most of four seeds draw right.
    """
    art = emoji_of(source)
    if art is not None:
        queries, art = (load_dataset_by_name(art, pipe.image_size, split) for split in ("train", "all"))
        found = retrieve(pipe, queries, Gallery(art, features), 64)
        return [item.prompt for item in found], [item.image for item in found], [item.prompt for item in sorted(found, key=lambda item: item.rank)[:EXAMPLES]]
    prompts = list(SCENES + MORE_SCENES)
    drawn = [pipe(prompts, seed=[seed] * len(prompts)).images for seed in range(4)]
    right = [sum(check_scene(np.asarray(images[index]), parse_caption(prompt)).all_right for images in drawn) for index, prompt in enumerate(prompts)]
    best = sorted(range(len(prompts)), key=lambda index: -right[index])[:EXAMPLES]
    return prompts, drawn[0], [prompts[index] for index in best]


def data_lines(source: str) -> list[str]:
    """The data sources of a mix with their licences; share-alike art raises, since it may not enter released weights."""
    lines = []
    for part in source.split("+"):
        kind, _, packs = part.split("*")[0].partition(":")
        if kind == "scenes":
            lines.append("scenes: drawn by this repository (Apache-2.0)")
        elif kind == "emoji":
            for pack in (packs or "openmoji").split(","):
                if pack in SHARE_ALIKE or pack == "all":
                    raise typer.BadParameter(f"{source} holds share-alike art ({pack}); weights trained on it are not released.")
                package = PACKS[pack].source
                lines.append(f"{pack}: {PACKS[pack].licence}, from the npm package {package.name} {package.version}")
        else:
            raise typer.BadParameter(f"{part} has no licence that is known here; only scenes and emoji packs are released.")
    return list(dict.fromkeys(lines))


def seen_by_generator(training: dict[str, Any]) -> str:
    """The data sources of all trainings that a generator went through, the first one first."""
    return "+".join(dict.fromkeys(part for told in (*training.get("before", []), training) for part in told["data"].split("+")))


def _interval(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['value']:.3g} ({low:.3g} to {high:.3g})"


def _estimates(quality: dict[str, Any], path: str = "") -> list[tuple[str, str]]:
    """Every estimate of a quality file as (dotted name, value with its interval), in the file's order."""
    rows: list[tuple[str, str]] = []
    for name, value in quality.items():
        if isinstance(value, dict) and set(value) >= {"value", "interval"} and value["value"] is not None:
            rows.append((f"{path}{name}", _interval(value)))
        elif isinstance(value, dict):
            rows += _estimates(value, f"{path}{name}.")
    return rows


def _sizes(quality: dict[str, Any]) -> str:
    """How many pictures each section of a quality file rests on."""
    counts = {name: section["pictures"] for name, section in quality.items() if name != "counts" and isinstance(section, dict) and "pictures" in section}
    counts |= {f"scenes.{kind}": entry["pictures"] for kind, entry in quality.get("scenes", {}).items() if isinstance(entry, dict) and "pictures" in entry}
    return ", ".join(f"{name} {count}" for name, count in counts.items()) + " pictures"


def _settings(quality: dict[str, Any]) -> str:
    """The options that drew the pictures of a quality file, as the command takes them."""
    told = quality.get("parameters", {})
    options = f" --data {quality['data']}" if quality.get("data") else ""
    options += "".join(f" --{name} {count}" for name, count in quality.get("counts", {}).items())
    options += "".join(f" --{name.replace('_', '-')} {told[name] if isinstance(told[name], str) else format(told[name], 'g')}"
                       for name in ("num_steps", "num_iterations", "guidance_scale", "timestep_shift", "sampler") if told.get(name) is not None)
    options += {True: " --carry-state", False: " --fresh-state"}.get(told.get("carry_state"), "")
    return options + (f" --seed {quality['seed']}" if quality.get("seed") else "")


def _exam(depth: dict[str, Any]) -> str:
    """The options of a depth file."""
    if not depth:
        return ""
    pictures = depth["pictures"]
    looks = f" --looks {pictures['looks']}" if pictures.get("looks", 0) > pictures["samples"] else ""
    shift = f" --timestep-shift {depth['timestep_shift']:g}" if "timestep_shift" in depth else ""
    shift += f" --sampler {depth['sampler']}" if "sampler" in depth else ""
    data = f" --data {depth['data']}" if depth.get("data") else ""
    steps = f" --num-steps {depth['by_iterations'][0]['num_steps']}"
    seed = f" --seed {depth['seed']}" if depth["seed"] else ""
    teacher = " --teacher TEACHER" if "teacher" in depth else f" --guidance-scale {depth['guidance_scale']:g}"  # a teacher takes its own guidance
    return f"{data} --count {pictures['scenes of each kind']} --samples {pictures['samples']}{looks}{steps}{teacher}{shift}{seed}"


def _told(training: dict[str, Any]) -> str:
    """One training in a sentence."""
    ended = "" if training["finished"] else ", ended before its last step"
    return (f"stage {training['stage']} on {training['data']}, {training['step']:,} steps of {training['recipe']['batch_size']}, "
            f"{training['minutes']:.0f} minute{'' if round(training['minutes']) == 1 else 's'}{ended}.")


def _recipe(training: dict[str, Any]) -> dict[str, Any]:
    """What decided the result of a training; how long it might have taken did not."""
    return {name: value for name, value in (training["recipe"] | training.get("loss", {})).items() if name != "minutes"}


def _thinking(depth: dict[str, Any]) -> str:
    """The card's section about iterations, from a depth file."""
    if not depth:
        return "Not measured."
    columns = {f"{kind} right": (lambda row, kind=kind: _interval(row["right"][kind])) for kind in depth["by_iterations"][0].get("right", {}) if kind != "every"}
    if "kid" in depth["by_iterations"][0]:
        columns["kernel distance"] = lambda row: _interval(row["kid"])
    columns["core passes"] = lambda row: f"{row['passes']:.0f}"
    automatic, carried = depth["automatic"], depth["carried"]
    fixed = depth.get("fixed", []) if depth["carry_state"] else []  # beside auto, which carries its state too
    rows = [*depth["by_iterations"], *fixed, automatic["outcome"]]
    if "teacher" in depth:  # few steps are what a student is for
        told = {row["setting"] for row in rows}
        rows += [*(row for row in depth["matrix"] if row["setting"] not in told), depth["teacher"] | {"setting": f"its teacher, {depth['teacher']['setting']}"}]
    table = "\n".join(f"| {row['setting']} | " + " | ".join(show(row) for show in columns.values()) + " |" for row in rows)
    as_good = "draws as many scenes right" if automatic["outcome"].get("right") else "comes as near to real pictures"
    auto_share = (f"it spends {automatic['share_of_fixed']:.0%} of the core passes of the cheapest fixed depth that {as_good}" if automatic["equal"] else
                  f"it spends {automatic['share_of_fixed']:.0%} of the core passes of the cheapest good fixed depth, but its pictures are not as good")
    looked = automatic["outcome"].get("kid"), depth["cheapest_fixed"].get("kid")
    look = f"; their kernel distances are {_interval(looked[0])} and {_interval(looked[1])}" if all(looked) and "kid" not in depth["by_iterations"][0] else ""
    efforts = ", ".join(f"{name} {steps} x {iterations}" for name, (steps, iterations) in depth["frontier"].items())
    return f"""By `python -m iris.evaluation depth RUN/pipeline{_exam(depth)} --json`, steps x iterations, {depth['pictures']['scenes of each kind']} held-out scenes of each kind and {depth['pictures']['samples']} samples, seed {depth['seed']}, guidance {depth['guidance_scale']:g}; each step from zero, but for those whose state is carried:

| setting | {" | ".join(columns)} |
|---|{"---|" * len(columns)}
{table}

Automatic depth stops at a relative change of {automatic['threshold']:g}; {auto_share}
({depth['cheapest_fixed']['setting']}), with a standard deviation of {automatic["outcome"]["spread"]:.1f} passes between pictures{look}. A state carried from step to step saves {max(0.0, carried['saved']):.0%} over {carried['num_steps']}
steps at equal quality{" and is this model's default" if depth["carry_state"] else ""}. Efforts that the demo offers, from the matrix of steps and iterations: {efforts}."""


def _changes(config: IRISConfig) -> str:
    """ " with generator.core_stride=1" where the model is not quite its preset."""
    model, named = config.to_dict(), preset(config.name).to_dict()
    changed = [f"{part}.{name}={value}" for part in ("autoencoder", "generator", "text") for name, value in model[part].items() if value != named[part][name]]
    return f" with {', '.join(changed)}" if changed else ""


_KNOWN = {"scenes": "scenes of coloured shapes", "emoji": "emoji that it has seen, and little of those it has not"}
_KERNEL = ("`kid` is the kernel distance of drawn to real pictures, `kid_null` that of two halves of the real ones (about 0, below it by chance), `kid_blur` that of slightly blurred ones; "
           "of `reconstruction` it is the autoencoder's.")
_ASKED = {"scenes": 'one to three objects: "a red circle", "two blue stars", "a small cyan cross above a large pink ring", "a green square and an orange triangle on a black background". Shapes, colours, sides and backgrounds are '
                    "those of `iris/data/scene_drawing.py`.",
          "emoji": 'an emoji by name and style: "red apple, fluent 3d emoji" (or "fluent flat emoji", "noto emoji", "twemoji emoji"; the styles that it saw stand below).'}
_READ = {"scenes": "`scenes.KIND.right` is the share of held-out captions of that kind whose every object the checker read back with the right colour and shape, "
                   "`scenes.KIND.colour` the share with the right colours, `scenes.relation.sides` the share on their right sides among those whose objects are right and stand on the axis asked for (chance: a half), "
                   "and `ceiling` what the autoencoder alone would allow. Kinds: `one` object, two in a `relation`, `many` (two or three alike), a `pair` or a `trio` of different ones.",
         "emoji": "`retrieval_SPLIT.top_5` is the share of drawn pictures whose own concept is among the five most alike in all art of the asked style; `held_out_pairs` are "
                  "concepts that were trained in another style only, and `ceiling` is what real art of that other style reaches; a model that has learned the very picture can pass it. `copies.copied` is the share of pictures drawn from "
                  "training captions that copy a training picture (three times nearer to it than to any other, after Yoon et al. 2023), `unseen_copied` that of real pictures that were never trained on."}


def model_card(pipe: IRISPipeline, name: str, quality: dict[str, Any], depth: dict[str, Any] | None = None, note: str = "") -> str:
    """The card's text, with the front matter that the Hub reads; `note` is what the recipes of the trainings do not tell."""
    training, defaults = pipe.metadata["training"], pipe.defaults
    trainings = [*training.get("before", []), {key: value for key, value in training.items() if key != "before"}]
    recipes = "\n".join(f"- {_told(part)}\n  Recipe: `{json.dumps(_recipe(part))}`" for part in trainings)
    rounded = "eight bits (the generator's matrices) and half precision (all else)" if pipe.metadata.get("eight_bits") else "half precision"
    weights = "on these weights" if quality.get("as_released") else f"on the run's weights before they were rounded to {rounded}"
    parts = {"generator": pipe.generator, "of that the shared core": pipe.generator.core, "autoencoder": pipe.autoencoder}
    rows = "\n".join(f"| {key} | {value} |" for key, value in _estimates(quality))
    measured = f"| figure | value (95 % interval) |\n|---|---|\n{rows}" if rows else "Not measured."
    return f"""---
license: apache-2.0
pipeline_tag: text-to-image
tags: [image-generation, rectified-flow, recurrent-depth, wavelet]
---

# {name}

An IRIS model of preset `{pipe.config.name}`{_changes(pipe.config)}: {pipe.image_size} px pictures from English prompts, drawn by a core whose weights are applied as often as you like.

```python
from iris import IRISPipeline

picture = IRISPipeline.from_pretrained("{name}")("{pipe.metadata.get("examples", ["a red circle"])[0]}", seed=0).images[0]
```

It reads {" and ".join(_ASKED[kind] for kind in _ASKED if kind in training["data"])}

![samples](samples.png)

Not picked: {"captions of the first 64 training pictures, which are shuffled" if "emoji" in training["data"] else "fixed prompts, seed 0"}, the default settings ({defaults.num_steps} steps x {defaults.num_iterations} iterations, guidance {defaults.guidance_scale:g}, {defaults.sampler}).

## Weights
{chr(10).join(f"- {part}: {parameter_count(module) / 1e6:.2f} M parameters" for part, module in parts.items())}
- stored in {rounded}
- text encoder, not included: {pipe.config.text.encoder}, {pipe.config.text.max_tokens} tokens

## Data and licences
The generator saw:
{chr(10).join(f"- {line}" for line in data_lines(seen_by_generator(training)))}

The autoencoder saw:
{chr(10).join(f"- {line}" for line in data_lines(training["autoencoder_data"]))}

Text states come from all-MiniLM-L6-v2 (Apache-2.0); the autoencoder's perceptual loss used EfficientNet-lite0 (Apache-2.0).

## Recipe and cost
{sum(part["images_seen"] for part in trainings):,} pictures seen in {sum(part["minutes"] for part in trainings):.0f} minutes{", each training from the averaged weights of the one before" if len(trainings) > 1 else ""}:

{recipes}
{f"{chr(10)}{note}{chr(10)}" if note else ""}
## Measured
On held-out data (`retrieval_train`: on captions of the training), by `python -m iris.evaluation quality RUN/pipeline{_settings(quality or {})} --json`{f" (seed {quality['seed']}; {_sizes(quality)})" if quality else ""},
{weights}.

{measured}

## Thinking longer
{_thinking(depth or {})}

## Limits
It knows {" and ".join(_KNOWN[kind] for kind in _KNOWN if kind in training["data"])}, at {pipe.image_size} px, and nothing else. How far to trust a prompt is in the table:
{_KERNEL}
{chr(10).join(_READ[kind] for kind in _READ if kind in training["data"])}
"""


def _tells_of_depth(card: Path) -> bool:
    return not card.is_file() or f"## Thinking longer\n{_thinking({})}" not in card.read_text()


def release(
    run: Annotated[Path, typer.Argument(help="a trained pipeline folder")],
    folder: Annotated[Path, typer.Argument(help="where the released model goes, such as demo/models/iris-scenes")],
    quality: Annotated[Path | None, typer.Option(help="JSON of `python -m iris.evaluation quality RUN/pipeline --json`")] = None,
    depth: Annotated[Path | None, typer.Option(help="JSON of `python -m iris.evaluation depth RUN/pipeline --json`; sets the exit threshold and the efforts")] = None,
    num_steps: Annotated[int | None, typer.Option(help="default solver steps; the run's own by default")] = None,
    num_iterations: Annotated[int | None, typer.Option(help="default core iterations; the run's own by default")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="default guidance; the run's own by default")] = None,
    autoencoder_data: Annotated[str, typer.Option(help="what the autoencoder was trained on, for a run that does not tell")] = "",
    eight_bits: Annotated[bool | None, typer.Option("--eight-bits/--half", help="store the generator's matrices in eight bits; a release over itself keeps what it is")] = None,
    note: Annotated[str, typer.Option(help="what the card's recipes do not tell, such as a change of the weights by hand")] = "",
    sampler: Annotated[str | None, typer.Option(help="default sampler: euler, heun or consistency; the run's own by default")] = None,
) -> None:
    """Write the released model, its card and its sample sheet; all of them, or nothing changes."""
    pipe = IRISPipeline.from_pretrained(run)
    kept = pipe.metadata.get("figures", {})
    if run.resolve() == folder.resolve() and not kept and not (quality and note and (depth or not _tells_of_depth(folder / "README.md"))):
        raise typer.BadParameter(f"{folder} tells its figures on its card alone; give --quality, --depth and --note again, or they are lost.")
    figures, thinking = (_read(file) if file else kept.get(name, {}) for name, file in (("quality", quality), ("depth", depth)))
    for name, told in (("quality", figures if quality else {}), ("depth", thinking if depth else {})):
        if (told.get("model_hash") or pipe.metadata["hash"]) != pipe.metadata["hash"]:
            raise typer.BadParameter(f"--{name} measures another model than {run}: its hash is {told['model_hash']}, that of {run} {pipe.metadata['hash']}.")
    if figures.get("parameters", {}).get("int8"):
        raise typer.BadParameter("--quality was measured with --int8, which is not how these weights are stored; measure it without.")
    sampler = sampler or thinking.get("sampler")
    if thinking.get("sampler", sampler) != sampler:
        raise typer.BadParameter(f"--depth was measured with the sampler {thinking['sampler']}, and so were its efforts; measure it with --sampler {sampler}.")
    note = note or kept.get("note", "")
    pipe.metadata["figures"] = {"quality": figures, "depth": thinking, "note": note}
    chosen = {"num_steps": num_steps, "num_iterations": num_iterations, "guidance_scale": guidance_scale, "sampler": sampler,
              "exit_threshold": thinking.get("automatic", {}).get("threshold"), "carry_state": thinking.get("carry_state"), "timestep_shift": thinking.get("timestep_shift")}
    pipe.defaults = replace(pipe.defaults, **{key: value for key, value in chosen.items() if value is not None})
    training = pipe.metadata["training"]
    source, training["autoencoder_data"] = training["data"], autoencoder_data or training.get("autoencoder_data", "")
    for part in (seen_by_generator(training), training["autoencoder_data"]):
        data_lines(part)  # refuse before anything is written
    if thinking:
        pipe.metadata["frontier"] = thinking["frontier"]
        if "right" in thinking["by_iterations"][0]:
            pipe.metadata["by_iterations"] = {row["num_iterations"]: round(row["right"]["every"]["value"], 4) for row in thinking["by_iterations"]}
    if eight_bits is not None:
        pipe.metadata["eight_bits"] = eight_bits
    stored, measured = ("generator",) if pipe.metadata.get("eight_bits") else (), _weights_of(pipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as home:
        draft = Path(home) / "model"
        pipe.save_pretrained(draft, eight_bits=stored)
        pipe = IRISPipeline.from_pretrained(draft, text_path=pipe.config.text.path)  # the sheet shows what is released, rounding included
        if figures:
            as_before = _weights_of(pipe) == measured and (bool(quality) or figures.get("as_released", False))
            pipe.metadata["figures"]["quality"] = figures = figures | {"as_released": as_before}
        prompts, images, pipe.metadata["examples"] = contact_sheet(pipe, source)
        save_figure(image_grid(images, prompts, columns=8), draft / "samples.png", dpi=100)
        (draft / "README.md").write_text(model_card(pipe, folder.as_posix(), figures, thinking, note), encoding="utf-8")
        pipe.save_pretrained(folder, eight_bits=stored)
        for name in ("samples.png", "README.md"):
            os.replace(draft / name, folder / name)
    typer.echo(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def _read(file: Path) -> dict[str, Any]:
    """The figures that `python -m iris.evaluation ... --json` printed into a file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}; write it with python -m iris.evaluation quality (or depth) MODEL --json > {file.name}.") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file} holds no figures.")
    return found


def _weights_of(pipe: IRISPipeline) -> tuple[str, str]:
    return weights_digest(pipe.generator), weights_digest(pipe.autoencoder)


if __name__ == "__main__":
    try:
        typer.run(release)
    except ValueError as error:  # every error of iris that is meant for people is one
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
