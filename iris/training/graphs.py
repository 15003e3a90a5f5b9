"""A training step's loss and gradients as CUDA graphs: the processor says once what the GPU shall do, and after that only "again".

A core of 20 M weights that is applied six times is thousands of small launches, and a GPU waits for them longer than it
computes. A graph holds for one kind of draw, the same depth and shapes; each is recorded when it has come `SEEN` times, and
rare kinds run as they come.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from iris.training.batches import each_tensor
from iris.training.losses import LossOutput

SEEN = 3  # times a kind runs as it comes; what compiles or allocates on first use has done so then
MOST = 24  # graphs kept: each holds gradients of its own, as large as the weights


@dataclass(frozen=True)
class _Graph:
    graph: Any
    draw: Any
    output: LossOutput
    gradients: list[Tensor | None]


def _kind(draw: Any) -> tuple:
    """What the work depends on besides the numbers in the tensors: plain fields, and shapes."""
    values = (getattr(draw, field.name) for field in fields(draw))
    return tuple((tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value for value in values)


class GraphedGradients:
    """`compute(loss, draw)` -> LossOutput, leaving gradients in `parameters`: as it comes, or from a graph recorded before.

    `compute` may ask nothing of the device and move nothing to it (tests/test_graphs.py holds the losses to that). Where a
    recording fails, this says so once and every later step runs as it comes.
    """

    def __init__(self, compute: Callable[[Callable, Any], LossOutput], parameters: list[nn.Parameter]) -> None:
        self._compute, self._parameters = compute, parameters
        self._seen: Counter[tuple] = Counter()
        self._graphs: dict[tuple, _Graph] = {}
        self._pool = None  # one graph runs at a time, so all share their memory
        self._most = MOST

    def __call__(self, loss: Callable, draw: Any) -> LossOutput:
        kind = (id(loss), *_kind(draw))
        if kind not in self._graphs and self._seen[kind] >= SEEN and len(self._graphs) < self._most:
            try:
                self._graphs[kind] = self._record(loss, draw)
            except RuntimeError as error:
                self._most = 0
                warnings.warn(f"no CUDA graphs, training goes on without: {error}", stacklevel=2)
        if kind not in self._graphs:
            self._seen[kind] += 1
            return self._compute(loss, draw)
        known = self._graphs[kind]
        for field in fields(draw):
            if isinstance(value := getattr(draw, field.name), Tensor):
                getattr(known.draw, field.name).copy_(value)
        known.graph.replay()
        for parameter, gradient in zip(self._parameters, known.gradients, strict=True):
            parameter.grad = gradient
        return known.output

    def _record(self, loss: Callable, draw: Any) -> _Graph:
        draw = each_tensor(draw, torch.clone)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what a stream sets up on first use must not be recorded
            self._compute(loss, draw)
        torch.cuda.current_stream().wait_stream(side)
        self._forget()  # so that the gradients are the graph's own, written anew each time
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                output = self._compute(loss, draw)
            gradients = [parameter.grad for parameter in self._parameters]
        finally:
            self._forget()
        self._pool = self._pool or graph.pool()
        return _Graph(graph, draw, replace(output, loss=output.loss.detach()), gradients)

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
