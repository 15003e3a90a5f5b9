"""What a visitor asks for: values from a browser or an API client, checked here before the model sees them.

Gradio checks slider bounds only for the page and lets any JSON value through its API, so every field arrives as
`object`. The limits are tighter than the pipeline's: they bound what one visitor of a shared server can cost.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass, replace
from typing import Any

from iris.sampling import MAX_AUTOMATIC
from iris.text import clean_prompt

MAX_SEED = 2**31 - 1
STEPS = (1, 32)
ITERATIONS = (1, 32)
GUIDANCE = (0.0, 10.0)


class RequestError(ValueError):
    """A request that cannot be drawn; the message is one sentence that names the field and what is allowed."""


@dataclass(frozen=True)
class GenerationRequest:
    """One picture: `seed` None means random, `num_iterations` is a number or "auto"."""

    prompt: str
    negative_prompt: str = ""
    seed: int | None = None
    num_steps: int = 4
    num_iterations: int | str = 8
    guidance_scale: float = 1.0

    @classmethod
    def parse(
        cls, prompt: object, negative_prompt: object, seed: object, num_steps: object, num_iterations: object, guidance_scale: object,
    ) -> GenerationRequest:
        """Check untrusted values; raises RequestError, or PromptError from `iris.text`."""
        prompt = clean_prompt(prompt)
        if not prompt:
            raise RequestError("Write a prompt first: say what to draw.")
        return cls(
            prompt=prompt,
            negative_prompt=clean_prompt("" if negative_prompt is None else negative_prompt),
            seed=None if seed is None else whole_number("seed", seed, 0, MAX_SEED),
            num_steps=whole_number("num_steps", num_steps, *STEPS),
            num_iterations="auto" if num_iterations == "auto" else whole_number("num_iterations", num_iterations, *ITERATIONS, other="auto"),
            guidance_scale=number("guidance_scale", guidance_scale, *GUIDANCE),
        )

    def with_seed(self) -> GenerationRequest:
        """The same request with its seed settled, so that it can be told and repeated."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(MAX_SEED + 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def arguments(self) -> dict[str, Any]:
        """The arguments of the pipeline and its probes.

        Without guidance nothing is steered away from, so what the field of the negative prompt holds is not used, and not told with the picture.
        """
        return {**self.to_dict(), "negative_prompt": self.negative_prompt if self.guidance_scale != 1 else None}

    @property
    def guidance_factor(self) -> int:
        """Network calls per step: guidance other than 1 needs the unconditional prediction too."""
        return 1 if self.guidance_scale == 1 else 2

    @property
    def max_core_passes(self) -> int:
        """The most core passes this request can spend."""
        iterations = MAX_AUTOMATIC if self.num_iterations == "auto" else int(self.num_iterations)
        return self.num_steps * iterations * self.guidance_factor


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float in [low, high]; strings, booleans, NaN and infinities are refused."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RequestError(f"{name} is {_shown(value)}; use a number from {low:g} to {high:g}.")
    return float(value)


def whole_number(name: str, value: object, low: int, high: int, other: str = "") -> int:
    """`value` as an int in [low, high]; 4.0 (a slider's JSON) passes, 1.7, "4" and True do not."""
    # The bounds come first: they also refuse NaN and infinities, which int() could not take.
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not low <= value <= high or value != int(value):
        alternative = f' or "{other}"' if other else ""
        raise RequestError(f"{name} is {_shown(value)}; use a whole number from {low} to {high}{alternative}.")
    return int(value)


def _shown(value: object) -> str:
    """A value inside a sentence: short, and on one line."""
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else text[:37] + "..."
