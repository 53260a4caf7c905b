"""Near-spherical particles: told from the data, and the course that finds their map.

The low shells of a hollow ball say nothing about its orientation: a coarse pass over them keeps
poses at random, and a C1 start ends in a local minimum. Where the user has named a cubic group,
its operators are the way in. Starts have the group from their first batch, are searched at the
resolution that carries orientation, and every particle is scored against the map of the *other*
half-set, so that no particle meets its own noise; by that evidence the best start goes on, marching
once more from low resolution. docs/decisions/spherical.md has the measurements.

Radii are given per particle diameter: ``n`` means ``n`` shells of a box as wide as the particle.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from reconstruct.imposing import seek_axes
from reconstruct.learned import first_half
from reconstruct.learner import Learner
from reconstruct.search import WeightedBatch
from reconstruct.symmetry import parse_group
from reconstruct.symmetry_course import SYMMETRY_SCORE

__all__ = [
    "BATCH",
    "CUBIC",
    "PROBED",
    "STARTS",
    "Sphericity",
    "Stage",
    "keep_best",
    "prepare_starts",
    "restart_radius",
    "shows_axes",
    "sphericity",
    "stage_of",
    "steer",
    "window_of",
]

Float32 = npt.NDArray[np.float32]

CUBIC = ("T", "O", "I")
SPHERICAL_SHARE = 0.4  # of the evidence, that views may explain of a near-sphere
PROBED = 300  # particles that the verdict is asked of

STARTS = 6
MARCHING = 3  # starts that go on after the race
RACED = 1800  # presentations of every start, at one radius
MARCHED = 4500  # presentations of the march, from MARCH_FROM to the session's highest radius
SETTLED = 1000  # presentations at its end
WINDOW = 300.0  # particles remembered
BATCH = 100
RACE_AT = 9.6
MARCH_FROM = 6.7

Stage = Literal["race", "march", "over"]


@dataclass(frozen=True)
class Sphericity:
    """How much of what a map explains depends on the view."""

    evidence: float  # mean per particle, nats against noise only
    of_a_ball: float  # the same of the radially averaged map

    @property
    def share(self) -> float:
        """Share of the evidence that only views explain; 0 for a ball."""
        return float(1.0 - self.of_a_ball / self.evidence) if self.evidence > 0 else 1.0

    @property
    def near_ball(self) -> bool:
        """Whether views explain so little that low shells cannot be trusted with poses."""
        return self.share < SPHERICAL_SHARE


def sphericity(
    learner: Learner,
    batch: WeightedBatch,
    half: npt.NDArray[np.intp],
    *,
    workers: Executor,
) -> Sphericity:
    """Compare a learner's map with its own radial average on particles (sorted by half-set)."""
    assert learner.cubes is not None
    cubes = learner.backend.asnumpy(learner.cubes)
    ball = np.stack([_radial_average(cube[..., :2]) for cube in cubes])
    if cubes.shape[-1] == 4:  # a device keeps each value with the next along x
        ball = np.concatenate([ball, np.roll(ball, -1, axis=3)], axis=-1)

    def evidence(cubes: Float32) -> float:
        probe = replace(learner, cubes=learner.backend.asarray(cubes))
        poses, _ = probe.search(
            batch,
            first_half(half),
            np.random.default_rng([*learner.seed, learner.updates]),
            cold=False,
            workers=workers,
            start=None,
        )
        return float(learner.backend.asnumpy(poses.evidence).mean())

    return Sphericity(evidence=evidence(cubes), of_a_ball=evidence(ball))


def _radial_average(cube: Float32) -> Float32:
    """Mean over shells one grid step wide of a centred Fourier cube (g, g, g, 2)."""
    g = cube.shape[0]
    axis = np.arange(g) - (g - 1) / 2
    squares = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    shell = np.round(np.sqrt(squares)).astype(np.intp)
    counts = np.bincount(shell.ravel())
    mean = np.bincount(shell.ravel(), cube[..., 0].ravel()) / np.maximum(counts, 1)
    ball = np.zeros_like(cube)  # the imaginary part of what is even is 0
    ball[..., 0] = mean[shell]
    return ball


def _radius(per_diameter: float, learner: Learner) -> int:
    diameter = 2 * float(learner.mask_radius.max())
    shells = round(per_diameter * learner.grid.box / diameter)
    return int(np.clip(shells, learner.schedule.start_radius, learner.max_radius))


def shows_axes(learner: Learner, group: str) -> bool:
    """Whether the map shows the axes of ``group`` already, so that it needs no other course."""
    return max(verdict.score for verdict in seek_axes(learner, group)) >= SYMMETRY_SCORE


def prepare_starts(fresh: list[Learner], leader: Learner, group: str) -> list[Learner]:
    """Make fresh learners starts of this course, with the mask that ``leader`` has found."""
    for learner in fresh:
        learner.group = parse_group(group).name
        learner.mask_radius = leader.mask_radius.copy()
        learner.split = True
        learner.scored_by = "other"
        learner.coarse_radius = _radius(RACE_AT, learner) - 1
        steer(learner)
    return fresh


def stage_of(presented: float) -> Stage:
    """Where a start stands after ``presented`` presentations."""
    if presented < RACED:
        return "race"
    return "march" if presented < RACED + MARCHED + SETTLED else "over"


def steer(learner: Learner) -> None:
    """Set the radius that a start has reached; the half maps of such a start cannot say."""
    radius = _radius(RACE_AT, learner)
    if stage_of(learner.presented) != "race":
        lowest = _radius(MARCH_FROM, learner)
        done = min((learner.presented - RACED) / MARCHED, 1.0)
        radius = round(lowest + (learner.max_radius - lowest) * done)
    learner.hold_radius(radius)


def keep_best(learners: Sequence[Learner]) -> list[Learner]:
    """The starts that go on, best evidence first: half of them march, one is left at the end."""
    stage = stage_of(learners[0].presented)
    most = {"race": STARTS, "march": MARCHING, "over": 1}[stage]
    if len(learners) <= most:
        return list(learners)
    return sorted(learners, key=lambda learner: -learner.evidence)[:most]


def restart_radius(learner: Learner) -> int:
    """Shells from which the half-sets go on by themselves: those that all starts share."""
    return _radius(MARCH_FROM, learner)


def window_of(learner: Learner, usual: float) -> float:
    """Particles that a learner remembers: one of this course never fewer than ``WINDOW``."""
    return max(usual, WINDOW) if learner.coarse_radius else usual
