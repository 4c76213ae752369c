"""What tests ask of a compacted learner."""

from __future__ import annotations

import numpy as np
import torch

from nispa import Learner, compact


def assert_compact_tells(learner: Learner, inputs: np.ndarray, told: np.ndarray) -> None:
    """Compacted, a learner gives its first task's scores ``told``, up to rounding."""
    small = compact(learner)
    scores = small(torch.from_numpy(inputs))[:, small.tasks[0]["outputs"]]  # type: ignore[index]
    torch.testing.assert_close(scores, torch.as_tensor(told), atol=1e-4, rtol=1e-4)
