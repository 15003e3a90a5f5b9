"""Mixed precision as a GPU casts it, on a CPU: CUDA's autocast keeps normalisations in fp32, where the CPU's does not, so a GPU
meets mixtures of types that no training on a CPU shows.

`CudaCasts` follows PyTorch's table of "CUDA Ops that Autocast to float16 / float32" for the operations that IRIS uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import build_generator, seeded
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from iris.config import preset
from iris.nn.autoencoder import WaveletVAE
from iris.training.losses import ConsistencyLoss, ReconstructionLoss, RectifiedFlowLoss

TO_LOW = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.mm, torch.addmm, torch.einsum, torch.conv2d, F.conv2d,
          F.linear, F.scaled_dot_product_attention}
TO_FP32 = {F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.softplus, F.softmax, torch.softmax, torch.Tensor.softmax, torch.exp,
           torch.Tensor.exp, torch.expm1, torch.Tensor.expm1, torch.log, torch.Tensor.log, torch.rsqrt, torch.Tensor.rsqrt, torch.pow, torch.Tensor.pow,
           torch.Tensor.__pow__, torch.cumsum, torch.Tensor.cumsum, torch.sum, torch.Tensor.sum, torch.norm, torch.Tensor.norm, torch.linalg.vector_norm,
           F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.normalize}


class CudaCasts(TorchFunctionMode):
    """Casts arguments as CUDA's autocast would; an inner `torch.autocast(..., enabled=False)` switches it off.

    A weight's cast is kept and taken again, whether it was made with a graph or not, as torch did until December 2025 (pytorch issue 158232).
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.on = dtype, True
        self.kept: dict[int, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        wanted = self.dtype if function in TO_LOW else torch.float32 if function in TO_FP32 else None

        def cast(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
                return value
            if wanted == self.dtype and value.is_leaf and value.requires_grad:
                return self.kept.setdefault(id(value), value.to(wanted))
            return value.to(wanted)

        if self.on and wanted is not None:
            args, kwargs = tree_map(cast, (args, kwargs or {}))
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def casts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaCasts]:
    mode = CudaCasts(request.param)

    class Autocast:
        def __init__(self, device: str, enabled: bool = True, **_: Any) -> None:
            self.enabled = enabled

        def __enter__(self) -> None:
            self.before, mode.on = mode.on, self.enabled

        def __exit__(self, *_: Any) -> None:
            mode.on = self.before

    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(torch, "clear_autocast_cache", mode.kept.clear)
    with mode:
        yield mode


def gradients_are_finite(module: torch.nn.Module) -> bool:
    return all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in module.parameters())


def batch(config: Any) -> Any:
    from iris.training.batches import LatentBatch

    g, count = config.generator, 4
    return LatentBatch(seeded(count, g.latent_channels, g.latent_size, g.latent_size), seeded(count, g.text_tokens, g.text_dim, seed=1),
                       torch.ones(count, g.text_tokens, dtype=torch.bool))


@pytest.mark.parametrize("mixer", ["grfm", "attention", "fourier", "recurrence"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_step_of_the_flow_as_a_gpu_casts_it(casts: CudaCasts, mixer: str, stride: int) -> None:
    config = preset("nano", generator__mixer=mixer, generator__core_stride=stride)
    generator = build_generator(config)
    loss = RectifiedFlowLoss(exit_weight=0.25, warm_start=0.5)
    output = loss(generator, loss.draw(generator, batch(config), torch.Generator().manual_seed(0)))
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and bool(output.loss.isfinite()) and gradients_are_finite(generator)


@pytest.mark.parametrize(("depth", "warm"), [(5, False), (3, False), (2, True), (1, True)])
def test_a_weight_that_was_cast_without_a_graph_learns_all_the_same(casts: CudaCasts, depth: int, warm: bool) -> None:
    config = preset("nano")
    generator = build_generator(config)
    loss = RectifiedFlowLoss(grad_iterations=2)
    draw = loss.draw(generator, batch(config), torch.Generator().manual_seed(0))
    draw = dataclasses.replace(draw, depth=depth, warm_from=(draw.t + 0.1).clamp_max(1.0) if warm else None, warm_depth=3)
    loss(generator, draw).loss.backward()
    assert [name for name, parameter in generator.named_parameters() if parameter.grad is None] == []


def test_a_step_of_the_student_as_a_gpu_casts_it(casts: CudaCasts) -> None:
    config = preset("nano")
    student, teacher = build_generator(config), build_generator(config, seed=1)
    loss = ConsistencyLoss(teacher.eval().requires_grad_(False), 2.0)
    output = loss(student, loss.draw(student, batch(config), torch.Generator().manual_seed(0)))
    output.loss.backward()
    assert bool(output.loss.isfinite()) and gradients_are_finite(student)


def test_a_step_of_the_autoencoder_as_a_gpu_casts_it(casts: CudaCasts) -> None:
    autoencoder = WaveletVAE(preset("nano").autoencoder)
    loss = ReconstructionLoss(None, perceptual_weight=0.0)
    output = loss(autoencoder, loss.draw(autoencoder, seeded(2, 3, 32, 32), torch.Generator().manual_seed(0)))
    output.loss.backward()
    assert bool(output.loss.isfinite()) and gradients_are_finite(autoencoder)
