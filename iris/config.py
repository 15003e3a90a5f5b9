"""What a model is: frozen, validated dataclasses, and the presets nano, micro, tiny, small and base.

A config is plain data. It is stored as JSON beside the weights, and reading one back is strict: an unknown key or a
value out of range is refused with one sentence, never repaired.
"""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

MIXERS = ("grfm", "attention", "fourier", "recurrence")
ITERATION_EMBEDDINGS = ("sinusoid", "none")
TEXT_ENCODERS = ("clip-l", "minilm", "toy")
TEXT_ADAPTER_HEADS = 6
# What no tensor beside a config could contradict: a foreign file must not ask for all memory.
MAX_BLOCKS, MAX_DOWNSAMPLE, MAX_SIDE, MAX_TEXT_TOKENS = 64, 64, 4096, 4096


class ConfigError(ValueError):
    """A configuration that cannot describe a model; the message names the field and what is allowed."""


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ConfigError(sentence)


@dataclass(frozen=True)
class AutoencoderConfig:
    """The wavelet VAE: image [3, H, W] -> latents [latent_channels, H/downsample, W/downsample].

    `haar_levels` orthonormal Haar levels come first and are exact; each further halving is a learned convolution, so
    `encoder_channels` (finest grid first) has log2(downsample) - haar_levels + 1 entries, and so has `decoder_channels`.
    """

    image_size: int = 256
    downsample: int = 16
    latent_channels: int = 16
    haar_levels: int = 2
    encoder_channels: tuple[int, ...] = (96, 192, 256)
    decoder_channels: tuple[int, ...] = (96, 192, 256)
    blocks: int = 2

    def __post_init__(self) -> None:
        levels = self.downsample.bit_length() - 1
        _require(self.downsample == 2**levels and levels >= 1 and self.downsample <= MAX_DOWNSAMPLE,
                 f"downsample is {self.downsample}; use a power of two from 2 to {MAX_DOWNSAMPLE}.")
        _require(1 <= self.haar_levels <= levels, f"haar_levels is {self.haar_levels}; use 1 to {levels} for downsample {self.downsample}.")
        _require(0 < self.image_size <= MAX_SIDE and self.image_size % self.downsample == 0,
                 f"image_size is {self.image_size}; use a positive multiple of downsample ({self.downsample}), at most {MAX_SIDE}.")
        _require(self.latent_channels > 0, f"latent_channels is {self.latent_channels}; use 1 or more.")
        _require(0 < self.blocks <= MAX_BLOCKS, f"blocks is {self.blocks}; use 1 to {MAX_BLOCKS}.")
        grids = levels - self.haar_levels + 1
        for name in ("encoder_channels", "decoder_channels"):
            widths = getattr(self, name)
            _require(len(widths) == grids and min(widths) > 0,
                     f"{name} is {widths}; use {grids} positive widths for downsample {self.downsample} and haar_levels {self.haar_levels}.")

    @property
    def latent_size(self) -> int:
        """Side of the latent grid at `image_size`."""
        return self.image_size // self.downsample

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        return self.latent_channels, self.latent_size, self.latent_size


@dataclass(frozen=True)
class GeneratorConfig:
    """The velocity network: Prelude -> (adapter -> Core) x num_iterations -> Coda on a grid of latent tokens.

    `mean_iterations` is the least depth of a training step from zeros (about a third of the steps go deeper) and the default at inference. `mixer` picks the token
    mixer of the core: GRFM, attention of the same parameter count, or one of GRFM's paths alone (for ablations).
    With `core_stride` 2 the core thinks on a grid of half the side; prelude and coda stay on the whole one. `text_order` gives
    the text adapter's heads a direction of reading.
    """

    latent_channels: int = 16
    latent_size: int = 16
    dim: int = 384
    head_dim: int = 48
    text_dim: int = 768
    text_tokens: int = 77
    text_adapter: bool = False
    text_order: bool = False
    prelude_blocks: int = 2
    core_layers: int = 4
    coda_blocks: int = 2
    core_ffn: int = 1088
    outer_ffn: int = 544
    mean_iterations: int = 8
    mixer: str = "grfm"
    iteration_embedding: str = "sinusoid"
    fourier_blocks: int = 8
    softshrink: float = 0.01
    window: int = 4
    halo: int = 2
    core_stride: int = 1

    def __post_init__(self) -> None:
        for name in ("latent_channels", "latent_size", "dim", "head_dim", "text_dim", "text_tokens", "prelude_blocks", "core_layers",
                     "coda_blocks", "core_ffn", "outer_ffn", "mean_iterations", "fourier_blocks", "window", "core_stride"):
            _require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; use 1 or more.")
        for name, most in (("latent_size", MAX_SIDE), ("prelude_blocks", MAX_BLOCKS), ("core_layers", MAX_BLOCKS), ("coda_blocks", MAX_BLOCKS)):
            _require(getattr(self, name) <= most, f"{name} is {getattr(self, name)}; use at most {most}.")
        _require(self.dim % self.head_dim == 0, f"dim is {self.dim}; use a multiple of head_dim ({self.head_dim}).")
        _require(self.dim % self.fourier_blocks == 0, f"dim is {self.dim}; use a multiple of fourier_blocks ({self.fourier_blocks}).")
        _require(self.dim % 16 == 0, f"dim is {self.dim}; use a multiple of 16 (four scan directions of four gate blocks).")
        _require(self.latent_size % self.window == 0, f"latent_size is {self.latent_size}; use a multiple of window ({self.window}).")
        _require(self.latent_size % self.core_stride == 0, f"latent_size is {self.latent_size}; use a multiple of core_stride ({self.core_stride}).")
        _require(0 <= self.halo <= self.window, f"halo is {self.halo}; use 0 to {self.window} (the window).")
        _require(self.mixer in MIXERS, f"mixer is {self.mixer!r}; use one of {', '.join(MIXERS)}.")
        _require(self.iteration_embedding in ITERATION_EMBEDDINGS,
                 f"iteration_embedding is {self.iteration_embedding!r}; use one of {', '.join(ITERATION_EMBEDDINGS)}.")
        _require(not self.text_adapter or self.text_dim % TEXT_ADAPTER_HEADS == 0,
                 f"text_dim is {self.text_dim}; with text_adapter use a multiple of {TEXT_ADAPTER_HEADS} (its heads).")
        _require(not self.text_order or self.text_adapter, "text_order is for the text adapter; set text_adapter too.")
        _require(self.softshrink >= 0, f"softshrink is {self.softshrink}; use 0 or more.")

    @property
    def num_heads(self) -> int:
        """Heads of the mixer's gates, of the decays and of every attention."""
        return self.dim // self.head_dim

    def core_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The core's tokens (rows, columns, dim) for latents of height x width."""
        return height // self.core_stride, width // self.core_stride, self.dim


@dataclass(frozen=True)
class TextConfig:
    """Which text encoder the generator was trained with: its name, the width and the number of its token states.

    `path` is a local folder of the encoder; empty means the bundled package or the hub id that belongs to the name.
    """

    encoder: str = "clip-l"
    dim: int = 768
    max_tokens: int = 77
    path: str = ""

    def __post_init__(self) -> None:
        _require(self.encoder in TEXT_ENCODERS, f"text encoder is {self.encoder!r}; use one of {', '.join(TEXT_ENCODERS)}.")
        _require(self.dim > 0 and 0 < self.max_tokens <= MAX_TEXT_TOKENS, f"text dim and max_tokens must be 1 or more, max_tokens at most {MAX_TEXT_TOKENS}.")


@dataclass(frozen=True)
class IRISConfig:
    """A whole model: autoencoder, generator and text encoder, checked to fit each other."""

    name: str = "tiny"
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        a, g, x = self.autoencoder, self.generator, self.text
        _require(a.latent_channels == g.latent_channels,
                 f"the autoencoder has {a.latent_channels} latent channels and the generator {g.latent_channels}; make them equal.")
        _require(a.latent_size == g.latent_size,
                 f"the autoencoder's latent grid is {a.latent_size} and the generator's {g.latent_size}; make them equal.")
        _require(x.dim == g.text_dim and x.max_tokens == g.text_tokens,
                 f"the text encoder gives {x.max_tokens} x {x.dim} states and the generator expects {g.text_tokens} x {g.text_dim}.")

    def fits(self, part: str, other: IRISConfig) -> bool:
        """Whether weights of `part` made under `other` are of this network: `mean_iterations`, how often a core is applied, is no part of it."""
        mine, theirs = getattr(self, part), getattr(other, part)
        if part == "generator":
            theirs = dataclasses.replace(theirs, mean_iterations=mine.mean_iterations)
        return mine == theirs

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> IRISConfig:
        """The inverse of `to_dict`; raises ConfigError on an unknown key, a wrong type or a value out of range."""
        parts = {"autoencoder": AutoencoderConfig, "generator": GeneratorConfig, "text": TextConfig}
        _require(isinstance(data, dict), "a configuration must be a JSON object.")
        values = {key: _read(parts[key], value, key) if key in parts else value for key, value in data.items()}
        return _read(cls, values, "config")


def _read(kind: type, data: Any, where: str) -> Any:
    """Build one dataclass from JSON data; the declared defaults give the expected types."""
    _require(isinstance(data, dict), f"{where} must be a JSON object.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    close = [match for name in unknown for match in get_close_matches(str(name), fields, 1)]
    _require(not unknown, f"{where} has unknown keys: {', '.join(map(reprlib.repr, unknown))}{'; nearest: ' + ', '.join(close) if close else ''}.")
    reference, values = kind(), {}
    for name, value in data.items():
        wanted = type(getattr(reference, name))
        if wanted is tuple and isinstance(value, list):
            value = tuple(value)
        if wanted is float and type(value) is int:
            value = float(value)
        _require(type(value) is wanted, f"{where}.{name} is {reprlib.repr(value)}; it must be of type {wanted.__name__}.")
        _require(wanted is not tuple or all(type(item) is int for item in value), f"{where}.{name} is {reprlib.repr(value)}; it must hold integers.")
        values[name] = value
    return kind(**values)


def _minilm(tokens: int = 24) -> TextConfig:
    return TextConfig(encoder="minilm", dim=384, max_tokens=tokens)


PRESETS: dict[str, IRISConfig] = {
    # For tests: everything is there, nothing is large, no text weights are needed.
    "nano": IRISConfig(
        name="nano",
        autoencoder=AutoencoderConfig(image_size=32, downsample=4, latent_channels=8, haar_levels=1, encoder_channels=(16, 32), decoder_channels=(16, 32), blocks=1),
        generator=GeneratorConfig(latent_channels=8, latent_size=8, dim=32, head_dim=8, text_dim=32, text_tokens=16, prelude_blocks=1,
                                  core_layers=2, coda_blocks=1, core_ffn=64, outer_ffn=64, mean_iterations=4, fourier_blocks=4),
        text=TextConfig(encoder="toy", dim=32, max_tokens=16),
    ),
    # For two CPU cores: 64 px pictures on an 8 x 8 grid. One core layer and little around it, so that thinking is iterating.
    "micro": IRISConfig(
        name="micro",
        autoencoder=AutoencoderConfig(image_size=64, downsample=8, haar_levels=2, encoder_channels=(128, 192), decoder_channels=(160, 256)),
        generator=GeneratorConfig(latent_size=8, dim=256, head_dim=32, text_dim=384, text_tokens=24, text_adapter=True, text_order=True,
                                  prelude_blocks=1, core_layers=1, coda_blocks=1, core_ffn=1024, outer_ffn=512, mean_iterations=6),
        text=_minilm(),
    ),
    # The specification's three, with CLIP-L/14 text states. Tiny's core has one token for 2 x 2: at equal time it learns more (reports/DUEL.md).
    "tiny": IRISConfig(name="tiny", generator=GeneratorConfig(dim=384, head_dim=48, core_ffn=1088, outer_ffn=432, core_stride=2)),
    "small": IRISConfig(name="small", generator=GeneratorConfig(dim=640, head_dim=64, core_ffn=1600, outer_ffn=640)),
    "base": IRISConfig(name="base", generator=GeneratorConfig(dim=1024, head_dim=64, core_ffn=4224, outer_ffn=1728)),
}


def changed(config: IRISConfig, **overrides: Any) -> IRISConfig:
    """`config` with whole parts (`generator=...`) or single fields (`generator__dim=64`) replaced."""
    data = config.to_dict()
    for key, value in overrides.items():
        part, _, leaf = key.partition("__")
        if leaf:
            _require(part in data and isinstance(data[part], dict), f"a configuration has no part {part!r}.")
            data[part][leaf] = value
        else:
            data[key] = value.__dict__ if dataclasses.is_dataclass(value) else value
    return IRISConfig.from_dict(data)


def preset(name: str, **overrides: Any) -> IRISConfig:
    """The preset called `name`, with `overrides` as `changed` takes them."""
    _require(name in PRESETS, f"preset is {name!r}; use one of {', '.join(PRESETS)}.")
    return changed(PRESETS[name], **overrides)
