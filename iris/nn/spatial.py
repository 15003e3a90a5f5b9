"""The spatial path of GRFM: a Manhattan-distance decay per head (RMT, 2309.11523), learnable and exact.

gamma^(|dr| + |dc|) = gamma^|dr| * gamma^|dc|, so the dense [N, N] filter is two small one-dimensional products:
O(N (h + w)) and no window. Free of content it is a learned blur; GRFM multiplies it by a gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ManhattanDecay(nn.Module):
    """Normalised decay filter on [B, h, w, dim]; gamma per head starts at RMT's 1 - 2^(-2 - 6 k / heads), k = 0 .. heads-1."""

    def __init__(self, heads: int, decay_range: float = 6.0) -> None:
        super().__init__()
        gamma = 1 - 2 ** (-2 - decay_range * torch.arange(heads) / heads)
        self.logit = nn.Parameter(torch.logit(gamma))

    def decay(self) -> Tensor:
        """gamma per head, in (0, 1)."""
        return self.logit.float().sigmoid()

    def radii(self) -> Tensor:
        """Distance in tokens at which each head has decayed to 1/e."""
        return -1.0 / self.decay().detach().log()

    def axis_filter(self, length: int) -> Tensor:
        """[heads, length, length]: gamma^|i-j|, each row divided by its sum."""
        position = torch.arange(length, device=self.logit.device)
        distance = (position[:, None] - position[None]).abs()
        logit = self.logit.to(torch.promote_types(self.logit.dtype, torch.float32))
        # ln gamma = -softplus(-logit). Not logsigmoid and softmax: each wakes every thread for these few numbers.
        powers = (-distance * nn.functional.softplus(-logit)[:, None, None]).exp()
        return powers / powers.sum(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        heads = len(self.logit)
        rows = self.axis_filter(height).to(x.dtype)
        columns = rows if width == height else self.axis_filter(width).to(x.dtype)
        lines = x.view(batch, height, width, heads, -1).permute(3, 1, 2, 0, 4).reshape(heads, height, -1)  # [heads, h, w*B*c]
        mixed = torch.bmm(rows, lines).view(heads * height, width, -1)
        columns = columns[:, None].expand(-1, height, -1, -1).reshape(heads * height, width, width)
        mixed = torch.bmm(columns, mixed).view(heads, height, width, batch, -1)
        return mixed.permute(3, 1, 2, 0, 4).reshape(batch, height, width, dim)
