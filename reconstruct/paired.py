"""Whether one of two ways to score the same particles explains them better."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["better"]

DEVIATIONS = 2.0  # of the mean difference, to be sure of it


def better(gain: npt.NDArray[np.floating]) -> bool | None:
    """Whether the second way is better, from its ``gain`` (b,) in nats; None: too close to tell."""
    mean = float(gain.mean())
    error = float(gain.std(ddof=1)) / np.sqrt(len(gain))
    return mean > 0 if abs(mean) > DEVIATIONS * error else None
