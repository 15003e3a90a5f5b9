"""Measuring from the command line:

    python -m iris.evaluation quality demo/models/NAME --json
    python -m iris.evaluation depth demo/models/NAME --json
    python -m iris.evaluation footprint tiny --json
    python -m iris.evaluation speed --against pixart,taesd --json

Progress goes to stderr, so the JSON can be piped.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Model = Annotated[str, typer.Argument(help="a checkpoint folder or hub id; for footprint also nano, micro, tiny, small or base")]
Shift = Annotated[float | None, typer.Option(help="of the steps' times: below 1 finer near the finished picture; the model's default by default")]
Sampler = Annotated[str | None, typer.Option(help="euler, heun or consistency; the model's default by default")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of lines")]


@app.command()
def quality(
    model: Model,
    json_: AsJson = False,
    data: Annotated[str, typer.Option(help="data source, such as scenes, emoji:all or scenes+emoji; the model's own by default")] = "",
    scenes: Annotated[int, typer.Option(min=0, help="held-out scenes of each kind")] = 64,
    pictures: Annotated[int, typer.Option(min=0, help="held-out pictures to reconstruct")] = 256,
    samples: Annotated[int, typer.Option(min=0, help="pictures drawn for the kernel distance")] = 512,
    retrieved: Annotated[int, typer.Option(min=0, help="pictures drawn for retrieval, of each split")] = 64,
    copies: Annotated[int, typer.Option(min=0, help="pictures drawn from training captions, to look for copies")] = 64,
    num_steps: Annotated[int | None, typer.Option(help="solver steps; the model's default by default")] = None,
    num_iterations: Annotated[str | None, typer.Option(help="core iterations, or auto; the model's default by default")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="guidance; the model's default by default")] = None,
    carry_state: Annotated[bool | None, typer.Option("--carry-state/--fresh-state", help="where each step's core starts; the model's default by default")] = None,
    timestep_shift: Shift = None,
    sampler: Sampler = None,
    int8: Annotated[bool, typer.Option("--int8", help="with linear layers in 8 bits, as iris.quantize makes them, on a CPU")] = False,
    seed: int = 0,
    batch_size: Annotated[int, typer.Option(min=1, max=64)] = 16,
) -> None:
    """Reconstruction, scenes read back from pixels, kernel distance of samples, retrieval, copies of training pictures; 0 leaves a part out."""
    def measure() -> dict[str, Any]:
        from iris.evaluation.drawing import usual_device
        from iris.evaluation.quality import measure_quality, to_plain
        from iris.pipeline import IRISPipeline
        from iris.quantize import quantize_dynamic

        depth = int(num_iterations) if num_iterations and num_iterations.isdigit() else num_iterations
        pipe = quantize_dynamic(IRISPipeline.from_pretrained(model, "cpu")) if int8 else IRISPipeline.from_pretrained(model, usual_device())
        found = to_plain(measure_quality(pipe, data, scenes, pictures, samples, retrieved, copies, seed, batch_size,
                                         num_steps=num_steps, num_iterations=depth, guidance_scale=guidance_scale, carry_state=carry_state,
                                         timestep_shift=timestep_shift, sampler=sampler))
        return found | {"parameters": found["parameters"] | ({"int8": True} if int8 else {})}

    _report(measure, json_)


@app.command()
def depth(
    model: Model,
    json_: AsJson = False,
    data: Annotated[str, typer.Option(help="data source; the model's own by default")] = "",
    count: Annotated[int, typer.Option(min=0, help="held-out scenes of each kind, for a model that knows scenes")] = 64,
    samples: Annotated[int, typer.Option(min=0, help="pictures drawn for the kernel distance at every setting; 0 leaves it out")] = 0,
    looks: Annotated[int, typer.Option(min=0, help="pictures drawn for the kernel distance of automatic depth and its fixed one alone, for a model that knows scenes")] = 0,
    num_steps: Annotated[int | None, typer.Option(min=1, help="solver steps while iterations vary; 12 by default, 4 of a student")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="guidance; the model's default by default")] = None,
    timestep_shift: Shift = None,
    sampler: Sampler = None,
    teacher: Annotated[str, typer.Option(help="the model that a student learned from: its 32 steps x 8 iterations beside the rest")] = "",
    seed: int = 0,
    batch_size: Annotated[int, typer.Option(min=1, max=64)] = 16,
) -> None:
    """Quality by iterations, steps against iterations, automatic depth (its threshold calibrated) and the carried state."""
    def measure() -> dict[str, Any]:
        from iris.evaluation.depth import measure_depth
        from iris.evaluation.drawing import usual_device
        from iris.pipeline import IRISPipeline

        return measure_depth(IRISPipeline.from_pretrained(model, usual_device()), count, samples, data, seed, batch_size, num_steps, guidance_scale=guidance_scale,
                             teacher=IRISPipeline.from_pretrained(teacher, usual_device()) if teacher else None, looks=looks, timestep_shift=timestep_shift, sampler=sampler)

    _report(measure, json_)


@app.command()
def footprint(
    model: Model,
    json_: AsJson = False,
    memory: Annotated[bool, typer.Option(help="also measure whole processes: some seconds each")] = True,
    exported: Annotated[str, typer.Option(help="a folder that python -m iris.export wrote: also measure the process without torch")] = "",
    num_steps: Annotated[int, typer.Option(min=1, help="solver steps of the picture whose memory is measured")] = 4,
    num_iterations: Annotated[int, typer.Option(min=1, help="core iterations of that picture")] = 8,
) -> None:
    """Parameters, bytes and FLOPs by part, and the peak memory of fresh processes with, without and of only the text encoder."""
    def measure() -> dict[str, Any]:
        from dataclasses import asdict

        from iris.evaluation.footprint import measure_footprint, peak_memory, runtime_memory

        result = measure_footprint(model).to_dict()
        if memory:
            result["process_memory"] = {f"{text}_text_encoder": asdict(peak_memory(model, num_steps, num_iterations, text))
                                        for text in ("with", "without", "only")}
        if exported:
            result["runtime_peak"] = runtime_memory(exported, num_steps, num_iterations)
        return result

    _report(measure, json_)


@app.command()
def speed(
    model: Annotated[str, typer.Option(help="nano, micro, tiny, small or base, with random weights")] = "tiny",
    against: Annotated[str, typer.Option(help="peers, separated by commas: pixart, sana, dit, unet, taesd")] = "",
    parts: Annotated[str, typer.Option(help="forward, picture, growth, mixer, training, codec, ceiling; all by default")] = "",
    json_: AsJson = False,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; long calls are measured in a part of them")] = 9,
    threads: Annotated[int, typer.Option(min=0, help="threads of torch; 0 keeps its own number")] = 0,
    clock: Annotated[str, typer.Option(help="wall, or cpu: the time of this process alone, for a machine that others use (threads 1)")] = "wall",
    batch: Annotated[int, typer.Option(min=1, help="pictures of a training step")] = 4,
) -> None:
    """IRIS beside other architectures in one process, in units of a 1024^3 matrix product (1 eq), with quartiles."""
    def measure() -> dict[str, Any]:
        from iris.evaluation.speed import measure_speed

        names, wanted = ([word for word in text.replace(" ", "").split(",") if word] for text in (against, parts))
        return measure_speed(model, names, wanted, repeats, threads, clock, batch)

    _report(measure, json_)


def _report(measure: Any, as_json: bool) -> None:
    """Print what was measured; what a person can mend is said in one sentence, with exit status 2."""
    try:
        result = measure()
    except ValueError as error:   # every error of iris that is meant for people is one
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(json.dumps(result, indent=2, allow_nan=False) if as_json else "\n".join(_lines(result)))


def _lines(value: Any, path: str = "") -> list[str]:
    """One line a figure: its path, its value and, in brackets, its interval."""
    if isinstance(value, dict) and set(value) == {"value", "interval"}:
        low, high = value["interval"]
        return [f"{path}: {_number(value['value'])} [{_number(low)} .. {_number(high)}]"]
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _lines(item, f"{path}.{key}" if path else key)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [line for number, item in enumerate(value) for line in _lines(item, f"{path}.{item.get('setting', number)}")]
    return [f"{path}: {_number(value)}"]


def _number(value: Any) -> str:
    return f"{value:,}" if type(value) is int else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app()
