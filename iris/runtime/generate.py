"""An exported model: text graph, then prelude, core x num_iterations and coda for each solver step, then the decoder.

Only the graphs that a moment needs are loaded when memory matters: the text encoder is released once a prompt is read, and
what was read stays (a few tens of kilobytes), so a prompt costs its encoder once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from iris.prompts import PromptError, clean_prompt, spell_emoji, without_control
from iris.runtime.layout import FORMAT, GRAPHS, MODEL_FILE, SAMPLERS, TOKENIZER_FILE
from iris.runtime.noise import NOISE, RENOISE, standard_normal, stream

LIMITS = {"num_steps": (1, 100), "num_iterations": (1, 64), "guidance_scale": (0.0, 20.0), "seed": (0, 2**31 - 1), "threads": (0, 1024)}
MAX_REMEMBERED = 64
Arrays = dict[str, np.ndarray]


class RuntimeFailure(ValueError):
    """A folder or an argument that cannot be used; the message says what is allowed."""


class OnnxPipeline:
    """`OnnxPipeline(folder)("red apple", seed=7)` -> uint8 [B, H, W, 3]."""

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self.model = _read_header(self.folder)
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = _checked("threads", threads, whole=True)
        self.options.log_severity_level = 3
        self.options.enable_cpu_mem_arena = False  # the arena keeps a peak that comes once
        self.options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread leaves its core to others
        self._kept: dict[str, onnxruntime.InferenceSession] = {}
        self._read: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    # --- graphs ----------------------------------------------------------------------------------------------------

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        try:
            return onnxruntime.InferenceSession(str(self.folder / GRAPHS[name]), self.options, providers=["CPUExecutionProvider"])
        except Exception as error:   # the library has its own exception for every way a file can be wrong
            raise RuntimeFailure(f"{self.folder / GRAPHS[name]} is missing or damaged; export the model again.") from error

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """One graph on named arrays; its session stays loaded."""
        session = self._kept.get(name)
        if session is None:
            session = self._kept[name] = self._session(name)
        names = [item.name for item in session.get_outputs()]
        try:
            wanted = {item.name: inputs[item.name] for item in session.get_inputs()}   # a graph drops inputs that it does not read
            return dict(zip(names, session.run(names, wanted), strict=True))
        except Exception as error:   # as in _session: a graph of another export asks for other inputs, or other shapes
            raise RuntimeFailure(f"{self.folder / GRAPHS[name]} does not fit the other graphs there; export the model again.") from error

    # --- text ------------------------------------------------------------------------------------------------------

    def states(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token states [B, L, D] and mask [B, L]; the text encoder is loaded for prompts not read before, and released."""
        texts = [spell_emoji(without_control(clean_prompt(prompt))) for prompt in prompts]
        new = [text for text in dict.fromkeys(texts) if text not in self._read]
        if new:
            tokens = self._tokenizer().encode_batch(new)
            ids = np.array([token.ids for token in tokens], dtype=np.int64)
            mask = np.array([token.attention_mask for token in tokens], dtype=np.int64)
            states = self._session("text_encoder").run(None, {"input_ids": ids, "attention_mask": mask})[0]
            read = self._read | {text: (states[row], mask[row].astype(bool)) for row, text in enumerate(new)}
            self._read = read if len(read) <= MAX_REMEMBERED else {text: read[text] for text in texts[-MAX_REMEMBERED:]}
        else:
            read = self._read
        rows = [read[text] for text in texts]
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])

    def _tokenizer(self) -> Tokenizer:
        try:
            return Tokenizer.from_file(str(self.folder / TOKENIZER_FILE))
        except Exception as error:   # the library raises nothing more particular
            raise RuntimeFailure(f"{self.folder / TOKENIZER_FILE} is missing or damaged; export the model again.") from error

    # --- pictures --------------------------------------------------------------------------------------------------

    def __call__(self, prompt: str | Sequence[str], num_steps: int | None = None, num_iterations: int | None = None,
                 guidance_scale: float | None = None, seed: int | Sequence[int] = 0) -> np.ndarray:
        """Pictures [B, H, W, 3], uint8; arguments left out are the model's defaults. Raises RuntimeFailure or PromptError."""
        latents = self.latents(prompt, num_steps, num_iterations, guidance_scale, seed)
        images = self.run("decoder", {"latents": latents})["images"]
        return np.rint((images.transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255).astype(np.uint8)

    def latents(self, prompt: str | Sequence[str], num_steps: int | None = None, num_iterations: int | None = None,
                guidance_scale: float | None = None, seed: int | Sequence[int] = 0) -> np.ndarray:
        """The clean latents [B, C, h, w] that `__call__` decodes."""
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        if not prompts:
            raise PromptError("no prompt was given; give one or more.")
        defaults = self.model["defaults"]
        steps = _checked("num_steps", defaults["num_steps"] if num_steps is None else num_steps, whole=True)
        depth = _checked("num_iterations", defaults["num_iterations"] if num_iterations is None else num_iterations, whole=True)
        scale = _checked("guidance_scale", defaults["guidance_scale"] if guidance_scale is None else guidance_scale)
        seeds = [_checked("seed", value, whole=True) for value in (seed if isinstance(seed, (list, tuple, np.ndarray)) else [seed] * len(prompts))]
        if len(seeds) != len(prompts):
            raise RuntimeFailure(f"{len(seeds)} seeds were given for {len(prompts)} pictures; give one a picture, or a single one.")
        if defaults["sampler"] not in SAMPLERS:
            raise RuntimeFailure(f"this model samples with {defaults['sampler']!r}; the runtime knows {', '.join(SAMPLERS)}.")
        context = self._context(prompts, guided=scale != 1.0)
        return self._solve(context, seeds, steps, depth, scale, defaults["sampler"], bool(defaults.get("carry_state")), float(defaults.get("timestep_shift", 1.0)))

    def _context(self, prompts: list[str], guided: bool) -> Arrays:
        """Keys and values of the text; with guidance a second half of null captions."""
        states, mask = self.states(prompts)
        drop = np.zeros(len(prompts), dtype=bool)
        if guided:
            states, mask, drop = (np.concatenate(pair) for pair in ((states, states), (mask, mask), (drop, ~drop)))
        context = self.run("condition", {"states": states, "mask": mask, "drop": drop}) | {"mask": mask}
        del self._kept["condition"]
        return context

    def _solve(self, context: Arrays, seeds: list[int], steps: int, depth: int, scale: float, sampler: str, carry_state: bool,
               shift: float) -> np.ndarray:
        """From noise at t = 1 to data at t = 0: Euler's steps, or jumps to the data with new noise between (consistency).

        carry_state: each step's core starts from the last one's state. shift: of the times, as in `iris.flow.timestep_schedule`.
        """
        sizes = self.model["config"]["autoencoder"]
        side = sizes["image_size"] // sizes["downsample"]
        shape = (sizes["latent_channels"], side, side)
        z = np.stack([standard_normal(stream(seed, NOISE), shape) for seed in seeds])
        even = np.linspace(1.0, 0.0, steps + 1)
        times = (shift * even / (1 + (shift - 1) * even)).astype(np.float32)
        times[0] = 1.0  # whatever rounding made of it
        state = None
        for step in range(steps):
            velocity, state = self.velocity(z, times[step], context, depth, scale, state if carry_state else None)
            if sampler == "euler":
                z = z + (times[step + 1] - times[step]) * velocity
                continue
            z = z - times[step] * velocity
            if step + 1 < steps:
                fresh = np.stack([standard_normal(stream(seed, RENOISE, step), shape) for seed in seeds])
                z = (1 - times[step + 1]) * z + times[step + 1] * fresh
        return z

    def velocity(self, z: np.ndarray, t: float, context: Arrays, depth: int, scale: float,
                 state: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """v(z, t) after `depth` iterations from `state` (zeros without one), and the state then; with guidance v_null + scale (v_text - v_null)."""
        guided = len(context["mask"]) == 2 * len(z)
        embedded = self.run("prelude", {"z": z, "t": np.full(len(z), t, np.float32)})
        if guided:  # both passes see the same picture
            embedded = {name: np.concatenate([part, part]) for name, part in embedded.items()}
        inputs = {"injected": embedded["injected"], "condition": embedded["condition_of_t"], **context}
        state = np.zeros_like(embedded["injected"]) if state is None else state
        for iteration in range(1, depth + 1):
            state = self.run("core", {**inputs, "state": state, "iteration": np.array([iteration], np.float32)})["next_state"]
        velocity = self.run("coda", {"state": state, "tokens": embedded["tokens"], "condition": embedded["condition_of_t"]})["velocity"]
        if not guided:
            return velocity, state
        text, null = np.split(velocity, 2)
        return null + np.float32(scale) * (text - null), state


def _read_header(folder: Path) -> dict[str, Any]:
    """model.json, with all that a drawing reads of it."""
    try:
        model = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
        if model["format"] == FORMAT:
            _ = [model["defaults"][name] for name in ("num_steps", "num_iterations", "guidance_scale", "sampler")]
            _ = [int(model["config"]["autoencoder"][name]) for name in ("image_size", "downsample", "latent_channels")]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RuntimeFailure(f"{folder} is not an exported model; write one with python -m iris.export MODEL FOLDER.") from error
    if model["format"] != FORMAT:
        raise RuntimeFailure(f"{folder} has format {model['format']!r}; this version reads {FORMAT}. Export the model again.")
    return model


def _checked(name: str, value: Any, whole: bool = False) -> Any:
    low, high = LIMITS[name]
    fits = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and (not whole or value == value // 1)
    if not fits or not low <= value <= high:
        raise RuntimeFailure(f"{name} is {value!r}; use {'a whole number' if whole else 'a number'} from {low:g} to {high:g}.")
    return int(value) if whole else float(value)
