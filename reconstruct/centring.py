"""Where a map lies against the boxes of its particles, and bringing it to where these have it.

A map that is found from nothing lies off centre by a pixel or two, as its start happened to. Every
particle's shift then has to make up for it, and some end beyond what is searched. The shifts tell:
where views differ, what they have in common is the map's. docs/decisions/centring.md has the
measurements.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.learned import LearnResult
from reconstruct.siblings import Siblings
from reconstruct.store import ParticleStore
from reconstruct.symmetry import shift_poses, shift_statistics, storable_statistics
from reconstruct.types import Centring
from reconstruct.update import MapGrid, symmetric_plane

__all__ = ["Displaced", "displacement", "gathered", "recentre"]

Float64 = npt.NDArray[np.float64]

MEMORY = 1500.0  # presentations of a class that its sums remember
LEAST_PIXELS = 0.2  # a map nearer to the centre than this stays where it is
FEWEST = 50  # presentations that tell anything
ERRORS = 3.0  # standard errors that a displacement has to exceed


class Displaced(Protocol):
    """What of a learner takes part."""

    backend: Backend
    grid: MapGrid
    centring: Centring
    group: str
    siblings: Siblings | None
    resting: npt.NDArray[np.bool_]  # (K,)
    shift_sums: Float64  # (K, 4, 4) of ``gathered``
    statistics: Any  # (2, K, g, g, h, 3)
    velocity: Any


def gathered(sums: Float64, found: LearnResult) -> Float64:
    """Sums (K, 4, 4) of a class's displacement, with those of another update taken in.

    Of each particle's best pose, in the class that explains it best, the rows (a, s) of x and of y:
    a of the rotation A, s of the shift in pixels. A map displaced by d makes s = a . d + its own.
    """
    classes = np.argmax(found.class_mass, axis=1)
    rotation = found.poses.rotation[:, 0].reshape(-1, 3, 3)[:, :2].astype(np.float64)
    rows = np.concatenate([rotation, found.poses.shift[:, 0, :, None]], axis=2)  # (b, 2, 4)
    now = sums.copy()
    for k in range(len(sums)):
        own = rows[classes == k].reshape(-1, 4)
        now[k] = np.exp(-0.5 * len(own) / MEMORY) * sums[k] + own.T @ own
    return now


def displacement(sums: Float64) -> Float64:
    """How far (3,) x, y, z in pixels a map lies off centre by the sums (4, 4) of its particles.

    Least squares, along the directions that the views tell; 0 where it is too little to matter.
    """
    spread, turns = np.linalg.eigh(sums[:3, :3])
    rows = float(np.trace(sums[:3, :3]))  # each is of length 1
    if rows < 2 * FEWEST:
        return np.zeros(3)
    along = turns.T @ sums[:3, 3]
    known = spread > 1e-6 * rows
    moved = np.where(known, along / np.where(known, spread, 1.0), 0.0)
    left = max(float(sums[3, 3] - along @ moved), 0.0) / rows
    moved[moved**2 * spread <= ERRORS**2 * left] = 0.0
    found: Float64 = turns @ moved
    return found if float(np.linalg.norm(found)) >= LEAST_PIXELS else np.zeros(3)


def recentre(learner: Displaced, store: ParticleStore) -> bool:
    """Move the maps that lie off centre, and the shifts of their particles; whether any did.

    The references are the caller's to make anew. With a group its axes hold the map, and siblings
    lie as their common map did.
    """
    if learner.centring == "off" or learner.group != "C1" or learner.siblings is not None:
        return False
    moves = np.stack([displacement(sums) for sums in learner.shift_sums])
    moves[learner.resting] = 0.0
    if not moves.any():
        return False
    # A few MB to the host and back, a few times in a session.
    statistics = learner.backend.asnumpy(learner.statistics).copy()
    reach = (statistics.shape[2] - 1) // 2
    classes = np.asarray(store["class_index"], dtype=np.int32)
    for k in np.flatnonzero(moves.any(axis=1)):
        for h in (0, 1):
            crop = symmetric_plane(statistics[h, k], reach)
            crop = shift_statistics(crop, -moves[k], padded=learner.grid.padded)
            statistics[h, k] = storable_statistics(crop)
        rows = np.flatnonzero(classes == k)
        rotations = np.asarray(store["rotation"][rows], dtype=np.float64).reshape(-1, 3, 3)
        store["shift"][rows] = shift_poses(rotations, store["shift"][rows], -moves[k])
        back = np.eye(4)
        back[:3, 3] = -moves[k]
        learner.shift_sums[k] = back.T @ learner.shift_sums[k] @ back
    learner.statistics = learner.backend.asarray(statistics)
    learner.velocity = None  # of a map that lay elsewhere
    return True
