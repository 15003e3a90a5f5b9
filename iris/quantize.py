"""Linear layers in 8 bits on a CPU: weights are stored as int8, inputs are quantised as they come (dynamic quantisation).

The products are computed in integers by torch's quantised engine. What else a network does stays in fp32: convolutions, GRFM's
block-diagonal products, norms. Small layers stay too, since quantising their input costs more than their product.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from iris.nn.layers import ScalarEmbedding
from iris.pipeline import IRISPipeline
from iris.text import TransformersTextEncoder

SMALLEST = 64 * 64  # weights of a layer from which it is quantised


class QuantizeError(ValueError):
    """A model that cannot be quantised here; the message says why."""


def quantize_dynamic(pipeline: IRISPipeline, text: bool = True) -> IRISPipeline:
    """A copy of `pipeline` for a CPU whose generator (and, with `text`, text encoder) multiplies in int8.

    The copy draws; it can be neither trained nor saved. An input is rounded by the largest value of its batch, so other than in
    fp32 a picture depends a little on those that are drawn with it: draw one at a time where it must not. Raises QuantizeError away from a CPU or where torch has no engine.
    """
    if pipeline.device.type != "cpu":
        raise QuantizeError(f"the pipeline is on {pipeline.device}; int8 layers run on a CPU: call .to('cpu') first.")
    encoder = pipeline.text_encoder
    if text and isinstance(encoder, TransformersTextEncoder):
        encoder = copy.copy(encoder)
        encoder.model = quantized(encoder.model)
    return IRISPipeline(pipeline.config, pipeline.autoencoder, quantized(pipeline.generator), encoder, pipeline.defaults, pipeline.metadata)


def quantized(module: nn.Module) -> nn.Module:
    """A copy of `module` whose linear layers from `SMALLEST` weights on are dynamically quantised, one scale an output channel."""
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if not engines:
        raise QuantizeError("this torch has no engine for int8 products; install a build for CPUs.")
    if torch.backends.quantized.engine == "none":
        torch.backends.quantized.engine = engines[-1]
    made = copy.deepcopy(module).eval()
    # Embeddings of a number run once a call and read the type of their own weights.
    kept = {id(layer) for embedding in made.modules() if isinstance(embedding, ScalarEmbedding) for layer in embedding.modules()}
    names = {name for name, layer in made.named_modules()
             if type(layer) is nn.Linear and layer.weight.numel() >= SMALLEST and id(layer) not in kept}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = torch.ao.quantization.per_channel_dynamic_qconfig
        return torch.ao.quantization.quantize_dynamic(made, dict.fromkeys(names, recipe), dtype=torch.qint8, inplace=True)
