"""python -m iris.runtime FOLDER "red apple" -o apple.png: one picture, without torch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, draw, write; a mistake is one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m iris.runtime", description=__doc__)
    parser.add_argument("folder", help="what python -m iris.export wrote")
    parser.add_argument("prompt", help="what to draw, up to 1000 characters")
    parser.add_argument("-o", "--output", type=Path, default=Path("picture.png"), help="the PNG to write (default: picture.png)")
    parser.add_argument("--num-steps", type=int, help="solver steps, 1 to 100; the model's own by default")
    parser.add_argument("--num-iterations", type=int, help="core iterations a step, 1 to 64; the model's own by default. Deciding them automatically needs torch")
    parser.add_argument("--guidance-scale", type=float, help="how strictly to follow the prompt, 0 to 20, 1 is off; the model's own by default")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2147483647; the same seed draws the same picture")
    parser.add_argument("--threads", type=int, default=0, help="1 to 1024; 0: as many as onnxruntime likes")
    parser.add_argument("--json", action="store_true", help="print seconds and the peak memory of this process as JSON")
    given = parser.parse_args(arguments)
    if given.output.suffix.lower() != ".png" or not given.output.absolute().parent.is_dir():
        print(f"Error: the picture cannot go to {given.output}; name a .png file in a folder that is there.", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        from iris.runtime.generate import OnnxPipeline
        from iris.runtime.png import png_bytes

        pictures = OnnxPipeline(given.folder, given.threads)(given.prompt, given.num_steps, given.num_iterations, given.guidance_scale, given.seed)
        given.output.write_bytes(png_bytes(pictures[0]))
    except ModuleNotFoundError as error:
        print(f"Error: {error.name} is not installed; run: pip install numpy onnxruntime tokenizers.", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    facts = {"output": str(given.output), "seconds": round(time.monotonic() - started, 3), "peak_bytes": _peak_bytes()}
    peak = "" if facts["peak_bytes"] is None else f", {facts['peak_bytes'] / 1e6:.0f} MB at the peak"
    print(json.dumps(facts) if given.json else f"{given.output}: {facts['seconds']:.2f} s{peak}")
    return 0


def _peak_bytes() -> int | None:
    """The highest resident memory of this process; None where the system does not tell (Windows)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:
            return None
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024


if __name__ == "__main__":
    sys.exit(main())
