"""The recurrent path of GRFM: RG-LRU (Griffin, 2402.19427, equations 1-4) along rows and columns, both ways.

h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t),  a_t = exp(-8 * softplus(L) * sigmoid(W_a x_t)),  i_t = sigmoid(W_x x_t)

A quarter of the channels scans each direction, so four directions cost one scan and add no variance. Scans run along an
axis of the grid: all rows (or columns) advance together, and the sequential length is the side of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MEMORY = (0.7, 16.0)


def _turns(x: Tensor, dim: int, ways: int | None) -> Sequence[Tensor]:
    """What turn t of the scan sees of contiguous `x`: token t along `dim`, and of the second way the token t before the last.

    Both ways in one view: their distance in memory shrinks by two tokens from turn to turn.
    """
    if ways is None:
        return x.unbind(dim)
    shape, strides, token = list(x.shape), list(x.stride()), x.stride(dim)
    length, way = shape.pop(dim), strides[ways]
    del strides[dim]
    turns = []
    for turn in range(length):
        strides[ways] = way + (length - 1 - 2 * turn) * token
        turns.append(x.as_strided(shape, strides, x.storage_offset() + turn * token))
    return turns


def _scan(a: Tensor, b: Tensor, dim: int, ways: int | None, states: Tensor, adjoint: bool = False) -> Tensor:
    """The scan into `states`, which may be `b`, or its adjoint g_t = b_t + a_{t+1} g_{t+1}: the same loop from the other end."""
    decays, inflows, out = (_turns(part, dim, ways)[::-1 if adjoint else 1] for part in (a, b, states))
    if adjoint:
        decays = (decays[0], *decays[:-1])
    previous = out[0].copy_(inflows[0])
    for decay, inflow, state in zip(decays[1:], inflows[1:], out[1:], strict=True):
        previous = torch.addcmul(inflow, decay, previous, out=state)
    return states


class _LinearScan(torch.autograd.Function):
    """The scan with its closed-form gradient: g_t = dL/dh_t + a_{t+1} g_{t+1}; dL/db = g, dL/da_t = g_t * h_{t-1}."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, dim: int, ways: int | None) -> Tensor:
        states = _scan(a, b, dim, ways, torch.empty_like(b))
        ctx.save_for_backward(a, states)
        ctx.dim, ctx.ways = dim, ways
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, states = ctx.saved_tensors
        grad_b = _scan(a, gradient.contiguous(), ctx.dim, ctx.ways, torch.empty_like(a), adjoint=True)
        grad_a = torch.empty_like(grad_b)
        length = a.shape[ctx.dim]
        parts = [(grad_b, states, grad_a)] if ctx.ways is None else zip(*(part.unbind(ctx.ways) for part in (grad_b, states, grad_a)), strict=True)
        dim = ctx.dim - (ctx.ways is not None)
        for way, (g, h, out) in enumerate(parts):   # h_{t-1} lies one to the left, or to the right where the scan runs backwards
            here, before = (0, 1) if way else (1, 0)
            torch.mul(g.narrow(dim, here, length - 1), h.narrow(dim, before, length - 1), out=out.narrow(dim, here, length - 1))
            out.select(dim, length - 1 if way else 0).zero_()
        return grad_a, grad_b, None, None


def linear_scan(a: Tensor, b: Tensor, dim: int, ways: int | None = None, overwrite: bool = False) -> Tensor:
    """h_t = a_t * h_{t-1} + b_t along `dim`, h before the first is 0. `a` and `b` share shape and dtype.

    `ways` names an axis of length 2, before `dim`, whose second half is scanned from the end to the start. The Python loop
    has as many turns as `dim` is long (the side of a grid) and each turn advances every other axis. `overwrite` lets the
    states take the memory of `b` where no gradient is asked for.
    """
    if ways is not None and not 0 <= ways < dim:
        raise ValueError(f"ways is {ways} and dim is {dim}; the axis of the two ways comes before the scanned one.")
    if torch.compiler.is_compiling():  # a compiler fuses the turns, and an exporter cannot write into slices
        return _traced_scan(a, b, dim, ways)
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return _LinearScan.apply(a.contiguous(), b.contiguous(), dim, ways)
    b = b.contiguous()
    return _scan(a.contiguous(), b, dim, ways, b if overwrite else torch.empty_like(b))


def _traced_scan(a: Tensor, b: Tensor, dim: int, ways: int | None) -> Tensor:
    """The same without writing into slices, which a graph for export cannot express well."""
    if ways is not None:
        (there, back), (b_there, b_back) = a.unbind(ways), b.unbind(ways)
        back, b_back = back.flip(dim - 1), b_back.flip(dim - 1)
        return torch.stack([_traced_scan(there, b_there, dim - 1, None), _traced_scan(back, b_back, dim - 1, None).flip(dim - 1)], ways)
    states: list[Tensor] = []
    for decay, inflow in zip(a.unbind(dim), b.unbind(dim), strict=True):
        states.append(inflow + decay * states[-1] if states else inflow)
    return torch.stack(states, dim)


def _decay_and_scale(log_decay: Tensor, shape: tuple[int, ...], edges: tuple, free: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """a_t and sqrt(1 - a_t^2) from ln a_t, in its memory and in the `free` one; 1 for the tokens at `edges`."""
    grown = log_decay.expm1_()   # a - 1, exact where a is near 1
    decay = torch.add(grown, 1, out=free)
    scale = grown.addcmul_(grown, decay).neg_().add_(1e-8).sqrt_()   # 1 - a^2 = -(a - 1)(a + 1)
    for edge in edges:
        scale.view(shape)[edge] = 1.0
    return decay, scale


def _open(recurrence: Tensor, inflow: Tensor, x: Tensor, rate: Tensor, shape: tuple[int, ...], edges: tuple) -> tuple[Tensor, Tensor]:
    """What `_Gates` computes, in the memory of its first three arguments: fresh pages cost more than the arithmetic (reports/LOG.md, 2026-11-27)."""
    entering = inflow.sigmoid_().mul_(x)
    decay, scale = _decay_and_scale(recurrence.sigmoid_().mul_(rate), shape, edges, free=x)
    return decay, entering.mul_(scale)


def _traced_gates(recurrence: Tensor, inflow: Tensor, x: Tensor, rate: Tensor, shape: tuple[int, ...], edges: tuple) -> tuple[Tensor, Tensor]:
    """What `_Gates` computes, in the plain operations that a compiler differentiates and fuses itself."""
    log_decay = recurrence.sigmoid() * rate
    enters_whole = torch.zeros(shape, dtype=torch.bool, device=x.device)
    for edge in edges:
        enters_whole[edge] = True
    scale = torch.where(enters_whole.view(x.shape), 1.0, (1e-8 - torch.expm1(2 * log_decay)).sqrt())
    return log_decay.exp(), inflow.sigmoid() * x * scale


class _Gates(torch.autograd.Function):
    """Logits [..., n, c] of both gates, x alike and ln a at an open gate [..., 1, c] -> a_t and sqrt(1 - a_t^2) * (i_t * x_t).

    `edges` are index tuples of the tokens that enter unscaled, in the view `shape`. Gradients in closed form: with
    s = sqrt(1 - a^2), da/dln a = a and ds/dln a = -a^2 / s.
    """

    @staticmethod
    def forward(ctx, recurrence: Tensor, inflow: Tensor, x: Tensor, rate: Tensor, shape: tuple[int, ...], edges: tuple) -> tuple[Tensor, Tensor]:
        recurrence, inflow = recurrence.sigmoid(), inflow.sigmoid()
        decay, scale = _decay_and_scale(recurrence * rate, shape, edges)
        ctx.save_for_backward(recurrence, inflow, x, rate, decay, scale)
        ctx.shape, ctx.edges = shape, edges
        return decay, (inflow * x).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_decay: Tensor, grad_input: Tensor) -> tuple[Tensor | None, ...]:
        recurrence, inflow, x, rate, decay, scale = ctx.saved_tensors
        entering = inflow * x
        through_scale = (grad_input * entering).mul_(decay).div_(scale)
        for edge in ctx.edges:
            through_scale.view(ctx.shape)[edge] = 0.0
        grad_log = grad_decay.sub(through_scale).mul_(decay)
        grad_rate = torch.einsum("...nc,...nc->...c", grad_log, recurrence).unsqueeze(-2)
        scaled = grad_input * scale
        grad_x = scaled * inflow
        grad_inflow = torch.ops.aten.sigmoid_backward(scaled.mul_(x), inflow)
        return torch.ops.aten.sigmoid_backward(grad_log.mul_(rate), recurrence), grad_inflow, grad_x, grad_rate, None, None


class GatedLinearRecurrence(nn.Module):
    """RG-LRU on a grid [B, h, w, dim]: channel quarters scan right, left, down and up. Gates are block-diagonal.

    `decay` is drawn so that the memory at a gate of one half, -1 / ln a, is log-uniform between `MEMORY` tokens. Griffin's
    range (a from 0.9 to 0.999) is meant for sequences of thousands; on a scan as long as a grid's side it would carry the
    first token, which enters unscaled, to every other one and hardly add anything.
    """

    def __init__(self, dim: int, blocks: int = 4) -> None:
        super().__init__()
        size = dim // (4 * blocks)
        self.blocks = 4 * blocks
        self.gate_weight = nn.Parameter(torch.randn(self.blocks, size, 2 * size) / math.sqrt(size))
        self.gate_bias = nn.Parameter(torch.zeros(self.blocks, 1, 2 * size))
        memory = torch.empty(dim).uniform_(*(math.log(tokens) for tokens in MEMORY)).exp()
        self.decay = nn.Parameter(torch.expm1(1.0 / (4.0 * memory)).log())  # ln a = -4 softplus(L) at a gate of one half

    def memory_lengths(self) -> Tensor:
        """Tokens after which a state has decayed to 1/e at a gate of one half, [dim]."""
        return 1.0 / (4.0 * F.softplus(self.decay.detach().float()))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        with torch.autocast(x.device.type, enabled=False):
            source = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            along_rows, along_columns = source.unflatten(-1, (4, self.blocks // 4, -1)).split(2, dim=-3)
            # [axis, way, block, B, time, line, c]: one scan for all four directions, each turn on contiguous memory.
            rows, columns = along_rows.permute(3, 4, 0, 2, 1, 5), along_columns.permute(3, 4, 0, 1, 2, 5)
            if height == width:
                rows, columns = self._scan_lines(torch.stack([rows, columns]), 0)
            else:
                rows, columns = (self._scan_lines(torch.stack([lines]), axis)[0] for axis, lines in enumerate((rows, columns)))
            states = torch.stack([rows.permute(2, 4, 3, 0, 1, 5), columns.permute(2, 3, 4, 0, 1, 5)], dim=3)
            return states.reshape(x.shape).to(x.dtype)

    def _scan_lines(self, lines: Tensor, first_axis: int) -> Tensor:
        """Gates and scan of `lines` [axes, way, block, B, time, line, c], from axis `first_axis` on; their memory is spent."""
        blocks = slice(first_axis * self.blocks // 2, first_axis * self.blocks // 2 + len(lines) * self.blocks // 2)
        x = lines.flatten(3, 5).flatten(0, 2)  # [blocks, n, c]
        weights, biases = self.gate_weight[blocks].to(x.dtype).chunk(2, dim=-1), self.gate_bias[blocks].to(x.dtype).chunk(2, dim=-1)
        logits = (torch.baddbmm(bias, x, weight) for bias, weight in zip(biases, weights, strict=True))
        rate = -8.0 * F.softplus(self.decay.to(x.dtype)).view(self.blocks, 1, -1)[blocks]
        # The first token has no past to make room for: it enters unscaled (Griffin's code).
        first = ((slice(None), 0, slice(None), slice(None), 0), (slice(None), 1, slice(None), slice(None), -1))
        gated = (*logits, x, rate, lines.shape, first)
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            decay, inflow = _traced_gates(*gated)
        else:
            decay, inflow = _Gates.apply(*gated) if torch.is_grad_enabled() else _open(*gated)
        return linear_scan(decay.view(lines.shape), inflow.view(lines.shape), dim=4, ways=1, overwrite=True)
