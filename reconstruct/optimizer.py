"""How statistics of a minibatch move a map: online EM, or gradient descent with momentum.

Both are one step on the same additive statistics N and D, with V = N / D:

    V <- V + (N_batch - D_batch V) / (decay D + D_batch)          online EM
    V <- V + momentum (last step) + rate (N_batch - D_batch V) / (D_batch + its shell's mean)

(N_batch - D_batch V is the gradient of the minibatch's log-likelihood.) Online EM's step is its own
at every voxel: one never seen moves all the way, one measured often hardly moves. Gradient descent
takes one rate for all. Its map is kept as statistics too, N = V D with the D that online EM would
have, so that half-map FSC, Wiener filter, symmetry and checkpoints do not care which it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.fourier import shell_index
from reconstruct.types import EngineSettings, OptimizerName
from reconstruct.update import at_reach, shell_means

__all__ = ["Optimizer", "gradient_step", "learning_rate_at", "optimizer_of"]

Float32 = npt.NDArray[np.float32]

HELD_UPDATES = 100  # updates at the learning rate that was set; it falls as 1 / updates after


@dataclass(frozen=True)
class Optimizer:
    """Which step is taken; the numbers are those of ``sgd``."""

    name: OptimizerName = "em"
    learning_rate: float = 0.4
    momentum: float = 0.0


def optimizer_of(settings: EngineSettings) -> Optimizer:
    """What a user set."""
    return Optimizer(settings.optimizer, settings.learning_rate, settings.momentum)


def learning_rate_at(updates: int, rate: float) -> float:
    """Learning rate of the update after ``updates`` of them: held for 100, then falling."""
    return rate * min(1.0, HELD_UPDATES / (updates + 1))


def gradient_step(
    statistics: Float32,
    batch: Float32,
    velocity: Float32 | None,
    *,
    decay: npt.NDArray[np.floating],
    optimizer: Optimizer,
    updates: int,
    scale: float,
    backend: Backend,
) -> Float32 | None:
    """Move the map in ``statistics`` by what ``batch`` says, in place; return the new velocity.

    Parameters
    ----------
    statistics, batch
        (2, K, g, g, reach + 2, 3) N and D so far, and those of this minibatch alone.
    velocity
        (2, K, g, g, reach + 2, 2) the last step, of any extent; None for none.
    decay
        (K,) share of D that is remembered.
    updates
        Updates made before this one.
    scale
        Grid steps per shell.
    """
    moved = None
    if optimizer.momentum > 0:
        moved = _fitted(velocity, statistics, backend)
    for h in range(2):
        for k in range(statistics.shape[1]):
            _step_one(
                statistics[h, k],
                batch[h, k],
                None if moved is None else moved[h, k],
                decay=float(decay[k]),
                rate=learning_rate_at(updates, optimizer.learning_rate),
                momentum=optimizer.momentum,
                scale=scale,
                backend=backend,
            )
    return moved


def _step_one(
    statistics: Float32,
    batch: Float32,
    velocity: Float32 | None,
    *,
    decay: float,
    rate: float,
    momentum: float,
    scale: float,
    backend: Backend,
) -> None:
    xp = backend.xp
    reach = (statistics.shape[0] - 1) // 2
    # Sums over shells are made on the host, in float64: a few MB, in a mode that few will use.
    weight = backend.asnumpy(xp.ascontiguousarray(batch[:, :, : reach + 1, 2]))
    mean = shell_means(weight, scale)
    if float(mean.max()) <= 0:  # nothing came: nothing moves and nothing is forgotten
        return
    shells = _shells_of_statistics(reach, scale, backend)
    damping = backend.asarray(mean, np.float32)[xp.minimum(shells, len(mean) - 1)]
    held = statistics[..., 2:]
    volume = xp.where(held > 0, statistics[..., :2] / xp.where(held > 0, held, 1), 0)
    gradient = batch[..., :2] - batch[..., 2:] * volume
    whole = batch[..., 2] + damping
    step = rate * gradient / xp.where(whole > 0, whole, 1)[..., None]
    if velocity is not None:
        velocity *= np.float32(momentum)
        velocity += step
        step = velocity
    total = np.float32(decay) * statistics[..., 2] + batch[..., 2]
    statistics[..., :2] = (volume + step) * total[..., None]
    statistics[..., 2] = total


@lru_cache(maxsize=16)
def _shells_of_statistics(reach: int, scale: float, backend: Backend) -> Any:
    """Shell of each voxel of statistics, which have one column more than a half cube."""
    return backend.asarray(shell_index(reach + 1, scale=scale)[1:-1, 1:-1], np.int32)


def _fitted(velocity: Float32 | None, statistics: Float32, backend: Backend) -> Float32:
    """Give a velocity the extent of ``statistics``, whose working radius may have changed."""
    if velocity is None:
        return backend.xp.zeros((*statistics.shape[:-1], 2), np.float32)  # type: ignore[no-any-return]
    if velocity.shape[2] == statistics.shape[2]:
        return velocity
    return at_reach(velocity, (statistics.shape[2] - 1) // 2, backend)
