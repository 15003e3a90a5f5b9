"""Laws of configurations: JSON and back is the identity, and what cannot be a model is refused with one sentence."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris.config import PRESETS, AutoencoderConfig, ConfigError, GeneratorConfig, IRISConfig, TextConfig, preset

NANO = PRESETS["nano"].to_dict()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_json_and_back_is_the_identity(name: str) -> None:
    config = preset(name)
    assert IRISConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.name == name


def test_a_configuration_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("nano").generator.dim = 64


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (AutoencoderConfig, "downsample", 12),
        (AutoencoderConfig, "downsample", 1),
        (AutoencoderConfig, "downsample", 0),
        (AutoencoderConfig, "downsample", -4),
        (AutoencoderConfig, "haar_levels", 0),
        (AutoencoderConfig, "haar_levels", 5),
        (AutoencoderConfig, "image_size", 100),
        (AutoencoderConfig, "image_size", 0),
        (AutoencoderConfig, "latent_channels", 0),
        (AutoencoderConfig, "blocks", 0),
        (AutoencoderConfig, "encoder_channels", (96, 192)),
        (AutoencoderConfig, "decoder_channels", ()),
        (AutoencoderConfig, "decoder_channels", (96, 0, 256)),
        (GeneratorConfig, "dim", 100),
        (GeneratorConfig, "dim", -384),
        (GeneratorConfig, "head_dim", 0),
        (GeneratorConfig, "fourier_blocks", 7),
        (GeneratorConfig, "core_layers", 0),
        (GeneratorConfig, "mean_iterations", 0),
        (GeneratorConfig, "text_order", True),
        (GeneratorConfig, "window", 5),
        (GeneratorConfig, "halo", 5),
        (GeneratorConfig, "halo", -1),
        (GeneratorConfig, "mixer", "mamba"),
        (GeneratorConfig, "iteration_embedding", "fraction"),
        (GeneratorConfig, "softshrink", -0.01),
        (AutoencoderConfig, "downsample", 2**14),
        (AutoencoderConfig, "image_size", 2**20),
        (AutoencoderConfig, "blocks", 10**9),
        (GeneratorConfig, "latent_size", 2**20),
        (GeneratorConfig, "core_layers", 10**9),
        (GeneratorConfig, "prelude_blocks", 10**9),
        (GeneratorConfig, "coda_blocks", 10**9),
        (TextConfig, "max_tokens", 10**9),
        (TextConfig, "encoder", "t5"),
        (TextConfig, "max_tokens", 0),
    ],
)
def test_a_value_out_of_range_is_named_in_one_sentence(kind: type, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**{field: value})
    sentence = str(refused.value)
    assert field in sentence and sentence.endswith(".") and "\n" not in sentence


def test_the_text_adapter_needs_a_width_that_its_heads_divide() -> None:
    with pytest.raises(ConfigError, match="text_dim is 32"):
        preset("nano", generator__text_adapter=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"autoencoder__latent_channels": 4}, "latent channels"),
        ({"generator__latent_size": 4}, "latent grid"),
        ({"text__dim": 48}, "states"),
        ({"text__max_tokens": 8}, "states"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(override: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        preset("nano", **override)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(extra=1), "config has unknown keys: 'extra'"),
        (lambda data: data.update({"\n": 1}), r"config has unknown keys: '\\n'\.$"),
        (lambda data: data["generator"].update(depth=4), "generator has unknown keys: 'depth'"),
        (lambda data: data["generator"].update(mixr="grfm"), r"generator has unknown keys: 'mixr'; nearest: mixer\.$"),
        (lambda data: data["generator"].update(dim="32"), "generator.dim is '32'"),
        (lambda data: data["generator"].update(dim=32.0), "generator.dim is 32.0"),
        (lambda data: data["generator"].update(dim=True), "generator.dim is True"),
        (lambda data: data["generator"].update(text_adapter=1), "generator.text_adapter is 1"),
        (lambda data: data["autoencoder"].update(encoder_channels=[16, 32.5]), "encoder_channels"),
        (lambda data: data.update(text=None), "text must be a JSON object"),
        (lambda data: data.update(name=None), "config.name is None"),
    ],
)
def test_reading_is_strict(change, said: str) -> None:
    data = json.loads(json.dumps(NANO))
    change(data)
    with pytest.raises(ConfigError, match=said):
        IRISConfig.from_dict(data)


def test_a_whole_number_may_stand_for_a_real_one() -> None:
    data = json.loads(json.dumps(NANO))
    data["generator"]["softshrink"] = 0
    assert IRISConfig.from_dict(data).generator.softshrink == 0.0


_LEAVES = [(part, leaf) for part, values in NANO.items() if isinstance(values, dict) for leaf in values]
_JSON = st.one_of(st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=8), st.lists(st.integers(-5, 300), max_size=4))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(_LEAVES), _JSON)
def test_any_value_in_any_field_is_a_model_or_a_config_error(place: tuple[str, str], value: object) -> None:
    data = json.loads(json.dumps(NANO))
    data[place[0]][place[1]] = value
    try:
        config = IRISConfig.from_dict(data)
    except ConfigError as error:
        assert str(error)
    else:
        assert IRISConfig.from_dict(config.to_dict()) == config


def test_overrides_replace_parts_and_fields() -> None:
    assert preset("nano", generator__core_ffn=96).generator.core_ffn == 96
    assert preset("nano", text=TextConfig(encoder="toy", dim=32, max_tokens=16, path="x")).text.path == "x"


@pytest.mark.parametrize(("name", "override", "said"), [
    ("huge", {}, "preset is 'huge'"), ("nano", {"engine__dim": 1}, "no part 'engine'"), ("nano", {"generator__width": 1}, "unknown keys: 'width'"),
])
def test_unknown_presets_and_overrides_are_refused(name: str, override: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        preset(name, **override)
