"""One picture from the command line:

    python -m iris "a red circle" -o circle.png
    python -m iris "red apple" --model demo/models/iris-tiny-emoji --seed 7 --num-iterations auto
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iris.places import SHIPPED


def main(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the picture to write, .png, .webp or .jpg")] = Path("picture.png"),
    model: Annotated[str, typer.Option(help="a model folder or hub id")] = SHIPPED,
    negative_prompt: Annotated[str | None, typer.Option(help="what not to draw; needs a guidance scale other than 1")] = None,
    num_steps: Annotated[int | None, typer.Option(help="solver steps, 1 to 100; the model's own by default")] = None,
    num_iterations: Annotated[str | None, typer.Option(help="core iterations a step, 1 to 64, or auto; the model's own by default")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="how strictly to follow the prompt, 0 to 20, 1 is off; the model's own by default")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed draws the same picture; a random one by default, which is told")] = None,
) -> None:
    """Draw a picture from a sentence."""
    if output.suffix.lower() not in (".png", ".webp", ".jpg", ".jpeg") or not output.absolute().parent.is_dir():
        raise ValueError(f"the picture cannot go to {output}; name a .png, .webp or .jpg file in a folder that is there.")
    from iris.pipeline import IRISPipeline

    depth = int(num_iterations) if num_iterations and num_iterations.lstrip("-").isdigit() else num_iterations
    drawn = IRISPipeline.from_pretrained(model)(prompt, negative_prompt, num_steps, depth, guidance_scale, seed)
    drawn.images[0].save(output)
    typer.echo(f"{output}: seed {drawn.seeds[0]}, {sum(drawn.iterations[0])} iterations in {len(drawn.iterations[0])} steps, {drawn.seconds:.2f} s")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ValueError, OSError) as error:  # every error of iris that is meant for people is a ValueError; a full disk
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
