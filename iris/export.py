"""ONNX: a pipeline as six graphs that a host without torch puts together (`iris.runtime`).

    python -m iris.export demo/models/NAME FOLDER [--int8]

text_encoder   input_ids, attention_mask [B, L]             -> states [B, L, D] (zero at padding); MiniLM and CLIP
condition      states, mask, drop [B] (True: null caption)  -> key_0, value_0, ... of every core layer
prelude        z [B, C, h, w], t [B]                        -> tokens, injected, condition
core           state, injected, condition, iteration [1], mask, key_0, value_0, ... -> next state; ONE iteration
coda           state, tokens, condition                     -> velocity [B, C, h, w]
decoder        latents [B, C, h, w]                         -> images [B, 3, H, W] in [-1, 1]

The host calls the core as often as it likes, so one file serves every depth. The batch is free, the picture's size is the
model's own. Beside the graphs lie the tokenizer and `model.json`. With int8 the weights of linear layers are stored in 8 bits
and products are computed from inputs quantised as they come (onnxruntime's dynamic quantisation); convolutions stay in fp32.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from iris.nn.generator import Embedded, Generator, TextContext
from iris.pipeline import IRISPipeline
from iris.replacing import put_in_place
from iris.runtime.layout import FORMAT, GRAPHS, MODEL_FILE, SAMPLERS, TOKENIZER_FILE
from iris.text import TransformersTextEncoder

OPSET = 20
Named = dict[str, Tensor]


class ExportError(ValueError):
    """A model that cannot be exported; the message says why."""


class _TextStates(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states * attention_mask[..., None].to(states.dtype)


class _Condition(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, states: Tensor, mask: Tensor, drop: Tensor) -> tuple[Tensor, ...]:
        context = self.generator.condition(states, mask, drop)
        return tuple(part for pair in context.keys_values for part in pair)


class _Prelude(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedded = self.generator.embed(z, t)
        return embedded.tokens, embedded.injected, embedded.condition


class _CoreStep(nn.Module):
    """One iteration whose number is an input and not a constant of the graph."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.number = generator.core.iteration
        self.core = copy.copy(generator.core)
        self.core._modules = {**self.core._modules, "iteration": None}   # its embedding is added here instead

    def forward(self, state: Tensor, injected: Tensor, condition: Tensor, iteration: Tensor, mask: Tensor, *keys_values: Tensor) -> Tensor:
        if self.number is not None:
            condition = condition + self.number(iteration)
        pairs = tuple(zip(keys_values[::2], keys_values[1::2], strict=True))
        return self.core(state, injected, condition, TextContext(pairs, mask[:, None, None]), 0).tokens


class _Coda(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, state: Tensor, tokens: Tensor, condition: Tensor) -> Tensor:
        return self.generator.readout(state, Embedded(tokens, state, condition))


class _Decoder(nn.Module):
    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).clamp(-1, 1)


def export_onnx(pipeline: IRISPipeline, folder: str | Path, int8: bool = False) -> Path:
    """Write the graphs, the tokenizer and model.json into `folder` and return it. Raises ExportError when that is not possible."""
    folder = Path(os.path.expanduser(folder)).resolve()
    if not isinstance(pipeline.text_encoder, TransformersTextEncoder):
        raise ExportError(f"the text encoder {pipeline.config.text.encoder!r} has no network to export; use a model with minilm or clip-l.")
    if pipeline.device.type != "cpu":
        raise ExportError(f'the model is on {pipeline.device}; move it first: pipe.to("cpu").')
    if pipeline.defaults.sampler not in SAMPLERS:
        raise ExportError(f"the model's sampler is {pipeline.defaults.sampler}; the runtime knows {' and '.join(SAMPLERS)}, so choose one as its default first.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}; give a new folder.")
    missing = [name for name in ("onnx", "onnxscript", *(["onnxruntime"] if int8 else [])) if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"an export needs {' and '.join(missing)}: pip install {' '.join(missing)}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:  # whole, or not there
        draft = Path(scratch) / folder.name
        draft.mkdir()
        for name, module, inputs, outputs in _graphs(pipeline):
            _write_graph(draft / GRAPHS[name], module, inputs, outputs)
            if int8:
                _quantize(draft / GRAPHS[name])
        pipeline.text_encoder.tokenizer.save(str(draft / TOKENIZER_FILE))
        defaults = asdict(pipeline.defaults)
        if defaults["num_iterations"] == "auto":  # deciding that needs torch
            defaults["num_iterations"] = pipeline.config.generator.mean_iterations
        config = replace(pipeline.config, text=replace(pipeline.config.text, path=""))  # of this computer, as in save_pretrained
        header = {"format": FORMAT, "int8": int8, "config": config.to_dict(), "defaults": defaults}
        (draft / MODEL_FILE).write_text(json.dumps(header, indent=2), encoding="utf-8")
        put_in_place(draft, folder)
    return folder


@torch.no_grad()
def _graphs(pipeline: IRISPipeline) -> list[tuple[str, nn.Module, Named, list[str]]]:
    """Name, module, example inputs at batch 2 (a batch of 1 would be taken for a constant) and output names of every graph."""
    generator, config, text = pipeline.generator, pipeline.config, pipeline.config.text
    z = torch.randn(2, config.autoencoder.latent_channels, config.autoencoder.latent_size, config.autoencoder.latent_size)
    ids = {"input_ids": torch.ones(2, text.max_tokens, dtype=torch.long), "attention_mask": torch.ones(2, text.max_tokens, dtype=torch.long)}
    states = {"states": torch.randn(2, text.max_tokens, text.dim), "mask": torch.ones(2, text.max_tokens, dtype=torch.bool),
              "drop": torch.tensor([False, True])}
    keys_values = _Condition(generator)(*states.values())
    pairs = {f"{kind}_{layer}": keys_values[2 * layer + offset] for layer in range(len(keys_values) // 2) for offset, kind in enumerate(("key", "value"))}
    prelude = {"z": z, "t": torch.tensor([0.3, 0.8])}
    tokens, injected, condition = _Prelude(generator)(*prelude.values())
    core = {"state": torch.zeros_like(injected), "injected": injected, "condition": condition, "iteration": torch.ones(1), "mask": states["mask"], **pairs}
    return [
        ("text_encoder", _TextStates(pipeline.text_encoder.model), ids, ["states"]),
        ("condition", _Condition(generator), states, list(pairs)),
        ("prelude", _Prelude(generator), prelude, ["tokens", "injected", "condition_of_t"]),
        ("core", _CoreStep(generator), core, ["next_state"]),
        ("coda", _Coda(generator), {"state": injected, "tokens": tokens, "condition": condition}, ["velocity"]),
        ("decoder", _Decoder(pipeline.autoencoder), {"latents": z}, ["images"]),
    ]


def _write_graph(path: Path, module: nn.Module, inputs: Named, outputs: list[str]) -> None:
    """Trace `module` with a free batch and store it with its weights in one file."""
    batch = torch.export.Dim("batch", min=1, max=64)
    free = tuple(None if name == "iteration" else {0: batch} for name in inputs)
    # The core takes its keys and values as *arguments, which the exporter describes as one nested entry.
    fixed = 5 if "key_0" in inputs else len(inputs)
    shapes = (*free[:fixed], free[fixed:]) if fixed < len(free) else free
    with _quiet(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), tuple(inputs.values()), str(path), input_names=list(inputs), output_names=outputs, opset_version=OPSET,
                          dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)


def _quantize(path: Path) -> None:
    """Linear layers of a stored graph in 8 bits, one scale an output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / path.name
        quantize_dynamic(path, small, op_types_to_quantize=["MatMul", "Gemm"], nodes_to_exclude=_stacked_products(path),
                         weight_type=QuantType.QInt8, per_channel=True)
        shutil.copyfile(small, path)


def _stacked_products(path: Path) -> list[str]:
    """Products with a stack of matrices (GRFM's blocks), for which onnxruntime has no kernel with a scale a channel."""
    import onnx

    graph = onnx.load(path).graph
    stacked = {weight.name for weight in graph.initializer if len(weight.dims) != 2}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in stacked]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' remarks about constants they do not fold: what a graph computes is checked by running it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def main(
    model: Annotated[str, typer.Argument(help="a checkpoint folder or hub id")],
    folder: Annotated[Path, typer.Argument(help="a new folder for the graphs")],
    int8: Annotated[bool, typer.Option("--int8", help="linear layers in 8 bits")] = False,
) -> None:
    """Export a model to ONNX for `python -m iris.runtime`."""
    try:
        written = export_onnx(IRISPipeline.from_pretrained(model), folder, int8)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    size = sum(file.stat().st_size for file in written.iterdir())
    typer.echo(f"{written}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
