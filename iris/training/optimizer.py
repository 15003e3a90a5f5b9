"""Muon for matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024; 2502.16982 for the scale) replaces a matrix's update by the nearest orthogonal one, so that all its
directions move alike. Its step is scaled to AdamW's root mean square, then by `MATRIX_RATE`. Measured here: the same held-out
loss after little more than half the pictures (reports/LOG.md, 2026-11-25).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from iris.config import ConfigError

MATRIX_RATE = 3.0  # Muon's learning rate over AdamW's
OPTIMIZERS = ("muon", "adamw")
ADAPTIVE = ("position", "output")  # matrices by name that are not of a hidden layer: AdamW's, as Muon's authors advise


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers that share one list of groups and one state, so that saving, restoring and scheduling see a single one."""

    def __init__(self, matrices: list[Tensor], groups: Iterable[dict[str, Any]], lr: float, weight_decay: float) -> None:
        self._parts = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
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
    if kind == "muon" and not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"the optimizer muon needs torch 2.9 or later, and this is {torch.__version__}; update torch, or use adamw.")
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    matrices = [p for name, p in named if kind == "muon" and p.ndim == 2 and not _is_vector(name, p) and not any(part in name for part in ADAPTIVE)]
    chosen = {id(parameter) for parameter in matrices}
    rest = [(name, parameter) for name, parameter in named if id(parameter) not in chosen]
    groups = [{"params": [p for name, p in rest if not _is_vector(name, p)], "weight_decay": weight_decay},
              {"params": [p for name, p in rest if _is_vector(name, p)], "weight_decay": 0.0}]
    if matrices:
        return MuonAdamW(matrices, groups, lr, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
