"""Which training steps to trust. A step that is not finite or a spike is skipped; many in a row end in a rollback.

The guard is a handful of numbers that a checkpoint keeps exactly, and decides by them alone: a resumed run skips and rolls
back where the uninterrupted one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Times the running mean of the trusted losses. High, because a batch drawn at depth one may honestly lose several times the mean.
SPIKE = 10.0
_WARM = 20  # trusted losses before a spike can be told from a beginning
_MEMORY = 50  # trusted losses that the mean remembers
PATIENCE = 5  # failures in a row before a rollback
TRIES = 3  # rollbacks to one checkpoint before the run gives up


class TrainingError(ValueError):
    """A training that cannot go on; the message says since when and what to change."""


@dataclass
class Guard:
    """`mean` of the last trusted losses, how many were `seen`, `failures` in a row, `rollbacks` in all, `tries` since the last anchor."""

    mean: float = 0.0
    seen: int = 0
    failures: int = 0
    rollbacks: int = 0
    tries: int = 0

    def trusts(self, loss: float) -> bool:
        """Whether `loss` (unweighted, averaged over the batch) is finite and no spike."""
        return math.isfinite(loss) and (self.seen < _WARM or self.mean <= 0 or loss <= SPIKE * self.mean)

    def accept(self, loss: float) -> None:
        """Note a step that was taken."""
        self.seen += 1
        self.mean += (loss - self.mean) / min(self.seen, _MEMORY)
        self.failures = 0

    def refuse(self) -> bool:
        """Note a step that was skipped; True when a rollback is due."""
        self.failures += 1
        return self.failures >= PATIENCE

    def note_rollback(self, step: int) -> None:
        """Begin anew after a rollback, also with the mean: what follows may be another level for good. TrainingError after too many."""
        self.rollbacks += 1
        self.tries += 1
        self.mean, self.seen, self.failures = 0.0, 0, 0
        if self.tries > TRIES:
            raise TrainingError(f"the training cannot get past step {step}: it was rolled back {TRIES} times to the same checkpoint; "
                                "start over with a lower learning rate, or look for broken data.")
