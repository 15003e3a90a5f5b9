"""Every random draw of the project comes from a generator named by numbers: (seed, purpose, step, ...).

Nothing reads the global random state, so a resumed run, another number of processes or another batch size draws the
same values.
"""

from __future__ import annotations

import numpy as np
import torch


def rng_for(*numbers: int) -> torch.Generator:
    """A CPU generator determined by non-negative integers alone; different tuples give unrelated streams (of 2^32: that many bits the generator keeps)."""
    # The count comes first: numpy pads with zeros, which would make (7,), (7, 0) and (7, 0, 0) one stream.
    state = np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
