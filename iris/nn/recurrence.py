"""The recurrent path of GRFM: RG-LRU (Griffin, 2402.19427, equations 1-4) along rows and columns, both ways.

h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t),  a_t = exp(-8 * softplus(L) * sigmoid(W_a x_t)),  i_t = sigmoid(W_x x_t)

A quarter of the channels scans each direction, so four directions cost one scan and add no variance. Scans run along an
axis of the grid: all rows (or columns) advance together, and the sequential length is the side of the grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEMORY = (0.7, 16.0)


def _forward_scan(a: Tensor, b: Tensor, dim: int) -> Tensor:
    states = torch.empty_like(b)
    slices = tuple(zip(a.unbind(dim), b.unbind(dim), states.unbind(dim), strict=True))
    previous = slices[0][2].copy_(slices[0][1])
    for decay, inflow, state in slices[1:]:
        previous = torch.addcmul(inflow, decay, previous, out=state)
    return states


class _LinearScan(torch.autograd.Function):
    """The scan with its closed-form gradient: g_t = dL/dh_t + a_{t+1} g_{t+1}; dL/db = g, dL/da_t = g_t * h_{t-1}."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, dim: int) -> Tensor:
        states = _forward_scan(a, b, dim)
        ctx.save_for_backward(a, states)
        ctx.dim = dim
        return states

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        a, states = ctx.saved_tensors
        grad_b = torch.empty_like(gradient)
        slices = tuple(zip(a.unbind(ctx.dim), gradient.unbind(ctx.dim), grad_b.unbind(ctx.dim), strict=True))
        following = slices[-1][2].copy_(slices[-1][1])
        for index in range(len(slices) - 2, -1, -1):
            following = torch.addcmul(slices[index][1], slices[index + 1][0], following, out=slices[index][2])
        grad_a = torch.zeros_like(a)
        length = a.shape[ctx.dim]
        torch.mul(grad_b.narrow(ctx.dim, 1, length - 1), states.narrow(ctx.dim, 0, length - 1),
                  out=grad_a.narrow(ctx.dim, 1, length - 1))
        return grad_a, grad_b, None


def linear_scan(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """h_t = a_t * h_{t-1} + b_t along `dim`, h before the first is 0. `a` and `b` share shape and dtype.

    The Python loop has as many turns as `dim` is long (the side of a grid) and each turn advances every other axis.
    """
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return _LinearScan.apply(a, b, dim)
    return _forward_scan(a, b, dim)


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

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log a_t and the gated input i_t * x_t, both [B, h, w, dim]."""
        blocks = x.flatten(0, 2).unflatten(-1, (self.blocks, -1)).transpose(0, 1)
        gates = torch.baddbmm(self.gate_bias.to(x.dtype), blocks, self.gate_weight.to(x.dtype)).sigmoid().transpose(0, 1)
        recurrence, inflow = (part.reshape(x.shape) for part in gates.chunk(2, dim=-1))
        return recurrence * (-8.0 * F.softplus(self.decay.to(x.dtype))), inflow * x

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            source = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            log_a, inflow = self.gates(source)
            scale = torch.sqrt(-torch.expm1(2.0 * log_a) + 1e-8)
            decay = log_a.exp()
            quarters = [parts.chunk(4, dim=-1) for parts in (decay, scale, inflow)]
            outputs = [_scan_both_ways(*(part[2 * axis: 2 * axis + 2] for part in quarters), dim=2 - axis) for axis in (0, 1)]
            return torch.cat([half for pair in outputs for half in pair], dim=-1).to(x.dtype)


def _scan_both_ways(decay: tuple[Tensor, ...], scale: tuple[Tensor, ...], inflow: tuple[Tensor, ...], dim: int) -> tuple[Tensor, Tensor]:
    """Scan the first of each pair forwards and the second backwards along `dim`; two outputs [B, h, w, c]."""
    a, s, x = (torch.stack([first, second.flip(dim)]) for first, second in (decay, scale, inflow))
    # The first token has no past to make room for: it enters unscaled (Griffin's code).
    first = torch.zeros(x.shape[dim + 1], dtype=x.dtype, device=x.device)
    first[0] = 1.0
    first = first.view(-1, *[1] * (x.ndim - dim - 2))
    states = linear_scan(a, x * torch.lerp(s, torch.ones_like(s[:1, :1, :1, :1, :1]), first), dim + 1)
    return states[0], states[1].flip(dim)
