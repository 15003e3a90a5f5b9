"""Muon for matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024; 2502.16982 for the scale) replaces a matrix's update by the nearest orthogonal one, so that all its
directions move alike. Its step is scaled to AdamW's root mean square, then by `MATRIX_RATE`. Measured here: the same held-out
loss after little more than half the pictures (reports/LOG.md, 2026-11-25).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MATRIX_RATE = 3.0  # Muon's learning rate over AdamW's
OPTIMIZERS = ("muon", "adamw")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, five times, brings singular values from 3e-3 to 1 near 1
ADAPTIVE = ("position", "output")  # matrices by name that are not of a hidden layer: AdamW's, as Muon's authors advise


def cpu_computes_in_bf16() -> bool:
    """Whether this CPU multiplies in bf16 (AVX512-BF16 or AMX), two to eight times as fast as in fp32; others emulate it, slowly."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 and later
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _fastest_of(device: torch.device) -> torch.dtype:
    """The float that a device computes fastest in: of 16 bits, but for a CPU that would emulate it, at twenty times fp32's cost."""
    if device.type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability(device) < (8, 0) else torch.bfloat16
    return torch.bfloat16 if cpu_computes_in_bf16() else torch.float32


def orthogonalize(stack: Tensor, steps: int = 5) -> Tensor:
    """U V^T of each matrix U S V^T of a stack [k, m, n], nearly: singular values from about 3e-3 of the norm on end between 0.7 and 1.2, smaller ones
    below.

    In bf16, as its authors do, but in fp16 on a GPU that has no units for bf16, such as a T4, and in fp32 on a CPU without. The norm is made one before that:
    clipped gradients are small, and half of a matrix's entries would be zero in fp16.
    """
    x = stack.mT if stack.shape[1] > stack.shape[2] else stack
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)).to(_fastest_of(stack.device))
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if stack.shape[1] > stack.shape[2] else x


class StackedMuon(torch.optim.Optimizer):
    """torch.optim.Muon's numbers with all matrices of one shape in one product, where it takes fifteen launches for each: a sixth of

    a GPU's step (reports/LOG.md, 2026-11-27).
    """

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            for matrix in matrices:
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
            gradients, momenta = [matrix.grad for matrix in matrices], [self.state[matrix]["momentum_buffer"] for matrix in matrices]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            for shape in {matrix.shape for matrix in matrices}:
                alike = [index for index, matrix in enumerate(matrices) if matrix.shape == shape]
                directions = orthogonalize(torch.stack([updates[index] for index in alike])).to(matrices[0].dtype)
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))  # AdamW's root mean square (2502.16982)
                torch._foreach_add_([matrices[index] for index in alike], list(directions.unbind()), alpha=-rate)


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers that share one list of groups and one state, so that saving, restoring and scheduling see a single one."""

    def __init__(self, matrices: list[Tensor], groups: Iterable[dict[str, Any]], lr: float, weight_decay: float) -> None:
        self._parts = (
            StackedMuon(matrices, lr=lr, weight_decay=weight_decay),
            torch.optim.AdamW(list(groups), lr=lr, betas=(0.9, 0.99), fused=True),
        )
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give both parts the groups and the state of the whole."""
        self._parts[0].param_groups, self._parts[1].param_groups = self.param_groups[:1], self.param_groups[1:]
        for part in self._parts:
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        matrices = self.param_groups[0]
        rate = matrices["lr"]
        matrices["lr"] = rate * MATRIX_RATE  # the schedule sets one rate for all groups
        for part in self._parts:
            part.step()
        matrices["lr"] = rate


def _is_vector(name: str, parameter: Tensor) -> bool:
    """A bias, also one shaped for a block-diagonal product, or a list of numbers such as GRFM's alpha [heads, 1]."""
    return parameter.ndim <= 1 or (parameter.ndim == 2 and min(parameter.shape) == 1) or name.rpartition(".")[2].endswith("bias")


def build_optimizer(module: nn.Module, lr: float, weight_decay: float, kind: str = "muon") -> torch.optim.Optimizer:
    """The optimizer of `module`'s trainable weights; vectors, whatever their shape, are never decayed. `kind` "adamw" leaves Muon out.

    A module without matrices (a convolutional autoencoder) has AdamW alone either way.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    matrices = [p for name, p in named if kind == "muon" and p.ndim == 2 and not _is_vector(name, p) and not any(part in name for part in ADAPTIVE)]
    chosen = {id(parameter) for parameter in matrices}
    rest = [(name, parameter) for name, parameter in named if id(parameter) not in chosen]
    groups = [{"params": [p for name, p in rest if not _is_vector(name, p)], "weight_decay": weight_decay},
              {"params": [p for name, p in rest if _is_vector(name, p)], "weight_decay": 0.0}]
    if matrices:
        return MuonAdamW(matrices, groups, lr, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
