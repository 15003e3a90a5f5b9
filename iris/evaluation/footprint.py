"""What a model costs: parameters, bytes and work by part, and the memory of a whole process, measured in a fresh one.

Two figures of the specification are read here with care. "Effective capacity" is the number of parameters that a network
without shared weights would have at the same depth: unrolled depth, not capacity (the weights are used again, they do not
learn more). And "545 / 597 / 760 MB" are fp16 tensors with a text tower; here each part stands alone, and the process whole.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iris.config import PRESETS, IRISConfig, TextConfig, preset
from iris.nn.autoencoder import WaveletVAE
from iris.nn.fourier import MATMUL_DFT_LIMIT
from iris.nn.generator import Generator, parameter_count

# Which part each module of the generator is counted with; what is not named here embeds something (time, the null text).
_PART = {"input": "prelude", "prelude": "prelude", "core": "core", "merge": "prelude", "split": "coda", "coda": "coda", "final_modulation": "coda", "output": "coda",
         "text_adapter": "text_adapter"}
PARTS = ("prelude", "core", "coda", "embeddings", "text_adapter", "encoder", "decoder")
GENERATOR_PARTS = PARTS[:5]
BYTES = {"fp16": 2, "fp32": 4}
# CLIP-L/14's text tower (Radford et al. 2021), for measuring it where its weights cannot be fetched.
CLIP_L_TEXT = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
               "max_position_embeddings": 77, "projection_dim": 768}


class FootprintError(ValueError):
    """A model that cannot be measured; the message says why."""


@dataclass(frozen=True)
class Footprint:
    """Parameters by part (they sum to the model; text encoder apart) and FLOPs of one call of each part at batch 1.

    flops: keys "text" (adapter, keys and values of one prompt), "prelude", "core" (ONE iteration), "coda", "encoder",
    "decoder"; a multiply-add counts as 2. Counted are matrix products, convolutions and attention, as torch's FlopCounterMode
    does, plus 2.5 N log2 N for every real FFT, which it leaves out (grids above 64 x 64; below, the transform is a matrix
    product and is counted as such). Elementwise work is not counted: norms, gates, the scan, the Haar transform.
    text_parameters: the frozen text encoder, None where its package or weights are not there.
    """

    name: str
    image_size: int
    mean_iterations: int
    parameters: dict[str, int]
    flops: dict[str, int]
    text_encoder: str
    text_parameters: int | None

    @property
    def generator_parameters(self) -> int:
        """All parameters of the generator, text adapter included."""
        return sum(self.parameters[part] for part in GENERATOR_PARTS)

    @property
    def core_share(self) -> float:
        """Parameters of the shared core over those of the generator."""
        return self.parameters["core"] / self.generator_parameters

    def unrolled(self, num_iterations: int) -> int:
        """Parameters of a generator of the same depth without shared weights: rest + num_iterations * core."""
        return self.generator_parameters + (num_iterations - 1) * self.parameters["core"]

    def unrolled_multiple(self, num_iterations: int) -> float:
        """unrolled / own parameters = 1 + (num_iterations - 1) * core_share: unrolled depth, not capacity."""
        return self.unrolled(num_iterations) / self.generator_parameters

    def weight_bytes(self, precision: str = "fp16") -> dict[str, int]:
        """Bytes of the weights by part, the text encoder among them where it is known; precision "fp16" or "fp32"."""
        if precision not in BYTES:
            raise FootprintError(f"precision is {precision!r}; use one of {', '.join(BYTES)}.")
        parts = self.parameters | ({"text_encoder": self.text_parameters} if self.text_parameters else {})
        return {part: count * BYTES[precision] for part, count in parts.items()}

    def work(self, num_steps: int, num_iterations: int, guidance: bool = False) -> dict[str, int]:
        """FLOPs by part of one picture: steps x (prelude + iterations x core + coda), core and coda twice with guidance, and one decode."""
        calls = num_steps * (2 if guidance else 1)
        return {"text": self.flops["text"] * (2 if guidance else 1), "prelude": num_steps * self.flops["prelude"],
                f"core_x{num_iterations}": calls * num_iterations * self.flops["core"], "coda": calls * self.flops["coda"],
                "decoder": self.flops["decoder"]}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, with the figures that the specification names."""
        return asdict(self) | {
            "generator_parameters": self.generator_parameters,
            "core_share": self.core_share,
            "unrolled": {str(r): {"parameters": self.unrolled(r), "multiple": self.unrolled_multiple(r)} for r in (4, 8, 16)},
            "weight_bytes": {precision: self.weight_bytes(precision) for precision in BYTES},
            "flops_of_a_picture": {f"{steps} steps x {r} iterations": sum(self.work(steps, r).values()) for steps, r in ((4, 4), (4, 8), (4, 16))},
        }


@dataclass(frozen=True)
class MemoryUse:
    """Resident memory of a fresh process, in bytes: after importing torch, with the model built, and at its highest."""

    what: str
    imported: int
    built: int
    peak: int


# ---------------------------------------------------------------------------------------------------- counting


def measure_footprint(model: str | Path | IRISConfig) -> Footprint:
    """The footprint of a preset's name, a checkpoint folder (or hub id) or a config; stored weights are not read."""
    config = read_config(model)
    with torch.random.fork_rng(devices=[]):   # random weights are drawn, and nobody's random numbers change
        generator, autoencoder = Generator(config.generator).eval(), WaveletVAE(config.autoencoder).eval()
    return Footprint(config.name, config.autoencoder.image_size, config.generator.mean_iterations, _parameters(generator, autoencoder),
                     _flops(generator, autoencoder), config.text.encoder, text_encoder_parameters(config.text))


def read_config(model: str | Path | IRISConfig) -> IRISConfig:
    """A config from a preset's name, a checkpoint folder or hub id, or itself."""
    if isinstance(model, IRISConfig):
        return model
    if str(model) in PRESETS:
        return preset(str(model))
    from iris.checkpoint import resolve_folder

    path = resolve_folder(str(model)) / "config.json"
    try:
        return IRISConfig.from_dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise FootprintError(f"{path} is not a model's configuration; give a preset ({', '.join(PRESETS)}) or a checkpoint folder.") from error


def _parameters(generator: Generator, autoencoder: WaveletVAE) -> dict[str, int]:
    parts = dict.fromkeys(PARTS, 0)
    for name, parameter in generator.named_parameters():
        parts[_PART.get(name.split(".")[0], "embeddings")] += parameter.numel()
    for name, parameter in autoencoder.named_parameters():   # encoder, encoder_shortcut, ... and the same of the decoder
        parts["decoder" if name.startswith("decoder") else "encoder"] += parameter.numel()
    return parts


@torch.no_grad()
def _flops(generator: Generator, autoencoder: WaveletVAE) -> dict[str, int]:
    """FLOPs of one call of each part at batch 1."""
    g, a = generator.config, autoencoder.config

    def blank(*shape: int) -> Tensor:
        return torch.zeros(1, *shape)

    counted: dict[str, int] = {}

    def count(part: str, call: Any, *arguments: Any) -> Any:
        # Attention as two matrix products: its fused kernels are not all known to the counter.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            result = call(*arguments)
        counted[part] = counter.get_total_flops()
        return result

    z, t = blank(g.latent_channels, g.latent_size, g.latent_size), torch.zeros(1)
    context = count("text", generator.condition, blank(g.text_tokens, g.text_dim))
    embedded = count("prelude", generator.embed, z, t)
    injected = embedded.injected
    state = count("core", generator.core, torch.zeros_like(injected), injected, embedded.condition, context, 1)
    count("coda", generator.readout, state.tokens, embedded)
    latents = count("encoder", autoencoder.encode, blank(3, a.image_size, a.image_size))
    count("decoder", autoencoder.decode, latents)
    counted["core"] += g.core_layers * fft_flops(g.mixer, g.latent_size // g.core_stride, g.dim)
    return counted


def fft_flops(mixer: str, side: int, dim: int) -> int:
    """Work of one layer's FFTs, forth and back, that FlopCounterMode does not see: 2 * dim * 2.5 N log2 N with N = side^2.

    5 N log2 N is the customary count of a complex FFT (Cooley and Tukey); a real one takes half. 0 where the transform is a
    matrix product (sides up to 64) or the mixer has none.
    """
    if mixer not in ("grfm", "fourier") or side <= MATMUL_DFT_LIMIT:
        return 0
    tokens = side * side
    return round(2 * dim * 2.5 * tokens * math.log2(tokens))


def text_encoder_parameters(config: TextConfig) -> int | None:
    """Parameters of the frozen text encoder: the toy one has none; None when its package is missing."""
    if config.encoder == "toy":
        return 0
    try:
        with torch.device("meta"):
            return parameter_count(_blank_text_encoder(config))
    except (ImportError, OSError):
        return None


def _blank_text_encoder(config: TextConfig) -> nn.Module:
    """The encoder's architecture with random weights."""
    import transformers

    if config.encoder == "clip-l":
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L_TEXT))
    from iris.text import bundled_minilm

    folder = Path(config.path) if config.path else bundled_minilm()
    if folder is None:
        raise OSError("the package of MiniLM is not installed")
    return transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder, local_files_only=True))


# ---------------------------------------------------------------------------------------------------- a process's memory


def peak_memory(model: str | Path, num_steps: int = 4, num_iterations: int = 8, text: str = "with", timeout: float = 900.0) -> MemoryUse:
    """Memory of a fresh process that loads the model and draws one picture at batch 1 in fp32.

    model: a preset (random weights) or a checkpoint folder. text: "with" keeps the text encoder loaded while it draws, as a
    demo does; "without" gives the generator random text states; "only" encodes one prompt and draws nothing. Where CLIP-L's
    weights are not at hand the same architecture is measured with random ones. Raises FootprintError when the process fails.
    """
    if text not in ("with", "without", "only"):
        raise FootprintError(f"text is {text!r}; use 'with', 'without' or 'only'.")
    read_config(model)   # a wrong name is said here, not by a process that dies
    request = {"model": str(model), "num_steps": num_steps, "num_iterations": num_iterations, "text": text}
    code = "import sys; from iris.evaluation.footprint import _draw_and_report as run; run(sys.argv[1])"
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))}
    try:
        done = subprocess.run([sys.executable, "-c", code, json.dumps(request)], env=environment, capture_output=True, text=True,
                              timeout=timeout, check=True)
    except subprocess.TimeoutExpired as error:
        raise FootprintError(f"measuring the memory of {model} took longer than {timeout:.0f} s.") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise FootprintError(f"measuring the memory of {model} failed: {reason}") from error
    return MemoryUse(**json.loads(done.stdout.strip().splitlines()[-1]))


def runtime_memory(exported: str | Path, num_steps: int = 4, num_iterations: int = 4, guidance_scale: float = 1.0, timeout: float = 900.0) -> int:
    """Peak bytes of a fresh `python -m iris.runtime`: prompt to PNG without torch, text encoder included.

    exported: what `iris.export` wrote. Raises FootprintError with the process's own sentence when it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "iris.runtime", str(exported), "red apple", "-o", str(Path(scratch) / "picture.png"), "--json",
                   "--num-steps", str(num_steps), "--num-iterations", str(num_iterations), "--guidance-scale", str(guidance_scale)]
        root = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=True)
        except subprocess.TimeoutExpired as error:
            raise FootprintError(f"drawing with {exported} took longer than {timeout:.0f} s.") from error
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("Error: ")
            raise FootprintError(f"drawing with {exported} failed: {reason}") from error
    return int(json.loads(done.stdout)["peak_bytes"])


def _draw_and_report(request: str) -> None:
    """The fresh process: load, draw one picture, print MemoryUse as JSON."""
    wanted = json.loads(request)
    imported = _resident("VmRSS")
    config = read_config(wanted["model"])
    torch.manual_seed(0)
    if wanted["text"] == "only":
        encoder = _text_encoder(config.text)
        built = _resident("VmRSS")
        _encode(encoder, config.text)
    else:
        model = _model(config, wanted["model"])
        encoder = _text_encoder(config.text) if wanted["text"] == "with" else None
        built = _resident("VmRSS")
        tokens = _encode(encoder, config.text) if encoder is not None else torch.randn(1, config.text.max_tokens, config.text.dim)
        model.generate(tokens, num_steps=wanted["num_steps"], num_iterations=wanted["num_iterations"])
    what = f"{config.name}, {wanted['text']} text encoder"
    print(json.dumps({"what": what, "imported": imported, "built": built, "peak": _resident("VmHWM")}))


def _model(config: IRISConfig, name: str) -> nn.Module:
    from iris.model import IRISModel

    model = IRISModel(config).eval()
    if name not in PRESETS:
        from iris.checkpoint import load_module, read_checkpoint, resolve_folder

        tensors = read_checkpoint(resolve_folder(name)).tensors
        load_module(model.autoencoder, tensors["autoencoder"])
        load_module(model.generator, tensors["generator"])
    return model


def _text_encoder(config: TextConfig) -> Any:
    """The real encoder, or CLIP-L with random weights where the real ones are not at hand."""
    from iris.text import TextError, load_text_encoder

    try:
        return load_text_encoder(config)
    except TextError:
        if config.encoder != "clip-l":
            raise
        return _blank_text_encoder(config).eval()


@torch.inference_mode()
def _encode(encoder: Any, config: TextConfig) -> Tensor:
    """Token states of one prompt, [1, L, D]."""
    if hasattr(encoder, "encode"):
        return encoder.encode(["red apple"]).tokens
    return encoder(input_ids=torch.zeros(1, config.max_tokens, dtype=torch.long)).last_hidden_state


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process in bytes; on a Mac the highest for both."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
    except (OSError, StopIteration):
        if sys.platform == "win32":
            memory = psutil.Process().memory_info()
            return memory.peak_wset if field == "VmHWM" else memory.rss
        import resource

        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024
