"""The temperature of the pose posterior: high while nothing is known, 1 once the map earns it.

A posterior at temperature T is the posterior to the power 1 / T. It starts so that a set share of
the candidate poses carries weight, is annealed over the cold phase, and is 1 once a start has won.
The share is measured as an effective number of poses, 1 / sum of squared weights.
"""

from __future__ import annotations

import numpy as np

from reconstruct.backend import Backend
from reconstruct.search import Poses

__all__ = ["annealed", "effective_poses", "temperature_for"]

HOTTEST = 100.0
HALVINGS = 12  # of the interval of log temperature: to 0.1 %


def annealed(share: float, presented: float, *, cold_presented: int) -> float:
    """What is left of a share after ``presented`` presentations: nothing after the cold ones."""
    return share * max(0.0, 1.0 - presented / cold_presented)


def effective_poses(poses: Poses, temperature: float, backend: Backend) -> float:
    """Mean over particles of the effective number of poses at a temperature."""
    xp = backend.xp
    valid = xp.arange(poses.score.shape[1])[None, :] < poses.count[:, None]
    better = (poses.score - poses.score[:, :1]).astype(np.float64) / temperature
    weights = xp.exp(xp.where(valid, better, -np.inf))
    return float((weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)).mean())


def temperature_for(poses: Poses, share: float, backend: Backend) -> float:
    """Lowest temperature, from 1 up, at which ``share`` of the candidate poses carries weight."""
    wanted = share * poses.score.shape[1]
    if wanted <= 1.0 or effective_poses(poses, 1.0, backend) >= wanted:
        return 1.0
    if effective_poses(poses, HOTTEST, backend) <= wanted:
        return HOTTEST
    low, high = 0.0, float(np.log(HOTTEST))
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if effective_poses(poses, float(np.exp(middle)), backend) < wanted:
            low = middle
        else:
            high = middle
    return float(np.exp(high))
