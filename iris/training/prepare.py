"""What comes before a stage: its configuration, its pictures, its recipe, its run folder and the model it starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris.checkpoint import CheckpointError, read_checkpoint, resolve_folder
from iris.config import ConfigError, IRISConfig, changed, preset
from iris.data import ImageDataset, load_dataset_by_name
from iris.data.base import fingerprint, placeless
from iris.places import CLONE, find_model, is_of_a_stage, mirror_of
from iris.runs import METRICS_FILE, Run, RunError, newest_step
from iris.training.loop import OnLog, TrainConfig
from iris.training.stages import train_autoencoder


def configure(name: str, image_size: int = 0, changes: Collection[str] = (), init: str | Path = "") -> IRISConfig:
    """The preset called `name`, for pictures of `image_size` pixels (0: the preset's own), with `changes` such as "generator.mixer=attention".

    With a model folder or hub id `init` its own configuration stands for the preset, if that is the one it was made from: an
    older release is trained on as it was built. Without a `name` it is `init`'s, or "micro". Raises ConfigError when they do not fit.
    """
    theirs = IRISConfig.from_dict(read_checkpoint(resolve_folder(init), []).config) if init else None
    base = theirs if theirs is not None and theirs.name == (name or theirs.name) else preset(name or "micro")
    overrides = dict(map(_read_change, changes))
    if image_size:
        overrides |= {"autoencoder__image_size": image_size, "generator__latent_size": image_size // base.autoencoder.downsample}
    return changed(base, **overrides)


def _read_change(text: str) -> tuple[str, Any]:
    """ "generator.core_stride=1" -> ("generator__core_stride", 1); what is no JSON value is a word."""
    key, is_said, value = text.partition("=")
    part, has_dot, name = key.partition(".")
    if not (is_said and has_dot and name):
        raise ConfigError(f"{text!r} changes nothing; write part.field=value, such as generator.mixer=attention.")
    try:
        return f"{part}__{name}", json.loads(value)
    except ValueError:
        return f"{part}__{name}", value


def load_pictures(data: str, config: IRISConfig, limit: int = 0, held_out_limit: int = 500) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out pictures of the source `data` at the configuration's size; limits of 0 take all there are."""
    size = config.autoencoder.image_size
    return (load_dataset_by_name(data, size, "train", limit or None), load_dataset_by_name(data, size, "held_out", held_out_limit or None))


def plan_training(train_steps: int, minutes: float, batch_size: int, learning_rate: float, precision: str = "auto", seed: int = 0,
                  optimizer: str = "muon", compile: bool = False, decay_share: float = 0.5) -> TrainConfig:
    """A TrainConfig whose warm-up, logging and evaluation suit its length: 5 % warm-up up to 200 steps, 200 rows, at most 20 evaluations."""
    return TrainConfig(train_steps=train_steps, minutes=minutes, batch_size=batch_size, learning_rate=learning_rate, precision=precision, seed=seed,
                       optimizer=optimizer, compile=compile, decay_share=decay_share,
                       warmup_steps=min(200, max(1, train_steps // 20)), log_every=min(50, max(1, train_steps // 200)),
                       eval_every=max(10, train_steps // 20))


def open_run(folder: str | Path, config: IRISConfig, train: TrainConfig, data: str, start_over: bool = False, mirror: str | Path = "",
             loss_options: dict[str, Any] | None = None) -> Run:
    """Open the run folder of a stage; the same recipe continues there, another one is refused unless `start_over`.

    mirror: a second folder to keep a copy in. Without one the environment variable IRIS_MIRROR (a mounted Drive, say) gives
    each run a folder of its own there, so that notebooks need no further parameter.
    """
    # That pictures at another place are the same ones, the stage makes sure of (`Run.settle`).
    decides: dict[str, Any] = {"model": config.to_dict(), "data": placeless(data), "recipe": train.recipe()}
    if loss_options:
        decides["loss"] = loss_options
    mirror = mirror or mirror_of(folder) or ""
    try:
        return Run.open(folder, decides, resume=not start_over, mirror=mirror, take_over=True)
    except RunError:
        if start_over or not (_learned_nothing(folder) and (not mirror or _learned_nothing(mirror))):
            raise
    return Run.open(folder, decides, resume=False, mirror=mirror, take_over=True)


def _learned_nothing(folder: str | Path) -> bool:
    """Whether a run ended before its first step, as where memory ran out: a mended recipe may take its place."""
    return newest_step(Path(folder)) <= 0 and not any((Path(folder) / name).exists() for name in ("pipeline", METRICS_FILE))


@dataclass(frozen=True)
class Start:
    """The model folder that a stage begins with, and in one sentence why this one."""

    folder: Path
    why: str


def first_model(*candidates: str) -> str:
    """The first of `candidates` that is a model here, in a notebook's clone or in the mirror, or a hub id for all that can be told; "" where there is none.

    RUN/pipeline of a stage that was not run is passed over; any other name that leads nowhere is a CheckpointError.
    """
    for name in filter(None, candidates):
        if found := find_model(name):
            return found
        if not is_of_a_stage(name):
            raise CheckpointError(f"there is no model in {name}, nor below {CLONE} or the mirror; give a model folder or a hub id such as owner/name.")
    return ""


def named_model(name: str) -> str:
    """The model that a person named, or "" where none was; a CheckpointError where there is none of that name, also for a RUN/pipeline."""
    found = first_model(name)
    if name and not found:
        raise CheckpointError(f"there is no model in {name}, nor below {CLONE} or the mirror; run the stage that leaves it, or give another folder or a hub id.")
    return found


def find_start(candidates: list[str], config: IRISConfig, needs: tuple[str, ...]) -> Start | None:
    """The first of `candidates` (folders or hub ids) that is a model with the parts in `needs`; None where there is none.

    A folder that is not there is passed over, and named in the reason; so is a model that lacks a part. One that is there has to be of
    this configuration, or hours would go into another start than the one that was named: CheckpointError, as for a damaged one.
    """
    missing = []
    for candidate in filter(None, candidates):
        if not (name := find_model(candidate)):
            missing.append(candidate)
            continue
        folder = resolve_folder(name)
        stored = read_checkpoint(folder)
        if not set(needs) <= set(stored.tensors):
            continue
        theirs = IRISConfig.from_dict(stored.config)
        for part in dict.fromkeys(("autoencoder", *needs)):
            if not config.fits(part, theirs):
                raise CheckpointError(f"the {part} in {name} is that of {theirs.name} at {theirs.autoencoder.image_size} px, not of {config.name} at "
                                      f"{config.autoencoder.image_size} px as it is set here; change preset or image_size, or leave that model out.")
        absent = f" There is no model in {' nor in '.join(missing)}." if missing else ""
        return Start(folder, f"starting from {name}, {' and '.join(sorted(stored.tensors))}.{absent}")
    return None


def start_with_autoencoder(candidates: list[str], config: IRISConfig, data: tuple[ImageDataset, ImageDataset], train: TrainConfig,
                           folder: str | Path, watch: Callable[[Run], OnLog] | None = None, start_over: bool = False) -> Start:
    """The first usable candidate; where there is none, an autoencoder trained here and now, in `folder`, by the recipe `train`.

    So a stage can be run alone, in an empty folder too. One that an earlier session finished there is taken as it is: what the generator
    learned since is worth nothing to another autoencoder; so it also goes before an earlier stage's model that was not there then. A model
    that is there has to fit, and one that was named, and is no RUN/pipeline, has to be there: a CheckpointError says so before any
    training. `watch` makes the `on_log` of that training from its run. Stage 5 needs a teacher instead: `require_generator`.
    """
    first_model(*candidates)
    own = "" if start_over else find_model(str(Path(folder) / "pipeline"))
    named_ones, of_stages = ([name for name in candidates if is_of_a_stage(name) is staged] for staged in (False, True))
    found = find_start([*named_ones, own, *of_stages], config, ("autoencoder",))
    if found is not None and str(found.folder) != own:
        return found
    named = " or ".join(filter(None, candidates))
    with open_run(folder, config, train, data[0].name, start_over) as run:
        if (run.pipeline_path / "manifest.json").is_file():
            run.settle(pictures=fingerprint(data[0]))  # of other pictures it would be another stage's
            return Start(run.pipeline_path, f"going on with the autoencoder in {run.pipeline_path}; start_over trains another.")
        print(f"No earlier stage{f' in {named}' if named else ''}: an autoencoder is trained first.")
        watcher = watch(run) if watch else None
        result = train_autoencoder(config, *data, train, run, on_log=watcher)
        if hasattr(watcher, "close"):
            watcher.close()  # a curve shows its end too, and a short training's one at all
    return Start(result.pipeline_path, f"no earlier stage was found, so an autoencoder was trained for {result.summary['step']:,} steps first.")


def require_generator(candidates: list[str], config: IRISConfig) -> Start:
    """The first candidate with autoencoder and generator; CheckpointError when there is none."""
    found = find_start(candidates, config, ("autoencoder", "generator"))
    if found is None:
        raise CheckpointError(f"none of {', '.join(filter(None, candidates))} holds a {config.name} model with a generator; run the earlier stages first.")
    return found
