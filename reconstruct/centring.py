"""Where a map lies against the boxes of its particles, and bringing it to where these have it.

A map that is found from nothing lies off centre by a pixel or two, as its start happened to. Every
particle's shift then has to make up for it, and some end beyond what is searched. The shifts tell:
where views differ, what they have in common is the map's. docs/decisions/centring.md has the
measurements.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.learned import LearnResult
from reconstruct.siblings import Siblings
from reconstruct.store import ParticleStore
from reconstruct.symmetry import changed_statistics, parse_group, shift_poses, shift_statistics
from reconstruct.types import Centring
from reconstruct.update import MapGrid

__all__ = ["Displaced", "centre", "displacement", "gathered", "recentre", "shift_with", "turned"]

Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

MEMORY = 1500.0  # presentations of a class that its sums remember
LEAST_PIXELS = 0.2  # a map nearer to the centre than this stays where it is
FEWEST = 50  # presentations that tell anything
ERRORS = 3.0  # standard errors that a displacement has to exceed
# Of all rows, that a direction must show in: along one that is seen end on, an offset shows in no
# shift, and what is found is noise (up to 8 pixels, of views within 5 degrees of an axis).
LEAST_SPREAD = 0.02
EVERYWHERE = np.eye(3)


class Displaced(Protocol):
    """What of a learner takes part."""

    backend: Backend
    grid: MapGrid
    centring: Centring
    group: str
    siblings: Siblings | None
    resting: npt.NDArray[np.bool_]  # (K,)
    mask_radius: Float64  # (K,) pixels
    shift_sums: Float64  # (K, 4, 4) of ``gathered``
    statistics: Any  # (2, K, g, g, h, 3)
    velocity: Any


def gathered(sums: Float64, found: LearnResult) -> Float64:
    """Sums (K, 4, 4) of a class's displacement, with those of another update taken in.

    Of each particle's best pose, in the class that explains it best, the rows (a, s) of x and of y:
    a of the rotation A, s of the shift in pixels. A map displaced by d makes s = a . d + its own.
    """
    classes = np.argmax(found.class_mass, axis=1)  # as a device tells it
    rotation = found.poses.rotation[:, 0].reshape(-1, 3, 3)[:, :2].astype(np.float64)
    rows = np.concatenate([rotation, found.poses.shift[:, 0, :, None]], axis=2)  # (b, 2, 4)
    now = sums.copy()
    for k in range(len(sums)):
        own = rows[classes == k].reshape(-1, 4)
        now[k] = np.exp(-0.5 * len(own) / MEMORY) * sums[k] + own.T @ own
    return now


def turned(sums: Float64, axes: Float64, move: Float64) -> Float64:
    """Sums (..., 4, 4) once the map was moved by ``move`` (3,) in pixels, then turned by ``axes``.

    ``axes`` (3, 3) are as in ``symmetry.rotate_poses``.
    """
    turn = np.eye(4)
    turn[:3, :3], turn[:3, 3] = axes.T, move
    after: Float64 = turn.T @ sums @ turn
    return after


def displacement(sums: Float64, free: Float64 = EVERYWHERE) -> Float64:
    """How far (3,) x, y, z in pixels a map lies off centre by the sums (4, 4) of its particles.

    Least squares, along the directions that the views tell; 0 where it is too little to matter.
    ``free`` (3, 3) projects on the directions in which the map may be moved.
    """
    rows = float(np.trace(sums[:3, :3]))  # each is of length 1
    if rows < 2 * FEWEST:
        return np.zeros(3)
    spread, turns = np.linalg.eigh(free @ sums[:3, :3] @ free)
    along = turns.T @ free @ sums[:3, 3]
    known = spread > LEAST_SPREAD * rows
    moved = np.where(known, along / np.where(known, spread, 1.0), 0.0)
    left = max(float(sums[3, 3] - along @ moved), 0.0) / rows
    moved[moved**2 * spread <= ERRORS**2 * left] = 0.0
    found: Float64 = turns @ moved
    return found if float(np.linalg.norm(found)) >= LEAST_PIXELS else np.zeros(3)


def centre(learner: Displaced) -> Float64:
    """Move the maps that lie off centre, and give what they were off by (K, 3), in pixels.

    The references are the caller's to make anew, where any did. A group's axes hold the map, but
    along the axis of a Cn; siblings lie as their common map did.
    """
    moves = np.zeros((len(learner.shift_sums), 3))
    if learner.centring == "off":
        return moves
    free = np.round(parse_group(learner.group).operators.mean(axis=0), 9)
    held = () if learner.siblings is None else learner.siblings.classes
    for k, sums in enumerate(learner.shift_sums):
        if learner.resting[k] or k in held:
            continue
        moves[k] = displacement(sums, free)
        if moves[k].any():
            _move(learner, k, -moves[k])
    return moves


def _move(learner: Displaced, k: int, move: Float64) -> None:
    moved = partial(shift_statistics, displacement_pixels=move, padded=learner.grid.padded)
    held = learner.backend.asnumpy(learner.statistics[:, k])
    changed = np.stack([changed_statistics(half, moved) for half in held])
    learner.statistics[:, k] = learner.backend.asarray(changed)
    if learner.velocity is not None:
        learner.velocity[:, k] = 0  # of a map that lay elsewhere
    learner.shift_sums[k] = turned(learner.shift_sums[k], np.eye(3), move)
    wider = learner.mask_radius[k] + np.linalg.norm(move)  # until it is fitted again
    learner.mask_radius[k] = min(wider, learner.grid.mask_radius_pixels)


def recentre(learner: Displaced, store: ParticleStore) -> Float64:
    """``centre`` the maps of a session, and correct the shifts of the particles with them."""
    moves = centre(learner)
    for k in np.flatnonzero(moves.any(axis=1)):
        shift_with(store, int(k), -moves[k])
    return moves


def shift_with(store: ParticleStore, k: int, move: Float64) -> tuple[Rows, Float64]:
    """Correct the shifts of the particles of class ``k``, whose map was moved by ``move`` pixels.

    Returns
    -------
    Their rows of the store, and their rotations (n, 3, 3).
    """
    rows = np.flatnonzero(store["class_index"] == k)
    rotations = np.asarray(store["rotation"][rows], dtype=np.float64).reshape(-1, 3, 3)
    store["shift"][rows] = shift_poses(rotations, store["shift"][rows], move)
    return rows, rotations
